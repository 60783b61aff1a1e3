"""What holds for the losses of YOLOv1 and YOLOv2 alike; `run` gives ((value, terms), gradient) of a scene."""

import jax
import numpy as np


def check_that_invalid_slots_do_not_matter(run, scene, junk):
  """`scene` is outputs, boxes, labels, boxes_valid of three images, of which the last is taken for padding here."""
  outputs, boxes, labels, real = scene
  valid = np.array([True, True, False])
  kept = real & valid[:, None]

  def filled(value):
    fill = lambda x, keep: np.where(keep.reshape(keep.shape + (1,) * (x.ndim - keep.ndim)), x, np.float32(value))
    label = 0 if value == 0 else 10**9
    return fill(outputs, valid), fill(boxes, kept), np.where(kept, labels, label).astype(np.int32), real, valid

  (value, terms), gradient = run(*filled(0))
  (same, same_terms), same_gradient = run(*filled(junk))
  assert np.isfinite(value) and value == same
  jax.tree.map(np.testing.assert_array_equal, (terms, gradient), (same_terms, same_gradient))
  assert np.asarray(gradient)[0].any() and not np.asarray(gradient)[2].any()


def check_that_the_order_of_slots_does_not_matter(run, scene):
  outputs, boxes, labels, real = scene
  order, everything = np.random.default_rng(0).permutation(labels.shape[1]), np.ones(len(labels), bool)
  found = run(outputs, boxes, labels, real, everything)
  same = run(outputs, boxes[:, order], labels[:, order], real[:, order], everything)
  jax.tree.map(np.testing.assert_array_equal, found, same)
