"""Every command and every code block of the README runs."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from tests.data.builders import class_folders, voc_object, voc_set

ROOT = pathlib.Path(__file__).resolve().parents[1]
TEXT = (ROOT / 'README.md').read_text(encoding='utf-8')
BLOCKS = re.findall(r'```(\w+)\n(.*?)```', TEXT, re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if kind == 'bash' for line in block.splitlines() if line.strip()]


def test_every_make_command_is_a_target_that_would_run():
  commands = [line for line in COMMANDS if line.startswith('make ')]
  assert len(commands) >= 2
  for command in commands:
    subprocess.run([*command.split(), '--dry-run'], cwd=ROOT, check=True, capture_output=True, timeout=60)


@pytest.mark.slow
def test_every_python_command_runs_as_smoke_in_the_readmes_order(tmp_path):
  commands = [line for line in COMMANDS if line.startswith('python ')]
  assert len(commands) >= 5
  assert len(commands) + sum(line.startswith('make ') for line in COMMANDS) == len(COMMANDS), 'a command no test runs'
  (tmp_path / 'photos').mkdir()
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)).save(tmp_path / 'photos' / 'a.png')
  for split, count in (('train', 16), ('val', 4)):
    voc_set(tmp_path / 'data' / 'bccd', {f'{split}{k}': [voc_object('cat', (2, 3, 8, 9))] for k in range(count)},
            split=split)
  class_folders(tmp_path / 'data' / 'signs', {name: 20 for name in ('one', 'three', 'two')})
  for command in commands:
    words = shlex.split(command)[1:]
    words[0] = str(ROOT / words[0])
    words = [f'{ROOT / word}:smoke' if re.fullmatch(r'configs/\w+\.py(:\w+)?', word) else word for word in words]
    result = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=200,
                            env=os.environ.copy(), check=False)
    assert result.returncode == 0, f'{command}\n{result.stdout}{result.stderr}'


@pytest.mark.medium
@pytest.mark.parametrize('block', [block for kind, block in BLOCKS if kind == 'python'])
def test_every_code_block_runs(block, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)  # what a block writes
  names = {}
  exec(compile(block, 'README.md', 'exec'), names)
  if 'get_config' in names:
    from vision_jax import build
    experiment = build.experiment(names['get_config']().to_dict())
    assert experiment.fit_options['patience'] == 3


@pytest.mark.slow
def test_the_demo_ends_with_the_run_folder_and_a_table(tmp_path):
  folder = tmp_path / 'demo'
  result = subprocess.run([sys.executable, str(ROOT / 'experiments' / 'demo.py'), '--smoke', '--workdir', str(folder)],
                          capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
  assert result.returncode == 0, result.stdout + result.stderr
  tail = result.stdout.split('run folder: ')[1].splitlines()
  assert tail[0] == str(folder)
  assert re.search(r'AP@\.5 +\d\.\d{3}', result.stdout)
  assert len(list((folder / 'predictions').glob('*.png'))) == 8
  assert (folder / 'predictions' / 'predictions.json').exists()


def test_every_table_row_of_results_names_its_config():
  rows = [line for line in TEXT.splitlines() if line.startswith('| `configs/')]
  assert rows
  for row in rows:
    assert (ROOT / re.search(r'configs/\w+\.py', row)[0]).exists()
