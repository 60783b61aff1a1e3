"""From the raw outputs of YOLOv1, v2 and v3 to detections: static shapes, no parameters, no target."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from vision_jax.conventions import Array
from vision_jax.ops.arrays import at_least_float32, pick
from vision_jax.ops.boxes import box_area, clip_boxes
from vision_jax.ops.nms import class_aware_nms
from vision_jax.ops.yolo import check_outputs, flatten_levels, yolo_decode, yolov1_boxes


def yolov3_decode(outputs: tuple[Array, ...], *, anchors: tuple, strides: tuple[int, ...], image_size: Array,
                  score_threshold: float = 0.005, iou_threshold: float = 0.45, max_detections: int = 100,
                  pre_nms: int = 1000) -> dict[str, Array]:
  """The detections in the raw outputs of a YOLOv3 head.

  Every (box, class) pair scores sigmoid(objectness) * sigmoid(class). Those above the threshold, at most `pre_nms` of
  them by score, are cut to the image and go through non-maximum suppression class by class. One box may so be
  detected as two classes, which YOLOv3's independent class probabilities mean.

  Args:
    outputs: for each level [B, h, w, A, 5 + K]: t_x, t_y, t_w, t_h, objectness, K classes, before any activation.
    anchors: for each level its A anchors (w, h), canvas pixels.
    strides: for each level the canvas pixels that one cell covers.
    image_size: [B, 2] or [2], (h, w) of the content at the top left of the canvas, pixels.
    score_threshold: 0..1, pairs that do not exceed it are dropped.
    iou_threshold: 0..1, of the suppression.
    max_detections: M, the slots for one image.
    pre_nms: the most pairs that enter the suppression.

  Returns:
    `boxes` float32 [B, M, 4] xyxy in canvas pixels inside the content, `scores` float32 [B, M] falling, `labels` int32
    [B, M] and `valid` bool [B, M]. Invalid slots come last and hold zeros. A box without area in the content is
    dropped.

  Raises:
    ValueError: levels, anchors, strides and image sizes do not fit together.

  Reference: Redmon and Farhadi, YOLOv3, arXiv 1804.02767, section 2; the thresholds are those with which darknet
  evaluates.

  >>> raw = jnp.full((1, 2, 2, 1, 6), -9.0).at[0, 1, 0, 0].set(jnp.array([0, 0, 0, 0, 9, 9.0]))
  >>> decode = jax.jit(functools.partial(yolov3_decode, anchors=(((6, 4),),), strides=(8,), max_detections=2))
  >>> found = decode((raw,), image_size=(16, 16))
  >>> found['boxes'][0].tolist(), found['valid'].tolist()
  ([[1.0, 10.0, 7.0, 14.0], [0.0, 0.0, 0.0, 0.0]], [[True, False]])
  """
  check_outputs('yolov3_decode', outputs, anchors, strides)
  boxes = flatten_levels(tuple(yolo_decode(output, priors, stride=stride)
                               for output, priors, stride in zip(outputs, anchors, strides, strict=True)))
  raw = at_least_float32(flatten_levels(outputs))
  scores = jax.nn.sigmoid(raw[..., 4:5]) * jax.nn.sigmoid(raw[..., 5:])
  return _suppress_all('yolov3_decode', boxes, scores, image_size, score_threshold=score_threshold,
                       iou_threshold=iou_threshold, max_detections=max_detections, pre_nms=pre_nms)


def yolov1_decode(outputs: Array, *, canvas: tuple[int, int], boxes_per_cell: int = 2, image_size: Array,
                  score_threshold: float = 0.001, iou_threshold: float = 0.5, max_detections: int = 100,
                  best_class: bool = True) -> dict[str, Array]:
  """The detections in the outputs of a YOLOv1.

  Every (box, class) pair scores the confidence of the box times the class probability of its cell. Nothing bounds these
  linear outputs, so a confidence below 0 counts as 0 and a score above 1 is given as 1. Each box keeps its best class;
  those above the threshold are cut to the image and go through non-maximum suppression class by class.

  Args:
    outputs: [B, h, w, 5 P + K], as in `losses.yolov1_loss`.
    canvas: (h, w) of the network's input, pixels.
    boxes_per_cell: P.
    image_size: [B, 2] or [2], (h, w) of the content at the top left of the canvas, pixels.
    score_threshold: 0..1, pairs that do not exceed it are dropped; 0.2 is darknet's for pictures.
    iou_threshold: 0..1, of the suppression.
    max_detections: M, the slots for one image.
    best_class: False lets a box be detected as several classes, as darknet does.

  Returns:
    `boxes` float32 [B, M, 4] xyxy in canvas pixels inside the content, `scores` float32 [B, M] falling, `labels` int32
    [B, M] and `valid` bool [B, M]. Invalid slots come last and hold zeros. A box without area in the content is
    dropped.

  Raises:
    ValueError: outputs and image sizes do not fit together.

  Reference: Redmon et al., You Only Look Once, arXiv 1506.02640, section 2, equation 1; the thresholds are those with
  which darknet evaluates.

  >>> raw = jnp.zeros((1, 2, 2, 5 + 2)).at[0, 1, 0].set(jnp.array([0.5, 0.5, 0.5, 0.5, 0.9, 0.2, 0.8]))
  >>> decode = jax.jit(functools.partial(yolov1_decode, canvas=(16, 16), boxes_per_cell=1, max_detections=2))
  >>> found = decode(raw, image_size=(16, 16))
  >>> found['boxes'][0, 0].tolist(), round(found['scores'][0, 0].item(), 2), found['labels'].tolist()
  ([2.0, 10.0, 6.0, 14.0], 0.72, [[1, 0]])
  """
  outputs, each = at_least_float32(outputs), 5 * boxes_per_cell
  if outputs.ndim != 4 or outputs.shape[3] <= each:
    raise ValueError(f'yolov1_decode: outputs {list(outputs.shape)} with {boxes_per_cell} boxes in a cell; give '
                     f'[B, h, w, {each} + K]')
  raw = outputs[..., :each].reshape(*outputs.shape[:3], boxes_per_cell, 5)
  scores = jnp.maximum(raw[..., 4:], 0) * outputs[..., None, each:]
  boxes, scores = flatten_levels((yolov1_boxes(raw, canvas=canvas),)), flatten_levels((scores,))
  found = _suppress_all('yolov1_decode', boxes, scores, image_size, score_threshold=score_threshold,
                        iou_threshold=iou_threshold, max_detections=max_detections, best_class=best_class,
                        pre_nms=scores.shape[1] * (1 if best_class else scores.shape[2]))
  return found | {'scores': jnp.minimum(found['scores'], 1)}


def yolov2_decode(outputs: Array, *, anchors: tuple, stride: int, image_size: Array, score_threshold: float = 0.005,
                  iou_threshold: float = 0.45, max_detections: int = 100, pre_nms: int = 1000) -> dict[str, Array]:
  """The detections in the raw outputs of a YOLOv2 head.

  Every (box, class) pair scores sigmoid(objectness) * softmax(classes). Those above the threshold, at most `pre_nms` of
  them by score, are cut to the image and go through non-maximum suppression class by class.

  Args:
    outputs: [B, h, w, A, 5 + K]: t_x, t_y, t_w, t_h, objectness, K classes, before any activation.
    anchors: A anchors (w, h), canvas pixels.
    stride: the canvas pixels that one cell covers.
    image_size: [B, 2] or [2], (h, w) of the content at the top left of the canvas, pixels.
    score_threshold: 0..1, pairs that do not exceed it are dropped; 0.5 is darknet's for pictures.
    iou_threshold: 0..1, of the suppression.
    max_detections: M, the slots for one image.
    pre_nms: the most pairs that enter the suppression.

  Returns:
    `boxes` float32 [B, M, 4] xyxy in canvas pixels inside the content, `scores` float32 [B, M] falling, `labels` int32
    [B, M] and `valid` bool [B, M]. Invalid slots come last and hold zeros. A box without area in the content is
    dropped.

  Raises:
    ValueError: outputs, anchors and image sizes do not fit together.

  Reference: Redmon and Farhadi, YOLO9000, arXiv 1612.08242, section 2; the thresholds are those with which darknet
  evaluates.

  >>> raw = jnp.full((1, 2, 2, 1, 7), -9.0).at[0, 1, 0, 0].set(jnp.array([0, 0, 0, 0, 9, 0, 9.0]))
  >>> decode = jax.jit(functools.partial(yolov2_decode, anchors=((6, 4),), stride=8, max_detections=2))
  >>> found = decode(raw, image_size=(16, 16))
  >>> found['boxes'][0, 0].tolist(), found['labels'].tolist(), found['valid'].tolist()
  ([1.0, 10.0, 7.0, 14.0], [[1, 0]], [[True, False]])
  """
  check_outputs('yolov2_decode', (outputs,), (anchors,), (stride,))
  boxes = flatten_levels((yolo_decode(outputs, anchors, stride=stride),))
  raw = at_least_float32(flatten_levels((outputs,)))
  scores = jax.nn.sigmoid(raw[..., 4:5]) * jax.nn.softmax(raw[..., 5:])
  return _suppress_all('yolov2_decode', boxes, scores, image_size, score_threshold=score_threshold,
                       iou_threshold=iou_threshold, max_detections=max_detections, pre_nms=pre_nms)


def _suppress_all(where: str, boxes: Array, scores: Array, image_size: Array, **options) -> dict[str, Array]:
  """`_suppress` for every image, from boxes [B, S, 4] that are cut to the images, and scores [B, S, K]."""
  image_size, images = jnp.asarray(image_size), boxes.shape[0]
  if image_size.shape not in ((2,), (images, 2)):
    raise ValueError(f'{where}: image_size {list(image_size.shape)} for {images} images; give (h, w) for all, or '
                     '[B, 2]')
  return jax.vmap(functools.partial(_suppress, **options))(clip_boxes(boxes, image_size), scores)


def _suppress(boxes: Array, scores: Array, *, score_threshold: float, iou_threshold: float, max_detections: int,
              pre_nms: int, best_class: bool = False) -> dict[str, Array]:
  """Detections of one image from boxes [S, 4] and scores [S, K]; `best_class` leaves each box no other."""
  classes = scores.shape[-1]
  wanted = (scores > score_threshold) & (box_area(boxes) > 0)[:, None]
  if best_class:
    wanted &= jnp.arange(classes) == jnp.argmax(scores, axis=-1)[:, None]
  best, pairs = jax.lax.top_k(jnp.where(wanted, scores, -jnp.inf).ravel(), min(pre_nms, scores.size))
  boxes, labels = boxes[pairs // classes], (pairs % classes).astype(jnp.int32)
  kept, valid = class_aware_nms(boxes, best, labels, iou_threshold=iou_threshold, max_outputs=max_detections,
                                valid=best > -jnp.inf)
  found = {'boxes': boxes[kept], 'scores': best[kept], 'labels': labels[kept]}
  return {name: pick(valid, values, 0) for name, values in found.items()} | {'valid': valid}
