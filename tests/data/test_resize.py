"""Resize policies on samples that are not square: Pillow's pixels, and everything else in step with them."""

import numpy as np
from PIL import Image
import pytest

from tests.data.rectangles import assert_in_step, scene, without
from vision_jax.data.resize import RESIZES, crop, letterbox, resize_crop, resize_image, resize_policy, warp
from vision_jax.data.samples import boxes_of_masks

RNG = np.random.default_rng
KINDS = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}


def random_image(h, w, seed=0):
  return RNG(seed).integers(0, 256, (h, w, 3), np.uint8)


# --- every policy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('canvas', [(40, 60), (80, 90), (20, 64), (64, 20), (31, 47), (120, 180)])
@pytest.mark.parametrize('policy', list(RESIZES))
def test_original_times_scale_plus_offset_is_where_the_content_lies(policy, canvas):
  sample = scene()
  moved = RESIZES[policy](sample, canvas)
  assert moved['image'].shape == (*canvas, 3) and moved['image'].dtype == np.uint8
  assert moved['original_size'].tolist() == [40, 60]
  h, w = moved['image_size']
  for label, box in zip(moved['labels'], moved['boxes']):
    original = sample['boxes'][label - 1]
    expected = original * np.tile(moved['scale'], 2) + np.tile(moved['offset'], 2)
    np.testing.assert_allclose(box, np.clip(expected, 0, [w, h, w, h]), atol=1e-4)
  # Half grey is where a resampled edge of a box lies; nearest masks agree with it to a pixel.
  bright = moved['image'][..., 0] > 127
  for mask, box in zip(moved['masks'], moved['boxes']):
    np.testing.assert_allclose(boxes_of_masks(mask[None])[0], box, atol=1.0)
  for box in moved['boxes']:
    x1, y1, x2, y2 = np.rint(box).astype(int)
    inside = bright[y1 + 1:y2 - 1, x1 + 1:x2 - 1]
    assert inside.all()
  kept = np.isin(sample['labels'], moved['labels'])
  if kept.all():
    assert_in_step(moved)
    assert abs(int(bright.sum()) - int(moved['masks'].any(0).sum())) <= 0.1 * bright.sum() + 12


@pytest.mark.parametrize('policy', list(RESIZES))
def test_any_image_size_fits_any_canvas(policy):
  rng = RNG(0)
  for _ in range(200):
    h, w, *canvas = (int(side) for side in rng.integers(1, 70, size=4))
    moved = RESIZES[policy](scene(h, w, boxes=((0, 0, w, h),)), tuple(canvas))
    assert moved['image'].shape == (*canvas, 3) and moved['masks'].shape[1:] == tuple(canvas)
    assert np.isfinite(moved['boxes']).all() and (moved['image_size'] >= 1).all()
    assert (moved['image_size'] <= canvas).all()


@pytest.mark.parametrize('policy', [letterbox, warp, crop])
def test_an_image_that_fits_is_not_resampled(policy):
  image = random_image(40, 60)
  assert policy({'image': image}, (40, 60))['image'] is image


@pytest.mark.parametrize('policy', list(RESIZES))
def test_segmentation_keeps_large_and_negative_labels(policy):
  sample = {**scene(), 'segmentation': np.where(scene()['segmentation'] > 0, 70000, -1).astype(np.int32)}
  moved = RESIZES[policy](sample, (30, 45))
  assert set(np.unique(moved['segmentation'])) == {-1, 70000} and moved['segmentation'].dtype == np.int32


@pytest.mark.parametrize('count', [0, 1, 8, 9, 17])
def test_any_number_of_masks_survives(count):
  sample = scene(boxes=tuple((2 * k, k, 2 * k + 10, k + 12) for k in range(count)))
  for policy in (letterbox, warp, crop):
    moved = policy(sample, (80, 120))  # twice the size, so that nearest repeats each pixel
    np.testing.assert_array_equal(moved['masks'], sample['masks'].repeat(2, 1).repeat(2, 2))


@pytest.mark.parametrize('policy', list(RESIZES))
def test_a_policy_changes_nothing_in_the_sample_it_is_given(policy):
  sample = scene()
  RESIZES[policy](sample, (23, 31))
  for name, value in scene().items():
    np.testing.assert_array_equal(sample[name], value)


# --- Pillow to the bit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('interpolation', KINDS)
@pytest.mark.parametrize('size', [(20, 33), (90, 41), (31, 100)])
def test_resampling_is_pillows_to_the_last_bit(size, interpolation):
  image = random_image(47, 61)
  expected = np.asarray(Image.fromarray(image).resize(size[::-1], KINDS[interpolation]))
  np.testing.assert_array_equal(resize_image(image, size, interpolation=interpolation), expected)
  np.testing.assert_array_equal(warp({'image': image}, size, interpolation=interpolation)['image'], expected)
  content = letterbox({'image': image}, size, interpolation=interpolation)
  h, w = content['image_size']
  expected = np.asarray(Image.fromarray(image).resize((w, h), KINDS[interpolation]))
  np.testing.assert_array_equal(content['image'][:h, :w], expected)


@pytest.mark.parametrize('interpolation', KINDS)
@pytest.mark.parametrize('size, shorter, scaled, canvas, corner', [
    ((37, 61), 24, (24, 39), (21, 21), (2, 9)),  # 24 * 61 / 37 = 39.57 is cut; (24 - 21) / 2 = 1.5 goes to the even 2
    ((61, 37), 24, (39, 24), (20, 19), (10, 2)),  # 9.5 and 2.5 too
    ((50, 50), 32, (32, 32), (28, 20), (2, 6)),
    ((20, 33), 40, (40, 66), (32, 41), (4, 12)),  # enlarged
])
def test_resize_crop_is_torchvisions_resize_and_centre_crop_to_the_last_bit(size, shorter, scaled, canvas, corner,
                                                                            interpolation):
  image = random_image(*size)
  full = np.asarray(Image.fromarray(image).resize(scaled[::-1], KINDS[interpolation]))
  (y, x), (h, w) = corner, canvas
  sample = resize_crop({'image': image}, canvas, shorter_side=shorter, interpolation=interpolation)
  np.testing.assert_array_equal(sample['image'], full[y:y + h, x:x + w])
  assert sample['offset'].tolist() == [-x, -y] and sample['image_size'].tolist() == [h, w]
  np.testing.assert_allclose(sample['scale'], [scaled[1] / size[1], scaled[0] / size[0]], rtol=1e-6)


def test_resize_crop_takes_256_for_224_where_nothing_is_said():
  sample = resize_crop({'image': random_image(300, 400)}, (224, 224))
  np.testing.assert_allclose(sample['scale'], [341 / 400, 256 / 300], rtol=1e-6)
  assert sample['offset'].tolist() == [-58, -16]  # (341 - 224) / 2 = 58.5, to the even number


def test_resize_crop_stands_at_the_top_left_where_it_does_not_fill_the_canvas():
  sample = resize_crop({**scene(), 'image': np.full((40, 60, 3), 200, np.uint8)}, (50, 30), shorter_side=40)
  assert sample['image_size'].tolist() == [40, 30] and sample['offset'].tolist() == [-15, 0]
  assert (sample['image'][:40] == 200).all() and not sample['image'][40:].any()
  assert not sample['pixels_valid'][40:].any()


# --- each policy ----------------------------------------------------------------------------------------------------


def test_letterbox_puts_the_whole_image_at_the_top_left_and_zeros_elsewhere():
  sample = letterbox({**scene(), 'image': np.full((40, 60, 3), 200, np.uint8)}, (64, 64))
  assert sample['image_size'].tolist() == [43, 64] and sample['offset'].tolist() == [0, 0]
  np.testing.assert_allclose(sample['scale'], [64 / 60, 43 / 40])
  assert (sample['image'][:43] == 200).all() and not sample['image'][43:].any()
  assert sample['pixels_valid'][:43].all() and not sample['pixels_valid'][43:].any()
  assert not sample['masks'][:, 43:].any()


@pytest.mark.parametrize('size, expected', [((60, 90), (80, 120)), ((90, 60), (120, 80)), ((40, 120), (44, 133))])
def test_letterbox_can_stop_at_a_shorter_side_as_detection_does(size, expected):
  sample = letterbox({'image': random_image(*size)}, (133, 133), shorter_side=80)
  assert tuple(sample['image_size']) == expected


def test_warp_fills_the_canvas():
  sample = warp(scene(), (80, 30))
  assert sample['image_size'].tolist() == [80, 30] and sample['scale'].tolist() == [0.5, 2.0]


@pytest.mark.parametrize('policy', [crop, lambda sample, canvas: resize_crop(sample, canvas, shorter_side=40)])
def test_a_crop_keeps_the_middle_and_drops_what_it_cuts_off(policy):
  boxes = ((0, 5, 9, 25), (0, 5, 12, 25), (0, 5, 14, 25), (20, 5, 40, 25))
  sample = policy(without(scene(boxes=boxes), 'masks', 'segmentation', 'pixels_valid'), (40, 40))
  assert sample['offset'].tolist() == [-10, 0] and sample['scale'].tolist() == [1, 1]
  # 0 of 9, 2 of 12 and 4 of 14 columns stay: only the last reaches a quarter.
  assert sample['labels'].tolist() == [3, 4]
  assert sample['boxes'].tolist() == [[0, 5, 4, 25], [10, 5, 30, 25]]


def test_shrinking_averages_instead_of_skipping():
  stripes = np.zeros((32, 32, 3), np.uint8)
  stripes[:, ::2] = 200
  shrunk = warp({'image': stripes}, (8, 8))['image'][2:-2, 2:-2]
  assert abs(shrunk.astype(int) - 100).max() <= 4  # a triangle over 8 columns leaves little of the stripes


# --- policies by name -----------------------------------------------------------------------------------------------


def test_a_policy_is_named_alone_or_with_options():
  image = random_image(30, 50)
  for resize, expected in (('crop', crop({'image': image}, (21, 25))),
                           (('warp', {'interpolation': 'bicubic'}), warp({'image': image}, (21, 25),
                                                                         interpolation='bicubic')),
                           (['resize_crop', {'shorter_side': 28}], resize_crop({'image': image}, (21, 25),
                                                                               shorter_side=28))):
    np.testing.assert_array_equal(resize_policy(resize)({'image': image}, (21, 25))['image'], expected['image'])


@pytest.mark.parametrize('resize, message', [
    ('letter', r"unknown resize policy 'letter'; did you mean letterbox\?"),
    (('warp', {'side': 3}), "resize policy warp has no option 'side'"),
    (('warp', {'interpolation': 'nearest'}), "unknown interpolation 'nearest'; known: bilinear, bicubic"),
    (('resize_crop', {'shorter_side': 0}), 'resize policy resize_crop: shorter_side is 0; give a whole number of at'),
    (('letterbox', {'shorter_side': 2.5}), 'resize policy letterbox: shorter_side is 2.5; give a whole number'),
    (('warp', 3), r"resize is \('warp', 3\); give a name or \(name, options\)"),
    (7, 'resize is 7; give a name or'),
])
def test_a_wrong_policy_is_answered_in_one_line(resize, message):
  with pytest.raises(ValueError, match=message) as caught:
    resize_policy(resize)
  assert '\n' not in str(caught.value)
