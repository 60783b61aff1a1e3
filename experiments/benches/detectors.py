"""Training steps of whole detectors at their papers' canvases, beside torchvision's, turn by turn; share of the peak.

A step is what `train.py` makes: the task's loss with its targets, gradients, the optimiser, under `train.step`. On an
accelerator the networks compute in bfloat16, with parameters and losses in float32, and torch runs channels-last under
autocast; on a CPU both sides compute in float32, on small canvases. Everything is trained but BatchNorm's statistics,
which are frozen on both sides (and in torch its scales and biases). Images and objects are random, and the learning
rate is next to nothing, so that the weights stay in range however often a step is repeated.

The share of the peak is that of the multiply-adds of three forward passes with their losses (two of them stand for the
backward pass) at the speed of a large matrix product in the same run. Memory is what XLA sets aside for the compiled
step, state and batch included; for torch it is the most that its allocator held.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

from benches import timing
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax import models, tasks
from vision_jax.conventions import Batch, ClassMap
from vision_jax.inspect import multiply_adds
from vision_jax.train import optim
from vision_jax.train import step as step_lib
from vision_jax.train.state import TrainState, create_state

OBJECTS, SLOTS = 7, 100  # of an image: COCO has 7.3 in the mean
LEARNING_RATE = 1e-9


@dataclasses.dataclass(frozen=True)
class Row:
  """A detector as it is trained.

  Args:
    model, task, optimiser: names.
    norm: of the backbone.
    num_classes: K; a softmax over classes has one more for the background, which torchvision counts.
    canvas: (h, w).
    batch_size: images.
    peer: torchvision's number of classes, or None where it has no such model.
  """

  model: str
  task: str
  optimiser: str
  norm: str
  num_classes: int
  canvas: tuple[int, int]
  batch_size: int
  peer: int | None


ROWS = (Row('ssd300_vgg16', 'ssd', 'sgd', 'none', 90, (300, 300), 32, 91),
        Row('fasterrcnn_resnet50_fpn', 'faster_rcnn', 'sgd', 'frozen', 90, (800, 1344), 8, 91),
        Row('retinanet_resnet50_fpn', 'retinanet', 'sgd', 'frozen', 91, (800, 1344), 8, 91),
        Row('detr_resnet50', 'detr', 'adamw', 'frozen', 91, (800, 1344), 8, None))
SMALL_CANVAS = (128, 160)


def small(row: Row) -> Row:
  """The same detector on one small image; SSD300 has one canvas."""
  return dataclasses.replace(row, batch_size=1, canvas=row.canvas if row.task == 'ssd' else SMALL_CANVAS)


class Ours:
  """A compiled training step; each call goes on from the last."""

  def __init__(self, row: Row, dtype: Any):
    module = models.create(row.model, num_classes=row.num_classes, norm=row.norm, dtype=dtype)
    task = tasks.create(row.task, module, ClassMap(names=tuple(map(str, range(row.num_classes)))))
    batch = random_batch(row)
    shapes = jax.eval_shape(task.init, jax.random.key(0), batch)
    optimiser = optim.create(row.optimiser, optim.constant_schedule(LEARNING_RATE, 1), shapes['params'])
    state = create_state(task, optimiser, batch)
    self.flops = 2 * 3 * multiply_adds(lambda state: _terms(task, state, batch), state)
    start = time.perf_counter()
    self.step = step_lib.make_train_step(task, optimiser).lower(state, step_lib.shard_batch(batch)).compile()
    self.compile_s = time.perf_counter() - start
    about = self.step.memory_analysis()
    self.gigabytes = (about.argument_size_in_bytes + about.output_size_in_bytes + about.temp_size_in_bytes
                      - about.alias_size_in_bytes) / 1e9
    where, _ = self.step.input_shardings
    self.state, self.batch = jax.device_put((state, step_lib.shard_batch(batch)), where)

  def side(self, calls: int) -> list[float]:
    return timing.seconds_of(self._turn, calls)

  def _turn(self) -> dict[str, jax.Array]:
    self.state, self.logs = self.step(self.state, self.batch)
    return self.logs


def _terms(task: tasks.Task, state: TrainState, batch: Batch) -> dict:
  return task.loss(state.params, state.model_state, batch, jax.random.key(0), state.step, True)[0]


def random_batch(row: Row) -> Batch:
  """Noise, with objects of 5 to 50 % of the canvas's sides anywhere on it."""
  rng, (height, width), count = np.random.default_rng(0), row.canvas, row.batch_size
  corners, sizes = rng.uniform(0, 0.5, (count, SLOTS, 2)), rng.uniform(0.05, 0.5, (count, SLOTS, 2))
  boxes = np.concatenate([corners, corners + sizes], axis=2) * [width, height, width, height]
  canvas = np.tile(np.array(row.canvas, np.int32), (count, 1))
  return {'image': rng.standard_normal((count, height, width, 3), np.float32), 'image_size': canvas,
          'original_size': canvas, 'scale': np.ones((count, 2), np.float32), 'offset': np.zeros((count, 2), np.float32),
          'index': np.arange(count, dtype=np.int32), 'position': np.arange(count, dtype=np.int32),
          'valid': np.ones(count, bool), 'boxes': boxes.astype(np.float32),
          'labels': rng.integers(0, row.num_classes, (count, SLOTS), dtype=np.int32),
          'boxes_valid': np.tile(np.arange(SLOTS) < OBJECTS, (count, 1))}


def table(peer_python: str, rounds: int, small_size: bool | None) -> None:
  """Prints a row for each detector; the ratio is of turns side by side, above 1 where torch is faster.

  Args:
    peer_python: a Python that has torch and torchvision.
    rounds: turns of each side.
    small_size: one small image a step, in place of the paper's; None means where there is no accelerator.

  Raises:
    ValueError: several devices, a loss that is not finite.
  """
  if jax.device_count() > 1:
    raise ValueError(f'detectors are timed on one device, and there are {jax.device_count()}; hide the others '
                     '(CUDA_VISIBLE_DEVICES=0)')
  cpu = jax.default_backend() == 'cpu'
  small_size, dtype = cpu if small_size is None else small_size, jnp.float32 if cpu else jnp.bfloat16
  about = timing.TorchPeer(peer_python)
  about.close()
  print(f'\nTraining steps of detectors, {jnp.dtype(dtype).name}; peer: {about.about}; torchvision has no DETR')
  print('| model | images | canvas | ours, images/s | torch, images/s | ratio of times | of the peak | torch | GB | '
        'torch | compile, s |\n|---|---|---|---|---|---|---|---|---|---|---|')
  for row in map(small, ROWS) if small_size else ROWS:
    ours = Ours(row, dtype)
    peer = timing.TorchPeer(peer_python)  # one for each, so that none pays for what another one left in memory
    theirs = their_side(peer, row)
    times = timing.alternate([ours.side, timing.peak(dtype), *theirs], rounds)
    if not np.isfinite(ours.logs['loss']):
      raise ValueError(f'{row.model}: the loss is {ours.logs["loss"]}; the step is not one of real training')
    print(_row(row, ours, times, peer.gigabytes if theirs else None), flush=True)
    peer.close()


def their_side(peer: timing.TorchPeer, row: Row) -> list[timing.Side]:
  """torchvision's step; none where it has no such model, or where it cannot make a step."""
  if row.peer is None:
    return []
  try:
    sides = peer.prepare('detector', {
        'name': row.model, 'batch_size': row.batch_size, 'height': row.canvas[0], 'width': row.canvas[1],
        'num_classes': row.peer, 'objects': OBJECTS})
    for side in sides:
      side(1)
  except ValueError as error:  # such as a torchvision without its compiled operators
    print(f'{row.model}: {error}')
    return []
  return sides


def _row(row: Row, ours: Ours, times: list[list[float]], their_gigabytes: float | None) -> str:
  mine, matmul, *theirs = times
  fastest = statistics.median(matmul) * ours.flops / timing.peak_flops()  # were all of it as fast as that product
  medians = [statistics.median(column) for column in (mine, *theirs)]
  speeds = [f'{row.batch_size / seconds:.1f}' for seconds in medians]
  shares = [f'{100 * fastest / seconds:.0f} %' for seconds in medians]
  # Of the turns that lay side by side: a machine that others use too is not equally fast in all rounds.
  ratio = [f'{statistics.median(a / b for a, b in zip(mine, column, strict=True)):.2f}' for column in theirs]
  height, width = row.canvas
  cells = [row.model, str(row.batch_size), f'{height} x {width}', *_two(speeds), *(ratio or ['-']), *_two(shares),
           f'{ours.gigabytes:.2f}', '-' if their_gigabytes is None else f'{their_gigabytes:.2f}',
           f'{ours.compile_s:.0f}']
  return f'| {" | ".join(cells)} |'


def _two(cells: list[str]) -> list[str]:
  return [*cells, '-'][:2]
