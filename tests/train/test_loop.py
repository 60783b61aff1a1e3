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
from vision_jax.models.freezing import Frozen
from vision_jax.train import evaluate, loop, optim
from vision_jax.train import step as step_lib
from vision_jax.train.checkpoint import Checkpoints
from vision_jax.train.state import create_state, state_shapes, to_host

pytestmark = pytest.mark.medium  # many small compilations: together more than the fast tests can spare

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
  evaluate_again = evaluated(10)
  assert evaluate_again == sorted(set(evaluate_again)) == list(range(10))
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
  assert Checkpoints(tmp_path / 'checkpoints', create=False).steps()[-1] == 6
  unfinished = [path.name for path in (tmp_path / 'checkpoints').iterdir() if path.name.startswith('8.')]
  assert unfinished, 'the kill missed the write'
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


def evaluated(size):
  """The indices of the images that an evaluation of so many hands to the accumulators."""
  task = toy.ToyTask()
  variables = task.init(jax.random.key(0), toy.loader().batch(0))
  evaluate.evaluate(task, step_lib.make_eval_step(task), variables, toy.loader(size))
  return list(toy.Counter.seen_last)


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


@pytest.mark.parametrize('at', ['in a step', 'in the log', 'in an evaluation'])
def test_sigterm_ends_the_step_saves_and_can_be_continued(straight, tmp_path, monkeypatch, at):
  (expected, _), _ = straight
  place = {'in a step': (loop.Log, 'advance', 7), 'in the log': (loop.Log, 'training', 2),
           'in an evaluation': (toy.Counter, 'result', 1)}[at]
  owner, name, when = place
  original, calls = getattr(owner, name), []

  def killing(*args, **options):
    calls.append(1)
    if len(calls) == when:
      os.kill(os.getpid(), signal.SIGTERM)
    return original(*args, **options)

  before = signal.getsignal(signal.SIGTERM)
  with monkeypatch.context() as patch:
    patch.setattr(owner, name, killing)
    state, _ = fit(tmp_path)
  step = int(state.step)
  assert step in {'in a step': (7,), 'in the log': (8, 9), 'in an evaluation': (10, 11)}[at]
  assert Checkpoints(tmp_path / 'checkpoints', create=False).steps()[-1] == step
  assert signal.getsignal(signal.SIGTERM) == before
  resumed, _ = fit(tmp_path)
  chex.assert_trees_all_equal(resumed, expected)


def test_a_damaged_newest_checkpoint_is_made_again(straight, tmp_path):
  (expected, _), _ = straight
  fit(tmp_path)
  for path in (tmp_path / 'checkpoints' / '20' / 'state').rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[:10])
  with pytest.warns(UserWarning, match='checkpoint 20 in .* is damaged; trying the one before'):
    fit(tmp_path)
  checkpoints = Checkpoints(tmp_path / 'checkpoints', create=False)
  shapes = state_shapes(toy.ToyTask(toy.Net(norm=True)), optax.adam(1e-2), toy.loader().batch(0), ema=True)
  chex.assert_trees_all_equal(checkpoints.restore(shapes, 20)[0], expected)


def test_a_continued_run_leaves_each_step_once_in_the_log(tmp_path):
  fit(tmp_path, stop_after=9)
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 12, "train/loss": 1.0}\n{"step": 13, "trai')  # of a run that was killed
  fit(tmp_path)
  steps = [r['step'] for r in records(tmp_path) if 'train/loss' in r]
  assert steps == [4, 8, 9, 12, 16, 20]


def test_a_failing_evaluation_does_not_cost_the_steps_before_it(tmp_path, monkeypatch):

  def fail(self):
    raise ValueError('a validation image is corrupt')

  monkeypatch.setattr(toy.Counter, 'result', fail)
  with pytest.raises(ValueError, match='a validation image is corrupt'):
    fit(tmp_path, checkpoint_every=100)
  assert Checkpoints(tmp_path / 'checkpoints', create=False).steps() == (10,)


def test_a_best_that_is_never_defined_ends_early_with_a_reason(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(toy.Counter, 'result', lambda self: {'score': float('nan')})
  state, _ = fit(tmp_path, eval_every=2, best='score', patience=3)
  assert int(state.step) == 6
  assert 'score was not defined in 3 evaluations' in capsys.readouterr().out


def test_a_checkpoint_of_another_model_names_what_is_missing_and_unexpected(straight):
  _, folder = straight
  other = toy.ToyTask(toy.Net(norm=False))
  with pytest.raises(ValueError, match='of another model or optimiser; unexpected: .*BatchNorm_0'):
    fit(folder, task=other)


def test_a_validation_set_smaller_than_one_batch_is_counted_right():
  task = toy.ToyTask()
  variables = task.init(jax.random.key(0), toy.loader().batch(0))
  eval_step = step_lib.make_eval_step(task)
  metrics, _ = evaluate.evaluate(task, eval_step, variables, toy.loader(3))
  assert (metrics['images'], metrics['objects']) == (3, sum(toy.COUNTS[:3]))
  whole = toy.loader(3, batch_size=3).batch(0)
  terms, _, _ = task.loss(variables['params'], {}, whole, None, 0, False)
  np.testing.assert_allclose(metrics['loss_object'], terms['loss_object'].total / terms['loss_object'].count, rtol=1e-5)
  np.testing.assert_allclose(metrics['loss_image'], terms['loss_image'].total / 3, rtol=1e-5)


@pytest.mark.medium
def test_phases_that_freeze_less_and_less_resume_to_the_bit_and_the_frozen_part_stays_until_its_step(tmp_path):
  conv = ('Conv_0/bias', 'Conv_0/kernel')
  head_only = toy.ToyTask(Frozen(toy.Mean(), conv))
  rules = (('^Conv_0/', {'until': 8}),)
  shapes = state_shapes(toy.ToyTask(toy.Mean()), optax.identity(), toy.loader().batch(0)).params
  options = {'task': head_only, 'optimiser': optim.create('adamw', optax.constant_schedule(1e-2), shapes, rules=rules),
             'phases': ((8, toy.ToyTask(toy.Mean())),), 'ema_decay': None}
  expected, _ = fit(tmp_path / 'straight', **options)
  frozen, _ = fit(tmp_path / 'parts', stop_after=5, **options)
  chex.assert_trees_all_equal(frozen.params['Conv_0'],
                              create_state(head_only, optax.identity(), toy.loader().batch(0), seed=3).params['Conv_0'])
  later, _ = fit(tmp_path / 'parts', stop_after=4, **options)  # through the thaw
  assert int(later.step) == 9
  assert (later.params['Conv_0']['kernel'] != frozen.params['Conv_0']['kernel']).all()
  resumed, _ = fit(tmp_path / 'parts', **options)
  chex.assert_trees_all_equal(resumed, expected)


@pytest.mark.medium
def test_a_fresh_run_begins_with_the_initial_variables_and_says_so_and_a_resumed_one_does_not_ask(tmp_path, capsys):
  task = toy.ToyTask(toy.Mean())
  ones = jax.tree.map(np.ones_like, to_host(task.init(jax.random.key(0), toy.loader().batch(0))))
  options = {'task': task, 'optimiser': optax.set_to_zero(), 'stop_after': 1}
  state, _ = fit(tmp_path, initial=lambda: (ones, 'weights of ones'), **options)
  assert 'weights of ones\n' in capsys.readouterr().out
  chex.assert_trees_all_equal({'params': state.params}, ones)
  chex.assert_trees_all_equal(state.ema['params'], ones['params'])
  state, _ = fit(tmp_path, initial=lambda: pytest.fail('asked again'), **options)
  assert int(state.step) == 2
  with pytest.raises(ValueError, match='initial variables do not fit the task: .*Dense_0.*; make them with the same'):
    ones['params']['Dense_0']['kernel'] = np.ones((4, 5))
    fit(tmp_path / 'other', initial=lambda: (ones, ''), **options)
