"""Average precision and recall of detections, boxes or masks, by the protocol of the COCO evaluation, in NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from vision_jax.conventions import ClassMap
from vision_jax.host import boxes as host_boxes
from vision_jax.host import rle
from vision_jax.metrics.base import check_same_settings, field, mean_defined, ratio
from vision_jax.metrics.matching import greedy_matches, rank_within

COCO_THRESHOLDS = tuple(float(t) for t in np.linspace(0.5, 0.95, 10))
AREAS = {'': (0.0, 1e10), 'small': (0.0, 32.0**2), 'medium': (32.0**2, 96.0**2), 'large': (96.0**2, 1e10)}
_RANGES = np.array(list(AREAS.values()))  # [A, 2], square pixels, both ends inside
_RECALL_POINTS = np.linspace(0.0, 1.0, 101)
_EPSILON = np.spacing(1.0)  # COCO's, in the denominator of the precision: equal to the last bit


@dataclasses.dataclass(frozen=True)
class _Image:
  """What one image leaves behind: its detections by falling score, its objects, and the pairs that overlap.

  `rank` is a detection's place within its class. Matching is greedy by score, so a detection never changes the match
  of one that ranks above it: a smaller limit of detections is a cut by rank, without matching again.
  """

  order: int  # the place in the source, or the place in the order of adding
  scores: np.ndarray  # [M] float64
  labels: np.ndarray  # [M] int64
  rank: np.ndarray  # [M] int64
  areas: np.ndarray  # [M] float64, square pixels
  pairs: np.ndarray  # [P, 2] int64, (detection, object) of one class
  ious: np.ndarray  # [P] float64
  object_labels: np.ndarray  # [N] int64
  object_areas: np.ndarray  # [N] float64
  crowd: np.ndarray  # [N] bool
  lost: np.ndarray  # [N] bool, objects that COCO's own code loses


class _Ranked(NamedTuple):
  """All detections of one class by falling score, and its objects: n detections, A area ranges, T thresholds."""

  scores: np.ndarray  # [n] float64
  rank: np.ndarray  # [n] int64, the place within class and image
  right: np.ndarray  # [A, T, n] bool
  wrong: np.ndarray  # [A, T, n] bool; what is neither right nor wrong is ignored
  objects: np.ndarray  # [A] int64, those that count


class Curve(NamedTuple):
  """Precision and recall of one class as the score threshold falls.

  Args:
    scores: float64 `[n]`, falling.
    precision: float64 `[n]`, of all detections down to that score, as it is (not made monotonous).
    recall: float64 `[n]`, rising.
    f1: float64 `[n]`, their harmonic mean.

  >>> Curve(np.array([0.9]), np.array([1.0]), np.array([0.5]), np.array([2 / 3])).recall.tolist()
  [0.5]
  """

  scores: np.ndarray
  precision: np.ndarray
  recall: np.ndarray
  f1: np.ndarray


class DetectionAP:
  """The twelve figures of COCO's evaluation, and the average precision of each class.

  For each class, the detections of all images are ranked by score. In each image a detection, taken by falling
  score, takes the free object of its class with the greatest IoU (of equals the last), if the IoU is at least the
  threshold. Precision, made non-increasing from the right, is read at the 101 recalls 0, 0.01 ... 1 and averaged.
  Crowds, and objects outside an area range, cost nothing and bring nothing: what finds them, or finds nothing and is
  itself outside the range, is not counted.

  Predictions need `boxes [M, 4]` xyxy, `scores [M]`, `labels [M]` and, where there are empty slots, `valid [M]`.
  Targets need `boxes [n, 4]` and `labels [n]`; `crowd [n]` bool, `area [n]` (the file's, by which an object is small,
  medium or large; the box's or the mask's own when left out) and `ids [n]` (the file's annotation ids) are optional.
  With `over='masks'` both need `masks` in place of the boxes: bool `[M, H, W]`, or a sequence of run lengths
  (`vision_jax.host.rle`). All are in original pixels. An `index` in the target, an int, is
  optional: images are ranked by it where scores are equal, so that the figures do not depend on which process saw
  which image. Without it the order of adding stands in.

  Args:
    classes: the names of the classes.
    iou_thresholds: in 0..1, above 0.
    max_detections: of each class in each image only so many, the best, are counted.
    over: 'boxes' or 'masks'.
    compat: True for the figures of COCO's own code to the last bit: it takes an object with the annotation id 0 for
      not found.

  Raises:
    ValueError: an option out of range; in `add`, a missing field, arrays whose lengths disagree, a label
      that is no class, or a score that is not finite. A box that is not finite or inverted counts as a wrong detection.

  `result()` has `AP`, the mean over classes and thresholds; `AP50` and `AP75`, at those thresholds where they are
  among `iou_thresholds`; `APsmall`, `APmedium`, `APlarge` (objects below 32^2, to 96^2, and above, in square pixels);
  `AR1`, `AR10`, `AR<max_detections>`, the recall with so many detections of a class in an image, and `ARsmall`,
  `ARmedium`, `ARlarge`; then `AP/<name>` for each class. A class without any object in the truth has NaN and is left
  out of every mean, whatever was detected; with no object of any class all figures are NaN. (COCO writes -1 for
  both.) A class that has objects but no detection has 0.

  Reference: T.-Y. Lin et al., Microsoft COCO: Common Objects in Context, arXiv:1405.0312, and its evaluation code.
  Differs from the evaluation code: a detection of negative area counts as wrong, where the code passes over it; AP is
  there for every `max_detections`, where the code gives -1 for any but 100.

  >>> metric = DetectionAP(ClassMap(names=('cat', 'dog')))
  >>> boxes = np.array([[10., 10., 30., 40.]])
  >>> metric.add({'boxes': boxes, 'scores': np.array([0.9]), 'labels': np.array([0])},
  ...            {'boxes': boxes + 2, 'labels': np.array([0])})
  >>> {name: round(value, 3) for name, value in metric.result().items() if name in ('AP', 'AP50', 'AR1', 'AP/dog')}
  {'AP': 0.5, 'AP50': 1.0, 'AR1': 0.5, 'AP/dog': nan}
  """

  def __init__(self, classes: ClassMap, *, iou_thresholds: Sequence[float] = COCO_THRESHOLDS,
               max_detections: int = 100, over: str = 'boxes', compat: bool = False):
    self.classes = classes
    self.iou_thresholds = tuple(float(t) for t in iou_thresholds)
    self.max_detections, self.over, self.compat = max_detections, over, compat
    if not self.iou_thresholds or not all(0.0 < t <= 1.0 for t in self.iou_thresholds):
      raise ValueError(f'DetectionAP: iou_thresholds is {self.iou_thresholds}; give numbers above 0 and up to 1')
    if max_detections < 1:
      raise ValueError(f'DetectionAP: max_detections is {max_detections}; give a whole number from 1')
    if over not in ('boxes', 'masks'):
      raise ValueError(f"DetectionAP: over is {over!r}; give 'boxes' or 'masks'")
    self._images: list[_Image] = []

  def add(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    shapes, scores, labels = self._detections(prediction)
    true_shapes, true_labels = self._objects(target)
    count = len(true_labels)
    crowd = np.asarray(target.get('crowd', np.zeros(count)), bool)
    lost = np.asarray(target.get('ids', np.ones(count))) == 0 if self.compat else np.zeros(count, bool)
    rank = rank_within(labels)
    kept = rank < self.max_detections
    shapes = shapes[kept] if self.over == 'boxes' else [shape for shape, keep in zip(shapes, kept, strict=True) if keep]
    scores, labels, rank = scores[kept], labels[kept], rank[kept]
    overlap = (host_boxes.pairwise_iou(shapes, true_shapes, crowd=crowd) if self.over == 'boxes'
               else rle.iou(shapes, true_shapes, crowd=crowd))
    near = (overlap >= min(*self.iou_thresholds, 1 - 1e-10)) & (labels[:, None] == true_labels)
    areas = np.asarray(target['area'], np.float64) if 'area' in target else self._areas(true_shapes)
    order = int(target['index']) if 'index' in target else len(self._images)
    self._images.append(_Image(order, scores, labels, rank, self._areas(shapes), np.argwhere(near), overlap[near],
                               true_labels, areas, crowd, lost))

  def merge(self, other: DetectionAP) -> None:
    check_same_settings(self, other, 'classes', 'iou_thresholds', 'max_detections', 'over', 'compat')
    self._images.extend(other._images)

  def result(self) -> dict[str, float]:
    precision, recall = self._tables()
    means = precision.mean(axis=1)  # [T, K, A]
    limits = {f'AR{limit}': recall[..., 0, k] for k, limit in enumerate(self._limits())}
    figures = {'AP': mean_defined(means[..., 0])}
    for percent in (50, 75):
      at = np.flatnonzero(np.isclose(self.iou_thresholds, percent / 100))
      if at.size:
        figures[f'AP{percent}'] = mean_defined(means[at[0], :, 0])
    figures.update({f'AP{name}': mean_defined(means[..., a]) for a, name in enumerate(AREAS) if name})
    figures.update({name: mean_defined(values) for name, values in limits.items()})
    figures.update({f'AR{name}': mean_defined(recall[..., a, -1]) for a, name in enumerate(AREAS) if name})
    by_name = zip(self.classes.names, means[..., 0].mean(axis=0), strict=True)
    figures.update({f'AP/{name}': float(value) for name, value in by_name})
    return figures

  def precision(self) -> np.ndarray:
    """`[T, 101, K]` float64, the precision at each threshold, recall and class; NaN for a class without objects."""
    return self._tables()[0][..., 0]

  def curve(self, label: int, *, iou_threshold: float = 0.5) -> Curve:
    """Precision and recall of one class over its detections.

    Args:
      label: the class, 0..K-1.
      iou_threshold: one of `iou_thresholds`.

    Returns:
      `Curve`, without points where the class has no detection; precision and recall are NaN where it has no object.

    Raises:
      ValueError: a threshold that was not evaluated.
    """
    at = np.flatnonzero(np.isclose(self.iou_thresholds, iou_threshold))
    if not at.size:
      raise ValueError(f'DetectionAP: IoU {iou_threshold} was not evaluated; iou_thresholds has {self.iou_thresholds}')
    ranked = self._ranked()[label]
    right, wrong = (hits[0, at[0]].cumsum() for hits in (ranked.right, ranked.wrong))
    objects, found = ranked.objects[0], right + wrong
    return Curve(ranked.scores, ratio(right, np.where(objects, found, 0)), ratio(right, objects),
                 ratio(2 * right, np.where(objects, found + objects, 0)))

  def _detections(self, prediction: Mapping[str, Any]) -> tuple[Any, np.ndarray, np.ndarray]:
    """The boxes or masks, scores and labels of the valid slots, by falling score."""
    shapes = self._shapes('prediction', prediction)
    scores, labels = (field('DetectionAP: prediction', prediction, name) for name in ('scores', 'labels'))
    scores = np.asarray(scores, np.float64)
    valid = np.asarray(prediction.get('valid', np.ones(scores.shape, bool)), bool)
    if not len(shapes) == len(scores) == len(labels) == len(valid):
      raise ValueError(f'DetectionAP: {len(shapes)} {self.over}, {len(scores)} scores, {len(labels)} labels and '
                       f'{len(valid)} valid in one prediction; give as many of each')
    scores, labels, slots = scores[valid], labels[valid].astype(np.int64), np.flatnonzero(valid)
    if not np.isfinite(scores).all():
      raise ValueError('DetectionAP: a score is not finite; the model has diverged, or valid is True for an empty slot')
    self._check_labels('prediction', labels)
    best_first = np.argsort(-scores, kind='stable')
    slots = slots[best_first]
    shapes = shapes[slots] if self.over == 'boxes' else [_run_lengths(shapes[slot]) for slot in slots]
    return shapes, scores[best_first], labels[best_first]

  def _objects(self, target: Mapping[str, Any]) -> tuple[Any, np.ndarray]:
    shapes, labels = self._shapes('target', target), field('DetectionAP: target', target, 'labels').astype(np.int64)
    for name in ('labels', 'crowd', 'area', 'ids'):
      if name in target and len(shapes) != len(target[name]):
        raise ValueError(f'DetectionAP: {len(shapes)} {self.over} and {len(target[name])} {name} in one target; '
                         'give as many of each')
    self._check_labels('target', labels)
    return (shapes if self.over == 'boxes' else [_run_lengths(mask) for mask in shapes]), labels

  def _shapes(self, kind: str, fields: Mapping[str, Any]) -> Any:
    """The boxes, float64 `[n, 4]`, or the masks as they were given."""
    if self.over == 'boxes':
      return np.asarray(field(f'DetectionAP: {kind}', fields, 'boxes'), np.float64).reshape(-1, 4)
    if 'masks' not in fields:
      field(f'DetectionAP: {kind}', fields, 'masks')  # which says what there is instead
    return fields['masks']

  def _areas(self, shapes: Any) -> np.ndarray:
    if self.over == 'boxes':
      with np.errstate(invalid='ignore'):
        return host_boxes.area(shapes)
    return np.array([rle.area(mask) for mask in shapes], np.float64)

  def _limits(self) -> tuple[int, ...]:
    """The numbers of detections that recall is given for, rising."""
    return (*(limit for limit in (1, 10) if limit < self.max_detections), self.max_detections)

  def _check_labels(self, where: str, labels: np.ndarray) -> None:
    if labels.size and not 0 <= labels.min() <= labels.max() < len(self.classes):
      raise ValueError(f'DetectionAP: the {where} holds labels {labels.min()}..{labels.max()}, the classes are '
                       f'0..{len(self.classes) - 1}; model and data disagree on the classes')

  def _ranked(self) -> list[_Ranked]:
    """The detections and objects of each class, matched."""
    if not self._images:
      nothing = np.zeros((len(AREAS), len(self.iou_thresholds), 0), bool)
      empty = _Ranked(np.zeros(0), np.zeros(0, np.int64), nothing, nothing, np.zeros(len(AREAS), np.int64))
      return [empty] * len(self.classes)
    images = sorted(self._images, key=lambda image: image.order)  # stable
    joined = {f.name: np.concatenate([getattr(image, f.name) for image in images])
              for f in dataclasses.fields(_Image) if f.name != 'order'}
    counts = np.array([(len(image.scores), len(image.object_labels)) for image in images])
    before = counts.cumsum(axis=0) - counts
    pairs = joined['pairs'] + np.repeat(before, [len(image.ious) for image in images], axis=0)
    labels, object_labels = joined['labels'], joined['object_labels']
    ignored = _outside(joined['object_areas']) | joined['crowd'][:, None]
    matches = greedy_matches(pairs[:, 0], pairs[:, 1], joined['ious'],
                             np.repeat(np.arange(len(images)), counts[:, 0]) * len(self.classes) + labels,
                             thresholds=np.array(self.iou_thresholds), ignored=ignored, crowd=joined['crowd'])
    found = matches.found if not self.compat else matches.found & ~np.append(joined['lost'], False)[matches.objects]
    passed = np.where(found, matches.ignored, matches.ignored | _outside(joined['areas'])[:, None, :])
    by_class = np.lexsort((-joined['scores'], labels))  # stable: equal scores stay in the order of the images
    ends = np.searchsorted(labels[by_class], np.arange(len(self.classes) + 1))
    ranked = []
    for label, rows in enumerate(np.split(by_class, ends[1:-1])):
      hit, counts_for = found[rows].transpose(2, 1, 0), ~passed[rows].transpose(2, 1, 0)
      objects = np.count_nonzero(~ignored[object_labels == label], axis=0)
      ranked.append(_Ranked(joined['scores'][rows], joined['rank'][rows], hit & counts_for, ~hit & counts_for, objects))
    return ranked

  def _tables(self) -> tuple[np.ndarray, np.ndarray]:
    """Precision `[T, 101, K, A]` and recall `[T, K, A, L]` at each limit of detections; NaN without an object."""
    thresholds, limits = len(self.iou_thresholds), self._limits()
    precision = np.full((thresholds, len(_RECALL_POINTS), len(self.classes), len(AREAS)), np.nan)
    recall = np.full((thresholds, len(self.classes), len(AREAS), len(limits)), np.nan)
    for label, found in enumerate(self._ranked()):
      for a in np.flatnonzero(found.objects):
        precision[:, :, label, a] = _precision_at_recalls(found.right[a], found.wrong[a], found.objects[a])
        for k, limit in enumerate(limits):
          recall[:, label, a, k] = np.count_nonzero(found.right[a] & (found.rank < limit), axis=1) / found.objects[a]
    return precision, recall


def _run_lengths(mask: Any) -> Mapping[str, Any]:
  return mask if isinstance(mask, Mapping) else rle.encode(np.asarray(mask, bool))


def _outside(areas: np.ndarray) -> np.ndarray:
  """Whether each area lies outside each range: `[n, A]`. One that is not a number lies in all of them."""
  return (areas[:, None] < _RANGES[:, 0]) | (areas[:, None] > _RANGES[:, 1])


def _precision_at_recalls(right: np.ndarray, wrong: np.ndarray, objects: int) -> np.ndarray:
  """`[T, 101]`, the enveloped precision at each recall point, for one class's `[T, n]` detections by falling score."""
  thresholds = len(right)
  right, wrong = np.cumsum(right, axis=1, dtype=np.float64), np.cumsum(wrong, axis=1, dtype=np.float64)
  precision = right / (wrong + right + _EPSILON)
  envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
  reached = np.concatenate([envelope, np.zeros((thresholds, 1))], axis=1)  # beyond the last recall: zero
  recall = right / objects
  return np.stack([reached[t, np.searchsorted(recall[t], _RECALL_POINTS)] for t in range(thresholds)])
