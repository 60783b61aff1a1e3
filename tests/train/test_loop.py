"""The loop: it resumes to the bit, stops when it should, and keeps what is good."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import optax
import pytest

from tests.train import toy
from vision_jax.train import loop
from vision_jax.train.checkpoint import Checkpoints
from vision_jax.train.state import state_shapes

STEPS = 20


def fit(folder, *, task=None, optimiser=None, size=24, **options):
  options = {'steps': STEPS, 'eval_every': 10, 'checkpoint_every': 5, 'log_every': 4, 'ema_decay': 0.9, **options}
  task = task or toy.ToyTask(toy.Net(norm=True))
  return loop.fit(task, optimiser or optax.adam(1e-2), toy.loader(size, augment=(('flip', {}), ('noise', {})), seed=3),
                  toy.loader(10), folder, schedule=optax.constant_schedule(1e-2), seed=3, **options)


def records(folder):
  return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  folder = tmp_path_factory.mktemp('straight')
  return fit(folder), folder


def test_seven_steps_a_stop_in_mid_epoch_and_thirteen_more_equal_twenty_to_the_bit(straight, tmp_path):
  (expected, metrics), _ = straight
  assert 7 % toy.loader(24).steps_per_epoch, 'the stop must fall inside an epoch'
  partial, _ = fit(tmp_path, stop_after=7)
  assert int(partial.step) == 7
  resumed, resumed_metrics = fit(tmp_path)
  chex.assert_trees_all_equal(resumed, expected)  # parameters, optimiser, statistics, moving average
  assert resumed_metrics == metrics


def test_the_log_holds_every_scalar_and_the_evaluations(straight):
  _, folder = straight
  train = [r for r in records(folder) if 'train/loss' in r]
  assert [r['step'] for r in train] == [4, 8, 12, 16, 20]
  assert {'train/loss_object', 'train/loss_image', 'train/gradient_norm', 'train/learning_rate', 'images_per_second',
          'steps_per_second', 'waiting_share'} <= set(train[0])
  assert [r['step'] for r in records(folder) if 'val/images' in r] == [10, 20]


def test_an_evaluation_covers_every_image_once_with_a_ragged_last_batch(straight):
  (_, metrics), _ = straight
  assert metrics['images'] == 10  # batches of 8
  assert metrics['objects'] == sum(toy.COUNTS[:10])


SLOW_SAVER = """
import sys, time
import orbax.checkpoint as ocp
from tests.train import test_loop
save = ocp.PyTreeCheckpointHandler.async_save
async def slow(self, *args, **kwargs):
    futures = await save(self, *args, **kwargs)
    print('writing', flush=True)
    time.sleep(0.3)  # long enough to be killed inside
    return futures
ocp.PyTreeCheckpointHandler.async_save = slow
test_loop.fit(test_loop.pathlib.Path(sys.argv[1]), checkpoint_every=2)
"""


@pytest.mark.medium
def test_killed_while_a_checkpoint_is_written_a_run_ends_in_the_same_state(straight, tmp_path):
  (expected, _), _ = straight
  root = pathlib.Path(__file__).resolve().parents[2]
  process = subprocess.Popen([sys.executable, '-c', SLOW_SAVER, str(tmp_path)], stdout=subprocess.PIPE, text=True,
                             env={**os.environ, 'PYTHONPATH': str(root)}, cwd=root)
  writing = 0
  for line in process.stdout:
    writing += line.startswith('writing')
    if writing == 4:  # in the fourth checkpoint, step 8
      time.sleep(0.05)
      process.send_signal(signal.SIGKILL)
      break
  process.wait(timeout=60)
  assert process.returncode == -signal.SIGKILL
  whole = Checkpoints(tmp_path / 'checkpoints', create=False).steps()
  assert whole, 'some checkpoint must be whole'
  assert whole[-1] < STEPS
  resumed, _ = fit(tmp_path)
  chex.assert_trees_all_equal(resumed, expected)


def test_a_term_that_is_not_finite_stops_training_and_the_good_checkpoint_stays(tmp_path):
  task = toy.ToyTask(poison=12)
  with pytest.raises(FloatingPointError, match='step 13 is not finite: .*loss_object = nan.*optim.lr'):
    fit(tmp_path, task=task)
  checkpoints = Checkpoints(tmp_path / 'checkpoints', create=False)
  assert checkpoints.steps()[-1] == 10
  state, _ = checkpoints.restore(state_shapes(task, optax.adam(1e-2), toy.loader().batch(0), ema=True))
  chex.assert_tree_all_finite(state.params)


class Worsening(toy.ToyTask):
  """Reports a metric that is best at its second evaluation."""

  values = (0.5, 0.8, 0.7, 0.79, 0.6, 0.9)
  evaluations = []

  def metrics(self):
    task = self

    class Scripted(toy.Counter):

      def result(self):
        task.evaluations.append(1)
        return {'score': task.values[len(task.evaluations) - 1]}
    return [Scripted()]


def test_early_stopping_ends_after_patience_and_the_best_checkpoint_is_kept(tmp_path, capsys):
  Worsening.evaluations.clear()
  state, _ = fit(tmp_path, task=Worsening(), eval_every=2, best='score', patience=3)
  assert int(state.step) == 10  # evaluations at 2, 4 (best), 6, 8, 10
  assert 'score was no better than 0.8 of step 4 in 3 evaluations' in capsys.readouterr().out
  checkpoints = Checkpoints(tmp_path / 'checkpoints', best='score', create=False)
  assert checkpoints.best_step() == 4
  assert checkpoints.steps() == (4, 8, 10)
  again, _ = fit(tmp_path, task=Worsening(), eval_every=2, best='score', patience=3)
  assert int(again.step) == 10


def test_a_best_that_is_no_metric_is_an_error_that_names_the_metrics(tmp_path):
  with pytest.raises(ValueError, match="train.best 'AP' is no metric of this task; there are images, loss, loss_image"):
    fit(tmp_path, best='AP', eval_every=1)


def test_sigterm_ends_the_step_saves_and_can_be_continued(straight, tmp_path):
  (expected, _), _ = straight

  class Killing(toy.Counter):

    def result(self):
      os.kill(os.getpid(), signal.SIGTERM)
      return super().result()

  class Task(toy.ToyTask):

    def metrics(self):
      return [Killing()]

  before = signal.getsignal(signal.SIGTERM)
  state, _ = fit(tmp_path, task=Task(toy.Net(norm=True)), eval_every=10)
  assert int(state.step) == 10
  assert signal.getsignal(signal.SIGTERM) == before
  resumed, _ = fit(tmp_path)
  chex.assert_trees_all_equal(resumed, expected)


def test_a_checkpoint_of_another_model_names_what_is_missing_and_unexpected(straight):
  _, folder = straight
  other = toy.ToyTask(toy.Net(norm=False))
  with pytest.raises(ValueError, match='of another model or optimiser; unexpected: .*BatchNorm_0'):
    fit(folder, task=other)


def test_a_validation_set_smaller_than_one_batch_is_counted_right():
  from vision_jax.train import evaluate
  from vision_jax.train import step as step_lib
  task = toy.ToyTask()
  variables = task.init(jax.random.key(0), toy.loader().batch(0))
  eval_step = step_lib.make_eval_step(task)
  metrics = evaluate.evaluate(task, eval_step, variables, toy.loader(3))
  assert (metrics['images'], metrics['objects']) == (3, sum(toy.COUNTS[:3]))
  whole = toy.loader(3, batch_size=3).batch(0)
  terms, _, _ = task.loss(variables['params'], {}, whole, None, 0, False)
  np.testing.assert_allclose(metrics['loss_object'], terms['loss_object'].total / terms['loss_object'].count, rtol=1e-5)
  np.testing.assert_allclose(metrics['loss_image'], terms['loss_image'].total / 3, rtol=1e-5)
