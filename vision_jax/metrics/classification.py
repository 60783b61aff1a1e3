"""Metrics of image classification: top-k accuracy and the confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vision_jax.conventions import ClassMap
from vision_jax.metrics.base import check_same_settings, field, mean_defined, ratio


def _probabilities_and_label(where: str, prediction: Mapping[str, Any], target: Mapping[str, Any],
                             num_classes: int | None = None) -> tuple[np.ndarray, int]:
  probabilities = field(f'{where}: prediction', prediction, 'probabilities')
  label = int(field(f'{where}: target', target, 'label'))
  if probabilities.ndim != 1 or (num_classes is not None and len(probabilities) != num_classes):
    raise ValueError(f'{where}: probabilities have shape {probabilities.shape}; give [K] of one image'
                     + (f' with K = {num_classes} classes' if num_classes is not None else ''))
  if not 0 <= label < len(probabilities):
    raise ValueError(f'{where}: label {label} is outside 0..{len(probabilities) - 1}; '
                     'model and data disagree on the classes')
  if np.isnan(probabilities).any():
    # Comparisons with NaN are false, so a diverged model would count as right every time.
    raise ValueError(f'{where}: the probabilities hold NaN; the model has diverged, evaluate an earlier checkpoint')
  return probabilities, label


class TopK:
  """The share of images whose true class is among the k most probable ones.

  Classes of equal probability rank by index, the lower first, as in `torch.topk`; k above the number of classes
  counts every image as right. Predictions need `probabilities [K]` (logits rank the same), targets `label`, an int.

  Args:
    ks: the values of k, each at least 1.
    prefix: stands before each name in the result.

  Raises:
    ValueError: a k below 1; in `add`, a missing field, a label that is no class, or probabilities that are NaN.

  `result()` has `top1`, `top5`, ... in 0..1, NaN before the first image.

  >>> metric = TopK(ks=(1, 2))
  >>> metric.add({'probabilities': np.array([0.2, 0.5, 0.3])}, {'label': 2})
  >>> metric.result()
  {'top1': 0.0, 'top2': 1.0}
  """

  def __init__(self, ks: Sequence[int] = (1, 5), prefix: str = ''):
    self.ks, self.prefix = tuple(ks), prefix
    if not self.ks or min(self.ks) < 1:
      raise ValueError(f'TopK: ks is {self.ks}; give whole numbers from 1')
    self._right = dict.fromkeys(self.ks, 0)
    self._images = 0

  def add(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    probabilities, label = _probabilities_and_label('TopK', prediction, target)
    before = (probabilities > probabilities[label]).sum() + (probabilities[:label] == probabilities[label]).sum()
    for k in self.ks:
      self._right[k] += int(before < k)
    self._images += 1

  def merge(self, other: TopK) -> None:
    check_same_settings(self, other, 'ks', 'prefix')
    for k in self.ks:
      self._right[k] += other._right[k]
    self._images += other._images

  def result(self) -> dict[str, float]:
    return {f'{self.prefix}top{k}': float(ratio(right, self._images)) for k, right in self._right.items()}


class Confusion:
  """How often each true class was taken for each other.

  Predictions need `probabilities [K]`, targets `label`, an int. The predicted class is the most probable one, of
  equals the lowest.

  Args:
    classes: the names of the classes.

  Raises:
    ValueError: in `add`, a missing field, another number of classes, a label that is no class, or NaN.

  `matrix` is int64 `[K true, K predicted]`. `result()` has `recall/<name>`, the share of a class's images that were
  found (NaN for a class without any), and `mean_recall`, the mean over the classes that occur.

  >>> metric = Confusion(ClassMap(names=('cat', 'dog')))
  >>> for label in (0, 1): metric.add({'probabilities': np.array([0.3, 0.7])}, {'label': label})
  >>> metric.matrix.tolist(), metric.result()
  ([[0, 1], [0, 1]], {'mean_recall': 0.5, 'recall/cat': 0.0, 'recall/dog': 1.0})
  """

  def __init__(self, classes: ClassMap):
    self.classes = classes
    self.matrix = np.zeros((len(classes), len(classes)), np.int64)

  def add(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    probabilities, label = _probabilities_and_label('Confusion', prediction, target, len(self.classes))
    self.matrix[label, int(np.argmax(probabilities))] += 1

  def merge(self, other: Confusion) -> None:
    check_same_settings(self, other, 'classes')
    self.matrix += other.matrix

  def result(self) -> dict[str, float]:
    recall = ratio(np.diag(self.matrix), self.matrix.sum(axis=1))
    each = {f'recall/{name}': float(value) for name, value in zip(self.classes.names, recall, strict=True)}
    return {'mean_recall': mean_defined(recall), **each}
