"""Boxes on the host."""

import numpy as np
import pytest

from vision_jax.host import boxes as host_boxes


def _random_boxes(rng, count):
  corners = rng.uniform(-10, 50, (count, 2, 2))
  return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def _loop_iou(a, b):
  width = min(a[2], b[2]) - max(a[0], b[0])
  height = min(a[3], b[3]) - max(a[1], b[1])
  if width <= 0 or height <= 0:
    return 0.0
  inter = width * height
  return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def test_pairwise_iou_equals_a_plain_loop():
  rng = np.random.default_rng(0)
  a, b = _random_boxes(rng, 17), _random_boxes(rng, 9)
  expected = [[_loop_iou(x, y) for y in b] for x in a]
  # Only the order of the float64 sums in the areas may differ.
  np.testing.assert_allclose(host_boxes.pairwise_iou(a, b), expected, rtol=1e-14)


def test_pairwise_iou_of_nothing_is_empty():
  some = np.ones((3, 4))
  assert host_boxes.pairwise_iou(np.zeros((0, 4)), some).shape == (0, 3)
  assert host_boxes.pairwise_iou(some, np.zeros((0, 4))).shape == (3, 0)


def test_pairwise_iou_is_zero_for_boxes_that_are_empty_inverted_or_not_finite():
  nan, inf = np.nan, np.inf
  odd = np.array([[5, 5, 5, 5], [9, 9, 1, 1], [nan, 0, 1, 1], [0, 0, inf, inf], [-inf, 0, inf, 1]])
  assert (host_boxes.pairwise_iou(odd, odd) == 0).all()
  assert (host_boxes.pairwise_iou(odd, np.array([[0, 0, 10, 10]])) == 0).all()


def test_xywh_and_xyxy_are_inverse():
  boxes = _random_boxes(np.random.default_rng(1), 20)
  # One subtraction and one addition in float64.
  np.testing.assert_allclose(host_boxes.xywh_to_xyxy(host_boxes.xyxy_to_xywh(boxes)), boxes, atol=1e-13)


def test_area_of_a_batch_keeps_the_leading_axes():
  boxes = np.broadcast_to(np.array([1, 2, 4, 8]), (2, 3, 4))
  assert host_boxes.area(boxes).tolist() == [[18.0] * 3] * 2


def test_clip_takes_height_then_width():
  assert host_boxes.clip([[-5, -5, 999, 999]], (20, 30)).tolist() == [[0, 0, 30, 20]]


def test_a_box_outside_the_image_is_clipped_to_no_area():
  assert host_boxes.area(host_boxes.clip([[40, 5, 50, 9]], (20, 30))).tolist() == [0]


@pytest.mark.parametrize('function', [host_boxes.area, host_boxes.xyxy_to_xywh, host_boxes.xywh_to_xyxy])
def test_boxes_that_are_not_four_numbers_are_refused(function):
  with pytest.raises(ValueError, match=r'boxes has shape \(3, 5\)'):
    function(np.zeros((3, 5)))


def test_pairwise_iou_refuses_a_batch():
  with pytest.raises(ValueError, match='loop over images'):
    host_boxes.pairwise_iou(np.zeros((2, 3, 4)), np.zeros((3, 4)))
