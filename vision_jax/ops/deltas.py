"""Deltas: what a head predicts for a box, relative to its anchor, and how close a point lies to a box's centre.

Units: boxes and anchors are xyxy in pixels, any one unit; deltas and distances are relative to the anchor's size.
Everything is computed in float32 (float64 stays float64). Numbers beyond +-1e9 count as +-1e9. A side of a box or an
anchor up to a millionth of a pixel, or inverted, counts as nothing: what would divide by it or take its log is 0,
without gradient.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from vision_jax.conventions import Array
from vision_jax.ops.arrays import FAR, at_least_float32, check_broadcast, check_last_axis, safe_divide

# Sides up to this count as nothing; the gradient of a ratio divides by their square, which must stay a normal float32.
_NO_SIDE = 1e-6


def encode_deltas(boxes: Array, anchors: Array, *,
                  variances: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)) -> Array:
  """What a head should predict for boxes: offsets of the centres and logs of the sizes, relative to the anchors.

  Args:
    boxes: [..., 4] xyxy, pixels.
    anchors: [..., 4] xyxy, pixels; they broadcast against the boxes.
    variances: four positive numbers that dx, dy, dw, dh are divided by. SSD takes (0.1, 0.1, 0.2, 0.2), which others
      write as weights (10, 10, 5, 5).

  Returns:
    float32 [..., 4]: (cx - cxa) / wa, (cy - cya) / ha, log(w / wa), log(h / ha), each over its variance; 0 where that
    side of the anchor is not positive, and for a log where that of the box is not.

  Raises:
    ValueError: a last axis is not 4 long, the leading axes do not broadcast, or there are not four positive variances.

  Reference: Ren et al., Faster R-CNN, arXiv 1506.01497, equation 2; the variances are those of Liu et al., SSD,
  arXiv 1512.02325, in the authors' code.

  >>> encode_deltas([10, 10, 30, 20], [0, 0, 20, 10]).tolist()
  [0.5, 1.0, 0.0, 0.0]
  """
  centre, size = _centre_and_size('encode_deltas', 'boxes', boxes)
  anchor_centre, anchor_size = _centre_and_size('encode_deltas', 'anchors', anchors)
  check_broadcast('encode_deltas', boxes=boxes, anchors=anchors)
  offset = safe_divide(centre - anchor_centre, anchor_size, floor=_NO_SIDE)
  sized = (size > _NO_SIDE) & (anchor_size > _NO_SIDE)
  scale = jnp.log(jnp.where(sized, size, 1) / jnp.where(sized, anchor_size, 1))
  return jnp.concatenate([offset, scale], axis=-1) / _four('encode_deltas', variances, scale.dtype)


def decode_deltas(deltas: Array, anchors: Array, *,
                  variances: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
                  max_log_scale: float = math.log(1000 / 16)) -> Array:
  """The boxes that deltas stand for: the inverse of `encode_deltas`.

  Args:
    deltas: [..., 4] dx, dy, dw, dh as a head predicts them.
    anchors: [..., 4] xyxy, pixels; they broadcast against the deltas.
    variances: four positive numbers that the deltas are multiplied by, the same as in `encode_deltas`.
    max_log_scale: the largest log of box over anchor that is followed, after the variance; above it a delta counts as
      this, without gradient. log(1000 / 16) lets a side grow to 62.5 times its anchor's.

  Returns:
    float32 [..., 4] xyxy in the anchors' unit, not clipped to the image. An inverted anchor gives an inverted box.

  Raises:
    ValueError: a last axis is not 4 long, the leading axes do not broadcast, or there are not four positive variances.

  Reference: Ren et al., Faster R-CNN, arXiv 1506.01497, equation 2; the limit is that of the authors' later code
  (Detectron) and of torchvision.

  >>> decode_deltas([0.5, 1, 0, 0], [0, 0, 20, 10]).tolist()
  [10.0, 10.0, 30.0, 20.0]
  """
  check_last_axis('decode_deltas', 'deltas', deltas, 4)
  centre, size = _centre_and_size('decode_deltas', 'anchors', anchors)
  check_broadcast('decode_deltas', deltas=deltas, anchors=anchors)
  deltas = jnp.clip(at_least_float32(deltas), -FAR, FAR)
  deltas = deltas * _four('decode_deltas', variances, deltas.dtype)
  centre = deltas[..., :2] * size + centre
  half = jnp.exp(jnp.minimum(deltas[..., 2:], max_log_scale)) * size / 2
  return jnp.concatenate([centre - half, centre + half], axis=-1)


def encode_distances(boxes: Array, anchors: Array) -> Array:
  """FCOS's target: how far each anchor's centre lies from the left, top, right and bottom of a box.

  Args:
    boxes: [..., 4] xyxy, pixels.
    anchors: [..., 4] xyxy, pixels; they broadcast against the boxes.

  Returns:
    float32 [..., 4] left, top, right, bottom over the anchor's (w, h, w, h); negative where the centre lies outside
    the box, and 0 where that side of the anchor is not positive.

  Raises:
    ValueError: a last axis is not 4 long, or the leading axes do not broadcast.

  Reference: Tian et al., FCOS, arXiv 1904.01355, equation 1.
  Differs from the paper: the distances are divided by the anchor's size, which is the level's stride, as in
  torchvision; the paper learns a scale for each level instead.

  >>> encode_distances([0, 0, 40, 30], [6, 6, 14, 14]).tolist()
  [1.25, 1.25, 3.75, 2.5]
  """
  check_last_axis('encode_distances', 'boxes', boxes, 4)
  boxes = jnp.clip(at_least_float32(boxes), -FAR, FAR)
  centre, size = _centre_and_size('encode_distances', 'anchors', anchors)
  check_broadcast('encode_distances', boxes=boxes, anchors=anchors)
  sides = jnp.concatenate([centre - boxes[..., :2], boxes[..., 2:] - centre], axis=-1)
  return safe_divide(sides, jnp.concatenate([size, size], axis=-1), floor=_NO_SIDE)


def decode_distances(distances: Array, anchors: Array) -> Array:
  """The boxes that distances from the anchors' centres stand for: the inverse of `encode_distances`.

  Args:
    distances: [..., 4] left, top, right, bottom over the anchor's (w, h, w, h).
    anchors: [..., 4] xyxy, pixels; they broadcast against the distances.

  Returns:
    float32 [..., 4] xyxy in the anchors' unit, not clipped to the image; inverted where left + right or top + bottom
    is negative.

  Raises:
    ValueError: a last axis is not 4 long, or the leading axes do not broadcast.

  Reference: Tian et al., FCOS, arXiv 1904.01355, equation 1.

  >>> decode_distances([1.25, 1.25, 3.75, 2.5], [6, 6, 14, 14]).tolist()
  [0.0, 0.0, 40.0, 30.0]
  """
  check_last_axis('decode_distances', 'distances', distances, 4)
  distances = jnp.clip(at_least_float32(distances), -FAR, FAR)
  centre, size = _centre_and_size('decode_distances', 'anchors', anchors)
  check_broadcast('decode_distances', distances=distances, anchors=anchors)
  return jnp.concatenate([centre - distances[..., :2] * size, centre + distances[..., 2:] * size], axis=-1)


def centerness(distances: Array) -> Array:
  """How central a point lies in its box: sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)).

  Args:
    distances: [..., 4] left, top, right, bottom of the box from the point, any one unit for each axis.

  Returns:
    float32 [...] in 0..1: 1 at the centre, 0 without gradient on the border and outside.

  Raises:
    ValueError: the last axis is not 4 long.

  Reference: Tian et al., FCOS, arXiv 1904.01355, equation 3.

  >>> centerness([[2, 2, 2, 2], [1, 2, 4, 2], [-1, 2, 4, 2]]).tolist()
  [1.0, 0.5, 0.0]
  """
  check_last_axis('centerness', 'distances', distances, 4)
  distances = jnp.clip(at_least_float32(distances), -FAR, FAR)
  near = jnp.minimum(distances[..., :2], distances[..., 2:])
  far = jnp.maximum(distances[..., :2], distances[..., 2:])
  share = safe_divide(near, far, floor=_NO_SIDE)
  # Each share by itself: the product of two negative ones would look like a point inside.
  inside = (share > _NO_SIDE).all(axis=-1)
  return jnp.where(inside, jnp.sqrt(jnp.where(inside, share[..., 0] * share[..., 1], 1)), 0)


def _centre_and_size(where: str, name: str, boxes: Array) -> tuple[Array, Array]:
  check_last_axis(where, name, boxes, 4)
  boxes = jnp.clip(at_least_float32(boxes), -FAR, FAR)
  size = boxes[..., 2:] - boxes[..., :2]
  return boxes[..., :2] + size / 2, size


def _four(where: str, variances: tuple[float, ...], dtype: Any) -> Array:
  if len(variances) != 4 or not min(variances) > 0:
    raise ValueError(f'{where}: variances {tuple(variances)}; give four positive ones, for dx, dy, dw and dh')
  return jnp.asarray(variances, dtype)
