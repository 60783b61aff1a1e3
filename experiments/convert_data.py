"""Converts labelled boxes of any format that is read into coco, voc or yolo.

python experiments/convert_data.py --input data/cats --from voc --to coco --output data/cats_coco [--splits train,val]

Images are copied, or linked with --link. What the new format cannot hold is counted and said. Labels with errors are
refused; with --on_error=skip each one that is left out is listed.
"""

import launch  # first: it sets the environment that jax reads

import pathlib

from absl import flags

from vision_jax.conventions import find, option_names
from vision_jax.data.files import stop_on_errors
from vision_jax.data.formats import READERS
from vision_jax.data.writers import WRITERS

FLAGS = flags.FLAGS
flags.DEFINE_string('input', None, "The data set's folder.")
flags.DEFINE_string('from', None, f'Its format: {", ".join(sorted(READERS))}; it must have boxes.')
flags.DEFINE_string('to', None, f'The format to write: {", ".join(sorted(WRITERS))}.')
flags.DEFINE_string('output', None, 'The folder to write to: new, or empty.')
flags.DEFINE_list('splits', 'train,val', 'The splits to convert.')
flags.DEFINE_bool('link', False, 'Symbolic links to the images in place of copies.')
flags.DEFINE_enum('on_error', 'stop', ('stop', 'skip'), 'What errors in the labels do.')


def main() -> None:
  for name in ('input', 'from', 'to', 'output'):
    if not FLAGS[name].value:
      raise ValueError(f'--{name} is missing; see --help')
  source, target = FLAGS['from'].value, FLAGS.to
  read = find(READERS, 'format', source)
  write = find(WRITERS, 'format', target)
  output = pathlib.Path(FLAGS.output)
  if output.exists() and (output.is_file() or any(output.iterdir())):
    raise ValueError(f'{output} exists and is not empty; choose another --output')
  keep = {'masks': None} if 'masks' in option_names(read) else {}  # masks come along where there are some
  splits = [read(split, path=FLAGS.input, **keep) for split in FLAGS.splits]
  for labelled in splits:  # before the first file is written
    for finding in labelled.findings:
      print(f'{finding.rule.severity}: {finding}; {finding.rule.action}')
    if FLAGS.on_error == 'stop':
      stop_on_errors(labelled)
  if len({labelled.classes for labelled in splits}) > 1:
    raise ValueError(f'the splits of {FLAGS.input} have different classes; give them the same list, or convert each '
                     'with --splits to a folder of its own')
  for labelled in splits:
    print(f'{labelled.split}: {write(labelled, output, link=FLAGS.link)}')
  print(f'written to {output} as {target}')


if __name__ == '__main__':
  launch.run(main)
