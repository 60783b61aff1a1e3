"""Masks and boxes: the box of a mask, a mask cut out for a box, a small mask put back into its box.

Units: continuous pixels, in which pixel i covers i..i+1 and has its centre at i + 0.5; sizes are (h, w).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vision_jax.conventions import Array
from vision_jax.ops.arrays import FAR, as_mask, at_least_float32, check_last_axis, pick
from vision_jax.ops.roi import bin_weights

# Masks that `crop_and_resize_masks` holds at once: on a CPU more of them gained nothing.
_AT_ONCE = 8
# As precise as float32: a TPU's and a GPU's default for matrix products is not.
_PRECISION = jax.lax.Precision.HIGHEST


def masks_to_boxes(masks: Array) -> tuple[Array, Array]:
  """The tight box around each mask.

  Args:
    masks: bool [..., H, W], or integers of which all but 0 are foreground.

  Returns:
    `(boxes, valid)`: float32 [..., 4] xyxy, which ends behind the last pixel (torchvision's `masks_to_boxes` gives the
    index of the last pixel, which is 1 less), and bool [...], False for a mask without foreground, whose box is zeros.

  Raises:
    ValueError: masks have fewer than two axes, or are not made of bool or integers.

  >>> boxes, valid = jax.jit(masks_to_boxes)(jnp.array([[0, 0, 0, 0], [0, 1, 1, 0]]))
  >>> boxes.tolist(), valid.item()
  ([1.0, 1.0, 3.0, 2.0], True)
  """
  masks = as_mask('masks_to_boxes', masks)
  x1, x2 = _extent(jnp.any(masks, axis=-2))
  y1, y2 = _extent(jnp.any(masks, axis=-1))
  valid = x1 < x2
  return pick(valid, jnp.stack([x1, y1, x2, y2], axis=-1), 0).astype(jnp.float32), valid


def crop_and_resize_masks(masks: Array, boxes: Array, owner: Array, *, output_size: tuple[int, int] = (28, 28),
                          valid: Array | None = None) -> Array:
  """What each box sees of its object's mask on a small grid: the targets of Mask R-CNN's mask head.

  A cell averages ceil(box / grid) bilinear samples along each side, as RoIAlign does when left to choose (not aligned:
  corner 0 of the box is the middle of pixel 0). Equal to torchvision's `project_masks_on_boxes`.

  Args:
    masks: [N, H, W], 0..1 or bool.
    boxes: [M, 4] xyxy, pixels of the masks, such as the proposals that were sampled for training.
    owner: int [M], 0..N-1, the mask that each box is matched to. One outside counts as the nearest.
    output_size: (h, w) of the grid.
    valid: bool [M], False for boxes that have no object; all True when left out.

  Returns:
    float32 [M, h, w] in 0..1; zeros where `valid` is False, whatever the slot holds. Gradients pass to the masks, not
    to the boxes.

  Raises:
    ValueError: masks are not [N, H, W], boxes not [M, 4], or owner or valid not [M].

  Cost: two matrix products a box; no more than 8 full masks are copied at a time.

  Reference: He et al., Mask R-CNN, arXiv 1703.06870, section 3.1.
  Differs from the paper: it does not say how the mask is sampled; torchvision's way leaves soft values at its edge.

  >>> masks, boxes = jnp.array([[[0, 0, 1, 1]] * 4], bool), jnp.array([[0, 0, 4, 4.0]])
  >>> crop = jax.jit(crop_and_resize_masks, static_argnames='output_size')
  >>> crop(masks, boxes, jnp.array([0]), output_size=(1, 4)).tolist()
  [[[0.0, 0.5, 1.0, 1.0]]]
  """
  masks, owner = jnp.asarray(masks), jnp.asarray(owner)
  boxes = jax.lax.stop_gradient(at_least_float32(boxes))
  left = jnp.ones(owner.shape, bool) if valid is None else jnp.asarray(valid)
  if masks.ndim != 3 or owner.ndim != 1 or boxes.shape != owner.shape + (4,) or left.shape != owner.shape:
    raise ValueError(f'crop_and_resize_masks: masks {list(masks.shape)}, boxes {list(boxes.shape)}, owner '
                     f'{list(owner.shape)}, valid {list(left.shape)}; give [N, H, W], [M, 4], [M] and [M] (jax.vmap '
                     'takes a batch)')
  if not masks.size or not owner.size:
    return jnp.zeros(owner.shape + tuple(output_size), boxes.dtype)
  boxes, owner = pick(left, boxes, 0), jnp.clip(pick(left, owner, 0), 0, masks.shape[0] - 1)

  def crop(box_and_owner):
    (x1, y1, x2, y2), n = box_and_owner
    rows = bin_weights(y1, y2, bins=output_size[0], size=masks.shape[1])
    columns = bin_weights(x1, x2, bins=output_size[1], size=masks.shape[2])
    return _resampled(rows, at_least_float32(masks[n]), columns)

  return pick(left, jax.lax.map(crop, (boxes, owner), batch_size=_AT_ONCE), 0)


def paste_masks(masks: Array, boxes: Array, *, canvas: tuple[int, int], valid: Array | None = None) -> Array:
  """Small masks put back into their boxes on a canvas: how the mask head's output becomes a mask of the image.

  The mask's cells tile the box. A pixel whose centre lies in the box takes the value there, bilinear between the
  centres of the cells, with zeros beyond the outermost: half of the outermost cell at the very edge of the box.

  Args:
    masks: [..., h, w], probabilities 0..1.
    boxes: [..., 4] xyxy, canvas pixels; they may reach beyond the canvas. Numbers beyond 1e9 count as 1e9.
    canvas: (h, w) of the result.
    valid: bool [...], False for slots without a mask; all True when left out.

  Returns:
    float32 [..., H, W] in 0..1; zeros outside the box and where `valid` is False, whatever the slot holds. Gradients
    pass to the masks, not to the boxes.

  Raises:
    ValueError: the last axis of boxes is not 4 long, or masks have not the leading axes of boxes and two more, or valid
      not those of boxes.

  Differs from others: detectron2 lets a mask fade out over half a cell outside the box, where it stays below one half;
  inside the two are equal. torchvision first adds a cell of zeros all around and rounds the corners of the box to whole
  pixels, which moves an edge by up to one.

  >>> paste = jax.jit(paste_masks, static_argnames='canvas')
  >>> paste(jnp.array([[1.0, 0.5]]), jnp.array([1, 0, 3, 1.0]), canvas=(2, 4)).tolist()
  [[0.0, 1.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]]
  """
  check_last_axis('paste_masks', 'boxes', boxes, 4)
  masks, boxes = at_least_float32(masks), jax.lax.stop_gradient(at_least_float32(boxes))
  left = jnp.ones(boxes.shape[:-1], bool) if valid is None else jnp.asarray(valid)
  if masks.shape[:-2] != boxes.shape[:-1] or masks.ndim != boxes.ndim + 1 or left.shape != boxes.shape[:-1]:
    raise ValueError(f'paste_masks: masks {list(masks.shape)}, boxes {list(boxes.shape)}, valid {list(left.shape)}; '
                     'give [..., h, w], [..., 4] and [...]')
  masks, boxes = pick(left, masks, 0), jnp.clip(pick(left, boxes, 0), -FAR, FAR)
  rows = _cell_weights(boxes[..., 1], boxes[..., 3], cells=masks.shape[-2], size=canvas[0])
  columns = _cell_weights(boxes[..., 0], boxes[..., 2], cells=masks.shape[-1], size=canvas[1])
  return _resampled(rows, masks, columns)


def _resampled(rows: Array, mask: Array, columns: Array) -> Array:
  """rows @ mask @ columns^T."""
  return jnp.einsum('...yh,...hw,...xw->...yx', rows, mask, columns, precision=_PRECISION)


def _cell_weights(starts: Array, ends: Array, *, cells: int, size: int) -> Array:
  """[..., size, cells]: how much each cell between start and end enters each pixel of one axis of the canvas."""
  starts, lengths = starts[..., None, None], (ends - starts)[..., None, None]
  centre = jnp.arange(size, dtype=starts.dtype)[:, None] + 0.5 - starts
  inside = (centre >= 0) & (centre <= lengths) & (lengths > 0)
  # Cells per pixel first: it is exactly 1 where the box has as many pixels as cells, and the mask stays as it is.
  place = centre * (cells / jnp.where(lengths > 0, lengths, 1)) - 0.5
  return jnp.where(inside, jnp.maximum(1 - jnp.abs(place - jnp.arange(cells)), 0), 0)


def _extent(occupied: Array) -> tuple[Array, Array]:
  """The first True along the last axis and the place behind the last; where there is none, the size and 0."""
  size = occupied.shape[-1]
  index = jnp.arange(size)
  first = jnp.min(jnp.where(occupied, index, size), axis=-1, initial=size)
  return first, jnp.max(jnp.where(occupied, index + 1, 0), axis=-1, initial=0)
