"""Average precision by the rules of the PASCAL VOC challenges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vision_jax.conventions import ClassMap
from vision_jax.host import boxes as host_boxes
from vision_jax.metrics.base import check_same_settings, field, mean_defined

_ELEVEN = np.linspace(0.0, 1.0, 11)


class _Found(NamedTuple):
  """The detections of one image, and what each finds."""

  order: int
  scores: np.ndarray  # [M] float64
  labels: np.ndarray  # [M] int64
  right: np.ndarray  # [M] bool
  passed: np.ndarray  # [M] bool, neither right nor wrong: it found a difficult object
  objects: np.ndarray  # [K] int64, without the difficult ones


class VocAP:
  """Average precision of each class at one IoU, as VOC's development kit defines it.

  Unlike COCO's, a detection looks at the object of its class that it overlaps most, whether that one is free or not:
  right when the IoU is at least the threshold and nobody of a higher score found the object before. Objects marked
  difficult are not counted, nor is what finds them.

  Predictions and targets are those of `DetectionAP`; a target's `difficult [n]` bool is optional.

  Args:
    classes: the names of the classes.
    iou_threshold: in 0..1, above 0.
    points: 'every' averages the precision, made non-increasing, over all recalls (VOC 2010 and later), 'eleven' over
      the recalls 0, 0.1 ... 1 (VOC 2007).

  Raises:
    ValueError: an option out of range; in `add`, a missing field or a label that is no class.

  `result()` has `VOC_AP`, the mean over the classes that have an object, and `VOC_AP/<name>` for each class, NaN
  without one.

  Reference: Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 2010, section 4.2, and VOCevaldet.m.
  The development kit adds a pixel to widths and heights, because its boxes name the last pixel inside. Boxes read as
  this project reads VOC's files (xmin - 1, ymin - 1, xmax, ymax) have that pixel already, and give the kit's figures.

  >>> metric = VocAP(ClassMap(names=('cat',)))
  >>> boxes = np.array([[10., 10., 30., 40.]])
  >>> metric.add({'boxes': boxes, 'scores': np.array([0.9]), 'labels': np.array([0])},
  ...            {'boxes': boxes + 2, 'labels': np.array([0])})
  >>> metric.result()
  {'VOC_AP': 1.0, 'VOC_AP/cat': 1.0}
  """

  def __init__(self, classes: ClassMap, *, iou_threshold: float = 0.5, points: str = 'every'):
    if not 0.0 < iou_threshold <= 1.0:
      raise ValueError(f'VocAP: iou_threshold is {iou_threshold}; give a number above 0 and up to 1')
    if points not in ('every', 'eleven'):
      raise ValueError(f"VocAP: points is {points!r}; give 'every' or 'eleven'")
    self.classes, self.iou_threshold, self.points = classes, iou_threshold, points
    self._images: list[_Found] = []

  def add(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    boxes, scores, labels = (field('VocAP: prediction', prediction, name) for name in ('boxes', 'scores', 'labels'))
    valid = np.asarray(prediction.get('valid', np.ones(len(scores))), bool)
    true_boxes, true_labels = (field('VocAP: target', target, name) for name in ('boxes', 'labels'))
    true_labels, best_first = true_labels.astype(np.int64), np.argsort(-scores[valid], kind='stable')
    boxes, scores, labels = (values[valid][best_first] for values in (boxes.reshape(-1, 4), scores, labels))
    for kind, found in (('prediction', labels), ('target', true_labels)):
      if found.size and not 0 <= found.min() <= found.max() < len(self.classes):
        raise ValueError(f'VocAP: the {kind} holds labels {found.min()}..{found.max()}, the classes are '
                         f'0..{len(self.classes) - 1}; model and data disagree on the classes')
    difficult = np.asarray(target.get('difficult', np.zeros(len(true_labels))), bool)
    right, passed = self._find(boxes, labels, true_boxes.reshape(-1, 4), true_labels, difficult)
    order = int(target['index']) if 'index' in target else len(self._images)
    self._images.append(_Found(order, scores.astype(np.float64), labels.astype(np.int64), right, passed,
                               np.bincount(true_labels[~difficult], minlength=len(self.classes))))

  def _find(self, boxes: np.ndarray, labels: np.ndarray, true_boxes: np.ndarray, true_labels: np.ndarray,
            difficult: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    right, passed = np.zeros(len(boxes), bool), np.zeros(len(boxes), bool)
    if not len(boxes) or not len(true_boxes):
      return right, passed
    ious = np.where(labels[:, None] == true_labels, host_boxes.pairwise_iou(boxes, true_boxes), -1.0)
    best = ious.argmax(axis=1)
    near = ious[np.arange(len(boxes)), best] >= self.iou_threshold
    passed = near & difficult[best]
    hits = np.flatnonzero(near & ~passed)
    right[hits[np.unique(best[hits], return_index=True)[1]]] = True  # the first of each object: the highest score
    return right, passed

  def merge(self, other: VocAP) -> None:
    check_same_settings(self, other, 'classes', 'iou_threshold', 'points')
    self._images.extend(other._images)

  def result(self) -> dict[str, float]:
    each = [self._average_precision(label) for label in range(len(self.classes))]
    return {'VOC_AP': mean_defined(np.array(each)),
            **{f'VOC_AP/{name}': float(value) for name, value in zip(self.classes.names, each, strict=True)}}

  def _average_precision(self, label: int) -> float:
    images = sorted(self._images, key=lambda image: image.order)
    objects = sum(int(image.objects[label]) for image in images)
    if not objects:
      return float('nan')
    scores, right, passed = (np.concatenate([getattr(image, name)[image.labels == label] for image in images])
                             for name in ('scores', 'right', 'passed'))
    order = np.argsort(-scores, kind='stable')
    order = order[~passed[order]]
    right = right[order].cumsum()
    precision, recall = right / np.arange(1, len(right) + 1), right / objects
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    if self.points == 'eleven':
      return float(envelope[np.searchsorted(recall, _ELEVEN)].mean())
    return float((np.diff(recall, prepend=0.0) * envelope[:-1]).sum())
