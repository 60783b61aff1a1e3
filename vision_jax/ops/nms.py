"""Non-maximum suppression with static shapes.

Greedy, strict, exact: the indices are those of torchvision's `nms`, class by class where labels are given.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vision_jax.conventions import Array
from vision_jax.ops.arrays import at_least_float32, check_last_axis
from vision_jax.ops.boxes import iou


def nms(boxes: Array, scores: Array, *, iou_threshold: float, max_outputs: int,
        valid: Array | None = None) -> tuple[Array, Array]:
  """The boxes that greedy non-maximum suppression keeps, best first.

  A box is dropped when its IoU with a kept box of a higher score is above the threshold (strictly); equal scores count
  as higher at the lower index. What a dropped box overlaps is not dropped for it.

  Args:
    boxes: [N, 4] xyxy, any one unit.
    scores: [N]; a NaN or minus infinity counts as invalid.
    iou_threshold: 0..1.
    max_outputs: M, the number of output slots; it may exceed N.
    valid: bool [N], True for real boxes; all when left out. What the others hold does not matter.

  Returns:
    `(indices, valid)`: int32 [M] into `boxes`, ordered by falling score, and bool [M]. Invalid slots come last and
    hold index 0. Gradients do not pass.

  Raises:
    ValueError: boxes are not [N, 4], or scores or valid not [N].

  Cost: at most M passes over N boxes, and it stops when no box is left. With many more boxes than can matter, take the
  best thousand by `jax.lax.top_k` first, as `yolov3_decode` does.

  >>> boxes = jnp.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10.0]])
  >>> indices, valid = nms(boxes, jnp.array([0.6, 0.9, 0.8]), iou_threshold=0.5, max_outputs=3)
  >>> indices.tolist(), valid.tolist()
  ([1, 2, 0], [True, True, False])
  """
  return class_aware_nms(boxes, scores, jnp.zeros_like(scores, jnp.int32), iou_threshold=iou_threshold,
                         max_outputs=max_outputs, valid=valid)


def class_aware_nms(boxes: Array, scores: Array, labels: Array, *, iou_threshold: float, max_outputs: int,
                    valid: Array | None = None) -> tuple[Array, Array]:
  """The boxes that greedy non-maximum suppression keeps when a box suppresses only boxes of its own class.

  The same as `nms` on each class by itself, merged by falling score. Labels are compared; the boxes are not moved
  apart class by class, which would round their coordinates.

  Args:
    boxes: [N, 4] xyxy, any one unit.
    scores: [N]; a NaN or minus infinity counts as invalid.
    labels: int [N].
    iou_threshold: 0..1.
    max_outputs: M, the number of output slots of all classes together; it may exceed N.
    valid: bool [N], True for real boxes; all when left out. What the others hold does not matter.

  Returns:
    `(indices, valid)`: int32 [M] into `boxes`, ordered by falling score, and bool [M]. Invalid slots come last and
    hold index 0. Gradients do not pass.

  Raises:
    ValueError: boxes are not [N, 4], or scores, labels or valid not [N].

  >>> boxes = jnp.array([[0, 0, 10, 10], [1, 0, 11, 10], [0, 1, 10, 11.0]])
  >>> indices, valid = class_aware_nms(boxes, jnp.array([0.6, 0.9, 0.8]), jnp.array([0, 0, 1]),
  ...                                  iou_threshold=0.5, max_outputs=3)
  >>> indices.tolist(), valid.tolist()
  ([1, 2, 0], [True, True, False])
  """
  check_last_axis('nms', 'boxes', boxes, 4)
  boxes, scores, labels = at_least_float32(boxes), at_least_float32(scores), jnp.asarray(labels)
  left = jnp.ones(scores.shape, bool) if valid is None else jnp.asarray(valid)
  if boxes.ndim != 2 or {boxes.shape[:1], scores.shape, labels.shape, left.shape} != {boxes.shape[:1]}:
    raise ValueError(f'nms: boxes {list(boxes.shape)}, scores {list(scores.shape)}, labels {list(labels.shape)}, valid '
                     f'{list(left.shape)}; give [N, 4] and [N] (jax.vmap takes a batch)')
  # The loop below has no reverse derivative, and needs none.
  boxes, scores = jax.lax.stop_gradient((boxes, scores))
  left = left & (scores > -jnp.inf)
  if boxes.shape[0] == 0:
    return jnp.zeros(max_outputs, jnp.int32), jnp.zeros(max_outputs, bool)
  return _pick_best(boxes, jnp.where(left, scores, -jnp.inf), labels, iou_threshold, max_outputs)


def _pick_best(boxes: Array, scores: Array, labels: Array, iou_threshold: float,
               max_outputs: int) -> tuple[Array, Array]:
  """Takes the best box that is left and strikes what it suppresses, until the outputs are full or nothing is left.

  A score of -inf marks a box as gone, or never there: it is not taken, so it strikes nothing, whatever it holds.
  `argmax` takes the first of equals, which is the rule for ties.
  """

  def some_left(state):
    kept, _, scores = state
    return (kept < max_outputs) & (jnp.max(scores) > -jnp.inf)

  def keep_one(state):
    kept, indices, scores = state
    best = jnp.argmax(scores).astype(jnp.int32)
    struck = (iou(boxes[best], boxes) > iou_threshold) & (labels == labels[best])
    struck = struck | (jnp.arange(scores.shape[0]) == best)  # a box without area does not overlap itself
    return kept + 1, indices.at[kept].set(best), jnp.where(struck, -jnp.inf, scores)

  start = jnp.int32(0), jnp.zeros(max_outputs, jnp.int32), scores
  kept, indices, _ = jax.lax.while_loop(some_left, keep_one, start)
  return indices, jnp.arange(max_outputs) < kept
