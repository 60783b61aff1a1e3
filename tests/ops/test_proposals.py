"""Proposals and detections of Faster R-CNN, beside torchvision's."""

import functools

import jax
import numpy as np
import pytest

from tests.golden_files import golden
from vision_jax import ops

pytestmark = pytest.mark.medium  # many small compilations: together more than the fast tests can spare

SCRIPT, STORED = golden('proposals')
SIZES = np.array(SCRIPT.SIZES)


@functools.cache
def proposer(**options):
  """`(objectness, deltas, sizes) -> proposals`, with the options of the golden arrays."""
  _, _, anchors, levels = SCRIPT.draw_rpn()
  options = {'level_sizes': levels, 'pre_nms': SCRIPT.PRE_NMS, 'post_nms': 60, **SCRIPT.RPN, **options}
  propose = jax.jit(functools.partial(ops.rpn_proposals, anchors=anchors, **options))
  return lambda objectness, deltas, sizes=SIZES: jax.device_get(propose(objectness, deltas, image_size=sizes))


@functools.cache
def decoder(**options):
  decode = jax.jit(functools.partial(ops.faster_rcnn_decode, **{'max_detections': 60, **SCRIPT.HEADS, **options}))
  return lambda *outputs, sizes=SIZES, **given: jax.device_get(decode(*outputs, image_size=sizes, **given))


def check(found, what, slots):
  """The detections are the first of torchvision's in its order; the slots after them are empty."""
  assert found['boxes'].shape == (2, slots, 4)
  for i in range(2):
    expected = {key: STORED[f'{what}/{i}/{key}'] for key in found if key != 'valid'}
    count = min(slots, len(expected['scores']))
    assert found['valid'][i].tolist() == [slot < count for slot in range(slots)]
    np.testing.assert_allclose(found['scores'][i, :count], expected['scores'][:count], rtol=1e-6)  # float32
    np.testing.assert_allclose(found['boxes'][i, :count], expected['boxes'][:count], rtol=1e-6, atol=1e-5)
    if 'labels' in found:
      np.testing.assert_array_equal(found['labels'][i, :count] + 1, expected['labels'][:count])
    assert not any(found[key][i, count:].any() for key in found)


@pytest.mark.parametrize('slots', [10, 48])
def test_proposals_are_torchvision_s_in_its_order(slots):
  objectness, deltas, anchors, levels = SCRIPT.draw_rpn()
  assert len(anchors) > SCRIPT.PRE_NMS * 2 and levels[0] > SCRIPT.PRE_NMS
  assert all(10 < len(STORED[f'rpn/{i}/scores']) < 46 for i in range(2))
  # A level has fewer anchors than may enter: there are as many slots as anchors that can.
  enter = sum(min(SCRIPT.PRE_NMS, level) for level in levels)
  check(proposer(post_nms=slots)(objectness, deltas), 'rpn', min(slots, enter))


def test_the_golden_proposals_hold_ties_at_a_probability_of_one():
  assert all((STORED[f'rpn/{i}/scores'] == 1).sum() > 1 for i in range(2))


@pytest.mark.parametrize('slots', [10, 60])
def test_detections_are_torchvision_s_in_its_order(slots):
  assert all(10 < len(STORED[f'heads/{i}/scores']) < 60 for i in range(2))
  check(decoder(max_detections=slots)(*SCRIPT.draw_heads()), 'heads', slots)


def test_proposals_of_no_score_are_none_and_no_gradient_passes():
  objectness, deltas, *_ = SCRIPT.draw_rpn()
  found = proposer()(np.full_like(objectness, np.nan), deltas)
  assert not found['valid'].any() and not found['boxes'].any()
  options = {'anchors': SCRIPT.draw_rpn()[2], 'post_nms': 4, 'image_size': SIZES}
  total = jax.jit(jax.grad(lambda *args: ops.rpn_proposals(*args, **options)['boxes'].sum(), (0, 1)))
  assert not any(np.asarray(gradient).any() for gradient in total(objectness, deltas))


def test_small_and_unlikely_regions_are_not_proposed():
  objectness, deltas, *_ = SCRIPT.draw_rpn()
  found = proposer(min_size=8.0, score_threshold=0.9)(objectness, deltas)
  sides = (found['boxes'][..., 2:] - found['boxes'][..., :2])[found['valid']]
  assert len(sides) > 4 and sides.min() >= 8 and found['scores'][found['valid']].min() >= 0.9


def test_a_level_suppresses_no_proposal_of_another():
  anchors, objectness = np.array([[0, 0, 8, 8], [0, 0, 8, 8]], np.float32), np.array([[1.0, 2.0]], np.float32)
  for levels, count in (((2,), 1), ((1, 1), 2)):
    propose = jax.jit(functools.partial(ops.rpn_proposals, anchors=anchors, image_size=SIZES[0], level_sizes=levels))
    assert propose(objectness, np.zeros((1, 2, 4)))['valid'].sum() == count


def test_what_empty_slots_of_proposals_hold_changes_no_detection():
  logits, deltas, proposals = SCRIPT.draw_heads()
  real = np.arange(SCRIPT.REGIONS) < np.array([[18], [0]])
  clean = decoder()(logits, deltas, proposals, proposals_valid=real)
  for spoil in (np.nan, 1e9):
    given = [np.where(real.reshape(*real.shape, *[1] * (x.ndim - 2)), x, spoil) for x in (logits, deltas, proposals)]
    jax.tree.map(np.testing.assert_array_equal, clean, decoder()(*given, proposals_valid=real))
  assert clean['valid'].any(1).tolist() == [True, False]


def test_arrays_that_do_not_fit_are_refused_in_one_line():
  logits, deltas, proposals = SCRIPT.draw_heads()
  with pytest.raises(ValueError, match=r'faster_rcnn_decode: logits \[2, 24, 4\], .*; give \[B, P, K \+ 1\], '):
    ops.faster_rcnn_decode(logits, deltas[:, :, 1:], proposals, image_size=SIZES)
  with pytest.raises(ValueError, match=r'faster_rcnn_decode: image_size \[3\] for 2 images'):
    ops.faster_rcnn_decode(logits, deltas, proposals, image_size=(1, 2, 3))
  with pytest.raises(ValueError, match=r'faster_rcnn_decode: proposals_valid \[2, 3\]; give bool \[2, 24\]'):
    ops.faster_rcnn_decode(logits, deltas, proposals, image_size=SIZES, proposals_valid=np.ones((2, 3), bool))
  with pytest.raises(ValueError, match=r'rpn_proposals: logits .*anchors \[3, 4\]'):
    ops.rpn_proposals(np.zeros((2, 5)), np.zeros((2, 5, 4)), anchors=np.zeros((3, 4)), image_size=SIZES)
