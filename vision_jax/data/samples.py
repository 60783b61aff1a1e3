"""A sample's fields, and how its objects and maps follow the image: boxes, labels, masks, segmentation, pixels_valid.

Units: images uint8 RGB [H, W, 3]; boxes xyxy in continuous pixels (a pixel's middle is at +0.5); sizes are (h, w),
offsets (x, y). A sample is a dict; nothing here changes one in place, and arrays of a result may be those given.

One rule drops objects, wherever an image is cut, moved, covered or resized: an object goes, with its label and mask,
when less than a quarter of it is still to be seen, or when the box that is left is less than one pixel wide or high.
The quarter is of the box's area; where there are masks, to which augmentations fit the boxes anew, it is of the mask's
pixels. (`ssd_crop` keeps by the box's centre instead, as its paper does, unless told otherwise.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import numbers
from typing import Any

import numpy as np

from vision_jax.host.boxes import area, clip

Sample = dict[str, Any]
Size = tuple[int, int]

OBJECT_FIELDS = ('boxes', 'labels', 'masks')
MAP_FIELDS = ('masks', 'segmentation', 'pixels_valid')
MIN_VISIBLE = 0.25
KEEPS = ('share', 'centre')


# --- objects --------------------------------------------------------------------------------------------------------


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


def clip_boxes(boxes: np.ndarray, size: Sequence[int]) -> np.ndarray:
  """Boxes cut to an image.

  Args:
    boxes: float32 [n, 4] xyxy.
    size: (h, w).

  Returns:
    float32 [n, 4]; a box outside has no width or no height.

  >>> clip_boxes(np.float32([[-2, 1, 9, 3]]), (4, 6)).tolist()
  [[0.0, 1.0, 6.0, 3.0]]
  """
  return clip(boxes, tuple(size)).astype(np.float32)


def select_objects(sample: Sample, keep: np.ndarray) -> Sample:
  """The sample with some of its objects.

  Args:
    sample: with `boxes`, and `labels` and `masks` where it has them.
    keep: bool [n], or the indices to take.

  Returns:
    The sample; the one given, if all objects stay.

  >>> sample = {'boxes': np.float32([[0, 0, 2, 2], [1, 1, 4, 3]]), 'labels': np.int32([5, 7])}
  >>> select_objects(sample, np.array([False, True]))['labels'].tolist()
  [7]
  """
  if keep.dtype == bool and keep.all():
    return sample
  return {**sample, **{name: sample[name][keep] for name in OBJECT_FIELDS if name in sample}}


def mask_areas(sample: Sample, factor: float = 1.0) -> np.ndarray | None:
  """The pixels of each mask.

  Args:
    sample: any.
    factor: what a change of scale makes of an area.

  Returns:
    float64 [n], the counts times `factor`; None for a sample without masks.

  >>> mask_areas({'masks': np.ones((2, 3, 4), bool)}, 0.5).tolist()
  [6.0, 6.0]
  """
  if 'masks' not in sample:
    return None
  return np.array([np.count_nonzero(mask) for mask in sample['masks']], np.float64).reshape(-1) * factor


def settle(sample: Sample, boxes: np.ndarray, size: Sequence[int], areas: np.ndarray | None = None, *,
           keep: str = 'share') -> Sample:
  """Clips moved boxes, or fits them to moved masks, and drops objects by the rule at the head of this module.

  Args:
    sample: with moved `masks`, if any; its `boxes` are replaced.
    boxes: [n, 4] xyxy, moved and not yet clipped.
    size: (h, w) of the content.
    areas: [n], the pixels that each whole mask would have; boxes are fitted to the masks if given.
    keep: 'share', the rule's quarter, or 'centre': an object stays when the centre of its box is inside.

  Returns:
    The sample with `boxes` float32 [m, 4], and as many labels and masks.

  >>> sample = {'boxes': np.zeros((2, 4), np.float32), 'labels': np.int32([5, 7])}
  >>> settled = settle(sample, np.float32([[-9, 0, 1, 2], [-2, 1, 4, 3]]), (4, 6))
  >>> settled['boxes'].tolist(), settled['labels'].tolist()
  ([[0.0, 1.0, 4.0, 3.0]], [7])
  """
  h, w = size
  clipped = clip_boxes(boxes, size)
  share = area(clipped) / np.maximum(area(boxes), 1e-9)
  if areas is not None:
    has_mask = areas > 0  # an object may come with an empty mask; its box then speaks for it
    clipped = np.where(has_mask[:, None], boxes_of_masks(sample['masks']), clipped)
    share = np.where(has_mask, mask_areas(sample) / np.maximum(areas, 1e-9), share)
  stays = share >= MIN_VISIBLE
  if keep == 'centre':
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    stays = ((centres > 0) & (centres < [w, h])).all(1)
  return select_objects({**sample, 'boxes': clipped}, stays & (clipped[:, 2:] - clipped[:, :2] >= 1).all(1))


# --- maps and places ------------------------------------------------------------------------------------------------


def map_labels(sample: Sample, size: Size, move: Callable[[np.ndarray], np.ndarray]) -> Sample:
  """A sample's masks, segmentation and pixels_valid, moved in one way.

  Args:
    sample: any.
    size: (h, w) of what `move` gives back.
    move: a function of one uint8 or int32 [H, W] array that mixes no values (nearest neighbours).

  Returns:
    A dict of those of the three fields that the sample has.

  >>> sample = {'masks': np.eye(3, dtype=bool)[None]}
  >>> map_labels(sample, (3, 2), lambda plane: plane[:, :2])['masks'].astype(int).tolist()
  [[[1, 0], [0, 1], [0, 0]]]
  """
  moved = {}
  if 'segmentation' in sample:
    moved['segmentation'] = move(np.ascontiguousarray(sample['segmentation'], np.int32))
  if 'pixels_valid' in sample:
    moved['pixels_valid'] = move(sample['pixels_valid'].astype(np.uint8)).astype(bool)
  if 'masks' in sample:
    moved['masks'] = _unpacked([move(plane) for plane in _packed(sample['masks'])], len(sample['masks']), size)
  return moved


def _packed(masks: np.ndarray) -> list[np.ndarray]:
  """Eight masks as the bits of one byte plane: nearest neighbours never mix values, so that they can travel together.

  (`np.packbits` over the first axis takes seven times as long.)
  """
  planes = [np.zeros(masks.shape[1:], np.uint8) for _ in range(0, len(masks), 8)]
  for k, mask in enumerate(masks):
    planes[k // 8] |= mask.view(np.uint8) << (k % 8)
  return planes


def _unpacked(planes: list[np.ndarray], count: int, size: Size) -> np.ndarray:
  masks = np.empty((count, *size), bool)
  for k, bits in enumerate(masks.view(np.uint8)):
    np.bitwise_and(planes[k // 8] >> (k % 8), 1, out=bits)
  return masks


def crop_sample(sample: Sample, box: tuple[int, int, int, int], *, keep: str = 'share') -> Sample:
  """Cuts out a part of whole pixels.

  Args:
    sample: with `image` uint8 [H, W, 3] and any target fields.
    box: (x1, y1, x2, y2), inside the image.
    keep: which objects stay; see `settle`.

  Returns:
    The part, [y2 - y1, x2 - x1] pixels large, as views of the arrays given; boxes are fitted to the masks where there
    are masks, else clipped.

  >>> sample = {'image': np.zeros((4, 8, 3), np.uint8), 'boxes': np.float32([[0, 0, 3, 4], [5, 0, 8, 4]])}
  >>> crop_sample(sample, (2, 1, 8, 4))['boxes'].tolist()
  [[0.0, 0.0, 1.0, 3.0], [3.0, 0.0, 6.0, 3.0]]
  """
  x1, y1, x2, y2 = box
  part = {**sample, 'image': sample['image'][y1:y2, x1:x2],
          **{name: sample[name][..., y1:y2, x1:x2] for name in MAP_FIELDS if name in sample}}
  if 'boxes' not in sample:
    return part
  return settle(part, sample['boxes'] - np.float32([x1, y1, x1, y1]), (y2 - y1, x2 - x1), mask_areas(sample), keep=keep)


def content_of(sample: Sample) -> Sample:
  """A sample without the padding of its canvas.

  Args:
    sample: on a canvas, with `image_size` (h, w).

  Returns:
    The sample, its image and maps as views of the arrays given.

  >>> content_of({'image': np.zeros((8, 8, 3), np.uint8), 'image_size': np.array([4, 8])})['image'].shape
  (4, 8, 3)
  """
  h, w = sample['image_size']
  return {**sample, 'image': sample['image'][:h, :w],
          **{name: sample[name][..., :h, :w] for name in MAP_FIELDS if name in sample}}


def pad_sample(sample: Sample, canvas: Sequence[int], *, offset: tuple[int, int] = (0, 0),
               fill: tuple[int, ...] = (0, 0, 0)) -> Sample:
  """Puts a sample on a larger canvas.

  Args:
    sample: with an `image` that fits.
    canvas: (h, w).
    offset: (x, y) of the sample's corner on the canvas.
    fill: the three levels of the image elsewhere; the other fields are zero and False there.

  Returns:
    The sample with padded `image`, `masks`, `segmentation` and `pixels_valid`, and moved boxes.

  >>> pad_sample({'image': np.ones((2, 3, 3), np.uint8)}, (4, 4))['image'].sum(-1).tolist()
  [[3, 3, 3, 0], [3, 3, 3, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
  """
  h, w = sample['image'].shape[:2]
  if (h, w) == tuple(canvas):
    return dict(sample)
  x, y = offset
  here = (slice(y, y + h), slice(x, x + w))
  padded = {**sample, 'image': one_colour(canvas, fill)}
  padded['image'][here] = sample['image']
  for name in MAP_FIELDS:
    if name in sample:
      padded[name] = np.zeros((*sample[name].shape[:-2], *canvas), sample[name].dtype)
      padded[name][(..., *here)] = sample[name]
  if 'boxes' in sample and (x or y):
    padded['boxes'] = sample['boxes'] + np.float32([x, y, x, y])
  return padded


def one_colour(size: Sequence[int], level: tuple[int, ...]) -> np.ndarray:
  """An image of one colour.

  Args:
    size: (h, w).
    level: three levels 0..255.

  Returns:
    uint8 [h, w, 3].

  >>> one_colour((1, 2), (1, 2, 3)).tolist()
  [[[1, 2, 3], [1, 2, 3]]]
  """
  h, w = size
  image = np.empty((h, w * 3), np.uint8)
  image[:] = np.tile(np.array(level, np.uint8), w)  # whole rows: an inner loop over three values is ten times slower
  return image.reshape(h, w, 3)


def fill_level(image: np.ndarray, fill: int | str | tuple[int, int, int]) -> tuple[int, ...]:
  """What stands where there is no image.

  Args:
    image: uint8 [H, W, 3].
    fill: a grey level 0..255, three levels, or 'mean' for the image's mean colour.

  Returns:
    Three levels.

  Raises:
    ValueError: anything else.

  >>> fill_level(np.full((2, 2, 3), 7, np.uint8), 'mean')
  (7, 7, 7)
  """
  if isinstance(fill, str) and fill == 'mean':
    # Rows first: a mean over the two outer axes at once walks through memory three values at a time.
    total = image.reshape(len(image), -1).sum(0, dtype=np.uint32).reshape(-1, 3).sum(0, dtype=np.float64)
    return tuple(int(level) for level in np.rint(total / (image.size // 3)))
  levels = (fill,) * 3 if isinstance(fill, numbers.Integral) else fill
  if isinstance(levels, str | float) or len(levels) != 3 or not all(
      isinstance(level, numbers.Integral) and 0 <= level <= 255 for level in levels):
    raise ValueError(f"augmentation fill is {fill!r}; give a grey level 0..255, three levels or 'mean'")
  return tuple(int(level) for level in levels)
