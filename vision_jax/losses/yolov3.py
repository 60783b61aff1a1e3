"""YOLOv3's loss; its assignment of objects to slots stands in `vision_jax.losses.yolo_targets`.

Units: canvas pixels; anchors are (w, h), canvases (h, w). A slot is one anchor in one cell of one level, numbered as in
`vision_jax.ops.yolo_slots`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vision_jax.conventions import Array, Term
from vision_jax.losses.classification import check_smoothing, sigmoid_cross_entropy
from vision_jax.losses.targets import Roles
from vision_jax.losses.yolo_targets import check_box_loss, slot_box_loss, slot_roles, slot_targets
from vision_jax.ops.arrays import check_choice


def yolov3_loss(outputs: tuple[Array, ...], boxes: Array, labels: Array, *, anchors: tuple, strides: tuple[int, ...],
                box_loss: str = 'sse', ignore_threshold: float = 0.7, ignore: str = 'predicted',
                objectness_target: str = 'binary', label_smoothing: float = 0.0, match: str = 'global',
                extra_match_iou: float | None = None, boxes_valid: Array | None = None,
                valid: Array | None = None) -> dict[str, Term]:
  """YOLOv3's loss: box, objectness and class.

  The box loss of a positive slot is weighted by 2 - w h (of the box, as shares of the canvas), so that small boxes
  count up to twice as much. Objectness is a binary cross-entropy over all slots, except those that are not positive but
  whose box has an IoU above `ignore_threshold` with an object. Classes are K binary cross-entropies in each positive
  slot. Assignment, ignoring and targets carry no gradient.

  Args:
    outputs: for each level [B, h, w, A, 5 + K]: t_x, t_y, t_w, t_h, objectness, K classes, before any activation.
    boxes: [B, N, 4] xyxy, canvas pixels.
    labels: int [B, N], 0..K-1.
    anchors: for each level its A anchors (w, h), canvas pixels.
    strides: for each level the canvas pixels that one cell covers.
    box_loss: 'sse', half the squared error of (sigmoid(t_x), sigmoid(t_y), t_w, t_h); or 'iou', 'giou', 'diou',
      'ciou', one less that similarity of the decoded box.
    ignore_threshold: 0..1; at 1 nothing is ignored. The paper says 0.5, `yolov3.cfg` 0.7.
    ignore: whose IoU that is: 'predicted', the slot's decoded box, as in darknet; or 'anchor', the slot's anchor around
      the middle of its cell, as in the paper's words.
    objectness_target: what a positive slot should predict: 'binary', 1; or 'iou', its decoded box's IoU with its
      object.
    label_smoothing: epsilon in 0..1; class targets become epsilon / 2 and 1 - epsilon / 2.
    match: 'global' or 'per_level', as in `yolov3_assign`.
    extra_match_iou: as in `yolov3_assign`.
    boxes_valid: bool [B, N], True for real boxes; all when left out.
    valid: bool [B], False for padding of the batch; all True when left out.

  Returns:
    `loss_box`, `loss_objectness` and `loss_class`: sums over the valid images. All three have the same count, the
    number of positive slots, so that crowded and sparse batches weigh their objects alike.

  Raises:
    ValueError: an unknown option, or levels, anchors, strides, boxes and labels that do not fit together.

  Reference: Redmon and Farhadi, YOLOv3, arXiv 1804.02767, section 2; ignoring by the predicted box, 0.7 and the box
  weight are darknet's (`yolov3.cfg`).
  Differs from darknet: it sums over each image, and has no divisor but the batch; it treats the gradient of the
  squared error in sigmoid(t_x) as that in t_x; collisions are resolved otherwise (`yolov3_assign`).

  >>> raw, box = jnp.zeros((1, 2, 2, 1, 6)), jnp.array([[[1.0, 10, 7, 14]]])
  >>> loss = jax.jit(yolov3_loss, static_argnames=('anchors', 'strides'))
  >>> terms = loss((raw,), box, jnp.array([[0]]), anchors=(((6, 4),),), strides=(8,))
  >>> {name: (round(float(term.total), 4), int(term.count)) for name, term in terms.items()}
  {'loss_box': (0.0, 1), 'loss_class': (0.6931, 1), 'loss_objectness': (2.7726, 1)}
  """
  check_box_loss('yolov3_loss', box_loss)
  check_choice('yolov3_loss', 'objectness_target', objectness_target, ('binary', 'iou'))
  check_smoothing('yolov3_loss', label_smoothing)
  slots = slot_targets('yolov3_loss', outputs, boxes, labels, anchors=anchors, strides=strides,
                       ignore_threshold=ignore_threshold, ignore=ignore, match=match, extra_match_iou=extra_match_iou,
                       boxes_valid=boxes_valid, valid=valid)
  raw, positive = slots.raw, slots.positive
  box = (2 - slots.area) * slot_box_loss(slots, box_loss)
  objectness = sigmoid_cross_entropy(raw[..., 4], positive if objectness_target == 'binary' else slots.iou)
  truth = jax.nn.one_hot(slots.labels, raw.shape[-1] - 5, dtype=raw.dtype)
  truth = truth * (1 - label_smoothing) + label_smoothing / 2
  classes = jnp.sum(sigmoid_cross_entropy(raw[..., 5:], truth), axis=-1)
  count = jnp.sum(positive, dtype=raw.dtype)
  return {
      'loss_box': Term(jnp.sum(jnp.where(positive, box, 0)), count),
      'loss_objectness': Term(jnp.sum(jnp.where(positive | slots.background, objectness, 0)), count),
      'loss_class': Term(jnp.sum(jnp.where(positive, classes, 0)), count),
  }


def roles(outputs: tuple[Array, ...], boxes: Array, labels: Array, *, anchors: tuple, strides: tuple[int, ...],
          ignore_threshold: float, ignore: str, match: str, extra_match_iou: float | None,
          boxes_valid: Array | None = None, valid: Array | None = None) -> Roles:
  """What each slot is for in `yolov3_loss`, whose arguments these are."""
  return slot_roles(slot_targets(
      'yolov3_loss', outputs, boxes, labels, anchors=anchors, strides=strides, ignore_threshold=ignore_threshold,
      ignore=ignore, match=match, extra_match_iou=extra_match_iou, boxes_valid=boxes_valid, valid=valid), outputs)
