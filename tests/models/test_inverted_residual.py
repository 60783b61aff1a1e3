"""The block of MobileNetV2, MobileNetV3, MNASNet and EfficientNet against its definition in slow NumPy."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from tests.models import drawn
from vision_jax.models.classification.efficientnet import FusedInvertedResidual
from vision_jax.models.classification.inverted_residual import InvertedResidual
from vision_jax.models.classification.maps import choose_maps
from vision_jax.models.classification.mobilenetv1 import DepthwiseSeparable

pytestmark = pytest.mark.medium


def normal(*shape: int) -> np.ndarray:
  return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def slow_convolution(x, kernel, stride: int = 1, dilation: int = 1):
  """A convolution that keeps the size at stride 1, as a sum over the taps of its kernel (depthwise: `[k, k, C]`)."""
  x, size = x.astype(np.float64), kernel.shape[0]
  (_, height, width, _), border = x.shape, dilation * (size - 1) // 2
  padded = np.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
  taps = [(padded[:, dilation * i:dilation * i + height:stride, dilation * j:dilation * j + width:stride], kernel[i, j])
          for i in range(size) for j in range(size)]
  return sum(part @ tap if kernel.ndim == 4 else part * tap for part, tap in taps)


def slow_norm(x, variables, name: str, eps: float):
  scale, bias = (variables['params'][name][key] for key in ('scale', 'bias'))
  mean, var = (variables['batch_stats'][name][key] for key in ('mean', 'var'))
  return (x - mean) / np.sqrt(var + eps) * scale + bias


RELU6 = functools.partial(np.clip, a_min=0, a_max=6)


def hard_sigmoid(x):
  return np.clip(x + 3, 0, 6) / 6


def hard_swish(x):
  return x * hard_sigmoid(x)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def relu(x):
  return np.maximum(x, 0)


# The block's options; the names of its (convolution, norm), expansion first; its activations in NumPy.
BLOCKS = {
    'MobileNetV2': (
        {'features': 4, 'expanded': 24, 'layout': 'conv'},
        [('conv_0_0', 'conv_0_1'), ('conv_1_0', 'conv_1_1'), ('conv_2', 'conv_3')], (RELU6, None, None)),
    'MobileNetV2 without expansion': (
        {'features': 6, 'expanded': 4, 'stride': 2, 'layout': 'conv'},
        [None, ('conv_0_0', 'conv_0_1'), ('conv_1', 'conv_2')], (RELU6, None, None)),
    'MobileNetV3': (
        {'features': 4, 'expanded': 8, 'kernel_size': 5, 'dilation': 2, 'squeeze': 3, 'activation': nn.hard_swish,
         'gate': nn.hard_sigmoid, 'eps': 1e-2},
        [('block_0_0', 'block_0_1'), ('block_1_0', 'block_1_1'), ('block_3_0', 'block_3_1')],
        (hard_swish, relu, hard_sigmoid)),
    'MNASNet': (
        {'features': 4, 'expanded': 12, 'kernel_size': 5, 'stride': 2, 'activation': nn.relu, 'layout': 'layers'},
        [('layers_0', 'layers_1'), ('layers_3', 'layers_4'), ('layers_6', 'layers_7')], (relu, None, None)),
    'EfficientNet without expansion': (
        {'features': 4, 'expanded': 4, 'squeeze': 1, 'activation': nn.silu, 'squeeze_activation': nn.silu},
        [None, ('block_0_0', 'block_0_1'), ('block_2_0', 'block_2_1')],
        (lambda x: x * sigmoid(x), lambda x: x * sigmoid(x), sigmoid)),
}


def slow_block(variables, x, options, names, activations):
  """What the block should give, and its expanded map."""
  params, (expand, depthwise, project), (activation, squeeze_activation, gate) = (
      variables['params'], names, activations)
  norm = functools.partial(slow_norm, variables=variables, eps=options.get('eps', 1e-5))
  y = x.astype(np.float64)
  if expand:
    y = activation(norm(slow_convolution(y, params[expand[0]]['kernel']), name=expand[1]))
  between = y
  y = slow_convolution(y, params[depthwise[0]]['kernel'][:, :, 0], options.get('stride', 1), options.get('dilation', 1))
  y = activation(norm(y, name=depthwise[1]))
  if options.get('squeeze'):
    layer = params['block_2' if expand else 'block_1']
    hidden = squeeze_activation(y.mean((1, 2)) @ layer['fc1']['kernel'][0, 0] + layer['fc1']['bias'])
    y = y * gate(hidden @ layer['fc2']['kernel'][0, 0] + layer['fc2']['bias'])[:, None, None]
  y = norm(slow_convolution(y, params[project[0]]['kernel']), name=project[1])
  return (y + x if y.shape == x.shape else y), between


@pytest.mark.parametrize('name', BLOCKS)
def test_block_equals_its_definition(name):
  options, names, activations = BLOCKS[name]
  block, x = InvertedResidual(**options), normal(2, 7, 6, 4)
  variables = drawn.variables(block, x)
  found = jax.jit(functools.partial(block.apply, method='with_expanded'))(variables, x)
  truth = slow_block(variables, x, options, names, activations)
  for ours, expected in zip(found, truth, strict=True):
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, atol=1e-4)  # three layers of at most 25 products in float32


def test_without_shortcut_a_block_is_its_branch():
  options, x = BLOCKS['MobileNetV2'][0], normal(2, 3, 4, 4)
  whole, branch = InvertedResidual(**options), InvertedResidual(**options, shortcut=False)
  variables = drawn.variables(whole, x)
  difference = jax.jit(lambda v, x: whole.apply(v, x) - branch.apply(v, x))(variables, x)
  np.testing.assert_allclose(difference, x, atol=1e-5)  # the difference of numbers of about 5


@pytest.mark.parametrize('block', [InvertedResidual, FusedInvertedResidual])
def test_stochastic_depth_drops_or_doubles_the_branch_of_whole_examples(block):
  block, x = block(4, expanded=8, stochastic_depth=0.5, norm='frozen'), normal(16, 2, 3, 4)
  variables = drawn.variables(block, x)
  branch = jax.jit(block.apply)(variables, x) - x
  noisy = jax.jit(lambda v, x, key: block.apply(v, x, train=True, rngs={'dropout': key}))(
      variables, x, jax.random.key(0)) - x
  dropped = np.array([not np.any(row) for row in np.asarray(noisy)])
  assert 0 < dropped.sum() < 16
  np.testing.assert_allclose(noisy[~dropped], 2 * branch[~dropped], atol=1e-5)  # a difference of numbers of about 5


def test_an_unknown_layout_is_answered_with_the_known_ones():
  with pytest.raises(ValueError, match="unknown layout 'timm'; known: block, conv, layers"):
    drawn.shapes(InvertedResidual(4, 8, layout='timm'), 1, 4, 4, 4)


@pytest.mark.parametrize(('expanded', 'stride', 'features'), [(8, 2, 6), (8, 1, 4), (4, 1, 4), (4, 2, 4)])
def test_fused_block_equals_its_definition(expanded, stride, features):
  block, x = FusedInvertedResidual(features, expanded, stride=stride), normal(2, 5, 6, 4)
  variables = drawn.variables(block, x)
  layers = {name: {kind: variables[kind][name] for kind in variables} for name in variables['params']}

  def conv_norm(y, name, step=1):
    y = slow_convolution(y, layers[name]['params']['0']['kernel'], step)
    return slow_norm(y, layers[name], '1', 1e-5)

  truth = conv_norm(x, 'block_0', stride)
  truth = truth * sigmoid(truth)
  if expanded != 4:
    truth = conv_norm(truth, 'block_1')
  assert set(layers) == ({'block_0'} if expanded == 4 else {'block_0', 'block_1'})
  truth = truth + x if truth.shape == x.shape else truth
  np.testing.assert_allclose(jax.jit(block.apply)(variables, x), truth, atol=1e-4)  # sums of 72 products in float32


@pytest.mark.parametrize('last', [True, False])
def test_depthwise_separable_equals_its_definition(last):
  options = {} if last else {'activation': nn.relu, 'last_activation': None, 'parts': ('3', '4', '6', '7')}
  layer, x = DepthwiseSeparable(6, stride=2, **options), normal(2, 5, 6, 4)
  variables = drawn.variables(layer, x)
  names = ('conv_dw', 'bn1', 'conv_pw', 'bn2') if last else ('3', '4', '6', '7')
  y = slow_convolution(x, variables['params'][names[0]]['kernel'][:, :, 0], 2)
  y = np.clip(slow_norm(y, variables, names[1], 1e-5), 0, 6 if last else None)
  y = slow_norm(slow_convolution(y, variables['params'][names[2]]['kernel']), variables, names[3], 1e-5)
  truth = np.clip(y, 0, 6) if last else y
  np.testing.assert_allclose(jax.jit(layer.apply)(variables, x), truth, atol=1e-4)  # sums of nine products in float32


def test_maps_are_the_last_of_every_stride_or_those_asked_for():
  maps = {'stem': (2, 'a'), 'inside': (None, 'b'), 'one': (4, 'c'), 'two': (4, 'd')}
  assert choose_maps(maps) == {'stem': 'a', 'two': 'd'}
  assert list(choose_maps(maps, ('two', 'inside')).items()) == [('two', 'd'), ('inside', 'b')]
  with pytest.raises(ValueError, match="no feature map 'three'; there are stem, inside, one, two"):
    choose_maps(maps, ('three', 'one'))
