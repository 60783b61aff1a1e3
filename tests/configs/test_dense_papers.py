"""The recipes of RetinaNet and FCOS on COCO: their numbers, and that they trace at their full canvas."""

from __future__ import annotations

import jax
import pytest

from tests.configs.test_configs import load
from vision_jax import build
from vision_jax.train import optim
from vision_jax.train import step as step_lib
from vision_jax.train.state import state_shapes

NAMES = ('coco_retinanet', 'coco_fcos')
IMAGES = 118_287  # of train2017


@pytest.mark.medium
@pytest.mark.parametrize('name', [NAMES[0], pytest.param(NAMES[1], marks=pytest.mark.slow)])
def test_the_recipe_traces_at_its_canvas_with_its_batch_and_freezes_what_it_says(name):
  config = load(name)[1].to_dict()
  # Tracing needs shapes only: a small drawn scene stands in for the files, and one image for the batch that is made.
  canvas = config['data']['canvas']
  config['data'].update(name='digit_scenes', canvas=(64, 64), train_size=1, val_size=1, batch_size=1)
  config['optim']['warmup'] = '0 steps'
  experiment = build.experiment(config)
  drawn = experiment.train_loader.batch(0)
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, 16, *x.shape[1:]), x.dtype), drawn)
  batch['image'] = jax.ShapeDtypeStruct((1, 16, *canvas, 3), drawn['image'].dtype)
  state = state_shapes(experiment.task, experiment.optimiser, drawn)
  new, logs = jax.eval_shape(step_lib.make_train_step(experiment.task, experiment.optimiser), state, batch)
  assert logs['loss'].shape == () and jax.tree.structure(new) == jax.tree.structure(state)
  levels = [canvas[0] // stride for stride in (8, 16, 32, 64, 128)]
  per_pixel = 9 if name == 'coco_retinanet' else 1
  assert experiment.task.module.level_sizes(canvas) == tuple(per_pixel * side ** 2 for side in
                                                             (*levels[:4], levels[4] + 1))

  table = optim.parameter_rules(state.params, experiment_rules(config))
  frozen = {jax.tree_util.keystr(path[:-1], simple=True, separator='/') for path, value in
            jax.tree_util.tree_leaves_with_path(table) if path[-1].key in ('freeze', 'frozen') and value}
  assert 'backbone/body/conv1/kernel' in frozen and 'backbone/body/layer4_2/bn3/scale' in frozen
  assert 'backbone/body/layer3_0/downsample_1/bias' in frozen
  assert not any(path.startswith(('head', 'backbone/fpn')) for path in frozen)
  learning = {path for path in frozen if 'kernel' in path}
  assert all('conv1/' in path.split('body/')[1][:6] or 'layer1_' in path for path in learning)


def experiment_rules(config):
  return tuple((pattern, dict(values)) for pattern, values in config['optim']['rules'])


@pytest.mark.parametrize('name', NAMES)
def test_the_recipe_has_the_learning_rates_the_batch_and_the_epochs_of_torchvision_s(name):
  config = load(name)[1]
  options, per_epoch = config.optim.to_dict(), IMAGES // config.data.batch_size
  steps = optim.parse_duration(config.train.duration, steps_per_epoch=per_epoch, where='')
  schedule = optim.create_schedule(lr=options['lr'], steps=steps, schedule='step', warmup_steps=1000,
                                   options={'boundaries': options['boundaries']})
  assert (config.data.batch_size, steps, options['warmup']) == (16, 26 * per_epoch, '1000 steps')
  assert (options['momentum'], options['weight_decay']) == (0.9, 1e-4)
  for epoch, rate in ((1, 1e-2), (15.99, 1e-2), (16.01, 1e-3), (21.99, 1e-3), (22.01, 1e-4), (25.9, 1e-4)):
    assert float(schedule(round(epoch * per_epoch))) == pytest.approx(rate, rel=1e-4), epoch
