"""What is wrong with a data set: with the labels of a split, between two splits, and all of it at once.

Units: boxes are xyxy in pixels; sizes are (h, w).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
import itertools
import os
import pathlib
from typing import Any

import numpy as np

from vision_jax.data.files import ON_ERROR, check_option, stop_on_errors
from vision_jax.data.findings import summary
from vision_jax.data.formats import READERS
from vision_jax.data.formats.idx import IdxFiles
from vision_jax.data.formats.layout import TOLERANCE, box_fault
from vision_jax.data.formats.tfds import TfdsSource
from vision_jax.data.image_checks import Seen, check_images, near_identical
from vision_jax.data.records import Finding, Labelled, Object, Record
from vision_jax.host.boxes import area

FORMATS: dict[str, Callable[..., Any]] = {**READERS, 'idx': IdxFiles, 'tfds': TfdsSource}
BETWEEN = 'between the splits'
SAME_BOX = 0.9  # IoU above which two boxes of a class in one image are probably one object, labelled twice
TINY = 1.0  # pixels: a box no wider, or no higher, is probably a slip of the mouse
_NAMED = 8  # classes that stand in a message


@dataclasses.dataclass
class Checked:
  """What was checked, and what was found.

  Args:
    labelled: split -> its labels, for those that can be read.
    findings: split, and 'between the splits' where there are two -> its findings, first those of the reader.
    seen: split -> what its images look like, where they were opened.
    sources: split -> what gives its images, where they are no files of their own.
  """

  labelled: dict[str, Labelled] = dataclasses.field(default_factory=dict)
  findings: dict[str, tuple[Finding, ...]] = dataclasses.field(default_factory=dict)
  seen: dict[str, Seen] = dataclasses.field(default_factory=dict)
  sources: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def sound(self) -> bool:
    """Whether there is no error."""
    return all(each.rule.severity != 'error' for found in self.findings.values() for each in found)


def check_data(name: str, options: Mapping[str, Any], *, splits: Sequence[str] = ('train', 'val'), images: bool = True,
               workers: int = 4, progress: Callable[..., Iterable[Any]] = lambda looks, split, total: looks) -> Checked:
  """Checks a data set: the labels of each split, its images, and the splits against each other.

  Args:
    name: of the format, a name out of `FORMATS`.
    options: of its reader.
    splits: to check.
    images: whether to open them.
    workers: threads that read images.
    progress: is given an iterator over what the images of a split show, the split, and how many there are, and passes
      the iterator's elements on.

  Returns:
    All findings. A split that cannot be read is one of them.

  >>> found = check_data('voc', {'path': 'no/such/folder'}).findings['train']
  >>> print(found[0])
  train: voc: no such folder: no/such/folder; give data.path, the folder of the data set
  """
  checked = Checked()
  for split in splits:
    try:
      if name in READERS:
        checked.labelled[split] = READERS[name](split, **options)
      else:
        checked.sources[split] = FORMATS[name](split, on_error='skip', **options)
        checked.labelled[split] = labels_of(checked.sources[split], root=options.get('path', '.'), name=name,
                                            split=split)
      labelled = checked.labelled[split]
      checked.findings[split] = (*labelled.findings, *check_labels(labelled))
    except ValueError as error:
      checked.findings[split] = (Finding('split-unreadable', split, str(error)),)
  for split, labelled in checked.labelled.items() if images else ():
    found, checked.seen[split] = check_images(
        labelled, workers=workers, source=checked.sources.get(split),
        progress=functools.partial(progress, split=split, total=len(labelled.records)))
    checked.findings[split] += found
  if {'train', 'val'} <= checked.labelled.keys():
    checked.findings[BETWEEN] = check_splits(checked.labelled['train'], checked.labelled['val'],
                                             checked.seen.get('train'), checked.seen.get('val'))
  return checked


def check_labels(labelled: Labelled) -> tuple[Finding, ...]:
  """What is wrong with one split by its labels alone, beside what its reader found.

  Args:
    labelled: a split.

  Returns:
    Findings that are not among `labelled.findings`: a split without images, gaps between class ids, probable
    duplicates (boxes of one class in one image with an IoU above 0.9, crowds aside), boxes of a pixel or less, and
    boxes of zero size, inverted, not finite, or outside the size that the labels state, where the reader let one pass.

  >>> import pathlib
  >>> from vision_jax.conventions import ClassMap
  >>> empty = Labelled((), ClassMap(names=('cat',)), ('boxes', 'labels'), (), pathlib.Path('cats'), 'yolo')
  >>> print(check_labels(empty)[0])
  cats (train): the split has no image
  """
  place = f'{labelled.root.name} ({labelled.split})'
  if not labelled.records:
    return (Finding('split-empty', place, 'the split has no image'),)
  findings = list(_class_gaps(labelled, place))
  if 'boxes' in labelled.fields:
    items, objects = _objects(labelled)
    boxes = np.array([each.box for each in objects], np.float64).reshape(-1, 4)
    findings += _bad_boxes(labelled, items, objects, boxes)
    findings += _tiny(labelled, items, objects, boxes)
    findings += _twice(labelled, items, objects, boxes)
  return new_findings(labelled, findings)


def check_splits(train: Labelled, val: Labelled, train_seen: Seen | None = None,
                 val_seen: Seen | None = None) -> tuple[Finding, ...]:
  """What is wrong between two splits.

  Args:
    train: the split to train on.
    val: the split to measure on.
    train_seen: what `check_images` saw of `train`; without it and the next images are told apart by their paths alone.
    val_seen: the same of `val`.

  Returns:
    Images of `val` that are in `train` too, by path or, where both were seen, by content (`near_identical` has the
    rule); and classes that one of the splits, or both, do not have. `item` is a place in `val`, where it is not None.
  """
  findings = [*_absent(train, train_seen), *_absent(val, val_seen)]
  places = {os.path.abspath(record.path): record.name for record in train.records}
  shared = set()
  for item, record in enumerate(val.records):
    other = places.get(os.path.abspath(record.path))
    if other is not None:
      shared.add(item)
      findings.append(Finding('split-overlap', record.name, 'the file is in train and in val', item))
  if train_seen is not None and val_seen is not None:
    for item, other, what in near_identical(train_seen, val_seen):
      if item not in shared:
        findings.append(Finding('image-duplicate', val.records[item].name,
                                f'in val, looks like {train.records[other].name} in train ({what})', item))
  return new_findings(val, findings)


def require_clean(train: Labelled, val: Labelled, *, on_error: str = 'stop') -> list[str]:
  """Refuses data whose labels have errors, or says what is left out: what training does first.

  Args:
    train: the split to train on.
    val: the split to measure on.
    on_error: 'stop' raises when there is an error; 'skip' goes on.

  Returns:
    A line for each entry that is left out, and one that counts the warnings and notes, if there are any.

  Raises:
    ValueError: errors with on_error='stop', in one line with the first of them and the remedy; an unknown `on_error`.

  >>> import pathlib
  >>> from vision_jax.conventions import ClassMap
  >>> empty = Labelled((), ClassMap(names=('cat',)), ('boxes', 'labels'), (), pathlib.Path('cats'), 'yolo')
  >>> require_clean(empty, empty, on_error='skip')[0]
  'error: cats (train): the split has no image; training has nothing to learn from, or to measure on'
  """
  check_option('on_error', on_error, ON_ERROR)
  lines, others = [], []
  for labelled, more in ((train, ()), (val, check_splits(train, val))):
    findings = (*labelled.findings, *check_labels(labelled), *more)
    if on_error == 'stop':
      stop_on_errors(dataclasses.replace(labelled, findings=findings))
    lines += [f'error: {finding}; {finding.rule.action}' for finding in findings if finding.rule.severity == 'error']
    others += [finding for finding in findings if finding.rule.severity != 'error']
  if others:
    lines.append(f'the labels have {summary(others)}; experiments/check_data.py shows each')
  return lines


def new_findings(labelled: Labelled, findings: Iterable[Finding]) -> tuple[Finding, ...]:
  """Those findings that the reader of the labels does not have, of the same kind at the same place."""
  known = {(finding.kind, finding.where) for finding in labelled.findings}
  return tuple(finding for finding in findings if (finding.kind, finding.where) not in known)


def labels_of(source: Any, *, root: str | os.PathLike[str], name: str, split: str) -> Labelled:
  """The labels of a source whose images are no files of their own, such as 'idx'.

  Args:
    source: with `target`, `name_of`, `classes`, `fields` and, where it has some, `findings`.
    root: the data set's folder.
    name: of the format.
    split: 'train' or 'val'.

  Returns:
    A record for each image, with its label or its boxes; class maps are left out.

  >>> from vision_jax.data.digits import Digits
  >>> class_counts(labels_of(Digits('val', size=4), root='.', name='digits', split='val')).tolist()
  [0, 0, 1, 1, 1, 1, 0, 0, 0, 0]
  """
  fields = tuple(field for field in source.fields if field in ('label', 'boxes', 'labels'))
  records = []
  for item in range(len(source)):
    target, place = source.target(item), source.name_of(item)
    objects = tuple(Object(tuple(map(float, box)), int(label), f'{place}: object {k}') for k, (box, label) in
                    enumerate(zip(target.get('boxes', ()), target.get('labels', ()), strict=True)))
    records.append(Record(pathlib.Path(place), place, objects=objects, label=target.get('label')))
  return Labelled(tuple(records), source.classes, fields, tuple(getattr(source, 'findings', ())), pathlib.Path(root),
                  name, split)


def class_counts(labelled: Labelled) -> np.ndarray:
  """How often each class occurs.

  Args:
    labelled: a split.

  Returns:
    int64 [K]: objects for detection, images for classification; zeros for segmentation, whose masks are not opened.
  """
  labels = [each.label for record in labelled.records for each in record.objects]
  labels += [record.label for record in labelled.records if record.label is not None]
  return np.bincount(np.array(labels, np.int64), minlength=len(labelled.classes))


def _class_gaps(labelled: Labelled, place: str) -> Iterator[Finding]:
  ids = sorted(labelled.classes.ids)
  gaps = ((a + 1, b) for a, b in itertools.pairwise(ids))
  missing = list(itertools.islice(itertools.chain(*(range(*gap) for gap in gaps)), _NAMED))  # they may be millions
  told = any(finding.kind == 'class-gap' for finding in labelled.findings)
  # A split of identities has only its own part of the ids, and the values of masks are their reader's matter.
  if missing and not told and labelled.format not in ('identities', 'mask_folder'):
    yield Finding('class-gap', place, f'the class ids run from {ids[0]} to {ids[-1]} without '
                  + _listed(missing, ids[-1] - ids[0] + 1 - len(ids)))


def _absent(labelled: Labelled, seen: Seen | None) -> Iterator[Finding]:
  """One finding for all classes that a split does not have, unless its reader named them."""
  counts = class_counts(labelled)
  if 'segmentation' in labelled.fields:
    counts = None if seen is None else seen.pixels
  if counts is None or any(finding.kind == 'class-absent' for finding in labelled.findings):
    return
  names = [name for name, count in zip(labelled.classes.names, counts, strict=True) if count == 0]
  if names and labelled.records:
    what = 'pixel' if 'segmentation' in labelled.fields else 'object' if 'boxes' in labelled.fields else 'image'
    yield Finding('class-absent', f'{labelled.root.name} ({labelled.split})', f'no {what} of {len(names)} of the '
                  f'{len(labelled.classes)} classes: {_listed(names, len(names))}')


def _listed(values: Sequence[object], count: int) -> str:
  more = f' and {count - _NAMED} more' if count > _NAMED else ''
  return ', '.join(map(str, values[:_NAMED])) + more


def _objects(labelled: Labelled) -> tuple[np.ndarray, list[Object]]:
  """All objects, and the place of the record of each."""
  objects = [each for record in labelled.records for each in record.objects]
  items = np.repeat(np.arange(len(labelled.records)), [len(record.objects) for record in labelled.records])
  return items, objects


def _bad_boxes(labelled: Labelled, items: np.ndarray, objects: list[Object], boxes: np.ndarray) -> Iterator[Finding]:
  """Faults of boxes in images whose size the labels state."""
  sizes = np.array([record.size or (np.inf, np.inf) for record in labelled.records], np.float64)[items]
  low, high, corner = boxes[:, :2], boxes[:, 2:], sizes[:, ::-1] + TOLERANCE
  sound = (low >= -TOLERANCE) & (high <= corner) & (low < high)
  for row in np.flatnonzero(~sound.all(-1)):
    item = int(items[row])
    fault = box_fault(objects[row].box, labelled.records[item].size or (np.inf, np.inf))
    if fault is not None:
      yield Finding(fault[0], objects[row].where, fault[1], item)


def _tiny(labelled: Labelled, items: np.ndarray, objects: list[Object], boxes: np.ndarray) -> Iterator[Finding]:
  sides = boxes[:, 2:] - boxes[:, :2]
  for row in np.flatnonzero((sides > 0).all(-1) & (sides <= TINY).any(-1)):
    w, h = sides[row]
    yield Finding('box-tiny', objects[row].where, f'the box of a {labelled.classes.names[objects[row].label]} is '
                  f'{w:.3g} x {h:.3g} pixels', int(items[row]))


def _twice(labelled: Labelled, items: np.ndarray, objects: list[Object], boxes: np.ndarray) -> Iterator[Finding]:
  """Probable duplicates: neighbours in the order of image, class and left side are compared, ever further apart.

  An IoU above 0.9 leaves less than a tenth of the width between the left sides, so the search is short.
  """
  labels = np.array([each.label for each in objects], np.int64)
  usable = np.array([not each.crowd for each in objects], bool) & np.isfinite(boxes).all(-1) & (area(boxes) > 0)
  rows = np.flatnonzero(usable)
  rows = rows[np.lexsort((boxes[rows, 0], labels[rows], items[rows]))]
  reach = boxes[rows, 0] + (1 - SAME_BOX) * (boxes[rows, 2] - boxes[rows, 0])
  found = []
  for step in range(1, len(rows)):
    first, second = rows[:-step], rows[step:]
    near = (items[first] == items[second]) & (labels[first] == labels[second]) & (boxes[second, 0] <= reach[:-step])
    if not near.any():
      break
    first, second = first[near], second[near]
    overlap = _iou(boxes[first], boxes[second])
    found += [(max(a, b), min(a, b), value) for a, b, value in zip(first, second, overlap, strict=True)
              if value > SAME_BOX]
  for row, other, value in sorted(found):
    name = labelled.classes.names[labels[row]]
    yield Finding('box-duplicate', objects[row].where, f'probably the {name} of {objects[other].where} once more: the '
                  f'IoU of the two is {value:.3f}', int(items[row]))


def _iou(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
  """[n] of the pairs [n, 4] and [n, 4]."""
  sides = np.minimum(boxes_a[:, 2:], boxes_b[:, 2:]) - np.maximum(boxes_a[:, :2], boxes_b[:, :2])
  intersection = np.maximum(sides, 0.0).prod(-1)
  return intersection / (area(boxes_a) + area(boxes_b) - intersection)
