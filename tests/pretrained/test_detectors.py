"""torchvision's and DETR's checkpoints of detectors: their names, their classes, and what is published of them."""

from __future__ import annotations

import functools
import json
import re

import flax.linen as nn
import jax
import numpy as np
import pytest

from tests.golden_files import FOLDER, golden
from vision_jax import models
from vision_jax.models.layers import BatchNorm, make_norm
from vision_jax.pretrained import (
  catalogue,
  convert,
  find_published,
  from_torch,
  from_variables,
  names,
  published,
  to_torch,
  write_pth,
)
from vision_jax.pretrained.buffers import buffers
from vision_jax.pretrained.heads import pick_classes, with_classes
from vision_jax.pretrained.variables import flat_shapes, flat_variables, nested

ROWS = tuple(row for row in published() if row.box_ap is not None)
DIGESTS = json.loads((FOLDER / 'detector_names.json').read_text(encoding='utf-8'))
# The others are in the slow tests.
CHEAP = ('ssd300_vgg16', 'detr_resnet50', 'retinanet_resnet50_fpn', 'fcos_resnet50_fpn:frozen',
         'fasterrcnn_mobilenet_v3_large_fpn:frozen', 'ssdlite320_mobilenet_v3_large')


def counted(model):
  """Variables that count upwards, no two arrays alike."""
  return nested({path: np.arange(leaf.size, dtype=np.float32).reshape(leaf.shape) / leaf.size + i
                         for i, (path, leaf) in enumerate(flat_shapes(model))})


# ---- names ----


@pytest.mark.parametrize('key', [pytest.param(key, marks=() if key in CHEAP else pytest.mark.slow) for key in DIGESTS])
def test_names_and_shapes_of_detectors_are_those_of_the_originals(key):
  name, _, norm = key.partition(':')
  script, _ = golden('detectors')
  options = {'norm': norm} if norm else {}
  classes = {'num_classes': find_published(f'{name}:DEFAULT').options['num_classes']}
  model = models.create(name, **options, **classes)
  # One number stands for each array, so that none is allocated.
  flat = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in flat_shapes(model)}
  shapes = {names.torch_name(path): names.torch_shape(path, leaf.shape) for path, leaf in flat.items()}
  shapes |= {key: value.shape for key, value in buffers(model, flat).items()}
  assert script.digest(shapes) == DIGESTS[key]


@pytest.mark.slow
def test_detr_on_resnet101_has_17_blocks_more_and_dc5_the_same_names():
  found = {}
  for name in ('resnet50', 'resnet50_dc5', 'resnet101', 'resnet101_dc5'):
    leaves = flat_shapes(models.create(f'detr_{name}', num_classes=91))
    found[name] = {names.torch_name(path): names.torch_shape(path, leaf.shape) for path, leaf in leaves}
  assert found['resnet50'] == found['resnet50_dc5'] and found['resnet101'] == found['resnet101_dc5']
  block = {name: shape for name, shape in found['resnet50'].items() if '.layer3.5.' in name}
  more = {name.replace('.layer3.5.', f'.layer3.{i}.'): shape for name, shape in block.items() for i in range(6, 23)}
  assert found['resnet101'] == found['resnet50'] | more and len(more) == 17 * 15


@pytest.mark.parametrize('name', ['retinanet_small', 'fcos_small', 'ssd_small', 'fasterrcnn_small', 'detr_small'])
def test_variables_of_detectors_out_and_in_again_are_equal(name):
  model = models.create(name)
  variables = counted(model)
  back, report = from_torch(model, to_torch(model, variables))
  jax.tree.map(np.testing.assert_array_equal, back, variables)
  assert not (report.head or report.fresh or report.unused or report.notes)


# ---- classes by name ----

COCO = catalogue.categories('coco91')
THINGS = tuple(name for name in COCO if name not in ('N/A', '__background__'))


def test_the_list_has_80_things_at_their_file_ids():
  assert len(COCO) == 91 and len(THINGS) == 80 and len(set(THINGS)) == 80
  assert (COCO.index('person'), COCO.index('stop sign'), COCO.index('toothbrush')) == (1, 13, 90)


@pytest.mark.parametrize(('layer', 'anchors', 'before', 'after', 'each'), [
    ('head.classification_head.cls_logits.weight', 3, 0, 0, 1),
    ('head.classification_head.module_list.4.bias', 2, 1, 0, 1),
    ('head.classification_head.module_list.4.1.weight', 2, 1, 0, 1),
    ('roi_heads.box_predictor.cls_score.bias', 1, 1, 0, 1), ('roi_heads.box_predictor.bbox_pred.weight', 1, 1, 0, 4),
    ('class_embed.weight', 1, 0, 1, 1)])
@pytest.mark.parametrize('axis', [0, -1])
def test_rows_are_picked_by_the_names_of_their_classes(layer, anchors, before, after, each, axis):
  theirs, ours = ('a', 'N/A', 'b', 'c', 'N/A'), ('c', 'a')
  text = [f'{anchor} {name} {number}' for anchor in range(anchors)
          for name in ('first',) * before + theirs + ('last',) * after for number in range(each)]
  expected = [f'{anchor} {name} {number}' for anchor in range(anchors)
              for name in ('first',) * before + ours + ('last',) * after for number in range(each)]
  array = np.array([text, text]).T if axis == 0 else np.array([text, text])
  found = pick_classes(layer, array, theirs, ours, axis=axis)
  np.testing.assert_array_equal(found, np.array([expected] * 2).T if axis == 0 else np.array([expected] * 2))


@pytest.mark.parametrize('layer', [
    'head.regression_head.bbox_reg.weight', 'rpn.head.cls_logits.weight', 'fc.weight', 'bbox_embed.layers.2.weight',
    'head.classification_head.conv.0.0.weight', 'head.classification_head.module_list.4.0.0.weight'])
def test_layers_that_know_no_classes_are_left_alone(layer):
  assert pick_classes(layer, np.zeros((10, 2)), tuple('abcde'), ('a',)) is None
  assert pick_classes('class_embed.weight', np.zeros((5, 2)), tuple('abcde'), ('a',)) is None  # of other classes


# Small detectors, as many classes as torchvision's checkpoints of each know, and their classification layers.
PICKED = {
    'retinanet_small': (91, ['head/classification_head/cls_logits']),
    'fcos_small': (91, ['head/classification_head/cls_logits']),
    'ssd_small': (90, ['head/classification_head/module_list_0', 'head/classification_head/module_list_1',
                       'head/classification_head/module_list_2']),
    'fasterrcnn_small': (90, ['roi_heads/box_predictor/cls_score', 'roi_heads/box_predictor/bbox_pred']),
    'detr_small': (91, ['class_embed']),
}


@pytest.mark.parametrize('name', PICKED)
def test_a_checkpoint_of_all_file_ids_becomes_a_detector_of_the_80_things(name):
  count, layers = PICKED[name]
  model, theirs = models.create(name, num_classes=80), models.create(name, num_classes=count)
  variables = counted(theirs)
  for found, report in (
      from_torch(model, to_torch(theirs, variables), classes=THINGS, categories=COCO[-count:], head='load'),
      from_variables(model, variables, classes=THINGS, categories=COCO[-count:], head='load')):
    assert not (report.head or report.fresh or report.unused) and report.categories == THINGS
    assert [note for note in report.notes if note.startswith(f'head replaced: 80 of its {count} classes were picked')]
    flat, before = flat_variables(found), flat_variables(variables)
    changed = {path.removeprefix('params/').rpartition('/')[0] for path in flat if flat[path].shape
               != before[path].shape}
    assert changed == set(layers)
    same = [path for path in flat if flat[path].shape == before[path].shape]
    assert len(same) == len(flat) - 2 * len(layers)
    for path in same:
      np.testing.assert_array_equal(flat[path], before[path])
  # The last thing, toothbrush, is the last of theirs too; DETR has no object after it.
  last = {'class_embed': slice(-2, None), 'roi_heads/box_predictor/bbox_pred': slice(-4, None)}
  for layer in layers:
    part = last.get(layer, slice(-1, None))
    kernel = f'params/{layer}/kernel'
    np.testing.assert_array_equal(flat[kernel][..., part], before[kernel][..., part])


@pytest.mark.parametrize(('name', 'given'), [
    ('head.classification_head.cls_logits.bias', 'a0 c0 a1 c1'),
    ('head.classification_head.module_list.1.bias', 'first0 a0 c0 first1 a1 c1'),
    ('roi_heads.box_predictor.bbox_pred.bias', 'first0 first1 first2 first3 a0 a1 a2 a3 c0 c1 c2 c3'),
    ('class_embed.bias', 'a0 c0 last0')])
def test_numbers_about_some_classes_are_those_of_another_layer(name, given):
  array = np.array(given.split())
  found = with_classes(name, np.array([array] * 2), np.array([np.char.upper(array)] * 2), ('a', 'c'), ('c',))
  expected = [text.upper() if text.startswith('c') else text for text in array]
  np.testing.assert_array_equal(found, np.array([expected] * 2))


THEIRS = ('airplane', 'dog', 'cow')


@functools.cache
def of_three():
  """A detector of three classes, its variables and state dict, and one of two with arrays of its own."""
  theirs, ours = (models.create('retinanet_small', num_classes=count, width=4) for count in (3, 2))
  variables = counted(theirs)
  return theirs, variables, to_torch(theirs, variables), ours, jax.tree.map(lambda x: -1 - x, counted(ours))


@pytest.mark.parametrize('source', ['torch', 'ours'])
def test_classes_that_the_weights_lack_are_left_as_initialised_and_named(source):
  _, variables, state_dict, ours, like = of_three()
  read = from_torch if source == 'torch' else from_variables
  given = state_dict if source == 'torch' else variables
  options = {'like': like, 'classes': ('cow', 'aeroplane'), 'categories': THEIRS}
  found, report = read(ours, given, **options)
  lacking = "1 of 2 classes are not among the weights': aeroplane (they have airplane)"
  assert report.notes[0].startswith('head replaced: 1 of its 3 classes were picked by name (')
  assert report.notes[1] == f'{lacking}; they are as initialised' and not report.head
  flat, before, initial = map(flat_variables, (found, variables, like))
  for path, array in flat.items():
    if 'cls_logits' not in path:
      np.testing.assert_array_equal(array, before[path])
      continue
    # Six anchors of two classes, and of three.
    array, theirs, fresh = (x.reshape(*x.shape[:-1], 6, -1) for x in (array, before[path], initial[path]))
    np.testing.assert_array_equal(array, np.stack([theirs[..., 2], fresh[..., 1]], -1))
  with pytest.raises(ValueError, match='of another shape: .*cls_logits.*; ' + re.escape(lacking) + '; choose'):
    read(ours, given, **options, head='load')


def test_a_head_is_taken_as_it_stands_where_it_has_as_many_classes_and_one_of_another_name():
  theirs, variables, state_dict, _, _ = of_three()
  found, report = from_torch(theirs, state_dict, classes=('airplane', 'dog', 'owl'), categories=THEIRS)
  jax.tree.map(np.testing.assert_array_equal, found, variables)
  assert report.categories == THEIRS and report.notes == (
      "1 of 3 classes are not among the weights': owl (they have cow)",)
  _, report = from_torch(theirs, state_dict, classes=THEIRS[::-1], categories=THEIRS)
  assert not report.head and report.notes  # as many, in another order


def test_classes_are_picked_only_where_each_is_named_once_and_they_are_as_many_as_the_model_s():
  theirs, _, state_dict, ours, like = of_three()
  _, report = from_torch(ours, state_dict, like=like, classes=('cow',), categories=THEIRS)
  assert report.head and report.notes == ('no class was picked by name: 1 are named, and the model has 2',)
  _, report = from_torch(ours, state_dict, like=like, classes=('cat', 'owl'), categories=('airplane', 'dog', 'bee'))
  assert report.head and report.notes[0].startswith("2 of 2 classes are not among the weights': cat, owl")
  like = counted(theirs)
  _, report = from_torch(theirs, state_dict, like=like, classes=THEIRS[::-1], categories=THEIRS, head='fresh')
  assert report.head and not report.notes
  with pytest.raises(ValueError, match="from_torch: classes names 'cow' twice; give each class once"):
    from_torch(ours, state_dict, classes=('cow', 'cow'), categories=THEIRS)


# ---- what is published ----


def test_there_are_published_weights_of_11_detectors_for_models_and_options_that_exist():
  assert len(ROWS) == len({row.model for row in ROWS}) == 11 and all(row.default for row in ROWS)
  for row in ROWS:
    assert set(row.options) <= set(models.options(row.model)), row.name
    assert len(row.hash_prefix) == 8 and row.top1 is None and 20 < row.box_ap < 46


@pytest.mark.slow
def test_parameters_are_as_published_without_the_scales_and_biases_of_frozen_norms():
  for row in ROWS:
    leaves = flat_shapes(models.create(row.model, **row.options))
    frozen = sum(leaf.size for path, leaf in leaves if path.startswith('batch_stats')) if 'norm' in row.options else 0
    # A norm has as many scales and biases as means and variances; FCOS's heads have GroupNorm, which learns.
    assert sum(leaf.size for path, leaf in leaves if path.startswith('params')) - frozen == row.parameters, row.name


def test_rows_bring_the_preprocessing_of_the_originals():
  retinanet, ssd, lite, detr = (find_published(f'{name}:DEFAULT') for name in (
      'retinanet_resnet50_fpn', 'ssd300_vgg16', 'ssdlite320_mobilenet_v3_large', 'detr_resnet50'))
  options = retinanet.data_options()
  assert options['resize'] == ('letterbox', {'shorter_side': 800, 'interpolation': 'bilinear'})
  assert options['canvas'] == (1344, 1344) and options['mean'] == catalogue.IMAGENET_MEAN
  assert ssd.data_options()['resize'] == ('warp', {'interpolation': 'bilinear'}) and ssd.std == (1 / 255,) * 3
  assert lite.data_options()['canvas'] == (320, 320) and lite.mean == lite.std == (0.5,) * 3
  assert detr.address == 'https://dl.fbaipublicfiles.com/detr/detr-r50-e632da11.pth'
  assert retinanet.options == {'norm': 'frozen:0', 'num_classes': 91}


def test_labels_of_a_checkpoint_have_coco_s_file_ids_and_each_its_own_name():
  one_stage, two_stage = (find_published(f'{name}:DEFAULT').class_map() for name in (
      'fcos_resnet50_fpn', 'fasterrcnn_resnet50_fpn'))
  assert (one_stage.names[0], one_stage.ids[0], len(one_stage)) == ('__background__ 0', 0, 91)
  assert (two_stage.names[0], two_stage.ids[0], len(two_stage)) == ('person', 1, 90)
  assert one_stage.names[1:] == two_stage.names and one_stage.names[12] == 'N/A 12'


def test_a_published_file_is_known_by_its_hash_and_loaded_with_its_classes(monkeypatch, tmp_path):
  theirs = models.create('retinanet_small', width=4, num_classes=91)
  path = tmp_path / 'small.pth'
  write_pth(path, to_torch(theirs, counted(theirs)))
  row = find_published('retinanet_resnet50_fpn:COCO_V1')
  monkeypatch.setattr(catalogue, 'find_file', lambda given: row)
  _, report = convert.load(path, theirs)
  assert report.categories == COCO and report.preprocessing == row.data_options()
  # torchvision's eps of 0 is said where the model has another.
  assert report.notes == ("the weights were trained with norm='frozen:0' of the model",)
  _, report = convert.load(path, models.create('retinanet_small', width=4, num_classes=80, norm='frozen:0'),
                           classes=THINGS)
  assert report.categories == THINGS and len(report.notes) == 1 and 'head replaced' in report.notes[0]


# ---- the eps of frozen BatchNorm ----


def test_a_frozen_norm_may_have_an_eps_of_its_own():
  x = np.linspace(-2, 2, 12, dtype=np.float32).reshape(2, 1, 2, 3)
  state = {'params': {'scale': np.float32([1, 2, 3]), 'bias': np.float32([0, 1, 2])},
           'batch_stats': {'mean': np.float32([0.5, 0, -0.5]), 'var': np.float32([1e-4, 1e-5, 4])}}
  for kind, eps in (('frozen', 1e-5), ('frozen:0', 0.0), ('frozen:1e-3', 1e-3)):
    found = make_norm(kind, 3, train=True).apply(state, x)
    root = np.sqrt(state['batch_stats']['var'].astype(float) + eps)
    expected = (x - state['batch_stats']['mean']) / root * state['params']['scale'] + state['params']['bias']
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)  # float32 sums of terms up to 1,300
  assert make_norm('frozen', 3, eps=0.1).epsilon == 0.1


def test_only_the_oldest_detectors_of_torchvision_have_an_eps_of_0():
  # torchvision 0.28 calls `overwrite_eps(model, 0.0)` for these weights alone; SSD has no BatchNorm, SSDLite trains it.
  kinds = {row.model: row.options.get('norm') for row in ROWS}
  assert {model for model, norm in kinds.items() if norm == 'frozen:0'} == {
      'retinanet_resnet50_fpn', 'fasterrcnn_resnet50_fpn'}
  assert {model for model, norm in kinds.items() if norm is None} == {'ssd300_vgg16', 'ssdlite320_mobilenet_v3_large'}
  assert set(kinds.values()) == {'frozen:0', 'frozen', None}


@pytest.mark.medium
@pytest.mark.parametrize(('name', 'eps'), [('retinanet_resnet50_fpn', 0.0), ('fasterrcnn_resnet50_fpn', 0.0),
                                           ('fcos_resnet50_fpn', 1e-5)])
def test_the_eps_of_a_published_detector_reaches_every_norm_of_its_body(name, eps):
  seen = {}

  def note(call, args, kwargs, context):
    if isinstance(context.module, BatchNorm):
      seen[context.module.path] = context.module.epsilon, context.module.train
    return call(*args, **kwargs)

  with nn.intercept_methods(note):
    model = models.create(name, **find_published(f'{name}:DEFAULT').options)
    stage = 'features' if hasattr(model, 'features') else '__call__'
    jax.eval_shape(lambda key: model.init(key, np.zeros((1, 64, 64, 3), np.float32), train=True, method=stage),
                   jax.random.key(0))
  assert set(seen.values()) == {(eps, False)} and len(seen) == 53


@pytest.mark.parametrize('text', ['frozen:x', 'frozen:-1', 'frozen:inf', 'frozen:nan'])
def test_an_eps_that_is_no_number_is_refused(text):
  with pytest.raises(ValueError, match=r"is no number of 0 or more; torchvision's oldest detectors have 'frozen:0'"):
    make_norm(text, 3)
  with pytest.raises(ValueError, match=r"unknown norm 'batch:0'; known: .*sync:AXIS, frozen:EPS"):
    make_norm('batch:0', 3)
