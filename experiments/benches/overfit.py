"""Whether every small detector can learn a batch of eight digit scenes by heart: AP@.5 of these eight, up to 1.0.

A detector that cannot has a fault: targets that contradict each other, a loss that pulls elsewhere than the decoding
reads, boxes that are lost between the canvas and the metric. Model and task are those of its config on digit scenes,
the optimiser is one for all; the metric and the way to it are those of every evaluation. Seconds are those of the
steps and the evaluations between them; compiling is not among them.
"""

from __future__ import annotations

import time

from benches import digit_scenes
import jax

from vision_jax import build
from vision_jax.train import evaluate as evaluate_lib
from vision_jax.train import step as step_lib
from vision_jax.train.state import create_state

SCENES, LIMIT, EVERY = 8, 1500, 25
OPTIMISER = {'name': 'adamw', 'lr': 1e-3, 'schedule': 'constant', 'warmup': '25 steps', 'clip': 10.0}


def learn_by_heart(experiment: build.Experiment) -> tuple[int, float, float]:
  """(steps, seconds, AP@.5) at the first evaluation that is perfect, or at the limit."""
  task, loader = experiment.task, experiment.train_loader
  state = step_lib.replicate(create_state(task, experiment.optimiser, loader.batch(0)))
  batch = step_lib.shard_batch(loader.batch(0))
  step = step_lib.make_train_step(task, experiment.optimiser).lower(state, batch).compile()
  eval_step = step_lib.make_eval_step(task)
  evaluate_lib.evaluate(task, eval_step, state.evaluation_variables(), loader)  # so that it is compiled
  begun = time.perf_counter()
  for count in range(1, LIMIT + 1):
    state, _ = step(state, batch)
    if count % EVERY == 0:
      found = evaluate_lib.evaluate(task, eval_step, state.evaluation_variables(), loader)[0]['AP50']
      if found == 1.0:
        break
  return count, time.perf_counter() - begun, found


def table() -> None:
  """Prints a row for each small detector."""
  print(f'\nAP@.5 of {SCENES} digit scenes, trained on these alone; {OPTIMISER["name"]}, learning rate '
        f'{OPTIMISER["lr"]:g}, at most {LIMIT} steps, {jax.device_count()} {jax.devices()[0].device_kind}')
  print('| model | steps | seconds | AP@.5 | met |\n|---|---|---|---|---|')
  sections = {'data': {'train_size': SCENES, 'batch_size': SCENES, 'val_size': 1, 'augment': ()}, 'optim': OPTIMISER,
              'train': {'duration': f'{LIMIT} steps', 'ema_decay': None}}
  for name, experiment in digit_scenes.detectors(**sections):
    steps, seconds, found = learn_by_heart(experiment)
    print(f'| {name} | {steps} | {seconds:.1f} | {found:.3f} | {"yes" if found == 1.0 else "NO"} |', flush=True)
