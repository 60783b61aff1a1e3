"""SSD's loss: softmax cross-entropy with hard negatives, smooth L1 on the deltas of the positive default boxes.

Units: boxes and default boxes are xyxy in canvas pixels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vision_jax.conventions import Array, Term
from vision_jax.losses.boxes import smooth_l1_loss
from vision_jax.losses.classification import softmax_cross_entropy
from vision_jax.losses.targets import Roles, assign_by_iou, check_axes, real_targets, roles_of, rows
from vision_jax.ops.arrays import at_least_float32, pick
from vision_jax.ops.assignment import MaxIouAssignment
from vision_jax.ops.deltas import encode_deltas


def ssd_loss(logits: Array, deltas: Array, boxes: Array, labels: Array, *, anchors: Array, iou_threshold: float = 0.5,
             negatives_per_positive: float = 3.0, min_negatives: int = 0,
             variances: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2), boxes_valid: Array | None = None,
             valid: Array | None = None) -> dict[str, Term]:
  """SSD's loss: class and box.

  A default box learns the object that it overlaps most, from `iou_threshold` on; and each object is learned by the
  default box that overlaps it most, even below. Of the others, those with the highest cross-entropy in their image
  learn that nothing is there.

  Args:
    logits: [B, A, K + 1], softmax classes; the first is the background, and class k stands at k + 1.
    deltas: [B, A, 4], as in `vision_jax.ops.encode_deltas` with these variances.
    boxes: [B, N, 4] xyxy, canvas pixels.
    labels: int [B, N], 0..K-1.
    anchors: [A, 4] xyxy, canvas pixels, such as `vision_jax.ops.ssd_default_boxes` gives.
    iou_threshold: 0..1.
    negatives_per_positive: at least 0: so many hard negatives for each positive default box of the same image.
    min_negatives: at least so many hard negatives in each image. At 0 an image without objects teaches nothing.
    variances: four positive numbers.
    boxes_valid: bool [B, N], True for real boxes; all when left out.
    valid: bool [B], False for padding of the batch; all True when left out.

  Returns:
    `loss_class`, over positives and hard negatives, and `loss_box`, over positives: sums over the valid images. Both
    have the same count, the number of positive default boxes. Assignment, mining and targets carry no gradient.

  Raises:
    ValueError: shapes that do not fit, or an option out of range.

  Reference: Liu et al., SSD, arXiv 1512.02325, equations 1 to 3 and section 2.2.
  Differs from torchvision: where fewer negatives than asked for are left, it counts positives twice; here all negatives
  are taken, and that is all.

  >>> anchors, box = jnp.array([[0, 0, 8, 8], [8, 0, 16, 8.0]]), jnp.array([[[0, 0, 8, 10.0]]])
  >>> loss = jax.jit(ssd_loss)
  >>> terms = loss(jnp.zeros((1, 2, 3)), jnp.zeros((1, 2, 4)), box, jnp.array([[1]]), anchors=anchors)
  >>> {name: (round(float(term.total), 4), int(term.count)) for name, term in terms.items()}
  {'loss_box': (1.3657, 1), 'loss_class': (2.1972, 1)}
  """
  check_axes('ssd_loss', logits=(logits, 'B A K+1'), deltas=(deltas, 'B A 4'), boxes=(boxes, 'B N 4'),
             labels=(labels, 'B N'), anchors=(anchors, 'A 4'))
  if not (negatives_per_positive >= 0 and min_negatives >= 0):
    raise ValueError(f'ssd_loss: negatives_per_positive is {negatives_per_positive}, min_negatives {min_negatives}; '
                     'give numbers of at least 0')
  boxes, labels, real, valid = real_targets('ssd_loss', boxes, labels, boxes_valid, valid)
  # Emptied before any arithmetic: a NaN that is only selected away at the end comes back in the gradient.
  logits, deltas = pick(valid, at_least_float32(logits), 0), pick(valid, at_least_float32(deltas), 0)
  anchors = jax.lax.stop_gradient(at_least_float32(anchors))
  positive, _, owner = _assign(boxes, anchors, real, iou_threshold)

  goal = encode_deltas(rows(boxes, owner), anchors, variances=variances)
  box = pick(positive, smooth_l1_loss(deltas, goal), 0)
  classes = softmax_cross_entropy(logits, jnp.where(positive, rows(labels, owner) + 1, 0))
  negative = _hard_negatives(classes, positive, valid, negatives_per_positive, min_negatives)
  count = jnp.sum(positive, dtype=box.dtype)
  return {
      'loss_class': Term(jnp.sum(jnp.where(positive | negative, classes, 0)), count),
      'loss_box': Term(jnp.sum(box), count),
  }


def roles(logits: Array, deltas: Array, boxes: Array, labels: Array, *, anchors: Array, iou_threshold: float,
          negatives_per_positive: float, min_negatives: int, boxes_valid: Array | None = None,
          valid: Array | None = None) -> Roles:
  """What each default box is for in `ssd_loss`, whose arguments these are; negatives too easy to learn are ignored."""
  boxes, _, real, valid = real_targets('ssd_loss', boxes, labels, boxes_valid, valid)
  anchors = jax.lax.stop_gradient(at_least_float32(anchors))
  positive, _, owner = _assign(boxes, anchors, real, iou_threshold)
  # Of negatives alone, whose class is the background.
  classes = softmax_cross_entropy(pick(valid, at_least_float32(logits), 0), jnp.zeros(positive.shape, int))
  negative = _hard_negatives(classes, positive, valid, negatives_per_positive, min_negatives)
  return roles_of(anchors, positive, owner, valid, ignored=~negative)


def _assign(boxes: Array, anchors: Array, real: Array, iou_threshold: float) -> MaxIouAssignment:
  return assign_by_iou(boxes, anchors, real, high=iou_threshold, low=iou_threshold, low_quality='force')


def _hard_negatives(costs: Array, positive: Array, valid: Array, negatives_per_positive: float, min_negatives: int
                    ) -> Array:
  """bool [B, A]: those negatives of each valid image whose costs [B, A] are highest, of equals the first."""
  positives, total = jnp.sum(positive, axis=1), positive.shape[1]
  wanted = jnp.minimum(jnp.maximum(negatives_per_positive * positives, min_negatives), total - positives)
  wanted = jnp.where(valid, jnp.ceil(wanted), 0).astype(int)[:, None]
  # Cross-entropies are at least 0: positives go last, and are never reached.
  costs = jnp.where(positive, -1, jax.lax.stop_gradient(costs))
  hardest = jnp.sort(costs, axis=1, descending=True)
  least = jnp.take_along_axis(hardest, jnp.maximum(wanted - 1, 0), axis=1, mode='clip')
  # Not `>`: a NaN shall reach the loss.
  above, equal = ~(costs <= least), costs == least
  among = equal & (jnp.cumsum(equal, axis=1) <= wanted - jnp.sum(above, axis=1, keepdims=True))
  return (above | among) & (wanted > 0) & ~positive
