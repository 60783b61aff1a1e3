"""YOLOv3: a head that predicts boxes on several maps from anchors, on Darknet-53 or any other backbone.

Joseph Redmon and Ali Farhadi, YOLOv3: An Incremental Improvement, arXiv 1804.02767, sections 2.3 and 2.4, and darknet's
`yolov3.cfg`. Maps of `yolov3` on an image of 416 x 416, A = 3 anchors on each level, K classes:

| part | what | output |
|---|---|---|
| body | `darknet53`: stage3, stage4 and stage5 | 52 x 52 x 256, 26 x 26 x 512, 13 x 13 x 1024 |
| head.level2 | 1x1 512, 3x3 1024, 1x1 512, 3x3 1024, 1x1 512 (the route) | 13 x 13 x 512 |
| | 3x3 1024, 1x1 prediction | 13 x 13 x A x (5 + K) |
| head.level1 | 1x1 256 of the route, upsampled, beside stage4; as level2, half as wide | 26 x 26 x A x (5 + K) |
| head.level0 | the same once more beside stage3 | 52 x 52 x A x (5 + K) |

61,949,149 parameters with K = 80 and 61,626,049 with K = 20, 52,608 statistics. Every convolution but the predictions
has BatchNorm and a leaky ReLU of 0.1. Levels are ordered from fine to coarse (darknet writes the coarse one first). The
head knows nothing of the body but its maps. Others of the authors:

- `yolov3_spp` (`yolov3-spp.cfg`): after three convolutions of level2 the maxima over 5, 9 and 13 pixels stand beside
  the map; 62,998,749 and 53,632.
- `yolov3_tiny` (`yolov3-tiny.cfg`): seven convolutions with max pools, two levels with a neck of one 1x1 and of none;
  8,852,366 and 6,368.

Differs from the paper: `yolov3_small` begins with a stride, and has fewer blocks and levels.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.classification.darknet import TINY_ROWS, Darknet, PlainDarknet, darknet53
from vision_jax.models.classification.maps import choose_maps
from vision_jax.models.layers import Conv, ConvNorm, leaky_relu, max_pool, upsample
from vision_jax.ops.anchors import YOLOV3_ANCHORS, YOLOV3_TINY_ANCHORS

Array = jax.Array
LevelAnchors = tuple[tuple[tuple[float, float], ...], ...]

# (w, h) in pixels: medians of six clusters by IoU of the boxes of digits scaled 1.8 to 4.5 times, turned by up to 25
# degrees; their mean best IoU is 0.88.
DIGIT_ANCHORS: LevelAnchors = (((11.0, 16.0), (14.0, 19.0), (17.0, 23.0)), ((19.0, 28.0), (23.0, 31.0), (27.0, 35.0)))


class YOLOv3(nn.Module):
  """A backbone and YOLOv3's head: raw predictions for each anchor of each cell.

  Args:
    body: a classifier of the zoo with `num_classes=0`; it has `features(x, train=) -> {name: map}`.
    levels: the names of the maps it takes, fine to coarse.
    num_classes: K.
    anchors: for each level the (w, h) of its anchors, in pixels of the canvas.
    strides: for each level the pixels of the canvas that one cell covers; each twice the one before.
    channels: of each level's 1x1 convolutions (paper: 128, 256, 512); its 3x3 convolutions have twice as many.
    necks: for each level the number of convolutions, 1x1 and 3x3 in turn, up to the route: an odd number, or 0. One
      number for all (paper: 5).
    spp: whether the third convolution of the coarsest neck is followed by spatial pyramid pooling.
    norm, dtype: as in `layers`.
    objectness_prior: the objectness that the untrained head predicts; None leaves the bias 0, as the paper does. A low
      prior keeps the first steps from being spent on telling thousands of empty cells so.

  Returns:
    From `[B, H, W, 3]`, for each level a float32 `[B, H / stride, W / stride, A, 5 + K]`; the last axis is (tx, ty, tw,
    th, objectness logit, K class logits), to be decoded with the level's stride and anchors.

  Raises:
    ValueError: sizes that the coarsest stride does not divide; levels, anchors, strides and channels of different
      lengths; strides that do not double, or are not those of the maps; a level that the body does not have.

  >>> model = yolov3_small(num_classes=10)
  >>> maps, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 96, 128, 3)))
  >>> [m.shape for m in maps], model.strides
  ([(2, 12, 16, 3, 15), (2, 6, 8, 3, 15)], (8, 16))
  """

  body: nn.Module
  levels: tuple[str, ...]
  num_classes: int
  anchors: LevelAnchors
  strides: tuple[int, ...]
  channels: tuple[int, ...]
  necks: int | tuple[int, ...] = 5
  spp: bool = False
  norm: str = 'batch'
  objectness_prior: float | None = None
  dtype: Any = jnp.float32

  def setup(self):
    self.head = YOLOv3Head(self.num_classes, tuple(len(level) for level in self.anchors), self.channels, self.necks,
                           self.spp, self.norm, self.objectness_prior, self.dtype)

  def __call__(self, x: Array, *, train: bool = False) -> tuple[Array, ...]:
    self._check(x)
    maps = self.body.features(x, train=train)
    maps = choose_maps({name: (None, value) for name, value in maps.items()}, self.levels)
    for (name, level), stride in zip(maps.items(), self.strides, strict=True):
      if (level.shape[1] * stride, level.shape[2] * stride) != x.shape[1:3]:
        raise ValueError(f'YOLOv3: {name} of {level.shape[1]} x {level.shape[2]} is not the map of stride {stride} of '
                         f'an image of {x.shape[1]} x {x.shape[2]}')
    return self.head(tuple(maps.values()), train=train)

  def _check(self, x: Array) -> None:
    if not len(self.levels) == len(self.anchors) == len(self.strides) == len(self.channels):
      raise ValueError(f'YOLOv3: {len(self.levels)} levels, {len(self.anchors)} levels of anchors, {len(self.strides)} '
                       f'strides and {len(self.channels)} channels; give one of each for every level')
    doubled = tuple(self.strides[0] * 2 ** i for i in range(len(self.strides)))
    if self.strides != doubled:
      raise ValueError(f'YOLOv3: strides {self.strides} must each be twice the one before')
    coarsest = self.strides[-1]
    if x.shape[1] % coarsest or x.shape[2] % coarsest:
      near = tuple(max(1, round(side / coarsest)) * coarsest for side in x.shape[1:3])
      raise ValueError(f'YOLOv3: height and width must be multiples of {coarsest}, not {x.shape[1]} x {x.shape[2]}; '
                       f'the nearest is {near[0]} x {near[1]}')


class YOLOv3Head(nn.Module):
  """YOLOv3's head: from the coarsest level to the finest, each with the route of the one before.

  Args:
    num_classes: K.
    num_anchors: A of each level, fine to coarse.
    channels, necks, spp, norm, objectness_prior, dtype: as in `YOLOv3`.

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
  necks: int | tuple[int, ...] = 5
  spp: bool = False
  norm: str = 'batch'
  objectness_prior: float | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, maps: tuple[Array, ...], *, train: bool = False) -> tuple[Array, ...]:
    outputs, route = [], None
    necks = (self.necks,) * len(maps) if isinstance(self.necks, int) else self.necks
    for level in reversed(range(len(maps))):
      c, x = self.channels[level], maps[level]
      if route is not None:
        route = self._block(c, 1, f'level{level}_route')(route, train=train)
        x = jnp.concatenate([upsample(route, 2), x], -1)
      for i in range(necks[level]):
        x = self._block((c, 2 * c)[i % 2], (1, 3)[i % 2], f'level{level}_conv{i}')(x, train=train)
        if self.spp and i == 2 and level == len(maps) - 1:
          x = self._block(c, 1, f'level{level}_spp')(_pyramid(x), train=train)
      route = x
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


def _pyramid(x: Array) -> Array:
  """The maxima over 13, 9 and 5 pixels beside the map itself: spatial pyramid pooling of `yolov3-spp.cfg`.

  Kaiming He et al., Spatial Pyramid Pooling, arXiv 1406.4729, has bins in place of windows of stride 1.
  """
  return jnp.concatenate([*(max_pool(x, size, stride=1, padding=size // 2) for size in (13, 9, 5)), x], -1)


def yolov3(*, num_classes: int = 80, anchors: LevelAnchors = YOLOV3_ANCHORS, spp: bool = False, norm: str = 'batch',
           objectness_prior: float | None = None, dtype: Any = jnp.float32) -> YOLOv3:
  """The paper's detector on Darknet-53, for canvases of 320 to 608 pixels.

  Args:
    num_classes, anchors, spp, norm, objectness_prior, dtype: as in `YOLOv3`.

  >>> yolov3().levels, yolov3().strides
  (('stage3', 'stage4', 'stage5'), (8, 16, 32))
  """
  body = darknet53(num_classes=0, norm=norm, dtype=dtype)
  return YOLOv3(body, ('stage3', 'stage4', 'stage5'), num_classes, _tuples(anchors), (8, 16, 32), (128, 256, 512), 5,
                spp, norm, objectness_prior, dtype)


yolov3_spp = functools.partial(yolov3, spp=True)


def yolov3_tiny(*, num_classes: int = 80, anchors: LevelAnchors = YOLOV3_TINY_ANCHORS, norm: str = 'batch',
                objectness_prior: float | None = None, dtype: Any = jnp.float32) -> YOLOv3:
  """The small detector of the authors, `yolov3-tiny.cfg`: thirteen convolutions, two levels.

  Args:
    num_classes, anchors, norm, objectness_prior, dtype: as in `YOLOv3`.

  >>> yolov3_tiny().strides
  (16, 32)
  """
  body = PlainDarknet(TINY_ROWS, num_classes=0, norm=norm, dtype=dtype)
  return YOLOv3(body, ('conv5', 'conv7'), num_classes, _tuples(anchors), (16, 32), (128, 256), (0, 1), False, norm,
                objectness_prior, dtype)


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

  Raises:
    ValueError: strides that are not among 4, 8, 16 and 32.

  >>> yolov3_small(num_classes=10, width=8).body.stages
  ((16, 1), (32, 2), (64, 2))
  """
  strides = tuple(strides)
  names = {4: 'stage1', 8: 'stage2', 16: 'stage3', 32: 'stage4'}
  if not strides or not set(strides) <= set(names):
    raise ValueError(f'yolov3_small: strides {strides} must be among 4, 8, 16 and 32')
  stages = tuple((width * stride // 2, min(2, stride // 4)) for stride in names if stride <= max(strides))
  body = Darknet(width, stages, num_classes=0, stem_stride=2, norm=norm, dtype=dtype)
  return YOLOv3(body, tuple(names[stride] for stride in strides), num_classes, _tuples(anchors), strides,
                tuple(width * stride // 4 for stride in strides), 3, False, norm, objectness_prior, dtype)


def _tuples(anchors: Any) -> LevelAnchors:
  """Anchors in tuples, as a module that is hashed needs them."""
  return tuple(tuple((float(w), float(h)) for w, h in level) for level in anchors)
