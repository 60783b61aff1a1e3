"""VGG: where its convolutions stand, the maps by both names, the head on maps of other sizes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import drawn
from vision_jax import models
from vision_jax.models.classification.vgg import VGG

pytestmark = pytest.mark.medium  # many small compilations

# What torchvision's listing of the networks shows: the places of convolutions, and of the maps of every stride.
CONVOLUTIONS = {
    'vgg11': (0, 3, 6, 8, 11, 13, 16, 18),
    'vgg13': (0, 2, 5, 7, 10, 12, 15, 17, 20, 22),
    'vgg16': (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    'vgg19': (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34),
    'vgg11_bn': (0, 4, 8, 11, 15, 18, 22, 25),
    'vgg13_bn': (0, 3, 7, 10, 14, 17, 21, 24, 28, 31),
    'vgg16_bn': (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40),
    'vgg19_bn': (0, 3, 7, 10, 14, 17, 20, 23, 27, 30, 33, 36, 40, 43, 46, 49),
}


@pytest.mark.parametrize('name', CONVOLUTIONS)
def test_layers_stand_where_torchvision_counts_them(name):
  variables = drawn.shapes(models.create(name, width=4, hidden=8), 1, 32, 32, 3)[1]
  convolutions = {f'features_{i}' for i in CONVOLUTIONS[name]}
  norms = {f'features_{i + 1}' for i in CONVOLUTIONS[name]} if name.endswith('bn') else set()
  assert set(variables['params']) == convolutions | norms | {'classifier_0', 'classifier_3', 'classifier_6'}
  assert set(variables.get('batch_stats', {})) == norms


@pytest.mark.parametrize(('name', 'places'), [
    ('vgg16', (3, 8, 15, 22, 29, 30)), ('vgg16_bn', (5, 12, 22, 32, 42, 43))])
def test_features_are_the_last_relu_before_each_pool_and_the_last_pool(name, places):
  maps, variables = drawn.shapes(models.create(name), 2, 96, 65, 3, method='features')
  shapes = [(96, 65, 64), (48, 32, 128), (24, 16, 256), (12, 8, 512), (6, 4, 512), (3, 2, 512)]
  assert {k: m.shape[1:] for k, m in maps.items()} == {
      f'features_{i}': shape for i, shape in zip(places, shapes, strict=True)}
  assert all(layer.startswith('features') for layer in variables['params'])


def test_activations_bear_the_names_of_papers_on_style():
  maps = drawn.shapes(models.create('vgg19', width=4), 1, 32, 32, 3, method='activations')[0]
  assert list(maps) == [f'relu{i}_{j}' for i, last in enumerate((2, 2, 4, 4, 4), start=1) for j in range(1, last + 1)]


def test_activations_and_features_are_the_same_maps():
  model = models.create('vgg16', width=2, hidden=4, num_classes=3)
  x = np.random.default_rng(0).standard_normal((1, 32, 40, 3)).astype(np.float32)
  variables = drawn.variables(model, x)
  maps, relus = jax.jit(lambda v, x: (model.apply(v, x, method='features'), model.apply(v, x, method='activations')))(
      variables, x)
  for name, place in (('relu1_2', 3), ('relu2_2', 8), ('relu3_3', 15), ('relu4_3', 22), ('relu5_3', 29)):
    np.testing.assert_array_equal(relus[name], maps[f'features_{place}'])
  assert all((relu >= 0).all() and relu.any() for relu in relus.values())
  pooled = np.asarray(maps['features_29'])[:, :2, :2].max((1, 2))
  np.testing.assert_array_equal(maps['features_30'], pooled[:, None, None])


def test_on_a_map_of_one_pixel_each_of_the_49_bins_is_that_pixel():
  model = VGG((1, 1, 1, 1, 1), num_classes=3, width=2, hidden=4)
  x = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
  variables = drawn.variables(model, x)
  logits, maps = jax.jit(lambda v, x: (model.apply(v, x), model.apply(v, x, method='features')))(variables, x)
  params = jax.tree.map(np.asarray, variables['params'])
  hidden = np.asarray(maps['features_14'])[:, 0, 0]
  hidden = hidden @ params['classifier_0']['flat_kernel'].sum((0, 1)) + params['classifier_0']['bias']
  for layer in ('classifier_3', 'classifier_6'):
    hidden = np.maximum(hidden, 0) @ params[layer]['kernel'] + params[layer]['bias']
  np.testing.assert_allclose(logits, hidden, rtol=1e-4, atol=1e-4)  # sums of 49 * 16 products


def test_no_classes_gives_the_last_hidden_layer():
  features, variables = drawn.shapes(models.create('vgg11', num_classes=0), 2, 32, 32, 3)
  assert features.shape == (2, 4096) and features.dtype == jnp.float32
  assert 'classifier_6' not in variables['params']


def test_an_image_under_32_pixels_is_refused():
  with pytest.raises(ValueError, match='VGG: images have at least 32 x 32 pixels, not 31 x 64; the nearest size is '
                                       '32 x 64'):
    drawn.shapes(models.create('vgg11'), 1, 31, 64, 3)


def test_rows_with_batchnorm_are_the_others_with_that_norm():
  for name in ('vgg11', 'vgg13', 'vgg16', 'vgg19'):
    assert models.create(f'{name}_bn') == models.create(name, norm='batch')
