"""RegNet: the widths that follow from the line, the blocks beside slow NumPy, features."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests import oracles
from tests.models import drawn
from tests.models.test_layers import slow_convolution
from vision_jax import models
from vision_jax.models.classification.regnet import Block, stage_plan

# Blocks, widths and group widths of every stage, read off the shapes of torchvision 0.28's state dicts.
PLANS = {
    'regnet_x_400mf': ((1, 2, 7, 12), (32, 64, 160, 400), (16, 16, 16, 16)),
    'regnet_x_800mf': ((1, 3, 7, 5), (64, 128, 288, 672), (16, 16, 16, 16)),
    'regnet_x_1_6gf': ((2, 4, 10, 2), (72, 168, 408, 912), (24, 24, 24, 24)),
    'regnet_x_3_2gf': ((2, 6, 15, 2), (96, 192, 432, 1008), (48, 48, 48, 48)),
    'regnet_x_8gf': ((2, 5, 15, 1), (80, 240, 720, 1920), (80, 120, 120, 120)),
    'regnet_x_16gf': ((2, 6, 13, 1), (256, 512, 896, 2048), (128, 128, 128, 128)),
    'regnet_x_32gf': ((2, 7, 13, 1), (336, 672, 1344, 2520), (168, 168, 168, 168)),
    'regnet_y_400mf': ((1, 3, 6, 6), (48, 104, 208, 440), (8, 8, 8, 8)),
    'regnet_y_800mf': ((1, 3, 8, 2), (64, 144, 320, 784), (16, 16, 16, 16)),
    'regnet_y_1_6gf': ((2, 6, 17, 2), (48, 120, 336, 888), (24, 24, 24, 24)),
    'regnet_y_3_2gf': ((2, 5, 13, 1), (72, 216, 576, 1512), (24, 24, 24, 24)),
    'regnet_y_8gf': ((2, 4, 10, 1), (224, 448, 896, 2016), (56, 56, 56, 56)),
    'regnet_y_16gf': ((2, 4, 11, 1), (224, 448, 1232, 3024), (112, 112, 112, 112)),
    'regnet_y_32gf': ((2, 5, 12, 1), (232, 696, 1392, 3712), (232, 232, 232, 232)),
    'regnet_y_128gf': ((2, 7, 17, 1), (528, 1056, 2904, 7392), (264, 264, 264, 264)),
}


@pytest.mark.parametrize('name', PLANS)
def test_stages_follow_from_the_line(name):
  model = models.create(name)
  plan = stage_plan(model.depth, model.w0, model.wa, model.wm, model.group_width)
  assert tuple(zip(*plan, strict=True)) == PLANS[name]


def test_every_regnet_has_its_stages_written_down():
  assert set(PLANS) == {name for name in models.names() if name.startswith('regnet')}


@pytest.mark.parametrize('options', [(0, 10.0, 2.0), (12, 10.0, 2.0), (8, -1.0, 2.0), (8, 10.0, 1.0)])
def test_numbers_that_give_no_widths_are_refused(options):
  with pytest.raises(ValueError, match='w0 must be a positive multiple of 8, wa not negative and wm above 1'):
    stage_plan(4, *options, 8)


@pytest.mark.parametrize(('stride', 'squeeze'), [(1, 0.0), (2, 0.25)])
def test_block_equals_its_figure(stride, squeeze):
  x = np.random.default_rng(0).standard_normal((2, 5, 4, 8)).astype(np.float32)
  block = Block(8 if stride == 1 else 12, 4, stride, squeeze)
  variables = drawn.variables(block, x)

  def conv(x, name, size=1, stride=1, groups=1):
    leaf = variables['params']
    for part in name.split('/'):
      leaf = leaf[part]
    y = slow_convolution(x, np.asarray(leaf['0']['kernel']), stride, ((size // 2,) * 2,) * 2, 1, groups)
    return oracles.batch_norm(y, variables, f'{name}/1')

  y = np.maximum(conv(x, 'f/a'), 0)
  y = np.maximum(conv(y, 'f/b', 3, stride, block.width // 4), 0)
  if squeeze:
    first, second = (variables['params']['f']['se'][name] for name in ('fc1', 'fc2'))
    assert first['kernel'].shape == (1, 1, 12, 2)  # a quarter of what comes in, not of the width
    hidden = np.maximum(y.mean((1, 2)) @ first['kernel'][0, 0] + first['bias'], 0)
    y = y / (1 + np.exp(-(hidden @ second['kernel'][0, 0] + second['bias'])))[:, None, None]
  shortcut = x if stride == 1 else conv(x, 'proj', stride=stride)
  # Three convolutions of numbers near 1 in float32.
  np.testing.assert_allclose(jax.jit(block.apply)(variables, x), np.maximum(shortcut + conv(y, 'f/c'), 0), atol=2e-5)


def test_features_have_the_strides_and_channels_of_the_table():
  maps, variables = drawn.shapes(models.create('regnet_x_400mf'), 2, 64, 96, 3, method='features')
  assert {name: m.shape for name, m in maps.items()} == {
      'stem': (2, 32, 48, 32), 'block1': (2, 16, 24, 32), 'block2': (2, 8, 12, 64), 'block3': (2, 4, 6, 160),
      'block4': (2, 2, 3, 400)}
  features, headless = drawn.shapes(models.create('regnet_x_400mf', num_classes=0), 2, 1, 33, 3)
  assert features.shape == (2, 400)
  assert jax.tree.structure(headless) == jax.tree.structure(variables)
