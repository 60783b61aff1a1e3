"""Noise of training: dropout and stochastic depth, drawn for each example by its place in the global batch."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


def keep_mask(module: nn.Module, keep: float, shape: tuple[int, ...]) -> Array:
  """Random bools `[B, ...]`, True with probability `keep`, drawn for each example by its place in the global batch.

  The key is the module's own of the stream 'dropout', and the places are the variable 'position' `[B]` of the
  collection 'example' that `apply` was called with (0, 1, ... where there is none). So noise does not depend on how
  many devices share a batch.

  Args:
    module: a bound module.
    keep: a probability.
    shape: of the result; its first axis is the batch.

  Raises:
    ValueError: the first axis is not as long as 'position'.
  """
  position = module.scope.root.get_variable('example', 'position', jnp.arange(shape[0]))
  if position.shape != shape[:1]:
    raise ValueError(f'{"/".join(module.path)}: noise of shape {shape} for {position.shape[0]} examples; keep the '
                     'batch as the first axis')
  key = module.make_rng('dropout')
  return jax.vmap(lambda i: jax.random.bernoulli(jax.random.fold_in(key, i), keep, shape[1:]))(position)


def _draws(layer: nn.Module, train: bool) -> bool:
  """Whether a layer has noise to draw; refuses a rate at which nothing would be left to divide."""
  if not 0 <= layer.rate < 1:
    raise ValueError(f'{type(layer).__name__}: the rate is {layer.rate}; give 0 or more, and less than 1')
  return train and layer.rate > 0


class Dropout(nn.Module):
  """In training, zeroes each number with probability `rate` and divides the others by 1 - rate.

  Args:
    rate: in [0, 1).

  Returns:
    As what goes in, `[B, ...]`. Training with a rate above 0 needs `rngs={'dropout': key}`; see `keep_mask`.

  Raises:
    ValueError: another rate.

  Nitish Srivastava et al., Dropout: A Simple Way to Prevent Neural Networks from Overfitting, JMLR 15, 2014.

  >>> x = Dropout(0.5).apply({}, jnp.ones((8, 64)), train=True, rngs={'dropout': jax.random.key(0)})
  >>> sorted(set(x.ravel().tolist()))
  [0.0, 2.0]
  """

  rate: float

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    if not _draws(self, train):
      return x
    keep = 1 - self.rate
    return jnp.where(keep_mask(self, keep, x.shape), x / keep, 0).astype(x.dtype)


class StochasticDepth(nn.Module):
  """In training, zeroes a residual branch of whole examples with probability `rate`, and divides the rest by 1 - rate.

  Args:
    rate: in [0, 1).

  Returns:
    As what goes in, `[B, ...]`; see `Dropout`.

  Raises:
    ValueError: another rate.

  Gao Huang et al., Deep Networks with Stochastic Depth, arXiv 1603.09382.

  >>> x = StochasticDepth(0.5).apply({}, jnp.ones((8, 64)), train=True, rngs={'dropout': jax.random.key(0)})
  >>> bool((x == x[:, :1]).all()), sorted(set(x[:, 0].tolist()))
  (True, [0.0, 2.0])
  """

  rate: float

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    if not _draws(self, train):
      return x
    keep = 1 - self.rate
    mask = keep_mask(self, keep, x.shape[:1]).reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(mask, x / keep, 0).astype(x.dtype)
