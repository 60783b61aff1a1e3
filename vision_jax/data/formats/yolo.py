"""YOLO's text labels: one file an image, one object a line, numbers as shares of the image's width and height.

A line is `class cx cy w h`, a box by its centre, or `class x y x y x y ...`, a polygon of three points or more, whose
box is the tightest around it.

Reference: J. Redmon, Darknet, pjreddie.com/darknet/yolo.
"""

from __future__ import annotations

import array
from collections.abc import Mapping, Sequence
import os
import pathlib
from typing import Any, NamedTuple

from vision_jax.conventions import ClassMap
from vision_jax.data.digits import check_split
from vision_jax.data.files import image_size
from vision_jax.data.formats.layout import (
  SPLIT_FOLDERS,
  box_fault,
  cause,
  check_folder,
  given_path,
  images_in,
  read_text,
  relative_name,
  the_only,
)
from vision_jax.data.records import Finding, Labelled, Object, Record, Size

_LARGEST = 1.01  # shares of the image above this are no rounding, but pixels
_NOT_LABELS = ('classes.txt', 'train.txt', 'val.txt', 'test.txt')


class _Entry(NamedTuple):
  """An image of a split, its label file, and where the split has it from."""

  image: pathlib.Path
  note: pathlib.Path
  where: str


def read(split: str, *, path: str | os.PathLike[str], classes: Sequence[str] | None = None,
         images: str | Mapping[str, str] | None = None, masks: bool | None = False) -> Labelled:
  """Reads the YOLO labels of one split.

  Args:
    split: 'train' or 'val'.
    path: the data set's folder, with `images/<split>` and `labels/<split>`, or `<split>/images` and `<split>/labels`
      ('valid' and 'validation' stand for 'val' too), or `<split>.txt`, which lists images; their labels stand where
      `labels` takes the place of `images` in the path, or beside them.
    classes: the names of the classes in order. When left out they come from `names` in a YAML file of the folder
      (a list, or a dict from numbers), or from a file with a name in each line: `classes.txt` or `*.names`.
    images: the folder or the list below `path`, '{split}' standing for the split, or {split: place}, where they are not
      found as above.
    masks: True gives the masks of polygons too, and a line that is only a box is an error; None keeps the masks where
      there are some, for conversions.

  Returns:
    The images in natural order, or the list's. An image without a label file, or with an empty one, has no objects;
    one without a file is a finding too. Sizes are read from the images' headers.

  Raises:
    ValueError: no or several candidates for the folders or the names; a names file that cannot be read.

  >>> read('train', path='data/cats')
  Traceback (most recent call last):
  ValueError: yolo: no such folder: data/cats; give data.path, the folder of the data set
  """
  root = check_folder('yolo', path)
  findings: list[Finding] = []
  entries = _entries(root, check_split('yolo', split), images, findings)
  names = _names(root) if classes is None else ClassMap(tuple(classes))
  labels = {file_id: label for label, file_id in enumerate(names.ids)}
  records = []
  for image, note, listed in entries:
    name, where = relative_name(image, root), relative_name(note, root)
    try:
      size = image_size(image)
    except ValueError as error:
      findings.append(Finding('image-corrupt' if image.is_file() else 'image-missing', listed,
                              cause(error, image)))
      continue
    objects: tuple[Object, ...] = ()
    if note.is_file():
      objects = _objects(note, where, size, labels, masks, len(records), findings)
    else:
      findings.append(Finding('image-unlabelled', name, f'there is no {where}', len(records)))
    records.append(Record(image, name, size, objects=objects, where=where))
  fields = ('boxes', 'labels', 'masks') if masks else ('boxes', 'labels')
  return Labelled(tuple(records), names, fields, tuple(findings), root, 'yolo', split)


def _entries(root: pathlib.Path, split: str, given: str | Mapping[str, str] | None,
             findings: list[Finding]) -> list[_Entry]:
  """The images of a split, each with the place of its label file."""
  if given is None:
    layouts = [root / base for name in SPLIT_FOLDERS[split]
               for base in (f'images/{name}', f'{name}/images', f'{name}.txt')]
    place = the_only((each for each in layouts if each.exists()), f'yolo: no images of split {split} in {root}',
                     f'lay them out as images/{split} and labels/{split} or as {split}/images and {split}/labels, list '
                     f'them in {split}.txt, or give data.images')
  else:
    place = given_path('yolo: data.images', given, split, root)
  if place.is_file():
    lines = [line.strip() for line in read_text(place).splitlines()]
    return [_Entry(root / line, _label_of(root / line, root), f'{relative_name(place, root)}:{number}')
            for number, line in enumerate(lines, 1) if line]
  entries = [_Entry(image, _label_of(image, root), relative_name(image, root)) for image in images_in(place, deep=True)]
  known, labels = {entry.note for entry in entries}, _label_of(place / 'any', root).parent
  findings += [Finding('label-orphan', relative_name(note, root), f'there is no image of that name in '
                       f'{relative_name(place, root)}')
               for note in sorted(labels.rglob('*.txt')) if note not in known and note.name not in _NOT_LABELS]
  return entries


def _label_of(image: pathlib.Path, root: pathlib.Path) -> pathlib.Path:
  """`labels` in place of the last `images` in the path; beside the image without one."""
  base, parts = (root, image.relative_to(root).parts) if image.is_relative_to(root) else (pathlib.Path(), image.parts)
  if 'images' in parts[:-1]:
    place = len(parts) - 2 - parts[-2::-1].index('images')
    parts = (*parts[:place], 'labels', *parts[place + 1:])
  return base.joinpath(*parts).with_suffix('.txt')


def _objects(note: pathlib.Path, where: str, size: Size, labels: Mapping[int, int], masks: bool | None, item: int,
             findings: list[Finding]) -> tuple[Object, ...]:
  """The sound objects of a label file."""
  objects = []
  try:
    lines = read_text(note).splitlines()
  except ValueError as error:
    line, _, what = cause(error, note).partition(': ')
    place, what = (f'{where}:{line}', what) if line.isdigit() else (where, f'{line}: {what}' if what else line)
    findings.append(Finding('label-syntax', place, what, item))
    return ()
  for number, line in enumerate(lines, 1):
    if line.strip():
      found = _object(line.split(), f'{where}:{number}', size, labels, masks)
      if isinstance(found, Object):
        objects.append(found)
        found = box_fault(found.box, size)  # a box that leaves the image stays, and is told of
      if found is not None:
        findings.append(Finding(found[0], f'{where}:{number}', found[1], item))
  return tuple(objects)


def _object(words: list[str], where: str, size: Size, labels: Mapping[int, int],
            masks: bool | None) -> Object | tuple[str, str]:
  """The object of a line, or (kind of finding, what is wrong)."""
  try:
    number, *shares = map(float, words)
  except ValueError:
    return 'label-syntax', f'{" ".join(words)[:60]!r} is not made of numbers'
  if len(shares) != 4 and (len(shares) < 6 or len(shares) % 2):
    return 'label-syntax', (f'{len(words)} numbers; a box is class cx cy w h, a polygon is the class and x y of three '
                            'points or more')
  if number not in labels:
    return 'class-unknown', f'class {words[0]} is none of the {len(labels)} classes {_range(labels)}'
  if any(not -_LARGEST < share <= _LARGEST for share in shares if share - share == 0):
    return 'box-not-normalised', f'{" ".join(words[1:5])} are pixels; numbers are shares of width and height, 0 to 1'
  h, w = size
  xs, ys = [share * w for share in shares[::2]], [share * h for share in shares[1::2]]
  if len(shares) == 4:
    box = (xs[0] - xs[1] / 2, ys[0] - ys[1] / 2, xs[0] + xs[1] / 2, ys[0] + ys[1] / 2)
  else:
    box = (min(xs), min(ys), max(xs), max(ys))
  fault = box_fault(box, size)
  if fault is not None and fault[0] != 'box-clipped':
    return fault
  if len(shares) == 4 and masks:
    return 'mask-missing', 'it is a box and no polygon'
  corners = array.array('d', (x for point in zip(xs, ys, strict=True) for x in point))
  mask = {'polygons': (corners,)} if len(shares) > 4 and masks is not False else None
  return Object(box, labels[int(number)], where, mask)


def _range(labels: Mapping[int, int]) -> str:
  ids = sorted(labels)
  return f'{ids[0]}..{ids[-1]}' if ids and ids == list(range(ids[0], ids[-1] + 1)) else ', '.join(map(str, ids))


def _names(root: pathlib.Path) -> ClassMap:
  """The classes that the folder's files name."""
  found = {}
  for file in sorted((*root.glob('*.yaml'), *root.glob('*.yml'))):
    names = _names_of_yaml(file)
    if names is not None:
      found[file] = names
  for file in sorted((*root.glob('classes.txt'), *root.glob('*.names'), *root.glob('labels/classes.txt'))):
    lines = [line.strip() for line in read_text(file).splitlines()]
    found[file] = _class_map(file, {number: line for number, line in enumerate(lines) if line})
  if len(set(found.values())) == 1:
    return next(iter(found.values()))
  return found[the_only(found, f'yolo: no names of the classes in {root}',
                        'write one data.yaml with names in it, or classes.txt with a name in each line, or give '
                        'data.classes')]


def _names_of_yaml(file: pathlib.Path) -> ClassMap | None:
  """The classes under `names`; None in a file without."""
  import yaml
  try:
    content = yaml.load(read_text(file), Loader=yaml.BaseLoader)  # all as text: a class called no shall not be False
  except yaml.YAMLError as error:
    mark, problem = getattr(error, 'problem_mark', None), getattr(error, 'problem', None)
    place = f'{file}:{mark.line + 1}' if mark else f'{file}'
    raise ValueError(f'{place}: not YAML: {problem or "damaged"}; mend that place') from error
  names: Any = content.get('names') if isinstance(content, dict) else None
  if names is None:
    return None
  names = {str(i): name for i, name in enumerate(names)} if isinstance(names, list) else names
  if not isinstance(names, dict) or not all(key.isdecimal() and isinstance(name, str) for key, name in names.items()):
    raise ValueError(f"{file}: names is neither a list nor a dict from numbers; write names: ['cat', 'dog']")
  if content.get('nc', str(len(names))) != str(len(names)):
    raise ValueError(f'{file}: nc is {content["nc"]} and there are {len(names)} names; make them agree')
  return _class_map(file, {int(key): name for key, name in names.items()})


def _class_map(file: pathlib.Path, names: Mapping[int, str]) -> ClassMap:
  ids = tuple(sorted(names))
  try:
    return ClassMap(tuple(names[i] for i in ids), ids)
  except ValueError as error:
    raise ValueError(f'{file}: {error}') from error
