"""ShuffleNet v2: the shuffle, the block beside slow NumPy, sizes and features."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from tests.models import drawn
from tests.models.test_layers import slow_convolution
from vision_jax import models
from vision_jax.models.classification.shufflenet import ShuffleBlock, channel_shuffle


def image(*shape: int) -> np.ndarray:
  return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def branch(x, variables, name: str, plan: str, stride: int):
  """Convolution, normalisation and ReLU in float64; plan: p for 1x1, d for 3x3 of each channel, without ReLU."""
  number = 0
  for kind in plan:
    kernel = np.asarray(variables['params'][name][str(number)]['kernel'])
    depthwise = kind == 'd'
    x = slow_convolution(x, kernel, stride if depthwise else 1, ((int(depthwise),) * 2,) * 2, 1,
                         x.shape[-1] if depthwise else 1)
    x = oracles.batch_norm(x, variables, f'{name}/{number + 1}')
    x = x if depthwise else np.maximum(x, 0)
    number += 2 if depthwise else 3
  return x


@pytest.mark.parametrize('groups', [1, 2, 3, 6])
def test_shuffle_deals_the_channels_of_the_groups_in_turn(groups):
  x = image(2, 3, 1, 12)
  each = 12 // groups
  found = np.asarray(channel_shuffle(jnp.asarray(x), groups))
  for group in range(groups):
    for i in range(each):
      np.testing.assert_array_equal(found[..., i * groups + group], x[..., group * each + i])


def test_shuffle_of_groups_that_do_not_divide_the_channels_is_refused():
  with pytest.raises(ValueError, match='channel_shuffle: 5 groups do not divide 12 channels'):
    channel_shuffle(jnp.zeros((1, 12)), 5)


@pytest.mark.parametrize('stride', [1, 2])
def test_block_equals_its_figure(stride):
  x = image(2, 5, 4, 6)
  block = ShuffleBlock(6 if stride == 1 else 10, stride)
  variables = drawn.variables(block, x)
  found = np.asarray(jax.jit(block.apply)(variables, x))
  if stride == 1:
    first, second = x[..., :3], branch(x[..., 3:], variables, 'branch2', 'pdp', 1)
    np.testing.assert_array_equal(found[..., ::2], first)  # half of the channels passes as it is
  else:
    first, second = branch(x, variables, 'branch1', 'dp', 2), branch(x, variables, 'branch2', 'pdp', 2)
  truth = np.stack([first, second], -1).reshape(*first.shape[:-1], -1)
  # Three convolutions of numbers near 1 in float32.
  np.testing.assert_allclose(found, truth, atol=2e-5)


@pytest.mark.parametrize(('features', 'stride'), [(7, 2), (8, 1)])
def test_features_that_cannot_be_halved_or_passed_on_are_refused(features, stride):
  with pytest.raises(ValueError, match=f'{features} features at stride {stride} from 6 channels; give an even number'):
    drawn.shapes(ShuffleBlock(features, stride), 1, 4, 4, 6)


def test_features_have_the_strides_and_channels_of_the_table():
  maps, variables = drawn.shapes(models.create('shufflenet_v2_x0_5'), 2, 64, 96, 3, method='features')
  assert {name: m.shape for name, m in maps.items()} == {
      'conv1': (2, 32, 48, 24), 'maxpool': (2, 16, 24, 24), 'stage2': (2, 8, 12, 48), 'stage3': (2, 4, 6, 96),
      'conv5': (2, 2, 3, 1024)}
  features, headless = drawn.shapes(models.create('shufflenet_v2_x0_5', num_classes=0), 2, 1, 33, 3)
  assert features.shape == (2, 1024)
  assert jax.tree.structure(headless) == jax.tree.structure(variables)
