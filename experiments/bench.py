"""Times what has to be fast, beside its peer in the same run where there is one; medians, and the ratios to trust.

python experiments/bench.py [--only NMS,RoIAlign] [--rounds 15] [--peer_python /usr/bin/python3]
"""

import launch  # first: it sets the environment that jax reads

import os
import platform

from absl import flags
from benches import coco_eval, detectors, latency, loader, models, ops, overfit, timing
import jax

FLAGS = flags.FLAGS
flags.DEFINE_list('only', [], 'Only the cases whose names begin with one of these.')
flags.DEFINE_integer('rounds', 15, 'Turns of each side.', lower_bound=1)
flags.DEFINE_string('peer_python', '/usr/bin/python3', 'A Python that has torchvision with its compiled operators.')
flags.DEFINE_string('loader_peer_python', '/usr/bin/python3', 'A Python that has torchvision with transforms v2, and '
                    'Pillow.')
flags.DEFINE_string('models_peer_python', '/usr/bin/python3', 'A Python that has torchvision; torch 2.13 is the fair '
                    'peer on a CPU.')
flags.DEFINE_bool('detectors_small', None, "One small image a step, in place of the papers' canvases and batches; the "
                  'default where there is no accelerator.')
flags.DEFINE_integer('batch_size', 8, 'Images in a step of a model.', lower_bound=1)
flags.DEFINE_integer('image_size', 224, 'Pixels of their sides, a multiple of 32.', lower_bound=32)


def main() -> None:
  jax.config.update('jax_enable_compilation_cache', False)  # the last column is what compiling takes
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # torch shares the accelerator's memory
  torch = timing.TorchPeer(FLAGS.peer_python)
  print(f'jax {jax.__version__} on {jax.device_count()} {jax.devices()[0].device_kind}, {platform.machine()}')
  print(f'peer: {torch.about}', flush=True)
  shown = 0
  for case in ops.cases():
    if not FLAGS.only or case.name.startswith(tuple(FLAGS.only)):
      if not shown:
        print(f'\n{timing.HEADER}')
      print(timing.row(case, timing.measure(case, torch, FLAGS.rounds)), flush=True)
      shown += 1
  torch.close()
  tables = {'COCO': coco_eval.table, 'loader': lambda: loader.table(FLAGS.loader_peer_python, FLAGS.rounds),
            'models': lambda: models.table(FLAGS.models_peer_python, FLAGS.rounds, FLAGS.batch_size,
                                           FLAGS.image_size),
            'detectors': lambda: detectors.table(FLAGS.models_peer_python, FLAGS.rounds, FLAGS.detectors_small),
            'overfit': overfit.table, 'latency': latency.table}
  chosen = [name for name in tables if not FLAGS.only or name in FLAGS.only]
  for name in chosen:
    tables[name]()
  if not shown and not chosen:
    raise ValueError(f'--only {",".join(FLAGS.only)} fits no case; they begin with NMS, matching, RoIAlign, pairwise, '
                     f'{", ".join(tables)}')


if __name__ == '__main__':
  launch.run(main)
