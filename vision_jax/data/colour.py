"""Augmentations of an image's colours, what hides parts of it, and the normalisation that makes it a network's input.

Units: images uint8 RGB [H, W, 3], grey levels 0..255; sizes are (h, w).

Each augmentation is a pure function of (rng, sample) with options by keyword. All but `cutout` leave every field but
`image` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vision_jax.data.options import check_number, check_range
from vision_jax.data.samples import MIN_VISIBLE, Sample, clip_boxes, fill_level, mask_areas, select_objects

if TYPE_CHECKING:
  from PIL import Image

# --- light and colour -----------------------------------------------------------------------------------------------


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
  check_number('augmentation brightness_contrast', 'brightness', brightness)
  check_number('augmentation brightness_contrast', 'contrast', contrast)
  b, c = rng.uniform(-1, 1, size=2) * (255 * brightness, contrast)
  image = sample['image']
  mean = float(image.mean())
  table = np.rint(np.clip((np.arange(256) - mean) * (1 + c) + mean + b, 0, 255)).astype(np.uint8)
  return {**sample, 'image': np.take(table, image)}


def colour_jitter(rng: np.random.Generator, sample: Sample, *, brightness: float = 0.4, contrast: float = 0.4,
                  saturation: float = 0.4, hue: float = 0.1) -> Sample:
  """Changes brightness, contrast, saturation and hue in a random order, each as torchvision's `ColorJitter` does.

  Args:
    rng: where the randomness comes from.
    sample: with `image` uint8 [H, W, 3].
    brightness: its factor is drawn from max(0, 1 - brightness)..1 + brightness.
    contrast: its factor is drawn from max(0, 1 - contrast)..1 + contrast.
    saturation: its factor is drawn from max(0, 1 - saturation)..1 + saturation.
    hue: the turn of the hue is drawn from -hue..hue of a full circle, 0..0.5. It is most of the time this takes.

  Returns:
    The sample with another image. What is zero is left out.

  >>> sample = {'image': np.full((2, 2, 3), 100, np.uint8)}
  >>> jittered = colour_jitter(np.random.default_rng(0), sample, contrast=0.0, saturation=0.0, hue=0.0)['image']
  >>> bool((jittered == jittered[0, 0, 0]).all())
  True
  """
  from PIL import Image
  where = 'augmentation colour_jitter'
  strengths = {'brightness': brightness, 'contrast': contrast, 'saturation': saturation}
  for option, value in strengths.items():
    check_number(where, option, value)
  check_number(where, 'hue', hue, 0, 0.5)
  order, draws = rng.permutation(4), rng.random(4)
  picture = Image.fromarray(np.ascontiguousarray(sample['image']))
  for place in order:
    if place == 3 and hue:
      # 255 and the truncation are torchvision's; a byte goes around by itself.
      picture = _in_hsv(picture, (np.arange(256) + int((2 * draws[3] - 1) * hue * 255)) % 256)
    elif place < 3 and (strength := tuple(strengths.values())[place]):
      low = max(0.0, 1 - strength)
      picture = _enhanced(picture, tuple(strengths)[place], low + (1 + strength - low) * draws[place])
  return {**sample, 'image': np.asarray(picture)}


def hsv(rng: np.random.Generator, sample: Sample, *, hue: float = 0.1, saturation: float = 1.5,
        exposure: float = 1.5) -> Sample:
  """Turns the hue, and multiplies saturation and value, as Darknet trains its YOLOs.

  Args:
    rng: where the randomness comes from.
    sample: with `image` uint8 [H, W, 3].
    hue: the turn is drawn from -hue..hue of a full circle, 0..0.5.
    saturation: the factor is drawn from 1..saturation, and is one over it half the time.
    exposure: the factor of the value, drawn alike.

  Returns:
    The sample with another image. Hue, saturation and value pass as bytes, which alone moves a level by 3 at most.

  >>> sample = {'image': np.full((2, 2, 3), 100, np.uint8)}
  >>> hsv(np.random.default_rng(0), sample, exposure=1.0)['image'][0, 0].tolist()
  [100, 100, 100]
  """
  from PIL import Image
  where = 'augmentation hsv'
  check_number(where, 'hue', hue, 0, 0.5)
  check_number(where, 'saturation', saturation, 1)
  check_number(where, 'exposure', exposure, 1)
  turn = rng.uniform(-hue, hue)
  factors = [rng.uniform(1, most) ** (1 if rng.random() < 0.5 else -1) for most in (saturation, exposure)]
  if hue == 0 and saturation == 1 and exposure == 1:
    return sample
  levels = np.arange(256)
  tables = [np.rint(levels + turn * 256).astype(np.int64) % 256,
            *(np.minimum(np.rint(levels * factor), 255) for factor in factors)]
  picture = Image.fromarray(np.ascontiguousarray(sample['image']))
  return {**sample, 'image': np.asarray(_in_hsv(picture, *tables))}


def _in_hsv(picture: Image.Image, *tables: np.ndarray) -> Image.Image:
  """The picture with its hue, saturation and value looked up in tables of 256; those left out stay."""
  tables = [*tables, *[np.arange(256)] * (3 - len(tables))]
  return picture.convert('HSV').point(np.concatenate(tables).astype(int).tolist()).convert('RGB')


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
  check_number('augmentation noise', 'deviation', deviation)
  level = np.float32(rng.uniform(0, deviation))
  image = rng.standard_normal(sample['image'].shape, dtype=np.float32)
  image *= level
  image += sample['image']
  return {**sample, 'image': np.rint(np.clip(image, 0, 255, out=image), out=image).astype(np.uint8)}


# --- RandAugment's operations ---------------------------------------------------------------------------------------


def _enhanced(picture: Image.Image, quality: str, factor: float) -> Image.Image:
  from PIL import ImageEnhance
  kinds = {'brightness': ImageEnhance.Brightness, 'contrast': ImageEnhance.Contrast, 'saturation': ImageEnhance.Color,
           'sharpness': ImageEnhance.Sharpness}
  return kinds[quality](picture).enhance(factor)


def _posterized(picture: Image.Image, bits: float) -> Image.Image:
  from PIL import ImageOps
  return ImageOps.posterize(picture, int(bits))


def _solarized(picture: Image.Image, threshold: float) -> Image.Image:
  from PIL import ImageOps
  return ImageOps.solarize(picture, threshold)


def _stretched(picture: Image.Image, _: float) -> Image.Image:
  from PIL import ImageOps
  return ImageOps.autocontrast(picture)


def _equalized(picture: Image.Image, _: float) -> Image.Image:
  from PIL import ImageOps
  return ImageOps.equalize(picture)


COLOUR_OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    'brightness': lambda picture, value: _enhanced(picture, 'brightness', 1 + value),
    'saturation': lambda picture, value: _enhanced(picture, 'saturation', 1 + value),
    'contrast': lambda picture, value: _enhanced(picture, 'contrast', 1 + value),
    'sharpness': lambda picture, value: _enhanced(picture, 'sharpness', 1 + value),
    'posterize': _posterized,
    'solarize': _solarized,
    'autocontrast': _stretched,
    'equalize': _equalized,
}


def recoloured(sample: Sample, operation: str, value: float) -> Sample:
  """The sample after one of RandAugment's colour operations, which are Pillow's.

  Args:
    sample: with `image` uint8 [H, W, 3].
    operation: 'brightness', 'saturation', 'contrast' or 'sharpness', where `1 + value` is the factor; 'posterize' to
      `value` bits; 'solarize' from the level `value` on; 'autocontrast'; 'equalize'.
    value: see there.

  Returns:
    The sample with another image.

  >>> recoloured({'image': np.full((1, 1, 3), 201, np.uint8)}, 'solarize', 128)['image'].tolist()
  [[[54, 54, 54]]]
  """
  from PIL import Image
  picture = Image.fromarray(np.ascontiguousarray(sample['image']))
  return {**sample, 'image': np.asarray(COLOUR_OPERATIONS[operation](picture, value))}


# --- what hides -----------------------------------------------------------------------------------------------------


def cutout(rng: np.random.Generator, sample: Sample, *, holes: int = 1, side: tuple[float, float] = (0.1, 0.4),
           fill: int | str = 'mean') -> Sample:
  """Covers rectangles of the image, which may reach over its border.

  Args:
    rng: where the randomness comes from.
    sample: with `image` uint8 [H, W, 3] and any target fields.
    holes: how many.
    side: width and height of each are drawn from this range, as shares of the image's, within 0..1.
    fill: grey level 0..255, three levels, or 'mean' for the image's mean colour.

  Returns:
    The sample with another image. The truth under a hole stays, but an object is dropped of which less than a quarter
    is still to be seen (of its mask where there is one, else of its box); of the others, boxes and masks stay whole.

  Reference: DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout",
  arXiv:1708.04552, section 3.2 (one square of a fixed size).

  >>> sample = {'image': np.full((40, 60, 3), 9, np.uint8)}
  >>> image = cutout(np.random.default_rng(0), sample, side=(0.2, 0.2), fill=0)['image']
  >>> 0 < int((image[..., 0] == 0).sum()) <= 8 * 12
  True
  """
  check_number('augmentation cutout', 'holes', holes, whole=True)
  check_range('augmentation cutout', 'side', side, 0, 1)
  level = fill_level(sample['image'], fill)
  h, w = sample['image'].shape[:2]
  if not holes:
    return sample
  sides, middles = rng.uniform(*side, size=(holes, 2)) * (w, h), rng.random((holes, 2)) * (w, h)
  corners = np.rint(np.concatenate([middles - sides / 2, middles + sides / 2], axis=1))
  hidden, image = np.zeros((h, w), bool), sample['image'].copy()
  for x1, y1, x2, y2 in clip_boxes(corners, (h, w)).astype(int):
    hidden[y1:y2, x1:x2] = True
    image[y1:y2, x1:x2] = level
  covered = {**sample, 'image': image}
  return select_objects(covered, _seen(sample, hidden) >= MIN_VISIBLE) if 'boxes' in sample else covered


def _seen(sample: Sample, hidden: np.ndarray) -> np.ndarray:
  """The share of each object that is not hidden, [n]."""
  h, w = hidden.shape
  low = np.floor(sample['boxes'][:, :2]).astype(int).clip(0, (w - 1, h - 1))
  high = np.ceil(sample['boxes'][:, 2:]).astype(int).clip(low + 1, (w, h))
  share = np.array([1 - hidden[y1:y2, x1:x2].mean() for (x1, y1), (x2, y2) in zip(low, high, strict=True)])
  areas = mask_areas(sample)
  if areas is None:
    return share.reshape(-1)
  left = mask_areas({'masks': sample['masks'] & ~hidden})
  return np.where(areas > 0, left / np.maximum(areas, 1), share.reshape(-1))


# --- normalisation --------------------------------------------------------------------------------------------------


def normalise(image: np.ndarray, mean: Sequence[float], std: Sequence[float], *,
              image_size: Sequence[int] | None = None, out: np.ndarray | None = None) -> np.ndarray:
  """`(image / 255 - mean) / std` on the content, zero on the padding.

  Args:
    image: uint8 [H, W, 3].
    mean: three numbers, of images in 0..1.
    std: three positive numbers, of images in 0..1.
    image_size: (h, w) of the content at the top left; all of the image when left out.
    out: float32 [H, W, 3] to write into, contiguous; whatever it holds is overwritten.

  Returns:
    float32 [H, W, 3].

  >>> normalise(np.full((1, 2, 3), 255, np.uint8), (0.5,) * 3, (0.5,) * 3, image_size=(1, 1))[0, :, 0].tolist()
  [1.0, 0.0]
  """
  h, w = image.shape[:2] if image_size is None else image_size
  out = np.empty(image.shape, np.float32) if out is None else out
  if not out.flags.c_contiguous:
    raise ValueError('normalise: out is not contiguous; give a whole image of a batch')
  # Whole rows at once: an inner loop over three channels would take four times as long.
  factor = np.tile(1 / (255 * np.asarray(std, np.float64)), w).astype(np.float32)
  shift_by = np.tile(-np.asarray(mean, np.float64) / np.asarray(std, np.float64), w).astype(np.float32)
  out[:h, :w] = image[:h, :w]
  rows = out.reshape(len(out), -1)[:h, :w * 3]  # a view
  rows *= factor
  rows += shift_by
  out[h:], out[:h, w:] = 0, 0
  return out
