"""Augmentations that move, turn, cut and widen an image, and all that belongs to it in the same way.

Units: images uint8 RGB [H, W, 3]; boxes xyxy in continuous pixels; sizes are (h, w); points, scales and offsets are
(x, y); angles in degrees.

Each is a pure function of (rng, sample) with options by keyword. Images are resampled bilinearly; masks, segmentation
and pixels_valid take the nearest pixel. Which objects are dropped, the head of `vision_jax.data.samples` says.
`random_resized_crop`, `ssd_crop` and `zoom_out` give images of another size: they are for an image as it was read,
before a resize policy brings it to the canvas.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vision_jax.data.options import check_number, check_range
from vision_jax.data.samples import (
  KEEPS,
  MAP_FIELDS,
  Sample,
  Size,
  crop_sample,
  fill_level,
  map_labels,
  mask_areas,
  one_colour,
  pad_sample,
  settle,
)
from vision_jax.host.boxes import pairwise_iou

# --- moved whole ----------------------------------------------------------------------------------------------------


def shift(rng: np.random.Generator, sample: Sample, *, pixels: int = 2, fill: int | str = 0) -> Sample:
  """Moves the image by whole pixels, each axis by itself.

  Args:
    rng: where the randomness comes from.
    sample: with `image` uint8 [H, W, 3] and any target fields.
    pixels: the most, in both axes and directions.
    fill: grey level 0..255 of the strips that open, three levels, or 'mean' for the image's mean colour. No truth is
      there: masks and pixels_valid are False.

  Returns:
    The moved sample, of the same size.

  >>> sample = {'image': np.arange(12, dtype=np.uint8).reshape(2, 2, 3)}
  >>> shift(np.random.default_rng(0), sample, pixels=0)['image'].tolist() == sample['image'].tolist()
  True
  """
  check_number('augmentation shift', 'pixels', pixels, whole=True)
  dx, dy = (int(step) for step in rng.integers(-pixels, pixels + 1, size=2))
  h, w = size = sample['image'].shape[:2]
  dx, dy = max(-w, min(w, dx)), max(-h, min(h, dy))
  here = (slice(max(dy, 0), h + min(dy, 0)), slice(max(dx, 0), w + min(dx, 0)))
  there = (slice(max(-dy, 0), h + min(-dy, 0)), slice(max(-dx, 0), w + min(-dx, 0)))
  moved = {**sample, 'image': one_colour(size, fill_level(sample['image'], fill))}
  moved['image'][here] = sample['image'][there]
  for name in MAP_FIELDS:
    if name in sample:
      moved[name] = np.zeros_like(sample[name])
      moved[name][(..., *here)] = sample[name][(..., *there)]
  if 'boxes' not in sample:
    return moved
  return settle(moved, sample['boxes'] + np.float32([dx, dy, dx, dy]), size, mask_areas(sample))


def flip(rng: np.random.Generator, sample: Sample, *, probability: float = 0.5) -> Sample:
  """Mirrors the image left to right.

  Args:
    rng: where the randomness comes from.
    sample: with `image` uint8 [H, W, 3] and any target fields.
    probability: 0..1.

  Returns:
    The sample, mirrored or as it was; no object is dropped.

  >>> sample = {'image': np.zeros((2, 8, 3), np.uint8), 'boxes': np.float32([[1, 0, 3, 2]])}
  >>> flip(np.random.default_rng(0), sample, probability=1.0)['boxes'].tolist()
  [[5.0, 0.0, 7.0, 2.0]]
  """
  check_number('augmentation flip', 'probability', probability, 0, 1)
  if rng.random() >= probability:
    return sample
  # By channels: whole pixels would be copied three bytes at a time, which takes four times as long.
  mirrored = {**sample, 'image': np.stack([sample['image'][:, ::-1, c] for c in range(3)], axis=-1)}
  for name in MAP_FIELDS:
    if name in sample:
      mirrored[name] = sample[name][..., ::-1]
  if 'boxes' in sample:
    x1, y1, x2, y2 = sample['boxes'].T
    w = sample['image'].shape[1]
    mirrored['boxes'] = np.stack([w - x2, y1, w - x1, y2], axis=1).astype(np.float32)
  return mirrored


def affine(rng: np.random.Generator, sample: Sample, *, degrees: float = 0.0, scale: tuple[float, float] = (1.0, 1.0),
           translate: float = 0.0, shear: float = 0.0, fill: int | str = 0) -> Sample:
  """Turns, scales, shears and moves the image about its middle.

  Args:
    rng: where the randomness comes from.
    sample: with `image` uint8 [H, W, 3] and any target fields.
    degrees: the turn is drawn from -degrees..degrees.
    scale: the factor is drawn from this range, both positive.
    translate: the way is drawn from -translate..translate, in each axis, as a share of that side.
    shear: the horizontal shear is drawn from -shear..shear, in degrees, at most 89.
    fill: grey level 0..255 of what lies outside, three levels, or 'mean' for the image's mean colour. No truth is
      there: masks and pixels_valid are False.

  Returns:
    The moved sample, of the same size. Boxes are the tight boxes of the moved masks where there are masks, else the
    boxes that enclose the moved corners, clipped.

  >>> sample = {'image': np.zeros((8, 8, 3), np.uint8), 'boxes': np.float32([[2, 2, 6, 6]])}
  >>> affine(np.random.default_rng(0), sample, scale=(0.5, 0.5))['boxes'].tolist()
  [[3.0, 3.0, 5.0, 5.0]]
  """
  where = 'augmentation affine'
  check_range(where, 'scale', scale)
  for option, value, most in (('degrees', degrees, math.inf), ('translate', translate, math.inf), ('shear', shear, 89)):
    check_number(where, option, value, 0, most)
  h, w = sample['image'].shape[:2]
  turn, lean = np.radians(rng.uniform(-1, 1, size=2) * (degrees, shear))
  factor = rng.uniform(*scale)
  way = rng.uniform(-1, 1, size=2) * translate * (w, h)
  cos, sin = factor * math.cos(turn), factor * math.sin(turn)
  slant = math.tan(lean)
  matrix = np.array([[cos, cos * slant - sin], [sin, sin * slant + cos]])  # of points (x, y) from the middle
  middle = np.array([w / 2, h / 2])
  return transformed(sample, matrix, middle + way - matrix @ middle, fill)


def rotation(rng: np.random.Generator, sample: Sample, *, degrees: float = 10.0, fill: int | str = 0) -> Sample:
  """Turns the image about its middle: `affine` with a turn alone.

  Args:
    rng: where the randomness comes from.
    sample: with `image` uint8 [H, W, 3] and any target fields.
    degrees: the turn is drawn from -degrees..degrees.
    fill: what lies outside, as for `affine`.

  Returns:
    The turned sample, of the same size, its boxes fitted anew.

  >>> sample = {'image': np.zeros((8, 12, 3), np.uint8), 'boxes': np.float32([[5, 3, 7, 5]])}
  >>> rotation(np.random.default_rng(0), sample, degrees=0.0)['boxes'].tolist()
  [[5.0, 3.0, 7.0, 5.0]]
  """
  check_number('augmentation rotation', 'degrees', degrees)
  return affine(rng, sample, degrees=degrees, fill=fill)


def transformed(sample: Sample, matrix: np.ndarray, shift_by: Any, fill: int | str = 0) -> Sample:
  """The sample under the map `point -> matrix @ point + shift_by`, on an image of the same size.

  Args:
    sample: with `image` uint8 [H, W, 3] and any target fields.
    matrix: float [2, 2], invertible, of points (x, y).
    shift_by: (x, y).
    fill: what lies outside, as for `affine`.

  Returns:
    The moved sample; the same pixels for the map that moves nothing.

  >>> sample = {'image': np.zeros((4, 8, 3), np.uint8), 'boxes': np.float32([[1, 1, 3, 3]])}
  >>> transformed(sample, np.eye(2), (2, 1))['boxes'].tolist()
  [[3.0, 2.0, 5.0, 4.0]]
  """
  from PIL import Image
  size = sample['image'].shape[:2]
  back = np.linalg.inv(matrix)  # Pillow asks where each pixel of the result comes from
  coefficients = np.column_stack([back, -back @ np.asarray(shift_by, np.float64)]).ravel().tolist()

  def moved_plane(plane: np.ndarray, resample: int = Image.Resampling.NEAREST, level: Any = 0) -> np.ndarray:
    picture = Image.fromarray(np.ascontiguousarray(plane))
    return np.asarray(picture.transform(size[::-1], Image.Transform.AFFINE, coefficients, resample, fillcolor=level))

  image = moved_plane(sample['image'], Image.Resampling.BILINEAR, fill_level(sample['image'], fill))
  moved = {**sample, 'image': image, **map_labels(sample, size, moved_plane)}
  if 'boxes' not in sample:
    return moved
  corners = sample['boxes'][:, [[0, 1], [2, 1], [0, 3], [2, 3]]] @ matrix.T + shift_by  # [n, 4, (x, y)]
  boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1)
  return settle(moved, boxes, size, mask_areas(sample, abs(np.linalg.det(matrix))))


# --- cut out and widened, before the resize -------------------------------------------------------------------------


def random_resized_crop(rng: np.random.Generator, sample: Sample, *, scale: tuple[float, float] = (0.08, 1.0),
                        ratio: tuple[float, float] = (3 / 4, 4 / 3)) -> Sample:
  """Cuts out a part of random area and proportions, which the loader then stretches to the canvas, whatever its policy.

  Args:
    rng: where the randomness comes from.
    sample: with `image` uint8 [H, W, 3] and any target fields.
    scale: the part's share of the area is drawn from this range, within 0..1.
    ratio: the logarithm of width / height is drawn evenly between these two.

  Returns:
    The part, still in the image's own pixels. After ten draws that do not fit, it is the middle of the image with the
    nearest proportions that the range allows, as in torchvision's `RandomResizedCrop`.

  Reference: Szegedy et al., "Going Deeper with Convolutions", arXiv:1409.4842, section 6.

  >>> sample = {'image': np.zeros((30, 40, 3), np.uint8)}
  >>> random_resized_crop(np.random.default_rng(0), sample, scale=(0.25, 0.25), ratio=(4 / 3, 4 / 3))['image'].shape
  (15, 20, 3)
  """
  check_range('augmentation random_resized_crop', 'scale', scale, 0, 1)
  check_range('augmentation random_resized_crop', 'ratio', ratio)
  h, w = sample['image'].shape[:2]
  for _ in range(10):
    area = h * w * rng.uniform(*scale)
    proportion = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    across, down = round(math.sqrt(area * proportion)), round(math.sqrt(area / proportion))
    if 0 < across <= w and 0 < down <= h:
      x, y = int(rng.integers(w - across + 1)), int(rng.integers(h - down + 1))
      return crop_sample(sample, (x, y, x + across, y + down))
  across, down = min(w, max(1, round(h * ratio[1]))), min(h, max(1, round(w / ratio[0])))
  x, y = (w - across) // 2, (h - down) // 2
  return crop_sample(sample, (x, y, x + across, y + down))


def ssd_crop(rng: np.random.Generator, sample: Sample, *, min_ious: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9),
             scale: tuple[float, float] = (0.3, 1.0), ratio: tuple[float, float] = (0.5, 2.0), trials: int = 50,
             keep: str = 'centre') -> Sample:
  """Cuts out a part that overlaps an object by at least a drawn IoU, or any part, or takes the whole image.

  One of `min_ious`, of 'any part' and of 'the whole image' is drawn, all equally likely. A part is tried `trials`
  times; it must hold the centre of an object's box, and overlap the box of such an object by that IoU. If none fits,
  another of the choices is drawn. An image without objects is cut anywhere.

  Args:
    rng: where the randomness comes from.
    sample: with `image` uint8 [H, W, 3] and any target fields.
    min_ious: the overlaps to draw from, each in 0..1.
    scale: each side of the part is drawn from this range, as a share of the image's, within 0..1.
    ratio: limits of the part's width / height, in pixels.
    trials: how often a part is tried, at least 1.
    keep: 'centre': objects stay whose centre is inside, the paper's rule; 'share': a quarter must be inside.

  Returns:
    The part, still in the image's own pixels, boxes cut to it.

  Reference: Liu et al., "SSD: Single Shot MultiBox Detector", arXiv:1512.02325, section 2.2.

  Differs from the paper: the least side is 0.3, as in its authors' code; the text says 0.1.

  >>> sample = {'image': np.zeros((30, 40, 3), np.uint8), 'boxes': np.float32([[12, 10, 30, 25]])}
  >>> ssd_crop(np.random.default_rng(3), sample, min_ious=(0.9,))['boxes'].shape
  (1, 4)
  """
  where = 'augmentation ssd_crop'
  check_range(where, 'scale', scale, 0, 1)
  check_range(where, 'ratio', ratio)
  check_number(where, 'trials', trials, 1, whole=True)
  for value in min_ious:
    check_number(where, 'min_ious', value, 0, 1)
  if keep not in KEEPS:
    raise ValueError(f'{where}: keep is {keep!r}; known: {", ".join(KEEPS)}')
  choices = (*min_ious, 0.0, None)
  for choice in rng.permutation(len(choices)):  # another order is as good as drawing anew, and comes to an end
    if choices[choice] is None:
      return sample
    parts = _parts(rng, sample['image'].shape[:2], scale, ratio, trials)
    parts = parts[_overlapping(parts, sample['boxes'], choices[choice])] if len(sample.get('boxes', ())) else parts
    if len(parts):
      return crop_sample(sample, tuple(parts[0].tolist()), keep=keep)
  return sample


def _parts(rng: np.random.Generator, size: Size, scale: tuple[float, float], ratio: tuple[float, float],
           count: int) -> np.ndarray:
  """Up to `count` boxes of whole pixels, int [m, 4], whose proportions are in the range."""
  h, w = size
  sides = np.maximum(1, (rng.uniform(*scale, size=(count, 2)) * (w, h)).astype(np.int64))
  corners = (rng.random((count, 2)) * ((w, h) - sides + 1)).astype(np.int64)
  proportion = sides[:, 0] / sides[:, 1]
  fits = (ratio[0] <= proportion) & (proportion <= ratio[1])
  return np.concatenate([corners, corners + sides], axis=1)[fits]


def _overlapping(parts: np.ndarray, boxes: np.ndarray, min_iou: float) -> np.ndarray:
  """Which parts hold the centre of a box that they overlap by the IoU."""
  centres = (boxes[:, :2] + boxes[:, 2:]) / 2
  inside = ((parts[:, None, :2] < centres) & (centres < parts[:, None, 2:])).all(-1)
  return (inside & (pairwise_iou(parts, boxes) >= min_iou)).any(1)


def zoom_out(rng: np.random.Generator, sample: Sample, *, ratio: tuple[float, float] = (1.0, 4.0),
             probability: float = 0.5, fill: int | str = 'mean') -> Sample:
  """Puts the image somewhere on a larger one, so that its objects become small.

  Args:
    rng: where the randomness comes from.
    sample: with `image` uint8 [H, W, 3] and any target fields.
    ratio: the factor of both sides is drawn from this range, at least 1.
    probability: 0..1.
    fill: grey level 0..255 around the image, three levels, or 'mean' for the image's mean colour. No truth is there:
      masks and pixels_valid are False.

  Returns:
    The larger sample, or the sample as it was; no object is dropped.

  Reference: Liu et al., "SSD: Single Shot MultiBox Detector", arXiv:1512.02325, section 3.6.

  Differs from the paper: the fill is the mean colour of this image, not of the data set; give three levels for that.

  >>> sample = {'image': np.zeros((30, 40, 3), np.uint8)}
  >>> zoom_out(np.random.default_rng(0), sample, ratio=(2.0, 2.0), probability=1.0)['image'].shape
  (60, 80, 3)
  """
  check_range('augmentation zoom_out', 'ratio', ratio, 1)
  check_number('augmentation zoom_out', 'probability', probability, 0, 1)
  level = fill_level(sample['image'], fill)
  hit, factor, place = rng.random() < probability, rng.uniform(*ratio), rng.random(2)
  h, w = sample['image'].shape[:2]
  canvas = (int(h * factor), int(w * factor))
  if not hit or canvas == (h, w):
    return sample
  x, y = (int(share * (large - small + 1)) for share, large, small in zip(place, canvas[::-1], (w, h), strict=True))
  return pad_sample(sample, canvas, offset=(x, y), fill=level)
