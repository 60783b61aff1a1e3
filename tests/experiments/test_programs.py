"""The programs as a user runs them: train, resume, evaluate, predict; and what they answer to mistakes."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from tests.data.builders import coco_annotation, coco_image, coco_set, voc_object, voc_set

ROOT = pathlib.Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.medium


def program(name, *options, code=0, environment=None):
  command = [sys.executable, str(ROOT / 'experiments' / f'{name}.py'), *map(str, options)]
  result = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT,
                          env={**os.environ, **(environment or {})}, check=False)
  assert result.returncode == code, result.stdout + result.stderr
  return result


def complaint(result):
  """The one line that a program ends with."""
  lines = [line for line in result.stderr.splitlines() if line.startswith('error: ')]
  assert len(lines) == 1, result.stderr
  assert 'Traceback' not in result.stderr
  return lines[0]


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """Non-square pictures of several kinds."""
  folder = tmp_path_factory.mktemp('photos')
  rng = np.random.default_rng(0)
  Image.fromarray(rng.integers(0, 256, (50, 90, 3), np.uint8)).save(folder / 'colour.jpg')
  Image.fromarray(rng.integers(0, 256, (120, 70), np.uint8)).save(folder / 'grey.png')
  return folder


@pytest.fixture(scope='module', params=['digits_lenet', pytest.param('digits_scenes_yolo', marks=pytest.mark.slow),
                                        pytest.param('digits_scenes_unet', marks=pytest.mark.slow)])
def trained(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp('runs') / request.param
  config = f'configs/{request.param}.py:smoke'
  options = ('--config', config, '--workdir', folder, '--config.optim.lr=0.001')
  first = program('train', *options, '--stop_after', 2)
  assert 'step 2 of 4' in first.stdout
  result = program('train', *options)
  assert 'continuing at step 2 of 4' in result.stdout
  return request.param, folder, config, result


def test_a_run_folder_says_how_it_was_made(trained):
  _, folder, _, result = trained
  config = json.loads((folder / 'config.json').read_text())
  assert config['optim']['lr'] == 0.001
  record = json.loads((folder / 'run.json').read_text())
  assert record['seed'] == 0 and len(record['classes']) > 1
  assert {'jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'python', 'vision_jax'} == set(record['versions'])
  assert 'step 4/4' in result.stdout
  assert result.stdout.rstrip().endswith(str(folder))


def test_evaluate_prints_and_writes_what_training_reported(trained):
  _, folder, _, _ = trained
  result = program('evaluate', '--workdir', folder)
  written = json.loads((folder / 'evaluation_4.json').read_text())
  logged = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  last = next(record for record in reversed(logged) if 'val/loss' in record)
  assert written['loss'] == pytest.approx(last['val/loss'], rel=1e-6)
  assert 'loss' in result.stdout
  if trained[0] != 'digits_scenes_yolo':  # whose classes do not exclude each other
    assert Image.open(folder / 'evaluation_4.png').size > (100, 100)


def test_predict_writes_json_and_pictures_at_original_size(trained, photos, tmp_path):
  name, folder, _, _ = trained
  program('predict', '--workdir', folder, '--input', photos, '--output', tmp_path, '--threshold', 0.0)
  pictures = sorted(tmp_path.glob('*.png'))
  sizes = {path.name: Image.open(path).size for path in pictures}
  if name == 'digits_lenet':
    record = json.loads((tmp_path / 'predictions.json').read_text())
    assert [len(image['top']) for image in record['images']] == [5, 5]
    assert sizes['0000_colour.png'] >= (90, 50)  # the text stands beneath the image
    picture = np.asarray(Image.open(tmp_path / '0001_grey.png').convert('RGB'))
    middle = (picture.shape[1] - 70) // 2
    grey = np.asarray(Image.open(photos / 'grey.png').convert('RGB'))
    assert any((picture[:120, x:x + 70] == grey).all() for x in (0, middle)), 'the image is there, in its own size'
  else:
    assert sizes['0000_colour.png'] == (90, 50)
    assert sizes['0001_grey.png'] == (70, 120)
  numbered = ('predict', '--workdir', folder, '--input', photos, '--output', tmp_path / 'numbered', '--coco',
              tmp_path / 'photos.json')
  images = [{'id': 7, 'file_name': 'grey.png'}, {'id': 5, 'file_name': 'colour.jpg'}]
  (tmp_path / 'photos.json').write_text(json.dumps({'images': images}))
  if name != 'digits_scenes_yolo':
    assert '--coco numbers the images of detections; this run is for ' in complaint(program(*numbered, code=2))
  else:
    program(*numbered)
    record = json.loads((tmp_path / 'numbered' / 'predictions.json').read_text())
    assert [(image['id'], image['file_name']) for image in record['images']] == [(5, 'colour.jpg'), (7, 'grey.png')]
    record = json.loads((tmp_path / 'predictions.json').read_text())
    assert record['bbox_format'] == 'xywh'
    assert [image['file_name'] for image in record['images']] == ['colour.jpg', 'grey.png']
    for found in record['annotations']:
      x, y, w, h = found['bbox']
      image = record['images'][found['image_id']]
      assert 0 <= x <= x + w <= image['width'] + 0.01
      assert 0 <= y <= y + h <= image['height'] + 0.01
      assert found['label'] == str(found['category_id'])
  if name == 'digits_scenes_unet':
    palette = Image.open(tmp_path / '0000_colour_classes.png')
    assert palette.mode == 'P'
    assert palette.size == (90, 50)


def test_train_again_says_that_nothing_is_left(trained):
  name, folder, config, _ = trained
  if name != 'digits_lenet':
    pytest.skip('one task is enough')
  result = program('train', '--config', config, '--workdir', folder, '--config.optim.lr=0.001')
  assert 'nothing is left to do at step 4: the run is complete' in result.stdout


def test_a_workdir_of_another_configs_run_is_refused_with_the_difference(trained):
  name, folder, config, _ = trained
  if name != 'digits_lenet':
    pytest.skip('one task is enough')
  result = program('train', '--config', config, '--workdir', folder, '--config.optim.lr=0.5', code=2)
  difference = 'holds the run of another config (optim.lr: 0.001 there, 0.5 now); choose another --workdir'
  assert difference in complaint(result)


def test_a_checkpoint_of_another_model_is_refused_with_names(trained, tmp_path):
  name, folder, _, _ = trained
  if name != 'digits_lenet':
    pytest.skip('one model is enough')
  copy = tmp_path / 'copy'
  shutil.copytree(folder, copy)
  config = json.loads((copy / 'config.json').read_text())
  config['model'] = {'name': 'resnet18', 'stem': 'small', 'width': 8}
  (copy / 'config.json').write_text(json.dumps(config))
  line = complaint(program('evaluate', '--workdir', copy, code=2))
  assert 'missing: ' in line
  assert 'unexpected: ' in line


def test_a_corrupt_image_is_named(trained, tmp_path):
  name, folder, _, _ = trained
  if name != 'digits_lenet':
    pytest.skip('one task is enough')
  (tmp_path / 'broken.jpg').write_bytes(b'\xff\xd8\xff\xe0 this is no image')
  line = complaint(program('predict', '--workdir', folder, '--input', tmp_path, code=2))
  assert 'broken.jpg' in line


@pytest.mark.parametrize(('options', 'message'), [
    (['--config', 'configs/digits_lenet.py', '--config.optim.lrr=1'], 'lrr'),
    (['--config', 'configs/digits_lenet.py', '--config.optim.lr=high'], 'lr'),
    (['--config', 'configs/nothing.py'], 'nothing.py'),
    (['--config', 'configs/digits_lenet.py:tiny'], "unknown variant 'tiny'"),
    (['--confg', 'configs/digits_lenet.py'], 'confg'),
    (['--workdir', 'somewhere'], '--config is missing'),
    (['--config', 'configs/digits_lenet.py:smoke'], '--workdir is missing'),
])
def test_a_mistake_on_the_command_line_is_answered_in_one_line(options, message):
  result = program('train', *options, code=2)
  assert message in complaint(result)


def test_help_names_the_flags():
  result = program('predict', '--help', code=1)  # absl exits with 1 after its help
  assert '--input' in result.stdout
  assert 'may be given several times' in result.stdout


@pytest.mark.parametrize('asked', [{'XLA_FLAGS': '--xla_force_host_platform_device_count=4'},
                                   {'JAX_NUM_CPU_DEVICES': '4'}])
def test_who_asks_for_several_cpu_devices_gets_the_threads_that_their_collectives_need(tmp_path, asked):
  code = 'import launch, os, jax; print(os.environ["NPROC"], jax.device_count())'
  result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=100, check=True,
                          cwd=ROOT / 'experiments', env={**os.environ, 'NPROC': '', 'JAX_PLATFORMS': 'cpu', **asked})
  assert result.stdout.split() == ['32', '4']


@pytest.mark.slow
def test_four_cpu_devices_train_for_two_hundred_steps_without_hanging(tmp_path):
  environment = {'XLA_FLAGS': '--xla_force_host_platform_device_count=4', 'JAX_PLATFORMS': 'cpu', 'NPROC': ''}
  result = program('train', '--config', 'configs/digits_lenet.py:smoke', '--workdir', tmp_path / 'run',
                   '--config.train.duration=200 steps', '--config.train.eval_every=200 steps',
                   environment=environment)
  assert 'step 200/200' in result.stdout


@pytest.mark.slow
def test_two_processes_train_one_run_through_the_program(tmp_path):
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  command = [sys.executable, str(ROOT / 'experiments' / 'train.py'), '--config', 'configs/digits_lenet.py:smoke',
             '--workdir', str(tmp_path / 'run'), '--coordinator', f'localhost:{port}', '--num_processes', '2']
  running = [subprocess.Popen([*command, '--process_id', str(rank)], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.PIPE, env={**os.environ, 'JAX_PLATFORMS': 'cpu'}) for rank in range(2)]
  try:
    outputs = [process.communicate(timeout=200) for process in running]
  finally:
    for process in running:
      process.kill()
  assert [process.returncode for process in running] == [0, 0], outputs
  assert 'step 4 of 4' in outputs[0][0]
  assert 'step' not in outputs[1][0]
  assert json.loads((tmp_path / 'run' / 'run.json').read_text())['processes'] == 2
  assert (tmp_path / 'run' / 'checkpoints' / '4').is_dir()


def test_processes_without_a_coordinator_are_refused():
  result = program('train', '--config', 'configs/digits_lenet.py:smoke', '--num_processes', 2, code=2)
  assert '--num_processes and --process_id need --coordinator' in complaint(result)


@pytest.mark.slow
def test_naming_other_data_on_the_command_line_leaves_out_what_the_old_data_took_and_says_so(tmp_path):
  data = tmp_path / 'data'
  for split, count in (('train', 8), ('val', 2)):
    voc_set(data, {f'{split}{k}': [voc_object('cat', (2, 3, 8, 9))] for k in range(count)}, split=split)
  result = program('train', '--config', 'configs/digits_scenes_yolo.py:smoke', '--workdir', tmp_path / 'run',
                   '--config.data.name=voc', f'--config.data.path={data}', '--config.data.val_size=1')
  assert 'left out, as it belongs to the data digit_scenes: config.data.train_size\n' in result.stdout
  config = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert config['data']['name'] == 'voc' and config['data']['val_size'] == 1 and 'train_size' not in config['data']


def test_the_parity_program_finds_no_difference_to_pycocotools(tmp_path):
  pytest.importorskip('pycocotools')
  objects = [coco_annotation(k + 1, k % 2 + 1, (7, 3)[k % 2], [1 + k, 2, 6, 5], area=30.0 + 400 * k,
                             iscrowd=int(k == 3), segmentation=[[1 + k, 2, 7 + k, 2, 7 + k, 7, 1 + k, 7]])
             for k in range(5)]
  coco_set(tmp_path, objects, split='val', images=[coco_image(1, 'a.png'), coco_image(2, 'b.png')])
  lines = program('parity', '--path', tmp_path).stdout.splitlines()
  rows = [line.split('|')[1:-1] for line in lines if line.startswith(('| boxes', '| masks'))]
  assert len(rows) == 24
  assert max(float(row[-1]) for row in rows) < 1e-9  # float64 on both sides
  assert any(float(row[2]) > 0 for row in rows)


@pytest.fixture(scope='module')
def signs(tmp_path_factory):
  """Twenty images of each of three classes, told apart by their colour."""
  folder = tmp_path_factory.mktemp('signs')
  rng = np.random.default_rng(0)
  for k, name in enumerate(('blue', 'green', 'red')):
    (folder / name).mkdir()
    for i in range(20):
      image = rng.integers(0, 90, (24, 32, 3), np.uint8)
      image[..., 2 - k] += 120
      Image.fromarray(image).save(folder / name / f'{i}.png')
  return folder


def test_finetuning_says_what_was_loaded_what_was_not_and_what_is_frozen(trained, signs, tmp_path):
  name, folder, _, _ = trained
  if name != 'digits_lenet':
    pytest.skip('one model is enough')
  result = program('train', '--config', 'configs/finetune.py:head:smoke', '--workdir', tmp_path / 'run',
                   f'--config.data.path={signs}', f'--config.model.weights={folder}')
  assert f"from the weights {folder}: model.name='lenet5', data.canvas=(32, 32)" in result.stdout
  assert 'frozen from step 1 on: 8 of 10 parameters (60,856 of 61,111 numbers), 0 of 0 BatchNorms' in result.stdout
  assert f'LeNet5: 8 of 10 arrays (60,856 parameters) loaded from {folder}, step 4' in result.stdout
  assert 'head not loaded, left as initialised: params/output/bias, params/output/kernel' in result.stdout
  again = program('train', '--config', 'configs/finetune.py:head:smoke', '--workdir', tmp_path / 'run',
                  f'--config.data.path={signs}', f'--config.model.weights={folder}')
  assert 'loaded from' not in again.stdout, 'a continued run has its own parameters'
  config = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert (config['model']['name'], config['data']['canvas']) == ('lenet5', [32, 32])
  config['model']['weights'] = 'runs/gone'
  (tmp_path / 'run' / 'config.json').write_text(json.dumps(config))
  assert 'top1' in program('evaluate', '--workdir', tmp_path / 'run').stdout, 'without the weights it began with'


def test_weights_can_be_measured_before_any_training(trained, tmp_path):
  name, folder, _, _ = trained
  if name != 'digits_lenet':
    pytest.skip('one model is enough')
  result = program('evaluate', '--config', 'configs/digits_lenet.py:smoke', f'--config.model.weights={folder}',
                   '--step', 'initial', '--workdir', tmp_path / 'new')
  assert f'LeNet5: 10 of 10 arrays (61,706 parameters) loaded from {folder}, step 4' in result.stdout
  written = json.loads((tmp_path / 'new' / 'evaluation_0.json').read_text())
  logged = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  assert written['loss'] == pytest.approx(next(r for r in logged if 'val/loss' in r)['val/loss'], rel=1e-6)


@pytest.mark.slow
def test_a_linear_probe_makes_its_features_once_and_again_for_another_preprocessing(signs, tmp_path):
  options = ('--config', 'configs/finetune.py', '--workdir', tmp_path, f'--config.data.path={signs}',
             '--config.model.name=squeezenet1_1')
  first = program('linear_probe', *options, '--config.data.canvas=(32, 32)')
  assert 'SqueezeNet: no weights were loaded, all variables are fresh' in first.stdout
  assert 'made before' not in first.stdout
  assert 'is best on the last fifth of each class of 48 training images' in first.stdout
  record = json.loads((tmp_path / 'linear_probe.json').read_text())
  assert record['top1'] > 0.9 and record['val_images'] == 12, 'random features tell colours apart'
  assert Image.open(tmp_path / 'linear_probe.png').size > (100, 100)
  second = program('linear_probe', *options, '--config.data.canvas=(32, 32)')
  assert second.stdout.count('made before') == 2
  assert json.loads((tmp_path / 'linear_probe.json').read_text()) == record
  other = program('linear_probe', *options, '--config.data.canvas=(32, 32)', '--config.data.mean=(0.3, 0.3, 0.3)')
  assert 'made before' not in other.stdout
