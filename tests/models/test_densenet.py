"""DenseNet: the dense block beside slow NumPy, dropout, sizes and features."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import pytest

from tests import oracles
from tests.models import drawn
from tests.models.test_layers import slow_convolution
from vision_jax import models
from vision_jax.models.classification.densenet import DenseBlock, DenseNet, Transition
from vision_jax.models.noise import Dropout

pytestmark = pytest.mark.medium  # many small compilations


def image(*shape: int) -> np.ndarray:
  return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def normalised(x, variables, name: str):
  return np.maximum(oracles.batch_norm(x, variables, name), 0)


def test_every_layer_of_a_block_sees_all_maps_before_it():
  x = image(2, 4, 5, 6)
  block = DenseBlock(3, growth=2)
  variables = drawn.variables(block, x)
  truth = x.astype(np.float64)
  for i in (1, 2, 3):
    kernels = [np.asarray(variables['params'][f'denselayer{i}'][f'conv{j}']['kernel']) for j in (1, 2)]
    y = slow_convolution(normalised(truth, variables, f'denselayer{i}/norm1'), kernels[0], 1, ((0, 0),) * 2, 1, 1)
    assert y.shape[-1] == 8  # four times the growth
    y = slow_convolution(normalised(y, variables, f'denselayer{i}/norm2'), kernels[1], 1, ((1, 1),) * 2, 1, 1)
    truth = np.concatenate([truth, y], -1)
  found = np.asarray(jax.jit(block.apply)(variables, x))
  np.testing.assert_array_equal(found[..., :6], x)
  # Six convolutions of numbers near 1 in float32.
  np.testing.assert_allclose(found, truth, atol=5e-5)


def test_a_transition_halves_channels_and_size_and_drops_what_is_left_over():
  x = image(2, 5, 4, 6)
  layer = Transition()
  variables = drawn.variables(layer, x)
  kernel = np.asarray(variables['params']['conv']['kernel'])
  y = slow_convolution(normalised(x, variables, 'norm'), kernel, 1, ((0, 0),) * 2, 1, 1)
  truth = np.stack([np.stack([y[:, 2 * i:2 * i + 2, 2 * j:2 * j + 2].mean((1, 2)) for j in range(2)], 1)
                    for i in range(2)], 1)
  # One convolution in float32.
  np.testing.assert_allclose(jax.jit(layer.apply)(variables, x), truth, atol=1e-5)


def test_dropout_zeroes_what_a_layer_adds_and_nothing_that_it_was_given():
  x = image(2, 8, 8, 6)
  block, sure = DenseBlock(1, growth=16, dropout=0.5), DenseBlock(1, growth=16)
  variables = drawn.variables(sure, x)

  def both(variables, x, key):
    noisy = block.apply(variables, x, train=True, rngs={'dropout': key}, mutable=['batch_stats'])[0]
    return noisy, sure.apply(variables, x, train=True, mutable=['batch_stats'])[0]

  noisy, plain = map(np.asarray, jax.jit(both)(variables, x, jax.random.key(0)))
  np.testing.assert_array_equal(noisy[..., :6], x)
  added, kept = noisy[..., 6:], noisy[..., 6:] != 0
  np.testing.assert_allclose(added[kept], 2 * plain[..., 6:][kept], rtol=1e-6)  # the division by 1 / 2
  # 2048 draws: five standard deviations of the share are 0.055.
  assert abs(kept.mean() - 0.5) < 0.055


def test_dropout_reaches_every_layer():
  rates = []

  def note(run, args, kwargs, context):
    if isinstance(context.module, Dropout):
      rates.append(context.module.rate)
    return run(*args, **kwargs)

  with nn.intercept_methods(note):
    drawn.shapes(DenseNet(4, (2, 3), num_classes=5, dropout=0.25), 1, 16, 16, 3)
  assert rates == 5 * [0.25]


@pytest.mark.medium
def test_the_head_pools_the_last_normalised_map_after_its_relu():
  x = image(2, 13, 16, 3)
  model = DenseNet(4, (1, 2), num_classes=0)
  variables = drawn.variables(model, x)
  pooled, maps = jax.jit(lambda v, x: (model.apply(v, x), model.apply(v, x, method='features')))(variables, x)
  np.testing.assert_allclose(pooled, maps['norm5'].mean((1, 2)), atol=1e-6)  # float32's rounding
  assert {name for name, m in maps.items() if (m >= 0).all()} == {'relu0', 'norm5'}


def test_the_smallest_image_is_29_pixels_with_four_blocks():
  model = models.create('densenet121', num_classes=7)
  assert drawn.shapes(model, 2, 29, 40, 3)[0].shape == (2, 7)
  with pytest.raises(ValueError, match='DenseNet: images have at least 29 x 29 pixels, not 28 x 40; the nearest size '
                                       'is 29 x 40'):
    drawn.shapes(model, 2, 28, 40, 3)


def test_features_have_the_strides_and_channels_of_the_table():
  maps, variables = drawn.shapes(models.create('densenet121'), 2, 64, 96, 3, method='features')
  assert {name: m.shape for name, m in maps.items()} == {
      'relu0': (2, 32, 48, 64), 'denseblock1': (2, 16, 24, 256), 'denseblock2': (2, 8, 12, 512),
      'denseblock3': (2, 4, 6, 1024), 'norm5': (2, 2, 3, 1024)}
  features, headless = drawn.shapes(models.create('densenet121', num_classes=0), 2, 64, 96, 3)
  assert features.shape == (2, 1024)
  assert jax.tree.structure(headless) == jax.tree.structure(variables)
