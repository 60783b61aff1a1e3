"""The colours of classes."""

import numpy as np
import pytest

from vision_jax.viz import class_colours, palette
from vision_jax.viz.colours import ink_on


def test_a_longer_palette_begins_with_the_shorter_one():
  long = palette(300)
  for count in (0, 1, 5, 13, 64, 65, 299):
    np.testing.assert_array_equal(palette(count), long[:count])


def test_the_first_colour_is_black_and_no_other_comes_twice():
  colours = palette(256)
  assert colours.dtype == np.uint8 and colours[0].tolist() == [0, 0, 0]
  assert len(np.unique(colours, axis=0)) == 256


def test_the_first_sixty_colours_can_be_told_apart():
  colours = palette(60).astype(float)
  distance = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 1e9 * np.eye(60)
  assert distance.min() > 25  # of 255 in RGB; neighbours on an even 4 x 4 x 4 grid are 85 apart


def test_a_palette_of_thousands_repeats_but_never_black():
  assert palette(6000)[1:].any(axis=1).all()


def test_changing_a_palette_does_not_change_the_next_one():
  palette(4)[:] = 7
  assert palette(4)[0].tolist() == [0, 0, 0]


def test_a_background_in_the_middle_is_black_and_the_others_keep_their_order():
  colours = class_colours(4, background=2)
  assert colours[2].tolist() == [0, 0, 0]
  np.testing.assert_array_equal(colours[[0, 1, 3]], palette(4)[1:])


def test_a_background_that_is_no_class_is_refused():
  with pytest.raises(ValueError, match='background is 4'):
    class_colours(4, background=4)


def test_text_on_a_colour_is_black_or_white_by_its_lightness():
  assert ink_on(np.array([255, 255, 255])) == (0, 0, 0) and ink_on(np.array([0, 0, 90])) == (255, 255, 255)
