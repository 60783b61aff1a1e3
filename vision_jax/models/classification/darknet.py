"""Darknet: plain stacks of 3x3 and 1x1 convolutions, and Darknet-53 with residual blocks; the backbones of YOLO.

Joseph Redmon and Ali Farhadi, YOLO9000: Better, Faster, Stronger, arXiv 1612.08242, Table 6 (Darknet-19), and YOLOv3:
An Incremental Improvement, arXiv 1804.02767, Table 1 (Darknet-53); Joseph Redmon et al., You Only Look Once, arXiv
1506.02640, section 2.2 (the twenty layers that it trains on ImageNet; darknet calls them `extraction`). A 3x3
convolution doubles the channels after each 2x2 max pool / 2, a 1x1 between two of them halves them. Darknet-19 on an
image of 256 x 256:

| part | what | output |
|---|---|---|
| conv1 | 3x3, 32 | 256 x 256 x 32 |
| conv2 | pool, 3x3 64 | 128 x 128 x 64 |
| conv3 .. conv5 | pool, 3x3 128, 1x1 64, 3x3 128 | 64 x 64 x 128 |
| conv6 .. conv8 | pool, 3x3 256, 1x1 128, 3x3 256 | 32 x 32 x 256 |
| conv9 .. conv13 | pool, 3x3 512, then twice 1x1 256, 3x3 512 | 16 x 16 x 512 |
| conv14 .. conv18 | pool, 3x3 1024, then twice 1x1 512, 3x3 1024 | 8 x 8 x 1024 |
| fc | mean over the pixels, fully connected | K |

Darknet-53: `stem` 3x3 32, then five stages that begin with a 3x3 / 2 (`stage1_down`) of 64, 128, 256, 512 and 1024
channels and have 1, 2, 8, 8 and 4 residual blocks (`stage1_0`: 1x1 of half the channels, 3x3), then `fc`.

Parameters at K = 1000: `darknet19` 20,842,376, `darknet53` 41,609,928, `extraction` 23,437,224. Every convolution has
BatchNorm and a leaky ReLU of 0.1. Convolutions are numbered, and computed, in the order of darknet's cfg files, which
is that of the numbers in its `.weights`.

Differs from the papers: the last layer comes after the mean over the pixels, as in `darknet53.cfg`, and not before it,
which for a linear layer is the same; `extraction` has no leaky ReLU after it.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.classification.maps import choose_maps
from vision_jax.models.layers import ConvNorm, leaky_relu, linear_init, max_pool

Array = jax.Array


class Row(NamedTuple):
  """One convolution of a `PlainDarknet`.

  Args:
    features: channels that come out.
    size: pixels of its kernel.
    stride: of the convolution.
    pool: the stride of a 2x2 max pool before it, 2 or 1 (which keeps the size); 0 for none.

  >>> Row(64, pool=2)
  Row(features=64, size=3, stride=1, pool=2)
  """

  features: int
  size: int = 3
  stride: int = 1
  pool: int = 0


class PlainDarknet(nn.Module):
  """Convolutions and max pools, one after the other; `darknet19` and `extraction` are its rows.

  Args:
    rows: the convolutions, `conv1` first.
    num_classes: K; 0 gives features and no `fc`.
    norm: see `layers.make_norm`; with 'none' the convolutions have a bias.
    dtype: the compute dtype.

  Returns:
    Float32 logits `[B, K]`, or features `[B, C]`, from `[B, H, W, 3]` of any size.

  >>> model = PlainDarknet((Row(4), Row(8, pool=2), Row(4, 1)), num_classes=10)
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 8, 12, 3)))[0].shape
  (2, 10)
  """

  rows: tuple[Row, ...]
  num_classes: int = 1000
  norm: str = 'batch'
  dtype: Any = jnp.float32

  def setup(self):
    if self.num_classes:
      self.fc = nn.Dense(self.num_classes, kernel_init=linear_init, dtype=jnp.dtype(self.dtype))

  def __call__(self, x: Array, *, train: bool = False) -> Array:
    *_, x = self.features(x, train=train).values()
    x = x.astype(jnp.float32).mean((1, 2))
    return self.fc(x).astype(jnp.float32) if self.num_classes else x

  @nn.compact
  def features(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    """The last map of every stride by the name of its convolution, fine to coarse, in `dtype`."""
    maps, stride = {}, 1
    for i, row in enumerate(map(Row._make, self.rows), start=1):
      if row.pool:
        x = max_pool(x, 2, ceil_mode=True) if row.pool == 2 else _pool_in_place(x)
      x = _block(self, row.features, row.size, f'conv{i}', row.stride)(x, train=train)
      stride *= row.stride * max(1, row.pool)
      maps[f'conv{i}'] = stride, x
    return choose_maps(maps)


class Darknet(nn.Module):
  """Darknet with residual blocks: a stem, then stages that halve the map; `darknet53` is its row.

  Args:
    stem: channels of the first convolution.
    stages: for each stage its channels and its number of residual blocks.
    num_classes: K; 0 gives features and no `fc`.
    stem_stride: 1 in the paper; 2 spares a small model its most expensive map.
    norm, dtype: as in `PlainDarknet`.

  Returns:
    Float32 logits `[B, K]`, or features `[B, C]`, from `[B, H, W, 3]` of any size.

  >>> model = Darknet(4, ((8, 1), (16, 1)), num_classes=0)
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 8, 12, 3)))[0].shape
  (1, 16)
  """

  stem: int
  stages: tuple[tuple[int, int], ...]
  num_classes: int = 1000
  stem_stride: int = 1
  norm: str = 'batch'
  dtype: Any = jnp.float32

  def setup(self):
    if self.num_classes:
      self.fc = nn.Dense(self.num_classes, kernel_init=linear_init, dtype=jnp.dtype(self.dtype))

  def __call__(self, x: Array, *, train: bool = False) -> Array:
    *_, x = self.features(x, train=train).values()
    x = x.astype(jnp.float32).mean((1, 2))
    return self.fc(x).astype(jnp.float32) if self.num_classes else x

  @nn.compact
  def features(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    """The map of every stage by name in `dtype`: `stage1` first, each half the size of the one before."""
    x, maps = _block(self, self.stem, 3, 'stem', self.stem_stride)(x, train=train), {}
    for i, (features, blocks) in enumerate(self.stages, start=1):
      x = _block(self, features, 3, f'stage{i}_down', 2)(x, train=train)
      for j in range(blocks):
        y = _block(self, features // 2, 1, f'stage{i}_{j}_conv1')(x, train=train)
        x = x + _block(self, features, 3, f'stage{i}_{j}_conv2')(y, train=train)
      maps[f'stage{i}'] = x
    return maps


def _block(model: nn.Module, features: int, size: int, name: str, stride: int = 1) -> ConvNorm:
  return ConvNorm(features, size, stride, norm=model.norm, activation=leaky_relu, dtype=model.dtype, name=name)


def _pool_in_place(x: Array) -> Array:
  """darknet's 2x2 max pool of stride 1, which pads at the bottom and right."""
  return max_pool(x, 2, stride=1, padding=((0, 1), (0, 1)))


def _alternating(widths: tuple[int, ...]) -> tuple[Row, ...]:
  """A max pool, then 3x3 and 1x1 convolutions in turn."""
  return tuple(Row(width, (3, 1)[i % 2], pool=0 if i else 2) for i, width in enumerate(widths))


DARKNET19_ROWS = (Row(32), Row(64, pool=2), *_alternating((128, 64, 128)), *_alternating((256, 128, 256)),
                  *_alternating((512, 256, 512, 256, 512)), *_alternating((1024, 512, 1024, 512, 1024)))
EXTRACTION_ROWS = (Row(64, 7, 2), Row(192, pool=2), Row(128, 1, pool=2), Row(256), Row(256, 1), Row(512),
                   Row(256, 1, pool=2), Row(512), *(Row(256, 1), Row(512)) * 3, Row(512, 1), Row(1024),
                   Row(512, 1, pool=2), Row(1024), Row(512, 1), Row(1024))
# The backbone of yolov2-tiny.cfg and yolov3-tiny.cfg, whose last pool keeps the size, and that of yolov1-tiny.cfg.
TINY_ROWS = (Row(16), *(Row(width, pool=2) for width in (32, 64, 128, 256, 512)), Row(1024, pool=1))
TINY_V1_ROWS = (*TINY_ROWS[:-1], Row(1024, pool=2))

darknet19 = functools.partial(PlainDarknet, DARKNET19_ROWS)
extraction = functools.partial(PlainDarknet, EXTRACTION_ROWS)
darknet53 = functools.partial(Darknet, 32, ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)))


def darknet_small(*, num_classes: int = 1000, width: int = 16, norm: str = 'batch',
                  dtype: Any = jnp.float32) -> Darknet:
  """The body of small detectors as a classifier: maps of stride 4, 8 and 16, for images of about 100 pixels on a CPU.

  Args:
    num_classes: K; 0 gives features and no `fc`.
    width: channels of the first convolution.
    norm, dtype: as in `PlainDarknet`.

  >>> darknet_small(num_classes=10).stages
  ((32, 1), (64, 2), (128, 2))
  """
  stages = ((2 * width, 1), (4 * width, 2), (8 * width, 2))
  return Darknet(width, stages, num_classes, stem_stride=2, norm=norm, dtype=dtype)
