"""Predictions as JSON, with the file's own class ids and names; each file states its own format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
import os
import pathlib
from typing import Any

import numpy as np

from vision_jax.conventions import ClassMap
from vision_jax.host.boxes import xyxy_to_xywh

# (file name, (height, width), prediction) of each image
Predictions = Sequence[tuple[str, tuple[int, int], Mapping[str, np.ndarray]]]


def coco_image_ids(path: str | os.PathLike[str], names: Sequence[str]) -> tuple[int | str, ...]:
  """The ids that a COCO file has for images, so that predictions of them can be compared with it.

  Args:
    path: of the JSON file, annotations or the bare list of a test set's images.
    names: the `file_name` of each image.

  Returns:
    One id for each name.

  Raises:
    ValueError: a file that cannot be read or is not COCO's, or a name that it does not have, or has twice.
  """
  try:
    content = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
    entries = [(image['file_name'], image['id']) for image in content['images']]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(f'{path} is no COCO file with the id and file_name of its images ({type(error).__name__}: {error})'
                     ) from error
  ids = dict(entries)
  missing = next((name for name in names if name not in ids), None)
  if missing is not None or len(ids) < len(entries):
    what = f'has no image {missing!r}' if missing is not None else 'has a file_name twice'
    raise ValueError(f'{path} {what}; give the folder that its file names begin in, and one entry for each image')
  return tuple(ids[name] for name in names)


def write_detections(path: str | pathlib.Path, predictions: Predictions, classes: ClassMap, *,
                     threshold: float = 0.0, image_ids: Sequence[int | str] | None = None) -> None:
  """Writes detections in the shape of a COCO annotation file, with a score and a label beside each box.

  Args:
    path: of the JSON file; `bbox_format` in it says `xywh`: x and y of the top left corner, width and height, in pixels
      of the image. Its `annotations` are what COCO's `loadRes` takes.
    predictions: (file name, (height, width), `boxes [M, 4]` xyxy, `scores [M]`, `labels [M]`) of each image.
    classes: the file ids and names.
    threshold: the least score that is written.
    image_ids: of each image; 0, 1, ... when left out.
  """
  images, annotations = [], []
  image_ids = range(len(predictions)) if image_ids is None else image_ids
  for image_id, (name, (height, width), prediction) in zip(image_ids, predictions, strict=True):
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
