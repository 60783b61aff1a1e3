"""YOLOv3's head on a small Darknet, on scenes of handwritten digits: 0 to 8 of them among clutter, 96 x 128 pixels.

  python experiments/train.py --config configs/digits_scenes_yolo.py --workdir runs/yolo

Four minutes on 2 CPU cores (`make demo` runs it). Expected on 200 scenes of other writers' digits: AP@.5 of 0.95 or
more, AP@[.5:.95] of 0.75 or more.
"""

from ml_collections import config_dict

from configs import common


def get_config(variant: str = ''):
  return common.config(
      variant,
      task=dict(name='yolov3', box_loss='ciou', ignore_threshold=0.6, extra_match_iou=config_dict.placeholder(float),
                weights=dict(loss_box=2.0, loss_objectness=1.0, loss_class=1.0)),
      model=dict(name='yolov3_small', width=16),
      data=dict(name='digit_scenes', batch_size=32, canvas=(96, 128), resize='letterbox', max_objects=8, cache=True, mean=(0.2, 0.2, 0.2), std=(0.2, 0.2, 0.2),
                augment=()),
      optim=dict(name='adamw', lr=3e-3, schedule='cosine', warmup='100 steps', weight_decay=1e-2, clip=10.0),
      train=dict(duration='10 epochs', eval_every='5 epochs', best='AP', ema_decay=0.998),
  )
