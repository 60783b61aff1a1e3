"""YOLOv3's assignment and loss against plain loops, and with whatever invalid slots hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from vision_jax import losses, ops

pytestmark = pytest.mark.medium  # many small compilations: together more than the fast tests can spare

ANCHORS, STRIDES, CANVAS, K = (((6.0, 9.0), (14.0, 8.0)), ((30.0, 24.0),)), (8, 16), (16, 32), 3
B, N = 3, 5
PLACES = [(level, row, column, a) for level, (priors, stride) in enumerate(zip(ANCHORS, STRIDES))
          for row, column, a in np.ndindex(CANVAS[0] // stride, CANVAS[1] // stride, len(priors))]


def some_scene(seed):
  """Outputs, boxes, labels and boxes_valid of B images; the second has no object, the third boxes that collide."""
  rng = np.random.default_rng(seed)
  outputs = tuple(rng.normal(size=(B, CANVAS[0] // s, CANVAS[1] // s, len(a), 5 + K)).astype(np.float32)
                  for a, s in zip(ANCHORS, STRIDES))
  centre, size = rng.uniform(1, (31, 15), (B, N, 2)), rng.uniform(3, (28, 14), (B, N, 2))
  boxes = np.concatenate([centre - size / 2, centre + size / 2], -1).astype(np.float32)
  boxes[2, 1] = boxes[2, 0] + [0.1, 0, 0.3, 0.1]
  real = rng.uniform(size=(B, N)) < 0.8
  real[1], real[2] = False, True
  # An object of the coarse level, and a prediction of it in a slot of the fine one: to be ignored.
  boxes[2, 4] = [9, -4, 40, 21]
  outputs[0][2, 0, 3, 0, :4] = [-3, 3, np.log(31 / 6), np.log(25 / 9)]
  return outputs, boxes, rng.integers(0, K, (B, N)).astype(np.int32), real


@functools.cache
def assigner(**options):
  return jax.jit(jax.vmap(lambda boxes, valid: losses.yolov3_assign(
      boxes, anchors=ANCHORS, strides=STRIDES, canvas=CANVAS, valid=valid, **options)))


@functools.cache
def loss_and_gradient(**options):
  def total(outputs, boxes, labels, boxes_valid, valid, ignore_threshold):
    terms = losses.yolov3_loss(outputs, boxes, labels, anchors=ANCHORS, strides=STRIDES, boxes_valid=boxes_valid,
                               valid=valid, ignore_threshold=ignore_threshold, **options)
    return sum(term.total for term in terms.values()), terms
  run = jax.jit(jax.value_and_grad(total, has_aux=True))
  return lambda *arrays, ignore_threshold=0.7: run(*arrays, ignore_threshold)


@pytest.mark.parametrize('match, extra', [('global', None), ('global', 0.4), ('per_level', 0.4)])
def test_assignment_agrees_with_the_loop(match, extra):
  collisions = 0
  for seed in range(8):
    _, boxes, _, real = some_scene(seed)
    boxes[0, 0, 2:] = boxes[0, 0, :2]  # no area: no object
    found = jax.device_get(assigner(match=match, extra_match_iou=extra)(boxes, real))
    for i in range(B):
      own = np.flatnonzero(real[i])
      owners, lost = oracles.yolo_assign(boxes[i][own], ANCHORS, STRIDES, CANVAS, extra, match)
      got = {PLACES[s]: int(found.owner[i, s]) for s in np.flatnonzero(found.positive[i])}
      assert got == {place: own[n] for place, n in owners.items()}
      assert found.collisions[i] == lost and not found.owner[i][~found.positive[i]].any()
      collisions += lost
  assert collisions > 5  # or the rule for them would not have been tried


def test_the_best_of_all_anchors_owns_an_object_whatever_its_level():
  boxes = np.array([[[10, 3, 16, 12], [2, -4, 30, 20], [0, 0, 14, 8], [0, 0, 0, 0], [0, 0, 0, 0]]], np.float32)
  found = jax.device_get(assigner()(boxes, np.array([[True, True, True, False, False]])))
  assert [PLACES[s] for s in found.slots[0, :3]] == [(0, 0, 1, 0), (1, 0, 1, 0), (0, 0, 0, 1)]
  assert found.positive.sum() == 3


def test_matched_per_level_an_object_has_the_best_anchor_of_each():
  boxes = np.array([[[10, 3, 16, 12], [2, -4, 30, 20], [0, 0, 14, 8], [0, 0, 0, 0], [0, 0, 0, 0]]], np.float32)
  found = jax.device_get(assigner(match='per_level')(boxes, boxes[..., 2] > 0))
  owned = {PLACES[s]: int(found.owner[0, s]) for s in np.flatnonzero(found.positive[0])}
  # The first and the last share a cell of the coarse level, whose only anchor fits the last better: 0.16 and 0.08.
  assert owned == {(0, 0, 1, 0): 0, (0, 1, 2, 1): 1, (1, 0, 1, 0): 1, (0, 0, 0, 1): 2, (1, 0, 0, 0): 2}
  assert [PLACES[s] for s in found.slots[0, :3]] == [(0, 0, 1, 0), (1, 0, 1, 0), (0, 0, 0, 1)]
  assert found.collisions[0] == 0


def test_the_better_fit_wins_a_slot_that_two_objects_want():
  exact, loose = [1, 0, 7, 9], [0, 0, 7, 8]
  for boxes, winner in (([exact, loose], 0), ([loose, exact], 1)):
    found = jax.device_get(assigner()(np.array([boxes], np.float32), np.ones((1, 2), bool)))
    assert found.positive.sum() == 1 and found.owner.max() == winner and found.collisions[0] == 1


def test_an_extra_match_never_takes_the_slot_of_a_best_one():
  # The first box is anchor 0, and fits anchor 1 by 0.41; the second fits anchor 1 best, but only by 0.30.
  boxes = np.array([[[0, 0, 6, 9], [-5, 3, 19, 6]]], np.float32)
  found = jax.device_get(assigner(extra_match_iou=0.4)(boxes, np.ones((1, 2), bool)))
  owned = {PLACES[s]: int(found.owner[0, s]) for s in np.flatnonzero(found.positive[0])}
  assert owned == {(0, 0, 0, 0): 0, (0, 0, 0, 1): 1} and found.collisions[0] == 0


OPTIONS = [
    {}, {'box_loss': 'iou'}, {'box_loss': 'giou', 'label_smoothing': 0.1},
    {'box_loss': 'diou'}, {'box_loss': 'ciou', 'objectness_target': 'iou', 'extra_match_iou': 0.4},
    {'match': 'per_level', 'ignore': 'anchor'}]


@pytest.mark.parametrize('options', [pytest.param(options, marks=[pytest.mark.slow] * (i in (1, 2, 3)))
                                     for i, options in enumerate(OPTIONS)], ids=str)
def test_yolov3_loss_agrees_with_the_loop(options):
  for seed, threshold in enumerate([0.7, 0.5, 0.3]):
    outputs, boxes, labels, real = some_scene(seed)
    valid = np.array([True, seed != 1, seed != 2])
    (_, terms), _ = loss_and_gradient(**options)(outputs, boxes, labels, real, valid, ignore_threshold=threshold)
    images = [oracles.yolo_loss([o[i] for o in outputs], boxes[i][real[i]], labels[i][real[i]], anchors=ANCHORS,
                                strides=STRIDES, ignore_threshold=threshold, **options) for i in np.flatnonzero(valid)]
    for name, term in terms.items():
      np.testing.assert_allclose(term.total, sum(image[name] for image in images), rtol=2e-5)  # float32 sums
      assert term.count == sum(image['count'] for image in images) and term.floor == 1


def test_a_prediction_that_overlaps_an_object_is_ignored_only_by_slots_without_one():
  outputs, boxes, labels, real = some_scene(0)
  total = {t: loss_and_gradient()(outputs, boxes, labels, real, np.ones(B, bool), ignore_threshold=t)[0][1]
           for t in (0.7, 1.0)}
  assert total[0.7]['loss_objectness'].total < total[1.0]['loss_objectness'].total
  assert total[0.7]['loss_box'].total == total[1.0]['loss_box'].total


def test_an_anchor_that_overlaps_an_object_is_ignored_whatever_it_predicts():
  outputs, boxes, labels, real = some_scene(0)
  # The object of anchor (14, 8) in cell (0, 1); the same anchor in cell (0, 0) has an IoU of 70 / 170 with it.
  boxes[0, 0], real[0] = [1, 1, 17, 9], [True, False, False, False, False]
  for threshold, ignored in ((0.4, {(0, 0, 0, 1)}), (0.45, set())):
    _, gradient = loss_and_gradient(**OPTIONS[5])(outputs, boxes, labels, real, np.ones(B, bool),
                                                  ignore_threshold=threshold)
    assert {place for place in PLACES if not np.asarray(gradient[place[0]])[(0, *place[1:], 4)]} == ignored


def test_the_iou_that_objectness_should_predict_carries_no_gradient():
  outputs, boxes, labels, real = some_scene(0)

  @jax.jit
  @jax.grad
  def gradient(outputs):
    return losses.yolov3_loss(outputs, boxes, labels, anchors=ANCHORS, strides=STRIDES, objectness_target='iou',
                              boxes_valid=real)['loss_objectness'].total

  for level in gradient(outputs):
    assert not np.asarray(level[..., :4]).any() and np.asarray(level[..., 4]).any()


def test_all_terms_share_one_count_object():
  outputs, boxes, labels, real = some_scene(0)

  def check(outputs):
    terms = losses.yolov3_loss(outputs, boxes, labels, anchors=ANCHORS, strides=STRIDES, boxes_valid=real)
    assert len({id(term.count) for term in terms.values()}) == 1
    return terms

  jax.eval_shape(check, outputs)


@pytest.mark.parametrize('junk', [np.nan, 1e9])
@pytest.mark.parametrize('options', [OPTIONS[0], OPTIONS[4]], ids=str)
def test_what_invalid_slots_and_images_hold_changes_neither_value_nor_gradient(options, junk):
  outputs, boxes, labels, real = some_scene(1)
  valid = np.array([True, True, False])
  kept = real & valid[:, None]
  run = loss_and_gradient(**options)

  def filled(value):
    fill = lambda x, keep: np.where(keep.reshape(keep.shape + (1,) * (x.ndim - keep.ndim)), x, np.float32(value))
    label = 0 if value == 0 else 10**9
    return tuple(fill(o, valid) for o in outputs), fill(boxes, kept), np.where(kept, labels, label).astype(np.int32)

  (value, terms), gradient = run(*filled(0), real, valid)
  (same, same_terms), same_gradient = run(*filled(junk), real, valid)
  assert np.isfinite(value) and value == same
  jax.tree.map(np.testing.assert_array_equal, (terms, gradient), (same_terms, same_gradient))
  assert all(np.asarray(g)[:1].any() and not np.asarray(g)[2].any() for g in gradient)


def test_permuted_object_slots_give_the_same_loss():
  outputs, boxes, labels, real = some_scene(2)
  order, run = np.random.default_rng(0).permutation(N), loss_and_gradient(**OPTIONS[4])
  (_, terms), _ = run(outputs, boxes, labels, real, np.ones(B, bool))
  (_, same), _ = run(outputs, boxes[:, order], labels[:, order], real[:, order], np.ones(B, bool))
  jax.tree.map(np.testing.assert_array_equal, terms, same)


@pytest.mark.parametrize('options', [OPTIONS[0], OPTIONS[4]], ids=str)
def test_no_object_at_all_and_degenerate_objects_give_finite_values_and_gradients(options):
  outputs, boxes, labels, real = some_scene(3)
  run, everything = loss_and_gradient(**options), np.ones(B, bool)
  (value, terms), gradient = run(outputs, boxes, labels, real & False, everything)
  assert terms['loss_box'].total == terms['loss_class'].total == terms['loss_box'].count == 0
  assert terms['loss_objectness'].total > 0 and all(np.isfinite(g).all() for g in gradient)
  (value, terms), gradient = run(outputs, boxes, labels, real, everything & False)
  assert value == terms['loss_box'].count == 0 and not any(np.asarray(g).any() for g in gradient)

  boxes[0] = [[3, 3, 3, 3], [9, 9, 2, 2], [-1e9, -1e9, 1e9, 1e9], [5, 5, 5, 9], [1e8, 0, 1e9, 4]]
  boxes[2] = [2, 2, 8, 11]
  extreme = tuple(np.float32([1e4, -1e4, 50])[:, None, None, None, None] * np.sign(o) for o in outputs)
  for raw in (outputs, extreme):
    (value, terms), gradient = run(raw, boxes, labels, real | True, everything)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradient)


def test_a_batch_without_slots_for_objects_is_all_background():
  outputs, boxes, labels, real = some_scene(4)
  (_, terms), _ = loss_and_gradient()(outputs, boxes[:, :0], labels[:, :0], real[:, :0], np.ones(B, bool))
  (_, same), _ = loss_and_gradient()(outputs, boxes, labels, real & False, np.ones(B, bool))
  jax.tree.map(np.testing.assert_array_equal, terms, same)


@pytest.mark.medium
@pytest.mark.parametrize('options', [OPTIONS[0], OPTIONS[2]], ids=str)
def test_gradients_agree_with_finite_differences_in_float64(options):
  outputs, boxes, labels, real = some_scene(0)
  outputs, everything = tuple(o.astype(np.float64) for o in outputs), np.ones(B, bool)
  with jax.enable_x64(True):
    run = loss_and_gradient(**options)
    _, gradient = run(outputs, boxes, labels, real, everything)
    gradient = jax.device_get(gradient)
    level, row, column, a = next(iter(oracles.yolo_assign(boxes[2], ANCHORS, STRIDES, CANVAS)[0]))
    for channel in range(5 + K):
      place = 2, row, column, a, channel
      ends = []
      for sign in (1, -1):
        moved = [o.copy() for o in outputs]
        moved[level][place] += sign * 1e-5
        ends.append(float(run(tuple(moved), boxes, labels, real, everything)[0][0]))
      # Central differences of values near 100: rounding of 1e-14 / 1e-5, and 1e-10 of curvature
      np.testing.assert_allclose(gradient[level][place], (ends[0] - ends[1]) / 2e-5, atol=2e-8)
    # Not zeros against zeros (of some boxes GIoU has no gradient in one direction).
    assert np.count_nonzero(gradient[level][2, row, column, a]) > K + 2


def test_half_precision_outputs_are_summed_in_float32():
  outputs, boxes, labels, real = some_scene(0)
  half = tuple(o.astype(jnp.bfloat16) for o in outputs)
  (_, terms), _ = loss_and_gradient()(half, boxes, labels, real, np.ones(B, bool))
  (_, same), _ = loss_and_gradient()(tuple(o.astype(np.float32) for o in half), boxes, labels, real, np.ones(B, bool))
  for name, term in terms.items():
    assert term.total.dtype == jnp.float32
    np.testing.assert_allclose(term.total, same[name].total, rtol=1e-6)  # the same sums, perhaps fused otherwise


@pytest.mark.medium
def test_descending_the_loss_finds_the_objects():
  outputs, boxes, labels = some_scene(0)[0], np.float32([[[3, 2, 10, 10], [4, 1, 30, 15]]]), np.array([[2, 0]])

  @jax.jit
  def train(outputs):
    total = lambda o: sum(term.total for term in losses.yolov3_loss(
        o, boxes, labels, anchors=ANCHORS, strides=STRIDES, box_loss='ciou').values())
    step = lambda _, o: jax.tree.map(lambda x, g: x - 0.1 * g, o, jax.grad(total)(o))
    outputs = jax.lax.fori_loop(0, 300, step, outputs)
    return ops.yolov3_decode(outputs, anchors=ANCHORS, strides=STRIDES, image_size=CANVAS, max_detections=2,
                             score_threshold=0.5)

  found = jax.device_get(train(tuple(np.zeros_like(o[:1]) for o in outputs)))
  for box, label in zip(boxes[0], labels[0]):
    assert max(oracles.iou_family(box, other)['iou'] for other, k in zip(found['boxes'][0], found['labels'][0])
               if k == label) > 0.7


@pytest.mark.parametrize('options, message', [
    ({'box_loss': 'l1'}, "box_loss is 'l1'; give one of sse, iou, giou, diou, ciou"),
    ({'objectness_target': 'soft'}, "yolov3_loss: objectness_target is 'soft'; give one of binary, iou"),
    ({'match': 'best'}, "yolov3_loss: match is 'best'; give one of global, per_level"),
    ({'ignore': 'pred'}, "yolov3_loss: ignore is 'pred'; give one of predicted, anchor"),
    ({'label_smoothing': -1}, 'label_smoothing is -1'),
    ({'strides': (8, 8)}, 'let all levels make the same'),
    ({'strides': (8,)}, 'anchors of 2 levels and 1 strides'),
])
def test_misfits_are_refused_in_one_line(options, message):
  outputs, boxes, labels, _ = some_scene(0)
  with pytest.raises(ValueError, match=message):
    losses.yolov3_loss(outputs, boxes, labels, **({'anchors': ANCHORS, 'strides': STRIDES} | options))
