"""Box losses are 1 less the similarity that their names say, and training with them ends at the target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from vision_jax import losses

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
