"""Boxes of masks, masks cropped for boxes and pasted into them, against torchvision, detectron2's formula and loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_files
from vision_jax import ops

pytestmark = pytest.mark.medium  # many small compilations: together more than the fast tests can spare


@functools.cache
def golden():
  """The inputs as the golden script draws them, and what torch made of them."""
  script, arrays = golden_files.golden('masks')
  return script, script.draw(), arrays


@functools.cache
def paste(canvas):
  return jax.jit(functools.partial(ops.paste_masks, canvas=canvas))


def inside(boxes, canvas):
  """bool [M, H, W]: whether the centre of a pixel lies in a box."""
  y, x = np.arange(canvas[0])[:, None] + 0.5, np.arange(canvas[1]) + 0.5
  x1, y1, x2, y2 = boxes.T[:, :, None, None]
  return (y >= y1) & (y <= y2) & (x >= x1) & (x <= x2)


def test_masks_to_boxes_end_behind_the_last_pixel_and_flag_empty_masks():
  rng = np.random.default_rng(0)
  masks = np.zeros((2, 20, 9, 13), bool)
  for mask in masks.reshape(40, 9, 13)[:-3]:
    mask[tuple(rng.integers(0, (9, 13), (rng.integers(1, 4), 2)).T)] = True
  masks[1, -1] = True
  boxes, valid = jax.jit(ops.masks_to_boxes)(masks)
  assert boxes.dtype == jnp.float32
  for box, real, mask in zip(boxes.reshape(-1, 4), valid.ravel(), masks.reshape(-1, 9, 13)):
    y, x = np.nonzero(mask)
    assert real == bool(len(y))
    assert box.tolist() == ([x.min(), y.min(), x.max() + 1, y.max() + 1] if len(y) else [0, 0, 0, 0])


def test_masks_to_boxes_reads_the_255_of_a_file_and_refuses_probabilities():
  assert ops.masks_to_boxes(np.uint8([[0, 255], [0, 0]]))[0].tolist() == [1, 0, 2, 1]
  with pytest.raises(ValueError, match=r'masks_to_boxes: got float32 \[2, 2\]; give masks .* probabilities > 0.5'):
    ops.masks_to_boxes(jnp.zeros((2, 2)))


@pytest.mark.parametrize('grid', [(7, 7), (28, 28)])
def test_cropped_masks_are_those_of_torchvision(grid):
  _, (masks, boxes, owner, _), expected = golden()
  order = np.random.default_rng(1).permutation(40) % len(boxes)  # more boxes than are worked on at once
  found = jax.jit(functools.partial(ops.crop_and_resize_masks, output_size=grid))(masks, boxes[order], owner[order])
  # Both in float32: places up to 60 are known to 4e-6, and a mask changes by 1 from pixel to pixel.
  np.testing.assert_allclose(found, expected[f'crop_{grid[0]}'][order], atol=1e-5)


def test_invalid_slots_change_neither_crops_nor_their_gradients():
  _, (masks, boxes, owner, _), expected = golden()
  valid = np.arange(len(boxes)) % 3 > 0
  weights = np.random.default_rng(2).normal(size=(len(boxes), 7, 7)).astype(np.float32)
  # Slot 0 of the masks is not real either, and still what the boxes without object name.
  soft = np.concatenate([np.full((1, *masks.shape[1:]), np.nan), masks]).astype(np.float32)
  owner = np.where(valid, owner + 1, 0)

  @jax.jit
  def value_and_gradient(masks, boxes, owner):
    def total(masks):
      crops = ops.crop_and_resize_masks(masks, boxes, owner, output_size=(7, 7), valid=valid)
      return jnp.sum(crops * weights), crops
    (_, crops), gradient = jax.value_and_grad(total, has_aux=True)(masks)
    return crops, gradient

  crops, gradient = value_and_gradient(soft, boxes, owner)
  np.testing.assert_allclose(crops[valid], expected['crop_7'][valid], atol=1e-5)
  assert not crops[~valid].any() and np.isfinite(gradient).all() and not gradient[0].any()
  # Linear in the masks: the gradient, summed with them, is the value.
  np.testing.assert_allclose((gradient[1:] * masks).sum(), (crops * weights).sum(), rtol=1e-4)
  for junk, index in ((np.nan, 3), (1e9, 99), (-1e9, -7)):
    other = value_and_gradient(soft, np.where(valid[:, None], boxes, junk), np.where(valid, owner, index))
    np.testing.assert_array_equal(other[0], crops)
    np.testing.assert_array_equal(other[1], gradient)


def test_cropping_without_boxes_or_without_masks_gives_zeros():
  empty = np.zeros((0, 4), np.float32)
  assert ops.crop_and_resize_masks(np.ones((2, 5, 6)), empty, np.zeros(0, int)).shape == (0, 28, 28)
  none = ops.crop_and_resize_masks(np.ones((0, 5, 6), bool), np.ones((3, 4)), np.zeros(3, int), output_size=(2, 3))
  assert none.shape == (3, 2, 3) and not none.any()


def test_pasted_masks_are_those_of_detectron2_inside_their_boxes_and_zero_outside():
  script, (_, boxes, _, small), expected = golden()
  sized = (boxes[:, 2:] > boxes[:, :2]).all(1)
  found = np.asarray(paste(script.CANVAS)(small, boxes))
  within = inside(boxes, script.CANVAS)
  # float32 against float64: places in a box are known to 1e-6 of a cell.
  np.testing.assert_allclose(found[sized], np.where(within[sized], expected['paste'], 0), atol=1e-5)
  assert not found[~within].any() and not found[~sized].any()
  # What detectron2 has beyond the box never makes a mask.
  assert expected['paste'][~within[sized]].max() < 0.5


@pytest.mark.parametrize('size', [(1, 1), (7, 49), (28, 41)])
def test_a_mask_pasted_over_a_canvas_of_its_size_stays_as_it_is(size):
  mask = np.random.default_rng(3).uniform(size=size).astype(np.float32)
  box = np.float32([0, 0, size[1], size[0]])
  np.testing.assert_array_equal(paste(size)(mask, box), mask)
  moved = np.asarray(paste((size[0] + 9, size[1] + 5))(mask, box + np.float32([2, 3, 2, 3])))
  np.testing.assert_array_equal(moved[3:3 + size[0], 2:2 + size[1]], mask)
  # A power of two bounds the sum, so all of it lies in the box and nothing around it.
  assert (moved != 0).sum() == (mask != 0).sum()


def test_a_pasted_mask_turns_with_its_mirror_image():
  script, (_, boxes, _, small), _ = golden()
  boxes = np.round(boxes * 4) / 4  # so that mirroring is exact
  mirrored = boxes[:, [2, 1, 0, 3]] * np.float32([-1, 1, -1, 1]) + np.float32([script.CANVAS[1], 0] * 2)
  there, back = paste(script.CANVAS)(small, boxes), paste(script.CANVAS)(small[:, :, ::-1], mirrored)
  np.testing.assert_allclose(back[:, :, ::-1], there, atol=1e-5)  # places are rounded anew


def test_masks_pasted_into_endless_and_degenerate_boxes_are_finite_with_their_gradients():
  boxes = np.float32([[-np.inf, -np.inf, np.inf, np.inf], [0, 0, np.inf, 1], [4, 4, 1, 1], [2, 2, 2, 2],
                      [-1e30, 0, 1, 2]])
  total = lambda masks: (lambda pasted: (jnp.sum(pasted), pasted))(ops.paste_masks(masks, boxes, canvas=(5, 6)))
  (_, pasted), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(np.ones((5, 2, 2), np.float32))
  assert np.isfinite(pasted).all() and np.isfinite(gradient).all() and (pasted[0] == 1).all()


def test_invalid_slots_change_neither_pasted_masks_nor_their_gradients():
  script, (_, boxes, _, small), _ = golden()
  valid = np.arange(len(boxes)) % 2 > 0
  weights = np.random.default_rng(4).normal(size=(len(boxes), *script.CANVAS)).astype(np.float32)

  @jax.jit
  def value_and_gradients(masks, boxes):
    def total(masks, boxes):
      canvas = ops.paste_masks(masks, boxes, canvas=script.CANVAS, valid=valid)
      return jnp.sum(canvas * weights), canvas
    return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(masks, boxes)

  (_, canvas), (gradient, of_boxes) = value_and_gradients(small, boxes)
  assert not canvas[~valid].any() and not gradient[~valid].any() and not of_boxes.any()
  np.testing.assert_allclose((gradient * small).sum(), (canvas * weights).sum(), rtol=1e-4)  # linear in the masks
  for junk in (np.nan, 1e9):
    (_, other), (other_gradient, _) = value_and_gradients(
        np.where(valid[:, None, None], small, np.float32(junk)), np.where(valid[:, None], boxes, np.float32(junk)))
    np.testing.assert_array_equal(other, canvas)
    np.testing.assert_array_equal(other_gradient, gradient)


def test_crops_and_pasted_masks_have_the_gradients_of_finite_differences():
  rng = np.random.default_rng(5)
  weights = rng.normal(size=(2, 5, 6))
  masks, boxes = rng.uniform(size=(2, 4, 7)), np.array([[0.3, 0.2, 4.4, 3.7], [1.1, -1.3, 6.2, 3.1]])

  def both(masks):
    crops = ops.crop_and_resize_masks(masks, boxes, np.array([1, 0]), output_size=(5, 6))
    return jnp.sum(weights * crops) + jnp.sum(weights[::-1] * ops.paste_masks(masks, boxes, canvas=(5, 6)))

  with jax.enable_x64(True):
    run = jax.jit(jax.value_and_grad(both))
    _, gradient = run(masks)
    for step in rng.normal(size=(9, *masks.shape)):
      # Linear: only float64's rounding remains.
      np.testing.assert_allclose(np.sum(gradient * step), (run(masks + step)[0] - run(masks - step)[0]) / 2, atol=1e-12)


def test_shapes_that_do_not_fit_are_refused_in_one_line():
  masks, boxes, owner = jnp.zeros((2, 5, 6)), jnp.zeros((3, 4)), jnp.zeros(3, int)
  with pytest.raises(ValueError, match=r'crop_and_resize_masks: masks \[5, 6\].*give \[N, H, W\], \[M, 4\], \[M\]'):
    ops.crop_and_resize_masks(masks[0], boxes, owner)
  with pytest.raises(ValueError, match=r'owner \[2\]'):
    ops.crop_and_resize_masks(masks, boxes, owner[:2])
  with pytest.raises(ValueError, match=r'paste_masks: masks \[2, 5, 6\], boxes \[3, 4\]'):
    ops.paste_masks(masks, boxes, canvas=(9, 9))
  with pytest.raises(ValueError, match=r'paste_masks: boxes must be \[\.\.\., 4\]'):
    ops.paste_masks(masks, boxes[:2, :3], canvas=(9, 9))
