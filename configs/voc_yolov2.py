"""YOLOv2 on Pascal VOC, the recipe of its paper.

  python experiments/train.py --config configs/voc_yolov2.py --workdir runs/voc_yolov2 --config.data.path=data/voc

`data.path` as for `voc_yolov1.py`. 160 epochs, learning rate 1e-3, a tenth of it after 60 and 90, weight decay 5e-4,
momentum 0.9 (Redmon and Farhadi, arXiv 1612.08242, section 3), batch 64 and 1,000 steps of warm-up (`yolov2-voc.cfg`);
every ten batches another size of 320 to 608 pixels; random crops of up to 30 %, hue 0.1, saturation and exposure 1.5.
The authors begin with Darknet-19 trained on ImageNet; this command does with their file:
--config.model.body_weights=darknet19_448.conv.23. For a GPU; on a CPU only `:smoke` makes sense. Published: mAP of
76.8 on VOC 2007 at 416 pixels. Not measured: it takes VOC.

Differs from the paper: warm-up is linear (darknet's is the fourth power); boxes are not pulled to their anchors in the
first 12,800 images (`--config.task.prior=True` pulls throughout, with a weight of 0.01).
"""

from ml_collections import config_dict

from configs import common

SIZES = (416, *(size for size in range(320, 609, 32) if size != 416))  # the first is that of the evaluation

# Of yolov2-voc.cfg, where they are in cells of 32 pixels.
ANCHORS = tuple((32 * w, 32 * h) for w, h in (
    (1.3221, 1.73145), (3.19275, 4.00944), (5.05587, 8.09892), (9.47112, 4.84053), (11.2364, 10.0071)))


def get_config(variant: str = ''):
  return common.config(
      variant,
      task=dict(name='yolov2', voc_ap='eleven', prior=config_dict.placeholder(bool)),
      model=dict(name='yolov2', anchors=ANCHORS),
      data=dict(name='voc', batch_size=64, canvas=tuple((size, size) for size in SIZES), canvas_every=10,
                resize='letterbox', max_objects=64,
                augment=(('random_resized_crop', dict(scale=(0.49, 1.0), ratio=(0.7, 1.43))),
                         ('hsv', dict(hue=0.1, saturation=1.5, exposure=1.5)), ('flip', {}))),
      # After 60 and 90 epochs of 258 steps: shares of the steps after the warm-up.
      optim=dict(name='sgd', momentum=0.9, lr=1e-3, schedule='step', warmup='1000 steps', weight_decay=5e-4,
                 boundaries=(14_480 / 40_280, 22_220 / 40_280)),
      train=dict(duration='160 epochs', eval_every='5 epochs', best='AP', log_every=100),
  )
