"""Which object each slot of a YOLO head answers for, and what it should predict: what the losses of the YOLOs share.

Units: canvas pixels; anchors are (w, h), canvases (h, w). A slot is one anchor in one cell of one level, numbered as in
`vision_jax.ops.yolo_slots`; in YOLOv1, which has no anchors, one of the boxes of a cell.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vision_jax.conventions import Array
from vision_jax.losses.boxes import ciou_loss, diou_loss, giou_loss, iou_loss
from vision_jax.losses.targets import Roles, check_axes, real_targets, roles_of
from vision_jax.ops.arrays import as_valid, at_least_float32, check_choice, pick
from vision_jax.ops.boxes import box_area, iou, pairwise_iou
from vision_jax.ops.yolo import (
  YoloSlots,
  check_outputs,
  flatten_levels,
  level_grids,
  yolo_decode,
  yolo_encode,
  yolo_slots,
)

_BOX_LOSSES = {'iou': iou_loss, 'giou': giou_loss, 'diou': diou_loss, 'ciou': ciou_loss}


class YoloAssignment(NamedTuple):
  """Which object each slot of one image is responsible for.

  Args:
    positive: bool [S], True where the slot has an object.
    owner: int32 [S], the object of a positive slot as an index into the boxes; 0 elsewhere.
    slots: int32 [N], the slot that fits each object best; unspecified for an invalid box.
    collisions: int32 scalar, the objects whose best slot went to another object (in YOLOv1: their cell).

  >>> YoloAssignment(jnp.zeros(6, bool), jnp.zeros(6, int), jnp.zeros(2, int), jnp.array(0)).positive.shape
  (6,)
  """

  positive: Array
  owner: Array
  slots: Array
  collisions: Array


class SlotTargets(NamedTuple):
  """The slots of a batch beside what they should predict; all that an invalid image holds is empty.

  Args:
    raw: [B, S, 5 + K], the outputs, emptied in invalid images.
    predicted: [B, S, 4] xyxy, the decoded boxes.
    positive: bool [B, S], True where the slot has an object.
    background: bool [B, S], True where it should predict that there is none; the other slots are ignored.
    boxes: [B, S, 4] xyxy, the object of each positive slot; some box elsewhere.
    labels: int [B, S], its class.
    iou: [B, S], the IoU of the predicted box with it, without gradient; 0 where not positive.
    area: [B, S], its share of the canvas, 0..1.
    slots: the `YoloSlots`.
    valid: bool [B].
    owner: int [B, S], the object of each positive slot as an index into the boxes; 0 elsewhere.
    collisions: int [B], the objects whose best slot went to another.
  """

  raw: Array
  predicted: Array
  positive: Array
  background: Array
  boxes: Array
  labels: Array
  iou: Array
  area: Array
  slots: YoloSlots
  valid: Array
  owner: Array
  collisions: Array


def yolov3_assign(boxes: Array, *, anchors: tuple, strides: tuple[int, ...], canvas: tuple[int, int],
                  match: str = 'global', extra_match_iou: float | None = None,
                  valid: Array | None = None) -> YoloAssignment:
  """Gives every object of one image the slot whose anchor fits its shape best.

  All anchors of all levels compete: the one with the largest IoU with the box when both are centred (the first of
  equals) decides the level, the box's centre the cell, at the border the last one inside. Where two objects want one
  slot, the one that fits the anchor better has it, and the first of equals: the order of the boxes does not matter but
  for exact ties. The other one is not learned in this image.

  Args:
    boxes: [N, 4] xyxy, canvas pixels.
    anchors: for each level a sequence of (w, h), canvas pixels.
    strides: for each level the canvas pixels that one cell covers.
    canvas: (h, w) of the network's input, multiples of every stride.
    match: 'global', the best of all anchors; or 'per_level', the best of each level, so that every level learns every
      object (another reading of "the best anchor"; with one level both are the same).
    extra_match_iou: further anchors whose centred IoU with a box exceeds this are positive too, in slots that are no
      object's best; none when left out.
    valid: bool [N], True for real boxes; all when left out. A box without width or height takes no slot.

  Returns:
    `YoloAssignment` over the S slots of `vision_jax.ops.yolo_slots`. Its `slots` and `collisions` are about the best of
    all anchors, whatever `match` says.

  Raises:
    ValueError: boxes are not [N, 4] or valid not [N], anchors and strides differ in number, a stride does not divide
      the canvas, or an unknown `match`.

  Reference: Redmon and Farhadi, YOLOv3, arXiv 1804.02767, section 2.1: one prior for each object.
  Differs from darknet: there the later object in the list takes a slot that two want, with the class of both.

  >>> anchors = ((8, 8), (12, 20)), ((40, 40),)
  >>> assign = jax.jit(functools.partial(yolov3_assign, anchors=anchors, strides=(8, 16), canvas=(16, 32)))
  >>> found = assign(jnp.array([[9, 1, 16, 7.0]]))
  >>> found.slots.tolist(), found.owner.shape, int(found.positive.sum())
  ([2], (18,), 1)
  """
  check_choice('yolov3_assign', 'match', match, ('global', 'per_level'))
  grids = level_grids('yolov3_assign', anchors, strides, canvas)
  boxes = jax.lax.stop_gradient(at_least_float32(boxes))
  check_axes('yolov3_assign', boxes=(boxes, 'N 4'))
  real = as_valid('yolov3_assign', 'valid', valid, boxes.shape[:1]) & (box_area(boxes) > 0)
  count, total = boxes.shape[0], sum(math.prod(grid) for grid in grids)
  slots = _slot_of_each_anchor(pick(real, boxes, 0), grids, strides)

  # Every pair of object and anchor that wants its slot has a priority: the fit, less 2 unless it is the object's best
  # anchor, so that an extra match never takes a best one's slot.
  fit = pairwise_iou(_centred(boxes[:, 2:] - boxes[:, :2]),
                     _centred(jnp.asarray([prior for level in anchors for prior in level])))
  wanted = is_best = _best_of_each(fit, [grid[2] for grid in grids] if match == 'per_level' else [fit.shape[1]])
  if extra_match_iou is not None:
    wanted = is_best | (fit > extra_match_iou)
  owner = winners(slots, jnp.where(is_best, fit, fit - 2), wanted & real[:, None], total)

  best_slots = jnp.take_along_axis(slots, jnp.argmax(fit, axis=-1)[:, None], axis=-1)[:, 0]
  lost = real & (owner[best_slots] != jnp.arange(count))
  positive = owner < count
  return YoloAssignment(positive, jnp.where(positive, owner, 0).astype(jnp.int32), best_slots.astype(jnp.int32),
                        jnp.sum(lost, dtype=jnp.int32))


def slot_targets(where: str, outputs: tuple[Array, ...], boxes: Array, labels: Array, *, anchors: tuple,
                 strides: tuple[int, ...], ignore_threshold: float, ignore: str, match: str,
                 extra_match_iou: float | None, boxes_valid: Array | None, valid: Array | None) -> SlotTargets:
  """What every slot of a head with anchors should predict; the arguments are those of `yolov3_loss`."""
  check_choice(where, 'ignore', ignore, ('predicted', 'anchor'))
  check_choice(where, 'match', match, ('global', 'per_level'))
  canvas = check_outputs(where, outputs, anchors, strides)
  check_axes(where, **{f'outputs[{i}]': (x, f'B h{i} w{i} A{i} 5+K') for i, x in enumerate(outputs)},
             boxes=(boxes, 'B N 4'), labels=(labels, 'B N'))
  boxes, labels, real, valid = real_targets(where, boxes, labels, boxes_valid, valid)
  # Emptied before any arithmetic: a NaN that is only selected away at the end comes back in the gradient.
  outputs = tuple(pick(valid, at_least_float32(output), 0) for output in outputs)
  predicted = flatten_levels(tuple(yolo_decode(output, priors, stride=stride)
                                   for output, priors, stride in zip(outputs, anchors, strides, strict=True)))
  slots = yolo_slots(anchors=anchors, strides=strides, canvas=canvas)
  assign = functools.partial(yolov3_assign, anchors=anchors, strides=strides, canvas=canvas, match=match,
                             extra_match_iou=extra_match_iou)
  positive, owner, _, collisions = jax.vmap(assign)(boxes, valid=real)
  # A slot that is not positive is compared with box 0: a finite number, which is then selected away.
  target = jnp.take_along_axis(boxes, owner[..., None], axis=1)
  found = jax.lax.stop_gradient(predicted)
  # Empty boxes hold zeros, so that they overlap nothing.
  overlap = jnp.max(pairwise_iou(found if ignore == 'predicted' else _anchor_boxes(slots), boxes), axis=-1)
  return SlotTargets(
      raw=flatten_levels(outputs), predicted=predicted, positive=positive,
      background=~positive & (overlap <= ignore_threshold) & valid[:, None],
      boxes=target, labels=jnp.take_along_axis(labels, owner, axis=1), iou=jnp.where(positive, iou(found, target), 0),
      area=jnp.minimum(box_area(target) / (canvas[0] * canvas[1]), 1), slots=slots, valid=valid, owner=owner,
      collisions=collisions)


def slot_roles(targets: SlotTargets, outputs: tuple[Array, ...]) -> Roles:
  """What the slots of these levels are for; the boxes are the predicted ones."""
  return roles_of(targets.predicted, targets.positive, targets.owner, targets.valid, ignored=~targets.background,
                  levels=tuple(math.prod(output.shape[1:4]) for output in outputs), collisions=targets.collisions)


def slot_box_loss(targets: SlotTargets, box_loss: str) -> Array:
  """Each slot's box loss against its object, [B, S]; what slots hold that are not positive is finite."""
  if box_loss != 'sse':
    return _BOX_LOSSES[box_loss](targets.predicted, targets.boxes)
  slots = targets.slots
  return squared_error(targets.raw, yolo_encode(targets.boxes, slots.cells, slots.anchors, stride=slots.strides))


def squared_error(raw: Array, goal: Array) -> Array:
  """Half the squared error of (sigmoid(t_x), sigmoid(t_y), t_w, t_h)."""
  said = jnp.concatenate([jax.nn.sigmoid(raw[..., :2]), raw[..., 2:4]], axis=-1)
  return jnp.sum((said - goal) ** 2, axis=-1) / 2


def winners(places: Array, priority: Array, wanted: Array, total: int) -> Array:
  """The object that has each of `total` places: of those that want it the one of highest priority, then the first.

  `places`, `priority` and `wanted` are [N, choices]; where nobody wants a place, it holds N.
  """
  count = places.shape[0]
  priority = jnp.where(wanted, priority, -jnp.inf)
  highest = jnp.full(total, -jnp.inf, priority.dtype).at[places].max(priority)
  claim = jnp.where(wanted & (priority == highest[places]), jnp.arange(count)[:, None], count)
  return jnp.full(total, count).at[places].min(claim)


def check_box_loss(where: str, box_loss: str) -> None:
  check_choice(where, 'box_loss', box_loss, ('sse', *_BOX_LOSSES))


def _best_of_each(fit: Array, sizes: list[int]) -> Array:
  """bool [N, anchors]: the first best in each row, in each group of so many columns."""
  groups, before = [], 0
  for size in sizes:
    best = jnp.argmax(fit[:, before:before + size], axis=-1)
    groups.append(jnp.arange(size) == best[:, None])
    before += size
  return jnp.concatenate(groups, axis=-1)


def _centred(sizes: Array) -> Array:
  """Boxes of these (w, h) around the origin."""
  return jnp.concatenate([-sizes / 2, sizes / 2], axis=-1)


def _anchor_boxes(slots: YoloSlots) -> Array:
  """Each slot's anchor around the middle of its cell, xyxy."""
  return jnp.tile((slots.cells + 0.5) * slots.strides, 2) + _centred(slots.anchors)


def _slot_of_each_anchor(boxes: Array, grids: tuple[tuple[int, int, int], ...], strides: tuple[int, ...]) -> Array:
  """For each box the slot of every anchor in the cell that holds the box's centre: int [N, number of anchors]."""
  centre, columns, before = (boxes[:, :2] + boxes[:, 2:]) / 2, [], 0
  for (h, w, anchors), stride in zip(grids, strides, strict=True):
    cell = jnp.clip(jnp.floor(centre / stride), 0, jnp.asarray([w - 1, h - 1])).astype(jnp.int32)
    first = before + (cell[:, 1] * w + cell[:, 0]) * anchors
    columns.append(first[:, None] + jnp.arange(anchors))
    before += h * w * anchors
  return jnp.concatenate(columns, axis=-1)
