"""Pixel cross-entropy, soft Dice and Tversky against loops, with void pixels and padded images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from vision_jax import losses

pytestmark = pytest.mark.medium  # many small compilations: together more than the fast tests can spare

B, H, W, K = 3, 4, 5, 4


@functools.cache
def example():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(B, H, W, K)).astype(np.float32) * 2
  labels = rng.integers(0, K - 1, (B, H, W)).astype(np.int32)  # the last class is in no image
  pixels_valid = rng.uniform(size=(B, H, W)) < 0.7
  return logits, labels, pixels_valid


@functools.cache
def loss_and_gradient(**options):
  def total(logits, labels, pixels_valid, valid):
    terms = losses.segmentation_loss(logits, labels, pixels_valid=pixels_valid, valid=valid, **options)
    return sum(term.total for term in terms.values()), terms
  return jax.jit(jax.value_and_grad(total, has_aux=True))


def softmax(logits):
  p = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


def test_pixel_cross_entropy_agrees_with_the_loop_and_is_zero_at_void_pixels():
  logits, labels, real = example()
  weights = np.array([1.0, 2.0, 0.5, 3.0])
  found = losses.pixel_cross_entropy(logits, labels, class_weights=weights, label_smoothing=0.1, valid=real)
  for place in np.ndindex(labels.shape):
    expected = weights[labels[place]] * oracles.softmax_cross_entropy(logits[place], labels[place], 0.1)
    np.testing.assert_allclose(found[place], expected if real[place] else 0, atol=5e-6)  # float32, values up to 20


@pytest.mark.parametrize('smooth', [0.0, 1.0])
def test_soft_dice_agrees_with_the_loop(smooth):
  logits, labels, real = example()
  p, truth = softmax(logits).astype(np.float32), np.eye(K, dtype=bool)[labels]
  found = losses.soft_dice(p, truth, smooth=smooth, valid=real)
  assert found.shape == (B, K)
  for b, k in np.ndindex(found.shape):
    expected = oracles.dice(p[b, ..., k][real[b]], truth[b, ..., k][real[b]], smooth)
    np.testing.assert_allclose(found[b, k], expected, rtol=1e-5)


@pytest.mark.parametrize('alpha, beta, smooth', [(0.3, 0.7, 1.0), (1.0, 1.0, 0.0), (0.0, 2.0, 0.5)])
def test_tversky_agrees_with_the_loop_for_each_image_and_over_the_batch(alpha, beta, smooth):
  logits, labels, real = example()
  p, truth = softmax(logits).astype(np.float32), np.eye(K, dtype=bool)[labels]
  each = losses.tversky(p, truth, alpha=alpha, beta=beta, smooth=smooth, valid=real)
  whole = losses.tversky(p, truth, alpha=alpha, beta=beta, smooth=smooth, over='batch', valid=real)
  assert each.shape == (B, K) and whole.shape == (K,)
  for k in range(K):
    expected = oracles.tversky(p[..., k][real], truth[..., k][real], alpha, beta, smooth)
    np.testing.assert_allclose(whole[k], expected, rtol=1e-5)  # float32 sums of 60 pixels
    for b in range(B):
      expected = oracles.tversky(p[b, ..., k][real[b]], truth[b, ..., k][real[b]], alpha, beta, smooth)
      np.testing.assert_allclose(each[b, k], expected, rtol=1e-5)


def test_dice_over_the_batch_agrees_with_the_loop_and_with_tversky_of_two_halves():
  logits, labels, real = example()
  p, truth = softmax(logits).astype(np.float32), np.eye(K, dtype=bool)[labels]
  found = losses.soft_dice(p, truth, over='batch', smooth=0.5, valid=real)
  expected = [oracles.dice(p[..., k][real], truth[..., k][real], 0.5) for k in range(K)]
  np.testing.assert_allclose(found, expected, rtol=1e-5)  # float32 sums of 60 pixels
  assert found.tolist() == losses.tversky(p, truth, over='batch', smooth=0.5, valid=real).tolist()
  # One image is its own batch, and the order of images does not matter (float32 sums).
  one = losses.soft_dice(p[:1], truth[:1], over='batch', smooth=0.5)
  np.testing.assert_allclose(one, losses.soft_dice(p[0], truth[0], smooth=0.5), rtol=1e-6)
  turned = losses.soft_dice(p[::-1], truth[::-1], over='batch', smooth=0.5, valid=real[::-1])
  np.testing.assert_allclose(turned, found, rtol=1e-6)


def test_the_weights_of_tversky_tell_false_positives_from_false_negatives():
  truth = np.array([1, 1, 0, 0], bool).reshape(2, 2, 1)
  more, less = np.array([1.0, 1, 1, 0]).reshape(2, 2, 1), np.array([1.0, 0, 0, 0]).reshape(2, 2, 1)
  assert losses.tversky(more, truth, alpha=2.0, beta=0.0, smooth=0).tolist() == [0.5]  # 2 / (2 + 2)
  assert losses.tversky(less, truth, alpha=2.0, beta=0.0, smooth=0).tolist() == [1.0]
  assert losses.tversky(less, truth, alpha=0.0, beta=3.0, smooth=0).tolist() == [0.25]  # 1 / (1 + 3)


def test_a_class_that_is_neither_there_nor_predicted_has_dice_one_and_a_finite_gradient():
  empty = jnp.zeros((2, 2, 1))
  for smooth, over in ((0.0, 'image'), (1.0, 'image'), (0.0, 'batch')):
    dice = lambda p, s=smooth, o=over: losses.soft_dice(p, empty, smooth=s, over=o).sum()
    value, gradient = jax.value_and_grad(dice)(empty)
    assert value == 1 and np.isfinite(gradient).all()


@pytest.mark.parametrize('absent', ['ignore', 'count'])
def test_segmentation_loss_agrees_with_the_loop(absent):
  logits, labels, real = example()
  valid = np.array([True, False, True])
  (_, terms), _ = loss_and_gradient(dice_absent=absent)(logits, labels, real, valid)
  pixel, dice, pixels = 0.0, 0.0, 0
  for b in np.flatnonzero(valid):
    places = [place for place in np.ndindex(H, W) if real[b][place]]
    pixel += sum(oracles.softmax_cross_entropy(logits[b][place], labels[b][place]) for place in places)
    pixels += len(places)
    p, truth = softmax(logits[b])[real[b]], np.eye(K)[labels[b]][real[b]]
    each = [1 - oracles.dice(p[:, k], truth[:, k], 1.0) for k in range(K) if absent == 'count' or truth[:, k].any()]
    assert len(each) == (K if absent == 'count' else K - 1)
    dice += np.mean(each)
  np.testing.assert_allclose(terms['loss_pixel'].total, pixel, rtol=1e-5)
  np.testing.assert_allclose(terms['loss_dice'].total, dice, rtol=1e-5)
  assert terms['loss_pixel'].count == pixels and terms['loss_dice'].count == 2


@pytest.mark.parametrize('absent', ['ignore', 'count'])
def test_segmentation_loss_over_the_batch_agrees_with_the_loop(absent):
  logits, labels, real = example()
  valid = np.array([True, False, True])
  counted = real & valid[:, None, None]
  options = {'dice_over': 'batch', 'dice_alpha': 0.3, 'dice_beta': 0.7, 'dice_absent': absent}
  (_, terms), _ = loss_and_gradient(**options)(logits, labels, real, valid)
  p, truth = softmax(logits)[counted], np.eye(K)[labels][counted]
  each = [1 - oracles.tversky(p[:, k], truth[:, k], 0.3, 0.7, 1.0) for k in range(K)
          if absent == 'count' or truth[:, k].any()]
  np.testing.assert_allclose(terms['loss_dice'].total, np.mean(each), rtol=1e-5)  # float32 sums of 40 pixels
  assert len(each) == (K if absent == 'count' else K - 1) and terms['loss_dice'].count == 1


@pytest.mark.parametrize('options', [{}, {'dice_over': 'batch', 'dice_alpha': 0.3, 'dice_beta': 0.7}])
@pytest.mark.parametrize('junk', [np.nan, 1e9])
def test_what_void_pixels_and_padded_images_hold_changes_neither_value_nor_gradient(junk, options):
  logits, labels, real = example()
  valid = np.array([True, True, False])
  counted = real & valid[:, None, None]
  run = loss_and_gradient(**options)
  (value, terms), gradient = run(np.where(counted[..., None], logits, 0), np.where(counted, labels, 0), real, valid)
  dirty = np.where(counted[..., None], logits, np.float32(junk)), np.where(counted, labels, 10**9).astype(np.int32)
  (same, same_terms), same_gradient = run(*dirty, real, valid)
  assert np.isfinite(value) and value == same
  jax.tree.map(np.testing.assert_array_equal, terms, same_terms)
  np.testing.assert_array_equal(gradient, same_gradient)
  assert not np.asarray(gradient)[~counted].any() and np.asarray(gradient)[counted].any()


@pytest.mark.parametrize('options', [{}, {'dice_over': 'batch', 'dice_alpha': 0.3, 'dice_beta': 0.7}])
def test_a_batch_without_any_valid_pixel_is_worth_nothing(options):
  logits, labels, real = example()
  for pixels_valid, valid in ((real & False, np.ones(B, bool)), (real, np.zeros(B, bool))):
    (value, terms), gradient = loss_and_gradient(**options)(logits * np.nan, labels, pixels_valid, valid)
    assert value == 0 and not np.asarray(gradient).any()
    assert terms['loss_pixel'].count == 0 and terms['loss_dice'].count == 0


def test_gradients_agree_with_finite_differences_in_float64():
  logits, labels, real = example()
  logits, valid = logits.astype(np.float64), np.array([True, False, True])
  with jax.enable_x64(True):
    run = loss_and_gradient(label_smoothing=0.1)
    _, gradient = run(logits, labels, real, valid)
    assert gradient.dtype == np.float64
    for place in [(0, 0, 0, 0), (0, 3, 2, 1), (2, 1, 4, 3), (2, 2, 2, 2)]:
      step = np.zeros_like(logits)
      step[place] = 1e-5
      ends = [float(run(logits + sign * step, labels, real, valid)[0][0]) for sign in (1, -1)]
      # Central differences of values near 40: rounding of 1e-14 / 1e-5
      np.testing.assert_allclose(gradient[place], (ends[0] - ends[1]) / 2e-5, atol=1e-8)


def test_gradients_over_the_batch_agree_with_finite_differences_in_float64():
  logits, labels, real = example()
  logits, direction = logits.astype(np.float64), np.random.default_rng(1).normal(size=logits.shape)
  with jax.enable_x64(True):
    run = loss_and_gradient(dice_over='batch', dice_alpha=0.3, dice_beta=0.7)
    _, gradient = run(logits, labels, real, np.ones(B, bool))
    slope = oracles.slope(lambda x: run(x, labels, real, np.ones(B, bool))[0][0], logits, direction)
    assert np.vdot(gradient, direction) == pytest.approx(slope, rel=1e-7)  # values near 60: rounding of 1e-14 / 1e-6


def test_misfits_are_refused_in_one_line():
  logits, labels, _ = example()
  with pytest.raises(ValueError, match="dice_absent is 'skip'"):
    losses.segmentation_loss(logits, labels, dice_absent='skip')
  with pytest.raises(ValueError, match=r'segmentation_loss: logits \[.*\] and labels \[1, .*; give \[B, H, W, K\]'):
    losses.segmentation_loss(logits, labels[:1])  # not broadcast: its count would be that of one image
  with pytest.raises(ValueError, match=r'pixel_cross_entropy: class_weights \[2\]; give one for each of'):
    losses.pixel_cross_entropy(logits, labels, class_weights=jnp.ones(2))
  with pytest.raises(ValueError, match='give two arrays'):
    losses.soft_dice(logits, logits[..., :2])
  with pytest.raises(ValueError, match=r"tversky: a coefficient over 'all'; give 'image' or 'batch'"):
    losses.tversky(logits, logits, over='all')
  with pytest.raises(ValueError, match=r'segmentation_loss: alpha -1 and beta 0\.5'):
    losses.segmentation_loss(logits, labels, dice_alpha=-1)
