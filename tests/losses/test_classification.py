"""Cross-entropies against loops, and at the ends of what float32 holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from vision_jax import losses


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_softmax_cross_entropy_agrees_with_the_loop(smoothing):
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(size=(3, 4, 5)).astype(np.float32) * 4, rng.integers(0, 5, (3, 4))
  found = losses.softmax_cross_entropy(logits, labels, label_smoothing=smoothing)
  assert found.shape == (3, 4) and found.dtype == jnp.float32
  for place in np.ndindex(labels.shape):
    expected = oracles.softmax_cross_entropy(logits[place], labels[place], smoothing)
    np.testing.assert_allclose(found[place], expected, atol=5e-6)  # float32, values up to 20


def test_sigmoid_cross_entropy_agrees_with_the_loop():
  rng = np.random.default_rng(1)
  logits, targets = rng.normal(size=40).astype(np.float32) * 8, np.tile([0, 1, 0.3, 0.95], 10).astype(np.float32)
  expected = [oracles.binary_cross_entropy(float(x), float(t)) for x, t in zip(logits, targets)]
  np.testing.assert_allclose(losses.sigmoid_cross_entropy(logits, targets), expected, rtol=1e-5)


def test_extreme_logits_and_labels_give_finite_values_and_gradients():
  logits = jnp.array([[1e9, -1e9], [-1e9, 1e9], [0.0, 0.0], [1e30, 1e30]])
  soft = lambda x: losses.softmax_cross_entropy(x, jnp.array([0, 1, 10**9, -7]), label_smoothing=0.1).sum()
  hard = lambda x: losses.sigmoid_cross_entropy(x, jnp.array([1.0, 0.0])).sum()
  for loss in (soft, hard):
    value, gradient = jax.value_and_grad(loss)(logits)
    assert np.isfinite(value) and np.isfinite(gradient).all()
  # Right by a billion: nothing to pay, nothing to learn.
  assert losses.softmax_cross_entropy(logits[:2], jnp.array([0, 1])).tolist() == [0, 0]
  assert losses.sigmoid_cross_entropy(logits[0], jnp.array([True, False])).tolist() == [0, 0]


def test_a_class_ruled_out_by_minus_infinity_costs_nothing():
  logits = jnp.array([0.0, 0.0, -jnp.inf])
  value, gradient = jax.value_and_grad(losses.softmax_cross_entropy)(logits, jnp.array(1))
  assert value == pytest.approx(np.log(2)) and gradient.tolist() == [0.5, -0.5, 0.0]


def test_half_precision_logits_are_summed_in_float32():
  logits = jnp.linspace(-3, 3, 7).astype(jnp.bfloat16)
  assert losses.softmax_cross_entropy(logits, jnp.array(2)).dtype == jnp.float32
  assert losses.sigmoid_cross_entropy(logits, logits > 0).dtype == jnp.float32


def test_misfits_are_refused_in_one_line():
  with pytest.raises(ValueError, match=r'logits \[3, 2\] and labels \[2\]'):
    losses.softmax_cross_entropy(jnp.zeros((3, 2)), jnp.zeros(2, int))
  with pytest.raises(ValueError, match='label_smoothing is 1.5'):
    losses.softmax_cross_entropy(jnp.zeros((3, 2)), jnp.zeros(3, int), label_smoothing=1.5)
