"""The feature pyramid: who knows what, sizes and anchors of a canvas, and what it refuses."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import drawn
from vision_jax.models.classification.mobilenetv3 import mobilenet_v3_large
from vision_jax.models.classification.resnet import ResNet, resnet18
from vision_jax.models.detection import fpn
from vision_jax.models.detection.fpn import Backbone, FeaturePyramid

SIZES = ((9, 14), (5, 7), (3, 4))


def nearest(x, size):
  """The loop: pixel (row, column) is that of (floor(row * h / H), floor(column * w / W))."""
  h, w = x.shape[1:3]
  out = np.zeros((x.shape[0], *size, x.shape[3]), x.dtype)
  for row, column in np.ndindex(*size):
    out[:, row, column] = x[:, row * h // size[0], column * w // size[1]]
  return out


@pytest.mark.parametrize(('old', 'new'), [((5, 7), (10, 14)), ((5, 7), (9, 13)), ((5, 7), (10, 13)), ((1, 1), (1, 2)),
                                          ((3, 4), (3, 4)), ((4, 3), (7, 11)), ((6, 5), (4, 5)), ((25, 42), (50, 84))])
def test_a_map_is_enlarged_as_by_the_loop(old, new):
  x = np.random.default_rng(0).standard_normal((2, *old, 3)).astype(np.float32)
  np.testing.assert_array_equal(fpn.enlarge(jnp.asarray(x), new), nearest(x, new))


def slow_pyramid(maps, params):
  """Section 3's sums in float64, without the 3x3 convolutions: their kernels only pass the centre on."""
  merged, levels = None, []
  for i in reversed(range(len(maps))):
    part = {name: params[f'{name}_blocks_{i}']['0'] for name in ('inner', 'layer')}
    lateral = maps[i].astype(float) @ part['inner']['kernel'][0, 0] + part['inner']['bias']
    merged = lateral if merged is None else lateral + nearest(merged, lateral.shape[1:3])
    levels.insert(0, merged @ part['layer']['kernel'][1, 1] + part['layer']['bias'])
  return levels


@functools.cache
def some_maps():
  rng = np.random.default_rng(0)
  return tuple(rng.standard_normal((2, *size, 4 + i)).astype(np.float32) for i, size in enumerate(SIZES))


@pytest.mark.parametrize('extra', ['none', 'pool', 'p6p7', 'p6p7_c5'])
def test_the_levels_are_the_paper_s_sums_and_the_extra_ones_follow(extra):
  pyramid = FeaturePyramid(6, extra)
  variables = drawn.variables(pyramid, some_maps())
  for i in range(3):
    kernel = variables['params'][f'layer_blocks_{i}']['0']['kernel']
    kernel[[0, 2]] = kernel[:, [0, 2]] = 0
  found = jax.jit(pyramid.apply)(variables, some_maps())
  for level, expected in zip(found[:3], slow_pyramid(some_maps(), variables['params']), strict=True):
    np.testing.assert_allclose(level, expected, rtol=1e-5, atol=1e-5)  # float32
  assert [level.shape[1:3] for level in found[3:]] == {'none': [], 'pool': [(2, 2)]}.get(extra, [(2, 2), (1, 1)])
  if extra == 'pool':
    np.testing.assert_array_equal(found[3], found[2][:, ::2, ::2])
  if extra.startswith('p6p7'):
    source = found[2] if extra == 'p6p7' else some_maps()[2]
    kernel, bias = (np.asarray(variables['params']['extra_blocks']['p6'][name]) for name in ('kernel', 'bias'))
    assert kernel.shape[2] == source.shape[-1]
    corner = np.einsum('bhwc,hwcf->bf', np.asarray(source)[:, 1:3, 1:4], kernel[:2])  # the last row sees the border
    np.testing.assert_allclose(found[3][:, 1, 1], corner + bias, rtol=1e-4, atol=1e-5)


def test_an_unknown_extra_and_an_unknown_level_are_answered_with_the_known_ones():
  with pytest.raises(ValueError, match="extra is 'p8'; give one of none, pool, p6p7, p6p7_c5"):
    jax.eval_shape(FeaturePyramid(6, 'p8').init, jax.random.key(0), some_maps())
  with pytest.raises(ValueError, match="no feature map 'layer5'; there are layer1, layer2, layer3, layer4"):
    drawn.shapes(Backbone(resnet18(num_classes=0, width=2), FeaturePyramid(4), ('layer4', 'layer5')), 1, 32, 32, 3)


def test_a_body_that_is_asked_gives_maps_within_a_stride():
  backbone = Backbone(mobilenet_v3_large(num_classes=0), FeaturePyramid(8), ('features_13', 'features_16'))
  assert fpn.map_sizes(backbone, (64, 96)) == ((2, 3), (2, 3))


def tiny(extra='p6p7'):
  return Backbone(ResNet('basic', (1, 1), num_classes=0, width=2), FeaturePyramid(4, extra), ('layer1', 'layer2'))


def test_anchors_lie_on_the_pixels_of_every_level_and_are_numpy_under_jit():
  backbone, canvas, sizes = tiny(), (40, 72), ((4.0, 6.0), (8.0, 10.0), (20.0, 24.0), (40.0, 48.0))
  assert fpn.map_sizes(backbone, canvas) == ((10, 18), (5, 9), (3, 5), (2, 3))
  kinds = []

  @jax.jit
  def traced(x):
    kinds.append(fpn.anchor_grid(backbone, canvas, sizes, (1.0, 4.0)))
    return x + kinds[0].sum()

  traced(1.0)
  anchors, = kinds
  assert isinstance(anchors, np.ndarray) and anchors.shape == (984, 4) and not anchors.flags.writeable
  # Row 2, column 3 of the second level, of stride 8: sizes 8 and 10 of ratio 1, then of ratio 4, twice as high as wide.
  at = 720 + (2 * 9 + 3) * 4
  np.testing.assert_array_equal(anchors[at:at + 4] - np.array([24, 16, 24, 16]),
                                [[-4, -4, 4, 4], [-5, -5, 5, 5], [-2, -8, 2, 8], [-2, -10, 2, 10]])


def test_a_canvas_that_does_not_divide_is_answered_with_the_nearest():
  # 44 leaves half a pixel of stride 8; 28 is four of 7, and 30 is no whole number of either.
  for side, near in ((44, 48), (28, 32), (30, 32)):
    with pytest.raises(ValueError, match=f'is {side} x 72, which a stride of 8 does not divide; the.* {near} x 72'):
      fpn.anchor_grid(tiny(), (side, 72), ((4.0,),) * 4, (1.0,))
  with pytest.raises(ValueError, match='4 grids for 2 levels of sizes'):
    fpn.anchor_grid(tiny(), (40, 72), ((4.0,),) * 2, (1.0,))
