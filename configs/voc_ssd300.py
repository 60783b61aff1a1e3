"""SSD300 with VGG-16 on Pascal VOC, the recipe of its paper and of its authors' program.

  python experiments/train.py --config configs/voc_ssd300.py --workdir runs/voc_ssd300 --config.data.path=data/voc

`data.path` as for `voc_yolov1.py`. 120,000 steps of batch 32, learning rate 1e-3, a tenth of it after 80,000 and
100,000, weight decay 5e-4, momentum 0.9 (Liu et al., arXiv 1512.02325, section 3; twice the steps of section 3.1, for
the images made smaller of section 3.6); images put on larger ones of the mean colour, cut, recoloured, flipped and
warped to 300 x 300. The body begins with weights trained on ImageNet, which are downloaded. For a GPU; on a CPU only
`:smoke` makes sense. Published: mAP of 77.2 on VOC 2007 with the training images of 2007 and 2012. Not measured: it
takes VOC.

Differs from the authors' program: 500 steps of warm-up; biases learn as fast as kernels, not twice as fast; images are
recoloured last, in brightness, contrast, saturation and hue each time, where theirs are first, in each of them half of
the time; fc6 and fc7 begin fresh and not with a part of VGG's.
"""

from configs import common


def get_config(variant: str = ''):
  return common.config(
      variant,
      task=dict(name='ssd', voc_ap='eleven'),
      model=dict(name='ssd300_vgg16', body_weights='vgg16:IMAGENET1K_FEATURES'),
      data=dict(name='voc', batch_size=32, canvas=(300, 300), resize='warp', max_objects=64,
                mean=(0.48235, 0.45882, 0.40784), std=(1 / 255, 1 / 255, 1 / 255),
                augment=(('zoom_out', dict(fill=(123, 117, 104))), ('ssd_crop', {}),
                         ('colour_jitter', dict(brightness=0.125, contrast=0.5, saturation=0.5, hue=0.05)),
                         ('flip', {}))),
      optim=dict(name='sgd', momentum=0.9, lr=1e-3, schedule='step', warmup='500 steps', weight_decay=5e-4,
                 boundaries=(79_500 / 119_500, 99_500 / 119_500)),
      train=dict(duration='120000 steps', eval_every='5 epochs', best='AP', log_every=100),
  )
