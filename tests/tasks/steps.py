"""Training steps of an experiment on one batch, for the tests of detectors' rows."""

from __future__ import annotations

import jax
import numpy as np

from tests.models import drawn
from vision_jax.models.detection.yolov1 import YOLOv1
from vision_jax.models.detection.yolov2 import YOLOv2
from vision_jax.train import step as step_lib
from vision_jax.train.state import state_shapes, to_host


def drawn_state(experiment, batch, *, ema=False, variance=2.0):
  """A state before the first step, drawn by NumPy as in `drawn`: `init` takes longer to compile than the step."""
  variables = drawn.variables(experiment.task.module, batch['image'], variance=variance)
  shapes = state_shapes(experiment.task, experiment.optimiser, batch, ema=ema)
  state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
  return step_lib.replicate(state.replace(params=variables.pop('params'), model_state=variables))


def quick_step(experiment, state, batch, **options):
  """The training step, compiled in half the time but for the YOLOs with max pools: unoptimised XLA (jax 0.10.2)
  makes NaN of the gradient of BatchNorm before such a pool, and with any optimisation it does not."""
  step = step_lib.make_train_step(experiment.task, experiment.optimiser, **options)
  quick = None if isinstance(experiment.module, (YOLOv1, YOLOv2)) else {'xla_backend_optimization_level': 0}
  return step.lower(state, step_lib.shard_batch(batch)).compile(quick)


def two_steps(experiment):
  """The states after two steps on one batch, in the second as it is and spoiled; the batch; the logs of the three."""
  batch = experiment.train_loader.batch(0)
  state = drawn_state(experiment, batch)
  step = quick_step(experiment, state, batch)
  state, log = step(state, step_lib.shard_batch(batch))
  first, ends = to_host(state), []
  for given in (batch, spoiled(batch)):
    state, second = step(step_lib.replicate(jax.tree.map(np.array, first)), step_lib.shard_batch(given))
    ends.append((to_host(state), jax.device_get(second)))
  states, logs = zip(*ends, strict=True)
  return states, batch, (jax.device_get(log), *logs)


def spoiled(batch):
  """The same batch with other values wherever no object is real."""
  batch = {name: value.copy() for name, value in batch.items()}
  assert 0 < batch['boxes_valid'].sum() < batch['boxes_valid'].size
  batch['boxes'][~batch['boxes_valid']], batch['labels'][~batch['boxes_valid']] = np.nan, 10**9
  return batch
