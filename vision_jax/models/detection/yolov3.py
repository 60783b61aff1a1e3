"""YOLOv3: Darknet's residual backbone, and a head that predicts boxes on several maps from anchors.

Joseph Redmon and Ali Farhadi, YOLOv3: An Incremental Improvement, arXiv 1804.02767; Table 1 for the backbone,
section 2.3 and darknet's `yolov3.cfg` for the head. Maps of `yolov3_small` on an image of 96 x 128, K classes:

| part | what | output |
|---|---|---|
| backbone.stem | 3x3 / 2, 16 | 48 x 64 x 16 |
| backbone.stage1 | 3x3 / 2, 32; 1 residual block (1x1 half, 3x3) | 24 x 32 x 32 |
| backbone.stage2 | 3x3 / 2, 64; 2 blocks | 12 x 16 x 64 |
| backbone.stage3 | 3x3 / 2, 128; 2 blocks | 6 x 8 x 128 |
| head.level1 | 1x1 64, 3x3 128, 1x1 64 (the route) -> 3x3 128 -> 1x1 A * (5 + K) | 6 x 8 x A x (5 + K) |
| head.level0 | 1x1 32 of the route, upsampled, beside stage2's map; as level1, half as wide | 12 x 16 x A x (5 + K) |

Every convolution but the predictions has BatchNorm and a leaky ReLU of 0.1. Levels are ordered from fine to coarse
(darknet writes the coarse one first). The head knows nothing of the backbone but its maps.

Differs from the paper: `yolov3_small` begins with a stride, and has fewer blocks and levels.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.layers import Conv, ConvNorm, leaky_relu, upsample

Array = jax.Array
LevelAnchors = tuple[tuple[tuple[float, float], ...], ...]

# (w, h) in pixels: medians of six clusters by IoU of the boxes of digits scaled 1.8 to 4.5 times, turned by up to 25
# degrees; their mean best IoU is 0.88.
DIGIT_ANCHORS: LevelAnchors = (((11.0, 16.0), (14.0, 19.0), (17.0, 23.0)), ((19.0, 28.0), (23.0, 31.0), (27.0, 35.0)))


class YOLOv3(nn.Module):
  """A backbone and YOLOv3's head: raw predictions for each anchor of each cell.

  Args:
    backbone: a module `(x, train=) -> maps`, fine to coarse, whose property `strides` says how coarse each is.
    num_classes: K.
    anchors: for each level the (w, h) of its anchors, in pixels of the canvas.
    strides: the levels, fine to coarse; each must be one of the backbone's.
    channels: of each level's 1x1 convolutions (paper: 128, 256, 512); its 3x3 convolutions have twice as many.
    depth: pairs of 1x1 and 3x3 before the route (paper: 2).
    norm, dtype: as in `layers`.
    objectness_prior: the objectness that the untrained head predicts; None leaves the bias 0, as the paper does. A low
      prior keeps the first steps from being spent on telling thousands of empty cells so.

  Returns:
    From `[B, H, W, 3]`, for each level a float32 `[B, H / stride, W / stride, A, 5 + K]`; the last axis is (tx, ty, tw,
    th, objectness logit, K class logits), to be decoded with the level's stride and anchors.

  Raises:
    ValueError: sizes that the coarsest stride does not divide; anchors, strides and channels of different lengths;
      strides that do not double, or that the backbone does not have.

  >>> model = yolov3_small(num_classes=10)
  >>> maps, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 96, 128, 3)))
  >>> [m.shape for m in maps], model.strides
  ([(2, 12, 16, 3, 15), (2, 6, 8, 3, 15)], (8, 16))
  """

  backbone: nn.Module
  num_classes: int
  anchors: LevelAnchors
  strides: tuple[int, ...]
  channels: tuple[int, ...]
  depth: int = 2
  norm: str = 'batch'
  objectness_prior: float | None = None
  dtype: Any = jnp.float32

  def setup(self):
    self.head = YOLOv3Head(self.num_classes, tuple(len(level) for level in self.anchors), self.channels, self.depth,
                           self.norm, self.objectness_prior, self.dtype)

  def __call__(self, x: Array, *, train: bool = False) -> tuple[Array, ...]:
    self._check(x)
    maps = dict(zip(self.backbone.strides, self.backbone(x, train=train), strict=True))
    return self.head(tuple(maps[stride] for stride in self.strides), train=train)

  def _check(self, x: Array) -> None:
    if not len(self.anchors) == len(self.strides) == len(self.channels):
      raise ValueError(f'YOLOv3: {len(self.anchors)} levels of anchors, {len(self.strides)} strides and '
                       f'{len(self.channels)} channels; give one of each for every level')
    doubled = tuple(self.strides[0] * 2 ** i for i in range(len(self.strides)))
    if self.strides != doubled or not set(self.strides) <= set(self.backbone.strides):
      raise ValueError(f"YOLOv3: strides {self.strides} must each be twice the one before, and among the backbone's "
                       f'{self.backbone.strides}')
    coarsest = self.backbone.strides[-1]
    if x.shape[1] % coarsest or x.shape[2] % coarsest:
      near = tuple(max(1, round(side / coarsest)) * coarsest for side in x.shape[1:3])
      raise ValueError(f'YOLOv3: height and width must be multiples of {coarsest}, not {x.shape[1]} x {x.shape[2]}; '
                       f'the nearest is {near[0]} x {near[1]}')


class YOLOv3Head(nn.Module):
  """YOLOv3's head: from the coarsest level to the finest, each with the route of the one before.

  Args:
    num_classes: K.
    num_anchors: A of each level, fine to coarse.
    channels, depth, norm, objectness_prior, dtype: as in `YOLOv3`.

  Returns:
    From one map `[B, h, w, C]` a level, each half the size of the one before, what `YOLOv3` returns.

  >>> head = YOLOv3Head(num_classes=3, num_anchors=(2, 2), channels=(8, 16))
  >>> maps = (jnp.zeros((1, 4, 6, 5)), jnp.zeros((1, 2, 3, 9)))
  >>> [m.shape for m in jax.eval_shape(head.init_with_output, jax.random.key(0), maps)[0]]
  [(1, 4, 6, 2, 8), (1, 2, 3, 2, 8)]
  """

  num_classes: int
  num_anchors: tuple[int, ...]
  channels: tuple[int, ...]
  depth: int = 2
  norm: str = 'batch'
  objectness_prior: float | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, maps: tuple[Array, ...], *, train: bool = False) -> tuple[Array, ...]:
    outputs, route = [], None
    for level in reversed(range(len(maps))):
      c, x = self.channels[level], maps[level]
      if route is not None:
        route = self._block(c, 1, f'level{level}_route')(route, train=train)
        x = jnp.concatenate([upsample(route, 2), x], -1)
      for i in range(self.depth):
        x = self._block(c, 1, f'level{level}_conv{2 * i}')(x, train=train)
        x = self._block(2 * c, 3, f'level{level}_conv{2 * i + 1}')(x, train=train)
      route = self._block(c, 1, f'level{level}_conv{2 * self.depth}')(x, train=train)
      x = self._block(2 * c, 3, f'level{level}_last')(route, train=train)
      outputs.append(self._predict(x, level))
    return tuple(reversed(outputs))

  def _block(self, features: int, kernel_size: int, name: str) -> ConvNorm:
    return ConvNorm(features, kernel_size, norm=self.norm, activation=leaky_relu, dtype=self.dtype, name=name)

  def _predict(self, x: Array, level: int) -> Array:
    anchors, width = self.num_anchors[level], 5 + self.num_classes
    x = Conv(anchors * width, 1, kernel_init=nn.initializers.normal(0.01), bias_init=_prior_bias(
        self.objectness_prior, width), dtype=self.dtype, name=f'level{level}_prediction')(x)
    return x.reshape(*x.shape[:3], anchors, width).astype(jnp.float32)


def _prior_bias(prior: float | None, width: int):
  """An initialiser of the predictions' bias: 0, and at each anchor's objectness the logit of `prior`."""
  logit = 0.0 if prior is None else math.log(prior / (1 - prior))
  return lambda key, shape, dtype=jnp.float32: jnp.zeros((shape[0] // width, width), dtype).at[:, 4].set(
      logit).reshape(shape)


class Darknet(nn.Module):
  """Darknet's residual backbone: a stem, then stages that halve the map and add residual blocks.

  Darknet-53 is `Darknet(stem=32, stages=((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)))`.

  Args:
    stem: channels of the first convolution.
    stages: for each stage its channels and its number of residual blocks.
    stem_stride: 1 in the paper; 2 spares a small model its most expensive map.
    norm, dtype: as in `layers`.

  Returns:
    From `[B, H, W, 3]` the map of every stage, fine to coarse, in `dtype`; `strides` says how coarse they are.

  >>> backbone = Darknet(stem=4, stages=((8, 1), (16, 1)))
  >>> maps, variables = jax.eval_shape(backbone.init_with_output, jax.random.key(0), jnp.zeros((1, 8, 12, 3)))
  >>> [m.shape for m in maps], backbone.strides
  ([(1, 4, 6, 8), (1, 2, 3, 16)], (2, 4))
  """

  stem: int
  stages: tuple[tuple[int, int], ...]
  stem_stride: int = 1
  norm: str = 'batch'
  dtype: Any = jnp.float32

  @property
  def strides(self) -> tuple[int, ...]:
    """How many pixels of the canvas one step on each map is."""
    return tuple(self.stem_stride * 2 ** (i + 1) for i in range(len(self.stages)))

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> tuple[Array, ...]:
    x, maps = self._block(self.stem, 3, 'stem', self.stem_stride)(x, train=train), []
    for i, (features, blocks) in enumerate(self.stages, start=1):
      x = self._block(features, 3, f'stage{i}_down', 2)(x, train=train)
      for j in range(blocks):
        y = self._block(features // 2, 1, f'stage{i}_{j}_conv1')(x, train=train)
        x = x + self._block(features, 3, f'stage{i}_{j}_conv2')(y, train=train)
      maps.append(x)
    return tuple(maps)

  def _block(self, features: int, kernel_size: int, name: str, stride: int = 1) -> ConvNorm:
    return ConvNorm(features, kernel_size, stride, norm=self.norm, activation=leaky_relu, dtype=self.dtype, name=name)


def yolov3_small(*, num_classes: int = 80, anchors: LevelAnchors = DIGIT_ANCHORS, strides: tuple[int, ...] = (8, 16),
                 width: int = 16, norm: str = 'batch', objectness_prior: float | None = 0.01,
                 dtype: Any = jnp.float32) -> YOLOv3:
  """The head of YOLOv3 on a small Darknet, for canvases of about 100 pixels on a CPU.

  Args:
    num_classes: K.
    anchors, strides, norm, objectness_prior, dtype: as in `YOLOv3`; strides are neighbours among 4, 8, 16 and 32.
    width: channels of the stem; everything else scales with it.

  Returns:
    A `YOLOv3`; heights and widths are multiples of its last stride.

  >>> yolov3_small(num_classes=10, width=8).backbone.stages
  ((16, 1), (32, 2), (64, 2))
  """
  anchors = tuple(tuple(tuple(anchor) for anchor in level) for level in anchors)
  strides = tuple(strides)
  stages = tuple((width * stride // 2, min(2, stride // 4)) for stride in (4, 8, 16, 32) if stride <= max(strides))
  backbone = Darknet(width, stages, stem_stride=2, norm=norm, dtype=dtype)
  channels = tuple(width * stride // 4 for stride in strides)
  return YOLOv3(backbone, num_classes, anchors, strides, channels, 1, norm, objectness_prior, dtype)
