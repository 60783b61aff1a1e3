"""MobileNetV2: inverted residual blocks with linear bottlenecks.

Mark Sandler, Andrew Howard, Menglong Zhu, Andrey Zhmoginov and Liang-Chieh Chen, MobileNetV2: Inverted Residuals and
Linear Bottlenecks, arXiv 1801.04381, Table 2. Maps on an image of 224 x 224; the block is in `inverted_residual.py`:

| part | what | map |
|---|---|---|
| features_0 | 3x3 / 2, 32 | 112 x 112 x 32 |
| features_1 | a block without expansion | 112 x 112 x 16 |
| features_2, 3 | blocks that expand six times, as all that follow; the first / 2 | 56 x 56 x 24 |
| features_4 to 6 | / 2 | 28 x 28 x 32 |
| features_7 to 10 | / 2 | 14 x 14 x 64 |
| features_11 to 13 | / 1 | 14 x 14 x 96 |
| features_14 to 16 | / 2 | 7 x 7 x 160 |
| features_17 | / 1 | 7 x 7 x 320 |
| features_18 | 1x1 | 7 x 7 x 1280 |
| classifier_1 | mean over the pixels, dropout, fully connected | K |

3,504,872 parameters at K = 1000. Submodules bear torchvision's names.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.classification.inverted_residual import InvertedResidual
from vision_jax.models.classification.maps import choose_maps
from vision_jax.models.layers import ConvNorm, global_avg_pool, he_fan_out, make_divisible
from vision_jax.models.noise import Dropout

Array = jax.Array


class MobileNetV2(nn.Module):
  """MobileNetV2; `mobilenet_v2` is its row.

  Args:
    stages: the paper's (t, c, n, s): expansion, channels, blocks, stride of the first.
    num_classes: K; 0 gives features and no `classifier_1`.
    width_mult: every width is multiplied by this and rounded to eights, the last one only if it grows.
    dropout: before the last layer.
    norm, eps, momentum: see `layers.make_norm`.
    dtype: the compute dtype.

  Returns:
    Float32 logits `[B, K]`, or features `[B, C]`, from `[B, H, W, 3]` of any size.

  >>> model = mobilenet_v2(num_classes=10, width_mult=0.25)
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 32, 48, 3)))[0].shape
  (2, 10)
  """

  stages: tuple[tuple[int, int, int, int], ...]
  num_classes: int = 1000
  width_mult: float = 1.0
  dropout: float = 0.2
  norm: str = 'batch'
  eps: float = 1e-5
  momentum: float = 0.9
  dtype: Any = jnp.float32

  def setup(self):
    if self.num_classes:
      self.classifier_0 = Dropout(self.dropout)
      self.classifier_1 = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01),
                                   dtype=jnp.dtype(self.dtype))

  def __call__(self, x: Array, *, train: bool = False) -> Array:
    x = list(self.features(x, train=train).values())[-1]
    x = global_avg_pool(x)
    return self.classifier_1(self.classifier_0(x, train=train)).astype(jnp.float32) if self.num_classes else x

  @nn.compact
  def features(self, x: Array, *, train: bool = False, names: tuple[str, ...] | None = None) -> dict[str, Array]:
    """The last map of every stride by name, fine to coarse, in `dtype`, or the maps of these `names`.

    Every part of the table is a name, and `features_14_conv_0` is the expanded map of block 14.
    """
    common = {'norm': self.norm, 'eps': self.eps, 'momentum': self.momentum, 'dtype': self.dtype}
    conv = functools.partial(ConvNorm, activation=nn.relu6, kernel_init=he_fan_out, parts=('0', '1'), **common)
    stride = 2
    x = conv(make_divisible(32 * self.width_mult), 3, 2, name='features_0')(x, train=train)
    maps = {'features_0': (stride, x)}
    blocks = [(t, c, 1 if i else s) for t, c, n, s in self.stages for i in range(n)]
    for i, (expansion, channels, step) in enumerate(blocks, start=1):
      block = InvertedResidual(make_divisible(channels * self.width_mult), expansion * x.shape[-1], stride=step,
                               **common, layout='conv', name=f'features_{i}')
      x, between = block.with_expanded(x, train=train)
      stride *= step
      maps |= {f'features_{i}_conv_0': (None, between), f'features_{i}': (stride, x)}
    last = f'features_{len(blocks) + 1}'
    x = conv(make_divisible(1280 * max(1.0, self.width_mult)), 1, name=last)(x, train=train)
    return choose_maps(maps | {last: (stride, x)}, names)


mobilenet_v2 = functools.partial(MobileNetV2, (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)))
