"""Boxes on the host: NumPy twins of `vision_jax.ops.boxes`, `xyxy` in continuous pixels unless a name says otherwise.

All of them compute in float64, because COCO's evaluation does and a threshold can hang on the last bit.
"""

from __future__ import annotations

import numpy as np


def _checked(boxes: np.ndarray, name: str) -> np.ndarray:
  boxes = np.asarray(boxes, np.float64)
  if boxes.ndim < 1 or boxes.shape[-1] != 4:
    raise ValueError(f'{name} has shape {boxes.shape}; give [..., 4], for no box np.zeros((0, 4))')
  return boxes


def area(boxes: np.ndarray) -> np.ndarray:
  """The area of each box; an inverted or empty box has area zero.

  Args:
    boxes: `[..., 4]` xyxy pixels.

  Returns:
    `[...]` float64, square pixels.

  Raises:
    ValueError: the last axis is not 4 long.

  >>> area(np.array([[0, 0, 4, 3], [2, 2, 1, 9]])).tolist()
  [12.0, 0.0]
  """
  boxes = _checked(boxes, 'boxes')
  sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
  return sides[..., 0] * sides[..., 1]


def pairwise_iou(boxes_a: np.ndarray, boxes_b: np.ndarray, *, crowd: np.ndarray | None = None) -> np.ndarray:
  """Intersection over union of every box of one set with every box of another.

  Args:
    boxes_a: `[A, 4]` xyxy pixels.
    boxes_b: `[B, 4]` xyxy pixels.
    crowd: bool `[B]`, the boxes around crowds, of which a part is enough: the area of the box of `boxes_a` alone
      divides there, as in COCO's evaluation. None when left out.

  Returns:
    `[A, B]` float64 in 0..1; zero where the union is empty or a coordinate is not finite.

  Raises:
    ValueError: an argument is not `[n, 4]`.

  >>> pairwise_iou(np.array([[0, 0, 2, 2]]), np.array([[1, 0, 3, 2], [5, 5, 6, 6]])).round(3).tolist()
  [[0.333, 0.0]]
  """
  boxes_a, boxes_b = _checked(boxes_a, 'boxes_a'), _checked(boxes_b, 'boxes_b')
  if boxes_a.ndim != 2 or boxes_b.ndim != 2:
    raise ValueError(f'pairwise_iou takes [A, 4] and [B, 4], not {boxes_a.shape} and {boxes_b.shape}; loop over images')
  with np.errstate(invalid='ignore', over='ignore'):
    corner_low = np.maximum(boxes_a[:, None, :2], boxes_b[None, :, :2])
    corner_high = np.minimum(boxes_a[:, None, 2:], boxes_b[None, :, 2:])
    sides = np.maximum(corner_high - corner_low, 0.0)
    intersection = sides[..., 0] * sides[..., 1]
    union = area(boxes_a)[:, None] + area(boxes_b)[None, :] - intersection
    if crowd is not None:
      union = np.where(crowd, area(boxes_a)[:, None], union)
    usable = (union > 0) & np.isfinite(union)
    return np.where(usable, intersection / np.where(usable, union, 1.0), 0.0)


def xyxy_to_xywh(boxes: np.ndarray) -> np.ndarray:
  """Corners to (left, top, width, height), the format of COCO's files.

  Args:
    boxes: `[..., 4]` xyxy pixels.

  Returns:
    `[..., 4]` float64.

  Raises:
    ValueError: the last axis is not 4 long.

  >>> xyxy_to_xywh(np.array([10, 20, 40, 30])).tolist()
  [10.0, 20.0, 30.0, 10.0]
  """
  boxes = _checked(boxes, 'boxes')
  return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def xywh_to_xyxy(boxes: np.ndarray) -> np.ndarray:
  """(left, top, width, height), the format of COCO's files, to corners.

  Args:
    boxes: `[..., 4]` xywh pixels.

  Returns:
    `[..., 4]` float64.

  Raises:
    ValueError: the last axis is not 4 long.

  >>> xywh_to_xyxy(np.array([10, 20, 30, 10])).tolist()
  [10.0, 20.0, 40.0, 30.0]
  """
  boxes = _checked(boxes, 'boxes')
  return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def clip(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Boxes cut to an image; one that lies outside becomes a box without area on the border.

  Args:
    boxes: `[..., 4]` xyxy pixels.
    size: (height, width) of the image.

  Returns:
    `[..., 4]` float64 with x in 0..width and y in 0..height.

  Raises:
    ValueError: the last axis is not 4 long.

  >>> clip(np.array([-3, 2, 50, 90]), (60, 40)).tolist()
  [0.0, 2.0, 40.0, 60.0]
  """
  height, width = size
  return np.clip(_checked(boxes, 'boxes'), 0.0, np.array([width, height, width, height], np.float64))
