"""The one loop: it trains any task, and cannot know which."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import functools
import math
import pathlib
import signal
import threading
import time
from typing import Any

import jax
import optax

from vision_jax.conventions import Variables
from vision_jax.tasks.base import Task
from vision_jax.train import evaluate as evaluate_lib
from vision_jax.train import step as step_lib
from vision_jax.train.checkpoint import Checkpoints
from vision_jax.train.log import Log
from vision_jax.train.state import TrainState, create_state, state_shapes, to_host


def fit(task: Task, optimiser: optax.GradientTransformation, train_loader: Any, val_loader: Any,
        folder: str | pathlib.Path, *, steps: int, schedule: optax.Schedule, seed: int = 0, accumulate: int = 1,
        ema_decay: float | None = None, log_every: int = 20, eval_every: int = 500, checkpoint_every: int = 500,
        best: str | None = None, best_mode: str = 'max', patience: int | None = None, min_delta: float = 0.0,
        phases: Sequence[tuple[int, Task]] = (), initial: Callable[[], tuple[Variables, str]] | None = None,
        stop_after: int | None = None, started: float | None = None) -> tuple[TrainState, dict[str, float]]:
  """Trains a task, or continues the run that `folder` holds, to the bit as if it had never stopped.

  Args:
    task: what is trained.
    optimiser: from `optim.create`.
    train_loader: `batch(step)` and `batches(start, stop)` are pure functions of (seed, step).
    val_loader: for `evaluate`.
    folder: of the run; checkpoints go to `checkpoints/`, numbers to `metrics.jsonl`.
    steps: the length of the whole run.
    schedule: step -> learning rate, for the log.
    seed: of parameters and of whatever is drawn on the device.
    accumulate: micro-batches to a step.
    ema_decay: of the moving average of parameters and batch statistics, which evaluation then uses.
    log_every: steps between lines of the log, each with means since the last.
    eval_every: steps between evaluations; each leaves a checkpoint, and so does the last step.
    checkpoint_every: steps between checkpoints.
    best: the metric whose best checkpoint is kept, such as 'AP'.
    best_mode: 'max' or 'min'.
    patience: evaluations without a better `best` after which training ends early.
    min_delta: by how much it must be better to count for `patience`.
    phases: pairs (step, task), in order: after that step another task with the same variables is trained, of which
      other parts are frozen, say. `task` makes the first steps, and is evaluated.
    initial: gives the variables that a fresh run begins with, and the lines to say about them.
    stop_after: steps that this call makes at most; the run can be continued.
    started: `time.perf_counter()` of the program's start, for the time to the first step.

  Returns:
    The last state, on the host, and the metrics of the last evaluation.

  Raises:
    FloatingPointError: a Term or the gradient is not finite; the checkpoints before stay.
    ValueError: the batch cannot be divided, the checkpoint is of another model, `best` is no metric.
  """
  step_lib.check_batch_size(train_loader.batch_size, accumulate=accumulate)
  folder = pathlib.Path(folder)
  checkpoints = Checkpoints(folder / 'checkpoints', best=best, mode=best_mode)
  state, stopping, said = _start(checkpoints, task, optimiser, train_loader, seed, ema_decay is not None,
                                 _Stopping(best, best_mode, patience, min_delta), initial)
  step_of = functools.cache(functools.partial(step_lib.make_train_step, optimiser=optimiser, seed=seed,
                                              accumulate=accumulate, ema_decay=ema_decay))
  eval_step = step_lib.make_eval_step(task)
  first = int(state.step)
  state = step_lib.replicate(state)
  last = steps if stop_after is None else min(steps, first + stop_after)
  last = first if stopping.done else last
  log = Log(folder, steps=steps, batch_size=train_loader.batch_size, start=first, primary=jax.process_index() == 0)
  for line in said.splitlines():
    log.line(line)
  if first:
    log.line(f'continuing at step {first} of {steps}' if first < last else f'nothing is left to do at step {first}: '
             + (stopping.reason if stopping.done else 'the run is complete'))
  window, metrics, dropped = _Window(), {}, train_loader.dropped_objects
  batches = train_loader.batches(first, last)
  try:
    with _interruptible() as interrupted:
      for step, batch in enumerate(batches, first + 1):
        training = next((later for start, later in reversed(phases) if step > start), task)
        state, logs = step_of(training)(state, step_lib.shard_batch(batch))
        window.add(step, logs)
        if step == first + 1:
          window.drain()
          log.first_step(step, time.perf_counter() - started if started else None)
          waited = train_loader.seconds_waited
        log.advance()
        interrupt = interrupted.is_set()  # read once: what stops the loop below has been saved in this step
        final = step == last or interrupt
        if step % log_every == 0 or final:
          extra = {'learning_rate': schedule(step - 1), 'dropped_objects': train_loader.dropped_objects - dropped}
          log.training(step, {**window.means(), **extra}, train_loader.seconds_waited - waited)
          waited = train_loader.seconds_waited
        if step % eval_every == 0 or step == steps:
          window.drain()
          evaluate = functools.partial(evaluate_lib.evaluate, task, eval_step, state.evaluation_variables(), val_loader)
          metrics = _evaluate_and_save(evaluate, state, step, stopping, checkpoints, log)
        elif step % checkpoint_every == 0 or final:
          window.drain()
          checkpoints.save(state, host=stopping.record)
        if interrupt or stopping.done:
          log.line(f'stopped at step {step}: {stopping.reason if stopping.done else "interrupted"}')
          break
  finally:
    batches.close()
    log.close()
    checkpoints.close()
  return to_host(state), metrics


def _evaluate_and_save(evaluate: Callable[[], tuple[dict[str, float], list[Any]]], state: TrainState, step: int,
                       stopping: _Stopping, checkpoints: Checkpoints, log: Log) -> dict[str, float]:
  """The metrics of a step, logged, judged by the early stopping, and saved with the state."""
  begun = time.perf_counter()
  try:
    metrics, _ = evaluate()
    defined = stopping.update(step, metrics)
  except Exception:  # a bad validation image, say, must not cost the steps since the last checkpoint
    checkpoints.save(state, host=stopping.record)
    raise
  log.scalars(step, {f'val/{name}': value for name, value in metrics.items()})
  log.line(f'evaluation at step {step}{" (moving average)" if state.ema else ""}: {summary(metrics)}')
  # A best that is not defined (an AP without ground truth) can be no one's best.
  checkpoints.save(state, host=stopping.record, metrics=metrics if defined else None)
  log.pause(time.perf_counter() - begun)
  return metrics


def summary(metrics: Mapping[str, float]) -> str:
  """The metrics that stand for the whole data set, in one line; per-class ones are in `metrics.jsonl`."""
  return '  '.join(f'{name} {value:.4g}' for name, value in metrics.items() if '/' not in name)


def _start(checkpoints: Checkpoints, task: Task, optimiser: Any, loader: Any, seed: int, ema: bool,
           stopping: _Stopping, initial: Callable[[], tuple[Variables, str]] | None
           ) -> tuple[TrainState, _Stopping, str]:
  """A fresh state, or the newest whole checkpoint's; and what is to be said about the weights it begins with."""
  batch = loader.batch(0)
  if not checkpoints.steps():
    variables, said = initial() if initial else (None, '')
    return create_state(task, optimiser, batch, seed=seed, ema=ema, initial=variables), stopping, said
  state, stopping.record = checkpoints.restore(state_shapes(task, optimiser, batch, ema=ema))
  return state, stopping, ''


class _Window:
  """The logs of the steps since the last line; it bounds the steps in flight and looks for what is not finite."""

  def __init__(self):
    self._pending, self._finished = collections.deque(), []
    self._limit = step_lib.steps_in_flight()

  def add(self, step: int, logs: Mapping[str, Any]) -> None:
    self._pending.append((step, logs))
    if len(self._pending) >= self._limit:
      self._finish()

  def drain(self) -> None:
    """Waits for every step that was dispatched."""
    while self._pending:
      self._finish()

  def means(self) -> dict[str, float]:
    self.drain()
    finished, self._finished = self._finished, []
    return {name: sum(logs[name] for logs in finished) / len(finished) for name in finished[-1]}

  def _finish(self) -> None:
    step, logs = self._pending.popleft()
    values = {name: float(value) for name, value in jax.device_get(logs).items()}
    bad = [f'{name} = {value}' for name, value in values.items() if not math.isfinite(value)]
    if bad:
      raise FloatingPointError(f'step {step} is not finite: {", ".join(bad)}; the checkpoints before it stay. '
                               'Lower optim.lr, set optim.clip, or look at the data of this step')
    self._finished.append(values)


class _Stopping:
  """Early stopping on a named metric; its record travels with the checkpoints."""

  def __init__(self, best: str | None, mode: str, patience: int | None, min_delta: float):
    if patience is not None and best is None:
      raise ValueError('train.patience needs train.best, the name of the metric to watch')
    self._best, self._sign, self._patience, self._delta = best, 1.0 if mode == 'max' else -1.0, patience, min_delta
    self.record: dict[str, Any] = {'best': None, 'best_step': None, 'without_gain': 0}

  def update(self, step: int, metrics: Mapping[str, float]) -> bool:
    """Takes an evaluation into account; whether its best metric is defined."""
    if self._best is None:
      return True
    if self._best not in metrics:
      raise ValueError(f'train.best {self._best!r} is no metric of this task; there are {", ".join(sorted(metrics))}')
    value, best = metrics[self._best], self.record['best']
    if math.isfinite(value) and (best is None or self._sign * (value - best) > self._delta):
      self.record = {'best': value, 'best_step': step, 'without_gain': 0}
    else:
      self.record = {**self.record, 'without_gain': self.record['without_gain'] + 1}
    return math.isfinite(value)

  @property
  def done(self) -> bool:
    return self._patience is not None and self.record['without_gain'] >= self._patience

  @property
  def reason(self) -> str:
    if self.record['best'] is None:
      return f'{self._best} was not defined in {self.record["without_gain"]} evaluations'
    return (f'{self._best} was no better than {self.record["best"]:.4g} of step {self.record["best_step"]} '
            f'in {self.record["without_gain"]} evaluations')


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
  """An event that Ctrl-C or SIGTERM sets, so that the step at hand ends and is saved; a second one interrupts at once.

  Left alone with several processes, which would have to stop at the same step.
  """
  event = threading.Event()
  if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
    yield event
    return
  signals = (signal.SIGINT, signal.SIGTERM)
  before = {number: signal.getsignal(number) for number in signals}

  def handle(number: int, frame: Any) -> None:
    event.set()
    signal.signal(number, before[number])

  try:
    for number in signals:
      signal.signal(number, handle)
    yield event
  finally:
    for number in signals:
      signal.signal(number, before[number])
