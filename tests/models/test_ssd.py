"""SSD: its default boxes, its L2 norm and extra maps, what it refuses; SSD300 and SSDLite320 beside torchvision."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_files import golden
from tests.models import drawn
from tests.pretrained import formula
from vision_jax import losses, models, ops
from vision_jax.models.detection import fpn, ssd

# ---- shapes and parts ----


class Same(nn.Module):
  """A body whose map is the image."""

  def features(self, x, *, train=False):
    return {'same': x}


@pytest.mark.parametrize(('name', 'expected', 'boxes'), [
    ('ssd300_vgg16', ops.SSD300, 8732), ('ssd512_vgg16', ops.SSD512, 24_564)])
def test_maps_and_default_boxes_are_those_of_the_authors_program(name, expected, boxes):
  model = models.create(name, num_classes=20)
  canvas = expected['canvas']
  assert fpn.map_sizes(model._backbone(), canvas) == expected['grids']
  np.testing.assert_array_equal(model.anchors(canvas), ops.ssd_default_boxes(**expected))
  outputs = drawn.shapes(model, 1, *canvas, 3)[0]
  assert {key: leaf.shape for key, leaf in outputs.items()} == {'logits': (1, boxes, 21), 'deltas': (1, boxes, 4)}
  assert sum(model.level_sizes(canvas)) == boxes


def test_without_strides_every_canvas_has_as_many_default_boxes_as_predictions_and_they_lie_evenly():
  model = models.create('ssd_small', num_classes=3, width=4)
  for canvas in ((96, 128), (50, 75)):
    outputs, anchors = drawn.shapes(model, 1, *canvas, 3)[0], model.anchors(canvas)
    assert {leaf.shape[1] for leaf in outputs.values()} == {len(anchors)} == {sum(model.level_sizes(canvas))}
    # The mean of each level's centres is the canvas's.
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    for level in np.split(centres, np.cumsum(model.level_sizes(canvas))[:-1]):
      np.testing.assert_allclose(level.mean(0), (canvas[1] / 2, canvas[0] / 2), rtol=1e-5)


def test_the_small_variant_s_squares_are_squares_in_pixels():
  sides = np.diff(models.create('ssd_small').anchors((96, 128)).reshape(-1, 4, 2, 2), axis=2)[:, :, 0]
  np.testing.assert_allclose(sides[:, :2, 0], sides[:, :2, 1], rtol=1e-5)
  np.testing.assert_allclose(sides[:, 3, 1] / sides[:, 3, 0], 1.5, rtol=1e-5)  # the tall one
  np.testing.assert_allclose(sides[0, 0], 0.15 * 96, rtol=1e-5)


def test_the_finest_map_has_the_norm_of_its_learned_scale_and_0_stays_0_with_a_finite_gradient():
  x = np.random.default_rng(0).standard_normal((2, 3, 4, 8)).astype(np.float32)
  x[0, 1, 2] = 0
  norms = np.linalg.norm(ssd.unit_pixels(x), axis=-1)
  expected = np.ones((2, 3, 4))
  expected[0, 1, 2] = 0
  np.testing.assert_allclose(norms, expected, atol=1e-6)
  gradient = jax.grad(lambda x: (ssd.unit_pixels(x) ** 3).sum())(jnp.asarray(x))
  assert np.isfinite(gradient).all()

  backbone = ssd.SSDBackbone(Same(), ('same',), l2_scale=20.0)
  (finest,), variables = jax.jit(backbone.init_with_output)(jax.random.key(0), x)
  assert variables['params']['scale_weight'].shape == (8,)
  np.testing.assert_allclose(np.linalg.norm(finest, axis=-1), 20 * expected, rtol=1e-5)


def test_fc6_sees_pixels_six_apart_and_its_pool_those_beside_them():
  backbone, image = ssd.SSDBackbone(Same(), ('same',), fc=1), np.zeros((1, 40, 40, 3), np.float32)
  image[0, 20, 18] = 1
  variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32) * (len(leaf.shape) > 1),
                           jax.eval_shape(backbone.init, jax.random.key(0), image))
  (found,) = jax.jit(backbone.apply)(variables, image)
  for axis, centre in ((2, 20), (1, 18)):
    seen = np.nonzero(np.asarray(found).any((0, axis, 3)))[0]
    assert (seen - centre).tolist() == [-7, -6, -5, -1, 0, 1, 5, 6, 7]


@pytest.mark.parametrize(('change', 'canvas', 'message'), [
    ({'scales': (0.2, 0.4)}, (96, 128), r'SSD: 3 ratios, 2 scales and no strides for 3 maps; give as many of each'),
    ({'strides': (8, 16)}, (96, 128), r'SSD: 3 ratios, 4 scales and 2 strides for 3 maps'),
    ({'extras': (ssd.Extra(8, 9, 1, 0),)}, (96, 128),
     r'SSD: an image of 96 x 128 leaves 6 x 8 pixels for a convolution of 9 x 9; give a larger one, or fewer extras'),
    ({'levels': ('stage1', 'stage9')}, (96, 128), "no feature map 'stage9'")])
def test_what_does_not_fit_is_answered_in_one_line(change, canvas, message):
  with pytest.raises(ValueError, match=message):
    drawn.shapes(models.create('ssd_small').clone(**change), 1, *canvas, 3)


def test_strides_hold_for_their_canvas_alone():
  with pytest.raises(ValueError, match=r'the canvas is 512 x 512, and the strides of these default boxes hold for '
                                       r'300 x 300 alone; give that canvas'):
    models.create('ssd300_vgg16').anchors((512, 512))


# ---- beside torchvision ----


@functools.cache
def run(name):
  """Outputs, detections and losses of a detector under the formula's weights, in training mode."""
  (script, stored), draw = golden('ssd'), golden('detectors')[0]
  stored = {key.partition('/')[2]: stored[key] for key in stored.files if key.startswith(f'{name}/')}
  lite, side = name.startswith('ssdlite'), script.CANVAS[name]
  model = models.create(name, **({'norm': 'frozen'} if lite else {}))
  variables = formula.detector(model, script.GAIN[name], stored['names'])

  mean, std = (0.5, 0.5) if lite else (np.float32([0.48235, 0.45882, 0.40784]), np.float32(1 / 255))
  image = ((draw.pixels(0, (side, side)) - mean) / std)[None].astype(np.float32)
  boxes = (draw.BOXES * np.array([side / 416, side / 320] * 2, np.float32))[None]
  anchors = model.anchors((side, side))
  outputs = jax.device_get(jax.jit(functools.partial(model.apply, train=True))(variables, image))
  given = outputs['logits'], outputs['deltas']
  options = ops.SSDLITE_DECODE if lite else {}
  found = jax.jit(functools.partial(ops.ssd_decode, anchors=anchors, image_size=np.array([side, side]),
                                    **options))(*given)
  terms = jax.jit(functools.partial(losses.ssd_loss, anchors=anchors))(*given, boxes, draw.LABELS[None] - 1)
  return script, stored, anchors, outputs, jax.device_get(found), terms


@pytest.mark.medium
@pytest.mark.parametrize('name', [
    'ssd300_vgg16', pytest.param('ssdlite320_mobilenet_v3_large', marks=pytest.mark.slow)])
def test_head_outputs_default_boxes_detections_and_losses_are_torchvision_s(name):
  script, stored, anchors, outputs, found, terms = run(name)
  np.testing.assert_allclose(anchors[::script.EVERY], stored['anchors'], atol=1e-4)  # pixels
  logits = outputs['logits'][0, ::script.EVERY][::script.ROWS, ::script.CLASSES]
  np.testing.assert_allclose(logits, stored['logits'], atol=1e-5 * stored['largest'])
  np.testing.assert_allclose(outputs['deltas'][0, ::script.EVERY], stored['deltas'],
                             atol=2e-5 * np.abs(stored['deltas']).max())
  # torchvision keeps boxes without area; ours come in their place.
  sized = (stored['detected_boxes'][:, 2:] > stored['detected_boxes'][:, :2]).all(1)
  amount = sized.sum()
  assert found['valid'].all() and amount > 100
  rows = np.concatenate([found['boxes'], found['labels'][..., None] + 1], axis=-1)[0, :amount]
  expected = np.concatenate([stored['detected_boxes'], stored['detected_labels'][:, None]], axis=-1)[sized]
  scores = stored['detected_scores'][sized]
  np.testing.assert_allclose(found['scores'][0, :amount], scores, atol=1e-5)
  # Where neighbours' scores are as near as that, they may have changed places.
  near = np.append(False, -np.diff(scores) < 1e-5)
  start = np.cumsum(~near)
  order, theirs = (np.lexsort((*np.round(r[:, :2], 1).T, start)) for r in (rows, expected))
  np.testing.assert_allclose(rows[order], expected[theirs], atol=1e-3)  # pixels, and labels
  for key, term in terms.items():
    np.testing.assert_allclose(term.total / term.count, stored[key], rtol=1e-5)
