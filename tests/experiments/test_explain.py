"""The program that shows what a loss makes of an image."""

import numpy as np
from PIL import Image
import pytest

from tests.experiments.test_programs import complaint, program


@pytest.mark.slow
def test_the_counts_and_a_picture_of_one_image_are_made_before_any_training(tmp_path):
  path = tmp_path / 'new' / 'explain.png'
  lines = program('explain', '--config', 'configs/digits_scenes_yolov2.py:smoke', '--index', 9,
                  '--output', path).stdout.splitlines()
  assert lines.pop(0) == 'YOLOv2: no weights were loaded, all variables are fresh'
  assert lines[0] == 'digit_scene_val_00009, 96 x 128 pixels of the canvas' and lines[-1] == str(path)
  counts = {word: int(number.replace(',', '')) for number, word in (part.split() for part in lines[1].split(', '))}
  assert list(counts) == ['positive', 'negative', 'ignored', 'objects', 'unanswered', 'collisions']
  assert counts['positive'] == counts['objects'] - counts['unanswered'] and len(lines) == 3 + counts['objects']
  picture = np.asarray(Image.open(path))
  assert picture.shape[0] > 384 and picture.shape[1] > 512 and picture.std() > 10, 'four times the canvas, a caption'


@pytest.mark.slow
def test_an_image_that_is_not_there_and_a_task_that_assigns_nothing_are_answered_in_one_line(tmp_path):
  options = '--output', tmp_path / 'explain.png'
  of_yolo = '--config', 'configs/digits_scenes_yolov2.py:smoke', *options
  result = program('explain', *of_yolo, '--index', 10, code=2)
  assert '--index is 10, and there are 10 images; give a smaller one' in complaint(result)
  result = program('explain', *of_yolo, '--step', 'nonsense', code=2)
  assert "--step is 'nonsense' of no run; give its folder, --workdir, or leave --step out" in complaint(result)
  result = program('explain', '--config', 'configs/digits_lenet.py:smoke', *options, code=2)
  assert 'a task of the kind classification assigns nothing; give a detector' in complaint(result)


@pytest.mark.slow
def test_both_stages_of_a_trained_run_are_explained_at_its_step(tmp_path):
  folder, path = tmp_path / 'run', tmp_path / 'explain.png'
  program('train', '--config', 'configs/digits_scenes_faster_rcnn.py:smoke', '--workdir', folder)
  lines = program('explain', '--workdir', folder, '--step', 'last', '--output', path).stdout.splitlines()
  assert lines[0] == f'{folder}, step 4' and lines[-1] == str(path)
  stages = [line for line in lines if ' positive, ' in line and ' objects, ' in line]
  assert [line.partition(':')[0] for line in stages] == ['proposals', 'regions']
  picture = np.asarray(Image.open(path))
  assert picture.std() > 10 and picture.shape[0] > 2 * 384, 'four times the canvas for each stage'
  result = program('explain', '--workdir', folder, '--step', '3', '--output', path, code=2)
  assert f'no checkpoint of step 3 in {folder}' in complaint(result)
