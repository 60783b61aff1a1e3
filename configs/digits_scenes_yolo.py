"""YOLOv3's head, one level of it, on a small Darknet, on scenes of handwritten digits: 0 to 8 of them among clutter.

  python experiments/train.py --config configs/digits_scenes_yolo.py --workdir runs/yolo

96 x 128 pixels, four minutes on 2 CPU cores (`make demo` runs it). Expected on 200 scenes of other writers' digits:
AP@.5 of 0.95 or more, AP@[.5:.95] of 0.75 or more. Measured: 0.961 and 0.757; `make demo` takes 223 seconds in all.

What it took: one level of stride 8, which is faster and localises better here than 8 and 16; every anchor that fits by
an IoU of 0.4 learns a digit's class, not the best one alone; a learning rate of 0.02; scenes never seen twice.
"""

from ml_collections import config_dict

from configs import common


def get_config(variant: str = ''):
  return common.config(
      variant,
      task=dict(name='yolov3', box_loss='ciou', ignore_threshold=0.6, extra_match_iou=0.4,
                voc_ap=config_dict.placeholder(str),
                weights=dict(loss_box=8.0, loss_objectness=1.5, loss_class=2.0)),
      model=dict(name='yolov3_small', width=16, strides=(8,), anchors=(((12.0, 17.0), (17.0, 23.0), (24.0, 32.0)),)),
      data=dict(name='digit_scenes', train_size=60_000, workers=1, batch_size=16, canvas=(96, 128), max_objects=8,
                mean=(0.2, 0.2, 0.2), std=(0.2, 0.2, 0.2)),
      optim=dict(name='adamw', lr=2e-2, schedule='cosine', warmup='100 steps', weight_decay=1e-2, clip=10.0),
      train=dict(duration='3200 steps', eval_every='1600 steps', log_every=100, best='AP', ema_decay=0.998),
  )
