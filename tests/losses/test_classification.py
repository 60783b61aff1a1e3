"""Cross-entropies and focal loss against loops and torchvision, and at the ends of what float32 holds."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from tests.golden import make_losses
from vision_jax import losses

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'losses.npz'
# Most of the cost here is compilation, and optimising takes most of that.
quick = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


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


@pytest.mark.parametrize('case', range(len(make_losses.FOCAL)))
def test_focal_loss_and_its_gradient_agree_with_torchvision(case):
  logits, targets, *_ = make_losses.draw()
  alpha, gamma = make_losses.FOCAL[case]
  loss = lambda x: losses.focal_loss(x, targets, alpha=alpha, gamma=gamma)
  value, gradient = quick(lambda x: (loss(x), jax.grad(lambda x: loss(x).sum())(x)))(logits)
  with np.load(GOLDEN) as golden:
    # float32, values up to 14. torchvision takes 1 - p_t as a difference of numbers near 1, which loses 6e-8 of it.
    np.testing.assert_allclose(value, golden['focal'][case], rtol=1e-6, atol=2e-6)
    np.testing.assert_allclose(gradient, golden['focal_gradient'][case], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize('alpha, gamma', [(0.25, 2.0), (None, 0.5), (0.9, 0)])
def test_focal_loss_agrees_with_the_loop_in_the_tails_too(alpha, gamma):
  logits = np.linspace(-40, 40, 33, dtype=np.float32).repeat(3)
  targets = np.tile([0, 1, 0.3], 33).astype(np.float32)
  expected = [oracles.focal_loss(float(x), float(t), alpha, gamma) for x, t in zip(logits, targets)]
  found = losses.focal_loss(logits, targets, alpha=alpha, gamma=gamma)
  np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-37)  # float32, and what it cannot hold


def test_focal_loss_without_weights_and_focus_is_the_cross_entropy():
  logits, targets = jnp.linspace(-9, 9, 13), jnp.arange(13) % 2 == 0
  plain = losses.focal_loss(logits, targets, alpha=None, gamma=0)
  assert plain.tolist() == losses.sigmoid_cross_entropy(logits, targets).tolist()
  assert losses.focal_loss(logits, targets, gamma=0).tolist() == (jnp.where(targets, 0.25, 0.75) * plain).tolist()


@pytest.mark.parametrize('gamma', [0, 0.5, 2.0])
def test_focal_loss_is_finite_with_its_gradients_however_sure_the_logits(gamma):
  logits, targets = jnp.array([1e4, -1e4, 1e9, -1e9, 80.0, 110.0, 0.0]), jnp.array([[1.0], [0.0], [0.5]])
  total = lambda x, t: losses.focal_loss(x, t, gamma=gamma).sum()
  value, gradients = quick(jax.value_and_grad(total, argnums=(0, 1)))(logits, targets)
  assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)


def test_focal_gradients_agree_with_finite_differences_in_float64():
  rng = np.random.default_rng(2)
  logits, direction, targets = rng.normal(size=(3, 50)) * [[4], [1], [1]]
  with jax.enable_x64(True):
    run = quick(jax.value_and_grad(lambda x: losses.focal_loss(x, targets > 0, gamma=0.5).sum()))
    gradient, slope = run(logits)[1], oracles.slope(lambda x: run(x)[0], logits, direction)
    assert gradient.dtype == np.float64
    assert gradient @ direction == pytest.approx(slope, rel=1e-7)  # a sum near 60: rounding of 1e-14 / 1e-6


def test_half_precision_logits_are_summed_in_float32():
  logits = jnp.linspace(-3, 3, 7).astype(jnp.bfloat16)
  assert losses.softmax_cross_entropy(logits, jnp.array(2)).dtype == jnp.float32
  assert losses.sigmoid_cross_entropy(logits, logits > 0).dtype == jnp.float32
  assert losses.focal_loss(logits, logits > 0).dtype == jnp.float32


def test_misfits_are_refused_in_one_line():
  with pytest.raises(ValueError, match=r'logits \[3, 2\] and labels \[2\]'):
    losses.softmax_cross_entropy(jnp.zeros((3, 2)), jnp.zeros(2, int))
  with pytest.raises(ValueError, match='label_smoothing is 1.5'):
    losses.softmax_cross_entropy(jnp.zeros((3, 2)), jnp.zeros(3, int), label_smoothing=1.5)
  with pytest.raises(ValueError, match=r'alpha is -1; .* or None'):
    losses.focal_loss(jnp.zeros(3), jnp.zeros(3), alpha=-1)
  with pytest.raises(ValueError, match=r'gamma is -0\.5'):
    losses.focal_loss(jnp.zeros(3), jnp.zeros(3), gamma=-0.5)
