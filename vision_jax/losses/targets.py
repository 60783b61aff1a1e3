"""What the detectors' losses do with their arguments first: check shapes, and assign objects to anchors by IoU."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vision_jax.conventions import Array
from vision_jax.ops.arrays import as_valid, at_least_float32, pick
from vision_jax.ops.assignment import MaxIouAssignment, max_iou_assignment
from vision_jax.ops.boxes import pairwise_iou


def check_axes(where: str, **arrays: tuple[Array, str]) -> dict[str, int]:
  """The size of each axis in pairs such as `anchors=(anchors, 'A 4')`; refuses arrays that do not fit together.

  An axis is a number, or a name like 'A' or 'K+1' that stands for the same size wherever it is found.

  >>> check_axes('some_loss', logits=(jnp.zeros((2, 6, 3)), 'B A K'), anchors=(jnp.zeros((6, 4)), 'A 4'))
  {'B': 2, 'A': 6, 'K': 3}
  >>> check_axes('some_loss', logits=(jnp.zeros((2, 6, 3)), 'B A K'), anchors=(jnp.zeros((5, 4)), 'A 4'))
  Traceback (most recent call last):
  ValueError: some_loss: anchors [5, 4] beside logits [2, 6, 3]; give anchors [A, 4] and logits [B, A, K]
  """
  sizes, seen = {}, []
  for name, (array, axes) in arrays.items():
    shape, letters = jnp.asarray(array).shape, axes.split()
    seen.append((f'{name} {list(shape)}', f'{name} [{", ".join(letters)}]'))
    fits = len(shape) == len(letters) and all(
        size == (int(letter) if letter.isdigit() else sizes.setdefault(letter, size))
        for size, letter in zip(shape, letters, strict=True))
    if not fits:
      beside = ' beside ' + ', '.join(given for given, _ in seen[:-1]) if seen[:-1] else ''
      wanted = ' and '.join(asked for _, asked in seen[-1:] + seen[:-1])
      raise ValueError(f'{where}: {seen[-1][0]}{beside}; give {wanted}')
  return sizes


def real_targets(where: str, boxes: Array, labels: Array | None, boxes_valid: Array | None, valid: Array | None
                 ) -> tuple[Array, Array, Array, Array]:
  """Boxes [B, N, 4], labels and real [B, N], valid [B]: whatever is not real is zero, and N is at least 1.

  Boxes carry no gradient; labels are zeros when left out. The shapes of both are checked before.
  """
  boxes = jax.lax.stop_gradient(at_least_float32(boxes))
  labels = jnp.zeros(boxes.shape[:2], int) if labels is None else jnp.asarray(labels)
  valid = as_valid(where, 'valid', valid, boxes.shape[:1])
  real = as_valid(where, 'boxes_valid', boxes_valid, boxes.shape[:2]) & valid[:, None]
  boxes, labels = pick(real, boxes, 0), pick(real, labels, 0)
  if not boxes.shape[1]:  # no slots for objects at all: one that is empty
    boxes, labels, real = (jnp.zeros((x.shape[0], 1, *x.shape[2:]), x.dtype) for x in (boxes, labels, real))
  return boxes, labels, real, valid


def assign_by_iou(boxes: Array, anchors: Array, real: Array, *, high: float, low: float, low_quality: str = 'none'
                  ) -> MaxIouAssignment:
  """`max_iou_assignment` of real boxes [B, N, 4] to anchors [A, 4] or [B, A, 4], image by image: fields [B, A]."""
  def assign(iou, real):
    return max_iou_assignment(iou, high=high, low=low, low_quality=low_quality, valid=real)
  return jax.vmap(assign)(pairwise_iou(boxes, anchors), real)


def rows(values: Array, indices: Array) -> Array:
  """`values[b, indices[b]]` for values [B, N, ...] and indices [B, A]: [B, A, ...]."""
  return jax.vmap(lambda values, indices: values[indices])(values, indices)
