"""YOLOv1's assignment and loss against plain loops, and with whatever invalid slots hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from tests.losses import yolo_properties
from vision_jax import losses

pytestmark = pytest.mark.medium  # many small compilations: together more than the fast tests can spare

GRID, CANVAS, P, K = (2, 3), (32, 60), 2, 3  # cells of 16 x 20 pixels
B, N = 3, 5
PLACES = list(np.ndindex(*GRID, P))
EVERYTHING = np.ones(B, bool)


def some_scene(seed):
  """Outputs, boxes, labels and boxes_valid of B images; the second has no object, the third boxes that share cells."""
  rng = np.random.default_rng(seed)
  outputs = rng.normal(0.4, 0.5, (B, *GRID, 5 * P + K)).astype(np.float32)
  centre, size = rng.uniform(1, (59, 31), (B, N, 2)), rng.uniform(3, (40, 25), (B, N, 2))
  boxes = np.concatenate([centre - size / 2, centre + size / 2], -1).astype(np.float32)
  boxes[2, 1] = boxes[2, 0] + [-1, 0, 1, 1]
  boxes[0, :2] = [[1, 1, 3, 3], [58, 30, 59, 31.5]]  # small, in corners: what touches them is luck
  real = rng.uniform(size=(B, N)) < 0.8
  real[1], real[2] = False, True
  return outputs, boxes, rng.integers(0, K, (B, N)).astype(np.int32), real


def decoded(output):
  return np.array([[[oracles.yolov1_box(output[row, column, 5 * j:], column, row, GRID, CANVAS) for j in range(P)]
                    for column in range(GRID[1])] for row in range(GRID[0])], np.float32)


@jax.jit
@jax.vmap
def assign(predicted, boxes, valid):
  return losses.yolov1_assign(predicted, boxes, canvas=CANVAS, valid=valid)


@functools.cache
def loss_and_gradient(**options):
  def total(outputs, boxes, labels, boxes_valid, valid, weights):
    terms = losses.yolov1_loss(outputs, boxes, labels, canvas=CANVAS, boxes_valid=boxes_valid, valid=valid, **options)
    return sum(weights[name] * term.total for name, term in terms.items()), terms
  run = jax.jit(jax.value_and_grad(total, has_aux=True))
  return lambda *arrays, weights=losses.YOLOV1_WEIGHTS: run(*arrays, weights)


def test_assignment_agrees_with_the_loop():
  collisions = untouched = 0
  for seed in range(8):
    outputs, boxes, _, real = some_scene(seed)
    boxes[2, 4, 2:] = boxes[2, 4, :2]  # no area: no object
    boxes[2, 3] += [60, 40, 60, 40]  # beyond the canvas: the last cell
    predicted = np.stack([decoded(output) for output in outputs])
    found = jax.device_get(assign(predicted, boxes, real))
    for i in range(B):
      own = np.flatnonzero(real[i])
      owners, lost = oracles.yolov1_assign(predicted[i], boxes[i][own], CANVAS)
      got = {PLACES[s]: int(found.owner[i, s]) for s in np.flatnonzero(found.positive[i])}
      assert got == {place: own[n] for place, n in owners.items()}
      assert all(PLACES[found.slots[i, n]] == place for place, n in got.items())
      assert found.collisions[i] == lost and not found.owner[i][~found.positive[i]].any()
      collisions += lost
      untouched += sum(not any(oracles.iou_family(p, boxes[i, n])['iou'] for p in predicted[i, row, column])
                       for (row, column, _), n in got.items())
  assert collisions > 5 and untouched > 5  # or their rules would not have been tried


def test_the_largest_overlap_is_responsible_and_without_any_the_nearest_box():
  predicted = np.zeros((1, *GRID, P, 4), np.float32)
  predicted[0, 0, 0] = [[0, 0, 20, 16], [2, 2, 9, 9]]  # IoU with the object 0.11 and 0.73
  predicted[0, 1, 2] = [[0, 0, 1, 1], [30, 20, 34, 24]]
  boxes = np.float32([[[2, 2, 8, 8], [50, 20, 54, 24]]])
  found = jax.device_get(assign(predicted, boxes, np.ones((1, 2), bool)))
  assert [PLACES[s] for s in found.slots[0]] == [(0, 0, 1), (1, 2, 1)] and found.collisions[0] == 0


def test_the_largest_of_the_objects_in_a_cell_has_it():
  small, large = [5, 5, 9, 9], [2, 2, 18, 14]
  predicted = np.zeros((1, *GRID, P, 4), np.float32)
  for boxes, winner in (([small, large], 1), ([large, small], 0)):
    found = jax.device_get(assign(predicted, np.float32([boxes]), np.ones((1, 2), bool)))
    assert found.positive.sum() == 1 and found.owner.max() == winner and found.collisions[0] == 1


@pytest.mark.parametrize('options', [{}, {'objectness_target': 'binary'}], ids=str)
def test_yolov1_loss_agrees_with_the_loop(options):
  for seed in range(3):
    outputs, boxes, labels, real = some_scene(seed)
    valid = np.array([True, seed != 1, seed != 2])
    (_, terms), _ = loss_and_gradient(**options)(outputs, boxes, labels, real, valid)
    images = [oracles.yolov1_loss(outputs[i], boxes[i][real[i]], labels[i][real[i]], canvas=CANVAS, **options)
              for i in np.flatnonzero(valid)]
    for name, term in terms.items():
      np.testing.assert_allclose(term.total, sum(image[name] for image in images), rtol=1e-5)  # float32 sums
      assert term.count == valid.sum() and term.floor == 1
    assert set(terms) == set(images[0]) == set(losses.YOLOV1_WEIGHTS)


def test_the_weights_make_the_sum_of_equation_3():
  outputs, boxes, labels, real = (np.zeros_like(x) for x in some_scene(0))
  # One object in cell (1, 1), learned by the second box: x, y, sqrt(w), sqrt(h) are wrong by 0.1, 0.2, 0.1 and 0.3.
  outputs[0, 1, 1] = [0, 0, 0, 0, 0.5, 0.6, 0.7, 0.6, 0.8, 1, 0.1, 0.2, 0.9]
  outputs[0, 0, 0, 4] = 0.3
  boxes[0, 3], labels[0, 3], real[0, 3] = [30 - 7.5, 24 - 4, 30 + 7.5, 24 + 4], 2, True  # a quarter of the canvas
  (total, _), _ = loss_and_gradient()(outputs, boxes, labels, real, EVERYTHING)
  iou = oracles.iou_family(oracles.yolov1_box([0.6, 0.7, 0.6, 0.8], 1, 1, GRID, CANVAS), boxes[0, 3])['iou']
  paper = 5 * (0.01 + 0.04 + 0.01 + 0.09) + (1 - iou) ** 2 + 0.5 * (0.25 + 0.09) + (0.01 + 0.04 + 0.01)
  assert float(total) == pytest.approx(paper, rel=1e-6)  # float32


def test_a_perfect_prediction_costs_nothing():
  outputs, boxes, labels, real = (np.zeros_like(x) for x in some_scene(0))
  boxes[2, 1:4], labels[2, 1:4], real[2, 1:4] = [[2, 2, 18, 12], [25, -3, 33, 30], [44, 18, 58, 31]], [0, 2, 1], True
  for (x1, y1, x2, y2), label in zip(boxes[2, 1:4], labels[2, 1:4]):
    row, column = int((y1 + y2) / 32), int((x1 + x2) / 40)
    truth = [(x1 + x2) / 40 - column, (y1 + y2) / 32 - row, ((x2 - x1) / 60) ** 0.5, ((y2 - y1) / 32) ** 0.5, 1]
    outputs[2, row, column] = [0.0] * 5 + truth + list(np.eye(K)[label])
  (value, terms), gradient = loss_and_gradient()(outputs, boxes, labels, real, EVERYTHING)
  assert 0 <= value < 1e-9 and abs(gradient).max() < 1e-4  # float32 rounding, squared and not
  (value, terms), _ = loss_and_gradient()(outputs, boxes, labels, real & False, EVERYTHING)
  assert terms['loss_no_object'].total == 3


def test_an_object_centred_beyond_the_canvas_is_drawn_to_the_border_of_the_nearest_cell():
  outputs, boxes, labels, real = (np.zeros_like(x) for x in some_scene(0))
  boxes[0, 0], real[0, 0] = [70, 10, 80, 16], True
  (_, terms), gradient = loss_and_gradient()(outputs, boxes, labels, real, EVERYTHING)
  assert float(terms['loss_box'].total) == pytest.approx(1 + (13 / 16) ** 2 + 10 / 60 + 6 / 32, rel=1e-6)  # float32
  assert gradient[0, 0, 2, 0] == -2 * 5  # of lambda_coord (x - 1)^2 at x = 0, in the last cell of the row


def test_confidence_and_classes_do_not_move_the_boxes():
  outputs, boxes, labels, real = some_scene(0)
  others = losses.YOLOV1_WEIGHTS | {'loss_box': 0.0}
  _, gradient = loss_and_gradient()(outputs, boxes, labels, real, EVERYTHING, weights=others)
  gradient = np.asarray(gradient)
  for j in range(P):
    assert not gradient[..., 5 * j:5 * j + 4].any() and gradient[..., 5 * j + 4].all()


@pytest.mark.parametrize('junk', [np.nan, 1e9])
def test_what_invalid_slots_and_images_hold_changes_neither_value_nor_gradient(junk):
  yolo_properties.check_that_invalid_slots_do_not_matter(loss_and_gradient(), some_scene(1), junk)


def test_permuted_object_slots_give_the_same_loss():
  yolo_properties.check_that_the_order_of_slots_does_not_matter(loss_and_gradient(), some_scene(2))


def test_no_object_at_all_and_degenerate_objects_give_finite_values_and_gradients():
  outputs, boxes, labels, real = some_scene(3)
  run = loss_and_gradient()
  (_, terms), gradient = run(outputs, boxes, labels, real & False, EVERYTHING)
  assert terms['loss_box'].total == terms['loss_objectness'].total == terms['loss_class'].total == 0
  np.testing.assert_allclose(terms['loss_no_object'].total, (outputs[..., [4, 9]] ** 2).sum(), rtol=1e-6)  # float32
  (value, terms), gradient = run(outputs, boxes, labels, real, EVERYTHING & False)
  assert value == terms['loss_box'].count == 0 and not np.asarray(gradient).any()

  boxes[0] = [[3, 3, 3, 3], [9, 9, 2, 2], [-1e9, -1e9, 1e9, 1e9], [5, 5, 5, 9], [1e8, 0, 1e9, 4]]
  boxes[2] = [2, 2, 8, 11]
  for raw in (outputs, np.zeros_like(outputs), 1e9 * np.sign(outputs)):  # sqrt(w) = 0 among them
    (value, _), gradient = run(raw, boxes, labels, real | True, EVERYTHING)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_a_batch_without_slots_for_objects_is_all_background():
  outputs, boxes, labels, real = some_scene(4)
  found = loss_and_gradient()(outputs, boxes[:, :0], labels[:, :0], real[:, :0], EVERYTHING)
  same = loss_and_gradient()(outputs, boxes, labels, real & False, EVERYTHING)
  # Two programs, which may sum in another order.
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, same)


def test_gradients_agree_with_finite_differences_in_float64():
  outputs, boxes, labels, real = some_scene(0)
  outputs = outputs.astype(np.float64)
  with jax.enable_x64(True):
    # With IoU as the target the value moves where the gradient must not (it is held constant).
    run = functools.partial(loss_and_gradient(objectness_target='binary'), weights=losses.YOLOV1_WEIGHTS)
    gradient = np.asarray(run(outputs, boxes, labels, real, EVERYTHING)[1])
    (row, column, j), _ = next(iter(oracles.yolov1_assign(decoded(outputs[2]), boxes[2], CANVAS)[0].items()))
    for channel in range(5 * P + K):
      place, ends = (2, row, column, channel), []
      for sign in (1, -1):
        moved = outputs.copy()
        moved[place] += sign * 1e-5
        ends.append(float(run(moved, boxes, labels, real, EVERYTHING)[0][0]))
      # Central differences of a sum of squares, exact but for rounding: 1e-15 of values near 50, over 1e-5.
      np.testing.assert_allclose(gradient[place], (ends[0] - ends[1]) / 2e-5, atol=1e-8)
    assert np.count_nonzero(gradient[2, row, column, 5 * j:5 * j + 4]) == 4  # not zeros against zeros


def test_terms_of_half_precision_outputs_are_float32_and_share_one_count_object():
  outputs, boxes, labels, _ = some_scene(0)

  def check(outputs):
    terms = losses.yolov1_loss(outputs, boxes, labels, canvas=CANVAS)
    assert len({id(term.count) for term in terms.values()}) == 1
    assert all(term.total.dtype == term.count.dtype == jnp.float32 for term in terms.values())
    return terms

  jax.eval_shape(check, outputs.astype(jnp.bfloat16))


@pytest.mark.parametrize('options, message', [
    ({'objectness_target': 'soft'}, "yolov1_loss: objectness_target is 'soft'; give one of iou, binary"),
    ({'boxes_per_cell': 3}, r'outputs \[3, 2, 3, 13\] with 3 boxes in a cell; give \[B, h, w, 15 \+ K\]'),
])
def test_misfits_are_refused_in_one_line(options, message):
  outputs, boxes, labels, _ = some_scene(0)
  with pytest.raises(ValueError, match=message):
    losses.yolov1_loss(outputs, boxes, labels, canvas=CANVAS, **options)


def test_misfitting_arrays_are_refused_in_one_line():
  outputs, boxes, labels, _ = some_scene(0)
  with pytest.raises(ValueError, match=r'yolov1_loss: labels \[3, 4\] beside .*boxes \[3, 5, 4\]'):
    losses.yolov1_loss(outputs, boxes, labels[:, :4], canvas=CANVAS)
  with pytest.raises(ValueError, match=r'yolov1_loss: boxes \[3, 5, 4\] beside outputs \[1, '):
    losses.yolov1_loss(outputs[:1], boxes, labels, canvas=CANVAS)
  with pytest.raises(ValueError, match=r'yolov1_assign: predicted \[2, 3, 4\]'):
    losses.yolov1_assign(np.zeros((2, 3, 4)), boxes[0], canvas=CANVAS)
