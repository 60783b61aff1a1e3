"""The recipes of Faster R-CNN on COCO and VOC: their numbers, and that they trace at their full canvas."""

from __future__ import annotations

import jax
import pytest

from tests.configs.test_configs import load
from vision_jax import build
from vision_jax.conventions import option_defaults
from vision_jax.losses import rpn_loss, sample_proposals
from vision_jax.train import optim
from vision_jax.train import step as step_lib
from vision_jax.train.state import state_shapes

IMAGES = 118_287  # of COCO's train2017
# Of each recipe: what of the body learns, what does not, and the anchors and proposals at the full canvas.
RECIPES = {
    'coco_faster_rcnn': ('layer2_0/conv1/kernel', 'layer1_2/conv3/kernel',
                         3 * (336 ** 2 + 168 ** 2 + 84 ** 2 + 42 ** 2 + 21 ** 2), 1000),
    'voc_faster_rcnn': ('features_10/kernel', 'features_7/bias', 9 * 63 ** 2, 300),
}


@pytest.mark.medium
@pytest.mark.parametrize('name', RECIPES)
def test_the_recipe_traces_at_its_canvas_with_its_batch_and_freezes_what_it_says(name):
  config = load(name)[1].to_dict()
  # Tracing needs shapes only: a small drawn scene stands in for the files, and one image for the batch that is made.
  canvas, images = config['data']['canvas'], config['data']['batch_size']
  config['data'].update(name='digit_scenes', canvas=(64, 64), train_size=1, val_size=1, batch_size=1)
  config['optim']['warmup'] = '0 steps'
  config['model']['body_weights'] = None  # which would be downloaded
  experiment = build.experiment(config)
  drawn = experiment.train_loader.batch(0)
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, images, *x.shape[1:]), x.dtype), drawn)
  batch['image'] = jax.ShapeDtypeStruct((1, images, *canvas, 3), drawn['image'].dtype)
  state = state_shapes(experiment.task, experiment.optimiser, drawn)
  new, logs = jax.eval_shape(step_lib.make_train_step(experiment.task, experiment.optimiser), state, batch)
  assert logs['loss'].shape == () and jax.tree.structure(new) == jax.tree.structure(state)
  learns, still, anchors, proposals = RECIPES[name]
  module = experiment.task.module
  assert sum(module.level_sizes(canvas)) == anchors and module.post_nms == (2000, proposals)

  rules = tuple((pattern, dict(values)) for pattern, values in config['optim']['rules'])
  table = optim.parameter_rules(state.params, rules)
  frozen = {jax.tree_util.keystr(path[:-1], simple=True, separator='/') for path, value in
            jax.tree_util.tree_leaves_with_path(table) if path[-1].key in ('freeze', 'frozen') and value}
  assert f'backbone/body/{still}' in frozen and f'backbone/body/{learns}' not in frozen
  assert not any(path.startswith(('rpn', 'roi_heads', 'backbone/fpn')) for path in frozen)


def test_coco_s_recipe_has_the_learning_rates_the_batch_the_epochs_and_the_samples_of_torchvision_s():
  config = load('coco_faster_rcnn')[1]
  options, per_epoch = config.optim.to_dict(), IMAGES // config.data.batch_size
  steps = optim.parse_duration(config.train.duration, steps_per_epoch=per_epoch, where='')
  schedule = optim.create_schedule(lr=options['lr'], steps=steps, schedule='step', warmup_steps=1000,
                                   options={'boundaries': options['boundaries']})
  assert (config.data.batch_size, steps, options['warmup']) == (16, 26 * per_epoch, '1000 steps')
  assert (options['momentum'], options['weight_decay']) == (0.9, 1e-4)
  for epoch, rate in ((1, 2e-2), (15.99, 2e-2), (16.01, 2e-3), (21.99, 2e-3), (22.01, 2e-4), (25.9, 2e-4)):
    assert float(schedule(round(epoch * per_epoch))) == pytest.approx(rate, rel=1e-4), epoch
  anchors, regions = option_defaults(rpn_loss), option_defaults(sample_proposals)
  assert set(config.task) == {'name'}  # so these are its numbers
  assert (anchors['size'], anchors['positive_fraction']) == (256, 0.5)
  assert (regions['size'], regions['positive_fraction'], regions['iou_threshold']) == (512, 0.25, 0.5)
  assert (anchors['positive_iou'], anchors['negative_iou']) == (0.7, 0.3)


def test_voc_s_recipe_has_the_learning_rates_the_steps_and_the_samples_of_the_paper_s_code():
  config = load('voc_faster_rcnn')[1]
  options = config.optim.to_dict()
  schedule = optim.create_schedule(lr=options['lr'], steps=70_000, schedule='step', warmup_steps=0,
                                   options={'boundaries': options['boundaries']})
  assert (config.data.batch_size, config.train.duration, config.task.roi_samples) == (1, '70000 steps', 128)
  assert (options['momentum'], options['weight_decay']) == (0.9, 5e-4)
  for step, rate in ((0, 1e-3), (49_990, 1e-3), (50_010, 1e-4), (69_999, 1e-4)):
    assert float(schedule(step)) == pytest.approx(rate, rel=1e-4), step
