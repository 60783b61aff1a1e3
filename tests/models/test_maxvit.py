"""MaxViT: what attends to what, the convolution's shortcut, maps and sizes."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from tests.models import drawn
from vision_jax import models
from vision_jax.models.classification.maxvit import MaxViT, MBConv, PartitionAttention, RelativeAttention

pytestmark = pytest.mark.medium  # many small compilations

TINY = functools.partial(MaxViT, 4, (4, 8), (1, 2), 4, partition_size=2, num_classes=3)
RNG = np.random.default_rng(3)


@functools.cache
def attention(kind: str):
  """Attention within 2 x 2 pixels on one image of 4 x 6, with the same variables for both kinds."""
  layer = PartitionAttention(kind, 2, head_dim=4)
  return jax.jit(functools.partial(layer.apply, drawn.variables(layer, np.zeros((1, 4, 6, 4), np.float32))))


@pytest.mark.medium
@pytest.mark.parametrize('kind', ['window', 'grid'])
def test_a_pixel_reaches_exactly_its_window_or_its_grid(kind):
  run, x = attention(kind), RNG.standard_normal((1, 4, 6, 4)).astype(np.float32)
  y = run(x)
  for place in [(0, 0), (1, 4), (3, 5)]:
    changed = x.copy()
    changed[0][place] += RNG.standard_normal(4)
    reached = np.zeros((4, 6), bool)
    if kind == 'window':  # 2 x 2 pixels side by side
      reached[place[0] // 2 * 2:place[0] // 2 * 2 + 2, place[1] // 2 * 2:place[1] // 2 * 2 + 2] = True
    else:  # 2 x 2 pixels, two rows and three columns apart
      reached[place[0] % 2::2, place[1] % 3::3] = True
    assert reached.sum() == 4
    np.testing.assert_array_equal((np.abs(run(changed) - y)[0] > 1e-6).any(-1), reached)


@pytest.mark.medium
def test_a_grid_is_a_window_of_pixels_that_stand_apart():
  x = RNG.standard_normal((1, 4, 6, 4)).astype(np.float32)
  rows, columns = [0, 2, 1, 3], [0, 3, 1, 4, 2, 5]  # brings the pixels of every grid side by side
  found = attention('grid')(x)[:, rows][:, :, columns]
  np.testing.assert_allclose(found, attention('window')(x[:, rows][:, :, columns]), atol=1e-5)


def test_attention_of_a_square_equals_a_slow_one():
  layer, x = RelativeAttention(head_dim=3, side=2), RNG.standard_normal((1, 1, 4, 6)).astype(np.float32)
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), drawn.variables(layer, x)['params'])
  q, k, v = np.split(x[0, 0] @ params['to_qkv']['kernel'] + params['to_qkv']['bias'], 3, axis=-1)
  out = np.zeros((4, 6))
  for i, head in np.ndindex(4, 2):
    part = slice(3 * head, 3 * head + 3)
    rows = [(i // 2 - j // 2 + 1) * 3 + i % 2 - j % 2 + 1 for j in range(4)]
    # Divided by the root of all channels.
    weights = np.exp(k[:, part] @ q[i, part] / np.sqrt(6) + params['relative_position_bias_table'][rows, head])
    out[i, part] = weights / weights.sum() @ v[:, part]
  np.testing.assert_allclose(jax.jit(layer.apply)({'params': params}, x)[0, 0], out @ params['merge']['kernel']
                             + params['merge']['bias'], atol=1e-5)


@pytest.mark.parametrize(('stride', 'channels', 'shortcut'), [(2, 8, {'proj_1'}), (1, 4, {'proj_0'}), (1, 8, set())])
def test_the_shortcut_is_projected_where_the_shape_changes(stride, channels, shortcut):
  y, variables = drawn.shapes(MBConv(8, stride), 1, 6, 4, channels)
  assert y.shape == (1, 6 // stride, 4 // stride, 8)
  assert {name for name in variables['params'] if name.startswith('proj')} == shortcut


def test_features_have_the_strides_and_channels_of_their_block():
  maps = drawn.shapes(models.create('maxvit_t'), 2, 224, 448, 3, method='features')[0]
  assert {k: m.shape for k, m in maps.items()} == {'stem': (2, 112, 224, 64)} | {
      f'blocks_{i}': (2, 56 // 2 ** i, 112 // 2 ** i, 64 * 2 ** i) for i in range(4)}


def test_no_classes_gives_the_mean_of_the_last_map_and_no_classifier():
  features, variables = drawn.shapes(TINY(num_classes=0), 2, 16, 32, 3)
  assert features.shape == (2, 8)
  backbone = drawn.shapes(TINY(), 2, 16, 32, 3, method='features')[1]
  assert jax.tree.structure(variables) == jax.tree.structure(backbone)


def test_another_partition_fits_another_size():
  assert drawn.shapes(TINY(partition_size=3), 1, 24, 48, 3)[0].shape == (1, 3)


def test_a_size_that_does_not_fall_into_windows_is_refused():
  with pytest.raises(ValueError, match='multiples of 224 for a partition_size of 7, not 256 x 400; the nearest size is '
                                       '224 x 448'):
    drawn.shapes(models.create('maxvit_t'), 1, 256, 400, 3)
  with pytest.raises(ValueError, match='multiples of 16 .*, not 8 x 32; the nearest size is 16 x 32'):
    drawn.shapes(TINY(), 1, 8, 32, 3)


def test_unknown_kinds_and_heads_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match="unknown kind 'axial'; known: window, grid"):
    drawn.shapes(PartitionAttention('axial', 2, 4), 1, 4, 4, 8)
  with pytest.raises(ValueError, match='heads of 3 must divide 8 channels'):
    drawn.shapes(RelativeAttention(3, 2), 1, 1, 4, 8)
