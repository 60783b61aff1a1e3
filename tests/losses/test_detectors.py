"""What the losses of all detectors share: they agree with torchvision, and only what is real counts."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden import make_detector_losses
from vision_jax import losses

pytestmark = pytest.mark.medium  # many small compilations: together more than the fast tests can spare

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / 'golden' / 'detector_losses.npz')
KEY = np.array([0, 7], np.uint32)
IMAGE_SIZE = np.array([[60, 90], [64, 80]], np.float32)
QUICK = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def draw_detr():
  rng = np.random.default_rng(0)
  boxes, labels = make_detector_losses.some_boxes(np.random.RandomState(1), canvas=(60, 80), count=3)
  predictions = {'logits': rng.normal(size=(3, 2, 5, 4)).astype(np.float32) * 2,
                 'predicted': rng.uniform(0.1, 0.9, (3, 2, 5, 4)).astype(np.float32)}
  return predictions, {'boxes': boxes, 'labels': labels - 1}


@functools.cache
def scene(name):
  """Predictions and the rest of two images with real objects only; labels from 0 on where there is a background."""
  if name == 'detr':
    return draw_detr()
  predictions, rest = make_detector_losses.draw(name)
  if name in ('ssd', 'roi'):
    rest = rest | {'labels': rest['labels'] - 1}
  if name == 'roi':
    predictions = {'logits': predictions['logits'], 'deltas': predictions['deltas'].reshape(2, 12, 4, 4),
                   # Channels last, and without that of the background.
                   'mask_logits': np.moveaxis(predictions['mask_logits'][:, :, 1:], 2, -1)}
  return predictions, rest


def terms_of(name, predictions, boxes, labels, boxes_valid, valid):
  """The Terms of one loss; samplers take everything, so that chance has no part."""
  rest, real = scene(name)[1], {'boxes_valid': boxes_valid, 'valid': valid}
  anchors = rest.get('anchors')
  if name == 'rpn':
    return losses.rpn_loss(KEY, *predictions, boxes, anchors=anchors, size=2 * len(anchors), **real)
  if name == 'detr':
    size = jnp.where(valid[:, None], IMAGE_SIZE, 0)
    return losses.detr_loss(*predictions, boxes, labels, image_size=size, **real)
  if name == 'roi':
    logits, deltas, mask_logits = predictions
    samples = losses.sample_proposals(KEY, rest['proposals'], boxes, labels, size=12, positive_fraction=1.0,
                                      add_ground_truth=False, **real)
    masks = jnp.where(boxes_valid[:, :, None, None], rest['masks'][:, :1].repeat(boxes.shape[1], 1), jnp.nan)
    return losses.roi_loss(logits, deltas, samples) | losses.mask_loss(mask_logits, masks, samples)
  loss = {'retinanet': losses.retinanet_loss, 'ssd': losses.ssd_loss, 'fcos': losses.fcos_loss}[name]
  return loss(*predictions, boxes, labels, anchors=anchors, **real)


def worth(terms):
  return {name: term.total / jnp.maximum(term.count, term.floor) for name, term in terms.items()}


@functools.cache
def loss_and_gradient(name):
  def total(predictions, boxes, labels, boxes_valid, valid):
    terms = terms_of(name, predictions, boxes, labels, boxes_valid, valid)
    return sum(worth(terms).values()), terms
  return QUICK(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))


def run(name, *, boxes=None, labels=None, boxes_valid=None, valid=(True, True), predictions=None):
  drawn, rest = scene(name)
  boxes = rest['boxes'] if boxes is None else boxes
  labels = rest['labels'] if labels is None else labels
  boxes_valid = np.ones(labels.shape, bool) if boxes_valid is None else boxes_valid
  predictions = tuple(drawn.values()) if predictions is None else predictions
  found, (gradient, of_boxes) = loss_and_gradient(name)(predictions, boxes, labels, boxes_valid, np.array(valid))
  assert not np.asarray(of_boxes).any()  # targets carry none
  return *found, gradient


EVERY = ['retinanet', 'ssd', 'fcos', 'rpn', 'roi', 'detr']
every_loss = pytest.mark.parametrize('name', EVERY)


@pytest.mark.parametrize('name', ['retinanet', 'ssd', 'fcos', 'rpn'])
def test_values_and_gradients_agree_with_torchvision(name):
  for suffix, second in (('', True), ('_half', False)):
    real = np.ones(scene(name)[1]['labels'].shape, bool)
    real[1] = second
    _, terms, gradient = run(name, boxes_valid=real)
    for key, value in worth(terms).items():
      np.testing.assert_allclose(value, GOLDEN[f'{name}/{key}{suffix}'], rtol=2e-6)  # float32 sums
    for key, found in zip(scene(name)[0], gradient) if second else ():
      # float32, and torchvision's GIoU adds 1e-7 to its divisors.
      np.testing.assert_allclose(found, GOLDEN[f'{name}/gradient_{key}'], rtol=1e-4, atol=1e-7)


@every_loss
def test_terms_of_two_halves_add_up_to_those_of_the_whole(name):
  real = np.ones(scene(name)[1]['labels'].shape, bool)
  real[0, 1:] = False  # uneven numbers of objects
  _, whole, _ = run(name, boxes_valid=real)
  # Each image alone in a batch whose other place is padding.
  parts = [run(name, boxes_valid=real, valid=valid)[1] for valid in ((True, False), (False, True))]
  for key, term in whole.items():  # float32 sums in another order
    np.testing.assert_allclose(sum(part[key].total for part in parts), term.total, rtol=1e-6)
    np.testing.assert_allclose(sum(part[key].count for part in parts), term.count, rtol=1e-6)
    assert all(part[key].count < term.count for part in parts)


@every_loss
@pytest.mark.parametrize('junk', [np.nan, 1e9])
def test_what_invalid_slots_and_images_hold_changes_neither_value_nor_gradient(name, junk):
  drawn, rest = scene(name)
  real = np.ones(rest['labels'].shape, bool)
  real[0, 1] = real[1] = False

  def filled(value, label):
    boxes, labels, predictions = rest['boxes'].copy(), rest['labels'].copy(), [v.copy() for v in drawn.values()]
    boxes[~real], labels[~real] = value, label
    for prediction in predictions:
      prediction.swapaxes(0, 1 if name == 'detr' else 0)[1] = value
    return run(name, boxes=boxes, labels=labels, boxes_valid=real, valid=(True, False), predictions=tuple(predictions))

  value, terms, gradient = filled(0, 0)
  assert np.isfinite(value) and any(np.asarray(g).any() for g in gradient)
  jax.tree.map(np.testing.assert_array_equal, (value, terms, gradient), filled(junk, 10**9))
  assert not any(np.asarray(g).swapaxes(0, 1 if name == 'detr' else 0)[1].any() for g in gradient)


@every_loss
def test_without_objects_or_images_values_and_gradients_are_finite(name):
  nothing = np.zeros(scene(name)[1]['labels'].shape, bool)
  value, terms, gradient = run(name, boxes_valid=nothing)
  for key, term in terms.items():
    # Objectness and classes without a background still learn that nothing is there; a box has nothing to learn.
    assert np.isfinite(term.total) and (term.total == 0 or not key.startswith(('loss_box', 'loss_giou', 'loss_mask')))
  assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradient)
  value, terms, gradient = run(name, valid=(False, False))
  assert value == 0 and not any(term.total or term.count for term in terms.values())
  assert not any(np.asarray(g).any() for g in gradient)


@pytest.mark.parametrize('name', [name for name in EVERY if name != 'roi'])  # test_faster_rcnn has its sampler
def test_a_batch_without_slots_for_objects_is_all_background(name):
  drawn, rest = scene(name)
  terms = QUICK(functools.partial(terms_of, name))(tuple(drawn.values()), rest['boxes'][:, :0], rest['labels'][:, :0],
                                                   np.zeros((2, 0), bool), np.ones(2, bool))
  expected = run(name, boxes_valid=np.zeros(rest['labels'].shape, bool))[1]
  # The same arithmetic in another program.
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), terms, expected)


@every_loss
@pytest.mark.parametrize('slots', [3, 0])
def test_without_anchors_proposals_or_queries_there_is_nothing_to_learn(name, slots):
  targets = np.ones((2, slots, 4), np.float32) * [1, 1, 9, 9], np.zeros((2, slots), int)
  none = np.zeros((2, 0), np.float32)

  def total(shift):
    logits, deltas = shift + np.zeros((2, 0, 4)), shift + np.zeros((2, 0, 4))
    options = {'anchors': none[0].reshape(0, 4)}
    if name == 'rpn':
      terms = losses.rpn_loss(KEY, shift + none, deltas, targets[0], **options)
    elif name == 'detr':
      terms = losses.detr_loss(logits[None], deltas[None], *targets, image_size=(16, 16))
    elif name == 'roi':
      samples = losses.sample_proposals(KEY, deltas, *targets, size=4, add_ground_truth=False)
      assert samples.boxes.shape == (2, 4, 4)
      terms = losses.roi_loss(shift + np.zeros((2, 4, 3)), shift + np.zeros((2, 4, 3, 4)), samples)
    else:
      more = (shift + none,) if name == 'fcos' else ()
      loss = {'retinanet': losses.retinanet_loss, 'ssd': losses.ssd_loss, 'fcos': losses.fcos_loss}[name]
      terms = loss(logits, deltas, *more, *targets, **options)
    return sum(worth(terms).values())

  value, gradient = QUICK(jax.value_and_grad(total))(0.0)
  assert value == gradient == 0


@every_loss
def test_permuted_object_slots_give_the_same_loss(name):
  _, rest = scene(name)
  count = rest['labels'].shape[1]
  order, real = np.roll(np.arange(count), 1), np.ones((2, count), bool)
  real[1, 0] = False
  value, terms, gradient = run(name, boxes_valid=real)
  again = run(name, boxes=rest['boxes'][:, order], labels=rest['labels'][:, order], boxes_valid=real[:, order])
  # float32 sums in another order.
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8), (value, terms, gradient), again)


@every_loss
def test_degenerate_objects_give_finite_values_and_gradients(name):
  boxes, kinds = scene(name)[1]['boxes'].copy(), [[3, 3, 3, 3], [30, 30, 9, 9], [5, 5, 5, 40], [1e8, 0, 1e9, 4],
                                                  [-1e9, -1e9, 1e9, 1e9], [1e9, 1e9, 1e9, 1e9]]
  for i in range(3):
    boxes[0, :2], boxes[1] = kinds[2 * i:2 * i + 2], boxes[1, 0]  # and objects that are all the same
    value, _, gradient = run(name, boxes=boxes)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradient)


@every_loss
def test_terms_that_share_a_divisor_share_its_object(name):
  drawn, rest = scene(name)

  def check(predictions):
    terms = terms_of(name, predictions, rest['boxes'], rest['labels'], jnp.ones(rest['labels'].shape, bool),
                     jnp.ones(2, bool))
    counts = {id(term.count) for key, term in terms.items()}
    assert len(counts) == (2 if name in ('detr', 'roi') else 1)  # queries' weights; mask cells
    return terms

  jax.eval_shape(check, tuple(drawn.values()))


@pytest.mark.medium
@every_loss
def test_gradients_agree_with_finite_differences_in_float64(name):
  drawn, rest = scene(name)
  predictions = tuple(np.float64(v) for v in drawn.values())
  rng = np.random.default_rng(3)
  real, everything = np.ones(rest['labels'].shape, bool), np.ones(2, bool)
  with jax.enable_x64(True):
    call = lambda moved: loss_and_gradient(name)(moved, rest['boxes'], rest['labels'], real, everything)
    gradient = jax.device_get(call(predictions)[1][0])
    for i, found in enumerate(gradient):
      assert found.dtype == np.float64
      direction = rng.normal(size=found.shape)
      ends = [float(call((*predictions[:i], predictions[i] + step * direction, *predictions[i + 1:]))[0][0])
              for step in (1e-6, -1e-6)]
      # Central differences of values near 100: rounding of 1e-14 / 1e-6
      np.testing.assert_allclose((found * direction).sum(), (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-7)
      assert np.count_nonzero(found) >= 4
