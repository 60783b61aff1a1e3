"""ResNet: torchvision's names and shapes, stems, features."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import drawn
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


def expected_names(block: str, blocks: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
  """torchvision's state dict (without `num_batches_tracked`), from its definition of ResNet v1.5."""
  names, channels, expansion = {}, 64, 1 if block == 'basic' else 4

  def add(conv: str, norm: str, out: int, into: int, size: int):
    names[f'{conv}.weight'] = (out, into, size, size)
    names.update({f'{norm}.{part}': (out,) for part in ('weight', 'bias', 'running_mean', 'running_var')})

  add('conv1', 'bn1', 64, 3, 7)
  for stage, number in enumerate(blocks):
    width = 64 * 2 ** stage
    for i in range(number):
      prefix, into = f'layer{stage + 1}.{i}', channels
      for j, size in enumerate((3, 3) if block == 'basic' else (1, 3, 1), start=1):
        out = width * expansion if j == (2 if block == 'basic' else 3) else width
        add(f'{prefix}.conv{j}', f'{prefix}.bn{j}', out, into, size)
        into = out
      if i == 0 and (stage > 0 or block == 'bottleneck'):
        add(f'{prefix}.downsample.0', f'{prefix}.downsample.1', width * expansion, channels, 1)
      channels = width * expansion
  return names | {'fc.weight': (1000, channels), 'fc.bias': (1000,)}


@pytest.mark.parametrize(('name', 'block', 'blocks'), [
    ('resnet18', 'basic', (2, 2, 2, 2)), ('resnet50', 'bottleneck', (3, 4, 6, 3))])
def test_variables_bear_torchvision_names_and_shapes(name, block, blocks):
  assert torch_names(drawn.shapes(models.create(name), 1, 64, 64, 3)[1]) == expected_names(block, blocks)


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


def test_an_unknown_stem_is_refused():
  with pytest.raises(ValueError, match="stem 'cifar'; known blocks: basic, bottleneck; known stems: imagenet, small"):
    models.create('resnet18', stem='cifar').init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
