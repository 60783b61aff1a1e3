"""Training steps of an experiment on one batch, for the tests of detectors' rows."""

from __future__ import annotations

import jax
import numpy as np

from tests.models import drawn
from vision_jax.train import step as step_lib
from vision_jax.train.state import state_shapes, to_host


def drawn_state(experiment, batch):
  """A state before the first step, drawn by NumPy: `init` takes longer to compile than the step."""
  variables = drawn.variables(experiment.task.module, batch['image'])
  shapes = state_shapes(experiment.task, experiment.optimiser, batch)
  state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
  return step_lib.replicate(state.replace(params=variables.pop('params'), model_state=variables))


def two_steps(experiment):
  """The states after two steps on one batch, in the second as it is and spoiled; the batch; the logs of the three."""
  batch = experiment.train_loader.batch(0)
  step = step_lib.make_train_step(experiment.task, experiment.optimiser)
  state, log = step(drawn_state(experiment, batch), step_lib.shard_batch(batch))
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
