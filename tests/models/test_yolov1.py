"""YOLOv1: its outputs by cell, its locally connected layer and what it refuses."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.models import drawn
from vision_jax import models
from vision_jax.models.classification import resnet
from vision_jax.models.detection.yolov1 import LocalConv, YOLOv1


def test_the_paper_s_network_says_30_numbers_for_each_of_49_cells_and_its_release_35():
  assert drawn.shapes(models.create('yolov1'), 1, 448, 448, 3)[0].shape == (1, 7, 7, 30)
  assert drawn.shapes(models.create('yolov1_darknet'), 1, 448, 448, 3)[0].shape == (1, 7, 7, 35)
  assert drawn.shapes(models.create('yolov1_small', num_classes=10), 2, 96, 128, 3)[0].shape == (2, 6, 8, 20)


def test_another_body_and_another_grid_than_the_map_s_are_possible():
  model = YOLOv1(resnet.resnet18(num_classes=0, width=8), ('layer4',), 3, (64, 96), (4, 5), 1, ((8, 1),), hidden=(16,))
  assert drawn.shapes(model, 2, 64, 96, 3)[0].shape == (2, 4, 5, 8)


@pytest.mark.parametrize(('options', 'size', 'message'), [
    ({}, (128, 96), 'images of 128 x 96; its fully connected layers were made for canvas 96 x 128'),
    ({'levels': ('conv5', 'conv8')}, (96, 128), r"levels \('conv5', 'conv8'\); it takes one map"),
    ({'grid': (3, 4)}, (96, 128), 'with hidden .* and a map of 6 x 8 for 3 x 4 cells; it needs no hidden layer'),
    ({'levels': ('conv9',)}, (96, 128), "no feature map 'conv9'; there are conv1, conv2, conv5, conv8")])
def test_what_does_not_fit_is_answered_in_one_line(options, size, message):
  with pytest.raises(ValueError, match=message):
    drawn.shapes(models.create('yolov1_small').clone(**options), 1, *size, 3)


def test_cells_that_begin_alike_see_their_own_pixel_with_the_same_weights():
  model = models.create('yolov1_small', num_classes=3, canvas=(32, 48), grid=(2, 3))
  kernel = np.asarray(model._init_alike(jax.random.key(0), (2, 3, 4, 6 * 13)))
  x = np.random.default_rng(0).standard_normal((2, 2, 3, 4)).astype(np.float32)
  found = np.asarray(model._cells(np.einsum('bhwc,hwco->bo', x, kernel)))
  # The numbers of a cell are one linear function of its pixel: that of pixels put elsewhere is found elsewhere.
  moved = np.asarray(model._cells(np.einsum('bhwc,hwco->bo', x[:, ::-1, ::-1], kernel)))
  np.testing.assert_allclose(moved, found[:, ::-1, ::-1], rtol=1e-5, atol=1e-6)
  x[:, 1, 2] = 0
  rest = np.asarray(model._cells(np.einsum('bhwc,hwco->bo', x, kernel)))
  assert not rest[:, 1, 2].any() and np.abs(found[:, 1, 2]).min() > 0
  np.testing.assert_array_equal(np.delete(rest.reshape(2, 6, 13), 5, 1), np.delete(found.reshape(2, 6, 13), 5, 1))


def test_a_locally_connected_layer_with_one_kernel_everywhere_is_a_convolution():
  rng = np.random.default_rng(0)
  x, kernel = rng.standard_normal((2, 4, 5, 3)).astype(np.float32), rng.standard_normal((3, 3, 3, 6)).astype(np.float32)
  # Its third axis is by channel, row, column; those of a convolution's kernel are row, column, channel.
  local = np.broadcast_to(kernel.transpose(2, 0, 1, 3).reshape(27, 6), (4, 5, 27, 6))
  bias = rng.standard_normal((4, 5, 6)).astype(np.float32)
  found = jax.jit(LocalConv(6).apply)({'params': {'local_kernel': local, 'bias': bias}}, x)
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))  # [B, h, w, C, 3, 3]
  np.testing.assert_allclose(found, np.einsum('bhwcij,ijco->bhwo', windows, kernel) + bias, rtol=1e-4, atol=1e-4)
