"""Colours, holes and normalisation on images that are not square."""

import colorsys

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
import pytest

from tests.data.rectangles import scene, without
from vision_jax.data.colour import (
  brightness_contrast,
  colour_jitter,
  cutout,
  hsv,
  noise,
  normalise,
  recoloured,
)

RNG = np.random.default_rng
ENHANCE = {'brightness': ImageEnhance.Brightness, 'contrast': ImageEnhance.Contrast, 'saturation': ImageEnhance.Color,
           'sharpness': ImageEnhance.Sharpness}
NOTHING = {'brightness': 0.0, 'contrast': 0.0, 'saturation': 0.0, 'hue': 0.0}


def some_image(h=20, w=30, low=0, high=256):
  return RNG(0).integers(low, high, (h, w, 3), np.uint8)


# --- brightness, contrast, noise ------------------------------------------------------------------------------------


def test_brightness_and_contrast_follow_their_formula():
  image = some_image(low=60, high=180)
  moved = brightness_contrast(RNG(5), {'image': image}, brightness=0.1, contrast=0.3)['image']
  b, c = RNG(5).uniform(-1, 1, size=2) * (25.5, 0.3)
  mean = image.mean()
  np.testing.assert_allclose(moved, np.clip((image - mean) * (1 + c) + mean + b, 0, 255), atol=0.501)


def test_noise_has_no_mean_and_a_deviation_up_to_the_one_given():
  image = np.full((60, 80, 3), 128, np.uint8)
  deviations = []
  for seed in range(30):
    difference = noise(RNG(seed), {'image': image}, deviation=10.0)['image'].astype(float) - 128
    assert abs(difference.mean()) < 0.5  # 14,400 pixels of deviation 10: 0.08, six times
    deviations.append(difference.std())
  assert 5 < max(deviations) < 10.5 and min(deviations) < 3


# --- colour_jitter --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('quality', ['brightness', 'contrast', 'saturation'])
@pytest.mark.parametrize('strength, low', [(0.4, 0.6), (1.5, 0.0)])
def test_one_quality_is_pillows_with_a_factor_of_torchvisions_range(quality, strength, low):
  image = some_image()
  found = []
  for seed in range(40):
    moved = colour_jitter(RNG(seed), {'image': image}, **{**NOTHING, quality: strength})['image']
    factors = np.linspace(low, 1 + strength, 2001)
    rng = RNG(seed)
    rng.permutation(4)
    factor = low + (1 + strength - low) * rng.random(4)[list(ENHANCE).index(quality)]
    expected = np.asarray(ENHANCE[quality](Image.fromarray(image)).enhance(factor))
    np.testing.assert_array_equal(moved, expected)
    found.append(factor)
  assert factors[0] <= min(found) < low + 0.15 * (1 + strength) and max(found) > 0.9 * (1 + strength)


def test_a_hue_is_turned_by_a_share_of_the_circle():
  reds = np.tile(np.uint8([200, 40, 40]), (4, 6, 1))
  turns = []
  for seed in range(60):
    moved = colour_jitter(RNG(seed), {'image': reds}, **{**NOTHING, 'hue': 0.25})['image'][0, 0] / 255
    hue, saturation, value = colorsys.rgb_to_hsv(*moved)
    turns.append((hue + 0.5) % 1 - 0.5)
    # Hue, saturation and value pass as bytes.
    np.testing.assert_allclose([saturation, value], [0.8, 200 / 255], atol=0.02)
  assert -0.26 < min(turns) < -0.2 and 0.2 < max(turns) < 0.26


def test_the_four_qualities_come_in_every_order():
  # Saturation 0 makes the image grey, and only a hue turned before could show that: so watch contrast and brightness.
  image = some_image()
  dark = [colour_jitter(RNG(seed), {'image': image}, brightness=1.0, contrast=1.0, saturation=0.0, hue=0.0)['image']
          for seed in range(40)]
  first = 0
  for seed, moved in enumerate(dark):
    rng = RNG(seed)
    order, draws = rng.permutation(4).tolist(), rng.random(4)
    picture = Image.fromarray(image)
    for place in order:
      if place < 2:
        picture = ENHANCE[list(ENHANCE)[place]](picture).enhance(2 * draws[place])
    np.testing.assert_array_equal(moved, np.asarray(picture))
    first += order.index(0) < order.index(1)
  assert 10 < first < 30


# --- hsv ------------------------------------------------------------------------------------------------------------


def test_hsv_multiplies_saturation_and_value_up_and_down_and_turns_the_hue_both_ways():
  colour = np.tile(np.uint8([60, 120, 100]), (4, 6, 1))
  h, s, v = colorsys.rgb_to_hsv(60 / 255, 120 / 255, 100 / 255)
  found = np.array([colorsys.rgb_to_hsv(*(hsv(RNG(seed), {'image': colour}, hue=0.1, saturation=1.5, exposure=2.0)[
      'image'][0, 0] / 255)) for seed in range(200)])
  # Bytes of saturation and of 60..240 grey levels: a hundredth, and for the hue of dull colours two.
  assert -0.12 < (found[:, 0] - h).min() < -0.08 and 0.08 < (found[:, 0] - h).max() < 0.12
  assert 1 / 1.55 < (found[:, 1] / s).min() < 0.75 and 1.4 < (found[:, 1] / s).max() < 1.55
  assert 0.48 < (found[:, 2] / v).min() < 0.55 and 1.8 < (found[:, 2] / v).max() < 2.02
  assert 0.4 < (found[:, 2] > v).mean() < 0.6


def test_hsv_leaves_greys_grey_and_cuts_at_white():
  grey = np.full((4, 6, 3), 200, np.uint8)
  levels = {int(hsv(RNG(seed), {'image': grey}, exposure=3.0)['image'][0, 0, 0]) for seed in range(50)}
  assert max(levels) == 255 and min(levels) < 80
  assert all(np.ptp(hsv(RNG(seed), {'image': grey})['image'][0, 0]) == 0 for seed in range(20))


# --- RandAugment's colour operations --------------------------------------------------------------------------------


@pytest.mark.parametrize('operation, value, expected', [
    ('brightness', -0.9, lambda picture: ImageEnhance.Brightness(picture).enhance(0.1)),
    ('saturation', 0.27, lambda picture: ImageEnhance.Color(picture).enhance(1.27)),
    ('contrast', -0.27, lambda picture: ImageEnhance.Contrast(picture).enhance(0.73)),
    ('sharpness', 0.9, lambda picture: ImageEnhance.Sharpness(picture).enhance(1.9)),
    ('posterize', 7, lambda picture: picture.point([level // 2 * 2 for level in range(256)] * 3)),
    ('solarize', 178.5, lambda picture: picture.point([v if v < 178.5 else 255 - v for v in range(256)] * 3)),
    ('autocontrast', 0, ImageOps.autocontrast),
    ('equalize', 0, ImageOps.equalize),
])
def test_a_colour_operation_is_pillows(operation, value, expected):
  image = some_image(low=20, high=200)
  moved = recoloured({'image': image}, operation, value)['image']
  np.testing.assert_array_equal(moved, np.asarray(expected(Image.fromarray(image))))


# --- cutout ---------------------------------------------------------------------------------------------------------


def test_a_hole_has_sides_of_its_range_and_may_reach_over_the_border():
  sample = {'image': np.full((40, 60, 3), 200, np.uint8)}
  areas, cut = [], 0
  for seed in range(200):
    hole = cutout(RNG(seed), sample, side=(0.2, 0.5), fill=5)['image'][..., 0] == 5
    rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
    assert hole.sum() == len(rows) * len(columns)  # one rectangle
    border = rows[0] == 0 or rows[-1] == 39 or columns[0] == 0 or columns[-1] == 59
    cut += border
    if not border:
      areas.append(hole.sum())
      assert 8 - 1 <= len(rows) <= 20 + 1 and 12 - 1 <= len(columns) <= 30 + 1
  assert min(areas) < 150 and max(areas) > 400 and 20 < cut < 180


def test_an_object_goes_when_less_than_a_quarter_of_it_is_seen_and_stays_whole_otherwise():
  boxes = ((3, 3, 9, 9), (20, 10, 50, 35))
  kept = set()
  for seed in range(300):
    for masks in (True, False):
      sample = scene(boxes=boxes) if masks else without(scene(boxes=boxes), 'masks', 'segmentation', 'pixels_valid')
      moved = cutout(RNG(seed), sample, holes=2, side=(0.3, 0.6), fill=99)
      hidden = (moved['image'] == 99).all(-1)
      seen = [1 - hidden[y1:y2, x1:x2].mean() for x1, y1, x2, y2 in boxes]
      assert moved['labels'].tolist() == [k + 1 for k in range(2) if seen[k] >= 0.25]
      assert all(moved['boxes'][list(moved['labels']).index(k)].tolist() == list(boxes[k - 1]) for k in moved['labels'])
      kept.add(tuple(moved['labels'].tolist()))
  assert kept >= {(1, 2), (2,)}


def test_the_seen_part_of_a_mask_counts_not_that_of_its_box():
  sample = scene(40, 60, boxes=((10, 10, 30, 30),))
  sample['masks'][0, :, 14:] = False  # the object is the box's left fifth
  dropped = 0
  for seed in range(300):
    moved = cutout(RNG(seed), sample, side=(0.3, 0.5), fill=99)
    hidden = (moved['image'] == 99).all(-1)
    share = 1 - hidden[10:30, 10:14].mean()
    assert len(moved['labels']) == (share >= 0.25)
    dropped += share < 0.25 and 1 - hidden[10:30, 10:30].mean() >= 0.25
  assert dropped > 3


# --- normalisation --------------------------------------------------------------------------------------------------


def test_normalise_is_the_formula_on_the_content_and_zero_on_the_padding():
  image = some_image(9, 7)
  mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  expected = (image / 255 - np.array(mean)) / np.array(std)
  np.testing.assert_allclose(normalise(image, mean, std), expected, atol=1e-5)
  content = normalise(image, mean, std, image_size=(5, 4))
  np.testing.assert_allclose(content[:5, :4], expected[:5, :4], atol=1e-5)
  assert content.dtype == np.float32 and not content[5:].any() and not content[:, 4:].any()
