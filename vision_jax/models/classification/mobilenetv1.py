"""MobileNet: depthwise separable convolutions all the way.

Andrew Howard et al., MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications,
arXiv 1704.04861, Table 1. Maps on an image of 224 x 224:

| part | what | map |
|---|---|---|
| conv_stem, bn1 | 3x3 / 2, 32 | 112 x 112 x 32 |
| blocks_0 | a separable convolution, 64 | 112 x 112 x 64 |
| blocks_1 | two, 128, the first / 2 | 56 x 56 x 128 |
| blocks_2 | two, 256, / 2 | 28 x 28 x 256 |
| blocks_3 | six, 512, / 2 | 14 x 14 x 512 |
| blocks_4 | two, 1024, / 2 | 7 x 7 x 1024 |
| classifier | mean over the pixels, fully connected | K |

A separable convolution is a 3x3 convolution of each channel alone, then a 1x1 convolution that mixes the channels, each
with norm and activation. `conv_cost` and `separable_cost` say what that saves: with 256 outputs, 88 % of the
multiply-adds. 4,231,976 parameters at K = 1000. torchvision has no MobileNet v1; submodules bear timm's names
(`mobilenetv1_100`).

Differs from the paper: ReLU6 in place of ReLU, as in its published code; the last stride of 2 in Table 1, which would
leave 4 x 4 of the 7 x 7 pixels that it says, is 1.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.classification.maps import choose_maps
from vision_jax.models.layers import (
  Conv,
  Size,
  global_avg_pool,
  he_fan_in,
  linear_init,
  make_divisible,
  make_norm,
  pair,
)
from vision_jax.models.noise import Dropout

Array = jax.Array


def conv_cost(size: Size, channels: int, features: int, *, kernel_size: Size = 3) -> int:
  """The multiply-adds of a convolution: h w C F k k.

  Args:
    size: (h, w) of the map that comes out, or one number for both.
    channels: C, that go in.
    features: F, that come out.
    kernel_size: k, one number or (h, w).

  Returns:
    A whole number; bias, norm and activation do not count.

  Andrew Howard et al., MobileNets, arXiv 1704.04861, equation 2.

  >>> conv_cost(112, 32, 64)
  231211008
  """
  (h, w), (kh, kw) = pair(size), pair(kernel_size)
  return h * w * channels * features * kh * kw


def separable_cost(size: Size, channels: int, features: int, *, kernel_size: Size = 3) -> int:
  """The multiply-adds of a depthwise separable convolution: h w C k k + h w C F.

  That is 1 / F + 1 / k^2 of `conv_cost`.

  Args:
    size, channels, features, kernel_size: as in `conv_cost`.

  Returns:
    A whole number; bias, norm and activation do not count.

  Andrew Howard et al., MobileNets, arXiv 1704.04861, equation 5.

  >>> round(separable_cost(14, 256, 256) / conv_cost(14, 256, 256), 3)
  0.115
  """
  return conv_cost(size, channels, 1, kernel_size=kernel_size) + conv_cost(size, channels, features, kernel_size=1)


class MobileNetV1(nn.Module):
  """MobileNet; `mobilenet_v1` is its row.

  Args:
    stages: for each the channels and the number of its separable convolutions, of which the first has stride 2, save in
      the first stage.
    num_classes: K; 0 gives features and no `classifier`.
    width_mult: the paper's alpha: every width is multiplied by this and rounded to eights.
    dropout: before the last layer.
    norm, eps, momentum: see `layers.make_norm`.
    dtype: the compute dtype.

  Returns:
    Float32 logits `[B, K]`, or features `[B, C]`, from `[B, H, W, 3]` of any size.

  >>> model = mobilenet_v1(num_classes=10, width_mult=0.25)
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 32, 48, 3)))[0].shape
  (2, 10)
  """

  stages: tuple[tuple[int, int], ...]
  num_classes: int = 1000
  width_mult: float = 1.0
  dropout: float = 0.0
  norm: str = 'batch'
  eps: float = 1e-5
  momentum: float = 0.9
  dtype: Any = jnp.float32

  def setup(self):
    if self.num_classes:
      self.drop = Dropout(self.dropout)
      self.classifier = nn.Dense(self.num_classes, kernel_init=linear_init, dtype=jnp.dtype(self.dtype))

  def __call__(self, x: Array, *, train: bool = False) -> Array:
    x = list(self.features(x, train=train).values())[-1]
    x = global_avg_pool(x)
    return self.classifier(self.drop(x, train=train)).astype(jnp.float32) if self.num_classes else x

  @nn.compact
  def features(self, x: Array, *, train: bool = False, names: tuple[str, ...] | None = None) -> dict[str, Array]:
    """The last map of every stride by name, fine to coarse, in `dtype`, or the maps of these `names`.

    The names are `blocks_0` to `blocks_4`; each is half the size of the one before.
    """
    common = {'eps': self.eps, 'momentum': self.momentum, 'dtype': self.dtype}
    width = make_divisible(32 * self.width_mult)
    x = Conv(width, 3, 2, 1, use_bias=self.norm == 'none', dtype=self.dtype, name='conv_stem')(x)
    x = nn.relu6(make_norm(self.norm, width, train=train, **common, name='bn1')(x))
    maps = {}
    for stage, (channels, blocks) in enumerate(self.stages):
      for i in range(blocks):
        x = DepthwiseSeparable(make_divisible(channels * self.width_mult), stride=2 if stage and not i else 1,
                               norm=self.norm, **common, name=f'blocks_{stage}_{i}')(x, train=train)
      maps[f'blocks_{stage}'] = (2 ** (stage + 1), x)
    return choose_maps(maps, names)


class DepthwiseSeparable(nn.Module):
  """A convolution of each channel alone, norm, activation; then a 1x1 convolution, norm, activation.

  Args:
    features: channels that come out.
    kernel_size, stride: of the depthwise convolution.
    activation: after the depthwise convolution.
    last_activation: after the 1x1 convolution, or None.
    norm, eps, momentum: as in `layers.make_norm`.
    dtype: the compute dtype.
    kernel_init: initialiser of both kernels.
    parts: the names of convolution and norm, and of the second ones.

  Returns:
    `[B, h, w, features]` in `dtype`.

  Andrew Howard et al., MobileNets, arXiv 1704.04861, section 3.1 and Figure 3.

  >>> layer = DepthwiseSeparable(8, stride=2)
  >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.zeros((1, 5, 6, 4)))[0].shape
  (1, 3, 3, 8)
  """

  features: int
  kernel_size: int = 3
  stride: int = 1
  activation: Callable = nn.relu6
  last_activation: Callable | None = nn.relu6
  norm: str = 'batch'
  eps: float = 1e-5
  momentum: float = 0.9
  dtype: Any = jnp.float32
  kernel_init: Callable = he_fan_in
  parts: tuple[str, str, str, str] = ('conv_dw', 'bn1', 'conv_pw', 'bn2')

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    channels = x.shape[-1]
    conv = functools.partial(Conv, use_bias=self.norm == 'none', dtype=self.dtype, kernel_init=self.kernel_init)
    norm = functools.partial(make_norm, self.norm, train=train, dtype=self.dtype, eps=self.eps, momentum=self.momentum)
    x = conv(channels, self.kernel_size, self.stride, self.kernel_size // 2, groups=channels, name=self.parts[0])(x)
    x = self.activation(norm(channels, name=self.parts[1])(x))
    x = norm(self.features, name=self.parts[3])(conv(self.features, 1, name=self.parts[2])(x))
    return x if self.last_activation is None else self.last_activation(x)


mobilenet_v1 = functools.partial(MobileNetV1, ((64, 1), (128, 2), (256, 2), (512, 6), (1024, 2)))
