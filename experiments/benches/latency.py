"""What the small detectors cost with fresh weights: parameters, a training step, and predict on one image at a time.

Predict is timed on the canvas alone, from a normalised image to detections, and from an image of any size, uint8 in
memory, to detections in its own pixels: resized and normalised, predicted, mapped back, by what
`experiments/predict.py` calls. After the first image none may compile again, whatever its content and size.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import itertools
from typing import Any

from benches import digit_scenes, timing
import jax
import numpy as np

from vision_jax import build
from vision_jax.data import Loader
from vision_jax.train import evaluate as evaluate_lib
from vision_jax.train import step as step_lib
from vision_jax.train.state import TrainState, create_state

BATCH_SIZE, STEPS, IMAGES = 16, 20, 200
SIZES = ((96, 128), (240, 320), (375, 500), (500, 333), (480, 640))  # of the images, (h, w), in turns
COMPILED = '/jax/core/compile/backend_compile_duration'


class Images:
  """Images of different sizes and grey levels with noise, in memory: a source without targets."""

  fields = ()

  def __init__(self):
    rng = np.random.default_rng(0)
    self.images = [np.clip(rng.normal(level, 40, (*size, 3)), 0, 255).astype(np.uint8)
                   for level in (0, 80, 200) for size in SIZES]

  def __len__(self) -> int:
    return IMAGES

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {'image': self.images[index % len(self.images)]}

  def name_of(self, index: int) -> str:
    return f'image {index}'


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
  """The names of what XLA compiles meanwhile."""
  names: list[str] = []

  def listen(event: str, seconds: float, **about: Any) -> None:
    if event == COMPILED:
      names.append(about.get('fun_name', 'unnamed'))

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield names
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def train_seconds(experiment: build.Experiment, state: TrainState) -> list[float]:
  """The time of each of some training steps; it gives the state away."""
  batch = step_lib.shard_batch(experiment.train_loader.batch(0))
  step = step_lib.make_train_step(experiment.task, experiment.optimiser, ema_decay=experiment.fit_options['ema_decay'])

  def turn() -> Any:
    nonlocal state
    state, logs = step(state, batch)
    return logs

  return timing.seconds_of(turn, STEPS + 1)[1:]


def predict_seconds(name: str, experiment: build.Experiment, state: TrainState) -> tuple[list[float], list[float]]:
  """The times of predict on the canvas, and from image to detections in its pixels.

  Raises:
    ValueError: predict compiled again for a later image.
  """
  loader = Loader(Images(), fields=(), **{**experiment.loading, 'batch_size': 1, 'workers': 0})
  eval_step, variables = step_lib.make_eval_step(experiment.task), state.evaluation_variables()
  batches = itertools.cycle([step_lib.shard_batch(b) for b in itertools.islice(loader.eval_batches(), 2 * len(SIZES))])
  found = evaluate_lib.predictions(eval_step, variables, loader.eval_batches())
  next(found)
  with compilations() as compiled:
    whole = timing.seconds_of(lambda: next(found), IMAGES - 1)
    alone = timing.seconds_of(lambda: eval_step(variables, next(batches)), IMAGES)
  if compiled:
    raise ValueError(f'{name}: predict compiled again after the first image ({", ".join(compiled)}); look for shapes '
                     'that depend on the image')
  return alone, whole


def table() -> None:
  """Prints a row for each small detector."""
  sizes = ', '.join(f'{w} x {h}' for h, w in SIZES)
  print(f'\nSmall detectors with fresh weights, milliseconds on {jax.device_count()} {jax.devices()[0].device_kind}: a '
        f'training step of {BATCH_SIZE} images, predict of one image, and the same from images of {sizes}')
  print('| model | canvas | parameters | training step | predict, median | p90 | from image to boxes, median | p90 |\n'
        '|---|---|---|---|---|---|---|---|')
  for name, experiment in digit_scenes.detectors(data={'train_size': BATCH_SIZE, 'batch_size': BATCH_SIZE}):
    state = step_lib.replicate(create_state(
        experiment.task, experiment.optimiser, experiment.train_loader.batch(0),
        ema=experiment.fit_options['ema_decay'] is not None))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    times = [column for side in predict_seconds(name, experiment, state) for column in (np.median(side),
                                                                                        np.percentile(side, 90))]
    step = np.median(train_seconds(experiment, state))
    height, width = experiment.val_loader.canvas
    print(f'| {name} | {height} x {width} | {parameters:,} | {1e3 * step:.0f} | '
          f'{" | ".join(f"{1e3 * seconds:.1f}" for seconds in times)} |', flush=True)
