"""Non-maximum suppression, index for index against torchvision's and the greedy loop; soft-NMS against its loop."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from tests.golden import make_nms
from vision_jax import ops
from vision_jax.ops.nms import _greedy, _rounded_down

pytestmark = pytest.mark.medium  # many small compilations: together more than the fast tests can spare

N = 20  # picked one by one
MANY = 150  # the last by blocks
DIGESTS = np.load(pathlib.Path(make_nms.__file__).with_name('nms.npz'))


def suppress(boxes, scores, labels, valid, iou_threshold, *, max_outputs=N, candidates=None):
  """Class-aware NMS with a threshold in float32, as NumPy arrays."""
  return jax.device_get(ops.class_aware_nms(boxes, scores, labels, iou_threshold=jnp.float32(iou_threshold),
                                            max_outputs=max_outputs, candidates=candidates, valid=valid))


def kept(boxes, scores, **options):
  """The indices that plain NMS keeps of one set of boxes."""
  options = {'iou_threshold': 0.5, 'max_outputs': len(boxes)} | options
  indices, valid = jax.device_get(ops.nms(np.float32(boxes), np.float32(scores), **options))
  return indices[valid].tolist()


def some_cases(rng, cases, count=N):
  """Random sets of boxes, then with what is hard: exact IoUs, ties, duplicates, zero areas, negative coordinates."""
  corner, size = rng.uniform(-40, 40, (cases, count, 2)), rng.uniform(5, 40, (cases, count, 2))
  boxes = np.concatenate([corner, corner + size], -1)
  third = cases // 3
  boxes[:third] = np.round(boxes[:third] / 10) * 10  # sides of a few tens: IoU is often exactly 0.5, sides often 0
  scores = rng.uniform(size=(cases, count))
  scores[::2] = np.round(scores[::2] * 4) / 4
  boxes[third:2 * third, count // 2:] = boxes[third:2 * third, :count // 2]  # each box twice
  return boxes.astype(np.float32), scores.astype(np.float32), rng.integers(0, 3, (cases, count)).astype(np.int32)


def kept_by(strategy, boxes, scores, labels, valid):
  """[cases, 6, slots] for `make_nms.digests`: the three thresholds without classes, then with them."""
  return np.stack([strategy(boxes, scores, labels * by_class, valid, threshold)
                   for by_class in (0, 1) for threshold in make_nms.THRESHOLDS], axis=1)


def chosen_by_shape(boxes, scores, labels, valid, iou_threshold):
  indices, valid = ops.class_aware_nms(boxes, scores, labels, iou_threshold=iou_threshold, max_outputs=scores.shape[1],
                                       valid=valid)
  return jnp.where(valid, indices, -1)


def forced(**sizes):
  """A strategy with other numbers of picks and other blocks than its shapes would get."""
  @jax.jit
  def greedy(boxes, scores, labels, valid, threshold):
    scores = jnp.where(valid, jnp.where(scores == 0, 0, scores), -jnp.inf)
    indices = _greedy(boxes, scores, labels, threshold, scores.shape[1], **sizes)
    return jnp.where(indices < scores.shape[1], indices, -1)
  return lambda *arrays: greedy(*arrays[:-1], _rounded_down(arrays[-1], np.float32))


STRATEGIES = {'picks': chosen_by_shape, 'blocks': forced(picks=1, block=16)}


@pytest.mark.parametrize('name', STRATEGIES)
def test_ten_thousand_hard_cases_keep_what_torchvision_keeps_index_for_index(name):
  found = make_nms.digests(kept_by(STRATEGIES[name], *make_nms.draw()))
  assert np.flatnonzero(found != DIGESTS['small']).tolist() == []


@pytest.mark.medium
def test_up_to_all_boxes_of_ssd_keep_what_torchvision_keeps_index_for_index():
  for size, case in enumerate(make_nms.draw_large()):
    assert make_nms.digests(kept_by(chosen_by_shape, *case)).tolist() == DIGESTS[f'large_{size}'].tolist()


@pytest.mark.parametrize('threshold', [0.3, 0.5, 0.7])
@pytest.mark.parametrize('by_class', [False, True])
def test_nms_keeps_what_the_greedy_loop_keeps_index_for_index(threshold, by_class):
  boxes, scores, labels = some_cases(np.random.default_rng(int(threshold * 10)), 60)
  labels = labels if by_class else np.zeros_like(labels)
  indices, valid = suppress(boxes, scores, labels, np.ones(scores.shape, bool), threshold)
  for i in range(len(boxes)):
    expected = oracles.nms(boxes[i], scores[i], np.float32(threshold), labels[i])
    assert indices[i][valid[i]].tolist() == expected
    assert valid[i].tolist() == [True] * len(expected) + [False] * (N - len(expected))
    assert not indices[i][~valid[i]].any()


def test_nms_keeps_box_whose_suppressor_was_suppressed():
  boxes = [[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]]  # neighbours overlap 6/14, the ends 2/18
  assert kept(boxes, [0.9, 0.8, 0.7], iou_threshold=0.4) == [0, 2]


def test_an_iou_equal_to_the_threshold_does_not_suppress_and_ties_go_to_the_lower_index():
  assert kept([[0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 10, 10]], [0.5, 0.5, 0.5]) == [0, 1]


@pytest.mark.parametrize('threshold, expected', [(0.3, [0]), (np.float32(0.3), [0, 1]), (jnp.float32(0.3), [0, 1]),
                                                 (0.30000001, [0]), (0.30000002, [0, 1])])
def test_a_python_threshold_is_not_rounded_to_float32(threshold, expected):
  boxes = [[0, 0, 10, 10], [0, 0, 10, 3]]  # in float32 3/10 is 0.3000000119
  assert kept(boxes, [0.9, 0.8], iou_threshold=threshold) == expected


def test_class_aware_nms_is_nms_class_by_class():
  boxes, scores, labels = some_cases(np.random.default_rng(7), 6)
  indices, valid = suppress(boxes, scores, labels, np.ones(scores.shape, bool), 0.4)
  each = [suppress(boxes, scores, labels * 0, labels == label, 0.4) for label in range(3)]
  for i in range(len(boxes)):
    assert sorted(indices[i][valid[i]]) == sorted(np.concatenate([own[i][real[i]] for own, real in each]))


@pytest.mark.medium
def test_leading_axes_are_sets_of_boxes_by_themselves():
  boxes, scores, labels = some_cases(np.random.default_rng(14), 6, MANY)
  real = np.arange(MANY) < np.array([MANY, 0, 1, 130, 60, MANY - 1])[:, None]
  arrays = boxes, scores, labels, real
  indices, valid = suppress(*(a.reshape(2, 3, *a.shape[1:]) for a in arrays), 0.75, max_outputs=MANY)
  assert indices.shape == valid.shape == (2, 3, MANY)
  mapped = jax.jit(jax.vmap(lambda *arrays: ops.class_aware_nms(*arrays[:3], iou_threshold=jnp.float32(0.75),
                                                                max_outputs=MANY, valid=arrays[3])))(*arrays)
  for ours, alone in zip((indices, valid), mapped):
    np.testing.assert_array_equal(ours.reshape(6, -1), alone)
  assert valid[0, 0].sum() > 128  # some are kept by blocks, after the picks
  for i, image in enumerate(np.ndindex(2, 3)):
    own = slice(real[i].sum())
    expected = oracles.nms(boxes[i][own], scores[i][own], 0.75, labels[i][own])
    assert indices[image][valid[image]].tolist() == expected


def test_the_number_of_images_may_be_left_open_in_an_export():
  images, = jax.export.symbolic_shape('images')
  boxes, scores = (jax.ShapeDtypeStruct((images, MANY, *rest), jnp.float32) for rest in ((4,), ()))
  call = functools.partial(ops.nms, iou_threshold=0.5, max_outputs=MANY)
  exported = jax.export.export(jax.jit(call), platforms=('cpu', 'cuda', 'tpu'))(boxes, scores)
  assert exported.out_avals[0].shape == (images, MANY)


@pytest.mark.parametrize('count', [1, 7, 50])
def test_candidates_are_the_best_valid_boxes(count):
  boxes, scores, labels = some_cases(np.random.default_rng(15), 9)
  real = np.random.default_rng(16).uniform(size=scores.shape) < 0.6
  junk = np.where(real[..., None], boxes, np.nan), np.where(real, scores, 1e9), labels, real
  indices, valid = suppress(*junk, 0.4, candidates=count)
  for i in range(9):
    own = np.flatnonzero(real[i])
    own = own[np.argsort(-scores[i][own], kind='stable')][:count]
    expected = own[oracles.nms(boxes[i][own], scores[i][own], np.float32(0.4), labels[i][own])]
    assert indices[i][valid[i]].tolist() == expected.tolist()
    assert not valid[i][len(expected):].any() and not indices[i][~valid[i]].any()


def test_the_two_zeros_are_a_tie_of_scores():
  assert kept([[0, 0, 10, 10], [0, 0, 10, 10], [20, 0, 30, 10]], [-0.0, 0.0, -0.0], candidates=1) == [0]


@pytest.mark.parametrize('junk', [np.nan, 1e9, -np.inf])
@pytest.mark.parametrize('count', [N, MANY])
def test_what_invalid_slots_hold_does_not_matter(junk, count):
  boxes, scores, labels = some_cases(np.random.default_rng(8), 6, count)
  real = np.random.default_rng(9).uniform(size=scores.shape) < (0.6 if count == N else 0.95)
  real[0] = False
  clean, dirty = (suppress(np.where(real[..., None], boxes, other).astype(np.float32),
                           np.where(real, scores, other).astype(np.float32), labels, real, 0.75, max_outputs=count)
                  for other in (0, junk))
  np.testing.assert_array_equal(clean[0], dirty[0])
  np.testing.assert_array_equal(clean[1], dirty[1])
  assert not clean[1][0].any()
  for i in range(4):
    own = np.flatnonzero(real[i])
    expected = own[oracles.nms(boxes[i][own], scores[i][own], 0.75, labels[i][own])]
    assert clean[0][i][clean[1][i]].tolist() == expected.tolist()


def test_a_box_with_nan_overlaps_nothing_and_a_score_of_nan_is_invalid():
  boxes = [[0, 0, 10, 10], [0, 0, 10, np.nan], [0, 0, 10, 10], [0, 0, 10, 10]]
  assert kept(boxes, [0.7, 0.8, np.nan, 0.6]) == [1, 0]


def test_permuted_boxes_keep_the_same_boxes():
  boxes, _, labels = some_cases(np.random.default_rng(10), 6)
  scores = np.random.default_rng(11).permuted(np.tile(np.linspace(0.1, 0.9, N, dtype=np.float32), (6, 1)), axis=1)
  order = np.random.default_rng(12).permutation(N)
  all_real = np.ones(scores.shape, bool)
  indices, valid = suppress(boxes, scores, labels, all_real, 0.4)
  permuted, still = suppress(boxes[:, order], scores[:, order], labels[:, order], all_real, 0.4)
  np.testing.assert_array_equal(valid, still)
  np.testing.assert_array_equal(np.where(valid, indices, -1), np.where(still, order[permuted], -1))


@pytest.mark.parametrize('count, slots', [(N, 3), (N, N + 5), (MANY, 135)])
def test_fewer_output_slots_hold_the_best_and_more_than_boxes_are_padded(count, slots):
  boxes, scores, labels = some_cases(np.random.default_rng(13), 6, count)
  real = np.ones(scores.shape, bool)
  indices, valid = suppress(boxes, scores, labels, real, 0.75, max_outputs=count)
  assert valid.sum(1).max() > min(slots, count - 1)
  some, still = suppress(boxes, scores, labels, real, 0.75, max_outputs=slots)
  assert some.shape == still.shape == (6, slots)
  shared = min(slots, count)
  np.testing.assert_array_equal(some[:, :shared], indices[:, :shared])
  np.testing.assert_array_equal(still[:, :shared], valid[:, :shared])
  assert not still[:, count:].any() and not some[:, count:].any()


@pytest.mark.parametrize('shape, options', [((0,), {'max_outputs': 2}), ((3, 0), {'max_outputs': 2}),
                                            ((0, 5), {'max_outputs': 2}), ((3, 5), {'max_outputs': 0}),
                                            ((5,), {'max_outputs': 2, 'candidates': 0})])
def test_nms_of_no_boxes_gives_only_invalid_slots(shape, options):
  indices, valid = ops.nms(jnp.zeros((*shape, 4)), jnp.zeros(shape), iou_threshold=0.5, **options)
  assert indices.shape == valid.shape == (*shape[:-1], options['max_outputs'])
  assert not indices.any() and not valid.any()
  if 'candidates' not in options:
    softly = ops.soft_nms(jnp.zeros((*shape, 4)), jnp.zeros(shape), **options)
    assert all(part.shape == indices.shape and not part.any() for part in softly)


def test_gradients_pass_beside_nms():
  def best_width(boxes, threshold):
    indices, valid = ops.nms(boxes, boxes[:, 2], iou_threshold=threshold, max_outputs=2)
    return jnp.sum(jnp.where(valid, boxes[indices, 2], 0))
  gradient = jax.jit(jax.grad(best_width, argnums=(0, 1)))(np.float32([[0, 0, 4, 4], [9, 9, 12, 12]]), 0.5)
  assert gradient[0].tolist() == [[0, 0, 1, 0], [0, 0, 1, 0]] and gradient[1] == 0


def test_wrong_shapes_are_refused_in_one_line():
  with pytest.raises(ValueError, match=r'nms: boxes \[2, 3, 4\], scores \[3\].*everything else \[..., N\]'):
    ops.nms(jnp.zeros((2, 3, 4)), jnp.zeros(3), iou_threshold=0.5, max_outputs=2)
  with pytest.raises(ValueError, match=r'class_aware_nms: boxes must be \[..., 4\]'):
    ops.class_aware_nms(jnp.zeros((3, 5)), jnp.zeros(3), jnp.zeros(3), iou_threshold=0.5, max_outputs=2)
  with pytest.raises(ValueError, match=r'^soft_nms: boxes \[4\]'):
    ops.soft_nms(jnp.zeros(4), jnp.zeros(()), max_outputs=2)


WEIGHTS = np.linspace(1, 2, N, dtype=np.float32)
SOFT = {'gaussian': {'method': 'gaussian', 'sigma': 0.4, 'score_threshold': 0.05},
        'linear': {'method': 'linear', 'iou_threshold': 0.25, 'score_threshold': 0.05}}


@functools.cache
def soften(method):
  """Soft-NMS of a batch, with the gradient of its weighted scores, compiled once."""
  def total(boxes, scores, labels, valid, weights):
    found = ops.class_aware_soft_nms(boxes, scores, labels, **SOFT[method], max_outputs=N, valid=valid)
    return jnp.sum(found[1] * weights), found
  compiled = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True),
                     compiler_options={'xla_backend_optimization_level': 0})  # compiles in half the time
  return lambda *arrays: jax.device_get(compiled(*arrays))


@pytest.mark.parametrize('method', SOFT)
def test_soft_nms_picks_and_lowers_as_the_loop_does(method):
  boxes, _, labels = some_cases(np.random.default_rng(17), 12)
  scores = np.random.default_rng(18).uniform(size=labels.shape).astype(np.float32)
  real = np.random.default_rng(19).uniform(size=scores.shape) < np.linspace(0, 1.1, 12)[:, None]
  dropped = 0
  for by_class in (0, 1):
    (_, (indices, lowered, valid)), _ = soften(method)(boxes, scores, labels * by_class, real, WEIGHTS)
    for i in range(12):
      own = np.flatnonzero(real[i])
      expected = oracles.soft_nms(boxes[i][own], scores[i][own], labels[i][own] * by_class, N, **SOFT[method])
      assert indices[i][valid[i]].tolist() == [own[k] for k, _ in expected]
      # A score is a product of up to 19 factors, each rounded to float32.
      np.testing.assert_allclose(lowered[i][valid[i]], [score for _, score in expected], rtol=1e-5)
      assert valid[i].tolist() == [True] * len(expected) + [False] * (N - len(expected))
      assert not indices[i][~valid[i]].any() and not lowered[i][~valid[i]].any()
      dropped += len(own) - len(expected)
  assert dropped > 5


def test_soft_nms_takes_boxes_that_lie_apart_by_falling_score_and_ties_by_index():
  corner = np.arange(5, dtype=np.float32)[:, None] * 20
  boxes = np.concatenate([corner, corner, corner + 10, corner + 10], axis=1)
  scores = np.float32([0.5, 0.75, 0.5, 0.0, 1])
  indices, lowered, valid = ops.soft_nms(boxes, scores, max_outputs=7)
  assert indices.tolist() == [4, 1, 0, 2, 0, 0, 0] and lowered.tolist() == [1, 0.75, 0.5, 0.5, 0, 0, 0]
  assert valid.tolist() == [True] * 4 + [False] * 3


def test_a_linear_soft_nms_leaves_a_score_alone_at_the_threshold():
  boxes = jnp.array([[0, 0, 8, 8], [0, 0, 8, 4], [0, 0, 8, 5.0]])
  _, lowered, _ = ops.soft_nms(boxes, jnp.array([1, 0.5, 0.25]), method='linear', iou_threshold=0.5, max_outputs=2)
  assert lowered.tolist() == [1, 0.5]


@pytest.mark.parametrize('method', SOFT)
def test_soft_nms_has_finite_gradients_on_degenerate_boxes_and_none_from_invalid_slots(method):
  boxes, scores, labels = some_cases(np.random.default_rng(20), 12)
  boxes[0, :6] = [[1, 1, 1, 1], [1, 1, 1, 5], [9, 9, 2, 2], [9, 9, 2, 2], [1e8, 1e8, 2e8, 2e8], [1, 1, 1, 1]]
  real = np.random.default_rng(21).uniform(size=scores.shape) < np.linspace(1.1, 0, 12)[:, None]
  results = [soften(method)(np.where(real[..., None], boxes, junk).astype(np.float32),
                            np.where(real, scores, junk).astype(np.float32), labels, real, WEIGHTS)[1]
             for junk in (0, np.nan, 1e9)]
  for gradients in results:
    for gradient, expected in zip(gradients, results[0]):
      assert np.isfinite(gradient).all() and not gradient[~real].any()
      np.testing.assert_array_equal(gradient, expected)
  assert np.any(results[0][0][1]) and np.any(results[0][1][1])


def test_the_gradient_of_soft_nms_agrees_with_finite_differences():
  with jax.enable_x64(True):
    rng = np.random.default_rng(22)
    corner = rng.uniform(0, 30, (1, N, 2))
    boxes, scores = np.concatenate([corner, corner + rng.uniform(10, 30, (1, N, 2))], -1), rng.uniform(0.3, 1, (1, N))
    rest = rng.integers(0, 2, (1, N)), np.ones((1, N), bool), rng.uniform(1, 2, N)
    _, (to_boxes, to_scores) = soften('gaussian')(boxes, scores, *rest)
    total = lambda boxes, scores: soften('gaussian')(boxes, scores, *rest)[0][0]
    for _ in range(3):
      along, beside, step = rng.normal(size=boxes.shape), rng.normal(size=scores.shape), 1e-7
      rise = (total(boxes + step * along, scores + step * beside)
              - total(boxes - step * along, scores - step * beside)) / (2 * step)
      # Rounding in float64 leaves about 1e-15 / 1e-7 of a sum of order 10.
      np.testing.assert_allclose(np.sum(to_boxes * along) + np.sum(to_scores * beside), rise, rtol=1e-6, atol=1e-6)


def test_an_unknown_method_of_soft_nms_is_refused():
  with pytest.raises(ValueError, match="soft_nms: method is 'hard'; give one of gaussian, linear"):
    ops.soft_nms(jnp.zeros((3, 4)), jnp.zeros(3), method='hard', max_outputs=2)


@pytest.mark.parametrize('options', [{'max_outputs': -1}, {'max_outputs': 2, 'candidates': -3}])
def test_a_negative_number_of_slots_or_candidates_is_refused(options):
  with pytest.raises(ValueError, match='nms: max_outputs'):
    ops.nms(jnp.zeros((3, 4)), jnp.zeros(3), iou_threshold=0.5, **options)
