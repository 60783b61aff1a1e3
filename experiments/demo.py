"""Trains the small detector on digit scenes, evaluates it, and draws its predictions: the three programs in a row.

python experiments/demo.py [--smoke] [--workdir runs/demo]
"""

import launch  # first: it sets the environment that jax reads

import json
import pathlib
import subprocess
import sys
import time

from absl import flags
from PIL import Image

from vision_jax.data import create

FLAGS = flags.FLAGS
flags.DEFINE_bool('smoke', False, 'Seconds instead of minutes: nothing is learned.')
PICTURES = 8
TABLE = (('AP@.5', 'AP50'), ('AP@[.5:.95]', 'AP'), ('AP@.75', 'AP75'))


def main() -> None:
  folder = pathlib.Path(FLAGS.workdir or launch.ROOT / 'runs' / time.strftime('demo-%Y%m%d-%H%M%S'))
  config = launch.ROOT / 'configs' / f'digits_scenes_yolo.py{":smoke" if FLAGS.smoke else ""}'
  run('train', f'--config={config}', f'--workdir={folder}')
  run('evaluate', f'--workdir={folder}')
  images = folder / 'images'
  images.mkdir(exist_ok=True)
  scenes = create('digit_scenes', 'val')
  for i in range(PICTURES):
    Image.fromarray(scenes[i]['image']).save(images / f'scene_{i}.png')
  run('predict', f'--workdir={folder}', f'--input={images}')
  metrics = json.loads(max(folder.glob('evaluation_*.json'), key=lambda path: path.stat().st_mtime).read_text())
  print(f'\nrun folder: {folder}')
  for name, key in TABLE:
    print(f'  {name:<14} {metrics[key]:.3f}')
  print(f'  {"step":<14} {metrics["step"]}\n  {"predictions":<14} {folder / "predictions"}')


def run(program: str, *options: str) -> None:
  """Runs one of the programs as a user would, and shows the command."""
  command = [sys.executable, str(launch.ROOT / 'experiments' / f'{program}.py'), *options]
  print('$ python', *command[1:], flush=True)
  code = subprocess.run(command).returncode
  if code:
    sys.exit(code)


if __name__ == '__main__':
  launch.run(main)
