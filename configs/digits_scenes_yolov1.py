"""YOLOv1's grid and fully connected layer on a small network, on scenes of handwritten digits among clutter.

  python experiments/train.py --config configs/digits_scenes_yolov1.py --workdir runs/yolov1

96 x 128 pixels, a grid of 6 x 8 cells, ten minutes on 2 CPU cores. Expected on 200 scenes of other writers' digits:
AP@.5 of 0.75 or more.
Measured: 0.823 and AP@[.5:.95] of 0.382 after 9:10.

Of two digits whose centres lie in one cell only the larger is learned, and a cell predicts one class. What it takes:
the fully connected layer begins as one 1x1 convolution (`cells_alike`) and learns with a twentieth of the learning
rate, as each of its outputs adds up 1,536 inputs; classes weigh three times what they do in the paper.
"""

from ml_collections import config_dict

from configs import common


def get_config(variant: str = ''):
  return common.config(
      variant,
      task=dict(name='yolov1', voc_ap=config_dict.placeholder(str),
                weights=dict(loss_box=5.0, loss_objectness=1.0, loss_no_object=0.5, loss_class=3.0)),
      model=dict(name='yolov1_small', width=16),
      data=dict(name='digit_scenes', train_size=160_000, workers=1, batch_size=16, canvas=(96, 128), max_objects=8,
                mean=(0.2, 0.2, 0.2), std=(0.2, 0.2, 0.2)),
      optim=dict(name='adamw', lr=1e-2, schedule='cosine', warmup='200 steps', weight_decay=1e-2, clip=10.0,
                 rules=(('fc1', dict(lr=0.05)),)),
      train=dict(duration='10500 steps', eval_every='3500 steps', log_every=100, best='AP', ema_decay=0.998),
  )
