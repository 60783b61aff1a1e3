"""The samples and heads of Faster and Mask R-CNN against torchvision; the rest stands in test_detectors."""

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
PREDICTIONS, REST = make_detector_losses.draw('roi')
LABELS = REST['labels'] - 1  # torchvision's 0 is the background
LOGITS, DELTAS = PREDICTIONS['logits'], PREDICTIONS['deltas'].reshape(2, 12, 4, 4)
MASK_LOGITS = np.moveaxis(PREDICTIONS['mask_logits'][:, :, 1:], 2, -1)
KEYS = np.array([[0, 7], [0, 8]], np.uint32)
QUICK = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


@functools.cache
def sampler(**options):
  return QUICK(functools.partial(losses.sample_proposals, **options))


def torchvision_samples(second=True):
  """Samples as torchvision found them: the proposals, then the objects."""
  label, owner = GOLDEN['roi/sampled_labels'], GOLDEN['roi/owner']
  positive, valid = label > 0, np.ones(label.shape, bool)
  if not second:  # an image without objects has no boxes of theirs among the proposals
    positive, valid = positive & [[True], [False]], valid & ([[True], [False]] | (np.arange(12) < 10))
  return losses.ProposalSamples(
      boxes=GOLDEN['roi/sampled'], positive=positive, labels=np.where(positive, label - 1, 0),
      targets=np.take_along_axis(REST['boxes'], owner[..., None], axis=1), owner=owner, valid=valid)


@QUICK
@functools.partial(jax.value_and_grad, has_aux=True)
def head_losses(predictions, samples):
  logits, deltas, mask_logits = predictions
  terms = losses.roi_loss(logits, deltas, samples) | losses.mask_loss(mask_logits, REST['masks'], samples)
  return sum(term.total / jnp.maximum(term.count, 1) for term in terms.values()), terms


def test_values_and_gradients_of_the_heads_agree_with_torchvision():
  for suffix, second in (('', True), ('_half', False)):
    (_, terms), gradient = head_losses((LOGITS, DELTAS, MASK_LOGITS), torchvision_samples(second))
    for name, term in terms.items():
      np.testing.assert_allclose(term.total / term.count, GOLDEN[f'roi/{name}{suffix}'], rtol=2e-6)  # float32 sums
    if second:
      expected = [GOLDEN[f'roi/gradient_{key}'] for key in PREDICTIONS]
      expected[1] = expected[1].reshape(DELTAS.shape)
      assert not expected[2][:, :, 0].any()
      expected[2] = np.moveaxis(expected[2][:, :, 1:], 2, -1)
      for found, theirs in zip(gradient, expected):
        np.testing.assert_allclose(found, theirs, rtol=1e-4, atol=1e-8)  # float32


def test_samples_without_a_limit_are_all_proposals_with_torchvisions_labels():
  samples = jax.device_get(sampler(size=14, positive_fraction=1.0)(KEYS, REST['proposals'], REST['boxes'], LABELS))
  expected = torchvision_samples()
  for i in range(2):
    assert samples.valid[i].tolist() == [True] * 12 + [False] * 2
    ours, theirs = np.lexsort(samples.boxes[i, :12].T), np.lexsort(expected.boxes[i].T)
    np.testing.assert_array_equal(samples.boxes[i, :12][ours], expected.boxes[i][theirs])
    for found, wanted in ((samples.positive, expected.positive), (samples.labels, expected.labels)):
      np.testing.assert_array_equal(found[i, :12][ours], wanted[i][theirs])
    place = samples.positive[i, :12][ours]
    np.testing.assert_array_equal(samples.owner[i, :12][ours][place], expected.owner[i][theirs][place])
    np.testing.assert_array_equal(samples.targets[i, :12][ours][place], expected.targets[i][theirs][place])
    assert not any(x[i][~samples.positive[i]].any() for x in (samples.labels, samples.targets, samples.owner))


def test_a_sample_has_its_share_of_positives_first_and_is_drawn_without_replacement():
  seen, sample, alike = set(), sampler(size=5, positive_fraction=0.4), 0
  proposals, boxes, labels = (x[[1, 1]] for x in (REST['proposals'], REST['boxes'], LABELS))
  for seed in range(10):
    samples = jax.device_get(sample(jax.random.key(seed), proposals, boxes, labels))
    assert samples.positive.tolist() == [[True] * 2 + [False] * 3] * 2 and samples.valid.all()
    assert all(len({tuple(box) for box in taken}) == 5 for taken in samples.boxes)
    seen.add(samples.boxes.tobytes())
    alike += np.array_equal(*samples.boxes)  # of two equal images
    again = sample(jax.random.key(seed), proposals, boxes, labels)
    jax.tree.map(np.testing.assert_array_equal, samples, again)
  assert len(seen) > 5 and alike < 5


def test_what_is_not_real_is_never_sampled():
  proposals, boxes, labels = REST['proposals'].copy(), REST['boxes'].copy(), LABELS.copy()
  real, usable = np.array([[True, False], [True, True]]), np.arange(10) % 3 > 0
  proposals[:, ~usable] = np.nan
  boxes[0, 1], boxes[1, 0, 2:] = np.nan, boxes[1, 0, :2]  # the second one is real, but has no area
  samples = jax.device_get(sampler(size=12, positive_fraction=1.0)(
      KEYS, proposals, boxes, labels, proposals_valid=np.stack([usable] * 2), boxes_valid=real))
  for i in range(2):
    expected = [*proposals[i, usable], boxes[i, 0] if i == 0 else boxes[i, 1]]
    assert {tuple(b) for b in samples.boxes[i][samples.valid[i]]} == {tuple(b) for b in expected}
    assert samples.valid[i].sum() == len(expected) and not samples.boxes[i][~samples.valid[i]].any()
    assert set(samples.owner[i][samples.positive[i]]) == {i}


def test_without_slots_for_objects_all_samples_are_background():
  samples = sampler(size=4)(KEYS, REST['proposals'], REST['boxes'][:, :0], LABELS[:, :0])
  assert samples.valid.all() and not samples.positive.any()


@functools.cache
def rpn_gradient():
  predictions, rest = make_detector_losses.draw('rpn')

  def total(predictions, key, order):
    terms = losses.rpn_loss(key, *(p[order] for p in predictions), jnp.asarray(rest['boxes'])[order],
                            anchors=rest['anchors'], size=8, positive_iou=0.4)
    return terms['loss_rpn_objectness'].total + terms['loss_rpn_box'].total, terms
  run = QUICK(jax.value_and_grad(total, has_aux=True))
  return lambda key, order=(0, 1): run(tuple(predictions.values()), key, np.array(order))


def test_a_region_proposal_network_learns_from_a_sample_with_its_share_of_positives():
  seen = set()
  for seed in range(5):
    (_, terms), (objectness, deltas) = rpn_gradient()(KEYS + np.uint32(seed))
    assert terms['loss_rpn_box'].count == 16
    for i in range(2):
      learned, boxed = np.flatnonzero(objectness[i]), np.flatnonzero(np.asarray(deltas[i]).any(axis=-1))
      # Where the probability should rise there is an object: at most half.
      assert len(learned) == 8 and 0 < len(boxed) <= 4
      assert sorted(boxed) == [a for a in learned if objectness[i, a] < 0]
      seen.add(tuple(learned))
  assert len(seen) > 5


def test_with_a_key_for_each_image_the_order_of_the_images_does_not_matter():
  result, swapped = rpn_gradient()(KEYS), rpn_gradient()(KEYS[::-1], (1, 0))
  # float32 sums in another order.
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), result, swapped)


def test_the_mask_head_may_see_the_first_samples_only():
  samples = sampler(size=12, positive_fraction=1.0)(KEYS, REST['proposals'], REST['boxes'], LABELS)
  first = int(np.asarray(samples.positive).sum(axis=1).max())
  assert first < 12
  few = QUICK(losses.mask_loss)(MASK_LOGITS[:, :first], REST['masks'], samples)['loss_mask']
  everything = head_losses((LOGITS, DELTAS, MASK_LOGITS), samples)[0][1]['loss_mask']
  np.testing.assert_allclose(few.total, everything.total, rtol=1e-6)  # float32 sums in another order
  assert few.count == everything.count == 25 * np.asarray(samples.positive).sum()


def test_misfits_are_refused_in_one_line():
  samples = torchvision_samples()
  short = jax.tree.map(lambda x: x[:, :5], samples)
  with pytest.raises(ValueError, match='mask_loss: logits of 12 proposals for 5 samples'):
    losses.mask_loss(MASK_LOGITS, REST['masks'], short)
  with pytest.raises(ValueError, match=r'roi_loss: samples \[2, 5, 4\] beside logits \[2, 12, 4\]'):
    losses.roi_loss(LOGITS, DELTAS, short)
  with pytest.raises(ValueError, match=r'roi_loss: deltas \[2, 12, 4, 3\] beside'):
    losses.roi_loss(LOGITS, DELTAS[..., :3], samples)
  with pytest.raises(ValueError, match=r'rpn_loss: boxes \[2, 4\] beside'):
    losses.rpn_loss(KEYS, LOGITS[..., 0], DELTAS[..., 0], REST['boxes'][:, 0], anchors=REST['proposals'][0])
  with pytest.raises(ValueError, match=r'sample_proposals: labels \[2, 1\]'):
    losses.sample_proposals(KEYS, REST['proposals'], REST['boxes'], LABELS[:, :1])


def test_a_class_that_does_not_exist_counts_as_the_nearest_in_both_heads():
  boxes, yes, zeros = np.float32([[[0, 0, 4, 4]]]), np.ones((1, 1), bool), np.zeros((1, 1), int)
  logits, deltas, masks = np.float32([[[0, 1, 2]]]), np.ones((1, 1, 3, 4), np.float32), np.ones((1, 1, 8, 8), bool)
  mask_logits = np.float32(np.arange(8).reshape(1, 1, 2, 2, 2))
  sums = []
  for label in (1, 7):
    samples = losses.ProposalSamples(boxes, yes, zeros + label, boxes, zeros, yes)
    terms = losses.roi_loss(logits, deltas, samples) | losses.mask_loss(mask_logits, masks, samples)
    sums.append({name: float(term.total) for name, term in terms.items()})
  assert sums[0] == sums[1]
