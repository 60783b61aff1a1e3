"""ResNet, and what grew out of it: stages of residual blocks with an identity or a projection as the shortcut.

Kaiming He, Xiangyu Zhang, Shaoqing Ren and Jian Sun, Deep Residual Learning for Image Recognition, arXiv 1512.03385,
Table 1. Maps on an image of 224 x 224, for basic blocks (18, 34) and bottlenecks (50, 101, 152):

| part | what | basic | bottleneck |
|---|---|---|---|
| conv1, bn1 | 7x7 / 2, 64; then 3x3 max pool / 2 | 56 x 56 x 64 | 56 x 56 x 64 |
| layer1 | blocks of width 64 | 56 x 56 x 64 | 56 x 56 x 256 |
| layer2 | 128, the first block / 2 | 28 x 28 x 128 | 28 x 28 x 512 |
| layer3 | 256, / 2 | 14 x 14 x 256 | 14 x 14 x 1024 |
| layer4 | 512, / 2 | 7 x 7 x 512 | 7 x 7 x 2048 |
| fc | mean over the pixels, fully connected | K | K |

Blocks have two 3x3 convolutions (18, 34) or 1x1, 3x3, 1x1 with four times the channels (50, 101, 152). Parameters at
K = 1000: 11,689,512; 21,797,672; 25,557,032; 44,549,160; 60,192,808. Submodules bear torchvision's names.

Two papers change the 3x3 convolution of a bottleneck and nothing else; `groups` x `width_per_group` are its channels in
the first stage, 1 x 64 above:

- Saining Xie et al., Aggregated Residual Transformations for Deep Neural Networks (ResNeXt), arXiv 1611.05431, Table 1:
  `resnext50_32x4d` has 32 groups of 4 channels; 25,028,904 parameters. 101_32x8d: 88,791,336; 101_64x4d: 83,455,272.
- Sergey Zagoruyko and Nikos Komodakis, Wide Residual Networks, arXiv 1605.07146, section 3.4 (WRN-50-2-bottleneck):
  `wide_resnet50_2` and 101_2 have 1 x 128; 68,883,240 and 126,886,696.

`output_stride` keeps the maps of the last stages large: their convolutions dilate instead of striding (Liang-Chieh Chen
et al., DeepLab, arXiv 1606.00915, section 3.1). On the pixels that both have, the maps are the same.

Differs from the papers: a bottleneck strides in its 3x3 convolution, not in the first 1x1 ("v1.5", as in torchvision).
"""

from __future__ import annotations

from collections.abc import Iterator
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.layers import Conv, global_avg_pool, he_fan_out, linear_init, make_norm, max_pool
from vision_jax.models.noise import StochasticDepth

Array = jax.Array
EXPANSION = {'basic': 1, 'bottleneck': 4}
OUTPUT_STRIDES = (8, 16, 32)


class ResNet(nn.Module):
  """A residual network; `resnet18` to `resnet152`, the ResNeXts and the Wide ResNets are its rows.

  Args:
    block: 'basic' or 'bottleneck'.
    stage_sizes: the number of blocks of each stage.
    groups: of the 3x3 convolution of a bottleneck (ResNeXt's cardinality).
    width_per_group: channels of each of them in the first stage (at `width=64`, otherwise in proportion).
    num_classes: K; 0 gives features and no `fc`.
    stem: 'imagenet' (7x7 / 2 and a max pool / 2) or 'small' (3x3 / 1 and no pool), for images of 8 to 32 pixels.
    width: channels of the first stage's blocks; each stage has twice as many as the one before.
    norm: see `layers.make_norm`.
    zero_init_last: starts each block as its shortcut: the scale of its last normalisation begins at 0.
    stochastic_depth: probability of dropping the last block in training; it grows linearly from the first, block l of L
      having l / L of it.
    output_stride: 32, 16 or 8: no map is coarser; a stage that would make it so dilates instead, and its map is as
      large as the one before.
    dtype: the compute dtype.

  Returns:
    Float32 logits `[B, K]`, or features `[B, C]`, from `[B, H, W, 3]` of any size.

  Raises:
    ValueError: an unknown block, stem or output stride, or groups in basic blocks.

  Stochastic depth: Gao Huang et al., arXiv 1603.09382, equation 4.

  >>> model = resnet18(num_classes=10, stem='small', width=8)
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 8, 12, 3)))[0].shape
  (2, 10)
  """

  block: str
  stage_sizes: tuple[int, ...]
  groups: int = 1
  width_per_group: int = 64
  num_classes: int = 1000
  stem: str = 'imagenet'
  width: int = 64
  norm: str = 'batch'
  zero_init_last: bool = False
  stochastic_depth: float = 0.0
  output_stride: int = 32
  dtype: Any = jnp.float32

  def setup(self):
    if self.num_classes:
      self.fc = nn.Dense(self.num_classes, kernel_init=linear_init, dtype=jnp.dtype(self.dtype))

  def __call__(self, x: Array, *, train: bool = False) -> Array:
    x = self.features(x, train=train)[f'layer{len(self.stage_sizes)}']
    x = global_avg_pool(x)
    return self.fc(x).astype(jnp.float32) if self.num_classes else x

  @nn.compact
  def features(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    """The map of every stage by name in `dtype`: `layer1` first, each half the size of the one before.

    The last ones are equally large where `output_stride` keeps them so.
    """
    self._check()
    small = self.stem == 'small'
    x = Conv(self.width, 3 if small else 7, stride=1 if small else 2, padding=1 if small else 3, use_bias=
             self.norm == 'none', dtype=self.dtype, kernel_init=he_fan_out, name='conv1')(x)
    x = nn.relu(make_norm(self.norm, self.width, train=train, dtype=self.dtype, name='bn1')(x))
    x = x if small else max_pool(x, 3, stride=2, padding=1)
    maps, count, total = {}, 0, sum(self.stage_sizes)
    for stage, (stride, dilation, inherited) in enumerate(self._strides()):
      for i in range(self.stage_sizes[stage]):
        count += 1
        # Where the stride was, the samples of the map before are still dense: they are as far apart as in that stage.
        dilations = (dilation if i else inherited, dilation)
        x = Block(self.width * 2 ** stage, 1 if i else stride, self.block == 'bottleneck', self.norm,
                  self.zero_init_last, self.dtype, self.groups, self.width_per_group, dilations,
                  self.stochastic_depth * count / total, name=f'layer{stage + 1}_{i}')(x, train=train)
      maps[f'layer{stage + 1}'] = x
    return maps

  def _strides(self) -> Iterator[tuple[int, int, int]]:
    """For every stage the stride of its first block, its dilation, and that of the stage before."""
    reached, dilation = 1 if self.stem == 'small' else 4, 1
    for stage in range(len(self.stage_sizes)):
      stride, inherited = 2 if stage else 1, dilation
      if reached * stride > self.output_stride:
        stride, dilation = 1, 2 * dilation
      reached *= stride
      yield stride, dilation, inherited

  def _check(self) -> None:
    if self.block not in EXPANSION or self.stem not in ('imagenet', 'small'):
      raise ValueError(f'ResNet: block {self.block!r}, stem {self.stem!r}; known blocks: basic, bottleneck; known '
                       'stems: imagenet, small')
    if self.output_stride not in OUTPUT_STRIDES:
      raise ValueError(f'ResNet: output_stride {self.output_stride!r}; known: 8, 16, 32')
    if self.block == 'basic' and (self.groups, self.width_per_group) != (1, 64):
      raise ValueError(f'ResNet: {self.groups} groups of {self.width_per_group} channels in basic blocks; they have 1 '
                       'of 64, only bottlenecks may have others')


class Block(nn.Module):
  """A residual block: two 3x3 convolutions, or as a bottleneck 1x1, 3x3, 1x1 with four times the channels.

  Args:
    width: channels of a basic block, and of a bottleneck's 3x3 convolution where it has one group of 64.
    stride: of its first (bottleneck: its only) 3x3 convolution, and of the shortcut.
    bottleneck: which of the two.
    norm, zero_init_last, dtype: as in `ResNet`.
    groups, width_per_group: of a bottleneck, as in `ResNet`; its 3x3 convolution has
      `groups * (width * width_per_group // 64)` channels.
    dilations: of the first (bottleneck: the only) 3x3 convolution, and of the second.
    drop: probability with which training drops the block and leaves the shortcut.

  Returns:
    `[B, h, w, C]` with C = `width`, or 4 * `width` for a bottleneck; the shortcut is a 1x1 projection where the stride
    or C changes the shape (the paper's option B).

  >>> block = Block(8, stride=2, bottleneck=True)
  >>> jax.eval_shape(block.init_with_output, jax.random.key(0), jnp.zeros((1, 5, 6, 16)))[0].shape
  (1, 3, 3, 32)
  """

  width: int
  stride: int = 1
  bottleneck: bool = False
  norm: str = 'batch'
  zero_init_last: bool = False
  dtype: Any = jnp.float32
  groups: int = 1
  width_per_group: int = 64
  dilations: tuple[int, int] = (1, 1)
  drop: float = 0.0

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    features = self.width * EXPANSION['bottleneck' if self.bottleneck else 'basic']
    conv = functools.partial(Conv, use_bias=self.norm == 'none', dtype=self.dtype, kernel_init=he_fan_out)
    norm = functools.partial(make_norm, self.norm, train=train, dtype=self.dtype)
    y, plan = x, self._plan(features)
    for i, (channels, size, stride, dilation, groups) in enumerate(plan, start=1):
      last = i == len(plan)
      y = conv(channels, size, stride, dilation * (size // 2), dilation, groups, name=f'conv{i}')(y)
      scale = nn.initializers.zeros if last and self.zero_init_last else nn.initializers.ones
      y = norm(channels, scale_init=scale, name=f'bn{i}')(y)
      y = y if last else nn.relu(y)
    if self.stride != 1 or x.shape[-1] != features:
      x = conv(features, 1, self.stride, name='downsample_0')(x)
      x = norm(features, name='downsample_1')(x)
    return nn.relu(x + StochasticDepth(self.drop)(y, train=train))

  def _plan(self, features: int) -> list[tuple[int, int, int, int, int]]:
    """Channels, size, stride, dilation and groups of every convolution."""
    first, second = self.dilations
    if not self.bottleneck:
      return [(self.width, 3, self.stride, first, 1), (features, 3, 1, second, 1)]
    inner = self.groups * (self.width * self.width_per_group // 64)
    return [(inner, 1, 1, 1, 1), (inner, 3, self.stride, first, self.groups), (features, 1, 1, 1, 1)]


resnet18 = functools.partial(ResNet, 'basic', (2, 2, 2, 2), 1, 64)
resnet34 = functools.partial(ResNet, 'basic', (3, 4, 6, 3), 1, 64)
resnet50 = functools.partial(ResNet, 'bottleneck', (3, 4, 6, 3), 1, 64)
resnet101 = functools.partial(ResNet, 'bottleneck', (3, 4, 23, 3), 1, 64)
resnet152 = functools.partial(ResNet, 'bottleneck', (3, 8, 36, 3), 1, 64)
resnext50_32x4d = functools.partial(ResNet, 'bottleneck', (3, 4, 6, 3), 32, 4)
resnext101_32x8d = functools.partial(ResNet, 'bottleneck', (3, 4, 23, 3), 32, 8)
resnext101_64x4d = functools.partial(ResNet, 'bottleneck', (3, 4, 23, 3), 64, 4)
wide_resnet50_2 = functools.partial(ResNet, 'bottleneck', (3, 4, 6, 3), 1, 128)
wide_resnet101_2 = functools.partial(ResNet, 'bottleneck', (3, 4, 23, 3), 1, 128)
