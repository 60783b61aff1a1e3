"""DETR's loss against plain loops around SciPy; what it shares with the other detectors stands in test_detectors."""

import functools

import jax
import numpy as np
import pytest

from tests import oracles
from vision_jax import losses

L, B, Q, K, N = 3, 2, 5, 4, 4
QUICK = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
SIZE = np.float32([[60, 90], [64, 80]])


def some_scene(seed, targets=N):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(L, B, Q, K + 1)).astype(np.float32) * 2
  centre, size = rng.uniform(0.2, 0.8, (L, B, Q, 2)), rng.uniform(0.1, 0.5, (L, B, Q, 2))
  corner, extent = rng.uniform(0, 40, (B, targets, 2)), rng.uniform(5, 30, (B, targets, 2))
  boxes = np.concatenate([corner, corner + extent], axis=-1).astype(np.float32)
  predicted = np.concatenate([centre, size], axis=-1).astype(np.float32)
  return logits, predicted, boxes, rng.integers(0, K, (B, targets)), rng.uniform(size=(B, targets)) < 0.7


@functools.cache
def loss(**options):
  call = lambda logits, predicted, boxes, labels, real: losses.detr_loss(
      logits, predicted, boxes, labels, image_size=SIZE, boxes_valid=real, **options)
  return QUICK(call)


def agree_with_the_loop(terms, scene, **options):
  logits, predicted, boxes, labels, real = scene
  for layer, suffix in enumerate(['_0', '_1', '']):
    images = [oracles.detr_loss(logits[layer, i], predicted[layer, i], boxes[i][real[i]], labels[i][real[i]], SIZE[i],
                                **options) for i in range(B)]
    for name in ('loss_class', 'loss_box', 'loss_giou'):
      term = terms[name + suffix]
      np.testing.assert_allclose(term.total, sum(image[name] for image in images), rtol=2e-5)  # float32 sums
      count = sum(image['weight'] for image in images) if name == 'loss_class' else real.sum()
      np.testing.assert_allclose(term.count, count, rtol=1e-6)
  assert len(terms) == 9


@pytest.mark.parametrize('options', [{}, {'class_cost_kind': 'nll', 'no_object_weight': 0.3}], ids=str)
def test_each_layer_agrees_with_the_loop(options):
  for seed in range(4):
    scene = some_scene(seed)
    scene[-1][1] &= seed != 1  # an image without objects
    agree_with_the_loop(loss(**options)(*scene), scene, **options)


def test_objects_beyond_the_queries_are_counted_and_learned_by_none():
  scene = some_scene(5, targets=8)
  scene[-1][:] = True
  agree_with_the_loop(loss()(*scene), scene)


def test_all_layers_and_images_are_matched_in_one_call_of_the_solver():
  arrays = some_scene(0)[:-1]
  total = lambda *arrays, solver: losses.detr_loss(*arrays, image_size=SIZE, solver=solver)['loss_box'].total
  for solver, callbacks, loops in (('host', 1, 0), ('device', 0, 1)):
    program = str(jax.make_jaxpr(jax.grad(functools.partial(total, solver=solver)))(*arrays))
    assert (program.count('pure_callback['), program.count('while[')) == (callbacks, loops)


def test_one_query_without_an_object_is_worth_its_cross_entropy():
  arrays = [np.float32([[[[0, 0, 2]]]]), np.ones((1, 1, 1, 4)), np.zeros((1, 0, 4)), np.zeros((1, 0), int)]
  term = QUICK(functools.partial(losses.detr_loss, image_size=(8, 8)))(*arrays)['loss_class']
  # The sum of the weights is 0.1: a floor of 1 would make the loss a tenth.
  np.testing.assert_allclose(term.total / max(term.count, term.floor), oracles.softmax_cross_entropy([0, 0, 2], 2),
                             rtol=1e-6)

  def weightless(*arrays):  # 0 / 0 is 0
    assert losses.detr_loss(*arrays, image_size=(8, 8), no_object_weight=0)['loss_class'].floor == 1
  jax.eval_shape(weightless, *arrays)


@pytest.mark.parametrize('options, message', [
    ({'class_cost_kind': 'l2'}, "class_cost_kind is 'l2'; give one of prob, nll"),
    ({'no_object_weight': -1}, 'no_object_weight is -1; give a number from 0 to 1'),
    ({'image_size': np.ones((3, 2))}, r'image_size \[3, 2\] for 2 images; give \(h, w\) for all, or \[B, 2\]'),
    ({'solver': 'fast'}, "unknown solver 'fast'"),
])
def test_misfits_are_refused_in_one_line(options, message):
  arrays = some_scene(0)[:-1]
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(lambda: losses.detr_loss(*arrays, **({'image_size': SIZE} | options)))
