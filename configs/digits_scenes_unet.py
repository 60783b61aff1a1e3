"""A small U-Net on scenes of handwritten digits: each pixel is background or one of ten digits.

  python experiments/train.py --config configs/digits_scenes_unet.py --workdir runs/unet

Five minutes on 2 CPU cores. Expected on 200 scenes: ink against background IoU of 0.80 or more,
mean IoU of 0.45 or more.
"""

from configs import common


def get_config(variant: str = ''):
  return common.config(
      variant,
      task=dict(name='segmentation', weights=dict(loss_pixel=1.0, loss_dice=1.0)),
      model=dict(name='unet_small'),
      data=dict(name='digit_scenes', annotation='semantic', batch_size=16, canvas=(96, 128), resize='letterbox',
                cache=True, augment=()),
      optim=dict(name='adamw', lr=3e-3, schedule='cosine', warmup='100 steps', weight_decay=1e-2, clip=1.0),
      train=dict(duration='5 epochs', eval_every='5 epochs', best='mean_iou', ema_decay=0.998),
  )
