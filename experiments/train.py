"""Trains a config, or continues the run that --workdir holds.

python experiments/train.py --config configs/digits_lenet.py --workdir runs/lenet [--config.optim.lr=0.01]
"""

import launch  # first: it sets the environment that jax reads

from absl import flags
import jax

from vision_jax import build

FLAGS = flags.FLAGS
flags.DEFINE_integer('stop_after', None, 'Make at most this many steps now; the same command continues the run.')
flags.DEFINE_string('coordinator', None, 'host:port of process 0, where several processes train together.')
flags.DEFINE_integer('num_processes', None, 'How many processes train together.')
flags.DEFINE_integer('process_id', None, 'Which of them this is.')


def main() -> None:
  if FLAGS.config is None:
    raise ValueError('--config is missing; give one of configs/, such as --config configs/digits_lenet.py')
  if FLAGS.coordinator is None and (FLAGS.num_processes, FLAGS.process_id) != (None, None):
    raise ValueError('--num_processes and --process_id need --coordinator, the host:port of process 0')
  if FLAGS.coordinator:
    jax.distributed.initialize(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
  primary = jax.process_index() == 0
  config, notes = build.resolved(launch.plain(FLAGS.config))
  experiment = build.experiment(config)
  for line in (*notes, *experiment.notes) if primary else ():
    print(line)
  folder = launch.claim_workdir(config, seed=experiment.fit_options['seed'],
                                classes=experiment.classes.names, primary=primary)
  state, _ = experiment.fit(folder, stop_after=FLAGS.stop_after, started=launch.STARTED)
  if primary:
    print(f'step {int(state.step)} of {experiment.fit_options["steps"]}; the run is in {folder}')


if __name__ == '__main__':
  launch.run(main)
