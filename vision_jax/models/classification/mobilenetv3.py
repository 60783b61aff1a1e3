"""MobileNetV3: inverted residual blocks with squeeze and excite and hard swish, found by search.

Andrew Howard et al., Searching for MobileNetV3, arXiv 1905.02244, Tables 1 and 2. Maps of the large network on an image
of 224 x 224 (in brackets what the small one has on maps of the same size):

| part | what | map |
|---|---|---|
| features_0 | 3x3 / 2, 16 | 112 x 112 x 16 |
| features_1 | a block without expansion | 112 x 112 x 16 (56 x 56 x 16: it strides) |
| features_2, 3 | 3x3 blocks, the first / 2 | 56 x 56 x 24 |
| features_4 to 6 | 5x5 blocks with squeeze and excite, / 2 | 28 x 28 x 40 (features_2, 3: 24) |
| features_7 to 12 | 3x3 blocks with hard swish, / 2 | 14 x 14 x 112 (features_4 to 8: 48) |
| features_13 to 15 | 5x5 blocks, / 2 | 7 x 7 x 160 (features_9 to 11: 96) |
| features_16 | 1x1, six times the channels | 7 x 7 x 960 (features_12: 576) |
| classifier_0 | mean over the pixels, fully connected, hard swish | 1280 (1024) |
| classifier_3 | dropout, fully connected | K |

Parameters at K = 1000: 5,483,032 and 2,542,856. Submodules bear torchvision's names.

Differs from the paper: the last 1x1 convolution of the small network has no squeeze and excite; the quarter of the
channels that squeeze and excite has in between is rounded to eights.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.classification.inverted_residual import InvertedResidual
from vision_jax.models.classification.maps import choose_maps
from vision_jax.models.layers import ConvNorm, global_avg_pool, he_fan_out, make_divisible
from vision_jax.models.noise import Dropout

Array = jax.Array

dense_init = nn.initializers.normal(0.01)


class Row(NamedTuple):
  """A line of the paper's tables."""

  kernel_size: int
  expanded: int
  features: int
  squeeze: bool  # SE
  hard_swish: bool  # HS, or RE: ReLU
  stride: int


class MobileNetV3(nn.Module):
  """MobileNetV3; `mobilenet_v3_large` and `mobilenet_v3_small` are its rows.

  Args:
    rows: the blocks.
    head: numbers between the two fully connected layers.
    num_classes: K; 0 gives features and none of the two.
    width_mult: every width is multiplied by this and rounded to eights.
    reduced_tail: halves the channels from the last stride on, for detectors and segmenters (section 6.3).
    dilated: dilates the blocks from the last stride on, which then keep stride 16 (section 6.4).
    dropout: before the last layer.
    norm, eps, momentum: see `layers.make_norm`.
    dtype: the compute dtype.

  Returns:
    Float32 logits `[B, K]`, or features `[B, C]` (C = 960 or 576: the mean of the last map), from `[B, H, W, 3]` of any
    size.

  >>> model = mobilenet_v3_small(num_classes=10, width_mult=0.5)
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 32, 48, 3)))[0].shape
  (2, 10)
  """

  rows: tuple[Row, ...]
  head: int
  num_classes: int = 1000
  width_mult: float = 1.0
  reduced_tail: bool = False
  dilated: bool = False
  dropout: float = 0.2
  norm: str = 'batch'
  eps: float = 1e-3
  momentum: float = 0.99
  dtype: Any = jnp.float32

  def setup(self):
    if self.num_classes:
      dense = functools.partial(nn.Dense, kernel_init=dense_init, dtype=jnp.dtype(self.dtype))
      self.classifier_0 = dense(self._width(self.head // (1 + self.reduced_tail)))
      self.classifier_2 = Dropout(self.dropout)
      self.classifier_3 = dense(self.num_classes)

  def __call__(self, x: Array, *, train: bool = False) -> Array:
    x = list(self.features(x, train=train).values())[-1]
    x = global_avg_pool(x)
    if not self.num_classes:
      return x
    x = self.classifier_2(nn.hard_swish(self.classifier_0(x)), train=train)
    return self.classifier_3(x).astype(jnp.float32)

  @nn.compact
  def features(self, x: Array, *, train: bool = False, names: tuple[str, ...] | None = None) -> dict[str, Array]:
    """The last map of every stride by name, fine to coarse, in `dtype`, or the maps of these `names`.

    Every part of the table is a name, and `features_13_block_0` is the expanded map of block 13.
    """
    common = {'norm': self.norm, 'eps': self.eps, 'momentum': self.momentum, 'dtype': self.dtype}
    conv = functools.partial(ConvNorm, activation=nn.hard_swish, kernel_init=he_fan_out, parts=('0', '1'), **common)
    stride = 2
    x = conv(self._width(16), 3, 2, name='features_0')(x, train=train)
    maps = {'features_0': (stride, x)}
    for i, (row, step, dilation) in enumerate(self._plan(), start=1):
      expanded = self._width(row.expanded)
      block = InvertedResidual(
          self._width(row.features), expanded, row.kernel_size, step, dilation,
          make_divisible(expanded // 4) if row.squeeze else 0, nn.hard_swish if row.hard_swish else nn.relu,
          gate=nn.hard_sigmoid, shortcut=row.stride == 1, **common, name=f'features_{i}')
      x, between = block.with_expanded(x, train=train)
      stride *= step
      maps |= {f'features_{i}_block_0': (None, between), f'features_{i}': (stride, x)}
    x = conv(6 * x.shape[-1], 1, name=f'features_{len(self.rows) + 1}')(x, train=train)
    return choose_maps(maps | {f'features_{len(self.rows) + 1}': (stride, x)}, names)

  def _plan(self) -> list[tuple[Row, int, int]]:
    """The rows as the options change them, each with the stride and the dilation that it has then."""
    tail = max((i for i, row in enumerate(self.rows) if row.stride == 2), default=len(self.rows))
    plan = []
    for i, row in enumerate(self.rows):
      if self.reduced_tail and i >= tail:
        row = row._replace(features=row.features // 2, expanded=row.expanded // (1 if i == tail else 2))
      dilated = self.dilated and i >= tail
      plan.append((row, 1 if dilated else row.stride, 2 if dilated else 1))
    return plan

  def _width(self, channels: int) -> int:
    return make_divisible(channels * self.width_mult)


LARGE = (
    Row(3, 16, 16, False, False, 1),
    Row(3, 64, 24, False, False, 2),
    Row(3, 72, 24, False, False, 1),
    Row(5, 72, 40, True, False, 2),
    Row(5, 120, 40, True, False, 1),
    Row(5, 120, 40, True, False, 1),
    Row(3, 240, 80, False, True, 2),
    Row(3, 200, 80, False, True, 1),
    Row(3, 184, 80, False, True, 1),
    Row(3, 184, 80, False, True, 1),
    Row(3, 480, 112, True, True, 1),
    Row(3, 672, 112, True, True, 1),
    Row(5, 672, 160, True, True, 2),
    Row(5, 960, 160, True, True, 1),
    Row(5, 960, 160, True, True, 1),
)
SMALL = (
    Row(3, 16, 16, True, False, 2),
    Row(3, 72, 24, False, False, 2),
    Row(3, 88, 24, False, False, 1),
    Row(5, 96, 40, True, True, 2),
    Row(5, 240, 40, True, True, 1),
    Row(5, 240, 40, True, True, 1),
    Row(5, 120, 48, True, True, 1),
    Row(5, 144, 48, True, True, 1),
    Row(5, 288, 96, True, True, 2),
    Row(5, 576, 96, True, True, 1),
    Row(5, 576, 96, True, True, 1),
)

mobilenet_v3_large = functools.partial(MobileNetV3, LARGE, 1280)
mobilenet_v3_small = functools.partial(MobileNetV3, SMALL, 1024)
