"""Samples of white rectangles on black: image, boxes, masks and segmentation can be checked against each other."""

import numpy as np

from vision_jax.data.resize import letterbox
from vision_jax.data.samples import boxes_of_masks

BOXES = ((10, 5, 30, 25), (40, 20, 50, 38))


def scene(h=40, w=60, boxes=BOXES, first=1):
  """White rectangles on black, with masks, a segmentation of the same pixels, and labels first, first + 1, ..."""
  masks = np.zeros((len(boxes), h, w), bool)
  for mask, (x1, y1, x2, y2) in zip(masks, boxes):
    mask[y1:y2, x1:x2] = True
  image = np.repeat(masks.any(0)[..., None] * np.uint8(255), 3, -1)
  segmentation = np.zeros((h, w), np.int32)
  for k, mask in enumerate(masks):
    segmentation[mask] = k + first
  return {'image': image, 'boxes': np.array(boxes, np.float32).reshape(-1, 4), 'masks': masks,
          'labels': np.arange(len(boxes), dtype=np.int32) + first, 'segmentation': segmentation,
          'pixels_valid': np.ones((h, w), bool)}


def on_canvas(canvas=(64, 72), **options):
  """A scene that a letterbox put on a canvas."""
  return letterbox(scene(**options), canvas)


def places(h, w):
  """An image whose red is the column and whose green is the row, both below 256."""
  rows, columns = np.mgrid[:h, :w]
  return np.stack([columns, rows, np.full((h, w), 7)], -1).astype(np.uint8)


def without(sample, *names):
  return {name: value for name, value in sample.items() if name not in names}


def frozen(sample):
  """The sample with arrays that nobody can write to."""
  copies = {name: np.array(value) if isinstance(value, np.ndarray) else value for name, value in sample.items()}
  for value in copies.values():
    if isinstance(value, np.ndarray):
      value.flags.writeable = False
  return copies


def same(one, other):
  """Whether two samples agree to the last bit."""
  return one.keys() == other.keys() and all(
      np.asarray(one[name]).dtype == np.asarray(other[name]).dtype and np.array_equal(one[name], other[name])
      for name in one)


def assert_in_step(sample):
  """Masks, boxes, labels and segmentation still speak of the same pixels."""
  h, w = sample['image'].shape[:2]
  assert len(sample['boxes']) == len(sample['labels']) == len(sample['masks'])
  assert sample['masks'].shape[1:] == sample['segmentation'].shape == sample['pixels_valid'].shape == (h, w)
  for label, mask in zip(sample['labels'], sample['masks']):
    np.testing.assert_array_equal(sample['segmentation'] == label, mask)


def assert_sound(sample, size, slack=1e-4):
  """Types, counts and places are as stated for a content of (h, w); masks lie in their boxes, but for the slack."""
  h, w = size
  stated = {'image': np.uint8, 'boxes': np.float32, 'labels': np.int32, 'masks': bool, 'segmentation': np.int32,
            'pixels_valid': bool}
  for name in stated.keys() & sample.keys():
    assert sample[name].dtype == stated[name], name
  if 'boxes' in sample:
    boxes = sample['boxes']
    assert len(boxes) == len(sample['labels']) and boxes.shape == (len(boxes), 4)
    assert (boxes >= 0).all() and (boxes <= [w, h, w, h]).all() and (boxes[:, 2:] - boxes[:, :2] >= 1).all()
  if 'masks' in sample:
    tight = boxes_of_masks(sample['masks'])
    assert len(tight) == len(boxes) and not sample['masks'][:, h:].any() and not sample['masks'][..., w:].any()
    assert (tight[:, :2] >= boxes[:, :2] - slack).all() and (tight[:, 2:] <= boxes[:, 2:] + slack).all()
  for name in ('image', 'pixels_valid'):
    if name in sample:
      assert not sample[name][h:].any() and not sample[name][:, w:].any(), name
