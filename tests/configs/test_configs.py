"""Every config loads, is locked, and traces at its full canvas."""

import importlib.util
import pathlib
import sys

import jax
import pytest

from vision_jax import build, data
from vision_jax.conventions import option_names
from vision_jax.train import step as step_lib
from vision_jax.train.state import state_shapes

FOLDER = pathlib.Path(__file__).resolve().parents[2] / 'configs'
CONFIGS = sorted(path.stem for path in FOLDER.glob('*.py') if path.stem != 'common')
OF_PAPERS = ('coco_', 'voc_')  # detectors' recipes on data that is not here; test_*_papers.py trace them


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


@pytest.mark.medium
@pytest.mark.parametrize('name', [name for name in CONFIGS if not name.startswith(OF_PAPERS)])
def test_a_config_traces_a_training_step_and_an_evaluation_step(name):
  _, config = load(name)
  config = config.to_dict()
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


def test_any_config_can_be_turned_to_any_source_of_files_on_the_command_line():
  _, config = load('digits_lenet')
  of_digits = {'size', 'canvas', 'annotation', 'seed', 'cache', 'dark_ink', 'splits'}  # splits of tfds is a dict
  for name, source in data.SOURCES.items():
    assert set(option_names(source)) - of_digits <= set(config.data), name
