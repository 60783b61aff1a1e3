"""DETR's row of the tasks: it trains, pads, weighs and decodes; the configs' rules and canvases."""

import functools
import re

import jax
import numpy as np
import pytest

from tests.configs.test_configs import load
from tests.models import drawn
from vision_jax import build, models, tasks
from vision_jax.conventions import ClassMap
from vision_jax.tasks.base import resolve_weights
from vision_jax.train import optim
from vision_jax.train import step as step_lib
from vision_jax.train.state import state_shapes, to_host

TINY = {'stride': 8, 'width': 4, 'num_queries': 6, 'hidden_dim': 8, 'num_heads': 2, 'encoder_layers': 1,
        'decoder_layers': 2, 'mlp_dim': 8}
CLASSES = ClassMap(('a', 'b', 'c'))
QUICK = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


@functools.cache
def digits():
  """The experiment of the small config with a tiny model, a batch, and drawn variables."""
  config = load('digits_scenes_detr')[1].to_dict()
  config['model'].update(TINY)
  config['data'].update(train_size=8, val_size=4, batch_size=4, workers=0)
  config['optim']['warmup'] = '0 steps'
  config['train'].update(duration='2 steps', eval_every='2 steps', ema_decay=None)
  experiment = build.experiment(config)
  batch = experiment.train_loader.batch(0)
  # Drawn, as compiling the initialisation takes longer than the step's.
  return experiment, batch, drawn.variables(experiment.task.module, batch['image'])


@functools.cache
def evaluated():
  """(variables, batch) -> (terms, outputs, predictions)."""
  task = digits()[0].task

  def run(variables, batch):
    outputs = task.module.apply(variables, method=functools.partial(task.forward, batch=batch, keys=None, train=False))
    terms, _, _ = task.loss(variables['params'], {'batch_stats': variables['batch_stats']}, batch, jax.random.key(0), 0,
                            False)
    return terms, outputs, task.predict(variables, batch)

  run = QUICK(run)
  return lambda *given: jax.device_get(run(*given))


@pytest.mark.slow
def test_two_real_steps_on_digit_scenes_change_every_part_and_log_every_layer():
  experiment, batch, variables = digits()
  empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state_shapes(
      experiment.task, experiment.optimiser, batch))
  before = empty.replace(params=variables['params'], model_state={'batch_stats': variables['batch_stats']})
  step, state, logs = step_lib.make_train_step(experiment.task, experiment.optimiser), step_lib.replicate(before), []
  for i in range(2):
    state, log = step(state, step_lib.shard_batch(experiment.train_loader.batch(i)))
    logs.append(jax.device_get(log))
  names = [f'loss_{kind}{layer}' for kind in ('class', 'box', 'giou') for layer in ('', '_0')]
  assert {name for name in logs[0] if name.startswith('loss_')} == set(names)
  assert all(np.isfinite(value) for log in logs for value in log.values())
  weights = {'class': 1, 'box': 5, 'giou': 2}
  np.testing.assert_allclose(logs[0]['loss'], sum(weights[name.split('_')[1]] * logs[0][name] for name in names),
                             rtol=1e-5)
  changed = jax.tree.map(lambda a, b: bool((a != b).any()), before.params, to_host(state).params)
  assert set(changed) == {'backbone_0', 'input_proj', 'query_embed', 'transformer', 'class_embed', 'bbox_embed'}
  assert all(any(jax.tree.leaves(part)) for part in changed.values())


@pytest.mark.medium
def test_what_invalid_rows_and_slots_hold_changes_no_term_and_no_prediction():
  _, batch, variables = digits()
  batch = {**batch, 'valid': np.array([True, True, False, True])}
  real = batch['boxes_valid'] & batch['valid'][:, None]
  spoiled = {**batch, 'boxes': np.where(real[..., None], batch['boxes'], np.nan).astype(np.float32),
             'labels': np.where(real, batch['labels'], 10**9).astype(np.int32),
             'image': np.where(batch['valid'][:, None, None, None], batch['image'], 1e9).astype(np.float32),
             'image_size': np.where(batch['valid'][:, None], batch['image_size'], 0).astype(np.int32)}
  terms, _, found = evaluated()(variables, batch)
  same_terms, _, same = evaluated()(variables, spoiled)
  for a, b in zip(jax.tree.leaves(terms), jax.tree.leaves(same_terms), strict=True):
    np.testing.assert_allclose(b, a, rtol=1e-6)
  for name, value in found.items():
    np.testing.assert_allclose(same[name][batch['valid']], value[batch['valid']], rtol=1e-5, atol=1e-5)
  assert found['boxes'].shape == (4, 6, 4) and found['valid'].dtype == bool and not same['valid'][2].any()


@pytest.mark.medium
def test_the_content_s_size_reaches_the_model_the_loss_and_the_decoding():
  _, batch, variables = digits()
  half = {**batch, 'image_size': batch['image_size'] // 2}
  (terms, whole, found), (half_terms, part, half_found) = (evaluated()(variables, b) for b in (batch, half))
  assert np.abs(whole['logits'] - part['logits']).max() > 1e-6
  assert abs(terms['loss_box'].total - half_terms['loss_box'].total) > 1e-3
  assert found['boxes'].max() > 64 >= half_found['boxes'].max() > 8


def test_a_model_without_queries_is_refused_and_the_losses_options_are_reached():
  with pytest.raises(ValueError, match='task detr needs a model with queries, such as detr_small; ResNet has none'):
    tasks.create('detr', models.create('resnet18'), CLASSES)
  module = models.create('detr_small', num_classes=3)
  task = tasks.create('detr', module, CLASSES, no_object_weight=0.2, box_cost=3.0, max_detections=7)
  assert dict(task.criterion.options) == {'no_object_weight': 0.2, 'box_cost': 3.0}
  assert dict(task.decode.options) == {'max_detections': 7} and hash(task) == hash(task)
  names = [f'loss_{kind}{layer}' for kind in ('class', 'box', 'giou') for layer in ('', '_0', '_1')]
  assert resolve_weights(task.weights, names)['loss_giou_1'] == 2.0


def test_the_paper_s_rules_freeze_norms_stem_and_first_stage_and_slow_the_backbone():
  module, config = load('coco_detr')
  params = jax.eval_shape(models.create('detr_resnet50').init, jax.random.key(0),
                          np.zeros((1, 64, 64, 3), np.float32))['params']
  rules = optim.parameter_rules(params, [tuple(rule) for rule in config.to_dict()['optim']['rules']])
  rules = jax.tree.leaves(rules, is_leaf=lambda x: 'frozen' in x)
  flat = {jax.tree_util.keystr(path, simple=True, separator='/'): (leaf, rule) for (path, leaf), rule in zip(
      jax.tree_util.tree_leaves_with_path(params), rules, strict=True)}
  assert all(rule['decay'] == 1 for _, rule in flat.values())
  slow = {name for name, (_, rule) in flat.items() if rule['lr'] != 1}
  assert slow == {name for name in flat if name.startswith('backbone_0/')}
  trained = sum(leaf.size for leaf, rule in flat.values() if not rule['frozen'])
  # The authors' 41,302,368 for 91 classes, with the 256 + 1 numbers of eleven classes less.
  assert trained == 41_302_368 - 11 * 257
  assert not any(rule['frozen'] for name, (_, rule) in flat.items() if not name.startswith('backbone_0/'))
  assert any(re.search(module.FROZEN, name) for name in flat)


@pytest.mark.slow
def test_the_paper_s_config_traces_a_training_step_at_its_largest_canvas():
  config = load('coco_detr')[1].to_dict()
  side = max(config['data']['canvas'])
  config['data'].update(name='digit_scenes', canvas=side, train_size=2, val_size=2, batch_size=2, workers=0)
  experiment = build.experiment(config)
  batch = experiment.train_loader.batch(0)
  shapes = dict(jax.eval_shape(experiment.task.init, jax.random.key(0), batch))
  params = shapes.pop('params')
  terms, _, state = jax.eval_shape(lambda *given: experiment.task.loss(*given, 0, True), params, shapes, batch,
                                   jax.random.key(0))
  assert len(terms) == 18 and jax.tree.structure(state) == jax.tree.structure(shapes)
  predictions = jax.eval_shape(experiment.task.predict, {'params': params, **shapes}, batch)
  assert predictions['boxes'].shape == (2, 100, 4) and batch['image'].shape == (2, 1066, 1066, 3)
