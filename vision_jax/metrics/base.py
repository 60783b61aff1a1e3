"""What every metric of this room is: an accumulator that is fed one image at a time.

Three rules hold for all of them. Predictions and targets are NumPy, in original pixels. A figure that the data does
not define (a class that never occurs, no image at all) is NaN, and a mean leaves it out; its name is in the result all
the same, so that a log has the same columns every time. An accumulator pickles, and merging those of several processes
gives what one process would have found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Accumulator(Protocol):
  """A metric over a whole data set.

  >>> from vision_jax.metrics import TopK
  >>> isinstance(TopK(), Accumulator)
  True
  """

  def add(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    """Counts one image; images that are only padding are not added."""

  def merge(self, other: Accumulator) -> None:
    """Counts what another accumulator of the same settings has counted."""

  def result(self) -> dict[str, float]:
    """The figures so far, under names that depend on the settings and never on the data."""


def check_same_settings(mine: Accumulator, other: Accumulator, *settings: str) -> None:
  """Refuses to merge accumulators that count different things.

  Args:
    mine: the accumulator that merges.
    other: the one to be merged.
    *settings: names of the attributes that must be equal.

  Raises:
    ValueError: another type, or another value of one of the settings.

  >>> from vision_jax.metrics import TopK
  >>> check_same_settings(TopK(ks=(1,)), TopK(ks=(1, 5)), 'ks')
  Traceback (most recent call last):
  ValueError: cannot merge TopK with ks=(1, 5) into one with ks=(1,); create both with the same settings
  """
  kind = type(mine).__name__
  if type(other) is not type(mine):
    raise ValueError(f'cannot merge {type(other).__name__} into {kind}; merge accumulators of the same kind')
  for name in settings:
    ours, theirs = getattr(mine, name), getattr(other, name)
    if ours != theirs:
      raise ValueError(f'cannot merge {kind} with {name}={theirs} into one with {name}={ours}; '
                       'create both with the same settings')


def field(where: str, fields: Mapping[str, Any], name: str) -> np.ndarray:
  """The array under `name`, or a ValueError that says what there is instead.

  >>> field('TopK: prediction', {'scores': 1}, 'probabilities')
  Traceback (most recent call last):
  ValueError: TopK: prediction has no 'probabilities'; it has scores
  """
  if name not in fields:
    raise ValueError(f'{where} has no {name!r}; it has {", ".join(sorted(fields)) or "nothing"}')
  return np.asarray(fields[name])


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
  """`part / whole` in float64, NaN where `whole` is zero.

  >>> ratio(np.array([1, 0]), np.array([2, 0])).tolist()
  [0.5, nan]
  """
  part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
  return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), np.nan)


def mean_defined(values: np.ndarray) -> float:
  """The mean of what is not NaN; NaN when nothing is left.

  >>> mean_defined(np.array([0.5, np.nan, 1.0])), mean_defined(np.array([np.nan]))
  (0.75, nan)
  """
  values = np.asarray(values, np.float64)
  defined = values[~np.isnan(values)]
  return float(defined.mean()) if defined.size else float('nan')
