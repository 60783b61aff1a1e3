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
    ours: the names of those wanted. One that is not among `theirs` gets the numbers of their first class, for
      `with_classes` to replace.
    axis: of the layer's numbers: 0 in torch's layout, -1 in ours.

  Returns:
    An array with as many numbers as `ours` asks for; None where the name is not that of a classification layer, or
    the array is not one of these classes.

  >>> bias = np.arange(8)  # two anchors, background and three classes
  >>> pick_classes('head.classification_head.module_list.0.bias', bias, ('cat', 'dog', 'cow'), ('cow', 'cat')).tolist()
  [0, 3, 1, 4, 7, 5]
  """
  layer = _layer_of(name)
  table = _table(layer, array.shape[axis], len(theirs)) if layer and array.ndim else None
  if table is None:
    return None
  places = {name: layer.before + i for i, name in enumerate(theirs)}
  wanted = [*range(layer.before), *(places.get(name, layer.before) for name in ours),
            *range(table.shape[1] - layer.after, table.shape[1])]
  return np.take(array, table[:, wanted].ravel(), axis=axis)


def with_classes(name: str, array: np.ndarray, other: np.ndarray, ours: Sequence[str],
                 chosen: Sequence[str]) -> np.ndarray:
  """A classification layer in which the numbers about some classes are those of another one.

  Args:
    name: torch's, of the layer's kernel or bias.
    array: either, in our layout.
    other: of the same shape.
    ours: the names of the classes of both.
    chosen: those whose numbers are taken from `other`.

  >>> name, bias = 'head.classification_head.module_list.0.bias', np.arange(6)
  >>> with_classes(name, bias, 10 + bias, ('cat', 'dog'), ('dog',)).tolist()
  [0, 1, 12, 3, 4, 15]
  """
  layer = _layer_of(name)
  table = _table(layer, array.shape[-1], len(ours))
  index = table[:, [layer.before + i for i, name in enumerate(ours) if name in chosen]].ravel()
  array = array.copy()
  array[..., index] = other[..., index]
  return array


def _layer_of(name: str) -> _Layer | None:
  return next((layer for layer in _LAYERS if layer.pattern.search(name)), None)


def _table(layer: _Layer, length: int, classes: int) -> np.ndarray | None:
  """Where each number of a layer stands: `[anchors, logits, each]`; None where it is not one of so many classes."""
  rows = layer.before + classes + layer.after
  anchors, rest = divmod(length, rows * layer.each)
  if rest or (layer.each > 1 and anchors != 1):
    return None
  return np.arange(length).reshape(anchors, rows, layer.each)
