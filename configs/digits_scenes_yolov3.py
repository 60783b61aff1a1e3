"""YOLOv3's head at two scales on a small Darknet, on scenes of handwritten digits: 0 to 8 of them among clutter.

  python experiments/train.py --config configs/digits_scenes_yolov3.py --workdir runs/yolov3

96 x 128 pixels, ten minutes on 2 CPU cores. Expected on 200 scenes of other writers' digits: AP@.5 of 0.90 or more.
Measured: 0.982 and AP@[.5:.95] of 0.792 after 8:51.
`configs/digits_scenes_yolo.py` is the smaller one of `make demo`, with one scale and a fifth of the parameters.
"""

from ml_collections import config_dict

from configs import common


def get_config(variant: str = ''):
  return common.config(
      variant,
      task=dict(name='yolov3', box_loss='ciou', ignore_threshold=0.6, extra_match_iou=0.4,
                voc_ap=config_dict.placeholder(str),
                weights=dict(loss_box=8.0, loss_objectness=1.5, loss_class=2.0)),
      model=dict(name='yolov3_small', width=16),
      data=dict(name='digit_scenes', train_size=160_000, workers=1, batch_size=16, canvas=(96, 128), max_objects=8,
                mean=(0.2, 0.2, 0.2), std=(0.2, 0.2, 0.2)),
      optim=dict(name='adamw', lr=2e-2, schedule='cosine', warmup='200 steps', weight_decay=1e-2, clip=10.0),
      train=dict(duration='7000 steps', eval_every='3500 steps', log_every=100, best='AP', ema_decay=0.998),
  )
