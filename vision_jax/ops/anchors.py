"""Anchors: the boxes that detectors start from, laid on grids, and anchors fitted to the boxes of a data set.

Units: canvas pixels; canvases, grids and strides are (h, w), sizes and YOLO's anchors are (w, h), and boxes are xyxy.
All grids run level by level, row, column, anchor, which is torchvision's order and that of its published weights.
"""

from __future__ import annotations

from collections.abc import Mapping
import math
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.conventions import Array
from vision_jax.ops.arrays import FAR, at_least_float32, pick
from vision_jax.ops.boxes import pairwise_iou

# Sides of boxes up to this count as nothing.
_NO_SIDE = 1e-6

# Faster R-CNN with a feature pyramid, one size a level (Lin et al., arXiv 1612.03144, section 4.1).
RPN_SIZES = ((32,), (64,), (128,), (256,), (512,))
# RetinaNet: 2^0, 2^(1/3) and 2^(2/3) times 32 ... 512 (Lin et al., arXiv 1708.02002, section 4), cut to whole pixels as
# in torchvision's published weights.
RETINANET_SIZES = tuple(tuple(int(size * 2 ** (third / 3)) for third in range(3)) for size in (32, 64, 128, 256, 512))
# FCOS has no anchors; torchvision gives each point a box as large as its level's stride, and measures in it.
FCOS_SIZES = ((8,), (16,), (32,), (64,), (128,))
RATIOS = (0.5, 1.0, 2.0)


def _in_pixels(cells: tuple, *, stride: int = 32) -> tuple:
  return tuple((w * stride, h * stride) for w, h in cells)


# YOLOv2's anchors as in the authors' yolov2.cfg (COCO) and yolov2-voc.cfg, there in cells of 32 pixels.
YOLOV2_COCO_ANCHORS = _in_pixels(((0.57273, 0.677385), (1.87446, 2.06253), (3.33843, 5.47434), (7.88282, 3.52778),
                                  (9.77052, 9.16828)))
YOLOV2_VOC_ANCHORS = _in_pixels(((1.3221, 1.73145), (3.19275, 4.00944), (5.05587, 8.09892), (9.47112, 4.84053),
                                 (11.2364, 10.0071)))
# YOLOv3's anchors as in the authors' yolov3.cfg, fitted to COCO at 416 x 416 (Redmon and Farhadi, arXiv 1804.02767,
# section 2.3): strides 8, 16 and 32.
YOLOV3_ANCHORS = (((10, 13), (16, 30), (33, 23)), ((30, 61), (62, 45), (59, 119)), ((116, 90), (156, 198), (373, 326)))
# YOLOv3-tiny's as in the authors' yolov3-tiny.cfg: masks 0,1,2 for stride 16 and 3,4,5 for stride 32 (some copies of
# that file have 1,2,3 for stride 16).
YOLOV3_TINY_ANCHORS = (((10, 14), (23, 27), (37, 58)), ((81, 82), (135, 169), (344, 319)))

# SSD's default boxes (Liu et al., arXiv 1512.02325, section 2.2 and the authors' code): arguments of
# `ssd_default_boxes`. A level's scale is a share of the canvas; the last one only serves the extra square before it.
SSD300: Mapping[str, Any] = types.MappingProxyType({
    'canvas': (300, 300), 'grids': ((38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1)),
    'strides': (8, 16, 32, 64, 100, 300), 'scales': (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
    'ratios': ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))})
SSD512: Mapping[str, Any] = types.MappingProxyType({
    'canvas': (512, 512), 'grids': ((64, 64), (32, 32), (16, 16), (8, 8), (4, 4), (2, 2), (1, 1)),
    'strides': (8, 16, 32, 64, 128, 256, 512), 'scales': (0.07, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05),
    'ratios': ((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,))})


def base_anchors(*, sizes: tuple[float, ...], ratios: tuple[float, ...], rounded: bool = False) -> Array:
  """The anchors of one cell, around the origin.

  Args:
    sizes: the square roots of the anchors' areas, pixels.
    ratios: height over width.
    rounded: round the corners to whole pixels, halves to even, as torchvision does.

  Returns:
    float32 [A, 4] xyxy with A = ratios x sizes, the sizes of the first ratio first.

  >>> base_anchors(sizes=(8, 16), ratios=(0.25, 1)).tolist()[:2]
  [[-8.0, -2.0, 8.0, 2.0], [-16.0, -4.0, 16.0, 4.0]]
  """
  return jnp.asarray(_base_anchors(sizes, ratios, rounded))


def pyramid_anchors(*, canvas: tuple[int, int], grids: tuple, sizes: tuple, ratios: tuple[float, ...] = RATIOS,
                    rounded: bool = True) -> Array:
  """The same anchors in every cell of a level, for all levels of a feature pyramid.

  Args:
    canvas: (h, w) of the network's input.
    grids: for each level (h, w) of its feature map, fine to coarse.
    sizes: for each level a tuple of the square roots of its anchors' areas, pixels.
    ratios: height over width, the same in all levels.
    rounded: round the corners around the origin to whole pixels, as torchvision does.

  Returns:
    float32 [S, 4] xyxy in canvas pixels, S = sum over the levels of h * w * A. The first cell's anchors stand around
    the canvas's corner (0, 0), and the cells canvas // grid pixels apart, as torchvision has it. Not clipped.

  Raises:
    ValueError: grids and sizes differ in number.

  >>> pyramid_anchors(canvas=(64, 96), grids=((2, 3),), sizes=((8,),), ratios=(1,))[4].tolist()
  [28.0, 28.0, 36.0, 36.0]
  """
  return _pyramid('pyramid_anchors', canvas, grids, sizes, ratios, rounded)


def rpn_anchors(*, canvas: tuple[int, int], grids: tuple, sizes: tuple = RPN_SIZES,
                ratios: tuple[float, ...] = RATIOS) -> Array:
  """The anchors of a region proposal network on a feature pyramid (Faster and Mask R-CNN).

  Args:
    canvas: (h, w) of the network's input.
    grids: for each level (h, w) of its feature map, fine to coarse: P2 to P6 for the sizes given here.
    sizes: for each level a tuple of the square roots of its anchors' areas, pixels.
    ratios: height over width.

  Returns:
    float32 [S, 4] xyxy in canvas pixels, S = sum of h * w * sizes * ratios, as `pyramid_anchors` orders them.

  Raises:
    ValueError: grids and sizes differ in number.

  Reference: Lin et al., Feature Pyramid Networks, arXiv 1612.03144, section 4.1.
  Differs from the paper: corners are rounded to whole pixels around the origin, as in torchvision.

  >>> grids = ((16, 16), (8, 8), (4, 4), (2, 2), (1, 1))
  >>> rpn_anchors(canvas=(64, 64), grids=grids)[1].tolist()
  [-16.0, -16.0, 16.0, 16.0]
  """
  return _pyramid('rpn_anchors', canvas, grids, sizes, ratios, True)


def retinanet_anchors(*, canvas: tuple[int, int], grids: tuple, sizes: tuple = RETINANET_SIZES,
                      ratios: tuple[float, ...] = RATIOS) -> Array:
  """RetinaNet's nine anchors a cell.

  Args:
    canvas: (h, w) of the network's input.
    grids: for each level (h, w) of its feature map, fine to coarse: P3 to P7 for the sizes given here.
    sizes: for each level a tuple of the square roots of its anchors' areas, pixels.
    ratios: height over width.

  Returns:
    float32 [S, 4] xyxy in canvas pixels, S = sum of h * w * sizes * ratios, as `pyramid_anchors` orders them.

  Raises:
    ValueError: grids and sizes differ in number.

  Reference: Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, section 4.
  Differs from the paper: sizes are cut and corners rounded to whole pixels, as in torchvision.

  >>> retinanet_anchors(canvas=(128, 128), grids=((16, 16), (8, 8), (4, 4), (2, 2), (1, 1))).shape
  (3069, 4)
  """
  return _pyramid('retinanet_anchors', canvas, grids, sizes, ratios, True)


def fcos_anchors(*, canvas: tuple[int, int], grids: tuple) -> Array:
  """FCOS's points, each as a square whose side is the stride of its level.

  Args:
    canvas: (h, w) of the network's input.
    grids: for each level (h, w) of its feature map: P3 to P7, strides 8 to 128.

  Returns:
    float32 [S, 4] xyxy in canvas pixels, S = sum of h * w; the point is the square's centre.

  Raises:
    ValueError: there are not five grids.

  Reference: Tian et al., FCOS, arXiv 1904.01355, section 3.1.
  Differs from the paper: points lie on multiples of the stride, as in torchvision, not in the middle of the cells.

  >>> fcos_anchors(canvas=(128, 128), grids=((16, 16), (8, 8), (4, 4), (2, 2), (1, 1)))[1].tolist()
  [4.0, -4.0, 12.0, 4.0]
  """
  return _pyramid('fcos_anchors', canvas, grids, FCOS_SIZES, (1.0,), True)


def ssd_default_boxes(*, canvas: tuple[int, int], grids: tuple, strides: tuple | None = None,
                      scales: tuple[float, ...], ratios: tuple, clip: bool = True, square: bool = False) -> Array:
  """SSD's default boxes: in each cell two squares, and for each ratio a wide box and a tall one.

  Args:
    canvas: (h, w) of the network's input.
    grids: for each level (h, w) of its feature map.
    strides: for each level the pixels from one cell's centre to the next; the first centre lies half a stride inside.
      When left out, canvas / grid for each axis, as in SSDLite.
    scales: for each level the side of its square as a share of the canvas, and one more for the second square of the
      last level: the second is the geometric mean of a level's scale and the next.
    ratios: for each level the long side over the short one of its other boxes.
    clip: cut widths and heights to the canvas's; centres stay, so boxes still reach over the border.
    square: on a canvas that is not square, shares are of its shorter side, so that squares are squares in pixels; when
      False widths are shares of its width and heights of its height, as in torchvision.

  Returns:
    float32 [S, 4] xyxy in canvas pixels, S = sum of h * w * (2 + 2 * ratios): 8,732 with `SSD300` and 24,564 with
    `SSD512`. In a cell: square, larger square, then wide and tall for each ratio.

  Raises:
    ValueError: grids, strides, ratios and scales do not fit together.

  Reference: Liu et al., SSD, arXiv 1512.02325, section 2.2.
  Differs from the paper: centres by strides and scales by hand, as in the authors' code; widths and heights cut and
  ordered as in torchvision.

  >>> ssd_default_boxes(**SSD300).shape
  (8732, 4)
  """
  given = tuple((canvas[0] / h, canvas[1] / w) for h, w in grids) if strides is None else strides
  strides = tuple(stride if isinstance(stride, tuple) else (stride, stride) for stride in given)
  counts = len(grids), len(strides), len(ratios), len(scales) - 1
  if len(set(counts)) != 1:
    raise ValueError(f'ssd_default_boxes: {counts[0]} grids, {counts[1]} strides, {counts[2]} ratios, {len(scales)} '
                     'scales; give as many of each, and one scale more')
  size = np.array((canvas[1], canvas[0]))
  levels = []
  for level, ((h, w), (down, across)) in enumerate(zip(grids, strides, strict=True)):
    centres = _lattice((np.arange(h) + 0.5) * down, (np.arange(w) + 0.5) * across)
    sides = _ssd_shapes(scales[level], scales[level + 1], ratios[level]) * (min(canvas) if square else size)
    half = (np.minimum(sides, size) if clip else sides) / 2
    levels.append((centres[:, None] + np.concatenate([-half, half], axis=1).astype(np.float32)).reshape(-1, 4))
  return jnp.asarray(np.concatenate(levels))


class KmeansAnchors(NamedTuple):
  """Anchors fitted to the boxes of a data set, and how well they cover them.

  Args:
    anchors: float32 [K, 2], (w, h) in the unit of the boxes, ordered by area.
    average_iou: scalar 0..1, the mean over the boxes of the IoU with the best anchor, centres together.
    best_possible_recall: scalar 0..1, the share of the boxes that their best anchor can reach.

  >>> KmeansAnchors(jnp.ones((5, 2)), jnp.float32(0.6), jnp.float32(0.98)).anchors.shape
  (5, 2)
  """

  anchors: Array
  average_iou: Array
  best_possible_recall: Array


def kmeans_anchors(key: Array, sizes: Array, *, count: int, max_iterations: int = 300, max_ratio: float = 4.0,
                   valid: Array | None = None) -> KmeansAnchors:
  """Anchors for the boxes of a data set: clusters of (w, h) under the distance 1 - IoU.

  They start as boxes drawn far from each other (k-means++: each with a chance in proportion to the square of its
  distance to those drawn before). Then each anchor moves to the median width and the median height of the boxes that it
  fits best, until nothing moves. An anchor that fits no box best moves to the box that is served worst; several take
  the worst, the second worst, and so on. The anchors of the iteration with the highest average IoU come back. The same
  key gives the same anchors; for several starts, `jax.vmap` over keys and keep the highest average IoU.

  Args:
    key: a random key.
    sizes: [N, 2], (w, h) of the boxes, any one unit above a millionth; a box that is not positive on both sides is
      left out.
    count: K, the number of anchors, 1 or more.
    max_iterations: at most so many moves.
    max_ratio: a box is within reach of its best anchor (by IoU) when neither side is more than this many times the
      anchor's, nor less than one in this many.
    valid: bool [N], True for real boxes; all when left out. What the others hold does not matter.

  Returns:
    `KmeansAnchors`; all zeros without any box. Anchors repeat where there are fewer different boxes than anchors.
    Gradients do not pass.

  Raises:
    ValueError: sizes are not [N, 2] or valid not [N], or count is below 1.

  Reference: Redmon and Farhadi, YOLO9000, arXiv 1612.08242, section 2 (dimension clusters); best possible recall as in
  Tian et al., FCOS, arXiv 1904.01355, section 4.1.1, for a matching by ratios.
  Differs from the paper: it names neither start nor update. The median gives a higher average IoU than the mean, which
  does not go with this distance: by 0.01 to 0.03 on log-normal sizes.

  >>> sizes = jnp.array([[10, 10], [11, 9], [9, 11], [50, 80.0]])
  >>> found = jax.jit(lambda key: kmeans_anchors(key, sizes, count=2))(jax.random.key(0))
  >>> found.anchors.tolist(), found.best_possible_recall.item()
  ([[10.0, 10.0], [50.0, 80.0]], 1.0)
  """
  sizes = jax.lax.stop_gradient(jnp.clip(at_least_float32(sizes), -FAR, FAR))
  usable = jnp.ones(sizes.shape[:1], bool) if valid is None else jnp.asarray(valid)
  if sizes.ndim != 2 or sizes.shape[-1] != 2 or usable.shape != sizes.shape[:1] or count < 1:
    raise ValueError(f'kmeans_anchors: sizes {list(sizes.shape)}, valid {list(usable.shape)}, count {count}; give '
                     '[N, 2], [N] and at least 1')
  if sizes.shape[0] == 0:
    return KmeansAnchors(jnp.zeros((count, 2), sizes.dtype), *jnp.zeros((2,), sizes.dtype))
  usable = usable & (sizes > _NO_SIDE).all(axis=-1)
  sizes = pick(usable, sizes, 1)
  anchors = _cluster(sizes, usable, _far_apart(key, sizes, usable, count), max_iterations)
  anchors = anchors[jnp.argsort(anchors[:, 0] * anchors[:, 1])]
  overlap = _shape_iou(sizes, anchors)
  ratio = sizes / anchors[jnp.argmax(overlap, axis=1)]
  reached = (jnp.maximum(ratio, 1 / ratio) <= max_ratio).all(axis=-1)
  return KmeansAnchors(jnp.where(usable.any(), anchors, 0), _mean(jnp.max(overlap, axis=1), usable),
                       _mean(reached.astype(sizes.dtype), usable))


def _pyramid(where: str, canvas: tuple[int, int], grids: tuple, sizes: tuple, ratios: tuple[float, ...],
             rounded: bool) -> Array:
  if len(grids) != len(sizes):
    raise ValueError(f'{where}: {len(grids)} grids for {len(sizes)} levels of sizes; give one to each level')
  levels = []
  for (h, w), level_sizes in zip(grids, sizes, strict=True):
    corners = _lattice(np.arange(h) * (canvas[0] // h), np.arange(w) * (canvas[1] // w))
    anchors = corners[:, None] + _base_anchors(level_sizes, ratios, rounded)
    levels.append(anchors.reshape(-1, 4))
  return jnp.asarray(np.concatenate(levels))


def _base_anchors(sizes: tuple[float, ...], ratios: tuple[float, ...], rounded: bool) -> np.ndarray:
  # By NumPy, as all small tables here: the same bits on every device, under jit and without it.
  high = np.sqrt(np.asarray(ratios, np.float32))
  sides = np.stack([1 / high, high], axis=-1)[:, None] * np.asarray(sizes, np.float32)[:, None]
  half = sides.reshape(-1, 2) / 2
  half = np.round(half) if rounded else half
  return np.concatenate([-half, half], axis=1)


def _lattice(ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
  """(x, y, x, y) of every point, row by row: float32 [h * w, 4]."""
  y, x = np.meshgrid(np.asarray(ys, np.float32), np.asarray(xs, np.float32), indexing='ij')
  return np.stack([x, y, x, y], axis=-1).reshape(-1, 4)


def _ssd_shapes(scale: float, next_scale: float, ratios: tuple[float, ...]) -> np.ndarray:
  """(w, h) of a level's default boxes as shares of the canvas."""
  larger = math.sqrt(scale * next_scale)
  shapes = [(scale, scale), (larger, larger)]
  for ratio in ratios:
    long, short = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
    shapes += [(long, short), (short, long)]
  return np.asarray(shapes)


def _shape_iou(sizes: Array, anchors: Array) -> Array:
  """IoU [N, K] of boxes and anchors whose corners are laid together, which is that with their centres together."""
  return pairwise_iou(*(jnp.pad(shapes, ((0, 0), (2, 0))) for shapes in (sizes, anchors)))


def _mean(values: Array, usable: Array) -> Array:
  return jnp.sum(jnp.where(usable, values, 0)) / jnp.maximum(jnp.sum(usable), 1)


def _far_apart(key: Array, sizes: Array, usable: Array, count: int) -> Array:
  """k-means++: `count` of the sizes, each drawn with a chance that grows with its distance to those drawn before."""

  def draw(nearest, key):
    # Fewer different boxes than anchors: when all distances are 0, any box will do.
    distance = jnp.where((usable & (nearest > 0)).any(), nearest, 1)
    log_chance = 2 * jnp.log(jnp.where(usable, distance, 0))
    drawn = sizes[jax.random.categorical(key, log_chance)]
    return jnp.minimum(nearest, 1 - _shape_iou(sizes, drawn[None])[:, 0]), drawn

  return jax.lax.scan(draw, jnp.ones_like(sizes[:, 0]), jax.random.split(key, count))[1]


def _cluster(sizes: Array, usable: Array, anchors: Array, max_iterations: int) -> Array:
  """The best anchors, by average IoU, on the way from these to where nothing moves."""
  order = jnp.argsort(sizes, axis=0)
  counted = jnp.sum(usable)

  def moving(state):
    step, anchors, before, _, _ = state
    return (step < max_iterations) & (anchors != before).any()

  def move(state):
    step, anchors, _, best, best_iou = state
    overlap = _shape_iou(sizes, anchors)
    own = jnp.where(usable, jnp.argmax(overlap, axis=1), -1)
    fit = jnp.where(usable, jnp.max(overlap, axis=1), jnp.inf)
    average_iou = _mean(fit, usable)
    best = jnp.where(average_iou > best_iou, anchors, best)
    members = own[:, None] == jnp.arange(anchors.shape[0])
    empty = ~members.any(axis=0)
    worst_served = sizes[jnp.argsort(fit)[jnp.clip(jnp.cumsum(empty) - 1, 0, counted - 1)]]
    moved = jnp.where(empty[:, None], worst_served, _medians(sizes, order, members))
    return step + 1, moved, anchors, best, jnp.maximum(average_iou, best_iou)

  start = 0, anchors, jnp.full_like(anchors, -1), anchors, jnp.zeros((), anchors.dtype)
  return jax.lax.while_loop(moving, move, start)[3]


def _medians(sizes: Array, order: Array, members: Array) -> Array:
  """The median of each column of sizes [N, 2] over the members [N, K] of each cluster: [K, 2]."""
  columns = []
  for axis in range(2):
    seen = jnp.cumsum(members[order[:, axis]], axis=0)  # in the order of sizes: one sort serves all iterations
    lower, upper = jnp.argmax(seen >= (seen[-1] + 1) // 2, axis=0), jnp.argmax(seen >= seen[-1] // 2 + 1, axis=0)
    ranked = sizes[order[:, axis], axis]
    columns.append((ranked[lower] + ranked[upper]) / 2)
  return jnp.stack(columns, axis=-1)
