"""The converter as a user runs it."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.data.builders import voc_object, voc_set
from vision_jax.data.formats import voc, yolo

ROOT = pathlib.Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.medium


def convert(*options, code=0):
  result = subprocess.run([sys.executable, str(ROOT / 'experiments' / 'convert_data.py'), *map(str, options)],
                          capture_output=True, text=True, timeout=200, cwd=ROOT, env=dict(os.environ), check=False)
  assert result.returncode == code, result.stdout + result.stderr
  return result


def test_voc_is_converted_to_yolo_and_what_is_left_out_is_listed(tmp_path):
  given, output = tmp_path / 'given', tmp_path / 'output'
  bad = voc_object('cat', (5, 2, 4, 6))
  voc_set(given, {'a': [voc_object('cat', (2, 2, 9, 11)), bad], 'b': [voc_object('dog', (1, 1, 16, 12), difficult=1)]})
  voc_set(given, {'c': [voc_object('dog', (1, 1, 3, 3))]}, split='val')
  options = ('--input', given, '--from', 'voc', '--to', 'yolo', '--output', output)
  refused = convert(*options, code=2)
  fault = 'Annotations/a.xml:5: the box is xmin 5, ymin 2, xmax 4, ymax 6: it ends before it begins'
  assert f'error: 1 error in the labels of {given} (train): {fault}; mend it' in refused.stderr
  assert not output.exists()
  result = convert(*options, '--on_error=skip')
  assert result.stdout.splitlines() == [
      f'error: {fault}; the object is left out',
      'train: 2 images, 2 objects; difficult objects written as ordinary ones: 1',
      'val: 1 image, 1 object', f'written to {output} as yolo']
  for split in ('train', 'val'):
    found, expected = yolo.read(split, path=output), voc.read(split, path=given)
    assert [[each.box for each in record.objects] for record in found.records] == [
        [pytest.approx(each.box, abs=0.01) for each in record.objects] for record in expected.records]
  assert 'is not empty; choose another --output' in convert(*options, code=2).stderr
