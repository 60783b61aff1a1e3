"""Inception v3: its modules beside slow NumPy, Table 1, the auxiliary head, sizes."""

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
from vision_jax.models.classification import inception

pytestmark = pytest.mark.medium  # many small compilations


def image(*shape: int) -> np.ndarray:
  return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


class Slow:
  """The convolutions of a module in float64, by name: with 'same' borders, or without any where it strides."""

  def __init__(self, block, x):
    self.variables = drawn.variables(block, x)

  def __call__(self, x, *names: str, stride: int = 1):
    for name in names:
      kernel = np.asarray(self.variables['params'][name]['conv']['kernel'])
      step = stride if name == names[-1] else 1
      pads = tuple((0, 0) if step > 1 else (size // 2, size // 2) for size in kernel.shape[:2])
      x = slow_convolution(x, kernel, step, pads, 1, 1)
      x = np.maximum(oracles.batch_norm(x, self.variables, f'{name}/bn', 1e-3), 0)
    return x


def windows(x, pad: int, stride: int) -> np.ndarray:
  """All 3x3 windows, `[9, B, h, w, C]`."""
  x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  height, width = x.shape[1] - 2, x.shape[2] - 2
  return np.stack([x[:, i:i + height:stride, j:j + width:stride] for i in range(3) for j in range(3)])


def module_a(conv, x):
  return [conv(x, 'branch1x1'), conv(x, 'branch5x5_1', 'branch5x5_2'),
          conv(x, 'branch3x3dbl_1', 'branch3x3dbl_2', 'branch3x3dbl_3'), conv(windows(x, 1, 1).mean(0), 'branch_pool')]


def module_b(conv, x):
  return [conv(x, 'branch3x3', stride=2), conv(x, 'branch3x3dbl_1', 'branch3x3dbl_2', 'branch3x3dbl_3', stride=2),
          windows(x, 0, 2).max(0)]


def module_c(conv, x):
  return [conv(x, 'branch1x1'), conv(x, *(f'branch7x7_{i}' for i in range(1, 4))),
          conv(x, *(f'branch7x7dbl_{i}' for i in range(1, 6))), conv(windows(x, 1, 1).mean(0), 'branch_pool')]


def module_d(conv, x):
  return [conv(x, 'branch3x3_1', 'branch3x3_2', stride=2),
          conv(x, *(f'branch7x7x3_{i}' for i in range(1, 5)), stride=2), windows(x, 0, 2).max(0)]


def module_e(conv, x):
  return [conv(x, 'branch1x1'), conv(x, 'branch3x3_1', 'branch3x3_2a'), conv(x, 'branch3x3_1', 'branch3x3_2b'),
          conv(x, 'branch3x3dbl_1', 'branch3x3dbl_2', 'branch3x3dbl_3a'),
          conv(x, 'branch3x3dbl_1', 'branch3x3dbl_2', 'branch3x3dbl_3b'), conv(windows(x, 1, 1).mean(0), 'branch_pool')]


@pytest.mark.medium
@pytest.mark.parametrize(('block', 'branches', 'kernels'), [
    (inception.InceptionA(5), module_a, {'branch5x5_2': (5, 5), 'branch3x3dbl_2': (3, 3), 'branch3x3dbl_3': (3, 3)}),
    (inception.InceptionB(), module_b, {'branch3x3': (3, 3), 'branch3x3dbl_2': (3, 3), 'branch3x3dbl_3': (3, 3)}),
    (inception.InceptionC(3), module_c, {
        'branch7x7_2': (1, 7), 'branch7x7_3': (7, 1), 'branch7x7dbl_2': (7, 1), 'branch7x7dbl_3': (1, 7),
        'branch7x7dbl_4': (7, 1), 'branch7x7dbl_5': (1, 7)}),
    (inception.InceptionD(), module_d, {
        'branch3x3_2': (3, 3), 'branch7x7x3_2': (1, 7), 'branch7x7x3_3': (7, 1), 'branch7x7x3_4': (3, 3)}),
    (inception.InceptionE(), module_e, {
        'branch3x3_2a': (1, 3), 'branch3x3_2b': (3, 1), 'branch3x3dbl_2': (3, 3), 'branch3x3dbl_3a': (1, 3),
        'branch3x3dbl_3b': (3, 1)})])
def test_each_module_equals_its_figure(block, branches, kernels):
  x = image(1, 6, 5, 2) if branches in (module_b, module_d) else image(1, 4, 3, 2)
  conv = Slow(block, x)
  sizes = {name: layer['conv']['kernel'].shape[:2] for name, layer in conv.variables['params'].items()}
  assert {name: size for name, size in sizes.items() if size != (1, 1)} == kernels
  found = jax.jit(block.apply)(conv.variables, x)
  # Up to five layers of sums of up to 4,032 products, each of about the size of its largest.
  np.testing.assert_allclose(found, np.concatenate(branches(conv, x), -1), rtol=1e-4, atol=1e-4)


def test_features_have_the_shapes_of_table_1():
  maps, variables = drawn.shapes(models.create('inception_v3'), 2, 299, 171, 3, method='features')
  assert {name: m.shape[1:] for name, m in maps.items()} == {
      'Conv2d_2b_3x3': (147, 83, 64), 'Conv2d_4a_3x3': (71, 39, 192), 'Mixed_5d': (35, 19, 288),
      'Mixed_6e': (17, 9, 768), 'Mixed_7c': (8, 4, 2048)}
  assert not {'fc', 'AuxLogits'} & set(variables['params'])


@pytest.mark.parametrize(('options', 'parameters'), [
    ({}, 27_161_264), ({'aux': False}, 23_834_568), ({'num_classes': 0}, 23_834_568 - 2_049_000)])
def test_the_auxiliary_head_is_there_unless_switched_off(options, parameters):
  params = drawn.shapes(models.create('inception_v3', **options), 1, 75, 75, 3)[1]['params']
  assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == parameters


def test_a_small_image_and_a_large_one_make_the_same_variables():
  model = models.create('inception_v3', num_classes=7)
  small = drawn.shapes(model, 1, 75, 80, 3)[1]
  results, large = drawn.shapes(model, 2, 299, 320, 3, method='with_auxiliaries')
  assert small == large
  assert [(r.shape, r.dtype) for r in results] == [((2, 7), jnp.float32)] * 2


def test_what_the_auxiliary_head_cannot_do_is_said():
  with pytest.raises(ValueError, match=r'InceptionV3 with its auxiliary head \(aux=False leaves it out\): images '
                                       'have at least 299 x 299 pixels, not 298 x 299; the nearest size is 299 x 299'):
    drawn.shapes(models.create('inception_v3'), 1, 298, 299, 3, method='with_auxiliaries')
  with pytest.raises(ValueError, match='has no auxiliary head; make it with aux=True and num_classes above 0'):
    drawn.shapes(models.create('inception_v3', aux=False), 1, 299, 299, 3, method='with_auxiliaries')


def test_the_smallest_image_leaves_one_pixel_and_a_smaller_one_is_refused():
  model = models.create('inception_v3')
  assert drawn.shapes(model, 1, 75, 75, 3, method='features')[0]['Mixed_7c'].shape == (1, 1, 1, 2048)
  with pytest.raises(ValueError, match='InceptionV3: images have at least 75 x 75 pixels, not 90 x 74; the nearest '
                                       'size is 90 x 75'):
    drawn.shapes(model, 1, 90, 74, 3)
