"""The clean-up of predicted class maps."""

import numpy as np
import pytest

from vision_jax.host import masks


def _map(*rows):
  return np.array([[int(c) for c in row] for row in rows], np.int32)


def _clean(segmentation, **options):
  return masks.clean(segmentation, np.ones(segmentation.shape, np.float32), **options)


def test_the_defaults_change_nothing_and_keep_the_dtype():
  segmentation = np.random.default_rng(0).integers(0, 5, (20, 30)).astype(np.uint8)
  cleaned = _clean(segmentation)
  assert cleaned.dtype == np.uint8 and cleaned is not segmentation
  np.testing.assert_array_equal(cleaned, segmentation)


def test_the_threshold_keeps_what_equals_it_and_removes_nan():
  confidence = np.array([[0.5, 0.49, np.nan, 1.0]])
  assert masks.clean(_map('1212'), confidence, threshold=0.5).tolist() == [[1, 0, 0, 2]]


def test_components_are_counted_for_each_class_by_itself():
  before = _map('11220', '00002')
  # Four pixels touch, but no class has more than three of them in one piece.
  assert _clean(before, min_area=3).tolist() == _map('00220', '00002').tolist()
  assert not _clean(before, min_area=4).any()


def test_components_are_joined_over_the_diagonal():
  before = _map('1000', '0100', '0010')
  np.testing.assert_array_equal(_clean(before, min_area=3), before)


def test_min_area_keeps_a_component_of_just_that_size():
  before = _map('110', '000', '001')
  assert _clean(before, min_area=2).tolist() == _map('110', '000', '000').tolist()


def test_opening_removes_a_thread_and_keeps_the_block_it_hangs_on():
  before = np.zeros((12, 20), np.int32)
  before[3:10, 2:9] = 3
  block = before.copy()
  before[6, 9:20] = 3
  opened = _clean(before, opening=1)
  assert not opened[6, 10:].any()
  # A diamond-shaped opening rounds the four corners by one pixel and nothing else.
  assert (opened[3:10, 2:9] == 3).sum() >= (block == 3).sum() - 4


def test_opening_leaves_a_region_that_fills_the_picture():
  before = np.full((9, 11), 2, np.int32)
  np.testing.assert_array_equal(_clean(before, opening=2), before)


def test_a_hole_takes_the_class_around_it():
  before = _map('11110', '10010', '11110')
  assert _clean(before, fill_holes=True).tolist() == _map('11110', '11110', '11110').tolist()


def test_background_between_two_classes_is_no_hole():
  before = _map('11111', '10001', '10201', '10001', '11111')
  np.testing.assert_array_equal(_clean(before, fill_holes=True), before)


def test_a_hole_inside_a_hole_takes_the_inner_class():
  before = _map('1111111', '1000001', '1022201', '1020201', '1022201', '1000001', '1111111')
  filled = _clean(before, fill_holes=True)
  assert filled[3, 3] == 2 and (filled == 0).sum() == (before == 0).sum() - 1


def test_background_at_the_border_is_no_hole():
  before = _map('101', '101', '111')
  np.testing.assert_array_equal(_clean(before, fill_holes=True), before)


def test_a_hole_left_by_a_removed_speck_is_filled():
  before = _map('11111', '11211', '11111')
  assert (_clean(before, min_area=2, fill_holes=True) == 1).all()


def test_what_is_removed_becomes_the_background_that_was_asked_for():
  before = _map('1100', '0022')
  assert _clean(before, min_area=5, background=2).tolist() == _map('2222', '2222').tolist()


def test_an_empty_map_stays_empty():
  empty = np.zeros((6, 7), np.int32)
  np.testing.assert_array_equal(_clean(empty, min_area=5, opening=1, fill_holes=True), empty)


@pytest.mark.parametrize('options, message', [
    (dict(threshold=1.5), 'threshold is 1.5'), (dict(min_area=-1), 'min_area is -1'),
    (dict(opening=0.5), 'opening is 0.5')])
def test_an_option_out_of_range_is_refused_by_name(options, message):
  with pytest.raises(ValueError, match=message):
    _clean(_map('01'), **options)


def test_maps_of_different_sizes_are_refused():
  with pytest.raises(ValueError, match=r'confidence has shape \(2, 3\), segmentation \(2, 2\)'):
    masks.clean(np.zeros((2, 2), np.int32), np.zeros((2, 3)))
