"""The YOLOs as tasks: they learn from real batches, and their options reach losses and decoding."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.models import drawn
from vision_jax import build, losses, models, tasks
from vision_jax.conventions import ClassMap
from vision_jax.train import step as step_lib
from vision_jax.train.state import state_shapes, to_host

CLASSES = ClassMap(('a', 'b', 'c'))


@pytest.mark.medium
@pytest.mark.parametrize(('task', 'options'), [pytest.param('yolov1', {}, marks=pytest.mark.slow),
                                               ('yolov2', {'prior': True}),
                                               pytest.param('yolov3', {}, marks=pytest.mark.slow)])
def test_two_real_steps_on_digit_scenes_lower_the_loss_and_predict(task, options):
  experiment = build.experiment({
      'task': {'name': task, **options}, 'model': {'name': f'{task}_small', 'width': 4},
      'data': {'name': 'digit_scenes', 'train_size': 4, 'val_size': 4, 'batch_size': 4, 'canvas': (96, 128),
               'max_objects': 8},
      'optim': {'name': 'sgd', 'lr': 1e-4}, 'train': {'duration': '4 steps'}})
  host = experiment.train_loader.batch(0)
  # Drawn, as compiling the initialisation takes longer than the step's; momentum begins at 0.
  variables = drawn.variables(experiment.task.module, host['image'])
  state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state_shapes(
      experiment.task, experiment.optimiser, host))
  state = step_lib.replicate(state.replace(params=variables.pop('params'), model_state=variables))
  batch, step = step_lib.shard_batch(host), step_lib.make_train_step(experiment.task, experiment.optimiser)
  state, first = step(state, batch)
  state, second = step(state, batch)
  assert 0 < float(second['loss']) < float(first['loss'])
  found = jax.eval_shape(experiment.task.predict, to_host(state).evaluation_variables(), host)
  assert found['boxes'].shape == (4, 100, 4)


def test_the_weights_of_the_rows_are_the_paper_s_and_darknet_s():
  one = tasks.create('yolov1', models.create('yolov1_small', num_classes=3), CLASSES)
  assert dict(one.weights) == losses.YOLOV1_WEIGHTS and one.criterion.options['boxes_per_cell'] == 2
  two = models.create('yolov2_small', num_classes=3)
  assert dict(tasks.create('yolov2', two, CLASSES).weights) == losses.YOLOV2_WEIGHTS
  assert dict(tasks.create('yolov2', two, CLASSES, prior=True).weights)['loss_prior'] == 0.01


def test_options_of_losses_and_decoding_can_be_reached_from_the_rows_and_have_their_defaults_there_alone():
  one = tasks.create('yolov1', models.create('yolov1_small', num_classes=3), CLASSES, best_class=False,
                     objectness_target='binary')
  assert one.decode.options['best_class'] is False and one.criterion.options['objectness_target'] == 'binary'
  two = tasks.create('yolov2', models.create('yolov2_small', num_classes=3), CLASSES, box_loss='ciou', pre_nms=9)
  assert two.criterion.options['box_loss'] == 'ciou' and two.decode.options['pre_nms'] == 9
  three = tasks.create('yolov3', models.create('yolov3_small', num_classes=3), CLASSES, box_loss='giou', pre_nms=9)
  assert three.criterion.options['box_loss'] == 'giou' and three.decode.options['pre_nms'] == 9
  plain = tasks.create('yolov3', three.module, CLASSES)
  assert set(plain.criterion.options) == set(plain.decode.options) == {'anchors', 'strides'}
  assert set(dict(plain.weights).values()) == {1}
  for row in (one, two, three):
    assert 'iou_threshold' not in row.decode.options
  with pytest.raises(ValueError, match='task yolov2 needs a model with anchors, stride, such as yolov2_small'):
    tasks.create('yolov2', models.create('yolov1_small'), CLASSES)
