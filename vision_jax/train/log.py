"""Where the numbers of a run go: a progress bar or plain lines, `metrics.jsonl`, and TensorBoard where installed."""

from __future__ import annotations

from collections.abc import Mapping
import json
import math
import pathlib
import sys
import time
from typing import Any

from tqdm import tqdm

from vision_jax.train.state import to_host


class Log:
  """The log of one run; a process that is not the first keeps silent.

  Args:
    folder: of the run.
    steps: of the whole run, for the bar and the time left.
    batch_size: the global one, for images/s.
    start: the step at which this program begins.
    primary: whether this process writes.
  """

  def __init__(self, folder: str | pathlib.Path, *, steps: int, batch_size: int, start: int = 0, primary: bool = True):
    self.steps, self.batch_size, self.primary = steps, batch_size, primary
    self._since, self._step = time.perf_counter(), start
    self._file = self._board = self._bar = None
    self._dropped = False  # whether it was said that objects had no slot
    if not primary:
      return
    folder = pathlib.Path(folder)
    _keep_until(folder / 'metrics.jsonl', start)
    self._file = open(folder / 'metrics.jsonl', 'a', encoding='utf-8')  # noqa: SIM115  closed by close()
    self._board = _tensorboard(folder / 'tensorboard')
    if sys.stderr.isatty():
      self._bar = tqdm(total=steps, initial=start, unit='step', dynamic_ncols=True, smoothing=0.1)

  def scalars(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes scalars of a step to `metrics.jsonl` and TensorBoard."""
    if not self.primary:
      return
    values = {name: float(value) for name, value in values.items()}
    self._file.write(json.dumps({'step': step, **json_scalars(values)}) + '\n')
    self._file.flush()
    for name, value in values.items():
      if self._board:
        self._board.add_scalar(name, value, step)

  def first_step(self, step: int, seconds: float | None) -> None:
    """Notes when the first step finished, which is mostly compilation and no part of the speed."""
    self._since, self._step = time.perf_counter(), step
    if seconds is not None:
      self.scalars(step, {'first_step_seconds': seconds})
      self.line(f'first step finished {seconds:.1f} s after the start')

  def training(self, step: int, values: Mapping[str, Any], waited: float) -> None:
    """Training scalars of a step, with the speed since the last call and the share of it spent waiting for data."""
    values = {name: float(value) for name, value in to_host(dict(values)).items()}
    now = time.perf_counter()
    elapsed, done = max(now - self._since, 1e-9), step - self._step
    self._since, self._step = now, step
    rate = done / elapsed  # 0 where this is the first step
    speed = {'steps_per_second': rate, 'images_per_second': rate * self.batch_size, 'waiting_share': waited / elapsed}
    self.scalars(step, {**{f'train/{name}': value for name, value in values.items()}, **speed})
    if self._bar is not None:
      self._bar.set_postfix_str(f'loss {values["loss"]:.4g}, {speed["images_per_second"]:.0f} images/s')
    left = (self.steps - step) / rate if rate else 0.0
    if values.get('dropped_objects') and not self._dropped:
      self._dropped = True
      self.line(f'{values["dropped_objects"]:.0f} objects found no slot in their images so far, where the largest are '
                'learned; data.max_objects is the number of slots')
    shown = {k: v for k, v in values.items() if k != 'learning_rate' and (k != 'dropped_objects' or v)}
    self.line(f'step {step}/{self.steps}  ' + '  '.join(f'{k} {v:.4g}' for k, v in shown.items())
              + f'  {rate:.2f} steps/s  {speed["images_per_second"]:.0f} images/s'
              + f'  waiting {speed["waiting_share"]:.0%}  left {clock(left)}', bar=False)

  def pause(self, seconds: float) -> None:
    """Takes time that was not training (an evaluation) out of the speed."""
    self._since += seconds

  def advance(self, steps: int = 1) -> None:
    """Moves the bar."""
    if self._bar is not None:
      self._bar.update(steps)

  def line(self, text: str, *, bar: bool = True) -> None:
    """A line for a person; `bar=False` leaves it out where a bar says the same."""
    if not self.primary:
      return
    if self._bar is None:
      print(text, flush=True)
    elif bar:
      self._bar.write(text)

  def close(self) -> None:
    """Ends the bar and closes the files."""
    for part in (self._bar, self._file, self._board):
      if part is not None:
        part.close()


def json_scalars(values: Mapping[str, float]) -> dict[str, float | None]:
  """Scalars for JSON, which has no NaN: what is not defined (an AP without ground truth) becomes null.

  >>> json_scalars({'AP': float('nan'), 'loss': 0.5})
  {'AP': None, 'loss': 0.5}
  """
  return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _keep_until(path: pathlib.Path, step: int) -> None:
  """Drops the records of steps that a continued run makes again, and a line that a kill cut off."""
  if not path.exists():
    return
  kept = []
  for line in path.read_text(encoding='utf-8').splitlines():
    try:
      record = json.loads(line)
    except json.JSONDecodeError:
      continue
    if record['step'] <= step:
      kept.append(line + '\n')
  path.write_text(''.join(kept), encoding='utf-8')


def clock(seconds: float) -> str:
  """A duration for a person.

  >>> clock(3725), clock(65)
  ('1:02:05', '1:05')
  """
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


def _tensorboard(folder: pathlib.Path) -> Any:
  """A TensorBoard writer, or None where the extra is not installed."""
  try:
    from tensorboardX import SummaryWriter
  except ImportError:
    return None
  return SummaryWriter(str(folder))
