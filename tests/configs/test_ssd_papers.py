"""The recipes of SSD on COCO and VOC: their numbers, and that they trace at their full canvas."""

from __future__ import annotations

import jax
import pytest

from tests.configs.test_configs import load
from vision_jax import build
from vision_jax.train import optim
from vision_jax.train import step as step_lib
from vision_jax.train.state import state_shapes


@pytest.mark.medium
@pytest.mark.parametrize(('name', 'boxes'), [('coco_ssd300', 8732), ('voc_ssd300', 8732),
                                             pytest.param('coco_ssdlite320', 3234, marks=pytest.mark.slow)])
def test_the_recipe_traces_at_its_canvas_with_its_batch(name, boxes):
  config = load(name)[1].to_dict()
  canvas, size = config['data']['canvas'], config['data']['batch_size']
  # Tracing needs shapes only: a drawn scene stands in for the files, and one image for the batch that is made.
  config['data'].update(name='digit_scenes', train_size=1, val_size=1, batch_size=1)
  config['optim']['warmup'] = '0 steps'
  experiment = build.experiment(config)
  drawn = experiment.train_loader.batch(0)
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, size, *x.shape[1:]), x.dtype), drawn)
  state = state_shapes(experiment.task, experiment.optimiser, drawn)
  new, logs = jax.eval_shape(step_lib.make_train_step(experiment.task, experiment.optimiser), state, batch)
  assert logs['loss'].shape == () and jax.tree.structure(new) == jax.tree.structure(state)
  assert batch['image'].shape == (1, size, *canvas, 3) and len(experiment.task.module.anchors(canvas)) == boxes


@pytest.mark.parametrize(('name', 'per_epoch', 'batch', 'steps', 'expected'), [
    ('coco_ssd300', 118_287 // 32, 32, 120 * 3696,
     {3696: 2e-3, 3696 * 79: 2e-3, 3696 * 81: 2e-4, 3696 * 109: 2e-4, 3696 * 111: 2e-5}),
    ('voc_ssd300', 16_551 // 32, 32, 120_000, {500: 1e-3, 79_990: 1e-3, 80_010: 1e-4, 99_990: 1e-4, 100_010: 1e-5}),
    ('coco_ssdlite320', 118_287 // 192, 192, 660 * 616, {1000: 0.15, 660 * 308: 0.075, 660 * 616 - 1: 0})])
def test_the_recipe_has_its_learning_rates_steps_and_batch(name, per_epoch, batch, steps, expected):
  config = load(name)[1]
  options = config.optim.to_dict()
  assert optim.parse_duration(config.train.duration, steps_per_epoch=per_epoch, where='') == steps
  schedule = optim.create_schedule(lr=options['lr'], steps=steps, schedule=options['schedule'],
                                   warmup_steps=optim.parse_duration(options['warmup'], steps_per_epoch=1, where=''),
                                   options={name: options[name] for name in ('boundaries',) if name in options})
  for step, rate in expected.items():
    assert float(schedule(step)) == pytest.approx(rate, rel=5e-3, abs=1e-6), step
  decay = {'coco_ssdlite320': 4e-5}.get(name, 5e-4)
  assert (config.data.batch_size, options['momentum'], options['weight_decay']) == (batch, 0.9, decay)
  assert {'ssd_crop', 'flip'} <= {step for step, _ in config.data.augment} and config.data.resize == 'warp'
