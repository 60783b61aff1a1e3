"""Which points FCOS's objects are learned by; values against torchvision's stand in test_detectors."""

import functools

import jax
import numpy as np
import pytest

from tests import oracles
from tests.golden import make_detector_losses
from vision_jax import losses

ANCHORS = make_detector_losses.grid_anchors((48, 64), (8, 16, 32), ((1, 1),))
ZEROS = np.zeros((1, len(ANCHORS), 6), np.float32)


@functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
@jax.grad
def class_gradient(logits, boxes):
  """Where truth has class k, the probability of k should rise: of object k, when each has a class of its own."""
  sides, central, labels = ZEROS[..., :4], ZEROS[..., 0], np.arange(6)[None]
  return losses.fcos_loss(logits, sides, central, boxes, labels, anchors=ANCHORS)['loss_class'].total


def learned(boxes):
  found = np.asarray(class_gradient(ZEROS, np.float32([boxes])))[0] < 0
  assert (found.sum(axis=-1) <= 1).all()
  return np.where(found.any(axis=-1), found.argmax(axis=-1), -1).tolist()


def test_points_learn_the_objects_that_the_loop_finds():
  levels, crowded = set(), 0
  for seed in range(20):
    rng = np.random.default_rng(seed)
    centre, half = rng.uniform((0, 0), (64, 48), (6, 2)), np.exp(rng.uniform(1, 6, (6, 1)) + rng.uniform(-1, 1, (6, 2)))
    boxes = np.concatenate([centre - half, centre + half], axis=-1).astype(np.float32)
    found = learned(boxes)
    assert found == oracles.fcos_assign(boxes, ANCHORS)
    levels |= {ANCHORS[a, 2] - ANCHORS[a, 0] for a, owner in enumerate(found) if owner >= 0}
    crowded += len(set(found)) > 3
  assert levels == {8, 16, 32} and crowded  # or the rules would not have been tried


def test_of_nested_objects_a_point_learns_the_smallest():
  large, small, far = [8, 8, 40, 40], [16, 16, 32, 32], [1000, 0, 1001, 1]
  for boxes in ([large, small] + [far] * 4, [small, large] + [far] * 4):
    point = next(a for a, (x1, y1, x2, y2) in enumerate(ANCHORS) if x1 + x2 == y1 + y2 == 48)
    assert boxes[learned(boxes)[point]] == small


def test_misfits_are_refused_in_one_line():
  with pytest.raises(ValueError, match='radius is 0; give a positive number of strides'):
    losses.fcos_loss(ZEROS, ZEROS[..., :4], ZEROS[..., 0], np.zeros((1, 1, 4)), np.zeros((1, 1), int), anchors=ANCHORS,
                     radius=0)
  with pytest.raises(ValueError, match=r'fcos_loss: centerness_logits \[1, 64, 4\] beside'):
    losses.fcos_loss(ZEROS, ZEROS[..., :4], ZEROS[..., :4], np.zeros((1, 1, 4)), np.zeros((1, 1), int),
                     anchors=ANCHORS)
