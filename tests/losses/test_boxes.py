"""Box losses are 1 less the similarity that their names say, smooth L1 is torch's, and training ends at the target."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from tests.golden import make_losses
from vision_jax import losses

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'losses.npz'

A = np.array([[0, 0, 4, 4], [0, 0, 4, 4], [1, 2, 9, 5], [3, 3, 3, 3]], np.float32)
B = np.array([[0, 0, 4, 4], [9, 9, 12, 10], [2, 0, 7, 7], [3, 3, 3, 3]], np.float32)


@pytest.mark.parametrize('name', ['iou', 'giou', 'diou', 'ciou'])
def test_box_losses_are_one_less_the_similarity(name):
  found = jax.jit(getattr(losses, f'{name}_loss'))(A, B)
  expected = [1 - oracles.iou_family(a, b)[name] for a, b in zip(A, B)]
  np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize('name', ['giou', 'diou', 'ciou'])
def test_descending_the_loss_brings_a_box_to_a_target_it_does_not_touch(name):
  loss, target = getattr(losses, f'{name}_loss'), jnp.array([20.0, 20, 30, 26])

  def step(box, rate):
    return box - rate * jnp.sign(jax.grad(loss)(box, target)), None

  rates = jnp.concatenate([jnp.full(200, 0.5), jnp.geomspace(0.5, 1e-3, 200)])
  box, _ = jax.lax.scan(step, jnp.array([0.0, 0, 4, 4]), rates)
  assert loss(box, target) < 0.02


@pytest.mark.parametrize('case, beta', list(enumerate(make_losses.BETAS)))
def test_smooth_l1_and_its_gradient_agree_with_torch(case, beta):
  _, _, predicted, target, _ = make_losses.draw()
  value, pull = jax.vjp(lambda *pair: losses.smooth_l1_loss(*pair, beta=beta), predicted, target)
  with np.load(GOLDEN) as golden:
    np.testing.assert_allclose(value, golden['smooth_l1'][case], rtol=1e-6)  # float32
    np.testing.assert_allclose(pull(jnp.ones_like(value)), golden['smooth_l1_gradient'][case], rtol=1e-6)


def test_l1_is_the_absolute_difference_and_smooth_l1_without_beta():
  distance = np.abs(A - B)
  assert losses.l1_loss(A, B).tolist() == losses.smooth_l1_loss(A, B, beta=0).tolist() == distance.tolist()
  assert losses.l1_loss(A.astype(int), B.astype(np.float16)).dtype == jnp.float32


@pytest.mark.parametrize('beta', [0, 1e-6, 1.0])
def test_l1_losses_are_finite_for_equal_and_for_far_numbers_and_rest_at_the_target(beta):
  predicted, target = jnp.array([3.0, 1e9, -1e9, 0]), jnp.array([3.0, -1e9, 1e9, 1e-9])
  value, gradient = jax.value_and_grad(lambda x: losses.smooth_l1_loss(x, target, beta=beta).sum())(predicted)
  assert np.isfinite(value) and gradient[:3].tolist() == [0, 1, -1] and -1 <= gradient[3] < 0


def test_smooth_l1_gradients_agree_with_finite_differences_in_float64():
  predicted, target, direction = np.random.default_rng(0).normal(size=(3, 40)) * 2
  with jax.enable_x64(True):
    run = jax.jit(jax.value_and_grad(lambda x: losses.smooth_l1_loss(x, target, beta=0.7).sum()))
    gradient, slope = run(predicted)[1], oracles.slope(lambda x: run(x)[0], predicted, direction)
    assert gradient.dtype == np.float64
    assert gradient @ direction == pytest.approx(slope, rel=1e-7)  # a sum near 80: rounding of 1e-14 / 1e-6


def test_misfits_are_refused_in_one_line():
  with pytest.raises(ValueError, match=r'l1_loss: predicted \[4, 4\] and target \[4\]'):
    losses.l1_loss(A, B[0])
  with pytest.raises(ValueError, match=r'smooth_l1_loss: predicted \[4, 4\] and target \[3, 4\]'):
    losses.smooth_l1_loss(A, B[:3])
  with pytest.raises(ValueError, match='beta is -1'):
    losses.smooth_l1_loss(A, B, beta=-1)
