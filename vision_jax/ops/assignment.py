"""Which anchors learn from which target: assignment by IoU, and a random sample of fixed size from the result."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vision_jax.conventions import Array
from vision_jax.ops.arrays import at_least_float32

_LOW_QUALITY = ('none', 'ties', 'force')


class MaxIouAssignment(NamedTuple):
  """What each anchor is for; an anchor that is neither positive nor ignored is negative.

  Args:
    positive: bool [A], the anchor learns the target `owner`.
    ignored: bool [A], the anchor is too good for a negative and not good enough for a positive.
    owner: int32 [A] in 0..N-1, 0 where the anchor is not positive.

  >>> found = max_iou_assignment([[0.9, 0.4, 0.0]], high=0.5, low=0.3)
  >>> (~found.positive & ~found.ignored).tolist()
  [False, False, True]
  """

  positive: Array
  ignored: Array
  owner: Array


def max_iou_assignment(iou: Array, *, high: float, low: float, low_quality: str = 'none',
                       valid: Array | None = None) -> MaxIouAssignment:
  """The target of each anchor by the highest IoU: positive from `high` on, negative below `low`, ignored between.

  Args:
    iou: [N, A], of each target with each anchor; NaN counts as no overlap.
    high: the least best IoU of a positive anchor, 0..1.
    low: the least best IoU of an anchor that is not negative, 0..1 and not above `high`; equal to it, none is ignored.
    low_quality: what else is positive. 'none': nothing. 'ties': every anchor that reaches the best IoU of some target,
      for the anchor's own best target (Faster R-CNN, RetinaNet). 'force': the first best anchor of each target, for
      that target, the later one where several have the same (SSD).
    valid: bool [N], True for real targets; all when left out. The others have no say, whatever their IoU holds.

  Returns:
    `MaxIouAssignment`. Of equal targets the first one is an anchor's best. Without a valid target all are negative.
    Gradients do not pass.

  Raises:
    ValueError: iou is not [N, A], valid not [N], low above high, or low_quality unknown.

  Reference: Ren et al., Faster R-CNN, arXiv 1506.01497, section 3.1.2; Liu et al., SSD, arXiv 1512.02325, section
  2.2; index for index torchvision's Matcher and SSDMatcher.
  Differs from the paper: a target that overlaps no anchor gains none by 'ties' or 'force'. torchvision would make all
  anchors positive, or give the target the first one.

  >>> found = max_iou_assignment([[0.9, 0.4, 0.2], [0.1, 0.2, 0.3]], high=0.5, low=0.3, low_quality='force')
  >>> found.positive.tolist(), found.ignored.tolist(), found.owner.tolist()
  ([True, False, True], [False, True, False], [0, 0, 1])
  """
  iou = jax.lax.stop_gradient(at_least_float32(iou))
  valid = jnp.ones(iou.shape[:1], bool) if valid is None else jnp.asarray(valid, bool)
  if iou.ndim != 2 or valid.shape != iou.shape[:1]:
    raise ValueError(f'max_iou_assignment: iou {list(iou.shape)}, valid {list(valid.shape)}; give [N, A] and [N] '
                     '(jax.vmap takes a batch)')
  if low > high or low_quality not in _LOW_QUALITY:
    raise ValueError(f'max_iou_assignment: low {low}, high {high}, low_quality {low_quality!r}; give low <= high and '
                     f'one of {", ".join(_LOW_QUALITY)}')
  targets, anchors = iou.shape
  if targets == 0 or anchors == 0:
    return MaxIouAssignment(jnp.zeros(anchors, bool), jnp.zeros(anchors, bool), jnp.zeros(anchors, jnp.int32))
  iou = jnp.where(valid[:, None] & ~jnp.isnan(iou), iou, -jnp.inf)
  best, owner = jnp.max(iou, axis=0), jnp.argmax(iou, axis=0).astype(jnp.int32)
  positive, ignored = best >= high, (best >= low) & (best < high)
  reach = jnp.max(iou, axis=1, keepdims=True)
  if low_quality == 'ties':
    positive = positive | jnp.any((iou == reach) & (reach > 0), axis=0)
  if low_quality == 'force':
    first = jnp.where(reach[:, 0] > 0, jnp.argmax(iou, axis=1), anchors)
    forced = jnp.full(anchors, -1, jnp.int32).at[first].max(jnp.arange(targets, dtype=jnp.int32), mode='drop')
    positive, owner = positive | (forced >= 0), jnp.where(forced >= 0, forced, owner)
  return MaxIouAssignment(positive, ignored & ~positive, jnp.where(positive, owner, 0))


def balanced_sample(key: Array, positive: Array, negative: Array, *, size: int,
                    positive_fraction: float) -> tuple[Array, Array]:
  """A random sample of anchors or proposals without replacement, with at most a given share of positives.

  int(size * positive_fraction) positives, or all where there are fewer; negatives fill the rest, as far as they go.

  Args:
    key: a random key; the same key gives the same sample.
    positive: bool [A], the candidates for positives.
    negative: bool [A], the candidates for negatives; one that is both counts as positive.
    size: the number of output slots, 0 or more; it may exceed A.
    positive_fraction: 0..1.

  Returns:
    `(indices, valid)`: int32 [size] in 0..A-1, positives first, each part in random order, and bool [size]. Invalid
    slots come last and hold index 0.

  Raises:
    ValueError: positive and negative are not both [A], size is negative, or positive_fraction outside 0..1.

  Reference: Ren et al., Faster R-CNN, arXiv 1506.01497, section 3.1.3.

  >>> positive = jnp.array([True, False, True, False, False])
  >>> indices, valid = balanced_sample(jax.random.key(0), positive, ~positive, size=4, positive_fraction=0.25)
  >>> positive[indices].tolist(), valid.tolist()
  ([True, False, False, False], [True, True, True, True])
  """
  positive, negative = jnp.asarray(positive, bool), jnp.asarray(negative, bool)
  if positive.ndim != 1 or positive.shape != negative.shape:
    raise ValueError(f'balanced_sample: positive {list(positive.shape)}, negative {list(negative.shape)}; give [A] '
                     'both (jax.vmap takes a batch)')
  if size < 0 or not 0 <= positive_fraction <= 1:
    raise ValueError(f'balanced_sample: size {size}, positive_fraction {positive_fraction}; give 0 or more, and 0..1')
  if size == 0 or positive.size == 0:
    return jnp.zeros(size, jnp.int32), jnp.zeros(size, bool)
  luck = jax.random.uniform(key, positive.shape)
  chosen = _luckiest(luck, positive, int(size * positive_fraction))
  others = _luckiest(luck, negative & ~positive, size)
  slots, count = jnp.arange(size), jnp.sum(chosen >= 0)
  first = jnp.pad(chosen, (0, size - chosen.size), constant_values=-1)
  taken = jnp.where(slots < count, first, others[jnp.maximum(slots - count, 0)])
  return jnp.maximum(taken, 0), taken >= 0


def _luckiest(luck: Array, candidates: Array, count: int) -> Array:
  """int32 [count], the candidates with the most luck, then -1."""
  best, indices = jax.lax.top_k(jnp.where(candidates, luck, -1), min(count, luck.size))
  return jnp.pad(jnp.where(best >= 0, indices, -1), (0, count - best.size), constant_values=-1)
