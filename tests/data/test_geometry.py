"""Moves, turns and cuts of samples that are not square."""

import numpy as np
import pytest

from tests.data.rectangles import assert_in_step, places, scene, without
from vision_jax.data.augment import AUGMENTATIONS
from vision_jax.data.geometry import affine, flip, random_resized_crop, rotation, shift, ssd_crop, zoom_out
from vision_jax.data.samples import boxes_of_masks, crop_sample, pad_sample
from vision_jax.host.boxes import pairwise_iou

RNG = np.random.default_rng
MOVES = {'shift': {'pixels': 30}, 'flip': {'probability': 0.5}, 'rotation': {'degrees': 40},
         'affine': {'degrees': 30, 'scale': (0.7, 1.4), 'translate': 0.4, 'shear': 10}}


# --- image and truth together ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', list(MOVES))
def test_image_boxes_labels_masks_and_segmentation_move_together(name):
  dropped = 0
  for seed in range(60):
    moved = AUGMENTATIONS[name](RNG(seed), scene(), **MOVES[name])
    dropped += 2 - len(moved['labels'])
    if len(moved['labels']) == 2:
      assert_in_step(moved)
      # Bilinear image and nearest masks differ by less than the rim of the objects.
      assert ((moved['image'][..., 0] > 127) != moved['masks'].any(0)).sum() <= 40
    for box, mask in zip(moved['boxes'], moved['masks']):
      np.testing.assert_array_equal(box, boxes_of_masks(mask[None])[0])
  assert (dropped > 0) == (name in ('shift', 'affine'))


@pytest.mark.parametrize('name', list(MOVES))
def test_without_masks_a_moved_box_encloses_the_object(name):
  for seed in range(40):
    full = AUGMENTATIONS[name](RNG(seed), scene(), **MOVES[name])
    bare = AUGMENTATIONS[name](RNG(seed), without(scene(), 'masks'), **MOVES[name])
    np.testing.assert_array_equal(full['image'], bare['image'])
    for label, box in zip(full['labels'], full['boxes']):
      if label in bare['labels']:
        outer = bare['boxes'][list(bare['labels']).index(label)]
        # A pixel whose middle is inside may stick out by half.
        assert (outer[:2] <= box[:2] + 0.51).all() and (outer[2:] >= box[2:] - 0.51).all()
    assert (bare['boxes'] >= 0).all() and (bare['boxes'] <= [60, 40, 60, 40]).all()


def test_what_an_augmentation_opens_is_filled_and_not_valid():
  sample = {**scene(), 'image': np.full((40, 60, 3), (10, 100, 200), np.uint8)}
  for name in ('shift', 'affine', 'rotation'):
    moved = AUGMENTATIONS[name](RNG(3), sample, **MOVES[name], fill='mean')
    assert (moved['image'] == (10, 100, 200)).all()
    filled = AUGMENTATIONS[name](RNG(3), sample, **MOVES[name], fill=(33, 34, 35))
    opened = (filled['image'] == (33, 34, 35)).all(-1)
    assert opened.any()
    assert ((~filled['pixels_valid']) == opened).mean() > 0.98  # nearest and bilinear differ on the rim


# --- shift, flip, affine, rotation ----------------------------------------------------------------------------------


def test_affine_turns_points_by_the_matrix_that_it_drew():
  # A small square far from the middle is moved to where the rotation says, to half a pixel.
  sample = scene(81, 121, boxes=((90, 38, 95, 43),))
  for seed in range(10):
    turn = np.radians(RNG(seed).uniform(-1, 1, size=2)[0] * 20)
    moved = affine(RNG(seed), sample, degrees=20)
    centre = np.array([92.5, 40.5]) - [60.5, 40.5]
    expected = [np.cos(turn) * centre[0] + 60.5, np.sin(turn) * centre[0] + 40.5]
    ys, xs = np.nonzero(moved['masks'][0])
    np.testing.assert_allclose([xs.mean() + 0.5, ys.mean() + 0.5], expected, atol=0.5)
    weight = moved['image'][..., 0].astype(float)
    yy, xx = np.mgrid[:81, :121] + 0.5
    middle = [(xx * weight).sum() / weight.sum(), (yy * weight).sum() / weight.sum()]
    np.testing.assert_allclose(middle, expected, atol=0.1)


def test_a_rotation_fits_the_boxes_anew():
  # Half a turn of a quarter's steps: a box of 20 x 6 about the middle, turned by t, is enclosed by cos and sin of t.
  sample = without(scene(60, 80, boxes=((30, 27, 50, 33),)), 'masks')
  for seed in range(10):
    turn = abs(np.radians(RNG(seed).uniform(-1, 1, size=2)[0] * 45))
    x1, y1, x2, y2 = rotation(RNG(seed), sample, degrees=45)['boxes'][0]
    across, down = 20 * np.cos(turn) + 6 * np.sin(turn), 20 * np.sin(turn) + 6 * np.cos(turn)
    np.testing.assert_allclose([x2 - x1, y2 - y1, x1 + x2, y1 + y2], [across, down, 80, 60], atol=1e-3)
  sample = scene(60, 80, boxes=((30, 27, 50, 33),))
  moved = rotation(RNG(3), sample, degrees=45)
  np.testing.assert_array_equal(moved['boxes'], boxes_of_masks(moved['masks']))


def test_shift_reaches_its_most_in_both_axes_and_both_ways():
  sample = scene(boxes=((20, 15, 30, 25),))
  steps = {tuple((shift(RNG(s), sample, pixels=2)['boxes'][0] - sample['boxes'][0])[:2].astype(int))
           for s in range(300)}
  assert steps == {(x, y) for x in range(-2, 3) for y in range(-2, 3)}


def test_objects_that_only_become_small_stay():
  for seed in range(10):
    moved = affine(RNG(seed), scene(), scale=(0.3, 0.3))  # a tenth of the pixels
    assert moved['labels'].tolist() == [1, 2]


def test_a_shift_beyond_the_image_leaves_the_fill():
  sample = scene(6, 4, boxes=((0, 0, 4, 6),))
  for seed in range(20):
    moved = shift(RNG(seed), sample, pixels=100, fill=7)
    assert (moved['image'] == 7).all() or len(moved['labels'])


def test_a_flip_mirrors_left_to_right_and_nothing_else():
  sample = {**scene(), 'image': places(40, 60)}
  moved = flip(RNG(0), sample, probability=1.0)
  np.testing.assert_array_equal(moved['image'][..., 0], np.tile(np.arange(59, -1, -1), (40, 1)))
  np.testing.assert_array_equal(moved['image'][..., 1], sample['image'][..., 1])
  assert moved['boxes'].tolist() == [[30, 5, 50, 25], [10, 20, 20, 38]]


# --- the rule of what is dropped ------------------------------------------------------------------------------------


def test_an_object_goes_when_less_than_a_quarter_of_its_mask_stays():
  boxes = ((0, 0, 20, 4), (0, 10, 20, 14))
  sample = scene(20, 40, boxes=boxes)
  sample['masks'][0, :, 4:] = False  # most of the first object's ink is at the left edge, its box alone is wide
  for seed in range(50):
    step = RNG(seed).integers(-12, 13, size=2)
    moved = shift(RNG(seed), sample, pixels=12)
    if step[0] < -4 and abs(step[1]) <= 2:
      assert 1 not in moved['labels'] and 2 in moved['labels']
      break
  else:
    pytest.fail('no seed moved the objects as wanted')


@pytest.mark.parametrize('keep, labels', [('share', [1, 2]), ('centre', [1, 4])])
def test_a_cut_keeps_by_the_share_or_by_the_centre(keep, labels):
  # Inside; 9 of 20 columns without the centre; outside; the centre with less than a sixth of a large box.
  boxes = ((2, 14, 12, 22), (11, 14, 31, 22), (40, 3, 50, 9), (0, 0, 38, 40))
  sample = without(scene(boxes=boxes), 'masks', 'segmentation', 'pixels_valid')
  part = crop_sample(sample, (0, 12, 20, 24), keep=keep)
  assert part['image'].shape == (12, 20, 3) and part['labels'].tolist() == labels


def test_a_box_of_less_than_a_pixel_is_dropped_by_either_rule():
  sample = {'image': np.zeros((8, 12, 3), np.uint8), 'boxes': np.float32([[2, 2, 2.5, 7], [3, 2, 5, 4]]),
            'labels': np.int32([0, 1])}
  for keep in ('share', 'centre'):
    assert crop_sample(sample, (1, 0, 9, 8), keep=keep)['labels'].tolist() == [1]


def test_a_cut_is_the_part_of_everything():
  sample = scene()
  part = crop_sample({**sample, 'image': places(40, 60)}, (12, 4, 45, 30))
  np.testing.assert_array_equal(part['image'], places(40, 60)[4:30, 12:45])
  np.testing.assert_array_equal(part['masks'], sample['masks'][:, 4:30, 12:45])
  assert part['boxes'].tolist() == [[0, 1, 18, 21], [28, 16, 33, 26]]
  assert_in_step(part)


# --- random_resized_crop --------------------------------------------------------------------------------------------


def cut_of(image):
  """(x1, y1, x2, y2) of a part of `places`."""
  return np.array([*image[0, 0, :2], *(image[-1, -1, :2].astype(int) + 1)])


def test_random_resized_crop_has_areas_and_proportions_of_its_range_and_reaches_every_edge():
  sample = {'image': places(90, 120)}
  parts = np.array([cut_of(random_resized_crop(RNG(seed), sample, scale=(0.2, 0.4), ratio=(0.6, 1.5))['image'])
                    for seed in range(600)])
  across, down = parts[:, 2] - parts[:, 0], parts[:, 3] - parts[:, 1]
  share, ratio = across * down / (90 * 120), across / down
  # Sides are rounded to whole pixels, of which the shortest has 36.
  assert 0.19 < share.min() < 0.22 and 0.38 < share.max() < 0.41
  assert 0.58 < ratio.min() < 0.63 and 1.4 < ratio.max() < 1.53
  assert parts[:, :2].min(0).tolist() == [0, 0] and parts[:, 2:].max(0).tolist() == [120, 90]
  assert abs(np.log(ratio).mean() - np.log(0.6 * 1.5) / 2) < 0.05  # even in the logarithm: 0.26 / sqrt(600) is 0.011


@pytest.mark.parametrize('size, scale, ratio, expected', [
    ((20, 120), (0.9, 1.0), (3 / 4, 4 / 3), (46, 0, 73, 20)),
    ((120, 20), (0.9, 1.0), (3 / 4, 4 / 3), (0, 46, 20, 73)),
    ((30, 33), (1.0, 1.0), (1.0, 1.2), (0, 0, 33, 30)),
])
def test_random_resized_crop_takes_the_middle_where_nothing_fits(size, scale, ratio, expected):
  # The nearest proportions of the range, and the corner rounded down: what torchvision takes.
  part = random_resized_crop(RNG(0), {'image': places(*size)}, scale=scale, ratio=ratio)
  assert tuple(cut_of(part['image'])) == expected


# --- ssd_crop and zoom_out ------------------------------------------------------------------------------------------


def test_ssd_crop_overlaps_an_object_by_the_iou_and_holds_its_centre():
  boxes = np.float32([[20, 10, 80, 70], [70, 40, 150, 90]])
  sample = {'image': places(100, 160), 'boxes': boxes, 'labels': np.int32([0, 1])}
  ious, whole = [], 0
  for seed in range(200):
    part = ssd_crop(RNG(seed), sample, min_ious=(0.6,) * 98)  # any part and the whole image: one in a hundred each
    cut = cut_of(part['image'])
    whole += part['image'].shape == (100, 160, 3)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centres > cut[:2]) & (centres < cut[2:])).all(1)
    assert inside.any() and part['labels'].tolist() == np.flatnonzero(inside).tolist()
    expected = np.clip(boxes[inside], np.tile(cut[:2], 2), np.tile(cut[2:], 2)) - np.tile(cut[:2], 2)
    np.testing.assert_array_equal(part['boxes'], expected)
    h, w = part['image'].shape[:2]
    assert 0.29 * 160 <= w <= 160 and 0.29 * 100 <= h <= 100 and 0.5 <= w / h <= 2
    ious.append(pairwise_iou(cut[None], boxes)[0, inside].max())
  assert np.mean(np.array(ious) >= 0.6) > 0.93 and whole < 10


def test_ssd_crop_draws_every_choice_and_ends_where_none_fits():
  sample = {'image': places(100, 160), 'boxes': np.float32([[20, 10, 24, 14]]), 'labels': np.int32([0])}
  sizes = [ssd_crop(RNG(seed), sample, min_ious=(0.9,))['image'].shape for seed in range(60)]
  whole = sum(size == (100, 160, 3) for size in sizes)
  for seed in range(60):  # any part holds a centre too
    assert ssd_crop(RNG(seed), sample, min_ious=())['labels'].tolist() == [0]
  assert 15 < whole < 55  # an IoU of 0.9 with so small an object has no part: the whole image, or any part
  empty = {'image': places(100, 160), 'boxes': np.zeros((0, 4), np.float32), 'labels': np.zeros(0, np.int32)}
  assert len({ssd_crop(RNG(seed), empty)['image'].shape for seed in range(20)}) > 10


def test_zoom_out_puts_the_whole_image_on_a_larger_one():
  sample = {**scene(), 'image': np.maximum(scene()['image'], 1)}
  sizes = []
  for seed in range(40):
    moved = zoom_out(RNG(seed), sample, probability=1.0, fill=(9, 8, 7))
    h, w = moved['image'].shape[:2]
    sizes.append(w / 60)
    assert abs(h / 40 - w / 60) < 0.03  # both sides by one factor, cut to whole pixels
    x, y = (moved['boxes'] - sample['boxes'])[0, :2].astype(int)
    np.testing.assert_array_equal(moved['image'][y:y + 40, x:x + 60], sample['image'])
    assert moved['pixels_valid'].sum() == 40 * 60 and moved['pixels_valid'][y:y + 40, x:x + 60].all()
    assert (moved['image'][~moved['pixels_valid']] == (9, 8, 7)).all()
    assert_in_step(moved)
    np.testing.assert_array_equal(moved['boxes'], boxes_of_masks(moved['masks']))
  assert 1 <= min(sizes) < 1.4 and 3.5 < max(sizes) <= 4


def test_zoom_out_leaves_the_image_alone_when_its_probability_misses():
  sample = scene()
  hits = [zoom_out(RNG(seed), sample, probability=0.3, ratio=(2, 2)) is not sample for seed in range(300)]
  assert 60 < sum(hits) < 120  # 90, and 8 is the deviation


def test_padding_moves_the_boxes_with_the_offset():
  padded = pad_sample(scene(), (50, 70), offset=(4, 6), fill=(1, 2, 3))
  assert padded['boxes'][0].tolist() == [14, 11, 34, 31] and padded['image'][0, 0].tolist() == [1, 2, 3]
  assert_in_step(padded)
