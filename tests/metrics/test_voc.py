"""VOC's average precision, against a published example and the rule step by step."""

import numpy as np
import pytest

from vision_jax.conventions import ClassMap
from vision_jax.metrics import VocAP

ONE = ClassMap(names=('object',))

# The example of Padilla et al., A Comparative Analysis of Object Detection Metrics, Electronics 2021, 10(3):279:
# seven images; boxes are x and y of the first pixel and the steps to the last one, detections begin with their score.
OBJECTS = [
    [(25, 16, 38, 56), (129, 123, 41, 62)],
    [(123, 11, 43, 55), (38, 132, 59, 45)],
    [(16, 14, 35, 48), (123, 30, 49, 44), (99, 139, 47, 47)],
    [(53, 42, 40, 52), (154, 43, 31, 34)],
    [(59, 31, 44, 51), (48, 128, 34, 52)],
    [(36, 89, 52, 76), (62, 58, 44, 67)],
    [(28, 31, 55, 63), (58, 67, 50, 58)]]
DETECTIONS = [
    [(.88, 5, 67, 31, 48), (.70, 119, 111, 40, 67), (.80, 124, 9, 49, 67)],
    [(.71, 64, 111, 64, 58), (.54, 26, 140, 60, 47), (.74, 19, 18, 43, 35)],
    [(.18, 109, 15, 77, 39), (.67, 86, 63, 46, 45), (.38, 160, 62, 36, 53), (.91, 105, 131, 47, 47),
     (.44, 18, 148, 40, 44)],
    [(.35, 83, 28, 28, 26), (.78, 28, 68, 42, 67), (.45, 87, 89, 25, 39), (.14, 10, 155, 60, 26)],
    [(.62, 50, 38, 28, 46), (.44, 95, 11, 53, 28), (.95, 29, 131, 72, 29), (.23, 29, 163, 72, 29)],
    [(.45, 43, 48, 74, 38), (.84, 17, 155, 29, 35), (.43, 95, 110, 25, 42)],
    [(.48, 16, 20, 101, 88), (.95, 33, 116, 37, 49)]]
EXPECTED = {('eleven', 0.1): 0.3333333333, ('eleven', 0.3): 0.2683982683, ('eleven', 0.5): 0.0303030303,
            ('eleven', 0.75): 0.0, ('every', 0.1): 0.3371980676, ('every', 0.3): 0.2456866804,
            ('every', 0.5): 0.0222222222, ('every', 0.75): 0.0}


def xyxy(steps):
  steps = np.array(steps, float)
  return np.concatenate([steps[:, :2], steps[:, :2] + steps[:, 2:] + 1], axis=1)  # the last pixel is inside


def example():
  return [({'boxes': xyxy([d[1:] for d in found]), 'scores': np.array([d[0] for d in found]),
            'labels': np.zeros(len(found), int)},
           {'boxes': xyxy(objects), 'labels': np.zeros(len(objects), int), 'index': index})
          for index, (found, objects) in enumerate(zip(DETECTIONS, OBJECTS, strict=True))]


def counted(examples, classes=ONE, **options):
  metric = VocAP(classes, **options)
  for prediction, target in examples:
    metric.add(prediction, target)
  return metric


@pytest.mark.parametrize('points, iou_threshold', sorted(EXPECTED))
def test_the_published_example_has_its_published_figures(points, iou_threshold):
  found = counted(example(), points=points, iou_threshold=iou_threshold).result()
  assert found['VOC_AP'] == pytest.approx(EXPECTED[points, iou_threshold], abs=1e-10)  # ten digits are published


def test_a_detection_whose_best_object_is_taken_is_wrong_though_another_would_do():
  objects = np.array([[0.0, 0, 10, 10], [0, 2, 10, 12]])
  found = {'boxes': np.array([[0.0, 0, 10, 10], [0, 0.5, 10, 10.5]]), 'scores': np.array([0.9, 0.8]),
           'labels': np.zeros(2, int)}
  result = counted([(found, {'boxes': objects, 'labels': np.zeros(2, int)})]).result()
  assert result['VOC_AP'] == pytest.approx(0.5)  # half of the objects at precision 1


def test_a_difficult_object_neither_counts_nor_costs():
  boxes = np.array([[0.0, 0, 10, 10], [50, 0, 60, 10]])
  found = {'boxes': boxes[::-1], 'scores': np.array([0.9, 0.8]), 'labels': np.zeros(2, int)}
  target = {'boxes': boxes, 'labels': np.zeros(2, int), 'difficult': np.array([False, True])}
  assert counted([(found, target)]).result()['VOC_AP'] == 1.0
  nothing = {'boxes': np.zeros((0, 4)), 'scores': np.zeros(0), 'labels': np.zeros(0, int)}
  only_difficult = {**target, 'difficult': np.ones(2, bool)}
  assert np.isnan(counted([(nothing, only_difficult)]).result()['VOC_AP'])


def test_a_class_without_objects_is_nan_and_what_an_invalid_slot_holds_plays_no_part():
  classes = ClassMap(names=('object', 'never'))
  padded = [({'boxes': np.concatenate([p['boxes'], np.full((2, 4), np.nan)]), 'scores': np.append(p['scores'], [9, 9]),
              'labels': np.append(p['labels'], [-7, 99]), 'valid': np.append(p['scores'] > 0, [False, False])}, t)
            for p, t in example()]
  result = counted(padded, classes).result()
  assert np.isnan(result['VOC_AP/never'])
  assert result['VOC_AP'] == result['VOC_AP/object'] == counted(example()).result()['VOC_AP']


def test_merging_three_parts_gives_what_one_accumulator_gives(merged_equals_whole):
  merged_equals_whole(lambda: VocAP(ONE, iou_threshold=0.3), example())


@pytest.mark.parametrize('options, message', [(dict(iou_threshold=0), 'iou_threshold is 0'),
                                              (dict(points='all'), "points is 'all'")])
def test_an_option_out_of_range_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    VocAP(ONE, **options)
