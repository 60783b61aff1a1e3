"""Predictions as JSON, with the file's own class ids and names; each file states its own format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any

import numpy as np

from vision_jax.conventions import ClassMap
from vision_jax.host.boxes import xyxy_to_xywh

# (file name, (height, width), prediction) of each image
Predictions = Sequence[tuple[str, tuple[int, int], Mapping[str, np.ndarray]]]


def write_detections(path: str | pathlib.Path, predictions: Predictions, classes: ClassMap, *,
                     threshold: float = 0.0) -> None:
  """Writes detections in the shape of a COCO annotation file, with a score and a label beside each box.

  Args:
    path: of the JSON file; `bbox_format` in it says `xywh`: x and y of the top left corner, width and height, in pixels
      of the image. Its `annotations` are what COCO's `loadRes` takes.
    predictions: (file name, (height, width), `boxes [M, 4]` xyxy, `scores [M]`, `labels [M]`) of each image.
    classes: the file ids and names.
    threshold: the least score that is written.
  """
  images, annotations = [], []
  for image_id, (name, (height, width), prediction) in enumerate(predictions):
    images.append({'id': image_id, 'file_name': name, 'height': height, 'width': width})
    boxes = xyxy_to_xywh(np.asarray(prediction['boxes'], np.float64))
    for box, score, label in zip(boxes, prediction['scores'], prediction['labels'], strict=True):
      if score >= threshold:
        annotations.append({'image_id': image_id, 'category_id': classes.ids[label], 'label': classes.names[label],
                            'bbox': [round(float(x), 2) for x in box], 'score': round(float(score), 5)})
  categories = [{'id': i, 'name': name} for i, name in zip(classes.ids, classes.names, strict=True)]
  _write(path, {'bbox_format': 'xywh', 'images': images, 'categories': categories, 'annotations': annotations})


def write_classifications(path: str | pathlib.Path, predictions: Predictions, classes: ClassMap, *,
                          top: int = 5) -> None:
  """Writes the `top` most probable classes of each image, most probable first."""
  images = []
  for name, _, prediction in predictions:
    order = np.argsort(-prediction['probabilities'], kind='stable')[:top]
    images.append({'file_name': name, 'top': [
        {'category_id': classes.ids[k], 'label': classes.names[k],
         'probability': round(float(prediction['probabilities'][k]), 5)} for k in order]})
  _write(path, {'images': images})


def _write(path: str | pathlib.Path, content: Any) -> None:
  pathlib.Path(path).write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
