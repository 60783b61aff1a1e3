"""Augmentations that make one sample of several: mosaic, MixUp, CutMix, copy-paste.

Units: images uint8 RGB [H, W, 3] on a canvas, whose content is at the top left and has the size `image_size` (h, w);
boxes xyxy in continuous pixels of the canvas.

Each is a pure function of (rng, sample, others) with options by keyword: `others(count)` gives that many further
samples on the same canvas, with the same fields. `scale`, `offset` and `original_size` stay those of the sample itself.
Which objects are dropped, the head of `vision_jax.data.samples` says.

Classification gets two more fields: `mixed_label`, the other image's class, and `mix`, float32 in 0..1, the share of
the sample's own label. A sample that nothing was mixed into has `mixed_label` = `label` and `mix` = 1, and one that is
mixed already stays as it is: `mixup` with a probability of 0.5, then `cutmix`, is one or the other, half of the time
each.
"""

from __future__ import annotations

from collections.abc import Callable
import math

import numpy as np

from vision_jax.data.options import check_number, check_range
from vision_jax.data.resize import resample, resize_image
from vision_jax.data.samples import (
  OBJECT_FIELDS,
  Sample,
  content_of,
  fill_level,
  mask_areas,
  one_colour,
  select_objects,
  settle,
)

Others = Callable[[int], list[Sample]]
_WHOLE = 256  # the whole of an image in the whole numbers that MixUp blends by


def mosaic(rng: np.random.Generator, sample: Sample, others: Others, *, probability: float = 1.0,
           centre: tuple[float, float] = (0.25, 0.75), scale: tuple[float, float] = (0.5, 1.0),
           fill: int | str = 'mean') -> Sample:
  """Four images around a point, each with a corner there.

  Args:
    rng: where the randomness comes from.
    sample: on a canvas, with `boxes` or `segmentation`.
    others: gives three further ones.
    probability: 0..1.
    centre: the point is drawn from this range in each axis, as a share of the canvas, within 0..1.
    scale: the factor of each image is drawn from this range; what then reaches over its quarter is cut off.
    fill: grey level 0..255 where no image is, three levels, or 'mean' for the mean colour of the sample. No truth is
      there: masks and pixels_valid are False.

  Returns:
    A sample whose content fills the canvas, or the sample as it was.

  Raises:
    ValueError: options out of range; a sample with a `label`, which four images do not share.

  Reference: Bochkovskiy et al., "YOLOv4", arXiv:2004.10934, section 3.3.

  >>> sample = {'image': np.zeros((8, 12, 3), np.uint8), 'image_size': np.array([6, 12]),
  ...           'boxes': np.float32([[0, 0, 12, 6]])}
  >>> mixed = mosaic(np.random.default_rng(0), sample, lambda count: [sample] * count, centre=(0.5, 0.5),
  ...                scale=(0.5, 0.5))
  >>> mixed['boxes'].tolist()
  [[0.0, 1.0, 6.0, 4.0], [6.0, 1.0, 12.0, 4.0], [0.0, 4.0, 6.0, 7.0], [6.0, 4.0, 12.0, 7.0]]
  """
  check_number('augmentation mosaic', 'probability', probability, 0, 1)
  check_range('augmentation mosaic', 'centre', centre, 0, 1)
  check_range('augmentation mosaic', 'scale', scale)
  _refuse('mosaic', sample, ('label',), 'boxes or segmentation')
  if rng.random() >= probability:
    return sample
  h, w = sample['image'].shape[:2]
  x, y = (max(1, min(side - 1, round(share * side)))
          for share, side in zip(rng.uniform(*centre, size=2), (w, h), strict=True))
  samples = [sample, *others(3)]
  factors, order = rng.uniform(*scale, size=4), rng.permutation(4)
  mixed = _empty(sample, fill_level(content_of(sample)['image'], fill))
  tiles = []
  for quarter, place in enumerate(order):
    right, below = quarter % 2, quarter // 2
    tile = _tile(content_of(samples[place]), factors[place], (h - y if below else y, w - x if right else x),
                 (bool(right), bool(below)))
    down, across = tile['image'].shape[:2]
    tiles.append(_paste(mixed, tile, (x if right else x - across, y if below else y - down)))
  return _unite({**mixed, 'image_size': np.array([h, w], np.int32)}, tiles)


def _empty(sample: Sample, level: tuple[int, ...]) -> Sample:
  """The sample's canvas in one colour, without objects and truth."""
  empty = {**select_objects(sample, np.zeros(0, np.int64)), 'image': one_colour(sample['image'].shape[:2], level)}
  return {**empty, **{name: np.zeros_like(sample[name]) for name in ('segmentation', 'pixels_valid') if name in sample}}


def _tile(content: Sample, factor: float, room: tuple[int, int], far: tuple[bool, bool]) -> Sample:
  """The content scaled, and cut to the room (h, w) from the corner that shall touch the mosaic's middle.

  `far` is (right, below): where the tile lies; then its left or upper side is the one at the middle, which is kept.
  """
  h, w = content['image'].shape[:2]
  full = (max(1, round(h * factor)), max(1, round(w * factor)))
  size = (min(full[0], room[0]), min(full[1], room[1]))
  scale = np.array([full[1] / w, full[0] / h])
  corner = np.array([0 if far[0] else full[1] - size[1], 0 if far[1] else full[0] - size[0]])
  ends = np.minimum((corner + size[::-1]) / scale, (w, h))  # the division may round up
  whole = not corner.any() and size == full
  tile = resample(content, size, box=None if whole else (*(corner / scale).tolist(), *ends.tolist()))
  if 'boxes' not in content:
    return tile
  boxes = (content['boxes'].astype(np.float64).reshape(-1, 2, 2) * scale - corner).reshape(-1, 4)
  return settle(tile, boxes, size, mask_areas(content, float(scale.prod())))


def _paste(canvas: Sample, tile: Sample, offset: tuple[int, int]) -> Sample:
  """Writes a tile's image and truth into the canvas, which is ours, and returns its objects as they lie there."""
  x, y = offset
  h, w = tile['image'].shape[:2]
  for name in ('image', 'segmentation', 'pixels_valid'):
    if name in canvas:
      canvas[name][y:y + h, x:x + w] = tile[name]
  objects = {name: tile[name] for name in OBJECT_FIELDS if name in tile}
  if 'boxes' in objects:
    objects['boxes'] = tile['boxes'] + np.float32([x, y, x, y])
  if 'masks' in objects:
    objects['masks'] = np.zeros((len(tile['masks']), *canvas['image'].shape[:2]), bool)
    objects['masks'][:, y:y + h, x:x + w] = tile['masks']
  return objects


def _unite(sample: Sample, more: list[Sample]) -> Sample:
  """The sample with the objects of others after its own."""
  return {**sample, **{name: np.concatenate([sample[name], *(other[name] for other in more)])
                       for name in OBJECT_FIELDS if name in sample}}


def mixup(rng: np.random.Generator, sample: Sample, others: Others, *, alpha: float | None = None,
          probability: float = 1.0) -> Sample:
  """Blends two images: `share * sample + (1 - share) * other`, share drawn from Beta(alpha, alpha).

  Args:
    rng: where the randomness comes from.
    sample: on a canvas, with a `label` or with `boxes`.
    others: gives one further.
    alpha: positive; 0.2 for labels and 1.5 for boxes when left out.
    probability: 0..1.

  Returns:
    The blended sample, its content as high and as wide as the higher and the wider of both. With a label it has
    `mixed_label` and `mix`, the share exactly as the pixels were blended, a multiple of 1 / 256; with boxes it has the
    objects of both.

  Raises:
    ValueError: options out of range; a sample with `segmentation`, or with neither `label` nor `boxes`.

  Reference: Zhang et al., "mixup: Beyond Empirical Risk Minimization", arXiv:1710.09412; for detection Zhang et al.,
  "Bag of Freebies for Training Object Detection Neural Networks", arXiv:1902.04103, section 3.1.

  >>> one = {'image': np.full((4, 6, 3), 200, np.uint8), 'image_size': np.array([4, 6]), 'label': 3}
  >>> other = {**one, 'image': np.zeros((4, 6, 3), np.uint8), 'label': 5}
  >>> mixed = mixup(np.random.default_rng(0), one, lambda count: [other], alpha=1.0)
  >>> mixed['label'], mixed['mixed_label'], bool(mixed['image'][0, 0, 0] == np.rint(200 * mixed['mix']))
  (3, 5, True)
  """
  check_number('augmentation mixup', 'probability', probability, 0, 1)
  if alpha is not None:
    check_range('augmentation mixup', 'alpha', (alpha, alpha))
  _refuse('mixup', sample, ('segmentation',), 'label or boxes')
  alpha = (0.2 if 'label' in sample else 1.5) if alpha is None else alpha
  hit, share = rng.random() < probability, int(np.rint(_WHOLE * rng.beta(alpha, alpha)))
  sample = _with_label(sample)
  if not hit or sample.get('mix', 1) < 1:
    return sample
  (other,) = others(1)
  # Whole numbers of 16 bits are three times as fast as floats: 255 * 256 + 128 is below 65536.
  image = sample['image'] * np.uint16(share) + other['image'] * np.uint16(_WHOLE - share)
  image += np.uint16(_WHOLE // 2)
  mixed = {**sample, 'image': (image >> 8).astype(np.uint8),
           'image_size': np.maximum(sample['image_size'], other['image_size']).astype(np.int32)}
  if 'label' in sample:
    mixed.update(mixed_label=other['label'], mix=np.float32(share / _WHOLE))
  return _unite(mixed, [other])


def cutmix(rng: np.random.Generator, sample: Sample, others: Others, *, alpha: float = 1.0,
           probability: float = 1.0) -> Sample:
  """Puts a rectangle of another image into this one, for classification.

  Args:
    rng: where the randomness comes from.
    sample: on a canvas, with a `label` and no boxes, masks or segmentation.
    others: gives one further.
    alpha: positive; the rectangle's area is 1 - share of the image, share drawn from Beta(alpha, alpha), before what
      reaches over the border is cut off.
    probability: 0..1.

  Returns:
    The mixed sample with `mixed_label` and `mix`, the share of the sample's own pixels. Where the two contents differ
    in size, the other is stretched to this one's.

  Raises:
    ValueError: options out of range; a sample with other targets, or without a `label`.

  Reference: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features",
  arXiv:1905.04899, equations 1 and 2.

  >>> one = {'image': np.full((4, 6, 3), 200, np.uint8), 'image_size': np.array([4, 6]), 'label': 3}
  >>> other = {**one, 'image': np.zeros((4, 6, 3), np.uint8), 'label': 5}
  >>> mixed = cutmix(np.random.default_rng(0), one, lambda count: [other])
  >>> mixed['mixed_label'], bool(np.isclose((mixed['image'] == 200).mean(), mixed['mix']))
  (5, True)
  """
  check_number('augmentation cutmix', 'probability', probability, 0, 1)
  check_range('augmentation cutmix', 'alpha', (alpha, alpha))
  _refuse('cutmix', sample, ('boxes', 'masks', 'segmentation'), 'label')
  hit, share, place = rng.random() < probability, rng.beta(alpha, alpha), rng.random(2)
  sample = _with_label(sample)
  if not hit or sample['mix'] < 1:
    return sample
  (other,) = others(1)
  h, w = size = tuple(int(side) for side in sample['image_size'])
  half = 0.5 * math.sqrt(1 - share)
  x, y = int(place[0] * w), int(place[1] * h)
  x1, y1, x2, y2 = max(0, x - int(half * w)), max(0, y - int(half * h)), x + int(half * w), y + int(half * h)
  part = (slice(y1, min(h, y2)), slice(x1, min(w, x2)))
  image = sample['image'].copy()
  image[part] = resize_image(content_of(other)['image'], size)[part]
  covered = (part[0].stop - part[0].start) * (part[1].stop - part[1].start)
  return {**sample, 'image': image, 'mixed_label': other['label'], 'mix': np.float32(1 - covered / (h * w))}


def copy_paste(rng: np.random.Generator, sample: Sample, others: Others, *, share: float = 0.5,
               probability: float = 1.0) -> Sample:
  """Pastes objects of another image over this one, pixel by pixel, where they lie there.

  Args:
    rng: where the randomness comes from.
    sample: on a canvas, with `masks`.
    others: gives one further.
    share: 0..1, the probability with which each of its objects is taken.
    probability: 0..1, that anything is pasted at all.

  Returns:
    The sample with the pasted objects after its own, whose masks lose what is covered; boxes are fitted to the masks,
    and those of which less than a quarter is still to be seen are dropped. What reaches over the sample's content is
    cut off. To paste elsewhere and in another size, put `flip` and `affine` before it: the other image goes through
    them.

  Raises:
    ValueError: options out of range; a sample without masks.

  Reference: Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation",
  arXiv:2012.07177, section 3.

  Differs from the paper: the edges are not smoothed, which it finds to make no difference.

  >>> masks = np.zeros((1, 6, 8), bool)
  >>> masks[0, 1:3, 1:4] = True
  >>> one = {'image': np.zeros((6, 8, 3), np.uint8), 'image_size': np.array([6, 8]), 'masks': masks,
  ...        'boxes': np.float32([[1, 1, 4, 3]]), 'labels': np.int32([0])}
  >>> other = {**one, 'masks': masks[:, ::-1, ::-1], 'boxes': np.float32([[4, 3, 7, 5]]), 'labels': np.int32([2])}
  >>> copy_paste(np.random.default_rng(0), one, lambda count: [other], share=1.0)['labels'].tolist()
  [0, 2]
  """
  check_number('augmentation copy_paste', 'share', share, 0, 1)
  check_number('augmentation copy_paste', 'probability', probability, 0, 1)
  _refuse('copy_paste', sample, ('label',), 'masks')
  if rng.random() >= probability:
    return sample
  (other,) = others(1)
  size = tuple(int(side) for side in sample['image_size'])
  here = (slice(0, size[0]), slice(0, size[1]))
  chosen = select_objects(other, np.flatnonzero(rng.random(len(other['masks'])) < share))
  within = np.zeros(chosen['masks'].shape[1:], bool)
  within[here] = True
  pasted = settle({**chosen, 'masks': chosen['masks'] & within}, chosen['boxes'], size, mask_areas(chosen))
  pasted = select_objects(pasted, pasted['masks'].any((1, 2)))  # without a mask there is nothing to paste
  over = pasted['masks'].any(0)
  if not len(pasted['masks']):
    return sample
  mixed = {**sample, 'masks': sample['masks'] & ~over}
  for name in ('image', 'segmentation', 'pixels_valid'):
    if name in sample:
      mixed[name] = np.where(over[..., None] if name == 'image' else over, other[name], sample[name])
  return _unite(settle(mixed, sample['boxes'], size, mask_areas(sample)), [pasted])


def _refuse(name: str, sample: Sample, fields: tuple[str, ...], needed: str) -> None:
  """Refuses a sample that has one of the fields, or none of those needed, in one line."""
  wrong = [field for field in fields if field in sample]
  if wrong:
    raise ValueError(f'augmentation {name} has no answer for {", ".join(wrong)}; it is for samples with {needed}')
  if not any(field in sample for field in needed.split(' or ')):
    raise ValueError(f'augmentation {name} needs {needed}, which the source does not give; take it out of augment')


def _with_label(sample: Sample) -> Sample:
  """The sample with `mixed_label` and `mix`, if it has a label."""
  if 'label' not in sample or 'mix' in sample:
    return sample
  return {**sample, 'mixed_label': sample['label'], 'mix': np.float32(1)}


MIXES: dict[str, Callable[..., Sample]] = {
    'mosaic': mosaic,
    'mixup': mixup,
    'cutmix': cutmix,
    'copy_paste': copy_paste,
}
LABEL_MIXES = ('mixup', 'cutmix')  # those that give `mixed_label` and `mix`
