"""YOLOv3 on Pascal VOC, as in its authors' `yolov3-voc.cfg`.

  python experiments/train.py --config configs/voc_yolov3.py --workdir runs/voc_yolov3 --config.data.path=data/voc

`data.path` as for `voc_yolov1.py`. 50,200 steps of batch 64, learning rate 1e-3, a tenth of it after 40,000 and 45,000,
1,000 steps of warm-up, weight decay 5e-4, momentum 0.9; predictions that overlap an object by more than 0.5 are no
background (0.7 on COCO); sizes and augmentation as in `coco_yolov3.py` (Redmon and Farhadi, arXiv 1804.02767). The
authors begin with Darknet-53 trained on ImageNet; this command does with their file:
--config.model.body_weights=darknet53.conv.74. For a GPU; on a CPU only `:smoke` makes sense. Its authors published no
figure for VOC. Not measured: it takes VOC.

Differs from darknet: the losses are divided by the batch's objects and not by its images, so they are weighted by 2.4,
the mean number of objects in an image of VOC 2007 and 2012; warm-up is linear (darknet's is the fourth power).
"""

from configs import common

SIZES = (416, *(size for size in range(320, 609, 32) if size != 416))  # the first is that of the evaluation


def get_config(variant: str = ''):
  return common.config(
      variant,
      task=dict(name='yolov3', voc_ap='eleven', box_loss='sse', ignore_threshold=0.5,
                weights=dict(loss_box=2.4, loss_objectness=2.4, loss_class=2.4)),
      model=dict(name='yolov3'),
      data=dict(name='voc', batch_size=64, canvas=tuple((size, size) for size in SIZES), canvas_every=10,
                resize='letterbox', max_objects=64,
                augment=(('random_resized_crop', dict(scale=(0.49, 1.0), ratio=(0.7, 1.43))),
                         ('hsv', dict(hue=0.1, saturation=1.5, exposure=1.5)), ('flip', {}))),
      optim=dict(name='sgd', momentum=0.9, lr=1e-3, schedule='step', warmup='1000 steps', weight_decay=5e-4,
                 boundaries=(39_000 / 49_200, 44_000 / 49_200)),
      train=dict(duration='50200 steps', eval_every='2500 steps', best='AP', log_every=100),
  )
