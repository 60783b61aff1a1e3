"""SSD300 with VGG-16 on COCO, as in torchvision's reference training.

  python experiments/train.py --config configs/coco_ssd300.py --workdir runs/ssd300 --config.data.path=data/coco

`data.path` holds `annotations/instances_train2017.json` and the images. 120 epochs of batch 32, learning rate 0.002, a
tenth of it after 80 and after 110 epochs, 1,000 steps of warm-up, weight decay 5e-4 of everything, momentum 0.9; images
put on larger ones, cut (Liu et al., arXiv 1512.02325, sections 2.2 and 3.6), recoloured, flipped and warped to 300 x
300. The body begins with weights trained on ImageNet, which are downloaded: those whose colours are 0..255 less their
means, as here; VGG's first stage is frozen. For GPUs; on a CPU only `:smoke` makes sense. Published for torchvision's
weights of this recipe: AP of 25.1. Not measured: it takes COCO.

Differs from torchvision: images are recoloured last, in brightness, contrast, saturation and hue each time, where
theirs are first, in each of them half of the time; channels never change places.
"""

from configs import common


def get_config(variant: str = ''):
  return common.config(
      variant,
      task=dict(name='ssd'),
      model=dict(name='ssd300_vgg16', body_weights='vgg16:IMAGENET1K_FEATURES'),
      data=dict(name='coco', batch_size=32, canvas=(300, 300), resize='warp', max_objects=100,
                mean=(0.48235, 0.45882, 0.40784), std=(1 / 255, 1 / 255, 1 / 255),
                augment=(('zoom_out', dict(fill=(123, 117, 104))), ('ssd_crop', {}),
                         ('colour_jitter', dict(brightness=0.125, contrast=0.5, saturation=0.5, hue=0.05)),
                         ('flip', {}))),
      optim=dict(name='sgd', momentum=0.9, lr=2e-3, schedule='step', warmup='1000 steps', weight_decay=5e-4,
                 # Shares of the 120 * 3696 - 1000 steps after the warm-up.
                 boundaries=((80 * 3696 - 1000) / 442_520, (110 * 3696 - 1000) / 442_520),
                 rules=(('.', dict(decay=1.0)), ('backbone/trunk/features_[02]/', dict(freeze=True)))),
      train=dict(duration='120 epochs', eval_every='2 epochs', best='AP', log_every=100),
  )
