"""One update: what it divides by, what it accumulates, what it donates."""

import contextlib

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train import toy
from vision_jax.models.noise import Dropout
from vision_jax.tasks import base
from vision_jax.train import step as step_lib
from vision_jax.train.state import create_state, to_host

pytestmark = pytest.mark.medium  # many small compilations: together more than the fast tests can spare


def run(steps=3, *, task=None, accumulate=1, ema_decay=None, loader=None, optimiser=None):
  task, loader = task or toy.ToyTask(), loader or toy.loader()
  optimiser = optimiser or optax.adam(1e-2)
  state = create_state(task, optimiser, loader.batch(0), seed=1, ema=ema_decay is not None)
  state = step_lib.replicate(state)
  step = step_lib.make_train_step(task, optimiser, seed=1, accumulate=accumulate, ema_decay=ema_decay)
  for i in range(steps):
    state, logs = step(state, step_lib.shard_batch(loader.batch(i)))
  return to_host(state), to_host(logs)


def test_a_step_minimises_the_weighted_means_over_the_whole_batch():
  task, loader = toy.ToyTask(), toy.loader()
  optimiser = optax.sgd(0.1)
  state = create_state(task, optimiser, loader.batch(0), seed=1)
  batch = loader.batch(0)

  def objective(params):
    terms, _, _ = task.loss(params, {}, batch, jax.random.key(0), 0, True)
    objects, images = terms['loss_object'], terms['loss_image']
    return objects.total / objects.count + 0.5 * images.total / images.count

  expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, jax.grad(objective)(state.params))
  step = step_lib.make_train_step(task, optimiser, seed=1)
  before = objective(state.params)
  new, logs = step(state, step_lib.shard_batch(batch))
  chex.assert_trees_all_close(to_host(new.params), expected, atol=1e-6)
  np.testing.assert_allclose(logs['loss'], before, rtol=1e-6)
  assert int(new.step) == 1


def test_four_micro_batches_give_what_one_batch_gives_with_uneven_objects():
  once, logs_once = run()
  # The last batch has objects 4, 1, 0, 9, 0, 0, 1, 0 in some order: micro-batches of 2 images differ much.
  accumulated, logs = run(accumulate=4)
  # Sums of float32 in another order.
  chex.assert_trees_all_close(once.params, accumulated.params, rtol=1e-5, atol=1e-6)
  chex.assert_trees_all_close(logs_once, logs, rtol=1e-5, atol=1e-6)


def test_a_batch_without_any_object_leaves_finite_values_and_only_the_other_terms_gradient():
  state, logs = run(loader=toy.loader(empty=True))
  chex.assert_tree_all_finite(state.params)
  assert logs['loss_object'] == 0.0
  assert logs['loss_image'] > 0.0


def test_the_moving_average_follows_parameters_and_batch_statistics():
  task = toy.ToyTask(toy.Net(norm=True))
  start = create_state(task, optax.adam(1e-2), toy.loader().batch(0), seed=1, ema=True)
  one, _ = run(1, task=task, ema_decay=0.9)
  # (1 + 0) / (10 + 0) = 0.1 in the first step.
  expected = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, start.ema, {'params': one.params, **one.model_state})
  chex.assert_trees_all_close(one.ema, expected, rtol=1e-6)
  assert set(one.evaluation_variables()) == {'params', 'batch_stats'}
  chex.assert_trees_all_equal(one.evaluation_variables()['params'], one.ema['params'])


@contextlib.contextmanager
def compilations():
  """A list that grows with each program that XLA compiles, or takes from the persistent cache."""
  found = []

  def listen(name, seconds, **details):
    if name.endswith('backend_compile_duration'):
      found.append(details)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield found
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize('canvases', [[(8, 12)], [(8, 12), (16, 12)]])
def test_the_step_compiles_once_for_each_canvas_over_two_epochs(canvases):
  task, optimiser = toy.ToyTask(toy.Mean()), optax.adam(1e-2)
  loaders = [toy.loader(canvas=canvas) for canvas in canvases]
  step = step_lib.make_train_step(task, optimiser)
  state = step_lib.replicate(create_state(task, optimiser, loaders[0].batch(0)))
  with compilations() as found:
    for loader in loaders:
      before = len(found)
      state, _ = step(state, step_lib.shard_batch(loader.batch(0)))
      assert len(found) > before, 'a new canvas compiles'
    before = len(found)
    for i in range(1, 2 * loaders[0].steps_per_epoch):
      for loader in loaders:
        state, _ = step(state, step_lib.shard_batch(loader.batch(i)))
    assert len(found) == before, found[before:]


def test_a_copy_taken_before_a_donated_step_keeps_its_values():
  task, loader, optimiser = toy.ToyTask(), toy.loader(), optax.sgd(0.1)
  step = step_lib.make_train_step(task, optimiser)
  state, _ = step(create_state(task, optimiser, loader.batch(0)), step_lib.shard_batch(loader.batch(0)))
  copy = to_host(state)
  values = jax.tree.map(lambda x: x.copy(), copy)
  for i in range(1, 4):
    state, _ = step(state, step_lib.shard_batch(loader.batch(i)))
  chex.assert_trees_all_equal(copy, values)
  assert not np.allclose(jax.tree.leaves(copy.params)[0], jax.tree.leaves(to_host(state).params)[0])


def test_a_fresh_state_holds_no_buffer_twice():
  state = create_state(toy.ToyTask(), optax.adam(1e-2), toy.loader().batch(0), ema=True)
  leaves = [leaf for leaf in jax.tree.leaves(state) if leaf.size]
  assert len({leaf.__array_interface__['data'][0] for leaf in leaves}) == len(leaves)


def test_a_batch_size_that_the_micro_batches_do_not_divide_is_an_error_with_the_nearest_one():
  with pytest.raises(ValueError, match='data.batch_size 30 is not divisible by 1 devices x 4 micro-batches; .* 32'):
    step_lib.check_batch_size(30, accumulate=4)


def test_weights_must_cover_every_term_and_nothing_else():
  with pytest.raises(ValueError, match='no weight for loss_image'):
    base.resolve_weights((('loss_object', 1.0),), ('loss_object', 'loss_image'))
  with pytest.raises(ValueError, match='names loss_mask, which the loss does not have; it has loss_object'):
    base.resolve_weights((('loss_object', 1.0), ('loss_mask', 1.0)), ('loss_object',))
  evaluation = base.resolve_weights((('loss_object', 1.0), ('loss_mask', 1.0)), ('loss_object',), train=False)
  assert evaluation == {'loss_object': 1.0}


DEVICES = """
import sys, pickle, jax, optax, numpy as np
from tests.train import toy
from tests.train.test_step import run
from vision_jax.train.state import create_state
out = {}
norm = {'task': toy.ToyTask(toy.Net(norm=True))}
noise = {'task': toy.ToyTask(toy.Net(dropout=0.5))}
for name, options in {'plain': {}, 'accumulated': {'accumulate': 2}, 'norm': norm, 'noise': noise,
                      'noise accumulated': {'accumulate': 2, **noise}}.items():
    out[name] = run(loader=toy.loader(48, batch_size=16), **options)
out['devices'] = jax.local_device_count()
from vision_jax.train import step as step_lib
try:
    step_lib.check_batch_size(30)
    out['refused'] = None
except ValueError as error:
    out['refused'] = str(error)
# out_axes=None would hand out device 0's values without a word, so look at every device's.
loader = toy.loader(48, batch_size=16)
task, optimiser = toy.ToyTask(toy.Net(norm=True)), optax.adam(1e-2)
state = step_lib.replicate(create_state(task, optimiser, loader.batch(0), ema=True))
step = step_lib.make_train_step(task, optimiser, ema_decay=0.9)
for i in range(3):
    state, logs = step(state, step_lib.shard_batch(loader.batch(i)))
leaves = jax.tree.leaves((state, logs))
out['replicas'] = [[np.asarray(shard.data) for shard in leaf.addressable_shards] for leaf in leaves]
pickle.dump(out, open(sys.argv[1], 'wb'))
"""


@pytest.fixture(scope='module')
def one_and_eight(tmp_path_factory, run_python):
  import pickle
  results = []
  for devices in (1, 8):
    path = tmp_path_factory.mktemp('devices') / f'{devices}.pickle'
    run_python(DEVICES, path, devices=devices)
    with open(path, 'rb') as file:
      results.append(pickle.load(file))
  return results


@pytest.mark.slow
def test_one_device_and_eight_give_the_same_parameters_with_very_uneven_objects(one_and_eight):
  one, eight = one_and_eight
  assert (one['devices'], eight['devices']) == (1, 8)
  for name in ('plain', 'accumulated'):
    chex.assert_trees_all_close(one[name][0].params, eight[name][0].params, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(one[name][1], eight[name][1], rtol=1e-4, atol=1e-6)


@pytest.mark.medium
def test_one_device_and_eight_draw_the_same_noise_and_so_do_micro_batches(one_and_eight):
  one, eight = one_and_eight
  for name in ('noise', 'noise accumulated'):
    chex.assert_trees_all_close(one[name][0].params, eight[name][0].params, rtol=1e-4, atol=1e-6)
  # Sums of float32 in another order.
  chex.assert_trees_all_close(one['noise'][0].params, one['noise accumulated'][0].params, rtol=1e-4, atol=1e-6)
  differs = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), one['noise'][0].params, one['plain'][0].params)
  assert max(jax.tree.leaves(differs)) > 1e-3


def test_noise_differs_from_step_to_step_and_from_example_to_example_and_leaves_no_state():
  class Ones(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
      return Dropout(0.5)(jnp.ones((len(x), 64)), train=train)

  batch = {'image': np.zeros((4, 2, 2, 3)), 'position': np.arange(4)}
  drawn = [base.apply_module(Ones(), {}, {}, batch, key=jax.random.key(seed), train=True) for seed in (0, 1)]
  rows = {tuple(row.tolist()) for out, _ in drawn for row in out}
  assert len(rows) == 8
  assert [state for _, state in drawn] == [{}, {}]
  kept, _ = base.apply_module(Ones(), {}, {}, batch, key=jax.random.key(0), train=False)
  assert (np.asarray(kept) == 1).all()


@pytest.mark.medium
def test_the_replicas_of_state_and_logs_agree_on_all_eight_devices(one_and_eight):
  replicas = one_and_eight[1]['replicas']
  assert all(len(values) == 8 for values in replicas)
  assert all((value == values[0]).all() for values in replicas for value in values)


@pytest.mark.medium
def test_a_batch_size_that_eight_devices_do_not_divide_is_an_error_with_the_nearest_one(one_and_eight):
  message = 'data.batch_size 30 is not divisible by 8 devices x 1 micro-batches; the nearest that is: 32'
  assert one_and_eight[0]['refused'] is None
  assert one_and_eight[1]['refused'] == message


@pytest.mark.medium
def test_batch_norm_sees_one_devices_share_and_its_running_statistics_are_averaged(one_and_eight):
  one, eight = (result['norm'][0].model_state['batch_stats']['BatchNorm_0'] for result in one_and_eight)
  # Means of equal shares average to the mean of the whole in the first step, later the parameters differ a little;
  # variances of shares leave out what lies between the shares.
  np.testing.assert_allclose(one['mean'], eight['mean'], atol=0.05)
  assert (eight['var'] < one['var']).all()
