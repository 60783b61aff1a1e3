"""LeNet-5, then and now."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import drawn
from vision_jax.models.classification import lenet


def parameters(model, *size: int) -> dict[str, int]:
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(size))['params']
  return {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()}


def test_parameters_of_every_layer_are_those_of_1998():
  assert parameters(lenet.lenet5_original(), 1, 32, 32, 3) == {
      'c1': 156, 's2': 12, 'c3': 1516, 's4': 32, 'c5': 48_120, 'f6': 10_164}


def test_the_dense_variant_has_the_parameters_that_are_taught():
  assert parameters(lenet.lenet5(), 1, 28, 28, 1) == {
      'c1': 156, 'c3': 2416, 'c5': 48_120, 'f6': 10_164, 'output': 850}


@pytest.mark.parametrize('make', [lenet.lenet5, lenet.lenet5_original])
def test_colour_adds_300_parameters_to_the_first_layer_only(make):
  grey, colour = (parameters(make(grey=flag), 1, 32, 32, 3) for flag in (True, False))
  assert colour.pop('c1') - grey.pop('c1') == 300 and colour == grey


def test_grey_is_the_mean_of_the_channels():
  x = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
  model = lenet.lenet5()
  variables, apply = drawn.variables(model, x), jax.jit(model.apply)
  # The mean of three equal numbers may differ from them in the last bit.
  np.testing.assert_allclose(apply(variables, x), apply(variables, x.mean(-1, keepdims=True)), atol=1e-5)


def test_sparse_layer_equals_separate_convolutions_of_the_maps_in_the_table():
  layer = lenet.SparseConv(lenet.C3_TABLE, 5)
  x = np.random.default_rng(0).standard_normal((1, 6, 7, 6)).astype(np.float32)
  params = layer.init(jax.random.key(0), x)['params']
  params['bias'] = jnp.arange(16.0)
  found = np.asarray(layer.apply({'params': params}, x))
  start = 0
  for k, row in enumerate(lenet.C3_TABLE):
    weights = np.asarray(params['kernel'])[:, :, start:start + len(row)]
    start += len(row)
    for i, j in np.ndindex(2, 3):
      truth = (x[0, i:i + 5, j:j + 5][..., list(row)] * weights).sum() + k
      np.testing.assert_allclose(found[0, i, j, k], truth, atol=2e-5)  # at most 150 products
  assert start == params['kernel'].shape[-1] == 60


def test_every_map_of_c3_sees_another_set_and_every_map_of_s2_is_seen_ten_times():
  assert len(set(lenet.C3_TABLE)) == 16
  assert np.bincount(np.concatenate([np.array(row) for row in lenet.C3_TABLE])).tolist() == [10] * 6


def test_scaled_tanh_maps_one_to_one():
  np.testing.assert_allclose(lenet.scaled_tanh(jnp.array([-1.0, 0.0, 1.0])), [-1, 0, 1], atol=1e-4)


def test_a_code_is_its_own_nearest_code():
  codes = lenet.digit_codes()
  assert codes.shape == (10, 84) and set(np.unique(codes)) == {-1.0, 1.0}
  distances = np.asarray(lenet.squared_distances(codes, codes))
  np.testing.assert_array_equal(np.diag(distances), 0)
  # Flipping fewer than half as many pixels as tell the nearest two apart cannot change the answer.
  assert distances[~np.eye(10, dtype=bool)].min() >= 4 * 5


@pytest.mark.parametrize('make', [lenet.lenet5, lenet.lenet5_original])
@pytest.mark.parametrize('size', [(28, 28), (32, 32), (32, 48)])
def test_allowed_sizes_give_logits_and_features(make, size):
  for classes, expected in ((10, 10), (0, 84)):
    model = make(num_classes=classes)
    y = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, *size, 3)))[0]
    assert y.shape == (2, expected) and y.dtype == jnp.float32


@pytest.mark.parametrize(('size', 'nearest'), [((8, 8), '32 x 32'), ((30, 33), '32 x 32'), ((28, 47), '32 x 48')])
def test_other_sizes_are_refused_with_the_nearest(size, nearest):
  with pytest.raises(ValueError, match=f'not {size[0]} x {size[1]}; the nearest is {nearest}'):
    lenet.lenet5().init(jax.random.key(0), jnp.zeros((1, *size, 3)))


def test_the_original_refuses_classes_without_a_code():
  with pytest.raises(ValueError, match='fixed codes for 10 classes, not 26; use lenet5'):
    lenet.lenet5_original(num_classes=26).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  with pytest.raises(ValueError, match="unknown variant 'new'; known: modern, original"):
    lenet.LeNet5('new').init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
