"""Functional JAX and Flax research code for computer vision.

Each room is a subpackage that loads only when it is used, so `import vision_jax` costs nothing:

>>> import vision_jax
>>> vision_jax.conventions.ClassMap(names=('cat', 'dog')).index(1)
1

`vision_jax.conventions` states the rules that hold everywhere: boxes, images, classes, padding, randomness.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = '0.1.0'

_ROOMS = ('build', 'conventions', 'data', 'host', 'inspect', 'losses', 'metrics', 'models',
          'ops', 'pretrained', 'tasks', 'train', 'viz')


def __getattr__(name: str) -> Any:
  if name in _ROOMS:
    return importlib.import_module(f'{__name__}.{name}')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}; the rooms are {", ".join(_ROOMS)}')


def __dir__() -> list[str]:
  return sorted({*globals(), *_ROOMS})
