"""YOLOv1's assignment of objects to boxes, and its loss: squared errors throughout.

Units: canvas pixels; canvases and grids are (h, w). A slot is one of the P boxes of a cell: slot
`((row * w) + column) * P + box`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vision_jax.conventions import Array, Term
from vision_jax.losses.targets import Roles, check_axes, real_targets, roles_of
from vision_jax.losses.yolo_targets import YoloAssignment, winners
from vision_jax.ops.arrays import as_valid, at_least_float32, check_choice, pick
from vision_jax.ops.boxes import box_area, iou, xyxy_to_cxcywh
from vision_jax.ops.yolo import grid_cells, yolov1_boxes

# lambda_coord = 5 and lambda_noobj = 0.5 of the paper's equation 3: each is counted here and nowhere else.
YOLOV1_WEIGHTS = {'loss_box': 5.0, 'loss_objectness': 1.0, 'loss_no_object': 0.5, 'loss_class': 1.0}


def yolov1_assign(predicted: Array, boxes: Array, *, canvas: tuple[int, int],
                  valid: Array | None = None) -> YoloAssignment:
  """Gives every object of one image the box that predicts it best, among those of the cell that holds its centre.

  Best is the largest IoU, or, where none of the cell's boxes touches the object, the least squared distance of
  (x, y, w, h) as shares of the canvas; the first of equals. A cell has one object at most: of several the largest, and
  the first of equals, so that the order of the boxes does not matter but for exact ties. The others are not learned in
  this image. A centre outside the canvas counts to the nearest cell.

  Args:
    predicted: [h, w, P, 4] xyxy, canvas pixels: the decoded boxes of each cell (`yolov1_boxes`).
    boxes: [N, 4] xyxy, canvas pixels.
    canvas: (h, w) of the network's input.
    valid: bool [N], True for real boxes; all when left out. A box without width or height takes no cell.

  Returns:
    `YoloAssignment` over the S = h * w * P slots; its `collisions` are the objects whose cell went to another.

  Raises:
    ValueError: predicted is not [h, w, P, 4], boxes are not [N, 4], or valid not [N].

  Reference: Redmon et al., You Only Look Once, arXiv 1506.02640, section 2.2; the distance is darknet's.
  Differs from darknet: of two objects in a cell it takes a random one.

  >>> predicted = jnp.zeros((2, 2, 2, 4)).at[1, 0].set(jnp.array([[0, 8, 4, 12], [0, 8, 7, 14.0]]))
  >>> found = jax.jit(functools.partial(yolov1_assign, canvas=(16, 16)))(predicted, jnp.array([[1, 9, 7, 15.0]]))
  >>> found.slots.tolist(), found.positive.tolist()
  ([5], [False, False, False, False, False, True, False, False])
  """
  predicted, boxes = (jax.lax.stop_gradient(at_least_float32(x)) for x in (predicted, boxes))
  check_axes('yolov1_assign', predicted=(predicted, 'h w P 4'), boxes=(boxes, 'N 4'))
  h, w, each, _ = predicted.shape
  real = as_valid('yolov1_assign', 'valid', valid, boxes.shape[:1]) & (box_area(boxes) > 0)
  boxes = pick(real, boxes, 0)
  cell = _cell_of(boxes, (h, w), canvas)

  rivals = predicted.reshape(h * w, each, 4)[cell]
  overlap = iou(rivals, boxes[:, None])
  error = (xyxy_to_cxcywh(rivals) - xyxy_to_cxcywh(boxes)[:, None]) / jnp.asarray(canvas[::-1] * 2, boxes.dtype)
  best = jnp.where(jnp.any(overlap > 0, axis=-1), jnp.argmax(overlap, axis=-1),
                   jnp.argmin(jnp.sum(error**2, axis=-1), axis=-1))
  slots = cell * each + best

  count, total = boxes.shape[0], h * w * each
  owns = real & (winners(cell[:, None], box_area(boxes)[:, None], real[:, None], h * w)[cell] == jnp.arange(count))
  owner = jnp.full(total, count).at[jnp.where(owns, slots, total)].set(jnp.arange(count), mode='drop')
  positive = owner < count
  return YoloAssignment(positive, jnp.where(positive, owner, 0).astype(jnp.int32), slots.astype(jnp.int32),
                        jnp.sum(real & ~owns, dtype=jnp.int32))


def yolov1_loss(outputs: Array, boxes: Array, labels: Array, *, canvas: tuple[int, int], boxes_per_cell: int = 2,
                objectness_target: str = 'iou', boxes_valid: Array | None = None,
                valid: Array | None = None) -> dict[str, Term]:
  """YOLOv1's loss: squared errors of box, confidence and class probabilities.

  An object is learned by the box of its cell that predicts it best (`yolov1_assign`), its class by the cell. Every
  other box should be confident of nothing. Assignment and targets carry no gradient.

  Args:
    outputs: [B, h, w, 5 P + K], linear: for each of the P boxes of a cell x and y (0..1, the centre's place in the
      cell), the square roots of w and h (as shares of the canvas) and the confidence; then K class probabilities.
    boxes: [B, N, 4] xyxy, canvas pixels.
    labels: int [B, N], 0..K-1.
    canvas: (h, w) of the network's input.
    boxes_per_cell: P; 2 in the paper, 3 in darknet's `yolov1.cfg`.
    objectness_target: the confidence that the box of an object should have: 'iou', its IoU with the object; or
      'binary', 1.
    boxes_valid: bool [B, N], True for real boxes; all when left out.
    valid: bool [B], False for padding of the batch; all True when left out.

  Returns:
    `loss_box`, the sum over the boxes with an object of the squared errors of x, y, sqrt(w) and sqrt(h);
    `loss_objectness`, that of their confidence; `loss_no_object`, the sum of the other boxes' squared confidence;
    `loss_class`, the sum over the cells with an object of the K squared errors. All have the same count, the valid
    images. The paper's lambdas are not in them but in `YOLOV1_WEIGHTS`.

  Raises:
    ValueError: an unknown option, or outputs, boxes and labels that do not fit together.

  Reference: Redmon et al., You Only Look Once, arXiv 1506.02640, section 2.2, equation 3.
  Differs from the paper: the network gives sqrt(w) and sqrt(h), as in darknet, and not w and h, at whose 0 the gradient
  would be infinite.
  Differs from darknet: its gradient is that of half this loss; collisions are resolved otherwise (`yolov1_assign`).

  >>> raw = jnp.zeros((1, 2, 2, 2 * 5 + 3)).at[0, 1, 0].set(jnp.array([.5, .5, .5, .5, 1] + [0] * 8))
  >>> loss = jax.jit(functools.partial(yolov1_loss, canvas=(16, 16)))
  >>> terms = loss(raw, jnp.array([[[2.0, 10, 6, 14]]]), jnp.array([[2]]))
  >>> {name: float(term.total) for name, term in terms.items()}
  {'loss_box': 0.0, 'loss_class': 1.0, 'loss_no_object': 0.0, 'loss_objectness': 0.0}
  >>> sum(YOLOV1_WEIGHTS[k] * t.total / jnp.maximum(t.count, t.floor) for k, t in terms.items()).item()
  1.0
  """
  check_choice('yolov1_loss', 'objectness_target', objectness_target, ('iou', 'binary'))
  raw, classes, predicted, found, boxes, labels, valid = _assigned(
      outputs, boxes, labels, canvas, boxes_per_cell, boxes_valid, valid)
  slots = raw.shape[:4]
  positive = found.positive.reshape(slots)
  # A slot without object is compared with box 0: a finite number, which is then selected away.
  target = jnp.take_along_axis(boxes, found.owner[..., None], axis=1).reshape(*slots, 4)
  label = jnp.take_along_axis(labels, found.owner, axis=1).reshape(slots)

  goal = iou(predicted, target) if objectness_target == 'iou' else 1
  truth = jax.nn.one_hot(label, classes.shape[-1], dtype=raw.dtype)
  sums = {
      'loss_box': jnp.where(positive, jnp.sum((raw[..., :4] - _encode(target, canvas)) ** 2, axis=-1), 0),
      'loss_objectness': jnp.where(positive, (raw[..., 4] - goal) ** 2, 0),
      'loss_no_object': jnp.where(positive, 0, raw[..., 4] ** 2),
      # Counted in the slots: a cell has one with an object, or none.
      'loss_class': jnp.where(positive, jnp.sum((classes - truth) ** 2, axis=-1), 0),
  }
  images = jnp.sum(valid, dtype=raw.dtype)
  return {name: Term(jnp.sum(values), images) for name, values in sums.items()}


class _Assigned(NamedTuple):
  """Outputs [B, h, w, P, 5] and [B, h, w, 1, K], the boxes in them [B, h, w, P, 4], whose they are, and the objects."""

  raw: Array
  classes: Array
  predicted: Array
  found: YoloAssignment
  boxes: Array
  labels: Array
  valid: Array


def _assigned(outputs: Array, boxes: Array, labels: Array, canvas: tuple[int, int], boxes_per_cell: int,
              boxes_valid: Array | None, valid: Array | None) -> _Assigned:
  """The arguments of `yolov1_loss`, checked and emptied of what is not real, and its assignment."""
  outputs = at_least_float32(outputs)
  if outputs.ndim != 4 or outputs.shape[3] <= 5 * boxes_per_cell:
    raise ValueError(f'yolov1_loss: outputs {list(outputs.shape)} with {boxes_per_cell} boxes in a cell; '
                     f'give [B, h, w, {5 * boxes_per_cell} + K]')
  check_axes('yolov1_loss', outputs=(outputs, 'B h w 5P+K'), boxes=(boxes, 'B N 4'), labels=(labels, 'B N'))
  boxes, labels, real, valid = real_targets('yolov1_loss', boxes, labels, boxes_valid, valid)
  # Emptied before any arithmetic: a NaN that is only selected away at the end comes back in the gradient.
  outputs = pick(valid, outputs, 0)
  slots = outputs.shape[:3] + (boxes_per_cell,)
  raw, classes = outputs[..., :5 * boxes_per_cell].reshape(*slots, 5), outputs[..., None, 5 * boxes_per_cell:]
  predicted = jax.lax.stop_gradient(yolov1_boxes(raw, canvas=canvas))
  found = jax.vmap(functools.partial(yolov1_assign, canvas=canvas))(predicted, boxes, valid=real)
  return _Assigned(raw, classes, predicted, found, boxes, labels, valid)


def roles(outputs: Array, boxes: Array, labels: Array, *, canvas: tuple[int, int], boxes_per_cell: int,
          boxes_valid: Array | None = None, valid: Array | None = None) -> Roles:
  """What each slot is for in `yolov1_loss`, whose arguments these are; the boxes are the predicted ones."""
  _, _, predicted, found, _, _, valid = _assigned(outputs, boxes, labels, canvas, boxes_per_cell, boxes_valid, valid)
  return roles_of(predicted.reshape(*found.positive.shape, 4), found.positive, found.owner, valid,
                  collisions=found.collisions)


def _cell_of(boxes: Array, grid: tuple[int, int], canvas: tuple[int, int]) -> Array:
  """The number of the cell that holds the centre of each box, [N]."""
  (h, w), (height, width) = grid, canvas
  centre = (boxes[:, :2] + boxes[:, 2:]) / 2
  cell = jnp.clip(jnp.floor(centre / jnp.asarray([width / w, height / h], boxes.dtype)), 0, jnp.asarray([w - 1, h - 1]))
  return (cell[:, 1] * w + cell[:, 0]).astype(jnp.int32)


def _encode(boxes: Array, canvas: tuple[int, int]) -> Array:
  """(x, y, sqrt(w), sqrt(h)) that each slot [..., h, w, P] should give for its box."""
  h, w = boxes.shape[-4:-2]
  size = jnp.asarray(canvas[::-1], boxes.dtype)
  share = xyxy_to_cxcywh(boxes) / jnp.tile(size, 2)
  offset = share[..., :2] * jnp.asarray([w, h]) - grid_cells(h, w)
  return jnp.concatenate([jnp.clip(offset, 0, 1), jnp.sqrt(jnp.maximum(share[..., 2:], 0))], axis=-1)
