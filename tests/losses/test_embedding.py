"""Losses of embeddings against loops and torch, and where pairs, lengths or angles vanish."""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from tests.golden import make_losses
from vision_jax import losses

pytestmark = pytest.mark.medium  # many small compilations: together more than the fast tests can spare

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'losses.npz'
MINING = {'hard': (losses.batch_hard_triplet_loss, oracles.batch_hard),
          'semi_hard': (losses.semi_hard_triplet_loss, oracles.semi_hard)}
B, E = 12, 3
# Most of the cost here is compilation, and optimising takes most of that.
quick = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


@functools.cache
def batch():
  """Embeddings of length 1; class 4 has one member, without a positive."""
  rng = np.random.default_rng(0)
  embeddings = rng.normal(size=(B, E)).astype(np.float32)
  labels = np.array([0, 1, 2, 0, 1, 2, 3, 3, 0, 1, 4, 0])
  return embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True), labels


@functools.cache
def mined(kind, margin=0.2, **options):
  def total(embeddings, labels, valid):
    term = MINING[kind][0](embeddings, labels, margin=margin, valid=valid, **options)['loss_triplet']
    return term.total, term.count
  return quick(jax.value_and_grad(total, has_aux=True))


def with_gradients(loss, *arrays):
  """The un-reduced loss, and the gradients of its sum in all arrays."""
  def total(*arrays):
    value = loss(*arrays)
    return value.sum(), value
  (_, value), gradients = quick(jax.value_and_grad(total, argnums=tuple(range(len(arrays))), has_aux=True))(*arrays)
  return value, gradients


def everyone():
  return np.ones(B, bool)


@pytest.mark.parametrize('margin', [1.0, 2.5])
def test_contrastive_loss_agrees_with_the_loop(margin):
  a, b = np.random.default_rng(1).normal(size=(2, 4, 5, E)).astype(np.float32)
  same = np.random.default_rng(2).uniform(size=(4, 5)) < 0.5
  found = losses.contrastive_loss(a, b, same, margin=margin)
  expected = [[oracles.contrastive_loss(a[i, j], b[i, j], same[i, j], margin) for j in range(5)] for i in range(4)]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)  # float32, values up to 10
  np.testing.assert_array_equal(found, losses.contrastive_loss(b, a, same, margin=margin))


@pytest.mark.parametrize('case', range(len(make_losses.MARGINS)))
def test_the_triplet_loss_and_its_gradients_agree_with_torch(case):
  *_, triplets = make_losses.draw()
  loss = functools.partial(losses.triplet_loss, margin=make_losses.MARGINS[case], squared=False)
  value, gradients = with_gradients(loss, *triplets)
  with np.load(GOLDEN) as golden:
    np.testing.assert_allclose(value, golden['triplet'][case], rtol=1e-5, atol=1e-6)  # float32: a difference near 0
    np.testing.assert_allclose(gradients, golden['triplet_gradient'][case], rtol=1e-5, atol=1e-6)


def test_the_triplet_loss_takes_squared_distances_unless_told_otherwise():
  anchor, positive, negative = make_losses.draw()[-1]
  expected = [max(oracles.distance(a, p, True) - oracles.distance(a, n, True) + 0.2, 0)
              for a, p, n in zip(anchor, positive, negative)]
  found = losses.triplet_loss(anchor, positive, negative)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)  # float32: a difference near 0


@pytest.mark.parametrize('kind, options', [
    ('hard', {'margin': 0.2}), ('hard', {'margin': 'soft'}), ('hard', {'margin': 0.5, 'squared': True}),
    ('semi_hard', {'margin': 0.2}), ('semi_hard', {'margin': 1.0, 'squared': False}),
])
def test_mining_agrees_with_the_loop_over_all_valid_pairs_and_triplets(kind, options):
  embeddings, labels = batch()
  for valid, length in ((everyone(), 1), (np.arange(B) % 5 != 3, 10)):
    (total, count), _ = mined(kind, **options)(length * embeddings, labels, valid)
    expected = MINING[kind][1](length * embeddings[valid], labels[valid], **options)
    np.testing.assert_allclose(total, expected[0], rtol=1e-5)  # float32 sums of up to 24 pairs
    assert count == expected[1] > 0


def test_the_semi_hard_negative_is_the_nearest_one_beyond_the_positive_and_else_the_farthest():
  labels, valid = np.arange(B).clip(1), np.arange(B) < 5  # the first two are a pair

  def total(*places):
    line = np.zeros((B, E), np.float32)
    line[:5, 0] = places
    return mined('semi_hard', margin=1.0, squared=False)(line, labels, valid)[0][0]

  # 0 -> 2: of the negatives beyond 2, that at 2.5 is the nearest. 2 -> 0: only that at 4.2 is farther, 2.2 away.
  assert total(0, 2, 1, 2.5, 4.2) == pytest.approx((2 - 2.5 + 1) + (2 - 2.2 + 1))
  # One exactly as far, at -2, is not farther: that at 2.2 is. 2 -> 0: only that at -2, beyond the margin.
  assert total(0, 2, -2, 2.2, 0.1) == pytest.approx(2 - 2.2 + 1)
  # Without any that is farther the farthest stands in: 2 and 1.9 away.
  assert total(0, 2, 2, 0.5, 0.1) == pytest.approx((2 - 2 + 1) + (2 - 1.9 + 1))


@pytest.mark.parametrize('kind', MINING)
@pytest.mark.parametrize('junk', [np.nan, 1e9])
def test_what_invalid_embeddings_hold_changes_neither_value_nor_gradient(kind, junk):
  embeddings, labels = batch()
  valid = np.arange(B) % 4 != 2
  run = mined(kind)
  value, gradient = run(np.where(valid[:, None], embeddings, 0), np.where(valid, labels, 0), valid)
  dirty = np.where(valid[:, None], embeddings, np.float32(junk)), np.where(valid, labels, 10**9)
  same, same_gradient = run(*dirty, valid)
  assert np.isfinite(value).all() and value == same
  np.testing.assert_array_equal(gradient, same_gradient)
  assert not np.asarray(gradient)[~valid].any() and np.asarray(gradient)[valid].any()


@pytest.mark.parametrize('kind', MINING)
def test_the_order_of_the_batch_does_not_matter_to_mining(kind):
  embeddings, labels = batch()
  order = np.random.default_rng(3).permutation(B)
  (total, count), gradient = mined(kind)(embeddings, labels, everyone())
  (turned, turned_count), turned_gradient = mined(kind)(embeddings[order], labels[order], everyone())
  np.testing.assert_allclose(turned, total, rtol=1e-6)  # float32 sums in another order
  np.testing.assert_allclose(turned_gradient, np.asarray(gradient)[order], atol=1e-5)
  assert count == turned_count


@pytest.mark.parametrize('kind, options', [('hard', {}), ('hard', {'margin': 'soft'}), ('semi_hard', {})])
def test_mining_without_any_pair_is_worth_nothing(kind, options):
  embeddings, labels = batch()
  run = mined(kind, **options)
  for case in ((embeddings, labels, ~everyone()),  # none is valid
               (embeddings, 0 * labels, everyone()),  # no negative
               (embeddings, np.arange(B), everyone())):  # no positive
    (total, count), gradient = run(*case)
    assert total == 0 and count == 0 and not np.asarray(gradient).any()


@pytest.mark.parametrize('kind', MINING)
def test_mining_in_an_empty_batch_is_worth_nothing(kind):
  term = MINING[kind][0](jnp.zeros((0, E)), jnp.zeros(0, int))['loss_triplet']
  assert term.total == 0 and term.count == 0


@pytest.mark.parametrize('kind, options', [('hard', {'margin': 0.2}), ('hard', {'margin': 'soft'}),
                                           ('semi_hard', {'margin': 1.0, 'squared': False})])
def test_mining_is_finite_with_its_gradient_when_embeddings_fall_together(kind, options):
  _, labels = batch()
  for embeddings in (np.zeros((B, E), np.float32), np.ones((B, E), np.float32),
                     np.full((B, E), 1e9, np.float32) * (np.arange(B) % 2)[:, None]):
    (total, count), gradient = mined(kind, **options)(embeddings, labels, everyone())
    assert np.isfinite(total) and count > 0 and np.isfinite(gradient).all()
  (total, count), _ = mined(kind, **options)(np.ones((B, E), np.float32), labels, everyone())
  # All distances are 0, so each costs its margin, or log 2.
  assert total / count == pytest.approx(math.log(2) if options['margin'] == 'soft' else options['margin'])


def test_pair_losses_are_finite_with_their_gradients_for_equal_and_for_far_embeddings():
  a = jnp.array([[0.0, 0], [1, 1], [1e9, -1e9], [1e-30, 0]])
  b = jnp.array([[0.0, 0], [1, 1], [-1e9, 1e9], [0, 0]])
  parted = lambda a, b: losses.contrastive_loss(a, b, jnp.zeros(4, bool)).sum()
  drawn = lambda a, b: losses.contrastive_loss(a, b, jnp.ones(4, bool)).sum()
  triplet = lambda a, b: losses.triplet_loss(a, b, a[::-1], squared=False).sum()
  for loss in (parted, drawn, triplet):
    value, gradients = quick(jax.value_and_grad(loss, argnums=(0, 1)))(a, b)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize('margin', [0.0, 0.5])
def test_arcface_agrees_with_the_loop_on_both_sides_of_pi(margin):
  rng = np.random.default_rng(4)
  weights = rng.normal(size=(6, E)).astype(np.float32) * 3
  labels = rng.integers(0, 6, (4, 5))
  embeddings = rng.normal(size=(4, 5, E)).astype(np.float32)
  embeddings[0] = -weights[labels[0]] + 0.05 * embeddings[0]  # about pi away, beyond pi with the margin
  found = quick(functools.partial(losses.arcface_loss, scale=8.0, margin=margin))(embeddings, weights, labels)
  expected = [[oracles.arcface(embeddings[i, j], weights, labels[i, j], 8.0, margin) for j in range(5)]
              for i in range(4)]
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)  # float32 cosines times 8


def test_arcface_does_not_care_for_lengths_and_grows_with_the_angle_across_pi():
  angles = np.linspace(0, math.pi, 200)
  embeddings = np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
  weights = np.array([[1, 0], [0, 0]], np.float32)  # the other class has no direction: its cosine stays 0
  arcface = quick(functools.partial(losses.arcface_loss, labels=np.zeros(200, int), scale=4.0))
  found = arcface(embeddings, weights)
  assert (np.diff(found) > 0).all()
  np.testing.assert_allclose(arcface(7 * embeddings, 9 * weights), found, rtol=1e-5)  # float32


@pytest.mark.parametrize('margin', [0.5, 1.5])
def test_arcface_is_finite_with_its_gradients_along_against_and_without_the_true_direction(margin):
  weights = jnp.array([[3.0, 4], [0, 0], [-4, 3]])
  embeddings = jnp.array([[3.0, 4], [-3, -4], [0, 0], [1e9, 1e9], [-4, 3], [3e-7, 4e-7]])
  loss = lambda e, w, k: losses.arcface_loss(e, w, k, margin=margin).sum()
  run = quick(jax.value_and_grad(loss, argnums=(0, 1)))
  found = {label: run(embeddings, weights, jnp.full(6, label)) for label in (-7, 0, 1, 2, 10**9)}
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
  assert found[-7][0] == found[0][0] and found[10**9][0] == found[2][0]  # no such class: the nearest


def test_arcface_keeps_its_digits_close_to_the_true_direction():
  # At 1e-4 from the direction float32 has a cosine of 1, and sqrt(1 - cos^2) nothing or 3.5e-4.
  weights = np.array([[1, 0], [0, 1]], np.float32)
  embedding = np.array([1, 1e-4], np.float32)
  loss = lambda e: losses.arcface_loss(e, weights, 0, scale=1.0)
  value, gradient = quick(jax.value_and_grad(loss))(embedding)
  assert value == pytest.approx(oracles.arcface(embedding, weights, 0, 1.0, 0.5), rel=1e-6)
  slope = oracles.slope(lambda e: oracles.arcface(e, weights, 0, 1.0, 0.5), embedding.astype(np.float64),
                        np.array([0.0, 1.0]))
  assert gradient[1] == pytest.approx(slope, rel=1e-3)  # the oracle's arccos loses digits there in float64 too


CASES = {
    'contrastive': lambda x: losses.contrastive_loss(x[:6], x[6:], np.arange(6) % 2 == 0, margin=2.0).sum(),
    'triplet': lambda x: losses.triplet_loss(x[:4], x[4:8], x[8:], squared=False).sum(),
    'hard': lambda x: losses.batch_hard_triplet_loss(x, batch()[1], margin='soft')['loss_triplet'].total,
    'semi_hard': lambda x: losses.semi_hard_triplet_loss(x, batch()[1])['loss_triplet'].total,
    'arcface': lambda x: losses.arcface_loss(x[:7], x[7:], np.arange(7) % 5, scale=4.0).sum(),
}


@pytest.mark.parametrize('name', CASES)
def test_gradients_agree_with_finite_differences_in_float64(name):
  embeddings, direction = np.random.default_rng(5).normal(size=(2, B, E))
  with jax.enable_x64(True):
    run = quick(jax.value_and_grad(CASES[name]))
    gradient, slope = run(embeddings)[1], oracles.slope(lambda x: run(x)[0], embeddings, direction)
    assert gradient.dtype == np.float64 and np.asarray(gradient).any()
    assert np.vdot(gradient, direction) == pytest.approx(slope, rel=1e-6)  # values near 30: rounding of 1e-14 / 1e-6


def test_misfits_are_refused_in_one_line():
  x = jnp.zeros((4, E))
  with pytest.raises(ValueError, match=r'contrastive_loss: a \[4, 3\], b \[4, 3\] and same \[3\]'):
    losses.contrastive_loss(x, x, jnp.zeros(3, bool))
  with pytest.raises(ValueError, match=r'triplet_loss: anchor \[4, 3\], positive \[4, 3\] and negative \[2, 3\]'):
    losses.triplet_loss(x, x, x[:2])
  for loss in (losses.batch_hard_triplet_loss, losses.semi_hard_triplet_loss):
    with pytest.raises(ValueError, match=r'triplet_loss: embeddings \[4, 3\] and labels \[3\]'):
      loss(x, jnp.zeros(3, int))
  with pytest.raises(ValueError, match="margin is 'hard'; give a number or 'soft'"):
    losses.batch_hard_triplet_loss(x, jnp.zeros(4, int), margin='hard')
  with pytest.raises(ValueError, match=r'arcface_loss: embeddings \[4, 3\], class_weights \[3, 4\] and labels \[4\]'):
    losses.arcface_loss(x, x.T, jnp.zeros(4, int))
  with pytest.raises(ValueError, match='margin is 2; give radians'):
    losses.arcface_loss(x, x, jnp.zeros(4, int), margin=2)
