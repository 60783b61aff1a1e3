"""Colours of classes, fixed for good: a class has the same colour in every picture of every run."""

from __future__ import annotations

import functools

import numpy as np

# Chosen by eye to be told apart on photographs and named without effort; what follows them is computed.
_FIRST = ((0, 0, 0), (230, 57, 70), (38, 112, 233), (34, 170, 70), (255, 159, 28), (146, 72, 214), (0, 187, 212),
          (240, 98, 186), (170, 196, 30), (156, 102, 68), (0, 140, 126), (255, 214, 70), (120, 144, 220))
_MIX = np.array([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
                 [0.0883024619, 0.2817188376, 0.6299787005]])
_OKLAB = np.array([[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
                   [0.0259040371, 0.7827717662, -0.8086757660]])


def palette(num_classes: int) -> np.ndarray:
  """Distinct fixed colours, the first of them black for background.

  A longer palette begins with the shorter one. After the first thirteen, each colour is the one of a grid of lively,
  medium-light colours that looks most unlike all before it.

  Args:
    num_classes: how many, from 0. Beyond some 2,500 the colours repeat.

  Returns:
    `[num_classes, 3]` uint8 RGB.

  Raises:
    ValueError: `num_classes` is negative.

  Reference: B. Ottosson, A perceptual color space for image processing, 2020 (Oklab, in which distances are taken).

  >>> palette(3)
  array([[  0,   0,   0],
         [230,  57,  70],
         [ 38, 112, 233]], dtype=uint8)
  """
  if num_classes < 0:
    raise ValueError(f'palette: num_classes is {num_classes}; give a whole number from 0')
  # Lengths are rounded up, so that a few cached palettes serve all.
  colours = _grown(-(-num_classes // 64) * 64)
  return colours[:num_classes].copy()


def class_colours(num_classes: int, background: int | None = 0) -> np.ndarray:
  """The colour of each class: black for the background, the palette's colours for the others in order.

  Args:
    num_classes: how many classes, background included.
    background: the class that is nothing, or None where all classes are something (as for boxes).

  Returns:
    `[num_classes, 3]` uint8 RGB.

  Raises:
    ValueError: `background` is no class.

  >>> class_colours(2, background=None).tolist() == palette(3)[1:].tolist()
  True
  """
  if background is None:
    return palette(num_classes + 1)[1:]
  if not 0 <= background < num_classes:
    raise ValueError(f'class_colours: background is {background}; give a class in 0..{num_classes - 1} or None')
  return np.insert(palette(num_classes)[1:], background, 0, axis=0)


def ink_on(colour: np.ndarray) -> tuple[int, int, int]:
  """Black or white, whichever is easier to read on the colour.

  >>> ink_on(np.array([255, 214, 70])), ink_on(np.array([38, 112, 233]))
  ((0, 0, 0), (255, 255, 255))
  """
  # Rec. 601 luma; 150 and not 128, because white text holds longer on saturated colours.
  return (0, 0, 0) if float(np.dot(colour, (0.299, 0.587, 0.114))) > 150 else (255, 255, 255)


def _oklab(colours: np.ndarray) -> np.ndarray:
  """sRGB `[N, 3]` in 0..255 to Oklab, where the distance of two colours is about how unlike they look."""
  encoded = np.asarray(colours, np.float64) / 255
  linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
  return np.cbrt(linear @ _MIX.T) @ _OKLAB.T


@functools.cache
def _grown(count: int) -> np.ndarray:
  levels = np.arange(0, 256, 17)
  grid = np.stack(np.meshgrid(levels, levels, levels, indexing='ij'), axis=-1).reshape(-1, 3)
  seen = _oklab(grid)
  lively = (seen[:, 0] > 0.5) & (seen[:, 0] < 0.9) & (np.hypot(seen[:, 1], seen[:, 2]) > 0.09)
  grid, seen = grid[lively], seen[lively]
  colours = list(_FIRST)
  distance = ((seen[:, None] - _oklab(np.array(_FIRST))) ** 2).sum(-1).min(axis=1)
  while len(colours) < min(count, len(_FIRST) + len(grid)):
    farthest = int(distance.argmax())
    colours.append(grid[farthest])
    distance = np.minimum(distance, ((seen - seen[farthest]) ** 2).sum(-1))
  order = np.arange(count)
  order[len(colours):] = 1 + (order[len(colours):] - 1) % (len(colours) - 1)  # repeats, but never black
  return np.array(colours, np.uint8)[order]
