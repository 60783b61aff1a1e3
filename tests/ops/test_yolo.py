"""YOLO slots, decoding and encoding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from vision_jax import ops

ANCHORS, STRIDES, CANVAS = (((6.0, 9.0), (14.0, 8.0)), ((30.0, 24.0),)), (8, 16), (16, 32)


def some_outputs(rng, batch=1):
  return tuple(rng.normal(size=(batch, CANVAS[0] // stride, CANVAS[1] // stride, len(priors), 7)).astype(np.float32)
               for priors, stride in zip(ANCHORS, STRIDES))


@jax.jit
def all_slots():
  return ops.yolo_slots(anchors=ANCHORS, strides=STRIDES, canvas=CANVAS)


def test_decoded_boxes_agree_with_the_loop():
  for raw, priors, stride in zip(some_outputs(np.random.default_rng(0)), ANCHORS, STRIDES):
    found = np.asarray(jax.jit(lambda raw, p=priors, s=stride: ops.yolo_decode(raw, p, stride=s))(raw))
    assert found.dtype == np.float32
    for _, row, column, a in np.ndindex(raw.shape[:4]):
      expected = oracles.yolo_box(raw[0, row, column, a], column, row, priors[a], stride)
      # float32 at coordinates up to a few hundred
      np.testing.assert_allclose(found[0, row, column, a], expected, rtol=1e-5, atol=1e-4)


def test_yolov1_boxes_agree_with_the_loop():
  raw, canvas = np.random.default_rng(3).normal(size=(2, 3, 4, 2, 5)).astype(np.float32), (30, 60)
  found = np.asarray(ops.yolov1_boxes(raw, canvas=canvas))
  assert found.shape == (2, 3, 4, 2, 4) and found.dtype == np.float32
  for place in np.ndindex(raw.shape[:4]):
    expected = oracles.yolov1_box(raw[place].astype(float), place[2], place[1], (3, 4), canvas)
    np.testing.assert_allclose(found[place], expected, rtol=1e-5, atol=1e-4)  # float32 at coordinates up to 100


def test_slots_stand_in_the_order_of_flattened_outputs():
  slots = jax.device_get(all_slots())
  outputs = some_outputs(np.random.default_rng(1), batch=2)
  flat = np.asarray(ops.flatten_levels(outputs))
  assert flat.shape == (2, 18, 7) and slots.cells.shape == (18, 2) and slots.strides.shape == (18, 1)
  slot = 0
  for level, output in enumerate(outputs):
    for row, column, a in np.ndindex(output.shape[1:4]):
      np.testing.assert_array_equal(flat[1, slot], output[1, row, column, a])
      assert slots.cells[slot].tolist() == [column, row]
      assert slots.anchors[slot].tolist() == list(ANCHORS[level][a]) and slots.strides[slot] == STRIDES[level]
      slot += 1


def test_encode_inverts_decode():
  slots, outputs = all_slots(), some_outputs(np.random.default_rng(2))

  @jax.jit
  def there_and_back(outputs):
    levels = tuple(ops.yolo_decode(o, a, stride=s) for o, a, s in zip(outputs, ANCHORS, STRIDES))
    return ops.yolo_encode(ops.flatten_levels(levels)[0], slots.cells, slots.anchors, stride=slots.strides)

  found, raw = there_and_back(outputs), np.asarray(ops.flatten_levels(outputs))[0]
  # The corners are sums of centre and size: an error of 1e-6 of the larger shows in the smaller.
  np.testing.assert_allclose(found[:, :2], 1 / (1 + np.exp(-raw[:, :2])), atol=1e-4)
  np.testing.assert_allclose(found[:, 2:], raw[:, 2:4], atol=1e-4)


def test_any_raw_output_decodes_to_finite_boxes_with_finite_gradients():
  raw = np.float32([[1e9, -1e9, 1e9, -1e9], [0, 0, 88, 3e38]]).reshape(2, 1, 1, 4)

  def total(t):
    boxes = ops.yolo_decode(t, [(6.0, 4.0)], stride=8)
    return boxes.sum(), boxes

  (_, boxes), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(raw)
  assert np.isfinite(boxes).all() and np.isfinite(gradient).all()
  # The bound that the docstring states: exp(10) = 22,026.5 times the anchor.
  assert float(boxes[1, 0, 0, 2] - boxes[1, 0, 0, 0]) == pytest.approx(6 * 22026.5, rel=1e-4)


def test_any_raw_output_of_yolov1_gives_finite_boxes_with_finite_gradients():
  raw = np.float32([[1e9, -3e38, 3e38, -1e9], [0, 0, 0, 0]]).reshape(2, 1, 1, 4)
  total = lambda t: (ops.yolov1_boxes(t, canvas=(8, 8)).sum(), ops.yolov1_boxes(t, canvas=(8, 8)))
  (_, boxes), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(raw)
  assert np.isfinite(boxes).all() and np.isfinite(gradient).all()
  assert np.ptp(boxes[0, 0, 0, ::2]) == 8e6  # the bound that the docstring states: roots of 1,000


def test_encode_is_finite_for_any_box():
  boxes = np.float32([[5, 5, 5, 5], [9, 9, 2, 1], [-1e9, 0, 1e9, 4], [500, 500, 510, 510], [0, 0, 1e-30, 1e-30]])
  encode = lambda box: (ops.yolo_encode(box, np.array([0, 1]), np.float32([6, 4]), stride=8),) * 2
  slope, found = jax.device_get(jax.jit(jax.vmap(jax.jacobian(encode, has_aux=True)))(boxes))
  assert np.isfinite(found).all() and np.isfinite(slope).all()
  assert (found[:, :2] >= 0).all() and (found[:, :2] <= 1).all() and (abs(found[:, 2:]) <= 10).all()


def test_encode_of_an_anchor_without_size_is_finite():
  encode = lambda anchor: ops.yolo_encode(np.float32([1, 2, 5, 9]), np.zeros(2), anchor, stride=8)
  slope, found = jax.jacobian(encode)(jnp.zeros(2)), encode(jnp.zeros(2))
  assert found[2:].tolist() == [0, 0] and not slope.any()


def test_a_batch_without_images_keeps_its_slots():
  assert ops.flatten_levels((jnp.zeros((0, 2, 4, 3, 7)), jnp.zeros((0, 1, 2, 3, 7)))).shape == (0, 30, 7)


def test_misfits_are_refused_in_one_line():
  with pytest.raises(ValueError, match='canvas 20 x 32 is no multiple of stride 8'):
    ops.yolo_slots(anchors=ANCHORS, strides=STRIDES, canvas=(20, 32))
  with pytest.raises(ValueError, match='anchors of 2 levels and 1 strides'):
    ops.yolo_slots(anchors=ANCHORS, strides=(8,), canvas=CANVAS)
  with pytest.raises(ValueError, match=r'raw \[1, 2, 4, 2, 7\] with anchors \[1, 2\]'):
    ops.yolo_decode(jnp.zeros((1, 2, 4, 2, 7)), [(6.0, 9.0)], stride=8)
  with pytest.raises(ValueError, match=r'yolov1_boxes: raw \[2, 4, 3\]; give \[..., h, w, P, 4 or more\]'):
    ops.yolov1_boxes(jnp.zeros((2, 4, 3)), canvas=(8, 8))
