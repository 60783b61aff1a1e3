"""What every reader of labels gives: images with what is said about them, the classes, and what is wrong.

Units: boxes are xyxy in continuous pixels of the upright image, never +1; sizes are (h, w); labels are ours, 0..K-1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import dataclasses
import pathlib
from typing import Any

import numpy as np

from vision_jax.conventions import ClassMap
from vision_jax.data.findings import KINDS, Kind
from vision_jax.host import polygons, rle

Box = tuple[float, float, float, float]
Size = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Finding:
  """One thing that is wrong with a data set, or worth knowing.

  Args:
    kind: a name out of `findings.KINDS`, which has the severity, what will be done, and the remedy.
    where: 'labels/a.txt:3', 'instances.json: annotation 17' or 'images/a.jpg'.
    what: what is wrong, with the values.
    item: the place of the record that it belongs to, if it belongs to one.

  Raises:
    ValueError: an unknown kind.

  >>> print(Finding('box-zero', 'labels/a.txt:3', 'the box is 0 pixels wide'))
  labels/a.txt:3: the box is 0 pixels wide
  """

  kind: str
  where: str
  what: str
  item: int | None = None

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(f'unknown kind of finding {self.kind!r}; known: {", ".join(KINDS)}')

  def __str__(self) -> str:
    return f'{self.where}: {self.what}'

  @property
  def rule(self) -> Kind:
    """The severity, what will be done, and the remedy."""
    return KINDS[self.kind]


@dataclasses.dataclass(frozen=True, slots=True)
class Object:
  """One annotated object.

  Args:
    box: xyxy in pixels; may reach out of the image.
    label: our class.
    where: file and line or annotation id, for messages.
    mask: None, or `{'polygons': [x, y, x, y, ... of each]}`, `{'rle': run lengths}`, or `{'path': of a mask image,
      'value': the object's pixel value, None for all but 0}`; `object_mask` decodes it.
    crowd: a group that nobody took apart: not trained on, and neither right nor wrong in an evaluation.
    difficult: as VOC marks it.
    area: the file's own, in square pixels.
    id: the file's annotation id.
  """

  box: Box
  label: int
  where: str
  mask: Any = None
  crowd: bool = False
  difficult: bool = False
  area: float | None = None
  id: int | str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
  """One image and what is said about it.

  Args:
    path: of the image.
    name: for messages and predictions: the path below the data set's folder, with '/'.
    size: (h, w) as the labels state it; None where they do not.
    id: the file's image id.
    objects: for detection.
    label: our class, for classification.
    segmentation: `{'path': of a mask image}`, for semantic segmentation.
    where: the label file, for messages.
  """

  path: pathlib.Path
  name: str
  size: Size | None = None
  id: int | str | None = None
  objects: tuple[Object, ...] = ()
  label: int | None = None
  segmentation: Any = None
  where: str = ''


@dataclasses.dataclass(frozen=True)
class Labelled:
  """One split of a data set, as its labels describe it; no image has been decoded.

  Args:
    records: the images, in the order of the data set.
    classes: ours, with the file's ids.
    fields: what samples have: `('label',)`, `('boxes', 'labels')`, `('boxes', 'labels', 'masks')` or
      `('segmentation', 'pixels_valid')`.
    findings: what reading the labels alone showed. A bad entry stands here and not in the records.
    root: the data set's folder.
    format: the reader's name.
    split: 'train' or 'val'.
    segmentation_values: pixel value of the mask images -> our class, -1 for void.
  """

  records: tuple[Record, ...]
  classes: ClassMap
  fields: tuple[str, ...]
  findings: tuple[Finding, ...]
  root: pathlib.Path
  format: str
  split: str = 'train'
  segmentation_values: Mapping[int, int] | None = None


def select(labelled: Labelled, items: Iterable[int]) -> Labelled:
  """The same data with only some of its images.

  Args:
    labelled: a split.
    items: the places of the records to keep, in the order wanted.

  Returns:
    A `Labelled` whose findings point to the new places; those of images that are gone stay, with `item` None.

  Raises:
    IndexError: a place that does not exist.

  >>> records = tuple(Record(pathlib.Path(name), name) for name in ('a.png', 'b.png'))
  >>> labelled = Labelled(records, ClassMap(('cat',)), ('boxes', 'labels'), (), pathlib.Path('cats'), 'yolo')
  >>> [record.name for record in select(labelled, [1]).records]
  ['b.png']
  """
  items = list(items)
  place = {old: new for new, old in enumerate(items)}
  findings = tuple(dataclasses.replace(f, item=place.get(f.item)) if f.item is not None else f
                   for f in labelled.findings)
  return dataclasses.replace(labelled, records=tuple(labelled.records[i] for i in items), findings=findings)


def object_rle(mask: Mapping[str, Any], size: Size) -> dict[str, Any]:
  """The run lengths of an object's mask.

  Args:
    mask: as `Object.mask` has it.
    size: (h, w) of the image.

  Returns:
    `{'size': [h, w], 'counts': str}`.

  Raises:
    ValueError: damaged polygons or run lengths, a mask of another size, or a file that cannot be read.

  >>> object_rle({'polygons': [[1, 0, 3, 0, 3, 2, 1, 2]]}, (3, 4))
  {'size': [3, 4], 'counts': '32103'}
  """
  if 'polygons' in mask:
    return polygons.to_rle(mask['polygons'], size)
  found = rle.pack(mask['rle']) if 'rle' in mask else rle.encode(_mask_image(**mask))
  if tuple(found['size']) != tuple(size):
    raise ValueError(f'the mask has size {tuple(found["size"])}, its image {tuple(size)}, both (h, w); write the mask '
                     'in the size of its image')
  return found


def object_mask(mask: Mapping[str, Any], size: Size) -> np.ndarray:
  """The mask of an object, decoded.

  Args:
    mask: as `Object.mask` has it.
    size: (h, w) of the image.

  Returns:
    bool [h, w].

  Raises:
    ValueError: as `object_rle`.

  >>> object_mask({'rle': {'size': [2, 3], 'counts': [2, 3, 1]}}, (2, 3)).astype(int).tolist()
  [[0, 1, 1], [0, 1, 0]]
  """
  return rle.decode(object_rle(mask, size))


def _mask_image(path: pathlib.Path, value: int | None = None) -> np.ndarray:
  pixels = read_values(path)
  return pixels != 0 if value is None else pixels == value


def read_values(path: pathlib.Path) -> np.ndarray:
  """The pixel values of a mask image: palette indices where it has a palette, else grey levels.

  Args:
    path: of an image with one channel.

  Returns:
    uint8, uint16 or int32 [H, W]; 0 and 1 for black-and-white images.

  Raises:
    ValueError: the file is missing or cannot be read, or has several channels that differ.

  >>> read_values(pathlib.Path('no/such/mask.png'))
  Traceback (most recent call last):
  ValueError: cannot read mask no/such/mask.png: no such file; check the path
  """
  from PIL import Image
  if not path.is_file():
    raise ValueError(f'cannot read mask {path}: no such file; check the path')
  try:
    with Image.open(path) as opened:
      pixels = np.asarray(opened)
  except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error and more
    raise ValueError(f'cannot read mask {path}: {" ".join(str(error).split())}; write the mask again') from error
  if pixels.ndim == 3 and (pixels[..., :3] == pixels[..., :1]).all():
    pixels = pixels[..., 0]
  if pixels.ndim != 2:
    raise ValueError(f'mask {path} has {pixels.shape[-1]} channels that differ; write it as one channel or a palette')
  return pixels.astype(np.uint8) if pixels.dtype == bool else pixels
