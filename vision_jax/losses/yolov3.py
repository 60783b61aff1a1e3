"""YOLOv3's assignment of objects to slots, and its loss.

Units: canvas pixels; anchors are (w, h), canvases (h, w). A slot is one anchor in one cell of one level, numbered as in
`vision_jax.ops.yolo_slots`.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vision_jax.conventions import Array, Term
from vision_jax.losses.boxes import ciou_loss, diou_loss, giou_loss, iou_loss
from vision_jax.losses.classification import check_smoothing, sigmoid_cross_entropy
from vision_jax.ops.arrays import at_least_float32, check_last_axis, pick
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
    slots: int32 [N], the slot of each object's best anchor; unspecified for an invalid box.
    collisions: int32 scalar, the objects whose best slot went to another object.

  >>> YoloAssignment(jnp.zeros(6, bool), jnp.zeros(6, int), jnp.zeros(2, int), jnp.array(0)).positive.shape
  (6,)
  """

  positive: Array
  owner: Array
  slots: Array
  collisions: Array


def yolov3_assign(boxes: Array, *, anchors: tuple, strides: tuple[int, ...], canvas: tuple[int, int],
                  extra_match_iou: float | None = None, valid: Array | None = None) -> YoloAssignment:
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
    extra_match_iou: further anchors whose centred IoU with a box exceeds this are positive too, in slots that are no
      object's best; none when left out.
    valid: bool [N], True for real boxes; all when left out. A box without width or height takes no slot.

  Returns:
    `YoloAssignment` over the S slots of `vision_jax.ops.yolo_slots`.

  Raises:
    ValueError: boxes are not [N, 4], anchors and strides differ in number, or a stride does not divide the canvas.

  Reference: Redmon and Farhadi, YOLOv3, arXiv 1804.02767, section 2.1.
  Differs from darknet: there the later object in the list takes a slot that two want, with the class of both.

  >>> anchors = ((8, 8), (12, 20)), ((40, 40),)
  >>> assign = jax.jit(functools.partial(yolov3_assign, anchors=anchors, strides=(8, 16), canvas=(16, 32)))
  >>> found = assign(jnp.array([[9, 1, 16, 7.0]]))
  >>> found.slots.tolist(), found.owner.shape, int(found.positive.sum())
  ([2], (18,), 1)
  """
  grids = level_grids('yolov3_assign', anchors, strides, canvas)
  check_last_axis('yolov3_assign', 'boxes', boxes, 4)
  boxes = jax.lax.stop_gradient(at_least_float32(boxes))
  real = jnp.ones(boxes.shape[:1], bool) if valid is None else jnp.asarray(valid)
  real = real & (box_area(boxes) > 0)
  count, total = boxes.shape[0], sum(math.prod(grid) for grid in grids)
  slots = _slot_of_each_anchor(pick(real, boxes, 0), grids, strides)

  # Every pair of object and anchor that wants its slot has a priority: the fit, less 2 unless it is the object's best
  # anchor, so that an extra match never takes a best one's slot. The highest wins the slot, then the lowest index.
  fit = pairwise_iou(_centred(boxes[:, 2:] - boxes[:, :2]),
                     _centred(jnp.asarray([prior for level in anchors for prior in level])))
  best = jnp.argmax(fit, axis=-1)
  wanted = is_best = jnp.arange(fit.shape[1]) == best[:, None]
  if extra_match_iou is not None:
    wanted = is_best | (fit > extra_match_iou)
  wanted = wanted & real[:, None]
  priority = jnp.where(wanted, fit - 2 * (~is_best), -3)
  highest = jnp.full(total, -3, priority.dtype).at[slots].max(priority)
  claim = jnp.where(wanted & (priority == highest[slots]), jnp.arange(count)[:, None], count)
  owner = jnp.full(total, count).at[slots].min(claim)

  best_slots = jnp.take_along_axis(slots, best[:, None], axis=-1)[:, 0]
  lost = real & (owner[best_slots] != jnp.arange(count))
  positive = owner < count
  return YoloAssignment(positive, jnp.where(positive, owner, 0).astype(jnp.int32), best_slots.astype(jnp.int32),
                        jnp.sum(lost, dtype=jnp.int32))


def yolov3_loss(outputs: tuple[Array, ...], boxes: Array, labels: Array, *, anchors: tuple, strides: tuple[int, ...],
                box_loss: str = 'sse', ignore_threshold: float = 0.7, objectness_target: str = 'binary',
                label_smoothing: float = 0.0, extra_match_iou: float | None = None, boxes_valid: Array | None = None,
                valid: Array | None = None) -> dict[str, Term]:
  """YOLOv3's loss: box, objectness and class.

  The box loss of a positive slot is weighted by 2 - w h (of the box, as shares of the canvas), so that small boxes
  count up to twice as much. Objectness is a binary cross-entropy over all slots, except those that are not positive but
  predict a box with IoU above `ignore_threshold` with an object. Classes are K binary cross-entropies in each positive
  slot. Assignment, ignoring and IoU targets carry no gradient.

  Args:
    outputs: for each level [B, h, w, A, 5 + K]: t_x, t_y, t_w, t_h, objectness, K classes, before any activation.
    boxes: [B, N, 4] xyxy, canvas pixels.
    labels: int [B, N], 0..K-1.
    anchors: for each level its A anchors (w, h), canvas pixels.
    strides: for each level the canvas pixels that one cell covers.
    box_loss: 'sse', half the squared error of (sigmoid(t_x), sigmoid(t_y), t_w, t_h); or 'iou', 'giou', 'diou',
      'ciou', one less that similarity of the decoded box.
    ignore_threshold: 0..1; at 1 nothing is ignored.
    objectness_target: what a positive slot should predict: 'binary', 1; or 'iou', its decoded box's IoU with its
      object.
    label_smoothing: epsilon in 0..1; class targets become epsilon / 2 and 1 - epsilon / 2.
    extra_match_iou: as in `yolov3_assign`.
    boxes_valid: bool [B, N], True for real boxes; all when left out.
    valid: bool [B], False for padding of the batch; all True when left out.

  Returns:
    `loss_box`, `loss_objectness` and `loss_class`: sums over the valid images. All three have the same count, the
    number of positive slots, so that crowded and sparse batches weigh their objects alike.

  Raises:
    ValueError: an unknown option, or levels, anchors and strides that do not fit together.

  Reference: Redmon and Farhadi, YOLOv3, arXiv 1804.02767, section 2; ignoring by the predicted box, 0.7 and the box
  weight are darknet's (`yolov3.cfg`).
  Differs from darknet: it sums over each image, and has no divisor but the batch; it treats the gradient of the
  squared error in sigmoid(t_x) as that in t_x; collisions are resolved otherwise (`yolov3_assign`).

  >>> raw, box = jnp.zeros((1, 2, 2, 1, 6)), jnp.array([[[1.0, 10, 7, 14]]])
  >>> loss = jax.jit(functools.partial(yolov3_loss, anchors=(((6, 4),),), strides=(8,)))
  >>> terms = loss((raw,), box, jnp.array([[0]]))
  >>> {name: (round(float(term.total), 4), int(term.count)) for name, term in terms.items()}
  {'loss_box': (0.0, 1), 'loss_class': (0.6931, 1), 'loss_objectness': (2.7726, 1)}
  """
  _check_options(box_loss, objectness_target, label_smoothing)
  canvas = check_outputs('yolov3_loss', outputs, anchors, strides)
  boxes, labels = at_least_float32(boxes), jnp.asarray(labels)
  check_last_axis('yolov3_loss', 'boxes', boxes, 4)
  valid = jnp.ones(boxes.shape[:1], bool) if valid is None else jnp.asarray(valid)
  real = jnp.ones(labels.shape, bool) if boxes_valid is None else jnp.asarray(boxes_valid)
  real = real & valid[:, None]
  # Emptied before any arithmetic: a NaN that is only selected away at the end comes back in the gradient.
  outputs = tuple(pick(valid, at_least_float32(output), 0) for output in outputs)
  predicted = flatten_levels(tuple(yolo_decode(output, priors, stride=stride)
                                   for output, priors, stride in zip(outputs, anchors, strides, strict=True)))
  sums = functools.partial(
      _image_sums, slots=yolo_slots(anchors=anchors, strides=strides, canvas=canvas), canvas=canvas, box_loss=box_loss,
      ignore_threshold=ignore_threshold, objectness_target=objectness_target, label_smoothing=label_smoothing,
      assign=functools.partial(yolov3_assign, anchors=anchors, strides=strides, canvas=canvas,
                               extra_match_iou=extra_match_iou))
  boxes, labels = pick(real, boxes, 0), pick(real, labels, 0)
  *totals, positives = jax.vmap(sums)(flatten_levels(outputs), predicted, boxes, labels, real)
  count = jnp.sum(jnp.where(valid, positives, 0))
  names = 'loss_box', 'loss_objectness', 'loss_class'
  return {name: Term(jnp.sum(jnp.where(valid, total, 0)), count) for name, total in zip(names, totals, strict=True)}


def _image_sums(raw: Array, predicted: Array, boxes: Array, labels: Array, real: Array, *, slots: YoloSlots,
                canvas: tuple[int, int], box_loss: str, ignore_threshold: float, objectness_target: str,
                label_smoothing: float, assign: Callable) -> tuple[Array, Array, Array, Array]:
  """Box, objectness and class sums of one image, and its number of positive slots.

  Invalid boxes hold zeros, so that they overlap nothing. A slot that is not positive is compared with box 0: a finite
  number, which is then selected away.
  """
  if boxes.shape[0] == 0:  # no slots for objects at all: one that is empty
    boxes, labels, real = jnp.zeros((1, 4), boxes.dtype), jnp.zeros(1, labels.dtype), jnp.zeros(1, bool)
  positive, owner, _, _ = assign(boxes, valid=real)
  target = boxes[owner]

  found = jax.lax.stop_gradient(predicted)
  ignored = ~positive & (jnp.max(pairwise_iou(found, boxes), axis=-1) > ignore_threshold)
  goal = positive if objectness_target == 'binary' else jnp.where(positive, iou(found, target), 0)
  objectness = jnp.where(ignored, 0, sigmoid_cross_entropy(raw[:, 4], goal))

  small = 2 - jnp.minimum(box_area(target) / (canvas[0] * canvas[1]), 1)
  if box_loss == 'sse':
    box = _squared_error(raw, target, slots)
  else:
    box = _BOX_LOSSES[box_loss](predicted, target)

  truth = jax.nn.one_hot(labels[owner], raw.shape[-1] - 5, dtype=raw.dtype)
  truth = truth * (1 - label_smoothing) + label_smoothing / 2
  classes = jnp.sum(sigmoid_cross_entropy(raw[:, 5:], truth), axis=-1)
  return (jnp.sum(jnp.where(positive, small * box, 0)), jnp.sum(objectness), jnp.sum(jnp.where(positive, classes, 0)),
          jnp.sum(positive, dtype=raw.dtype))


def _squared_error(raw: Array, target: Array, slots: YoloSlots) -> Array:
  goal = yolo_encode(target, slots.cells, slots.anchors, stride=slots.strides)
  said = jnp.concatenate([jax.nn.sigmoid(raw[:, :2]), raw[:, 2:4]], axis=-1)
  return jnp.sum((said - goal) ** 2, axis=-1) / 2


def _centred(sizes: Array) -> Array:
  """Boxes of these (w, h) around the origin."""
  return jnp.concatenate([-sizes / 2, sizes / 2], axis=-1)


def _slot_of_each_anchor(boxes: Array, grids: tuple[tuple[int, int, int], ...], strides: tuple[int, ...]) -> Array:
  """For each box the slot of every anchor in the cell that holds the box's centre: int [N, number of anchors]."""
  centre, columns, before = (boxes[:, :2] + boxes[:, 2:]) / 2, [], 0
  for (h, w, anchors), stride in zip(grids, strides, strict=True):
    cell = jnp.clip(jnp.floor(centre / stride), 0, jnp.asarray([w - 1, h - 1])).astype(jnp.int32)
    first = before + (cell[:, 1] * w + cell[:, 0]) * anchors
    columns.append(first[:, None] + jnp.arange(anchors))
    before += h * w * anchors
  return jnp.concatenate(columns, axis=-1)


def _check_options(box_loss: str, objectness_target: str, label_smoothing: float) -> None:
  check_smoothing('yolov3_loss', label_smoothing)
  if box_loss not in ('sse', *_BOX_LOSSES):
    raise ValueError(f'yolov3_loss: box_loss is {box_loss!r}; give one of sse, {", ".join(_BOX_LOSSES)}')
  if objectness_target not in ('binary', 'iou'):
    raise ValueError(f"yolov3_loss: objectness_target is {objectness_target!r}; give 'binary' or 'iou'")
