"""Converters, area, clipping, and the IoU family against loops in float64."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from tests.golden import make_boxes
from vision_jax import ops

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'boxes.npz'
SIMILARITIES = ('iou', 'giou', 'diou', 'ciou')
DEGENERATE = np.array([
    [3, 3, 3, 3], [2, 1, 2, 6], [1, 2, 6, 2], [6, 7, 2, 1], [6, 1, 2, 7], [2, 1, 6, 7], [0, 0, 1e-30, 1e-30],
    [0, 0, 1e-18, 1e-18], [0, 0, 1e-7, 1e-7], [-1e30, -1e30, 1e30, 1e30], [0, 0, 3e38, 3e38], [-np.inf, 0, np.inf, 5],
    [1e9, 1e9, 1e9, 1e9], [-5e8, 4, 5e8, 4.5]], np.float32)


def some_boxes(rng, shape, *, scale=50.0):
  corners = rng.uniform(-scale, scale, shape + (2,))
  return np.concatenate([corners, corners + rng.uniform(0.5, scale, shape + (2,))], -1).astype(np.float32)


@functools.cache
def value_and_gradients(name):
  run = jax.jit(jax.vmap(jax.value_and_grad(getattr(ops, name), argnums=(0, 1))))

  def padded(a, b):  # to one length: each length would be compiled anew
    value, gradients = jax.device_get(run(*(np.concatenate([x, np.ones((300 - len(a), 4), x.dtype)]) for x in (a, b))))
    return value[:len(a)], [gradient[:len(a)] for gradient in gradients]

  return padded


def test_converters_lead_to_what_their_names_say():
  same = {'xyxy': [10, 20, 40, 60], 'xywh': [10, 20, 30, 40], 'cxcywh': [25, 40, 30, 40]}
  for start, box in same.items():
    for end, expected in same.items():
      if start != end:
        converted = jax.jit(getattr(ops, f'{start}_to_{end}'))(np.array([box], np.int32))
        assert converted.dtype == jnp.float32 and converted.tolist() == [expected]


@pytest.mark.parametrize('name', SIMILARITIES)
def test_similarities_agree_with_loops_in_float64(name):
  rng = np.random.default_rng(0)
  a, b = some_boxes(rng, (300,)), some_boxes(rng, (300,))
  # Then some that touch, nest, equal each other, or have no area.
  a[:60], b[:60] = np.round(a[:60] / 25) * 25, np.round(b[:60] / 25) * 25
  a[60:80] = b[60:80]
  a[80:86, 2:] = a[80:86, :2]
  a[86:92] = a[86:92, [2, 3, 0, 1]]
  found, _ = value_and_gradients(name)(a, b)
  expected = [oracles.iou_family(*pair)[name] for pair in zip(a, b)]
  # float32: coordinates up to 100, ratios of areas to about 1e-6
  np.testing.assert_allclose(found, expected, atol=5e-6)


def test_similarities_are_torchvisions_on_ordinary_boxes():
  boxes, anchors, _, _ = make_boxes.draw()
  run = jax.jit(lambda a, b: {name: getattr(ops, name)(a, b) for name in SIMILARITIES})
  for name, found in run(boxes[:, None], anchors).items():
    # float32, and torchvision adds 1e-7 to some divisors
    np.testing.assert_allclose(found, np.load(GOLDEN)[name], atol=2e-6)


def test_pairwise_iou_holds_the_aligned_iou_of_every_pair():
  rng = np.random.default_rng(1)
  a, b = some_boxes(rng, (2, 5)), some_boxes(rng, (2, 3))
  found = jax.jit(ops.pairwise_iou)(a, b)
  aligned = jax.jit(ops.iou)(a.repeat(3, axis=1), np.tile(b, (1, 5, 1)))
  assert found.shape == (2, 5, 3)
  np.testing.assert_allclose(found, aligned.reshape(2, 5, 3), rtol=1e-6)


def test_pairwise_iou_follows_the_order_of_its_boxes_and_a_nan_overlaps_nothing():
  rng = np.random.default_rng(6)
  a, b, rows, columns = some_boxes(rng, (2, 5)), some_boxes(rng, (2, 3)), rng.permutation(5), rng.permutation(3)
  found = jax.jit(ops.pairwise_iou)
  expected = np.asarray(found(a, b))[:, rows][:, :, columns]
  shuffled = a[:, rows], b[:, columns]
  np.testing.assert_array_equal(found(*shuffled), expected)
  shuffled[0][:, 2, 1], expected[:, 2] = np.nan, 0
  np.testing.assert_array_equal(found(*shuffled), expected)


def test_similarities_are_symmetric_bounded_ordered_and_do_not_depend_on_the_origin():
  rng = np.random.default_rng(2)
  a = np.concatenate([some_boxes(rng, (200,)), DEGENERATE[:6].repeat(6, 0)])
  b = np.concatenate([some_boxes(rng, (200,)), np.tile(DEGENERATE[:6], (6, 1))])
  value, swapped, moved = (
      {name: value_and_gradients(name)(*pair)[0] for name in SIMILARITIES}
      for pair in ((a, b), (b, a), (a + 512, b + 512)))
  for name in SIMILARITIES:
    np.testing.assert_allclose(value[name], swapped[name], atol=1e-6)
    # 512 takes 3 bits of the coordinates: 1e-6 becomes 1e-5.
    np.testing.assert_allclose(value[name], moved[name], atol=2e-5)
  assert (value['iou'] >= 0).all() and (value['iou'] <= 1).all()
  assert (value['giou'] >= -1).all() and (value['giou'] <= value['iou']).all()
  assert (value['diou'] >= -1).all() and (value['diou'] <= value['iou']).all()
  assert (value['ciou'] >= -2).all() and (value['ciou'] <= value['diou']).all()


@pytest.mark.parametrize('name', SIMILARITIES)
def test_degenerate_boxes_give_finite_values_and_gradients(name):
  a, b = DEGENERATE.repeat(len(DEGENERATE), 0), np.tile(DEGENERATE, (len(DEGENERATE), 1))
  value, gradients = value_and_gradients(name)(a, b)
  assert np.isfinite(value).all() and (value >= -2).all() and (value <= 1).all()
  assert all(np.isfinite(g).all() for g in gradients)


def test_an_inverted_prediction_is_no_perfect_match():
  truth = np.float32([[2, 1, 6, 7]])
  for name in SIMILARITIES:
    assert value_and_gradients(name)(truth[:, [2, 3, 0, 1]], truth)[0] <= 0


def test_a_box_without_width_inside_its_target_still_learns_to_widen():
  _, (gradient, _) = value_and_gradients('iou')(np.float32([[4, 2, 4, 6]]), np.float32([[2, 1, 6, 7]]))
  assert gradient[0, 0] < 0 < gradient[0, 2]


@pytest.mark.parametrize('name', SIMILARITIES)
def test_gradients_agree_with_finite_differences_in_float64(name):
  rng = np.random.default_rng(3)
  a, b = some_boxes(rng, (8,)).astype(np.float64), some_boxes(rng, (8,)).astype(np.float64)
  a[:4] = b[:4] + rng.uniform(-3, 3, (4, 4))  # overlapping, and the others mostly apart

  def frozen(x, y, alpha):  # CIoU's alpha carries no gradient
    family = oracles.iou_family(x, y)
    aspect = (family['diou'] - family['ciou']) / family['alpha'] if family['alpha'] else 0.0
    return family['diou'] - alpha * aspect if name == 'ciou' else family[name]

  with jax.enable_x64(True):
    _, (gradients, _) = value_and_gradients(name)(a, b)
  assert gradients.dtype == np.float64
  for x, y, gradient in zip(a, b, gradients):
    alpha = oracles.iou_family(x, y)['alpha']
    steps = np.eye(4) * 1e-5
    expected = [(frozen(x + s, y, alpha) - frozen(x - s, y, alpha)) / 2e-5 for s in steps]
    # Central differences: 1e-10 of the step squared, 1e-11 of rounding (1e-16 / 1e-5).
    np.testing.assert_allclose(gradient, expected, atol=1e-8)


def test_half_precision_boxes_are_compared_in_float32():
  a, b = jnp.array([0, 0, 257, 3], jnp.bfloat16), jnp.array([0, 1, 255, 3], jnp.bfloat16)
  found = ops.iou(a, b)
  assert found.dtype == jnp.float32
  assert found == ops.iou(a.astype(jnp.float32), b.astype(jnp.float32))


def test_clip_boxes_takes_one_size_or_one_for_each_image():
  boxes = jnp.array([[[-5, -5, 50, 90.0]], [[10, 20, 30, 40.0]]])
  assert ops.clip_boxes(boxes, (60, 40)).tolist() == [[[0, 0, 40, 60]], [[10, 20, 30, 40]]]
  assert ops.clip_boxes(boxes, jnp.array([[8, 9], [25, 70]])).tolist() == [[[0, 0, 9, 8]], [[10, 20, 30, 25]]]


def pixels_of(box, shape):
  """A mask of `shape` that is set where the whole-numbered box is."""
  mask = np.zeros(shape, bool)
  mask[box[1]:box[3], box[0]:box[2]] = True
  return mask


def box_of(mask):
  (y1, x1), (y2, x2) = np.argwhere(mask).min(axis=0), np.argwhere(mask).max(axis=0) + 1
  return [x1, y1, x2, y2]


FLIP = jax.jit(ops.flip_boxes)  # the bools are traced too


@pytest.mark.parametrize('horizontal, vertical', [(True, False), (False, True), (True, True), (False, False)])
def test_flipped_boxes_hold_what_the_boxes_held_of_the_flipped_image(horizontal, vertical):
  boxes, sizes = np.int32([[[2, 1, 6, 4]], [[0, 3, 9, 5]]]), np.int32([[7, 12], [5, 9]])
  flip = functools.partial(FLIP, horizontal=horizontal, vertical=vertical)
  expected = []
  for (box,), size in zip(boxes, sizes):
    mask = pixels_of(box, size)
    expected.append([box_of(mask[::-1 if vertical else 1, ::-1 if horizontal else 1])])
  found = flip(boxes, sizes)
  assert found.tolist() == expected
  assert flip(found, sizes).tolist() == boxes.tolist()
  swapped = [2, 3, 0, 1]  # an inverted box stays inverted
  assert flip(boxes[..., swapped], sizes).tolist() == np.array(expected)[..., swapped].tolist()


def test_scaled_boxes_hold_what_the_boxes_held_of_the_scaled_image():
  boxes = np.int32([[[2, 1, 6, 4]], [[0, 3, 9, 5]]])
  scale = jax.jit(ops.scale_boxes)
  for factors in ((3, 2), (4, 4)):
    expected = [[box_of(pixels_of(box, (7, 12)).repeat(factors[1], 0).repeat(factors[0], 1))] for (box,) in boxes]
    assert scale(boxes, np.float32(factors)).tolist() == expected
  assert scale(boxes, 4.0).tolist() == expected
  assert scale(boxes, np.float32([[1, 1], [2, 0.5]])).tolist() == [[[2, 1, 6, 4]], [[0, 1.5, 18, 2.5]]]


def test_flips_and_scales_of_both_boxes_change_no_iou():
  rng = np.random.default_rng(4)
  a, b = some_boxes(rng, (200,)), some_boxes(rng, (200,))
  expected, _ = value_and_gradients('iou')(a, b)
  flipped = [np.asarray(ops.flip_boxes(x, (40, 30), vertical=True)) for x in (a, b)]
  scaled = [np.asarray(ops.scale_boxes(x, (3, 0.25))) for x in (a, b)]
  for pair in (flipped, scaled):
    np.testing.assert_allclose(value_and_gradients('iou')(*pair)[0], expected, atol=2e-5)  # float32, as when moved


def test_wrong_shapes_are_refused_in_one_line():
  with pytest.raises(ValueError, match=r'giou: boxes must be \[\.\.\., 4\], not \[2, 5\]'):
    ops.giou(jnp.zeros((2, 5)), jnp.zeros((2, 4)))
  with pytest.raises(ValueError, match='use iou for single boxes'):
    ops.pairwise_iou(jnp.zeros(4), jnp.zeros((2, 4)))
  with pytest.raises(ValueError, match='size must be'):
    ops.clip_boxes(jnp.zeros((2, 4)), jnp.zeros(3))
  with pytest.raises(ValueError, match='scale_boxes: scale must be'):
    ops.scale_boxes(jnp.zeros((2, 4)), jnp.zeros(3))
  with pytest.raises(ValueError, match='flip_boxes: image_size must be'):
    ops.flip_boxes(jnp.zeros((2, 4)), 3)
