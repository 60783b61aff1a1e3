"""Resizing and augmentation of a sample: image, boxes, labels, masks and segmentation together, never in place.

Units: images uint8 RGB [H, W, 3]; boxes xyxy in continuous pixels (a pixel's middle is at +0.5); sizes are (h, w),
points, scales and offsets are (x, y); angles in degrees.

A *resize policy* (the table `RESIZES`) brings a sample of any size onto a canvas and records how; an *augmentation*
(the table `AUGMENTATIONS`) is a pure function of (rng, sample). Images are resampled bilinearly, with antialias where
they shrink; masks, segmentation and pixels_valid take the nearest pixel.

One rule drops objects, in `crop` and in every augmentation: an object goes, with its label and mask, when less than a
quarter of it is still inside, or when the box that is left is less than one pixel wide or high. The quarter is of the
box's area; augmentations, which fit boxes anew to the masks where there are any, count the mask's pixels instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import math
from typing import Any

import numpy as np

from vision_jax.conventions import check_options, find, option_names

Sample = dict[str, Any]
Size = tuple[int, int]

OBJECT_FIELDS = ('boxes', 'labels', 'masks')
MIN_VISIBLE = 0.25
_MAP_FIELDS = ('masks', 'segmentation', 'pixels_valid')


# --- what moves with an image ---------------------------------------------------------------------------------------


def _map_labels(sample: Sample, size: Size, move: Callable[[np.ndarray], np.ndarray]) -> Sample:
  """The sample's masks, segmentation and pixels_valid through `move`, a function of one uint8 or int32 [H, W] array."""
  moved = {}
  if 'segmentation' in sample:
    moved['segmentation'] = move(np.ascontiguousarray(sample['segmentation'], np.int32))
  if 'pixels_valid' in sample:
    moved['pixels_valid'] = move(sample['pixels_valid'].astype(np.uint8)).astype(bool)
  if 'masks' in sample:
    count = len(sample['masks'])
    # Nearest neighbours never mix values, so eight masks travel as the bits of one byte plane.
    planes = [move(plane) for plane in np.packbits(sample['masks'], axis=0)]
    moved['masks'] = (np.unpackbits(np.stack(planes), axis=0, count=count).view(bool) if count
                      else np.zeros((0, *size), bool))
  return moved


def boxes_of_masks(masks: np.ndarray) -> np.ndarray:
  """The tight box of each mask.

  Args:
    masks: bool [n, H, W].

  Returns:
    float32 [n, 4] xyxy; all zero for a mask without a pixel.

  >>> masks = np.zeros((1, 4, 6), bool)
  >>> masks[0, 1:3, 2:5] = True
  >>> boxes_of_masks(masks).tolist()
  [[2.0, 1.0, 5.0, 3.0]]
  """
  if not masks.size:
    return np.zeros((len(masks), 4), np.float32)
  h, w = masks.shape[1:]
  cols, rows = masks.any(1), masks.any(2)
  boxes = np.stack([cols.argmax(1), rows.argmax(1), w - cols[:, ::-1].argmax(1), h - rows[:, ::-1].argmax(1)], axis=1)
  return np.where(cols.any(1)[:, None], boxes, 0).astype(np.float32)


def _area(boxes: np.ndarray) -> np.ndarray:
  return np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0)


def clip_boxes(boxes: np.ndarray, size: Size) -> np.ndarray:
  """Boxes cut to an image.

  Args:
    boxes: float32 [n, 4] xyxy.
    size: (h, w).

  Returns:
    float32 [n, 4]; a box outside has no width or no height.

  >>> clip_boxes(np.float32([[-2, 1, 9, 3]]), (4, 6)).tolist()
  [[0.0, 1.0, 6.0, 3.0]]
  """
  h, w = size
  return np.clip(boxes, 0, np.array([w, h, w, h])).astype(np.float32)


def _settle(sample: Sample, boxes: np.ndarray, size: Size, mask_areas: np.ndarray | None = None) -> Sample:
  """Clips moved boxes, or fits them to moved masks, and drops objects by the rule at the head of this module.

  Args:
    sample: with moved `masks`, if any; its `boxes` are replaced.
    boxes: [n, 4], moved and not yet clipped.
    size: (h, w) of the content.
    mask_areas: [n], the pixels that each whole mask would have; boxes are fitted to the masks if given.
  """
  clipped = clip_boxes(boxes, size)
  share = _area(clipped) / np.maximum(_area(boxes), 1e-9)
  if mask_areas is not None:
    seen = np.array([np.count_nonzero(mask) for mask in sample['masks']], np.float64).reshape(-1)
    has_mask = mask_areas > 0  # an object may come with an empty mask; its box then speaks for it
    clipped = np.where(has_mask[:, None], boxes_of_masks(sample['masks']), clipped)
    share = np.where(has_mask, seen / np.maximum(mask_areas, 1e-9), share)
  keep = (share >= MIN_VISIBLE) & (clipped[:, 2:] - clipped[:, :2] >= 1).all(1)
  settled = {**sample, 'boxes': clipped}
  if not keep.all():
    settled.update({name: settled[name][keep] for name in OBJECT_FIELDS if name in settled})
  return settled


def _mask_areas(sample: Sample, factor: float = 1.0) -> np.ndarray | None:
  """The pixels of each mask times `factor`, or None without masks."""
  if 'masks' not in sample:
    return None
  return np.array([np.count_nonzero(mask) for mask in sample['masks']], np.float64).reshape(-1) * factor


# --- resize policies ------------------------------------------------------------------------------------------------


def resize_image(image: np.ndarray, size: Size, *, box: tuple[float, float, float, float] | None = None) -> np.ndarray:
  """Resamples an image bilinearly, with antialias where it shrinks; one that has the size already is returned as it is.

  Args:
    image: uint8 [H, W, 3].
    size: (h, w) of the result.
    box: the part (x1, y1, x2, y2) of the image to take, in its pixels; all of it when left out.

  Returns:
    uint8 [h, w, 3], possibly the array given.

  >>> resize_image(np.zeros((8, 8, 3), np.uint8), (4, 6)).shape
  (4, 6, 3)
  """
  if box is None and image.shape[:2] == tuple(size):
    return image
  from PIL import Image
  resized = Image.fromarray(np.ascontiguousarray(image)).resize((size[1], size[0]), Image.Resampling.BILINEAR, box)
  return np.asarray(resized)


def _resample(sample: Sample, size: Size, box: tuple[float, float, float, float] | None = None) -> Sample:
  """The sample's pixel fields at another size; boxes are left to the caller."""
  if box is None and sample['image'].shape[:2] == tuple(size):
    return dict(sample)
  from PIL import Image

  def nearest(plane: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(plane).resize((size[1], size[0]), Image.Resampling.NEAREST, box))

  return {**sample, 'image': resize_image(sample['image'], size, box=box), **_map_labels(sample, size, nearest)}


def pad_sample(sample: Sample, canvas: Size) -> Sample:
  """Puts a sample at the top left of a canvas; zeros and False elsewhere.

  Args:
    sample: with an `image` no larger than the canvas.
    canvas: (h, w).

  Returns:
    The sample with padded `image`, `masks`, `segmentation` and `pixels_valid`; boxes need no change.

  >>> pad_sample({'image': np.ones((2, 3, 3), np.uint8)}, (4, 4))['image'].sum(-1).tolist()
  [[3, 3, 3, 0], [3, 3, 3, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
  """
  h, w = sample['image'].shape[:2]
  if (h, w) == tuple(canvas):
    return dict(sample)
  more = ((0, canvas[0] - h), (0, canvas[1] - w))
  padded = {**sample, 'image': np.pad(sample['image'], (*more, (0, 0)))}
  if 'masks' in sample:
    padded['masks'] = np.pad(sample['masks'], ((0, 0), *more))
  for name in ('segmentation', 'pixels_valid'):
    if name in sample:
      padded[name] = np.pad(sample[name], more)
  return padded


def _placed(sample: Sample, original: Size, content: Size, scale: tuple[float, float],
            offset: tuple[float, float]) -> Sample:
  """Records where the content lies, and moves the boxes there (not yet clipped)."""
  placed = {**sample, 'image_size': np.array(content, np.int32), 'original_size': np.array(original, np.int32),
            'scale': np.array(scale, np.float32), 'offset': np.array(offset, np.float32)}
  if 'boxes' in sample:
    factor, shift = np.tile(np.float64(scale), 2), np.tile(np.float64(offset), 2)
    placed['boxes'] = (np.asarray(sample['boxes'], np.float64).reshape(-1, 4) * factor + shift).astype(np.float32)
  return placed


def letterbox(sample: Sample, canvas: Size) -> Sample:
  """Fits the whole image into the canvas with its proportions, at the top left, zeros elsewhere.

  Args:
    sample: with `image` uint8 [H, W, 3] and any target fields.
    canvas: (h, w).

  Returns:
    The sample on the canvas, with `image_size` (h, w) of the content, `original_size` (h, w), `scale` (x, y) and
    `offset` (x, y), here 0: canvas = original * scale + offset. The content's sides are rounded to whole pixels, and
    `scale` is the exact quotient in each axis. Boxes are clipped to the content; no object is dropped.

  >>> sample = letterbox({'image': np.full((4, 8, 3), 9, np.uint8)}, (4, 4))
  >>> sample['image'][..., 0].tolist(), sample['image_size'].tolist(), sample['scale'].tolist()
  ([[9, 9, 9, 9], [9, 9, 9, 9], [0, 0, 0, 0], [0, 0, 0, 0]], [2, 4], [0.5, 0.5])
  """
  h, w = sample['image'].shape[:2]
  factor = min(canvas[0] / h, canvas[1] / w)
  size = tuple(min(limit, max(1, round(side * factor))) for side, limit in zip((h, w), canvas, strict=True))
  moved = _placed(_resample(sample, size), (h, w), size, (size[1] / w, size[0] / h), (0.0, 0.0))
  return pad_sample(_clipped(moved, size), canvas)


def warp(sample: Sample, canvas: Size) -> Sample:
  """Stretches the image to the canvas, each axis by itself.

  Args:
    sample: with `image` uint8 [H, W, 3] and any target fields.
    canvas: (h, w).

  Returns:
    The sample on the canvas with the fields that `letterbox` records. Boxes are clipped; no object is dropped.

  >>> warp({'image': np.zeros((4, 8, 3), np.uint8)}, (4, 4))['scale'].tolist()
  [0.5, 1.0]
  """
  h, w = sample['image'].shape[:2]
  size = tuple(canvas)
  return _clipped(_placed(_resample(sample, size), (h, w), size, (size[1] / w, size[0] / h), (0.0, 0.0)), size)


def crop(sample: Sample, canvas: Size) -> Sample:
  """Scales the image until it just covers the canvas, and takes the middle.

  Args:
    sample: with `image` uint8 [H, W, 3] and any target fields.
    canvas: (h, w).

  Returns:
    The sample on the canvas with the fields that `letterbox` records; `offset` is zero or negative. Boxes are clipped,
    and objects that the crop cuts off are dropped by the rule at the head of this module.

  >>> sample = crop({'image': np.zeros((4, 8, 3), np.uint8), 'boxes': np.float32([[0, 0, 3, 4]])}, (4, 4))
  >>> sample['offset'].tolist(), sample['boxes'].tolist()
  ([-2.0, 0.0], [[0.0, 0.0, 1.0, 4.0]])
  """
  h, w = sample['image'].shape[:2]
  size = tuple(canvas)
  factor = max(size[0] / h, size[1] / w)
  across, down = min(w, size[1] / factor), min(h, size[0] / factor)  # the part that is seen, in original pixels
  x, y = (w - across) / 2, (h - down) / 2
  box = None if (h, w) == size else (x, y, min(w, x + across), min(h, y + down))  # the sums may round up
  scale = (size[1] / across, size[0] / down)
  moved = _placed(_resample(sample, size, box), (h, w), size, scale, (0.0 - x * scale[0], 0.0 - y * scale[1]))
  return _settle(moved, moved['boxes'], size) if 'boxes' in moved else moved


def _clipped(sample: Sample, size: Size) -> Sample:
  if 'boxes' in sample:
    sample = {**sample, 'boxes': clip_boxes(sample['boxes'], size)}
  return sample


RESIZES: dict[str, Callable[[Sample, Size], Sample]] = {
    'letterbox': letterbox,
    'warp': warp,
    'crop': crop,
}


# --- augmentations --------------------------------------------------------------------------------------------------


def _fill_level(image: np.ndarray, fill: int | str) -> tuple[int, ...]:
  """What stands where an augmentation moved nothing to: a grey level, or the image's mean colour for 'mean'."""
  if fill == 'mean':
    return tuple(int(level) for level in np.rint(image.mean((0, 1))))
  if not isinstance(fill, int) or not 0 <= fill <= 255:
    raise ValueError(f"augmentation fill is {fill!r}; give a grey level 0..255 or 'mean'")
  return (fill,) * 3


def shift(rng: np.random.Generator, sample: Sample, *, pixels: int = 2, fill: int | str = 0) -> Sample:
  """Moves the image by whole pixels, each axis by itself.

  Args:
    rng: where the randomness comes from.
    sample: with `image` uint8 [H, W, 3] and any target fields.
    pixels: the most, in both axes and directions.
    fill: grey level 0..255 of the strips that open, or 'mean' for the image's mean colour. No truth is there: masks and
      pixels_valid are False.

  Returns:
    The moved sample, of the same size; objects by the rule at the head of this module.

  >>> sample = {'image': np.arange(12, dtype=np.uint8).reshape(2, 2, 3)}
  >>> shift(np.random.default_rng(0), sample, pixels=0)['image'].tolist() == sample['image'].tolist()
  True
  """
  dx, dy = (int(step) for step in rng.integers(-pixels, pixels + 1, size=2))
  h, w = size = sample['image'].shape[:2]
  dx, dy = max(-w, min(w, dx)), max(-h, min(h, dy))
  here = (slice(max(dy, 0), h + min(dy, 0)), slice(max(dx, 0), w + min(dx, 0)))
  there = (slice(max(-dy, 0), h + min(-dy, 0)), slice(max(-dx, 0), w + min(-dx, 0)))
  moved = {**sample, 'image': np.empty_like(sample['image'])}
  moved['image'][...] = _fill_level(sample['image'], fill)
  moved['image'][here] = sample['image'][there]
  for name in _MAP_FIELDS:
    if name in sample:
      moved[name] = np.zeros_like(sample[name])
      moved[name][(..., *here)] = sample[name][(..., *there)]
  if 'boxes' not in sample:
    return moved
  return _settle(moved, sample['boxes'] + np.float32([dx, dy, dx, dy]), size, _mask_areas(sample))


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
  if rng.random() >= probability:
    return sample
  mirrored = {**sample, 'image': sample['image'][:, ::-1]}
  for name in _MAP_FIELDS:
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
    shear: the horizontal shear is drawn from -shear..shear, in degrees, below 90.
    fill: grey level 0..255 of what lies outside, or 'mean' for the image's mean colour. No truth is there: masks and
      pixels_valid are False.

  Returns:
    The moved sample, of the same size. Boxes are the tight boxes of the moved masks where there are masks, else the
    boxes that enclose the moved corners, clipped; objects by the rule at the head of this module.

  >>> sample = {'image': np.zeros((8, 8, 3), np.uint8), 'boxes': np.float32([[2, 2, 6, 6]])}
  >>> affine(np.random.default_rng(0), sample, scale=(0.5, 0.5))['boxes'].tolist()
  [[3.0, 3.0, 5.0, 5.0]]
  """
  if not 0 < scale[0] <= scale[1]:
    raise ValueError(f'augmentation affine: scale {tuple(scale)} is no range of positive factors; give (low, high)')
  h, w = size = sample['image'].shape[:2]
  turn, lean = np.radians(rng.uniform(-1, 1, size=2) * (degrees, shear))
  factor = rng.uniform(*scale)
  way = rng.uniform(-1, 1, size=2) * translate * (w, h)
  cos, sin = factor * math.cos(turn), factor * math.sin(turn)
  slant = math.tan(lean)
  matrix = np.array([[cos, cos * slant - sin], [sin, sin * slant + cos]])  # of points (x, y) from the middle
  middle = np.array([w / 2, h / 2])
  return _transformed(sample, size, matrix, middle + way - matrix @ middle, _fill_level(sample['image'], fill))


def _transformed(sample: Sample, size: Size, matrix: np.ndarray, shift_by: np.ndarray, fill: tuple[int, ...]) -> Sample:
  """The sample under `point -> matrix @ point + shift_by`."""
  from PIL import Image
  back = np.linalg.inv(matrix)  # Pillow asks where each pixel of the result comes from
  coefficients = np.column_stack([back, -back @ shift_by]).ravel().tolist()

  def moved_plane(plane: np.ndarray, resample: int = Image.Resampling.NEAREST, level: Any = 0) -> np.ndarray:
    picture = Image.fromarray(np.ascontiguousarray(plane))
    return np.asarray(picture.transform(size[::-1], Image.Transform.AFFINE, coefficients, resample, fillcolor=level))

  moved = {**sample, 'image': moved_plane(sample['image'], Image.Resampling.BILINEAR, fill),
           **_map_labels(sample, size, moved_plane)}
  if 'boxes' not in sample:
    return moved
  corners = sample['boxes'][:, [[0, 1], [2, 1], [0, 3], [2, 3]]] @ matrix.T + shift_by  # [n, 4, (x, y)]
  boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1)
  return _settle(moved, boxes, size, _mask_areas(sample, abs(np.linalg.det(matrix))))


def brightness_contrast(rng: np.random.Generator, sample: Sample, *, brightness: float = 0.2,
                        contrast: float = 0.2) -> Sample:
  """Changes brightness and contrast: `(pixel - mean) * (1 + c) + mean + 255 * b`, rounded and cut to 0..255.

  Args:
    rng: where the randomness comes from.
    sample: with `image` uint8 [H, W, 3]; its mean is one number over all channels.
    brightness: b is drawn from -brightness..brightness.
    contrast: c is drawn from -contrast..contrast.

  Returns:
    The sample with another image.

  >>> sample = {'image': np.full((2, 2, 3), 100, np.uint8)}
  >>> bool((brightness_contrast(np.random.default_rng(0), sample, brightness=0.0)['image'] == 100).all())
  True
  """
  b, c = rng.uniform(-1, 1, size=2) * (255 * brightness, contrast)
  image = sample['image']
  mean = float(image.mean())
  table = np.rint(np.clip((np.arange(256) - mean) * (1 + c) + mean + b, 0, 255)).astype(np.uint8)
  return {**sample, 'image': table[image]}


def noise(rng: np.random.Generator, sample: Sample, *, deviation: float = 8.0) -> Sample:
  """Adds normal noise to every pixel and channel.

  Args:
    rng: where the randomness comes from.
    sample: with `image` uint8 [H, W, 3].
    deviation: the standard deviation, in grey levels, is drawn from 0..deviation.

  Returns:
    The sample with another image, rounded and cut to 0..255.

  >>> sample = {'image': np.full((2, 2, 3), 100, np.uint8)}
  >>> bool((noise(np.random.default_rng(0), sample, deviation=0.0)['image'] == 100).all())
  True
  """
  level = np.float32(rng.uniform(0, deviation))
  image = sample['image'] + level * rng.standard_normal(sample['image'].shape, dtype=np.float32)
  return {**sample, 'image': np.rint(np.clip(image, 0, 255)).astype(np.uint8)}


AUGMENTATIONS: dict[str, Callable[..., Sample]] = {
    'shift': shift,
    'flip': flip,
    'affine': affine,
    'brightness_contrast': brightness_contrast,
    'noise': noise,
}


def compose(augment: Sequence[tuple[str, dict[str, Any]]]) -> Callable[[np.random.Generator, Sample], Sample]:
  """One function out of named augmentations, which sees the content of a canvas only and leaves the padding zero.

  Args:
    augment: (name, options) pairs, applied in this order; names out of `AUGMENTATIONS`.

  Returns:
    A function (rng, sample) -> sample, for samples that a resize policy put on a canvas.

  Raises:
    ValueError: an unknown name or option.

  >>> run = compose((('shift', {'pixels': 1}), ('noise', {'deviation': 4.0})))
  >>> sample = letterbox({'image': np.full((4, 8, 3), 9, np.uint8)}, (8, 8))
  >>> int(run(np.random.default_rng(0), sample)['image'][4:].max())
  0
  """
  steps = []
  for pair in augment:
    if isinstance(pair, str) or len(pair) != 2:
      raise ValueError(f"augment has {pair!r}; give (name, options) pairs, for example ('flip', {{}})")
    name, options = pair
    function = find(AUGMENTATIONS, 'augmentation', name)
    check_options(f'augmentation {name}', option_names(function), options)
    steps.append((function, dict(options)))

  def run(rng: np.random.Generator, sample: Sample) -> Sample:
    canvas, (h, w) = sample['image'].shape[:2], sample['image_size']
    content = {**sample, 'image': sample['image'][:h, :w],
               **{name: sample[name][..., :h, :w] for name in _MAP_FIELDS if name in sample}}
    for function, options in steps:
      content = function(rng, content, **options)
    return pad_sample(content, canvas)

  return run


# --- normalisation --------------------------------------------------------------------------------------------------


def normalise(image: np.ndarray, mean: Sequence[float], std: Sequence[float], *,
              image_size: Sequence[int] | None = None, out: np.ndarray | None = None) -> np.ndarray:
  """`(image / 255 - mean) / std` on the content, zero on the padding.

  Args:
    image: uint8 [H, W, 3].
    mean: three numbers, of images in 0..1.
    std: three positive numbers, of images in 0..1.
    image_size: (h, w) of the content at the top left; all of the image when left out.
    out: float32 [H, W, 3] of zeros to write into.

  Returns:
    float32 [H, W, 3].

  >>> normalise(np.full((1, 2, 3), 255, np.uint8), (0.5,) * 3, (0.5,) * 3, image_size=(1, 1))[0, :, 0].tolist()
  [1.0, 0.0]
  """
  h, w = image.shape[:2] if image_size is None else image_size
  out = np.zeros(image.shape, np.float32) if out is None else out
  # Whole rows at once: an inner loop over three channels would take four times as long.
  factor = np.tile(1 / (255 * np.asarray(std, np.float64)), w).astype(np.float32)
  shift_by = np.tile(-np.asarray(mean, np.float64) / np.asarray(std, np.float64), w).astype(np.float32)
  rows = image[:h, :w].reshape(h, w * 3) * factor
  rows += shift_by
  out[:h, :w] = rows.reshape(h, w, 3)
  return out
