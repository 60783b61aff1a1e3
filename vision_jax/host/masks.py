"""Masks on the host: the clean-up of a predicted class map. Maps are `[H, W]` integers in `0..K-1`."""

from __future__ import annotations

import numpy as np

_EIGHT = np.ones((3, 3), bool)  # a component's neighbourhood: a thin diagonal stroke is one piece, not many


def clean(segmentation: np.ndarray, confidence: np.ndarray, *, threshold: float = 0.0, opening: int = 0,
          min_area: int = 0, fill_holes: bool = False, background: int = 0) -> np.ndarray:
  """A predicted class map without its doubtful pixels, thin threads and small specks.

  The four steps run in the order of the options. Each one treats every class by itself, and what it removes becomes
  background; the defaults change nothing.

  Args:
    segmentation: `[H, W]` integers, the predicted class of each pixel.
    confidence: `[H, W]` float in 0..1, the probability of that class.
    threshold: a pixel less confident than this is removed.
    opening: how often a class's region is eroded and dilated again over the four neighbours; it removes what is
      thinner than `2 * opening + 1` pixels. The region counts as going on beyond the border. 0 means not at all.
    min_area: an eight-connected component of fewer pixels is removed.
    fill_holes: whether background that one class encloses all around becomes that class. Background between two
      classes, or at the border, stays.
    background: the class that stands for nothing.

  Returns:
    `[H, W]`, a new map of the same dtype.

  Raises:
    ValueError: the two maps differ in shape, or an option is out of range.

  >>> prediction = np.array([[1, 1, 0, 0], [1, 1, 0, 2], [0, 0, 0, 0]])
  >>> clean(prediction, np.ones((3, 4)), min_area=2)
  array([[1, 1, 0, 0],
         [1, 1, 0, 0],
         [0, 0, 0, 0]])
  """
  segmentation, confidence = np.asarray(segmentation), np.asarray(confidence)
  _check(segmentation, confidence, threshold, min_area, opening)
  # `not >=`, so that a confidence that is NaN is removed as well.
  cleaned = np.where(confidence >= threshold, segmentation, background).astype(segmentation.dtype)
  if opening or min_area > 1:
    for label in np.unique(cleaned):
      if label != background:
        mask = cleaned == label
        kept = _large_components(_opened(mask, opening), min_area)
        cleaned[mask & ~kept] = background
  return _without_holes(cleaned, background) if fill_holes else cleaned


def _check(segmentation, confidence, threshold, min_area, opening) -> None:
  if segmentation.ndim != 2 or not np.issubdtype(segmentation.dtype, np.integer):
    raise ValueError(f'clean: segmentation is {segmentation.dtype} {segmentation.shape}; give integers [H, W]')
  if confidence.shape != segmentation.shape:
    raise ValueError(f'clean: confidence has shape {confidence.shape}, segmentation {segmentation.shape}; '
                     'give both at the same size')
  if not 0.0 <= threshold <= 1.0:
    raise ValueError(f'clean: threshold is {threshold}; it is a probability in 0..1')
  for name, value in (('min_area', min_area), ('opening', opening)):
    if value < 0 or int(value) != value:
      raise ValueError(f'clean: {name} is {value}; give a whole number from 0')


def _opened(mask: np.ndarray, times: int) -> np.ndarray:
  """The mask after `times` erosions and as many dilations, continued beyond the border so that corners stay."""
  if not times:
    return mask
  from scipy import ndimage
  padded = np.pad(mask, 2 * times, mode='edge')
  inner = (slice(2 * times, -2 * times),) * 2
  return ndimage.binary_opening(padded, iterations=times)[inner]


def _large_components(mask: np.ndarray, min_area: int) -> np.ndarray:
  """The eight-connected components of the mask that have at least `min_area` pixels."""
  if min_area <= 1:
    return mask
  from scipy import ndimage
  components, _ = ndimage.label(mask, structure=_EIGHT)
  large = np.bincount(components.ravel()) >= min_area
  large[0] = False  # component 0 is everything outside the mask
  return large[components]


def _without_holes(segmentation: np.ndarray, background: int) -> np.ndarray:
  """The map in which each four-connected piece of background that touches one class only has become that class."""
  from scipy import ndimage
  pieces, count = ndimage.label(segmentation == background)
  outside = -1  # no class; a piece that touches it reaches the border
  padded = np.pad(segmentation.astype(np.int64), 1, constant_values=outside)
  lowest = np.full(count + 1, np.iinfo(np.int64).max)
  highest = np.full(count + 1, outside)
  height, width = segmentation.shape
  for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
    neighbour = padded[dy:dy + height, dx:dx + width]
    edge = (pieces > 0) & (neighbour != background)
    np.minimum.at(lowest, pieces[edge], neighbour[edge])
    np.maximum.at(highest, pieces[edge], neighbour[edge])
  hole = (lowest == highest) & (lowest > outside)
  hole[0] = False
  return np.where(hole[pieces], lowest[pieces], segmentation).astype(segmentation.dtype)
