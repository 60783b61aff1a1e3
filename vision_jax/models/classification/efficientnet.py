"""EfficientNet and EfficientNetV2: inverted residual blocks, scaled in depth, width and image size at once.

Mingxing Tan and Quoc Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, arXiv 1905.11946,
Table 1, and EfficientNetV2: Smaller Models and Faster Training, arXiv 2104.00298, Table 4. Maps on an image of
224 x 224; the block is in `inverted_residual.py`:

| part | B0 | map | V2-S | map |
|---|---|---|---|---|
| features_0 | 3x3 / 2 | 112 x 112 x 32 | 3x3 / 2 | 112 x 112 x 24 |
| features_1 | 1 block, 3x3, no expansion | 112 x 112 x 16 | 2 fused, no expansion | 112 x 112 x 24 |
| features_2 | 2, 3x3 / 2, expands 6 times | 56 x 56 x 24 | 4 fused / 2, 4 times | 56 x 56 x 48 |
| features_3 | 2, 5x5 / 2, 6 | 28 x 28 x 40 | 4 fused / 2, 4 | 28 x 28 x 64 |
| features_4 | 3, 3x3 / 2, 6 | 14 x 14 x 80 | 6, 3x3 / 2, 4 | 14 x 14 x 128 |
| features_5 | 3, 5x5, 6 | 14 x 14 x 112 | 9, 3x3, 6 | 14 x 14 x 160 |
| features_6 | 4, 5x5 / 2, 6 | 7 x 7 x 192 | 15, 3x3 / 2, 6 | 7 x 7 x 256 |
| features_7 | 1, 3x3, 6 | 7 x 7 x 320 | 1x1 | 7 x 7 x 1280 |
| features_8 | 1x1 | 7 x 7 x 1280 | (V2-M and V2-L: their seventh stage is features_7) | |
| classifier_1 | mean over the pixels, dropout, fully connected | K | | K |

Parameters at K = 1000, B0 to B7: 5,288,548; 7,794,184; 9,109,994; 12,233,232; 19,341,616; 30,389,784; 43,040,704;
66,347,960; V2-S, M, L: 21,458,488; 54,139,356; 118,515,272. Their images are meant to be 224, 240, 260, 300, 380, 456,
528, 600, and 384, 480, 480 pixels wide. Submodules bear torchvision's names.

Differs from the papers: convolutions with stride pad both sides alike, where the original pads the bottom and the right
more; B0 to B4 add 1e-5, not 1e-3, to the variance, as torchvision's weights want it.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.classification.inverted_residual import InvertedResidual
from vision_jax.models.classification.maps import choose_maps
from vision_jax.models.layers import ConvNorm, global_avg_pool, he_fan_out, make_divisible
from vision_jax.models.noise import Dropout, StochasticDepth

Array = jax.Array

# Uniform within 1 / sqrt(K), as the original initialises the fully connected layer.
dense_init = nn.initializers.variance_scaling(1 / 3, 'fan_out', 'uniform')


class Stage(NamedTuple):
  """A line of the papers' tables."""

  fused: bool
  expansion: int
  kernel_size: int
  stride: int  # of the first block
  features: int
  blocks: int


class EfficientNet(nn.Module):
  """EfficientNet; `efficientnet_b0` to `b7` and `efficientnet_v2_s`, `m`, `l` are its rows.

  Args:
    stem: channels of the first convolution.
    stages: the stages of blocks.
    head: channels of the last map.
    num_classes: K; 0 gives features and no `classifier_1`.
    dropout: before the last layer.
    stochastic_depth: in [0, 1): how often training drops the last block's branch; it grows linearly from 0.
    norm, eps, momentum: see `layers.make_norm`.
    dtype: the compute dtype.

  Returns:
    Float32 logits `[B, K]`, or features `[B, head]`, from `[B, H, W, 3]` of any size.

  >>> model = efficientnet_b0(num_classes=10)
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 32, 48, 3)))[0].shape
  (2, 10)
  """

  stem: int
  stages: tuple[Stage, ...]
  head: int
  num_classes: int = 1000
  dropout: float = 0.2
  stochastic_depth: float = 0.2
  norm: str = 'batch'
  eps: float = 1e-5
  momentum: float = 0.9
  dtype: Any = jnp.float32

  def setup(self):
    if self.num_classes:
      self.classifier_0 = Dropout(self.dropout)
      self.classifier_1 = nn.Dense(self.num_classes, kernel_init=dense_init, dtype=jnp.dtype(self.dtype))

  def __call__(self, x: Array, *, train: bool = False) -> Array:
    x = list(self.features(x, train=train).values())[-1]
    x = global_avg_pool(x)
    return self.classifier_1(self.classifier_0(x, train=train)).astype(jnp.float32) if self.num_classes else x

  @nn.compact
  def features(self, x: Array, *, train: bool = False, names: tuple[str, ...] | None = None) -> dict[str, Array]:
    """The last map of every stride by name, fine to coarse, in `dtype`, or the maps of these `names` of the table."""
    common = {'norm': self.norm, 'eps': self.eps, 'momentum': self.momentum, 'dtype': self.dtype}
    conv = functools.partial(ConvNorm, activation=nn.silu, kernel_init=he_fan_out, parts=('0', '1'), **common)
    stride, total, done = 2, sum(stage.blocks for stage in self.stages), 0
    x = conv(self.stem, 3, 2, name='features_0')(x, train=train)
    maps = {'features_0': (stride, x)}
    for number, stage in enumerate(self.stages, start=1):
      for i in range(stage.blocks):
        x = _block(stage, i, x.shape[-1], self.stochastic_depth * done / total, common,
                   f'features_{number}_{i}')(x, train=train)
        done += 1
      stride *= stage.stride
      maps[f'features_{number}'] = (stride, x)
    last = f'features_{len(self.stages) + 1}'
    return choose_maps(maps | {last: (stride, conv(self.head, 1, name=last)(x, train=train))}, names)


def _block(stage: Stage, i: int, channels: int, rate: float, common: dict[str, Any], name: str) -> nn.Module:
  """Block i of a stage, for a map of so many channels."""
  expanded, stride = make_divisible(channels * stage.expansion), 1 if i else stage.stride
  if stage.fused:
    return FusedInvertedResidual(stage.features, expanded, stage.kernel_size, stride, rate, **common, name=name)
  return InvertedResidual(stage.features, expanded, stage.kernel_size, stride, squeeze=max(1, channels // 4),
                          activation=nn.silu, squeeze_activation=nn.silu, stochastic_depth=rate, **common, name=name)


class FusedInvertedResidual(nn.Module):
  """An inverted residual block whose expansion and depthwise convolution are one full convolution.

  Args:
    features: channels that come out.
    expanded: channels in between; as many as come in: a single k x k convolution with activation.
    kernel_size, stride: of the full convolution.
    stochastic_depth, norm, eps, momentum, dtype: as in `InvertedResidual`.

  Returns:
    `[B, h, w, features]` in `dtype`, plus the input where the shape is the same.

  Mingxing Tan and Quoc Le, EfficientNetV2, arXiv 2104.00298, Figure 2; without squeeze and excite, as in its Table 4.

  >>> block = FusedInvertedResidual(8, expanded=16, stride=2)
  >>> jax.eval_shape(block.init_with_output, jax.random.key(0), jnp.zeros((1, 5, 6, 4)))[0].shape
  (1, 3, 3, 8)
  """

  features: int
  expanded: int
  kernel_size: int = 3
  stride: int = 1
  stochastic_depth: float = 0.0
  norm: str = 'batch'
  eps: float = 1e-5
  momentum: float = 0.9
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    conv = functools.partial(ConvNorm, norm=self.norm, eps=self.eps, momentum=self.momentum, dtype=self.dtype,
                             kernel_init=he_fan_out, parts=('0', '1'))
    expands = self.expanded != x.shape[-1]
    y = conv(self.expanded if expands else self.features, self.kernel_size, self.stride, activation=nn.silu,
             name='block_0')(x, train=train)
    if expands:
      y = conv(self.features, 1, activation=None, name='block_1')(y, train=train)
    if self.stride == 1 and self.features == x.shape[-1]:
      y = x + StochasticDepth(self.stochastic_depth, name='stochastic_depth')(y, train=train)
    return y


def scaled(width: float, depth: float) -> tuple[int, tuple[Stage, ...], int]:
  """B0's stem, stages and head, with its widths and its numbers of blocks multiplied.

  Mingxing Tan and Quoc Le, EfficientNet, arXiv 1905.11946, section 3.3.

  Args:
    width: of 1 or more.
    depth: of 1 or more.

  >>> scaled(1.1, 1.2)[1][1]
  Stage(fused=False, expansion=6, kernel_size=3, stride=2, features=24, blocks=3)
  """
  stages = tuple(stage._replace(features=make_divisible(stage.features * width), blocks=math.ceil(stage.blocks * depth))
                 for stage in B0)
  return make_divisible(32 * width), stages, 4 * stages[-1].features


B0 = (
    Stage(False, 1, 3, 1, 16, 1),
    Stage(False, 6, 3, 2, 24, 2),
    Stage(False, 6, 5, 2, 40, 2),
    Stage(False, 6, 3, 2, 80, 3),
    Stage(False, 6, 5, 1, 112, 3),
    Stage(False, 6, 5, 2, 192, 4),
    Stage(False, 6, 3, 1, 320, 1),
)
V2_S = (
    Stage(True, 1, 3, 1, 24, 2),
    Stage(True, 4, 3, 2, 48, 4),
    Stage(True, 4, 3, 2, 64, 4),
    Stage(False, 4, 3, 2, 128, 6),
    Stage(False, 6, 3, 1, 160, 9),
    Stage(False, 6, 3, 2, 256, 15),
)
V2_M = (
    Stage(True, 1, 3, 1, 24, 3),
    Stage(True, 4, 3, 2, 48, 5),
    Stage(True, 4, 3, 2, 80, 5),
    Stage(False, 4, 3, 2, 160, 7),
    Stage(False, 6, 3, 1, 176, 14),
    Stage(False, 6, 3, 2, 304, 18),
    Stage(False, 6, 3, 1, 512, 5),
)
V2_L = (
    Stage(True, 1, 3, 1, 32, 4),
    Stage(True, 4, 3, 2, 64, 7),
    Stage(True, 4, 3, 2, 96, 7),
    Stage(False, 4, 3, 2, 192, 10),
    Stage(False, 6, 3, 1, 224, 19),
    Stage(False, 6, 3, 2, 384, 25),
    Stage(False, 6, 3, 1, 640, 7),
)

efficientnet_b0 = functools.partial(EfficientNet, *scaled(1.0, 1.0))
efficientnet_b1 = functools.partial(EfficientNet, *scaled(1.0, 1.1))
efficientnet_b2 = functools.partial(EfficientNet, *scaled(1.1, 1.2), dropout=0.3)
efficientnet_b3 = functools.partial(EfficientNet, *scaled(1.2, 1.4), dropout=0.3)
efficientnet_b4 = functools.partial(EfficientNet, *scaled(1.4, 1.8), dropout=0.4)
efficientnet_b5 = functools.partial(EfficientNet, *scaled(1.6, 2.2), dropout=0.4, eps=1e-3, momentum=0.99)
efficientnet_b6 = functools.partial(EfficientNet, *scaled(1.8, 2.6), dropout=0.5, eps=1e-3, momentum=0.99)
efficientnet_b7 = functools.partial(EfficientNet, *scaled(2.0, 3.1), dropout=0.5, eps=1e-3, momentum=0.99)
efficientnet_v2_s = functools.partial(EfficientNet, 24, V2_S, 1280, eps=1e-3)
efficientnet_v2_m = functools.partial(EfficientNet, 24, V2_M, 1280, dropout=0.3, eps=1e-3)
efficientnet_v2_l = functools.partial(EfficientNet, 32, V2_L, 1280, dropout=0.4, eps=1e-3)
