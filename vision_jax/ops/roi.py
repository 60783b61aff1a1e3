"""Regions of interest: RoIAlign on one map and over a pyramid, RoI pooling, and RoIAlign's weights for masks.

Units: boxes in continuous canvas pixels; a feature map of stride s has one cell for s x s of them. Everything is
computed in float32, also for features in half precision (float64 stays float64), and comes back so.

A map is read as a table of cells, row by row, image after image and level after level, so that one gather serves all
boxes of a batch and of a pyramid. A box that is not finite counts as invalid, and coordinates are cut at 1e9.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools
import math

import jax
import jax.numpy as jnp

from vision_jax.conventions import Array
from vision_jax.ops.arrays import FAR, at_least_float32, pick
from vision_jax.ops.boxes import box_area

# So many boxes are handled at once where intermediate arrays are a multiple of the output. 8 x 7 x 7 x 16 x 256 numbers
# are 6 MB; 40 boxes at once took up to 1.6 times as long on a CPU, and fewer would leave a GPU idle.
_CHUNK = 8


def roi_align(features: Array, boxes: Array, *, stride: float, output_size: tuple[int, int] = (7, 7),
              sampling_ratio: int = 2, aligned: bool = False, valid: Array | None = None) -> Array:
  """The features inside each box, averaged over the bins of a grid, by bilinear samples and without rounding a box.

  Each bin is the mean of `sampling_ratio`^2 samples on a regular grid. A sample more than one cell outside the map is
  zero, one nearer than that takes the value at the border. Cells stand at whole coordinates, so `aligned=False` is half
  a cell off and makes no box smaller than one cell; this is what Mask R-CNN and torchvision's detectors were trained
  with. `aligned=True` puts cells at the middle of their pixels.

  Args:
    features: [B, h, w, C], or [h, w, C] for one image.
    boxes: [B, M, 4] xyxy, canvas pixels, or [M, 4] for one image; they may reach or lie outside the canvas.
    stride: canvas pixels for one cell.
    output_size: (oh, ow), bins of a box.
    sampling_ratio: samples of a bin along each axis, 1 or more; compile time grows with its square.
    aligned: subtract the half cell.
    valid: bool [B, M] (or [M]), True for real boxes; all when left out. What the others hold does not matter.

  Returns:
    float32 [B, M, oh, ow, C] (or [M, oh, ow, C]); invalid slots hold zeros and pass no gradient. Boxes get no gradient,
    as in torchvision; proposals are not trained through their crops.

  Raises:
    ValueError: the shapes of features, boxes and valid do not fit, or there are no bins or no samples.

  Cost: (2 * sampling_ratio)^2 gathers, fused into the sum, so nothing larger than the output is held. The gradient adds
  into the map 8 boxes at a time. It is a rule of its own (`jax.custom_vjp`): it composes with jit and vmap and can be
  differentiated again, but forward mode (`jax.jvp`, `jax.jacfwd`) is refused. Gathers of whole rows of channels are
  fast on a CPU and expected to be on GPU and TPU; where additions come in any order, as on a GPU, the last bits of a
  gradient may differ from run to run.

  >>> features = jnp.arange(16.0).reshape(4, 4, 1)  # row * 4 + column
  >>> crop = jax.jit(functools.partial(roi_align, stride=8, output_size=(2, 2)))
  >>> crop(features, jnp.array([[8.0, 8, 24, 24]]))[0, :, :, 0].tolist()
  [[7.5, 8.5], [11.5, 12.5]]

  Reference: He, Gkioxari, Dollar, Girshick, "Mask R-CNN", arXiv:1703.06870, section 3.
  """
  _check_counts('roi_align', output_size, (stride,), sampling_ratio)
  levels, boxes, valid, single = _batched('roi_align', [features], boxes, valid)
  crops = _align(levels, boxes, jnp.zeros(valid.shape, jnp.int32), (stride,), output_size, sampling_ratio, aligned)
  crops = pick(valid, crops, 0)
  return crops[0] if single else crops


def roi_levels(boxes: Array, *, strides: Sequence[int] = (4, 8, 16, 32), canonical_size: float = 224,
               canonical_level: int = 4) -> Array:
  """The pyramid level that each box is cropped from: a box twice as large goes one level up.

  Args:
    boxes: [..., 4] xyxy, canvas pixels.
    strides: canvas pixels for one cell of each level; powers of two, each twice the one before.
    canonical_size: side in pixels of the square box that goes to `canonical_level`.
    canonical_level: that level k, the one of stride 2^k.

  Returns:
    int32 [...] into `strides`: floor(k0 + log2(sqrt(area) / size0) + 1e-6), cut to the levels there are; 0 for a box
    without area, and some level for an invalid slot.

  Raises:
    ValueError: boxes are not [..., 4], or the strides no such powers of two.

  >>> roi_levels(jnp.array([[0.0, 0, 224, 224], [0, 0, 111, 111], [5, 5, 5, 5], [0, 0, 4e3, 4e3]])).tolist()
  [2, 0, 0, 3]

  Reference: Lin et al., "Feature Pyramid Networks for Object Detection", arXiv:1612.03144, equation 1.
  Differs from the paper: 1e-6 is added, as in torchvision, so that rounding cannot take a box of exactly 112 pixels one
  level down.
  """
  lowest = round(math.log2(strides[0])) if len(strides) and strides[0] > 0 else 0
  if not len(strides) or list(strides) != [2.0 ** (lowest + i) for i in range(len(strides))]:
    raise ValueError(f'roi_levels: strides {list(strides)}; give powers of two, each twice the one before')
  side = jnp.sqrt(jax.lax.stop_gradient(box_area(boxes)))
  level = jnp.floor(canonical_level + jnp.log2(side / canonical_size) + 1e-6) - lowest
  return jnp.where(side > 0, jnp.clip(level, 0, len(strides) - 1), 0).astype(jnp.int32)


def multilevel_roi_align(levels: Sequence[Array], boxes: Array, *, strides: Sequence[int],
                         output_size: tuple[int, int] = (7, 7), sampling_ratio: int = 2, aligned: bool = False,
                         canonical_size: float = 224, canonical_level: int = 4, valid: Array | None = None) -> Array:
  """The features inside each box, cropped by `roi_align` from the one level of a pyramid that suits the box's size.

  Each box is sampled on its own level only (`roi_levels`): the levels are laid end to end, and one gather serves all.

  Args:
    levels: L maps [B, h, w, C], finest first, or [h, w, C] for one image.
    boxes: [B, M, 4] xyxy, canvas pixels, or [M, 4] for one image; they may reach or lie outside the canvas.
    strides: canvas pixels for one cell of each level; powers of two, each twice the one before.
    output_size: (oh, ow), bins of a box.
    sampling_ratio: samples of a bin along each axis, 1 or more.
    aligned: as in `roi_align`.
    canonical_size: as in `roi_levels`.
    canonical_level: as in `roi_levels`.
    valid: bool [B, M] (or [M]), True for real boxes; all when left out. What the others hold does not matter.

  Returns:
    float32 [B, M, oh, ow, C] (or [M, oh, ow, C]); invalid slots hold zeros and pass no gradient, nor do boxes get one.

  Raises:
    ValueError: the shapes of levels, boxes and valid do not fit, the strides do not fit the levels, or there are no
      bins or no samples.

  Cost: that of `roi_align`, and one copy of the pyramid.

  >>> levels = [jnp.full((64, 64, 1), 2.0), jnp.full((32, 32, 1), 3.0)]
  >>> boxes = jnp.array([[0.0, 0, 64, 64], [0, 0, 256, 256]])
  >>> crops = jax.jit(functools.partial(multilevel_roi_align, strides=(4, 8)))(levels, boxes)
  >>> crops[:, 3, 3, 0].tolist()
  [2.0, 3.0]

  Reference: Lin et al., "Feature Pyramid Networks for Object Detection", arXiv:1612.03144, section 4.2.
  """
  _check_counts('multilevel_roi_align', output_size, strides, sampling_ratio)
  levels, boxes, valid, single = _batched('multilevel_roi_align', levels, boxes, valid)
  if len(strides) != len(levels):
    raise ValueError(f'multilevel_roi_align: {len(strides)} strides for {len(levels)} levels; give one for each')
  own = roi_levels(boxes, strides=strides, canonical_size=canonical_size, canonical_level=canonical_level)
  crops = pick(valid, _align(levels, boxes, own, strides, output_size, sampling_ratio, aligned), 0)
  return crops[0] if single else crops


def roi_pool(features: Array, boxes: Array, *, stride: float, output_size: tuple[int, int] = (7, 7),
             valid: Array | None = None) -> Array:
  """The largest feature in each bin of a grid inside each box, whose corners are rounded to cells first.

  Rounding is half away from zero, the last row and column belong to the box, and neighbouring bins may share a cell:
  all as in Fast R-CNN's and torchvision's code.

  Args:
    features: [B, h, w, C], or [h, w, C] for one image.
    boxes: [B, M, 4] xyxy, canvas pixels, or [M, 4] for one image; they may reach or lie outside the canvas.
    stride: canvas pixels for one cell.
    output_size: (oh, ow), bins of a box, each up to 2048.
    valid: bool [B, M] (or [M]), True for real boxes; all when left out. What the others hold does not matter.

  Returns:
    float32 [B, M, oh, ow, C] (or [M, oh, ow, C]); 0 for a bin without a cell of the map. Invalid slots hold zeros. The
    gradient goes to the first of the largest cells, and none to the boxes.

  Raises:
    ValueError: the shapes of features, boxes and valid do not fit, or there are no bins.

  Cost: 8 boxes at a time look at as many cells of a bin, one after the other, as their largest bin has, and once more
  for the gradient. It is a rule of its own (`jax.custom_vjp`): it composes with jit and vmap, but forward mode and a
  second derivative are refused.

  >>> features = jnp.arange(16.0).reshape(4, 4, 1)
  >>> jax.jit(functools.partial(roi_pool, stride=8, output_size=(2, 2)))(
  ...     features, jnp.array([[0.0, 0, 24, 24]]))[0, :, :, 0].tolist()
  [[5.0, 7.0], [13.0, 15.0]]

  Reference: Girshick, "Fast R-CNN", arXiv:1504.08083, section 2.1.
  """
  _check_counts('roi_pool', output_size, (stride,))
  (features,), boxes, valid, single = _batched('roi_pool', [features], boxes, valid)
  (b, h, w, channels), m = features.shape, boxes.shape[1]
  corners = (boxes * (1 / stride)).reshape(b * m, 4)
  top, bottom = _pool_edges(corners[:, 1], corners[:, 3], h, output_size[0])
  left, right = _pool_edges(corners[:, 0], corners[:, 2], w, output_size[1])
  start = jnp.repeat(jnp.arange(b, dtype=jnp.int32) * (h * w), m)
  crops = _largest(w, features.reshape(b * h * w, channels), start, top, bottom, left, right)
  crops = crops.reshape((b, m) + crops.shape[1:])
  filled = (bottom > top)[:, :, None] & (right > left)[:, None, :]
  crops = pick(filled.reshape(crops.shape[:4]) & valid[:, :, None, None], crops, 0)
  return crops[0] if single else crops


def bin_weights(starts: Array, ends: Array, *, bins: int, size: int, aligned: bool = False) -> Array:
  """The weights by which one axis of a map enters each bin of RoIAlign with its adaptive number of samples.

  A bin that is b cells long takes n = ceil(b) samples, evenly spaced, each interpolated between its two neighbours, and
  averages them. RoIAlign is separable, so for a single map `rows @ map @ columns.T` is all of it:

    rows = bin_weights(boxes[:, 1], boxes[:, 3], bins=oh, size=H)
    columns = bin_weights(boxes[:, 0], boxes[:, 2], bins=ow, size=W)
    targets = jnp.einsum('nph,nhw,nqw->npq', rows, masks, columns)

  Args:
    starts: [...], where each box starts along this axis, in cells of the map.
    ends: [...], where it ends.
    bins: bins of each box, 1 or more.
    size: cells of the map along this axis, 1 or more.
    aligned: as in `roi_align`.

  Returns:
    float32 [..., bins, size], 0 or more; each bin sums to 1, or less where its samples lie off the map. A box without
    length has zeros when aligned, and is one cell long otherwise. Finite wherever starts and ends are. Gradients do
    not pass.
  """
  starts, ends = jax.lax.stop_gradient((at_least_float32(starts), at_least_float32(ends)))
  first, step = _bins(starts, ends, bins, aligned)
  first, step = first[..., None], step[..., None]
  count = jnp.maximum(jnp.ceil(step), 0)
  spacing = jnp.where(step > 0, step, 1) / jnp.maximum(count, 1)
  cells = jnp.arange(size, dtype=step.dtype)
  # Samples that touch a cell lie within one cell of it. From two in a bin on, they are more than half a cell apart:
  # at most 4 touch, and a fifth makes up for rounding.
  nearest = jnp.clip(jnp.floor((cells - 1 - first) / spacing - 0.5), 0, jnp.maximum(count - 5, 0))
  total = 0
  for k in range(5):
    place = first + _divide((nearest + k + 0.5) * step, jnp.maximum(count, 1))
    counts = (nearest + k < count) & (place >= -1) & (place <= size)
    total += jnp.where(counts, jnp.maximum(1 - jnp.abs(jnp.clip(place, 0, size - 1) - cells), 0), 0)
  return total / jnp.maximum(count, 1)


def _check_counts(where: str, output_size: tuple[int, int], strides: Sequence[float], sampling_ratio: int = 1) -> None:
  if not all(stride > 0 for stride in strides):
    raise ValueError(f'{where}: stride {", ".join(map(str, strides))}; give the canvas pixels for one cell, above 0')
  if len(output_size) != 2 or min(*output_size, sampling_ratio) < 1:
    raise ValueError(f'{where}: output_size {output_size}, sampling_ratio {sampling_ratio}; give (oh, ow) and 1 or '
                     'more of each (a number of samples that follows the box has no static shape)')


def _batched(where: str, levels: Sequence[Array], boxes: Array,
             valid: Array | None) -> tuple[list[Array], Array, Array, bool]:
  """Levels [B, h, w, C], boxes [B, M, 4] that are finite, valid [B, M], and whether B was added."""
  levels, boxes = [jnp.asarray(level) for level in levels], at_least_float32(boxes)
  valid = jnp.ones(boxes.shape[:-1], bool) if valid is None else jnp.asarray(valid)
  shapes = [level.shape for level in levels]
  if (not shapes or {len(s) for s in shapes} not in ({3}, {4}) or len({s[:-3] + s[-1:] for s in shapes}) > 1 or
      boxes.ndim != len(shapes[0]) - 1 or boxes.shape[:-2] != shapes[0][:-3] or boxes.shape[-1] != 4 or
      valid.shape != boxes.shape[:-1] or any(0 in s[-3:-1] for s in shapes)):
    raise ValueError(f'{where}: features {", ".join(str(list(s)) for s in shapes)}, boxes {list(boxes.shape)}, valid '
                     f'{list(valid.shape)}; give [B, h, w, C] with cells in it, [B, M, 4] and [B, M], or all without B')
  levels = [level if jnp.issubdtype(level.dtype, jnp.floating) else at_least_float32(level) for level in levels]
  single = boxes.ndim == 2
  if single:
    levels, boxes, valid = [level[None] for level in levels], boxes[None], valid[None]
  boxes = jax.lax.stop_gradient(boxes)
  # NaN would become whatever integer the device makes of it, and cells are read without a check of bounds.
  valid = valid & jnp.isfinite(boxes).all(axis=-1)
  return levels, jnp.clip(pick(valid, boxes, 0), -FAR, FAR), valid, single


def _align(levels: Sequence[Array], boxes: Array, own: Array, strides: Sequence[float], output_size: tuple[int, int],
           sampling_ratio: int, aligned: bool) -> Array:
  """RoIAlign of boxes [B, M, 4], each on its `own` [B, M] of the levels [B, h, w, C]."""
  b, channels = levels[0].shape[0], levels[0].shape[-1]
  if 0 in own.shape:
    return jnp.zeros((*own.shape, *output_size, channels), at_least_float32(levels[0]).dtype)
  heights, widths = jnp.array([level.shape[1:3] for level in levels], jnp.int32).T[:, own.reshape(-1)]
  areas = [level.shape[1] * level.shape[2] for level in levels]
  starts = jnp.array([sum(areas[:i]) for i in range(len(areas))], jnp.int32)
  start = (starts[own] + jnp.arange(b, dtype=jnp.int32)[:, None] * sum(areas)).reshape(-1)
  cells = jnp.concatenate([level.reshape(b, -1, channels) for level in levels], axis=1).reshape(-1, channels)
  scale = jnp.array([1 / stride for stride in strides], boxes.dtype)[own]
  corners = (boxes * scale[..., None]).reshape(-1, 4)
  rows, row_weights = _taps(corners[:, 1], corners[:, 3], heights, output_size[0], sampling_ratio, aligned)
  columns, column_weights = _taps(corners[:, 0], corners[:, 2], widths, output_size[1], sampling_ratio, aligned)
  rows = start[:, None, None] + rows * widths[:, None, None]
  crops = _weighted_sum(cells, rows, row_weights, columns, column_weights)
  return crops.reshape(own.shape + crops.shape[1:])


def _multiply(values: Array, by: Array) -> Array:
  """`values * by`, rounded before it is added to anything: XLA would fuse the two, and round once."""
  high = _upper_half(values)
  return high * by + (values - high) * by


def _divide(values: Array, by: Array) -> Array:
  """`values / by`, rounded as IEEE asks: XLA multiplies by a rounded reciprocal, which makes 49 / 7 more than 7."""
  quotient = values / by

  def error(guess):
    high = _upper_half(guess)
    return jnp.abs((values - high * by) - (guess - high) * by)

  for other in (jnp.nextafter(quotient, -jnp.inf), jnp.nextafter(quotient, jnp.inf)):
    quotient = jnp.where(error(other) < error(quotient), other, quotient)
  return quotient


def _upper_half(values: Array) -> Array:
  """The values cut to half their bits; products of either half with a whole number up to 2048 are exact."""
  info = jnp.finfo(values.dtype)
  return jax.lax.reduce_precision(values, info.nexp, info.nmant // 2)


def _bins(starts: Array, ends: Array, bins: int, aligned: bool) -> tuple[Array, Array]:
  """Where each bin starts [..., bins], and how long it is [..., 1].

  A sample just off the map is zero, one just on it counts in full; boxes of whole cells often have samples right there.
  So here and where samples are placed, every step is rounded as in torchvision's plain float32.
  """
  starts, ends = starts[..., None], ends[..., None]
  first, length = (starts - 0.5, ends - starts) if aligned else (starts, jnp.maximum(ends - starts, 1))
  step = _divide(length, bins)
  return first + _multiply(step, jnp.arange(bins, dtype=step.dtype)), step


def _taps(starts: Array, ends: Array, size: Array, bins: int, ratio: int, aligned: bool) -> tuple[Array, Array]:
  """The cells that each bin reads along one axis, int32 [M, bins, 2 * ratio], and their weights."""
  first, step = _bins(starts, ends, bins, aligned)
  samples = _divide((jnp.arange(ratio, dtype=step.dtype) + 0.5) * step, ratio)
  place, size = first[..., None] + samples[:, None], size[:, None, None]
  counts = (place >= -1) & (place <= size)
  place = jnp.clip(place, 0, size - 1)
  low = place.astype(jnp.int32)
  high = jnp.minimum(low + 1, size - 1)
  part = place - low
  weights = jnp.where(counts[..., None], jnp.stack([1 - part, part], axis=-1) / ratio, 0)
  return tuple(x.reshape(first.shape + (2 * ratio,)) for x in (jnp.stack([low, high], axis=-1), weights))


@jax.custom_vjp
def _weighted_sum(cells: Array, rows: Array, row_weights: Array, columns: Array, column_weights: Array) -> Array:
  """The sum over s and t of row_weights[m, p, s] * column_weights[m, q, t] * cells[rows[m, p, s] + columns[m, q, t]].

  Not through autodiff: its gradient makes a map for each pair s, t and adds them up, or holds [M, oh, ow, s, t, C].
  """
  total = 0
  for s in range(rows.shape[-1]):
    for t in range(columns.shape[-1]):
      weight = row_weights[:, :, None, s] * column_weights[:, None, :, t]
      total += weight[..., None] * cells.at[rows[:, :, None, s] + columns[:, None, :, t]].get(mode='promise_in_bounds')
  return total


def _weighted_sum_forward(cells: Array, *taps: Array) -> tuple[Array, tuple]:
  return _weighted_sum(cells, *taps), (cells[:, :0], taps)  # no channel: only the type and the number of cells


def _weighted_sum_backward(kept: tuple, gradient: Array) -> tuple:
  like, taps = kept

  def add(total, group):
    rows, row_weights, columns, column_weights, gradient = group
    places = rows[:, :, :, None, None] + columns[:, None, None, :, :]
    weights = row_weights[:, :, :, None, None] * column_weights[:, None, None, :, :]
    updates = weights[..., None] * gradient[:, :, None, :, None, :]
    return total.at[places].add(updates, mode='promise_in_bounds'), None

  zeros = jnp.zeros(like.shape[:1] + gradient.shape[-1:], gradient.dtype)
  total, _ = jax.lax.scan(add, zeros, _grouped(taps + (gradient,)))
  return total.astype(like.dtype), None, None, None, None


_weighted_sum.defvjp(_weighted_sum_forward, _weighted_sum_backward)


def _grouped(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
  """Arrays [M, ...] as [M / m, m, ...] with the largest m up to 8 that divides M."""
  boxes = arrays[0].shape[0]
  size = max(m for m in range(1, _CHUNK + 1) if boxes % m == 0)
  return tuple(x.reshape((boxes // size, size) + x.shape[1:]) for x in arrays)


def _pool_edges(starts: Array, ends: Array, size: int, bins: int) -> tuple[Array, Array]:
  """The first cell of each bin of RoI pooling and the one after its last, int32 [M, bins] within 0..size."""
  first, last = _half_away(starts)[:, None], _half_away(ends)[:, None]
  step = _divide(jnp.maximum(last - first + 1, 1), bins)
  k = jnp.arange(bins, dtype=step.dtype)
  edges = first + jnp.floor(k * step), first + jnp.ceil((k + 1) * step)
  return tuple(jnp.clip(edge, 0, size).astype(jnp.int32) for edge in edges)


def _half_away(values: Array) -> Array:
  whole = jnp.trunc(values)
  return whole + jnp.where(jnp.abs(values - whole) >= 0.5, jnp.sign(values), 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _largest(width: int, cells: Array, *bins: Array) -> Array:
  """The largest of `cells` [P, C] in each bin and channel, float32 [M, oh, ow, C].

  `width` is that of the map; `bins` are where each box's map starts in `cells` [M], top and bottom [M, oh], left and
  right [M, ow]. Not through autodiff, which cannot reverse a loop whose length depends on the boxes.
  """
  return _largest_forward(width, cells, *bins)[0]


def _largest_forward(width: int, cells: Array, *bins: Array) -> tuple[Array, tuple]:
  def search(group):
    def look(k, state):
      best, place = state
      here, inside = _cell_of_bins(width, k, *group)
      value = cells.at[here].get(mode='promise_in_bounds')
      better = inside[..., None] & (value > best)  # the first of equals stays
      return jnp.where(better, value, best), jnp.where(better, here[..., None], place)

    shape = (group[0].shape[0], group[1].shape[1], group[3].shape[1], cells.shape[1])
    nothing = jnp.full(shape, jnp.finfo(cells.dtype).min, cells.dtype), jnp.full(shape, -1, jnp.int32)
    return jax.lax.fori_loop(0, _cells_of_largest(*group), look, nothing)

  best, place = (x.reshape((-1,) + x.shape[2:]) for x in jax.lax.map(search, _grouped(bins)))
  return at_least_float32(best), (cells[:, :0], place, bins)


def _largest_backward(width: int, kept: tuple, gradient: Array) -> tuple:
  like, place, bins = kept

  def add(total, group):
    *group, place, gradient = group

    def add_cell(k, total):
      here, inside = _cell_of_bins(width, k, *group)
      updates = jnp.where(inside[..., None] & (here[..., None] == place), gradient, 0)
      return total.at[here].add(updates, mode='promise_in_bounds')

    return jax.lax.fori_loop(0, _cells_of_largest(*group), add_cell, total), None

  zeros = jnp.zeros(like.shape[:1] + gradient.shape[-1:], gradient.dtype)
  total, _ = jax.lax.scan(add, zeros, _grouped(bins + (place, gradient)))
  return (total.astype(like.dtype),) + (None,) * len(bins)


_largest.defvjp(_largest_forward, _largest_backward)


def _cells_of_largest(start: Array, top: Array, bottom: Array, left: Array, right: Array) -> Array:
  """How many cells a rectangle has that is as tall and as wide as any bin."""
  return jnp.max(bottom - top, initial=0) * jnp.max(right - left, initial=0)


def _cell_of_bins(width: int, k: Array, start: Array, top: Array, bottom: Array, left: Array,
                  right: Array) -> tuple[Array, Array]:
  """The k-th cell of that rectangle, laid into each bin, and whether the bin reaches so far: both [m, oh, ow]."""
  wide = jnp.maximum(jnp.max(right - left, initial=0), 1)
  rows, columns = top + k // wide, left + k % wide
  inside = (rows < bottom)[:, :, None] & (columns < right)[:, None, :]
  return jnp.where(inside, start[:, None, None] + rows[:, :, None] * width + columns[:, None, :], 0), inside
