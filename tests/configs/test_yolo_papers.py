"""The recipes of the YOLOs' papers: their numbers, and that they trace at their full canvas."""

from __future__ import annotations

import jax
import pytest

from tests.configs.test_configs import load
from vision_jax import build
from vision_jax.train import optim
from vision_jax.train import step as step_lib
from vision_jax.train.state import state_shapes


@pytest.mark.medium
@pytest.mark.parametrize('name', ['voc_yolov1', 'voc_yolov2', pytest.param('coco_yolov2', marks=pytest.mark.slow),
                                  'coco_yolov3'])
def test_a_paper_s_recipe_traces_at_its_canvas_with_its_batch(name):
  config = load(name)[1].to_dict()
  first = config['data']['canvas'] if isinstance(config['data']['canvas'][0], int) else config['data']['canvas'][0]
  # Tracing needs shapes only: drawn scenes stand in for files, and one image for the batch that is made.
  config['data'].update(name='digit_scenes', canvas=first, train_size=1, val_size=1, batch_size=1)
  config['optim']['warmup'] = '0 steps'
  experiment = build.experiment(config)
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, 64, *x.shape[1:]), x.dtype), experiment.train_loader.batch(0))
  state = state_shapes(experiment.task, experiment.optimiser, experiment.train_loader.batch(0))
  new, logs = jax.eval_shape(step_lib.make_train_step(experiment.task, experiment.optimiser), state, batch)
  assert logs['loss'].shape == () and jax.tree.structure(new) == jax.tree.structure(state)


@pytest.mark.parametrize(('name', 'steps', 'expected'), [
    # Learning rates by epoch or step of the cfg and papers; an epoch of VOC 2007 and 2012 has 16,551 images.
    ('voc_yolov1', 135 * 259, {259 * 2: 1e-2, 259 * 74: 1e-2, 259 * 76: 1e-3, 259 * 104: 1e-3, 259 * 106: 1e-4}),
    ('voc_yolov2', 160 * 259, {1000: 1e-3, 259 * 58: 1e-3, 259 * 64: 1e-4, 259 * 95: 1e-5}),
    ('coco_yolov2', 500_200, {999: 1e-3, 399_999: 1e-3, 400_001: 1e-4, 449_999: 1e-4, 450_001: 1e-5}),
    ('coco_yolov3', 500_200, {999: 1e-3, 399_999: 1e-3, 400_001: 1e-4, 449_999: 1e-4, 450_001: 1e-5})])
def test_a_paper_s_recipe_has_its_learning_rates_steps_and_batch(name, steps, expected):
  config = load(name)[1]
  options, per_epoch = config.optim.to_dict(), 259
  assert optim.parse_duration(config.train.duration, steps_per_epoch=per_epoch, where='') == steps
  warmup = optim.parse_duration(options['warmup'], steps_per_epoch=per_epoch, where='')
  schedule = optim.create_schedule(lr=options['lr'], steps=steps, schedule=options['schedule'], warmup_steps=warmup,
                                   options={'boundaries': options['boundaries']})
  for step, rate in expected.items():
    assert float(schedule(step)) == pytest.approx(rate, rel=1e-3), step
  assert config.data.batch_size == 64 and options['momentum'] == 0.9 and options['weight_decay'] == 5e-4
