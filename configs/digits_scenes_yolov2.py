"""YOLOv2's head with its passthrough on a small Darknet, on scenes of handwritten digits among clutter.

  python experiments/train.py --config configs/digits_scenes_yolov2.py --workdir runs/yolov2

96 x 128 pixels, 6 x 8 cells of five anchors, ten minutes on 2 CPU cores. Expected on 200 scenes of other writers'
digits: AP@.5 of 0.90 or more. Measured: 0.942 and AP@[.5:.95] of 0.588, in 10:04 beside other work.
"""

from ml_collections import config_dict

from configs import common


def get_config(variant: str = ''):
  return common.config(
      variant,
      task=dict(name='yolov2', voc_ap=config_dict.placeholder(str)),
      model=dict(name='yolov2_small', width=16),
      data=dict(name='digit_scenes', train_size=160_000, workers=1, batch_size=16, canvas=(96, 128), max_objects=8,
                mean=(0.2, 0.2, 0.2), std=(0.2, 0.2, 0.2)),
      optim=dict(name='adamw', lr=1e-2, schedule='cosine', warmup='200 steps', weight_decay=1e-2, clip=10.0),
      train=dict(duration='9000 steps', eval_every='3000 steps', log_every=100, best='AP', ema_decay=0.998),
  )
