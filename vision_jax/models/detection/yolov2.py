"""YOLOv2: anchors on one coarse map, to which a finer map is folded.

Joseph Redmon and Ali Farhadi, YOLO9000: Better, Faster, Stronger, arXiv 1612.08242, section 2; the channels are those
of darknet's `yolov2.cfg`. Maps of `yolov2` on an image of 416 x 416, A = 5 anchors, K classes:

| part | what | output |
|---|---|---|
| body | Darknet-19 without its last layer: conv13 and conv18 | 26 x 26 x 512, 13 x 13 x 1024 |
| conv1, conv2 | 3x3, 1024 | 13 x 13 x 1024 |
| passthrough | conv13: 1x1, 64; each 2 x 2 pixels become one of 256 channels | 13 x 13 x 256 |
| conv3 | beside it: 3x3, 1024 | 13 x 13 x 1024 |
| prediction | 1x1 | 13 x 13 x A x (5 + K) |

Every convolution but the prediction has BatchNorm and a leaky ReLU of 0.1. 50,962,889 parameters with K = 80 and
50,655,389 with K = 20; 20,672 statistics. `yolov2_tiny` (`yolov2-tiny.cfg`) has neither passthrough nor the many 1x1
convolutions: 11,232,057 and 5,088.

Differs from the paper: darknet folds pixels in another order than its authors describe (`fold_pixels`), and `yolov2`
does as darknet, so that its weights can be used.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.classification.darknet import DARKNET19_ROWS, TINY_ROWS, PlainDarknet, Row
from vision_jax.models.classification.maps import choose_maps
from vision_jax.models.layers import Conv, ConvNorm, leaky_relu
from vision_jax.ops.anchors import YOLOV2_COCO_ANCHORS

Array = jax.Array
Anchors = tuple[tuple[float, float], ...]

# (w, h) in pixels, for digits of 11 to 35 pixels.
DIGIT_ANCHORS: Anchors = ((11.0, 16.0), (14.0, 20.0), (18.0, 25.0), (22.0, 30.0), (27.0, 36.0))
FOLDS = ('paper', 'darknet')


class YOLOv2(nn.Module):
  """A backbone and YOLOv2's head: raw predictions for each anchor of each cell of one map.

  Args:
    body: a classifier of the zoo with `num_classes=0`; it has `features(x, train=) -> {name: map}`.
    levels: the names of its maps, fine to coarse: that of the passthrough, twice the size of the next, and the one that
      predicts; without passthrough only the last.
    num_classes: K.
    anchors: (w, h) of the A anchors, in pixels of the canvas.
    stride: pixels of the canvas that one cell covers.
    convs: channels of the 3x3 convolutions before the prediction; the passthrough joins before the last.
    passthrough: channels of its 1x1 convolution; 0 for none.
    fold: 'paper' or 'darknet', see `fold_pixels`.
    norm, dtype: as in `layers`.

  Returns:
    From `[B, H, W, 3]` a float32 `[B, H / stride, W / stride, A, 5 + K]`; the last axis is (tx, ty, tw, th, objectness
    logit, K class logits).

  Raises:
    ValueError: sizes that the stride does not divide, levels that are not those of the passthrough, that the body does
      not have or that have another stride, or an unknown fold.

  >>> model = yolov2_small(num_classes=10)
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 96, 128, 3)))[0].shape
  (2, 6, 8, 5, 15)
  """

  body: nn.Module
  levels: tuple[str, ...]
  num_classes: int
  anchors: Anchors
  stride: int = 32
  convs: tuple[int, ...] = (1024, 1024, 1024)
  passthrough: int = 64
  fold: str = 'paper'
  norm: str = 'batch'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    self._check(x)
    size, maps = x.shape[1:3], self.body.features(x, train=train)
    maps = choose_maps({name: (None, value) for name, value in maps.items()}, self.levels)
    x = maps[self.levels[-1]]
    if (x.shape[1] * self.stride, x.shape[2] * self.stride) != size:
      raise ValueError(f'YOLOv2: {self.levels[-1]} of {x.shape[1]} x {x.shape[2]} is not the map of stride '
                       f'{self.stride} of an image of {size[0]} x {size[1]}')
    for i, features in enumerate(self.convs, start=1):
      if self.passthrough and i == len(self.convs):
        fine = self._block(self.passthrough, 1, 'passthrough')(maps[self.levels[0]], train=train)
        x = jnp.concatenate([fold_pixels(fine, order=self.fold), x], -1)
      x = self._block(features, 3, f'conv{i}')(x, train=train)
    width = 5 + self.num_classes
    x = Conv(len(self.anchors) * width, 1, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype,
             name='prediction')(x)
    return x.reshape(*x.shape[:3], len(self.anchors), width).astype(jnp.float32)

  def _block(self, features: int, size: int, name: str) -> ConvNorm:
    return ConvNorm(features, size, norm=self.norm, activation=leaky_relu, dtype=self.dtype, name=name)

  def _check(self, x: Array) -> None:
    if len(self.levels) != (2 if self.passthrough else 1):
      raise ValueError(f'YOLOv2: levels {self.levels} with a passthrough of {self.passthrough} channels; give the two '
                       'maps of a passthrough, or one map and passthrough=0')
    if x.shape[1] % self.stride or x.shape[2] % self.stride:
      near = tuple(max(1, round(side / self.stride)) * self.stride for side in x.shape[1:3])
      raise ValueError(f'YOLOv2: height and width must be multiples of {self.stride}, not {x.shape[1]} x {x.shape[2]}; '
                       f'the nearest is {near[0]} x {near[1]}')


def fold_pixels(x: Array, *, order: str = 'paper') -> Array:
  """A map of half the size and four times the channels, with nothing lost.

  Args:
    x: `[B, H, W, C]`, H and W even.
    order: 'paper': the four pixels of each 2 x 2 square one after another, by row and column, with all their channels.
      'darknet': what darknet's reorg layer does with the same number of values. It reads the memory of the map
      `[C, H, W]` as one of C / 4 channels and twice the size, folds that, and reads the result as
      `[4 C, H / 2, W / 2]`; so pixels that come together are no neighbours. Its published weights are trained with it.
      C must be a multiple of 4.

  Returns:
    `[B, H / 2, W / 2, 4 C]`.

  Raises:
    ValueError: an unknown order, or a size or number of channels that cannot be folded.

  Reference: section 2, "Fine-Grained Features", and `reorg_cpu` of darknet.

  >>> fold_pixels(jnp.arange(8.).reshape(1, 2, 4, 1)).tolist()
  [[[[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]]]
  """
  b, h, w, c = x.shape
  if order not in FOLDS:
    raise ValueError(f'fold_pixels: unknown order {order!r}; known: {", ".join(FOLDS)}')
  if h % 2 or w % 2 or (order == 'darknet' and c % 4):
    raise ValueError(f'fold_pixels: a map of {h} x {w} x {c}; height and width are even, and for darknet the channels '
                     'a multiple of 4')
  if order == 'paper':
    return x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, 4 * c)
  x = x.transpose(0, 3, 1, 2).reshape(b, c // 4, h, 2, w, 2).transpose(0, 3, 5, 1, 2, 4)
  return x.reshape(b, 4 * c, h // 2, w // 2).transpose(0, 2, 3, 1)


def yolov2(*, num_classes: int = 80, anchors: Anchors = YOLOV2_COCO_ANCHORS, fold: str = 'darknet',
           norm: str = 'batch', dtype: Any = jnp.float32) -> YOLOv2:
  """The paper's detector on Darknet-19, for canvases of 320 to 608 pixels.

  Args:
    num_classes, anchors, fold, norm, dtype: as in `YOLOv2`; for VOC the anchors are `ops.YOLOV2_VOC_ANCHORS`.

  >>> yolov2().stride
  32
  """
  body = PlainDarknet(DARKNET19_ROWS, num_classes=0, norm=norm, dtype=dtype)
  return YOLOv2(body, ('conv13', 'conv18'), num_classes, _pairs(anchors), fold=fold, norm=norm, dtype=dtype)


def yolov2_tiny(*, num_classes: int = 80, anchors: Anchors = YOLOV2_COCO_ANCHORS, norm: str = 'batch',
                dtype: Any = jnp.float32) -> YOLOv2:
  """The small detector of the authors, `yolov2-tiny.cfg`: nine convolutions.

  Args:
    num_classes, anchors, norm, dtype: as in `YOLOv2`.

  >>> yolov2_tiny().convs
  (512,)
  """
  body = PlainDarknet(TINY_ROWS, num_classes=0, norm=norm, dtype=dtype)
  return YOLOv2(body, ('conv7',), num_classes, _pairs(anchors), convs=(512,), passthrough=0, norm=norm, dtype=dtype)


def yolov2_small(*, num_classes: int = 80, anchors: Anchors = DIGIT_ANCHORS, width: int = 16, norm: str = 'batch',
                 dtype: Any = jnp.float32) -> YOLOv2:
  """YOLOv2's head with its passthrough on a small Darknet, for canvases of about 100 pixels on a CPU.

  Args:
    num_classes, anchors, norm, dtype: as in `YOLOv2`.
    width: channels of the first convolution; everything else scales with it.

  Returns:
    A `YOLOv2` of stride 16.

  >>> yolov2_small(width=8).convs
  (64, 64, 64)
  """
  rows = (Row(width, stride=2), Row(2 * width, pool=2), Row(4 * width, pool=2), Row(2 * width, 1), Row(4 * width),
          Row(8 * width, pool=2), Row(4 * width, 1), Row(8 * width), Row(4 * width, 1), Row(8 * width))
  body = PlainDarknet(rows, num_classes=0, norm=norm, dtype=dtype)
  return YOLOv2(body, ('conv5', 'conv10'), num_classes, _pairs(anchors), 16, (8 * width,) * 3, width, norm=norm,
                dtype=dtype)


def _pairs(anchors: Any) -> Anchors:
  """Anchors in tuples, as a module that is hashed needs them."""
  return tuple((float(w), float(h)) for w, h in anchors)
