"""FCOS's loss: focal loss over all points, GIoU and centerness of those inside an object.

Units: boxes and anchors are xyxy in canvas pixels. A point is the centre of a square anchor as large as its level's
stride.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vision_jax.conventions import Array, Term
from vision_jax.losses.boxes import giou_loss
from vision_jax.losses.classification import focal_loss, sigmoid_cross_entropy
from vision_jax.losses.targets import Roles, check_axes, real_targets, roles_of, rows
from vision_jax.ops.arrays import at_least_float32, pick
from vision_jax.ops.boxes import box_area
from vision_jax.ops.deltas import centerness, decode_distances, encode_distances


def fcos_loss(logits: Array, distances: Array, centerness_logits: Array, boxes: Array, labels: Array, *,
              anchors: Array, radius: float = 1.5, alpha: float | None = 0.25, gamma: float = 2.0,
              boxes_valid: Array | None = None, valid: Array | None = None) -> dict[str, Term]:
  """FCOS's loss: class, box and centerness.

  A point learns an object if it lies inside its box, less than `radius` strides from its centre in x and in y, and if
  the farthest side of the box is 4 to 8 strides away: the finest level takes all that is nearer too, the coarsest all
  that is farther. Of several objects it learns the one with the smallest box.

  Args:
    logits: [B, A, K], sigmoid classes; there is no background class.
    distances: [B, A, 4] left, top, right, bottom in anchor sizes, at least 0, as after the head's ReLU.
    centerness_logits: [B, A].
    boxes: [B, N, 4] xyxy, canvas pixels.
    labels: int [B, N], 0..K-1.
    anchors: [A, 4] xyxy, canvas pixels, such as `vision_jax.ops.fcos_anchors` gives: squares, of one size a level.
    radius: positive, in strides.
    alpha: 0..1, of the focal loss; None weighs positives and negatives alike.
    gamma: at least 0, of the focal loss.
    boxes_valid: bool [B, N], True for real boxes; all when left out.
    valid: bool [B], False for padding of the batch; all True when left out.

  Returns:
    `loss_class`, over all points, `loss_box` (1 - GIoU) and `loss_centerness`, over points with an object: sums over
    the valid images. All have the same count, the number of points with an object. Assignment and targets carry no
    gradient.

  Raises:
    ValueError: shapes that do not fit, or an option out of range.

  Reference: Tian et al., FCOS, arXiv 1904.01355, equations 1 to 3; centre sampling and the GIoU loss are those of the
  authors' later version, arXiv 2006.09214.
  Differs from the paper: distances are in strides, after a ReLU, as in torchvision; the paper has an exponential and
  learns a scale for each level.
  Differs from torchvision: it takes areas that differ by up to 8 square pixels for equal (a float32 near 1e8).

  >>> anchors, box = jnp.array([[0, 0, 8, 8], [8, 0, 16, 8.0]]), jnp.array([[[0, 0, 8, 10.0]]])
  >>> logits, distances = jnp.zeros((1, 2, 3)), jnp.full((1, 2, 4), 0.5)
  >>> terms = jax.jit(fcos_loss)(logits, distances, logits[..., 0], box, jnp.array([[1]]), anchors=anchors)
  >>> {name: (round(float(term.total), 4), int(term.count)) for name, term in terms.items()}
  {'loss_box': (0.2, 1), 'loss_centerness': (0.6931, 1), 'loss_class': (0.6931, 1)}
  """
  classes = check_axes('fcos_loss', logits=(logits, 'B A K'), distances=(distances, 'B A 4'),
                       centerness_logits=(centerness_logits, 'B A'), boxes=(boxes, 'B N 4'), labels=(labels, 'B N'),
                       anchors=(anchors, 'A 4'))['K']
  if not radius > 0:
    raise ValueError(f'fcos_loss: radius is {radius}; give a positive number of strides')
  boxes, labels, _, valid = real_targets('fcos_loss', boxes, labels, boxes_valid, valid)
  # Emptied before any arithmetic: a NaN that is only selected away at the end comes back in the gradient.
  logits, distances, centerness_logits = (pick(valid, at_least_float32(x), 0)
                                          for x in (logits, distances, centerness_logits))
  anchors = jax.lax.stop_gradient(at_least_float32(anchors))
  positive, owner = _assign_each(boxes, anchors, radius)

  target = rows(boxes, owner)
  truth = (rows(labels, owner)[..., None] == jnp.arange(classes)) & positive[..., None]
  focal = pick(valid, focal_loss(logits, truth, alpha=alpha, gamma=gamma), 0)
  box = giou_loss(decode_distances(distances, anchors), target)
  central = sigmoid_cross_entropy(centerness_logits, centerness(encode_distances(target, anchors)))
  count = jnp.sum(positive, dtype=box.dtype)
  return {
      'loss_class': Term(jnp.sum(focal), count),
      'loss_box': Term(jnp.sum(jnp.where(positive, box, 0)), count),
      'loss_centerness': Term(jnp.sum(jnp.where(positive, central, 0)), count),
  }


def roles(logits: Array, distances: Array, centerness_logits: Array, boxes: Array, labels: Array, *, anchors: Array,
          radius: float, boxes_valid: Array | None = None, valid: Array | None = None) -> Roles:
  """What each point, as a square of its stride, is for in `fcos_loss`, whose arguments these are."""
  boxes, _, _, valid = real_targets('fcos_loss', boxes, labels, boxes_valid, valid)
  anchors = jax.lax.stop_gradient(at_least_float32(anchors))
  return roles_of(anchors, *_assign_each(boxes, anchors, radius), valid)


def _assign_each(boxes: Array, anchors: Array, radius: float) -> tuple[Array, Array]:
  """`_assign` image by image: bool and int [B, A]."""
  return jax.vmap(lambda boxes: _assign(boxes, anchors, radius))(boxes)


def _assign(boxes: Array, anchors: Array, radius: float) -> tuple[Array, Array]:
  """For each anchor of one image whether its centre has an object, and which: bool and int [A].

  Boxes of zeros, as invalid slots have them, hold no point.
  """
  point, size = (anchors[:, None, :2] + anchors[:, None, 2:]) / 2, anchors[:, 2:3] - anchors[:, :1]
  sides = jnp.concatenate([point - boxes[:, :2], boxes[:, 2:] - point], axis=-1)  # [A, N, 4]
  inside, farthest = jnp.min(sides, axis=-1) > 0, jnp.max(sides, axis=-1)
  central = jnp.max(jnp.abs(point - (boxes[:, :2] + boxes[:, 2:]) / 2), axis=-1) < radius * size
  # Levels differ by a factor of 2: one per cent is rounding.
  low = jnp.where(size < 1.01 * jnp.min(size, initial=jnp.inf), 0, 4 * size)
  high = jnp.where(size > 0.99 * jnp.max(size, initial=0), jnp.inf, 8 * size)
  fits = inside & central & (farthest > low) & (farthest < high)
  area = jnp.where(fits, box_area(boxes), jnp.inf)
  return jnp.any(fits, axis=-1), jnp.argmin(area, axis=-1)
