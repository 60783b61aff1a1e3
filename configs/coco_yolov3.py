"""YOLOv3 on COCO, as in its authors' `yolov3.cfg`.

  python experiments/train.py --config configs/coco_yolov3.py --workdir runs/coco_yolov3 --config.data.path=data/coco

`data.path` holds `annotations/instances_train2017.json` and the images. 500,200 steps of batch 64, learning rate 1e-3,
a tenth of it after 400,000 and 450,000, 1,000 steps of warm-up, weight decay 5e-4, momentum 0.9; every ten batches
another size of 320 to 608 pixels; random crops of up to 30 %, hue 0.1, saturation and exposure 1.5 (Redmon and Farhadi,
arXiv 1804.02767). The authors begin with Darknet-53 trained on ImageNet; this command does with their file:
--config.model.body_weights=darknet53.conv.74. For GPUs; on a CPU only `:smoke` makes sense. Published: AP of 31.0 and
AP@.5 of 55.3 at 416 pixels, 33.0 and 57.9 at 608. Not measured: it takes COCO.

Differs from darknet: the losses are divided by the batch's objects and not by its images, so they are weighted by 7,
the mean number of COCO's objects in an image; warm-up is linear (darknet's is the fourth power).
"""

from configs import common

SIZES = (416, *(size for size in range(320, 609, 32) if size != 416))  # the first is that of the evaluation


def get_config(variant: str = ''):
  return common.config(
      variant,
      task=dict(name='yolov3', box_loss='sse', ignore_threshold=0.7,
                weights=dict(loss_box=7.0, loss_objectness=7.0, loss_class=7.0)),
      model=dict(name='yolov3'),
      data=dict(name='coco', batch_size=64, canvas=tuple((size, size) for size in SIZES), canvas_every=10,
                resize='letterbox', max_objects=90,
                augment=(('random_resized_crop', dict(scale=(0.49, 1.0), ratio=(0.7, 1.43))),
                         ('hsv', dict(hue=0.1, saturation=1.5, exposure=1.5)), ('flip', {}))),
      optim=dict(name='sgd', momentum=0.9, lr=1e-3, schedule='step', warmup='1000 steps', weight_decay=5e-4,
                 boundaries=(399_000 / 499_200, 449_000 / 499_200)),
      train=dict(duration='500200 steps', eval_every='10000 steps', best='AP', log_every=100),
  )
