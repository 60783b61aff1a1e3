"""Attention beside a slow one; windows and offsets beside loops; the MLP."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from tests.models import drawn
from vision_jax.models.attention import (
    Attention,
    Mlp,
    PackedProjection,
    merge_windows,
    partition_windows,
    position_bias,
    relative_position_index,
)

pytestmark = pytest.mark.medium  # many small compilations

RNG = np.random.default_rng(1)
QUERIES, KEYS, VALUES = (RNG.standard_normal((2, n, 8)).astype(np.float32) for n in (3, 5, 5))
VALID = np.array([[True, True, False, True, False], [False, True, False, False, False]])


def slow_attention(params, queries, keys, values, valid, heads=2):
  """Row by row and head by head, in float64."""
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  channels = queries.shape[-1]
  size = channels // heads
  q, k, v = (x @ params['in_proj']['kernel'][:, i * channels:(i + 1) * channels]
             + params['in_proj']['bias'][i * channels:(i + 1) * channels]
             for i, x in enumerate((queries, keys, values)))
  mixed = np.zeros(queries.shape)
  for b, row, head in np.ndindex(*queries.shape[:2], heads):
    part = slice(head * size, (head + 1) * size)
    chosen = np.flatnonzero(valid[b])
    weights = np.exp([q[b, row, part] @ k[b, t, part] / np.sqrt(size) for t in chosen])
    mixed[b, row, part] = sum(w * v[b, t, part] for w, t in zip(weights / weights.sum(), chosen, strict=True))
  return mixed @ params['out_proj']['kernel'] + params['out_proj']['bias']


@pytest.fixture(scope='module')
def params():
  return drawn.variables(Attention(2), QUERIES)['params']


@jax.jit
def attend_with_gradient(params, queries, keys, values, valid):
  return jax.value_and_grad(lambda *inputs: (lambda y: ((y ** 2).sum(), y))(
      Attention(2).apply({'params': inputs[0]}, *inputs[1:], key_valid=valid)), (0, 1, 2, 3), has_aux=True)(
          params, queries, keys, values)


def test_attention_equals_a_slow_one_on_three_inputs_with_invalid_keys(params):
  found = attend_with_gradient(params, QUERIES, KEYS, VALUES, VALID)[0][1]
  # Sums of eight products in float32.
  np.testing.assert_allclose(found, slow_attention(params, QUERIES, KEYS, VALUES, VALID), atol=1e-5)


def test_self_attention_is_attention_with_one_array_three_times(params):
  found = jax.jit(lambda x: Attention(2).apply({'params': params}, x))(KEYS)
  np.testing.assert_allclose(found, slow_attention(params, KEYS, KEYS, KEYS, np.ones_like(VALID)), atol=1e-5)


def test_keys_alone_are_also_the_values(params):
  found = jax.jit(lambda *x: Attention(2).apply({'params': params}, *x))(QUERIES, KEYS)
  np.testing.assert_allclose(found, slow_attention(params, QUERIES, KEYS, KEYS, np.ones_like(VALID)), atol=1e-5)


@pytest.mark.parametrize('junk', [np.nan, 1e9, np.inf])
def test_what_invalid_keys_hold_changes_neither_result_nor_gradient(params, junk):
  keys, values = (np.where(VALID[..., None], x, junk).astype(np.float32) for x in (KEYS, VALUES))
  jax.tree.map(np.testing.assert_array_equal, attend_with_gradient(params, QUERIES, keys, values, VALID),
               attend_with_gradient(params, QUERIES, KEYS, VALUES, VALID))


def test_a_row_without_a_valid_key_is_finite(params):
  valid = VALID & [[True], [False]]
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(
      attend_with_gradient(params, QUERIES, KEYS, VALUES, valid)))


def test_bfloat16_attention_is_near_and_its_parameters_stay_float32(params):
  y, variables = drawn.shapes(Attention(2, dtype='bfloat16'), 2, 3, 8)
  assert y.dtype == jnp.bfloat16 and {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  found = jax.jit(lambda *x: Attention(2, dtype='bfloat16').apply({'params': params}, *x))(QUERIES, KEYS, VALUES)
  truth = slow_attention(params, QUERIES, KEYS, VALUES, np.ones_like(VALID))
  # A few roundings to 8 bits (0.4 %).
  assert 0 < np.abs(np.asarray(found, np.float64) - truth).max() < 0.03 * np.abs(truth).max()


def test_heads_that_do_not_divide_the_channels_are_refused():
  with pytest.raises(ValueError, match='3 heads must divide 8 channels'):
    drawn.shapes(Attention(3), 1, 2, 8)


def test_without_its_bias_the_keys_projection_is_linear():
  layer, zeros = PackedProjection(key_bias=False), np.zeros((1, 1, 4), np.float32)
  params = {'kernel': np.ones((4, 12), np.float32), 'bias': np.arange(1, 13, dtype=np.float32)}
  q, k, v = jax.jit(layer.apply)({'params': params}, zeros, zeros, zeros)
  assert (q[0, 0].tolist(), k[0, 0].tolist(), v[0, 0].tolist()) == ([1, 2, 3, 4], [0, 0, 0, 0], [9, 10, 11, 12])


def test_mlp_equals_two_matrices_and_a_gelu_by_the_error_function():
  layer = Mlp(6)
  params = drawn.variables(layer, QUERIES)['params']
  hidden = QUERIES @ params['0']['kernel'] + params['0']['bias']
  hidden = hidden * (1 + scipy.special.erf(hidden / np.sqrt(2))) / 2
  np.testing.assert_allclose(jax.jit(layer.apply)({'params': params}, QUERIES), hidden @ params['3']['kernel']
                             + params['3']['bias'], atol=1e-5)


def test_windows_are_the_rectangles_of_the_map_row_by_row():
  x = RNG.standard_normal((2, 4, 9, 3)).astype(np.float32)
  expected = [x[:, i:i + 2, j:j + 3].reshape(2, 6, 3) for i in (0, 2) for j in (0, 3, 6)]
  windows = partition_windows(jnp.asarray(x), (2, 3))
  np.testing.assert_array_equal(windows, np.stack(expected, axis=1))
  np.testing.assert_array_equal(merge_windows(windows, (2, 3), (4, 9)), x)


@pytest.mark.parametrize('window', [(3, 3), (2, 4), (1, 1)])
def test_pairs_of_pixels_share_a_bias_exactly_if_they_share_an_offset(window):
  h, w = window
  pixels = list(np.ndindex(h, w))
  index = relative_position_index(window)
  for (i, (yi, xi)), (j, (yj, xj)) in itertools.product(enumerate(pixels), repeat=2):
    assert index[i, j] == (yi - yj + h - 1) * (2 * w - 1) + (xi - xj + w - 1)
  assert set(index.ravel()) == set(range((2 * h - 1) * (2 * w - 1)))
  table = RNG.standard_normal(((2 * h - 1) * (2 * w - 1), 2)).astype(np.float32)
  bias = position_bias(jnp.asarray(table), window)
  np.testing.assert_array_equal(bias[1], table[:, 1][index])
