"""The recipes of detectors on COCO, VOC and BCCD: their numbers, that each traces at its full canvas, and `:smoke`."""

from __future__ import annotations

from collections.abc import Callable
import math
import re
from typing import NamedTuple

import jax
import numpy as np
import pytest

from tests.configs.test_configs import CONFIGS, OF_PAPERS, load
from tests.data import builders
from tests.tasks.steps import drawn_state, quick_step
from vision_jax import build, pretrained
from vision_jax.conventions import option_defaults
from vision_jax.losses import rpn_loss, sample_proposals
from vision_jax.train import optim
from vision_jax.train import step as step_lib
from vision_jax.train.state import state_shapes

COCO, VOC, VOC2007, BCCD = 118_287, 16_551, 5_011, 205  # training images; VOC's are those of 2007 and 2012 together
SGD, VOC_SGD, LITE = ('sgd', 0.9, 1e-4), ('sgd', 0.9, 5e-4), ('sgd', 0.9, 4e-5)  # with momentum and weight decay
ADAMW, SMALL = ('adamw', None, 1e-4), ('adamw', None, 1e-2)


def falls(lr: float, *steps: int) -> dict[int, float]:
  """{step: learning rate} beside the steps where it falls to a tenth."""
  return {step + side: lr * 0.1 ** (place + (side > 0)) for place, step in enumerate(steps) for side in (-10, 10)}


def cosine(lr: float, warmup: int, steps: int) -> dict[int, float]:
  """{step: learning rate} at the end of the warm-up, half way from there, and at the end."""
  return {warmup: lr, (warmup + steps) // 2: lr / 2, steps - 1: 0.0}


def of_resnet(path: str) -> bool:
  """Whether a parameter of ResNet stands still: the stem, the first stage and what BatchNorm scales and adds."""
  parts = path.split('/')
  return parts[0] == 'conv1' or parts[0].startswith('layer1_') or any(
      part.startswith('bn') or part == 'downsample_1' for part in parts)


def of_vgg(path: str) -> bool:
  """The first two stages of VGG-16, as the paper of Faster R-CNN has it."""
  return path.split('/')[0] in ('features_0', 'features_2', 'features_5', 'features_7')


def first_of_vgg(path: str) -> bool:
  """The first stage of VGG-16, which torchvision freezes where its weights were trained before."""
  return path.split('/')[0] in ('features_0', 'features_2')


class Recipe(NamedTuple):
  """What a paper, a cfg of darknet or torchvision's reference training says.

  Args:
    images: of the training data.
    batch, steps: of the run.
    rates: learning rates by step.
    predictions: at the full canvas: anchors, default boxes, points or queries.
    optimiser: name, momentum, weight decay.
    frozen: which parameters of the body never move.
    slow: whether `make test` leaves its trace out, as one with the same model or task is there.
  """

  images: int
  batch: int
  steps: int
  rates: dict[int, float]
  predictions: int
  optimiser: tuple = SGD
  frozen: Callable[[str], bool] | None = None
  slow: bool = False


PYRAMID = 168 ** 2 + 84 ** 2 + 42 ** 2 + 21 ** 2 + 11 ** 2  # pixels of the maps of 1344 x 1344, stride 8 and on
FINE = 3 * (336 ** 2 + 168 ** 2 + 84 ** 2 + 42 ** 2 + 21 ** 2)  # anchors from stride 4 on
YOLOV3 = 3 * (52 ** 2 + 26 ** 2 + 13 ** 2)
CELLS = 30 * 40 + 15 * 20  # of BCCD's canvas, stride 8 and 16
RECIPES = {
    'coco_retinanet': Recipe(COCO, 16, 26 * 7392, falls(1e-2, 16 * 7392, 22 * 7392), 9 * PYRAMID, frozen=of_resnet,
                             slow=True),
    'coco_fcos': Recipe(COCO, 16, 26 * 7392, falls(1e-2, 16 * 7392, 22 * 7392), PYRAMID, frozen=of_resnet, slow=True),
    'coco_faster_rcnn': Recipe(COCO, 16, 26 * 7392, falls(2e-2, 16 * 7392, 22 * 7392), FINE, frozen=of_resnet),
    'coco_detr': Recipe(COCO, 64, 300 * 1848, falls(1e-4, 200 * 1848), 100, ADAMW, of_resnet, slow=True),
    'coco_ssd300': Recipe(COCO, 32, 120 * 3696, falls(2e-3, 80 * 3696, 110 * 3696), 8732, VOC_SGD,
                          first_of_vgg),
    'coco_ssdlite320': Recipe(COCO, 192, 660 * 616, cosine(0.15, 1000, 660 * 616), 3234, LITE, slow=True),
    'coco_yolov2': Recipe(COCO, 64, 500_200, falls(1e-3, 400_000, 450_000), 845, VOC_SGD, slow=True),
    'coco_yolov3': Recipe(COCO, 64, 500_200, falls(1e-3, 400_000, 450_000), YOLOV3, VOC_SGD, slow=True),
    'voc_yolov1': Recipe(VOC, 64, 135 * 258, falls(1e-2, 75 * 258, 105 * 258), 98, VOC_SGD),
    'voc_yolov2': Recipe(VOC, 64, 160 * 258, falls(1e-3, 60 * 258, 90 * 258), 845, VOC_SGD, slow=True),
    'voc_yolov3': Recipe(VOC, 64, 50_200, falls(1e-3, 40_000, 45_000), YOLOV3, VOC_SGD, slow=True),
    'voc_ssd300': Recipe(VOC, 32, 120_000, falls(1e-3, 80_000, 100_000), 8732, VOC_SGD, slow=True),
    'voc_faster_rcnn': Recipe(VOC2007, 1, 70_000, falls(1e-3, 50_000), 9 * 63 ** 2, VOC_SGD, of_vgg),
    'voc_finetune:retinanet': Recipe(VOC, 16, 12 * 1034, falls(1e-3, 8 * 1034, 11 * 1034), 9 * PYRAMID, SGD, of_resnet,
                                     True),
    'voc_finetune:fcos': Recipe(VOC, 16, 12 * 1034, falls(1e-3, 8 * 1034, 11 * 1034), PYRAMID, SGD, of_resnet, True),
    'voc_finetune:faster_rcnn': Recipe(VOC, 16, 12 * 1034, falls(2e-3, 8 * 1034, 11 * 1034), FINE, SGD, of_resnet,
                                       True),
    'voc_finetune:ssdlite320': Recipe(VOC, 32, 60 * 517, cosine(2.5e-3, 500, 60 * 517), 3234, LITE, slow=True),
    'voc_finetune:detr': Recipe(VOC, 16, 12 * 1034, falls(1e-4, 8 * 1034), 100, ADAMW, of_resnet, True),
    'bccd:yolov1': Recipe(BCCD, 8, 5000, cosine(5e-3, 100, 5000), 2 * 9 * 12, SMALL, slow=True),
    'bccd:yolov2': Recipe(BCCD, 8, 2750, cosine(5e-3, 100, 2750), 5 * 15 * 20, SMALL, slow=True),
    'bccd:yolov3': Recipe(BCCD, 8, 2500, cosine(1e-2, 100, 2500), 3 * CELLS, SMALL, slow=True),
    'bccd:ssd': Recipe(BCCD, 8, 2375, cosine(3e-3, 100, 2375), 4 * (CELLS + 8 * 10), SMALL, slow=True),
    'bccd:retinanet': Recipe(BCCD, 8, 1750, cosine(3e-3, 100, 1750), 3 * CELLS, SMALL, slow=True),
    'bccd:fcos': Recipe(BCCD, 8, 2000, cosine(3e-3, 100, 2000), CELLS, SMALL, slow=True),
    'bccd:faster_rcnn': Recipe(BCCD, 8, 1875, cosine(3e-3, 100, 1875), 2 * CELLS, SMALL, slow=True),
    'bccd:detr': Recipe(BCCD, 8, 1500, cosine(1e-3, 100, 1500), 50, SMALL, slow=True),
}


def config_of(row: str, smoke: bool = False):
  name, _, variant = row.partition(':')
  return load(name, ':'.join(filter(None, (variant, 'smoke' if smoke else ''))))[1]


def test_every_recipe_stands_in_the_table_with_all_its_variants():
  rows = set()
  for name in (name for name in CONFIGS if name.startswith(OF_PAPERS)):
    variants = getattr(load(name)[0], 'DETECTORS', None)
    rows |= {name} if variants is None else {f'{name}:{variant}' for variant in variants}
  assert rows == set(RECIPES)
  assert load('bccd')[1] == config_of('bccd:yolov3')
  with pytest.raises(ValueError, match="unknown variant 'yolov4' of this config; there are yolov1, .* after each"):
    load('bccd', 'yolov4')


@pytest.mark.parametrize('row', RECIPES)
def test_a_recipe_has_the_learning_rates_the_steps_and_the_batch_of_its_source(row):
  recipe, config = RECIPES[row], config_of(row)
  options, per_epoch = config.optim.to_dict(), recipe.images // recipe.batch
  steps = optim.parse_duration(config.train.duration, steps_per_epoch=per_epoch, where='')
  assert (config.data.batch_size, steps) == (recipe.batch, recipe.steps)
  assert (options['name'], options.get('momentum'), options['weight_decay']) == recipe.optimiser
  warmup = optim.parse_duration(options['warmup'] or '0 steps', steps_per_epoch=per_epoch, where='')
  schedule = optim.create_schedule(lr=options['lr'], steps=steps, schedule=options['schedule'], warmup_steps=warmup,
                                   options={name: options[name] for name in ('boundaries',) if name in options})
  for step, rate in recipe.rates.items():
    # A cosine's last step is that of 1 - 1/steps, and its middle may fall between two.
    assert float(schedule(step)) == pytest.approx(rate, rel=2e-3, abs=1e-4 * options['lr']), step
  assert float(schedule(0)) < options['lr'] or not warmup


@pytest.mark.medium
@pytest.mark.parametrize('row', [pytest.param(row, marks=[pytest.mark.slow] * recipe.slow)
                                 for row, recipe in RECIPES.items()])
def test_a_recipe_traces_at_its_canvas_with_its_batch_and_freezes_what_it_says(row):
  recipe, config = RECIPES[row], config_of(row).to_dict()
  canvas = config['data']['canvas']
  canvas = canvas if isinstance(canvas[0], int) else canvas[0]
  # Tracing needs shapes only: a drawn scene stands in for the files, a small one where the network takes any size, and
  # one image for the batch that is made.
  drawn_at = (64, 64) if config['data']['resize'] not in (None, 'warp') else canvas
  config['data'].update(name='digit_scenes', path=None, canvas=drawn_at, train_size=1, val_size=1, batch_size=1)
  config['optim']['warmup'] = '0 steps'
  experiment = build.experiment(config)
  drawn, ema = experiment.train_loader.batch(0), experiment.fit_options['ema_decay']
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, recipe.batch, *x.shape[1:]), x.dtype), drawn)
  batch['image'] = jax.ShapeDtypeStruct((1, recipe.batch, *canvas, 3), drawn['image'].dtype)
  state = state_shapes(experiment.task, experiment.optimiser, drawn, ema=ema is not None)
  step = step_lib.make_train_step(experiment.task, experiment.optimiser, ema_decay=ema)
  new, logs = jax.eval_shape(step, state, batch)
  assert logs['loss'].shape == () and jax.tree.structure(new) == jax.tree.structure(state)
  assert predictions(experiment.module, state, canvas) == recipe.predictions
  paths = {jax.tree_util.keystr(path, simple=True, separator='/')
           for path, _ in jax.tree_util.tree_leaves_with_path(state.params)}
  inside = {path: re.split('/(?:body|trunk)/', path)[-1] for path in paths if re.search('/(?:body|trunk)/', path)}
  frozen = {path for path, rest in inside.items() if recipe.frozen and recipe.frozen(rest)}
  assert set(getattr(experiment.task.module, 'params', ())) == frozen and bool(frozen) == bool(recipe.frozen)


def predictions(module, state, canvas):
  """How many boxes a detector predicts for an image of a canvas (h, w)."""
  if hasattr(module, 'level_sizes'):
    return sum(module.level_sizes(canvas))
  if hasattr(module, 'num_queries'):
    return module.num_queries
  outputs = jax.eval_shape(module.apply, {'params': state.params, **state.model_state}, np.zeros((1, *canvas, 3)))
  return sum(math.prod(cells.shape[1:3]) * getattr(module, 'boxes_per_cell', cells.shape[3])
             for cells in jax.tree.leaves(outputs))


@pytest.mark.parametrize('row', [row for row in RECIPES if 'ssd' in row and 'bccd' not in row])
def test_ssd_s_images_are_cut_flipped_and_warped(row):
  config = config_of(row)
  assert {'ssd_crop', 'flip'} <= {step for step, _ in config.data.augment} and config.data.resize == 'warp'


@pytest.mark.parametrize('row', ['coco_detr', 'voc_finetune:detr'])
def test_detr_s_backbone_learns_with_a_tenth_and_everything_decays(row):
  leaf, config = jax.ShapeDtypeStruct((4,), float), config_of(row).to_dict()
  params = {'backbone_0': {'body': {'conv1': {'kernel': leaf}, 'layer4_0': {'conv1': {'kernel': leaf}}}},
            'class_embed': {'bias': leaf}}
  table = optim.parameter_rules(params, config['optim']['rules'])
  stem, stage = (table['backbone_0']['body'][name] for name in ('conv1', 'layer4_0'))
  assert stem['kernel']['frozen'] == math.inf
  assert stage['conv1']['kernel'] == {'frozen': 0, 'lr': 0.1, 'decay': 1.0}
  assert table['class_embed']['bias'] == {'frozen': 0, 'lr': 1.0, 'decay': 1.0} and config['optim']['clip'] == 0.1


@pytest.mark.parametrize('row', ['coco_retinanet', 'coco_fcos', 'coco_faster_rcnn', 'coco_ssd300', 'coco_ssdlite320'])
def test_torchvision_s_recipes_decay_scales_and_biases_too(row):
  # Its reference training gives one group of all parameters to the optimiser, unless `--norm-weight-decay` is given.
  part = lambda: {name: jax.ShapeDtypeStruct((4,), float) for name in ('kernel', 'scale', 'bias')}
  params = {'backbone': {'body': {'conv1': part(), 'layer2_0': {'bn1': part()}}, 'trunk': {'features_0': part()}},
            'head': part()}
  rules = config_of(row).to_dict()['optim']['rules']
  table = optim.parameter_rules(params, [rule for rule in rules if 'freeze' not in rule[1]])
  assert {leaf['decay'] for leaf in jax.tree.leaves(table, is_leaf=lambda x: 'frozen' in x)} == {1.0}


def test_faster_rcnn_s_samples_are_torchvision_s_on_coco_and_the_paper_s_on_voc():
  config = config_of('coco_faster_rcnn')
  anchors, regions = option_defaults(rpn_loss), option_defaults(sample_proposals)
  assert set(config.task) == {'name'}  # so these are its numbers
  assert (anchors['size'], anchors['positive_fraction']) == (256, 0.5)
  assert (regions['size'], regions['positive_fraction'], regions['iou_threshold']) == (512, 0.25, 0.5)
  assert (anchors['positive_iou'], anchors['negative_iou']) == (0.7, 0.3)
  assert config_of('voc_faster_rcnn').task.roi_samples == 128


@pytest.mark.parametrize('row', [row for row in RECIPES if row.startswith('voc_finetune')])
def test_fine_tuning_begins_with_published_weights_in_their_model_and_colours(row):
  config = config_of(row)
  found = pretrained.find_published(config.model.weights)
  assert found.model == config.model.name and found.categories_of == 'coco91'
  assert config.model.get('norm', found.options.get('norm')) == found.options.get('norm')
  assert (config.data.mean, config.data.std) == (found.mean, found.std)
  assert found.policy == (config.data.resize if isinstance(config.data.resize, str) else config.data.resize[0])
  if 'detr' not in row:  # which is trained on images of many sizes
    assert config.data.canvas == (found.crop, found.crop)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  """COCO's and VOC's files with a cat and a dog in each of 32 and 10 images of 12 x 16 pixels."""
  folder = tmp_path_factory.mktemp('tiny')
  for split, count in (('train', 32), ('val', 10)):
    objects = [builders.voc_object('cat', (2, 2, 8, 10)), builders.voc_object('dog', (9, 3, 15, 11))]
    builders.voc_set(folder / 'voc', {f'{split}{k}': objects for k in range(count)}, split=split)
    boxes = [(k, id, box) for k in range(count) for id, box in ((3, [1, 1, 7, 9]), (7, [8, 2, 7, 9]))]
    builders.coco_set(folder / 'coco', [builders.coco_annotation(i, k + 1, id, box, area=63, iscrowd=0)
                                        for i, (k, id, box) in enumerate(boxes, 1)],
                      images=[builders.coco_image(k + 1, f'{k}.png') for k in range(count)], split=split)
  return folder


@pytest.mark.slow
@pytest.mark.parametrize('row', RECIPES)
def test_two_real_steps_of_smoke_change_what_learns_and_its_predictions_trace(row, tiny):
  config = config_of(row, smoke=True).to_dict()
  assert config['model']['weights'] is None and config['model']['body_weights'] is None  # nothing is downloaded
  config['data']['path'] = str(tiny / config['data']['name'])
  experiment = build.experiment(config)
  loader, ema = experiment.train_loader, experiment.fit_options['ema_decay']
  assert experiment.fit_options['steps'] == loader.steps_per_epoch == 4
  # Without normalisation He's variance is too large for the rates that YOLOv1 begins with.
  state = drawn_state(experiment, loader.batch(0), ema=ema is not None, variance=1.0)
  before = jax.tree.map(np.array, state.params)
  step = quick_step(experiment, state, loader.batch(0), ema_decay=ema)
  for i in range(2):
    state, logs = step(state, step_lib.shard_batch(loader.batch(i)))
    assert np.isfinite(logs['loss']) and np.isfinite(logs['gradient_norm']) and logs['loss'] > 0
  frozen = set(getattr(experiment.task.module, 'params', ()))
  for path, moved in jax.tree_util.tree_leaves_with_path(jax.tree.map(
      lambda a, b: bool((a != np.array(b)).any()), before, state.params)):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    assert not (moved and name in frozen), name
    assert moved or name in frozen or not name.endswith('kernel'), name
  found = jax.eval_shape(experiment.task.predict, state.evaluation_variables(), loader.batch(0))
  assert found['boxes'].shape[::2] == (config['data']['batch_size'], 4)
