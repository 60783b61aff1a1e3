"""MobileNet v1, v2, v3 and MNASNet: costs, names, features, options."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import drawn
from vision_jax import models
from vision_jax.models.classification import mnasnet
from vision_jax.models.classification.mobilenetv1 import conv_cost, separable_cost
from vision_jax.models.classification.mobilenetv3 import MobileNetV3, Row
from vision_jax.models.layers import convolve

pytestmark = pytest.mark.medium  # many small compilations

# (size, channels, features) of the 13 separable convolutions of Table 1 of arXiv 1704.04861.
SEPARABLE = [(112, 32, 64), (56, 64, 128), (56, 128, 128), (28, 128, 256), (28, 256, 256), (14, 256, 512),
             *[(14, 512, 512)] * 5, (7, 512, 1024), (7, 1024, 1024)]
# The maps of every network on 64 x 96 pixels: name, stride, channels.
MAPS = {
    'mobilenet_v1': [('blocks_0', 2, 64), ('blocks_1', 4, 128), ('blocks_2', 8, 256), ('blocks_3', 16, 512),
                     ('blocks_4', 32, 1024)],
    'mobilenet_v2': [('features_1', 2, 16), ('features_3', 4, 24), ('features_6', 8, 32), ('features_13', 16, 96),
                     ('features_18', 32, 1280)],
    'mobilenet_v3_large': [('features_1', 2, 16), ('features_3', 4, 24), ('features_6', 8, 40),
                           ('features_12', 16, 112), ('features_16', 32, 960)],
    'mobilenet_v3_small': [('features_0', 2, 16), ('features_1', 4, 16), ('features_3', 8, 24), ('features_8', 16, 48),
                           ('features_12', 32, 576)],
    'mnasnet1_0': [('layers_7', 2, 16), ('layers_8', 4, 24), ('layers_9', 8, 40), ('layers_11', 16, 96),
                   ('layers_16', 32, 1280)],
}


def count(tree) -> int:
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_separable_convolutions_cost_what_the_paper_says():
  # Section 3.1: with 3x3 kernels and many outputs between 8 and 9 times less; here with 256.
  assert round(separable_cost((7, 5), 64, 256) / conv_cost((7, 5), 64, 256), 3) == 0.115
  for size, channels, features, kernel_size in ((3, 4, 5, 3), ((2, 6), 8, 16, 5), (1, 3, 7, (1, 3))):
    ratio = separable_cost(size, channels, features, kernel_size=kernel_size) / conv_cost(
        size, channels, features, kernel_size=kernel_size)
    area = kernel_size ** 2 if isinstance(kernel_size, int) else math.prod(kernel_size)
    assert ratio == pytest.approx(1 / features + 1 / area, rel=1e-12)
  # Table 4: 569 million multiply-adds, and 4866 million with full convolutions (4867.3 by its own Table 1).
  rest = conv_cost(112, 3, 32) + 1024 * 1000
  assert round((rest + sum(separable_cost(*row) for row in SEPARABLE)) / 1e6) == 569
  assert (rest + sum(conv_cost(*row) for row in SEPARABLE)) / 1e6 == pytest.approx(4866, abs=2)


def test_convolution_cost_counts_every_product():
  # A convolution of ones without padding adds up as many ones as it multiplies.
  total = convolve(jnp.ones((1, 7, 8, 3)), jnp.ones((3, 3, 3, 4))).sum()
  assert conv_cost((5, 6), 3, 4) == int(total) == 3240


@pytest.mark.parametrize('name', MAPS)
def test_features_are_the_last_map_of_every_stride(name):
  assert drawn.maps(models.create(name), 2, 64, 96, 3) == [
      (key, (2, 64 // stride, 96 // stride, channels)) for key, stride, channels in MAPS[name]]


@pytest.mark.parametrize('name', MAPS)
def test_any_size_gives_logits_and_detectors_can_use_the_variables(name):
  logits, whole = drawn.shapes(models.create(name, num_classes=7), 2, 33, 57, 3)
  features, without = drawn.shapes(models.create(name, num_classes=0), 2, 1, 1, 3)
  backbone = drawn.shapes(models.create(name), 1, 32, 32, 3, method='features')[1]
  assert logits.shape == (2, 7) and features.shape == (2, MAPS[name][-1][2])
  whole['params'] = {key: leaf for key, leaf in whole['params'].items() if not key.startswith('classifier')}
  assert jax.tree.structure(whole) == jax.tree.structure(without) == jax.tree.structure(backbone)


def test_other_maps_are_had_by_name():
  # What LR-ASPP, Faster R-CNN and SSDLite of torchvision take from MobileNetV3.
  expected = [('features_4', (1, 8, 12, 40)), ('features_13', (1, 4, 6, 160)), ('features_13_block_0', (1, 4, 6, 672))]
  model = models.create('mobilenet_v3_large', dilated=True)
  assert drawn.maps(model, 1, 64, 96, 3, names=tuple(name for name, _ in expected)) == expected
  expected = [('features_14_conv_0', (1, 4, 6, 576)), ('features_17', (1, 2, 3, 320))]
  assert drawn.maps(models.create('mobilenet_v2'), 1, 64, 96, 3, names=tuple(name for name, _ in expected)) == expected
  with pytest.raises(ValueError, match="no feature map 'features_99'; there are features_0, "):
    drawn.maps(models.create('mobilenet_v2'), 1, 8, 8, 3, names=('features_99',))


# The numbers of torchvision 0.28.
@pytest.mark.parametrize(('name', 'options', 'parameters'), [
    ('mobilenet_v2', {'width_mult': 0.35}, 1_677_128), ('mobilenet_v2', {'width_mult': 1.4}, 6_108_776),
    ('mobilenet_v3_large', {'width_mult': 0.75}, 3_377_576), ('mobilenet_v3_large', {'reduced_tail': True}, 2_569_352),
    ('mobilenet_v3_small', {'width_mult': 0.5, 'reduced_tail': True, 'dilated': True}, 426_080)])
def test_options_change_the_parameters_as_in_torchvision(name, options, parameters):
  assert count(drawn.shapes(models.create(name, **options), 1, 32, 32, 3)[1]['params']) == parameters


def test_v1_has_the_parameters_of_its_paper_at_every_width():
  # Table 6 of arXiv 1704.04861.
  for width, millions in ((0.75, 2.6), (0.25, 0.5)):
    params = drawn.shapes(models.create('mobilenet_v1', width_mult=width), 1, 32, 32, 3)[1]['params']
    assert round(count(params) / 1e6, 1) == millions


def test_v1_bears_the_names_of_timm():
  params = drawn.shapes(models.create('mobilenet_v1'), 1, 32, 32, 3)[1]['params']
  assert set(params) == {'conv_stem', 'bn1', 'classifier', 'blocks_0_0', *(
      f'blocks_{stage}_{i}' for stage, blocks in enumerate((1, 2, 2, 6, 2)) for i in range(blocks))}
  assert {key: leaf.shape for part in ('conv_dw', 'conv_pw') for key, leaf in params['blocks_4_0'][part].items()} == {
      'kernel': (1, 1, 512, 1024)}
  assert params['blocks_4_0']['conv_dw']['kernel'].shape == (3, 3, 1, 512)


def depthwise_plan(model) -> list[tuple[int, int]]:
  """(stride, dilation) of each depthwise convolution."""
  jaxpr = jax.make_jaxpr(lambda x: model.init_with_output(jax.random.key(0), x, method='features')[0])(
      jnp.zeros((1, 32, 32, 3)))
  return [(e.params['window_strides'][0], e.params['rhs_dilation'][0]) for e in jaxpr.eqns
          if e.primitive.name == 'conv_general_dilated' and e.params['feature_group_count'] > 1]


def test_dilated_keeps_stride_16_and_dilates_the_tail():
  plain = [(2, 1), (2, 1), (1, 1), (2, 1), *[(1, 1)] * 4]
  assert depthwise_plan(models.create('mobilenet_v3_small')) == [*plain, (2, 1), (1, 1), (1, 1)]
  model = models.create('mobilenet_v3_small', dilated=True)
  assert depthwise_plan(model) == [*plain, (1, 2), (1, 2), (1, 2)]
  maps = drawn.shapes(model, 1, 64, 96, 3, method='features')[0]
  assert {key: leaf.shape[1:] for key, leaf in maps.items()} == {
      'features_0': (32, 48, 16), 'features_1': (16, 24, 16), 'features_3': (8, 12, 24), 'features_12': (4, 6, 576)}


def test_the_block_that_would_stride_has_no_shortcut_when_dilated():
  # With half the tail, its first block has as many channels out as in, like block 9 of the small network.
  rows = (Row(3, 8, 8, False, False, 2), Row(3, 16, 16, False, False, 2), Row(3, 32, 16, False, False, 1))
  model = MobileNetV3(rows, 16, dilated=True, reduced_tail=True)
  names = ('features_1', 'features_2', 'features_3')
  x = np.random.default_rng(0).standard_normal((1, 16, 16, 3)).astype(np.float32)
  variables = drawn.variables(model, x)
  for name in names[1:]:
    variables['params'][name]['block_2_1']['scale'] = np.zeros(8, np.float32)  # the branch is its bias
  maps = jax.jit(lambda v, x: model.apply(v, x, method='features', names=names))(variables, x)
  biases = [variables['params'][name]['block_2_1']['bias'] for name in names[1:]]
  np.testing.assert_array_equal(maps['features_2'], np.broadcast_to(biases[0], (1, 4, 4, 8)))
  np.testing.assert_allclose(maps['features_3'], np.broadcast_to(biases[0] + biases[1], (1, 4, 4, 8)), atol=1e-7)


def test_widths_of_mnasnet_are_rounded_to_eights():
  model = models.create('mnasnet0_75', num_classes=0)
  params = drawn.shapes(model, 1, 32, 32, 3)[1]['params']
  assert [params[f'layers_{i}_0']['layers_6']['kernel'].shape[-1] for i in range(8, 14)] == [24, 32, 64, 72, 144, 240]
  assert [params['layers_0']['kernel'].shape[-1], params['layers']['6']['kernel'].shape[-1]] == [24, 16]


def test_the_head_of_mnasnet_begins_within_the_root_of_three_over_classes():
  kernel = mnasnet.dense_init(jax.random.key(0), (64, 75))
  assert 0.19 < float(jnp.abs(kernel).max()) < 0.2  # the root of 3 / 75 is 0.2
