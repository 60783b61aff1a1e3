"""SSDLite with MobileNetV3 on COCO, as in torchvision's reference training.

  python experiments/train.py --config configs/coco_ssdlite320.py --workdir runs/ssdlite --config.data.path=data/coco

`data.path` holds `annotations/instances_train2017.json` and the images. 660 epochs of batch 192, learning rate 0.15
that falls as a cosine, 1,000 steps of warm-up, weight decay 4e-5 of everything, momentum 0.9; images cut (Liu et al.,
arXiv 1512.02325, section 2.2), flipped and warped to 320 x 320. From scratch, with the body whose last blocks have half
the channels (Howard et al., arXiv 1905.02244, section 6.3); `body_weights=mobilenet_v3_large:IMAGENET1K_V2` needs
`--config.model.reduced_tail=False`, the whole body. For GPUs; on a CPU only `:smoke` makes sense. Published for
torchvision's weights of this recipe: AP of 21.3. Not measured: it takes COCO.

Differs from torchvision: the kernels of the body begin as a classifier's, not with a deviation of 0.03.
"""

from configs import common


def get_config(variant: str = ''):
  return common.config(
      variant,
      task=dict(name='ssdlite'),
      model=dict(name='ssdlite320_mobilenet_v3_large', reduced_tail=True),
      data=dict(name='coco', batch_size=192, canvas=(320, 320), resize='warp', max_objects=100, mean=(0.5, 0.5, 0.5),
                std=(0.5, 0.5, 0.5), augment=(('ssd_crop', {}), ('flip', {}))),
      optim=dict(name='sgd', momentum=0.9, lr=0.15, schedule='cosine', warmup='1000 steps', weight_decay=4e-5,
                 rules=(('.', dict(decay=1.0)),)),
      train=dict(duration='660 epochs', eval_every='10 epochs', best='AP', log_every=100),
  )
