"""RoIAlign, RoI pooling and the pyramid's levels: equal to torchvision's arrays, whatever the boxes are."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden import make_roi
from vision_jax import ops
from vision_jax.ops.roi import bin_weights

pytestmark = pytest.mark.medium  # many small compilations: together more than the fast tests can spare

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / 'golden' / 'roi.npz')
QUICK = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
ON_MAP = {'stride': make_roi.STRIDE, 'output_size': make_roi.OUTPUT_SIZE}
ON_PYRAMID = make_roi.PYRAMID | {'output_size': make_roi.OUTPUT_SIZE}
CROPS = {'roi_align': ON_MAP, 'roi_pool': ON_MAP, 'multilevel_roi_align': ON_PYRAMID}


@functools.cache
def value_and_gradient(name, jit=QUICK, **options):
  """A compiled (features, boxes, valid, gradient) -> crops and the gradient of the features."""

  @jit
  def run(features, boxes, valid, gradient):
    crops, pull = jax.vjp(lambda features: getattr(ops, name)(features, boxes, **options, valid=valid), features)
    return crops, pull(gradient)[0]

  def filled(features, boxes, gradient, valid=None):
    return run(features, boxes, np.ones(boxes.shape[:-1], bool) if valid is None else valid, gradient)

  return filled


def inputs(name):
  return make_roi.pyramid_inputs() if name == 'multilevel_roi_align' else make_roi.align_inputs()


@pytest.mark.parametrize('aligned, ratio', make_roi.ALIGN)
def test_roi_align_and_its_gradient_are_those_of_torchvision(aligned, ratio):
  # Compiled as users compile it where it is the default, so that fused arithmetic is seen too.
  jit = {'jit': jax.jit} if (aligned, ratio) == (False, 2) else {}
  run = value_and_gradient('roi_align', **jit, **ON_MAP, aligned=aligned, sampling_ratio=ratio)
  crops, gradient = run(*make_roi.align_inputs())
  np.testing.assert_allclose(crops, GOLDEN[f'align_{aligned}_{ratio}'], atol=5e-6)  # float32
  np.testing.assert_allclose(gradient, GOLDEN[f'align_{aligned}_{ratio}_gradient_0'], atol=1e-5)


@pytest.mark.parametrize('aligned, ratio', make_roi.EDGES)
def test_samples_on_the_very_edge_of_the_map_count_as_torchvision_rounds_them(aligned, ratio):
  ones, boxes = make_roi.edge_inputs()
  if ratio > 0:
    options = {'stride': 1, 'output_size': (1, 7), 'sampling_ratio': ratio, 'aligned': aligned}
    counted = jax.jit(functools.partial(ops.roi_align, **options))(ones, boxes)[0, :, 0, :, 0]
  else:
    counted = jax.jit(functools.partial(bin_weights, bins=7, size=16, aligned=aligned))(boxes[0, :, 0], boxes[0, :, 2])
    counted = counted.sum(-1)
  # The golden shares of samples have 11 bits; one sample of at most 9 is a ninth.
  np.testing.assert_allclose(counted, GOLDEN[f'edge_{aligned}_{ratio}'], atol=1e-3)


def test_multilevel_roi_align_and_its_gradient_are_those_of_torchvision():
  crops, gradients = value_and_gradient('multilevel_roi_align', **ON_PYRAMID)(*make_roi.pyramid_inputs())
  np.testing.assert_allclose(crops, GOLDEN['pyramid'], atol=5e-6)  # float32
  for i, gradient in enumerate(gradients):
    np.testing.assert_allclose(gradient, GOLDEN[f'pyramid_gradient_{i}'], atol=1e-5)


def test_roi_levels_are_those_of_torchvision_also_where_a_level_begins():
  found = jax.jit(ops.roi_levels)(make_roi.level_inputs())
  np.testing.assert_array_equal(found, GOLDEN['levels'])
  assert set(found.tolist()) == {0, 1, 2, 3}
  assert ops.roi_levels(np.array([[9, 9, 1, 1], [5, 5, 5, 9], [np.nan] * 4], np.float32)).tolist() == [0, 0, 0]


def test_roi_pool_and_its_gradient_are_those_of_torchvision_also_where_several_cells_are_the_largest():
  crops, gradient = value_and_gradient('roi_pool', **ON_MAP)(*make_roi.pool_inputs())
  np.testing.assert_array_equal(crops, GOLDEN['pool'])
  np.testing.assert_allclose(gradient, GOLDEN['pool_gradient_0'], atol=1e-5)  # sums of float32 in another order


def test_roi_pool_cuts_bins_as_float32_division_does():
  features, boxes = make_roi.tall_inputs()
  crops = jax.jit(functools.partial(ops.roi_pool, stride=make_roi.STRIDE, output_size=(7, 2)))(features, boxes)
  np.testing.assert_array_equal(crops[0], GOLDEN['pool_tall'])
  cells = make_roi.TALL
  assert crops[0, cells - 21, -1, 0, 0] == 2 * cells  # the cell below the box: torchvision's rounding, and ours


@pytest.mark.parametrize('aligned', [False, True])
def test_bin_weights_crop_masks_as_torchvision_does_with_a_number_of_samples_that_follows_the_box(aligned):
  masks, boxes = make_roi.mask_inputs()
  rows = QUICK(functools.partial(bin_weights, bins=7, size=30, aligned=aligned))(boxes[:, 1], boxes[:, 3])
  columns = QUICK(functools.partial(bin_weights, bins=5, size=41, aligned=aligned))(boxes[:, 0], boxes[:, 2])
  crops = np.einsum('nph,nhw,nqw->npq', rows, masks, columns)
  np.testing.assert_allclose(crops, GOLDEN[f'masks_{aligned}'], atol=5e-6)  # float32


def test_roi_align_of_a_plane_is_the_plane_at_the_middle_of_each_bin():
  rows, columns = np.mgrid[:30, :40].astype(np.float32)
  plane = (3 * rows - 2 * columns + 1)[..., None]
  rng = np.random.default_rng(0)
  corner = rng.uniform(8, 50, (20, 2))
  boxes = np.concatenate([corner, corner + rng.uniform(8, 60, (20, 2))], -1).astype(np.float32)
  for aligned in (False, True):
    crops = QUICK(functools.partial(ops.roi_align, stride=4, output_size=(3, 5), aligned=aligned))(plane, boxes)
    shift = 0.5 * aligned
    y, x = ((boxes[:, [k]] + (np.arange(n) + 0.5) / n * (boxes[:, [k + 2]] - boxes[:, [k]])) / 4 - shift
            for k, n in ((1, 3), (0, 5)))
    # float32 of numbers up to 200, where the expected places are rounded too
    np.testing.assert_allclose(crops[..., 0], 3 * y[:, :, None] - 2 * x[:, None, :] + 1, atol=1e-4)


@pytest.mark.parametrize('name', CROPS)
def test_invalid_slots_are_zero_and_change_neither_value_nor_gradient(name):
  features, boxes, gradient = inputs(name)
  run = value_and_gradient(name, **CROPS[name])
  valid = np.arange(boxes.shape[1]) % 3 > 0 & np.ones((2, 1), bool)
  hidden = np.where(valid[..., None, None, None], gradient, np.nan)
  outcomes = []
  for garbage in (1.0, np.nan, 1e9, -np.inf):
    outcomes.append(run(features, np.where(valid[..., None], boxes, np.float32(garbage)), hidden, valid))
  # Zeroing what comes back for these slots must be the same as hiding them.
  crops, expected = run(features, boxes, np.where(valid[..., None, None, None], gradient, 0))
  for found, pulled in outcomes:
    np.testing.assert_array_equal(found, np.where(valid[..., None, None, None], crops, 0))
    for some, first in zip(jax.tree.leaves(pulled), jax.tree.leaves(outcomes[0][1])):
      assert np.isfinite(some).all()
      np.testing.assert_array_equal(some, first)
  for some, first in zip(jax.tree.leaves(outcomes[0][1]), jax.tree.leaves(expected)):
    np.testing.assert_allclose(some, first, atol=1e-6)  # zeros are added in between


@pytest.mark.parametrize('name', CROPS)
def test_no_valid_box_and_boxes_far_away_give_zeros_and_no_gradient(name):
  features, boxes, gradient = inputs(name)
  run = value_and_gradient(name, **CROPS[name])
  for case in (None, [1e9, 1e9, 2e9, 3e38], [np.nan] * 4, [-np.inf, -np.inf, np.inf, np.inf]):
    where = boxes if case is None else np.broadcast_to(np.float32(case), boxes.shape)
    crops, pulled = run(features, where, gradient, None if case else np.zeros(boxes.shape[:2], bool))
    assert not np.any(crops) and not any(np.any(leaf) for leaf in jax.tree.leaves(pulled))


def test_a_box_of_any_size_is_cropped_from_all_of_the_map():
  features, box = make_roi.align_inputs()[0][0], np.float32([[-3e38, -3e38, 3e38, 3e38]])
  options = {'stride': 1, 'output_size': (1, 1)}
  largest = QUICK(functools.partial(ops.roi_pool, **options))(features, box)
  np.testing.assert_array_equal(largest[0, 0, 0], features.max((0, 1)))
  middle = QUICK(functools.partial(ops.roi_align, **options, sampling_ratio=1))(features, box)
  np.testing.assert_array_equal(middle[0, 0, 0], features[0, 0])


@pytest.mark.parametrize('name', CROPS)
def test_crops_follow_a_permutation_of_their_boxes_and_need_no_batch(name):
  features, boxes, gradient = inputs(name)
  crops, _ = value_and_gradient(name, **CROPS[name])(features, boxes, gradient)
  order = np.random.default_rng(1).permutation(boxes.shape[1])
  first = QUICK(functools.partial(getattr(ops, name), **CROPS[name]))(
      jax.tree.map(lambda x: x[0], features), boxes[0, order])
  np.testing.assert_allclose(first, crops[0, order], rtol=1e-6, atol=1e-6)  # fused otherwise


@pytest.mark.parametrize('name', CROPS)
def test_no_box_slots_give_no_crops_and_a_gradient_of_zero(name):
  features, boxes, gradient = inputs(name)
  crops, pulled = value_and_gradient(name, **CROPS[name])(features, boxes[:, :0], gradient[:, :0])
  assert crops.shape == (2, 0) + make_roi.OUTPUT_SIZE + (2,)
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(pulled))


def test_features_in_half_precision_are_sampled_in_float32_and_get_their_gradient_in_half():
  features, boxes, gradient = make_roi.align_inputs()
  half = jnp.asarray(features, jnp.bfloat16)
  for name in ('roi_align', 'roi_pool'):
    run = value_and_gradient(name, **ON_MAP)
    crops, pulled = run(half, boxes, gradient)
    expected, exact = run(half.astype(jnp.float32), boxes, gradient)
    assert crops.dtype == jnp.float32 and pulled.dtype == jnp.bfloat16
    np.testing.assert_allclose(crops, expected, atol=1e-6)  # fused otherwise
    np.testing.assert_allclose(pulled.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)  # one rounding to 8 bits


def test_gradients_agree_with_finite_differences_in_float64():
  with jax.enable_x64(True):
    rng = np.random.default_rng(2)
    features, boxes = rng.normal(size=(5, 6, 1)), np.array([[3.0, 5, 30, 22], [-9, 10, 14, 60]])
    for name in ('roi_align', 'roi_pool'):
      square = lambda x, name=name: jnp.sum(getattr(ops, name)(x, boxes, stride=8, output_size=(2, 2)) ** 2)
      total, gradient = QUICK(square), QUICK(jax.grad(square))(features)
      assert gradient.dtype == jnp.float64
      for place in np.ndindex(features.shape):
        step = np.zeros_like(features)
        step[place] = 1e-6
        numeric = (total(features + step) - total(features - step)) / 2e-6
        # Central differences of a parabola: only rounding, 1e-15 / 1e-6, is left.
        np.testing.assert_allclose(gradient[place], numeric, atol=1e-7)


def test_roi_align_can_be_differentiated_twice_and_its_boxes_get_no_gradient():
  features, boxes, _ = make_roi.align_inputs()
  align = functools.partial(ops.roi_align, stride=8, output_size=(1, 1))
  penalty = lambda x: jnp.sum(jax.grad(lambda x: jnp.sum(align(x, boxes[0]) ** 2) / 2)(x) ** 2) / 2
  # For crops A x the gradient is A'A x and that of the penalty A'A A'A x.
  once = jax.grad(lambda x: jnp.sum(align(x, boxes[0]) ** 2) / 2)
  found, expected = QUICK(lambda x: (jax.grad(penalty)(x), once(once(x))))(features[0])
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)  # sums of float32 in another order
  assert not np.any(QUICK(jax.grad(lambda boxes: jnp.sum(align(features[0], boxes))))(boxes[0]))


def test_roi_align_and_its_gradient_hold_no_more_than_a_few_boxes_samples_at_once():
  features, boxes, gradient = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((20, 20, 64), (256, 4), (256, 7, 7, 64)))

  def run(features, boxes, gradient):
    crops, pull = jax.vjp(lambda features: ops.roi_align(features, boxes, stride=8), features)
    return crops, pull(gradient)[0]

  held = jax.jit(run).lower(features, boxes, gradient).compile().memory_analysis().temp_size_in_bytes
  output = 4 * 256 * 7 * 7 * 64
  # All samples at once would take 16 times the output.
  assert held < 2 * output


@pytest.mark.parametrize('name', CROPS)
def test_shapes_that_do_not_fit_are_refused_with_one_line(name):
  features, boxes, _ = inputs(name)
  call = functools.partial(getattr(ops, name), **CROPS[name])
  for wrong in ((features, boxes[0]), (features, boxes[..., :3]), (features, boxes[:1]),
                (jax.tree.map(lambda x: x[:, :0], features), boxes)):
    with pytest.raises(ValueError, match=rf'^{name}: features \[.*\], boxes .*; give \[B, h, w, C\] [^\n]*$'):
      call(*wrong)
  with pytest.raises(ValueError, match=rf'^{name}: .* valid \[20\]; give'):
    call(features, boxes, valid=np.ones(20, bool))


def test_options_that_do_not_fit_are_refused_with_one_line():
  levels, boxes, _ = make_roi.pyramid_inputs()
  with pytest.raises(ValueError, match='^roi_levels: strides .*; give powers of two, each twice the one before$'):
    ops.roi_levels(boxes, strides=(4, 16))
  with pytest.raises(ValueError, match='^multilevel_roi_align: 2 strides for 3 levels; give one for each$'):
    ops.multilevel_roi_align(levels, boxes, strides=(4, 8))
  with pytest.raises(ValueError, match=r'^roi_align: output_size \(7, 7\), sampling_ratio -1; give \(oh, ow\) and 1'):
    ops.roi_align(levels[0], boxes, stride=4, sampling_ratio=-1)
  with pytest.raises(ValueError, match=r'^roi_pool: output_size \(0, 7\), .*; give'):
    ops.roi_pool(levels[0], boxes, stride=4, output_size=(0, 7))


def test_no_image_and_no_box_give_no_crop_and_a_stride_of_zero_is_refused():
  empty = jax.jit(lambda features, boxes: ops.roi_align(features, boxes, stride=8))
  assert empty(jnp.zeros((0, 3, 4, 2)), jnp.zeros((0, 5, 4))).shape == (0, 5, 7, 7, 2)
  assert empty(jnp.zeros((3, 4, 2)), jnp.zeros((0, 4))).shape == (0, 7, 7, 2)
  for crop in (ops.roi_align, ops.roi_pool):
    with pytest.raises(ValueError, match='stride 0; give the canvas pixels for one cell, above 0'):
      crop(jnp.zeros((3, 4, 2)), jnp.zeros((5, 4)), stride=0)
