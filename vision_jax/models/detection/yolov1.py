"""YOLOv1: one look at the whole image, and for each cell of a grid two boxes and one class.

Joseph Redmon, Santosh Divvala, Ross Girshick and Ali Farhadi, You Only Look Once, arXiv 1506.02640, Figure 3 and
section 2. Maps of `yolov1` on an image of 448 x 448, P boxes in a cell, K classes:

| part | what | output |
|---|---|---|
| body | the 20 convolutions of `extraction` (`models.classification.darknet`) | 14 x 14 x 1024 |
| conv1 | 3x3, 1024 | 14 x 14 x 1024 |
| conv2 | 3x3 / 2, 1024 | 7 x 7 x 1024 |
| conv3, conv4 | 3x3, 1024 | 7 x 7 x 1024 |
| fc1 | fully connected, leaky ReLU, dropout of 0.5 | 4096 |
| fc2 | fully connected | 7 x 7 x (5 P + K) |

271,703,550 parameters with P = 2 and K = 20, without normalisation, as in the paper. What its authors released later
differs, with BatchNorm throughout (`norm='batch'`):

- `yolov1_darknet` is `yolov1.cfg`: a locally connected 3x3 layer of 256 channels, whose kernel is another one in each
  cell, in place of fc1, and P = 3; 197,301,875 parameters and 26,368 statistics.
- `yolov1_tiny` is `yolov1-tiny.cfg`: eight convolutions with six pools and one fully connected layer; 27,095,374 and
  4,576.

Differs from the paper: outputs are sqrt(w) and sqrt(h), as in darknet; see `losses.yolov1_loss`.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from vision_jax.models.classification.darknet import (
    EXTRACTION_ROWS,
    TINY_V1_ROWS,
    PlainDarknet,
    Row,
)
from vision_jax.models.classification.maps import choose_maps
from vision_jax.models.layers import ConvNorm, FlatDense, he_fan_in, leaky_relu, linear_init
from vision_jax.models.noise import Dropout

Array = jax.Array


class YOLOv1(nn.Module):
  """A backbone, convolutions and fully connected layers that say for each cell of a grid what its object is.

  Args:
    body: a classifier of the zoo with `num_classes=0`; it has `features(x, train=) -> {name: map}`.
    levels: the name of the one map it takes.
    num_classes: K.
    canvas: (h, w) of the images; the fully connected layers know no other size.
    grid: (h, w), the number of cells.
    boxes_per_cell: P.
    convs: (channels, stride) of the 3x3 convolutions after the body.
    local: channels of a locally connected 3x3 layer after them; 0 for none.
    hidden: numbers of the hidden fully connected layers.
    dropout: of what the last layer gets, in training.
    cells_alike: begins the last layer as one 1x1 convolution, in which each cell sees its own pixel alone; it must be
      the only fully connected layer, and the map as large as the grid. Otherwise a network that has not seen a million
      objects does not learn what a digit is, as each cell learns it for itself.
    norm: of the convolutions of the head; see `layers.make_norm`.
    dtype: the compute dtype.

  Returns:
    From `[B, H, W, 3]` a float32 `[B, h, w, 5 P + K]`: for each of P boxes x and y (the place in the cell), sqrt(w) and
    sqrt(h) (as shares of the canvas) and its confidence, then K class probabilities; linear, without activation.

  Raises:
    ValueError: an image of another size than `canvas`, not one level, a level that the body does not have, or
      `cells_alike` without a map of the grid's size.

  >>> model = yolov1_small(num_classes=10)
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 96, 128, 3)))[0].shape
  (2, 6, 8, 20)
  """

  body: nn.Module
  levels: tuple[str, ...]
  num_classes: int = 20
  canvas: tuple[int, int] = (448, 448)
  grid: tuple[int, int] = (7, 7)
  boxes_per_cell: int = 2
  convs: tuple[tuple[int, int], ...] = ((1024, 1), (1024, 2), (1024, 1), (1024, 1))
  local: int = 0
  hidden: tuple[int, ...] = (4096,)
  dropout: float = 0.5
  cells_alike: bool = False
  norm: str = 'none'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    self._check(x)
    maps = self.body.features(x, train=train)
    x, = choose_maps({name: (None, value) for name, value in maps.items()}, self.levels).values()
    for i, (features, stride) in enumerate(self.convs, start=1):
      x = ConvNorm(features, 3, stride, norm=self.norm, activation=leaky_relu, dtype=self.dtype,
                   name=f'conv{i}')(x, train=train)
    if self.local:
      x = leaky_relu(LocalConv(self.local, dtype=self.dtype, name='local')(x))
    if self.cells_alike and (self.hidden or x.shape[1:3] != tuple(self.grid)):
      raise ValueError(f'YOLOv1: cells_alike with hidden {self.hidden} and a map of {x.shape[1]} x {x.shape[2]} for '
                       f'{self.grid[0]} x {self.grid[1]} cells; it needs no hidden layer, and one pixel for each cell')
    outputs = math.prod(self.grid) * (5 * self.boxes_per_cell + self.num_classes)
    for i, features in enumerate((*self.hidden, outputs), start=1):
      last = i > len(self.hidden)
      x = Dropout(self.dropout if last else 0.0)(x, train=train)
      layer = FlatDense if x.ndim == 4 else nn.Dense
      # The untrained network says nearly nothing, as squared errors of what it says would drown those of objects.
      init = linear_init if not last else self._init_alike if self.cells_alike else nn.initializers.normal(0.01)
      x = layer(features, dtype=jnp.dtype(self.dtype), kernel_init=init, name=f'fc{i}')(x)
      x = x if last else leaky_relu(x)
    return self._cells(x.astype(jnp.float32))

  def _cells(self, x: Array) -> Array:
    """The last layer's numbers by cell; it has, as darknet's, all classes first, then all confidences, then boxes."""
    cells, each = math.prod(self.grid), self.boxes_per_cell
    classes, said, boxes = jnp.split(x, [cells * self.num_classes, cells * (self.num_classes + each)], axis=-1)
    shape = (x.shape[0], *self.grid)
    slots = jnp.concatenate([boxes.reshape(*shape, each, 4), said.reshape(*shape, each, 1)], -1)
    return jnp.concatenate([slots.reshape(*shape, 5 * each), classes.reshape(*shape, self.num_classes)], -1)

  def _init_alike(self, key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """A kernel `[h, w, C, outputs]` that is the same for each cell and its pixel, and 0 elsewhere."""
    cells, channels, each = math.prod(self.grid), shape[2], self.boxes_per_cell
    kernel = linear_init(key, (channels, self.num_classes + 5 * each), dtype)
    parts = jnp.split(kernel, [self.num_classes, self.num_classes + each], axis=1)  # in the order of `_cells`
    parts = [jnp.einsum('ij,co->icjo', jnp.eye(cells, dtype=dtype), part).reshape(cells, channels, -1)
             for part in parts]
    return jnp.concatenate(parts, -1).reshape(shape)

  def _check(self, x: Array) -> None:
    if x.shape[1:3] != tuple(self.canvas):
      raise ValueError(f'YOLOv1: images of {x.shape[1]} x {x.shape[2]}; its fully connected layers were made for '
                       f'canvas {self.canvas[0]} x {self.canvas[1]}')
    if len(self.levels) != 1:
      raise ValueError(f'YOLOv1: levels {self.levels}; it takes one map')


class LocalConv(nn.Module):
  """A locally connected 3x3 layer: a convolution whose kernel and bias are others at each pixel.

  Args:
    features: channels that come out.
    dtype: the compute dtype.

  Returns:
    `[B, h, w, features]` in `dtype`, from `[B, h, w, C]`. Parameters: `local_kernel [h, w, C * 9, features]`, its third
    axis by channel, row and column, and `bias [h, w, features]`.

  >>> layer = LocalConv(8)
  >>> y, variables = jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.zeros((2, 5, 7, 4)))
  >>> y.shape, variables['params']['local_kernel'].shape
  ((2, 5, 7, 8), (5, 7, 36, 8))
  """

  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    h, w, channels = x.shape[1:]
    init = _each_pixel(he_fan_in)
    kernel = self.param('local_kernel', init, (h, w, channels * 9, self.features), jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (h, w, self.features), jnp.float32)
    patches = lax.conv_general_dilated_patches(x.astype(self.dtype), (3, 3), (1, 1), ((1, 1), (1, 1)),
                                               dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    return jnp.einsum('bhwi,hwio->bhwo', patches, kernel.astype(self.dtype)) + bias.astype(self.dtype)


def _each_pixel(init):
  """An initialiser of kernels `[h, w, I, O]` as if each were alone, `[I, O]`: its inputs are I, not h * w * I."""
  return lambda key, shape, dtype=jnp.float32: init(key, (shape[2], shape[0] * shape[1] * shape[3]), dtype).reshape(
      shape[2], *shape[:2], shape[3]).transpose(1, 2, 0, 3)


def yolov1(*, num_classes: int = 20, canvas: tuple[int, int] = (448, 448), grid: tuple[int, int] = (7, 7),
           boxes_per_cell: int = 2, dropout: float = 0.5, norm: str = 'none', dtype: Any = jnp.float32) -> YOLOv1:
  """The paper's network: 24 convolutions and two fully connected layers.

  Args:
    num_classes, canvas, grid, boxes_per_cell, dropout, norm, dtype: as in `YOLOv1`; the paper has no normalisation.

  >>> yolov1().hidden
  (4096,)
  """
  body = PlainDarknet(EXTRACTION_ROWS, num_classes=0, norm=norm, dtype=dtype)
  return YOLOv1(body, ('conv20',), num_classes, tuple(canvas), tuple(grid), boxes_per_cell, dropout=dropout, norm=norm,
                dtype=dtype)


def yolov1_darknet(*, num_classes: int = 20, canvas: tuple[int, int] = (448, 448), grid: tuple[int, int] = (7, 7),
                   boxes_per_cell: int = 3, dropout: float = 0.5, norm: str = 'batch',
                   dtype: Any = jnp.float32) -> YOLOv1:
  """What the authors released as `yolov1.cfg`: a locally connected layer, three boxes in a cell.

  Args:
    num_classes, canvas, grid, boxes_per_cell, dropout, norm, dtype: as in `YOLOv1`.

  >>> yolov1_darknet().local
  256
  """
  body = PlainDarknet(EXTRACTION_ROWS, num_classes=0, norm=norm, dtype=dtype)
  return YOLOv1(body, ('conv20',), num_classes, tuple(canvas), tuple(grid), boxes_per_cell, local=256, hidden=(),
                dropout=dropout, norm=norm, dtype=dtype)


def yolov1_tiny(*, num_classes: int = 20, canvas: tuple[int, int] = (448, 448), grid: tuple[int, int] = (7, 7),
                boxes_per_cell: int = 2, norm: str = 'batch', dtype: Any = jnp.float32) -> YOLOv1:
  """The small network of the authors, `yolov1-tiny.cfg`: eight convolutions and one fully connected layer.

  Args:
    num_classes, canvas, grid, boxes_per_cell, norm, dtype: as in `YOLOv1`.

  >>> len(yolov1_tiny().body.rows)
  7
  """
  body = PlainDarknet(TINY_V1_ROWS, num_classes=0, norm=norm, dtype=dtype)
  return YOLOv1(body, ('conv7',), num_classes, tuple(canvas), tuple(grid), boxes_per_cell, ((256, 1),), hidden=(),
                dropout=0.0, norm=norm, dtype=dtype)


def yolov1_small(*, num_classes: int = 20, canvas: tuple[int, int] = (96, 128), grid: tuple[int, int] = (6, 8),
                 boxes_per_cell: int = 2, width: int = 16, norm: str = 'batch', dtype: Any = jnp.float32) -> YOLOv1:
  """A network of ten convolutions and one fully connected layer, for canvases of about 100 pixels on a CPU.

  Args:
    num_classes, canvas, grid, boxes_per_cell, norm, dtype: as in `YOLOv1`.
    width: channels of the first convolution; everything else scales with it.

  >>> yolov1_small(width=8).convs
  ((64, 1), (16, 1))
  """
  rows = (Row(width, stride=2), Row(2 * width, pool=2), Row(4 * width, pool=2), Row(2 * width, 1), Row(4 * width),
          Row(8 * width, pool=2), Row(4 * width, 1), Row(8 * width))
  body = PlainDarknet(rows, num_classes=0, norm=norm, dtype=dtype)
  # Two convolutions more: the second has few channels, as the fully connected layer takes each pixel of each.
  return YOLOv1(body, ('conv8',), num_classes, tuple(canvas), tuple(grid), boxes_per_cell,
                ((8 * width, 1), (2 * width, 1)), hidden=(), dropout=0.0, cells_alike=True, norm=norm, dtype=dtype)
