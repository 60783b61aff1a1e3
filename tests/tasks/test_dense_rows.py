"""RetinaNet, FCOS and SSD as tasks: they learn from real batches, padding has no effect, options arrive."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from tests.tasks import steps
from tests.train.test_step import compilations
from vision_jax import build, models, tasks
from vision_jax.conventions import ClassMap

CLASSES = ClassMap(('a', 'b', 'c'))
NAMES = ('retinanet', 'fcos', 'ssd')
every_row = pytest.mark.parametrize('name', NAMES)
trained_rows = pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.slow] * (name != 'retinanet')) for name in NAMES])


@functools.cache
def experiment(name):
  return build.experiment({
      'task': {'name': name, 'score_threshold': 0.005, 'max_detections': 30},
      'model': {'name': f'{name}_small', 'width': 4, **({} if name == 'ssd' else {'convs': 1})},
      'data': {'name': 'digit_scenes', 'train_size': 4, 'val_size': 4, 'batch_size': 4, 'canvas': (64, 96),
               'max_objects': 8},
      'optim': {'name': 'sgd', 'lr': 1e-4}, 'train': {'duration': '4 steps'}})


@functools.cache
def two_steps(name):
  return steps.two_steps(experiment(name))


@pytest.mark.medium
@trained_rows
def test_two_real_steps_on_digit_scenes_lower_the_loss_whatever_empty_slots_hold(name):
  (clean, other), _, (first, second, spoiled_log) = two_steps(name)
  assert all(np.isfinite(value) for value in (*first.values(), *second.values()))
  assert 0 < second['loss'] < first['loss']
  assert spoiled_log == second  # bit for bit
  jax.tree.map(np.testing.assert_array_equal, other, clean)


@functools.cache
def predictor(name):
  return jax.jit(experiment(name).task.predict)


@pytest.mark.medium
@trained_rows
def test_predict_compiles_once_whatever_the_images_hold(name):
  (state, _), batch, _ = two_steps(name)
  variables = jax.device_put(state.evaluation_variables())
  found = [predictor(name)(variables, batch)]
  with compilations() as compiled:
    for level, size in ((0, (64, 96)), (9, (1, 1)), (np.nan, (40, 60))):
      image, image_size = np.full_like(batch['image'], level), np.tile(np.array(size, np.int32), (4, 1))
      found.append(predictor(name)(variables, {**batch, 'image': image, 'image_size': image_size}))
  assert not compiled and len({int(f['valid'].sum()) for f in found}) > 1


@pytest.mark.medium
@trained_rows
def test_predictions_are_boxes_inside_the_content_at_most_as_many_as_asked_for(name):
  (state, _), batch, _ = two_steps(name)
  batch = {**batch, 'image_size': np.tile(np.array([40, 60], np.int32), (4, 1))}
  found = jax.device_get(predictor(name)(state.evaluation_variables(), batch))
  assert found['boxes'].shape == (4, 30, 4) and found['valid'].any(1).all()
  x1, y1, x2, y2 = found['boxes'][found['valid']].T
  assert (x1 >= 0).all() and (x1 < x2).all() and (x2 <= 60).all()
  assert (y1 >= 0).all() and (y1 < y2).all() and (y2 <= 40).all()
  assert (np.diff(found['scores']) <= 0).all() and set(found['labels'].ravel()) <= set(range(10))


@every_row
def test_options_reach_the_loss_and_the_decoding_and_have_their_defaults_there_alone(name):
  model = models.create(f'{name}_small', num_classes=3)
  given, expected = {'gamma': 1.5}, {'gamma': 1.5}
  if name == 'ssd':
    given, expected = {'min_negatives': 5, 'positive_iou': 0.4}, {'min_negatives': 5, 'iou_threshold': 0.4}
  task, again = (tasks.create(name, model, CLASSES, **given, iou_threshold=0.25, voc_ap='eleven') for _ in range(2))
  assert dict(task.criterion.options) == expected and dict(task.decode.options) == {'iou_threshold': 0.25}
  assert len(task.metrics()) == 2 and hash(task) == hash(again)


def test_an_image_without_objects_teaches_ssd_only_with_min_negatives():
  model = models.create('ssd_small', num_classes=3, width=4)
  anchors = model.anchors((32, 48))
  outputs = {'logits': np.zeros((1, len(anchors), 4), np.float32), 'deltas': np.zeros((1, len(anchors), 4), np.float32)}
  batch = {'image': np.zeros((1, 32, 48, 3)), 'boxes': np.zeros((1, 2, 4)), 'labels': np.zeros((1, 2), int),
           'boxes_valid': np.zeros((1, 2), bool), 'valid': np.ones(1, bool)}
  criterions = [tasks.create('ssd', model, CLASSES, **options).criterion for options in ({}, {'min_negatives': 7})]
  quiet, taught = jax.jit(lambda outputs, batch: [c(outputs, batch)['loss_class'] for c in criterions])(outputs, batch)
  np.testing.assert_allclose((quiet.total, taught.total), (0, 7 * np.log(4)), rtol=1e-6)
  assert quiet.count == taught.count == 0


@every_row
@pytest.mark.parametrize('other', NAMES)
def test_a_model_with_other_outputs_is_refused_in_one_line(name, other):
  if other != name:
    with pytest.raises(ValueError, match=f'task {name} needs a model with the outputs logits, .* {name}_small; '):
      tasks.create(name, models.create(f'{other}_small'), CLASSES)


def test_what_a_refused_model_has_is_said():
  for name, other, said in (
      ('retinanet', 'ssd', 'deltas, without a background, such as retinanet_small; SSD has logits, deltas, with a'),
      ('ssd', 'retinanet', 'deltas, with a background, such as ssd_small; RetinaNet has logits, deltas, without a ba'),
      ('fcos', 'yolov2', 'centerness, without a background, such as fcos_small; YOLOv2 names none')):
    with pytest.raises(ValueError, match=said):
      tasks.create(name, models.create(f'{other}_small', num_classes=3), CLASSES)


@pytest.mark.parametrize(('name', 'option'), [
    *((name, 'max_detections') for name in ('yolov1', 'yolov2', 'yolov3', 'detr', 'faster_rcnn', *NAMES)),
    *((name, 'pre_nms') for name in ('yolov2', 'yolov3', *NAMES)),
    ('faster_rcnn', 'roi_samples'), ('faster_rcnn', 'rpn_samples')])
def test_numbers_with_which_nothing_would_be_found_or_learned_are_refused(name, option):
  model = models.create(f'{name.replace("faster_rcnn", "fasterrcnn")}_small', num_classes=3)
  with pytest.raises(ValueError, match=f'task {name}: {option} is 0; give 1 or more'):
    tasks.create(name, model, CLASSES, **{option: 0})
