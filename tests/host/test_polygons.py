"""COCO's polygons, pixel for pixel those of pycocotools."""

import zlib

import numpy as np
import pytest

from tests.golden_files import golden
from vision_jax.host import polygons, rle

TRIANGLE = [1, 1, 9, 2, 4, 7]


def test_polygons_are_filled_as_pycocotools_does():
  script, arrays = golden('rle')
  for case, checksum, area in zip(script.draw_polygons(), arrays['polygons'], arrays['polygon_areas']):
    found = polygons.to_rle(*case)
    assert rle.area(found) == area, case
    assert zlib.crc32(found['counts'].encode()) == checksum, case


def test_many_random_polygons_agree_with_pycocotools():
  coco = pytest.importorskip('pycocotools.mask')
  for given, size in golden('rle')[0].draw_polygons(seed=12, count=300):
    expected = coco.merge(coco.frPyObjects(given, *size))
    assert polygons.to_rle(given, size)['counts'].encode() == expected['counts'], (given, size)


def test_boxes_are_filled_as_pycocotools_does():
  script, arrays = golden('rle')
  for box, size, checksum in zip(*script.draw_boxes(), arrays['boxes']):
    assert zlib.crc32(polygons.box_to_rle(box, size)['counts'].encode()) == checksum, (box, size)


def test_a_whole_box_is_filled_to_its_pixels():
  expected = np.zeros((10, 12), bool)
  expected[2:7, 3:9] = True
  np.testing.assert_array_equal(rle.decode(polygons.box_to_rle([3, 2, 9, 7], (10, 12))), expected)
  np.testing.assert_array_equal(polygons.rasterise([[3, 2, 9, 2, 9, 7, 3, 7]], (10, 12)), expected)


def test_direction_and_first_corner_do_not_matter():
  for given, size in golden('rle')[0].draw_polygons(seed=13, count=30):
    points = [np.reshape(polygon, (-1, 2)) for polygon in given]
    expected = polygons.rasterise(given, size)
    np.testing.assert_array_equal(polygons.rasterise([np.roll(p, 1, axis=0) for p in points], size), expected)
    np.testing.assert_array_equal(polygons.rasterise([p[::-1] for p in points], size), expected)


def test_polygons_are_united_and_one_that_covers_itself_twice_is_not():
  square = [2, 2, 8, 2, 8, 8, 2, 8]
  assert polygons.rasterise([square, square], (10, 10)).sum() == 36
  assert polygons.rasterise([square * 2], (10, 10)).sum() == 0


def test_a_polygon_around_the_image_fills_it_and_one_beside_it_nothing():
  far = 1e12  # a walk along its boundary would never end
  assert polygons.rasterise([[-far, -far, far, -far, far, far, -far, far]], (5, 7)).all()
  assert not polygons.rasterise([[8, 0, far, 0, far, far, 8, far]], (5, 7)).any()
  assert polygons.rasterise([TRIANGLE], (0, 7)).shape == (0, 7)


@pytest.mark.parametrize(('given', 'message'), [
    ([], r'polygons: got an empty list; give a list'),
    (TRIANGLE, r'polygons: polygon 0 has shape \(\); give a list of'),
    ({'counts': [1]}, r'polygons: got dict'),
    ([TRIANGLE, TRIANGLE + [3]], r'polygons: polygon 1 has 7 numbers; give x and y of three points'),
    ([[1, 1, 5, 5]], r'polygons: polygon 0 has 4 numbers'),
    ([[]], r'polygons: polygon 0 has 0 numbers'),
    ([TRIANGLE, [1, 2, 3, np.nan, 5, 6]], r'polygons: number 3 of polygon 1 is nan'),
    ([[1, 2, 3, 'x', 5, 6]], r'polygons: polygon 0 is not made of numbers'),
    (np.zeros((1, 4, 3)), r'polygons: polygon 0 has shape \(4, 3\)'),
])
def test_polygons_that_are_none_are_refused_by_number(given, message):
  with pytest.raises(ValueError, match=message):
    polygons.rasterise(given, (10, 10))


def test_a_size_or_a_box_that_is_none_is_refused():
  with pytest.raises(ValueError, match=r'polygons: size is \(10,\); give \(h, w\)'):
    polygons.rasterise([TRIANGLE], (10,))
  with pytest.raises(ValueError, match=r'box_to_rle: box has shape \(2, 4\)'):
    polygons.box_to_rle(np.zeros((2, 4)), (10, 10))
