"""Every config loads, is locked, and traces at its full canvas."""

import importlib.util
import pathlib
import re
import sys

import jax
import numpy as np
import pytest

from vision_jax import build, data, models
from vision_jax.conventions import option_names
from vision_jax.train import step as step_lib
from vision_jax.train.state import state_shapes

FOLDER = pathlib.Path(__file__).resolve().parents[2] / 'configs'
CONFIGS = sorted(path.stem for path in FOLDER.glob('*.py') if path.stem != 'common')
OF_PAPERS = ('coco_', 'voc_', 'bccd')  # detectors on data that is not here; test_detector_recipes.py traces them


def load(name, variant=''):
  spec = importlib.util.spec_from_file_location(f'configs.{name}', FOLDER / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  sys.path.insert(0, str(FOLDER.parent))
  try:
    spec.loader.exec_module(module)
  finally:
    sys.path.pop(0)
  return module, module.get_config(variant)


@pytest.mark.parametrize('name', CONFIGS)
def test_a_config_is_locked_has_five_sections_and_says_how_it_is_run(name):
  module, config = load(name)
  assert set(config) == set(build.SECTIONS)
  with pytest.raises(AttributeError):
    config.optim.learning_rate = 1.0
  assert f'--config configs/{name}.py' in module.__doc__
  assert load(name, 'smoke')[1].train.duration == '4 steps'


def without_files(config):
  """A config whose images lie in a folder that is not here, on the digits, in smaller batches."""
  if config['data']['name'] == 'image_folder':
    config['data'].update(name='digits', batch_size=min(config['data']['batch_size'], 32))
    config['data'].update({'canvas': (32, 32)} if config['data']['canvas'] is None else {})
    config['model'].update({'name': 'resnet18'} if config['model']['name'] is None else {})
  return config


# The others are in the slow tests.
TRACED = ('digits_lenet', 'digits_scenes_unet', 'digits_scenes_yolo', 'digits_scenes_faster_rcnn', 'finetune')


@pytest.mark.medium
@pytest.mark.parametrize('name', [name if name in TRACED else pytest.param(name, marks=pytest.mark.slow)
                                  for name in CONFIGS if not name.startswith(OF_PAPERS)])
def test_a_config_traces_a_training_step_and_an_evaluation_step(name):
  _, config = load(name)
  config = without_files(config.to_dict())
  config['data'].update(train_size=config['data']['batch_size'], val_size=4)  # the tracing needs shapes only
  config['optim']['warmup'] = '0 steps'  # which would be longer than this data's epochs
  experiment = build.experiment(config)
  options = experiment.fit_options
  batch = experiment.train_loader.batch(0)
  ema = options.get('ema_decay')
  state = state_shapes(experiment.task, experiment.optimiser, batch, ema=ema is not None)
  step = step_lib.make_train_step(experiment.task, experiment.optimiser, accumulate=options.get('accumulate', 1),
                                  ema_decay=ema)
  new, logs = jax.eval_shape(step, state, step_lib.shard_batch(batch))
  jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail(f'{a} became {b}'), state, new)
  assert logs['loss'].shape == ()
  predictions, terms = jax.eval_shape(step_lib.make_eval_step(experiment.task), state.evaluation_variables(),
                                      step_lib.shard_batch(next(experiment.val_loader.eval_batches())))
  assert set(terms) == {name for name in logs if name.startswith('loss_')}
  assert all(leaf.shape[:2] == (1, config['data']['batch_size']) for leaf in jax.tree.leaves(predictions))


def test_an_unknown_variant_names_the_known_one():
  with pytest.raises(ValueError, match="unknown variant 'smok' of this config; there is ':smoke', or none"):
    load('digits_lenet', 'smok')


def test_every_recipe_of_finetuning_freezes_what_it_says_and_may_be_shrunk():
  module, _ = load('finetune')
  frozen = {}
  for recipe in module.RECIPES:
    for smoke in ('smoke', f'{recipe}:smoke') if not recipe else (f'{recipe}:smoke',):
      _, config = load('finetune', smoke)
      config = without_files(config.to_dict())
      assert config['train']['duration'] == '4 steps'
      config['model'].update(width=2, stem='small')
      experiment = build.experiment(config)
      frozen[recipe] = [sorted({path.split('/')[0].split('_')[0] for path in getattr(task.module, 'params', ())})
                        for _, task in ((0, experiment.task), *experiment.phases)]
  below = ['bn1', 'conv1', 'layer1', 'layer2', 'layer3']
  assert frozen == {'': [[]], 'all': [[]], 'head': [[*below, 'layer4']], 'head_then_all': [[*below, 'layer4'], []],
                    'upper': [below]}
  with pytest.raises(ValueError, match="unknown variant 'heads' of this config; there are all, head, head_then_all"):
    load('finetune', 'heads')


@pytest.mark.medium
@pytest.mark.parametrize('model', ['resnet18', 'squeezenet1_1', 'vgg11', 'mobilenet_v3_small', 'inception_v3', 'swin_t',
                                   'vit_b_32', 'densenet121', 'lenet5', 'googlenet'])
def test_the_rule_for_the_body_leaves_out_all_that_depends_on_the_classes(model):
  finetune, _ = load('finetune')
  side = {'inception_v3': 299, 'lenet5': 32}.get(model, 224)
  image = np.zeros((1, side, side, 3))
  options = {'aux': True} if model == 'googlenet' else {}
  one, other = ({jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape for path, leaf in
                 jax.tree_util.tree_leaves_with_path(jax.eval_shape(
                     models.create(model, num_classes=count, **options).init, jax.random.key(0), image))}
                for count in (10, 12))
  one, other = ({name.removeprefix('params/'): shape for name, shape in tree.items()} for tree in (one, other))
  heads = {name for name in one if one[name] != other[name]}
  body = {name for name in one if re.search(finetune.BODY, name)}
  assert heads and body and not heads & body


def test_any_config_can_be_turned_to_any_source_of_files_on_the_command_line():
  _, config = load('digits_lenet')
  of_digits = {'size', 'canvas', 'annotation', 'seed', 'cache', 'dark_ink', 'splits'}  # splits of tfds is a dict
  for name, source in data.SOURCES.items():
    assert set(option_names(source)) - of_digits <= set(config.data), name


@pytest.mark.parametrize('name', CONFIGS)
def test_auxiliary_heads_and_an_evaluation_canvas_can_be_asked_for_on_the_command_line(name):
  _, config = load(name)
  config.model.aux, config.data.eval_canvas = True, (64, 64)
