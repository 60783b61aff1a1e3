"""IoU, Dice and pixel accuracy."""

import numpy as np
import pytest

from vision_jax.conventions import ClassMap
from vision_jax.metrics import SegmentationScores

CLASSES = ClassMap(names=('background', 'cat', 'dog', 'emu'))


def _examples(rng, count, num_classes=3):
  examples = []
  for _ in range(count):
    size = tuple(rng.integers(3, 9, 2))
    truth, valid = rng.integers(0, num_classes, size), rng.random(size) < 0.8
    predicted = np.where(rng.random(size) < 0.6, truth, rng.integers(0, num_classes, size))
    examples.append(({'segmentation': predicted.astype(np.int32)},
                     {'segmentation': np.where(valid, truth, 255).astype(np.int32), 'pixels_valid': valid}))
  return examples


def _counted(examples, **options):
  metric = SegmentationScores(CLASSES, **options)
  for prediction, target in examples:
    metric.add(prediction, target)
  return metric


def _slow_scores(examples):
  """IoU and Dice of each class and the pixel accuracy, by sets of pixels."""
  truth, predicted = {}, {}
  for i, (prediction, target) in enumerate(examples):
    for y, x in np.argwhere(target['pixels_valid']):
      truth[i, y, x] = int(target['segmentation'][y, x])
      predicted[i, y, x] = int(prediction['segmentation'][y, x])
  iou, dice = [], []
  for label in range(len(CLASSES)):
    a = {p for p in truth if truth[p] == label}
    b = {p for p in predicted if predicted[p] == label}
    iou.append(len(a & b) / len(a | b) if a | b else np.nan)
    dice.append(2 * len(a & b) / (len(a) + len(b)) if a | b else np.nan)
  return iou, dice, np.mean([truth[p] == predicted[p] for p in truth])


def test_the_scores_equal_those_of_sets_of_pixels():
  examples = _examples(np.random.default_rng(0), 6)
  iou, dice, accuracy = _slow_scores(examples)
  result = _counted(examples).result()
  # Integer counts and one division: equal to the last bit but for the mean's sum.
  np.testing.assert_array_equal([result[f'iou/{n}'] for n in CLASSES.names], iou)
  np.testing.assert_array_equal([result[f'dice/{n}'] for n in CLASSES.names], dice)
  np.testing.assert_allclose([result['mean_iou'], result['mean_dice'], result['pixel_accuracy']],
                             [np.nanmean(iou), np.nanmean(dice), accuracy], rtol=1e-14)


def test_a_class_that_occurs_nowhere_is_left_out_of_the_mean():
  result = _counted([({'segmentation': np.array([[0, 1]])}, {'segmentation': np.array([[0, 1]])})]).result()
  assert result['mean_iou'] == 1.0 and np.isnan(result['iou/emu'])


def test_a_class_that_is_only_predicted_counts_as_zero():
  result = _counted([({'segmentation': np.array([[0, 2]])}, {'segmentation': np.array([[0, 0]])})]).result()
  assert result['iou/dog'] == 0.0 and result['mean_iou'] == 0.25  # (1/2 + 0) / 2


def test_a_void_pixel_plays_no_part_whatever_it_holds():
  target = {'segmentation': np.array([[1, 1, -7]]), 'pixels_valid': np.array([[True, True, False]])}
  result = _counted([({'segmentation': np.array([[1, 1, 999]])}, target)]).result()
  assert result['pixel_accuracy'] == 1.0 and result['mean_iou'] == 1.0


def test_an_image_without_a_valid_pixel_changes_nothing():
  examples = _examples(np.random.default_rng(1), 3)
  void = ({'segmentation': np.zeros((2, 2), int)},
          {'segmentation': np.zeros((2, 2), int), 'pixels_valid': np.zeros((2, 2), bool)})
  np.testing.assert_equal(_counted(examples).result(), _counted([*examples, void]).result())


def test_foreground_iou_does_not_care_which_class_it_is():
  example = ({'segmentation': np.array([[0, 2, 1, 1]])}, {'segmentation': np.array([[1, 1, 2, 0]])})
  assert _counted([example]).result()['foreground_iou'] == 0.5  # two of four pixels are some class in both


def test_foreground_iou_takes_the_background_that_is_named():
  example = ({'segmentation': np.array([[0, 2, 2]])}, {'segmentation': np.array([[1, 0, 2]])})
  assert _counted([example], background=2).result()['foreground_iou'] == 0.5


def test_without_a_background_there_is_no_foreground_iou():
  assert 'foreground_iou' not in _counted([], background=None).result()


def test_before_the_first_image_all_is_nan():
  assert all(np.isnan(v) for v in _counted([]).result().values())


def test_merging_three_parts_gives_what_one_accumulator_gives(merged_equals_whole):
  merged_equals_whole(lambda: SegmentationScores(CLASSES), _examples(np.random.default_rng(2), 9))


def test_a_value_that_is_no_class_is_refused_with_the_remedy():
  with pytest.raises(ValueError, match=r'the truth holds values 0\.\.255.*set pixels_valid to False'):
    _counted([({'segmentation': np.array([[0, 1]])}, {'segmentation': np.array([[0, 255]])})])


def test_a_prediction_at_another_size_is_refused():
  with pytest.raises(ValueError, match=r'the prediction is \(4, 4\), the truth \(2, 2\)'):
    _counted([({'segmentation': np.zeros((4, 4), int)}, {'segmentation': np.zeros((2, 2), int)})])


def test_a_background_that_is_no_class_is_refused():
  with pytest.raises(ValueError, match='background is 4'):
    SegmentationScores(CLASSES, background=4)
