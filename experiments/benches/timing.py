"""Times a case beside its peer in the same minutes: turn by turn, so that a noisy machine disturbs both alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
import json
import pathlib
import statistics
import subprocess
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PEER = pathlib.Path(__file__).with_name('torch_peer.py')
Side = Callable[[int], list[float]]


@dataclasses.dataclass(frozen=True)
class Case:
  """One line of the table: what runs, beside what, and how fast it should be.

  `function` is compiled for `arrays` and called with them. `peer` is a function that takes no argument, or the
  name of one in torch_peer.py, which gets `peer_arrays`. `goal` is the largest ratio to the peer, or with `goal_ms`
  the largest time.
  """

  name: str
  function: Callable
  arrays: tuple
  peer: Callable[[], Any] | str | None = None
  peer_arrays: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  goal: float | None = None
  goal_ms: float | None = None


class TorchPeer:
  """torchvision in a Python of its own, which keeps its process so that only the calls are timed.

  `gigabytes` is the most device memory that the last function held; None on a CPU, where torch does not count it.
  """

  def __init__(self, python: str):
    self.process, self.gigabytes = None, None
    try:
      self.process = subprocess.Popen([python, str(PEER)], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      stderr=subprocess.DEVNULL)
      self.about = json.loads(self.process.stdout.readline())['about']
    except (OSError, ValueError):
      self.process = None
      self.about = f'{python} has no torchvision (Debian: apt-get install python3-torchvision); its columns are empty'

  def prepare(self, function: str, arrays: Mapping[str, Any]) -> list[Side]:
    """One `times(calls)`, in seconds, of a function of torch_peer.py on these arrays; none where there is no peer."""
    if self.process is None:
      return []
    with tempfile.NamedTemporaryFile(suffix='.npz', delete=False) as file:
      np.savez(file, **arrays)
    self._ask({'prepare': function, 'file': file.name})
    pathlib.Path(file.name).unlink()
    return [self._times]

  def _times(self, calls: int) -> list[float]:
    answer = self._ask({'calls': calls})
    self.gigabytes = answer['gigabytes']
    return answer['seconds']

  def _ask(self, request: Mapping[str, Any]) -> dict:
    self.process.stdin.write(json.dumps(request) + '\n')
    self.process.stdin.flush()
    answer = self.process.stdout.readline()
    if not answer:
      raise ValueError(f'the peer ended at {request}; run {PEER} by hand to see why')
    return json.loads(answer)

  def close(self) -> None:
    if self.process is not None:
      self.process.stdin.close()
      self.process.wait()


def seconds_of(function: Callable[[], Any], calls: int) -> list[float]:
  """The time of each of so many calls, until what they give is there."""
  times = []
  for _ in range(calls):
    start = time.perf_counter()
    jax.block_until_ready(function())
    times.append(time.perf_counter() - start)
  return times


def peak(dtype: Any) -> Side:
  """Times a product of two square matrices, the fastest thing that XLA does."""
  matrix = jnp.ones((_peak_size(), _peak_size()), dtype)
  product = jax.jit(jnp.matmul)
  return lambda calls: seconds_of(lambda: product(matrix, matrix), calls)


def peak_flops() -> int:
  """The floating point operations of `peak`'s product."""
  return 2 * _peak_size() ** 3


def _peak_size() -> int:
  return 2048 if jax.default_backend() == 'cpu' else 8192  # 8192: over a millisecond at 800 TFLOP/s


def alternate(sides: list[Side], rounds: int) -> list[list[float]]:
  """The seconds of each side's turns.

  A turn is two calls, and the second counts, as in training where one step follows another: the first after a pause
  also pays for memory that the machine has taken back meanwhile (ResNet-50's step then takes 1.6 s instead of 1.1).
  """
  for side in sides:
    side(1)
  turns = [[side(2)[-1] for side in sides] for _ in range(rounds)]
  return [list(column) for column in zip(*turns, strict=True)]


def measure(case: Case, torch: TorchPeer, rounds: int) -> dict[str, float | None]:
  """Medians in milliseconds of a case and its peer, the ratio, and the seconds that compiling took."""
  arrays = jax.device_put(case.arrays)
  start = time.perf_counter()
  compiled = jax.jit(case.function).lower(*arrays).compile()
  compile_s = time.perf_counter() - start
  sides = [functools.partial(seconds_of, functools.partial(compiled, *arrays))]
  if isinstance(case.peer, str):
    sides.extend(torch.prepare(case.peer, case.peer_arrays))
  elif case.peer:
    sides.append(functools.partial(seconds_of, case.peer))
  calls = [max(1, min(20, int(0.02 / min(side(2))))) for side in sides]  # about 20 ms a turn, at least one call
  times: list[list[float]] = [[] for _ in sides]
  for _ in range(rounds):
    for side, count, found in zip(sides, calls, times, strict=True):
      found.extend(side(count))
  medians = [1e3 * statistics.median(found) for found in times]
  peer_ms = medians[1] if len(medians) > 1 else None
  return {'ms': medians[0], 'peer_ms': peer_ms, 'ratio': peer_ms and medians[0] / peer_ms, 'compile_s': compile_s}


def row(case: Case, found: Mapping[str, float | None]) -> str:
  """A line of the table; the last column says whether the goal is met."""
  goal, value, wanted = '', None, None
  if case.goal_ms is not None:
    goal, value, wanted = f'{case.goal_ms:g} ms', found['ms'], case.goal_ms
  elif case.goal is not None:
    goal, value, wanted = f'{case.goal:.3g} x', found['ratio'], case.goal
  met = '' if value is None else 'yes' if value <= wanted else 'NO'
  return (f'| {case.name:<53} | {found["ms"]:>8.2f} | {_number(found["peer_ms"], 2):>8} | '
          f'{_number(found["ratio"], 3):>6} | {goal:>7} | {met:<3} | {found["compile_s"]:>5.2f} |')


def _number(value: float | None, digits: int) -> str:
  return '-' if value is None else f'{value:.{digits}f}'


HEADER = (f'| {"case":<53} | {"ours ms":>8} | {"peer ms":>8} | {"ratio":>6} | {"goal":>7} | met | {"jit s":>5} |\n'
          f'|{"-" * 55}|{"-" * 10}|{"-" * 10}|{"-" * 8}|{"-" * 9}|{"-" * 5}|{"-" * 7}|')
