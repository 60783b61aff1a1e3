"""ConvNeXt: a convolutional network with the proportions and the parts of a Swin transformer.

Zhuang Liu, Hanzi Mao, Chao-Yuan Wu, Christoph Feichtenhofer, Trevor Darrell and Saining Xie, A ConvNet for the 2020s,
arXiv 2201.03545, Figure 4 and Table 9. Maps of `convnext_tiny` on an image of 224 x 224:

| part | what | output |
|---|---|---|
| features.0 | 4x4 convolution / 4, norm | 56 x 56 x 96 |
| features.1 | 3 blocks | 56 x 56 x 96 |
| features.2, 3 | norm, 2x2 convolution / 2; 3 blocks | 28 x 28 x 192 |
| features.4, 5 | norm, 2x2 / 2; 9 blocks | 14 x 14 x 384 |
| features.6, 7 | norm, 2x2 / 2; 3 blocks | 7 x 7 x 768 |
| classifier | mean over the pixels, norm, fully connected | K |

A block adds to its input a 7x7 convolution of each channel alone, a norm, and two fully connected layers with four
times the channels and a GELU in between, scaled channel by channel. Every norm is over the channels of one pixel.

| model | channels | blocks | stochastic depth | parameters |
|---|---|---|---|---|
| convnext_tiny | 96, 192, 384, 768 | 3, 3, 9, 3 | 0.1 | 28,589,128 |
| convnext_small | 96, 192, 384, 768 | 3, 3, 27, 3 | 0.4 | 50,223,688 |
| convnext_base | 128, 256, 512, 1024 | 3, 3, 27, 3 | 0.5 | 88,591,464 |
| convnext_large | 192, 384, 768, 1536 | 3, 3, 27, 3 | 0.5 | 197,767,336 |

Submodules bear torchvision's names.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.attention import Mlp
from vision_jax.models.layers import Conv, check_size, global_avg_pool, make_norm
from vision_jax.models.noise import StochasticDepth

Array = jax.Array
EPS = 1e-6  # of every norm
# The original cuts it at 2, a hundred standard deviations.
normal_init = nn.initializers.normal(0.02)


class ConvNeXt(nn.Module):
  """A ConvNeXt; `convnext_tiny` to `convnext_large` are its rows.

  Args:
    widths: channels of each stage.
    depths: blocks of each stage.
    num_classes: K; 0 gives features and no classifier.
    stochastic_depth: in [0, 1): how often training drops the last block's branch; it grows linearly from 0.
    layer_scale: what the scale of each channel of a branch begins at.
    dtype: the compute dtype.

  Returns:
    Float32 logits `[B, K]`, or features `[B, C]` (the mean of the last map, before the classifier's norm), from
    `[B, H, W, 3]` of any size from 32 on.

  Raises:
    ValueError: a smaller image, with the nearest size that is allowed.

  >>> model = convnext_tiny(num_classes=10)
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 32, 48, 3)))[0].shape
  (2, 10)
  """

  widths: tuple[int, ...]
  depths: tuple[int, ...]
  num_classes: int = 1000
  stochastic_depth: float = 0.1
  layer_scale: float = 1e-6
  dtype: Any = jnp.float32

  def setup(self):
    if self.num_classes:
      self.classifier_0 = make_norm('layer', self.widths[-1], dtype=self.dtype, eps=EPS)
      self.classifier_2 = nn.Dense(self.num_classes, kernel_init=normal_init, dtype=jnp.dtype(self.dtype))

  def __call__(self, x: Array, *, train: bool = False) -> Array:
    *_, x = self.features(x, train=train).values()
    x = global_avg_pool(x)
    return self.classifier_2(self.classifier_0(x)).astype(jnp.float32) if self.num_classes else x

  @nn.compact
  def features(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    """The map of every stage, `features_1` (stride 4), `features_3`, ..., in `dtype`."""
    check_size('ConvNeXt', x, 2 ** (len(self.widths) + 1))
    conv = functools.partial(Conv, dtype=self.dtype, kernel_init=normal_init)
    norm = functools.partial(make_norm, 'layer', dtype=self.dtype, eps=EPS)
    last, done, maps = sum(self.depths) - 1, 0, {}
    for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
      if stage == 0:
        x = norm(width, name='features_0_1')(conv(width, 4, 4, name='features_0_0')(x))
      else:
        x = norm(x.shape[-1], name=f'features_{2 * stage}_0')(x)
        x = conv(width, 2, 2, name=f'features_{2 * stage}_1')(x)
      name = f'features_{2 * stage + 1}'
      for i in range(depth):
        x = Block(self.stochastic_depth * done / max(1, last), self.layer_scale, self.dtype, name=f'{name}_{i}')(
            x, train=train)
        done += 1
      maps[name] = x
    return maps


class Block(nn.Module):
  """A ConvNeXt block: each channel alone in 7x7 pixels, then each pixel alone in all channels.

  Args:
    stochastic_depth: in [0, 1): how often training drops the branch of an example.
    layer_scale: what the scale of each channel of the branch begins at.
    dtype: the compute dtype.

  Returns:
    `[B, H, W, C]` in `dtype`, from `[B, H, W, C]`.

  >>> block = Block()
  >>> jax.eval_shape(block.init_with_output, jax.random.key(0), jnp.zeros((1, 5, 6, 8)))[0].shape
  (1, 5, 6, 8)
  """

  stochastic_depth: float = 0.0
  layer_scale: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    channels = x.shape[-1]
    y = Conv(channels, 7, padding=3, groups=channels, dtype=self.dtype, kernel_init=normal_init, name='block_0')(x)
    y = make_norm('layer', channels, dtype=self.dtype, eps=EPS, name='block_2')(y)
    y = Mlp(4 * channels, dtype=self.dtype, kernel_init=normal_init, parts=('3', '5'), name='block')(y)
    scale = self.param('layer_scale', nn.initializers.constant(self.layer_scale), (channels,), jnp.float32)
    y = y * scale.astype(self.dtype)
    return x + StochasticDepth(self.stochastic_depth, name='stochastic_depth')(y, train=train)


convnext_tiny = functools.partial(ConvNeXt, (96, 192, 384, 768), (3, 3, 9, 3), stochastic_depth=0.1)
convnext_small = functools.partial(ConvNeXt, (96, 192, 384, 768), (3, 3, 27, 3), stochastic_depth=0.4)
convnext_base = functools.partial(ConvNeXt, (128, 256, 512, 1024), (3, 3, 27, 3), stochastic_depth=0.5)
convnext_large = functools.partial(ConvNeXt, (192, 384, 768, 1536), (3, 3, 27, 3), stochastic_depth=0.5)
