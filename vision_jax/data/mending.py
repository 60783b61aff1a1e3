"""A mended copy of a data set: what is sound, without the entries that have errors. The original is only read.

Units: boxes are xyxy in pixels; sizes are (h, w).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import os
import pathlib
import shutil
from typing import Any

import numpy as np

from vision_jax.data.files import image_size
from vision_jax.data.formats.layout import SPLIT_FOLDERS
from vision_jax.data.records import Finding, Labelled, Object, Record
from vision_jax.data.writers import WRITERS
from vision_jax.host.boxes import clip

# What the writers do to findings that are no errors; what is not here stays as it is.
_DONE = {
    'box-clipped': 'the box is clipped',
    'annotation-id-0': 'the annotations are numbered from 1',
    'annotation-id-twice': 'the annotations are numbered from 1',
    'image-unlabelled': 'the image has no objects in the copy either',
    'image-extra': 'not copied',
    'label-orphan': 'not copied',
    'file-unknown': 'not copied',
}
_IMAGE_FAULTS = ('image-corrupt', 'image-truncated', 'image-missing', 'image-size')
_MASK_FAULTS = ('mask-corrupt', 'mask-size', 'mask-values')  # of a mask that says the class of every pixel


def mend(labelled: Labelled, findings: Iterable[Finding], folder: str | os.PathLike[str]) -> list[str]:
  """Writes a mended copy of a split, in the same format.

  Args:
    labelled: a split.
    findings: what `check_labels` and `check_images` found in it, beside what its reader found.
    folder: of the copy, outside of the data set; both splits go to the same one.

  Returns:
    A line for each finding, which says what became of it, and one for what was written. Entries with errors are left
    out, and images that cannot be read with all their labels; boxes are clipped; whatever needs a look stays. Folders
    without train and val are divided in the copy, so that each image stays in its split.

  Raises:
    ValueError: a format that cannot be written, a split that is there already, a folder inside of the data set, boxes
      in another format than the file's.
  """
  folder = pathlib.Path(folder)
  if folder.resolve().is_relative_to(labelled.root.resolve()):
    raise ValueError(f'{folder} lies in the data set {labelled.root}; choose a folder outside of it')
  if labelled.format not in (*WRITERS, *COPIES):
    raise ValueError(f'{labelled.format} cannot be written; a mended copy is made of {", ".join((*WRITERS, *COPIES))}')
  unclear = next((finding for finding in labelled.findings if finding.kind == 'box-format'), None)
  if unclear is not None:
    raise ValueError(f'{unclear}; no copy can mend that: {unclear.rule.remedy}')
  findings = tuple(findings)
  sound = dataclasses.replace(labelled, records=tuple(_sound(labelled, findings)))
  lines = [f'{finding}; {_done(finding)}' for finding in (*labelled.findings, *findings)]
  if labelled.format in WRITERS:
    options = {'masks': True} if labelled.format == 'yolo' else {}
    return [*lines, f'{labelled.split}: {WRITERS[labelled.format](sound, folder, **options)}']
  if not sound.records:
    raise ValueError(f'{labelled.root} ({labelled.split}) has no sound image; nothing can be copied')
  count = sum(map(_copy, COPIES[labelled.format](sound, folder)))
  return [*lines, f'{labelled.split}: {len(sound.records)} images, {count} files']


def _done(finding: Finding) -> str:
  if finding.kind in _DONE:
    return _DONE[finding.kind]
  return 'left out' if finding.rule.severity == 'error' else f'stays as it is ({finding.rule.remedy})'


def _sound(labelled: Labelled, findings: tuple[Finding, ...]) -> Iterator[Record]:
  """The records without the errors that their reader let pass, and with clipped boxes where it told of some."""
  whole = {finding.item for finding in findings if finding.kind in _IMAGE_FAULTS or (
      finding.kind in _MASK_FAULTS and 'segmentation' in labelled.fields)}
  bad = {(finding.item, finding.where) for finding in findings if finding.rule.severity == 'error'}
  over = {(finding.item, finding.where) for finding in (*labelled.findings, *findings) if finding.kind == 'box-clipped'}
  for item, record in enumerate(labelled.records):
    if item not in whole:
      objects = tuple(_clipped(each, record, labelled.format == 'yolo') if (item, each.where) in over else each
                      for each in record.objects if (item, each.where) not in bad)
      yield dataclasses.replace(record, objects=objects)


def _clipped(each: Object, record: Record, outline: bool) -> Object:
  size = record.size or image_size(record.path)
  mask = _within(each.mask, size) if outline else each.mask  # the boxes of YOLO's polygons are made of them
  return dataclasses.replace(each, box=tuple(clip(each.box, size).tolist()), mask=mask)


def _within(mask: Any, size: tuple[int, int]) -> Any:
  """A mask whose polygons stay in the image."""
  if not mask or 'polygons' not in mask:
    return mask
  points = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in mask['polygons']]
  return {'polygons': tuple(np.clip(each, 0, size[::-1]).ravel().tolist() for each in points)}


def _class_folders(labelled: Labelled, folder: pathlib.Path) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
  """(file, place in the copy) as <split>/<class>/<image>."""
  for record in labelled.records:
    yield record.path, folder / labelled.split / _below_split(labelled, record.name)


def _mask_folders(labelled: Labelled, folder: pathlib.Path) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
  """As images/<split>/<name> and masks/<split>/<name>, and text files beside them, which may name the classes."""
  lists = [f'{name}.txt' for names in SPLIT_FOLDERS.values() for name in names]
  yield from ((file, folder / file.name) for file in sorted(labelled.root.glob('*.txt')) if file.name not in lists)
  for record in labelled.records:
    mask = pathlib.Path(record.segmentation['path'])
    place = _below_split(labelled, record.name, 'images')
    yield record.path, folder / 'images' / labelled.split / place
    yield mask, (folder / 'masks' / labelled.split / place).with_suffix(mask.suffix)


def _object_folders(labelled: Labelled, folder: pathlib.Path) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
  """As <split>/<id>/images/<image> and <split>/<id>/masks/<mask>."""
  for record in labelled.records:
    for name in (record.name, *(each.where for each in record.objects)):
      yield labelled.root / name, folder / labelled.split / _below_split(labelled, name)


COPIES: dict[str, Callable[[Labelled, pathlib.Path], Iterator[tuple[pathlib.Path, pathlib.Path]]]] = {
    'image_folder': _class_folders,
    'identities': _class_folders,
    'mask_folder': _mask_folders,
    'object_masks': _object_folders,
}


def _below_split(labelled: Labelled, name: str, part: str = '') -> pathlib.PurePath:
  """A path without the folders of its split, and of the images, that lead it."""
  parts = pathlib.PurePath(name).parts
  for _ in range(2):
    if len(parts) > 1 and parts[0] in (*SPLIT_FOLDERS[labelled.split], part):
      parts = parts[1:]
  return pathlib.PurePath(*parts)


def _copy(pair: tuple[pathlib.Path, pathlib.Path]) -> int:
  """Copies a file; 0 where it is a text file that the other split has brought already."""
  file, place = pair
  if place.exists():
    if place.suffix == '.txt':
      return 0
    raise ValueError(f'{place} exists; choose another folder')
  place.parent.mkdir(parents=True, exist_ok=True)
  shutil.copyfile(file, place)
  return 1
