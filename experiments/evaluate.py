"""Evaluates a run's checkpoint on the validation data of its config, and writes the metrics beside it.

python experiments/evaluate.py --workdir runs/lenet [--step best|last|300] [--config ...]
"""

import launch  # first: it sets the environment that jax reads

import json
import pathlib

from absl import flags

from vision_jax import build

FLAGS = flags.FLAGS
flags.DEFINE_string('step', 'best', "Which checkpoint: 'best', 'last' or a step.")


def main() -> None:
  experiment = build.experiment(launch.config_of_run())
  state = experiment.restore(FLAGS.workdir, FLAGS.step)
  metrics = experiment.evaluate(state)
  averaged = ', moving average' if state.ema else ''
  print(f'{FLAGS.workdir}, step {int(state.step)}{averaged}, {len(experiment.val_loader.source)} images')
  for name, value in metrics.items():
    print(f'  {name:<24} {value:.4f}')
  path = pathlib.Path(FLAGS.workdir) / f'evaluation_{int(state.step)}.json'
  path.write_text(json.dumps({'step': int(state.step), 'ema': bool(state.ema), **metrics}, indent=2) + '\n')
  print(path)


if __name__ == '__main__':
  launch.run(main)
