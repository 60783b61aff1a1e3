"""What every task keeps: float32 where it counts, padding without effect, predictions of static shape."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax import build, models, tasks
from vision_jax.conventions import ClassMap
from vision_jax.models.classification.resnet import ResNet
from vision_jax.models.freezing import Frozen
from vision_jax.train import step as step_lib
from vision_jax.train.state import create_state, to_host

CLASSES = ClassMap(('a', 'b', 'c'))
B, N, H, W = 4, 5, 32, 48


def batch_for(kind, seed=0):
  rng = np.random.default_rng(seed)
  batch = {'image': rng.normal(size=(B, H, W, 3)).astype(np.float32), 'valid': np.array([True, True, False, True]),
           'image_size': np.tile(np.array([H, W], np.int32), (B, 1)), 'index': np.arange(B, dtype=np.int32),
           'position': np.arange(B, dtype=np.int32)}
  corner = rng.uniform(0, [W - 16, H - 16], (B, N, 2))
  targets = {
      'classification': {'label': rng.integers(0, 3, B).astype(np.int32)},
      'detection': {'boxes': np.concatenate([corner, corner + rng.uniform(6, 14, (B, N, 2))], -1).astype(np.float32),
                    'labels': rng.integers(0, 3, (B, N)).astype(np.int32),
                    'boxes_valid': np.arange(N) < np.array([3, 0, 5, 1])[:, None]},
      'segmentation': {'segmentation': rng.integers(0, 3, (B, H, W)).astype(np.int32),
                       'pixels_valid': rng.random((B, H, W)) < 0.8},
  }
  return {**batch, **targets[kind]}


def spoiled(batch, kind):
  """The same batch with other values wherever nothing is real."""
  batch = {name: value.copy() for name, value in batch.items()}
  if kind == 'classification':
    batch['label'][~batch['valid']] = 10**9
  if kind == 'detection':
    unreal = ~batch['boxes_valid'] | ~batch['valid'][:, None]
    batch['boxes'][unreal] = np.nan
    batch['boxes'][2, 0] = 1e9
    batch['labels'][unreal] = -(10**9)
  if kind == 'segmentation':
    batch['segmentation'][~batch['pixels_valid'] | ~batch['valid'][:, None, None]] = 10**9
  return batch


MODELS = {'classification': ('classification', functools.partial(ResNet, 'basic', (1, 1), stem='small', width=4)),
          'detection': ('yolov3', functools.partial(models.create, 'yolov3_small', width=4)),
          'segmentation': ('segmentation', functools.partial(models.create, 'unet_small', width=4))}


def make(kind, **options):
  task, model = MODELS[kind]
  return tasks.create(task, model(num_classes=3, **options), CLASSES)


def evaluate_loss(task, variables, batch):
  params = variables['params']
  state = {name: value for name, value in variables.items() if name != 'params'}

  def objective(params):
    terms, _, _ = task.loss(params, state, batch, jax.random.key(0), jnp.int32(0), False)
    return sum(term.total / jnp.maximum(term.count, term.floor) for term in terms.values()), terms

  return jax.jit(jax.value_and_grad(objective, has_aux=True))(params)


@pytest.mark.medium
@pytest.mark.parametrize('kind', ['classification', *(pytest.param(kind, marks=pytest.mark.slow)
                                                      for kind in ('detection', 'segmentation'))])
def test_what_stands_in_invalid_rows_slots_and_pixels_changes_neither_loss_nor_gradient(kind):
  task, batch = make(kind), batch_for(kind)
  variables = jax.jit(task.init)(jax.random.key(0), batch)
  one, two = evaluate_loss(task, variables, batch), evaluate_loss(task, variables, spoiled(batch, kind))
  chex.assert_tree_all_finite(one)
  chex.assert_trees_all_equal(one, two)


@pytest.mark.parametrize('kind', MODELS)
def test_under_bfloat16_parameters_statistics_losses_and_predictions_stay_float32(kind):
  task, batch = make(kind, dtype='bfloat16'), batch_for(kind)
  variables = dict(jax.eval_shape(task.init, jax.random.key(0), batch))
  params = variables.pop('params')
  step = jnp.int32(0)
  terms, scalars, state = jax.eval_shape(lambda *args: task.loss(*args, True), params, variables, batch,
                                         jax.random.key(0), step)
  predictions = jax.eval_shape(task.predict, {'params': params, **variables}, batch)
  floats = [leaf for leaf in jax.tree.leaves((params, variables, terms, scalars, state, predictions))
            if jnp.issubdtype(leaf.dtype, jnp.floating)]
  assert {leaf.dtype for leaf in floats} == {jnp.dtype('float32')}


@pytest.mark.parametrize('kind', MODELS)
def test_under_bfloat16_the_products_are_computed_in_bfloat16(kind):
  task, batch = make(kind, dtype='bfloat16'), batch_for(kind)
  variables = jax.eval_shape(task.init, jax.random.key(0), batch)
  jaxpr = str(jax.make_jaxpr(task.predict)(variables, batch))
  products = [line for line in jaxpr.splitlines() if 'conv_general_dilated[' in line or 'dot_general[' in line]
  assert products
  assert sum('bf16' in line for line in products) > len(products) / 2, products


@pytest.mark.slow
def test_digits_in_bfloat16_reach_within_a_point_of_float32():
  top1 = {}
  for dtype in ('float32', 'bfloat16'):
    experiment = build.experiment({
        'task': {'name': 'classification'}, 'model': {'name': 'lenet5', 'dtype': dtype},
        'data': {'name': 'digits', 'batch_size': 64, 'canvas': (32, 32)},
        'optim': {'name': 'adamw', 'lr': 2e-3, 'warmup': '1 epochs'}, 'train': {'duration': '12 epochs'}})
    loader = experiment.train_loader
    state = step_lib.replicate(create_state(experiment.task, experiment.optimiser, loader.batch(0)))
    step = step_lib.make_train_step(experiment.task, experiment.optimiser)
    for i in range(experiment.fit_options['steps']):
      state, _ = step(state, step_lib.shard_batch(loader.batch(i)))
    metrics, _ = experiment.evaluate(to_host(state))
    top1[dtype] = metrics['top1']
  assert top1['float32'] > 0.9
  assert abs(top1['float32'] - top1['bfloat16']) <= 0.01


@pytest.mark.medium
def test_the_loss_of_a_mixed_image_is_that_of_both_classes_by_their_shares():
  task, batch = make('classification'), batch_for('classification')
  variables = jax.jit(task.init)(jax.random.key(0), batch)
  other = np.array([2, 0, 10**9, 1], np.int32)
  mix = np.array([0.25, 1.0, np.nan, 0.6], np.float32)  # the third row is invalid
  objective = jax.jit(lambda params, batch: task.loss(
      params, {k: v for k, v in variables.items() if k != 'params'}, batch, jax.random.key(0), 0, False)[0])
  mixed = objective(variables['params'], {**batch, 'mixed_label': other, 'mix': mix})['loss_class'].total
  logits = np.asarray(jax.jit(task.predict)(variables, batch)['probabilities'], np.float64)
  expected = -sum(m * np.log(p[a]) + (1 - m) * np.log(p[b]) for p, a, b, m, valid in zip(
      logits, batch['label'], other, mix, batch['valid'], strict=True) if valid)
  assert float(mixed) == pytest.approx(expected, rel=1e-5)  # float32


class TwoHeads(nn.Module):
  """Logits and those of two auxiliary heads, which see the means of the channels; `aux` as in GoogLeNet."""

  aux: bool = True

  def setup(self):
    self.fc, self.aux1, self.aux2 = nn.Dense(3), nn.Dense(3), nn.Dense(3)

  def __call__(self, x, *, train=False):
    found = self.with_auxiliaries(x, train=train)
    return found[0]

  def with_auxiliaries(self, x, *, train=False):
    x = x.mean((1, 2))
    return self.fc(x), self.aux1(x), self.aux2(x)

  @property
  def auxiliary_weights(self):
    return (0.3, 0.2) if self.aux else ()


def test_training_adds_the_losses_of_auxiliary_heads_by_the_modules_weights_and_an_evaluation_does_not():
  batch = batch_for('classification')
  batch |= {'mixed_label': np.array([2, 0, 10**9, 1], np.int32), 'mix': np.array([0.25, 1.0, np.nan, 0.6], np.float32)}
  task = tasks.create('classification', Frozen(TwoHeads()), CLASSES, label_smoothing=0.1)
  params = task.init(jax.random.key(0), batch)['params']
  train, evaluation = (task.loss(params, {}, batch, jax.random.key(0), 0, train)[0] for train in (True, False))
  real, mean = batch['valid'], batch['image'].mean((1, 2)).astype(np.float64)

  def truth(head):
    logits = mean @ np.asarray(params[head]['kernel'], np.float64)  # biases begin at 0
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    one_hot = np.eye(3)
    target = [m * one_hot[a] + (1 - m) * one_hot[b] for m, a, b in zip(
        batch['mix'][real], batch['label'][real], batch['mixed_label'][real], strict=True)]
    return -((0.9 * np.array(target) + 0.1 / 3) * log[real]).sum()

  assert set(evaluation) == {'loss_class'} and set(train) == {'loss_class', 'loss_auxiliary'}
  for terms in (train, evaluation):
    assert float(terms['loss_class'].total) == pytest.approx(truth('fc'), rel=1e-5)  # float32
  assert float(train['loss_auxiliary'].total) == pytest.approx(0.3 * truth('aux1') + 0.2 * truth('aux2'), rel=1e-5)
  assert train['loss_auxiliary'].count is train['loss_class'].count and float(train['loss_class'].count) == 3
  assert tasks.resolve_weights(task.weights, tuple(train)) == {'loss_class': 1.0, 'loss_auxiliary': 1.0}
  without = tasks.create('classification', TwoHeads(aux=False), CLASSES)
  assert set(without.loss(params, {}, batch, jax.random.key(0), 0, True)[0]) == {'loss_class'}


@pytest.mark.medium
@pytest.mark.parametrize(('name', 'size', 'heads'), [('googlenet', (32, 48), ('aux1', 'aux2')),
                                                     ('inception_v3', (299, 299), ('AuxLogits',))])
def test_the_auxiliary_heads_of_the_zoo_are_trained_with_their_statistics_where_they_are_switched_on(name, size, heads):
  batch = {**batch_for('classification'), 'image': np.zeros((B, *size, 3), np.float32)}
  for aux in (True, False):
    task = tasks.create('classification', models.create(name, num_classes=3, aux=aux), CLASSES)
    variables = jax.eval_shape(task.init, jax.random.key(0), batch)
    terms, _, state = jax.eval_shape(lambda v, task=task: task.loss(
        v['params'], {'batch_stats': v['batch_stats']}, batch, jax.random.key(0), 0, True), variables)
    assert ('loss_auxiliary' in terms) == aux
    assert all((head in variables['params']) == aux for head in heads)
    assert jax.tree.structure(state['batch_stats']) == jax.tree.structure(variables['batch_stats'])


def test_the_options_of_the_losses_can_be_reached_from_the_tasks():
  task = make('detection')
  assert not {'match', 'ignore'} & set(task.criterion.options)  # the defaults are the loss's own
  model = models.create('yolov3_small', num_classes=3, width=4)
  other = tasks.create('yolov3', model, CLASSES, match='per_level', ignore='anchor', voc_ap='eleven')
  assert other.criterion.options['match'] == 'per_level' and other.criterion.options['ignore'] == 'anchor'
  assert 'VOC_AP' in other.metrics()[1].result() and len(task.metrics()) == 1
