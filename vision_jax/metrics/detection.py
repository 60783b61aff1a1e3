"""Average precision of object detection, by the protocol of the COCO evaluation, in NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from vision_jax.conventions import ClassMap
from vision_jax.host import boxes as host_boxes
from vision_jax.metrics.base import check_same_settings, field, mean_defined

COCO_THRESHOLDS = tuple(float(t) for t in np.linspace(0.5, 0.95, 10))
_RECALL_POINTS = np.linspace(0.0, 1.0, 101)


@dataclasses.dataclass(frozen=True)
class _Image:
  """What one image leaves behind: its detections by falling score, and how many objects it has of each class.

  `rank` is a detection's place within its class. Matching is greedy by score, so a detection never changes the match
  of one that ranks above it: a smaller limit of detections is a cut by rank, without matching again.
  """

  order: int  # the place in the source, or the place in the order of adding
  scores: np.ndarray  # [M] float64
  labels: np.ndarray  # [M] int64
  rank: np.ndarray  # [M] int64
  matched: np.ndarray  # [T, M] bool
  objects: np.ndarray  # [K] int64


class DetectionAP:
  """Average precision over IoU thresholds and classes, as COCO's evaluation defines it.

  For each class, the detections of all images are ranked by score. In each image a detection, taken by falling
  score, takes the free object of its class with the greatest IoU (of equals the last), if the IoU is at least the
  threshold. Precision, made non-increasing from the right, is read at the 101 recalls 0, 0.01 ... 1 and averaged.

  Predictions need `boxes [M, 4]` xyxy, `scores [M]`, `labels [M]` and, where there are empty slots, `valid [M]`.
  Targets need `boxes [n, 4]` and `labels [n]`. Both are in original pixels. An `index` in the target, an int, is
  optional: images are ranked by it where scores are equal, so that the figures do not depend on which process saw
  which image. Without it the order of adding stands in.

  Args:
    classes: the names of the classes.
    iou_thresholds: in 0..1, above 0.
    max_detections: of each class in each image only so many, the best, are counted.

  Raises:
    ValueError: a threshold or limit out of range; in `add`, a missing field, arrays whose lengths disagree, a label
      that is no class, or a score that is not finite. A box that is not finite or inverted counts as a wrong detection.

  `result()` has `AP`, the mean over classes and thresholds; `AP50` and `AP75`, at those thresholds where they are
  among `iou_thresholds`; and `AP/<name>` for each class. A class without any object in the truth has NaN and is left
  out of every mean, whatever was detected; with no object of any class all figures are NaN. (COCO writes -1 for
  both.) A class that has objects but no detection has 0.

  Reference: T.-Y. Lin et al., Microsoft COCO: Common Objects in Context, arXiv:1405.0312, and its evaluation code.
  Differs from the evaluation code: there are no crowds and no area ranges; a detection of negative area counts as
  wrong, where the evaluation code passes over it.

  >>> metric = DetectionAP(ClassMap(names=('cat', 'dog')))
  >>> boxes = np.array([[10., 10., 30., 40.]])
  >>> metric.add({'boxes': boxes, 'scores': np.array([0.9]), 'labels': np.array([0])},
  ...            {'boxes': boxes + 2, 'labels': np.array([0])})
  >>> {name: round(value, 3) for name, value in metric.result().items()}
  {'AP': 0.5, 'AP50': 1.0, 'AP75': 0.0, 'AP/cat': 0.5, 'AP/dog': nan}
  """

  def __init__(self, classes: ClassMap, *, iou_thresholds: Sequence[float] = COCO_THRESHOLDS,
               max_detections: int = 100):
    self.classes = classes
    self.iou_thresholds = tuple(float(t) for t in iou_thresholds)
    self.max_detections = max_detections
    if not self.iou_thresholds or not all(0.0 < t <= 1.0 for t in self.iou_thresholds):
      raise ValueError(f'DetectionAP: iou_thresholds is {self.iou_thresholds}; give numbers above 0 and up to 1')
    if max_detections < 1:
      raise ValueError(f'DetectionAP: max_detections is {max_detections}; give a whole number from 1')
    self._images: list[_Image] = []

  def add(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    boxes, scores, labels = self._detections(prediction)
    true_boxes, true_labels = self._objects(target)
    rank = _rank_within_class(labels)
    boxes, scores, labels, rank = (a[rank < self.max_detections] for a in (boxes, scores, labels, rank))
    # No threshold is zero, so an IoU of zero keeps detections from the objects of other classes.
    ious = np.where(labels[:, None] == true_labels, host_boxes.pairwise_iou(boxes, true_boxes), 0.0)
    order = int(target['index']) if 'index' in target else len(self._images)
    self._images.append(_Image(order, scores, labels, rank, _match(ious, np.array(self.iou_thresholds)),
                               np.bincount(true_labels, minlength=len(self.classes))))

  def merge(self, other: DetectionAP) -> None:
    check_same_settings(self, other, 'classes', 'iou_thresholds', 'max_detections')
    self._images.extend(other._images)

  def precision(self) -> np.ndarray:
    """`[T, 101, K]` float64, the precision at each threshold, recall and class; NaN for a class without objects."""
    thresholds, num_classes = len(self.iou_thresholds), len(self.classes)
    table = np.full((thresholds, len(_RECALL_POINTS), num_classes), np.nan)
    if not self._images:
      return table
    images = sorted(self._images, key=lambda image: image.order)  # stable
    scores, labels = (np.concatenate([getattr(i, name) for i in images]) for name in ('scores', 'labels'))
    matched = np.concatenate([i.matched for i in images], axis=1)
    objects = np.sum([i.objects for i in images], axis=0)
    by_class = np.lexsort((-scores, labels))  # stable: equal scores stay in the order of the images
    ends = np.searchsorted(labels[by_class], np.arange(num_classes + 1))
    for label in np.flatnonzero(objects):
      rows = by_class[ends[label]:ends[label + 1]]
      table[:, :, label] = _precision_at_recalls(matched[:, rows], objects[label])
    return table

  def result(self) -> dict[str, float]:
    each = self.precision().mean(axis=1)  # [T, K]
    figures = {'AP': mean_defined(each)}
    for percent in (50, 75):
      at = np.flatnonzero(np.isclose(self.iou_thresholds, percent / 100))
      if at.size:
        figures[f'AP{percent}'] = mean_defined(each[at[0]])
    by_name = zip(self.classes.names, each.mean(axis=0), strict=True)
    figures.update({f'AP/{name}': float(value) for name, value in by_name})
    return figures

  def _detections(self, prediction: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The boxes, scores and labels of the valid slots, by falling score."""
    boxes, scores, labels = (field('DetectionAP: prediction', prediction, n) for n in ('boxes', 'scores', 'labels'))
    boxes, scores = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(scores, np.float64)
    valid = np.asarray(prediction.get('valid', np.ones(scores.shape, bool)), bool)
    if not len(boxes) == len(scores) == len(labels) == len(valid):
      raise ValueError(f'DetectionAP: {len(boxes)} boxes, {len(scores)} scores, {len(labels)} labels and {len(valid)} '
                       'valid in one prediction; give as many of each')
    boxes, scores, labels = boxes[valid], scores[valid], labels[valid].astype(np.int64)
    if not np.isfinite(scores).all():
      raise ValueError('DetectionAP: a score is not finite; the model has diverged, or valid is True for an empty slot')
    self._check_labels('prediction', labels)
    best_first = np.argsort(-scores, kind='stable')
    return boxes[best_first], scores[best_first], labels[best_first]

  def _objects(self, target: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    boxes, labels = (field('DetectionAP: target', target, name) for name in ('boxes', 'labels'))
    boxes, labels = np.asarray(boxes, np.float64).reshape(-1, 4), labels.astype(np.int64)
    if len(boxes) != len(labels):
      raise ValueError(f'DetectionAP: {len(boxes)} boxes and {len(labels)} labels in one target; give as many of each')
    self._check_labels('target', labels)
    return boxes, labels

  def _check_labels(self, where: str, labels: np.ndarray) -> None:
    if labels.size and not 0 <= labels.min() <= labels.max() < len(self.classes):
      raise ValueError(f'DetectionAP: the {where} holds labels {labels.min()}..{labels.max()}, the classes are '
                       f'0..{len(self.classes) - 1}; model and data disagree on the classes')


def _rank_within_class(labels: np.ndarray) -> np.ndarray:
  """How many earlier entries have the same label: `[0, 1, 0, 2]` for labels `[7, 7, 3, 7]`."""
  by_class = np.argsort(labels, kind='stable')
  first = np.searchsorted(labels[by_class], labels[by_class])
  rank = np.empty(len(labels), np.int64)
  rank[by_class] = np.arange(len(labels)) - first
  return rank


def _match(ious: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
  """Which detections find an object at each threshold.

  Args:
    ious: `[M, N]`, the detections by falling score; zero where the classes differ.
    thresholds: `[T]`, above 0.

  Returns:
    `[T, M]` bool.
  """
  count, objects = ious.shape
  matched = np.zeros((len(thresholds), count), bool)
  if not ious.size:
    return matched
  needed = np.minimum(thresholds, 1 - 1e-10)[:, None]  # COCO's: two equal boxes match at a threshold of 1
  free = np.ones((len(thresholds), objects), bool)
  rows = np.arange(len(thresholds))
  # Most detections are near no object, so the loop leaves them out.
  for d in np.flatnonzero(ious.max(axis=1) >= needed.min()):
    offers = np.where(free & (ious[d] >= needed), ious[d], 0.0)
    best = objects - 1 - np.argmax(offers[:, ::-1], axis=1)  # of equals the last, as in COCO's loop
    found = offers[rows, best] > 0
    free[rows[found], best[found]] = False
    matched[:, d] = found
  return matched


def _precision_at_recalls(matched: np.ndarray, objects: int) -> np.ndarray:
  """`[T, 101]`, the enveloped precision at each recall point, for one class's `[T, M]` matches by falling score."""
  thresholds, count = matched.shape
  right = np.cumsum(matched, axis=1)
  precision = right / (np.arange(1, count + 1) + np.spacing(1.0))  # COCO's denominator, to the last bit
  envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
  reached = np.concatenate([envelope, np.zeros((thresholds, 1))], axis=1)  # beyond the last recall: zero
  recall = right / objects
  return np.stack([reached[t, np.searchsorted(recall[t], _RECALL_POINTS)] for t in range(thresholds)])
