"""SSD's mining of hard negatives and its forced matches; values against torchvision's stand in test_detectors."""

import functools

import jax
import numpy as np
import pytest

from tests import oracles
from vision_jax import losses

# Eight default boxes side by side; an object is one of them, or the left 3 of 10 columns of one.
ANCHORS = np.float32([[10 * i, 0, 10 * i + 10, 10] for i in range(8)])
QUICK = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
LOGITS = np.random.default_rng(0).normal(size=(4, 8, 3)).astype(np.float32) * 2
DELTAS = np.random.default_rng(1).normal(size=(4, 8, 4)).astype(np.float32) * 2
BOXES = np.stack([ANCHORS[[4, 0, 0]], ANCHORS[[0, 0, 0]], ANCHORS[[1, 2, 6]], ANCHORS[[1, 2, 6]]])
LABELS = np.array([[1, 0, 0], [0, 0, 0], [0, 1, 1], [0, 1, 1]])
REAL = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1]], bool)
VALID = np.array([True, True, True, False])


@functools.cache
def loss_and_gradient(**options):
  def total(logits, deltas, boxes, labels, boxes_valid, valid):
    terms = losses.ssd_loss(logits, deltas, boxes, labels, anchors=ANCHORS, boxes_valid=boxes_valid, valid=valid,
                            **options)
    return terms['loss_class'].total, terms
  return QUICK(jax.value_and_grad(total, has_aux=True))


@pytest.mark.parametrize('options', [{}, {'negatives_per_positive': 2.0, 'min_negatives': 4}], ids=str)
def test_hard_negatives_are_those_with_the_highest_cross_entropy_in_their_image(options):
  (_, terms), gradient = loss_and_gradient(**options)(LOGITS, DELTAS, BOXES, LABELS, REAL, VALID)
  total = box = 0
  for i in range(3):
    labels = {int(b[0]) // 10: label + 1 for b, label, real in zip(BOXES[i], LABELS[i], REAL[i]) if real}
    costs = [oracles.softmax_cross_entropy(LOGITS[i, a], labels.get(a, 0)) for a in range(8)]
    negatives = sorted((a for a in range(8) if a not in labels), key=lambda a: -costs[a])
    # Image 2 asks for nine negatives in the first case, and has five.
    wanted = max(options.get('negatives_per_positive', 3) * len(labels), options.get('min_negatives', 0))
    learned = {*labels, *negatives[:int(wanted)]}
    assert {a for a in range(8) if np.asarray(gradient[i, a]).any()} == learned
    total += sum(costs[a] for a in learned)
    for a in labels:  # an object that is its default box: deltas of 0
      box += sum(abs(d) - 0.5 if abs(d) > 1 else d**2 / 2 for d in DELTAS[i, a])
  np.testing.assert_allclose(terms['loss_class'].total, total, rtol=1e-6)  # float32 sums
  np.testing.assert_allclose(terms['loss_box'].total, box, rtol=1e-6)
  assert terms['loss_box'].count == 4 and not np.asarray(gradient[3]).any()


def test_an_object_that_overlaps_too_little_still_has_its_best_default_box():
  boxes = BOXES - [0, 0, 7, 0]
  (_, terms), gradient = loss_and_gradient()(LOGITS, DELTAS, np.float32(boxes), LABELS, REAL, VALID)
  assert terms['loss_box'].count == 4
  assert all(gradient[2, a, k + 1] < 0 for a, k in zip((1, 2, 6), LABELS[2]))  # the object's class, learned there


@pytest.mark.parametrize('change, message', [
    ({'anchors': ANCHORS[:5]}, r'ssd_loss: anchors \[5, 4\] beside logits \[4, 8, 3\].*give anchors \[A, 4\] and'),
    ({'min_negatives': -1}, 'negatives_per_positive is 3.0, min_negatives -1; give numbers of at least 0'),
])
def test_misfits_are_refused_in_one_line(change, message):
  with pytest.raises(ValueError, match=message):
    losses.ssd_loss(LOGITS, DELTAS, BOXES, LABELS, **({'anchors': ANCHORS} | change))
