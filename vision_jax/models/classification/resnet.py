"""ResNet: stages of residual blocks with an identity or a projection as the shortcut.

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

Differs from the paper: a bottleneck strides in its 3x3 convolution, not in the first 1x1 ("v1.5", as in torchvision).
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.layers import Conv, he_fan_out, linear_init, make_norm, max_pool

Array = jax.Array
EXPANSION = {'basic': 1, 'bottleneck': 4}


class ResNet(nn.Module):
  """A residual network; `resnet18` to `resnet152` are its rows.

  Args:
    block: 'basic' or 'bottleneck'.
    stage_sizes: the number of blocks of each stage.
    num_classes: K; 0 gives features and no `fc`.
    stem: 'imagenet' (7x7 / 2 and a max pool / 2) or 'small' (3x3 / 1 and no pool), for images of 8 to 32 pixels.
    width: channels of the first stage's blocks; each stage has twice as many as the one before.
    norm: see `layers.make_norm`.
    zero_init_last: starts each block as its shortcut: the scale of its last normalisation begins at 0.
    dtype: the compute dtype.

  Returns:
    Float32 logits `[B, K]`, or features `[B, C]`, from `[B, H, W, 3]` of any size.

  Raises:
    ValueError: an unknown block or stem.

  >>> model = resnet18(num_classes=10, stem='small', width=8)
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 8, 12, 3)))[0].shape
  (2, 10)
  """

  block: str
  stage_sizes: tuple[int, ...]
  num_classes: int = 1000
  stem: str = 'imagenet'
  width: int = 64
  norm: str = 'batch'
  zero_init_last: bool = False
  dtype: Any = jnp.float32

  def setup(self):
    if self.num_classes:
      self.fc = nn.Dense(self.num_classes, kernel_init=linear_init, dtype=jnp.dtype(self.dtype))

  def __call__(self, x: Array, *, train: bool = False) -> Array:
    x = self.features(x, train=train)[f'layer{len(self.stage_sizes)}']
    x = x.astype(jnp.float32).mean((1, 2))
    return self.fc(x).astype(jnp.float32) if self.num_classes else x

  @nn.compact
  def features(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    """The map of every stage by name, `layer1` first, each half the size of the one before, in `dtype`."""
    self._check()
    small = self.stem == 'small'
    x = Conv(self.width, 3 if small else 7, stride=1 if small else 2, padding=1 if small else 3, use_bias=
             self.norm == 'none', dtype=self.dtype, kernel_init=he_fan_out, name='conv1')(x)
    x = nn.relu(make_norm(self.norm, self.width, train=train, dtype=self.dtype, name='bn1')(x))
    x = x if small else max_pool(x, 3, stride=2, padding=1)
    maps = {}
    for stage, blocks in enumerate(self.stage_sizes):
      for i in range(blocks):
        x = Block(self.width * 2 ** stage, 2 if stage and not i else 1, self.block == 'bottleneck', self.norm,
                  self.zero_init_last, self.dtype, name=f'layer{stage + 1}_{i}')(x, train=train)
      maps[f'layer{stage + 1}'] = x
    return maps

  def _check(self) -> None:
    if self.block not in EXPANSION or self.stem not in ('imagenet', 'small'):
      raise ValueError(f'ResNet: block {self.block!r}, stem {self.stem!r}; known blocks: basic, bottleneck; known '
                       'stems: imagenet, small')


class Block(nn.Module):
  """A residual block: two 3x3 convolutions, or as a bottleneck 1x1, 3x3, 1x1 with four times the channels.

  Args:
    width: channels of its 3x3 convolution.
    stride: of its first (bottleneck: its only) 3x3 convolution, and of the shortcut.
    bottleneck: which of the two.
    norm, zero_init_last, dtype: as in `ResNet`.

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

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    features = self.width * EXPANSION['bottleneck' if self.bottleneck else 'basic']
    plan = [(self.width, 1, 1), (self.width, 3, self.stride), (features, 1, 1)] if self.bottleneck else [
        (self.width, 3, self.stride), (features, 3, 1)]
    conv = functools.partial(Conv, use_bias=self.norm == 'none', dtype=self.dtype, kernel_init=he_fan_out)
    norm = functools.partial(make_norm, self.norm, train=train, dtype=self.dtype)
    y = x
    for i, (channels, size, stride) in enumerate(plan, start=1):
      last = i == len(plan)
      y = conv(channels, size, stride, padding=size // 2, name=f'conv{i}')(y)
      scale = nn.initializers.zeros if last and self.zero_init_last else nn.initializers.ones
      y = norm(channels, scale_init=scale, name=f'bn{i}')(y)
      y = y if last else nn.relu(y)
    if self.stride != 1 or x.shape[-1] != features:
      x = conv(features, 1, self.stride, name='downsample_0')(x)
      x = norm(features, name='downsample_1')(x)
    return nn.relu(x + y)


resnet18 = functools.partial(ResNet, 'basic', (2, 2, 2, 2))
resnet34 = functools.partial(ResNet, 'basic', (3, 4, 6, 3))
resnet50 = functools.partial(ResNet, 'bottleneck', (3, 4, 6, 3))
resnet101 = functools.partial(ResNet, 'bottleneck', (3, 4, 23, 3))
resnet152 = functools.partial(ResNet, 'bottleneck', (3, 8, 36, 3))
