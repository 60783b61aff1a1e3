"""ResNet-18, half as wide, on photographs of hand signs of the digits 0 to 9 (A. Mavi's Sign Language Digits).

  python experiments/train.py --config configs/sign_digits.py --workdir runs/signs --config.data.path=data/sign_digits

A folder for each digit, 100 x 100 pixels, about 124 photographs in each (Apache-2.0); the last fifth of each by file
number validates. Minutes on 2 CPU cores. Expected: top-1 of 90 % or more. Measured: 98.8 %; 97.2 % after five epochs.

Canvas, width, augmentation and length were chosen on the last fifth of the training photographs alone.
"""

from configs import common


def get_config(variant: str = ''):
  return common.config(
      variant,
      task=dict(name='classification', label_smoothing=0.1),
      model=dict(name='resnet18', width=32),
      data=dict(name='image_folder', batch_size=32, canvas=(64, 64), resize='warp',
                mean=(0.67, 0.65, 0.62), std=(0.2, 0.2, 0.2),
                augment=(('affine', dict(degrees=20.0, scale=(0.8, 1.2), translate=0.1, shear=10.0, fill='mean')),
                         ('brightness_contrast', dict(brightness=0.2, contrast=0.3)))),
      optim=dict(name='sgd', momentum=0.9, nesterov=True, lr=0.05, schedule='cosine', warmup='2 epochs',
                 weight_decay=5e-4),
      train=dict(duration='15 epochs', eval_every='5 epochs', best='top1', ema_decay=0.99),
  )
