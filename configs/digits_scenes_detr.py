"""DETR with few and narrow layers on scenes of handwritten digits: 0 to 8 of them among clutter.

  python experiments/train.py --config configs/digits_scenes_detr.py --workdir runs/detr

96 x 128 pixels, ten minutes on 2 CPU cores. Expected on 200 scenes of other writers' digits: AP@.5 of 0.50 or more.
DETR learns late: for the first thousand steps all queries give much the same answer.
"""

from ml_collections import config_dict

from configs import common


def get_config(variant: str = ''):
  return common.config(
      variant,
      task=dict(name='detr', voc_ap=config_dict.placeholder(str), no_object_weight=0.1),
      model=dict(name='detr_small'),
      data=dict(name='digit_scenes', train_size=120_000, workers=1, batch_size=16, canvas=(96, 128), max_objects=8,
                mean=(0.2, 0.2, 0.2), std=(0.2, 0.2, 0.2)),
      optim=dict(name='adamw', lr=1e-3, schedule='cosine', warmup='200 steps', weight_decay=1e-4, clip=1.0),
      train=dict(duration='5000 steps', eval_every='2500 steps', log_every=100, best='AP', ema_decay=0.998),
  )
