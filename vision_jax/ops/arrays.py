"""What ops and losses do with their arguments first: check shapes, leave half precision, divide safely."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from vision_jax.conventions import Array

# Coordinates are cut here before anything is squared: four areas of 2e9 x 2e9 still fit float32 (3e38), with room for
# the squares that gradients divide by.
FAR = 1e9


def at_least_float32(values: Array) -> Array:
  """`values` in float32, or in float64 where they already are: integers and half precision lose boxes' decimals."""
  values = jnp.asarray(values)
  return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def as_mask(where: str, mask: Array) -> Array:
  """`mask` as bool [..., H, W]; refuses probabilities, of which hardly any is 0."""
  mask = jnp.asarray(mask)
  if mask.ndim < 2 or not (mask.dtype == bool or jnp.issubdtype(mask.dtype, jnp.integer)):
    raise ValueError(f'{where}: got {mask.dtype} {list(mask.shape)}; give masks [..., H, W] of bool or integers, such '
                     'as probabilities > 0.5')
  return mask.astype(bool)


def check_last_axis(where: str, name: str, values: Array, size: int) -> None:
  """Refuses an array whose last axis is not `size` long."""
  shape = jnp.asarray(values).shape
  if not shape or shape[-1] != size:
    raise ValueError(f'{where}: {name} must be [..., {size}], not {list(shape)}; put the {size} numbers last')


def check_broadcast(where: str, *, last: int = 0, **arrays: Array) -> None:
  """Refuses arrays whose axes, up to so many last ones, do not broadcast against each other."""
  shapes = {name: jnp.asarray(values).shape for name, values in arrays.items()}
  try:
    np.broadcast_shapes(*(shape[:len(shape) - last] for shape in shapes.values()))
  except ValueError:
    given = ', '.join(f'{name} {list(shape)}' for name, shape in shapes.items())
    raise ValueError(f'{where}: {given} do not broadcast; give axes of one length, or of length 1') from None


def as_valid(where: str, name: str, valid: Array | None, shape: tuple[int, ...]) -> Array:
  """`valid` as bool of this shape, all True where it is left out; refuses any other shape."""
  valid = jnp.ones(shape, bool) if valid is None else jnp.asarray(valid, bool)
  if valid.shape != tuple(shape):
    raise ValueError(f'{where}: {name} {list(valid.shape)}; give bool {list(shape)}')
  return valid


def absolute(values: Array) -> Array:
  """|values|, with gradient 0 at 0 as in torch: that of `jnp.abs` is 1 there, and pulls at what is in its place."""
  return values * jnp.sign(values)


def check_choice(where: str, option: str, given: str, known: tuple[str, ...]) -> None:
  """Refuses an option that is none of the known ones."""
  if given not in known:
    raise ValueError(f'{where}: {option} is {given!r}; give one of {", ".join(known)}')


def safe_divide(numerator: Array, denominator: Array, *, floor: float) -> Array:
  """`numerator / denominator`, and 0 with gradient 0 where the denominator is not above `floor`."""
  # Selected twice: a gradient through the branch that was not taken would be 0 * inf = NaN.
  usable = denominator > floor
  return jnp.where(usable, numerator / jnp.where(usable, denominator, 1), 0)


def safe_sqrt(values: Array) -> Array:
  """The square root, and 0 with gradient 0 where `values` is 0 or less; a NaN stays one."""
  nothing = values <= 0
  return jnp.where(nothing, 0, jnp.sqrt(jnp.where(nothing, 1, values)))


def pick(condition: Array, values: Array, other: Array) -> Array:
  """`jnp.where` whose condition lacks the trailing axes of `values`, as every `valid` does."""
  condition, values = jnp.asarray(condition), jnp.asarray(values)
  return jnp.where(condition.reshape(condition.shape + (1,) * (values.ndim - condition.ndim)), values, other)
