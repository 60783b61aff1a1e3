"""Turns weights into a folder that a config's `model.weights` takes: published ones by name, or a file.

python experiments/import_weights.py --weights resnet50:IMAGENET1K_V2 --output weights/resnet50
python experiments/import_weights.py --weights mine.pth --model resnet50 --set num_classes=10 --output weights/mine
python experiments/import_weights.py --weights yolov3.weights --model yolov3 --output weights/yolov3
python experiments/import_weights.py --list resnet

Files are those of torch (`.pth`, `.pt`, `.bin`), safetensors and darknet (`.weights`, `darknet53.conv.74`). The folder
gets the variables (orbax) and weights.json: the model and its options, the source and its SHA-256, the preprocessing
and the class names, as far as they are known. Files are read without torch, and no code in them runs.
"""

import launch  # first: it sets the environment that jax reads

import pathlib

from absl import flags

from vision_jax import models, pretrained
from vision_jax.pretrained import catalogue
from vision_jax.train.checkpoint import save_variables

FLAGS = flags.FLAGS
flags.DEFINE_string('weights', None, 'A .pth, .pt, .bin, .safetensors or .weights file, or a name such as '
                    'resnet50:DEFAULT.')
flags.DEFINE_string('model', None, 'The name of the model; that of published weights when left out.')
flags.DEFINE_multi_string('set', [], 'An option of the model, such as num_classes=10; may be given several times.')
flags.DEFINE_string('output', None, 'The folder to write to: new, or of an earlier import.')
flags.DEFINE_string('key', None, "Where in a trainer's checkpoint the weights are, such as 'model_ema'.")
flags.DEFINE_bool('strict', True, 'Whether names that are missing, unexpected or of another shape are errors.')
flags.DEFINE_string('list', None, 'Print the published weights whose names contain this (all with an empty one).')


def main() -> None:
  if FLAGS.list is not None:
    print_published(FLAGS.list)
    return
  for name in ('weights', 'output'):
    if not FLAGS[name].value:
      raise ValueError(f'--{name} is missing; see --help')
  output = pathlib.Path(FLAGS.output)
  if output.is_file() or (output.is_dir() and any(output.iterdir()) and not (output / 'weights.json').exists()):
    raise ValueError(f'{output} exists and is no earlier import; choose another --output')
  published, path = pretrained.locate(FLAGS.weights)
  name = FLAGS.model or (published.model if published else None)
  if name is None:
    raise ValueError(f'--model is missing, and {path} does not say what it belongs to; known models: '
                     f'{", ".join(models.names())}')
  own = published.options if published and published.model == name else {}
  options = {**own, **dict(map(launch.option, FLAGS.set))}
  model = models.create(name, **options)
  variables, report = pretrained.load(FLAGS.weights, model, place=FLAGS.key, strict=FLAGS.strict)
  print(report)
  save_variables(output, variables, {
      'model': {'name': name, **{key: value for key, value in options.items() if key != 'num_classes'}},
      'num_classes': getattr(model, 'num_classes', None), 'source': report.source, 'sha256': catalogue.sha256(path),
      'head': 'fresh' if report.head else 'loaded', 'licence': published.licence if published else '',
      'preprocessing': report.preprocessing, 'categories': () if report.head else report.categories})
  print(f'written to {output}; a config takes it as --config.model.weights={output}')


def print_published(part: str) -> None:
  rows = [row for row in pretrained.published() if part in row.name]
  if not rows:
    raise ValueError(f'no published weights have {part!r} in their name; --list= lists all')
  print(f'{"name":<46} {"top-1":>6} {"top-5":>6} {"box AP":>6} {"parameters":>12} {"GMACs":>8} {"MB":>7}  resize')
  for row in rows:
    accuracy = ''.join(f' {"" if value is None else value:>6}' for value in (row.top1, row.top5, row.box_ap))
    print(f'{row.name + (" *" if row.default else ""):<46}{accuracy} {row.parameters:>12,} {row.gmacs or "":>8} '
          f'{row.megabytes:>7.0f}  {row.resize} -> {row.crop} {row.policy} {row.interpolation}')
  print('* = DEFAULT; top-1 and top-5 of ImageNet, box AP of COCO')


if __name__ == '__main__':
  launch.run(main)
