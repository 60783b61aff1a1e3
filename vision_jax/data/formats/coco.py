"""COCO's JSON: boxes, polygons, run lengths, crowds, and class ids with gaps.

Units: the file's boxes are x, y, width, height in continuous pixels; ours are xyxy. Four numbers alone do not tell
which of the two they are, so nothing is guessed: a file that states another `bbox_format` is refused, and one whose
boxes only make sense as corners has an error in its findings.

Reference: T.-Y. Lin et al., Microsoft COCO: Common Objects in Context, arXiv:1405.0312; cocodataset.org/#format-data.
"""

from __future__ import annotations

import array
from collections.abc import Iterator, Mapping
import contextlib
import gc
import json
import math
import os
import pathlib
from typing import Any

from vision_jax.conventions import ClassMap
from vision_jax.data.digits import check_split
from vision_jax.data.files import image_size
from vision_jax.data.formats.layout import (
  SPLIT_FOLDERS,
  box_fault,
  cause,
  check_folder,
  given_path,
  read_text,
  relative_name,
  the_only,
)
from vision_jax.data.records import Finding, Labelled, Object, Record, Size
from vision_jax.host import rle

_TRIED = 50  # images that are looked for in each folder that may hold them
_BOX_MISREAD = 3  # boxes that must say xyxy before the file is taken to be wrong


def read(split: str, *, path: str | os.PathLike[str], annotations: str | Mapping[str, str] | None = None,
         images: str | Mapping[str, str] | None = None, masks: bool | None = False) -> Labelled:
  """Reads the COCO annotations of one split.

  Args:
    split: 'train' or 'val'.
    path: the data set's folder.
    annotations: the JSON file below it, '{split}' standing for the split, or {split: file}. Found when left out:
      `annotations/instances_<split>*.json`, `annotations/<split>*.json`, `<split>.json`,
      `<split>/_annotations.coco.json`; 'valid' and 'validation' stand for 'val' too.
    images: the folder of the images, in the same manner. Found when left out: what begins with the split's name, the
      same below `images`, `images`, the JSON's own folder, or `path`.
    masks: True gives the masks too, and an object without one is an error; None keeps the masks where there are some,
      for conversions.

  Returns:
    The images in the file's order, those without annotations too; classes by ascending category id.

  Raises:
    ValueError: no or several candidates for a file or folder; no JSON (with line and column) or not COCO's; categories
      without id or name, or with one twice; a `bbox_format` in it that is not 'xywh'.

  >>> read('train', path='no/such/folder')
  Traceback (most recent call last):
  ValueError: coco: no such folder: no/such/folder; give data.path, the folder of the data set
  """
  root = check_folder('coco', path)
  file = _find_annotations(root, check_split('coco', split), annotations)
  name, findings = relative_name(file, root), []
  with _garbage_left_alone():
    content = _load(file, keep_masks=masks is not False)
    entries = _image_entries(content['images'], name, findings)
    folder = _find_images(root, file, split, images, [entry['file_name'] for entry in entries])
    reading = _Reading(root, folder, name, _classes(file, content['categories']), masks, findings)
    reading.add_images(entries)
    reading.add_annotations(content['annotations'])
    records = reading.records()
  fields = ('boxes', 'labels', 'masks') if masks else ('boxes', 'labels')
  return Labelled(records, reading.classes, fields, tuple(findings), root, 'coco', split)


@contextlib.contextmanager
def _garbage_left_alone() -> Iterator[None]:
  """Holds Python's search for cycles, which walks through all objects again and again as millions are made."""
  held = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if held:
      gc.enable()


class _Bad(Exception):
  """(kind of finding, what is wrong) with one annotation."""


class _Reading:
  """The images of a file as they fill with objects, and what is found wrong on the way."""

  def __init__(self, root: pathlib.Path, folder: pathlib.Path, name: str, classes: ClassMap, masks: bool | None,
               findings: list[Finding]):
    self.root, self.folder, self.name, self.classes, self.masks = root, folder, name, classes, masks
    self.findings = findings
    self._labels = {file_id: label for label, file_id in enumerate(classes.ids)}
    self._images: list[tuple[pathlib.Path, Size, int | str]] = []
    self._objects: list[list[Object]] = []
    self._place: dict[Any, int | None] = {}  # image id -> place, None for an image that is left out
    self._ids: set[int | str] = set()
    self._boxes = self._leaving = 0  # how many there are, and how many leave their image
    self._could_be_corners = True

  def add_images(self, entries: list[dict[str, Any]]) -> None:
    """Takes the images whose file is there."""
    for entry in entries:
      file, where = self.folder / entry['file_name'].replace('\\', '/'), f'{self.name}: image {entry["id"]}'
      self._place[entry['id']] = None
      if not os.path.isfile(file):
        self._find('image-missing', where, f'{relative_name(file, self.root)} does not exist')
        continue
      size = entry.get('height'), entry.get('width')
      if not all(isinstance(side, int) and side > 0 for side in size):
        try:
          size = image_size(file)
        except ValueError as error:
          self._find('image-corrupt', where, cause(error, file))
          continue
      self._place[entry['id']] = len(self._images)
      self._images.append((file, size, entry['id']))
      self._objects.append([])

  def add_annotations(self, entries: list[Any]) -> None:
    """Puts the sound objects to their images."""
    for k, entry in enumerate(entries):
      known = isinstance(entry, dict)
      where = f'{self.name}: annotation {entry["id"]}' if known and 'id' in entry else f'{self.name}: annotations[{k}]'
      place = None
      try:
        if not known or not isinstance(entry.get('image_id'), int | str):
          raise _Bad('label-syntax', 'it has no image_id; an annotation has image_id, category_id and bbox')
        if entry['image_id'] not in self._place:
          raise _Bad('label-orphan', f'image_id {entry["image_id"]!r} is not among the images')
        place = self._place[entry['image_id']]
        if place is not None:
          self._objects[place].append(self._object(entry, where, place))
      except _Bad as bad:
        self._find(*bad.args[:1], where, bad.args[1], place)
    if self._could_be_corners and self._leaving >= _BOX_MISREAD:
      self._find('box-format', self.name, f'{self._leaving} of {self._boxes} boxes leave their image when read as x, '
                 "y, width, height, COCO's order, and none as x1, y1, x2, y2")

  def records(self) -> tuple[Record, ...]:
    return tuple(Record(file, relative_name(file, self.root), size, image_id, tuple(objects), where=self.name)
                 for (file, size, image_id), objects in zip(self._images, self._objects, strict=True))

  def _find(self, kind: str, where: str, what: str, item: int | None = None) -> None:
    self.findings.append(Finding(kind, where, what, item))

  def _object(self, entry: dict[str, Any], where: str, place: int) -> Object:
    category = entry.get('category_id')
    label = self._labels.get(category) if isinstance(category, int) else None
    if label is None:
      raise _Bad('class-unknown', f'category_id {category!r} is not among the categories')
    size = self._images[place][1]
    box = self._box(entry.get('bbox'), where, size, place)
    mask = None if self.masks is False else _mask(entry.get('segmentation'), size, self.masks is True)
    file_id, area = entry.get('id'), entry.get('area')
    if isinstance(file_id, int | str):
      if file_id in self._ids:
        self._find('annotation-id-twice', where, 'the id stands twice', place)
      self._ids.add(file_id)
      if file_id == 0:
        self._find('annotation-id-0', where, "COCO's own evaluation loses this object", place)
    return Object(box, label, where, mask, bool(entry.get('iscrowd')), bool(entry.get('difficult')),
                  float(area) if isinstance(area, int | float) else None,
                  file_id if isinstance(file_id, int | str) else None)

  def _box(self, bbox: Any, where: str, size: Size, place: int) -> tuple[float, float, float, float]:
    try:
      x, y, w, h = map(float, bbox)
    except (TypeError, ValueError):
      raise _Bad('label-syntax', f'bbox is {str(bbox)[:60]}, not four numbers x, y, width, height') from None
    box = (x, y, x + w, y + h)
    fault = box_fault(box, size)
    self._boxes += 1
    self._leaving += fault is not None and fault[0] in ('box-clipped', 'box-outside')
    self._could_be_corners = self._could_be_corners and x < w <= size[1] and y < h <= size[0]
    if fault is not None:
      if fault[0] != 'box-clipped':
        raise _Bad(*fault)
      self._find(fault[0], where, fault[1], place)
    return box


def _mask(segmentation: Any, size: Size, needed: bool) -> dict[str, Any] | None:
  """An object's mask, checked; None where there is none and none is needed."""
  if not segmentation:
    if needed:
      raise _Bad('mask-missing', 'it has no segmentation')
    return None
  if isinstance(segmentation, dict):
    try:
      lengths = rle.run_lengths(segmentation)
    except ValueError as error:
      raise _Bad('rle-bad', str(error)) from None
    if tuple(segmentation['size']) != tuple(size):
      raise _Bad('mask-size', f'the mask has size {list(segmentation["size"])}, its image {list(size)}, both (h, w)')
    if not lengths[1::2].any():
      raise _Bad('mask-empty', 'the mask has no pixel')
    return {'rle': segmentation}
  for i, polygon in enumerate(segmentation if isinstance(segmentation, list) else [segmentation]):
    if not isinstance(polygon, array.array):
      raise _Bad('polygon-bad', f'polygon {i} is not a list of numbers x, y, x, y, ...')
    if len(polygon) < 6 or len(polygon) % 2:
      raise _Bad('polygon-bad', f'polygon {i} has {len(polygon)} numbers, not x and y of three points or more')
    if not math.isfinite(sum(polygon)):
      raise _Bad('polygon-bad', f'polygon {i} has a coordinate that is not finite')
  return {'polygons': tuple(segmentation)}


def _load(file: pathlib.Path, *, keep_masks: bool) -> dict[str, Any]:
  """The file's content, with `images`, `annotations` and `categories` in it, polygons as arrays of doubles."""

  def compact(entry: dict[str, Any]) -> dict[str, Any]:
    # At once, while the file is read: as lists of floats the polygons of COCO's 118,000 images take gigabytes.
    if 'segmentation' in entry:
      entry['segmentation'] = _compact(entry['segmentation']) if keep_masks else None
    return entry

  try:
    content = json.loads(read_text(file), object_hook=compact)
  except json.JSONDecodeError as error:
    raise ValueError(f'{file}:{error.lineno}: not JSON: {error.msg} (column {error.colno}); write the file again, or '
                     'mend that place') from error
  except RecursionError as error:
    raise ValueError(f'{file}: no COCO annotations: it is nested too deep; write the file again') from error
  for key in ('images', 'annotations', 'categories'):
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
      raise ValueError(f"{file}: no COCO annotations: it has no list '{key}'; it needs images, annotations and "
                       'categories')
  if content.get('bbox_format', 'xywh') != 'xywh':
    raise ValueError(f"{file}: it says bbox_format {content['bbox_format']!r}; COCO's boxes are x, y, width, height: "
                     "convert them and write 'xywh'")
  return content


def _compact(segmentation: Any) -> Any:
  if not isinstance(segmentation, list):
    return segmentation
  try:
    return [array.array('d', polygon) for polygon in segmentation]
  except (TypeError, ValueError, OverflowError):
    return segmentation


def _image_entries(entries: list[Any], name: str, findings: list[Finding]) -> list[dict[str, Any]]:
  """The images that have an id of their own and a file name."""
  sound, ids = [], set()
  for k, entry in enumerate(entries):
    if not (isinstance(entry, dict) and isinstance(entry.get('id'), int | str)
            and isinstance(entry.get('file_name'), str)):
      findings.append(Finding('label-syntax', f'{name}: images[{k}]', 'it is no object with id and file_name'))
    elif entry['id'] in ids:
      findings.append(Finding('image-id-twice', f'{name}: image {entry["id"]}',
                              f'the id stands twice, again for {entry["file_name"]}'))
    else:
      ids.add(entry['id'])
      sound.append(entry)
  return sound


def _classes(file: pathlib.Path, categories: list[Any]) -> ClassMap:
  for k, entry in enumerate(categories):
    if not isinstance(entry, dict) or not isinstance(entry.get('id'), int) or not isinstance(entry.get('name'), str):
      raise ValueError(f'{file}: categories[{k}] is no object with a whole number as id and a name; write it again')
  ordered = sorted(categories, key=lambda entry: entry['id'])
  try:
    return ClassMap(names=tuple(entry['name'] for entry in ordered), ids=tuple(entry['id'] for entry in ordered))
  except ValueError as error:
    raise ValueError(f'{file}: {error}') from error


def _find_annotations(root: pathlib.Path, split: str, given: str | Mapping[str, str] | None) -> pathlib.Path:
  if given is not None:
    return given_path('coco: data.annotations', given, split, root, alone=True)
  patterns = ('annotations/instances_{}*.json', 'annotations/{}*.json', '{}.json', '{}/_annotations.coco.json')
  found = [file for name in SPLIT_FOLDERS[split] for pattern in patterns for file in root.glob(pattern.format(name))]
  return the_only(found, f'coco: no annotations of split {split} in {root}',
                  f"give data.annotations, for example 'annotations/instances_{{split}}.json' (looked for "
                  f'{", ".join(pattern.format(split) for pattern in patterns)})')


def _find_images(root: pathlib.Path, file: pathlib.Path, split: str, given: str | Mapping[str, str] | None,
                 names: list[str]) -> pathlib.Path:
  if given is not None:
    return given_path('coco: data.images', given, split, root)
  folders = [place for base in (root, root / 'images') for name in SPLIT_FOLDERS[split]
             for place in sorted(base.glob(f'{name}*')) if place.is_dir()]
  folders += [root / 'images', file.parent, root]
  tried = [name.replace('\\', '/') for name in names[:_TRIED]]
  holding = [folder for folder in folders if any((folder / name).is_file() for name in tried)]
  if not names:
    return root
  return the_only(holding, f'coco: no folders with the images of {relative_name(file, root)}, the first is '
                  f'{tried[0]!r}', f'give data.images, the folder below {root}')
