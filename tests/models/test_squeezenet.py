"""SqueezeNet: the fire module beside slow NumPy, pools, sizes; and the 1x1 convolution that it lives on."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import drawn
from tests.models.test_layers import slow_convolution
from vision_jax import models
from vision_jax.models.classification.squeezenet import Fire
from vision_jax.models.layers import Conv

pytestmark = pytest.mark.medium  # many small compilations


def image(*shape: int) -> np.ndarray:
  return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize('features', [1, 5])
def test_a_1x1_convolution_is_a_fully_connected_layer_on_every_pixel(features):
  x = image(2, 3, 4, 6)
  layer, dense = Conv(features, 1), nn.Dense(features)
  variables = drawn.variables(layer, x)
  same = {'params': {'kernel': variables['params']['kernel'][0, 0], 'bias': variables['params']['bias']}}
  found = layer.apply(variables, x)
  assert found.shape == (2, 3, 4, features)
  np.testing.assert_allclose(found, dense.apply(same, x), atol=1e-5)  # sums of six products


def test_a_fire_module_equals_its_figure():
  x = image(2, 4, 5, 6)
  block = Fire(3, 4)
  variables = drawn.variables(block, x)
  params = variables['params']

  def conv(x, name, pad):
    kernel = np.asarray(params[name]['kernel'])
    return np.maximum(slow_convolution(x, kernel, 1, ((pad, pad),) * 2, 1, 1) + params[name]['bias'], 0)

  squeezed = conv(x, 'squeeze', 0)
  truth = np.concatenate([conv(squeezed, 'expand1x1', 0), conv(squeezed, 'expand3x3', 1)], -1)
  np.testing.assert_allclose(jax.jit(block.apply)(variables, x), truth, atol=1e-5)  # sums of at most 27 products


@pytest.mark.parametrize(('name', 'expected'), [
    ('squeezenet1_0', {'features_1': (109, 47, 96), 'features_5': (54, 23, 256), 'features_10': (27, 11, 512),
                       'features_12': (13, 5, 512)}),
    ('squeezenet1_1', {'features_1': (111, 49, 64), 'features_4': (55, 24, 128), 'features_7': (27, 12, 256),
                       'features_12': (13, 6, 512)})])
def test_features_are_the_last_map_of_every_stride(name, expected):
  maps, variables = drawn.shapes(models.create(name), 2, 224, 100, 3, method='features')
  assert {k: m.shape[1:] for k, m in maps.items()} == expected
  assert len(variables['params']) == 9 and 'classifier_1' not in variables['params']


@pytest.mark.parametrize(('name', 'smallest'), [('squeezenet1_0', 21), ('squeezenet1_1', 17)])
def test_the_smallest_image_leaves_one_pixel_and_a_smaller_one_is_refused(name, smallest):
  model = models.create(name, num_classes=7)
  assert drawn.shapes(model, 2, smallest, smallest, 3, method='features')[0]['features_12'].shape[1:3] == (1, 1)
  assert drawn.shapes(model, 2, smallest, smallest + 9, 3)[0].shape == (2, 7)
  with pytest.raises(ValueError, match=f'SqueezeNet: images have at least {smallest} x {smallest} pixels, not '
                                       f'{smallest - 1} x 30; the nearest size is {smallest} x 30'):
    drawn.shapes(model, 1, smallest - 1, 30, 3)


def test_logits_are_the_mean_of_rectified_scores_of_every_pixel():
  model, without = (models.create('squeezenet1_1', num_classes=k) for k in (4, 0))
  x = image(2, 33, 40, 3)
  variables = drawn.variables(model, x)
  logits, features, maps = jax.jit(lambda v, x: (
      model.apply(v, x), without.apply(v, x), model.apply(v, x, method='features')))(variables, x)
  last = np.asarray(maps['features_12'])
  head = jax.tree.map(np.asarray, variables['params']['classifier_1'])
  assert last.shape[1:3] != (1, 1)
  np.testing.assert_allclose(features, last.mean((1, 2)), rtol=1e-5, atol=1e-6)
  scores = np.maximum(last @ head['kernel'][0, 0] + head['bias'], 0).mean((1, 2))
  np.testing.assert_allclose(logits, scores, rtol=1e-4, atol=1e-5)  # sums of 512 products
  assert (np.asarray(logits) > 0).any() and features.dtype == jnp.float32
