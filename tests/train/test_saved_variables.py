"""Variables alone are saved with their record, and come back equal."""

import json

import numpy as np
import pytest

from vision_jax.train.checkpoint import load_variables, read_record, save_variables

VARIABLES = {'params': {'conv1': {'kernel': np.arange(6, dtype=np.float32).reshape(2, 3)}},
             'batch_stats': {'bn1': {'mean': np.ones(3, np.float32)}}}


def test_variables_and_their_record_come_back_and_a_second_save_replaces_the_first(tmp_path):
  folder = tmp_path / 'a' / 'b'
  save_variables(folder, {'params': {'other': np.zeros(1, np.float32)}}, {'model': {'name': 'first'}})
  save_variables(folder, VARIABLES, {'model': {'name': 'lenet5'}, 'categories': ('cat', 'hündchen')})
  found = load_variables(folder)
  assert set(found) == set(VARIABLES) and set(found['params']) == {'conv1'}
  np.testing.assert_array_equal(found['params']['conv1']['kernel'], VARIABLES['params']['conv1']['kernel'])
  assert read_record(folder) == {'model': {'name': 'lenet5'}, 'categories': ['cat', 'hündchen']}
  assert json.loads((folder / 'weights.json').read_text(encoding='utf-8'))['model']['name'] == 'lenet5'


def test_another_folder_and_a_damaged_one_are_said(tmp_path):
  with pytest.raises(ValueError, match='holds no variables; give a folder that experiments/import_weights.py wrote'):
    load_variables(tmp_path)
  with pytest.raises(ValueError, match=r'weights\.json cannot be read \(FileNotFoundError\)'):
    read_record(tmp_path)
  save_variables(tmp_path, VARIABLES, {})
  for path in sorted((tmp_path / 'variables').rglob('*')):
    if path.is_file():
      path.write_bytes(b'')
  with pytest.raises(ValueError, match='are damaged .*; import them again'):
    load_variables(tmp_path)
