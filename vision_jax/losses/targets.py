"""What the detectors' losses do with their arguments first: check shapes, and assign objects to anchors by IoU."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vision_jax.conventions import Array
from vision_jax.ops.arrays import as_valid, at_least_float32, pick
from vision_jax.ops.assignment import MaxIouAssignment, max_iou_assignment
from vision_jax.ops.boxes import pairwise_iou


class Roles(NamedTuple):
  """What a detector's loss takes each prediction for; one that is valid and neither positive nor negative is ignored.

  Each loss has a function `roles` beside it that takes its arguments, and the options that matter for the assignment.

  Args:
    boxes: [B, Q, 4] xyxy, canvas pixels: the anchors or proposals, or where the objects choose by them (the YOLOs,
      DETR) the predicted boxes.
    positive: bool [B, Q], the prediction learns the object `owner`.
    negative: bool [B, Q], it learns that nothing is there.
    owner: int [B, Q], the object as an index into the image's boxes; 0 where there is none.
    valid: bool [B, Q], False in the slots of a sample that stayed empty, and in images that are no images; there,
      nothing is positive or negative.
    levels: how many of the Q predictions belong to each level, in order; one level when left out.
    collisions: int [B], the objects whose place went to another one; None for detectors without such places.

  >>> nothing = jnp.zeros((1, 8), bool)
  >>> Roles(jnp.zeros((1, 8, 4)), nothing, ~nothing, jnp.zeros((1, 8), int), ~nothing).negative.shape
  (1, 8)
  """

  boxes: Array
  positive: Array
  negative: Array
  owner: Array
  valid: Array
  levels: tuple[int, ...] = ()
  collisions: Array | None = None


def roles_of(boxes: Array, positive: Array, owner: Array, valid: Array, *, ignored: Array | None = None,
             levels: tuple[int, ...] = (), collisions: Array | None = None) -> Roles:
  """`Roles` of predictions [Q, 4] or [B, Q, 4] in images that are valid [B] or not; negative is what is left."""
  shown = jnp.broadcast_to(valid[:, None], positive.shape)
  positive = positive & shown
  negative = shown & ~positive if ignored is None else shown & ~positive & ~ignored
  boxes = jnp.broadcast_to(boxes, (*positive.shape, 4))
  return Roles(boxes, positive, negative, jnp.where(positive, owner, 0), shown, levels, collisions)


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
  """`values[b, indices[b]]` for values [B, N, ...] and indices [B, A]: [B, A, ...]; zeros where N is 0."""
  if not values.shape[1]:
    return jnp.zeros((*indices.shape, *values.shape[2:]), values.dtype)
  return jax.vmap(lambda values, indices: values[indices])(values, indices)
