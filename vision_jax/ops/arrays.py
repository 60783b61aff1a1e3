"""What ops and losses do with their arguments first: check shapes, leave half precision, divide safely."""

from __future__ import annotations

import jax.numpy as jnp

from vision_jax.conventions import Array


def at_least_float32(values: Array) -> Array:
  """`values` in float32, or in float64 where they already are: integers and half precision lose boxes' decimals."""
  values = jnp.asarray(values)
  return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def check_last_axis(where: str, name: str, values: Array, size: int) -> None:
  """Refuses an array whose last axis is not `size` long."""
  shape = jnp.asarray(values).shape
  if not shape or shape[-1] != size:
    raise ValueError(f'{where}: {name} must be [..., {size}], not {list(shape)}; put the {size} numbers last')


def safe_divide(numerator: Array, denominator: Array, *, floor: float) -> Array:
  """`numerator / denominator`, and 0 with gradient 0 where the denominator is not above `floor`."""
  # Selected twice: a gradient through the branch that was not taken would be 0 * inf = NaN.
  usable = denominator > floor
  return jnp.where(usable, numerator / jnp.where(usable, denominator, 1), 0)


def pick(condition: Array, values: Array, other: Array) -> Array:
  """`jnp.where` whose condition lacks the trailing axes of `values`, as every `valid` does."""
  condition, values = jnp.asarray(condition), jnp.asarray(values)
  return jnp.where(condition.reshape(condition.shape + (1,) * (values.ndim - condition.ndim)), values, other)
