"""DETR with ResNet-50 on COCO, the 300 epochs of the paper.

  python experiments/train.py --config configs/coco_detr.py --workdir runs/coco_detr --config.data.path=data/coco

`data.path` holds `annotations/instances_train2017.json` and the images. Batch 64, AdamW at 1e-4, a tenth of it for the
backbone and after epoch 200, weight decay 1e-4 of everything, the gradient's norm clipped at 0.1, dropout 0.1; the
backbone's normalisation, its stem and its first stage never change (Carion et al., arXiv 2005.12872, sections 4 and
A.4, and the authors' code). The backbone begins with weights trained on ImageNet, which are downloaded. DC5 is
--config.model.name=detr_resnet50_dc5, ResNet-101 is detr_resnet101 with
--config.model.body_weights=resnet101:IMAGENET1K_V1. For GPUs, six days on eight of them; on a CPU only `:smoke` makes
sense. Published: AP of 40.6 (42.0 after 500 epochs) and AP@.5 of 61.6. Not measured: it takes COCO.

Differs from the paper: images are brought onto square canvases, whose sides are 4/3 of its shorter sides 480 to 800, so
that those of 4:3, most of COCO's, get its sizes; every second one is cut at random, to half its sides or more.
"""

from configs import common

SIDES = (1066, 640, 746, 853, 960)  # the first is that of the evaluation
FROZEN = r'^backbone_0/body/(conv1/|layer1_|(.*/)?(bn\d|downsample_1)/)'


def get_config(variant: str = ''):
  return common.config(
      variant,
      task=dict(name='detr'),
      model=dict(name='detr_resnet50', body_weights='resnet50:IMAGENET1K_V1'),
      data=dict(name='coco', batch_size=64, canvas=tuple((side, side) for side in SIDES), canvas_every=10,
                resize='letterbox', max_objects=100, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
                augment=(('ssd_crop', dict(min_ious=(), scale=(0.5, 1.0), keep='share')), ('flip', {}))),
      optim=dict(name='adamw', lr=1e-4, schedule='step', boundaries=(200 / 300,), weight_decay=1e-4, clip=0.1,
                 rules=(('.', dict(decay=1.0)), ('^backbone_0/', dict(lr=0.1)), (FROZEN, dict(freeze=True)))),
      train=dict(duration='300 epochs', eval_every='5 epochs', best='AP', log_every=100),
  )
