"""Variables drawn by NumPy: a model's own initialisation takes longer to compile than its application."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def shapes(model, *size: int, method=None):
  """The results and variables of a model as shapes, for an input of this size."""
  return jax.eval_shape(lambda key, x: model.init_with_output(key, x, method=method), jax.random.key(0),
                        jnp.zeros(size))


def maps(model, *size: int, **options) -> list[tuple[str, tuple[int, ...]]]:
  """(name, shape) of the feature maps of a model, in the order in which `features` gives them."""
  names = []

  def features(key, x):
    found = model.init_with_output(key, x, method='features', **options)[0]
    names.extend(found)
    return list(found.values())

  leaves = jax.eval_shape(features, jax.random.key(0), jnp.zeros(size))
  return [(name, leaf.shape) for name, leaf in zip(names, leaves, strict=True)]


def variables(model, x, seed: int = 0, *, variance: float = 2.0):
  """Kernels with this variance over the fan in (2: He), scales and variances in 0.5 to 1.5, everything else small."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    last = path[-1].key
    if last in ('scale', 'var'):
      return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    spread = np.sqrt(variance / np.prod(leaf.shape[:-1])) if last.endswith('kernel') else 0.1
    return (spread * rng.standard_normal(leaf.shape)).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0), x))
