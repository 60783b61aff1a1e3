"""SqueezeNet: fire modules, which squeeze the channels by 1x1 convolutions before expanding them by 1x1 and 3x3 ones.

Forrest Iandola et al., SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model size, arXiv
1602.07360, Table 1 (`squeezenet1_0`, without bypass) and the published code of version 1.1. Maps on an image of
224 x 224; fire a-b squeezes to a channels and expands to b + b:

| part | `squeezenet1_0` | | `squeezenet1_1` | |
|---|---|---|---|---|
| convolution / 2 | 7x7, 109 x 109 x 96 | | 3x3, 111 x 111 x 64 | |
| 3x3 max pool / 2 | fires 16-64, 16-64, 32-128 | 54 x 54 x 256 | fires 16-64, 16-64 | 55 x 55 x 128 |
| 3x3 max pool / 2 | 32-128, 48-192, 48-192, 64-256 | 27 x 27 x 512 | 32-128, 32-128 | 27 x 27 x 256 |
| 3x3 max pool / 2 | 64-256 | 13 x 13 x 512 | 48-192, 48-192, 64-256, 64-256 | 13 x 13 x 512 |
| 1x1 convolution, ReLU, mean over the pixels | | K | | K |
| parameters at K = 1000 | | 1,248,424 | | 1,235,496 |

There is no fully connected layer. Submodules bear torchvision's names.

Differs from the paper: He's uniform initialisation, as in torchvision. The paper's maps of 111, 55, 27 and 13 pixels
are those of an image of 227 x 227.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.layers import Conv, check_size, global_avg_pool, max_pool
from vision_jax.models.noise import Dropout

Array = jax.Array
FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
he_uniform = nn.initializers.variance_scaling(2.0, 'fan_in', 'uniform')


class SqueezeNet(nn.Module):
  """A SqueezeNet; `squeezenet1_0` and `squeezenet1_1` are its rows.

  Args:
    stem: channels and kernel size of the first convolution.
    pools: before which of the eight fire modules a pool stands.
    num_classes: K; 0 gives the mean of the last map and no `classifier_1`.
    dropout: of the last map, in training.
    dtype: the compute dtype.

  Returns:
    Float32 logits `[B, K]`, none of them negative (a ReLU comes before the mean), or features `[B, 512]`, from
    `[B, H, W, 3]` with sides of at least 21 (`squeezenet1_1`: 17) pixels.

  Raises:
    ValueError: a smaller image.

  >>> jax.eval_shape(squeezenet1_1().init_with_output, jax.random.key(0), jnp.zeros((2, 17, 40, 3)))[0].shape
  (2, 1000)
  """

  stem: tuple[int, int]
  pools: tuple[int, ...]
  num_classes: int = 1000
  dropout: float = 0.5
  dtype: Any = jnp.float32

  def setup(self):
    if self.num_classes:
      self.classifier_0 = Dropout(self.dropout)
      self.classifier_1 = Conv(self.num_classes, 1, dtype=self.dtype, kernel_init=nn.initializers.normal(0.01))

  def __call__(self, x: Array, *, train: bool = False) -> Array:
    *_, x = self.features(x, train=train).values()
    if self.num_classes:
      x = nn.relu(self.classifier_1(self.classifier_0(x, train=train)))
    return global_avg_pool(x)

  @nn.compact
  def features(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    """The last map of every stride by name, in `dtype`.

    For `squeezenet1_0` these are `features_1` (stride 2), `features_5` (4), `features_10` (8), `features_12` (16); for
    `squeezenet1_1` `features_1`, `features_4`, `features_7` and `features_12`.
    """
    channels, size = self.stem
    # Three pools in ceil mode make 4, 2 and 1 of a map of 8 pixels, and nothing of 7.
    check_size('SqueezeNet', x, 2 * (8 - 1) + size)
    x = nn.relu(Conv(channels, size, stride=2, dtype=self.dtype, kernel_init=he_uniform, name='features_0')(x))
    maps, stride, index = {2: ('features_1', x)}, 2, 2
    for i, (squeezed, expanded) in enumerate(FIRES):
      if i in self.pools:
        x = max_pool(x, 3, stride=2, ceil_mode=True)
        stride, index = stride * 2, index + 1
      x = Fire(squeezed, expanded, self.dtype, name=f'features_{index}')(x)
      maps[stride] = f'features_{index}', x
      index += 1
    return dict(maps.values())


class Fire(nn.Module):
  """A fire module: a 1x1 convolution to few channels, then 1x1 and 3x3 ones side by side; each with a ReLU.

  Args:
    squeezed: channels between.
    expanded: channels of each of the two convolutions side by side.
    dtype: the compute dtype.

  Returns:
    `[B, H, W, 2 * expanded]` in `dtype`: first what the 1x1 convolution gives, then the 3x3 one.

  >>> jax.eval_shape(Fire(2, 8).init_with_output, jax.random.key(0), jnp.zeros((1, 5, 6, 16)))[0].shape
  (1, 5, 6, 16)
  """

  squeezed: int
  expanded: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    conv = functools.partial(Conv, dtype=self.dtype, kernel_init=he_uniform)
    x = nn.relu(conv(self.squeezed, 1, name='squeeze')(x))
    sides = conv(self.expanded, 1, name='expand1x1')(x), conv(self.expanded, 3, padding=1, name='expand3x3')(x)
    return nn.relu(jnp.concatenate(sides, -1))


squeezenet1_0 = functools.partial(SqueezeNet, (96, 7), (0, 3, 7))
squeezenet1_1 = functools.partial(SqueezeNet, (64, 3), (0, 2, 4))
