"""YOLOv2's loss: one level, a softmax over the classes, squared errors for the rest.

Units: canvas pixels; anchors are (w, h). A slot is one anchor in one cell, numbered as in `vision_jax.ops.yolo_slots`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vision_jax.conventions import Array, Term
from vision_jax.losses.classification import softmax_cross_entropy
from vision_jax.losses.targets import Roles
from vision_jax.losses.yolo_targets import (
  SlotTargets,
  check_box_loss,
  slot_box_loss,
  slot_roles,
  slot_targets,
  squared_error,
)
from vision_jax.ops.arrays import check_choice

# The scales of `yolov2.cfg`; `loss_prior`, which darknet minimises with 0.01 over its first 12,800 images, comes extra.
YOLOV2_WEIGHTS = {'loss_box': 1.0, 'loss_objectness': 5.0, 'loss_no_object': 1.0, 'loss_class': 1.0}


def yolov2_loss(outputs: Array, boxes: Array, labels: Array, *, anchors: tuple, stride: int, box_loss: str = 'sse',
                small_box_weight: bool = True, ignore_threshold: float = 0.6, objectness_target: str = 'iou',
                prior: bool = False, boxes_valid: Array | None = None, valid: Array | None = None) -> dict[str, Term]:
  """YOLOv2's loss: box, objectness, no object and class.

  Every object goes to the anchor that fits its shape best, in the cell of its centre (`yolov3_assign` with one level).
  Objectness is half the squared error of sigmoid(t_o): against its box's IoU with the object in a positive slot,
  against 0 in the others, except those that predict a box with an IoU above `ignore_threshold` with any object. Classes
  are a softmax cross-entropy in each positive slot. Assignment, ignoring and targets carry no gradient.

  Args:
    outputs: [B, h, w, A, 5 + K]: t_x, t_y, t_w, t_h, objectness, K classes, before any activation.
    boxes: [B, N, 4] xyxy, canvas pixels.
    labels: int [B, N], 0..K-1.
    anchors: A anchors (w, h), canvas pixels.
    stride: the canvas pixels that one cell covers; 32 in the paper.
    box_loss: 'sse', half the squared error of (sigmoid(t_x), sigmoid(t_y), t_w, t_h); or 'iou', 'giou', 'diou',
      'ciou', one less that similarity of the decoded box.
    small_box_weight: weighs a box by 2 - w h (shares of the canvas), as darknet's later releases do; else by 1.
    ignore_threshold: 0..1; at 1 nothing is ignored.
    objectness_target: what a positive slot should predict: 'iou', its decoded box's IoU with its object; or 'binary',
      1.
    prior: whether to add the Term `loss_prior`, which pulls the boxes of slots without object to their anchors.
    boxes_valid: bool [B, N], True for real boxes; all when left out.
    valid: bool [B], False for padding of the batch; all True when left out.

  Returns:
    `loss_box`, `loss_objectness`, `loss_no_object`, `loss_class`, and `loss_prior` where asked for: sums over the
    valid images, whose number all have as count. `YOLOV2_WEIGHTS` holds darknet's scales.

  Raises:
    ValueError: an unknown option, or outputs, anchors, boxes and labels that do not fit together.

  Reference: Redmon and Farhadi, YOLO9000, arXiv 1612.08242, section 2; the rest is in darknet only: its region layer
  and `yolov2.cfg` (thresh 0.6, rescore, scales 1, 5, 1 and 1).
  Differs from darknet: collisions are resolved otherwise (`yolov3_assign`); its later releases leave the slope of the
  sigmoid out of the gradients of t_x, t_y and objectness; what it prints is the squared length of the gradient.

  >>> raw, box = jnp.zeros((1, 2, 2, 1, 7)), jnp.array([[[1.0, 10, 7, 14]]])
  >>> loss = jax.jit(yolov2_loss, static_argnames=('anchors', 'stride'))
  >>> terms = loss(raw, box, jnp.array([[0]]), anchors=((6, 4),), stride=8)
  >>> {name: round(float(term.total), 4) for name, term in terms.items()}
  {'loss_box': 0.0, 'loss_class': 0.6931, 'loss_no_object': 0.375, 'loss_objectness': 0.125}
  >>> f'{sum(YOLOV2_WEIGHTS[k] * t.total / jnp.maximum(t.count, t.floor) for k, t in terms.items()):.4f}'
  '1.6931'
  """
  check_box_loss('yolov2_loss', box_loss)
  check_choice('yolov2_loss', 'objectness_target', objectness_target, ('iou', 'binary'))
  slots = _targets(outputs, boxes, labels, anchors, stride, ignore_threshold, boxes_valid, valid)
  raw, positive = slots.raw, slots.positive
  box = slot_box_loss(slots, box_loss) * (2 - slots.area if small_box_weight else 1)
  said, goal = jax.nn.sigmoid(raw[..., 4]), slots.iou if objectness_target == 'iou' else positive
  images = jnp.sum(slots.valid, dtype=raw.dtype)
  sums = {
      'loss_box': jnp.where(positive, box, 0),
      'loss_objectness': jnp.where(positive, (said - goal) ** 2 / 2, 0),
      'loss_no_object': jnp.where(slots.background, said**2 / 2, 0),
      'loss_class': jnp.where(positive, softmax_cross_entropy(raw[..., 5:], slots.labels), 0),
  }
  if prior:  # an object's own pull replaces that of its slot's anchor; an image that is not valid has no error
    sums['loss_prior'] = jnp.where(positive, 0, squared_error(raw, jnp.array([0.5, 0.5, 0, 0], raw.dtype)))
  return {name: Term(jnp.sum(values), images) for name, values in sums.items()}


def roles(outputs: Array, boxes: Array, labels: Array, *, anchors: tuple, stride: int, ignore_threshold: float,
          boxes_valid: Array | None = None, valid: Array | None = None) -> Roles:
  """What each slot is for in `yolov2_loss`, whose arguments these are."""
  targets = _targets(outputs, boxes, labels, anchors, stride, ignore_threshold, boxes_valid, valid)
  return slot_roles(targets, (outputs,))


def _targets(outputs: Array, boxes: Array, labels: Array, anchors: tuple, stride: int, ignore_threshold: float,
             boxes_valid: Array | None, valid: Array | None) -> SlotTargets:
  """What every slot of the one level should predict."""
  return slot_targets('yolov2_loss', (jnp.asarray(outputs),), boxes, labels, anchors=(anchors,), strides=(stride,),
                      ignore_threshold=ignore_threshold, ignore='predicted', match='global', extra_match_iou=None,
                      boxes_valid=boxes_valid, valid=valid)
