"""GoogLeNet: the inception module beside slow NumPy, Table 1, auxiliary heads, the paper's branch."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from tests.models import drawn
from tests.models.test_layers import slow_convolution
from vision_jax import models
from vision_jax.models.classification.googlenet import GoogLeNet, Inception

pytestmark = pytest.mark.medium  # many small compilations


def parameters(**options) -> int:
  params = drawn.shapes(models.create('googlenet', **options), 1, 32, 32, 3)[1]['params']
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize('size', [3, 5])
def test_an_inception_module_equals_its_four_branches(size):
  x = np.random.default_rng(0).standard_normal((2, 4, 5, 6)).astype(np.float32)
  block = Inception((3, 2, 4, 2, 5, 3), kernel_size=size)
  variables = drawn.variables(block, x)

  def conv(x, name, pad=0):
    kernel = np.asarray(variables['params'][name]['conv']['kernel'])
    assert kernel.shape[:2] == (2 * pad + 1,) * 2
    y = slow_convolution(x, kernel, 1, ((pad, pad),) * 2, 1, 1)
    return np.maximum(oracles.batch_norm(y, variables, f'{name}/bn', 1e-3), 0)

  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
  pooled = np.max([padded[:, i:i + 4, j:j + 5] for i in range(3) for j in range(3)], 0)
  truth = np.concatenate([conv(x, 'branch1'), conv(conv(x, 'branch2_0'), 'branch2_1', 1),
                          conv(conv(x, 'branch3_0'), 'branch3_1', size // 2), conv(pooled, 'branch4_1')], -1)
  np.testing.assert_allclose(jax.jit(block.apply)(variables, x), truth, atol=1e-5)  # sums of at most 50 products


def test_features_have_the_shapes_of_table_1():
  maps, variables = drawn.shapes(models.create('googlenet', aux=True), 2, 224, 160, 3, method='features')
  assert {name: m.shape[1:] for name, m in maps.items()} == {
      'conv1': (112, 80, 64), 'conv3': (56, 40, 192), 'inception3b': (28, 20, 480), 'inception4e': (14, 10, 832),
      'inception5b': (7, 5, 1024)}
  assert not {'fc', 'aux1', 'aux2'} & set(variables['params'])


def test_auxiliary_heads_are_an_option_with_the_parameters_of_torchvision():
  assert parameters(aux=True) == 13_004_888
  assert parameters(aux=True, num_classes=0) == parameters(num_classes=0) == 6_624_904 - 1_025_000


def test_the_branch_of_the_paper_without_batchnorm_has_the_parameters_of_the_network_of_2014():
  # 6,998,552 in the model that Caffe published (bvlc_googlenet), and 13,378,280 with its auxiliary heads.
  assert parameters(branch='5x5', norm='none') == 6_998_552
  assert parameters(branch='5x5', norm='none', aux=True) == 13_378_280


def test_auxiliary_heads_stand_after_4a_and_4d_and_give_logits():
  model = models.create('googlenet', aux=True, num_classes=7)
  results, variables = drawn.shapes(model, 2, 40, 33, 3, method='with_auxiliaries')
  assert [(r.shape, r.dtype) for r in results] == [((2, 7), jnp.float32)] * 3
  channels = [variables['params'][head]['conv']['conv']['kernel'].shape[2] for head in ('aux1', 'aux2')]
  assert channels == [512, 528]
  assert jax.tree.structure(variables) == jax.tree.structure(drawn.shapes(model, 2, 40, 33, 3)[1])


def test_logits_alone_leave_the_auxiliary_heads_alone():
  model = models.create('googlenet', aux=True, num_classes=7)
  variables = drawn.shapes(model, 1, 15, 15, 3)[1]

  def run(variables, x):
    return model.apply(variables, x, train=True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(0)},
                       capture_intermediates=True)[1]

  assert 'aux1' not in jax.eval_shape(run, variables, jnp.zeros((2, 15, 15, 3)))['intermediates']


@pytest.mark.parametrize('options', [{}, {'aux': True, 'num_classes': 0}])
def test_a_model_without_auxiliary_heads_says_so(options):
  with pytest.raises(ValueError, match='has no auxiliary heads; make it with aux=True and num_classes above 0'):
    drawn.shapes(models.create('googlenet', **options), 1, 32, 32, 3, method='with_auxiliaries')


def test_transform_input_takes_images_as_other_models_do():
  image = np.random.default_rng(0).uniform(0, 1, (1, 16, 18, 3)).astype(np.float32)
  usual = (image - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
  models_ = [GoogLeNet((), num_classes=0, transform_input=flag) for flag in (True, False)]
  variables = drawn.variables(models_[0], image)
  found, truth = (jax.jit(model.apply)(variables, x.astype(np.float32)) for model, x in
                  zip(models_, (usual, (image - 0.5) / 0.5), strict=True))
  np.testing.assert_allclose(found, truth, rtol=1e-4, atol=1e-5)  # three convolutions in float32


def test_the_smallest_image_leaves_one_pixel_and_a_smaller_one_is_refused():
  model = models.create('googlenet')
  assert drawn.shapes(model, 1, 15, 15, 3, method='features')[0]['inception5b'].shape == (1, 1, 1, 1024)
  with pytest.raises(ValueError, match='GoogLeNet: images have at least 15 x 15 pixels, not 14 x 20; the nearest size '
                                       'is 15 x 20'):
    drawn.shapes(model, 1, 14, 20, 3)


def test_an_unknown_branch_is_refused():
  with pytest.raises(ValueError, match="GoogLeNet: unknown branch '7x7'; known: 3x3, 5x5"):
    drawn.shapes(models.create('googlenet', branch='7x7'), 1, 32, 32, 3)
