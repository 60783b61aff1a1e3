"""Checks a data set before it is trained on: labels, images, masks, and the two splits against each other.

python experiments/check_data.py --name voc --path data/bccd_voc [--output out] [--fix data/bccd_mended]
python experiments/check_data.py --config configs/x.py --config.data.path=data/cats

Each finding is one line: how grave it is, where, what is wrong, what will be done, how to mend it. --output gets
report.txt, findings.json and contact_sheet_<split>.png, labelled samples to look at. --fix writes a mended copy and
says what it changed; the data set itself is never written to. The exit code is 1 when there are errors.
"""

import launch  # first: it sets the environment that jax reads

import os
import pathlib
import sys

from absl import flags
import numpy as np
import tqdm

from vision_jax import viz
from vision_jax.conventions import check_options, find, option_names
from vision_jax.data import check, mending, reports
from vision_jax.data.files import LabelledSource
from vision_jax.data.records import select

FLAGS = flags.FLAGS
flags.DEFINE_string('name', None, f'The format: {", ".join(sorted(check.FORMATS))}; or give --config.')
flags.DEFINE_string('path', None, "The data set's folder.")
flags.DEFINE_multi_string('option', [], "A further option of the format, as 'val_share=0.1'; may be given repeatedly.")
flags.DEFINE_list('splits', 'train,val', 'The splits to check.')
flags.DEFINE_string('output', None, 'The folder for report.txt, findings.json and the contact sheets.')
flags.DEFINE_string('fix', None, 'The folder for a mended copy: new, or empty.')
flags.DEFINE_bool('images', True, 'Open every image; --noimages looks at labels alone.')
flags.DEFINE_integer('workers', os.cpu_count(), 'Threads that read images.', 1)
flags.DEFINE_integer('samples', 12, 'Images on a contact sheet.', 0)
flags.DEFINE_integer('most', 20, 'Findings of a kind to print for each split; report.txt has all.', 1)


def main() -> None:
  name, options = chosen()
  checked = check.check_data(name, options, splits=FLAGS.splits, images=FLAGS.images, workers=FLAGS.workers,
                             progress=progress)
  print(reports.report(checked, most=FLAGS.most))
  if FLAGS.output:
    write(pathlib.Path(FLAGS.output), checked)
  if FLAGS.fix:
    fix(name, options, checked)
  if not checked.sound:
    sys.exit(1)


def progress(looks, split, total):
  return tqdm.tqdm(looks, desc=split, total=total, unit=' images', leave=False, disable=None)  # None: on terminals


def chosen() -> tuple[str, dict]:
  """The format and its options, from the flags or from the section `data` of the config."""
  given = {} if FLAGS.config is None else launch.plain(FLAGS.config)['data']
  given = {key: value for key, value in given.items() if value is not None}
  for option in (f'name={FLAGS.name}' if FLAGS.name else '', f'path={FLAGS.path}' if FLAGS.path else '', *FLAGS.option):
    key, equals, value = option.partition('=')
    if option and not equals:
      raise ValueError(f"--option {option!r} has no value; write it as 'val_share=0.1'")
    if option:
      given[key] = value if key in ('name', 'path') else parsed(value, many=key == 'classes')
  if 'name' not in given:
    raise ValueError('neither --name nor --config is given; give --name, the format, and --path')
  name = given.pop('name')
  known = option_names(find(check.FORMATS, 'format', name))
  if FLAGS.config is None:
    check_options(f'format {name}', known, given)
    given = {**({'masks': None} if 'masks' in known else {}), **given}  # None: masks, where there are some
  if 'path' in known and not given.get('path'):
    raise ValueError(f'--path is missing; give the folder of the {name} data set')
  if 'path' in known and not pathlib.Path(given['path']).is_dir():
    raise ValueError(f'no such folder: {given["path"]}; give --path, the folder of the data set')
  own = ('on_error', 'size', 'difficult')  # of the source: the checker shows everything
  return name, {key: value for key, value in given.items() if key in known and key not in own}


def parsed(value: str, *, many: bool):
  """A number, a truth value, or the text itself; several texts with commas between them."""
  if many or ',' in value:
    return tuple(each for each in value.split(',') if each)
  for read in (int, float, {'true': True, 'false': False, 'none': None}.__getitem__):
    try:
      return read(value.lower())
    except (KeyError, ValueError):
      continue
  return value


def write(folder, checked) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'report.txt').write_text(reports.report(checked) + '\n', encoding='utf-8')
  (folder / 'findings.json').write_text(reports.to_json(checked), encoding='utf-8')
  for split, labelled in checked.labelled.items():
    damaged = {finding.item for finding in checked.findings[split] if finding.rule.severity == 'error'
               and finding.kind.startswith(('image', 'mask'))}
    pictures = [] if split in checked.sources else samples(labelled, damaged)
    if pictures:
      viz.save_png(folder / f'contact_sheet_{split}.png', viz.contact_sheet(*zip(*pictures, strict=True)))
  print('report, findings and contact sheets are in', folder)


def fix(name, options, checked) -> None:
  """Writes the mended copy and prints what became of each finding."""
  output = pathlib.Path(FLAGS.fix)
  if output.exists() and (output.is_file() or any(output.iterdir())):
    raise ValueError(f'{output} exists and is not empty; choose another folder for --fix')
  for split, found in checked.findings.items():
    if split in checked.labelled:
      labelled = checked.labelled[split]
      found = found[len(labelled.findings):]
      if 'masks' in option_names(check.FORMATS[name]) and options.get('masks', False) is False:
        labelled = check.READERS[name](split, **{**options, 'masks': None})  # a copy keeps masks nobody trains on
      print('\n'.join(mending.mend(labelled, found, output)))
    elif split != check.BETWEEN:
      print(f'{found[0]}; not copied')
  print('the mended copy is in', output)


def samples(labelled, damaged) -> list:
  """(picture, caption) of some images with their labels, spread over the split; damaged ones are left out."""
  places = [item for item in range(len(labelled.records)) if item not in damaged]
  places = [places[i] for i in np.unique(np.linspace(0, len(places) - 1, FLAGS.samples).round().astype(int))] if (
      places and FLAGS.samples) else []
  source = LabelledSource(select(labelled, places), on_error='skip')
  read = [source[item] for item in range(len(source))]
  scale = min((viz.legible_scale(sample['image'].shape[:2]) for sample in read), default=1)
  return [(drawn(sample, source, scale), source.name_of(item)) for item, sample in enumerate(read)]


def drawn(sample, source, scale):
  """An image with its boxes or its classes."""
  classes = source.classes
  if 'segmentation' in source.fields:
    return viz.draw_segmentation(sample['image'], sample['segmentation'], classes, scale=scale)
  if 'boxes' in source.fields:
    return viz.draw_detections(sample['image'], sample, classes, scale=scale)
  truth = np.eye(len(classes))[sample['label']]
  return viz.draw_classification(sample['image'], truth, classes, top=1, scale=scale)


if __name__ == '__main__':
  launch.run(main)
