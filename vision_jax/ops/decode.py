"""From a detector's raw outputs to detections: static shapes, no parameters, no target. The YOLOs' are in
`decode_yolo.py`."""

from __future__ import annotations

from collections.abc import Mapping
import types
from typing import Any

import jax
import jax.numpy as jnp

from vision_jax.conventions import Array
from vision_jax.ops.arrays import as_valid, at_least_float32, pick
from vision_jax.ops.boxes import box_area, clip_boxes, cxcywh_to_xyxy
from vision_jax.ops.deltas import decode_deltas, decode_distances
from vision_jax.ops.nms import class_aware_nms

# What torchvision's SSDlite320 decodes with, in place of the defaults of `ssd_decode`, which are SSD300's.
SSDLITE_DECODE: Mapping[str, Any] = types.MappingProxyType({
    'score_threshold': 0.001, 'iou_threshold': 0.55, 'pre_nms': 300, 'max_detections': 300})


def detr_decode(logits: Array, boxes: Array, *, image_size: Array, score_threshold: float = 0.0,
                max_detections: int = 100) -> dict[str, Array]:
  """The detections in the outputs of a DETR: every query is one box of its best class, and nothing is suppressed.

  A query scores the softmax probability of its best class other than no object. The best queries stay, their boxes cut
  to the image.

  Args:
    logits: [L, B, Q, K + 1], softmax classes, those of no object last; the last of the L layers is the final one.
    boxes: [L, B, Q, 4] cx, cy, w, h in 0..1, shares of the content's width and height.
    image_size: [B, 2] or [2], (h, w) of the content at the top left of the canvas, pixels.
    score_threshold: 0..1, queries that do not exceed it are dropped.
    max_detections: the most that stay of one image; M is this or Q, whichever is less.

  Returns:
    `boxes` float32 [B, M, 4] xyxy in canvas pixels inside the content, `scores` float32 [B, M] falling, `labels` int32
    [B, M] and `valid` bool [B, M]. Invalid slots come last and hold zeros. A box without area in the content is
    dropped.

  Raises:
    ValueError: outputs and image sizes do not fit together.

  Reference: Carion et al., End-to-End Object Detection with Transformers, arXiv 2005.12872, sections 3.1 and 4.

  Differs from the authors' code, which neither cuts boxes to the image nor orders them.

  >>> logits = jnp.array([[[[0, 9.0, 0], [0, 0, 9]]]])
  >>> found = jax.jit(detr_decode)(logits, jnp.full((1, 1, 2, 4), 0.5), image_size=jnp.array([16, 32]))
  >>> found['boxes'][0, 0].tolist(), found['labels'][0].tolist(), (found['scores'][0] > 0.5).tolist()
  ([8.0, 4.0, 24.0, 12.0], [1, 0], [True, False])
  """
  image_size = jnp.asarray(image_size)
  images = logits.shape[1] if logits.ndim == 4 else 0
  if logits.ndim != 4 or boxes.shape != (*logits.shape[:3], 4) or not logits.shape[0] or logits.shape[3] < 2:
    raise ValueError(f'detr_decode: logits {list(logits.shape)} and boxes {list(boxes.shape)}; give [L, B, Q, K + 1] '
                     'and [L, B, Q, 4]')
  if image_size.shape not in ((2,), (images, 2)):
    raise ValueError(f'detr_decode: image_size {list(image_size.shape)} for {images} images; give (h, w) for all, or '
                     '[B, 2]')
  size = jnp.broadcast_to(image_size.astype(jnp.float32), (images, 2))
  boxes = cxcywh_to_xyxy(at_least_float32(boxes[-1])) * jnp.tile(size[:, ::-1], 2)[:, None]
  boxes, likely = clip_boxes(boxes, size), jax.nn.softmax(at_least_float32(logits[-1]))[..., :-1]
  scores, labels = jnp.max(likely, axis=-1), jnp.argmax(likely, axis=-1).astype(jnp.int32)
  wanted = (scores > score_threshold) & (box_area(boxes) > 0)
  best, kept = jax.lax.top_k(jnp.where(wanted, scores, -jnp.inf), min(max_detections, scores.shape[1]))
  valid = best > -jnp.inf
  found = {'boxes': jnp.take_along_axis(boxes, kept[..., None], axis=1), 'scores': best,
           'labels': jnp.take_along_axis(labels, kept, axis=1)}
  return {name: pick(valid, values, 0) for name, values in found.items()} | {'valid': valid}


def retinanet_decode(logits: Array, deltas: Array, *, anchors: Array, image_size: Array,
                     level_sizes: tuple[int, ...] | None = None, score_threshold: float = 0.05,
                     iou_threshold: float = 0.5, max_detections: int = 300, pre_nms: int = 1000) -> dict[str, Array]:
  """The detections in the outputs of a RetinaNet.

  Every (anchor, class) pair scores sigmoid(logit). Of those above the threshold the best `pre_nms` of each level stay;
  their boxes are cut to the image, and go through non-maximum suppression class by class, all levels together.

  Args:
    logits: [B, A, K], sigmoid classes; there is no background class.
    deltas: [B, A, 4], as in `decode_deltas` without variances.
    anchors: [A, 4] xyxy, canvas pixels.
    image_size: [B, 2] or [2], (h, w) of the content at the top left of the canvas, pixels.
    level_sizes: how many of the anchors belong to each level, in their order; one level when left out.
    score_threshold: 0..1, pairs that do not exceed it are dropped.
    iou_threshold: 0..1, of the suppression.
    max_detections: M, the slots for one image.
    pre_nms: the most pairs of one level that enter the suppression.

  Returns:
    `boxes` float32 [B, M, 4] xyxy in canvas pixels inside the content, `scores` float32 [B, M] falling, `labels` int32
    [B, M] and `valid` bool [B, M]. Invalid slots come last and hold zeros.

  Raises:
    ValueError: outputs, anchors, levels and image sizes do not fit together.

  Reference: Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, section 4.1 (inference).
  Differs from the paper: it says nothing of `max_detections`, which is torchvision's, as is the order of the steps.
  Differs from torchvision: a box without area in the content is dropped, before the suppression.

  >>> import functools
  >>> anchors = jnp.array([[0, 0, 8, 8], [8, 0, 16, 8.0]])
  >>> logits = jnp.full((1, 2, 3), -9.0).at[0, 1, 2].set(9)
  >>> decode = jax.jit(functools.partial(retinanet_decode, max_detections=2))
  >>> found = decode(logits, jnp.zeros((1, 2, 4)), anchors=anchors, image_size=jnp.array([16, 12]))
  >>> found['boxes'][0, 0].tolist(), found['labels'].tolist(), found['valid'].tolist()
  ([8.0, 0.0, 12.0, 8.0], [[2, 0]], [[True, False]])
  """
  _check_dense('retinanet_decode', logits, deltas, anchors, level_sizes, image_size)
  scores, places, labels = _best_of_levels(jax.nn.sigmoid(at_least_float32(logits)), level_sizes, score_threshold,
                                           pre_nms)
  boxes = decode_deltas(_taken(deltas, places), jnp.asarray(anchors)[places])
  return _class_by_class(boxes, scores, labels, image_size, iou_threshold, max_detections)


def fcos_decode(logits: Array, distances: Array, centerness_logits: Array, *, anchors: Array, image_size: Array,
                level_sizes: tuple[int, ...] | None = None, score_threshold: float = 0.2, iou_threshold: float = 0.6,
                max_detections: int = 100, pre_nms: int = 1000) -> dict[str, Array]:
  """The detections in the outputs of an FCOS.

  Every (point, class) pair scores sqrt(sigmoid(class) * sigmoid(centerness)). Of those above the threshold the best
  `pre_nms` of each level stay; their boxes are cut to the image, and go through non-maximum suppression class by class,
  all levels together.

  Args:
    logits: [B, A, K], sigmoid classes; there is no background class.
    distances: [B, A, 4], as in `decode_distances`.
    centerness_logits: [B, A].
    anchors: [A, 4] xyxy, canvas pixels: the points as squares, such as `fcos_anchors` gives.
    image_size: [B, 2] or [2], (h, w) of the content at the top left of the canvas, pixels.
    level_sizes: how many of the points belong to each level, in their order; one level when left out.
    score_threshold: 0..1, pairs that do not exceed it are dropped.
    iou_threshold: 0..1, of the suppression.
    max_detections: M, the slots for one image.
    pre_nms: the most pairs of one level that enter the suppression.

  Returns:
    `boxes` float32 [B, M, 4] xyxy in canvas pixels inside the content, `scores` float32 [B, M] falling, `labels` int32
    [B, M] and `valid` bool [B, M]. Invalid slots come last and hold zeros.

  Raises:
    ValueError: outputs, anchors, levels and image sizes do not fit together.

  Reference: Tian et al., FCOS, arXiv 1904.01355, section 3.3 (centerness).
  Differs from the paper: the score is the square root of its product, as in the authors' later version, arXiv
  2006.09214.
  Differs from torchvision: a box without area in the content is dropped, before the suppression.

  >>> import functools
  >>> anchors = jnp.array([[0, 0, 8, 8], [8, 0, 16, 8.0]])
  >>> logits = jnp.full((1, 2, 3), -9.0).at[0, 1, 2].set(9)
  >>> decode = jax.jit(functools.partial(fcos_decode, max_detections=2))
  >>> found = decode(logits, jnp.ones((1, 2, 4)), logits[..., 2], anchors=anchors, image_size=jnp.array([16, 18]))
  >>> found['boxes'][0, 0].tolist(), found['labels'].tolist(), found['valid'].tolist()
  ([4.0, 0.0, 18.0, 12.0], [[2, 0]], [[True, False]])
  """
  _check_dense('fcos_decode', logits, distances, anchors, level_sizes, image_size)
  if centerness_logits.shape != logits.shape[:2]:
    raise ValueError(f'fcos_decode: centerness_logits {list(centerness_logits.shape)} for logits '
                     f'{list(logits.shape)}; give [B, A]')
  likely = jax.nn.sigmoid(at_least_float32(logits)) * jax.nn.sigmoid(at_least_float32(centerness_logits))[..., None]
  scores, places, labels = _best_of_levels(jnp.sqrt(likely), level_sizes, score_threshold, pre_nms)
  boxes = decode_distances(_taken(distances, places), jnp.asarray(anchors)[places])
  return _class_by_class(boxes, scores, labels, image_size, iou_threshold, max_detections)


def ssd_decode(logits: Array, deltas: Array, *, anchors: Array, image_size: Array, score_threshold: float = 0.01,
               iou_threshold: float = 0.45, max_detections: int = 200, pre_nms: int = 400,
               variances: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)) -> dict[str, Array]:
  """The detections in the outputs of an SSD.

  Every (default box, class) pair scores the softmax probability of the class. Of those above the threshold the best
  `pre_nms` of each class stay; their boxes are cut to the image, and go through non-maximum suppression class by class.

  Args:
    logits: [B, A, K + 1], softmax classes; the first is the background, and class k stands at k + 1.
    deltas: [B, A, 4], as in `decode_deltas` with these variances.
    anchors: [A, 4] xyxy, canvas pixels, such as `ssd_default_boxes` gives.
    image_size: [B, 2] or [2], (h, w) of the content at the top left of the canvas, pixels.
    score_threshold: 0..1, pairs that do not exceed it are dropped.
    iou_threshold: 0..1, of the suppression.
    max_detections: M, the slots for one image.
    pre_nms: the most boxes of one class that enter the suppression.
    variances: four positive numbers, as in `losses.ssd_loss`.

  Returns:
    `boxes` float32 [B, M, 4] xyxy in canvas pixels inside the content, `scores` float32 [B, M] falling, `labels` int32
    [B, M], 0..K-1, and `valid` bool [B, M]. Invalid slots come last and hold zeros.

  Raises:
    ValueError: outputs, default boxes and image sizes do not fit together.

  Reference: Liu et al., SSD, arXiv 1512.02325, section 3.7; numbers before and after the suppression as in torchvision,
  where the authors' 400 and 200 are.
  Differs from torchvision: a box without area in the content is dropped, before the suppression.

  >>> import functools
  >>> anchors = jnp.array([[0, 0, 8, 8], [8, 0, 16, 8.0]])
  >>> logits = jnp.zeros((1, 2, 3)).at[0, :, 0].set(9).at[0, 1, 2].set(18)
  >>> decode = jax.jit(functools.partial(ssd_decode, max_detections=2))
  >>> found = decode(logits, jnp.zeros((1, 2, 4)), anchors=anchors, image_size=jnp.array([16, 12]))
  >>> found['boxes'][0, 0].tolist(), found['labels'].tolist(), found['valid'].tolist()
  ([8.0, 0.0, 12.0, 8.0], [[1, 0]], [[True, False]])
  """
  _check_dense('ssd_decode', logits, deltas, anchors, None, image_size)
  if logits.shape[2] < 2:
    raise ValueError(f'ssd_decode: logits {list(logits.shape)}; give [B, A, K + 1], the first being the background')
  likely = jnp.moveaxis(jax.nn.softmax(at_least_float32(logits))[..., 1:], 2, 1)
  images, classes, boxes = likely.shape
  best, places = jax.lax.top_k(jnp.where(likely > score_threshold, likely, -jnp.inf), min(pre_nms, boxes))
  labels = jnp.broadcast_to(jnp.arange(classes, dtype=jnp.int32)[:, None], best.shape)
  best, places, labels = (values.reshape(images, classes * best.shape[2]) for values in (best, places, labels))
  boxes = _taken(decode_deltas(deltas, anchors, variances=variances), places)
  return _class_by_class(boxes, best, labels, image_size, iou_threshold, max_detections)


def rpn_proposals(objectness: Array, deltas: Array, *, anchors: Array, image_size: Array,
                  level_sizes: tuple[int, ...] | None = None, pre_nms: int = 1000, post_nms: int = 1000,
                  iou_threshold: float = 0.7, score_threshold: float = 0.0,
                  min_size: float = 1e-3) -> dict[str, Array]:
  """The regions that a region proposal network proposes.

  The best `pre_nms` anchors of each level become boxes, which are cut to the image; those that are large and likely
  enough go through non-maximum suppression level by level, and the best `post_nms` of all levels stay.

  Args:
    objectness: [B, A] logits; a NaN is never proposed.
    deltas: [B, A, 4], as in `decode_deltas` without variances.
    anchors: [A, 4] xyxy, canvas pixels, such as `rpn_anchors` gives.
    image_size: [B, 2] or [2], (h, w) of the content at the top left of the canvas, pixels.
    level_sizes: how many of the anchors belong to each level, in their order; one level when left out.
    pre_nms: the most anchors of one level that enter the suppression.
    post_nms: the most boxes that stay; P is this, or the number of anchors that enter, whichever is less.
    iou_threshold: 0..1, of the suppression.
    score_threshold: 0..1, boxes whose sigmoid(objectness) is below it are dropped.
    min_size: pixels, boxes with a side below it are dropped.

  Returns:
    `boxes` float32 [B, P, 4] xyxy in canvas pixels inside the content, `scores` float32 [B, P] falling, and `valid`
    bool [B, P]. Invalid slots come last and hold zeros. Gradients do not pass.

  Raises:
    ValueError: outputs, anchors, levels and image sizes do not fit together.

  Reference: Ren et al., Faster R-CNN, arXiv 1506.01497, section 3.3; level by level as in torchvision.
  Differs from the paper: anchors that cross the border are proposed in training too.

  >>> import functools
  >>> anchors = jnp.array([[0, 0, 8, 8], [0, 0, 8, 7], [8, 0, 16, 8.0]])
  >>> propose = jax.jit(functools.partial(rpn_proposals, anchors=anchors, post_nms=3))
  >>> found = propose(jnp.array([[1.0, 2, 0]]), jnp.zeros((1, 3, 4)), image_size=jnp.array([16, 12]))
  >>> found['boxes'][0].tolist(), found['valid'].tolist()
  ([[0.0, 0.0, 8.0, 7.0], [8.0, 0.0, 12.0, 8.0], [0.0, 0.0, 0.0, 0.0]], [[True, True, False]])
  """
  image_size = jnp.asarray(image_size)
  _check_dense('rpn_proposals', jnp.asarray(objectness)[..., None], deltas, anchors, level_sizes, image_size)
  objectness, deltas = jax.lax.stop_gradient((at_least_float32(objectness), at_least_float32(deltas)))
  logits, places, levels = _best_anchors(objectness, level_sizes, pre_nms)
  boxes = clip_boxes(decode_deltas(_taken(deltas, places), jnp.asarray(anchors)[places]), image_size)
  # By probability, as in torchvision: logits from about 17 on are all worth 1 in float32, and tie.
  scores = jax.nn.sigmoid(logits)
  wanted = (logits > -jnp.inf) & (scores >= score_threshold) & _large_enough(boxes, min_size)
  kept, valid = class_aware_nms(boxes, scores, levels, iou_threshold=iou_threshold,
                                max_outputs=min(post_nms, places.shape[1]), valid=wanted)
  found = {'boxes': boxes, 'scores': scores}
  return {name: pick(valid, _taken(values, kept), 0) for name, values in found.items()} | {'valid': valid}


def faster_rcnn_decode(logits: Array, deltas: Array, proposals: Array, *, image_size: Array,
                       score_threshold: float = 0.05, iou_threshold: float = 0.5, max_detections: int = 100,
                       variances: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2), min_size: float = 1e-2,
                       proposals_valid: Array | None = None) -> dict[str, Array]:
  """The detections in the outputs of the box head of Fast, Faster and Mask R-CNN.

  Every (proposal, class) pair is a box of its own that scores the class's softmax probability. Those above the
  threshold are cut to the image and go through non-maximum suppression class by class.

  Args:
    logits: [B, P, K + 1], softmax classes; the first is the background, and class k stands at k + 1.
    deltas: [B, P, K + 1, 4], for each of these classes, as in `decode_deltas` with these variances.
    proposals: [B, P, 4] xyxy, canvas pixels.
    image_size: [B, 2] or [2], (h, w) of the content at the top left of the canvas, pixels.
    score_threshold: 0..1, pairs that do not exceed it are dropped.
    iou_threshold: 0..1, of the suppression.
    max_detections: M, the slots for one image.
    variances: four positive numbers.
    min_size: pixels, boxes with a side below it are dropped.
    proposals_valid: bool [B, P], True for real proposals; all when left out. What the others hold does not matter.

  Returns:
    `boxes` float32 [B, M, 4] xyxy in canvas pixels inside the content, `scores` float32 [B, M] falling, `labels` int32
    [B, M] and `valid` bool [B, M]. Invalid slots come last and hold zeros.

  Raises:
    ValueError: outputs, proposals and image sizes do not fit together.

  Reference: Girshick, Fast R-CNN, arXiv 1504.08083, section 3.1; thresholds and the order of the steps as in
  torchvision.

  >>> import functools
  >>> logits, box = jnp.array([[[0, 9.0, 0], [9, 0, 0]]]), jnp.array([[[0, 0, 8, 8], [8, 0, 16, 8.0]]])
  >>> decode = jax.jit(functools.partial(faster_rcnn_decode, max_detections=2))
  >>> found = decode(logits, jnp.zeros((1, 2, 3, 4)), box, image_size=jnp.array([16, 6]))
  >>> found['boxes'][0, 0].tolist(), found['labels'].tolist(), found['valid'].tolist()
  ([0.0, 0.0, 6.0, 8.0], [[0, 0]], [[True, False]])
  """
  logits, deltas, image_size = at_least_float32(logits), at_least_float32(deltas), jnp.asarray(image_size)
  if logits.ndim != 3 or logits.shape[2] < 2 or deltas.shape != (*logits.shape, 4) or (
      jnp.shape(proposals) != (*logits.shape[:2], 4)):
    raise ValueError(f'faster_rcnn_decode: logits {list(logits.shape)}, deltas {list(deltas.shape)}, proposals '
                     f'{list(jnp.shape(proposals))}; give [B, P, K + 1], [B, P, K + 1, 4] and [B, P, 4]')
  if image_size.shape not in ((2,), (logits.shape[0], 2)):
    raise ValueError(f'faster_rcnn_decode: image_size {list(image_size.shape)} for {logits.shape[0]} images; give '
                     '(h, w) for all, or [B, 2]')
  valid = as_valid('faster_rcnn_decode', 'proposals_valid', proposals_valid, logits.shape[:2])
  logits, deltas, proposals = (pick(valid, values, 0) for values in (logits, deltas, proposals))
  boxes = decode_deltas(deltas[:, :, 1:], proposals[:, :, None], variances=variances)
  images, regions, classes = boxes.shape[:3]
  boxes = clip_boxes(boxes.reshape(images, -1, 4), image_size)
  scores = jax.nn.softmax(logits)[..., 1:]
  wanted = ((scores > score_threshold) & valid[..., None]).reshape(images, -1) & _large_enough(boxes, min_size)
  labels = jnp.broadcast_to(jnp.arange(classes, dtype=jnp.int32), (images, regions, classes)).reshape(images, -1)
  return _class_by_class(boxes, jnp.where(wanted, scores.reshape(images, -1), -jnp.inf), labels, image_size,
                         iou_threshold, max_detections)


def _best_anchors(objectness: Array, level_sizes: tuple[int, ...] | None, count: int) -> tuple[Array, Array, Array]:
  """The best anchors of each level of [B, A]: their logits, which they are, and their levels, each [B, P]."""
  start, found = 0, []
  objectness = jnp.where(jnp.isnan(objectness), -jnp.inf, objectness)
  for level, size in enumerate((objectness.shape[1],) if level_sizes is None else level_sizes):
    best, places = jax.lax.top_k(objectness[:, start:start + size], min(count, size))
    found.append((best, start + places, jnp.full(places.shape, level, jnp.int32)))
    start += size
  return tuple(jnp.concatenate(parts, axis=1) for parts in zip(*found, strict=True))


def _large_enough(boxes: Array, min_size: float) -> Array:
  """Whether both sides of boxes [..., 4] have so many pixels: [...]."""
  return (boxes[..., 2:] - boxes[..., :2] >= min_size).all(axis=-1)


def _check_dense(where: str, logits: Array, offsets: Array, anchors: Array, level_sizes: tuple[int, ...] | None,
                 image_size: Array) -> None:
  if logits.ndim != 3 or offsets.shape != (*logits.shape[:2], 4) or anchors.shape != offsets.shape[1:]:
    raise ValueError(f'{where}: logits {list(logits.shape)}, predictions of boxes {list(offsets.shape)}, anchors '
                     f'{list(anchors.shape)}; give [B, A, K], [B, A, 4] and [A, 4]')
  if level_sizes is not None and sum(level_sizes) != logits.shape[1]:
    raise ValueError(f'{where}: level_sizes {tuple(level_sizes)} for {logits.shape[1]} anchors; they must add up')
  size = jnp.asarray(image_size).shape
  if size not in ((2,), (logits.shape[0], 2)):
    raise ValueError(f'{where}: image_size {list(size)} for {logits.shape[0]} images; give (h, w) for '
                     'all, or [B, 2]')


def _best_of_levels(scores: Array, level_sizes: tuple[int, ...] | None, threshold: float,
                    count: int) -> tuple[Array, Array, Array]:
  """The best (anchor, class) pairs of each level of scores [B, A, K]: their scores, anchors and classes, each [B, P].

  A score of -inf says that the level had no other pair above the threshold.
  """
  (images, anchors, classes), start, found = scores.shape, 0, []
  for size in (anchors,) if level_sizes is None else level_sizes:
    level = scores[:, start:start + size].reshape(images, size * classes)
    best, pairs = jax.lax.top_k(jnp.where(level > threshold, level, -jnp.inf), min(count, size * classes))
    found.append((best, start + pairs // classes, (pairs % classes).astype(jnp.int32)))
    start += size
  return tuple(jnp.concatenate(parts, axis=1) for parts in zip(*found, strict=True))


def _class_by_class(boxes: Array, scores: Array, labels: Array, image_size: Array, iou_threshold: float,
                    max_detections: int) -> dict[str, Array]:
  """Detections, in falling scores, from candidates [B, P], those with a score of -inf being none."""
  boxes = clip_boxes(boxes, jnp.asarray(image_size))
  scores = jnp.where(box_area(boxes) > 0, scores, -jnp.inf)
  kept, valid = class_aware_nms(boxes, scores, labels, iou_threshold=iou_threshold, max_outputs=max_detections)
  found = {'boxes': boxes, 'scores': scores, 'labels': labels}
  return {name: pick(valid, _taken(values, kept), 0) for name, values in found.items()} | {'valid': valid}


def _taken(values: Array, places: Array) -> Array:
  """`values[b, places[b]]` for each image b."""
  return jnp.take_along_axis(values, places.reshape(*places.shape, *(1,) * (values.ndim - 2)), axis=1)
