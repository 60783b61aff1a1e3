"""Assignment by IoU, anchor for anchor against torchvision's matchers, and the random sample from it."""

import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden import make_matching
from vision_jax import ops

pytestmark = pytest.mark.medium  # many small compilations: together more than the fast tests can spare

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'matching.npz'


@functools.cache
def assign():
  """All rows of `MATCHERS` on a batch of IoUs, compiled once."""
  def one(iou, valid):
    return {name: ops.max_iou_assignment(iou, **options, valid=valid)
            for name, options in make_matching.MATCHERS.items()}
  batched = jax.jit(jax.vmap(one))
  return lambda iou, valid: jax.device_get(batched(iou, valid))


def as_torchvision(found):
  return np.where(found.positive, found.owner, np.where(found.ignored, -2, -1))


@pytest.mark.parametrize('junk', [np.nan, 1e9])
def test_anchors_get_what_torchvision_gives_them_and_invalid_targets_have_no_say(junk):
  iou, valid = make_matching.draw()
  found, golden = assign()(np.where(valid[..., None], iou, np.float32(junk)), valid), np.load(GOLDEN)
  for name in make_matching.MATCHERS:
    np.testing.assert_array_equal(as_torchvision(found[name]), golden[name])
    assert not (found[name].positive & found[name].ignored).any()
    assert not found[name].owner[~found[name].positive].any()


def test_a_target_without_overlap_gains_nothing_where_torchvision_gives_it_anchors():
  golden = np.load(GOLDEN)
  for name, options in make_matching.MATCHERS.items():
    found = as_torchvision(ops.max_iou_assignment(make_matching.WITHOUT_OVERLAP, **options))
    alone = as_torchvision(ops.max_iou_assignment(make_matching.WITHOUT_OVERLAP[:1], **options))
    assert found.tolist() == alone.tolist() == [-1, 0, -1]
    assert (golden[f'{name}_without_overlap'].tolist() == [-1, 0, -1]) == (options['low_quality'] == 'none')


def test_without_a_valid_target_all_anchors_are_negative():
  iou, valid = make_matching.draw()
  for found in assign()(iou, np.zeros_like(valid)).values():
    assert not found.positive.any() and not found.ignored.any() and not found.owner.any()
  for shape in ((0, 3), (2, 0)):
    found = ops.max_iou_assignment(np.zeros(shape), high=0.5, low=0.5, low_quality='force')
    assert [field.shape for field in found] == [shape[1:]] * 3 and not found.positive.any()


def test_a_nan_counts_as_no_overlap():
  iou, valid = make_matching.draw()
  unknown = np.random.default_rng(0).uniform(size=iou.shape) < 0.3
  clean, dirty = assign()(np.where(unknown, 0, iou), valid), assign()(np.where(unknown, np.nan, iou), valid)
  for name in make_matching.MATCHERS:
    np.testing.assert_array_equal(as_torchvision(clean[name]), as_torchvision(dirty[name]))


def test_permuted_anchors_and_targets_keep_their_partners():
  rng = np.random.default_rng(1)
  iou = rng.permuted(np.linspace(0.01, 0.9, 280)).reshape(1, 7, 40).astype(np.float32)  # no ties
  targets, anchors, valid = rng.permutation(7), rng.permutation(40), np.ones((1, 7), bool)
  straight, permuted = assign()(iou, valid), assign()(iou[:, targets][..., anchors], valid)
  for name in set(make_matching.MATCHERS) - {'ssd'}:  # of targets that force one anchor the order decides
    expected, found = as_torchvision(straight[name])[0, anchors], as_torchvision(permuted[name])[0]
    np.testing.assert_array_equal(expected, np.where(found >= 0, targets[found], found))


def test_wrong_ious_and_thresholds_are_refused_in_one_line():
  with pytest.raises(ValueError, match='jax.vmap takes a batch'):
    ops.max_iou_assignment(np.zeros((2, 3, 4)), high=0.5, low=0.5)
  with pytest.raises(ValueError, match=r'iou \[2, 3\], valid \[3\]'):
    ops.max_iou_assignment(np.zeros((2, 3)), high=0.5, low=0.5, valid=np.ones(3, bool))
  with pytest.raises(ValueError, match='low 0.7, high 0.5'):
    ops.max_iou_assignment(np.zeros((2, 3)), high=0.5, low=0.7)
  with pytest.raises(ValueError, match='one of none, ties, force'):
    ops.max_iou_assignment(np.zeros((2, 3)), high=0.5, low=0.5, low_quality='tie')


def sample(key, positive, negative, **options):
  return jax.device_get(ops.balanced_sample(key, positive, negative, **options))


@pytest.mark.parametrize(('positives', 'negatives', 'size', 'fraction', 'expected'), [
  (9, 20, 8, 0.5, (4, 4)),
  (9, 20, 10, 0.25, (2, 8)),  # not two and a half
  (1, 20, 8, 0.5, (1, 7)),
  (9, 2, 8, 0.5, (4, 2)),
  (0, 20, 8, 0.5, (0, 8)),
  (9, 0, 8, 0.5, (4, 0)),
  (9, 20, 8, 0.0, (0, 8)),
  (9, 20, 8, 1.0, (8, 0)),
  (0, 0, 8, 0.5, (0, 0)),
  (9, 20, 0, 0.5, (0, 0)),
  (9, 20, 1000, 0.5, (9, 20)),  # all, as with torchvision's sampler of a million
])
def test_positives_up_to_their_share_come_first_and_negatives_fill_up(positives, negatives, size, fraction, expected):
  kind = np.random.default_rng(2).permutation([1] * positives + [-1] * negatives + [0] * (35 - positives - negatives))
  indices, valid = sample(jax.random.key(3), kind > 0, kind < 0, size=size, positive_fraction=fraction)
  assert indices.shape == valid.shape == (size,)
  assert kind[indices[valid]].tolist() == [1] * expected[0] + [-1] * expected[1]
  assert len(set(indices[valid])) == valid.sum() and not indices[~valid].any()
  assert valid.tolist() == sorted(valid, reverse=True)


def test_every_sample_is_as_likely_as_any_other():
  kind = np.array([1, 0, 1, -1, 1, -1, 1, -1, 0, -1, -1])
  draw = jax.jit(jax.vmap(lambda key: ops.balanced_sample(key, kind > 0, kind < 0, size=5, positive_fraction=0.4)))
  indices, valid = jax.device_get(draw(jax.random.split(jax.random.key(4), 6000)))
  assert valid.all()
  for part, candidates in ((indices[:, :2], np.flatnonzero(kind > 0)), (indices[:, 2:], np.flatnonzero(kind < 0))):
    ordered = list(itertools.permutations(candidates, part.shape[1]))
    counts = np.array([np.sum((part == one).all(axis=1)) for one in ordered])
    assert counts.sum() == len(part)
    # Chi-squared of 11 or 59 degrees of freedom; 5 standard deviations above its mean.
    mean = len(part) / len(ordered)
    assert ((counts - mean) ** 2 / mean).sum() < len(ordered) + 5 * np.sqrt(2 * len(ordered))


def test_the_same_key_draws_the_same_sample_and_another_key_another():
  positive = np.arange(50) < 20
  first, again, other = (sample(jax.random.key(seed), positive, ~positive, size=16, positive_fraction=0.5)[0].tolist()
                         for seed in (5, 5, 6))
  assert first == again != other


def test_a_candidate_that_is_both_counts_as_positive_and_is_drawn_once():
  both = np.ones(4, bool)
  indices, valid = sample(jax.random.key(7), both, both, size=6, positive_fraction=0.5)
  assert valid.tolist() == [True] * 3 + [False] * 3 and len(set(indices[:3])) == 3


def test_a_sample_of_no_anchors_holds_only_invalid_slots():
  indices, valid = sample(jax.random.key(8), jnp.zeros(0, bool), jnp.zeros(0, bool), size=3, positive_fraction=0.5)
  assert indices.tolist() == [0, 0, 0] and not valid.any()


def test_wrong_candidates_and_shares_are_refused_in_one_line():
  key, some = jax.random.key(0), np.ones(3, bool)
  with pytest.raises(ValueError, match=r'positive \[3\], negative \[2\]'):
    ops.balanced_sample(key, some, some[:2], size=2, positive_fraction=0.5)
  with pytest.raises(ValueError, match='size 2, positive_fraction 50'):
    ops.balanced_sample(key, some, some, size=2, positive_fraction=50)
