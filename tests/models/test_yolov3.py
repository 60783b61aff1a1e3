"""YOLOv3: a head that any backbone can have, its outputs and what it refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import drawn
from vision_jax import models
from vision_jax.models.classification import darknet, mobilenetv3, resnet
from vision_jax.models.detection import yolov3


@pytest.mark.parametrize('strides', [(8, 16), (4, 8), (4, 8, 16), (8, 16, 32), (8,)])
def test_outputs_have_the_size_of_their_stride_and_the_number_of_their_anchors(strides):
  anchors = tuple(((10.0, 12.0),) * (i + 1) for i in range(len(strides)))
  model = models.create('yolov3_small', num_classes=7, strides=strides, anchors=anchors, width=8)
  maps = drawn.shapes(model, 2, 64, 96, 3)[0]
  assert [m.shape for m in maps] == [(2, 64 // s, 96 // s, i + 1, 12) for i, s in enumerate(strides)]
  assert {m.dtype for m in maps} == {jnp.dtype('float32')}
  assert model.anchors == anchors and model.strides == strides


@pytest.mark.parametrize(('name', 'canvas', 'expected'), [
    ('yolov3', 416, [(52, 52, 3, 85), (26, 26, 3, 85), (13, 13, 3, 85)]),
    ('yolov3_tiny', 416, [(26, 26, 3, 85), (13, 13, 3, 85)])])
def test_the_authors_detectors_have_the_outputs_and_anchors_of_their_cfg(name, canvas, expected):
  model = models.create(name)
  assert [m.shape[1:] for m in drawn.shapes(model, 1, canvas, canvas, 3)[0]] == expected
  # A slot's stride grows with its anchors, and the paper's nine are fitted to a canvas of 416.
  assert model.anchors[-1][-1] == ((373, 326) if name == 'yolov3' else (344, 319))
  assert model.anchors[0][0] == ((10, 13) if name == 'yolov3' else (10, 14))


@pytest.mark.parametrize(('body', 'levels'), [
    (resnet.resnet18(num_classes=0, width=8), ('layer2', 'layer3', 'layer4')),
    (mobilenetv3.mobilenet_v3_large(num_classes=0, width_mult=0.25), ('features_6', 'features_12', 'features_16')),
    (darknet.darknet19(num_classes=0), ('conv8', 'conv13', 'conv18'))], ids=['resnet18', 'mobilenet_v3', 'darknet19'])
def test_any_body_carries_the_head(body, levels):
  model = yolov3.YOLOv3(body, levels, 2, (((9.0, 9.0),),) * 3, (8, 16, 32), (4, 8, 16), 1)
  assert [m.shape for m in drawn.shapes(model, 1, 64, 96, 3)[0]] == [
      (1, 8, 12, 1, 7), (1, 4, 6, 1, 7), (1, 2, 3, 1, 7)]
  with pytest.raises(ValueError, match=f'YOLOv3: {levels[0]} of 8 x 12 is not the map of stride 4 of an image'):
    drawn.shapes(model.clone(strides=(4, 8, 16)), 1, 64, 96, 3)
  with pytest.raises(ValueError, match="no feature map 'layer9'; there are"):
    drawn.shapes(model.clone(levels=(*levels[:2], 'layer9')), 1, 64, 96, 3)


@pytest.mark.medium
@pytest.mark.parametrize(('prior', 'logit'), [(0.01, np.log(0.01 / 0.99)), (None, 0.0)])
def test_the_untrained_head_predicts_the_prior_objectness_everywhere(prior, logit):
  head = yolov3.YOLOv3Head(num_classes=3, num_anchors=(2,), channels=(4,), necks=0, objectness_prior=prior)
  x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
  level = np.asarray(jax.jit(head.init_with_output)(jax.random.key(0), (x,))[0][0])
  # Eight inputs of about 1 and weights of 0.01 leave a logit within about 0.1 of its bias.
  np.testing.assert_allclose(level[..., 4], logit, atol=0.2)
  np.testing.assert_allclose(np.delete(level, 4, -1), 0, atol=0.2)


def test_fine_levels_see_coarse_maps_and_not_the_other_way_round():
  head = yolov3.YOLOv3Head(num_classes=2, num_anchors=(1, 1), channels=(4, 8), necks=3, norm='none')
  rng = np.random.default_rng(0)
  maps = tuple(rng.standard_normal(size).astype(np.float32) for size in [(1, 4, 6, 5), (1, 2, 3, 7)])
  variables = drawn.variables(head, maps)
  apply = jax.jit(head.apply)
  fine, coarse = apply(variables, maps)
  changed_fine = apply(variables, (maps[0] + 1, maps[1]))
  changed_coarse = apply(variables, (maps[0], maps[1] + 1))
  assert not np.array_equal(changed_fine[0], fine) and np.array_equal(changed_fine[1], coarse)
  assert not np.array_equal(changed_coarse[0], fine) and not np.array_equal(changed_coarse[1], coarse)


def test_predictions_change_where_the_image_does():
  model = models.create('yolov3_small', num_classes=2, width=8, norm='none')
  x = np.zeros((1, 96, 128, 3), np.float32)
  variables, apply = drawn.variables(model, x), jax.jit(model.apply)
  before = apply(variables, x)
  changed = x.copy()  # not in place: jax may still be reading the first one
  changed[0, 16:24, 96:104] = 5
  difference = np.abs(apply(variables, changed)[0] - before[0]).sum((0, 3, 4))
  row, column = np.unravel_index(np.argmax(difference), (12, 16))
  assert abs(row - 2) <= 1 and abs(column - 12) <= 1


@pytest.mark.parametrize(('options', 'size', 'message'), [
    ({}, (100, 128), 'multiples of 16, not 100 x 128; the nearest is 96 x 128'),
    ({'strides': (8, 16, 32)}, (96, 128), '3 levels, 2 levels of anchors, 3 strides'),
    ({'strides': (16, 8)}, (96, 128), 'each be twice the one before'),
    ({'strides': (4, 16)}, (96, 128), 'each be twice the one before'),
    ({'strides': (32, 64)}, (96, 128), 'strides .32, 64. must be among 4, 8, 16 and 32')])
def test_what_does_not_fit_is_answered_in_one_line(options, size, message):
  with pytest.raises(ValueError, match=message):
    drawn.shapes(models.create('yolov3_small', **options), 1, *size, 3)
