"""The UCI handwritten digits that scikit-learn carries: 1,797 real images of 8 x 8, nothing to download.

Units: a raster holds 0 (paper) to 16 (full ink), the number of inked pixels in a 4 x 4 block of the scan; an image
holds 0..255.

Reference: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
1998.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from vision_jax.conventions import ClassMap

TRAIN_DIGITS = 1437  # of 1,797; the last 360 were written by other people
SPLITS = ('train', 'val')


def check_split(source: str, split: str) -> str:
  """Returns a split's name, or refuses it with one line that names the known ones.

  >>> check_split('digits', 'test')
  Traceback (most recent call last):
  ValueError: digits has no split 'test'; known: train, val
  """
  if split not in SPLITS:
    raise ValueError(f'{source} has no split {split!r}; known: {", ".join(SPLITS)}')
  return split


@functools.cache
def _table() -> tuple[np.ndarray, np.ndarray]:
  from sklearn.datasets import load_digits  # takes a second to import, so only where a digit is really needed
  table = load_digits()
  values, labels = table.images.astype(np.uint8), table.target.astype(np.int32)
  for array in (values, labels):
    array.flags.writeable = False
  return values, labels


def digit_rasters(split: str) -> tuple[np.ndarray, np.ndarray]:
  """The digits of a split as they come.

  Args:
    split: 'train' (the first 1,437) or 'val' (the last 360, by other writers).

  Returns:
    rasters, uint8 [n, 8, 8] in 0..16, and labels, int32 [n] in 0..9; both read-only.

  Raises:
    ValueError: an unknown split.

  >>> rasters, labels = digit_rasters('val')
  >>> rasters.shape, int(rasters.max()), len(digit_rasters('train')[1])
  ((360, 8, 8), 16, 1437)
  """
  rows = slice(None, TRAIN_DIGITS) if check_split('digits', split) == 'train' else slice(TRAIN_DIGITS, None)
  values, labels = _table()
  return values[rows], labels[rows]


class Digits:
  """The digits as a classification source: light ink on black, 8 x 8, ten classes.

  Args:
    split: 'train' (the first 1,437) or 'val' (the last 360).
    size: only so many of them, the first; all of them when left out.

  `source[i]` is a dict of `image`, uint8 RGB [8, 8, 3] with three equal channels `round(raster * 255 / 16)`, and
  `label`, an int in 0..9. The image is read-only.

  Raises:
    ValueError: an unknown split; a size that is not there.

  >>> source = Digits('train')
  >>> sample = source[0]
  >>> len(source), sample['image'].shape, sample['label'], source.name_of(0)
  (1437, (8, 8, 3), 0, 'digit_0000')
  """

  fields = ('label',)
  classes = ClassMap(names=tuple('0123456789'))

  def __init__(self, split: str, *, size: int | None = None):
    self.split = check_split('digits', split)
    rasters, labels = digit_rasters(split)
    if size is not None and not 0 <= size <= len(labels):
      raise ValueError(f'digits: size {size} is out of range; the split {split} has {len(labels)} digits')
    rasters, self._labels = rasters[:size], labels[:size]
    grey = ((rasters.astype(np.uint16) * 255 + 8) // 16).astype(np.uint8)
    self._images = np.repeat(grey[..., None], 3, axis=-1)
    self._images.flags.writeable = False

  def __len__(self) -> int:
    return len(self._labels)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {'image': self._images[index], **self.target(index)}

  def target(self, index: int) -> dict[str, Any]:
    """The truth of one image without the image: `label`, an int in 0..9."""
    return {'label': int(self._labels[index])}

  def name_of(self, index: int) -> str:
    """The name of one image; its number counts through both splits."""
    return f'digit_{index + (TRAIN_DIGITS if self.split == "val" else 0):04d}'
