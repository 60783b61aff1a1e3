"""Metrics of semantic segmentation, all from one confusion matrix over pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vision_jax.conventions import ClassMap
from vision_jax.metrics.base import check_same_settings, field, mean_defined, ratio


class SegmentationScores:
  """IoU, Dice and pixel accuracy over the valid pixels of all images together.

  Predictions need `segmentation [H, W]`, targets `segmentation [H, W]` and, where some pixels are void,
  `pixels_valid [H, W]`; what a void pixel holds plays no part. Counts are summed over the images before anything is
  divided, so a large image weighs more than a small one.

  Args:
    classes: the names of the classes, background included where it is one.
    background: the class that is nothing, or None where there is no such class.

  Raises:
    ValueError: `background` is no class; in `add`, a missing field, maps of different sizes, or a value that is no
      class at a valid pixel.

  `matrix` is int64 `[K true, K predicted]`, in pixels. `result()` has, all in 0..1:
    `mean_iou`, `mean_dice`: the mean over the classes that occur in the truth or in the prediction; one that occurs
      in neither is left out, one that is only predicted counts as zero.
    `pixel_accuracy`: the share of valid pixels that are right.
    `foreground_iou`: the IoU of "any class but background" against background; absent when `background` is None.
    `iou/<name>`, `dice/<name>`: one for each class, NaN for one that occurs nowhere.

  >>> metric = SegmentationScores(ClassMap(names=('background', 'ink')))
  >>> metric.add({'segmentation': np.array([[0, 1, 1]])}, {'segmentation': np.array([[0, 0, 1]])})
  >>> {name: round(value, 3) for name, value in metric.result().items() if name != 'foreground_iou'}
  {'mean_iou': 0.5, 'mean_dice': 0.667, 'pixel_accuracy': 0.667, 'iou/background': 0.5, 'iou/ink': 0.5, \
'dice/background': 0.667, 'dice/ink': 0.667}
  """

  def __init__(self, classes: ClassMap, *, background: int | None = 0):
    if background is not None and not 0 <= background < len(classes):
      raise ValueError(f'SegmentationScores: background is {background}; give a class in 0..{len(classes) - 1} or None')
    self.classes, self.background = classes, background
    self.matrix = np.zeros((len(classes), len(classes)), np.int64)

  def add(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    predicted = field('SegmentationScores: prediction', prediction, 'segmentation')
    truth = field('SegmentationScores: target', target, 'segmentation')
    valid = np.asarray(target.get('pixels_valid', np.ones(truth.shape, bool)), bool)
    if not predicted.shape == truth.shape == valid.shape:
      raise ValueError(f'SegmentationScores: the prediction is {predicted.shape}, the truth {truth.shape}, '
                       f'pixels_valid {valid.shape}; map the prediction back to original pixels first')
    num_classes = len(self.classes)
    predicted, truth = predicted[valid].astype(np.int64), truth[valid].astype(np.int64)
    for name, values in (('prediction', predicted), ('truth', truth)):
      if values.size and not 0 <= values.min() <= values.max() < num_classes:
        raise ValueError(f'SegmentationScores: the {name} holds values {values.min()}..{values.max()}, the classes are '
                         f'0..{num_classes - 1}; set pixels_valid to False where a pixel has no class')
    counts = np.bincount(truth * num_classes + predicted, minlength=num_classes**2)
    self.matrix += counts.reshape(num_classes, num_classes)

  def merge(self, other: SegmentationScores) -> None:
    check_same_settings(self, other, 'classes', 'background')
    self.matrix += other.matrix

  def result(self) -> dict[str, float]:
    right, total = np.diag(self.matrix), self.matrix.sum()
    both = self.matrix.sum(axis=0) + self.matrix.sum(axis=1)
    iou, dice = ratio(right, both - right), ratio(2 * right, both)
    figures = {'mean_iou': mean_defined(iou), 'mean_dice': mean_defined(dice),
               'pixel_accuracy': float(ratio(right.sum(), total))}
    if self.background is not None:
      figures['foreground_iou'] = self._foreground_iou()
    for kind, values in (('iou', iou), ('dice', dice)):
      figures.update({f'{kind}/{name}': float(v) for name, v in zip(self.classes.names, values, strict=True)})
    return figures

  def _foreground_iou(self) -> float:
    background = self.background
    total = self.matrix.sum()
    truth, predicted = total - self.matrix[background].sum(), total - self.matrix[:, background].sum()
    union = total - self.matrix[background, background]
    return float(ratio(truth + predicted - union, union))
