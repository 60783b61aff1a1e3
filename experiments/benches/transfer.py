"""Every recipe of transfer learning beside training from scratch, on few and on many images of each class, as a table.

python experiments/benches/transfer.py --data data/sign_digits --output runs/transfer [--omniglot data/omniglot]
    [--within] [--per_class 5,20,0] [--seeds 1]

The images of each class are divided by file number: the last fifth validates, and of the others so many train, spread
evenly over them (0: all). The network is that of configs/sign_digits.py, ResNet-18 half as wide, at 64 x 64 pixels. It
is pretrained on the embedded handwritten digits (configs/digits_resnet18.py), and on Omniglot's characters where that
folder is given; with --within on the first half of the classes, for the other half. Each cell is the last evaluation of
a run of train.py or linear_probe.py in a folder of its own below the output, so that a second call goes on where the
first one ended. Each command is printed with the seconds it took.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import json
import pathlib
import statistics
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from vision_jax.data.formats import image_folder  # noqa: E402  the clone's, whether or not it is installed

RECIPES = ('linear probe', 'head', 'head_then_all', 'upper', 'all')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--data', required=True, help='a folder of images by class, such as sign_digits')
  parser.add_argument('--output', required=True, help='where runs and the table go')
  parser.add_argument('--omniglot', help='a folder <alphabet>/<character>/*, to pretrain on')
  parser.add_argument('--within', action='store_true', help='pretrain on half of the classes, and learn the others')
  parser.add_argument('--per_class', default='5,20,0', help='training images of each class; 0 is all')
  parser.add_argument('--seeds', type=int, default=1, help='runs of each cell')
  options = parser.parse_args()
  output = pathlib.Path(options.output).resolve()
  counts = [int(count) for count in options.per_class.split(',')]
  classes = image_folder.read('train', path=pathlib.Path(options.data).resolve()).classes.names
  bodies = {'digits': ['--config', 'configs/digits_resnet18.py', '--config.model.stem=imagenet',
                       '--config.data.canvas=(64, 64)']}
  if options.omniglot:
    bodies['Omniglot'] = [
        *bodies['digits'], '--config.data.name=identities',
        f'--config.data.path={pathlib.Path(options.omniglot).resolve()}', '--config.data.disjoint=False',
        '--config.train.duration=20 epochs']
  if options.within:
    first, classes = classes[:len(classes) // 2], classes[len(classes) // 2:]
    folder = subset(output, options.data, 0, first)
    bodies = {f'classes {", ".join(first)}': ['--config', 'configs/sign_digits.py', f'--config.data.path={folder}']}
  for name, arguments in bodies.items():
    run('train', pretrained(output, name), *arguments)
  rows = {}
  for recipe, name in (('from scratch', None), *((recipe, name) for name in bodies for recipe in RECIPES)):
    weights = name and pretrained(output, name)
    rows[f'{recipe}, from {name}' if name else recipe] = [
        cell(output, subset(output, options.data, count, classes), count, recipe, weights, options.seeds)
        for count in counts]
  titles = [f'{count or "all"} images a class' for count in counts]
  print(f'\n| recipe | {" | ".join(titles)} |')
  print(f'|---|{"---|" * len(counts)}')
  for name, cells in rows.items():
    print(f'| {name} | {" | ".join(f"{statistics.median(cell):.1%}" for cell in cells)} |')


def pretrained(output: pathlib.Path, name: str) -> pathlib.Path:
  """The folder of the run that made the weights of this name."""
  return output / f'pretrained_{name.replace(" ", "_").replace(",", "")}'


def cell(output: pathlib.Path, folder: pathlib.Path, count: int, recipe: str, weights: pathlib.Path | None,
         seeds: int) -> list[float]:
  """The top-1 of one recipe on a folder with so many images of each class (0: all), for each seed."""
  # With few images, smaller batches and sixty epochs, so that the steps are enough; the same for every recipe.
  small = ['--config.data.batch_size=8', '--config.optim.lr=0.02', '--config.train.duration=60 epochs'] if (
      0 < count <= 20) else []
  found = []
  for seed in range(seeds):
    place = output / f'{recipe.replace(" ", "_")}_{weights.name if weights else "none"}_{folder.name}_{seed}'
    common = [f'--config.data.path={folder}', *small, f'--config.train.seed={seed}']
    if weights is None:
      run('train', place, '--config', 'configs/sign_digits.py', *common)
    else:
      config = 'configs/finetune.py' + ('' if recipe == 'linear probe' else f':{recipe}')
      run('linear_probe' if recipe == 'linear probe' else 'train', place, '--config', config, *common,
          f'--config.model.weights={weights}',
          *(['--config.optim.boundaries=(0.1,)'] if small and recipe == 'head_then_all' else []))  # still 6 epochs
    found.append(top1(place))
  return found


def subset(output: pathlib.Path, data: str, count: int, classes: Sequence[str]) -> pathlib.Path:
  """A folder with links to so many training images of each of these classes, and to their validation images."""
  folder = output / f'{"_".join(classes)}_{count or "all"}'
  for split in ('train', 'val'):
    labelled = image_folder.read(split, path=pathlib.Path(data).resolve())
    for name in classes:
      label = labelled.classes.names.index(name)
      images = [record.path for record in labelled.records if record.label == label]
      if split == 'train' and count:
        images = [images[i] for i in np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)]
      (folder / split / name).mkdir(parents=True, exist_ok=True)
      for image in images:
        link = folder / split / name / pathlib.Path(image).name
        if not link.exists():
          link.symlink_to(image)
  return folder


def run(program: str, place: pathlib.Path, *arguments: str) -> None:
  """One program in a folder of its own, unless it has ended there before."""
  done = place / 'seconds.json'
  if done.exists():
    return
  command = [sys.executable, f'experiments/{program}.py', '--workdir', str(place), *arguments]
  print(' '.join(command[1:]), flush=True)
  begun = time.perf_counter()
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  if result.returncode:
    sys.exit(result.stdout[-2000:] + result.stderr[-2000:])
  done.write_text(json.dumps(time.perf_counter() - begun))
  print(f'  {time.perf_counter() - begun:.0f} s; {result.stdout.strip().splitlines()[-2]}', flush=True)


def top1(place: pathlib.Path) -> float:
  """What the last evaluation of a run found."""
  probe = place / 'linear_probe.json'
  if probe.exists():
    return json.loads(probe.read_text())['top1']
  records = [json.loads(line) for line in (place / 'metrics.jsonl').read_text().splitlines()]
  return next(record['val/top1'] for record in reversed(records) if 'val/top1' in record)


if __name__ == '__main__':
  main()
