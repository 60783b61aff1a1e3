"""Boxes: conversion, area, clipping, and the IoU family.

Units: continuous pixels, x right and y down, never `+1`; sizes are (h, w). Everything is computed in float32, also for
integers and half precision (float64 stays float64).

A box whose x2 < x1 or y2 < y1 is *inverted*. It encloses nothing: its area and its overlap with anything are 0, just
as for a box without width or height, and 0 / 0 counts as 0. So every value and every gradient here is finite.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from vision_jax.conventions import Array
from vision_jax.ops.arrays import FAR, at_least_float32, check_broadcast, check_last_axis, safe_divide

# Areas and squared lengths up to this (a box of a millionth of a pixel) count as zero; the gradient of a ratio divides
# by their square, which has to stay a normal float32 (1e-38).
_NOTHING = 1e-12


def _parts(where: str, boxes: Array) -> tuple[Array, Array, Array, Array]:
  check_last_axis(where, 'boxes', boxes, 4)
  boxes = at_least_float32(boxes)
  return boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]


def xyxy_to_xywh(boxes: Array) -> Array:
  """Corners to left, top, width, height (COCO's format).

  Args:
    boxes: [..., 4] x1, y1, x2, y2.

  Returns:
    float32 [..., 4] x1, y1, w, h in the same unit; negative sizes where a box is inverted.

  Raises:
    ValueError: the last axis is not 4 long.

  >>> xyxy_to_xywh([10, 20, 40, 60]).tolist()
  [10.0, 20.0, 30.0, 40.0]
  """
  x1, y1, x2, y2 = _parts('xyxy_to_xywh', boxes)
  return jnp.stack([x1, y1, x2 - x1, y2 - y1], axis=-1)


def xywh_to_xyxy(boxes: Array) -> Array:
  """Left, top, width, height (COCO's format) to corners.

  Args:
    boxes: [..., 4] x1, y1, w, h.

  Returns:
    float32 [..., 4] x1, y1, x2, y2 in the same unit.

  Raises:
    ValueError: the last axis is not 4 long.

  >>> xywh_to_xyxy([10, 20, 30, 40]).tolist()
  [10.0, 20.0, 40.0, 60.0]
  """
  x, y, w, h = _parts('xywh_to_xyxy', boxes)
  return jnp.stack([x, y, x + w, y + h], axis=-1)


def xyxy_to_cxcywh(boxes: Array) -> Array:
  """Corners to centre, width, height (YOLO's and DETR's format).

  Args:
    boxes: [..., 4] x1, y1, x2, y2.

  Returns:
    float32 [..., 4] cx, cy, w, h in the same unit; negative sizes where a box is inverted.

  Raises:
    ValueError: the last axis is not 4 long.

  >>> xyxy_to_cxcywh([10, 20, 40, 60]).tolist()
  [25.0, 40.0, 30.0, 40.0]
  """
  x1, y1, x2, y2 = _parts('xyxy_to_cxcywh', boxes)
  return jnp.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], axis=-1)


def cxcywh_to_xyxy(boxes: Array) -> Array:
  """Centre, width, height (YOLO's and DETR's format) to corners.

  Args:
    boxes: [..., 4] cx, cy, w, h.

  Returns:
    float32 [..., 4] x1, y1, x2, y2 in the same unit.

  Raises:
    ValueError: the last axis is not 4 long.

  >>> cxcywh_to_xyxy([25, 40, 30, 40]).tolist()
  [10.0, 20.0, 40.0, 60.0]
  """
  cx, cy, w, h = _parts('cxcywh_to_xyxy', boxes)
  return jnp.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=-1)


def xywh_to_cxcywh(boxes: Array) -> Array:
  """Left, top, width, height (COCO's format) to centre, width, height.

  Args:
    boxes: [..., 4] x1, y1, w, h.

  Returns:
    float32 [..., 4] cx, cy, w, h in the same unit.

  Raises:
    ValueError: the last axis is not 4 long.

  >>> xywh_to_cxcywh([10, 20, 30, 40]).tolist()
  [25.0, 40.0, 30.0, 40.0]
  """
  x, y, w, h = _parts('xywh_to_cxcywh', boxes)
  return jnp.stack([x + w / 2, y + h / 2, w, h], axis=-1)


def cxcywh_to_xywh(boxes: Array) -> Array:
  """Centre, width, height to left, top, width, height (COCO's format).

  Args:
    boxes: [..., 4] cx, cy, w, h.

  Returns:
    float32 [..., 4] x1, y1, w, h in the same unit.

  Raises:
    ValueError: the last axis is not 4 long.

  >>> cxcywh_to_xywh([25, 40, 30, 40]).tolist()
  [10.0, 20.0, 30.0, 40.0]
  """
  cx, cy, w, h = _parts('cxcywh_to_xywh', boxes)
  return jnp.stack([cx - w / 2, cy - h / 2, w, h], axis=-1)


def box_area(boxes: Array) -> Array:
  """The area of each box.

  Args:
    boxes: [..., 4] xyxy, pixels.

  Returns:
    float32 [...], square pixels; 0 for a box that is inverted or has no width or height.

  Raises:
    ValueError: the last axis is not 4 long.

  >>> box_area([[0, 0, 3, 2], [3, 0, 0, 2]]).tolist()
  [6.0, 0.0]
  """
  x1, y1, x2, y2 = _parts('box_area', boxes)
  return jnp.maximum(x2 - x1, 0) * jnp.maximum(y2 - y1, 0)


def clip_boxes(boxes: Array, size: Array) -> Array:
  """Boxes cut to an image.

  Args:
    boxes: [..., 4] xyxy, pixels.
    size: (h, w) of the image: [2] for all boxes, or [B, 2] for boxes [B, ..., 4].

  Returns:
    float32 [..., 4] with x in 0..w and y in 0..h; a box outside the image becomes one without area on its border.

  Raises:
    ValueError: the last axis of boxes is not 4 long, or that of size not 2.

  >>> clip_boxes([-5, 10, 50, 90], (60, 40)).tolist()
  [0.0, 10.0, 40.0, 60.0]
  """
  check_last_axis('clip_boxes', 'boxes', boxes, 4)
  check_last_axis('clip_boxes', 'size', size, 2)
  boxes = at_least_float32(boxes)
  return jnp.clip(boxes, 0, _for_corners(jnp.asarray(size)[..., ::-1], boxes))


def scale_boxes(boxes: Array, scale: Array) -> Array:
  """Boxes in the coordinates of an image that was resized.

  Args:
    boxes: [..., 4] xyxy, pixels.
    scale: positive: one number, or (x, y) factors: [2] for all boxes, or [B, 2] for boxes [B, ..., 4].

  Returns:
    float32 [..., 4] xyxy, each x times the x factor and each y times the y factor.

  Raises:
    ValueError: the last axis of boxes is not 4 long, or that of scale not 2.

  >>> scale_boxes([10, 20, 30, 40], (0.5, 2)).tolist()
  [5.0, 40.0, 15.0, 80.0]
  """
  check_last_axis('scale_boxes', 'boxes', boxes, 4)
  boxes, scale = at_least_float32(boxes), jnp.asarray(scale)
  if scale.ndim == 0:
    return boxes * scale.astype(boxes.dtype)
  check_last_axis('scale_boxes', 'scale', scale, 2)
  return boxes * _for_corners(scale, boxes)


def flip_boxes(boxes: Array, image_size: Array, *, horizontal: bool = True, vertical: bool = False) -> Array:
  """Boxes in the coordinates of an image that was mirrored.

  Args:
    boxes: [..., 4] xyxy, pixels.
    image_size: (h, w) of the image: [2] for all boxes, or [B, 2] for boxes [B, ..., 4].
    horizontal: left and right change places; a bool, traced or not.
    vertical: top and bottom change places; a bool, traced or not.

  Returns:
    float32 [..., 4] xyxy; x1 = w - old x2 and x2 = w - old x1, so a box stays inverted or not as it was.

  Raises:
    ValueError: the last axis of boxes is not 4 long, or that of image_size not 2.

  >>> flip_boxes([10, 5, 30, 40], (60, 50)).tolist(), flip_boxes([10, 5, 30, 40], (60, 50), vertical=True).tolist()
  ([20.0, 5.0, 40.0, 40.0], [20.0, 20.0, 40.0, 55.0])
  """
  check_last_axis('flip_boxes', 'boxes', boxes, 4)
  check_last_axis('flip_boxes', 'image_size', image_size, 2)
  boxes = at_least_float32(boxes)
  mirrored = _for_corners(jnp.asarray(image_size)[..., ::-1], boxes) - boxes[..., jnp.array([2, 3, 0, 1])]
  return jnp.where(jnp.array([horizontal, vertical] * 2), mirrored, boxes)


def iou(boxes_a: Array, boxes_b: Array) -> Array:
  """Intersection over union of box i of one array with box i of the other.

  Args:
    boxes_a: [..., 4] xyxy, pixels.
    boxes_b: [..., 4] xyxy, pixels; its leading axes broadcast against those of `boxes_a`.

  Returns:
    float32 [...] in 0..1; 0 where the union is empty, so a point has IoU 0 with itself.

  Raises:
    ValueError: a last axis is not 4 long, or the leading axes do not broadcast.

  >>> iou([0, 0, 2, 2], [0, 0, 2, 1]).item()
  0.5
  """
  return _overlap('iou', boxes_a, boxes_b)[0]


def pairwise_iou(boxes_a: Array, boxes_b: Array) -> Array:
  """Intersection over union of every box of one set with every box of the other.

  Args:
    boxes_a: [..., N, 4] xyxy, pixels.
    boxes_b: [..., Q, 4] xyxy, pixels; its leading axes broadcast against those of `boxes_a`.

  Returns:
    float32 [..., N, Q] in 0..1; 0 where the union is empty. A box with a NaN overlaps nothing: its row or column is 0.

  Raises:
    ValueError: a last axis is not 4 long, an array is a single box without the axis that counts boxes, or the axes
      before these two do not broadcast.

  >>> pairwise_iou([[0, 0, 2, 2]], [[0, 0, 2, 1], [0, 0, 2, 2], [5, 5, 6, 6]]).tolist()
  [[0.5, 1.0, 0.0]]
  """
  boxes_a, boxes_b = jnp.asarray(boxes_a), jnp.asarray(boxes_b)
  if min(boxes_a.ndim, boxes_b.ndim) < 2:
    raise ValueError(f'pairwise_iou: got {list(boxes_a.shape)} and {list(boxes_b.shape)}; give sets of boxes [N, 4], '
                     'or use iou for single boxes')
  check_last_axis('pairwise_iou', 'boxes_a', boxes_a, 4)
  check_last_axis('pairwise_iou', 'boxes_b', boxes_b, 4)
  check_broadcast('pairwise_iou', last=2, boxes_a=boxes_a, boxes_b=boxes_b)
  return iou(boxes_a[..., :, None, :], boxes_b[..., None, :, :])


def giou(boxes_a: Array, boxes_b: Array) -> Array:
  """Generalised IoU, aligned: IoU less the share of the hull that neither box fills.

  The hull is the smallest box around all corners of both, so an inverted box widens it as far as its corners reach.

  Args:
    boxes_a: [..., 4] xyxy, pixels.
    boxes_b: [..., 4] xyxy, pixels; its leading axes broadcast against those of `boxes_a`.

  Returns:
    float32 [...] in -1..1, never above the IoU; equal to it where the hull has no area.

  Raises:
    ValueError: a last axis is not 4 long, or the leading axes do not broadcast.

  Reference: Rezatofighi et al., Generalized Intersection over Union, arXiv 1902.09630, algorithm 1.

  >>> giou([0, 0, 1, 1], [3, 0, 4, 1]).item()
  -0.5
  """
  overlap, union, hull = _overlap('giou', boxes_a, boxes_b)
  area = hull[0] * hull[1]
  return overlap - safe_divide(jnp.maximum(area - union, 0), area, floor=_NOTHING)


def diou(boxes_a: Array, boxes_b: Array) -> Array:
  """Distance IoU, aligned: IoU less the squared distance of the centres over the squared diagonal of the hull.

  Args:
    boxes_a: [..., 4] xyxy, pixels.
    boxes_b: [..., 4] xyxy, pixels; its leading axes broadcast against those of `boxes_a`.

  Returns:
    float32 [...] in -1..1, never above the IoU; equal to it where all corners fall together.

  Raises:
    ValueError: a last axis is not 4 long, or the leading axes do not broadcast.

  Reference: Zheng et al., Distance-IoU Loss, arXiv 1911.08287, equation 7.

  >>> print(f'{diou([0, 0, 1, 1], [3, 0, 4, 1]):.4f}')
  -0.5294
  """
  overlap, _, hull = _overlap('diou', boxes_a, boxes_b)
  return overlap - _centre_penalty(boxes_a, boxes_b, hull)


def ciou(boxes_a: Array, boxes_b: Array) -> Array:
  """Complete IoU, aligned: distance IoU less a penalty for different aspect ratios.

  Args:
    boxes_a: [..., 4] xyxy, pixels.
    boxes_b: [..., 4] xyxy, pixels; its leading axes broadcast against those of `boxes_a`.

  Returns:
    float32 [...] in -2..1, never above the distance IoU. A box of no size at all has every aspect ratio: no penalty.

  Raises:
    ValueError: a last axis is not 4 long, or the leading axes do not broadcast.

  Reference: Zheng et al., Distance-IoU Loss, arXiv 1911.08287, equations 8 to 11; alpha is held constant in the
  gradient, as in the authors' code.
  Differs from the paper: the gradient of the aspect term is exact, where the authors leave out its 1 / (w^2 + h^2)
  (for sizes in 0..1 it explodes; in pixels it does not).

  >>> print(f'{ciou([0, 0, 2, 2], [0, 0, 2, 2]):.4f} {ciou([0, 0, 2, 1], [0, 0, 1, 2]):.4f}')
  1.0000 0.2371
  """
  overlap, _, hull = _overlap('ciou', boxes_a, boxes_b)
  aspect = 4 / math.pi**2 * (_aspect_angle(boxes_a) - _aspect_angle(boxes_b)) ** 2
  alpha = jax.lax.stop_gradient(safe_divide(aspect, 1 - overlap + aspect, floor=_NOTHING))
  return overlap - _centre_penalty(boxes_a, boxes_b, hull) - alpha * aspect


def _for_corners(pair: Array, boxes: Array) -> Array:
  """(x, y) numbers, one pair for all boxes or one for each image, as [..., 4] beside boxes [..., 4]."""
  pair = jnp.concatenate([pair, pair], axis=-1).astype(boxes.dtype)
  return pair.reshape(pair.shape[:-1] + (1,) * (boxes.ndim - pair.ndim) + (4,))


def _overlap(where: str, boxes_a: Array, boxes_b: Array) -> tuple[Array, Array, tuple[Array, Array]]:
  """IoU, union area, and the width and height of the hull of all corners."""
  ax1, ay1, ax2, ay2 = (jnp.clip(v, -FAR, FAR) for v in _parts(where, boxes_a))
  bx1, by1, bx2, by2 = (jnp.clip(v, -FAR, FAR) for v in _parts(where, boxes_b))
  check_broadcast(where, boxes_a=boxes_a, boxes_b=boxes_b)
  # At exactly 0 `maximum` passes half of the gradient: a box without width still learns to widen.
  area_a = jnp.maximum(ax2 - ax1, 0) * jnp.maximum(ay2 - ay1, 0)
  area_b = jnp.maximum(bx2 - bx1, 0) * jnp.maximum(by2 - by1, 0)
  inter = (jnp.maximum(jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1), 0)
           * jnp.maximum(jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1), 0))
  union = area_a + area_b - inter  # in this order: NMS then rounds as torchvision does
  hull = _extent(ax1, ax2, bx1, bx2), _extent(ay1, ay2, by1, by2)
  return safe_divide(inter, union, floor=_NOTHING), union, hull


def _extent(a1: Array, a2: Array, b1: Array, b2: Array) -> Array:
  high = jnp.maximum(jnp.maximum(a1, a2), jnp.maximum(b1, b2))
  return high - jnp.minimum(jnp.minimum(a1, a2), jnp.minimum(b1, b2))


def _centre_penalty(boxes_a: Array, boxes_b: Array, hull: tuple[Array, Array]) -> Array:
  a = jnp.clip(at_least_float32(boxes_a), -FAR, FAR)
  b = jnp.clip(at_least_float32(boxes_b), -FAR, FAR)
  between = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
  return safe_divide(jnp.sum(between**2, axis=-1), hull[0] ** 2 + hull[1] ** 2, floor=_NOTHING)


def _aspect_angle(boxes: Array) -> Array:
  """The angle arctan(w / h) of each box, 45 degrees and without gradient where it has no size."""
  x1, y1, x2, y2 = (jnp.clip(v, -FAR, FAR) for v in _parts('ciou', boxes))
  w, h = jnp.maximum(x2 - x1, 0), jnp.maximum(y2 - y1, 0)
  sized = w**2 + h**2 > _NOTHING  # arctan2 divides by this in its gradient
  return jnp.arctan2(jnp.where(sized, w, 1), jnp.where(sized, h, 1))
