"""RegNet: networks whose widths and depths follow from a line.

Ilija Radosavovic, Raj Prateek Kosaraju, Ross Girshick, Kaiming He and Piotr Dollar, Designing Network Design Spaces,
arXiv 2003.13678, section 3.3 and Tables 3 and 4. Block j of a network has about w0 + wa * j channels: the line's
widths are rounded to a power of wm times w0, and blocks of equal width are a stage. Maps of `regnet_x_400mf` (w0 = 24,
wa = 24.48, wm = 2.54, 22 blocks) on an image of 224 x 224:

| part | what | map |
|---|---|---|
| stem | 3x3 / 2, 32 | 112 x 112 x 32 |
| block1 | 1 block, the first one of every stage / 2 | 56 x 56 x 32 |
| block2 | 2 blocks | 28 x 28 x 64 |
| block3 | 7 blocks | 14 x 14 x 160 |
| block4 | 12 blocks | 7 x 7 x 400 |
| fc | mean over the pixels, fully connected | K |

A block is 1x1, 3x3 in groups of `group_width` channels, 1x1, all of the stage's width; RegNetY has a squeeze-and-excite
after the 3x3. Parameters at K = 1000 are from 4,344,144 (`regnet_y_400mf`) to 644,812,894 (`regnet_y_128gf`).
Submodules bear torchvision's names, `block1_0` for its `block1-0`.

Differs from the paper: widths are rounded to multiples of the group's as in torchvision, halves up and never to less
than nine tenths; so `regnet_y_800mf` has stages of 144 and 784 channels and `regnet_y_8gf` one of 224, where the paper
has 128, 768 and 168. `regnet_y_128gf` is of Priya Goyal et al., Vision Models Are More Robust and Fair When Pretrained
on Uncurated Images Without Supervision, arXiv 2202.08360.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.layers import ConvNorm, SqueezeExcite, global_avg_pool, he_fan_out, make_divisible

Array = jax.Array
STEM = 32


class RegNet(nn.Module):
  """A RegNet; `regnet_x_400mf` to `regnet_y_128gf` are its rows.

  Args:
    depth, w0, wa, wm: the number of blocks, and their widths; see `stage_plan`.
    group_width: channels of a group of the 3x3 convolutions.
    squeeze: RegNetY's share of a block's incoming channels in the middle of its squeeze-and-excite; 0 leaves it out.
    num_classes: K; 0 gives features and no `fc`.
    norm: see `layers.make_norm`.
    dtype: the compute dtype.

  Returns:
    Float32 logits `[B, K]`, or features `[B, C]`, from `[B, H, W, 3]` of any size.

  Raises:
    ValueError: numbers that give no widths.

  >>> model = regnet_x_400mf(num_classes=10)
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 32, 48, 3)))[0].shape
  (2, 10)
  """

  depth: int
  w0: int
  wa: float
  wm: float
  group_width: int
  squeeze: float = 0.0
  num_classes: int = 1000
  norm: str = 'batch'
  dtype: Any = jnp.float32

  def setup(self):
    if self.num_classes:
      self.fc = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01), dtype=jnp.dtype(self.dtype))

  def __call__(self, x: Array, *, train: bool = False) -> Array:
    maps = self.features(x, train=train)
    x = maps[f'block{len(maps) - 1}']
    x = global_avg_pool(x)
    return self.fc(x).astype(jnp.float32) if self.num_classes else x

  @nn.compact
  def features(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    """The last map of every stride in `dtype`: `stem` (2), `block1` (4), `block2` (8), ..."""
    plan = stage_plan(self.depth, self.w0, self.wa, self.wm, self.group_width)
    x = ConvNorm(STEM, 3, 2, norm=self.norm, dtype=self.dtype, kernel_init=he_fan_out, parts=('0', '1'), name='stem')(
        x, train=train)
    return {'stem': x} | Trunk(plan, self.squeeze, self.norm, self.dtype, name='trunk_output')(x, train=train)


def stage_plan(depth: int, w0: int, wa: float, wm: float, group_width: int) -> tuple[tuple[int, int, int], ...]:
  """The stages of a RegNet: the number of blocks, their channels, and the channels of a group in each.

  Block j of `depth` has the width u = w0 + wa * j on the line, and of the widths w0 * wm ** s, s = 0, 1, ..., the one
  nearest in the logarithm, rounded to a multiple of 8. Blocks of equal width are a stage, whose width is then made a
  multiple of the group's.

  Args:
    depth: blocks in all.
    w0: channels of the first block, a multiple of 8.
    wa: channels that a block adds, not negative.
    wm: ratio of the widths of two stages, more than 1.
    group_width: channels of a group; a narrower stage is one group.

  Returns:
    `(blocks, width, group_width)` of every stage.

  Raises:
    ValueError: numbers out of these ranges.

  Reference: arXiv 2003.13678, equations 2 to 4.

  >>> stage_plan(22, 24, 24.48, 2.54, 16)
  ((1, 32, 16), (2, 64, 16), (7, 160, 16), (12, 400, 16))
  """
  if wa < 0 or w0 <= 0 or w0 % 8 or wm <= 1:
    raise ValueError(f'stage_plan: w0 {w0}, wa {wa}, wm {wm}; w0 must be a positive multiple of 8, wa not negative and '
                     'wm above 1')
  steps = (round(math.log((w0 + wa * j) / w0) / math.log(wm)) for j in range(depth))
  widths = (8 * round(w0 * wm ** step / 8) for step in steps)
  stages = []
  for width, blocks in itertools.groupby(widths):
    group = min(group_width, width)
    stages.append((len(list(blocks)), make_divisible(width, group), group))
  return tuple(stages)


class Trunk(nn.Module):
  """All stages, after the stem.

  Args:
    plan: of `stage_plan`.
    squeeze, norm, dtype: as in `RegNet`.

  Returns:
    The map of every stage by name, `block1` first, each half the size of the one before.
  """

  plan: tuple[tuple[int, int, int], ...]
  squeeze: float
  norm: str
  dtype: Any

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    maps = {}
    for i, (blocks, width, group_width) in enumerate(self.plan, start=1):
      x = Stage(i, blocks, width, group_width, self.squeeze, self.norm, self.dtype, name=f'block{i}')(x, train=train)
      maps[f'block{i}'] = x
    return maps


class Stage(nn.Module):
  """Blocks of one width, the first of which halves the size.

  Args:
    number: its place among the stages, from 1; its blocks bear it.
    blocks: how many.
    width, group_width, squeeze, norm, dtype: as in `Block`.

  Returns:
    `[B, h, w, width]`.
  """

  number: int
  blocks: int
  width: int
  group_width: int
  squeeze: float
  norm: str
  dtype: Any

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    for i in range(self.blocks):
      x = Block(self.width, self.group_width, 1 if i else 2, self.squeeze, self.norm, self.dtype,
                name=f'block{self.number}_{i}')(x, train=train)
    return x


class Block(nn.Module):
  """The X block, or with `squeeze` the Y block: a residual bottleneck that does not narrow.

  Args:
    width: channels of all its convolutions.
    group_width: channels of a group of the 3x3 convolution, a divisor of `width`.
    stride: of the 3x3 convolution and of the shortcut.
    squeeze: share of the incoming channels in the middle of the squeeze-and-excite; 0 leaves it out.
    norm, dtype: as in `RegNet`.

  Returns:
    `[B, h, w, width]`; the shortcut is a 1x1 projection where the shape changes.

  >>> block = Block(16, 8, stride=2, squeeze=0.25)
  >>> jax.eval_shape(block.init_with_output, jax.random.key(0), jnp.zeros((1, 5, 6, 8)))[0].shape
  (1, 3, 3, 16)
  """

  width: int
  group_width: int
  stride: int = 1
  squeeze: float = 0.0
  norm: str = 'batch'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    y = Transform(self.width, self.group_width, self.stride, round(self.squeeze * x.shape[-1]), self.norm, self.dtype,
                  name='f')(x, train=train)
    if self.stride != 1 or x.shape[-1] != self.width:
      x = ConvNorm(self.width, 1, self.stride, norm=self.norm, activation=None, dtype=self.dtype,
                   kernel_init=he_fan_out, parts=('0', '1'), name='proj')(x, train=train)
    return nn.relu(x + y)


class Transform(nn.Module):
  """1x1, 3x3 in groups, squeeze-and-excite, 1x1: what a block adds to its shortcut.

  Args:
    width, group_width, stride, norm, dtype: as in `Block`.
    squeezed: channels in the middle of the squeeze-and-excite; 0 leaves it out.

  Returns:
    `[B, h, w, width]`.
  """

  width: int
  group_width: int
  stride: int
  squeezed: int
  norm: str
  dtype: Any

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    conv = functools.partial(ConvNorm, self.width, norm=self.norm, dtype=self.dtype, kernel_init=he_fan_out,
                             parts=('0', '1'))
    x = conv(1, name='a')(x, train=train)
    x = conv(3, self.stride, groups=self.width // self.group_width, name='b')(x, train=train)
    if self.squeezed:
      x = SqueezeExcite(self.squeezed, dtype=self.dtype, kernel_init=he_fan_out, name='se')(x)
    return conv(1, activation=None, name='c')(x, train=train)


# depth, w0, wa, wm, group width, squeeze.
regnet_x_400mf = functools.partial(RegNet, 22, 24, 24.48, 2.54, 16, 0.0)
regnet_x_800mf = functools.partial(RegNet, 16, 56, 35.73, 2.28, 16, 0.0)
regnet_x_1_6gf = functools.partial(RegNet, 18, 80, 34.01, 2.25, 24, 0.0)
regnet_x_3_2gf = functools.partial(RegNet, 25, 88, 26.31, 2.25, 48, 0.0)
regnet_x_8gf = functools.partial(RegNet, 23, 80, 49.56, 2.88, 120, 0.0)
regnet_x_16gf = functools.partial(RegNet, 22, 216, 55.59, 2.1, 128, 0.0)
regnet_x_32gf = functools.partial(RegNet, 23, 320, 69.86, 2.0, 168, 0.0)
regnet_y_400mf = functools.partial(RegNet, 16, 48, 27.89, 2.09, 8, 0.25)
regnet_y_800mf = functools.partial(RegNet, 14, 56, 38.84, 2.4, 16, 0.25)
regnet_y_1_6gf = functools.partial(RegNet, 27, 48, 20.71, 2.65, 24, 0.25)
regnet_y_3_2gf = functools.partial(RegNet, 21, 80, 42.63, 2.66, 24, 0.25)
regnet_y_8gf = functools.partial(RegNet, 17, 192, 76.82, 2.19, 56, 0.25)
regnet_y_16gf = functools.partial(RegNet, 18, 200, 106.23, 2.48, 112, 0.25)
regnet_y_32gf = functools.partial(RegNet, 20, 232, 115.89, 2.53, 232, 0.25)
regnet_y_128gf = functools.partial(RegNet, 27, 456, 160.83, 2.52, 264, 0.25)
