"""Multiply-adds counted from the jaxpr, beside loops that count each product."""

import itertools

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax.inspect import multiply_adds
from vision_jax.models.layers import Conv, ConvTranspose, SqueezeExcite, convolve


def products_of_a_convolution(size, channels, features, kernel, stride, padding, dilation, groups):
  """How often the innermost line of a convolution's loops runs."""
  count = 0
  places = [range(-padding, n + padding - dilation * (kernel - 1), stride) for n in size]
  for _ in itertools.product(*places, range(features), range(kernel), range(kernel), range(channels // groups)):
    count += 1
  return count


@pytest.mark.parametrize('stride, padding, dilation, groups', [(1, 0, 1, 1), (2, 1, 1, 1), (1, 2, 2, 1), (2, 1, 1, 4),
                                                               (1, 1, 1, 8)])
def test_a_convolution_counts_each_product_once(stride, padding, dilation, groups):
  x, kernel = jnp.zeros((1, 9, 6, 8)), jnp.zeros((3, 3, 8 // groups, 16))
  found = multiply_adds(convolve, x, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups)
  assert found == products_of_a_convolution((9, 6), 8, 16, 3, stride, padding, dilation, groups)


@pytest.mark.parametrize('layer', [ConvTranspose(5, 2, 2), ConvTranspose(5, 4, 2, padding=1),
                                   ConvTranspose(5, 3, 3, output_padding=1)])
def test_a_transposed_convolution_counts_the_products_that_are_not_with_inserted_zeros(layer):
  x = jnp.zeros((2, 6, 7, 4))
  variables = jax.eval_shape(layer.init, jax.random.key(0), x)
  assert multiply_adds(layer.apply, variables, x) == 2 * 6 * 7 * 4 * layer.kernel_size ** 2 * 5


def test_a_1x1_convolution_counts_like_the_matrix_product_that_it_is():
  x, kernel = jnp.zeros((2, 5, 7, 4)), jnp.zeros((1, 1, 4, 6))
  assert multiply_adds(convolve, x, kernel, stride=2) == 2 * 3 * 4 * 4 * 6


def test_a_batched_product_counts_its_batch():
  q, k = jnp.zeros((3, 5, 2, 8)), jnp.zeros((3, 7, 2, 8))
  assert multiply_adds(lambda q, k: jnp.einsum('bqhd,bthd->bhqt', q, k), q, k) == 3 * 2 * 5 * 7 * 8


def test_squeeze_excite_counts_two_products_an_image():
  layer, x = SqueezeExcite(2), jnp.zeros((3, 5, 4, 8))
  assert multiply_adds(layer.apply, jax.eval_shape(layer.init, jax.random.key(0), x), x) == 3 * (8 * 2 + 2 * 8)


def test_loops_branches_and_wrappers_are_looked_into():
  a = jnp.zeros((4, 4))  # a product takes 64

  def square(x):
    return x @ x

  @jax.custom_vjp
  def custom(x):
    return x @ x

  custom.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x,))
  assert multiply_adds(jax.jit(square), a) == multiply_adds(jax.checkpoint(square), a) == 64
  assert multiply_adds(custom, a) == multiply_adds(nn.relu, a) + 64
  assert multiply_adds(lambda x: lax.scan(lambda c, _: (c @ c, None), x, None, length=5)[0], a) == 5 * 64
  assert multiply_adds(lambda x: lax.cond(x[0, 0] > 0, square, lambda x: x @ x @ x, x), a) == 2 * 64
  assert multiply_adds(lambda x: lax.while_loop(lambda c: c[0, 0] > 0, square, x), a) == 64  # of one round
  assert multiply_adds(jax.vmap(square), jnp.zeros((3, 4, 4))) == 3 * 64


def test_the_gradient_of_a_product_of_two_parameters_takes_two_more():
  a = jnp.zeros((4, 4))
  assert multiply_adds(lambda a, b: jax.vjp(jnp.matmul, a, b)[1](a @ b), a, a) == 3 * 64


def test_what_the_results_do_not_need_does_not_count():
  def function(x):
    unused = x @ x
    return x + 1, (unused * 2)[:0].sum() if x.shape[0] > 9 else None

  assert multiply_adds(function, jnp.zeros((4, 4))) == 0


def test_it_takes_shapes_for_arrays_and_options_by_keyword():
  layer = Conv(8, 3, padding=1)
  x = jax.ShapeDtypeStruct((1, 10 ** 5, 10 ** 5, 3), np.float32)  # 112 GiB
  variables = jax.eval_shape(layer.init, jax.random.key(0), x)
  assert multiply_adds(layer.apply, variables, x) == 10 ** 10 * 9 * 3 * 8
