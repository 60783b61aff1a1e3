"""YOLOv2: its outputs, how the passthrough folds pixels, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from tests.models import darknet_cfg, drawn
from vision_jax import models, ops
from vision_jax.models.classification import resnet
from vision_jax.models.detection.yolov2 import YOLOv2, fold_pixels


@pytest.mark.parametrize(('name', 'options', 'canvas', 'expected'), [
    ('yolov2', {}, (416, 416), (1, 13, 13, 5, 85)), ('yolov2', {}, (608, 320), (1, 19, 10, 5, 85)),
    ('yolov2', {'num_classes': 20, 'anchors': ops.YOLOV2_VOC_ANCHORS}, (416, 416), (1, 13, 13, 5, 25)),
    ('yolov2_tiny', {}, (416, 416), (1, 13, 13, 5, 85))])
def test_outputs_are_13_by_13_cells_of_5_anchors_at_416_pixels(name, options, canvas, expected):
  assert drawn.shapes(models.create(name, **options), 1, *canvas, 3)[0].shape == expected


def test_folding_as_the_paper_keeps_the_four_pixels_of_a_square_together():
  x = np.random.default_rng(0).standard_normal((2, 4, 6, 3)).astype(np.float32)
  found = fold_pixels(x)
  for row, column in np.ndindex(2, 3):
    square = x[:, 2 * row:2 * row + 2, 2 * column:2 * column + 2]
    np.testing.assert_array_equal(found[:, row, column], square.reshape(2, 12))


def test_folding_as_darknet_is_its_reorg_index_by_index():
  x = np.random.default_rng(1).standard_normal((2, 4, 6, 8)).astype(np.float32)
  found = fold_pixels(x, order='darknet')
  for image, folded in zip(x, found):
    np.testing.assert_array_equal(folded, darknet_cfg.reorg(image.transpose(2, 0, 1)).transpose(1, 2, 0))
  assert not np.array_equal(np.sort(found, -1), np.sort(fold_pixels(x), -1))


def test_any_body_carries_the_head_with_and_without_passthrough():
  body = resnet.resnet18(num_classes=0, width=8)
  with_it = YOLOv2(body, ('layer3', 'layer4'), 2, ((9.0, 9.0),), 32, (8, 8), 4)
  without = YOLOv2(body, ('layer3',), 2, ((9.0, 9.0),), 16, (), 0)
  assert drawn.shapes(with_it, 1, 64, 96, 3)[0].shape == (1, 2, 3, 1, 7)
  assert drawn.shapes(without, 1, 64, 96, 3)[0].shape == (1, 4, 6, 1, 7)


@pytest.mark.parametrize(('options', 'size', 'message'), [
    ({}, (100, 128), 'multiples of 16, not 100 x 128; the nearest is 96 x 128'),
    ({'levels': ('conv10',)}, (96, 128), 'give the two maps of a passthrough, or one map and passthrough=0'),
    ({'levels': ('conv2', 'conv5')}, (96, 128), 'conv5 of 12 x 16 is not the map of stride 16'),
    ({'levels': ('conv9', 'conv10')}, (96, 128), "no feature map 'conv9'"),
    ({'fold': 'torch'}, (96, 128), "unknown order 'torch'; known: paper, darknet")])
def test_what_does_not_fit_is_answered_in_one_line(options, size, message):
  with pytest.raises(ValueError, match=message):
    drawn.shapes(models.create('yolov2_small').clone(**options), 1, *size, 3)


@pytest.mark.parametrize(('shape', 'order'), [((1, 3, 4, 4), 'paper'), ((1, 4, 4, 6), 'darknet')])
def test_maps_that_cannot_be_folded_are_refused(shape, order):
  with pytest.raises(ValueError, match='height and width are even, and for darknet the channels a multiple of 4'):
    fold_pixels(np.zeros(shape, np.float32), order=order)
