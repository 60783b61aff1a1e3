"""Evaluates a run's checkpoint on the validation data of its config, and writes the metrics beside it;
for classes that exclude each other, the confusion matrix as a picture too.

python experiments/evaluate.py --workdir runs/lenet [--step best|last|300] [--config ...]
python experiments/evaluate.py --workdir runs/published --step initial --config configs/finetune.py \\
    --config.data.path=data/imagenet --config.model.weights=resnet50:IMAGENET1K_V2

`--step initial` is before the first step: it measures the weights that the config begins with, and says what they are.
"""

import launch  # first: it sets the environment that jax reads

import json
import pathlib

from absl import flags

from vision_jax import build, viz
from vision_jax.train.log import json_scalars

FLAGS = flags.FLAGS
flags.DEFINE_string('step', 'best', "Which checkpoint: 'best', 'last' or a step; or 'initial'.")


def main() -> None:
  experiment = build.experiment(launch.config_of_run(weights=FLAGS.step == 'initial'))
  if not FLAGS.workdir:
    raise ValueError('--workdir is missing; give the folder of the run, or one to write to')
  if FLAGS.step == 'initial':
    state, said = experiment.untrained()
    print('\n'.join((*experiment.notes, said)))
  else:
    state = experiment.restore(FLAGS.workdir, FLAGS.step)
  metrics, accumulators = experiment.evaluate(state)
  averaged = ', moving average' if state.ema else ''
  print(f'{FLAGS.workdir}, step {int(state.step)}{averaged}, {len(experiment.val_loader.source)} images')
  for name, value in metrics.items():
    print(f'  {name:<24} {value:.4f}')
  path = pathlib.Path(FLAGS.workdir) / f'evaluation_{int(state.step)}.json'
  path.parent.mkdir(parents=True, exist_ok=True)
  record = {'step': int(state.step), 'ema': bool(state.ema), **json_scalars(metrics)}
  path.write_text(json.dumps(record, indent=2) + '\n', encoding='utf-8')
  print(path)
  for accumulator in accumulators:
    if hasattr(accumulator, 'matrix'):
      viz.save_png(path.with_suffix('.png'), viz.draw_confusion(accumulator.matrix, experiment.classes))
      print(path.with_suffix('.png'), '(confusion matrix)')


if __name__ == '__main__':
  launch.run(main)
