"""Any head on any backbone; RetinaNet and FCOS as wholes: outputs go with anchors, and with torchvision's."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_files import golden
from tests.models import drawn
from tests.pretrained import formula
from vision_jax import losses, models, ops
from vision_jax.models.classification.darknet import darknet53
from vision_jax.models.classification.mobilenetv3 import mobilenet_v3_large
from vision_jax.models.classification.resnet import resnet18
from vision_jax.models.detection.detr import DETR
from vision_jax.models.detection.faster_rcnn import FasterRCNN
from vision_jax.models.detection.fcos import FCOS
from vision_jax.models.detection.retinanet import RetinaNet
from vision_jax.models.detection.ssd import SSD, Extra
from vision_jax.models.detection.yolov3 import YOLOv3

pytestmark = pytest.mark.medium  # many small compilations: together more than the fast tests can spare

CANVAS, K = (64, 96), 5

# ---- six heads on three backbones ----

# Each with the names of its maps of stride 8, 16 and 32.
BODIES = {
    'resnet18': (functools.partial(resnet18, num_classes=0), ('layer2', 'layer3', 'layer4')),
    'mobilenet_v3_large': (functools.partial(mobilenet_v3_large, num_classes=0),
                           ('features_6', 'features_12', 'features_16')),
    'darknet53': (functools.partial(darknet53, num_classes=0), ('stage3', 'stage4', 'stage5')),
}
PIXELS = 8 * 12 + 4 * 6 + 2 * 3  # of the three levels
# For each head the detector, and the shapes of its outputs on one image of the canvas.
HEADS = {
    'retinanet': (lambda body, levels: RetinaNet(body, levels, K),
                  {'logits': (9 * (PIXELS + 3), K), 'deltas': (9 * (PIXELS + 3), 4)}),
    'fcos': (lambda body, levels: FCOS(body, levels, K),
             {'logits': (PIXELS + 3, K), 'distances': (PIXELS + 3, 4), 'centerness': (PIXELS + 3,)}),
    'ssd': (lambda body, levels: SSD(body, levels, K, (Extra(8),), (0.1, 0.2, 0.4, 0.6, 0.8),
                                     ((2,), (2, 3), (2,), (2,))),
            {'logits': (4 * (PIXELS + 2) + 2 * 4 * 6, K + 1), 'deltas': (4 * (PIXELS + 2) + 2 * 4 * 6, 4)}),
    'yolov3': (lambda body, levels: YOLOv3(body, levels, K, ((((8.0, 8.0),) * 2,) * 3), (8, 16, 32), (8, 16, 32)),
               {0: (8, 12, 2, 5 + K), 1: (4, 6, 2, 5 + K), 2: (2, 3, 2, 5 + K)}),
    'detr': (lambda body, levels: DETR(body, levels[-1:], K, 7, encoder_layers=1, decoder_layers=2),
             {'logits': (7, K + 1), 'boxes': (7, 4)}),
    # Three anchors at each pixel of the three levels and of a fourth of 1 x 2; 7 proposals.
    'faster_rcnn': (lambda body, levels: FasterRCNN(body, levels, K, (8, 16, 32), ((8.0,),) * 4, post_nms=(9, 7)),
                    {'objectness': (3 * (PIXELS + 2),), 'deltas': (3 * (PIXELS + 2), 4), 'proposals': (7, 4),
                     'proposals_valid': (7,), 'logits': (7, K + 1), 'box_deltas': (7, K + 1, 4)}),
}


@pytest.mark.parametrize('body', BODIES)
@pytest.mark.parametrize('head', HEADS)
def test_every_head_fits_every_backbone(head, body):
  make, expected = HEADS[head]
  body, levels = BODIES[body]
  outputs = drawn.shapes(make(body(), levels), 1, *CANVAS, 3)[0]
  outputs = outputs if isinstance(outputs, dict) else dict(enumerate(outputs))
  # DETR's layers come before the images.
  found = {name: leaf.shape[2 if head == 'detr' else 1:] for name, leaf in outputs.items()}
  assert found == expected
  assert {leaf.dtype for name, leaf in outputs.items() if name != 'proposals_valid'} == {jnp.dtype('float32')}


# ---- RetinaNet and FCOS ----

DENSE = ('retinanet', 'fcos')
every_dense = pytest.mark.parametrize('name', DENSE)


def count(tree) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@every_dense
def test_anchors_are_as_many_as_the_predictions_at_every_canvas_that_divides(name):
  model = models.create(f'{name}_small', num_classes=3, width=4)
  for canvas in ((64, 96), (96, 48)):
    outputs = drawn.shapes(model, 2, *canvas, 3)[0]
    assert set(outputs) == set(model.outputs)
    assert {leaf.shape[:2] for leaf in outputs.values()} == {(2, len(model.anchors(canvas)))}
    assert sum(model.level_sizes(canvas)) == len(model.anchors(canvas))


@every_dense
def test_untrained_heads_predict_the_prior_for_every_class_and_no_offset(name):
  head = head_of(models.create(f'{name}_small', num_classes=3, width=4, prior=0.02, convs=0))
  outputs = jax.jit(head.init_with_output)(jax.random.key(0), (jnp.zeros((1, 2, 3, 16)), jnp.zeros((1, 1, 2, 16))))[0]
  np.testing.assert_allclose(jax.nn.sigmoid(outputs['logits']), 0.02, rtol=1e-5)
  assert not any(np.asarray(outputs[name]).any() for name in outputs if name != 'logits')


def head_of(model):
  """The head of a detector as a module of its own."""
  return model.bind({}).head.clone(parent=None, name=None)


@every_dense
def test_what_changes_in_the_image_changes_the_predictions_of_the_anchors_there(name):
  model = models.create(f'{name}_small', num_classes=3, width=8, norm='none', head_norm='none')
  x = np.zeros((1, 96, 128, 3), np.float32)
  variables, apply = drawn.variables(model, x), jax.jit(model.apply)
  changed = x.copy()
  changed[0, 16:24, 96:104] = 5
  before, after = apply(variables, x)['logits'], apply(variables, changed)['logits']
  fine = model.level_sizes((96, 128))[0]
  most = np.argmax(np.abs(after - before)[0, :fine].sum(-1))
  x1, y1, x2, y2 = model.anchors((96, 128))[most]
  # The centre of what changed is (100, 20); in a random network three pixels of stride 8 are near enough.
  assert abs((x1 + x2) / 2 - 100) <= 24 and abs((y1 + y2) / 2 - 20) <= 24


def test_the_channels_of_a_pixel_are_its_anchors_and_then_their_classes():
  model = models.create('retinanet_small', num_classes=3, width=4)
  head, maps = head_of(model), (jnp.zeros((1, 2, 2, 16)), jnp.zeros((1, 1, 1, 16)))
  variables = drawn.variables(head, maps)
  last = variables['params']['classification_head']['cls_logits']
  last['kernel'][:], last['bias'][:] = 0, np.arange(18)
  logits = np.asarray(jax.jit(head.apply)(variables, maps)['logits'])
  assert logits.shape == (1, 5 * 6, 3)
  np.testing.assert_array_equal(logits.reshape(5, 18), np.arange(18)[None].repeat(5, 0))


def test_levels_with_different_numbers_of_sizes_are_refused():
  model = models.create('retinanet_small', sizes=((8.0,), (16.0, 20.0)))
  with pytest.raises(ValueError, match=r'RetinaNet: \[1, 2\] sizes of anchors at the levels; give as many at each'):
    drawn.shapes(model, 1, *CANVAS, 3)


def test_strides_that_are_not_those_of_the_maps_are_refused():
  rcnn = models.create('fasterrcnn_small', num_classes=3, width=4).clone(strides=(16,))
  with pytest.raises(ValueError, match=r'FasterRCNN: strides \(16,\) for maps of stride 8; give these'):
    drawn.shapes(rcnn, 1, *CANVAS, 3)
  fcos = models.create('fcos_small', num_classes=3, width=4).clone(sizes=((4.0,), (8.0,)))
  with pytest.raises(ValueError, match=r'FCOS: strides \(4.0, 8.0\) for maps of stride 8, 16; give these'):
    fcos.anchors(CANVAS)


@pytest.mark.parametrize(('name', 'parameters'), [('retinanet_resnet50_fpn', 34_014_999),
                                                  ('fcos_resnet50_fpn', 32_269_600)])
def test_without_batch_norm_s_scales_and_biases_the_parameters_are_those_published(name, parameters):
  params = drawn.shapes(models.create(name, norm='frozen'), 1, 64, 64, 3)[1]['params']
  body = params['backbone']['body']
  norms = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(body) if path[-1].key in ('scale', 'bias')]
  assert count(norms) == 53_120 and count(params) - count(norms) == parameters


# ---- beside torchvision ----


@functools.cache
def run(name):
  """Outputs, detections and losses of a detector under the formula's weights, in training mode."""
  script, stored = golden('detectors')
  full = f'{name}_resnet50_fpn'
  stored = {key.partition('/')[2]: stored[key] for key in stored.files if key.startswith(f'{full}/')}
  model = models.create(full, norm='frozen')
  variables = formula.detector(model, {'retinanet': 0.85, 'fcos': 1.0}[name], stored['names'])

  image, image_size, boxes, labels = script.dense_batch()
  canvas, decode, loss = script.CANVAS, getattr(ops, f'{name}_decode'), getattr(losses, f'{name}_loss')
  anchors = model.anchors(canvas)
  outputs = jax.device_get(jax.jit(functools.partial(model.apply, train=True))(variables, image))
  given = [outputs[key] for key in model.outputs]
  found = jax.jit(functools.partial(decode, anchors=anchors, image_size=image_size,
                                    level_sizes=model.level_sizes(canvas)))(*given)
  terms = jax.jit(functools.partial(loss, anchors=anchors))(*given, boxes, labels)
  return script, stored, anchors, outputs, jax.device_get(found), terms


@pytest.mark.medium
@pytest.mark.parametrize('name', ['retinanet', pytest.param('fcos', marks=pytest.mark.slow)])
def test_head_outputs_anchors_detections_and_losses_are_torchvision_s(name):
  script, stored, anchors, outputs, found, terms = run(name)
  np.testing.assert_allclose(anchors[::script.EVERY], stored['anchors'], atol=1e-3)
  rows = outputs['logits'][0, ::script.EVERY]
  np.testing.assert_allclose(rows[::len(rows) // len(stored['logits'])], stored['logits'],
                             atol=1e-5 * stored['largest'])
  for key in set(outputs) - {'logits'}:
    np.testing.assert_allclose(outputs[key][0, ::script.EVERY], stored[key], atol=2e-5 * np.abs(stored[key]).max())
  # torchvision keeps boxes without area, which its FCOS has here; ours come in their place.
  sized = (stored['detected_boxes'][:, 2:] > stored['detected_boxes'][:, :2]).all(1)
  amount = sized.sum()
  assert sized.all() == (name == 'retinanet') and found['valid'].all() and amount > 50
  np.testing.assert_allclose(found['scores'][0, :amount], stored['detected_scores'][sized], atol=1e-5)
  np.testing.assert_array_equal(found['labels'][0, :amount], stored['detected_labels'][sized])
  np.testing.assert_allclose(found['boxes'][0, :amount], stored['detected_boxes'][sized], atol=1e-3)  # pixels
  for key, term in terms.items():
    np.testing.assert_allclose(term.total / term.count, stored[key], rtol=1e-5)
