"""Polygons on the host: COCO's way to fill them, equal to pycocotools' to the pixel.

COCO does not ask whether the centre of a pixel lies inside. It moves the corners to a grid five times as fine, walks
along the boundary from one fine pixel to the next, and looks where the walk passes from the middle of a pixel column to
the right of it or back: the column's pixels below that place change between outside and inside. So what overlaps itself
twice is outside again, and a polygon may have any direction and reach beyond the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vision_jax.host import rle

_FINE = 5  # fine pixels in the width of one
_MIDDLE = 2  # the fine column in the middle of a pixel column; a crossing is a step between it and the next


def rasterise(polygons: Sequence[Sequence[float]], size: Sequence[int]) -> np.ndarray:
  """The mask that polygons cover together.

  Args:
    polygons: one or more of `[x, y, x, y, ...]` with three points or more, or `[P, 2]` arrays, in continuous pixels.
    size: (h, w) of the image.

  Returns:
    `[H, W]` bool, stored column by column.

  Raises:
    ValueError: no polygon, one with fewer than three points or with half a point, or a coordinate that is not finite.

  >>> rasterise([[1, 0, 3, 0, 3, 2, 1, 2]], (3, 4)).astype(int)
  array([[0, 1, 1, 0],
         [0, 1, 1, 0],
         [0, 0, 0, 0]])
  """
  return rle.decode(to_rle(polygons, size))


def to_rle(polygons: Sequence[Sequence[float]], size: Sequence[int]) -> dict[str, Any]:
  """The run lengths of what polygons cover together: pycocotools' `merge(frPyObjects(polygons, h, w))`.

  Args:
    polygons: one or more of `[x, y, x, y, ...]` with three points or more, or `[P, 2]` arrays, in continuous pixels.
    size: (h, w) of the image.

  Returns:
    `{'size': [H, W], 'counts': str}`.

  Raises:
    ValueError: no polygon, one with fewer than three points or with half a point, or a coordinate that is not finite.

  >>> to_rle([[1, 0, 3, 0, 3, 2, 1, 2]], (3, 4))
  {'size': [3, 4], 'counts': '32103'}
  """
  size = rle.check_size('polygons', size)
  if isinstance(polygons, str | bytes) or not isinstance(polygons, Sequence | np.ndarray) or not len(polygons):
    given = 'an empty list' if isinstance(polygons, list) else type(polygons).__name__
    raise ValueError(f'polygons: got {given}; give a list of one or more [x, y, x, y, ...]')
  points = [_points(i, polygon) for i, polygon in enumerate(polygons)]
  return rle.merge([{'size': size, 'counts': _run_lengths(each, size)} for each in points])


def box_to_rle(box: Sequence[float], size: Sequence[int]) -> dict[str, Any]:
  """The run lengths of a box: pycocotools' `frPyObjects` of a box.

  Args:
    box: `[4]` xyxy in continuous pixels.
    size: (h, w) of the image.

  Returns:
    `{'size': [H, W], 'counts': str}`.

  Raises:
    ValueError: the box is not four finite numbers.

  >>> rle.decode(box_to_rle([1, 0, 3, 2], (3, 4))).astype(int)
  array([[0, 1, 1, 0],
         [0, 1, 1, 0],
         [0, 0, 0, 0]])
  """
  box = np.asarray(box)
  if box.shape != (4,):
    raise ValueError(f'box_to_rle: box has shape {box.shape}; give x1, y1, x2, y2')
  return to_rle([box[[0, 1, 0, 3, 2, 3, 2, 1]]], size)


def _points(index: int, polygon: Sequence[float]) -> np.ndarray:
  """The corners of a polygon, float64 [P, 2]."""
  try:
    points = np.asarray(polygon, np.float64)
  except (TypeError, ValueError):
    raise ValueError(f'polygons: polygon {index} is not made of numbers; give [x, y, x, y, ...]') from None
  if points.ndim != 1 and points.shape[1:] != (2,):
    raise ValueError(f'polygons: polygon {index} has shape {points.shape}; give a list of [x, y, x, y, ...]')
  if points.size % 2 or points.size < 6:
    raise ValueError(f'polygons: polygon {index} has {points.size} numbers; give x and y of three points or more')
  if not np.isfinite(points).all():
    place = int(np.argmin(np.isfinite(points.ravel())))
    raise ValueError(f'polygons: number {place} of polygon {index} is {points.ravel()[place]}; give finite coordinates')
  return points.reshape(-1, 2)


def _run_lengths(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """The run lengths of one polygon, int64 [R]; some are of no pixels, where crossings fall together."""
  height, width = size
  columns, rows = _crossings(points, width)
  # A crossing below the image is put at the foot of its column, which is the head of the next one: a run ends there.
  places = np.sort(columns * height + np.clip(rows, 0, height))
  return np.diff(np.append(places, height * width), prepend=0)


def _crossings(points: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
  """The pixel columns of the image that a polygon's boundary crosses, and the first row below each crossing.

  Only the fine pixels on both sides of a crossing are looked at, so a long edge costs no more than the columns it
  crosses. The arithmetic is COCO's, operation by operation, because one bit can decide about a pixel.
  """
  start = np.trunc(_FINE * points + 0.5)  # towards zero, as C casts
  end = np.roll(start, -1, axis=0)
  length = np.abs(end - start)
  steep = length[:, 0] < length[:, 1]
  # Both ways along an edge pass the same pixels: each is walked upwards along its longer side.
  back = np.where(steep, start[:, 1] > end[:, 1], start[:, 0] > end[:, 0])[:, None]
  start, end = np.where(back, end, start), np.where(back, start, end)
  low, high = np.minimum(start[:, 0], end[:, 0]), np.maximum(start[:, 0], end[:, 0])
  first = np.maximum(np.ceil((low - _MIDDLE) / _FINE), 0)
  last = np.minimum(np.floor((high - _MIDDLE - 1) / _FINE), width - 1)
  count = np.maximum(last - first + 1, 0).astype(np.int64)
  edge = np.repeat(np.arange(len(points)), count)
  columns = first[edge] + np.arange(edge.size) - np.repeat(np.cumsum(count) - count, count)
  rows = np.where(steep[edge], _row_of_steep(start[edge], end[edge], columns),
                  _row_of_flat(start[edge], end[edge], columns))
  return columns.astype(np.int64), np.floor((rows + _MIDDLE) / _FINE).astype(np.int64)


def _row_of_flat(start: np.ndarray, end: np.ndarray, columns: np.ndarray) -> np.ndarray:
  """The fine row in which an edge that is wider than high crosses a column: the upper one of the two beside it."""
  with np.errstate(divide='ignore', invalid='ignore'):  # of steep edges, whose result is not taken
    slope = (end[:, 1] - start[:, 1]) / (end[:, 0] - start[:, 0])
    step = _FINE * columns + _MIDDLE - start[:, 0]
    left, right = (np.floor(start[:, 1] + slope * t + 0.5) for t in (step, step + 1))
  return np.minimum(left, right)


def _row_of_steep(start: np.ndarray, end: np.ndarray, columns: np.ndarray) -> np.ndarray:
  """The fine row in which an edge that is higher than wide crosses a column: the last one before the step."""
  with np.errstate(divide='ignore', invalid='ignore'):  # of upright edges, which cross nothing
    slope = (end[:, 0] - start[:, 0]) / (end[:, 1] - start[:, 1])
    middle = _FINE * columns + _MIDDLE

    def before(t):
      reached = np.floor(start[:, 0] + slope * t + 0.5)
      return np.where(slope > 0, reached <= middle, reached > middle)

    near = np.floor((middle + 0.5 - start[:, 0]) / slope)  # right, or one off where the division was rounded
    return start[:, 1] + near - 1 + before(near) + before(near + 1)
