"""What RetinaNet's anchors learn; values against torchvision's stand in test_detectors."""

import functools

import jax
import numpy as np
import pytest

from vision_jax import losses

# IoU with the object [0, 0, 10, 10]: 1, 0.6, 0.45, 0.3, 0.
ANCHORS = np.float32([[0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 4.5], [0, 0, 10, 3], [50, 0, 60, 10]])
QUICK = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
LOGITS = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
DELTAS = np.random.default_rng(1).normal(size=(2, 5, 4)).astype(np.float32)
BOX, LABEL = np.float32([[[0, 0, 10, 10]], [[0, 0, 10, 10]]]), np.array([[1], [2]])


@functools.cache
def gradients(**options):
  def total(logits, deltas, anchors):
    terms = losses.retinanet_loss(logits, deltas, BOX, LABEL, anchors=anchors, **options)
    return terms['loss_class'].total + terms['loss_box'].total, terms
  return QUICK(jax.grad(total, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize('options, positive, negative', [
    ({}, (0, 1), (3, 4)), ({'positive_iou': 0.7, 'negative_iou': 0.2}, (0,), (4,))], ids=str)
def test_between_the_thresholds_an_anchor_learns_nothing(options, positive, negative):
  (logits, deltas), terms = gradients(**options)(LOGITS, DELTAS, ANCHORS)
  for i, a in np.ndindex(2, 5):
    learned = [k for k in range(3) if logits[i, a, k] < 0]  # probability should rise
    assert learned == ([LABEL[i, 0]] if a in positive else [])
    assert np.asarray(logits[i, a]).all() == (a in positive + negative)
    assert np.asarray(deltas[i, a]).all() == (a in positive)
  assert terms['loss_class'].count == 2


def test_the_best_anchor_of_an_object_is_positive_whatever_its_iou():
  (logits, deltas), _ = gradients()(LOGITS, DELTAS, ANCHORS + np.float32([0, 7.5, 0, 7.5]))
  assert [a for a in range(5) if np.asarray(deltas[0, a]).any()] == [3]  # IoU 0.24
  assert logits[0, 3, 1] < 0 and logits[1, 3, 2] < 0


def test_misfits_are_refused_in_one_line():
  with pytest.raises(ValueError, match=r'retinanet_loss: labels \[1, 2\] beside logits \[2, 5, 3\]'):
    losses.retinanet_loss(LOGITS, DELTAS, BOX, LABEL.T, anchors=ANCHORS)
  with pytest.raises(ValueError, match='low 0.9, high 0.5'):
    jax.eval_shape(lambda: losses.retinanet_loss(LOGITS, DELTAS, BOX, LABEL, anchors=ANCHORS, negative_iou=0.9))
