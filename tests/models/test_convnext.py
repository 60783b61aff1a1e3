"""ConvNeXt: its block beside loops, its maps and sizes; how stochastic depth grows in the transformers' families."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from tests.models import drawn
from vision_jax import models
from vision_jax.models.classification.convnext import Block
from vision_jax.models.classification.maxvit import MaxViT
from vision_jax.models.noise import StochasticDepth

pytestmark = pytest.mark.medium  # many small compilations


def slow_block(params, x):
  """7x7 on each channel alone, norm over the channels, two matrices with a GELU, scale, shortcut; in float64."""
  params, x = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, x))
  padded = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
  y = np.zeros_like(x) + params['block_0']['bias']
  for i, j in np.ndindex(7, 7):
    y += padded[:, i:i + x.shape[1], j:j + x.shape[2]] * params['block_0']['kernel'][i, j, 0]
  y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
  y = y * params['block_2']['scale'] + params['block_2']['bias']
  y = y @ params['block']['3']['kernel'] + params['block']['3']['bias']
  y = y * (1 + scipy.special.erf(y / np.sqrt(2))) / 2
  y = y @ params['block']['5']['kernel'] + params['block']['5']['bias']
  return x + params['layer_scale'] * y


def test_a_block_equals_a_slow_one():
  x = np.random.default_rng(0).standard_normal((2, 5, 4, 6)).astype(np.float32)
  params = drawn.variables(Block(), x)['params']
  np.testing.assert_allclose(jax.jit(Block().apply)({'params': params}, x), slow_block(params, x), atol=1e-5)


def test_a_block_starts_almost_as_its_shortcut():
  # Compiled, so that the other parameters, which nothing asks for, are not drawn.
  start = jax.jit(lambda key, x: Block().init(key, x)['params']['layer_scale'])
  scale = start(jax.random.key(0), jnp.zeros((1, 2, 2, 4)))
  np.testing.assert_allclose(scale, 1e-6)


@pytest.mark.parametrize('size', [(64, 96), (33, 50)])
def test_features_have_the_strides_and_channels_of_their_stage(size):
  maps, variables = drawn.shapes(models.create('convnext_tiny'), 2, *size, 3, method='features')
  assert {k: m.shape for k, m in maps.items()} == {
      f'features_{2 * i + 1}': (2, size[0] // 4 // 2 ** i, size[1] // 4 // 2 ** i, 96 * 2 ** i) for i in range(4)}
  features, same = drawn.shapes(models.create('convnext_tiny', num_classes=0), 2, *size, 3)
  assert features.shape == (2, 768) and jax.tree.structure(variables) == jax.tree.structure(same)


def test_an_image_that_leaves_nothing_is_refused():
  with pytest.raises(ValueError, match='at least 32 x 32 pixels, not 31 x 40; the nearest size is 32 x 40'):
    drawn.shapes(models.create('convnext_tiny'), 1, 31, 40, 3)


@pytest.mark.parametrize(('model', 'blocks', 'branches', 'last'), [
    (models.create('convnext_tiny'), 18, 1, 0.1), (models.create('swin_t'), 12, 2, 0.2),
    (MaxViT(4, (4, 8), (1, 2), 4, partition_size=1), 3, 5, 0.2)])
def test_stochastic_depth_grows_linearly_from_0(model, blocks, branches, last):
  rates = []

  def watch(call, args, options, context):
    if isinstance(context.module, StochasticDepth):
      rates.append(context.module.rate)
    return call(*args, **options)

  with nn.intercept_methods(watch):
    drawn.shapes(model, 1, 32, 32, 3)
  np.testing.assert_allclose(rates, np.repeat(np.linspace(0, last, blocks), branches), atol=1e-9)


@pytest.mark.parametrize(('name', 'rate'), [
    ('convnext_tiny', 0.1), ('convnext_small', 0.4), ('convnext_base', 0.5), ('convnext_large', 0.5), ('swin_t', 0.2),
    ('swin_s', 0.3), ('swin_b', 0.5), ('swin_v2_t', 0.2), ('swin_v2_s', 0.3), ('swin_v2_b', 0.5), ('maxvit_t', 0.2)])
def test_stochastic_depth_of_every_row_is_that_of_its_recipe(name, rate):
  assert models.create(name).stochastic_depth == rate
