"""U-Net: the paper's sizes and counts, and what its flags change."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import drawn
from vision_jax import models
from vision_jax.models.segmentation.unet import UNet, nearest_size

pytestmark = pytest.mark.medium  # many small compilations: together more than the fast tests can spare


def count(model, channels: int) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(drawn.shapes(model, 1, 16, 16, channels)[1]['params']))


def test_parameters_are_the_published_ones():
  assert count(UNet(num_classes=2), 1) == 31_030_658
  assert count(UNet(num_classes=1, norm='batch'), 3) == 31_037_633
  assert count(UNet(num_classes=2, norm='batch'), 3) == 31_037_698


@pytest.mark.parametrize(('side', 'output'), [(188, 4), (204, 20), (572, 388)])
def test_t10_valid_convolutions_give_the_paper_s_sizes(side, output):
  assert drawn.shapes(UNet(padding='valid'), 1, side, 204, 1)[0].shape == (1, output, 20, 2)


def test_t10_the_default_output_is_as_large_as_the_input():
  for model in (models.create('unet'), models.create('unet_small'), UNet(stem_stride=4)):
    y = drawn.shapes(model, 2, 64, 192, 3)[0]
    assert y.shape == (2, 64, 192, 2) and y.dtype == jnp.float32


@pytest.mark.parametrize('skips', [True, False])
def test_t9_skips_are_on_unless_an_ablation_leaves_them_out(skips):
  assert UNet().skips
  x = np.random.default_rng(0).standard_normal((1, 8, 12, 3)).astype(np.float32)
  model = UNet(width=4, depth=1, skips=skips)
  variables, apply = drawn.variables(model, x), jax.jit(model.apply)
  # With the lowest map cut off, the copied maps alone carry the input to the output.
  variables['params']['bottom_2']['conv']['kernel'] *= 0
  assert np.any(apply(variables, x) != apply(variables, 2 * x)) == skips
  assert variables['params']['up0_1']['conv']['kernel'].shape == (3, 3, 8 if skips else 4, 4)


def test_t11_up_convolutions_open_the_expanding_blocks_and_none_follows_the_last():
  model = UNet(width=4, depth=3)
  params = drawn.shapes(model, 1, 16, 16, 3)[1]['params']
  assert sorted(name for name in params if name.endswith('upconv')) == ['up0_upconv', 'up1_upconv', 'up2_upconv']
  # 2x2 up-convolution to half the channels, copy beside it, two 3x3; the last map goes to the 1x1 at full size.
  for level in range(3):
    c = 4 * 2 ** level
    assert params[f'up{level}_upconv']['kernel'].shape == (2, 2, c, 2 * c)
    assert params[f'up{level}_1']['conv']['kernel'].shape == (3, 3, 2 * c, c)
    assert params[f'up{level}_2']['conv']['kernel'].shape == (3, 3, c, c)
  assert params['head']['kernel'].shape == (1, 1, 4, 2)


@pytest.fixture(scope='module')
def valid():
  """A small U-Net with valid convolutions, its variables, and its jitted application."""
  model = UNet(width=2, depth=2, padding='valid', num_classes=3)
  variables = drawn.variables(model, jnp.zeros((1, 44, 44, 3)))
  return model, variables, jax.jit(model.apply)


def test_valid_output_of_a_tile_is_the_same_part_of_the_whole(valid):
  # The seamless tiling that valid convolutions are for: a tile at a multiple of 2**depth sees all it needs.
  _, variables, apply = valid
  x = np.random.default_rng(0).standard_normal((1, 60, 68, 3)).astype(np.float32)
  whole = apply(variables, x)
  assert whole.shape == (1, 20, 28, 3)
  tile = apply(variables, x[:, 8:52, 12:56])
  np.testing.assert_allclose(tile, whole[:, 8:12, 12:16], atol=1e-5)  # the same sums, in another order


@pytest.mark.parametrize('size', [(18, 31), (20, 20), (5, 41)])
def test_mirror_equals_valid_on_an_input_extended_by_reflection(valid, size):
  _, variables, apply = valid
  model = UNet(width=2, depth=2, padding='valid', num_classes=3, mirror=True)
  x = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
  found = jax.jit(model.apply)(variables, x)
  assert found.shape == (2, *size, 3)
  # The output lacks 20 pixels at each side; more at the bottom and right only makes the size an allowed one.
  extended = [nearest_size(side + 40, depth=2, padding='valid', at_least=True) - side - 20 for side in size]
  truth = apply(variables, np.pad(x, ((0, 0), (20, extended[0]), (20, extended[1]), (0, 0)), mode='reflect'))
  np.testing.assert_allclose(found, truth[:, :size[0], :size[1]], atol=1e-6)


@pytest.mark.medium
def test_initial_weights_have_the_paper_s_spread():
  params = jax.jit(UNet(width=32, depth=1).init)(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))['params']
  # N(0, sqrt(2 / N)): N = 9 * channels for a 3x3 convolution, channels for a 2x2 up-convolution; 2 % of sampling noise.
  assert float(params['bottom_2']['conv']['kernel'].std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
  assert float(params['up0_upconv']['kernel'].std()) == pytest.approx((2 / 64) ** 0.5, rel=0.03)
  assert not params['bottom_2']['conv']['bias'].any()


@pytest.mark.parametrize(('options', 'size', 'message'), [
    ({}, (100, 128), r'100 x 128 does not fit depth=4, .* the nearest that does is 96 x 128'),
    ({'stem_stride': 4}, (96, 128), r'the nearest that does is 64 x 128'),
    ({'padding': 'valid'}, (570, 100), r'the nearest that does is 572 x 188'),
    ({'padding': 'full'}, (16, 16), "unknown padding 'full'; give same or valid"),
    ({'mirror': True}, (16, 16), "mirror=True extends the input of padding='valid'"),
    ({'stem_stride': 3}, (48, 48), 'stem_stride is 1, or 2 or 4'),
    ({'stem_stride': 2, 'padding': 'valid'}, (572, 572), "not 2 with 'valid'")])
def test_what_does_not_fit_is_answered_in_one_line(options, size, message):
  with pytest.raises(ValueError, match=message):
    drawn.shapes(UNet(**options), 1, *size, 3)


def test_nearest_size_is_a_size_that_the_model_accepts_for_every_depth():
  for depth, side in ((1, 1), (1, 31), (2, 50), (3, 101), (4, 300)):
    near = nearest_size(side, depth=depth, padding='valid')
    output = drawn.shapes(UNet(width=1, depth=depth, padding='valid'), 1, near, near, 3)[0].shape[1]
    assert output == near - 12 * 2 ** depth + 8 >= 1
    assert nearest_size(side, depth=depth, padding='valid', at_least=True) >= side
  # Nothing smaller works: two pixels less a pool, and the way up would use the map up.
  assert nearest_size(1, depth=1, padding='valid') - 16 == 2
