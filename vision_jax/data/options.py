"""Checks of the values of options, with answers of one line."""

from __future__ import annotations

from collections.abc import Sequence
import math
import numbers
from typing import Any


def check_number(where: str, option: str, value: Any, low: float = 0.0, high: float = math.inf, *,
                 whole: bool = False) -> None:
  """Refuses an option's value that is no number of a range, in one line.

  Args:
    where: what has the option.
    option: its name.
    value: what was given.
    low: the least value.
    high: the largest.
    whole: whether it has to be a whole number.

  Raises:
    ValueError: the value is not in the range.

  >>> check_number('augmentation flip', 'probability', 1.5, 0, 1)
  Traceback (most recent call last):
  ValueError: augmentation flip: probability is 1.5; give a number in 0..1
  """
  kind = numbers.Integral if whole else numbers.Real
  if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
    span = f'of at least {low:g}' if high == math.inf else f'in {low:g}..{high:g}'
    raise ValueError(f'{where}: {option} is {value!r}; give a {"whole " if whole else ""}number {span}')


def check_range(where: str, option: str, value: Any, low: float = 0.0, high: float = math.inf) -> None:
  """Refuses an option's value that is no pair (low, high) of positive numbers in a range, in one line.

  Args:
    where: what has the option.
    option: its name.
    value: what was given.
    low: the limit below; where it is 0, the pair lies above it.
    high: the limit above.

  Raises:
    ValueError: no pair, out of the range, or the wrong way round.

  >>> check_range('augmentation affine', 'scale', (1.2, 0.8))
  Traceback (most recent call last):
  ValueError: augmentation affine: scale is (1.2, 0.8); give (low, high) with 0 < low <= high
  """
  pair = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
  pair = pair and all(isinstance(number, numbers.Real) for number in value)
  if not pair or not (low or value[0] > 0) or not low <= value[0] <= value[1] <= high:
    above = '0 <' if not low else f'{low:g} <='
    raise ValueError(f'{where}: {option} is {value!r}; give (low, high) with {above} low <= high'
                     f'{"" if high == math.inf else f" <= {high:g}"}')
