"""Dropout and stochastic depth: what they keep, what they scale, and on what their noise depends."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax.models.noise import Dropout, StochasticDepth

pytestmark = pytest.mark.medium  # many small compilations: together more than the fast tests can spare

KEY = jax.random.key(3)


class Noisy(nn.Module):
  """Two dropouts and a stochastic depth, one after the other, in a submodule."""

  @nn.compact
  def __call__(self, x, *, train: bool = False):
    x = Dropout(0.2, name='first')(x, train=train)
    x = Dropout(0.2, name='second')(x, train=train)
    return StochasticDepth(0.5, name='branch')(x, train=train)


def run(layer, x, position=None, key=KEY):
  variables = {} if position is None else {'example': {'position': jnp.asarray(position)}}
  return np.asarray(layer.apply(variables, x, train=True, rngs={'dropout': key}))


def test_dropout_keeps_its_share_and_the_mean():
  y = run(Dropout(0.25), jnp.ones((20, 50, 40)))
  assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
  assert (y > 0).mean() == pytest.approx(0.75, abs=0.01)  # 40,000 draws: a standard deviation of 0.002
  assert (y[0] != y[1]).any()


def test_stochastic_depth_drops_whole_examples():
  y = run(StochasticDepth(0.25), jnp.ones((400, 3, 2)))
  assert (y == y[:, :1, :1]).all() and set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
  assert (y[:, 0, 0] > 0).mean() == pytest.approx(0.75, abs=0.1)  # 400 draws: 0.022


@pytest.mark.parametrize('layer', [Dropout(0.5), StochasticDepth(0.5)])
def test_without_training_or_rate_nothing_is_drawn(layer):
  x = jnp.arange(6.0).reshape(2, 3)
  np.testing.assert_array_equal(layer.apply({}, x, train=False), x)
  np.testing.assert_array_equal(type(layer)(0.0).apply({}, x, train=True), x)


def test_shares_of_a_batch_see_the_noise_of_the_whole():
  x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (6, 8)), jnp.float32)
  whole = run(Noisy(), x, np.arange(6))
  np.testing.assert_array_equal(run(Noisy(), x), whole)  # places are 0, 1, ... unless said
  np.testing.assert_array_equal(np.concatenate([run(Noisy(), x[:4], np.arange(4)), run(Noisy(), x[4:], [4, 5])]), whole)


def test_two_layers_and_two_keys_draw_different_noise():
  x = jnp.ones((4, 200))
  y = run(Noisy(), x)
  kept = y[(y > 0).any(1)]
  assert {0.0, np.float32(2 / 0.64)} == set(np.unique(kept.round(5)))
  assert 0.5 < (kept > 0).mean() < 0.75  # 0.64 where the two differ, 0.8 if the second repeated the first
  assert (run(Dropout(0.5), x) != run(Dropout(0.5), x, key=jax.random.key(4))).any()


def test_an_axis_that_is_not_the_batch_is_refused():
  with pytest.raises(ValueError, match=r'noise of shape \(8, 3\) for 4 examples; keep the batch as the first axis'):
    run(Dropout(0.5), jnp.ones((8, 3)), np.arange(4))


@pytest.mark.parametrize('rate', [1.0, -0.1])
@pytest.mark.parametrize('layer', [Dropout, StochasticDepth])
def test_a_rate_at_which_nothing_is_left_is_refused(layer, rate):
  with pytest.raises(ValueError, match=f'{layer.__name__}: the rate is {rate}; give 0 or more, and less than 1'):
    layer(rate).apply({}, jnp.ones((2, 3)), train=False)


def test_the_compute_dtype_is_kept():
  assert run(Dropout(0.5), jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.bfloat16
