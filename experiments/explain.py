"""What a detector's loss takes its predictions for in one image, positive, negative or ignored, and whom none learns.

python experiments/explain.py --config configs/digits_scenes_retinanet.py --index 0 [--workdir runs/x] \\
    --output explain.png

Counts are printed, and for each object how many predictions learn it. In the picture every object is dashed in a colour
of its own, in which the boxes that learn it are drawn; one that none learns is red and crossed out. Grey dots are
negatives, yellow ones are ignored. Without --workdir the network is as it is before training, with the weights that
the config names.
"""

import launch  # first: it sets the environment that jax reads

import itertools
import pathlib

from absl import flags
import numpy as np

from vision_jax import build, viz
from vision_jax.inspect import explain_assignment

FLAGS = flags.FLAGS
flags.DEFINE_integer('index', 0, 'Which image of the validation data.', 0)
flags.DEFINE_string('output', 'explain.png', 'The picture to write.')
flags.DEFINE_string('step', None, "Which checkpoint of --workdir: 'best' (the default), 'last' or a step.")


def main() -> None:
  if FLAGS.step is not None and not FLAGS.workdir:
    raise ValueError(f'--step is {FLAGS.step!r} of no run; give its folder, --workdir, or leave --step out')
  experiment = build.experiment(launch.config_of_run())
  loader = experiment.val_loader
  if FLAGS.index >= len(loader.source):
    raise ValueError(f'--index is {FLAGS.index}, and there are {len(loader.source)} images; give a smaller one')
  variables, said = network(experiment)
  print(said)
  number, row = divmod(FLAGS.index, loader.batch_size)
  batch = next(itertools.islice(loader.eval_batches(), number, None))
  stages = explain_assignment(experiment.task, variables, batch, row=row)
  image = seen(batch, row, loader)
  scale = viz.legible_scale(image.shape[:2])
  print(f'{loader.source.name_of(FLAGS.index)}, {image.shape[0]} x {image.shape[1]} pixels of the canvas')
  for stage in stages:
    print(stage.table(experiment.classes))
  captions = [stage.table().splitlines()[0] for stage in stages]
  pathlib.Path(FLAGS.output).parent.mkdir(parents=True, exist_ok=True)
  viz.save_png(FLAGS.output, viz.contact_sheet([stage.draw(image, scale=scale) for stage in stages], captions))
  print(FLAGS.output)


def network(experiment):
  """The variables of the checkpoint, or those before training, and a line or more that say which."""
  if not FLAGS.workdir:
    return experiment.initial()
  state = experiment.restore(FLAGS.workdir, FLAGS.step or 'best')
  return state.evaluation_variables(), f'{FLAGS.workdir}, step {int(state.step)}'


def seen(batch, row, loader) -> np.ndarray:
  """The content of the canvas, as it was before its normalisation."""
  height, width = batch['image_size'][row]
  image = batch['image'][row, :height, :width] * np.array(loader.std) + np.array(loader.mean)
  return np.clip(255 * image, 0, 255).round().astype(np.uint8)


if __name__ == '__main__':
  launch.run(main)
