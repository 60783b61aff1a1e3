"""AlexNet: the paper's and the one of one GPU, response normalisation, sizes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import drawn
from vision_jax import models
from vision_jax.models.classification.alexnet import AlexNet, local_response_norm

pytestmark = pytest.mark.medium  # many small compilations

ROWS = ('alexnet', 'alexnet_original')


def kernels(name: str) -> list[tuple[int, ...]]:
  params = drawn.shapes(models.create(name), 1, 224, 224, 3)[1]['params']
  order = sorted(params, key=lambda layer: (layer.startswith('classifier'), int(layer.rpartition('_')[2])))
  return [next(leaf.shape for leaf_name, leaf in params[layer].items() if 'kernel' in leaf_name) for layer in order]


def test_the_original_has_the_kernels_of_section_3():
  # Two groups halve the channels that a kernel sees; the third convolution sees both halves.
  assert kernels('alexnet_original') == [
      (11, 11, 3, 96), (5, 5, 48, 256), (3, 3, 256, 384), (3, 3, 192, 384), (3, 3, 192, 256),
      (6, 6, 256, 4096), (4096, 4096), (4096, 1000)]


def test_one_gpu_has_the_kernels_of_torchvision():
  assert kernels('alexnet') == [
      (11, 11, 3, 64), (5, 5, 64, 192), (3, 3, 192, 384), (3, 3, 384, 256), (3, 3, 256, 256),
      (6, 6, 256, 4096), (4096, 4096), (4096, 1000)]


@pytest.mark.parametrize(('name', 'expected'), [
    ('alexnet', {'features_1': (55, 24, 64), 'features_4': (27, 11, 192), 'features_11': (13, 5, 256),
                 'features_12': (6, 2, 256)}),
    ('alexnet_original', {'features_2': (55, 24, 96), 'features_6': (27, 11, 256), 'features_13': (13, 5, 256),
                          'features_14': (6, 2, 256)})])
def test_features_are_the_last_map_of_every_stride(name, expected):
  maps, variables = drawn.shapes(models.create(name), 2, 224, 100, 3, method='features')
  assert {k: m.shape[1:] for k, m in maps.items()} == expected
  assert len(variables['params']) == 5 and all(layer.startswith('features') for layer in variables['params'])


@pytest.mark.parametrize('name', ROWS)
def test_sizes_from_63_pixels_on_give_logits_and_smaller_ones_are_refused(name):
  model = models.create(name, num_classes=7)
  assert drawn.shapes(model, 2, 63, 90, 3)[0].shape == (2, 7)
  with pytest.raises(ValueError, match='AlexNet: images have at least 63 x 63 pixels, not 80 x 62; the nearest size is '
                                       '80 x 63'):
    drawn.shapes(model, 1, 80, 62, 3)


@pytest.mark.parametrize('name', ROWS)
def test_no_classes_gives_the_last_hidden_layer(name):
  features, variables = drawn.shapes(models.create(name, num_classes=0), 2, 64, 64, 3)
  assert features.shape == (2, 4096) and features.dtype == jnp.float32
  assert 'classifier_6' not in variables['params']


def test_the_original_drops_what_leaves_a_hidden_layer_and_the_other_what_enters_it():
  x = jnp.zeros((2, 63, 63, 3))
  found = {}
  for name in ROWS:
    model = models.create(name, num_classes=0, hidden=64, dropout=0.75)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), drawn.shapes(model, 2, 63, 63, 3)[1])
    variables['params']['classifier_4']['bias'] += 1
    run = jax.jit(lambda v, x, model=model: model.apply(v, x, train=True, rngs={'dropout': jax.random.key(0)}))
    found[name] = set(np.unique(run(variables, x)).tolist())
  assert found == {'alexnet': {1.0}, 'alexnet_original': {0.0, 4.0}}


def test_the_original_starts_with_the_biases_of_section_5():
  model = AlexNet('original', hidden=8, num_classes=5)
  init = jax.jit(lambda: {k: v['bias'] for k, v in model.init(jax.random.key(0), jnp.zeros((1, 63, 63, 3)))[
      'params'].items()})
  assert {name: set(bias.tolist()) for name, bias in init().items()} == {
      'features_0': {0.0}, 'features_4': {1.0}, 'features_8': {0.0}, 'features_10': {1.0}, 'features_12': {1.0},
      'classifier_1': {1.0}, 'classifier_4': {1.0}, 'classifier_6': {0.0}}


@pytest.mark.parametrize(('channels', 'size'), [(7, 5), (3, 5), (6, 3), (4, 1)])
def test_response_normalisation_equals_the_formula_of_the_paper(channels, size):
  x = np.random.default_rng(0).standard_normal((2, 2, 3, channels)).astype(np.float32) * 3
  truth = np.zeros(x.shape)
  for i in range(channels):
    first, last = max(0, i - size // 2), min(channels - 1, i + size // 2)
    truth[..., i] = x[..., i] / (2 + 0.1 * (x[..., first:last + 1].astype(float) ** 2).sum(-1)) ** 0.75
  found = local_response_norm(x, size=size, alpha=0.1)
  np.testing.assert_allclose(found, truth, rtol=2e-6)  # a sum and a power in float32


def test_response_normalisation_of_an_even_size_is_refused():
  with pytest.raises(ValueError, match='local_response_norm: size must be odd, not 4; give 5'):
    local_response_norm(jnp.ones((1, 1, 1, 3)), size=4)


def test_an_unknown_variant_is_refused():
  with pytest.raises(ValueError, match="AlexNet: unknown variant 'two gpus'; known: one gpu, original"):
    drawn.shapes(AlexNet('two gpus'), 1, 64, 64, 3)
