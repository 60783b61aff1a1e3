"""YOLOv1 on Pascal VOC at 448 x 448, the recipe of its paper.

  python experiments/train.py --config configs/voc_yolov1.py --workdir runs/voc_yolov1 --config.data.path=data/voc

`data.path` holds `Annotations/`, `ImageSets/Main/` and `JPEGImages/`, of VOC 2007 and 2012 together for the paper's
figure. Batch 64, momentum 0.9, weight decay 5e-4; learning rate 1e-2 for 75 epochs, 1e-3 for 30, 1e-4 for 30 (Redmon et
al., arXiv 1506.02640, section 2.2), with warm-up in the first; scaling and translation by up to 20 %, saturation and
exposure by up to 1.5. The paper's network has no normalisation and begins with 20 layers trained on ImageNet
(`extraction`); `--config.model.norm=batch` trains without them, or, as darknet does, with those of its file:
`--config.model.body_weights=extraction.conv.weights`. For a GPU; on a CPU only `:smoke` makes sense. Published: mAP of
63.4 on VOC 2007. Not measured: it takes VOC.

Differs from the paper: half its loss is minimised, as its authors' darknet follows half of equation 3's gradient.
"""

from ml_collections import config_dict

from configs import common


def get_config(variant: str = ''):
  return common.config(
      variant,
      task=dict(name='yolov1', voc_ap='eleven',
                weights=dict(loss_box=2.5, loss_objectness=0.5, loss_no_object=0.25, loss_class=0.5)),
      model=dict(name='yolov1', norm=config_dict.placeholder(str)),
      data=dict(name='voc', batch_size=64, canvas=(448, 448), resize='warp', max_objects=64,
                augment=(('affine', dict(scale=(0.8, 1.2), translate=0.2)),
                         ('hsv', dict(hue=0.1, saturation=1.5, exposure=1.5)), ('flip', {}))),
      # of the 134 epochs after the warm-up: epochs 75 and 105
      optim=dict(name='sgd', momentum=0.9, lr=1e-2, schedule='step', warmup='1 epochs', weight_decay=5e-4,
                 boundaries=(74 / 134, 104 / 134)),
      train=dict(duration='135 epochs', eval_every='5 epochs', best='AP', log_every=100),
  )
