"""The summary of a model: its layers in order, their sums, and nothing compiled or allocated."""

import functools
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import drawn
from vision_jax import models
from vision_jax.inspect import summary, zoo
from vision_jax.models.classification.resnet import ResNet
from vision_jax.models.layers import Conv, ConvNorm

SMALL = functools.partial(ResNet, 'bottleneck', (1, 2), width=8, num_classes=5)


def by_path(found):
  return {'/'.join(layer.path): layer for layer in found.layers}


def test_layers_stand_in_the_order_of_their_calls_with_what_they_give():
  found = summary(SMALL(), (2, 32, 48, 3))
  layers = by_path(found)
  names = list(layers)
  assert names[:2] == ['', 'conv1'] and names[-1] == 'fc'
  assert names.index('layer1_0') < names.index('layer1_0/conv1') < names.index('layer2_0') < names.index('layer2_1')
  assert layers['conv1'].kind == 'Conv' and layers[''].kind == 'ResNet'
  assert layers['layer2_1'].outputs[0].shape == (2, 4, 6, 64)
  assert layers['layer2_1'].outputs[0].stride == (8, 8)
  assert layers['fc'].outputs[0].shape == (2, 5)


def test_parameters_and_statistics_are_those_of_the_variables():
  found = summary(SMALL(), (1, 32, 32, 3))
  variables = drawn.shapes(SMALL(), 1, 32, 32, 3)[1]
  for collection, field in (('params', 'parameters'), ('batch_stats', 'statistics')):
    tree = variables[collection]
    assert getattr(found, field) == sum(leaf.size for leaf in jax.tree.leaves(tree))
    inside = tree['layer2_0']['bn2']
    assert getattr(by_path(found)['layer2_0/bn2'], field) == sum(leaf.size for leaf in jax.tree.leaves(inside))


def test_a_layer_counts_what_is_inside_it():
  found = summary(SMALL(), (1, 32, 32, 3))
  layers = by_path(found)
  assert layers['conv1'].multiply_adds == 16 * 16 * 7 * 7 * 3 * 8
  assert found.multiply_adds == found.flops // 2 == layers[''].multiply_adds
  for name, layer in layers.items():
    inside = [other for other in found.layers if len(other.path) == len(layer.path) + 1
              and other.path[:-1] == layer.path]
    if inside:  # nothing here but modules has parameters or products
      assert layer.multiply_adds == sum(other.multiply_adds for other in inside), name
      assert layer.parameters == sum(other.parameters for other in inside), name


def test_maps_are_those_of_features_in_its_order():
  found = summary(SMALL(), (1, 32, 48, 3))
  assert [(m.name, m.shape, m.stride) for m in found.maps] == [
      ('layer1', (1, 8, 12, 32), (4, 4)), ('layer2', (1, 4, 6, 64), (8, 8))]
  assert [m.receptive_field for m in found.maps] == [(19, 19), (43, 43)]
  assert summary(nn.Dense(3), (1, 4)).maps == ()


class Shared(nn.Module):
  """One head on two maps, one that only training uses, and maps whose names are not in the alphabet's order."""

  def setup(self):
    self.stem = ConvNorm(4, 3, 2)
    self.head = Conv(2, 3, padding=1)
    self.aside = nn.Dense(7)

  def __call__(self, x):
    maps = self.maps(x)
    *_, last = maps.values()
    if self.is_initializing():
      self.aside(last)
    return {name: self.head(x) for name, x in maps.items()}

  def maps(self, x):
    x = self.stem(x)
    return {'z': x, 'a': x[:, ::2, ::2]}


def test_a_module_that_is_called_twice_is_one_layer_with_the_work_of_both():
  layers = by_path(summary(Shared(), (1, 8, 8, 3)))
  assert layers['head'].calls == 2
  assert layers['head'].parameters == 3 * 3 * 4 * 2 + 2
  assert layers['head'].multiply_adds == (4 * 4 + 2 * 2) * 3 * 3 * 4 * 2
  assert layers['head'].outputs[0].shape == (1, 4, 4, 2)


def test_a_module_of_which_another_method_is_called_shows_what_that_gives():
  class Outer(nn.Module):

    def setup(self):
      self.inner = Shared()

    def __call__(self, x):
      return self.inner.maps(x)['z']

  layer = by_path(summary(Outer(), (1, 8, 8, 3)))['inner']
  assert (layer.calls, layer.outputs[0].shape) == (0, (1, 4, 4, 4))
  assert layer.multiply_adds == 4 * 4 * 3 * 3 * 3 * 4


def test_what_only_training_computes_has_parameters_and_no_work():
  layers = by_path(summary(Shared(), (1, 8, 8, 3)))
  assert layers['aside'].parameters == 4 * 7 + 7
  assert layers['aside'].multiply_adds == 0


def test_the_order_of_a_dictionary_survives():
  # jax.tree.map would sort it, and the model take the wrong map for the last.
  assert [output.name for output in summary(Shared(), (1, 8, 8, 3)).layers[0].outputs] == ['z', 'a']


def test_work_in_a_module_of_jit_remat_and_scan_belongs_to_it():
  class Wrapped(nn.Module):

    @nn.compact
    def __call__(self, x):
      x = nn.remat(nn.Dense)(4, name='again')(x)
      x = nn.jit(nn.Dense)(4, name='jitted')(x)
      stack = nn.scan(Body, variable_axes={'params': 0}, split_rngs={'params': True}, length=3)
      return stack(name='stack')(x, None)[0]

  class Body(nn.Module):

    @nn.compact
    def __call__(self, x, _):
      return nn.Dense(4, name='dense')(x), None

  layers = by_path(summary(Wrapped(), (2, 4)))
  assert layers['again'].multiply_adds == layers['jitted'].multiply_adds == 2 * 4 * 4
  assert layers['stack'].multiply_adds == layers['stack/dense'].multiply_adds == 3 * 2 * 4 * 4
  assert layers['stack'].parameters == 3 * (4 * 4 + 4)


def test_a_model_larger_than_any_memory_is_summarised_and_nothing_is_compiled():
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
      lambda event, seconds, **_: compiled.append(event) if 'backend_compile' in event else None)
  jax.jit(lambda x: x * 3.25 + 1.125)(np.zeros(7))
  assert compiled  # the listener hears
  compiled.clear()
  found = summary(nn.Dense(10 ** 7), (1, 10 ** 7))
  assert found.parameters == 10 ** 14 + 10 ** 7  # 400 TB
  assert compiled == []


def test_inputs_may_be_several_arrays_and_options_go_to_the_method():
  class Two(nn.Module):

    @nn.compact
    def __call__(self, tokens, image, *, train=False):
      x = nn.Embed(5, 4)(tokens).mean(1)
      x = nn.Dropout(0.5, deterministic=not train)(x)
      return Conv(4, 3)(image) * x[:, None, None]

  found = summary(Two(), jnp.zeros((2, 3), jnp.int32), (2, 9, 9, 1), train=True)
  assert found.inputs == ((2, 3), (2, 9, 9, 1))
  assert found.layers[0].outputs[0].receptive_field == (3, 3)


def test_the_table_shows_as_many_levels_as_asked_and_the_totals():
  found = summary(SMALL(), (1, 32, 48, 3))
  lines = found.table(1).splitlines()
  assert lines[0].split() == ['layer', 'kind', 'output', 'parameters', 'multiply-adds', 'receptive', 'field', 'stride']
  assert len(lines) == 1 + 1 + 6 + 2  # header; the model; conv1, bn1, three blocks, fc; the totals
  row = next(line for line in lines if 'layer2_1' in line)
  assert row.split() == ['layer2_1', 'Block', '4', 'x', '6', 'x', '64', '4,544', '104,448', '43', '8']
  assert str(found) == found.table() and len(str(found).splitlines()) > len(lines)
  assert lines[-1].startswith(f'{found.parameters:,} parameters, {found.statistics:,} batch statistics; ')
  assert 'for an input of 1 x 32 x 48 x 3: ' in lines[-1]
  assert f'{2 * found.multiply_adds / 1e6:,.3f} MFLOP' in lines[-1]


def test_every_model_has_a_paper_and_every_row_of_the_zoo_a_model():
  assert all(zoo.paper(name) for name in models.names())
  assert set(zoo.IMAGES) | set(zoo.OPTIONS) <= set(models.names())
  assert all(any(name.startswith(family) for name in models.names()) for family in zoo.PAPERS)


def test_a_paper_that_the_table_cites_is_in_the_docstring_of_the_model_file():
  for name, constructor in models.MODELS.items():
    text = sys.modules[getattr(constructor, 'func', constructor).__module__].__doc__
    number = zoo.paper(name).rpartition('/')[2].rstrip(')')
    assert number in text or not number[0].isdigit(), name


def test_an_unknown_model_has_no_paper():
  with pytest.raises(ValueError, match="unknown model 'resnet19'"):
    zoo.paper('resnet19')
