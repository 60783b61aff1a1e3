"""ResNet-50 on ImageNet, a modern recipe: the same network, more epochs and augmentation, four points better.

  python experiments/train.py --config configs/imagenet_resnet50_modern.py --workdir runs/resnet50_modern \\
      --config.data.path=data/imagenet

From tfds as in configs/imagenet_resnet50.py. The numbers are those of torchvision's second weights of ResNet-50
(IMAGENET1K_V2, top-1 80.858 %): 600 epochs, batch 1024, learning rate 0.5, cosine after five epochs of warm-up, weight
decay 2e-5 and none on norms and biases, label smoothing 0.1, MixUp with 0.2 or CutMix with 1.0, half of the time each,
a moving average of the weights, training at 176 pixels and evaluation at the middle 224 of 232. ResNet strikes back
(Wightman et al., arXiv 2110.00476) comes to 80.4 % by a like way.

Differs from it: RandAugment (two operations of magnitude 9) in place of TrivialAugment and random erasing; stochastic
depth of 0.05, as in ResNet strikes back; the moving average is taken at every step, with the decay that comes to the
same as theirs at every 32nd; no image is drawn several times in one epoch. With --config.model.dtype=bfloat16 it is for
eight GPUs or TPU cores (--config.train.accumulate=4 where a batch does not fit); on a CPU only `:smoke` makes sense.
Expected: top-1 of 80 % or more. Not measured: it takes ImageNet.
"""

from configs import common


def get_config(variant: str = ''):
  return common.config(
      variant,
      task=dict(name='classification', label_smoothing=0.1),
      model=dict(name='resnet50', zero_init_last=True, stochastic_depth=0.05),
      data=dict(name='image_folder', batch_size=1024, canvas=(176, 176), eval_canvas=(224, 224),
                resize=('resize_crop', dict(shorter_side=232, interpolation='bilinear')),
                mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
                augment=(('random_resized_crop', {}), ('flip', {}), ('rand_augment', dict(operations=2, magnitude=9)),
                         ('mixup', dict(alpha=0.2, probability=0.5)), ('cutmix', dict(alpha=1.0)))),
      optim=dict(name='sgd', momentum=0.9, lr=0.5, schedule='cosine', warmup='5 epochs', weight_decay=2e-5),
      train=dict(duration='600 epochs', eval_every='10 epochs', best='top1', log_every=100, ema_decay=0.99997),
  )
