"""Average precision, against a slow loop and against COCO's own code."""

import contextlib
import io

import numpy as np
import pytest

from vision_jax.conventions import ClassMap
from vision_jax.host import rle
from vision_jax.metrics import COCO_THRESHOLDS, DetectionAP

CLASSES = ClassMap(names=('a', 'b', 'c', 'd', 'never'))


def _scenes(seed, count, *, num_classes=4, coarse=False):
  """Random images: some without objects, some without detections, duplicates, wrong classes, tied scores."""
  rng = np.random.default_rng(seed)
  examples = []
  for index in range(count):
    objects = int(rng.integers(0, 7))
    low = rng.uniform(0, 60, (objects, 2))
    boxes = np.concatenate([low, low + rng.uniform(5, 40, (objects, 2))], axis=1)
    labels = rng.integers(0, num_classes, objects)
    copies = rng.integers(0, 4, objects) if objects else np.zeros(0, int)
    found = np.repeat(np.arange(objects), copies)
    near = boxes[found] + rng.normal(0, 2.0, (len(found), 4))
    # COCO leaves out a box of negative area without a word; ours counts it as wrong, so none is drawn here.
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 0.5)
    stray = rng.uniform(0, 50, (int(rng.integers(0, 4)), 4))
    stray[:, 2:] += stray[:, :2]
    detected = np.concatenate([near, stray])
    wrong = rng.random(len(found)) < 0.2
    classes = np.where(wrong, rng.integers(0, num_classes, len(found)), labels[found])
    classes = np.concatenate([classes, rng.integers(0, num_classes, len(stray))])
    scores = rng.random(len(detected))
    if coarse:  # whole pixels and tenths: many equal IoUs and equal scores
      boxes, detected, scores = boxes.round(-1), detected.round(-1), scores.round(1)
    examples.append(({'boxes': detected, 'scores': scores, 'labels': classes},
                     {'boxes': boxes, 'labels': labels, 'index': index}))
  return examples


def _counted(examples, classes=CLASSES, **options):
  metric = DetectionAP(classes, **options)
  for prediction, target in examples:
    metric.add(prediction, target)
  return metric


def _loop_iou(a, b):
  width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
  if width <= 0 or height <= 0:
    return 0.0
  return width * height / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height)


def _slow_ap(examples, label, threshold, max_detections=100):
  """AP of one class at one threshold, step by step from the definition; None without an object."""
  ranked, total = [], 0
  for order, (prediction, target) in enumerate(examples):
    truth = [box for box, true in zip(target['boxes'], target['labels'], strict=True) if true == label]
    total += len(truth)
    detections = [(-score, i) for i, score in enumerate(prediction['scores']) if prediction['labels'][i] == label]
    taken = set()
    for negative, i in sorted(detections)[:max_detections]:
      best, best_iou = None, min(threshold, 1 - 1e-10)
      for g, box in enumerate(truth):
        iou = _loop_iou(prediction['boxes'][i], box)
        if g not in taken and iou >= best_iou:
          best, best_iou = g, iou
      if best is not None:
        taken.add(best)
      ranked.append((negative, order, i, best is not None))
  if not total:
    return None
  ranked.sort()
  points, right = [], 0
  for position, (*_, hit) in enumerate(ranked, start=1):
    right += hit
    points.append((right / total, right / position))
  # linspace, because 29 / 100 and its 0.29 differ in the last bit and a recall can be either.
  return sum(max([p for r, p in points if r >= recall], default=0.0) for recall in np.linspace(0, 1, 101)) / 101


@pytest.mark.parametrize('seed, coarse', [(0, False), (1, False), (2, True), (3, True)])
def test_ap_equals_the_definition_step_by_step(seed, coarse):
  examples = _scenes(seed, 12, coarse=coarse)
  thresholds = (0.3, 0.5, 0.75, 1.0)
  table = _counted(examples, iou_thresholds=thresholds).precision().mean(axis=1)
  for t, threshold in enumerate(thresholds):
    for label in range(4):
      # Ours divides by position + eps, as COCO does.
      assert table[t, label] == pytest.approx(_slow_ap(examples, label, threshold), abs=1e-12)


def _coco(examples, classes, *, masks=False, first_id=1):
  """(precision [T, 101, K, A] with -1 for absent classes, the twelve figures) from pycocotools."""
  coco = pytest.importorskip('pycocotools.coco')
  evaluation = pytest.importorskip('pycocotools.cocoeval')
  xywh = lambda box: [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]
  truth, annotations, results = coco.COCO(), [], []
  for image, (prediction, target) in enumerate(examples, start=1):
    for n, (box, label) in enumerate(zip(target['boxes'], target['labels'], strict=True)):
      area = target['area'][n] if 'area' in target else (box[2] - box[0]) * (box[3] - box[1])
      annotations.append(dict(id=len(annotations) + first_id, image_id=image, category_id=int(label) + 1,
                              iscrowd=int(target['crowd'][n]) if 'crowd' in target else 0, bbox=xywh(box),
                              area=float(area), **({'segmentation': target['masks'][n]} if masks else {})))
    for n, (score, label) in enumerate(zip(prediction['scores'], prediction['labels'], strict=True)):
      shape = {'segmentation': prediction['masks'][n]} if masks else {'bbox': xywh(prediction['boxes'][n])}
      results.append(dict(image_id=image, category_id=int(label) + 1, score=float(score), **shape))
  truth.dataset = dict(info={}, annotations=annotations,
                       images=[dict(id=i + 1, height=40, width=60) for i in range(len(examples))],
                       categories=[dict(id=i + 1, name=name) for i, name in enumerate(classes.names)])
  with contextlib.redirect_stdout(io.StringIO()):
    truth.createIndex()
    run = evaluation.COCOeval(truth, truth.loadRes(results), 'segm' if masks else 'bbox')
    run.evaluate()
    run.accumulate()
    run.summarize()
  return run.eval['precision'][:, :, :, :, -1], run.stats


def _twelve(metric):
  """The figures in the order of COCO's summary, -1 where they are not defined."""
  result = metric.result()
  return np.nan_to_num(list(result.values())[:12], nan=-1.0)


def _crowded(examples, seed):
  """The same with crowds, areas of the file's own across all three ranges, and annotation ids from 0."""
  rng, first, changed = np.random.default_rng(seed), 0, []
  for prediction, target in examples:
    count = len(target['labels'])
    changed.append((prediction, {**target, 'crowd': rng.random(count) < 0.2, 'ids': np.arange(first, first + count),
                                 'area': rng.choice([100.0, 1024.0, 2500.0, 9216.0, 20000.0], count)}))
    first += count
  return changed


@pytest.mark.parametrize('seed, coarse', [(10, False), (11, False), (12, True), (13, True)])
def test_ap_equals_pycocotools(seed, coarse):
  plain = _scenes(seed, 60, coarse=coarse)
  for examples in (plain, _crowded(plain, seed)):
    precision, summary = _coco(examples, CLASSES)
    metric = _counted(examples)
    # The same float64 sums in the same order; only the last bits of a mean differ.
    np.testing.assert_allclose(np.nan_to_num(metric.precision(), nan=-1.0), precision[..., 0], atol=1e-12)
    np.testing.assert_allclose(_twelve(metric), summary, atol=1e-12)


def test_the_figures_of_masks_equal_pycocotools():
  rng, examples = np.random.default_rng(20), []
  for index in range(25):
    masks = _blobs(rng, int(rng.integers(0, 5)))
    found = np.concatenate([np.roll(masks, rng.integers(-3, 4, 2), axis=(1, 2)), _blobs(rng, 2)])
    labels, more = rng.integers(0, 3, len(masks)), rng.integers(0, 3, 2)
    target = {'masks': [rle.encode(mask) for mask in masks], 'labels': labels, 'index': index, 'boxes': np.zeros(
        (len(masks), 4)), 'crowd': rng.random(len(masks)) < 0.2, 'area': masks.sum((1, 2))}
    examples.append(({'masks': [rle.encode(mask) for mask in found], 'labels': np.concatenate([labels, more]),
                      'scores': rng.random(len(found)).round(1)}, target))
  _, summary = _coco(examples, CLASSES, masks=True)
  assert 0.05 < summary[0] < 0.95
  np.testing.assert_allclose(_twelve(_counted(examples, over='masks')), summary, atol=1e-12)
  arrays = [({**p, 'masks': np.array([rle.decode(m) for m in p['masks']]).reshape(-1, 40, 60)},
             {**t, 'masks': np.array([rle.decode(m) for m in t['masks']]).reshape(-1, 40, 60)}) for p, t in examples]
  np.testing.assert_array_equal(_twelve(_counted(arrays, over='masks')), _twelve(_counted(examples, over='masks')))


def _blobs(rng, count):
  y, x = np.mgrid[:40, :60]
  centre, size = rng.uniform(0, 1, (count, 2)) * (40, 60), rng.uniform(3, 14, (count, 2))
  return np.array([((y - c[0]) / s[0]) ** 2 + ((x - c[1]) / s[1]) ** 2 <= 1
                   for c, s in zip(centre, size, strict=True)], bool).reshape(-1, 40, 60)


def test_an_annotation_with_id_0_is_found_and_with_compat_lost_as_pycocotools_loses_it():
  examples = _crowded(_scenes(15, 20), 15)
  _, lost = _coco(examples, CLASSES, first_id=0)
  _, mended = _coco(examples, CLASSES, first_id=1)
  assert lost[0] < mended[0]
  np.testing.assert_allclose(_twelve(_counted(examples, compat=True)), lost, atol=1e-12)
  np.testing.assert_allclose(_twelve(_counted(examples)), mended, atol=1e-12)


def test_a_crowd_takes_any_number_of_detections_and_a_part_of_it_is_enough():
  crowd = {'boxes': np.array([[0.0, 0, 100, 100], [200, 0, 220, 20]]), 'labels': np.zeros(2, int),
           'crowd': np.array([True, False])}
  inside = np.array([[10.0, 10, 30, 30], [50, 50, 90, 90], [200, 0, 220, 20]])
  found = {'boxes': inside, 'scores': np.array([0.9, 0.8, 0.7]), 'labels': np.zeros(3, int)}
  assert _counted([(found, crowd)]).result()['AP'] == pytest.approx(1.0, abs=1e-12)
  assert _counted([(found, {**crowd, 'crowd': np.zeros(2, bool)})]).result()['AP'] < 0.5


def test_the_curve_of_a_class_is_what_pencil_and_paper_give():
  boxes = np.array([[0.0, 0, 10, 10], [20, 0, 30, 10]])
  metric = _counted([({'boxes': np.array([[0.0, 0, 10, 10], [50, 50, 60, 60], [20, 0, 30, 10]]),
                       'scores': np.array([0.9, 0.8, 0.7]), 'labels': np.zeros(3, int)},
                      {'boxes': boxes, 'labels': np.zeros(2, int)})])
  curve = metric.curve(0)
  assert curve.scores.tolist() == [0.9, 0.8, 0.7]
  np.testing.assert_allclose(curve.precision, [1, 1 / 2, 2 / 3])
  np.testing.assert_allclose(curve.recall, [1 / 2, 1 / 2, 1])
  np.testing.assert_allclose(curve.f1, [2 / 3, 1 / 2, 4 / 5])
  assert metric.curve(1).scores.size == 0
  with pytest.raises(ValueError, match='IoU 0.33 was not evaluated'):
    metric.curve(0, iou_threshold=0.33)


def test_more_than_a_hundred_detections_of_a_class_equal_pycocotools():
  rng = np.random.default_rng(5)
  truth = {'boxes': np.array([[10.0, 10, 30, 30], [50, 50, 90, 80]]), 'labels': np.array([0, 1])}
  boxes = truth['boxes'][np.arange(300) % 2] + rng.normal(0, 3, (300, 4))
  examples = [({'boxes': boxes, 'scores': rng.random(300), 'labels': np.arange(300) % 2}, truth)]
  _, summary = _coco(examples, CLASSES)
  np.testing.assert_allclose(_twelve(_counted(examples)), summary, atol=1e-12)


def test_ap_of_a_small_example_is_what_pencil_and_paper_give():
  boxes = np.array([[0.0, 0, 10, 10], [20, 0, 30, 10]])
  examples = [({'boxes': np.array([[0.0, 0, 10, 10], [50, 50, 60, 60], [20, 0, 30, 10]]),
                'scores': np.array([0.9, 0.8, 0.7]), 'labels': np.zeros(3, int)},
               {'boxes': boxes, 'labels': np.zeros(2, int)})]
  # Right, wrong, right: precision 1 up to a recall of 0.5 (51 points), then 2/3 (50 points).
  assert _counted(examples).result()['AP/a'] == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-12)


def test_a_second_detection_of_one_object_is_wrong():
  box = np.array([[0.0, 0, 10, 10]])
  twice = [({'boxes': np.repeat(box, 2, axis=0), 'scores': np.array([0.9, 0.8]), 'labels': np.zeros(2, int)},
            {'boxes': box, 'labels': np.zeros(1, int)})] * 2
  # Ranked right, right, wrong, wrong: full recall comes before the first wrong one.
  assert _counted(twice).result()['AP50'] == pytest.approx(1.0, abs=1e-12)
  before = [({'boxes': np.concatenate([box, box, box + 50]), 'scores': np.array([0.9, 0.8, 0.7]),
              'labels': np.zeros(3, int)}, {'boxes': np.concatenate([box, box + 50]), 'labels': np.zeros(2, int)})]
  assert _counted(before).result()['AP50'] == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-12)


def test_a_perfect_prediction_has_ap_one_at_a_threshold_of_one():
  examples = [({**target, 'scores': np.ones(len(target['labels']))}, target) for _, target in _scenes(4, 10)]
  result = _counted(examples, iou_thresholds=(1.0,)).result()
  assert result['AP'] == pytest.approx(1.0, abs=1e-12)


def test_a_detection_in_an_image_without_objects_lowers_ap():
  box, one = np.array([[0.0, 0, 10, 10]]), np.zeros(1, int)
  empty = {'boxes': np.zeros((0, 4)), 'labels': np.zeros(0, int)}
  hit = ({'boxes': box, 'scores': np.array([0.5]), 'labels': one}, {'boxes': box, 'labels': one})
  stray = ({'boxes': box, 'scores': np.array([0.6]), 'labels': one}, empty)
  assert _counted([hit]).result()['AP50'] == pytest.approx(1.0, abs=1e-12)
  assert _counted([hit, stray]).result()['AP50'] == pytest.approx(0.5, abs=1e-12)


def test_an_object_in_an_image_without_detections_lowers_ap():
  box, one = np.array([[0.0, 0, 10, 10]]), np.zeros(1, int)
  nothing = {'boxes': np.zeros((0, 4)), 'scores': np.zeros(0), 'labels': np.zeros(0, int)}
  hit = ({'boxes': box, 'scores': np.array([0.5]), 'labels': one}, {'boxes': box, 'labels': one})
  missed = (nothing, {'boxes': box, 'labels': one})
  assert _counted([missed]).result()['AP'] == 0.0
  assert _counted([hit, missed]).result()['AP50'] == pytest.approx(51 / 101, abs=1e-12)


def test_a_class_without_objects_is_nan_and_left_out_of_the_mean():
  examples = _scenes(6, 10)
  result = _counted(examples).result()
  assert np.isnan(result['AP/never'])
  assert result['AP'] == pytest.approx(np.mean([result[f'AP/{n}'] for n in 'abcd']), abs=1e-12)


def test_without_any_object_all_figures_are_nan():
  empty = {'boxes': np.zeros((0, 4)), 'labels': np.zeros(0, int)}
  stray = {'boxes': np.ones((1, 4)), 'scores': np.ones(1), 'labels': np.zeros(1, int)}
  for metric in (_counted([]), _counted([(stray, empty)])):
    assert all(np.isnan(v) for v in metric.result().values())


def test_what_an_invalid_slot_holds_plays_no_part():
  examples = _scenes(7, 20)
  padded = []
  for i, (prediction, target) in enumerate(examples):
    junk = np.nan if i % 2 else 1e9
    fields = {name: np.concatenate([np.full((3, *v.shape[1:]), junk), v]) for name, v in prediction.items()}
    fields['labels'] = np.concatenate([np.full(3, -1000), prediction['labels']])
    padded.append(({**fields, 'valid': np.arange(len(fields['labels'])) >= 3}, target))
  np.testing.assert_equal(_counted(padded).result(), _counted(examples).result())


def test_a_box_that_is_not_finite_counts_as_a_wrong_detection():
  box, one = np.array([[0.0, 0, 10, 10]]), np.zeros(1, int)
  broken = {'boxes': np.concatenate([np.full((1, 4), np.nan), box]), 'scores': np.array([0.9, 0.8]),
            'labels': np.zeros(2, int)}
  assert _counted([(broken, {'boxes': box, 'labels': one})]).result()['AP50'] == pytest.approx(0.5, abs=1e-12)


def test_merging_three_parts_gives_what_one_accumulator_gives(merged_equals_whole):
  # With tied scores and an index in the target, so that the order of the parts must not matter.
  merged_equals_whole(lambda: DetectionAP(CLASSES), _scenes(8, 30, coarse=True))


def test_max_detections_keeps_the_best_of_each_class_in_each_image():
  examples = _scenes(9, 15)
  table = _counted(examples, max_detections=2, iou_thresholds=(0.5,)).precision().mean(axis=1)[0]
  expected = [_slow_ap(examples, label, 0.5, max_detections=2) for label in range(4)]
  np.testing.assert_allclose(table[:4], expected, atol=1e-12)


def test_ap50_and_ap75_stand_in_the_result_only_where_they_were_computed():
  assert 'AP75' not in DetectionAP(ClassMap(names=('x',)), iou_thresholds=(0.5, 0.6)).result()
  assert list(DetectionAP(ClassMap(names=('x',))).result()) == [
      'AP', 'AP50', 'AP75', 'APsmall', 'APmedium', 'APlarge', 'AR1', 'AR10', 'AR100', 'ARsmall', 'ARmedium', 'ARlarge',
      'AP/x']


def test_the_thresholds_are_those_of_coco_to_the_bit():
  assert np.linspace(0.5, 0.95, 10).tolist() == list(COCO_THRESHOLDS)


@pytest.mark.parametrize('change, message', [
    (dict(scores=np.array([np.nan])), 'a score is not finite'),
    (dict(labels=np.array([5])), r'the prediction holds labels 5\.\.5, the classes are 0\.\.4'),
    (dict(scores=np.ones(2)), '1 boxes, 2 scores, 1 labels')])
def test_a_broken_prediction_is_refused_with_the_reason(change, message):
  good = {'boxes': np.ones((1, 4)), 'scores': np.ones(1), 'labels': np.zeros(1, int)}
  with pytest.raises(ValueError, match=message):
    DetectionAP(CLASSES).add({**good, **change}, {'boxes': np.zeros((0, 4)), 'labels': np.zeros(0, int)})


def test_a_threshold_out_of_range_is_refused():
  with pytest.raises(ValueError, match='iou_thresholds'):
    DetectionAP(CLASSES, iou_thresholds=(0.0, 0.5))
