"""A detector's classification layers, class by class, so that those of one list of classes fill those of another.

The numbers of such a layer stand in the last axis of our kernels and biases, and in the first of torch's:

| layer | of | numbers, the last of them side by side |
|---|---|---|
| `head.classification_head.cls_logits` | RetinaNet, FCOS | anchors x classes |
| `head.classification_head.module_list` | SSD, SSDlite | anchors x (background, classes) |
| `roi_heads.box_predictor.cls_score` | Faster R-CNN | (background, classes) |
| `roi_heads.box_predictor.bbox_pred` | Faster R-CNN | (background, classes) x 4 |
| `class_embed` | DETR | (classes, no object) |
"""

from __future__ import annotations

from collections.abc import Sequence
import re
from typing import NamedTuple

import numpy as np


class _Layer(NamedTuple):
  """Which names a layer has in torch; logits before and after the classes; how many numbers each of these has."""

  pattern: re.Pattern
  before: int = 0
  after: int = 0
  each: int = 1


_LAYERS = (
    _Layer(re.compile(r'(^|\.)classification_head\.cls_logits\.(weight|bias)$')),
    _Layer(re.compile(r'(^|\.)classification_head\.module_list\.\d+\.(1\.)?(weight|bias)$'), before=1),
    _Layer(re.compile(r'(^|\.)box_predictor\.cls_score\.(weight|bias)$'), before=1),
    _Layer(re.compile(r'(^|\.)box_predictor\.bbox_pred\.(weight|bias)$'), before=1, each=4),
    _Layer(re.compile(r'^class_embed\.(weight|bias)$'), after=1),
)


def pick_classes(name: str, array: np.ndarray, theirs: Sequence[str], ours: Sequence[str], *,
                 axis: int = 0) -> np.ndarray | None:
  """The part of a classification layer that is about some of its classes, in their order.

  Args:
    name: torch's, of the layer's kernel or bias.
    array: either.
    theirs: the names of the classes that the array has, in order, without a private background or no object.
    ours: the names of those wanted; all of them among `theirs`.
    axis: of the layer's numbers: 0 in torch's layout, -1 in ours.

  Returns:
    An array with as many numbers as `ours` asks for; None where the name is not that of a classification layer, or
    the array is not one of these classes.

  >>> bias = np.arange(8)  # two anchors, background and three classes
  >>> pick_classes('head.classification_head.module_list.0.bias', bias, ('cat', 'dog', 'cow'), ('cow', 'cat')).tolist()
  [0, 3, 1, 4, 7, 5]
  """
  layer = next((layer for layer in _LAYERS if layer.pattern.search(name)), None)
  if layer is None or not array.ndim:
    return None
  rows, length = layer.before + len(theirs) + layer.after, array.shape[axis]
  anchors, rest = divmod(length, rows * layer.each)
  if rest or (layer.each > 1 and anchors != 1):
    return None
  wanted = [*range(layer.before), *(layer.before + tuple(theirs).index(name) for name in ours),
            *range(rows - layer.after, rows)]
  index = np.arange(length).reshape(anchors, rows, layer.each)[:, wanted].ravel()
  return np.take(array, index, axis=axis)
