"""The programs that bring weights in and out, as a user runs them."""

import json

import numpy as np
import pytest

from tests.experiments.test_programs import complaint, program
from vision_jax import models
from vision_jax.pretrained import catalogue, read_state_dict, to_darknet, to_torch, write_pth
from vision_jax.pretrained.variables import flat_shapes, nested

pytestmark = pytest.mark.medium


@pytest.fixture
def lenet(tmp_path):
  """A file of torch's with LeNet-5 for ten classes."""
  model = models.create('lenet5')
  variables = nested({path: np.full(leaf.shape, i, np.float32) for i, (path, leaf) in enumerate(flat_shapes(model))})
  state_dict = to_torch(model, variables)
  write_pth(tmp_path / 'lenet.pth', state_dict)
  return tmp_path / 'lenet.pth', state_dict


def test_a_file_is_imported_exported_and_the_same(lenet, tmp_path):
  path, state_dict = lenet
  folder = tmp_path / 'weights'
  result = program('import_weights', '--weights', path, '--model', 'lenet5', '--output', folder)
  assert result.stdout.splitlines() == [
      f'LeNet5: 10 of 10 arrays (61,706 parameters) loaded from {path}',
      f'written to {folder}; a config takes it as --config.model.weights={folder}']
  record = json.loads((folder / 'weights.json').read_text(encoding='utf-8'))
  assert record['model'] == {'name': 'lenet5'} and record['num_classes'] == 10
  assert record['sha256'] == catalogue.sha256(path) and record['preprocessing'] == {} and record['head'] == 'loaded'
  for suffix in ('.pth', '.safetensors'):
    output = tmp_path / f'out{suffix}'
    result = program('export_weights', '--input', folder, '--output', output)
    assert result.stdout == f'{folder}: 10 tensors of LeNet5 written to {output}\n'
    back = read_state_dict(output)
    assert set(back) == set(state_dict)
    for name, array in state_dict.items():
      np.testing.assert_array_equal(back[name], array)


def test_a_head_of_another_class_count_is_said_and_what_does_not_fit_refused(lenet, tmp_path):
  path, _ = lenet
  options = ('--weights', path, '--output', tmp_path / 'weights')
  result = program('import_weights', *options, '--model', 'lenet5', '--set', 'num_classes=3')
  assert 'head not loaded, left as initialised: params/output/bias, params/output/kernel' in result.stdout
  said = complaint(program('import_weights', *options, '--model', 'resnet18', code=2))
  assert said.startswith(f'error: {path} does not fit ResNet; missing: ')
  said = complaint(program('import_weights', *options, code=2))
  assert '--model is missing' in said
  path.write_bytes(path.read_bytes()[:1000])
  said = complaint(program('import_weights', *options, '--model', 'lenet5', code=2))
  assert said == f'error: {path}: it is cut off or no whole zip file; copy or download it again'


def test_a_file_of_darknet_is_imported_and_one_that_does_not_fit_refused(tmp_path):
  model = models.create('yolov3_small', num_classes=2, width=4)
  variables = nested({path: np.full(leaf.shape, i, np.float32) for i, (path, leaf) in enumerate(flat_shapes(model))})
  to_darknet(tmp_path / 'small.weights', model, variables)
  options = ('--weights', tmp_path / 'small.weights', '--model', 'yolov3_small', '--set', 'width=4', '--output',
             tmp_path / 'imported')
  result = program('import_weights', *options, '--set', 'num_classes=2')
  leaves = len(flat_shapes(model))
  assert result.stdout.startswith(f'YOLOv3: {leaves} of {leaves} arrays (')
  said = complaint(program('import_weights', *options, '--set', 'width=8', code=2))
  assert 'small.weights holds' in said and 'num_classes, anchors and norm must be those of its cfg' in said


def test_published_weights_are_listed_and_offline_is_said(tmp_path):
  result = program('import_weights', '--list', 'resnet50')
  lines = result.stdout.splitlines()
  assert lines[0].split()[:5] == ['name', 'top-1', 'top-5', 'box', 'AP'] and lines[-1].startswith('* = DEFAULT')
  assert ' '.join(lines[2].split()) == (
      'resnet50:IMAGENET1K_V2 * 80.858 95.434 25,557,032 4.089 98 232 -> 224 resize_crop bilinear')
  assert [' '.join(line.split()) for line in lines if line.startswith('retinanet')] == [
      'retinanet_resnet50_fpn:COCO_V1 * 36.4 34,014,999 151.54 130 800 -> 1344 letterbox bilinear']
  environment = {'VISION_JAX_CACHE': str(tmp_path / 'cache'), 'https_proxy': 'http://127.0.0.1:9'}
  said = complaint(program('import_weights', '--weights', 'resnet18:DEFAULT', '--output', tmp_path / 'weights', code=2,
                           environment=environment))
  assert 'could not be downloaded from https://download.pytorch.org/models/resnet18-f37072fd.pth' in said
  assert said.endswith(f'put the file at {tmp_path}/cache/resnet18-f37072fd.pth')


@pytest.mark.slow
def test_a_run_is_exported(tmp_path):
  folder = tmp_path / 'run'
  program('train', '--config', 'configs/digits_lenet.py:smoke', '--workdir', folder)
  output = tmp_path / 'run.pth'
  result = program('export_weights', '--workdir', folder, '--output', output)
  assert '10 tensors of LeNet5 written to' in result.stdout
  assert read_state_dict(output)['c1.weight'].shape == (6, 1, 5, 5)
  said = complaint(program('export_weights', '--workdir', folder, '--output', tmp_path / 'run.npz', code=2))
  assert said.endswith("run.npz'; give a file that ends in .pth or .safetensors")
