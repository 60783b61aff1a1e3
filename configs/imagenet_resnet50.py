"""ResNet-50 on ImageNet, the classic 90 epochs.

  python experiments/train.py --config configs/imagenet_resnet50.py --workdir runs/resnet50 \\
      --config.data.path=data/imagenet
  python experiments/train.py --config configs/imagenet_resnet50.py --workdir runs/resnet50 \\
      --config.data.name=tfds --config.data.dataset=imagenet2012 --config.data.data_dir=data/tfds

`data.path` holds `train/<wnid>/*` and `val/<wnid>/*`; the classes are the sorted wnids, in the order of every published
classifier. Published weights, of any model, are evaluated at their own resize and crop, without training, by

  python experiments/evaluate.py --config configs/finetune.py --step initial --workdir runs/published \\
      --config.data.path=data/imagenet --config.model.weights=resnet50:IMAGENET1K_V2

Batch 256, learning rate 0.1, a tenth of it after 30, 60 and 80 epochs, weight decay 1e-4, random resized crop and flip;
evaluation at the middle 224 of 256 pixels (He et al., arXiv 1512.03385; five epochs of warm-up, and the last scale of
each block beginning at zero, from Goyal et al., arXiv 1706.02677). With --config.model.dtype=bfloat16 it is for eight
GPUs or TPU cores; on a CPU only `:smoke` makes sense. Expected: top-1 of 76 %. Not measured: it takes ImageNet.
"""

from configs import common


def get_config(variant: str = ''):
  return common.config(
      variant,
      task=dict(name='classification'),
      model=dict(name='resnet50', zero_init_last=True),
      data=dict(name='image_folder', batch_size=256, canvas=(224, 224),
                resize=('resize_crop', dict(shorter_side=256, interpolation='bilinear')),
                mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
                augment=(('random_resized_crop', {}), ('flip', {}))),
      optim=dict(name='sgd', momentum=0.9, lr=0.1, schedule='step', warmup='5 epochs', weight_decay=1e-4,
                 # of the 85 epochs after the warm-up: epochs 30, 60 and 80
                 boundaries=(25 / 85, 55 / 85, 75 / 85)),
      train=dict(duration='90 epochs', eval_every='5 epochs', best='top1', log_every=100),
  )
