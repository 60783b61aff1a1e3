"""The forms and gradients that are fast on a CPU, against XLA's own operations."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax.models import layers, windows

pytestmark = pytest.mark.medium  # many small compilations: together more than the fast tests can spare

ONE, TWO = (1, 1), (2, 2)
# Kernel, stride, pads, dilation: odd and even sizes, borders of different widths, more and fewer taps than
# `windows.UNROLLED`, pixels that no window meets.
CASES = [((3, 3), ONE, (ONE, ONE), ONE), ((3, 3), TWO, (ONE, ONE), ONE), ((7, 5), (2, 3), ((3, 1), (0, 2)), ONE),
         ((3, 2), ONE, ((0, 3), (2, 0)), (2, 3)), ((3, 3), TWO, ((0, 1), (0, 1)), (2, 1)),
         ((1, 3), ONE, ((0, 0), (0, 0)), ONE), ((2, 2), (3, 3), ((0, 0), (0, 0)), ONE)]
QUICK = functools.partial(jax.jit, static_argnums=0, compiler_options={'xla_backend_optimization_level': 0})


def normal(key: int, *shape: int) -> jax.Array:
  return jax.random.normal(jax.random.key(key), shape)


@pytest.fixture
def worthwhile(monkeypatch):
  """Small maps are treated as large ones are."""
  monkeypatch.setattr(windows, 'WORTHWHILE', 0)
  monkeypatch.setattr(windows, 'ROWS', 10)


@pytest.mark.parametrize('depthwise', [False, True])
@pytest.mark.parametrize(('size', 'stride', 'pads', 'dilation'), [
    pytest.param(*case, marks=[pytest.mark.slow] * (i > 3)) for i, case in enumerate(CASES)])
def test_a_convolution_and_its_gradients_are_those_of_xla(size, stride, pads, dilation, depthwise, worthwhile):
  x, kernel = normal(0, 6, 13, 11, 4), normal(1, *size, *((1, 4) if depthwise else (4, 6)))
  options = {'stride': stride, 'pads': pads, 'dilation': dilation, 'groups': 4 if depthwise else 1}

  def both(function):
    y, pull = jax.vjp(functools.partial(function, **options), x, kernel)
    return y, *pull(normal(2, *y.shape))

  for found, truth in zip(QUICK(both)(windows.convolution), QUICK(both)(windows._xla), strict=True):
    np.testing.assert_allclose(found, truth, rtol=1e-5, atol=1e-4)  # sums of up to 858 products of unit normals


@pytest.mark.parametrize(('size', 'stride', 'pads', 'dilation'), [case for case in CASES if case[2][0][1] < 3])
def test_the_gradient_of_a_maximum_goes_to_the_first_of_equal_ones_as_in_xla(size, stride, pads, dilation, worthwhile):
  x = jnp.round(2 * normal(0, 2, 13, 11, 3))  # whole numbers, so that most windows have several largest ones

  def both(function):
    y, pull = jax.vjp(lambda x: function(x, size, stride, pads), x)
    return y, *pull(normal(1, *y.shape))

  for found, truth in zip(QUICK(both)(windows.max_pool), QUICK(both)(windows._xla_max), strict=True):
    np.testing.assert_allclose(found, truth, atol=1e-5)  # sums of up to nine normals


def test_a_dense_layer_is_that_of_flax(worthwhile):
  x = normal(0, 3, 7, 5)
  ours, theirs = layers.Dense(4), nn.Dense(4)
  variables = theirs.init(jax.random.key(1), x)
  assert jax.tree.map(jnp.shape, ours.init(jax.random.key(1), x)) == jax.tree.map(jnp.shape, variables)
  found, truth = (jax.grad(lambda v, m=m: (m.apply(v, x) ** 2).sum())(variables) for m in (ours, theirs))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), found, truth)  # sums of 21 products


@pytest.mark.parametrize(('channels', 'features'), [(3, 5), (5, 3)])
def test_a_product_of_many_pixels_in_parts_has_the_gradients_of_one_product(channels, features, worthwhile):
  x, kernel, g = normal(0, 3, 7, 5, channels), normal(1, channels, features), normal(2, 3, 7, 5, features)
  y, pull = jax.vjp(windows.pixels, x, kernel)
  np.testing.assert_allclose(y, np.einsum('bhwc,cf->bhwf', x, kernel), atol=1e-5)  # sums of five products
  for found, truth in zip(pull(g), (np.einsum('bhwf,cf->bhwc', g, kernel), np.einsum('bhwc,bhwf->cf', x, g)),
                          strict=True):
    np.testing.assert_allclose(found, truth, atol=1e-4)  # sums of up to 105


@pytest.mark.parametrize('groups', [1, 4])
def test_a_convolution_can_be_differentiated_twice(groups, worthwhile):
  x, kernel = normal(0, 2, 5, 4, 4), normal(1, 3, 3, 4 // groups, 4)

  def second(function, outer):
    def total(x):
      return (function(x, kernel, stride=TWO, pads=(ONE, ONE), dilation=ONE, groups=groups) ** 3).sum()
    return jax.jit(lambda x: outer(jax.grad(total), x))(x)

  for outer in (lambda f, x: jax.jvp(f, (x,), (x,))[1], lambda f, x: jax.grad(lambda x: (f(x) * x).sum())(x)):
    # Second derivatives of cubes of sums of 36 products: up to thousands.
    np.testing.assert_allclose(second(windows.convolution, outer), second(windows._xla, outer), rtol=1e-4, atol=1e-2)


def test_what_a_map_is_computed_by_follows_the_device_that_the_program_is_lowered_for(worthwhile):
  x, kernel = normal(0, 2, 6, 6, 4), normal(1, 3, 3, 1, 4)
  step = jax.jit(jax.grad(lambda x, kernel: layers.convolve(x, kernel, padding=1, groups=4).sum(), argnums=(0, 1)))
  count = {platform: step.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text().count('convolution')
           for platform in ('cpu', 'cuda', 'tpu')}
  assert count['cpu'] == 0 < min(count['cuda'], count['tpu'])


def test_small_maps_and_kernels_of_many_taps_are_xlas_everywhere():
  def text(pixels, taps):
    x, kernel = (jax.ShapeDtypeStruct(shape, 'float32') for shape in ((8, pixels, pixels, 32), (taps, taps, 32, 32)))
    return str(jax.make_jaxpr(layers.convolve)(x, kernel))

  assert ['custom_vjp' in text(*case) for case in ((64, 3), (4, 3), (64, 9))] == [True, False, False]


@pytest.mark.parametrize('train', [False, True])
def test_batch_norm_is_that_of_flax(train):
  x = 3 + 2 * normal(0, 4, 5, 3, 6)
  ours, theirs = layers.make_norm('batch', 6, train=train), nn.BatchNorm(use_running_average=not train, momentum=0.9,
                                                                          epsilon=1e-5)
  variables = {'params': {'scale': normal(1, 6), 'bias': normal(2, 6)},
               'batch_stats': {'mean': normal(3, 6), 'var': 1 + normal(4, 6) ** 2}}
  assert jax.tree.structure(ours.init(jax.random.key(0), x)) == jax.tree.structure(variables)

  def both(module):
    def total(params, x):
      y, state = module.apply({**variables, 'params': params}, x, mutable=['batch_stats'])
      return (y * normal(5, *y.shape)).sum(), (y, state)
    return jax.grad(total, argnums=(0, 1), has_aux=True)(variables['params'], x)

  for found, truth in zip(jax.tree.leaves(both(ours)), jax.tree.leaves(both(theirs)), strict=True):
    np.testing.assert_allclose(found, truth, rtol=1e-5, atol=1e-4)  # sums of 60 products of numbers up to ten
