"""Losses of embeddings: pairs, triplets and their mining in a batch, and ArcFace.

Units: distances are those of the embeddings as they come. FaceNet's margin of 0.2 belongs to squared distances of
embeddings of length 1, so normalise before a triplet loss if that is meant; ArcFace normalises by itself.

Mining looks for pairs in the batch at hand. Where a step is split over devices or micro-batches, each mines in its own
part, so the result depends on how the batch is split.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from vision_jax.conventions import Array, Term
from vision_jax.losses.classification import softmax_cross_entropy
from vision_jax.ops.arrays import as_valid, at_least_float32, pick, safe_sqrt
from vision_jax.ops.similarity import l2_normalize, pairwise_euclidean


def contrastive_loss(a: Array, b: Array, same: Array, *, margin: float = 1.0) -> Array:
  """Half the squared distance of a pair that is alike, half the squared shortfall from the margin of one that is not.

  Args:
    a: [..., E].
    b: [..., E], the same shape.
    same: bool [...], True for a pair that is alike.
    margin: the distance from which a pair that is not alike costs nothing.

  Returns:
    float32 [...], at least 0. A pair that is not alike but falls together has no direction to part in: gradient 0.

  Raises:
    ValueError: the shapes do not fit.

  Reference: Hadsell, Chopra and LeCun, Dimensionality Reduction by Learning an Invariant Mapping, CVPR 2006, equation 4
  (whose Y is 0 for a pair that is alike).

  >>> a, b = jnp.zeros((2, 2)), jnp.array([[0.3, 0.4], [0.3, 0.4]])
  >>> [f'{loss:.4f}' for loss in contrastive_loss(a, b, jnp.array([True, False]))]
  ['0.1250', '0.1250']
  """
  a, b, same = at_least_float32(a), at_least_float32(b), jnp.asarray(same)
  if a.ndim == 0 or a.shape != b.shape or same.shape != a.shape[:-1]:
    raise ValueError(f'contrastive_loss: a {list(a.shape)}, b {list(b.shape)} and same {list(same.shape)}; '
                     'give two arrays [..., E] and bools [...]')
  apart = jnp.maximum(margin - _length(a - b), 0) ** 2
  return jnp.where(same, jnp.sum((a - b) ** 2, axis=-1), apart) / 2


def triplet_loss(anchor: Array, positive: Array, negative: Array, *, margin: float = 0.2,
                 squared: bool = True) -> Array:
  """How much a negative is not farther from the anchor, by a margin, than a positive: max(d_p - d_n + margin, 0).

  Args:
    anchor: [..., E]; of length 1 in the paper, which is the caller's to see to.
    positive: [..., E], of the anchor's class.
    negative: [..., E], of another class.
    margin: how much farther the negative should be, in the unit of the distances.
    squared: True for squared Euclidean distances, False for plain ones.

  Returns:
    float32 [...], at least 0.

  Raises:
    ValueError: the shapes differ.

  Reference: Schroff et al., FaceNet, arXiv 1503.03832, section 3.1.

  >>> triplet_loss(jnp.array([0.0, 0.0]), jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0]), margin=0.5).item()
  0.5
  """
  anchor, positive, negative = at_least_float32(anchor), at_least_float32(positive), at_least_float32(negative)
  if anchor.ndim == 0 or anchor.shape != positive.shape or anchor.shape != negative.shape:
    raise ValueError(f'triplet_loss: anchor {list(anchor.shape)}, positive {list(positive.shape)} and negative '
                     f'{list(negative.shape)}; give three arrays of one shape [..., E]')
  distance = (lambda x: jnp.sum(x**2, axis=-1)) if squared else _length
  return jnp.maximum(distance(anchor - positive) - distance(anchor - negative) + margin, 0)


def batch_hard_triplet_loss(embeddings: Array, labels: Array, *, margin: float | str = 0.2, squared: bool = False,
                            valid: Array | None = None) -> dict[str, Term]:
  """The triplet loss of each embedding with its farthest positive and its nearest negative in the batch.

  Args:
    embeddings: [B, E].
    labels: int [B], whose equality makes a positive.
    margin: how much farther the negative should be; or 'soft', which puts log(1 + exp(d_p - d_n)) for the hinge.
    squared: True for squared Euclidean distances, False for plain ones (which collapse less often, says the paper).
    valid: bool [B], False for what takes no part; all True when left out.

  Returns:
    `loss_triplet`: sum over anchors; count: the anchors that have a positive other than themselves and a negative.

  Raises:
    ValueError: the shapes do not fit, or `margin` is a word other than 'soft'.

  Reference: Hermans et al., In Defense of the Triplet Loss for Person Re-Identification, arXiv 1703.07737, equation 5,
  and the soft margin of section 2.

  >>> loss = jax.jit(functools.partial(batch_hard_triplet_loss, margin=1.5))
  >>> term = loss(jnp.array([[0.0], [1.0], [3.0]]), jnp.array([0, 0, 1]))['loss_triplet']
  >>> float(term.total), int(term.count)
  (0.5, 2)
  """
  if isinstance(margin, str) and margin != 'soft':
    raise ValueError(f"batch_hard_triplet_loss: margin is {margin!r}; give a number or 'soft'")
  embeddings, positive, negative = _pairs('batch_hard_triplet_loss', embeddings, labels, valid)
  distances = pairwise_euclidean(embeddings, embeddings, squared=squared)
  counted = jnp.any(positive, axis=-1) & jnp.any(negative, axis=-1)
  # `initial` is what an anchor without a pair gets: the excess is then not above 0, -infinity included.
  farthest = jnp.max(distances, axis=-1, where=positive, initial=0)
  excess = farthest - jnp.min(distances, axis=-1, where=negative, initial=jnp.inf)
  each = jax.nn.softplus(excess) if margin == 'soft' else jnp.maximum(excess + margin, 0)
  return {'loss_triplet': Term(jnp.sum(jnp.where(counted, each, 0)), jnp.sum(counted, dtype=each.dtype))}


def semi_hard_triplet_loss(embeddings: Array, labels: Array, *, margin: float = 0.2, squared: bool = True,
                           valid: Array | None = None) -> dict[str, Term]:
  """The triplet loss of each ordered pair of one class with the nearest negative that is farther than the positive.

  Where no negative is farther than the positive, the farthest one is taken. Where the nearest farther one is beyond the
  margin, the pair costs nothing. Which negative is taken carries no gradient.

  Args:
    embeddings: [B, E]; of length 1 in the paper, which is the caller's to see to.
    labels: int [B], whose equality makes a positive.
    margin: how much farther the negative should be, in the unit of the distances.
    squared: True for squared Euclidean distances, False for plain ones.
    valid: bool [B], False for what takes no part; all True when left out.

  Returns:
    `loss_triplet`: sum over ordered pairs (anchor, positive); count: those whose anchor has a negative.

  Raises:
    ValueError: the shapes do not fit.

  Reference: Schroff et al., FaceNet, arXiv 1503.03832, section 3.2.
  Differs from the paper: it does not say what a pair without a semi-hard negative does; taking the farthest negative is
  TensorFlow's answer (`triplet_semihard_loss`).

  >>> embeddings, labels = jnp.array([[0.0], [1.0], [1.2], [3.0]]), jnp.array([0, 0, 1, 1])
  >>> term = jax.jit(functools.partial(semi_hard_triplet_loss, margin=1.0))(embeddings, labels)['loss_triplet']
  >>> print(f'{term.total:.2f} {int(term.count)}')
  3.60 4
  """
  embeddings, positive, negative = _pairs('semi_hard_triplet_loss', embeddings, labels, valid)
  distances = pairwise_euclidean(embeddings, embeddings, squared=squared)
  # Each anchor's negatives from near to far, so that a search finds the first one beyond each positive: all triplets at
  # once would be B^3 numbers.
  keys = jnp.where(negative, distances, jnp.inf)
  order = jnp.argsort(keys, axis=-1)
  in_order = jnp.take_along_axis(keys, order, axis=-1)
  beyond = jax.vmap(functools.partial(jnp.searchsorted, side='right'))(in_order, distances)
  last = jnp.sum(negative, axis=-1, keepdims=True) - 1
  chosen = jnp.take_along_axis(order, jnp.clip(beyond, 0, jnp.maximum(last, 0)), axis=-1)
  each = jnp.maximum(distances - jnp.take_along_axis(distances, chosen, axis=-1) + margin, 0)
  counted = positive & (last >= 0)
  return {'loss_triplet': Term(jnp.sum(jnp.where(counted, each, 0)), jnp.sum(counted, dtype=each.dtype))}


def arcface_loss(embeddings: Array, class_weights: Array, labels: Array, *, scale: float = 64.0,
                 margin: float = 0.5) -> Array:
  """Softmax cross-entropy over the cosines with each class's direction, where the true angle is widened by a margin.

  Both embeddings and directions are normalised here; one of length 0 has the cosine 0 with everything. Beyond
  theta + margin = pi the cosine would rise again: there cos(theta) - margin sin(margin) stands for it, which is lower.

  Args:
    embeddings: [..., E].
    class_weights: [K, E], the direction of each class: the parameters that go with this loss.
    labels: int [...], 0..K-1; one outside counts as the nearest class.
    scale: what the cosines are multiplied by before the softmax.
    margin: radians added to the angle with the true class, from 0 to pi / 2.

  Returns:
    float32 [...], at least 0.

  Raises:
    ValueError: the shapes do not fit, or the margin is out of range.

  Reference: Deng et al., ArcFace, arXiv 1801.07698, equation 3; what stands beyond pi is the authors' code's.

  >>> loss = jax.jit(functools.partial(arcface_loss, scale=1.0))
  >>> value = loss(jnp.array([3.0, 0.0]), jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array(0))
  >>> print(f'{value:.4f}')  # log(1 + exp(0 - cos(0.5)))
  0.3477
  """
  if not 0 <= margin <= math.pi / 2:
    raise ValueError(f'arcface_loss: margin is {margin}; give radians from 0 to pi / 2')
  embeddings, class_weights, labels = at_least_float32(embeddings), at_least_float32(class_weights), jnp.asarray(labels)
  if class_weights.ndim != 2 or embeddings.shape != labels.shape + class_weights.shape[1:]:
    raise ValueError(f'arcface_loss: embeddings {list(embeddings.shape)}, class_weights {list(class_weights.shape)} '
                     f'and labels {list(labels.shape)}; give [..., E], [K, E] and class numbers [...]')
  embeddings, class_weights = l2_normalize(embeddings), l2_normalize(class_weights)
  cosines = jnp.matmul(embeddings, class_weights.T, precision='highest')
  labels = jnp.clip(labels, 0, class_weights.shape[0] - 1)
  own = class_weights[labels]
  cosine = jnp.sum(embeddings * own, axis=-1)
  # Not sqrt(1 - cosine^2), which loses half of the digits near a cosine of 1 and has an infinite derivative there.
  sine = _length(embeddings - cosine[..., None] * own)
  widened = jnp.where(cosine > -math.cos(margin), cosine * math.cos(margin) - sine * math.sin(margin),
                      cosine - margin * math.sin(margin))
  is_own = jnp.arange(class_weights.shape[0]) == labels[..., None]
  return softmax_cross_entropy(scale * jnp.where(is_own, widened[..., None], cosines), labels)


def _pairs(where: str, embeddings: Array, labels: Array, valid: Array | None) -> tuple[Array, Array, Array]:
  """Embeddings without what invalid ones hold, and which pairs are positive (not with itself) and negative: [B, B]."""
  embeddings, labels = at_least_float32(embeddings), jnp.asarray(labels)
  if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
    raise ValueError(f'{where}: embeddings {list(embeddings.shape)} and labels {list(labels.shape)}; '
                     'give [B, E] and class numbers [B]')
  real = as_valid(where, 'valid', valid, labels.shape)
  both, alike = real[:, None] & real, labels[:, None] == labels
  return pick(real, embeddings, 0), both & alike & ~jnp.eye(labels.shape[0], dtype=bool), both & ~alike


def _length(vectors: Array) -> Array:
  """The Euclidean length over the last axis, without gradient at 0."""
  return safe_sqrt(jnp.sum(vectors**2, axis=-1))
