"""Writes a run's weights, or imported ones, as a state dict that torch loads: strictly, into torchvision's model.

python experiments/export_weights.py --workdir runs/lenet --output lenet.pth [--step best|last|300]
python experiments/export_weights.py --input weights/resnet50 --output resnet50.safetensors

In torch: model.load_state_dict(torch.load('lenet.pth', weights_only=True)).
"""

import launch  # first: it sets the environment that jax reads

import pathlib

from absl import flags

from vision_jax import build, models, pretrained
from vision_jax.train.checkpoint import load_variables, read_record

FLAGS = flags.FLAGS
flags.DEFINE_string('input', None, 'A folder that import_weights.py wrote; the run in --workdir when left out.')
flags.DEFINE_string('output', None, 'The file to write: .pth or .safetensors.')
flags.DEFINE_string('step', 'best', "Which checkpoint of a run: 'best', 'last' or a step.")

WRITERS = {'.pth': pretrained.write_pth, '.safetensors': pretrained.write_safetensors}


def main() -> None:
  output = pathlib.Path(FLAGS.output or '')
  if output.suffix not in WRITERS:
    raise ValueError(f'--output is {FLAGS.output!r}; give a file that ends in {" or ".join(WRITERS)}')
  if FLAGS.input:
    model, variables, source = *imported(FLAGS.input), FLAGS.input
  else:
    experiment = build.experiment(launch.config_of_run())
    state = experiment.restore(FLAGS.workdir, FLAGS.step)
    model, variables = experiment.module, state.evaluation_variables()
    source = f'{FLAGS.workdir}, step {int(state.step)}{", moving average" if state.ema else ""}'
  state_dict = pretrained.to_torch(model, variables)
  output.parent.mkdir(parents=True, exist_ok=True)
  WRITERS[output.suffix](output, state_dict)
  print(f'{source}: {len(state_dict)} tensors of {type(model).__name__} written to {output}')


def imported(folder: str):
  """The model and the variables of an imported folder."""
  record = read_record(folder)
  options = dict(record['model'])
  if record['num_classes'] is not None:
    options['num_classes'] = record['num_classes']
  return models.create(options.pop('name'), **options), load_variables(folder)


if __name__ == '__main__':
  launch.run(main)
