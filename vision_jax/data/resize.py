"""Resize policies: how a sample of any size comes onto the canvas of a network, and the record of it.

Units: images uint8 RGB [H, W, 3]; boxes xyxy in continuous pixels; sizes are (h, w), scales and offsets (x, y).

A *resize policy* (the table `RESIZES`) takes a sample and a canvas, and options by keyword. Images are resampled by
Pillow itself, bilinearly or bicubically, with antialias where they shrink; masks, segmentation and pixels_valid take
the nearest pixel. Which objects a policy drops, the head of `vision_jax.data.samples` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import numpy as np

from vision_jax.conventions import check_options, find, option_names
from vision_jax.data.options import check_number
from vision_jax.data.samples import MAP_FIELDS, Sample, Size, clip_boxes, map_labels, pad_sample, settle

INTERPOLATIONS = ('bilinear', 'bicubic')
Box = tuple[float, float, float, float]


def resize_image(image: np.ndarray, size: Size, *, box: Box | None = None,
                 interpolation: str = 'bilinear') -> np.ndarray:
  """Resamples an image with antialias where it shrinks; one that has the size already is returned as it is.

  Args:
    image: uint8 [H, W, 3].
    size: (h, w) of the result.
    box: the part (x1, y1, x2, y2) of the image to take, in its pixels; all of it when left out.
    interpolation: 'bilinear' or 'bicubic', as Pillow computes them.

  Returns:
    uint8 [h, w, 3], possibly the array given.

  Raises:
    ValueError: an unknown interpolation.

  >>> resize_image(np.zeros((8, 8, 3), np.uint8), (4, 6)).shape
  (4, 6, 3)
  """
  if interpolation not in INTERPOLATIONS:
    raise ValueError(f'unknown interpolation {interpolation!r}; known: {", ".join(INTERPOLATIONS)}')
  if box is None and image.shape[:2] == tuple(size):
    return image
  from PIL import Image
  resample_by = Image.Resampling[interpolation.upper()]
  return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((size[1], size[0]), resample_by, box))


def resample(sample: Sample, size: Size, *, box: Box | None = None, interpolation: str = 'bilinear') -> Sample:
  """A sample's image, masks, segmentation and pixels_valid at another size; its boxes are left to the caller.

  Args:
    sample: with `image` uint8 [H, W, 3] and any target fields.
    size: (h, w) of the result.
    box: the part (x1, y1, x2, y2) to take, in pixels; all of it when left out.
    interpolation: of the image; the other fields take the nearest pixel.

  Returns:
    The sample with these fields replaced.

  >>> resample({'image': np.zeros((4, 8, 3), np.uint8), 'masks': np.ones((2, 4, 8), bool)}, (2, 3))['masks'].shape
  (2, 2, 3)
  """
  image = resize_image(sample['image'], size, box=box, interpolation=interpolation)
  if image is sample['image']:
    return dict(sample)
  from PIL import Image

  def nearest(plane: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(plane).resize((size[1], size[0]), Image.Resampling.NEAREST, box))

  return {**sample, 'image': image, **map_labels(sample, size, nearest)}


def _placed(sample: Sample, original: Size, content: Size, scale: tuple[float, float],
            offset: tuple[float, float]) -> Sample:
  """Records where the content lies, and moves the boxes there (not yet clipped)."""
  placed = {**sample, 'image_size': np.array(content, np.int32), 'original_size': np.array(original, np.int32),
            'scale': np.array(scale, np.float32), 'offset': np.array(offset, np.float32)}
  if 'boxes' in sample:
    factor, shift = np.tile(np.float64(scale), 2), np.tile(np.float64(offset), 2)
    placed['boxes'] = (np.asarray(sample['boxes'], np.float64).reshape(-1, 4) * factor + shift).astype(np.float32)
  return placed


def _clipped(sample: Sample, size: Size) -> Sample:
  if 'boxes' in sample:
    sample = {**sample, 'boxes': clip_boxes(sample['boxes'], size)}
  return sample


def letterbox(sample: Sample, canvas: Size, *, shorter_side: int | None = None,
              interpolation: str = 'bilinear') -> Sample:
  """Fits the whole image into the canvas with its proportions, at the top left, zeros elsewhere.

  Args:
    sample: with `image` uint8 [H, W, 3] and any target fields.
    canvas: (h, w).
    shorter_side: the image's shorter side becomes no longer than this; no limit when left out. 800 on a canvas of
      (1333, 1333) is torchvision's resize for detection, its rounding and antialias aside.
    interpolation: 'bilinear' or 'bicubic'.

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
  if shorter_side is not None:
    check_number('resize policy letterbox', 'shorter_side', shorter_side, 1, whole=True)
    factor = min(factor, shorter_side / min(h, w))
  size = tuple(min(limit, max(1, round(side * factor))) for side, limit in zip((h, w), canvas, strict=True))
  moved = _placed(resample(sample, size, interpolation=interpolation), (h, w), size, (size[1] / w, size[0] / h),
                  (0.0, 0.0))
  return pad_sample(_clipped(moved, size), canvas)


def warp(sample: Sample, canvas: Size, *, interpolation: str = 'bilinear') -> Sample:
  """Stretches the image to the canvas, each axis by itself.

  Args:
    sample: with `image` uint8 [H, W, 3] and any target fields.
    canvas: (h, w).
    interpolation: 'bilinear' or 'bicubic'.

  Returns:
    The sample on the canvas with the fields that `letterbox` records. Boxes are clipped; no object is dropped.

  >>> warp({'image': np.zeros((4, 8, 3), np.uint8)}, (4, 4))['scale'].tolist()
  [0.5, 1.0]
  """
  h, w = sample['image'].shape[:2]
  size = tuple(canvas)
  moved = resample(sample, size, interpolation=interpolation)
  return _clipped(_placed(moved, (h, w), size, (size[1] / w, size[0] / h), (0.0, 0.0)), size)


def crop(sample: Sample, canvas: Size, *, interpolation: str = 'bilinear') -> Sample:
  """Scales the image until it just covers the canvas, and takes the middle.

  Args:
    sample: with `image` uint8 [H, W, 3] and any target fields.
    canvas: (h, w).
    interpolation: 'bilinear' or 'bicubic'.

  Returns:
    The sample on the canvas with the fields that `letterbox` records; `offset` is zero or negative. Boxes are clipped,
    and objects that the crop cuts off are dropped.

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
  resampled = resample(sample, size, box=box, interpolation=interpolation)
  moved = _placed(resampled, (h, w), size, scale, (0.0 - x * scale[0], 0.0 - y * scale[1]))
  return settle(moved, moved['boxes'], size) if 'boxes' in moved else moved


def resize_crop(sample: Sample, canvas: Size, *, shorter_side: int | None = None,
                interpolation: str = 'bilinear') -> Sample:
  """Scales the shorter side to a length and takes the middle: how torchvision evaluates its classifiers, to the bit.

  Args:
    sample: with `image` uint8 [H, W, 3] and any target fields.
    canvas: (h, w), usually smaller than the scaled image.
    shorter_side: the length in pixels; the canvas's shorter side times 8 / 7 when left out, 256 for 224. The longer one
      becomes `int(shorter_side * long / short)`.
    interpolation: 'bilinear' or 'bicubic'.

  Returns:
    The sample on the canvas with the fields that `letterbox` records; `offset` is zero or negative. Boxes are clipped,
    and objects that the crop cuts off are dropped. Where the scaled image is smaller than the canvas it stands at the
    top or left, zeros beyond it (torchvision centres it there).

  >>> sample = resize_crop({'image': np.zeros((10, 20, 3), np.uint8)}, (7, 7), shorter_side=8)
  >>> sample['image'].shape, sample['offset'].tolist(), sample['scale'].tolist()
  ((7, 7, 3), [-4.0, 0.0], [0.800000011920929, 0.800000011920929])
  """
  h, w = sample['image'].shape[:2]
  side = round(min(canvas) * 8 / 7) if shorter_side is None else shorter_side
  check_number('resize policy resize_crop', 'shorter_side', side, 1, whole=True)
  size = (int(side * h / w), side) if w <= h else (side, int(side * w / h))
  # Python rounds halves to the even number, and so does torchvision's centre crop with it.
  y, x = (max(0, round((full - limit) / 2)) for full, limit in zip(size, canvas, strict=True))
  content = tuple(min(full, limit) for full, limit in zip(size, canvas, strict=True))
  moved = resample(sample, size, interpolation=interpolation)
  part = (slice(y, y + content[0]), slice(x, x + content[1]))
  moved = {**moved, 'image': moved['image'][part],
           **{name: moved[name][(..., *part)] for name in MAP_FIELDS if name in moved}}
  moved = _placed(moved, (h, w), content, (size[1] / w, size[0] / h), (0.0 - x, 0.0 - y))
  return pad_sample(settle(moved, moved['boxes'], content) if 'boxes' in moved else moved, canvas)


RESIZES: dict[str, Callable[..., Sample]] = {
    'letterbox': letterbox,
    'warp': warp,
    'crop': crop,
    'resize_crop': resize_crop,
}


def resize_policy(resize: str | tuple[str, Mapping[str, Any]]) -> Callable[[Sample, Size], Sample]:
  """The policy that a config names.

  Args:
    resize: a name out of `RESIZES`, or (name, options).

  Returns:
    A function (sample, canvas) -> sample.

  Raises:
    ValueError: an unknown name or option, or a value out of range.

  >>> policy = resize_policy(('letterbox', {'shorter_side': 3}))
  >>> policy({'image': np.zeros((6, 8, 3), np.uint8)}, (9, 9))['image_size'].tolist()
  [3, 4]
  >>> resize_policy(('warp', {'shorter_side': 3}))
  Traceback (most recent call last):
  ValueError: resize policy warp has no option 'shorter_side'; known: interpolation
  """
  pair = isinstance(resize, Sequence) and len(resize) == 2 and isinstance(resize[1], Mapping)
  if not isinstance(resize, str) and not pair:
    raise ValueError(f"resize is {resize!r}; give a name or (name, options), for example ('warp', {{}})")
  name, options = (resize, {}) if isinstance(resize, str) else resize
  function = find(RESIZES, 'resize policy', name)
  check_options(f'resize policy {name}', option_names(function), options)
  policy = functools.partial(function, **options)
  policy({'image': np.zeros((2, 3, 3), np.uint8)}, (2, 3))  # so that a wrong value is answered before data is read
  return policy
