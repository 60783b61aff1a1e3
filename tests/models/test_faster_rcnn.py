"""Faster R-CNN as a model: its stages fit together, its presets are the texts', and its outputs are torchvision's."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_files import golden
from tests.models import drawn
from tests.pretrained import formula
from vision_jax import models, tasks
from vision_jax.conventions import ClassMap
from vision_jax.models.detection.faster_rcnn import ANCHORS, BoxHead
from vision_jax.ops import multilevel_roi_align, roi_pool

CANVAS = (64, 96)


@functools.cache
def small(**options):
  """A narrow network, drawn variables and an image."""
  model = models.create('fasterrcnn_small', num_classes=3, width=4, hidden=8, post_nms=(20, 12), **options)
  x = np.random.default_rng(0).standard_normal((2, *CANVAS, 3)).astype(np.float32)
  return model, drawn.variables(model, x), x


@functools.cache
def outputs():
  """Of the small network for contents of half the canvas, and the same again stage by stage."""
  model, variables, x = small()
  sizes = np.array([[32, 48], CANVAS], np.int32)

  def stages(module):
    maps = module.features(x)
    found = module.propose(maps, CANVAS, sizes)
    return found | module.heads(maps, found['proposals'], found['proposals_valid'])

  both = jax.jit(lambda variables: (model.apply(variables, x, image_size=sizes),
                                    model.apply(variables, method=stages)))
  return *jax.device_get(both(variables)), sizes


@pytest.mark.medium
def test_a_call_is_its_stages_one_after_the_other():
  whole, parts, _ = outputs()
  jax.tree.map(np.testing.assert_array_equal, whole, parts)


@pytest.mark.medium
def test_proposals_lie_inside_the_content_and_there_are_at_most_as_many_as_asked_for():
  found, _, sizes = outputs()
  assert found['proposals'].shape == (2, 12, 4) and found['proposals_valid'].any(1).all()
  for boxes, valid, (h, w) in zip(found['proposals'], found['proposals_valid'], sizes, strict=True):
    x1, y1, x2, y2 = boxes[valid].T
    assert ((x1 >= 0) & (x1 < x2) & (x2 <= w) & (y1 >= 0) & (y1 < y2) & (y2 <= h)).all()
    assert not boxes[~valid].any()


def test_training_proposes_as_many_as_its_own_numbers_say():
  model, _, x = small()
  found = jax.eval_shape(lambda key: model.init_with_output(key, x, train=True)[0], jax.random.key(0))
  assert found['proposals'].shape == (2, 20, 4) and found['logits'].shape == (2, 20, 4)


def test_anchors_are_as_many_as_the_scores_at_every_canvas_that_divides():
  model, *_ = small()
  for canvas in (CANVAS, (96, 48)):
    found = drawn.shapes(model, 2, *canvas, 3)[0]
    assert found['objectness'].shape == (2, len(model.anchors(canvas))) == (2, sum(model.level_sizes(canvas)))
  with pytest.raises(ValueError, match='anchors: the canvas is 60 x 96, .*; the nearest that it does is 64 x 96'):
    model.anchors((60, 96))


@pytest.mark.medium
def test_each_region_is_read_by_itself_and_empty_slots_are_like_a_crop_of_zeros():
  model, variables, x = small()
  boxes = np.array([[[4, 4, 20, 30], [30, 8, 60, 40], [np.nan, 0, 1e9, 5]]], np.float32)
  valid = np.array([[True, True, False]])

  def run(variables, boxes, valid):
    return model.apply(variables, method=lambda m: m.heads(m.features(x[:1]), boxes, valid))
  run = jax.jit(run)
  found, swapped = run(variables, boxes, valid), run(variables, boxes[:, [1, 0, 2]], valid)
  np.testing.assert_allclose(found['logits'][:, :2], swapped['logits'][:, 1::-1], rtol=1e-5, atol=1e-6)  # float32
  assert np.abs(found['logits'][0, 0] - found['logits'][0, 1]).max() > 1e-3
  assert all(np.isfinite(value).all() for value in found.values())


def test_the_paper_s_network_pools_regions_and_others_align_them():
  model = models.create('fasterrcnn_vgg16', num_classes=3)
  maps, boxes, valid = (jnp.ones((1, 4, 6, 8)),), jnp.ones((1, 2, 4)), jnp.ones((1, 2), bool)
  expected = {'max': lambda boxes, valid: roi_pool(maps[0], boxes, stride=16, valid=valid),
              'align': lambda boxes, valid: multilevel_roi_align(maps, boxes, strides=(16,), valid=valid)}
  assert model.pooling == 'max' and models.create('fasterrcnn_resnet50_fpn').pooling == 'align'
  for pooling, crop in expected.items():
    module = model.clone(pooling=pooling).bind({})
    program = jax.make_jaxpr(lambda boxes, valid, module=module: module.crops(maps, boxes, valid, 7))(boxes, valid)
    assert without_addresses(program) == without_addresses(jax.make_jaxpr(crop)(boxes, valid))


def without_addresses(program) -> str:
  return re.sub(r'0x[0-9a-f]+', '', str(program))


def test_dropout_zeroes_features_of_regions_in_training_only():
  assert models.create('fasterrcnn_vgg16').dropout == 0.5
  crops = np.random.default_rng(0).standard_normal((1, 3, 2, 2, 4)).astype(np.float32)
  variables = drawn.variables(BoxHead(64), crops)
  still, plain = (BoxHead(64, rate).apply(variables, crops) for rate in (0.5, 0.0))
  noisy = BoxHead(64, 0.5).apply(variables, crops, train=True, rngs={'dropout': jax.random.key(0)})
  np.testing.assert_array_equal(still, plain)
  zeros = [(np.asarray(x) == 0).mean() for x in (still, noisy)]
  assert zeros[0] < 0.65 < 0.7 < zeros[1] < 0.85  # half of what the activation leaves


def test_presets_of_anchors_and_layers_are_those_of_the_texts():
  paper = models.create('fasterrcnn_vgg16')
  assert (paper.sizes, paper.ratios) == (((128, 256, 512),), (0.5, 1, 2)) and paper.hidden == 4096
  other = models.create('fasterrcnn_vgg16', anchors='smaller', hidden=1024)
  assert (other.sizes, other.ratios) == (((64, 128, 256),), (0.5, 1, 1.5)) and other.hidden == 1024
  pyramid = models.create('fasterrcnn_resnet50_fpn')
  assert pyramid.sizes == ((32,), (64,), (128,), (256,), (512,)) and pyramid.ratios == (0.5, 1, 2)
  assert pyramid.hidden == 1024 and paper.level_sizes((608, 1008)) == (38 * 63 * 9,)
  with pytest.raises(ValueError, match=f"anchors are 'seed'; give one of {', '.join(ANCHORS)}"):
    models.create('fasterrcnn_vgg16', anchors='seed')


def test_what_does_not_fit_is_refused_in_one_line():
  model, *_ = small()
  with pytest.raises(ValueError, match=r"pooling 'max' with strides \(8, 16\); give 'align', or 'max' with one stride"):
    drawn.shapes(model.clone(pooling='max', strides=(8, 16)), 1, *CANVAS, 3)
  for strides in ((8, 32), (6, 12), (16, 8), ()):
    with pytest.raises(ValueError, match=f'FasterRCNN: strides {re.escape(str(strides))}; give powers of two, each '):
      drawn.shapes(model.clone(strides=strides), 1, *CANVAS, 3)
  for name, counts in (('post_nms', 64), ('post_nms', (64, 0)), ('pre_nms', (64,)), ('pre_nms', (0, 1))):
    message = re.escape(f'FasterRCNN: {name} is {counts}; give two numbers of at least 1, in training and in predicti')
    with pytest.raises(ValueError, match=message):
      models.create('fasterrcnn_small', **{name: counts})
    with pytest.raises(ValueError, match=message):
      drawn.shapes(model.clone(**{name: counts}), 1, *CANVAS, 3)
  with pytest.raises(ValueError, match=r'FasterRCNN: \[1, 2\] sizes of anchors at the levels; give as many at each'):
    drawn.shapes(model.clone(sizes=((8.0,), (16.0, 20.0))), 1, *CANVAS, 3)


@pytest.mark.medium
@pytest.mark.parametrize(('name', 'parameters'), [('fasterrcnn_resnet50_fpn', 41_755_286),
                                                  ('fasterrcnn_mobilenet_v3_large_fpn', 19_386_354)])
def test_without_batch_norm_s_scales_and_biases_the_parameters_are_those_published(name, parameters):
  variables = drawn.shapes(models.create(name, norm='frozen'), 1, 64, 64, 3)[1]
  params, stats = (jax.tree_util.tree_leaves_with_path(variables[part]) for part in ('params', 'batch_stats'))
  norms = {path[:-1] for path, _ in stats}
  assert sum(leaf.size for path, leaf in params if path[:-1] not in norms) == parameters


def test_a_mobilenet_s_names_are_torchvision_s_where_the_list_itself_is_the_body():
  from vision_jax.pretrained import names
  assert names.torch_name('params/backbone/body/features_4/block_2/fc1/kernel') == 'backbone.body.4.block.2.fc1.weight'
  assert names.torch_name('params/rpn/head/conv_0/0/bias') == 'rpn.head.conv.0.0.bias'
  assert names.torch_shape('params/roi_heads/box_head/fc6/flat_kernel', (7, 7, 256, 1024)) == (1024, 12544)


# ---- beside torchvision ----


@functools.cache
def run():
  """torchvision's figures, ours for the same weights and image, and Terms of the loss, in one program."""
  script, stored = golden('detectors')
  name = 'fasterrcnn_resnet50_fpn'
  stored = {key.partition('/')[2]: stored[key] for key in stored.files if key.startswith(f'{name}/')}
  model = models.create(name, norm='frozen')
  variables = formula.detector(model, 1.0, stored['names'])
  # So many samples that none of the anchors and proposals is left out.
  task = tasks.create('faster_rcnn', model, ClassMap(tuple(map(str, range(90)))), rpn_samples=40_000, roi_samples=2003,
                      rpn_positive_fraction=1.0, roi_positive_fraction=1.0)
  image, image_size, boxes, labels = script.dense_batch()
  # Background is a class of its own here: label 1 of 91 is our 0.
  batch = {'image': image, 'image_size': image_size, 'boxes': boxes, 'labels': labels - 1,
           'boxes_valid': np.ones((1, 3), bool), 'valid': np.ones(1, bool), 'position': np.zeros(1, np.int32)}

  def stages(module):
    maps = module.features(image)
    given = jnp.asarray(stored['proposals'])[None]
    return module.propose(maps, script.CANVAS) | module.heads(maps, given, jnp.ones(given.shape[:2], bool))

  def everything(variables):
    params, state = variables['params'], {'batch_stats': variables['batch_stats']}
    terms = task.loss(params, state, batch, jax.random.key(0), jnp.int32(0), True)[0]
    return terms, task.predict(variables, batch), model.apply(variables, method=stages)
  return script, stored, model, *jax.device_get(jax.jit(everything)(variables))


def maps_of(script, model, values, per_pixel):
  """What every so many pixels of each level hold of values [A, ...], as torch lays it: [numbers, h, w]."""
  start, found = 0, []
  for i, size in enumerate(model.level_sizes(script.CANVAS)):
    h, w = (-(-side // (4 << i)) for side in script.CANVAS)
    level = values[start:start + size].reshape(h, w, per_pixel)
    found.append(level[::script.PIXELS, ::script.PIXELS].transpose(2, 0, 1))
    start += size
  return found


@pytest.mark.slow
def test_both_stages_detections_and_losses_are_torchvision_s():
  script, stored, model, terms, detected, found = run()
  for name, per_pixel in (('objectness', 3), ('deltas', 12)):
    for i, level in enumerate(maps_of(script, model, found[name][0], per_pixel)):
      level = level[:, ::script.FINEST, ::script.FINEST] if (name, i) == ('deltas', 0) else level
      expected = stored[f'{name}_{i}']
      np.testing.assert_allclose(level, expected, atol=1e-5 * np.abs(expected).max())
  for name in ('logits', 'box_deltas'):
    expected = stored[name]
    np.testing.assert_allclose(found[name][0].reshape(expected.shape), expected, atol=1e-5 * np.abs(expected).max())
  for name, term in terms.items():
    np.testing.assert_allclose(term.total / term.count, stored[name], rtol=1e-5)
  assert detected['valid'].all()
  np.testing.assert_array_equal(detected['labels'][0] + 1, stored['detected_labels'])
  np.testing.assert_allclose(detected['scores'][0], stored['detected_scores'], atol=2e-4)
  # These weights give deltas of up to 19 and boxes as large as the canvas: what float32 rounds becomes hundredths.
  np.testing.assert_allclose(detected['boxes'][0], stored['detected_boxes'], atol=0.05)  # pixels
