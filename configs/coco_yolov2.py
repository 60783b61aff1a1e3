"""YOLOv2 on COCO, as in its authors' `yolov2.cfg`.

  python experiments/train.py --config configs/coco_yolov2.py --workdir runs/coco_yolov2 --config.data.path=data/coco

`data.path` holds `annotations/instances_train2017.json` and the images. 500,200 steps of batch 64, learning rate 1e-3,
a tenth of it after 400,000 and 450,000, 1,000 steps of warm-up, weight decay 5e-4, momentum 0.9; every ten batches
another size of 320 to 608 pixels; random crops of up to 30 %, hue 0.1, saturation and exposure 1.5 (Redmon and Farhadi,
arXiv 1612.08242). The authors begin with Darknet-19 trained on ImageNet; this command does with their file:
--config.model.body_weights=darknet19_448.conv.23. For GPUs; on a CPU only `:smoke` makes sense. Published: AP@.5 of
44.0 on test-dev at 608 pixels. Not measured: it takes COCO.

Differs from darknet: as in `voc_yolov2.py`.
"""

from ml_collections import config_dict

from configs import common

SIZES = (416, *(size for size in range(320, 609, 32) if size != 416))  # the first is that of the evaluation


def get_config(variant: str = ''):
  return common.config(
      variant,
      task=dict(name='yolov2', prior=config_dict.placeholder(bool)),
      model=dict(name='yolov2'),
      data=dict(name='coco', batch_size=64, canvas=tuple((size, size) for size in SIZES), canvas_every=10,
                resize='letterbox', max_objects=90,
                augment=(('random_resized_crop', dict(scale=(0.49, 1.0), ratio=(0.7, 1.43))),
                         ('hsv', dict(hue=0.1, saturation=1.5, exposure=1.5)), ('flip', {}))),
      optim=dict(name='sgd', momentum=0.9, lr=1e-3, schedule='step', warmup='1000 steps', weight_decay=5e-4,
                 boundaries=(399_000 / 499_200, 449_000 / 499_200)),
      train=dict(duration='500200 steps', eval_every='10000 steps', best='AP', log_every=100),
  )
