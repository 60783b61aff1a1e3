"""What holds for every public name of `ops` and `losses`; both rooms are walked, so a new name cannot be forgotten."""

import functools
import inspect
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax import losses, ops
from vision_jax.conventions import option_defaults

PUBLIC = {f'{room.__name__.split(".")[-1]}.{name}': getattr(room, name)
          for room in (ops, losses) for name in room.__all__}
FUNCTIONS = {name: thing for name, thing in PUBLIC.items() if inspect.isfunction(thing)}

BOXES = np.array([[1, 2, 9, 9], [2, 1, 12, 11], [20, 3, 29, 15]], np.float32)
OTHERS = np.array([[1, 1, 8, 9], [14, 2, 22, 8], [20, 3, 29, 15]], np.float32)
RAW = np.random.default_rng(0).normal(size=(2, 2, 4, 1, 7)).astype(np.float32)
HEAD = {'anchors': (((8.0, 8.0),), ((20.0, 12.0),)), 'strides': (8, 16)}
LEVELS = RAW, RAW[:, :1, :2] / 2
IMAGES, CLASSES = RAW[:, :, :, 0, :3], np.random.default_rng(1).integers(0, 3, (2, 2, 4)).astype(np.int32)
PAIR = (BOXES, OTHERS), {}
PYRAMID = {'canvas': (64, 96), 'grids': ((8, 12), (4, 6), (2, 3), (1, 2), (1, 1))}
MASKS = CLASSES % 2 > 0
CHANNELS = {'in_channels': 4, 'out_channels': 6, 'kernel': (3, 3)}
KEY = np.array([0, 1], np.uint32)
OBJECTS = np.stack([BOXES, OTHERS]), np.array([[0, 1, 1], [1, 0, 0]])
HEADS = RAW[:, 0, :3, 0, :3], RAW[:, 0, :3, 0, 3:]
FOUND = {'image_size': (16, 30), 'max_detections': 3}
SAMPLES = losses.ProposalSamples(OBJECTS[0], OBJECTS[1] < 1, OBJECTS[1] * 0, OBJECTS[0] + 1, OBJECTS[1], OBJECTS[1] < 2)

# One call of every public function: its arrays and its options.
CALLS = {
    'ops.balanced_sample': ((KEY, BOXES[:, 0] < 2, BOXES[:, 0] > 1), {'size': 4, 'positive_fraction': 0.5}),
    'ops.base_anchors': ((), {'sizes': (8, 16), 'ratios': (0.5, 1)}),
    'ops.binary_closing': ((MASKS,), {}),
    'ops.binary_dilation': ((MASKS,), {'iterations': 2}),
    'ops.binary_erosion': ((MASKS,), {'structure': ops.SQUARE}),
    'ops.binary_opening': ((MASKS,), {}),
    'ops.box_area': ((BOXES,), {}),
    'ops.centerness': ((BOXES,), {}),
    'ops.ciou': PAIR,
    'ops.class_aware_nms': ((BOXES, BOXES[:, 0], np.array([0, 0, 1])), {'iou_threshold': 0.3, 'max_outputs': 2}),
    'ops.class_aware_soft_nms': ((BOXES, BOXES[:, 0] / 30, np.array([0, 0, 1])), {'max_outputs': 2}),
    'ops.clip_boxes': ((BOXES, np.array([10, 20])), {}),
    'ops.connected_components': ((MASKS,), {}),
    'ops.conv_cost': ((), CHANNELS | {'output_size': (2, 3)}),
    'ops.conv_output_size': ((), {'size': 9, 'kernel': 3}),
    'ops.conv_transpose_cost': ((), CHANNELS | {'input_size': (2, 3)}),
    'ops.conv_transpose_output_size': ((), {'size': 9, 'kernel': 3}),
    'ops.crop_and_resize_masks': ((IMAGES[0], BOXES / 8, np.array([1, 0, 1])), {'output_size': (2, 3)}),
    'ops.decode_deltas': ((OTHERS[:, :2].repeat(2, 1) / 20, BOXES), {'variances': (0.1, 0.1, 0.2, 0.2)}),
    'ops.decode_distances': PAIR,
    'ops.detr_decode': ((RAW[..., 0, :3], np.abs(RAW[..., 0, 3:])), {'image_size': (16, 30)}),
    'ops.diou': PAIR,
    'ops.encode_deltas': (PAIR[0], {'variances': (0.1, 0.1, 0.2, 0.2)}),
    'ops.encode_distances': PAIR,
    'ops.faster_rcnn_decode': ((HEADS[0], np.stack([HEADS[1]] * 3, 2), OBJECTS[0]),
                               FOUND),
    'ops.fcos_anchors': ((), PYRAMID),
    'ops.fill_holes': ((MASKS,), {}),
    'ops.fcos_decode': ((HEADS[0], np.abs(HEADS[1]), HEADS[0][..., 0]), {'anchors': OTHERS, **FOUND}),
    'ops.flatten_levels': ((LEVELS,), {}),
    'ops.flip_boxes': ((BOXES, np.array([10, 20])), {}),
    'ops.giou': PAIR,
    'ops.hungarian_matching': ((RAW[..., 0, :],), {'valid': np.arange(7) < 5}),
    'ops.iou': PAIR,
    'ops.kmeans_anchors': ((KEY, BOXES[:, 2:]), {'count': 2}),
    'ops.l2_normalize': ((BOXES,), {}),
    'ops.masks_to_boxes': ((MASKS,), {}),
    'ops.max_iou_assignment': ((np.abs(BOXES) / 30,), {'high': 0.5, 'low': 0.3, 'low_quality': 'force'}),
    'ops.multilevel_roi_align': (([IMAGES, IMAGES[:, :1, :2]], np.stack([BOXES, OTHERS])),
                                 {'strides': (8, 16), 'output_size': (2, 1), 'canonical_size': 32}),
    'ops.nms': ((BOXES, BOXES[:, 0]), {'iou_threshold': 0.3, 'max_outputs': 4}),
    'ops.pairwise_cosine': PAIR,
    'ops.pairwise_euclidean': PAIR,
    'ops.pairwise_iou': PAIR,
    'ops.paste_masks': ((IMAGES[:, 0], BOXES[:2]), {'canvas': (9, 12)}),
    'ops.pyramid_anchors': ((), PYRAMID | {'sizes': ((8,),) * 5}),
    'ops.remove_small_components': ((MASKS,), {'min_area': 2}),
    'ops.retinanet_anchors': ((), PYRAMID),
    'ops.retinanet_decode': (HEADS, {'anchors': OTHERS, **FOUND}),
    'ops.roi_align': ((IMAGES[0], BOXES), {'stride': 8, 'output_size': (1, 2), 'valid': np.array([True, False, True])}),
    'ops.roi_levels': ((BOXES,), {}),
    'ops.roi_pool': ((IMAGES[0], BOXES), {'stride': 8, 'output_size': (1, 2), 'valid': np.array([True, False, True])}),
    'ops.rpn_anchors': ((), PYRAMID),
    'ops.rpn_proposals': ((HEADS[0][..., 0], HEADS[1]), {'anchors': OTHERS, 'image_size': (16, 30), 'post_nms': 2}),
    'ops.scale_boxes': ((BOXES, np.float32([0.5, 2])), {}),
    'ops.separable_conv_cost': ((), CHANNELS | {'output_size': (2, 3)}),
    'ops.soft_nms': ((BOXES, BOXES[:, 0] / 30), {'method': 'linear', 'max_outputs': 4}),
    'ops.ssd_decode': (HEADS, {'anchors': OTHERS, **FOUND}),
    'ops.ssd_default_boxes': ((), ops.SSD300),
    'ops.yolo_decode': ((RAW, np.array([[8.0, 8.0]], np.float32)), {'stride': 8}),
    'ops.yolo_encode': ((BOXES, BOXES[:, :2] // 8, OTHERS[:, 2:]), {'stride': 8}),
    'ops.yolo_slots': ((), HEAD | {'canvas': (16, 32)}),
    'ops.yolov1_boxes': ((RAW,), {'canvas': (16, 32)}),
    'ops.yolov1_decode': ((np.tile(RAW[..., 0, :], 2),), {'canvas': (16, 32), **FOUND}),
    'ops.yolov2_decode': ((RAW,), {'anchors': ((8.0, 8.0),), 'stride': 8, **FOUND}),
    'ops.yolov3_decode': ((LEVELS,), HEAD | {'image_size': (16, 30), 'max_detections': 3}),
    'losses.arcface_loss': ((BOXES, OTHERS, np.array([0, 2, 1])), {'scale': 4.0}),
    'losses.batch_hard_triplet_loss': ((BOXES, np.array([0, 1, 0])), {'margin': 'soft'}),
    'losses.ciou_loss': PAIR,
    'losses.content_loss': ((IMAGES, IMAGES[::-1]), {}),
    'losses.contrastive_loss': ((BOXES / 9, OTHERS / 9, np.array([True, False, False])), {}),
    'losses.detr_loss': ((RAW[..., 0, :3], np.abs(RAW[..., 0, 3:]), *OBJECTS), {'image_size': (16, 30)}),
    'losses.diou_loss': PAIR,
    'losses.fcos_loss': ((HEADS[0], np.abs(HEADS[1]), HEADS[0][..., 0], *OBJECTS), {'anchors': OTHERS}),
    'losses.focal_loss': ((IMAGES, np.abs(IMAGES) < 1), {}),
    'losses.giou_loss': PAIR,
    'losses.gram_matrix': ((IMAGES,), {'normalize': 'elements'}),
    'losses.iou_loss': PAIR,
    'losses.l1_loss': PAIR,
    'losses.mask_loss': ((RAW[:, 0, :3, :, :3, None].swapaxes(2, 3), RAW[:, :, :, 0, :], SAMPLES), {}),
    'losses.pixel_cross_entropy': ((IMAGES, CLASSES), {'valid': CLASSES < 2}),
    'losses.retinanet_loss': ((*HEADS, *OBJECTS), {'anchors': OTHERS}),
    'losses.roi_loss': ((HEADS[0][..., :2], np.stack([HEADS[1]] * 2, 2), SAMPLES), {}),
    'losses.rpn_loss': ((KEY, HEADS[0][..., 0], HEADS[1], OBJECTS[0]), {'anchors': OTHERS, 'size': 2}),
    'losses.sample_proposals': ((KEY, OBJECTS[0] + 1, *OBJECTS), {'size': 4}),
    'losses.segmentation_loss': ((IMAGES, CLASSES), {'pixels_valid': CLASSES < 2}),
    'losses.semi_hard_triplet_loss': ((BOXES, np.array([0, 1, 0])), {}),
    'losses.sigmoid_cross_entropy': ((IMAGES, np.abs(IMAGES) < 1), {}),
    'losses.smooth_l1_loss': PAIR,
    'losses.soft_dice': ((np.abs(IMAGES) / 4, np.abs(IMAGES) < 1), {'valid': CLASSES < 2}),
    'losses.softmax_cross_entropy': ((IMAGES, CLASSES), {'label_smoothing': 0.1}),
    'losses.ssd_loss': ((*HEADS, *OBJECTS), {'anchors': OTHERS}),
    'losses.style_loss': ((IMAGES, IMAGES[:, :1]), {}),
    'losses.style_transfer_loss': (({'a': RAW[..., 0, :], 'b': IMAGES}, {'a': RAW[0, ..., 0, :]}, {'b': IMAGES[:, :1]},
                                    IMAGES), {'valid': np.array([True, False])}),
    'losses.total_variation': ((IMAGES,), {}),
    'losses.triplet_loss': ((BOXES, OTHERS, OTHERS[::-1]), {}),
    'losses.tversky': ((np.abs(IMAGES) / 4, np.abs(IMAGES) < 1), {'alpha': 0.3, 'valid': CLASSES < 2}),
    'losses.yolov1_assign': ((np.stack([np.stack([BOXES, OTHERS])] * 2), BOXES), {'canvas': (16, 32)}),
    'losses.yolov1_loss': ((np.tile(RAW[..., 0, :], 2), np.stack([BOXES, OTHERS]), np.array([[0, 1, 1], [1, 0, 0]])),
                           {'canvas': (16, 32)}),
    'losses.yolov2_loss': ((RAW, np.stack([BOXES, OTHERS]), np.array([[0, 1, 1], [1, 0, 0]])),
                           {'anchors': ((8.0, 8.0),), 'stride': 8, 'prior': True}),
    'losses.yolov3_assign': ((BOXES,), HEAD | {'canvas': (16, 32)}),
    'losses.yolov3_loss': ((LEVELS, np.stack([BOXES, OTHERS]), np.array([[0, 1, 1], [1, 0, 0]])),
                           HEAD | {'box_loss': 'ciou'}),
} | {f'ops.{name}': ((BOXES,), {}) for name in ops.__all__ if '_to_' in name and 'xy' in name}


def test_every_public_function_has_a_call_here():
  assert set(CALLS) == set(FUNCTIONS)


@pytest.mark.medium  # a compilation or two for each name
@pytest.mark.parametrize('name', sorted(CALLS))
def test_every_public_function_gives_the_same_under_jit_and_under_vmap(name):
  arrays, options = CALLS[name]
  call = lambda *arrays: FUNCTIONS[name](*arrays, **options)
  quick = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
  once = quick(call)(*arrays)

  def each(*batch):  # value and gradient at once: one compilation
    floats = [i for i, x in enumerate(batch) if all(jnp.issubdtype(v.dtype, jnp.floating) for v in jax.tree.leaves(x))]
    if not floats:
      return call(*batch), ()

    def total(*chosen):
      result = call(*[chosen[floats.index(i)] if i in floats else x for i, x in enumerate(batch)])
      parts = [jnp.sum(v) for v in jax.tree.leaves(result) if jnp.issubdtype(jnp.result_type(v), jnp.floating)]
      return sum(parts, jnp.float32(0)), result

    (_, result), gradients = jax.value_and_grad(total, argnums=tuple(range(len(floats))), has_aux=True)(
        *[batch[i] for i in floats])
    return result, gradients

  if arrays:
    twice = jax.tree.map(lambda x: np.stack([x, x]), arrays)
    batched, gradients = quick(jax.vmap(each))(*twice)
    for value, row in zip(jax.tree.leaves(once), jax.tree.leaves(batched)):
      assert row.shape == (2,) + jnp.shape(value)
      # The same arithmetic, perhaps fused otherwise.
      np.testing.assert_allclose(row, np.stack([value, value]), rtol=1e-5, atol=1e-6)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize('name', sorted(FUNCTIONS))
def test_every_option_of_a_public_function_is_keyword_only_and_valid_comes_last(name):
  parameters = inspect.signature(FUNCTIONS[name]).parameters.values()
  assert all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters)
  assert all(p.kind is p.KEYWORD_ONLY for p in parameters if p.default is not p.empty)
  names = [p.name for p in parameters]
  assert 'valid' not in names[:-1]
  assert all(p.annotation is not p.empty for p in parameters)


@pytest.mark.parametrize('name', sorted(name for name in CALLS if CALLS[name][0]))
def test_every_public_function_refuses_arrays_that_do_not_fit_in_one_line(name):
  arrays, options = CALLS[name]
  parameters = list(inspect.signature(FUNCTIONS[name]).parameters)
  in_one_line = re.compile(r'^\w+: [^\n]+; \w')
  for i, array in enumerate(arrays):
    for other in (array[:-1], array[None]) if parameters[i] != 'key' and isinstance(array, np.ndarray) else ():
      try:
        jax.eval_shape(functools.partial(FUNCTIONS[name], **options), *arrays[:i], other, *arrays[i + 1:])
      except ValueError as error:  # nothing else, such as the TypeError of an operation deep inside
        assert in_one_line.match(str(error))
  for option in parameters:
    if option.endswith('valid'):
      with pytest.raises(ValueError, match=in_one_line):
        jax.eval_shape(functools.partial(FUNCTIONS[name], **options | {option: np.ones((5, 1, 9), bool)}), *arrays)


@pytest.mark.parametrize('name', sorted(name for name, thing in PUBLIC.items() if callable(thing)))
def test_every_public_docstring_has_its_parts(name):
  doc = inspect.getdoc(PUBLIC[name])
  assert doc.split('\n\n')[0].endswith('.')
  takes_something = name in FUNCTIONS and inspect.signature(FUNCTIONS[name]).parameters
  assert 'Args:' in doc or not takes_something
  assert 'Returns:' in doc or name not in FUNCTIONS
  assert '>>> ' in doc
  if 'raise ' in inspect.getsource(PUBLIC[name]):
    assert 'Raises:' in doc
  for parameter in (inspect.signature(FUNCTIONS[name]).parameters if name in FUNCTIONS else ()):
    assert f'  {parameter}: ' in doc, parameter


# What the papers or their authors' programs do, where these differ or texts are loose; other readings are options.
DECIDED = {
    losses.yolov1_loss: {'boxes_per_cell': 2, 'objectness_target': 'iou'},
    losses.yolov2_loss: {'box_loss': 'sse', 'small_box_weight': True, 'ignore_threshold': 0.6,
                         'objectness_target': 'iou', 'prior': False},
    losses.yolov3_loss: {'box_loss': 'sse', 'match': 'global', 'ignore': 'predicted', 'ignore_threshold': 0.7,
                         'objectness_target': 'binary', 'label_smoothing': 0, 'extra_match_iou': None},
    losses.ssd_loss: {'iou_threshold': 0.5, 'negatives_per_positive': 3, 'min_negatives': 0,
                      'variances': (0.1, 0.1, 0.2, 0.2)},
    losses.retinanet_loss: {'positive_iou': 0.5, 'negative_iou': 0.4, 'alpha': 0.25, 'gamma': 2},
    losses.fcos_loss: {'radius': 1.5, 'alpha': 0.25, 'gamma': 2},
    losses.rpn_loss: {'positive_iou': 0.7, 'negative_iou': 0.3, 'size': 256, 'positive_fraction': 0.5, 'beta': 1 / 9},
    losses.sample_proposals: {'size': 512, 'positive_fraction': 0.25, 'iou_threshold': 0.5, 'add_ground_truth': True},
    losses.roi_loss: {'beta': 1 / 9, 'variances': (0.1, 0.1, 0.2, 0.2)},
    losses.detr_loss: {'class_cost': 1, 'box_cost': 5, 'giou_cost': 2, 'class_cost_kind': 'prob',
                       'no_object_weight': 0.1, 'solver': 'auto'},
}


@pytest.mark.parametrize(('loss', 'expected'), DECIDED.items(), ids=lambda x: getattr(x, '__name__', ''))
def test_a_detector_s_loss_has_the_defaults_of_its_original(loss, expected):
  found = option_defaults(loss)
  assert {name: value for name, value in found.items() if not name.endswith('valid')} == expected


def test_ops_and_losses_need_nothing_but_jax():
  code = ('import sys; from vision_jax import ops, losses; '
          'print([m for m in ("flax", "optax", "orbax", "ml_collections", "PIL", "sklearn", "absl.flags", "grain") '
          'if m in sys.modules])')
  ran = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert ran.stdout.strip() == '[]'
