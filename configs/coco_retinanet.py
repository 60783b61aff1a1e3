"""RetinaNet with ResNet-50 on COCO, as in torchvision's reference training.

  python experiments/train.py --config configs/coco_retinanet.py --workdir runs/retinanet --config.data.path=data/coco

`data.path` holds `annotations/instances_train2017.json` and the images. 26 epochs of batch 16, learning rate 0.01, a
tenth of it after 16 and after 22 epochs, 1,000 steps of warm-up, weight decay 1e-4 of everything, momentum 0.9; the
shorter side 800 pixels, the longer at most 1344; images flipped (Lin et al., arXiv 1708.02002, section 4.1). The body
begins with weights trained on ImageNet, which are downloaded: its BatchNorms are frozen, and so are its stem and first
stage. For GPUs; on a CPU only `:smoke` makes sense. Published for torchvision's weights of this recipe: AP of 36.4. Not
measured: it takes COCO.

Differs from torchvision: one canvas for upright and lying images, where theirs is cut to each batch; 1344 pixels in
place of 1333, which their padding makes of it.
"""

from configs import common


def get_config(variant: str = ''):
  return common.config(
      variant,
      task=dict(name='retinanet'),
      model=dict(name='retinanet_resnet50_fpn', norm='frozen', body_weights='resnet50:IMAGENET1K_V1'),
      data=dict(name='coco', batch_size=16, canvas=(1344, 1344), resize=('letterbox', dict(shorter_side=800)),
                max_objects=100, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), augment=(('flip', {}),)),
      optim=dict(name='sgd', momentum=0.9, lr=0.01, schedule='step', warmup='1000 steps', weight_decay=1e-4,
                 # Shares of the 26 * 7392 - 1000 steps after the warm-up.
                 boundaries=((16 * 7392 - 1000) / 191_192, (22 * 7392 - 1000) / 191_192),
                 rules=(('.', dict(decay=1.0)), (r'backbone/body/(conv1|bn1|layer1_)', dict(freeze=True)),
                        (r'backbone/body/.*(bn\d|downsample_1)/', dict(freeze=True)))),
      train=dict(duration='26 epochs', eval_every='1 epochs', best='AP', log_every=100),
  )
