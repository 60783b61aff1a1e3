"""EfficientNet: scaling, stages, features, stochastic depth."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from tests.models import drawn
from vision_jax import models
from vision_jax.models.classification import efficientnet
from vision_jax.models.classification.efficientnet import EfficientNet, Stage, scaled
from vision_jax.models.noise import StochasticDepth

pytestmark = pytest.mark.medium  # many small compilations

MAPS = {
    'efficientnet_b0': [('features_1', 2, 16), ('features_2', 4, 24), ('features_3', 8, 40), ('features_5', 16, 112),
                        ('features_8', 32, 1280)],
    'efficientnet_v2_s': [('features_1', 2, 24), ('features_2', 4, 48), ('features_3', 8, 64), ('features_5', 16, 160),
                          ('features_7', 32, 1280)],
}
TINY = (Stage(True, 2, 3, 2, 8, 2), Stage(False, 2, 3, 1, 8, 3), Stage(False, 2, 3, 2, 16, 1))


def test_depths_are_rounded_up_and_widths_to_eights():
  stem, stages, head = scaled(2.0, 3.1)  # B7
  assert (stem, head) == (64, 2560)
  assert [stage.blocks for stage in stages] == [4, 7, 7, 10, 10, 13, 4]
  assert [stage.features for stage in stages] == [32, 48, 80, 160, 224, 384, 640]
  stem, stages, head = scaled(1.1, 1.2)  # B2: 35.2, 17.6 and 123.2 channels
  assert (stem, stages[0].features, stages[4].features, head) == (32, 16, 120, 1408)


@pytest.mark.parametrize('name', MAPS)
def test_features_are_the_last_map_of_every_stride(name):
  assert drawn.maps(models.create(name), 2, 64, 96, 3) == [
      (key, (2, 64 // stride, 96 // stride, channels)) for key, stride, channels in MAPS[name]]


def test_any_size_gives_logits_and_no_classes_give_features_without_a_head():
  model = EfficientNet(8, TINY, 24, num_classes=3)
  for size in ((1, 1), (33, 57)):
    assert drawn.shapes(model, 2, *size, 3)[0].shape == (2, 3)
  features, variables = drawn.shapes(model.clone(num_classes=0), 2, 16, 24, 3)
  assert features.shape == (2, 24) and not any(key.startswith('classifier') for key in variables['params'])
  backbone = drawn.shapes(model, 2, 16, 24, 3, method='features')[1]
  assert jax.tree.structure(variables) == jax.tree.structure(backbone)


def test_stochastic_depth_grows_linearly_with_the_number_of_the_block():
  rates = {}

  def watch(following, args, kwargs, context):
    if isinstance(context.module, StochasticDepth):
      rates['/'.join(context.module.path)] = context.module.rate
    return following(*args, **kwargs)

  with nn.intercept_methods(watch):
    drawn.shapes(EfficientNet(8, TINY, 24, num_classes=0, stochastic_depth=0.3), 2, 16, 24, 3)
  # Six blocks; those whose shape changes have no shortcut and nothing to drop.
  expected = {'features_1_1': 1, 'features_2_0': 2, 'features_2_1': 3, 'features_2_2': 4}
  assert rates == {f'{name}/stochastic_depth': pytest.approx(0.3 * i / 6) for name, i in expected.items()}


def test_variants_have_the_norm_and_the_dropout_that_they_were_trained_with():
  found = {name: (m.eps, m.momentum, m.dropout, m.stochastic_depth) for name in models.names()
           if name.startswith('efficientnet') for m in [models.create(name)]}
  expected = {f'efficientnet_b{i}': (1e-5 if i < 5 else 1e-3, 0.9 if i < 5 else 0.99, dropout, 0.2)
              for i, dropout in enumerate((0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5))}
  expected |= {f'efficientnet_v2_{size}': (1e-3, 0.9, dropout, 0.2)
               for size, dropout in zip('sml', (0.2, 0.3, 0.4), strict=True)}
  assert found == expected


def test_the_head_begins_within_one_over_the_root_of_classes():
  kernel = efficientnet.dense_init(jax.random.key(0), (64, 25))
  assert 0.19 < float(jnp.abs(kernel).max()) < 0.2  # one over the root of 25 is 0.2
