"""Cosine and Euclidean distance against NumPy in float64, precise for near twins, and finite at zero."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax import ops

FUNCTIONS = {'cosine': ops.pairwise_cosine, 'euclidean': ops.pairwise_euclidean,
             'squared': functools.partial(ops.pairwise_euclidean, squared=True)}


@functools.cache
def values_and_gradients(name):
  """Values, and the gradients of their sum over the pairs that are counted."""

  def total(a, b, counted):
    values = FUNCTIONS[name](a, b)
    return jnp.sum(jnp.where(counted, values, 0)), values

  run = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))

  def both(a, b, counted=None):
    (_, values), gradients = run(a, b, np.ones((5, 4), bool) if counted is None else counted)
    return jax.device_get((values, gradients))

  return both


def some_vectors():
  random = np.random.RandomState(0)
  return random.standard_normal((5, 7)).astype(np.float32), random.standard_normal((4, 7)).astype(np.float32)


def by_loops(name, a, b):
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if name == 'cosine':
    return np.array([[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in b] for x in a])
  distance = np.array([[np.linalg.norm(x - y) for y in b] for x in a])
  return distance**2 if name == 'squared' else distance


@pytest.mark.parametrize('name', FUNCTIONS)
def test_every_pair_is_what_numpy_makes_of_it(name):
  a, b = some_vectors()
  values, _ = values_and_gradients(name)(a, b)
  assert values.dtype == np.float32
  np.testing.assert_allclose(values, by_loops(name, a, b), rtol=1e-6, atol=3e-7)  # float32


@pytest.mark.parametrize('name', FUNCTIONS)
def test_gradients_agree_with_finite_differences_in_float64(name):
  a, b = (x.astype(np.float64) for x in some_vectors())
  with jax.enable_x64(True):
    gradients = values_and_gradients(name)(a, b)[1]
  for gradient, which in zip(gradients, (0, 1)):
    assert gradient.dtype == np.float64
    for place in ((0, 0), (2, 3), (3, 6)):
      step = np.zeros_like((a, b)[which])
      step[place] = 1e-5
      up, down = (by_loops(name, *((a + s, b) if which == 0 else (a, b + s))).sum() for s in (step, -step))
      # Central differences: 1e-10 of the step squared, 1e-10 of rounding (1e-15 / 1e-5).
      assert gradient[place] == pytest.approx((up - down) / 2e-5, abs=1e-8)


def test_squared_distance_of_unit_vectors_is_two_less_two_cosines():
  a, b = map(jax.jit(ops.l2_normalize), some_vectors())
  np.testing.assert_allclose(np.linalg.norm(a, axis=-1), 1, rtol=1e-6)  # float32
  squared, cosine = (values_and_gradients(name)(a, b)[0] for name in ('squared', 'cosine'))
  np.testing.assert_allclose(squared, 2 - 2 * cosine, atol=1e-6)


@pytest.mark.parametrize('name', FUNCTIONS)
def test_swapping_the_sets_transposes_and_a_common_shift_leaves_distances(name):
  a, b = some_vectors()
  values, _ = values_and_gradients(name)(a, b)
  swapped = jax.jit(FUNCTIONS[name])(b, a)
  np.testing.assert_allclose(swapped.T, values, rtol=1e-6, atol=1e-7)  # float32, summed in another order
  if name != 'cosine':
    # 16 takes 4 bits of the coordinates: 1e-7 becomes 2e-6.
    np.testing.assert_allclose(values_and_gradients(name)(a + 16, b + 16)[0], values, rtol=1e-5)
  else:
    np.testing.assert_allclose(values_and_gradients(name)(a * 1e5, b / 1e5)[0], values, atol=1e-6)


def test_near_twins_have_a_precise_distance_and_twins_none_at_all():
  a, b = some_vectors()
  a = (a / np.linalg.norm(a, axis=1, keepdims=True)).astype(np.float32)
  for apart in (1e-2, 1e-4, 1e-6):
    near = (a[:4] + apart * b).astype(np.float32)
    values, _ = values_and_gradients('euclidean')(a, near)
    # float32; |a|^2 + |b|^2 - 2ab would be wrong in the first digit from 1e-3 on.
    np.testing.assert_allclose(values, by_loops('euclidean', a, near), rtol=1e-6)
  values, gradients = values_and_gradients('euclidean')(a, a[:4], np.eye(5, 4, dtype=bool))
  assert (np.diag(values) == 0).all() and not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize('name', FUNCTIONS)
def test_zero_huge_and_tiny_vectors_give_finite_values_and_gradients(name):
  a = np.zeros((5, 7), np.float32)
  a[1:] = [[1e-38] * 7, [1e-13] * 7, [3e38] * 7, [1] * 7]
  a[3, 0] = -np.inf
  values, gradients = values_and_gradients(name)(a, a[1:])
  assert all(np.isfinite(x).all() for x in (values, *gradients))
  if name == 'cosine':  # what has no length has no direction
    assert not values[:3].any() and not gradients[0][:3].any() and values[4, 3] == pytest.approx(1)


@pytest.mark.parametrize('name', FUNCTIONS)
def test_a_nan_stays_in_its_row_or_column(name):
  a, b = some_vectors()
  expected, _ = values_and_gradients(name)(a, b)
  a[2], b[1] = np.nan, np.nan
  values, _ = values_and_gradients(name)(a, b)
  rows, columns = np.arange(5) != 2, np.arange(4) != 1
  np.testing.assert_array_equal(values[rows][:, columns], expected[rows][:, columns])
  assert np.isnan(values[2]).all() and np.isnan(values[:, 1]).all()


def test_leading_axes_broadcast_and_empty_sets_give_empty_results():
  a, b = some_vectors()
  both = jax.jit(ops.pairwise_euclidean)(np.stack([a, 2 * a])[:, None], np.stack([b, -b, 3 * b]))
  assert both.shape == (2, 3, 5, 4)
  np.testing.assert_allclose(both[1, 2], by_loops('euclidean', 2 * a, 3 * b), rtol=1e-6)  # float32
  for function in FUNCTIONS.values():
    assert jax.eval_shape(function, a[:0], b).shape == (0, 4)


def test_distances_have_a_forward_derivative_too():
  a, b = some_vectors()
  forward = jax.jit(jax.jacfwd(lambda a: jnp.sum(ops.pairwise_euclidean(a, b))))(a)
  np.testing.assert_allclose(forward, values_and_gradients('euclidean')(a, b)[1][0], atol=1e-5)  # float32


def test_wrong_shapes_are_refused_in_one_line():
  with pytest.raises(ValueError, match=r'pairwise_cosine: got \[3\] and \[2, 3\]; give sets'):
    ops.pairwise_cosine(np.zeros(3), np.zeros((2, 3)))
  with pytest.raises(ValueError, match=r'pairwise_euclidean: got \[2, 4\] and \[2, 3\]'):
    ops.pairwise_euclidean(np.zeros((2, 4)), np.zeros((2, 3)))
  with pytest.raises(ValueError, match='l2_normalize: got a single number'):
    ops.l2_normalize(3.0)
