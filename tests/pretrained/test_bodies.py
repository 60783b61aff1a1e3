"""Classifiers' weights in the bodies of detectors."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from vision_jax import build, models, pretrained
from vision_jax.models.classification.darknet import Darknet
from vision_jax.pretrained import convert
from vision_jax.pretrained.variables import flat_shapes, flat_variables, nested
from vision_jax.train.checkpoint import save_variables

CANVAS = (64, 64)


def counted(model, offset: float = 1.0):
  """Variables that count upwards from `offset`, no two arrays alike."""
  return nested({path: np.arange(leaf.size, dtype=np.float32).reshape(leaf.shape) / leaf.size + i + offset
                 for i, (path, leaf) in enumerate(flat_shapes(model))})


def shapes(model):
  return nested({path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in flat_shapes(model)})


# Where each keeps its body, as many of the body's arrays as it has, and the parts that are not of it.
PLACES = {
    'retinanet_small': ('backbone/body', 'backbone/fpn, head'),
    'fcos_small': ('backbone/body', 'backbone/fpn, head'),
    'ssd_small': ('backbone/trunk', 'backbone/extra, head'),
    'fasterrcnn_small': ('backbone/body', 'backbone/fpn, roi_heads, rpn'),
    'detr_small': ('backbone_0/body', 'bbox_embed, class_embed, input_proj, query_embed, transformer'),
    'yolov1_small': ('body', 'conv1, conv2, fc1'),
    'yolov2_small': ('body', 'conv1, conv2, conv3, passthrough, prediction'),
    'yolov3_small': ('body', 'head'),
}


@pytest.mark.parametrize('name', PLACES)
def test_a_body_s_weights_and_statistics_go_where_the_detector_keeps_it_and_nowhere_else(name):
  model, (place, rest) = models.create(name), PLACES[name]
  body = counted(pretrained.body_of(model))
  report = pretrained.from_variables(pretrained.body_of(model), body, source='a run')[1]
  variables, report = pretrained.fill_body(model, shapes(model), body, report)
  found, theirs = flat_variables(variables), flat_variables(body)
  assert sorted(found) == sorted(path for path, _ in flat_shapes(model))
  for path, array in theirs.items():
    collection, _, below = path.partition('/')
    np.testing.assert_array_equal(found.pop(f'{collection}/{place}/{below}'), array)
  assert any(path.startswith('batch_stats') for path in theirs) and not any(array.any() for array in found.values())
  said = str(report)
  assert said.startswith(f'{type(model).__name__} at {place} ({type(model.body).__name__}): {len(theirs)} of '
                         f'{len(theirs)} arrays (') and 'loaded from a run' in said
  assert said.endswith(f'the rest is as initialised: {rest}') and not report.fresh


def test_layers_of_a_classifier_that_the_detector_has_not_are_named():
  model = models.create('fasterrcnn_vgg16')
  body = shapes(pretrained.body_of(model))
  loaded = pretrained.Report('vgg16.pth', 'VGG', tuple(flat_variables(body)), 0)
  report = pretrained.fill_body(model, shapes(model), body, loaded)[1]
  assert report.unused == ('classifier_0/bias', 'classifier_0/flat_kernel', 'classifier_3/bias', 'classifier_3/kernel')
  assert len(report.loaded) == 26 and report.parameters == 14_714_688  # of VGG-16's convolutions


def test_a_model_without_a_body_is_refused():
  with pytest.raises(ValueError, match='ResNet has no body that takes the weights of a classifier; detectors on a'):
    pretrained.body_of(models.create('resnet18'))


# ---- through a config ----


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
  """A small Darknet for seven classes: its variables, a folder of an import, and a `.weights` file."""
  folder = tmp_path_factory.mktemp('darknet')
  model = Darknet(4, ((8, 1), (16, 2), (32, 2)), num_classes=7, stem_stride=2)
  variables = counted(model)
  save_variables(folder / 'import', variables, {'model': {}, 'preprocessing': {
      'mean': [0.5, 0.4, 0.3], 'std': [0.3, 0.2, 0.1], 'canvas': [8, 8]}, 'categories': list('abcdefg')})
  pretrained.to_darknet(folder / 'darknet.weights', model, variables)
  return variables, folder


def config(**model):
  return {'task': {'name': 'retinanet'},
          'model': {'name': 'retinanet_small', 'width': 4, 'convs': 1, 'norm': 'frozen', **model},
          'data': {'name': 'digit_scenes', 'canvas': CANVAS, 'batch_size': 2, 'train_size': 2, 'val_size': 1},
          'optim': {'name': 'sgd', 'lr': 0.1}, 'train': {'duration': '2 steps'}}


@pytest.mark.medium
@pytest.mark.parametrize('source', [pytest.param('import', marks=pytest.mark.slow), 'darknet.weights'])
def test_a_detector_begins_with_the_body_that_its_config_names(source, classifier):
  variables, folder = classifier
  experiment = build.experiment(config(body_weights=str(folder / source)))
  found, said = experiment.initial()
  body = found['params']['backbone']['body']
  for collection, part in (('params', body), ('batch_stats', found['batch_stats']['backbone']['body'])):
    theirs = {name: value for name, value in variables[collection].items() if name in part}
    assert theirs.keys() == part.keys()
    jax.tree.map(np.testing.assert_array_equal, part, theirs)
  assert np.ptp(found['params']['head']['classification_head']['cls_logits']['kernel']) > 0  # drawn
  first, *more = said.splitlines()
  assert first.startswith('RetinaNet at backbone/body (Darknet): 70 of 70 arrays (19,') and str(folder) in first
  left = 'fc' if source == 'import' else 'numbers of the file come after the last layer, and are not used'
  assert left in more[0] and more[-1] == '  the rest is as initialised: backbone/fpn, head'
  brought = {'mean': (0.5, 0.4, 0.3), 'std': (0.3, 0.2, 0.1)} if source == 'import' else {}
  assert {key: experiment.loading[key] for key in ('mean', 'std') if key in experiment.loading} == brought
  assert experiment.loading['canvas'] == CANVAS


@pytest.mark.medium
def test_weights_that_do_not_fit_the_body_are_one_line(classifier):
  _, folder = classifier
  with pytest.raises(ValueError, match=r'/import does not fit Darknet; .*of another shape: ') as error:
    build.experiment(config(width=8, body_weights=str(folder / 'import'))).initial()
  assert '\n' not in str(error.value)
  with pytest.raises(ValueError, match="weights 'resnet50' are neither a file nor a name"):
    build.experiment(config(body_weights='resnet50'))
  plain = config(name='resnet18', body_weights=str(folder / 'import'))
  plain['model'] = {'name': 'resnet18', 'body_weights': str(folder / 'import')}
  with pytest.raises(ValueError, match='ResNet has no body that takes the weights of a classifier'):
    build.experiment({**plain, 'task': {'name': 'classification'}, 'data': {
        'name': 'digits', 'canvas': (32, 32), 'batch_size': 2, 'train_size': 2, 'val_size': 1}})


def test_weights_of_the_whole_model_go_before_those_of_the_body(classifier, tmp_path):
  (tmp_path / 'weights.json').write_text(json.dumps({'model': {}, 'preprocessing': {}}), encoding='utf-8')
  experiment = build.experiment(config(weights=str(tmp_path), body_weights=str(classifier[1] / 'import')))
  assert experiment.body_weights is None and experiment.weights == str(tmp_path)
  assert 'mean' not in experiment.loading
  name = classifier[1] / 'import'
  said = f'config.model.body_weights {name} are not used: config.model.weights are of the whole model'
  assert experiment.notes.count(said) == 1
  assert not [note for note in build.experiment(config(body_weights=str(name))).notes if 'not used' in note]


@pytest.mark.medium
def test_published_weights_that_do_not_fit_are_answered_with_the_option_that_they_want(monkeypatch):
  monkeypatch.setattr(convert, 'locate', lambda source, progress: (pretrained.find_published(source), Path('a.pth')))
  monkeypatch.setattr(convert, 'read_state_dict', lambda path, key: {'fc.weight': np.zeros(3)})
  body = pretrained.body_of(models.create('ssdlite320_mobilenet_v3_large'))
  with pytest.raises(ValueError, match=r'; they were trained with reduced_tail=False of the model$') as error:
    pretrained.load('mobilenet_v3_large:DEFAULT', body)
  assert '\n' not in str(error.value) and len(str(error.value)) < 600
