"""The checker as a user runs it: exit codes, the files that it writes, and a mended copy."""

import json

from PIL import Image
import pytest

from tests.data import builders
from tests.experiments.test_programs import complaint, program

pytestmark = pytest.mark.medium
CONFIG = """
from configs import common

def get_config(variant=''):
  return common.config(variant, task={'name': 'yolov3'}, model={'name': 'yolov3_small'}, optim={'name': 'sgd'},
                       data={'name': 'voc', 'path': 'nowhere', 'batch_size': 4}, train={'duration': '1 steps'})
"""


def pets(folder):
  """Pascal VOC with one inverted box in train."""
  cat, dog = builders.voc_object('cat', (2, 3, 9, 10)), builders.voc_object('dog', (9, 3, 4, 10))
  builders.voc_set(folder, {'a': [cat, dog], 'b': [cat]})
  return builders.voc_set(folder, {'c': [cat], 'd': []}, split='val')


def test_errors_end_in_exit_code_1_and_the_mended_copy_has_none(tmp_path):
  folder, out, copy = pets(tmp_path / 'pets'), tmp_path / 'out', tmp_path / 'copy'
  first = program('check_data', '--name', 'voc', '--path', folder, '--output', out, '--fix', copy, code=1)
  line = 'Annotations/a.xml:5: the box is xmin 9, ymin 3, xmax 4, ymax 10: it ends before it begins'
  assert f'error box-inverted: {line}; the object is left out. Mend: swap the corners' in first.stdout
  assert f'{line}; left out' in first.stdout
  report = (out / 'report.txt').read_text()
  assert report.rstrip() in first.stdout
  assert json.loads((out / 'findings.json').read_text())['counts']['box-inverted'] == 1
  for split in ('train', 'val'):
    assert Image.open(out / f'contact_sheet_{split}.png').size > (500, 300)
  (tmp_path / 'config.py').write_text(CONFIG)
  second = program('check_data', '--config', tmp_path / 'config.py', f'--config.data.path={copy}')
  assert 'train: nothing to report' in second.stdout
  assert '            2  cat' in second.stdout


def test_mistakes_on_the_command_line_end_in_one_line(tmp_path):
  pets(tmp_path / 'pets')
  message = complaint(program('check_data', '--name', 'vocc', '--path', tmp_path / 'pets', code=2))
  assert message.startswith("error: unknown format 'vocc'; did you mean voc, coco? known: coco, identities")
  options = '--name', 'voc', '--path', tmp_path / 'pets', '--option', 'clases=cat'
  message = complaint(program('check_data', *options, code=2))
  assert message == "error: format voc has no option 'clases'; did you mean classes? known: classes, path"
