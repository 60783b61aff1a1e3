"""Checkpoints: whole or absent, and explained."""

import chex
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train import toy
from vision_jax.train import step as step_lib
from vision_jax.train.checkpoint import Checkpoints
from vision_jax.train.state import TrainState, create_state, to_host


def state(step=0, width=3, name='kernel'):
  params = {'layer': {name: jnp.arange(width, dtype=jnp.float32) + step}}
  return TrainState(jnp.int32(step), params, {}, optax.adam(1e-3).init(params), {})


def written(folder, scores, **options):
  checkpoints = Checkpoints(folder, best='score', **options)
  for step, score in enumerate(scores):
    checkpoints.save(state(step), host={'note': step}, metrics={'score': score})
  checkpoints.wait()
  return checkpoints


def test_the_newest_and_the_best_stay(tmp_path):
  checkpoints = written(tmp_path, [0.1, 0.9, 0.3, 0.2, 0.4])
  assert checkpoints.steps() == (1, 3, 4)
  assert checkpoints.best_step() == 1


def test_the_best_of_a_loss_is_the_smallest(tmp_path):
  assert written(tmp_path, [0.9, 0.1, 0.3, 0.5, 0.4], mode='min').best_step() == 1


def test_a_restored_state_equals_the_saved_one_with_its_record(tmp_path):
  written(tmp_path, [0.1, 0.2]).close()
  restored, host = Checkpoints(tmp_path, create=False).restore(state())
  chex.assert_trees_all_equal(restored, state(1))
  assert host == {'note': 1}


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path):
  written(tmp_path, [0.1, 0.2]).close()
  for path in (tmp_path / '1' / 'state').rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[:10])
  with pytest.warns(UserWarning, match='checkpoint 1 in .* is damaged; trying the one before'):
    restored, _ = Checkpoints(tmp_path).restore(state())
  assert int(restored.step) == 0


def test_no_whole_checkpoint_names_the_damaged_ones(tmp_path):
  written(tmp_path, [0.1]).close()
  for path in (tmp_path / '0' / 'state').rglob('*'):
    if path.is_file():
      path.write_bytes(b'')
  with pytest.warns(UserWarning), pytest.raises(ValueError, match='no whole checkpoint in .*; damaged: 0'):
    Checkpoints(tmp_path).restore(state())


def test_another_models_checkpoint_is_refused_with_names_and_shapes(tmp_path):
  checkpoints = written(tmp_path, [0.1])
  with pytest.raises(ValueError, match='missing: .*params/layer/weight.*unexpected: .*params/layer/kernel'):
    checkpoints.restore(state(name='weight'))
  with pytest.raises(ValueError, match=r'of another shape: .*params/layer/kernel \(3,\) for \(5,\)'):
    checkpoints.restore(state(width=5))


def test_a_step_that_is_not_there_names_those_that_are(tmp_path):
  with pytest.raises(ValueError, match='no checkpoint of step 7 in .*; there are 0, 1'):
    written(tmp_path, [0.1, 0.2]).restore(state(), 7)
  with pytest.raises(ValueError, match='no checkpoint in .*; there is none; train first'):
    Checkpoints(tmp_path / 'empty').restore(state())


def test_saving_copies_before_the_caller_goes_on(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  mine = TrainState(np.int32(1), {'x': np.ones(4, np.float32)}, {}, (), {})
  checkpoints.save(mine, host={})
  mine.params['x'][:] = 7.0  # what a donated step would do to the buffer
  checkpoints.wait()
  restored, _ = checkpoints.restore(mine)
  np.testing.assert_array_equal(restored.params['x'], 1.0)


def test_a_checkpoint_saved_before_donated_steps_holds_the_state_before_them(tmp_path):
  task, loader, optimiser = toy.ToyTask(), toy.loader(), optax.adam(1e-2)
  step = step_lib.make_train_step(task, optimiser)
  now = step_lib.replicate(create_state(task, optimiser, loader.batch(0)))
  now, _ = step(now, step_lib.shard_batch(loader.batch(0)))
  expected = to_host(now)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(now, host={})
  for i in range(1, 4):  # while it is being written
    now, _ = step(now, step_lib.shard_batch(loader.batch(i)))
  checkpoints.wait()
  chex.assert_trees_all_equal(checkpoints.restore(expected, 1)[0], expected)
