"""Faster R-CNN with VGG16 on Pascal VOC, the recipe of its paper in one pass.

  python experiments/train.py --config configs/voc_faster_rcnn.py --workdir runs/voc_faster --config.data.path=data/voc

`data.path` holds `Annotations/`, `ImageSets/Main/` and `JPEGImages/` of VOC 2007. 70,000 steps of one image, learning
rate 1e-3, a tenth of it from 50,000 on, momentum 0.9, weight decay 5e-4: the authors' joint training; the shorter side
600 pixels, images flipped; 256 anchors and 128 proposals are learned (Ren et al., arXiv 1506.01497, sections 3.1.3 and
3.2). The body begins with VGG16 trained on ImageNet, which is downloaded; its first two stages are frozen. For a GPU;
on a CPU only `:smoke` makes sense. Published: mAP of 69.9 on VOC 2007's test images. Not measured: it takes VOC.

Differs from the paper: one canvas for upright and lying images of 1008 pixels, which stride 16 divides; RGB in place
of BGR; fc6 and fc7 are drawn, where theirs are VGG16's; anchors over the border learn too. The other reading of the
sizes: `--config.model.anchors=smaller`.
"""

from ml_collections import config_dict

from configs import common


def get_config(variant: str = ''):
  return common.config(
      variant,
      task=dict(name='faster_rcnn', roi_samples=128, voc_ap='eleven'),
      model=dict(name='fasterrcnn_vgg16', anchors=config_dict.placeholder(str),
                 body_weights='vgg16:IMAGENET1K_V1'),
      data=dict(name='voc', batch_size=1, canvas=(1008, 1008), resize=('letterbox', dict(shorter_side=600)),
                max_objects=64, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), augment=(('flip', {}),)),
      optim=dict(name='sgd', momentum=0.9, lr=1e-3, schedule='step', weight_decay=5e-4, boundaries=(5 / 7,),
                 rules=((r'backbone/body/features_[0257]/', dict(freeze=True)),)),
      train=dict(duration='70000 steps', eval_every='10000 steps', best='AP', log_every=100),
  )
