"""COCO's run lengths, byte for byte those of pycocotools."""

import json

import numpy as np
import pytest

from tests.golden_files import golden
from vision_jax.host import rle


def strings(name):
  return golden('rle')[1][name].item().decode().split(' ')


def test_masks_are_encoded_to_the_bytes_of_pycocotools_and_come_back():
  masks = golden('rle')[0].draw_masks()
  for mask, counts in zip(masks, strings('strings')):
    encoded = rle.encode(mask)
    assert encoded == {'size': list(mask.shape), 'counts': counts}
    lengths = rle.run_lengths(encoded).tolist()
    for read in (json.loads(json.dumps(encoded)), encoded | {'counts': counts.encode()}, encoded | {'counts': lengths}):
      decoded = rle.decode(read)
      assert decoded.dtype == bool
      np.testing.assert_array_equal(decoded, mask)
      assert rle.pack(read) == encoded


def test_area_and_box_are_those_of_pycocotools():
  _, arrays = golden('rle')
  for mask, area, (x, y, w, h) in zip(golden('rle')[0].draw_masks(), arrays['areas'], arrays['boxes_xywh']):
    encoded = rle.encode(mask)
    assert rle.area(encoded) == area
    assert rle.to_box(encoded).tolist() == [x, y, x + w, y + h]


def test_merging_is_that_of_pycocotools():
  groups = golden('rle')[0].draw_groups()
  for (masks, _), union, both in zip(groups, strings('unions'), strings('intersections')):
    encoded = [rle.encode(mask) for mask in masks]
    assert rle.merge(encoded)['counts'] == union
    assert rle.merge(encoded, intersect=True)['counts'] == both


def test_iou_is_that_of_pycocotools_with_crowds_too():
  found = []
  for masks, crowd in golden('rle')[0].draw_groups():
    encoded = [rle.encode(mask) for mask in masks]
    found.append(rle.iou(encoded, encoded, crowd=crowd).ravel())
  # A quotient of the same two whole numbers: not a bit differs.
  np.testing.assert_array_equal(np.concatenate(found), golden('rle')[1]['ious'])


def test_iou_of_different_lists_is_that_of_the_pixels():
  rng = np.random.default_rng(0)
  masks = rng.uniform(size=(7, 9, 11)) < rng.uniform(size=(7, 1, 1))
  masks[5] = False
  encoded = [rle.encode(mask) for mask in masks]
  expected = [[(a & b).sum() / max((a | b).sum(), 1) for b in masks[4:]] for a in masks[:4]]
  np.testing.assert_array_equal(rle.iou(encoded[:4], encoded[4:]), expected)
  assert rle.iou([], encoded).shape == (0, 7) and rle.iou(encoded, []).shape == (7, 0)


def test_runs_without_pixels_are_kept_when_packed_and_change_nothing_else():
  odd, even = {'size': [3, 4], 'counts': [2, 0, 1, 2, 0, 3, 4, 0]}, {'size': [3, 4], 'counts': [3, 5, 4]}
  assert rle.run_lengths(rle.pack(odd)).tolist() == odd['counts']
  np.testing.assert_array_equal(rle.decode(odd), rle.decode(even))
  assert rle.area(odd) == 5 and rle.to_box(odd).tolist() == rle.to_box(even).tolist()
  assert rle.merge([odd]) == rle.pack(even) and rle.iou([odd], [even]) == 1


def test_long_runs_are_packed_and_unpacked():
  rng = np.random.default_rng(1)
  for bits in range(1, 40):
    counts = rng.integers(0, 2**bits, 9)
    packed = rle.pack({'size': [1, int(counts.sum())], 'counts': counts})
    np.testing.assert_array_equal(rle.run_lengths(packed), counts)


def test_many_random_masks_agree_with_pycocotools():
  coco = pytest.importorskip('pycocotools.mask')
  for mask in golden('rle')[0].draw_masks(seed=11, count=150)[1:]:
    expected = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    assert rle.encode(mask)['counts'].encode() == expected['counts']
    assert coco.area(rle.encode(mask)) == mask.sum()  # it reads a str as well


def test_masks_without_pixels_are_run_lengths_of_nothing():
  for size in ((0, 4), (3, 0), (0, 0)):
    encoded = rle.encode(np.zeros(size, bool))
    assert rle.decode(encoded).shape == size and rle.area(encoded) == 0
    assert rle.to_box(encoded).tolist() == [0, 0, 0, 0] and rle.merge([encoded, encoded]) == encoded


def test_a_mask_of_255_is_read_and_probabilities_are_refused():
  assert rle.encode(np.uint8([[0, 255], [7, 0]])) == rle.encode(np.array([[False, True], [True, False]]))
  with pytest.raises(ValueError, match=r'encode: mask is float64 \(2, 2\); give bool'):
    rle.encode(np.zeros((2, 2)))
  with pytest.raises(ValueError, match=r'encode: mask is bool \(1, 2, 2\)'):
    rle.encode(np.zeros((1, 2, 2), bool))


@pytest.mark.parametrize(('given', 'message'), [
    ([[1, 1, 5, 1, 5, 5]], r'decode: run lengths are given as list; .*polygons go through'),
    ({'counts': '231'}, r"decode: run lengths are given as \['counts'\]"),
    ({'size': [2, 3], 'counts': [2, 3, 2]}, r'decode: the counts sum to 7, but size \[2, 3\] has 6 pixels; give'),
    # In 64 bits this sum wraps around to 6, and NumPy would write far outside of the mask.
    ({'size': [2, 3], 'counts': [2**63 - 1, 2**63 - 1, 8]}, r'decode: the counts sum to 18446744073709551622, but'),
    ({'size': [2, 3], 'counts': [8, -3, 1]}, r'decode: count 1 is -3'),
    ({'size': [2, 3], 'counts': [2.0, 3.0, 1.0]}, r'decode: counts are float64 \(3,\); give a string, or whole'),
    ({'size': [2, 3], 'counts': None}, r'decode: counts are object'),
    ({'size': [2, 3], 'counts': [[6]]}, r'decode: counts are int64 \(1, 1\)'),
    ({'size': [2, 3], 'counts': []}, r'decode: the counts sum to 0'),
    ({'size': [2, 3], 'counts': ''}, r'decode: the counts sum to 0'),
    ({'size': [2, 3], 'counts': '2é1'}, r"decode: character 1 of counts is b'\\xc3', none of 0 to o"),
    ({'size': [2, 3], 'counts': '2\ud8001'}, r"decode: character 1 of counts is b'\\xed', none of 0 to o"),
    ({'size': [2, 3], 'counts': '23q'}, r"decode: character 2 of counts is b'q'"),
    ({'size': [2, 3], 'counts': '23Q'}, r'decode: counts end within a number'),
    ({'size': [2, 3], 'counts': 'o' * 12 + '0'}, r'more than 12 characters'),
    ({'size': [2, 3, 1], 'counts': '231'}, r'decode: size is \[2, 3, 1\]; give \(h, w\)'),
    ({'size': [2.5, 3], 'counts': '231'}, r'decode: size is \[2.5, 3\]'),
])
def test_damaged_run_lengths_are_refused_by_name(given, message):
  with pytest.raises(ValueError, match=message):
    rle.decode(given)


def test_masks_of_different_sizes_do_not_mix():
  small, large = rle.encode(np.zeros((2, 3), bool)), rle.encode(np.zeros((3, 2), bool))
  with pytest.raises(ValueError, match=r'merge: mask 0 has size \[2, 3\] and mask 1 \[3, 2\]; give masks of one image'):
    rle.merge([small, large])
  with pytest.raises(ValueError, match=r'iou: mask 0 has size'):
    rle.iou([small], [large])
  with pytest.raises(ValueError, match=r'merge, mask 1: the counts sum to 5'):
    rle.merge([small, {'size': [2, 3], 'counts': [5]}])
  with pytest.raises(ValueError, match=r'iou: crowd has shape \(2,\) for 1 masks'):
    rle.iou([small], [small], crowd=np.zeros(2, bool))
  with pytest.raises(ValueError, match=r'merge: no run lengths'):
    rle.merge([])
