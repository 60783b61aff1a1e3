"""Which of a backbone's feature maps a caller gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import jax

Array = jax.Array


def choose_maps(maps: Mapping[str, tuple[int | None, Array]], names: Iterable[str] | None = None) -> dict[str, Array]:
  """The maps of these names, or the last one of every stride.

  Args:
    maps: for each name, in the order of the network, the stride in pixels and the map `[B, h, w, C]`; a stride of None
      is never chosen unless by name.
    names: what to choose, or None.

  Returns:
    Maps by name, in the order of `names`, or else fine to coarse. (What `jax.jit` gives back it sorts by name.)

  Raises:
    ValueError: an unknown name, with those that there are.

  >>> choose_maps({'stem': (2, 'a'), 'one': (2, 'b'), 'two': (4, 'c')})
  {'one': 'b', 'two': 'c'}
  """
  if names is None:
    names = {stride: name for name, (stride, _) in maps.items() if stride}.values()
  names = tuple(names)
  unknown = [name for name in names if name not in maps]
  if unknown:
    raise ValueError(f'no feature map {", ".join(map(repr, unknown))}; there are {", ".join(maps)}')
  return {name: maps[name][1] for name in names}
