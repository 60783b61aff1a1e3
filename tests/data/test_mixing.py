"""Mosaic, MixUp, CutMix and copy-paste on canvases and contents that are not square."""

import numpy as np
import pytest

from tests.data.rectangles import assert_in_step, assert_sound, on_canvas, places, scene, without
from vision_jax.data.mixing import MIXES, copy_paste, cutmix, mixup, mosaic
from vision_jax.data.resize import letterbox
from vision_jax.data.samples import boxes_of_masks

RNG = np.random.default_rng
CANVAS = (64, 72)


def giving(*samples):
  """`others` that gives these, from the first on."""
  def others(count):
    assert count <= len(samples)
    return list(samples[:count])
  return others


def labelled(level, label, size=CANVAS, canvas=CANVAS):
  return {**letterbox({'image': np.full((*size, 3), level, np.uint8)}, canvas), 'label': label}


# --- mosaic ---------------------------------------------------------------------------------------------------------


def test_a_mosaic_fills_the_canvas_and_keeps_truth_and_pixels_together():
  others = giving(on_canvas(first=11, h=70, w=30, boxes=((2, 3, 20, 30),)), on_canvas(first=21),
                  on_canvas(first=31, h=30, w=70))
  seen, dropped = set(), 0
  for seed in range(40):
    mixed = mosaic(RNG(seed), on_canvas(), others)
    assert mixed['image_size'].tolist() == list(CANVAS)
    assert_sound(mixed, CANVAS)
    np.testing.assert_array_equal(mixed['boxes'], boxes_of_masks(mixed['masks']))
    if len(mixed['labels']) == 7:
      assert_in_step(mixed)
      # Bilinear image and nearest masks differ by less than the rims; the fill is dark.
      assert ((mixed['image'][..., 0] > 127) != mixed['masks'].any(0)).sum() <= 120
    seen |= set(mixed['labels'].tolist())
    dropped += 7 - len(mixed['labels'])
  assert seen == {1, 2, 11, 21, 22, 31, 32} and dropped > 0


def test_the_four_images_touch_at_the_point_each_with_its_corner():
  colours = [10, 60, 110, 160]
  samples = [letterbox({'image': np.full((48, 72, 3), c, np.uint8), 'boxes': np.float32([[0, 0, 72, 48]]),
                        'labels': np.int32([c])}, (48, 72)) for c in colours]
  orders = set()
  for seed in range(30):
    mixed = mosaic(RNG(seed), samples[0], giving(*samples[1:]), centre=(0.3, 0.7), scale=(0.5, 0.5), fill=255)
    image, boxes = mixed['image'][..., 0], mixed['boxes']
    x, y = boxes[0, 2:]  # the first is above and left, so its lower right corner is the point
    assert 0.3 * 72 - 1 <= x <= 0.7 * 72 + 1 and 0.3 * 48 - 1 <= y <= 0.7 * 48 + 1
    expected = [[max(0, x - 36), max(0, y - 24), x, y], [x, max(0, y - 24), min(72, x + 36), y],
                [max(0, x - 36), y, x, min(48, y + 24)], [x, y, min(72, x + 36), min(48, y + 24)]]
    np.testing.assert_array_equal(boxes, expected)
    for (x1, y1, x2, y2), label in zip(boxes.astype(int), mixed['labels']):
      assert (image[y1:y2, x1:x2] == label).all()
    assert (image == 255).sum() == 48 * 72 - sum((b[2] - b[0]) * (b[3] - b[1]) for b in boxes)
    orders.add(tuple(mixed['labels'].tolist()))
  assert len(orders) > 10


def test_no_truth_is_where_no_image_of_a_mosaic_is():
  sample = on_canvas(h=20, w=70)
  mixed = mosaic(RNG(0), sample, giving(sample, sample, sample), scale=(0.3, 0.3), fill=99)
  empty = (mixed['image'] == 99).all(-1)
  assert empty.mean() > 0.5
  np.testing.assert_array_equal(mixed['pixels_valid'], ~empty)


def test_objects_that_only_become_small_in_a_mosaic_stay():
  sample = on_canvas()
  mixed = mosaic(RNG(0), sample, giving(sample, sample, sample), centre=(0.5, 0.5), scale=(0.3, 0.3))
  assert mixed['labels'].tolist() == [1, 2] * 4


def test_a_mosaic_shows_the_right_part_of_each_image():
  # Red is the column and green the row: at scale 1 the pixels are shifted, not resampled.
  samples = [{**letterbox({'image': places(64, 72) + np.uint8([0, 0, k])}, CANVAS),
              'boxes': np.float32([[10, 20, 50, 40]]), 'labels': np.int32([k])} for k in range(4)]
  for seed in range(10):
    mixed = mosaic(RNG(seed), samples[0], giving(*samples[1:]), scale=(1.0, 1.0))
    for box, label in zip(mixed['boxes'].astype(int), mixed['labels']):
      corner = mixed['image'][box[1], box[0]].astype(int)
      own = mixed['image'][..., 2] == 7 + label
      rows, columns = np.nonzero(own)
      # At the point is the image's corner: its last column where it is left of it, its first where it is right.
      assert mixed['image'][0 if rows[0] == 0 else -1, columns[-1] if columns[0] == 0 else columns[0], 0] == (
          71 if columns[0] == 0 else 0)
      assert mixed['image'][rows[-1] if rows[0] == 0 else rows[0], columns[0], 1] == (63 if rows[0] == 0 else 0)
      shift = np.array([columns[0], rows[0]]) - mixed['image'][rows[0], columns[0], :2]
      assert corner[2] == 7 + label and (corner[:2] + shift == box[:2]).all()
      assert (box == np.clip(np.array([10, 20, 50, 40]) + np.tile(shift, 2), [columns.min(), rows.min()] * 2,
                             [columns.max() + 1, rows.max() + 1] * 2)).all()


# --- mixup ----------------------------------------------------------------------------------------------------------


def test_mixup_blends_by_the_share_that_its_labels_have():
  one, other = labelled(200, 3), labelled(40, 5)
  shares = []
  for seed in range(200):
    mixed = mixup(RNG(seed), one, giving(other), alpha=1.0)
    assert (mixed['label'], mixed['mixed_label']) == (3, 5) and mixed['mix'].dtype == np.float32
    expected = 200 * np.float64(mixed['mix']) + 40 * (1 - np.float64(mixed['mix']))
    np.testing.assert_allclose(mixed['image'], expected, atol=0.5)  # rounded once
    shares.append(mixed['mix'])
  assert 0.4 < np.mean(shares) < 0.6 and min(shares) < 0.05 and max(shares) > 0.95  # Beta(1, 1) is even


def test_mixup_blends_every_pixel_to_the_nearest_level():
  a, b = (RNG(seed).integers(0, 256, (*CANVAS, 3), np.uint8) for seed in (1, 2))
  size = np.array(CANVAS, np.int32)
  for seed in range(8):
    mixed = mixup(RNG(seed), {'image': a, 'image_size': size, 'label': 0},
                  giving({'image': b, 'image_size': size, 'label': 1}), alpha=1.0)
    expected = a * np.float64(mixed['mix']) + b * (1 - np.float64(mixed['mix']))
    np.testing.assert_allclose(mixed['image'], expected, atol=0.501)


def test_mixup_of_labels_is_mostly_one_of_both_and_of_boxes_about_half():
  size = np.array(CANVAS, np.int32)
  ones = [{'image': np.full((*CANVAS, 3), level, np.uint8), 'image_size': size} for level in (255, 0)]
  for more, extreme in (({'label': 0}, (0.5, 1.0)),
                        ({'boxes': np.zeros((0, 4), np.float32), 'labels': np.zeros(0, np.int32)}, (0.0, 0.2))):
    shares = [mixup(RNG(seed), {**ones[0], **more}, giving({**ones[1], **more}))['image'][0, 0, 0] / 255
              for seed in range(200)]
    share = np.mean([s < 0.1 or s > 0.9 for s in shares])
    assert extreme[0] <= share <= extreme[1]  # Beta(0.2, 0.2): 0.63; Beta(1.5, 1.5): 0.10


def test_mixup_of_boxes_unites_the_objects_on_the_larger_content():
  one = without(on_canvas(h=30, w=72), 'segmentation', 'pixels_valid')
  other = without(on_canvas(h=64, w=40, first=11, boxes=((3, 3, 20, 60),)), 'segmentation', 'pixels_valid')
  mixed = mixup(RNG(1), one, giving(other))
  assert mixed['image_size'].tolist() == [64, 72] and mixed['labels'].tolist() == [1, 2, 11]
  np.testing.assert_array_equal(mixed['boxes'], np.concatenate([one['boxes'], other['boxes']]))
  np.testing.assert_array_equal(mixed['masks'], np.concatenate([one['masks'], other['masks']]))
  assert not mixed['image'][30:, 40:].any() and mixed['image'][40, 5].any() and 'mix' not in mixed


# --- cutmix ---------------------------------------------------------------------------------------------------------


def test_cutmix_pastes_one_rectangle_whose_pixels_are_the_other_labels_share():
  one, other = labelled(200, 3, size=(48, 72)), labelled(40, 5, size=(48, 72))
  shares, edges = [], 0
  for seed in range(200):
    mixed = cutmix(RNG(seed), one, giving(other))
    content = mixed['image'][:48, :, 0]
    foreign = content == 40
    rows, columns = np.flatnonzero(foreign.any(1)), np.flatnonzero(foreign.any(0))
    assert foreign.sum() == len(rows) * len(columns) and not mixed['image'][48:].any()
    np.testing.assert_allclose(mixed['mix'], (content == 200).mean(), rtol=1e-6)
    assert (mixed['label'], mixed['mixed_label']) == (3, 5) and mixed['mix'].dtype == np.float32
    shares.append(mixed['mix'])
    rng = RNG(seed)
    rng.random()
    drawn = rng.beta(1.0, 1.0)
    assert foreign.sum() <= (1 - drawn) * 48 * 72 + 1  # less at the border, and by what is cut to whole pixels
    if len(rows):
      edges += rows[0] == 0 or rows[-1] == 47 or columns[0] == 0 or columns[-1] == 71
      if rows[0] > 0 and rows[-1] < 47 and columns[0] > 0 and columns[-1] < 71 and len(rows) > 10:
        np.testing.assert_allclose(len(columns) / len(rows), 72 / 48, atol=0.25)  # the image's proportions
        np.testing.assert_allclose(foreign.sum(), (1 - drawn) * 48 * 72, atol=2 * (48 + 72))
  assert min(shares) < 0.3 and max(shares) > 0.95 and edges > 50


def test_cutmix_takes_the_pixels_from_the_same_place_and_stretches_another_size():
  one = {**labelled(200, 3), 'image': np.full((*CANVAS, 3), 200, np.uint8)}
  other = {**labelled(0, 5), 'image': places(*CANVAS)}
  mixed = cutmix(RNG(0), one, giving(other))['image']
  foreign = mixed[..., 2] == 7
  assert foreign.any()
  np.testing.assert_array_equal(mixed[foreign], places(*CANVAS)[foreign])
  small = {**letterbox({'image': places(32, 72)}, CANVAS), 'label': 5}  # half as high as the first's content
  mixed = cutmix(RNG(0), one, giving(small))['image']
  rows, columns = np.nonzero(foreign)
  assert abs(mixed[..., 1][foreign].astype(int) - rows // 2).max() <= 1
  np.testing.assert_array_equal(mixed[..., 0][foreign], columns)


# --- both labels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['mixup', 'cutmix'])
def test_a_sample_that_is_not_mixed_has_its_own_label_twice(name):
  sample = labelled(200, 3)
  for seed in range(20):
    mixed = MIXES[name](RNG(seed), sample, giving(), probability=0.0)
    assert (mixed['label'], mixed['mixed_label'], mixed['mix']) == (3, 3, 1)
    assert mixed['image'] is sample['image'] and mixed['mix'].dtype == np.float32


@pytest.mark.parametrize('name', ['mixup', 'cutmix'])
def test_a_mixed_sample_is_not_mixed_again(name):
  mixed = {**labelled(200, 3), 'mixed_label': 5, 'mix': np.float32(0.4)}
  assert MIXES[name](RNG(0), mixed, giving())['mix'] == np.float32(0.4)


def test_the_probability_is_how_often_a_mix_happens():
  sample, other = labelled(200, 3), labelled(40, 5)
  for name in ('mixup', 'cutmix'):
    labels = [MIXES[name](RNG(seed), sample, giving(other), probability=0.3)['mixed_label'] for seed in range(300)]
    hits = labels.count(5)
    assert 60 < hits < 120  # 90, and 8 is the deviation
  detection = on_canvas()
  for name, further in (('mosaic', 3), ('copy_paste', 1)):
    changed = [MIXES[name](RNG(seed), detection, giving(*[detection] * further), probability=0.3) is not detection
               for seed in range(200)]
    assert 20 < sum(changed) < 86  # 60, but for a quarter of which copy_paste takes neither of two objects


# --- copy_paste -----------------------------------------------------------------------------------------------------


def test_pasted_objects_lie_on_top_and_cut_what_they_cover():
  below = on_canvas(h=64, w=72, boxes=((10, 10, 40, 40), (50, 50, 60, 60)))
  above = on_canvas(h=64, w=72, boxes=((25, 5, 45, 45), (1, 50, 9, 60)), first=11)
  above = {**above, 'image': np.where(above['image'] > 0, np.uint8(99), np.uint8(0))}
  mixed = copy_paste(RNG(0), below, giving(above), share=1.0)
  assert mixed['labels'].tolist() == [1, 2, 11, 12]
  assert mixed['boxes'].tolist() == [[10, 10, 25, 40], [50, 50, 60, 60], [25, 5, 45, 45], [1, 50, 9, 60]]
  np.testing.assert_array_equal(mixed['masks'][2:], above['masks'])
  assert (mixed['image'][mixed['masks'][2:].any(0)] == 99).all()
  assert (mixed['image'][mixed['masks'][:2].any(0)] == 255).all()
  assert_in_step(mixed)


def test_an_object_that_is_covered_but_for_less_than_a_quarter_goes():
  below = on_canvas(h=64, w=72, boxes=((10, 10, 30, 30), (40, 10, 60, 30)))
  above = on_canvas(h=64, w=72, boxes=((10, 10, 26, 30), (40, 10, 54, 30)), first=11)  # four and six columns are left
  mixed = copy_paste(RNG(0), below, giving(above), share=1.0)
  assert mixed['labels'].tolist() == [2, 11, 12] and mixed['boxes'][0].tolist() == [54, 10, 60, 30]


def test_each_object_is_taken_by_the_share_and_cut_at_the_samples_content():
  below, above = on_canvas(h=30, w=72, boxes=()), on_canvas(h=64, w=72, boxes=((5, 5, 15, 15), (20, 26, 30, 34),
                                                                              (40, 40, 50, 50)), first=11)
  taken = [copy_paste(RNG(seed), below, giving(above), share=0.3)['labels'].tolist() for seed in range(200)]
  counts = [sum(label in labels for labels in taken) for label in (11, 12, 13)]
  assert 40 < counts[0] < 80 and 40 < counts[1] < 80 and counts[2] == 0  # the third lies outside
  whole = copy_paste(RNG(0), below, giving(above), share=1.0)
  assert whole['boxes'].tolist() == [[5, 5, 15, 15], [20, 26, 30, 30]]
  assert_sound(whole, (30, 72))


def test_nothing_to_paste_changes_nothing():
  sample = on_canvas()
  assert copy_paste(RNG(0), sample, giving(on_canvas(boxes=())), share=1.0) is sample
  assert copy_paste(RNG(0), sample, giving(on_canvas(first=11)), share=0.0) is sample


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name, sample, message', [
    ('cutmix', {**on_canvas(), 'label': 1}, 'augmentation cutmix has no answer for boxes, masks, segmentation; it is'),
    ('cutmix', without(on_canvas(), 'boxes', 'labels', 'masks', 'segmentation'), 'augmentation cutmix needs label, wh'),
    ('mixup', on_canvas(), 'augmentation mixup has no answer for segmentation; it is for samples with label or boxes'),
    ('mixup', without(on_canvas(), 'boxes', 'labels', 'masks', 'segmentation'), 'mixup needs label or boxes'),
    ('mosaic', {**on_canvas(), 'label': 1}, 'augmentation mosaic has no answer for label'),
    ('copy_paste', without(on_canvas(), 'masks'), 'augmentation copy_paste needs masks, which the source does not'),
])
def test_a_mix_says_for_which_samples_it_is(name, sample, message):
  with pytest.raises(ValueError, match=message) as caught:
    MIXES[name](RNG(0), sample, giving(sample, sample, sample))
  assert '\n' not in str(caught.value)


def test_scenes_of_this_file_are_as_they_say():
  sample = scene(first=11)
  assert sample['labels'].tolist() == [11, 12]
  assert_in_step(sample)
