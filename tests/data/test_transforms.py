"""Resize policies, augmentations and normalisation on samples that are not square."""

import copy

import numpy as np
import pytest

from vision_jax.data.scenes import DigitScenes
from vision_jax.data.transforms import AUGMENTATIONS, RESIZES, boxes_of_masks, compose, crop, letterbox, normalise, warp

RNG = np.random.default_rng


def scene(h=40, w=60, boxes=((10, 5, 30, 25), (40, 20, 50, 38))):
  """White rectangles on black, with masks, a segmentation of the same pixels, and labels that tell the boxes apart."""
  masks = np.zeros((len(boxes), h, w), bool)
  for mask, (x1, y1, x2, y2) in zip(masks, boxes):
    mask[y1:y2, x1:x2] = True
  image = np.repeat(masks.any(0)[..., None] * np.uint8(255), 3, -1)
  segmentation = np.zeros((h, w), np.int32)
  for k, mask in enumerate(masks):
    segmentation[mask] = k + 1
  return {'image': image, 'boxes': np.array(boxes, np.float32).reshape(-1, 4), 'masks': masks,
          'labels': np.arange(len(boxes), dtype=np.int32) + 1, 'segmentation': segmentation,
          'pixels_valid': np.ones((h, w), bool)}


def without(sample, *names):
  return {name: value for name, value in sample.items() if name not in names}


def assert_in_step(sample):
  """Masks, boxes, labels and segmentation still speak of the same pixels."""
  h, w = sample['image'].shape[:2]
  assert len(sample['boxes']) == len(sample['labels']) == len(sample['masks'])
  assert sample['masks'].shape[1:] == sample['segmentation'].shape == sample['pixels_valid'].shape == (h, w)
  for label, mask in zip(sample['labels'], sample['masks']):
    np.testing.assert_array_equal(sample['segmentation'] == label, mask)


# --- resize ---------------------------------------------------------------------------------------------------------


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


def test_letterbox_puts_the_whole_image_at_the_top_left_and_zeros_elsewhere():
  sample = letterbox({**scene(), 'image': np.full((40, 60, 3), 200, np.uint8)}, (64, 64))
  assert sample['image_size'].tolist() == [43, 64] and sample['offset'].tolist() == [0, 0]
  np.testing.assert_allclose(sample['scale'], [64 / 60, 43 / 40])
  assert (sample['image'][:43] == 200).all() and not sample['image'][43:].any()
  assert sample['pixels_valid'][:43].all() and not sample['pixels_valid'][43:].any()
  assert not sample['masks'][:, 43:].any()


def test_warp_fills_the_canvas():
  sample = warp(scene(), (80, 30))
  assert sample['image_size'].tolist() == [80, 30] and sample['scale'].tolist() == [0.5, 2.0]


def test_crop_keeps_the_middle_and_drops_what_it_cuts_off():
  boxes = ((0, 5, 9, 25), (0, 5, 12, 25), (0, 5, 14, 25), (20, 5, 40, 25))
  sample = crop(without(scene(boxes=boxes), 'masks', 'segmentation', 'pixels_valid'), (40, 40))
  assert sample['offset'].tolist() == [-10, 0] and sample['scale'].tolist() == [1, 1]
  # 0 of 9, 2 of 12 and 4 of 14 columns stay: only the last reaches a quarter.
  assert sample['labels'].tolist() == [3, 4]
  assert sample['boxes'].tolist() == [[0, 5, 4, 25], [10, 5, 30, 25]]


@pytest.mark.parametrize('policy', list(RESIZES))
def test_any_image_size_fits_any_canvas(policy):
  rng = RNG(0)
  for _ in range(300):
    h, w, *canvas = (int(side) for side in rng.integers(1, 70, size=4))
    moved = RESIZES[policy](scene(h, w, boxes=((0, 0, w, h),)), tuple(canvas))
    assert moved['image'].shape == (*canvas, 3) and moved['masks'].shape[1:] == tuple(canvas)
    assert np.isfinite(moved['boxes']).all() and (moved['image_size'] >= 1).all()


def test_an_image_that_fits_is_not_resampled():
  image = RNG(0).integers(0, 256, (40, 60, 3), np.uint8)
  for policy in RESIZES.values():
    assert policy({'image': image}, (40, 60))['image'] is image


def test_shrinking_averages_instead_of_skipping():
  stripes = np.zeros((32, 32, 3), np.uint8)
  stripes[:, ::2] = 200
  shrunk = warp({'image': stripes}, (8, 8))['image'][2:-2, 2:-2]
  assert abs(shrunk.astype(int) - 100).max() <= 4  # a triangle over 8 columns leaves little of the stripes


@pytest.mark.parametrize('policy', list(RESIZES))
def test_segmentation_keeps_large_and_negative_labels(policy):
  sample = {**scene(), 'segmentation': np.where(scene()['segmentation'] > 0, 70000, -1).astype(np.int32)}
  moved = RESIZES[policy](sample, (30, 45))
  assert set(np.unique(moved['segmentation'])) == {-1, 70000} and moved['segmentation'].dtype == np.int32


@pytest.mark.parametrize('count', [0, 1, 8, 9, 17])
def test_any_number_of_masks_survives(count):
  sample = scene(boxes=tuple((2 * k, k, 2 * k + 10, k + 12) for k in range(count)))
  for policy in RESIZES.values():
    moved = policy(sample, (80, 120))  # twice the size, so that nearest repeats each pixel
    np.testing.assert_array_equal(moved['masks'], sample['masks'].repeat(2, 1).repeat(2, 2))


# --- augmentations --------------------------------------------------------------------------------------------------

STRONG = {
    'shift': {'pixels': 30},
    'flip': {'probability': 0.5},
    'affine': {'degrees': 30, 'scale': (0.7, 1.4), 'translate': 0.4, 'shear': 10},
    'brightness_contrast': {'brightness': 0.3, 'contrast': 0.5},
    'noise': {'deviation': 20},
}


def test_every_augmentation_is_tried_here():
  assert set(STRONG) == set(AUGMENTATIONS)


@pytest.mark.parametrize('name', list(STRONG))
def test_an_augmentation_is_a_pure_function_of_generator_and_sample(name):
  sample = scene()
  before = copy.deepcopy(sample)
  results = [AUGMENTATIONS[name](RNG(3), sample, **STRONG[name]) for _ in range(2)]
  for field in sample:
    np.testing.assert_array_equal(sample[field], before[field])
    np.testing.assert_array_equal(results[0][field], results[1][field])
    assert results[0][field].dtype == sample[field].dtype
  others = [AUGMENTATIONS[name](RNG(seed), sample, **STRONG[name])['image'].tobytes() for seed in range(8)]
  assert len(set(others)) > 1


@pytest.mark.parametrize('name', list(STRONG))
def test_image_boxes_labels_masks_and_segmentation_move_together(name):
  dropped = 0
  for seed in range(60):
    moved = AUGMENTATIONS[name](RNG(seed), scene(), **STRONG[name])
    dropped += 2 - len(moved['labels'])
    if len(moved['labels']) == 2:
      assert_in_step(moved)
      # Bilinear image and nearest masks differ by less than the rim of the objects.
      bright = moved['image'][..., 0] > 127
      if name in ('shift', 'flip', 'affine'):
        assert (bright != moved['masks'].any(0)).sum() <= 40
    for box, mask in zip(moved['boxes'], moved['masks']):
      np.testing.assert_array_equal(box, boxes_of_masks(mask[None])[0])
  assert (dropped > 0) == (name in ('shift', 'affine'))


@pytest.mark.parametrize('name', ['shift', 'flip', 'affine'])
def test_without_masks_a_moved_box_encloses_the_object(name):
  for seed in range(40):
    full = AUGMENTATIONS[name](RNG(seed), scene(), **STRONG[name])
    bare = AUGMENTATIONS[name](RNG(seed), without(scene(), 'masks'), **STRONG[name])
    np.testing.assert_array_equal(full['image'], bare['image'])
    for label, box in zip(full['labels'], full['boxes']):
      if label in bare['labels']:
        outer = bare['boxes'][list(bare['labels']).index(label)]
        # A pixel whose middle is inside may stick out by half.
        assert (outer[:2] <= box[:2] + 0.51).all() and (outer[2:] >= box[2:] - 0.51).all()
    assert (bare['boxes'] >= 0).all() and (bare['boxes'] <= [60, 40, 60, 40]).all()


def test_affine_turns_points_by_the_matrix_that_it_drew():
  # A small square far from the middle is moved to where the rotation says, to half a pixel.
  sample = scene(81, 121, boxes=((90, 38, 95, 43),))
  for seed in range(10):
    turn = np.radians(RNG(seed).uniform(-1, 1, size=2)[0] * 20)
    moved = AUGMENTATIONS['affine'](RNG(seed), sample, degrees=20)
    centre = np.array([92.5, 40.5]) - [60.5, 40.5]
    expected = [np.cos(turn) * centre[0] + 60.5, np.sin(turn) * centre[0] + 40.5]
    ys, xs = np.nonzero(moved['masks'][0])
    np.testing.assert_allclose([xs.mean() + 0.5, ys.mean() + 0.5], expected, atol=0.5)
    weight = moved['image'][..., 0].astype(float)
    yy, xx = np.mgrid[:81, :121] + 0.5
    middle = [(xx * weight).sum() / weight.sum(), (yy * weight).sum() / weight.sum()]
    np.testing.assert_allclose(middle, expected, atol=0.1)


def test_a_neutral_affine_changes_nothing():
  sample = {**scene(), 'image': RNG(0).integers(0, 256, (40, 60, 3), np.uint8)}
  moved = AUGMENTATIONS['affine'](RNG(0), sample)
  for field in sample:
    np.testing.assert_array_equal(moved[field], sample[field])


def test_shift_reaches_its_most_in_both_axes_and_both_ways():
  sample = scene(boxes=((20, 15, 30, 25),))
  steps = {tuple((AUGMENTATIONS['shift'](RNG(s), sample, pixels=2)['boxes'][0] - sample['boxes'][0])[:2].astype(int))
           for s in range(300)}
  assert steps == {(x, y) for x in range(-2, 3) for y in range(-2, 3)}


def test_a_shift_beyond_the_image_leaves_the_fill():
  sample = scene(6, 4, boxes=((0, 0, 4, 6),))
  for seed in range(20):
    moved = AUGMENTATIONS['shift'](RNG(seed), sample, pixels=100, fill=7)
    assert (moved['image'] == 7).all() or len(moved['labels'])


def test_what_an_augmentation_opens_is_filled_and_not_valid():
  sample = {**scene(), 'image': np.full((40, 60, 3), (10, 100, 200), np.uint8)}
  for name in ('shift', 'affine'):
    moved = AUGMENTATIONS[name](RNG(1), sample, **STRONG[name], fill='mean')
    assert (moved['image'] == (10, 100, 200)).all()
    filled = AUGMENTATIONS[name](RNG(1), sample, **STRONG[name], fill=33)
    opened = (filled['image'] == 33).all(-1)
    assert opened.any()
    assert ((~filled['pixels_valid']) == opened).mean() > 0.98  # nearest and bilinear differ on the rim


def test_an_object_goes_when_less_than_a_quarter_of_its_mask_stays():
  boxes = ((0, 0, 20, 4), (0, 10, 20, 14))
  sample = scene(20, 40, boxes=boxes)
  sample['masks'][0, :, 4:] = False  # most of the first object's ink is at the left edge, its box alone is wide
  for seed in range(50):
    step = RNG(seed).integers(-12, 13, size=2)
    moved = AUGMENTATIONS['shift'](RNG(seed), sample, pixels=12)
    if step[0] < -4 and abs(step[1]) <= 2:
      assert 1 not in moved['labels'] and 2 in moved['labels']
      break
  else:
    pytest.fail('no seed moved the objects as wanted')


def test_brightness_and_contrast_follow_their_formula():
  image = RNG(0).integers(60, 180, (20, 30, 3), np.uint8)
  moved = AUGMENTATIONS['brightness_contrast'](RNG(5), {'image': image}, brightness=0.1, contrast=0.3)['image']
  b, c = RNG(5).uniform(-1, 1, size=2) * (25.5, 0.3)
  mean = image.mean()
  np.testing.assert_allclose(moved, np.clip((image - mean) * (1 + c) + mean + b, 0, 255), atol=0.501)


def test_noise_has_no_mean_and_a_deviation_up_to_the_one_given():
  image = np.full((60, 80, 3), 128, np.uint8)
  deviations = []
  for seed in range(30):
    difference = AUGMENTATIONS['noise'](RNG(seed), {'image': image}, deviation=10.0)['image'].astype(float) - 128
    assert abs(difference.mean()) < 0.5  # 14,400 pixels of deviation 10: 0.08, six times
    deviations.append(difference.std())
  assert 5 < max(deviations) < 10.5 and min(deviations) < 3


def test_augmentations_keep_out_of_the_padding():
  run = compose(tuple((name, {**options}) for name, options in STRONG.items()))
  sample = letterbox({**scene(), 'image': np.full((40, 60, 3), 255, np.uint8)}, (64, 64))
  for seed in range(10):
    moved = run(RNG(seed), sample)
    h = moved['image_size'][0]
    assert moved['image'].shape == (64, 64, 3) and not moved['image'][h:].any()
    assert not moved['masks'][:, h:].any() and not moved['pixels_valid'][h:].any()
    assert (moved['boxes'][:, [1, 3]] <= h).all()


def test_augmented_scenes_keep_boxes_tight_around_masks():
  source = DigitScenes('val')
  run = compose((('flip', {}), ('affine', {'degrees': 10, 'scale': (0.8, 1.2), 'translate': 0.1, 'fill': 'mean'})))
  for i in range(30):
    moved = run(RNG(i), letterbox(source[i], (96, 128)))
    np.testing.assert_array_equal(moved['boxes'], boxes_of_masks(moved['masks']))
    assert len(moved['boxes']) == len(moved['labels'])


@pytest.mark.parametrize('augment, message', [
    ((('rotate', {}),), "unknown augmentation 'rotate'"),
    ((('shift', {'pixel': 3}),), r"augmentation shift has no option 'pixel'; did you mean pixels\?"),
    (('flip',), r"augment has 'flip'; give \(name, options\) pairs"),
])
def test_a_wrong_augmentation_is_answered_in_one_line(augment, message):
  with pytest.raises(ValueError, match=message) as caught:
    compose(augment)
  assert '\n' not in str(caught.value)


def test_wrong_fills_and_scales_are_refused():
  with pytest.raises(ValueError, match=r"fill is 'edge'; give a grey level 0..255 or 'mean'"):
    AUGMENTATIONS['shift'](RNG(0), scene(), fill='edge')
  with pytest.raises(ValueError, match='no range of positive factors'):
    AUGMENTATIONS['affine'](RNG(0), scene(), scale=(0.0, 1.0))


# --- normalisation --------------------------------------------------------------------------------------------------


def test_normalise_is_the_formula_on_the_content_and_zero_on_the_padding():
  image = RNG(0).integers(0, 256, (9, 7, 3), np.uint8)
  mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  expected = (image / 255 - np.array(mean)) / np.array(std)
  np.testing.assert_allclose(normalise(image, mean, std), expected, atol=1e-5)
  content = normalise(image, mean, std, image_size=(5, 4))
  np.testing.assert_allclose(content[:5, :4], expected[:5, :4], atol=1e-5)
  assert content.dtype == np.float32 and not content[5:].any() and not content[:, 4:].any()
