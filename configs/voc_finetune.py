"""Detectors that have learned COCO, fine-tuned on Pascal VOC from their published weights: one variant for each.

  python experiments/train.py --config configs/voc_finetune.py:retinanet --workdir runs/voc_fine \\
      --config.data.path=data/voc

| variant | begins with | learning rate | batch |
|---|---|---|---|
| `:retinanet`, or none | retinanet_resnet50_fpn:COCO_V1 | 1e-3 | 16 |
| `:fcos` | fcos_resnet50_fpn:COCO_V1 | 1e-3 | 16 |
| `:faster_rcnn` | fasterrcnn_resnet50_fpn:COCO_V1 | 2e-3 | 16 |
| `:ssdlite320` | ssdlite320_mobilenet_v3_large:COCO_V1 | 2.5e-3, falling as a cosine | 32 |
| `:detr` | detr_resnet50:COCO | 1e-4, and 1e-5 for the backbone | 16 |

`data.path` as for `voc_yolov1.py`. Torchvision's recipes for COCO with a tenth of their learning rates (SSDlite's for
32 images in place of 192), in 12 epochs, with a tenth after 8 and after 11; DETR has the rates of its paper (Carion et
al., arXiv 2005.12872, section A.4) and a tenth after 8; SSDlite has 60 epochs, as its images are cut. The stem, the
first stage and all BatchNorms of a ResNet are frozen. The weights are downloaded; `--config.model.weights=runs/mine`
takes those of one's own run.

The layers that tell classes apart have COCO's numbers for the fourteen of VOC's twenty classes that bear the same name
there; the other six begin fresh (aeroplane, diningtable, motorbike, pottedplant, sofa, tvmonitor), and all of them with
`--config.model.weights_head=fresh`. The first lines of a run say what was loaded.

Each variant may be followed by `:smoke`, which downloads nothing. Hours on a GPU; on a CPU only `:smoke` makes sense.
Expected: mAP of about 80 on VOC 2007; published is 78.8 for Faster R-CNN with VGG-16 that had learned COCO (Ren et al.,
arXiv 1506.01497, section 4.3). Not measured: it takes VOC.
"""

from configs import common

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# One canvas for upright and lying images, whose shorter side is 800 pixels.
LARGE = dict(IMAGENET, batch_size=16, canvas=(1344, 1344), resize=('letterbox', dict(shorter_side=800)),
             augment=(('flip', {}),))
RESNET = ((r'backbone/body/(conv1|bn1|layer1_)', dict(freeze=True)),
          (r'backbone/body/.*(bn\d|downsample_1)/', dict(freeze=True)))
# Tenths after 8 and after 11 of 12 epochs of 1034 steps, as shares of what follows 500 steps of warm-up.
SGD = dict(name='sgd', momentum=0.9, schedule='step', warmup='500 steps', weight_decay=1e-4, rules=RESNET,
           boundaries=((8 * 1034 - 500) / 11_908, (11 * 1034 - 500) / 11_908))
SIDES = (1066, 640, 746, 853, 960)  # of DETR's canvases; the first is that of the evaluation

DETECTORS = {
    'retinanet': dict(
        task=dict(name='retinanet'),
        model=dict(name='retinanet_resnet50_fpn', norm='frozen:0', weights='retinanet_resnet50_fpn:COCO_V1'),
        data=LARGE, optim=dict(SGD, lr=1e-3)),
    'fcos': dict(
        task=dict(name='fcos'),
        model=dict(name='fcos_resnet50_fpn', norm='frozen', weights='fcos_resnet50_fpn:COCO_V1'),
        data=LARGE, optim=dict(SGD, lr=1e-3)),
    'faster_rcnn': dict(
        task=dict(name='faster_rcnn'),
        model=dict(name='fasterrcnn_resnet50_fpn', norm='frozen:0', weights='fasterrcnn_resnet50_fpn:COCO_V1'),
        data=LARGE, optim=dict(SGD, lr=2e-3)),
    'ssdlite320': dict(
        task=dict(name='ssdlite'),
        model=dict(name='ssdlite320_mobilenet_v3_large', weights='ssdlite320_mobilenet_v3_large:COCO_V1'),
        data=dict(batch_size=32, canvas=(320, 320), resize='warp', mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
                  augment=(('ssd_crop', {}), ('flip', {}))),
        optim=dict(name='sgd', momentum=0.9, lr=2.5e-3, schedule='cosine', warmup='500 steps', weight_decay=4e-5),
        train=dict(duration='60 epochs')),
    'detr': dict(
        task=dict(name='detr'),
        model=dict(name='detr_resnet50', weights='detr_resnet50:COCO'),
        data=dict(IMAGENET, batch_size=16, canvas=tuple((side, side) for side in SIDES), canvas_every=10,
                  resize='letterbox',
                  augment=(('ssd_crop', dict(min_ious=(), scale=(0.5, 1.0), keep='share')), ('flip', {}))),
        optim=dict(name='adamw', lr=1e-4, schedule='step', boundaries=(8 / 12,), weight_decay=1e-4, clip=0.1,
                   rules=(('.', dict(decay=1.0)), ('^backbone_0/', dict(lr=0.1)),
                          (r'^backbone_0/body/(conv1/|layer1_|(.*/)?(bn\d|downsample_1)/)', dict(freeze=True))))),
}


def get_config(variant: str = ''):
  name, smoke = common.split(variant, DETECTORS, default='retinanet')
  row = DETECTORS[name]
  return common.config(
      smoke,
      task=dict(row['task'], voc_ap='eleven'),
      model=row['model'],
      data=dict(row['data'], name='voc', max_objects=64),
      optim=row['optim'],
      train=dict(dict(duration='12 epochs', eval_every='1 epochs', best='AP', log_every=100), **row.get('train', {})),
  )
