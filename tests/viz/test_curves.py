"""Pictures of confusion matrices and of training curves."""

import numpy as np
import pytest

from vision_jax import viz
from vision_jax.conventions import ClassMap
from vision_jax.viz.curves import _default_panels, _ticks, _unlike_parts


def _coloured(picture, colour, tolerance=60):
  # The picture is shrunk from a finer one, so that edges are mixed with what lies beside them.
  return (np.abs(picture.astype(int) - colour) <= tolerance).all(axis=-1)


def test_hits_are_blue_and_confusions_red():
  picture = viz.draw_confusion(np.array([[5, 0], [4, 0]]), ClassMap(names=('a', 'b')))
  hits, misses = _coloured(picture, [25, 90, 190], 0), _coloured(picture, [200, 45, 35], 0)
  assert hits.any() and misses.any()
  assert np.argwhere(hits)[:, 0].mean() < np.argwhere(misses)[:, 0].mean()  # row 1, the truth b, was taken for a


def test_a_class_without_images_and_an_empty_matrix_are_drawn():
  assert viz.draw_confusion(np.zeros((3, 3), int), ClassMap(names=('a', 'b', 'c')), title='nothing').ndim == 3


@pytest.mark.parametrize('count, longest', [(1, 80), (100, 400), (300, 1000)])
def test_a_confusion_picture_stays_of_a_size_to_look_at(count, longest):
  classes = ClassMap(names=tuple(f'a class with quite a long name {i}' for i in range(count)))
  picture = viz.draw_confusion(np.eye(count, dtype=int) * 12345, classes)
  assert longest <= max(picture.shape) <= 1300


def test_a_matrix_of_another_size_is_refused():
  with pytest.raises(ValueError, match=r'shape \(2, 2\) for 3 classes'):
    viz.draw_confusion(np.eye(2), ClassMap(names=('a', 'b', 'c')))


def _curve_pixels(values):
  picture = viz.draw_curves([{'step': s, 'x': v} for s, v in enumerate(values)])
  return np.argwhere(_coloured(picture, viz.palette(2)[1]))


def test_a_rising_curve_rises_to_the_right():
  spots = _curve_pixels(range(50))
  left, right = spots[spots[:, 1] < 150][:, 0].mean(), spots[spots[:, 1] > 350][:, 0].mean()
  assert left > right + 100  # rows count downwards


def test_a_value_that_is_not_finite_leaves_a_gap():
  whole, gap = np.zeros(100), np.zeros(100)
  gap[40:60] = np.nan
  columns = np.unique(_curve_pixels(whole)[:, 1]), np.unique(_curve_pixels(gap)[:, 1])
  assert np.diff(columns[0]).max() == 1 and np.diff(columns[1]).max() > 50


@pytest.mark.parametrize('values', [[3.0], [2.0, 2.0], [np.nan, np.inf], [1e-9, 1e12], [-5, 1e-300]])
def test_curves_of_one_point_constant_or_extreme_values_are_drawn(values):
  assert viz.draw_curves([{'step': 10 * s, 'x': v, 'y': 1} for s, v in enumerate(values)]).shape == (300, 880, 3)


def test_names_share_a_panel_by_their_end_and_long_ones_by_their_beginning():
  names = ['train/loss', 'eval/loss', 'eval/AP', 'eval/AP/cat', 'eval/AP/dog', 'lr']
  assert _default_panels(names) == {'loss': ['train/loss', 'eval/loss'], 'eval/AP': ['eval/AP'],
                                    'eval/AP/*': ['eval/AP/cat', 'eval/AP/dog'], 'lr': ['lr']}


def test_a_legend_names_what_differs():
  assert _unlike_parts(['train/loss', 'eval/loss']) == ['train', 'eval']
  assert _unlike_parts(['eval/AP/cat', 'eval/AP/dog']) == ['cat', 'dog']
  assert _unlike_parts(['loss', 'eval/loss']) == ['loss', 'eval/loss']


def test_what_is_no_number_is_left_out_and_panels_can_be_chosen():
  records = [{'step': 0, 'a': 1, 'b': 2, 'note': 'text', 'flag': True}, {'step': 5, 'b': np.float32(3)}]
  assert viz.draw_curves(records).shape == (300, 880, 3)
  assert viz.draw_curves(records, panels={'both': ['a', 'b']}, title='run').shape == (330, 440, 3)


@pytest.mark.parametrize('records, options, message', [
    ([{'loss': 1}], {}, "has no 'step'; it has loss"), ([{'step': 1}], {}, 'no numbers but the step'),
    ([], {}, 'no numbers'),
    ([{'step': 1, 'loss': 2}], {'panels': {'x': ['los']}}, "under 'los'; known: loss")])
def test_records_that_cannot_be_drawn_are_refused_with_the_reason(records, options, message):
  with pytest.raises(ValueError, match=message):
    viz.draw_curves(records, **options)


@pytest.mark.parametrize('low, high', [(0, 1), (-3, 7), (0.001, 0.0011), (0, 12345), (99.5, 100.2)])
def test_ticks_are_few_even_and_inside(low, high):
  ticks = _ticks(low, high)
  assert 3 <= len(ticks) <= 11 and low - 1e-9 <= ticks[0] and ticks[-1] <= high * (1 + 1e-9)
  np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0], rtol=1e-6)
