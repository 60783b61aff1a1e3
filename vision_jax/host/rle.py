"""Run lengths on the host: COCO's way to write a binary mask, equal to pycocotools' to the byte.

A mask is read column by column. Its run lengths alternate between background and foreground and begin with background,
so the first is 0 where the first pixel is foreground. An `rle` is a mapping `{'size': [h, w], 'counts': ...}`, as in
COCO's files, with one of two kinds of counts: a sequence of the run lengths, or a string that packs them.

The string (bytes are read as well): from the fourth on, a run length is stored as its difference to the one two places
before. Each number is cut into groups of five bits, the lowest first, until the rest is only its sign; a group becomes
the character `48 + group`, 32 more where another group follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_FIRST = 48  # the character that stands for 0
_LONGEST = 12  # characters of a number: 60 bits, far above any image, and safe in int64
_MORE = 16 << 5 * np.arange(_LONGEST)  # from these on, a number needs one character more


def encode(mask: np.ndarray) -> dict[str, Any]:
  """The run lengths of a mask, packed, as COCO's files hold them.

  Args:
    mask: `[H, W]` bool, or integers of which all but 0 are foreground.

  Returns:
    `{'size': [H, W], 'counts': str}`, ready for JSON; the characters are those that pycocotools gives as bytes.

  Raises:
    ValueError: the mask is not `[H, W]`, or its numbers are neither bool nor integers.

  >>> encode(np.array([[0, 1, 1], [0, 1, 0]]))
  {'size': [2, 3], 'counts': '231'}
  """
  mask = np.asarray(mask)
  if mask.ndim != 2 or mask.dtype.kind not in 'bui':
    raise ValueError(f'encode: mask is {mask.dtype} {mask.shape}; give bool [H, W], probabilities compared with a '
                     'threshold')
  pixels = mask.astype(bool, copy=False).T.reshape(-1)
  flips = np.flatnonzero(pixels != np.append(False, pixels[:-1])[:pixels.size])
  return _packed(_lengths(flips, pixels.size), mask.shape)


def decode(rle: Mapping[str, Any]) -> np.ndarray:
  """The mask that run lengths stand for.

  Args:
    rle: run lengths, packed or not.

  Returns:
    `[H, W]` bool, stored column by column.

  Raises:
    ValueError: the run lengths are damaged or do not fill the image.

  >>> decode({'size': [2, 3], 'counts': [2, 3, 1]}).astype(int)
  array([[0, 1, 1],
         [0, 1, 0]])
  """
  lengths, (height, width) = _read('decode', rle)
  return np.repeat(np.arange(lengths.size) % 2 == 1, lengths).reshape(width, height).T


def run_lengths(rle: Mapping[str, Any]) -> np.ndarray:
  """The run lengths themselves, unpacked and checked.

  Args:
    rle: run lengths, packed or not.

  Returns:
    `[R]` int64, background and foreground in turn, background first; their sum is H * W.

  Raises:
    ValueError: the run lengths are damaged or do not fill the image.

  >>> run_lengths({'size': [2, 3], 'counts': '231'}).tolist()
  [2, 3, 1]
  """
  return _read('run_lengths', rle)[0]


def pack(rle: Mapping[str, Any]) -> dict[str, Any]:
  """The same run lengths with their counts as a string.

  Args:
    rle: run lengths, packed or not.

  Returns:
    `{'size': [H, W], 'counts': str}`. Runs of no pixels are kept as they are.

  Raises:
    ValueError: the run lengths are damaged or do not fill the image.

  >>> pack({'size': [2, 3], 'counts': [2, 3, 1]})
  {'size': [2, 3], 'counts': '231'}
  """
  return _packed(*_read('pack', rle))


def area(rle: Mapping[str, Any]) -> int:
  """The number of foreground pixels.

  Args:
    rle: run lengths, packed or not.

  Returns:
    Square pixels, 0..H * W.

  Raises:
    ValueError: the run lengths are damaged or do not fill the image.

  >>> area({'size': [2, 3], 'counts': [2, 3, 1]})
  3
  """
  return int(_read('area', rle)[0][1::2].sum())


def to_box(rle: Mapping[str, Any]) -> np.ndarray:
  """The tight box around the foreground.

  Args:
    rle: run lengths, packed or not.

  Returns:
    `[4]` float64 xyxy in continuous pixels: pixel i covers i..i+1. Zeros without foreground. pycocotools' `toBbox`
    gives the same box as (left, top, width, height).

  Raises:
    ValueError: the run lengths are damaged or do not fill the image.

  >>> to_box({'size': [2, 3], 'counts': [2, 3, 1]}).tolist()
  [1.0, 0.0, 3.0, 2.0]
  """
  lengths, (height, _) = _read('to_box', rle)
  starts, ends = _foreground(lengths)
  if not starts.size:
    return np.zeros(4)
  first_column, top = np.divmod(starts, height)
  last_column, bottom = np.divmod(ends - 1, height)
  if (first_column < last_column).any():  # a run goes on from the foot of one column to the head of the next
    top, bottom = np.array([0]), np.array([height - 1])
  return np.array([first_column[0], top.min(), last_column[-1] + 1, bottom.max() + 1], np.float64)


def merge(rles: Sequence[Mapping[str, Any]], *, intersect: bool = False) -> dict[str, Any]:
  """The union of masks of one size, or what all of them share.

  Args:
    rles: one or more run lengths, packed or not.
    intersect: whether a pixel must lie in all masks, not just in one.

  Returns:
    `{'size': [H, W], 'counts': str}`.

  Raises:
    ValueError: nothing to merge, sizes that differ, or run lengths that are damaged or do not fill the image.

  >>> merge([{'size': [1, 4], 'counts': [0, 2, 2]}, {'size': [1, 4], 'counts': [1, 2, 1]}])
  {'size': [1, 4], 'counts': '031'}
  """
  lengths, size = _read_all('merge', rles)
  if not lengths:
    raise ValueError('merge: no run lengths; give one mask or more, an empty one as counts [h * w]')
  runs = [_foreground(each) for each in lengths]
  # Every start is one mask more from there on, every end one less; a mask's own runs do not touch each other.
  where = np.concatenate([starts for starts, _ in runs] + [ends for _, ends in runs])
  step = np.repeat([1, -1], where.size // 2)
  order = np.argsort(where, kind='stable')
  where, depth = where[order], np.cumsum(step[order])
  last = np.append(where[1:] != where[:-1], True)[:where.size]  # what holds once all changes at a pixel are made
  where, inside = where[last], depth[last] >= (len(lengths) if intersect else 1)
  flips = where[inside != np.append(False, inside[:-1])[:inside.size]]
  total = size[0] * size[1]
  return _packed(_lengths(flips[flips < total], total), size)


def iou(rles_a: Sequence[Mapping[str, Any]], rles_b: Sequence[Mapping[str, Any]], *,
        crowd: np.ndarray | None = None) -> np.ndarray:
  """Intersection over union of every mask of one list with every mask of another, without decoding them.

  Args:
    rles_a: A run lengths, packed or not; in an evaluation the detections.
    rles_b: B run lengths of the same size; in an evaluation the ground truth.
    crowd: `[B]` bool; the overlap with a crowd is divided by the area of the mask in `rles_a`, so that a part of it
      matches as well as the whole. None is a crowd when left out.

  Returns:
    `[A, B]` float64 in 0..1; 0 where the masks do not touch.

  Raises:
    ValueError: sizes that differ, `crowd` is not `[B]`, or run lengths that are damaged or do not fill the image.

  >>> left, all_of_it = {'size': [1, 4], 'counts': [0, 2, 2]}, {'size': [1, 4], 'counts': [0, 4]}
  >>> iou([left], [left, all_of_it, all_of_it], crowd=np.array([False, False, True])).tolist()
  [[1.0, 0.5, 1.0]]
  """
  lengths, _ = _read_all('iou', [*rles_a, *rles_b])
  crowd = np.zeros(len(rles_b), bool) if crowd is None else np.asarray(crowd)
  if crowd.shape != (len(rles_b),):
    raise ValueError(f'iou: crowd has shape {crowd.shape} for {len(rles_b)} masks in rles_b; give one bool for each')
  areas = np.array([each[1::2].sum() for each in lengths], np.float64)
  areas_a, areas_b = areas[:len(rles_a), None], areas[None, len(rles_a):]
  shared = _shared_areas(lengths[:len(rles_a)], lengths[len(rles_a):])
  union = np.where(crowd, areas_a, areas_a + areas_b - shared)
  return shared / np.where(shared > 0, union, 1.0)


def _shared_areas(lengths_a: list[np.ndarray], lengths_b: list[np.ndarray]) -> np.ndarray:
  """`[A, B]` float64, the pixels that every two masks have in common."""
  shared = np.zeros((len(lengths_a), len(lengths_b)))
  runs = [_foreground(each) for each in lengths_a]
  owner = np.repeat(np.arange(len(runs)), [starts.size for starts, _ in runs])
  starts, ends = (np.concatenate([run[k] for run in runs] or [[]]) for k in (0, 1))
  for b, (starts_b, ends_b) in enumerate(map(_foreground, lengths_b)):
    if starts_b.size:
      # How many pixels of b come before a place: straight between the ends of its runs, which touch nowhere. Exact,
      # because all numbers are whole and the slopes are 0 and 1.
      places = np.stack([starts_b, ends_b], axis=1).ravel()
      before = np.repeat(np.cumsum(ends_b - starts_b), 2)
      before[::2] -= ends_b - starts_b
      inside = np.interp(ends, places, before) - np.interp(starts, places, before)
      shared[:, b] = np.bincount(owner, inside, minlength=len(runs))
  return shared


def _foreground(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Where foreground runs start and end (exclusive), in column order; empty ones are gone, touching ones are joined."""
  places = np.cumsum(lengths)
  if (lengths[1:] == 0).any():
    flips, times = np.unique(places[:-1], return_counts=True)
    # Two changes at one place undo each other, and one at the very end has no pixel behind it.
    places = np.append(flips[(times % 2 == 1) & (flips < places[-1])], places[-1])
  return places[:-1:2], places[1::2]


def _lengths(flips: np.ndarray, total: int) -> np.ndarray:
  """Run lengths from the rising places, below `total`, where background and foreground change."""
  return np.diff(np.append(flips, total).astype(np.int64), prepend=0)


def _read_all(where: str, rles: Sequence[Mapping[str, Any]]) -> tuple[list[np.ndarray], tuple[int, int]]:
  """The run lengths of masks of one size, and that size, (0, 0) without any mask."""
  read = [_read(f'{where}, mask {i}', rle) for i, rle in enumerate(rles)]
  sizes = [size for _, size in read] or [(0, 0)]
  for i, size in enumerate(sizes):
    if size != sizes[0]:
      raise ValueError(f'{where}: mask 0 has size {list(sizes[0])} and mask {i} {list(size)}; give masks of one image')
  return [lengths for lengths, _ in read], sizes[0]


def _read(where: str, rle: Mapping[str, Any]) -> tuple[np.ndarray, tuple[int, int]]:
  """Run lengths, int64 [R], and the size (h, w)."""
  if not isinstance(rle, Mapping) or not {'size', 'counts'} <= rle.keys():
    given = sorted(map(str, rle)) if isinstance(rle, Mapping) else type(rle).__name__
    raise ValueError(f"{where}: run lengths are given as {given}; give {{'size': [h, w], 'counts': ...}} (polygons go "
                     'through vision_jax.host.polygons)')
  size, counts = check_size(where, rle['size']), rle['counts']
  if isinstance(counts, str | bytes):
    lengths = _unpacked(where, counts.encode(errors='surrogatepass') if isinstance(counts, str) else counts)
  else:
    lengths = np.asarray(counts)
    if lengths.ndim != 1 or (lengths.size and lengths.dtype.kind not in 'ui'):
      raise ValueError(f'{where}: counts are {lengths.dtype} {lengths.shape}; give a string, or whole numbers in a row')
  lengths = lengths.astype(np.int64)
  if (lengths < 0).any():
    place = int(np.argmax(lengths < 0))
    raise ValueError(f'{where}: count {place} is {lengths[place]}; a run has 0 pixels or more, the counts are damaged')
  total = size[0] * size[1]
  if lengths.max(initial=0) > total or lengths.sum() != total:  # one alone first: a sum may wrap around
    raise ValueError(f'{where}: the counts sum to {sum(lengths.tolist())}, but size {list(size)} has {total} pixels; '
                     'give the size (h, w) of the image that the mask was made for')
  return lengths, size


def check_size(where: str, size: Sequence[int]) -> tuple[int, int]:
  """(h, w) as two whole numbers; a ValueError where they are something else."""
  given = np.asarray(size)
  if given.shape != (2,) or given.dtype.kind not in 'ui' or (given < 0).any():
    raise ValueError(f'{where}: size is {size!r}; give (h, w), two whole numbers from 0')
  return int(given[0]), int(given[1])


def _packed(lengths: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
  """The `rle` with its counts as a string."""
  numbers = lengths.copy()
  numbers[3:] -= lengths[1:-2]
  count = 1 + np.searchsorted(_MORE, np.where(numbers < 0, ~numbers, numbers), side='right')
  place = _places(count)
  groups = (np.repeat(numbers, count) >> 5 * place) & 31
  groups += np.where(place < np.repeat(count, count) - 1, 32, 0)
  return {'size': list(size), 'counts': (_FIRST + groups).astype(np.uint8).tobytes().decode('ascii')}


def _unpacked(where: str, counts: bytes) -> np.ndarray:
  """The run lengths that a string packs, int64 [R], still unchecked."""
  groups = np.frombuffer(counts, np.uint8).astype(np.int64) - _FIRST
  strange = (groups < 0) | (groups > 63)
  if strange.any():
    place = int(np.argmax(strange))
    raise ValueError(f'{where}: character {place} of counts is {counts[place:place + 1]!r}, none of 0 to o; the '
                     'string is damaged')
  ends = np.flatnonzero(groups < 32)
  count = np.diff(ends, prepend=-1)
  if count.sum() != groups.size or (count > _LONGEST).any():
    raise ValueError(f'{where}: counts end within a number, or one has more than {_LONGEST} characters; the string is '
                     'damaged')
  if not groups.size:
    return groups
  numbers = np.add.reduceat((groups & 31) << 5 * _places(count), ends - count + 1)
  numbers -= np.where(groups[ends] & 16, 1 << 5 * count, 0)  # the top bit of the last group is the sign
  numbers[1::2] = np.cumsum(numbers[1::2])
  numbers[2::2] = np.cumsum(numbers[2::2])
  return numbers


def _places(count: np.ndarray) -> np.ndarray:
  """0, 1, ... for each number's own groups, one number after another."""
  return np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
