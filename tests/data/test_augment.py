"""Every augmentation and every mix keeps the same promises; and the way from a source's sample to the canvas."""

import numpy as np
from PIL import Image
import pytest

from tests.data.rectangles import assert_in_step, assert_sound, frozen, on_canvas, places, same, scene, without
from vision_jax.conventions import option_names
from vision_jax.data.augment import (
  AUGMENTATIONS,
  BEFORE_RESIZE,
  OPERATIONS,
  compose,
  gives_mixed_labels,
  operate,
  strength,
)
from vision_jax.data.mixing import MIXES
from vision_jax.data.resize import letterbox, warp
from vision_jax.data.samples import boxes_of_masks
from vision_jax.data.scenes import DigitScenes

RNG = np.random.default_rng
CANVAS = (64, 72)

# Name -> options under which it surely does something, and options under which it does nothing (None: there are none).
STRONG = {
    'random_resized_crop': {'scale': (0.3, 0.9)},
    'ssd_crop': {},
    'zoom_out': {'probability': 0.9},
    'shift': {'pixels': 30},
    'flip': {'probability': 0.5},
    'affine': {'degrees': 30, 'scale': (0.7, 1.4), 'translate': 0.4, 'shear': 10},
    'rotation': {'degrees': 50},
    'brightness_contrast': {'brightness': 0.3, 'contrast': 0.5},
    'colour_jitter': {'brightness': 0.5, 'contrast': 0.5, 'saturation': 0.5, 'hue': 0.5},
    'hsv': {},
    'noise': {'deviation': 20},
    'cutout': {'holes': 3, 'side': (0.2, 0.6)},
    'rand_augment': {'operations': 3, 'magnitude': 20},
    'mosaic': {},
    'mixup': {},
    'cutmix': {},
    'copy_paste': {'share': 0.7},
}
NEUTRAL = {
    'random_resized_crop': {'scale': (1.0, 1.0), 'ratio': (1.5, 1.5)},
    'ssd_crop': {'scale': (1.0, 1.0)},
    'zoom_out': {'ratio': (1.0, 1.0), 'probability': 1.0},
    'shift': {'pixels': 0},
    'flip': {'probability': 0.0},
    'affine': {},
    'rotation': {'degrees': 0.0},
    'brightness_contrast': {'brightness': 0.0, 'contrast': 0.0},
    'colour_jitter': {'brightness': 0.0, 'contrast': 0.0, 'saturation': 0.0, 'hue': 0.0},
    'hsv': {'hue': 0.0, 'saturation': 1.0, 'exposure': 1.0},
    'noise': {'deviation': 0.0},
    'cutout': {'holes': 0},
    'rand_augment': {'operations': 0},
    'mosaic': {'probability': 0.0},
    'mixup': {'probability': 0.0},
    'cutmix': {'probability': 0.0},
    'copy_paste': {'probability': 0.0},
}
WRONG = {  # one value that is out of range for every option
    'scale': (0.0, 1.0), 'ratio': (2.0, 1.0), 'min_ious': (1.5,), 'trials': 0, 'keep': 'all', 'probability': 1.5,
    'pixels': -1, 'degrees': -5, 'translate': -0.1, 'shear': 95, 'brightness': -1, 'contrast': 'much',
    'saturation': -0.5, 'hue': 0.7, 'exposure': 0.5, 'deviation': -2.0, 'holes': 1.5, 'side': (0.5, 1.5),
    'operations': -1, 'magnitude': 99, 'bins': 1, 'centre': (0.5, 1.1), 'alpha': 0, 'share': 2, 'fill': 'edge',
}
TABLES = {**AUGMENTATIONS, **MIXES}


def sample_for(name):
  """A sample that fits, and whose image shows every change of colour."""
  if name == 'cutmix':
    return {'image': scene()['image'], 'label': 4}
  sample = scene() if name not in MIXES else without(scene(), 'segmentation', 'pixels_valid')
  return {**sample, 'image': np.maximum(sample['image'] // 2, places(40, 60))}


def apply(name, seed, sample, **options):
  """The augmentation, or the mix with three other samples, on a canvas."""
  if name in AUGMENTATIONS:
    return AUGMENTATIONS[name](RNG(seed), sample, **options)
  further = [letterbox({**sample, 'image': sample['image'][::-1, ::-1]}, CANVAS)] * 3
  return MIXES[name](RNG(seed), sample, lambda count: further[:count], **options)


def placed(name, sample):
  return letterbox(sample, CANVAS) if name in MIXES else sample


# --- promises of all ------------------------------------------------------------------------------------------------


def test_every_augmentation_and_every_option_is_tried_here():
  assert set(STRONG) == set(NEUTRAL) == set(TABLES)
  assert {option for function in TABLES.values() for option in option_names(function)} == set(WRONG)


@pytest.mark.parametrize('name', list(TABLES))
def test_it_is_a_pure_function_of_generator_and_sample(name):
  sample = placed(name, sample_for(name))
  given = frozen(sample)
  results = [apply(name, 3, given, **STRONG[name]) for _ in range(2)]
  assert same(given, sample) and same(*results)
  for field in sample:
    assert np.asarray(results[0][field]).dtype == np.asarray(sample[field]).dtype
  others = [apply(name, seed, sample, **STRONG[name])['image'].tobytes() for seed in range(8)]
  assert len(set(others)) > 1


@pytest.mark.parametrize('name', list(TABLES))
def test_image_and_truth_are_sound_whatever_is_drawn(name):
  sample = placed(name, sample_for(name))
  for fields in ((), ('masks',), ('segmentation', 'pixels_valid'), ('boxes', 'labels', 'masks')):
    if (name == 'copy_paste' and 'masks' in fields) or (name in MIXES and 'boxes' in fields):
      continue
    bare = without(sample, *fields)
    for seed in range(25):
      moved = apply(name, seed, bare, **STRONG[name])
      size = moved['image_size'] if name in MIXES else moved['image'].shape[:2]
      # A resize policy leaves boxes as they are scaled, and a pixel whose middle is inside may stick out by half.
      assert_sound(moved, size, 0.51 if name in MIXES else 1e-4)
      assert moved.keys() >= bare.keys()
      if name in AUGMENTATIONS and 'labels' in bare:
        assert set(moved['labels'].tolist()) <= {1, 2} and len(set(moved['labels'].tolist())) == len(moved['labels'])


@pytest.mark.parametrize('name', list(TABLES))
def test_without_objects_nothing_fails(name):
  sample = scene(boxes=()) if name not in MIXES else without(scene(boxes=()), 'segmentation', 'pixels_valid')
  sample = placed(name, {'image': sample['image'], 'label': 2} if name == 'cutmix' else sample)
  for seed in range(10):
    moved = apply(name, seed, sample, **STRONG[name])
    if name != 'cutmix':
      assert moved['boxes'].shape == (0, 4) and len(moved['labels']) == len(moved['masks']) == 0
      assert moved['masks'].shape[1:] == moved['image'].shape[:2]


@pytest.mark.parametrize('name', list(TABLES))
def test_at_no_strength_it_changes_nothing(name):
  sample = placed(name, sample_for(name))
  for seed in range(5):
    moved = apply(name, seed, sample, **NEUTRAL[name])
    assert same(without(moved, 'mixed_label', 'mix'), sample)


@pytest.mark.parametrize('name, option', [(name, option) for name, function in TABLES.items()
                                          for option in option_names(function)])
def test_a_value_out_of_range_is_answered_before_any_data_is_read(name, option):
  with pytest.raises(ValueError) as caught:
    compose(((name, {option: WRONG[option]}),))
  message = str(caught.value)
  assert option in message and '; ' in message and '\n' not in message
  assert 'augmentation' in message and (name in message or option == 'fill')


# --- rand_augment ---------------------------------------------------------------------------------------------------


def test_the_operations_are_torchvisions_fourteen():
  assert set(OPERATIONS) == {'identity', 'shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate', 'brightness',
                             'saturation', 'contrast', 'sharpness', 'posterize', 'solarize', 'autocontrast', 'equalize'}
  assert len(OPERATIONS) == 14


@pytest.mark.parametrize('operation, at_9, at_30', [
    ('shear_x', 0.09, 0.3), ('shear_y', 0.09, 0.3), ('translate_x', 0.3 * 150 / 331 * 60, 150 / 331 * 60),
    ('translate_y', 0.3 * 150 / 331 * 40, 150 / 331 * 40), ('rotate', 9, 30), ('brightness', 0.27, 0.9),
    ('saturation', 0.27, 0.9), ('contrast', 0.27, 0.9), ('sharpness', 0.27, 0.9), ('posterize', 7, 4),
    ('solarize', 178.5, 0),
])
def test_strengths_are_torchvisions(operation, at_9, at_30):
  assert strength(operation, 9, 31, (40, 60)) == pytest.approx(at_9)
  assert strength(operation, 30, 31, (40, 60)) == pytest.approx(at_30)


def test_a_geometric_operation_is_pillows_and_takes_the_truth_along():
  sample = {**scene(), 'image': places(40, 60)}
  picture, bilinear = Image.fromarray(sample['image']), Image.Resampling.BILINEAR
  expected = {
      ('rotate', 20.0): picture.rotate(20.0, bilinear),
      ('translate_x', -7.9): picture.transform((60, 40), Image.Transform.AFFINE, (1, 0, 7, 0, 1, 0), bilinear),
      ('translate_y', 5.2): picture.transform((60, 40), Image.Transform.AFFINE, (1, 0, 0, 0, 1, -5), bilinear),
      ('shear_x', 0.3): picture.transform((60, 40), Image.Transform.AFFINE, (1, 0.3, 0, 0, 1, 0), bilinear),
      ('shear_y', -0.2): picture.transform((60, 40), Image.Transform.AFFINE, (1, 0, 0, -0.2, 1, 0), bilinear),
  }
  for (operation, value), picture in expected.items():
    moved = operate(sample, operation, value)
    # Pillow rounds a rotation's matrix to 15 digits, which may turn a level over where it lies on a half.
    assert abs(moved['image'].astype(int) - np.asarray(picture)).max() <= 1
    np.testing.assert_array_equal(moved['boxes'], boxes_of_masks(moved['masks']))
    assert_in_step(moved)
    truth = operate(scene(), operation, value)
    assert ((truth['image'][..., 0] > 127) != truth['masks'].any(0)).sum() <= 30


def test_every_operation_and_both_signs_are_drawn():
  sample = {**scene(), 'image': RNG(0).integers(20, 200, (40, 60, 3), np.uint8)}
  found = set()
  for seed in range(200):
    found.add(AUGMENTATIONS['rand_augment'](RNG(seed), sample, operations=1)['image'].tobytes())
  assert len(found) == 14 + 9  # nine operations have a sign


# --- compose --------------------------------------------------------------------------------------------------------


def others_of(samples):
  """What a loader gives to a mix: further samples as they were read, others at every call."""
  calls = []

  def others(count):
    calls.append(count)
    return [samples[(sum(calls) + k) % len(samples)] for k in range(count)]
  return others


def test_augmentations_keep_out_of_the_padding():
  run = compose(tuple((name, STRONG[name]) for name in AUGMENTATIONS if name != 'random_resized_crop'))
  sample = {**scene(), 'image': np.full((40, 60, 3), 255, np.uint8)}
  for seed in range(20):
    moved = run(RNG(seed), sample, CANVAS)
    assert moved['image'].shape == (*CANVAS, 3) and moved['image_size'].dtype == np.int32
    assert_sound(moved, moved['image_size'])


def test_augmented_scenes_keep_boxes_tight_around_masks():
  source = DigitScenes('val')
  run = compose((('ssd_crop', {}), ('flip', {}), ('affine', {'degrees': 10, 'scale': (0.8, 1.2), 'translate': 0.1}),
                 ('mosaic', {'probability': 0.5}), ('copy_paste', {})))
  for i in range(20):
    moved = run(RNG(i), source[i], (80, 128), others_of([source[j] for j in range(20, 26)]))
    np.testing.assert_array_equal(moved['boxes'], boxes_of_masks(moved['masks']))
    assert len(moved['boxes']) == len(moved['labels'])


def test_nothing_to_do_is_the_resize_policy():
  for resize in ('crop', ('letterbox', {'interpolation': 'bicubic'})):
    expected = compose((), resize)(RNG(0), scene(), CANVAS)
    assert same(expected, compose((('flip', {'probability': 0.0}),), resize)(RNG(0), scene(), CANVAS))
  assert same(compose(())(RNG(0), scene(), CANVAS), on_canvas(CANVAS))


def test_what_works_before_the_resize_sees_the_image_as_it_was_read():
  image = places(200, 240)
  sample = {'image': image, 'boxes': np.float32([[100, 80, 180, 160]]), 'labels': np.int32([3])}
  for seed in range(10):
    part = AUGMENTATIONS['ssd_crop'](RNG(seed), sample)
    assert same(compose((('ssd_crop', {}),), 'warp')(RNG(seed), sample, (30, 40)), warp(part, (30, 40)))


def test_random_resized_crop_is_stretched_to_the_canvas_whatever_the_policy():
  sample = {'image': RNG(0).integers(0, 256, (90, 120, 3), np.uint8), 'label': 2}
  for resize in ('letterbox', ('resize_crop', {'shorter_side': 50, 'interpolation': 'bicubic'})):
    interpolation = 'bilinear' if resize == 'letterbox' else 'bicubic'
    moved = compose((('random_resized_crop', {}),), resize)(RNG(1), sample, (40, 56))
    part = Image.fromarray(AUGMENTATIONS['random_resized_crop'](RNG(1), sample)['image'])
    np.testing.assert_array_equal(moved['image'],
                                  np.asarray(part.resize((56, 40), Image.Resampling[interpolation.upper()])))
    assert moved['image_size'].tolist() == [40, 56]


def test_the_others_of_a_mix_go_the_same_way_as_the_sample_but_for_other_mixes():
  # The sample and the others are white; the step before the mix makes a picture dark, the one after it light again.
  white = {'image': np.full((40, 60, 3), 255, np.uint8), 'label': 1}
  dark = ('affine', {'scale': (0.01, 0.01), 'fill': 10})
  given = []

  def others(count):
    given.append(count)
    return [{**white, 'label': 7}] * count
  moved = compose((dark, ('mixup', {'alpha': 1.0}), ('cutmix', {})), 'warp')(RNG(0), white, CANVAS, others)
  assert given == [1] and (moved['image'][:30] == 10).all() and (moved['label'], moved['mixed_label']) == (1, 7)
  moved = compose((('mixup', {'alpha': 1.0}), dark), 'warp')(RNG(0), white, CANVAS, others)
  assert (moved['image'][:30] == 10).all()
  sample = without(scene(), 'segmentation', 'pixels_valid')
  run = compose((('mosaic', {}), ('mixup', {})))
  given.clear()
  run(RNG(0), sample, CANVAS, lambda count: given.append(count) or [sample] * count)
  assert given == [3, 1]  # the image that is blended in is no mosaic


def test_the_content_of_a_mosaic_is_the_canvas_and_what_follows_sees_all_of_it():
  sample = without(scene(20, 60), 'segmentation', 'pixels_valid')
  run = compose((('mosaic', {'fill': 50, 'scale': (0.5, 0.5)}), ('brightness_contrast', {'contrast': 0.0})))
  moved = run(RNG(0), sample, CANVAS, lambda count: [sample] * count)
  assert moved['image_size'].tolist() == list(CANVAS)
  assert len({tuple(moved['image'][y, x]) for y, x in ((0, 0), (63, 0), (0, 71), (63, 71))}) == 1


def test_a_composed_run_is_a_pure_function_of_generator_and_samples():
  samples = [frozen(without(scene(first=10 * k), 'segmentation', 'pixels_valid')) for k in range(5)]
  kept = [{name: np.array(value) for name, value in sample.items()} for sample in samples]
  steps = tuple((name, STRONG[name]) for name in (*AUGMENTATIONS, 'mosaic', 'copy_paste', 'mixup'))
  results = [compose(steps)(RNG(5), samples[0], CANVAS, others_of(samples)) for _ in range(2)]
  assert same(*results) and all(same(one, other) for one, other in zip(samples, kept))


@pytest.mark.parametrize('augment, message', [
    ((('rotate', {}),), "unknown augmentation 'rotate'; did you mean rotation"),
    ((('shift', {'pixel': 3}),), r"augmentation shift has no option 'pixel'; did you mean pixels\?"),
    ((('mosaic', {'center': (0.5, 0.5)}),), r"augmentation mosaic has no option 'center'; did you mean centre\?"),
    (('flip',), r"augment has 'flip'; give \(name, options\) pairs"),
    ((('flip', 0.5),), r"augment has \('flip', 0.5\); give \(name, options\) pairs"),
    ((('flip', {}), ('ssd_crop', {})), "augment has 'ssd_crop' after 'flip'; it works on the image before its resize"),
    ((('affine', {'scale': (1.2, 0.8)}),), r'affine: scale is \(1.2, 0.8\); give \(low, high\) with 0 < low <= high'),
    ((('shift', {'fill': 'edge'}),), r"fill is 'edge'; give a grey level 0..255, three levels or 'mean'"),
])
def test_a_wrong_augmentation_is_answered_in_one_line(augment, message):
  with pytest.raises(ValueError, match=message) as caught:
    compose(augment)
  assert '\n' not in str(caught.value)


def test_a_mix_without_others_says_what_is_missing():
  with pytest.raises(ValueError, match='augmentation mosaic mixes several samples; give others'):
    compose((('mosaic', {}),))(RNG(0), scene(), CANVAS)


def test_it_is_known_which_lists_mix_labels():
  assert gives_mixed_labels((('flip', {}), ('mixup', {}))) and gives_mixed_labels((('cutmix', {}),))
  assert not gives_mixed_labels((('mosaic', {}), ('copy_paste', {}), ('flip', {})))


def test_what_works_before_the_resize_stands_in_the_table():
  assert set(BEFORE_RESIZE) < set(AUGMENTATIONS)
