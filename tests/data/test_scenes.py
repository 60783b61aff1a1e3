"""Composed scenes: what the issue asks of each, proved over some hundred of them."""

import hashlib
import pickle

import numpy as np
import pytest

from vision_jax.data.digits import digit_rasters
from vision_jax.data.scenes import INK_ALPHA, DigitScenes, paint_scene, warp_raster

FIRST_TEN = 'a7c00c633742c7d48dc67998a71b0ce1e9bbc042cca7bce1cac88828275e2e2d'
COUNT = 300


@pytest.fixture(scope='module')
def plans():
  return [DigitScenes('train').plan(i)[0] for i in range(COUNT)]


@pytest.fixture(scope='module')
def samples():
  source = DigitScenes('val')
  return [source[i] for i in range(100)]


def tight_box(mask):
  rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  return [cols[0], rows[0], cols[-1] + 1, rows[-1] + 1]


def test_the_first_ten_scenes_are_pinned_to_the_byte():
  digest = hashlib.sha256()
  source = DigitScenes('val')
  for i in range(10):
    sample = source[i]
    for name in ('image', 'boxes', 'labels', 'masks'):
      digest.update(np.ascontiguousarray(sample[name]).tobytes())
  assert digest.hexdigest() == FIRST_TEN


def test_a_scene_depends_on_seed_split_and_index_alone():
  one, other = DigitScenes('val', size=3), DigitScenes('val', size=50)
  other[7]
  for name, value in one[2].items():
    np.testing.assert_array_equal(value, other[2][name])
  images = [DigitScenes(*a, seed=s)[i]['image'] for a, s, i in ((['val'], 0, 2), (['train'], 0, 2), (['val'], 1, 2), (
      ['val'], 0, 1))]
  assert len({image.tobytes() for image in images}) == 4


def test_scenes_have_0_to_8_digits_and_one_in_ten_has_none(plans):
  counts = np.array([len(scene.digits) for scene in plans])
  assert set(counts) == set(range(9))
  # 0.1 of 300 draws has a deviation of 0.017; three of them either way.
  assert 0.05 <= (counts == 0).mean() <= 0.15


def test_scale_turn_and_contrast_fill_their_ranges_and_stay_inside(plans):
  digits = [digit for scene in plans for digit in scene.digits]
  for values, low, high in (([d.scale for d in digits], 1.8, 4.5), ([d.turn for d in digits], -25, 25),
                            ([d.contrast for d in digits], 0.35, 1.0)):
    assert low <= min(values) < low + 0.05 * (high - low)
    assert high - 0.05 * (high - low) < max(values) <= high
  assert {d.label for d in digits} == set(range(10))


def test_a_digit_is_as_large_and_as_turned_as_its_plan_says():
  # A bar of 2 x 6 raster pixels: bilinear and cubic edges move the threshold's contour by less than a pixel.
  raster = np.zeros((8, 8))
  raster[1:7, 3:5] = 16
  x1, y1, x2, y2 = tight_box(warp_raster(raster, 4.0, 0.0) >= 0.5)
  assert abs((x2 - x1) - 8) <= 1 and abs((y2 - y1) - 24) <= 1
  ys, xs = np.nonzero(warp_raster(raster, 4.0, 20.0) >= 0.5)
  values, vectors = np.linalg.eigh(np.cov(np.stack([xs, ys])))
  along = vectors[:, values.argmax()]
  assert abs(abs(np.degrees(np.arctan2(along[0], along[1]))) - 20) < 1.5


def test_contrast_is_the_share_of_the_way_from_ground_to_ink(plans):
  scene = next(scene for scene in plans if len(scene.digits) == 1)
  digit = scene.digits[0]
  without = paint_scene(np.random.default_rng(0), scene._replace(digits=())).astype(float)
  painted = paint_scene(np.random.default_rng(0), scene).astype(float)
  y, x = np.unravel_index(digit.alpha.argmax(), digit.alpha.shape)
  pixel = (y + digit.corner[1], x + digit.corner[0])
  expected = without[pixel] + digit.contrast * digit.alpha.max() * (np.array(digit.colour) - without[pixel])
  np.testing.assert_allclose(painted[pixel], expected, atol=1.01)  # both pictures are rounded


def test_no_two_boxes_overlap_by_more_than_a_quarter(plans):
  for scene in plans:
    boxes = np.array([d.box for d in scene.digits], float).reshape(-1, 4)
    low, high = np.maximum(boxes[:, None, :2], boxes[None, :, :2]), np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    inter = np.maximum(high - low, 0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    iou = inter / (area[:, None] + area - inter)
    assert (iou[~np.eye(len(boxes), dtype=bool)] <= 0.25).all()


def test_a_box_is_the_tight_box_of_its_mask_and_lies_on_the_canvas(samples):
  for sample in samples:
    assert sample['boxes'].dtype == np.float32 and sample['labels'].dtype == np.int32 and sample['masks'].dtype == bool
    assert len(sample['boxes']) == len(sample['labels']) == len(sample['masks'])
    for box, mask in zip(sample['boxes'], sample['masks']):
      assert box.tolist() == tight_box(mask)


def test_a_mask_is_the_ink_of_its_digit():
  source = DigitScenes('train')
  for i in range(20):
    scene, masks = source.plan(i)[0], source.target(i)['masks']
    for digit, mask in zip(scene.digits, masks):
      alpha = warp_raster(digit_rasters('train')[0][digit.source], digit.scale, digit.turn)
      assert mask.sum() == (alpha >= INK_ALPHA).sum() > 30  # all of it, the hidden part too
      x1, y1 = np.array(digit.box[:2]) - digit.corner
      h, w = digit.box[3] - digit.box[1], digit.box[2] - digit.box[0]
      seen = mask[digit.box[1]:digit.box[3], digit.box[0]:digit.box[2]]
      np.testing.assert_array_equal(seen, alpha[y1:y1 + h, x1:x1 + w] >= INK_ALPHA)


def test_at_least_70_percent_of_every_digit_stays_visible(samples):
  for sample in samples:
    masks = sample['masks']
    for k, mask in enumerate(masks):
      covered = masks[k + 1:].any(0) & mask
      assert covered.sum() <= 0.3 * mask.sum()


def test_the_semantic_map_is_the_masks_with_later_digits_on_top(samples):
  source = DigitScenes('val', annotation='semantic')
  for i in range(30):
    expected = np.zeros((96, 128), np.int32)
    for label, mask in zip(samples[i]['labels'], samples[i]['masks']):
      expected[mask] = label + 1
    sample = source[i]
    np.testing.assert_array_equal(sample['segmentation'], expected)
    np.testing.assert_array_equal(sample['image'], samples[i]['image'])
    assert sample['segmentation'].dtype == np.int32 and sample['pixels_valid'].all()
  assert source.classes.names == ('background', *'0123456789') and source.fields == ('segmentation', 'pixels_valid')


def test_train_and_val_share_no_digit():
  for split, digits in (('train', 1437), ('val', 360)):
    source = DigitScenes(split, size=COUNT)
    rasters, labels = digit_rasters(split)
    used = [d for i in range(COUNT) for d in source.plan(i)[0].digits]
    assert max(d.source for d in used) < digits == len(rasters)
    assert all(labels[d.source] == d.label for d in used)


def test_a_scene_without_digits_has_empty_arrays_and_still_clutter_and_noise(samples):
  sample = next(s for s in samples if not len(s['labels']))
  assert sample['boxes'].shape == (0, 4) and sample['labels'].shape == (0,) and sample['masks'].shape == (0, 96, 128)
  assert all(s['image'].std() > 1 for s in samples)
  assert len({s['image'].tobytes() for s in samples}) == len(samples)


def test_ground_has_noise_a_gradient_and_clutter():
  noise, gradient, clutter = [], [], []
  source = DigitScenes('train')
  for i in range(60):
    scene, rng = source.plan(i)
    grey = paint_scene(rng, scene._replace(digits=())).mean(-1)
    noise.append(np.median(np.abs(np.diff(grey, axis=1))))
    blocks = np.median(grey.reshape(6, 16, 8, 16).transpose(0, 2, 1, 3).reshape(6, 8, -1), axis=-1)
    gradient.append(blocks.max() - blocks.min())
    clutter.append(np.abs(grey - np.repeat(np.repeat(blocks, 16, 0), 16, 1)).max() / grey.std())
  assert min(noise) > 0.2 and max(noise) > 2
  assert max(gradient) > 20
  assert np.median(clutter) > 2  # something stands out of the blocks' medians by more than the picture's deviation


@pytest.mark.parametrize('canvas', [(48, 48), (128, 96), (200, 320)])
def test_other_canvases_hold_whole_scenes(canvas):
  source = DigitScenes('val', canvas=canvas)
  for i in range(10):
    sample = source[i]
    assert sample['image'].shape == (*canvas, 3) and sample['masks'].shape[1:] == canvas
    for box, mask in zip(sample['boxes'], sample['masks']):
      assert box.tolist() == tight_box(mask)


@pytest.mark.parametrize('annotation', ['boxes', 'semantic'])
def test_a_cached_scene_equals_a_rendered_one_and_cannot_be_spoilt(annotation):
  plain, cached = (DigitScenes('val', annotation=annotation, cache=c) for c in (False, True))
  for i in (0, 3, 13):
    first = cached[i]
    for array in first.values():
      if array.flags.writeable:
        array[...] = 0
    for name, value in plain[i].items():
      np.testing.assert_array_equal(cached[i][name], value)
      assert cached[i][name].dtype == value.dtype
    for name, value in plain.target(i).items():
      np.testing.assert_array_equal(cached.target(i)[name], value)


def test_the_cache_stays_within_its_stated_memory_and_is_not_pickled():
  source = DigitScenes('val', cache=True)
  for i in range(20):
    source[i]
  sizes = [sum(array.nbytes for array in packed.values()) for packed in source._cache.values()]
  assert max(sizes) <= 4 * 96 * 128 + 1000
  copy = pickle.loads(pickle.dumps(source))
  assert not copy._cache and len(pickle.dumps(source)) < 200_000
  np.testing.assert_array_equal(copy[4]['image'], source[4]['image'])


def test_dark_ink_inverts_the_scene_and_leaves_the_truth():
  light, dark = DigitScenes('val')[2], DigitScenes('val', dark_ink=1.0)[2]
  np.testing.assert_array_equal(dark['image'], 255 - light['image'])
  np.testing.assert_array_equal(dark['boxes'], light['boxes'])


def test_default_sizes_and_ends():
  assert len(DigitScenes('train')) == 4000 and len(DigitScenes('val')) == 200 and len(DigitScenes('val', size=7)) == 7
  with pytest.raises(IndexError, match='scene 7 of 7'):
    DigitScenes('val', size=7)[7]


@pytest.mark.parametrize('options, message', [
    ({'canvas': (40, 128)}, r'canvas \(40, 128\) is too small .* at least 48 pixels'),
    ({'annotation': 'masks'}, r"no annotation 'masks'; known: boxes, semantic"),
    ({'size': -1}, 'size -1, seed 0'),
    ({'seed': -2}, 'size and seed are at least 0'),
    ({'dark_ink': 2}, 'dark_ink is in 0..1'),
])
def test_wrong_options_are_refused_in_one_line(options, message):
  with pytest.raises(ValueError, match=message) as caught:
    DigitScenes('val', **options)
  assert '\n' not in str(caught.value)
