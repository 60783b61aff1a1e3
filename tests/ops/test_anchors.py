"""Anchors equal torchvision's, and k-means finds the shapes that are there."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from tests.golden import make_anchors
from vision_jax import ops
from vision_jax.ops import anchors as anchors_module

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'anchors.npz'
KEY = np.array([0, 7], np.uint32)


@functools.cache
def kmeans(count, max_iterations=300):
  run = jax.jit(functools.partial(ops.kmeans_anchors, count=count, max_iterations=max_iterations))
  return lambda key, sizes, valid=None: jax.device_get(
      run(key, sizes, valid=np.ones(len(sizes), bool) if valid is None else valid))


def some_sizes():
  """Sixty (w, h), log-normal as in photographs."""
  random = np.random.RandomState(3)
  return np.exp(random.normal(3.5, 0.9, (60, 2))).astype(np.float32)


@pytest.mark.parametrize('name, first', [('rpn', 0), ('retinanet', 1), ('fcos', 1)])
def test_pyramid_anchors_are_torchvisions(name, first):
  make = getattr(ops, f'{name}_anchors')
  grids = make_anchors.GRIDS[first:first + 5]
  found = jax.jit(lambda: make(canvas=make_anchors.CANVAS, grids=grids))()
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found, np.load(GOLDEN)[name])


@pytest.mark.parametrize('name', ['ssd300', 'ssd512'])
def test_default_boxes_are_torchvisions(name):
  golden, every = np.load(GOLDEN), make_anchors.EVERY[name]
  found = np.asarray(jax.jit(lambda: ops.ssd_default_boxes(**getattr(ops, name.upper())))())
  assert len(found) == golden[f'{name}_number'] == {'ssd300': 8732, 'ssd512': 24564}[name]
  np.testing.assert_allclose(found[::every], golden[name], atol=1e-4)  # float32: 1e-7 of 512 pixels, a few times


def test_default_boxes_that_are_not_cut_may_be_larger_than_the_canvas():
  options = {'canvas': (40, 80), 'grids': ((1, 1),), 'strides': (40,), 'scales': (0.8, 0.9), 'ratios': ((4,),)}
  boxes = np.asarray(ops.ssd_default_boxes(clip=False, **options))
  # Centre (20, 20); shares of the canvas 0.8 x 0.8, then the wide box 1.6 x 0.4 and the tall one 0.4 x 1.6.
  np.testing.assert_allclose(boxes[[0, 2, 3]], [[-12, 4, 52, 36], [-44, 12, 84, 28], [4, -12, 36, 52]], rtol=1e-6)
  np.testing.assert_allclose(ops.ssd_default_boxes(**options)[2], [-20, 12, 60, 28], rtol=1e-6)


def test_default_boxes_without_strides_lie_evenly_and_may_be_square_in_pixels():
  options = {'canvas': (40, 90), 'grids': ((2, 3),), 'scales': (0.5, 2.0), 'ratios': ((4,),)}
  boxes = np.asarray(ops.ssd_default_boxes(**options)).reshape(2, 3, 4, 4)
  centres = (boxes[..., :2] + boxes[..., 2:]) / 2
  np.testing.assert_allclose(centres[:, :, 0], [[[15, 10], [45, 10], [75, 10]], [[15, 30], [45, 30], [75, 30]]])
  # Square, square of sqrt(0.5 * 2), wide (0.5 * 2 cut to 1, 0.5 / 2) and tall, as shares of width and of height.
  np.testing.assert_allclose(boxes[0, 0, :, 2:] - boxes[0, 0, :, :2], [[45, 20], [90, 40], [90, 10], [22.5, 40]])
  square = np.asarray(ops.ssd_default_boxes(square=True, **options))[:4]
  np.testing.assert_allclose(square[:, 2:] - square[:, :2], [[20, 20], [40, 40], [40, 10], [10, 40]], rtol=1e-6)


def test_base_anchors_keep_area_and_ratio():
  boxes = np.asarray(ops.base_anchors(sizes=(10, 24), ratios=(0.5, 1, 3)), np.float64)
  w, h = (boxes[:, 2:] - boxes[:, :2]).T
  np.testing.assert_allclose(w * h, [100, 576] * 3, rtol=1e-6)  # float32
  np.testing.assert_allclose(h / w, [0.5, 0.5, 1, 1, 3, 3], rtol=1e-6)
  np.testing.assert_array_equal(boxes[:, :2], -boxes[:, 2:])


def test_yolo_priors_are_in_pixels_of_a_canvas_of_416_fine_to_coarse():
  slots = jax.eval_shape(lambda: ops.yolo_slots(anchors=ops.YOLOV3_ANCHORS, strides=(8, 16, 32), canvas=(416, 416)))
  assert slots.anchors.shape == (10647, 2)
  for levels in (ops.YOLOV3_ANCHORS, ops.YOLOV3_TINY_ANCHORS):
    areas = [w * h for level in levels for w, h in level]
    assert areas == sorted(areas)
  for priors in (ops.YOLOV2_COCO_ANCHORS, ops.YOLOV2_VOC_ANCHORS):
    assert len(priors) == 5 and all(0 < side < 416 for prior in priors for side in prior)
  assert ops.YOLOV2_VOC_ANCHORS[4] == pytest.approx((11.2364 * 32, 10.0071 * 32))


def test_kmeans_finds_the_median_shapes_of_groups_in_any_order_of_the_slots():
  random = np.random.RandomState(0)
  middles = np.array([[12, 9], [30, 100], [200, 60], [250, 240.0]])
  groups = middles.repeat(15, axis=0) * random.uniform(0.97, 1.03, (60, 2))
  expected = np.median(groups.reshape(4, 15, 2), axis=1)
  for order in (np.arange(60), random.permutation(60)):
    found = kmeans(4)(KEY, groups[order].astype(np.float32))
    np.testing.assert_allclose(found.anchors, expected, rtol=1e-6)  # float32
    assert found.best_possible_recall == 1


def test_kmeans_reports_average_iou_and_best_possible_recall_of_its_anchors():
  sizes = some_sizes()
  found = kmeans(4)(KEY, sizes)
  average_iou, recall = oracles.anchor_fit(sizes.astype(float), found.anchors.tolist(), 4.0)
  assert found.average_iou == pytest.approx(average_iou, abs=1e-6)  # float32
  assert found.best_possible_recall == pytest.approx(recall, abs=1e-6) and 0.5 < recall < 1
  areas = np.prod(found.anchors, axis=1)
  assert (np.diff(areas) > 0).all()


def test_kmeans_moves_anchors_to_medians_until_nothing_moves():
  sizes = some_sizes()
  found = kmeans(4)(KEY, sizes).anchors
  # It stopped at a fixed point, no worse than where the slow loop comes to from the same start.
  np.testing.assert_allclose(oracles.median_kmeans(sizes, found, 1), found, rtol=1e-6)  # float32
  start = kmeans(4, 0)(KEY, sizes).anchors
  assert {tuple(s) for s in start} <= {tuple(s) for s in sizes.astype(float)}
  fits = [oracles.anchor_fit(sizes.astype(float), a.tolist(), 4.0)[0]
          for a in (start, found, oracles.median_kmeans(sizes, start, 30))]
  assert fits[0] < fits[1] and fits[1] > fits[2] - 1e-6


def test_kmeans_depends_on_the_key_alone():
  sizes = some_sizes()
  starts = [kmeans(4, 0)(jax.random.PRNGKey(seed), sizes).anchors for seed in (1, 1, 2)]
  np.testing.assert_array_equal(starts[0], starts[1])
  assert (starts[0] != starts[2]).any()


def test_kmeans_starts_far_apart():
  sizes = np.float32([[10, 10]] * 58 + [[300, 40], [40, 300]])
  for seed in range(5):  # four at random would hold both once in 300 times
    start = kmeans(4, 0)(jax.random.PRNGKey(seed), sizes).anchors.tolist()
    assert [300, 40] in start and [40, 300] in start


def test_kmeans_ignores_invalid_slots_and_boxes_without_size():
  sizes, valid = some_sizes(), np.arange(60) % 4 > 0
  expected = kmeans(4)(KEY, sizes, valid)
  for filling in (np.nan, 1e9):
    filled = np.where(valid[:, None], sizes, np.float32(filling))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), kmeans(4)(KEY, filled, valid), expected))
  # Boxes without size count as invalid by themselves.
  for nothing in ([0, 0], [-3, 5], [7, 0], [np.nan, 4]):
    found = kmeans(4)(KEY, np.where(valid[:, None], sizes, np.float32(nothing)))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), found, expected))


def test_kmeans_of_too_few_boxes_repeats_them_and_of_none_is_zero():
  sizes = np.full((60, 2), np.nan, np.float32)
  sizes[[5, 9]] = [[10, 20], [np.inf, 3e38]]
  found = kmeans(4)(KEY, sizes)
  assert {tuple(anchor) for anchor in found.anchors.tolist()} == {(10, 20), (1e9, 1e9)}
  assert found.average_iou == 1 and found.best_possible_recall == 1
  for nothing in (kmeans(4)(KEY, sizes, np.zeros(60, bool)), kmeans(4)(KEY, np.zeros((0, 2)))):
    assert nothing.anchors.tolist() == [[0, 0]] * 4
    assert nothing.average_iou == 0 and nothing.best_possible_recall == 0


def test_an_anchor_that_fits_no_box_best_moves_to_the_box_served_worst():
  sizes = jnp.float32([[10, 10], [12, 12], [100, 30], [30, 300]])
  # The first anchor takes all boxes, its twins none. Served worst are the tall box (IoU 0.011), the wide one (0.033).
  start = jnp.float32([[10, 10], [10, 10], [10, 10]])
  moved = jax.jit(functools.partial(anchors_module._cluster, max_iterations=2))(sizes, jnp.ones(4, bool), start)
  assert sorted(moved.tolist()) == [[21, 21], [30, 300], [100, 30]]


def test_kmeans_passes_no_gradient_and_leaves_none_that_is_not_finite():
  gradient = jax.jit(jax.grad(lambda sizes: ops.kmeans_anchors(KEY, sizes, count=2).average_iou))(some_sizes())
  assert not gradient.any()


def test_wrong_shapes_are_refused_in_one_line():
  with pytest.raises(ValueError, match='rpn_anchors: 5 grids for 2 levels of sizes; give one to each'):
    ops.rpn_anchors(canvas=(64, 64), grids=make_anchors.GRIDS[:5], sizes=((32,), (64,)))
  with pytest.raises(ValueError, match='fcos_anchors: 1 grids for 5 levels'):
    ops.fcos_anchors(canvas=(8, 8), grids=((1, 1),))
  with pytest.raises(ValueError, match='1 grids, 2 strides, 1 ratios, 2 scales'):
    ops.ssd_default_boxes(canvas=(8, 8), grids=((1, 1),), strides=(8, 8), scales=(0.5, 1), ratios=((),))
  with pytest.raises(ValueError, match=r'sizes \[3\], valid \[3\], count 2'):
    ops.kmeans_anchors(KEY, np.zeros(3), count=2)
  with pytest.raises(ValueError, match='count 0'):
    ops.kmeans_anchors(KEY, np.zeros((3, 2)), count=0)
