"""YOLOv2's loss against plain loops, and with whatever invalid slots hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from tests.losses import yolo_properties
from vision_jax import losses

pytestmark = pytest.mark.medium  # many small compilations: together more than the fast tests can spare

ANCHORS, STRIDE, CANVAS, K = ((6.0, 9.0), (14.0, 8.0), (30.0, 24.0)), 8, (16, 32), 3
B, N = 3, 5
EVERYTHING = np.ones(B, bool)
WEIGHTS = losses.YOLOV2_WEIGHTS | {'loss_prior': 0.01}
OPTIONS = [{}, {'box_loss': 'giou', 'small_box_weight': False, 'objectness_target': 'binary'}]


def some_scene(seed):
  """Outputs, boxes, labels and boxes_valid of B images; the second has no object, the third boxes that collide."""
  rng = np.random.default_rng(seed)
  outputs = rng.normal(size=(B, CANVAS[0] // STRIDE, CANVAS[1] // STRIDE, len(ANCHORS), 5 + K)).astype(np.float32)
  centre, size = rng.uniform(1, (31, 15), (B, N, 2)), rng.uniform(3, (28, 14), (B, N, 2))
  boxes = np.concatenate([centre - size / 2, centre + size / 2], -1).astype(np.float32)
  boxes[2, 1] = boxes[2, 0] + [0.1, 0, 0.3, 0.1]
  real = rng.uniform(size=(B, N)) < 0.8
  real[1], real[2] = False, True
  # An object in cell (0, 2), and another cell's prediction of it: to be ignored.
  boxes[2, 4] = [9, -4, 40, 16]
  outputs[2, 0, 3, 0, :4] = [-3, 1, np.log(31 / 6), np.log(20 / 9)]
  return outputs, boxes, rng.integers(0, K, (B, N)).astype(np.int32), real


@functools.cache
def loss_and_gradient(**options):
  def total(outputs, boxes, labels, boxes_valid, valid, weights, ignore_threshold):
    terms = losses.yolov2_loss(outputs, boxes, labels, anchors=ANCHORS, stride=STRIDE, boxes_valid=boxes_valid,
                               valid=valid, prior=True, ignore_threshold=ignore_threshold, **options)
    return sum(weights[name] * term.total for name, term in terms.items()), terms
  run = jax.jit(jax.value_and_grad(total, has_aux=True))
  return lambda *arrays, weights=WEIGHTS, ignore_threshold=0.6: run(*arrays, weights, ignore_threshold)


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_yolov2_loss_agrees_with_the_loop(options):
  for seed, threshold in enumerate([0.6, 0.4, 0.2]):
    outputs, boxes, labels, real = some_scene(seed)
    valid = np.array([True, seed != 1, seed != 2])
    (_, terms), _ = loss_and_gradient(**options)(outputs, boxes, labels, real, valid, ignore_threshold=threshold)
    images = [oracles.yolov2_loss(outputs[i], boxes[i][real[i]], labels[i][real[i]], anchors=ANCHORS, stride=STRIDE,
                                  ignore_threshold=threshold, **options) for i in np.flatnonzero(valid)]
    for name, term in terms.items():
      np.testing.assert_allclose(term.total, sum(image[name] for image in images), rtol=2e-5)  # float32 sums
      assert term.count == valid.sum() and term.floor == 1
    assert set(terms) == set(images[0]) == set(WEIGHTS)


def test_a_prediction_that_overlaps_an_object_need_not_predict_that_there_is_none():
  outputs, boxes, labels, real = some_scene(0)
  total = {t: loss_and_gradient()(outputs, boxes, labels, real, EVERYTHING, ignore_threshold=t)[0][1] for t in (0.6, 1)}
  assert total[0.6]['loss_no_object'].total < total[1]['loss_no_object'].total
  assert total[0.6]['loss_objectness'].total == total[1]['loss_objectness'].total


def test_objectness_and_classes_do_not_move_the_boxes():
  outputs, boxes, labels, real = some_scene(0)
  others = WEIGHTS | {'loss_box': 0.0, 'loss_prior': 0.0}
  _, gradient = loss_and_gradient()(outputs, boxes, labels, real, EVERYTHING, weights=others)
  assert not np.asarray(gradient)[..., :4].any() and np.asarray(gradient)[..., 4:].any()


@pytest.mark.parametrize('junk', [np.nan, 1e9])
def test_what_invalid_slots_and_images_hold_changes_neither_value_nor_gradient(junk):
  yolo_properties.check_that_invalid_slots_do_not_matter(loss_and_gradient(), some_scene(1), junk)


def test_permuted_object_slots_give_the_same_loss():
  yolo_properties.check_that_the_order_of_slots_does_not_matter(loss_and_gradient(), some_scene(2))


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_no_object_at_all_and_degenerate_objects_give_finite_values_and_gradients(options):
  outputs, boxes, labels, real = some_scene(3)
  run = loss_and_gradient(**options)
  (_, terms), gradient = run(outputs, boxes, labels, real & False, EVERYTHING)
  assert terms['loss_box'].total == terms['loss_objectness'].total == terms['loss_class'].total == 0
  assert terms['loss_no_object'].total > 0 and terms['loss_prior'].total > 0 and np.isfinite(gradient).all()
  (value, terms), gradient = run(outputs, boxes, labels, real, EVERYTHING & False)
  assert value == terms['loss_box'].count == 0 and not np.asarray(gradient).any()
  (_, terms), _ = run(outputs, boxes[:, :0], labels[:, :0], real[:, :0], EVERYTHING)
  assert terms['loss_box'].total == 0 and terms['loss_no_object'].total > 0 and terms['loss_box'].count == B

  boxes[0] = [[3, 3, 3, 3], [9, 9, 2, 2], [-1e9, -1e9, 1e9, 1e9], [5, 5, 5, 9], [1e8, 0, 1e9, 4]]
  boxes[2] = [2, 2, 8, 11]
  extreme = np.float32([1e4, -1e4, 50])[:, None, None, None, None] * np.sign(outputs)
  for raw in (outputs, extreme):
    (value, terms), gradient = run(raw, boxes, labels, real | True, EVERYTHING)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_the_prior_is_asked_for_and_leaves_slots_with_an_object_alone():
  outputs, boxes, labels, real = some_scene(0)
  plain = jax.eval_shape(lambda o: losses.yolov2_loss(o, boxes, labels, anchors=ANCHORS, stride=STRIDE), outputs)
  assert set(plain) == set(losses.YOLOV2_WEIGHTS)
  only = dict.fromkeys(WEIGHTS, 0.0) | {'loss_prior': 1.0}
  _, gradient = loss_and_gradient()(outputs, boxes, labels, real, EVERYTHING, weights=only)
  owners, _ = oracles.yolo_assign(boxes[2], (ANCHORS,), (STRIDE,), CANVAS)
  moved = np.asarray(gradient)[2, ..., :4].any(-1)
  assert {place for place in np.ndindex(moved.shape) if not moved[place]} == {slot[1:] for slot in owners}


def test_gradients_agree_with_finite_differences_in_float64():
  outputs, boxes, labels, real = some_scene(0)
  outputs = outputs.astype(np.float64)
  with jax.enable_x64(True):
    # With IoU as the target the value moves where the gradient must not (it is held constant).
    run = loss_and_gradient(**OPTIONS[1])
    gradient = np.asarray(run(outputs, boxes, labels, real, EVERYTHING)[1])
    slots = oracles.yolo_assign(boxes[2], (ANCHORS,), (STRIDE,), CANVAS)[0]
    mine = next(iter(slots))[1:]
    empty = next(place for place in np.ndindex(outputs.shape[1:4]) if (0, *place) not in slots)
    for slot in (mine, empty):
      for channel in range(5 + K):
        place, ends = (2, *slot, channel), []
        for sign in (1, -1):
          moved = outputs.copy()
          moved[place] += sign * 1e-5
          ends.append(float(run(moved, boxes, labels, real, EVERYTHING)[0][0]))
        # Central differences of values near 20: rounding of 1e-15 / 1e-5, and 1e-10 of curvature.
        np.testing.assert_allclose(gradient[place], (ends[0] - ends[1]) / 2e-5, atol=2e-8)
    # Not zeros against zeros (of some boxes GIoU has no gradient in one direction).
    assert np.count_nonzero(gradient[2][mine]) > K + 2 and np.count_nonzero(gradient[2][empty]) == 5


def test_terms_of_half_precision_outputs_are_float32_and_share_one_count_object():
  outputs, boxes, labels, _ = some_scene(0)

  def check(outputs):
    terms = losses.yolov2_loss(outputs, boxes, labels, anchors=ANCHORS, stride=STRIDE)
    assert len({id(term.count) for term in terms.values()}) == 1
    assert all(term.total.dtype == term.count.dtype == jnp.float32 for term in terms.values())
    return terms

  jax.eval_shape(check, outputs.astype(jnp.bfloat16))


@pytest.mark.parametrize('options, message', [
    ({'box_loss': 'l1'}, "yolov2_loss: box_loss is 'l1'; give one of sse, iou, giou, diou, ciou"),
    ({'objectness_target': 'soft'}, "objectness_target is 'soft'; give one of iou, binary"),
    ({'anchors': ANCHORS[:2]}, r'output \[3, 2, 4, 3, 8\] of the level with stride 8; it must be \[B, h, w, 2, '),
])
def test_misfits_are_refused_in_one_line(options, message):
  outputs, boxes, labels, _ = some_scene(0)
  with pytest.raises(ValueError, match=message):
    losses.yolov2_loss(outputs, boxes, labels, **({'anchors': ANCHORS, 'stride': STRIDE} | options))
