"""RetinaNet's loss: focal loss over all anchors, L1 on the deltas of the positive ones.

Units: boxes and anchors are xyxy in canvas pixels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vision_jax.conventions import Array, Term
from vision_jax.losses.boxes import l1_loss
from vision_jax.losses.classification import focal_loss
from vision_jax.losses.targets import Roles, assign_by_iou, check_axes, real_targets, roles_of, rows
from vision_jax.ops.arrays import at_least_float32, pick
from vision_jax.ops.assignment import MaxIouAssignment
from vision_jax.ops.deltas import encode_deltas


def retinanet_loss(logits: Array, deltas: Array, boxes: Array, labels: Array, *, anchors: Array,
                   positive_iou: float = 0.5, negative_iou: float = 0.4, alpha: float | None = 0.25,
                   gamma: float = 2.0, boxes_valid: Array | None = None, valid: Array | None = None
                   ) -> dict[str, Term]:
  """RetinaNet's loss: class and box.

  An anchor learns the object that it overlaps most, if their IoU reaches `positive_iou` or is the best that this or
  another object has with any anchor; below `negative_iou` it learns that nothing is there, and between it learns
  nothing. Both losses of an image are divided by its positive anchors.

  Args:
    logits: [B, A, K], sigmoid classes; there is no background class.
    deltas: [B, A, 4], as in `vision_jax.ops.encode_deltas` without variances.
    boxes: [B, N, 4] xyxy, canvas pixels.
    labels: int [B, N], 0..K-1.
    anchors: [A, 4] xyxy, canvas pixels, such as `vision_jax.ops.retinanet_anchors` gives.
    positive_iou: 0..1.
    negative_iou: 0..1, at most `positive_iou`.
    alpha: 0..1, of the focal loss; None weighs positives and negatives alike.
    gamma: at least 0, of the focal loss.
    boxes_valid: bool [B, N], True for real boxes; all when left out.
    valid: bool [B], False for padding of the batch; all True when left out.

  Returns:
    `loss_class` and `loss_box`: sums over the valid images of each image's sum over its positive anchors' number (at
    least 1). Both have the same count, the number of valid images. The assignment and the targets carry no gradient.

  Raises:
    ValueError: shapes that do not fit, or an option out of range.

  Reference: Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, section 4.
  Differs from the paper: L1 in place of smooth L1, and each image's best anchors count as positive, as in torchvision.

  >>> anchors, box = jnp.array([[0, 0, 8, 8], [8, 0, 16, 8.0]]), jnp.array([[[0, 0, 8, 10.0]]])
  >>> loss = jax.jit(retinanet_loss)
  >>> terms = loss(jnp.zeros((1, 2, 3)), jnp.zeros((1, 2, 4)), box, jnp.array([[1]]), anchors=anchors)
  >>> {name: (round(float(term.total), 4), int(term.count)) for name, term in terms.items()}
  {'loss_box': (0.3481, 1), 'loss_class': (0.6931, 1)}
  """
  classes = check_axes('retinanet_loss', logits=(logits, 'B A K'), deltas=(deltas, 'B A 4'), boxes=(boxes, 'B N 4'),
                       labels=(labels, 'B N'), anchors=(anchors, 'A 4'))['K']
  boxes, labels, real, valid = real_targets('retinanet_loss', boxes, labels, boxes_valid, valid)
  # Emptied before any arithmetic: a NaN that is only selected away at the end comes back in the gradient.
  logits, deltas = pick(valid, at_least_float32(logits), 0), pick(valid, at_least_float32(deltas), 0)
  anchors = jax.lax.stop_gradient(at_least_float32(anchors))
  positive, ignored, owner = _assign(boxes, anchors, real, positive_iou, negative_iou)

  truth = (rows(labels, owner)[..., None] == jnp.arange(classes)) & positive[..., None]
  focal = pick(~ignored, focal_loss(logits, truth, alpha=alpha, gamma=gamma), 0)
  box = pick(positive, l1_loss(deltas, encode_deltas(rows(boxes, owner), anchors)), 0)
  positives, images = jnp.sum(positive, axis=1, dtype=box.dtype), jnp.sum(valid, dtype=box.dtype)
  share = jnp.where(valid, 1 / jnp.maximum(positives, 1), 0)
  return {
      'loss_class': Term(jnp.sum(share * jnp.sum(focal, axis=(1, 2))), images),
      'loss_box': Term(jnp.sum(share * jnp.sum(box, axis=(1, 2))), images),
  }


def roles(logits: Array, deltas: Array, boxes: Array, labels: Array, *, anchors: Array, positive_iou: float,
          negative_iou: float, boxes_valid: Array | None = None, valid: Array | None = None) -> Roles:
  """What each anchor is for in `retinanet_loss`, whose arguments these are."""
  boxes, _, real, valid = real_targets('retinanet_loss', boxes, labels, boxes_valid, valid)
  anchors = jax.lax.stop_gradient(at_least_float32(anchors))
  positive, ignored, owner = _assign(boxes, anchors, real, positive_iou, negative_iou)
  return roles_of(anchors, positive, owner, valid, ignored=ignored)


def _assign(boxes: Array, anchors: Array, real: Array, positive_iou: float, negative_iou: float) -> MaxIouAssignment:
  return assign_by_iou(boxes, anchors, real, high=positive_iou, low=negative_iou, low_quality='ties')
