"""Faster R-CNN as a task: it learns from real batches, samples by place, and takes proposals from outside."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import drawn
from tests.tasks import steps
from vision_jax import build, models, tasks
from vision_jax.conventions import ClassMap
from vision_jax.tasks.detection import example_keys
from vision_jax.train import optim

CLASSES = ClassMap(('a', 'b', 'c'))


@functools.cache
def experiment():
  return build.experiment({
      'task': {'name': 'faster_rcnn', 'score_threshold': 0.005, 'max_detections': 30, 'rpn_samples': 32,
               'roi_samples': 12},
      'model': {'name': 'fasterrcnn_small', 'width': 4, 'hidden': 16, 'pool_size': 3, 'post_nms': (24, 16)},
      'data': {'name': 'digit_scenes', 'train_size': 4, 'val_size': 4, 'batch_size': 4, 'canvas': (64, 96),
               'max_objects': 8},
      'optim': {'name': 'sgd', 'lr': 1e-3}, 'train': {'duration': '4 steps'}})


@functools.cache
def two_steps():
  return steps.two_steps(experiment())


@pytest.mark.medium
def test_two_real_steps_on_digit_scenes_lower_the_loss_whatever_empty_slots_hold():
  (clean, other), _, (first, second, spoiled_log) = two_steps()
  assert {name for name in first if name.startswith('loss_')} == {
      'loss_rpn_objectness', 'loss_rpn_box', 'loss_class', 'loss_box'}
  assert all(np.isfinite(value) and value > 0 for value in (*first.values(), *second.values()))
  assert second['loss'] < first['loss']
  assert spoiled_log == second  # bit for bit
  jax.tree.map(np.testing.assert_array_equal, other, clean)


@pytest.mark.medium
def test_predictions_are_boxes_inside_the_content_at_most_as_many_as_asked_for():
  (state, _), batch, _ = two_steps()
  batch = {**batch, 'image_size': np.tile(np.array([40, 60], np.int32), (4, 1))}
  found = jax.device_get(jax.jit(experiment().task.predict)(state.evaluation_variables(), batch))
  assert found['boxes'].shape == (4, 30, 4) and found['valid'].any(1).all()
  x1, y1, x2, y2 = found['boxes'][found['valid']].T
  assert (x1 >= 0).all() and (x1 < x2).all() and (x2 <= 60).all()
  assert (y1 >= 0).all() and (y1 < y2).all() and (y2 <= 40).all()
  assert (np.diff(found['scores']) <= 0).all() and set(found['labels'].ravel()) <= set(range(10))


# ---- what stands between the stages, on a module that is none ----


class Stages:
  """A stand-in for a bound module, whose maps are the image and whose heads give back the regions they saw."""

  def features(self, image, *, train):
    return (image,)

  def propose(self, maps, canvas, image_size, *, train):
    return {'proposals': maps[0][:, :, :4, 0], 'proposals_valid': jnp.ones(maps[0].shape[:2], bool)}

  def heads(self, maps, boxes, valid, *, train):
    return {'seen': boxes, 'seen_valid': valid}

  anchors = None


def batch_of(images=2, proposals=40):
  rng = np.random.default_rng(0)
  corner = rng.uniform(0, 40, (images, proposals, 2))
  regions = np.concatenate([corner, corner + rng.uniform(4, 24, (images, proposals, 2))], -1).astype(np.float32)
  return {'image': regions[..., None], 'image_size': np.full((images, 2), 64, np.int32), 'boxes': regions[:, :3],
          'labels': np.tile(np.arange(3, dtype=np.int32), (images, 1)), 'boxes_valid': np.ones((images, 3), bool),
          'valid': np.ones(images, bool), 'position': np.arange(images, dtype=np.int32)}


@functools.cache
def forward():
  """`(batch, key) -> outputs` with a sample for the loss: 10 regions, 2 of them positive at most."""
  task = tasks.create('faster_rcnn', Stages(), CLASSES, roi_samples=10, roi_positive_fraction=0.2)
  return task.forward, jax.jit(lambda batch, key: task.forward(Stages(), batch, True, example_keys(key, batch)))


@pytest.mark.medium
def test_the_heads_see_a_sample_in_the_loss_and_all_proposals_in_prediction():
  batch = batch_of()
  found = forward()[0](Stages(), batch, False)
  np.testing.assert_array_equal(found['seen'], found['proposals'])
  found = forward()[1](batch, jax.random.key(0))
  assert found['seen'].shape == (2, 10, 4) and found['samples'].positive.sum(1).tolist() == [2, 2]
  np.testing.assert_array_equal(found['seen'], found['samples'].boxes)


@pytest.mark.medium
def test_samples_follow_an_image_s_place_in_the_global_batch_and_not_in_the_local_one():
  batch, sample = batch_of(), forward()[1]
  found = sample(batch, jax.random.key(0))
  swapped = sample({name: value[::-1] for name, value in batch.items()}, jax.random.key(0))
  moved = sample({**batch, 'position': batch['position'] + 2}, jax.random.key(0))
  for name in ('seen', 'rpn_keys'):
    first, second, third = (jax.random.key_data(x[name]) if name == 'rpn_keys' else np.asarray(x[name])
                            for x in (found, swapped, moved))
    np.testing.assert_array_equal(first, second[::-1])
    assert (first != third).any((-1, *range(1, first.ndim - 1))).all()


@pytest.mark.slow
def test_proposals_of_the_batch_take_the_place_of_the_module_s_and_have_no_loss():
  batch = batch_of()
  given = {'proposals': batch['image'][:, ::-1, :, 0] + 1, 'proposals_valid': np.arange(40) < np.array([[40], [7]])}
  task = tasks.create('faster_rcnn', Stages(), CLASSES, external_proposals=True, roi_samples=20,
                      add_ground_truth=False)
  found = task.forward(Stages(), batch | given, False)
  np.testing.assert_array_equal(found['seen'], given['proposals'])
  np.testing.assert_array_equal(found['seen_valid'], given['proposals_valid'])
  found = jax.jit(lambda batch: task.forward(Stages(), batch, True, example_keys(jax.random.key(0), batch)))(
      batch | given)
  assert found['samples'].valid.sum(1).tolist() == [20, 7]
  terms = task.criterion(found | {'logits': jnp.zeros((2, 20, 4)), 'box_deltas': jnp.zeros((2, 20, 4, 4))}, batch)
  assert tuple(name for name, _ in task.weights) == ('loss_class', 'loss_box') and set(terms) == set(dict(task.weights))
  only = task.forward(Stages(), batch | {'proposals': given['proposals']}, False)
  assert only['seen_valid'].all()
  with pytest.raises(ValueError, match=r"external_proposals needs batch\['proposals'\] .*; the batch has boxes, "):
    task.forward(Stages(), batch, False)


@pytest.mark.slow
def test_a_small_network_detects_in_proposals_from_outside():
  model = models.create('fasterrcnn_small', num_classes=3, width=4, hidden=8, pool_size=2)
  task = tasks.create('faster_rcnn', model, CLASSES, external_proposals=True, score_threshold=0.0, max_detections=6)
  image = np.random.default_rng(0).standard_normal((2, 64, 96, 3)).astype(np.float32)
  batch = {'image': image, 'image_size': np.array([[64, 96]] * 2), 'proposals': np.float32([[[8, 8, 30, 40]] * 2] * 2),
           'proposals_valid': np.array([[True, False], [False, False]])}
  found = jax.device_get(jax.jit(task.predict)(drawn.variables(model, image), batch))
  # One proposal and three classes, of which a box without area in the image is none.
  labels = found['labels'][found['valid']].tolist()
  assert found['valid'].any(1).tolist() == [True, False] and len(set(labels)) == len(labels) <= 3


@pytest.mark.parametrize('pooling', ['align', 'max'])
def test_no_proposals_from_outside_are_no_detections_and_no_error(pooling):
  model = models.create('fasterrcnn_small', num_classes=3, width=4, hidden=8, pool_size=2).clone(pooling=pooling)
  task = tasks.create('faster_rcnn', model, CLASSES, external_proposals=True, max_detections=6, roi_samples=4)
  batch = batch_of() | {'image': np.zeros((2, 64, 96, 3), np.float32), 'proposals': np.zeros((2, 0, 4), np.float32)}
  variables = drawn.shapes(model, 2, 64, 96, 3)[1]
  found = jax.eval_shape(task.predict, variables, batch)
  assert found['boxes'].shape == (2, 6, 4)
  terms = jax.eval_shape(lambda variables: task.loss(variables['params'], {'batch_stats': variables['batch_stats']},
                                                     batch, jax.random.key(0), 0, True)[0], variables)
  assert set(terms) == {'loss_class', 'loss_box'}
  outputs = {'logits': np.zeros((2, 0, 4), np.float32), 'box_deltas': np.zeros((2, 0, 4, 4), np.float32),
             'proposals': batch['proposals'], 'proposals_valid': np.zeros((2, 0), bool)}
  assert pooling == 'max' or not jax.jit(task.decode)(outputs, batch)['valid'].any()


def test_a_rule_keeps_the_network_for_proposals_as_it_is_where_they_come_from_outside():
  params = drawn.shapes(models.create('fasterrcnn_small', num_classes=3, width=4), 1, 64, 64, 3)[1]['params']
  assert all(leaf['frozen'] == (np.inf if part == 'rpn' else 0)
             for part, table in optim.parameter_rules(params, (('^rpn/', {'freeze': True}),)).items()
             for leaf in jax.tree.leaves(table, is_leaf=lambda x: 'frozen' in x))
  assert 'rpn' in params


@pytest.mark.medium
def test_the_assignment_of_both_stages_is_the_sample_that_the_loss_learns():
  (state, _), batch, _ = two_steps()
  stages = jax.device_get(jax.jit(experiment().task.assignment)(state.evaluation_variables(), batch,
                                                                jax.random.key(0)))
  assert set(stages) == {'proposals', 'regions'}
  proposals, regions = stages['proposals'], stages['regions']
  assert sum(proposals.levels) == proposals.boxes.shape[1]
  assert ((proposals.positive | proposals.negative).sum(1) == 32).all()
  assert regions.boxes.shape == (4, 12, 4) and (regions.positive.sum(1) <= 3).all()
  with_objects = batch['boxes_valid'].any(1)
  assert (proposals.positive.any(1) == with_objects).all() and (regions.positive.any(1) == with_objects).all()


def test_options_reach_losses_sampling_and_decoding_and_have_their_defaults_there_alone():
  model = models.create('fasterrcnn_small', num_classes=3)
  options = {'rpn_positive_iou': 0.6, 'rpn_samples': 64, 'roi_samples': 32, 'roi_iou': 0.4, 'beta': 0.0,
             'iou_threshold': 0.25, 'voc_ap': 'eleven'}
  task = tasks.create('faster_rcnn', model, CLASSES, **options)
  assert dict(task.forward.sampling) == {'size': 32, 'iou_threshold': 0.4}
  assert dict(task.criterion.rpn) == {'positive_iou': 0.6, 'size': 64, 'beta': 0.0}
  assert dict(task.criterion.roi) == {'beta': 0.0} and dict(task.decode.options) == {'iou_threshold': 0.25}
  assert len(task.metrics()) == 2 and hash(task) == hash(tasks.create('faster_rcnn', model, CLASSES, **options))


def test_a_model_without_stages_is_refused_in_one_line():
  with pytest.raises(ValueError, match='task faster_rcnn needs a model with the stages .*; FCOS has no features, prop'):
    tasks.create('faster_rcnn', models.create('fcos_small'), CLASSES)
