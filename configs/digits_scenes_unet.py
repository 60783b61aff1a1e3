"""A small U-Net on scenes of handwritten digits: each pixel is background or one of ten digits.

  python experiments/train.py --config configs/digits_scenes_unet.py --workdir runs/unet

96 x 128 pixels, two minutes on 2 CPU cores. Expected on 200 scenes of other writers' digits: ink against background
IoU of 0.80 or more, mean IoU over 11 classes of 0.45 or more. Measured: 0.896 and 0.548 after 117
seconds; half way through 7,000 steps, after 19 minutes beside other work, 0.944 and 0.849.

What it took: a learning rate of 0.01, scenes that are never seen twice, and a stem of stride 2 with 16 channels, since
more channels at more pixels are slow on a CPU.
"""

from configs import common


def get_config(variant: str = ''):
  return common.config(
      variant,
      task=dict(name='segmentation', weights=dict(loss_pixel=2.0, loss_dice=1.0)),
      model=dict(name='unet_small', width=16),
      data=dict(name='digit_scenes', annotation='semantic', train_size=60_000, workers=1, batch_size=16,
                canvas=(96, 128), mean=(0.2, 0.2, 0.2), std=(0.2, 0.2, 0.2)),
      optim=dict(name='adamw', lr=1e-2, schedule='cosine', warmup='100 steps', weight_decay=1e-2, clip=10.0),
      train=dict(duration='600 steps', eval_every='300 steps', log_every=100, best='mean_iou', ema_decay=0.998),
  )
