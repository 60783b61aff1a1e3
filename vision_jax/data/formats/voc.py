"""Pascal VOC: one XML file an image, and lists of the images of a split.

Units: the file's boxes are the numbers of the first and the last pixel inside, counted from 1; ours are xyxy in
continuous pixels: xmin - 1, ymin - 1, xmax, ymax.

Reference: M. Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 2010, and its development kit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import os
import pathlib
import re
from xml.parsers import expat

from vision_jax.conventions import ClassMap
from vision_jax.data.digits import SPLITS, check_split
from vision_jax.data.files import image_size
from vision_jax.data.formats.layout import box_fault, cause, check_folder, images_in, read_text, relative_name
from vision_jax.data.images import SUFFIXES
from vision_jax.data.records import Box, Finding, Labelled, Object, Record, Size

_CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


def read(split: str, *, path: str | os.PathLike[str], classes: Sequence[str] | None = None) -> Labelled:
  """Reads the Pascal VOC annotations of one split.

  Args:
    split: 'train' or 'val'.
    path: the folder with `ImageSets/Main/<split>.txt`, `Annotations/<name>.xml` and `JPEGImages/<name>.*`; any format
      of image will do.
    classes: the names of the classes in order. When left out they are all names in the annotations of train and val,
      sorted.

  Returns:
    The images in the list's order. `difficult` is kept; pose, truncated and parts are not read.

  Raises:
    ValueError: a folder or list that is missing; annotations without any object, and no classes given.

  >>> read('val', path='data/cats')
  Traceback (most recent call last):
  ValueError: voc: no such folder: data/cats; give data.path, the folder of the data set
  """
  root = check_folder('voc', path)
  for folder in ('Annotations', 'JPEGImages'):
    if not (root / folder).is_dir():
      raise ValueError(f'voc: no folder {root / folder}; data.path is the folder with Annotations, JPEGImages and '
                       'ImageSets')
  files: dict[str, list[pathlib.Path]] = {}
  for file in images_in(root / 'JPEGImages', deep=True):
    files.setdefault(file.relative_to(root / 'JPEGImages').with_suffix('').as_posix(), []).append(file)
  findings: list[Finding] = []
  images = list(_images(root, check_split('voc', split), files, findings))
  names = tuple(classes) if classes is not None else _names(root, split, images)
  if not names and images:
    raise ValueError(f'voc: no object in the annotations of {root}; give data.classes')
  labels = {name: label for label, name in enumerate(names)}
  records = []
  for image in images:
    size = image.size
    if size is None:
      try:
        size = image_size(image.path)
      except ValueError as error:
        findings.append(Finding('image-corrupt', image.where, cause(error, image.path)))
        continue
    objects = _objects(image, size, labels, len(records), findings)
    records.append(Record(image.path, relative_name(image.path, root), size, objects=objects, where=image.where))
  return Labelled(tuple(records), ClassMap(names), ('boxes', 'labels'), tuple(findings), root, 'voc', split)


class _NotXml(Exception):
  """(line, what is wrong)."""


@dataclasses.dataclass
class _Element:
  """An XML element: its line in the file, its text and its children."""

  tag: str
  line: int
  text: str = ''
  children: list[_Element] = dataclasses.field(default_factory=list)

  def find(self, tag: str) -> _Element | None:
    return next((child for child in self.children if child.tag == tag), None)

  def text_of(self, tag: str) -> str | None:
    child = self.find(tag)
    return None if child is None else child.text.strip()


@dataclasses.dataclass
class _Image:
  """An image whose annotation could be read."""

  path: pathlib.Path
  where: str  # the annotation below the data set's folder
  size: Size | None
  objects: list[_Element]


def _listed(root: pathlib.Path, split: str) -> Iterator[tuple[int, str]]:
  """The (line, name) of each image that a split lists."""
  file = root / 'ImageSets' / 'Main' / f'{split}.txt'
  if not file.is_file():
    there = ', '.join(sorted(other.name for other in file.parent.glob('*.txt'))) or 'none'
    raise ValueError(f'voc: no list {file} (lists there: {there}); write the names of the images of split {split} into '
                     'it, one a line, without suffix')
  for number, line in enumerate(read_text(file).splitlines(), 1):
    name = re.sub(r'\s+-?[01]$', '', line.strip())  # lists of one class say 1, 0 or -1 behind each name
    if name:
      yield number, name[:-len(pathlib.Path(name).suffix)] if name.lower().endswith(SUFFIXES) else name


def _images(root: pathlib.Path, split: str, files: dict[str, list[pathlib.Path]],
            findings: list[Finding]) -> Iterator[_Image]:
  """The images of a split that have a file and an annotation that can be read; the others become findings."""
  seen = set()
  for number, name in _listed(root, split):
    where, note = f'ImageSets/Main/{split}.txt:{number}', root / 'Annotations' / f'{name}.xml'
    if name in seen:
      findings.append(Finding('image-id-twice', where, f'{name} stands twice in the list'))
    elif not note.is_file():
      findings.append(Finding('label-missing', where, f'Annotations/{name}.xml does not exist'))
    else:
      image = _image(root, note, files.get(name, []), where, findings)
      if image is not None:
        yield image
    seen.add(name)


def _image(root: pathlib.Path, note: pathlib.Path, files: list[pathlib.Path], listed: str,
           findings: list[Finding]) -> _Image | None:
  where = relative_name(note, root)
  try:
    annotation = _parse(note)
  except _NotXml as error:
    line, what = error.args
    findings.append(Finding('label-syntax', f'{where}:{line}', what))
    return None
  if len(files) > 1:  # a.jpg and a.png: the annotation says which
    files = [file for file in files if file.name == annotation.text_of('filename')] or files
  if len(files) != 1:
    several = ', '.join(relative_name(file, root) for file in files)
    what = f'several images for it: {several}' if files else f'no image JPEGImages/{note.stem}.*'
    findings.append(Finding('image-missing', listed, what))
    return None
  return _Image(files[0], where, _stated_size(annotation),
                [child for child in annotation.children if child.tag == 'object'])


def _names(root: pathlib.Path, split: str, images: list[_Image]) -> tuple[str, ...]:
  """All class names in the annotations of both splits, so that both count them the same."""
  notes = [element.text_of('name') for image in images for element in image.objects]
  for other in SPLITS:
    if other != split and (root / 'ImageSets' / 'Main' / f'{other}.txt').is_file():
      for _, name in _listed(root, other):
        note = root / 'Annotations' / f'{name}.xml'
        try:
          notes += [child.text_of('name') for child in _parse(note).children if child.tag == 'object']
        except (OSError, _NotXml):
          continue  # reading that split says so
  return tuple(sorted({name for name in notes if name}))


def _parse(file: pathlib.Path) -> _Element:
  """The root element; xml.etree would not say in which line an element stands."""
  parser = expat.ParserCreate()
  parser.buffer_text = True
  document = _Element('', 0)
  stack = [document]

  def start(tag, _):
    stack[-1].children.append(_Element(tag, parser.CurrentLineNumber))
    stack.append(stack[-1].children[-1])

  def text(data):
    stack[-1].text += data

  def entity(*_):  # a few of them, one in another, can stand for gigabytes
    raise _NotXml(parser.CurrentLineNumber, 'it declares an entity, which no annotation needs')

  parser.StartElementHandler, parser.CharacterDataHandler, parser.EntityDeclHandler = start, text, entity
  parser.EndElementHandler = lambda _: stack.pop()
  try:
    parser.Parse(file.read_bytes(), True)
  except expat.ExpatError as error:
    what = f'not XML: {expat.ErrorString(error.code)} (column {error.offset + 1})'
    raise _NotXml(error.lineno, what) from error
  except (LookupError, ValueError) as error:  # what expat says to an encoding that it does not read
    raise _NotXml(parser.CurrentLineNumber, f'not readable: {error}; save it as UTF-8') from error
  return document.children[0]


def _stated_size(annotation: _Element) -> Size | None:
  """(h, w) as the annotation has it; None where it has none, or zeros."""
  element = annotation.find('size')
  if element is None:
    return None
  try:
    height, width = (int(float(element.text_of(side) or 0)) for side in ('height', 'width'))
  except ValueError:
    return None
  return (height, width) if height > 0 and width > 0 else None


def _objects(image: _Image, size: Size, labels: dict[str, int], item: int,
             findings: list[Finding]) -> tuple[Object, ...]:
  """The sound objects of an image."""
  objects = []
  for element in image.objects:
    where, name = f'{image.where}:{element.line}', element.text_of('name')
    box = _box(element)
    if not name or box is None:
      fault = 'label-syntax', 'the object has no name' if not name else (
          'the object has no bndbox with numbers xmin, ymin, xmax, ymax')
    elif name not in labels:
      fault = 'class-unknown', f'{name!r} is none of the classes {", ".join(labels)}'
    else:
      fault = _fault(box, size)
    if fault is not None:
      findings.append(Finding(fault[0], where, fault[1], item))
    if fault is None or fault[0] == 'box-clipped':
      objects.append(Object(box, labels[name], where, difficult=element.text_of('difficult') == '1'))
  return tuple(objects)


def _box(element: _Element) -> Box | None:
  corners = element.find('bndbox')
  if corners is None:
    return None
  try:
    x1, y1, x2, y2 = (float(corners.text_of(side) or '') for side in _CORNERS)
  except ValueError:
    return None
  return x1 - 1, y1 - 1, x2, y2


def _fault(box: Box, size: Size) -> tuple[str, str] | None:
  """What is wrong with a box, with the numbers that the file has."""
  fault = box_fault(box, size)
  if fault is None:
    return None
  x1, y1, x2, y2 = box
  # xmin == xmax is a box of one pixel, so less than that is the wrong way round.
  kind = 'box-inverted' if fault[0] == 'box-zero' else fault[0]
  stated = ', '.join(f'{side} {value:.7g}' for side, value in zip(_CORNERS, (x1 + 1, y1 + 1, x2, y2), strict=True))
  what = {
      'box-inverted': 'it ends before it begins', 'box-not-finite': 'it is not made of finite numbers',
      'box-outside': f'it lies outside the image of {size[1]} x {size[0]}',
      'box-clipped': f'it leaves the image of {size[1]} x {size[0]}, whose pixels count from 1'}[kind]
  return kind, f'the box is {stated}: {what}'
