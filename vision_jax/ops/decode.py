"""From a detector's raw outputs to detections: static shapes, no parameters, no target."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from vision_jax.conventions import Array
from vision_jax.ops.arrays import at_least_float32, pick
from vision_jax.ops.boxes import box_area, clip_boxes
from vision_jax.ops.nms import class_aware_nms
from vision_jax.ops.yolo import check_outputs, flatten_levels, yolo_decode


def yolov3_decode(outputs: tuple[Array, ...], *, anchors: tuple, strides: tuple[int, ...], image_size: Array,
                  score_threshold: float = 0.01, iou_threshold: float = 0.45, max_detections: int = 100,
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

  Reference: Redmon and Farhadi, YOLOv3, arXiv 1804.02767, section 2; 0.45 is darknet's threshold for suppression.

  >>> raw = jnp.full((1, 2, 2, 1, 6), -9.0).at[0, 1, 0, 0].set(jnp.array([0, 0, 0, 0, 9, 9.0]))
  >>> decode = jax.jit(functools.partial(yolov3_decode, anchors=(((6, 4),),), strides=(8,), max_detections=2))
  >>> found = decode((raw,), image_size=(16, 16))
  >>> found['boxes'][0].tolist(), found['valid'].tolist()
  ([[1.0, 10.0, 7.0, 14.0], [0.0, 0.0, 0.0, 0.0]], [[True, False]])
  """
  check_outputs('yolov3_decode', outputs, anchors, strides)
  image_size, images = jnp.asarray(image_size), outputs[0].shape[0]
  if image_size.shape not in ((2,), (images, 2)):
    raise ValueError(f'yolov3_decode: image_size {list(image_size.shape)} for {images} images; give (h, w) for all, or '
                     '[B, 2]')
  boxes = flatten_levels(tuple(yolo_decode(output, priors, stride=stride)
                               for output, priors, stride in zip(outputs, anchors, strides, strict=True)))
  raw = at_least_float32(flatten_levels(outputs))
  scores = jax.nn.sigmoid(raw[..., 4:5]) * jax.nn.sigmoid(raw[..., 5:])
  suppress = functools.partial(_suppress, score_threshold=score_threshold, iou_threshold=iou_threshold,
                               max_detections=max_detections, pre_nms=pre_nms)
  return jax.vmap(suppress)(clip_boxes(boxes, image_size), scores)


def _suppress(boxes: Array, scores: Array, *, score_threshold: float, iou_threshold: float, max_detections: int,
              pre_nms: int) -> dict[str, Array]:
  """Detections of one image from boxes [S, 4] and scores [S, K]."""
  classes = scores.shape[-1]
  wanted = (scores > score_threshold) & (box_area(boxes) > 0)[:, None]
  best, pairs = jax.lax.top_k(jnp.where(wanted, scores, -jnp.inf).ravel(), min(pre_nms, scores.size))
  boxes, labels = boxes[pairs // classes], (pairs % classes).astype(jnp.int32)
  kept, valid = class_aware_nms(boxes, best, labels, iou_threshold=iou_threshold, max_outputs=max_detections,
                                valid=best > -jnp.inf)
  found = {'boxes': boxes[kept], 'scores': best[kept], 'labels': labels[kept]}
  return {name: pick(valid, values, 0) for name, values in found.items()} | {'valid': valid}
