"""U-Net: a contracting path, an expanding path, and the features of the one copied into the other.

Olaf Ronneberger, Philipp Fischer and Thomas Brox, U-Net: Convolutional Networks for Biomedical Image Segmentation,
arXiv 1505.04597, Figure 1. Sizes of `unet(padding='valid')`, the figure's own, 572 in and 388 out:

| part | what | valid | padded, 96 x 128 |
|---|---|---|---|
| down0 .. down3 | two 3x3 and ReLU (64, 128, 256, 512), then a 2x2 max pool | 568, 280, 136, 64 | 96 x 128 .. 12 x 16 |
| bottom | two 3x3 and ReLU, 1024 | 28 | 6 x 8 |
| up3 .. up0 | 2x2 up-convolution, beside it the map of down3 .. down0; two 3x3 | 52, 100, 196, 388 | .. 96 x 128 |
| head | 1x1 to K classes | 388 | 96 x 128 |

The up-convolution opens a block of the expanding path, so there are as many of them as pools, and none after the last
block. Weights are drawn from N(0, sqrt(2 / N)), N = inputs of one neuron.

Differs from the paper: zero padding, so that the output is as large as the input, unless `padding='valid'`; no dropout
at the end of the contracting path.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.layers import Conv, ConvNorm, ConvTranspose, max_pool, upsample

Array = jax.Array


class UNet(nn.Module):
  """U-Net, the paper's unless told otherwise.

  Args:
    num_classes: K, background included where the data has it as a class.
    width: channels of the first level; each level below has twice as many.
    depth: number of 2x2 pools.
    padding: 'same' pads with zeros, and the output is as large as the input; 'valid' is the paper's: the output is
      smaller, and the copied maps are cropped to its middle.
    mirror: only with 'valid': extends the input by reflection, so that the output covers all of it, whatever its size
      (the border of the paper's overlap-tile strategy).
    skips: False leaves the copied maps out, an ablation.
    norm: 'none' is the paper's, 'batch' today's usual; see `layers.make_norm`.
    stem_stride: 2 or 4 begins with a strided convolution, for speed, and enlarges the logits at the end (bilinear).
    dtype: the compute dtype.

  Returns:
    Logits, float32 `[B, H, W, K]`, from `[B, H, W, 3]`; with 'valid' and no mirror less high and wide, by
    `12 * 2**depth - 8` pixels, half of it at each side.

  Raises:
    ValueError: a size that the pools do not divide, with the nearest that they do; options that exclude each other.

  >>> model = UNet(num_classes=2, width=4, depth=2, padding='valid')
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 44, 52, 3)))[0].shape
  (1, 4, 12, 2)
  """

  num_classes: int = 2
  width: int = 64
  depth: int = 4
  padding: str = 'same'
  mirror: bool = False
  skips: bool = True
  norm: str = 'none'
  stem_stride: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    self._check_options()
    height, width = x.shape[1:3]
    x, copies = self._extend(x), []
    self._check_size(x)
    if self.stem_stride > 1:
      x = ConvNorm(self.width, self.stem_stride + 1, self.stem_stride, norm=self.norm, dtype=self.dtype,
                   name='stem')(x, train=train)
    for level in range(self.depth):
      x = self._two_convolutions(x, level, f'down{level}', train)
      copies.append(x)
      x = max_pool(x, 2)
    x = self._two_convolutions(x, self.depth, 'bottom', train)
    for level in reversed(range(self.depth)):
      x = ConvTranspose(self.width * 2 ** level, 2, 2, dtype=self.dtype, name=f'up{level}_upconv')(x)
      if self.skips:
        x = jnp.concatenate([_crop_middle(copies[level], x), x], -1)
      x = self._two_convolutions(x, level, f'up{level}', train)
    x = Conv(self.num_classes, 1, dtype=self.dtype, name='head')(x).astype(jnp.float32)
    x = upsample(x, self.stem_stride, method='bilinear')
    return x[:, :height, :width] if self.mirror else x

  def _two_convolutions(self, x: Array, level: int, name: str, train: bool) -> Array:
    for i in (1, 2):
      x = ConvNorm(self.width * 2 ** level, 3, padding=1 if self.padding == 'same' else 0, norm=self.norm,
                   dtype=self.dtype, name=f'{name}_{i}')(x, train=train)
    return x

  def _check_options(self) -> None:
    if self.padding not in ('same', 'valid'):
      raise ValueError(f'UNet: unknown padding {self.padding!r}; give same or valid')
    if self.mirror and self.padding != 'valid':
      raise ValueError("UNet: mirror=True extends the input of padding='valid'; with 'same' leave it out")
    if self.stem_stride not in (1, 2, 4) or (self.stem_stride > 1 and self.padding == 'valid'):
      raise ValueError(f"UNet: stem_stride is 1, or 2 or 4 with padding='same', not {self.stem_stride} with "
                       f'{self.padding!r}')

  def _check_size(self, x: Array) -> None:
    allowed = functools.partial(nearest_size, depth=self.depth, padding=self.padding, stem_stride=self.stem_stride)
    near = tuple(allowed(side) for side in x.shape[1:3])
    if near != x.shape[1:3]:
      raise ValueError(f'UNet: an input of {x.shape[1]} x {x.shape[2]} does not fit depth={self.depth}, '
                       f'padding={self.padding!r}, stem_stride={self.stem_stride}; the nearest that does is '
                       f'{near[0]} x {near[1]}')

  def _extend(self, x: Array) -> Array:
    """The input with a reflected border, so wide that the output covers the input, from its top left on."""
    if not self.mirror:
      return x
    lost = 12 * 2 ** self.depth - 8
    pads = []
    for side in x.shape[1:3]:
      whole = nearest_size(side + lost, depth=self.depth, padding='valid', at_least=True)
      pads.append((lost // 2, whole - side - lost // 2))
    return jnp.pad(x, ((0, 0), *pads, (0, 0)), mode='reflect')


def nearest_size(side: int, *, depth: int, padding: str = 'same', stem_stride: int = 1, at_least: bool = False) -> int:
  """The height or width nearest to `side` that a `UNet` accepts.

  Every map must be even before it is pooled. Padded, a side is a multiple of `2**depth * stem_stride`. With 'valid' it
  is `2**depth * m + 4 * (2**depth - 1)`, m being the side of the lowest map, so large that the output has a pixel.

  Args:
    side: pixels.
    depth, padding, stem_stride: of the `UNet`.
    at_least: nothing smaller than `side`.

  Returns:
    A side in pixels; the smaller of two that are equally near.

  >>> nearest_size(100, depth=4), nearest_size(570, depth=4, padding='valid'), nearest_size(1, depth=4, padding='valid')
  (96, 572, 188)
  """
  step = 2 ** depth * (stem_stride if padding == 'same' else 1)
  offset = 4 * (step - 1) if padding == 'valid' else 0
  # Valid: the lowest map leaves its two convolutions with m - 4, and the way up takes another 4 * (2**depth - 1).
  least = 4 + 4 * (step - 1) // step + 1 if padding == 'valid' else 1
  below = max(least, (side - offset) // step)
  above = max(least, -(-(side - offset) // step))
  sizes = [step * m + offset for m in ((above,) if at_least else (below, above))]
  return min(sizes, key=lambda size: abs(size - side))


def _crop_middle(x: Array, like: Array) -> Array:
  """The middle of a map, as high and wide as `like`."""
  (h, w), (top, left) = like.shape[1:3], ((a - b) // 2 for a, b in zip(x.shape[1:3], like.shape[1:3], strict=True))
  return x[:, top:top + h, left:left + w]


unet = UNet
# For scenes of about 100 pixels on a CPU: 0.5 M parameters, a training step of 16 scenes of 96 x 128 in 0.1 s.
unet_small = functools.partial(UNet, width=16, depth=3, norm='batch', stem_stride=2)
