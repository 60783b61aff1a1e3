"""Deltas and distances equal torchvision's coders, undo each other, and stay finite."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden import make_boxes
from vision_jax import ops

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'boxes.npz'
VARIANCES = [tuple(1 / w for w in weights) for weights in make_boxes.WEIGHTS]
DEGENERATE = np.array([
    [3, 3, 3, 3], [2, 1, 2, 6], [1, 2, 6, 2], [6, 7, 2, 1], [6, 1, 2, 7], [2, 1, 6, 7], [0, 0, 1e-30, 1e-30],
    [0, 0, 2e-6, 2e-6], [0, 0, 0.01, 1e9], [-1e30, -1e30, 1e30, 1e30], [0, 0, 3e38, 3e38], [-np.inf, 0, np.inf, 5],
    [1e9, 1e9, 1e9, 1e9], [-5e8, 4, 5e8, 4.5], [-800, -800, -800, -800]], np.float32)

# Jitted: op by op, each small array operation would be compiled by itself.
encode_deltas, decode_deltas = (jax.jit(f, static_argnames='variances') for f in (ops.encode_deltas, ops.decode_deltas))
encode_distances, decode_distances, centerness = map(
    jax.jit, (ops.encode_distances, ops.decode_distances, ops.centerness))


def every_one(numbers, anchors):
  """All that these files offer, as one function of one pair of arrays: one compilation."""
  return (ops.encode_deltas(numbers, anchors, variances=VARIANCES[1]), ops.decode_deltas(numbers, anchors),
          ops.encode_distances(numbers, anchors), ops.decode_distances(numbers, anchors), ops.centerness(numbers))


@jax.jit
def values_and_gradients(numbers, anchors, counted):
  def total(numbers, anchors):
    values = every_one(numbers, anchors)
    return sum(jnp.sum(jnp.where(counted.reshape(-1, *(1,) * (v.ndim - 1)), v, 0)) for v in values), values

  gradients, values = jax.grad(total, argnums=(0, 1), has_aux=True)(numbers, anchors)
  return values, gradients


def test_deltas_are_those_of_torchvisions_box_coder():
  boxes, anchors, deltas, _ = make_boxes.draw()
  golden = np.load(GOLDEN)
  for case, variances in enumerate(VARIANCES):
    # float32; a delta near 0 is the difference of centres up to 700
    np.testing.assert_allclose(encode_deltas(boxes, anchors, variances=variances), golden['encoded'][case],
                               rtol=1e-5, atol=1e-5)
    decoded = decode_deltas(deltas, anchors, variances=variances)
    # Both corners of a box come from a centre and a size of up to 13,000 pixels.
    scale = np.abs(golden['decoded'][case]).max(axis=1, keepdims=True)
    np.testing.assert_allclose(decoded / scale, golden['decoded'][case] / scale, atol=1e-6)


def test_distances_and_centerness_are_those_of_torchvisions_fcos():
  boxes, anchors, _, distances = make_boxes.draw()
  golden = np.load(GOLDEN)
  np.testing.assert_allclose(encode_distances(boxes, anchors), golden['distances'], rtol=1e-5, atol=1e-5)  # float32
  np.testing.assert_allclose(decode_distances(distances, anchors), golden['from_distances'], rtol=1e-5, atol=1e-4)
  np.testing.assert_allclose(centerness(distances), golden['centerness'], rtol=1e-6)


def test_decoding_undoes_encoding():
  boxes, anchors, deltas, distances = make_boxes.draw()
  for variances in VARIANCES:
    options = {'variances': variances}
    again = decode_deltas(encode_deltas(boxes, anchors, **options), anchors, **options)
    np.testing.assert_allclose(again, boxes, atol=2e-4)  # float32: 1e-7 of 700 pixels
  small = deltas / 4  # below the limit
  again = encode_deltas(decode_deltas(small, anchors), anchors)
  # Anchors down to 1 pixel at 300 pixels: 300 * 6e-8 / 1, times exp(-dw) <= 10 in the log.
  np.testing.assert_allclose(again, small, atol=1e-3)
  again = decode_distances(encode_distances(boxes, anchors), anchors)
  np.testing.assert_allclose(again, boxes, atol=2e-4)
  np.testing.assert_allclose(encode_distances(decode_distances(distances, anchors), anchors), distances,
                             atol=1e-3)


def test_moving_or_stretching_box_and_anchor_together_changes_no_delta():
  boxes, anchors, _, _ = make_boxes.draw()
  with jax.enable_x64(True):
    boxes, anchors = boxes.astype(np.float64), anchors.astype(np.float64)
    shift, stretch = np.array([5, -7, 5, -7.0]), np.array([3, 0.5, 3, 0.5])
    for encode in (encode_deltas, encode_distances):
      expected = encode(boxes, anchors)
      assert expected.dtype == np.float64
      # float64: 1e-16 of 700 pixels over anchors of a pixel
      np.testing.assert_allclose(encode(boxes + shift, anchors + shift), expected, atol=1e-12)
      np.testing.assert_allclose(encode(boxes * stretch, anchors * stretch), expected, atol=1e-12)


def test_a_log_beyond_the_limit_counts_as_the_limit_without_gradient():
  def width(dw):
    box = ops.decode_deltas(jnp.zeros(4).at[2].set(dw), np.float32([0, 0, 16, 16]), variances=(1, 1, 0.2, 1))
    return box[2] - box[0]

  limit = math.log(1000 / 16)
  # The variance comes first: 10 * 0.2 = 2 is below the limit.
  widths, slopes = jax.jit(jax.vmap(jax.value_and_grad(width)))(np.float32([10, 5 * limit - 1, 5 * limit + 1]))
  np.testing.assert_allclose(widths, [16 * math.e**2, 1000 * math.exp(-0.2), 1000], rtol=1e-6)
  assert slopes[1] > 0 and slopes[2] == 0


def test_centerness_is_zero_outside_and_blind_to_sides_and_units():
  inside = make_boxes.draw()[3]
  expected = centerness(inside)
  assert ((expected > 0) & (expected <= 1)).all()
  np.testing.assert_allclose(centerness(inside[:, [2, 3, 0, 1]]), expected, rtol=1e-6)  # float32
  np.testing.assert_allclose(centerness(inside * [8, 0.5, 8, 0.5]), expected, rtol=1e-6)
  # Twice negative is outside too, though the product of the two shares is positive.
  outside = np.array([[-1, 1, 3, 1], [-1, -1, 3, 3], [0, 1, 3, 1], [0, 0, 0, 0], [-1, -2, -3, -4]], np.float32)
  assert centerness(outside).tolist() == [0] * 5


def test_a_side_that_is_nothing_leaves_its_deltas_at_zero():
  boxes, anchors = np.float32([[0, 0, 8, 4], [0, 0, 8, 0]]), np.float32([[0, 0, 8, 0], [0, 0, 4, 4]])
  found = encode_deltas(boxes, anchors)
  np.testing.assert_allclose(found, [[0, 0, 0, 0], [0.5, -0.5, math.log(2), 0]], rtol=1e-6)  # float32
  assert encode_distances(boxes, anchors)[0].tolist() == [0.5, 0, 0.5, 0]


def test_degenerate_and_far_input_gives_finite_values_and_gradients():
  numbers = DEGENERATE.repeat(len(DEGENERATE), 0)
  values, gradients = values_and_gradients(numbers, np.tile(DEGENERATE, (len(DEGENERATE), 1)),
                                           np.ones(len(numbers), bool))
  assert all(np.isfinite(x).all() for x in (*values, *gradients))


def test_what_an_invalid_slot_holds_reaches_no_other():
  boxes, anchors, _, _ = (np.resize(x, (len(DEGENERATE) ** 2, 4)) for x in make_boxes.draw())
  valid = np.arange(len(boxes)) % 3 > 0
  expected = jax.device_get(values_and_gradients(boxes, anchors, valid))
  for filling in (np.nan, 1e9):
    filled = [np.where(valid[:, None], x, np.float32(filling)) for x in (boxes, anchors)]
    found = jax.device_get(values_and_gradients(*filled, valid))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
      np.testing.assert_array_equal(one[valid], other[valid])


@pytest.mark.parametrize('place', range(5))
def test_gradients_agree_with_finite_differences_in_float64(place):
  boxes, anchors, _, _ = (x[:6].astype(np.float64) / 50 for x in make_boxes.draw())
  numbers = np.abs(boxes) if place == 4 else boxes  # centerness: inside

  def total(numbers, anchors):
    return jnp.sum(jnp.sin(every_one(numbers, anchors)[place]))

  with jax.enable_x64(True):
    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    gradients = run(numbers, anchors)[1]
    for gradient, which in zip(gradients, (0, 1)):
      for slot, column in ((0, 0), (1, 1), (3, 2), (5, 3)):
        step = np.zeros_like(numbers)
        step[slot, column] = 1e-6
        up, down = (run(*(x + s * (i == which) for i, x in enumerate((numbers, anchors))))[0] for s in (step, -step))
        # Central differences of numbers around 1: 1e-16 / 1e-6, and 1e-12 times a third derivative of up to 1e4.
        np.testing.assert_allclose(gradient[slot, column], (up - down) / 2e-6, rtol=1e-5, atol=1e-7)


def test_wrong_shapes_are_refused_in_one_line():
  with pytest.raises(ValueError, match=r'encode_deltas: anchors must be \[\.\.\., 4\], not \[3\]'):
    ops.encode_deltas(np.zeros((2, 4)), np.zeros(3))
  with pytest.raises(ValueError, match=r'decode_deltas: variances \(0\.1, 0\.2\); give four positive ones'):
    ops.decode_deltas(np.zeros((2, 4)), np.zeros((2, 4)), variances=(0.1, 0.2))
  with pytest.raises(ValueError, match=r'encode_deltas: variances \(0, 1, 1, 1\)'):
    ops.encode_deltas(np.zeros((2, 4)), np.zeros((2, 4)), variances=(0, 1, 1, 1))
  with pytest.raises(ValueError, match=r'decode_distances: distances \[2, 4\], anchors \[3, 4\] do not broadcast'):
    ops.decode_distances(np.zeros((2, 4)), np.zeros((3, 4)))
  with pytest.raises(ValueError, match=r'centerness: distances must be'):
    ops.centerness(np.zeros((2, 3)))
