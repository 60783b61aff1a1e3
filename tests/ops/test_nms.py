"""Non-maximum suppression, index for index against the greedy loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from vision_jax import ops

N = 20


@functools.cache
def suppress(max_outputs=N):
  """Class-aware NMS of a batch, compiled once; the threshold is traced."""
  def one(boxes, scores, labels, valid, iou_threshold):
    return ops.class_aware_nms(boxes, scores, labels, iou_threshold=iou_threshold, max_outputs=max_outputs, valid=valid)
  batched = jax.jit(jax.vmap(one, in_axes=(0, 0, 0, 0, None)))
  return lambda *arrays: jax.device_get(batched(*arrays))


def some_cases(rng, cases):
  """Random sets of boxes, then with what is hard: exact IoUs, ties, duplicates, zero areas, negative coordinates."""
  corner, size = rng.uniform(-40, 40, (cases, N, 2)), rng.uniform(5, 40, (cases, N, 2))
  boxes = np.concatenate([corner, corner + size], -1)
  third = cases // 3
  boxes[:third] = np.round(boxes[:third] / 10) * 10  # sides of a few tens: IoU is often exactly 0.5, sides often 0
  scores = rng.uniform(size=(cases, N))
  scores[::2] = np.round(scores[::2] * 4) / 4
  boxes[third:2 * third, N // 2:] = boxes[third:2 * third, :N // 2]  # each box twice
  return boxes.astype(np.float32), scores.astype(np.float32), rng.integers(0, 3, (cases, N)).astype(np.int32)


@pytest.mark.parametrize('threshold', [0.3, 0.5, 0.7])
@pytest.mark.parametrize('by_class', [False, True])
def test_nms_keeps_what_the_greedy_loop_keeps_index_for_index(threshold, by_class):
  boxes, scores, labels = some_cases(np.random.default_rng(int(threshold * 10)), 60)
  labels = labels if by_class else np.zeros_like(labels)
  indices, valid = suppress()(boxes, scores, labels, np.ones(scores.shape, bool), threshold)
  for i in range(len(boxes)):
    expected = oracles.nms(boxes[i], scores[i], threshold, labels[i])
    assert indices[i][valid[i]].tolist() == expected
    assert valid[i].tolist() == [True] * len(expected) + [False] * (N - len(expected))
    assert not indices[i][~valid[i]].any()


def test_nms_keeps_box_whose_suppressor_was_suppressed():
  boxes = jnp.array([[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10.0]])  # neighbours overlap 6/14, the ends 2/18
  indices, valid = ops.nms(boxes, jnp.array([0.9, 0.8, 0.7]), iou_threshold=0.4, max_outputs=3)
  assert indices.tolist() == [0, 2, 0] and valid.tolist() == [True, True, False]


def test_an_iou_equal_to_the_threshold_does_not_suppress_and_ties_go_to_the_lower_index():
  boxes = jnp.array([[0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 10, 10.0]])
  indices, valid = ops.nms(boxes, jnp.full(3, 0.5), iou_threshold=0.5, max_outputs=3)
  assert indices[valid].tolist() == [0, 1]


def test_class_aware_nms_is_nms_class_by_class():
  boxes, scores, labels = some_cases(np.random.default_rng(7), 6)
  indices, valid = suppress()(boxes, scores, labels, np.ones(scores.shape, bool), 0.4)
  each = [suppress()(boxes, scores, labels * 0, labels == label, 0.4) for label in range(3)]
  for i in range(len(boxes)):
    assert sorted(indices[i][valid[i]]) == sorted(np.concatenate([own[i][kept[i]] for own, kept in each]))


@pytest.mark.parametrize('junk', [np.nan, 1e9, -np.inf])
def test_what_invalid_slots_hold_does_not_matter(junk):
  boxes, scores, labels = some_cases(np.random.default_rng(8), 6)
  real = np.random.default_rng(9).uniform(size=scores.shape) < 0.6
  real[0] = False
  clean = suppress()(np.where(real[..., None], boxes, 0), np.where(real, scores, 0), labels, real, 0.5)
  dirty = suppress()(np.where(real[..., None], boxes, junk).astype(np.float32),
                     np.where(real, scores, junk).astype(np.float32), labels, real, 0.5)
  np.testing.assert_array_equal(clean[0], dirty[0])
  np.testing.assert_array_equal(clean[1], dirty[1])
  assert not clean[1][0].any()
  for i in range(6):
    own = np.flatnonzero(real[i])
    expected = own[oracles.nms(boxes[i][own], scores[i][own], 0.5, labels[i][own])]
    assert clean[0][i][clean[1][i]].tolist() == expected.tolist()


def test_permuted_boxes_keep_the_same_boxes():
  boxes, _, labels = some_cases(np.random.default_rng(10), 6)
  scores = np.random.default_rng(11).permuted(np.tile(np.linspace(0.1, 0.9, N, dtype=np.float32), (6, 1)), axis=1)
  order = np.random.default_rng(12).permutation(N)
  all_real = np.ones(scores.shape, bool)
  indices, valid = suppress()(boxes, scores, labels, all_real, 0.4)
  permuted, still = suppress()(boxes[:, order], scores[:, order], labels[:, order], all_real, 0.4)
  np.testing.assert_array_equal(valid, still)
  np.testing.assert_array_equal(np.where(valid, indices, -1), np.where(still, order[permuted], -1))


def test_fewer_output_slots_hold_the_best_and_more_than_boxes_are_padded():
  boxes, scores, labels = some_cases(np.random.default_rng(13), 6)
  real = np.ones(scores.shape, bool)
  indices, valid = suppress()(boxes, scores, labels, real, 0.5)
  for slots in (3, N + 5):
    few, kept = suppress(slots)(boxes, scores, labels, real, 0.5)
    assert few.shape == kept.shape == (6, slots)
    shared = min(slots, N)
    np.testing.assert_array_equal(few[:, :shared], indices[:, :shared])
    np.testing.assert_array_equal(kept[:, :shared], valid[:, :shared])
    assert not kept[:, N:].any()


def test_nms_of_no_boxes_gives_only_invalid_slots():
  indices, valid = ops.nms(jnp.zeros((0, 4)), jnp.zeros(0), iou_threshold=0.5, max_outputs=2)
  assert indices.tolist() == [0, 0] and not valid.any()


def test_gradients_pass_beside_nms():
  def best_width(boxes):
    indices, valid = ops.nms(boxes, boxes[:, 2], iou_threshold=0.5, max_outputs=2)
    return jnp.sum(jnp.where(valid, boxes[indices, 2], 0))
  gradient = jax.jit(jax.grad(best_width))(np.float32([[0, 0, 4, 4], [9, 9, 12, 12]]))
  assert gradient.tolist() == [[0, 0, 1, 0], [0, 0, 1, 0]]


def test_wrong_shapes_are_refused_in_one_line():
  with pytest.raises(ValueError, match='jax.vmap takes a batch'):
    ops.nms(jnp.zeros((2, 3, 4)), jnp.zeros((2, 3)), iou_threshold=0.5, max_outputs=2)
