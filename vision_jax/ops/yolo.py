"""YOLO's slots: where the raw outputs of its heads sit, and how they become boxes.

Units: canvas pixels; anchors are (w, h), canvases and grids are (h, w), cells are (column, row).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vision_jax.conventions import Array
from vision_jax.ops.arrays import at_least_float32, check_broadcast, check_last_axis

# The largest log of box size over anchor size that `yolo_decode` follows: 22,026 times the anchor. Beyond it exp would
# reach inf, and a box far larger than any canvas says nothing more.
MAX_LOG_SCALE = 10.0
# Where `yolov1_boxes` cuts its unbounded inputs: 1,000 cells away, or a million times the canvas, is off every canvas,
# and areas still fit float32.
_MAX_V1 = 1000.0


class YoloSlots(NamedTuple):
  """The place of every box that a YOLO head predicts, flattened by level, row, column, anchor.

  Args:
    cells: float32 [S, 2], (column, row) of the slot's cell in its level's grid.
    anchors: float32 [S, 2], (w, h) of the slot's anchor in canvas pixels.
    strides: float32 [S, 1], the canvas pixels that one cell covers.

  >>> YoloSlots(jnp.zeros((3, 2)), jnp.ones((3, 2)), jnp.full((3, 1), 8.0)).cells.shape
  (3, 2)
  """

  cells: Array
  anchors: Array
  strides: Array


def yolo_slots(*, anchors: tuple, strides: tuple[int, ...], canvas: tuple[int, int]) -> YoloSlots:
  """The slots of a YOLO head in the order of its outputs, levels one after another.

  Args:
    anchors: for each level a sequence of (w, h), canvas pixels.
    strides: for each level the canvas pixels that one cell covers.
    canvas: (h, w) of the network's input, multiples of every stride.

  Returns:
    `YoloSlots` of S = sum over the levels of h * w * A slots; slot `((row * w) + column) * A + anchor` of a level,
    after all the slots of the levels before it.

  Raises:
    ValueError: anchors and strides differ in number, or a stride does not divide the canvas.

  >>> slots = yolo_slots(anchors=(((10, 14), (20, 20)), ((60, 50),)), strides=(8, 16), canvas=(16, 32))
  >>> slots.cells.shape, slots.anchors[-1].tolist(), slots.cells[3].tolist()
  ((18, 2), [60.0, 50.0], [1.0, 0.0])
  """
  levels = []
  grids = level_grids('yolo_slots', anchors, strides, canvas)
  for (h, w, count), priors, stride in zip(grids, anchors, strides, strict=True):
    shape = (h, w, count, 2)
    levels.append(YoloSlots(
        jnp.broadcast_to(grid_cells(h, w), shape).reshape(-1, 2),
        jnp.broadcast_to(jnp.asarray(priors, jnp.float32), shape).reshape(-1, 2),
        jnp.full((h * w * count, 1), stride, jnp.float32)))
  return YoloSlots(*(jnp.concatenate(parts) for parts in zip(*levels, strict=True)))


def yolo_decode(raw: Array, anchors: Array, *, stride: float) -> Array:
  """The boxes that one level of a YOLO head predicts.

  Centre = (sigmoid(t_xy) + cell) * stride, size = anchor * exp(t_wh).

  Args:
    raw: [..., h, w, A, >= 4], t_x, t_y, t_w, t_h and whatever follows them, before any activation.
    anchors: [A, 2], (w, h) in canvas pixels.
    stride: the canvas pixels that one cell covers.

  Returns:
    float32 [..., h, w, A, 4] xyxy in canvas pixels, not clipped to the canvas. t_wh above `MAX_LOG_SCALE` = 10 counts
    as 10, without gradient.

  Raises:
    ValueError: raw has too few axes or numbers, or not one entry for each anchor.

  Reference: Redmon and Farhadi, YOLOv3, arXiv 1804.02767, section 2.1.

  >>> yolo_decode(jnp.zeros((1, 2, 1, 4)), [(6, 4)], stride=8)[0, 1, 0].tolist()
  [9.0, 2.0, 15.0, 6.0]
  """
  anchors, raw = at_least_float32(anchors), at_least_float32(raw)
  if raw.ndim < 4 or raw.shape[-1] < 4 or raw.shape[-2:-1] + (2,) != anchors.shape:
    raise ValueError(f'yolo_decode: raw {list(raw.shape)} with anchors {list(anchors.shape)}; '
                     'give raw [..., h, w, A, 4 or more] and anchors [A, 2]')
  centre = (jax.nn.sigmoid(raw[..., :2]) + grid_cells(*raw.shape[-4:-2])) * stride
  size = anchors * jnp.exp(jnp.minimum(raw[..., 2:4], MAX_LOG_SCALE))
  return jnp.concatenate([centre - size / 2, centre + size / 2], axis=-1)


def yolo_encode(boxes: Array, cells: Array, anchors: Array, *, stride: Array) -> Array:
  """What a YOLO slot should predict for a box: the inverse of `yolo_decode`, up to the sigmoid.

  Args:
    boxes: [..., 4] xyxy, canvas pixels.
    cells: [..., 2], (column, row) of the cell that predicts each box.
    anchors: [..., 2], (w, h) of the anchor that predicts each box, canvas pixels.
    stride: the canvas pixels that one cell covers: a number, or an array that broadcasts against [..., 2].

  Returns:
    float32 [..., 4]: sigmoid(t_x) and sigmoid(t_y), the place of the centre in its cell, 0..1, cut to it where the
    centre lies outside; then t_w and t_h, log of box over anchor, cut to +-`MAX_LOG_SCALE`; 0 where that side of the
    box or of the anchor is not positive.

  Raises:
    ValueError: a last axis is not 4, 2 and 2 long, or the leading axes do not broadcast.

  >>> yolo_encode([9, 2, 15, 6], [1, 0], [6, 4], stride=8).tolist()
  [0.5, 0.5, 0.0, 0.0]
  """
  check_last_axis('yolo_encode', 'boxes', boxes, 4)
  check_last_axis('yolo_encode', 'cells', cells, 2)
  check_last_axis('yolo_encode', 'anchors', anchors, 2)
  check_broadcast('yolo_encode', last=1, boxes=boxes, cells=cells, anchors=anchors)
  boxes, cells, anchors = at_least_float32(boxes), at_least_float32(cells), at_least_float32(anchors)
  offset = (boxes[..., :2] + boxes[..., 2:]) / 2 / stride - cells
  size = boxes[..., 2:] - boxes[..., :2]
  sized = (size > 0) & (anchors > 0)
  ratio = jnp.where(sized, size, 1) / jnp.where(sized, anchors, 1)
  scale = jnp.clip(jnp.log(ratio), -MAX_LOG_SCALE, MAX_LOG_SCALE)
  return jnp.concatenate(jnp.broadcast_arrays(jnp.clip(offset, 0, 1), scale), axis=-1)


def yolov1_boxes(raw: Array, *, canvas: tuple[int, int]) -> Array:
  """The boxes that a YOLOv1 head predicts.

  Centre = (xy + cell) * canvas / grid, size = root^2 * canvas: linear outputs, no activation, no anchors.

  Args:
    raw: [..., h, w, P, >= 4], for each of the P boxes of a cell x, y (the centre's place in the cell, 0..1), the square
      roots of w and h (as shares of the canvas), and whatever follows them.
    canvas: (h, w) of the network's input, pixels.

  Returns:
    float32 [..., h, w, P, 4] xyxy in canvas pixels, not clipped to the canvas. Numbers beyond +-1,000 count as +-1,000,
    without gradient; a negative root counts as its square, like the positive one.

  Raises:
    ValueError: raw has too few axes or numbers.

  Reference: Redmon et al., You Only Look Once, arXiv 1506.02640, section 2; the roots are darknet's (`sqrt=1`).

  >>> yolov1_boxes(jnp.array([[[[0.5, 0.5, 0.5, 1.0]], [[0, 0, 0, 0]]]]), canvas=(8, 16))[0, :, 0].tolist()
  [[2.0, 0.0, 6.0, 8.0], [8.0, 0.0, 8.0, 0.0]]
  """
  raw = at_least_float32(raw)
  if raw.ndim < 4 or raw.shape[-1] < 4:
    raise ValueError(f'yolov1_boxes: raw {list(raw.shape)}; give [..., h, w, P, 4 or more]')
  h, w = raw.shape[-4:-2]
  raw = jnp.clip(raw[..., :4], -_MAX_V1, _MAX_V1)
  size = jnp.asarray(canvas[::-1], raw.dtype)
  centre = (raw[..., :2] + grid_cells(h, w)) * (size / jnp.asarray([w, h], raw.dtype))
  half = raw[..., 2:] ** 2 * size / 2
  return jnp.concatenate([centre - half, centre + half], axis=-1)


def flatten_levels(levels: tuple[Array, ...]) -> Array:
  """The levels of a YOLO head in one row of slots: [B, h, w, A, D] each, [B, S, D] together.

  Args:
    levels: for each level an array [B, h, w, A, D]; B and D are the same in all.

  Returns:
    [B, S, D] with S = sum of h * w * A, ordered as in `yolo_slots`.

  >>> flatten_levels((jnp.zeros((2, 4, 4, 3, 5)), jnp.zeros((2, 2, 2, 3, 5)))).shape
  (2, 60, 5)
  """
  # Not by a -1, which an axis of no images leaves open.
  return jnp.concatenate([level.reshape(level.shape[0], math.prod(level.shape[1:-1]), level.shape[-1])
                          for level in levels], axis=1)


def check_levels(where: str, anchors: tuple, strides: tuple[int, ...]) -> None:
  """Refuses anchors and strides that differ in their number of levels."""
  if len(anchors) != len(strides):
    raise ValueError(f'{where}: anchors of {len(anchors)} levels and {len(strides)} strides; give as many of each')


def level_grids(where: str, anchors: tuple, strides: tuple[int, ...],
                canvas: tuple[int, int]) -> tuple[tuple[int, int, int], ...]:
  """(h, w, A) of each level; a ValueError where a stride does not divide the canvas."""
  check_levels(where, anchors, strides)
  for stride in strides:
    if canvas[0] % stride or canvas[1] % stride:
      raise ValueError(f'{where}: canvas {canvas[0]} x {canvas[1]} is no multiple of stride {stride}; pad the canvas')
  return tuple((canvas[0] // stride, canvas[1] // stride, len(priors))
               for priors, stride in zip(anchors, strides, strict=True))


def check_outputs(where: str, outputs: tuple[Array, ...], anchors: tuple, strides: tuple[int, ...]) -> tuple[int, int]:
  """The canvas (h, w) that all levels of a YOLO head agree on; a ValueError where they do not."""
  check_levels(where, anchors, strides)
  if len(outputs) != len(strides):
    raise ValueError(f'{where}: outputs of {len(outputs)} levels and {len(strides)} strides; give as many of each')
  canvases = set()
  for output, priors, stride in zip(outputs, anchors, strides, strict=True):
    if output.ndim != 5 or output.shape[3] != len(priors) or output.shape[4] < 6:
      raise ValueError(f'{where}: output {list(output.shape)} of the level with stride {stride}; '
                       f'it must be [B, h, w, {len(priors)}, 5 + K]')
    canvases.add((output.shape[1] * stride, output.shape[2] * stride))
  if len(canvases) != 1:
    raise ValueError(f'{where}: outputs and strides make canvases {sorted(canvases)}; let all levels make the same')
  return canvases.pop()


def grid_cells(h: int, w: int) -> Array:
  """(column, row) of each cell, [h, w, 1, 2]."""
  rows, columns = jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing='ij')
  return jnp.stack([columns, rows], axis=-1)[:, :, None].astype(jnp.float32)
