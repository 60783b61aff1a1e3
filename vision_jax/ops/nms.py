"""Non-maximum suppression with static shapes.

Greedy, strict, exact: the indices are those of torchvision's `nms`, class by class where labels are given. Soft-NMS
lowers scores instead.

Leading axes count sets of boxes (the images of a batch), which all go through the same loops at once.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.conventions import Array
from vision_jax.ops.arrays import at_least_float32, check_choice, check_last_axis, pick
from vision_jax.ops.boxes import iou

# Full suppression picks max(128, N / 32) boxes one by one, and takes the rest in blocks of 64. A pick looks at all
# boxes, a block only at blocks before it; so picks suit clusters, where few boxes strike most of the others. 8,732
# boxes in 50 clusters (1,148 kept) take 4 ms on two cores, 22 by blocks alone; at random (5,646 kept) 22 either way.
_PICKS, _SHARE_PICKED = 128, 32
_BLOCK = 64


def nms(boxes: Array, scores: Array, *, iou_threshold: float, max_outputs: int, candidates: int | None = None,
        valid: Array | None = None) -> tuple[Array, Array]:
  """The boxes that greedy non-maximum suppression keeps, best first.

  A box is dropped when its IoU with a kept box of a higher score is above the threshold (strictly); equal scores count
  as higher at the lower index. What a dropped box overlaps is not dropped for it.

  Args:
    boxes: [..., N, 4] xyxy, any one unit. An inverted box, or one with a NaN, overlaps nothing.
    scores: [..., N]; a NaN or minus infinity counts as invalid.
    iou_threshold: 0..1. A Python number is not rounded to float32, but an IoU is: 3/10 exceeds 0.3, as in torchvision.
    max_outputs: M, the number of output slots; it may exceed N.
    candidates: only so many valid boxes of the highest scores enter; all when left out.
    valid: bool [..., N], True for real boxes; all when left out. What the others hold does not matter.

  Returns:
    `(indices, valid)`: int32 [..., M] into `boxes`, ordered by falling score, and bool [..., M]. Invalid slots come
    last and hold index 0. Gradients do not pass.

  Raises:
    ValueError: boxes are not [..., N, 4], or scores or valid not [..., N].

  Cost: at most M * N overlaps; nothing of the size N * N is stored. With many more boxes than can matter, `candidates`
  of a thousand saves most of the time.

  >>> boxes = jnp.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10.0]])
  >>> indices, valid = nms(boxes, jnp.array([0.6, 0.9, 0.8]), iou_threshold=0.5, max_outputs=3)
  >>> indices.tolist(), valid.tolist()
  ([1, 2, 0], [True, True, False])
  """
  return _suppress('nms', boxes, scores, None, iou_threshold, max_outputs, candidates, valid)


def class_aware_nms(boxes: Array, scores: Array, labels: Array, *, iou_threshold: float, max_outputs: int,
                    candidates: int | None = None, valid: Array | None = None) -> tuple[Array, Array]:
  """The boxes that greedy non-maximum suppression keeps when a box suppresses only boxes of its own class.

  The same as `nms` on each class by itself, merged by falling score. Labels are compared; the boxes are not moved
  apart class by class, which would round their coordinates.

  Args:
    boxes: [..., N, 4] xyxy, any one unit. An inverted box, or one with a NaN, overlaps nothing.
    scores: [..., N]; a NaN or minus infinity counts as invalid.
    labels: int [..., N].
    iou_threshold: 0..1. A Python number is not rounded to float32, but an IoU is: 3/10 exceeds 0.3, as in torchvision.
    max_outputs: M, the number of output slots of all classes together; it may exceed N.
    candidates: only so many valid boxes of the highest scores, of all classes together, enter; all when left out.
    valid: bool [..., N], True for real boxes; all when left out. What the others hold does not matter.

  Returns:
    `(indices, valid)`: int32 [..., M] into `boxes`, ordered by falling score, and bool [..., M]. Invalid slots come
    last and hold index 0. Gradients do not pass.

  Raises:
    ValueError: boxes are not [..., N, 4], or scores, labels or valid not [..., N].

  >>> boxes = jnp.array([[0, 0, 10, 10], [1, 0, 11, 10], [0, 1, 10, 11.0]])
  >>> indices, valid = class_aware_nms(boxes, jnp.array([0.6, 0.9, 0.8]), jnp.array([0, 0, 1]),
  ...                                  iou_threshold=0.5, max_outputs=3)
  >>> indices.tolist(), valid.tolist()
  ([1, 2, 0], [True, True, False])
  """
  return _suppress('class_aware_nms', boxes, scores, labels, iou_threshold, max_outputs, candidates, valid)


def soft_nms(boxes: Array, scores: Array, *, method: str = 'gaussian', sigma: float = 0.5, iou_threshold: float = 0.3,
             score_threshold: float = 0.001, max_outputs: int,
             valid: Array | None = None) -> tuple[Array, Array, Array]:
  """The boxes in the order in which soft-NMS picks them, with the scores that are left to them.

  The best box is picked, and every other box loses score by its overlap with it; then the best of what is left is
  picked, and so on. Equal scores count as higher at the lower index.

  Args:
    boxes: [..., N, 4] xyxy, any one unit.
    scores: [..., N], 0..1; a NaN counts as invalid.
    method: 'gaussian' multiplies a score by exp(-IoU^2 / sigma), 'linear' by 1 - IoU where the IoU is above
      `iou_threshold` (strictly).
    sigma: above 0, for 'gaussian' only.
    iou_threshold: 0..1, for 'linear' only.
    score_threshold: 0..1; a box whose score is below it, from the start or by then, is dropped.
    max_outputs: M, the number of output slots; it may exceed N.
    valid: bool [..., N], True for real boxes; all when left out. What the others hold does not matter.

  Returns:
    `(indices, scores, valid)`: int32 [..., M] into `boxes`, the lowered scores [..., M], falling, and bool [..., M].
    Invalid slots come last and hold index 0 and score 0. Gradients pass through the scores, to boxes and scores.

  Raises:
    ValueError: boxes are not [..., N, 4], scores or valid not [..., N], the method is neither of the two, or
      max_outputs is negative.

  Cost: M passes over N boxes.

  Reference: Bodla et al., Soft-NMS: Improving Object Detection With One Line of Code, arXiv 1704.04503, section 3.
  Differs from the paper: 'linear' leaves a score alone at an IoU equal to the threshold, as the authors' code does.

  >>> boxes = jnp.array([[0, 0, 10, 10], [0, 0, 10, 5], [20, 0, 30, 10.0]])
  >>> indices, scores, valid = soft_nms(boxes, jnp.array([0.75, 0.5, 0.5]), method='linear', max_outputs=3)
  >>> indices.tolist(), scores.tolist(), valid.tolist()
  ([0, 2, 1], [0.75, 0.5, 0.25], [True, True, True])
  """
  return _soften('soft_nms', boxes, scores, None, method, sigma, iou_threshold, score_threshold, max_outputs, valid)


def class_aware_soft_nms(boxes: Array, scores: Array, labels: Array, *, method: str = 'gaussian', sigma: float = 0.5,
                         iou_threshold: float = 0.3, score_threshold: float = 0.001, max_outputs: int,
                         valid: Array | None = None) -> tuple[Array, Array, Array]:
  """The boxes in the order in which soft-NMS picks them when a box lowers only the scores of its own class.

  Args:
    boxes: [..., N, 4] xyxy, any one unit.
    scores: [..., N], 0..1; a NaN counts as invalid.
    labels: int [..., N].
    method: 'gaussian' or 'linear', as in `soft_nms`.
    sigma: above 0, for 'gaussian' only.
    iou_threshold: 0..1, for 'linear' only.
    score_threshold: 0..1; a box whose score is below it, from the start or by then, is dropped.
    max_outputs: M, the number of output slots of all classes together; it may exceed N.
    valid: bool [..., N], True for real boxes; all when left out. What the others hold does not matter.

  Returns:
    `(indices, scores, valid)`: int32 [..., M] into `boxes`, the lowered scores [..., M], falling, and bool [..., M].
    Invalid slots come last and hold index 0 and score 0. Gradients pass through the scores, to boxes and scores.

  Raises:
    ValueError: boxes are not [..., N, 4], scores, labels or valid not [..., N], the method is neither of the two, or
      max_outputs is negative.

  Reference: Bodla et al., Soft-NMS: Improving Object Detection With One Line of Code, arXiv 1704.04503, section 3.
  Differs from the paper: as `soft_nms` does.

  >>> boxes = jnp.array([[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 5.0]])
  >>> indices, scores, valid = class_aware_soft_nms(boxes, jnp.array([0.75, 0.5, 0.5]), jnp.array([1, 1, 0]),
  ...                                               method='linear', max_outputs=3)
  >>> indices.tolist(), scores.tolist()
  ([0, 2, 1], [0.75, 0.5, 0.25])
  """
  return _soften('class_aware_soft_nms', boxes, scores, labels, method, sigma, iou_threshold, score_threshold,
                 max_outputs, valid)


def _checked(where: str, boxes: Array, scores: Array, labels: Array | None,
             valid: Array | None) -> tuple[Array, Array, Array, Array]:
  """Boxes, scores, labels (all 0 when there are none) and which of them are real."""
  check_last_axis(where, 'boxes', boxes, 4)
  boxes, scores = at_least_float32(boxes), at_least_float32(scores)
  labels = jnp.zeros(scores.shape, jnp.int32) if labels is None else jnp.asarray(labels)
  left = jnp.ones(scores.shape, bool) if valid is None else jnp.asarray(valid)
  if boxes.ndim < 2 or {scores.shape, labels.shape, left.shape} != {boxes.shape[:-1]}:
    raise ValueError(f'{where}: boxes {list(boxes.shape)}, scores {list(scores.shape)}, labels {list(labels.shape)}, '
                     f'valid {list(left.shape)}; give boxes [..., N, 4] and everything else [..., N]')
  return boxes, scores, labels, left & (scores > -jnp.inf)


def _check_slots(where: str, max_outputs: int, candidates: int | None = None) -> None:
  if max_outputs < 0 or (candidates is not None and candidates < 0):
    raise ValueError(f'{where}: max_outputs {max_outputs}, candidates {candidates}; give 0 or more of each')


def _suppress(where: str, boxes: Array, scores: Array, labels: Array | None, iou_threshold: float, max_outputs: int,
              candidates: int | None, valid: Array | None) -> tuple[Array, Array]:
  boxes, scores, labels, left = _checked(where, boxes, scores, labels, valid)
  _check_slots(where, max_outputs, candidates)
  # No gradient passes: the loops below need not be differentiated for one that is dropped.
  boxes, scores, iou_threshold = jax.lax.stop_gradient((boxes, scores, _rounded_down(iou_threshold, boxes.dtype)))
  n, leading = scores.shape[-1], scores.shape[:-1]
  enter = n if candidates is None else min(candidates, n)
  if 0 in (enter, max_outputs, *leading):
    return jnp.zeros((*leading, max_outputs), jnp.int32), jnp.zeros((*leading, max_outputs), bool)
  boxes, labels = boxes.reshape(-1, n, 4), labels.reshape(-1, n)
  # Sorting tells -0 from 0, where torchvision sees a tie.
  scores = jnp.where(left, jnp.where(scores == 0, 0, scores), -jnp.inf).reshape(-1, n)
  if enter < n:
    scores, entrants = jax.lax.top_k(scores, enter)
    boxes, labels = _take(boxes, entrants), _take(labels, entrants)
  indices = _greedy(boxes, scores, labels, iou_threshold, min(max_outputs, enter))
  valid = indices < enter
  if enter < n:
    indices = _take(entrants, jnp.minimum(indices, enter - 1))
  return _padded(jnp.where(valid, indices, 0), leading, max_outputs), _padded(valid, leading, max_outputs)


def _rounded_down(threshold: float, dtype: jnp.dtype) -> Array:
  """The largest number of `dtype` that is not above the threshold: no IoU of that type lies between the two.

  torchvision compares an IoU in float32 with the threshold in double. 0.3 rounds up to float32, so that an IoU of 3/10
  would no longer exceed it. An array already is what it is.
  """
  if isinstance(threshold, jax.Array):
    return threshold.astype(dtype)
  nearest = np.asarray(threshold, dtype)
  return np.nextafter(nearest, np.asarray(-np.inf, dtype)) if float(nearest) > float(threshold) else nearest


def _padded(values: Array, leading: tuple[int, ...], slots: int) -> Array:
  """Values [B, M] with zeros behind them, as [*leading, slots]."""
  return jnp.pad(values, ((0, 0), (0, slots - values.shape[1]))).reshape(*leading, slots)


def _take(values: Array, indices: Array) -> Array:
  """`values[b, indices[b]]` for each b of the first axis."""
  return jnp.take_along_axis(values, indices.reshape(indices.shape + (1,) * (values.ndim - indices.ndim)), axis=1)


# Outside of jit a loop would be compiled for every call; jit makes that once.
@functools.partial(jax.jit, static_argnames=('outputs', 'picks', 'block'))
def _greedy(boxes: Array, scores: Array, labels: Array, threshold: Array, outputs: int, *, picks: int | None = None,
            block: int = _BLOCK) -> Array:
  """Indices [B, outputs] of what is kept of boxes [B, N, 4], best first; N in empty slots.

  A score of -inf marks a box as gone, or never there: it is not kept, so it strikes nothing, whatever it holds.
  """
  x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
  columns = x1, y1, x2, y2, jnp.maximum(x2 - x1, 0) * jnp.maximum(y2 - y1, 0), labels
  few = min(outputs, max(_PICKS, scores.shape[1] // _SHARE_PICKED) if picks is None else picks)
  indices, scores = _pick_best(columns, scores, threshold, few)
  if outputs == few:
    return indices
  # Whatever the picks have struck is gone, so the blocks need not look at them again.
  rest = jax.lax.cond(jnp.any(scores > -jnp.inf),
                      lambda: _by_blocks(columns, scores, threshold, outputs - few, block),
                      lambda: jnp.full((scores.shape[0], outputs - few), scores.shape[1], jnp.int32))
  return jnp.concatenate([indices, rest], axis=1)


def _strikes(kept: tuple[Array, ...], others: tuple[Array, ...], threshold: Array) -> Array:
  """Whether boxes suppress others; both are (x1, y1, x2, y2, area, label), and their axes broadcast."""
  ax1, ay1, ax2, ay2, area_a, label_a = kept
  bx1, by1, bx2, by2, area_b, label_b = others
  inter = (jnp.maximum(jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1), 0)
           * jnp.maximum(jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1), 0))
  union = area_a + area_b - inter  # in this order torchvision rounds
  return (inter / jnp.maximum(union, jnp.finfo(union.dtype).tiny) > threshold) & (label_a == label_b)


def _pick_best(columns: tuple[Array, ...], scores: Array, threshold: Array, outputs: int) -> tuple[Array, Array]:
  """Takes the best box that is left and strikes what it suppresses, until the outputs are full or nothing is left.

  Returns the indices [B, outputs], N in empty slots, and the scores, -inf where a box was taken or struck. Nothing is
  sorted: on a CPU that takes as long as 200 picks (N = 8,732).
  """
  n = scores.shape[1]

  def some_left(state):
    slot, _, best, _ = state
    return (slot < outputs) & jnp.any(best > -jnp.inf)

  def keep_one(state):
    slot, indices, best, scores = state
    place = _first_of(scores, best)
    struck = _strikes([_take(c, place[:, None]) for c in columns], columns, threshold)
    struck = struck | (jnp.arange(n) == place[:, None])  # a box without area does not overlap itself
    scores = jnp.where(struck, -jnp.inf, scores)
    return slot + 1, indices.at[:, slot].set(jnp.where(best > -jnp.inf, place, n)), jnp.max(scores, 1), scores

  start = jnp.int32(0), jnp.full((scores.shape[0], outputs), n, jnp.int32), jnp.max(scores, 1), scores
  _, indices, _, scores = jax.lax.while_loop(some_left, keep_one, start)
  return indices, scores


def _first_of(values: Array, wanted: Array) -> Array:
  """int32 [...]: where `wanted` [...] first stands along the last axis of `values`."""
  n = values.shape[-1]
  # On a CPU, in 8 rows of 8,732, XLA takes 12 us for a minimum of floats, 45 for one of integers, 200 for `argmax`.
  places = jnp.arange(n, dtype=jnp.float32 if n < 2**24 else jnp.int32)
  return jnp.min(jnp.where(values == wanted[..., None], places, n - 1), axis=-1).astype(jnp.int32)


def _by_blocks(columns: tuple[Array, ...], scores: Array, threshold: Array, outputs: int, size: int) -> Array:
  """The same suppression on boxes sorted into blocks: a block meets what earlier blocks kept, then itself.

  So at most [B, size, size] overlaps exist at a time. It stops when the outputs are full or no block has boxes left.
  """
  batch, n = scores.shape
  blocks = -(-n // size)
  best, order = jax.lax.top_k(scores, n)

  def split(values):
    return jnp.pad(values, ((0, 0), (0, blocks * size - n))).reshape(batch, blocks, size)

  def block_of(values, i):
    return jax.lax.dynamic_index_in_dim(values, i, axis=1, keepdims=False)

  def strikes(i, j):
    """bool [B, size, size]: whether a box of block i suppresses one of block j."""
    return _strikes([block_of(c, i)[:, :, None] for c in columns], [block_of(c, j)[:, None, :] for c in columns],
                    threshold)

  columns, real = [split(_take(c, order)) for c in columns], split(best > -jnp.inf)
  most = jnp.max(jnp.sum(real, axis=(1, 2)))
  earlier = jnp.arange(size)[:, None] < jnp.arange(size)

  def some_left(state):
    i, kept = state
    return (i * size < most) & jnp.any(jnp.sum(kept, axis=(1, 2)) < outputs)

  def keep_block(state):
    i, kept = state

    def meet(j, left):
      return left & ~jnp.any(strikes(j, i) & block_of(kept, j)[:, :, None], axis=1)

    left = jax.lax.fori_loop(0, i, meet, block_of(real, i))
    left = _fixed_point(left, strikes(i, i) & earlier)
    return i + 1, jax.lax.dynamic_update_index_in_dim(kept, left, i, axis=1)

  _, kept = jax.lax.while_loop(some_left, keep_block, (jnp.int32(0), jnp.zeros_like(real)))
  kept = kept.reshape(batch, -1)[:, :n]
  slot = jnp.where(kept, jnp.cumsum(kept, axis=1) - 1, outputs)
  return jnp.full((batch, outputs), n, jnp.int32).at[jnp.arange(batch)[:, None], slot].set(order, mode='drop')


def _fixed_point(left: Array, strikes: Array) -> Array:
  """Which of `left` [B, size] stay: those that nothing which stays strikes. `strikes[b, i, j]` is for i before j only.

  What is struck by nothing is right after one pass, what only that strikes after two, and so on: 2 to 12 passes for
  real boxes, and never more than there are boxes.
  """

  def once(kept):
    return left & ~jnp.any(strikes & kept[:, :, None], axis=1)

  return jax.lax.while_loop(lambda state: jnp.any(state[0] != state[1]), lambda state: (state[1], once(state[1])),
                            (left, once(left)))[1]


def _soften(where: str, boxes: Array, scores: Array, labels: Array | None, method: str, sigma: float,
            iou_threshold: float, score_threshold: float, max_outputs: int,
            valid: Array | None) -> tuple[Array, Array, Array]:
  boxes, scores, labels, left = _checked(where, boxes, scores, labels, valid)
  check_choice(where, 'method', method, ('gaussian', 'linear'))
  _check_slots(where, max_outputs)
  n, leading = scores.shape[-1], scores.shape[:-1]
  if 0 in (n, max_outputs, *leading):
    empty = jnp.zeros((*leading, max_outputs), jnp.int32)
    return empty, empty.astype(scores.dtype), empty.astype(bool)
  boxes, scores = pick(left, boxes, 0).reshape(-1, n, 4), jnp.where(left, scores, 0).reshape(-1, n)
  indices, scores, left = _pick_softly(boxes, scores, labels.reshape(-1, n), left.reshape(-1, n), sigma, iou_threshold,
                                       method=method, outputs=min(n, max_outputs))
  left = left & (scores >= score_threshold)
  picked = jnp.where(left, indices, 0), jnp.where(left, scores, 0), left
  return tuple(_padded(values, leading, max_outputs) for values in picked)


@functools.partial(jax.jit, static_argnames=('method', 'outputs'))
def _pick_softly(boxes: Array, scores: Array, labels: Array, left: Array, sigma: Array, iou_threshold: Array, *,
                 method: str, outputs: int) -> tuple[Array, Array, Array]:
  """What is picked in turn of boxes [B, N, 4]: indices, scores by then, and whether any box was left, [B, outputs]."""

  def pick_one(state, _):
    scores, left = state
    ranked = jax.lax.stop_gradient(jnp.where(left, scores, -jnp.inf))
    best = _first_of(ranked, jnp.max(ranked, axis=1))[:, None]
    overlap = iou(_take(boxes, best), boxes)
    decay = jnp.exp(-overlap**2 / sigma) if method == 'gaussian' else jnp.where(overlap > iou_threshold, 1 - overlap, 1)
    picked = best[:, 0], _take(scores, best)[:, 0], jnp.any(left, axis=1)
    scores = jnp.where(labels == _take(labels, best), scores * decay, scores)
    return (scores, left & (jnp.arange(scores.shape[1]) != best)), picked

  # A scan: a while loop, which could stop early, has no reverse derivative.
  _, picked = jax.lax.scan(pick_one, (scores, left), length=outputs)
  return tuple(values.T for values in picked)
