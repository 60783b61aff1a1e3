"""Predictions come back in the pixels of the image as it was read."""

import numpy as np
import pytest

from vision_jax.data.resize import RESIZES
from vision_jax.train.evaluate import to_original

BOX = np.array([[20.0, 12.0, 40.0, 30.0]], np.float32)


def sample():
  height, width = 48, 90
  segmentation = np.add.outer(np.arange(height) // 12, np.arange(width) // 15).astype(np.int32)
  return {'image': np.zeros((height, width, 3), np.uint8), 'boxes': BOX.copy(), 'labels': np.zeros(1, np.int32),
          'segmentation': segmentation, 'pixels_valid': np.ones((height, width), bool)}


def restored(resize, canvas):
  placed = RESIZES[resize](sample(), canvas)
  batch = {name: np.asarray(placed[name])[None] for name in ('image_size', 'original_size', 'scale', 'offset')}
  segmentation = np.zeros(canvas, np.int32)
  height, width = placed['segmentation'].shape
  segmentation[:height, :width] = placed['segmentation']
  boxes = np.concatenate([placed['boxes'], [[1e9, np.nan, 0, 0]]]).astype(np.float32)
  prediction = {'boxes': boxes, 'scores': np.array([0.9, 0.1]), 'labels': np.array([3, 0]),
                'valid': np.array([True, False])}
  return to_original(prediction, batch, 0), to_original({'segmentation': segmentation}, batch, 0)['segmentation']


@pytest.mark.parametrize(('resize', 'canvas'), [('letterbox', (96, 128)), ('letterbox', (40, 40)), ('warp', (64, 64)),
                                                ('crop', (96, 160))])
def test_a_box_comes_back_to_where_it_was_and_empty_slots_are_dropped(resize, canvas):
  boxes, _ = restored(resize, canvas)
  # float32 scale and offset, and coordinates of about 100.
  np.testing.assert_allclose(boxes['boxes'], BOX, atol=1e-3)
  assert boxes['labels'].tolist() == [3]
  assert boxes['scores'].tolist() == [0.9]


@pytest.mark.parametrize(('resize', 'canvas'), [('letterbox', (96, 128)), ('letterbox', (96, 180)),
                                                ('warp', (64, 100))])
def test_a_map_comes_back_in_the_images_size_with_its_classes_in_place(resize, canvas):
  _, segmentation = restored(resize, canvas)
  truth = sample()['segmentation']
  assert segmentation.shape == truth.shape
  # Nearest neighbours there and back may move a border between classes by a pixel, and nothing else.
  inside = np.ones_like(truth, bool)
  for axis in (0, 1):
    border = np.diff(truth, axis=axis) != 0
    for side in (0, 1):
      pad = [(0, 0), (0, 0)]
      pad[axis] = (side, 1 - side)
      inside &= ~np.pad(border, pad)
  np.testing.assert_array_equal(segmentation[inside], truth[inside])


def test_what_a_crop_left_out_takes_the_nearest_class_that_was_seen():
  _, segmentation = restored('crop', (48, 48))
  assert segmentation.shape == (48, 90)
  np.testing.assert_array_equal(segmentation[:, 0], segmentation[:, 21])


def test_boxes_are_cut_to_the_image():
  batch = {'image_size': np.array([[48, 90]]), 'original_size': np.array([[48, 90]]), 'scale': np.ones((1, 2)),
           'offset': np.zeros((1, 2))}
  prediction = {'boxes': np.array([[-5.0, -5.0, 200.0, 20.0]]), 'valid': np.array([True])}
  np.testing.assert_array_equal(to_original(prediction, batch, 0)['boxes'], [[0.0, 0.0, 90.0, 20.0]])
