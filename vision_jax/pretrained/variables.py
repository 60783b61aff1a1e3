"""The variables that a model wants: their names, shapes and first values, by path (`params/conv1/kernel`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.models.layers import pair

SHOWN = 4  # names of each kind in a line
# Sides of the images that a model's shapes are taken with, where it does not name its own: the first that it accepts,
# as some want multiples of a number. 224 first, then multiples of 32 by their distance from it, then those of 4.
_SIDES = tuple(sorted(range(32, 1025, 4), key=lambda side: (side % 32 > 0, abs(side - 224))))
_EXTRAS = ('aux',)  # options of a model that add what only training uses


@functools.lru_cache(maxsize=8)
def variable_shapes(model: nn.Module, image: tuple[int, ...]) -> dict[str, Any]:
  """The shapes of a model's variables for images of a shape."""
  return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(image, jnp.float32))


def flat_shapes(model: nn.Module) -> tuple[tuple[str, Any], ...]:
  """Pairs (path, shape and dtype) of a model's variables, for RGB images of its `image_size`, else of 224 x 224
  pixels or the nearest size that it accepts.

  >>> from vision_jax import models
  >>> flat_shapes(models.create('lenet5'))[0]
  ('params/c1/bias', ShapeDtypeStruct(shape=(6,), dtype=float32))
  """
  return tuple(flat_variables(variable_shapes(model, image_shape(model))).items())


@functools.lru_cache(maxsize=8)
def image_shape(model: nn.Module, channels: int = 3) -> tuple[int, int, int, int]:
  """Of one image that the model accepts."""
  if own := getattr(model, 'image_size', None) or getattr(model, 'canvas', None):
    return 1, *pair(own), channels
  first = None
  for side in _SIDES:
    image = (1, side, side, channels)
    try:
      variable_shapes(model, image)
    except ValueError as error:
      first = first or error
    else:
      return image
  raise first


def image_shape_of(model: nn.Module, wanted: Mapping[str, Any]) -> tuple[int, int, int, int]:
  """Of one image with which the model has these shapes, as far as the number of its channels decides."""
  shapes = {path: tuple(leaf.shape) for path, leaf in wanted.items()}
  # RGB images first; else as many channels as some convolution takes.
  channels = {3: None, **dict.fromkeys(sorted({shape[-2] for shape in shapes.values() if len(shape) == 4}))}
  for count in channels:
    image = image_shape(model, count)
    if {path: leaf.shape for path, leaf in flat_variables(variable_shapes(model, image)).items()} == shapes:
      return image
  return image_shape(model)


def head_paths(model: nn.Module, image: tuple[int, ...]) -> frozenset[str]:
  """The paths whose shapes depend on the number of classes; for `num_classes=0` all that a head would add."""
  classes = getattr(model, 'num_classes', None)
  if classes is None:
    return frozenset()
  try:
    with_head = model if classes else model.clone(num_classes=1)
    one, other = (flat_variables(variable_shapes(m, image)) for m in (with_head, model.clone(num_classes=classes + 2)))
  except ValueError:  # a model for its own number of classes only
    return frozenset()
  own = {} if classes else flat_variables(variable_shapes(model, image))
  return frozenset(path for path, leaf in one.items()
                   if path not in other or leaf.shape != other[path].shape or (not classes and path not in own))


def training_paths(model: nn.Module, image: tuple[int, ...]) -> frozenset[str]:
  """The paths of what the model could have for its training, and has not."""
  off = {name: True for name in _EXTRAS if getattr(model, name, None) is False}
  return frozenset(flat_variables(variable_shapes(model.clone(**off), image))).difference(
      flat_variables(variable_shapes(model, image))) if off else frozenset()


def _draw(model: nn.Module, image: tuple[int, ...], wanted: Mapping[str, Any],
          key: jax.Array) -> dict[str, np.ndarray]:
  """Variables of these shapes as the model initialises them for such images; XLA leaves out all others."""
  shapes = flat_variables(variable_shapes(model, image))
  other = [f'{path} {tuple(leaf.shape)}' for path, leaf in wanted.items()
           if path not in shapes or shapes[path].shape != tuple(leaf.shape)]
  if other:
    raise ValueError(f'{type(model).__name__} cannot be drawn with the shapes of `like` for images of '
                     f'{" x ".join(map(str, image[1:]))}: {some(other)}; give `like` as the arrays of model.init')

  def draw(key):
    flat = flat_variables(model.init(key, jnp.zeros(image)))
    return {path: flat[path] for path in wanted}

  return {path: np.asarray(leaf) for path, leaf in jax.jit(draw)(key).items()}


def initial_values(model: nn.Module, image: tuple[int, ...] | None, wanted: Mapping[str, Any],
             key: jax.Array | None) -> dict[str, np.ndarray]:
  """The arrays that `like` holds, and drawn ones where it holds shapes only."""
  drawn = {path: leaf for path, leaf in wanted.items() if isinstance(leaf, jax.ShapeDtypeStruct)}
  found = {path: np.asarray(leaf) for path, leaf in wanted.items() if path not in drawn}
  return {**found, **(_draw(model, image, drawn, jax.random.key(0) if key is None else key) if drawn else {})}


def flat_variables(tree: Any) -> dict[str, Any]:
  """One entry for each leaf of variables by collection, under its path; the inverse of `nested`.

  >>> flat_variables({'params': {'conv1': {'kernel': 1}}})
  {'params/conv1/kernel': 1}
  """
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Variables by collection, from one entry for each path.

  >>> nested({'params/conv1/kernel': 1, 'batch_stats/bn1/mean': 2})
  {'params': {'conv1': {'kernel': 1}}, 'batch_stats': {'bn1': {'mean': 2}}}
  """
  tree: dict[str, Any] = {}
  for path, leaf in flat.items():
    *folders, last = path.split('/')
    functools.reduce(lambda node, folder: node.setdefault(folder, {}), folders, tree)[last] = leaf
  return tree


def some(found: Iterable[str], shown: int = SHOWN) -> str:
  found = list(found)
  more = f' and {len(found) - shown} more' if len(found) > shown else ''
  return ', '.join(found[:shown]) + more
