"""Predictions of a whole source in its own pixels, and the metrics of them; evaluation and prediction share this."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import pickle
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from vision_jax.conventions import Batch, Variables
from vision_jax.tasks.base import Task
from vision_jax.train import step as step_lib


def predictions(eval_step: Callable, variables: Variables, batches: Iterable[Batch],
                totals: dict[str, np.ndarray] | None = None) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
  """Yields (index in the source, prediction in the image's own pixels) of every valid example, once.

  Args:
    eval_step: from `make_eval_step`.
    variables: the parameters and other collections to predict with.
    batches: of the loader's `eval_batches`.
    totals: where given, the Terms of each batch are added to it: name -> [total, count, floor].
  """
  for batch in batches:
    outputs, terms = eval_step(variables, step_lib.shard_batch(batch))
    outputs = step_lib.unshard(outputs)
    for name, term in ({} if totals is None else jax.device_get(terms)).items():
      total, count, _ = totals.get(name, (0.0, 0.0, 0.0))
      totals[name] = np.array([total + float(term.total), count + float(term.count), float(term.floor)])
    for row in np.flatnonzero(batch['valid']):
      yield int(batch['index'][row]), to_original({k: v[row] for k, v in outputs.items()}, batch, row)


def to_original(prediction: Mapping[str, np.ndarray], batch: Batch, row: int) -> dict[str, np.ndarray]:
  """One prediction, from pixels of the canvas to pixels of the image as it was read.

  Boxes are mapped back and clipped to the image, and what fills no slot is dropped; maps [H, W] are sampled at the
  nearest pixel, and what the canvas did not see (a crop) takes the value of the nearest pixel it saw.
  """
  (height, width), scale, offset = (np.asarray(batch[k][row]) for k in ('original_size', 'scale', 'offset'))
  restored = dict(prediction)
  if 'boxes' in prediction:
    kept = prediction['valid']
    restored = {name: value[kept] for name, value in prediction.items()}
    boxes = (restored['boxes'].reshape(-1, 2, 2) - offset) / scale
    restored['boxes'] = np.clip(boxes, 0.0, [width, height]).reshape(-1, 4).astype(np.float32)
  for name in ('segmentation', 'confidence'):
    if name in prediction:
      x, y = (((np.arange(n) + 0.5) * s + o).astype(np.int64)
              for n, s, o in zip((width, height), scale, offset, strict=True))
      rows, columns = np.asarray(batch['image_size'][row]).astype(np.int64)
      restored[name] = prediction[name][np.clip(y, 0, rows - 1)[:, None], np.clip(x, 0, columns - 1)[None, :]]
  return restored


def evaluate(task: Task, eval_step: Callable, variables: Variables, loader: Any) -> tuple[dict[str, float], list[Any]]:
  """The task's metrics and loss terms over a whole source, every image once, merged over all processes.

  Args:
    task: gives the accumulators and the weights of the Terms.
    eval_step: from `make_eval_step(task)`.
    variables: the parameters and other collections.
    loader: its `eval_batches()` give this process's share, its `source` the ground truth.

  Returns:
    Flat names and values (each accumulator's, each Term's mean, and `loss`, their weighted sum), and the accumulators.
  """
  accumulators, totals = list(task.metrics()), {}
  for index, prediction in predictions(eval_step, variables, loader.eval_batches(), totals):
    target = {**loader.source.target(index), 'index': index}
    for accumulator in accumulators:
      accumulator.add(prediction, target)
  accumulators = _merged(accumulators)
  # The Terms are sums over the devices of all processes already: nothing to merge.
  means = {name: float(total / max(count, floor)) for name, (total, count, floor) in totals.items()}
  weights = step_lib.resolve_weights(task.weights, tuple(means), train=False)
  loss = sum(weights[name] * mean for name, mean in means.items())
  results = [accumulator.result() for accumulator in accumulators]
  return {**{name: value for result in results for name, value in result.items()}, **means, 'loss': loss}, accumulators


def _merged(accumulators: Sequence[Any]) -> list[Any]:
  """The accumulators of all processes merged, in the order of the processes."""
  if jax.process_count() == 1:
    return list(accumulators)
  data = np.frombuffer(pickle.dumps(list(accumulators)), np.uint8)
  sizes = multihost_utils.process_allgather(np.array(data.size))
  padded = multihost_utils.process_allgather(np.pad(data, (0, int(sizes.max()) - data.size)))
  everyone = [pickle.loads(row[:size].tobytes()) for row, size in zip(padded, sizes, strict=True)]
  for others in everyone[1:]:
    for accumulator, other in zip(everyone[0], others, strict=True):
      accumulator.merge(other)
  return everyone[0]
