"""Similarity of vectors: unit length, cosine, and Euclidean distance, with a finite gradient at zero.

Everything is computed in float32 (float64 stays float64), matrix products too, on any device.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vision_jax.conventions import Array
from vision_jax.ops.arrays import FAR, at_least_float32, check_broadcast, safe_sqrt

# A vector up to this long counts as zero: it has no direction.
_NO_LENGTH = 1e-12


def l2_normalize(x: Array) -> Array:
  """Vectors cut or stretched to length 1.

  Args:
    x: [..., E], any unit; entries beyond 1e9 count as 1e9.

  Returns:
    float32 [..., E] of length 1; zeros, without gradient, for a vector no longer than 1e-12.

  Raises:
    ValueError: x has no axis.

  >>> print(*(f'{v:.3f}' for v in l2_normalize([3, 0, -4, 0])))
  0.600 0.000 -0.800 0.000
  """
  x = jnp.clip(at_least_float32(x), -FAR, FAR)
  if x.ndim == 0:
    raise ValueError('l2_normalize: got a single number; give vectors [..., E]')
  length = safe_sqrt(jnp.sum(x**2, axis=-1, keepdims=True))
  nothing = length <= _NO_LENGTH  # False for NaN, which stays NaN
  return jnp.where(nothing, 0, x / jnp.where(nothing, 1, length))


def pairwise_cosine(a: Array, b: Array) -> Array:
  """The cosine of the angle between every vector of one set and every vector of the other.

  Args:
    a: [..., N, E], any unit.
    b: [..., Q, E]; its leading axes broadcast against those of `a`.

  Returns:
    float32 [..., N, Q] in -1..1; 0, without gradient, where one of the two is no longer than 1e-12. A NaN in a vector
    gives NaN in its row or column; as it would reach the gradients of all others, fill invalid vectors beforehand.

  Raises:
    ValueError: a and b are not [..., N, E] and [..., Q, E], or their leading axes do not broadcast.

  >>> pairwise_cosine(jnp.eye(2), jnp.array([[2, 0], [0, -3], [0, 0.0]])).tolist()
  [[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]
  """
  _check_pair('pairwise_cosine', a, b)
  # Rounding may lead a hair beyond 1, where an arccos would be NaN.
  return jnp.clip(_products(l2_normalize(a), l2_normalize(b)), -1, 1)


def pairwise_euclidean(a: Array, b: Array, *, squared: bool = False) -> Array:
  """The Euclidean distance of every vector of one set from every vector of the other.

  Args:
    a: [..., N, E], any unit; entries beyond 1e9 count as 1e9.
    b: [..., Q, E]; its leading axes broadcast against those of `a`.
    squared: return the squared distance, whose gradient has no edge at 0.

  Returns:
    float32 [..., N, Q], never negative. The gradient of a distance of 0 is 0. A NaN in a vector gives NaN in its row or
    column; as it would reach the gradients of all others, fill invalid vectors beforehand.

  Raises:
    ValueError: a and b are not [..., N, E] and [..., Q, E], or their leading axes do not broadcast.

  Precision and memory: the values come from the differences a - b, so vectors that hardly differ have a distance as
  exact as any others; |a|^2 + |b|^2 - 2ab would be off by up to 7e-4 there for unit vectors. The derivatives come from
  matrix products, so that the [N, Q, E] differences need not be kept; a pair's gradient is off by about
  5e-8 |a| / |a - b| of its length.

  >>> pairwise_euclidean(jnp.array([[0, 0], [3, 4.0]]), jnp.zeros((1, 2))).tolist()
  [[0.0], [5.0]]
  """
  _check_pair('pairwise_euclidean', a, b)
  a, b = (jnp.clip(at_least_float32(x), -FAR, FAR) for x in (a, b))
  distance = _squared_distance(a, b)
  return distance if squared else safe_sqrt(distance)


@jax.custom_jvp
def _squared_distance(a: Array, b: Array) -> Array:
  # One fused loop under jit: nothing of size [N, Q, E] is stored.
  return jnp.sum((a[..., :, None, :] - b[..., None, :, :]) ** 2, axis=-1)


@_squared_distance.defjvp
def _squared_distance_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
  (a, b), (da, db) = primals, tangents
  own = jnp.sum(a * da, axis=-1)[..., :, None] + jnp.sum(b * db, axis=-1)[..., None, :]
  return _squared_distance(a, b), 2 * (own - _products(da, b) - _products(a, db))


def _products(a: Array, b: Array) -> Array:
  # Accelerators would round the factors to 10 bits.
  return jnp.matmul(a, jnp.swapaxes(b, -1, -2), precision='highest')


def _check_pair(where: str, a: Array, b: Array) -> None:
  a, b = jnp.asarray(a), jnp.asarray(b)
  if min(a.ndim, b.ndim) < 2 or a.shape[-1] != b.shape[-1]:
    raise ValueError(f'{where}: got {list(a.shape)} and {list(b.shape)}; give sets of vectors [..., N, E] and '
                     '[..., Q, E]')
  check_broadcast(where, last=2, a=a, b=b)
