"""ResNet: torchvision's names and shapes, stems, features, groups, dilation, stochastic depth."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from tests.models import drawn
from tests.models.test_layers import slow_convolution
from vision_jax import models
from vision_jax.models.classification.resnet import Block, ResNet


def torch_names(variables) -> dict[str, tuple[int, ...]]:
  """Every variable under the name and with the shape that torch gives it."""
  leaf_names = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}
  found = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    _, *modules, last = (key.key for key in path)
    shape = leaf.shape if len(leaf.shape) == 1 else (*leaf.shape[:-3:-1], *leaf.shape[:-2])
    found['.'.join([m.replace('_', '.') for m in modules] + [leaf_names[last]])] = shape
  return found


def expected_names(block: str, blocks: tuple[int, ...], groups: int, per_group: int) -> dict[str, tuple[int, ...]]:
  """torchvision's state dict (without `num_batches_tracked`), from its definition of ResNet v1.5."""
  names, channels, expansion = {}, 64, 1 if block == 'basic' else 4

  def add(conv: str, norm: str, out: int, into: int, size: int):
    names[f'{conv}.weight'] = (out, into // groups if size == 3 else into, size, size)
    names.update({f'{norm}.{part}': (out,) for part in ('weight', 'bias', 'running_mean', 'running_var')})

  add('conv1', 'bn1', 64, 3, 7)
  for stage, number in enumerate(blocks):
    width = 64 * 2 ** stage
    for i in range(number):
      prefix, into = f'layer{stage + 1}.{i}', channels
      for j, size in enumerate((3, 3) if block == 'basic' else (1, 3, 1), start=1):
        out = width * expansion if j == (2 if block == 'basic' else 3) else width * groups * per_group // 64
        add(f'{prefix}.conv{j}', f'{prefix}.bn{j}', out, into, size)
        into = out
      if i == 0 and (stage > 0 or block == 'bottleneck'):
        add(f'{prefix}.downsample.0', f'{prefix}.downsample.1', width * expansion, channels, 1)
      channels = width * expansion
  return names | {'fc.weight': (1000, channels), 'fc.bias': (1000,)}


@pytest.mark.parametrize(('name', 'block', 'blocks', 'groups', 'per_group'), [
    ('resnet18', 'basic', (2, 2, 2, 2), 1, 64), ('resnet50', 'bottleneck', (3, 4, 6, 3), 1, 64),
    ('resnext50_32x4d', 'bottleneck', (3, 4, 6, 3), 32, 4), ('wide_resnet50_2', 'bottleneck', (3, 4, 6, 3), 1, 128)])
def test_variables_bear_torchvision_names_and_shapes(name, block, blocks, groups, per_group):
  variables = drawn.shapes(models.create(name), 1, 64, 64, 3)[1]
  assert torch_names(variables) == expected_names(block, blocks, groups, per_group)


def test_features_have_the_strides_and_channels_of_their_stage():
  for name, expansion in (('resnet18', 1), ('resnet50', 4)):
    for stem, first in (('imagenet', 4), ('small', 1)):
      maps = drawn.shapes(models.create(name, stem=stem, width=16), 2, 64, 96, 3, method='features')[0]
      assert {k: m.shape for k, m in maps.items()} == {
          f'layer{i + 1}': (2, 64 // first // 2 ** i, 96 // first // 2 ** i, 16 * expansion * 2 ** i) for i in range(4)}


def test_any_size_gives_logits():
  for size in ((8, 8), (33, 57), (1, 1)):
    assert drawn.shapes(models.create('resnet18', num_classes=7), 2, *size, 3)[0].shape == (2, 7)


def test_no_classes_gives_the_mean_of_the_last_map_and_no_fc():
  model = ResNet('basic', (1, 1), num_classes=0, stem='small', width=4)
  x = np.random.default_rng(0).standard_normal((2, 8, 12, 3)).astype(np.float32)
  variables = drawn.variables(model, x)
  features, maps = jax.jit(lambda v, x: (model.apply(v, x), model.apply(v, x, method='features')))(variables, x)
  assert 'fc' not in variables['params']
  np.testing.assert_allclose(features, maps['layer2'].mean((1, 2)), atol=1e-6)


def test_detectors_can_use_the_variables_of_the_classifier():
  variables = drawn.shapes(models.create('resnet18', width=4), 1, 8, 8, 3)[1]
  backbone = drawn.shapes(models.create('resnet18', width=4, num_classes=0), 1, 8, 8, 3, method='features')[1]
  del variables['params']['fc']
  assert jax.tree.structure(variables) == jax.tree.structure(backbone)


@pytest.mark.medium
@pytest.mark.parametrize('bottleneck', [False, True])
def test_zero_init_last_starts_a_block_as_its_shortcut(bottleneck):
  x = np.random.default_rng(0).uniform(0, 1, (1, 4, 6, 16)).astype(np.float32)
  block = Block(4 if bottleneck else 16, bottleneck=bottleneck, zero_init_last=True)
  np.testing.assert_array_equal(block.init_with_output(jax.random.key(0), x)[0], x)
  params = drawn.shapes(ResNet('basic', (2, 1), zero_init_last=True), 1, 8, 8, 3)[1]['params']
  assert set(params['layer2_0']) == {'conv1', 'bn1', 'conv2', 'bn2', 'downsample_0', 'downsample_1'}


def test_a_bottleneck_strides_in_its_3x3_convolution():
  jaxpr = jax.make_jaxpr(lambda x: ResNet('bottleneck', (1, 1), stem='small', width=4, num_classes=0).init_with_output(
      jax.random.key(0), x)[0])(jnp.zeros((1, 8, 8, 3)))
  strides = [e.params['window_strides'] for e in jaxpr.eqns if e.primitive.name == 'conv_general_dilated']
  assert strides == [(1, 1), (1, 1), (2, 2)]  # the stem and the two 3x3; a 1x1 is a matrix product


def test_a_block_of_groups_equals_its_figure():
  x = np.random.default_rng(0).standard_normal((2, 5, 4, 6)).astype(np.float32)
  block = Block(8, 2, bottleneck=True, groups=4, width_per_group=16)  # 4 groups of 2 channels
  variables = drawn.variables(block, x)

  def conv(x, i, size, stride, groups, name='conv{}', norm='bn{}'):
    kernel = np.asarray(variables['params'][name.format(i)]['kernel'])
    assert kernel.shape[2] * groups == x.shape[-1]
    y = slow_convolution(x, kernel, stride, ((size // 2,) * 2,) * 2, 1, groups)
    return oracles.batch_norm(y, variables, norm.format(i))

  y = np.maximum(conv(x, 1, 1, 1, 1), 0)
  assert y.shape[-1] == 8
  y = conv(np.maximum(conv(y, 2, 3, 2, 4), 0), 3, 1, 1, 1)
  truth = np.maximum(y + conv(x, '', 1, 2, 1, 'downsample_0', 'downsample_1'), 0)
  # Three convolutions of numbers near 1 in float32.
  np.testing.assert_allclose(jax.jit(block.apply)(variables, x), truth, atol=2e-5)


@pytest.mark.medium
@pytest.mark.parametrize('block', ['basic', 'bottleneck'])
def test_dilation_instead_of_stride_gives_the_same_maps_and_the_pixels_between(block):
  make = functools.partial(ResNet, block, (1, 1, 2, 2), width=4, num_classes=0)
  x = np.random.default_rng(0).standard_normal((1, 40, 72, 3)).astype(np.float32)
  variables = drawn.variables(make(), x)

  def maps(variables, x):
    return [make(output_stride=stride).apply(variables, x, method='features') for stride in (32, 16, 8)]

  coarse, middle, fine = jax.jit(maps)(variables, x)
  assert [m['layer4'].shape[1:3] for m in (coarse, middle, fine)] == [(2, 3), (3, 5), (5, 9)]
  for found, steps in ((middle, (1, 1, 1, 2)), (fine, (1, 1, 2, 4))):
    for i, step in enumerate(steps, start=1):
      truth = coarse[f'layer{i}']
      # The same sums in another order.
      np.testing.assert_allclose(found[f'layer{i}'][:, ::step, ::step], truth, atol=1e-5 * float(truth.max()))


def test_dilation_begins_after_the_convolution_that_would_have_strided():
  jaxpr = jax.make_jaxpr(lambda x: ResNet('bottleneck', (1, 1, 2, 2), width=4, num_classes=0, output_stride=8)
                         .init_with_output(jax.random.key(0), x)[0])(jnp.zeros((1, 32, 32, 3)))
  found = [(e.params['window_strides'][0], e.params['rhs_dilation'][0]) for e in jaxpr.eqns
           if e.primitive.name == 'conv_general_dilated']
  # torchvision's replace_stride_with_dilation=(False, True, True): the stem, and the 3x3 of the four stages.
  assert found == [(2, 1), (1, 1), (2, 1), (1, 1), (1, 2), (1, 2), (1, 4)]


def test_the_small_stem_needs_no_dilation():
  shapes = {stride: drawn.shapes(ResNet('basic', (1, 1, 1, 1), stem='small', width=4, output_stride=stride), 1, 16, 16,
                                 3, method='features')[0]['layer4'].shape[1] for stride in (8, 32)}
  assert shapes == {8: 2, 32: 2}


@pytest.mark.medium
def test_stochastic_depth_leaves_the_shortcut_of_some_examples():
  x = np.random.default_rng(0).standard_normal((64, 4, 4, 8)).astype(np.float32)
  block, sure = Block(8, drop=0.25, norm='frozen'), Block(8, norm='frozen')
  variables = drawn.variables(sure, x)

  def both(variables, x, key):
    return block.apply(variables, x, train=True, rngs={'dropout': key}), sure.apply(variables, x)

  noisy, plain = map(np.asarray, jax.jit(both)(variables, x, jax.random.key(0)))
  dropped = (noisy == np.maximum(x, 0)).all((1, 2, 3))
  # 64 draws: four standard deviations of the share are 0.22.
  assert abs(dropped.mean() - 0.25) < 0.22 and dropped.any()
  # Where nothing was clipped the branch is what the whole block adds to its input, divided by 0.75.
  free = (plain > 0) & (noisy > 0) & ~dropped[:, None, None, None]
  np.testing.assert_allclose((noisy - x)[free], (plain - x)[free] / 0.75, atol=1e-4)
  np.testing.assert_array_equal(jax.jit(block.apply)(variables, x), plain)  # none outside training


def test_stochastic_depth_grows_linearly_to_its_rate():
  rates = []

  def note(run, args, kwargs, context):
    if isinstance(context.module, Block) and context.method_name == '__call__':
      rates.append(context.module.drop)
    return run(*args, **kwargs)

  with nn.intercept_methods(note):
    drawn.shapes(ResNet('basic', (2, 3), width=4, stochastic_depth=0.5), 1, 8, 8, 3)
  np.testing.assert_allclose(rates, [0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize(('name', 'options', 'message'), [
    ('resnet50', {'output_stride': 4}, 'ResNet: output_stride 4; known: 8, 16, 32'),
    ('resnet18', {'stem': 'cifar'}, "stem 'cifar'; known blocks: basic, bottleneck; known stems: imagenet, small")])
def test_an_unknown_option_is_refused(name, options, message):
  with pytest.raises(ValueError, match=message):
    drawn.shapes(models.create(name, **options), 1, 8, 8, 3)


def test_groups_in_basic_blocks_are_refused():
  with pytest.raises(ValueError, match='ResNet: 32 groups of 4 channels in basic blocks; they have 1 of 64'):
    drawn.shapes(ResNet('basic', (1, 1), 32, 4), 1, 8, 8, 3)
