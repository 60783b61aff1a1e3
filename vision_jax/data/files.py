"""Labelled image files as a source of samples, and the sizes of image files.

Units: boxes are xyxy in pixels of the upright image; sizes are (h, w).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import functools
import inspect
import itertools
import pathlib
from typing import Any, NamedTuple

import numpy as np

from vision_jax.conventions import check_options, option_names
from vision_jax.data.images import read_image
from vision_jax.data.records import Labelled, Object, object_mask, object_rle, read_values, select
from vision_jax.host.boxes import area as box_area
from vision_jax.host.boxes import clip
from vision_jax.host.rle import area as rle_area

ON_ERROR = ('stop', 'skip')
DIFFICULT = ('ignore', 'train')
_SHOWN = 3  # errors that stand in the message
_TURNED = (5, 6, 7, 8)  # the EXIF orientations that swap height and width
_ORIENTATION = 0x0112


class LabelledSource:
  """The images of a `Labelled` with their targets, read when asked for.

  Args:
    labelled: what a reader gives.
    on_error: 'stop' refuses data with errors in the labels; 'skip' goes on without the entries that `findings` lists.
    size: only so many images, the first; all of them when left out.
    difficult: 'ignore' leaves objects marked difficult out of training samples, 'train' takes them as any other.

  `source[i]` is a dict of `image`, uint8 RGB [H, W, 3], and the fields: `label` int; `boxes` float32 [n, 4] xyxy,
  clipped to the image, `labels` int32 [n] and `masks` bool [n, H, W]; `segmentation` int32 [H, W] and `pixels_valid`
  bool [H, W]. Crowds are left out, and difficult objects unless asked for.

  `source.labelled` is the `Labelled` with its records; it stays behind when the source is pickled, so that worker
  processes get a few arrays and not an object for each annotation. `source.findings` are its findings.

  Raises:
    ValueError: errors in the labels with on_error='stop'; an unknown option value; a size that is not there. On access:
      what `read_image` refuses, an image whose size is not the one its labels state, a damaged mask.

  >>> from vision_jax.conventions import ClassMap
  >>> from vision_jax.data.records import Finding
  >>> found = Finding('box-zero', 'labels/a.txt:3', 'the box is 0 pixels wide')
  >>> labelled = Labelled((), ClassMap(names=('cat',)), ('boxes', 'labels'), (found,), pathlib.Path('cats'), 'yolo')
  >>> LabelledSource(labelled, on_error='skip').findings[0].where
  'labels/a.txt:3'
  """

  def __init__(self, labelled: Labelled, *, on_error: str = 'stop', size: int | None = None,
               difficult: str = 'ignore'):
    check_option('on_error', on_error, ON_ERROR)
    check_option('difficult', difficult, DIFFICULT)
    if size is not None and not 0 <= size <= len(labelled.records):
      raise ValueError(f'{labelled.format}: size {size} is out of range; the split {labelled.split} of {labelled.root} '
                       f'has {len(labelled.records)} images')
    if on_error == 'stop':
      stop_on_errors(labelled)
    labelled = labelled if size is None else select(labelled, range(size))
    self.labelled: Labelled | None = labelled
    self.findings, self.classes, self.split = labelled.findings, labelled.classes, labelled.split
    self.fields = tuple(labelled.fields)
    if 'segmentation' in self.fields and 'pixels_valid' not in self.fields:
      self.fields += ('pixels_valid',)
    self.difficult = difficult
    self._segmentation_values = labelled.segmentation_values
    self._columns = _columns(labelled)

  def __len__(self) -> int:
    return len(self._columns.paths)

  def __getitem__(self, index: int) -> dict[str, Any]:
    index = self._check(index)
    image = read_image(self._columns.paths[index])
    size = image.shape[:2]
    self._check_size(index, size)
    sample: dict[str, Any] = {'image': image}
    if 'label' in self.fields:
      sample['label'] = int(self._columns.label[index])
    if 'boxes' in self.fields:
      sample.update(self._objects(index, size))
    if 'segmentation' in self.fields:
      sample.update(self._segmentation(index, size))
    return sample

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, 'labelled': None}

  def target(self, index: int) -> dict[str, Any]:
    """The whole truth of one image without the image, as the metrics take it.

    Args:
      index: 0..len - 1.

    Returns:
      `label` for classification; `segmentation` and `pixels_valid`; for detection `boxes` float64 [n, 4] as the file
      has them, not clipped, `labels` int32 [n], `crowd` and `difficult` bool [n] of all objects, `area` float64 [n] and
      `ids` int64 [n] where the file has them, and `masks`, a list of run lengths, where masks are among the fields.

    Raises:
      ValueError: a damaged mask or file.
    """
    index, target = self._check(index), {}
    if 'label' in self.fields:
      target['label'] = int(self._columns.label[index])
    if 'boxes' in self.fields:
      target.update(self._true_objects(index))
    if 'segmentation' in self.fields:
      target.update(self._segmentation(index, None))
    return target

  def name_of(self, index: int) -> str:
    """The path of an image below the data set's folder."""
    return self._columns.names[self._check(index)]

  def path_of(self, index: int) -> pathlib.Path:
    """The file of an image."""
    return pathlib.Path(self._columns.paths[self._check(index)])

  def _check(self, index: int) -> int:
    if not 0 <= index < len(self):
      raise IndexError(f'image {index} of {len(self)}')
    return int(index)

  def _check_size(self, index: int, size: Sequence[int]) -> None:
    stated = tuple(self._columns.sizes[index].tolist())
    if stated[0] >= 0 and stated != tuple(size):
      turned = '; a turn in its EXIF data swaps the two' if stated == tuple(size)[::-1] else ''
      raise ValueError(f'image {self._columns.paths[index]} is {size[1]} x {size[0]} pixels (upright), its labels say '
                       f'{stated[1]} x {stated[0]}{turned}; label the image that is there, or put back the one that '
                       'was labelled')

  def _objects(self, index: int, size: tuple[int, int]) -> dict[str, Any]:
    """The objects to train on."""
    table, rows = self._columns, self._rows(index)
    kept = rows[~table.crowd[rows]]
    if self.difficult == 'ignore':
      kept = kept[~table.difficult[kept]]
    found = {'boxes': clip(table.boxes[kept], size).astype(np.float32), 'labels': table.labels[kept]}
    if 'masks' in self.fields:
      found['masks'] = np.array([self._mask(index, row, object_mask, size) for row in kept], bool).reshape(-1, *size)
    return found

  def _true_objects(self, index: int) -> dict[str, Any]:
    table, rows = self._columns, self._rows(index)
    found = {'boxes': table.boxes[rows], 'labels': table.labels[rows], 'crowd': table.crowd[rows],
             'difficult': table.difficult[rows]}
    if 'masks' in self.fields:
      stated = table.sizes[index]
      size = image_size(table.paths[index]) if stated[0] < 0 else (int(stated[0]), int(stated[1]))
      found['masks'] = [self._mask(index, row, object_rle, size) for row in rows]
    if table.areas is not None:
      # The few objects for which the file has no area get their own, as the metric would measure it.
      own = [rle_area(m) for m in found['masks']] if 'masks' in found else box_area(found['boxes'])
      found['area'] = np.where(np.isnan(table.areas[rows]), own, table.areas[rows])
    if table.ids is not None:
      found['ids'] = table.ids[rows]
    return found

  def _rows(self, index: int) -> np.ndarray:
    return np.arange(self._columns.first[index], self._columns.first[index + 1])

  def _mask(self, index: int, row: int, decode: Callable[[Any, Any], Any], size: tuple[int, int]) -> Any:
    try:
      return decode(self._columns.masks[row], size)
    except ValueError as error:
      raise ValueError(f'{self._columns.names[index]}: object {row - self._columns.first[index]}: {error}') from error

  def _segmentation(self, index: int, size: tuple[int, int] | None) -> dict[str, Any]:
    path = pathlib.Path(self._columns.segmentation[index]['path'])
    classes = read_segmentation(path, self._segmentation_values)
    if size is not None and classes.shape != size:
      raise ValueError(f'mask {path} is {classes.shape[1]} x {classes.shape[0]} pixels and its image {size[1]} x '
                       f'{size[0]}; write the mask in the size of its image')
    valid = classes >= 0
    return {'segmentation': np.where(valid, classes, 0), 'pixels_valid': valid}


def stop_on_errors(labelled: Labelled) -> None:
  """Refuses labels with errors, in one line that has the first of them and how many there are.

  >>> from vision_jax.conventions import ClassMap
  >>> from vision_jax.data.records import Finding
  >>> found = Finding('box-zero', 'labels/a.txt:3', 'the box is 0 pixels wide')
  >>> stop_on_errors(Labelled((), ClassMap(names=('cat',)), ('boxes', 'labels'), (found,), pathlib.Path('x'), 'yolo'))
  Traceback (most recent call last):
  ValueError: 1 error in the labels of x (train): labels/a.txt:3: the box is 0 pixels wide; mend it (run
  experiments/check_data.py to see everything), or leave it out with data.on_error=skip, which lists each skip
  """
  errors = [finding for finding in labelled.findings if finding.rule.severity == 'error']
  if not errors:
    return
  more = f'; ... and {len(errors) - _SHOWN} more' if len(errors) > _SHOWN else ''
  count, it = ('1 error', 'it') if len(errors) == 1 else (f'{len(errors)} errors', 'them')
  raise ValueError(f'{count} in the labels of {labelled.root} ({labelled.split}): '
                   f'{"; ".join(map(str, errors[:_SHOWN]))}{more}; mend {it} (run experiments/check_data.py to see '
                   f'everything), or leave {it} out with data.on_error=skip, which lists each skip')


def check_option(name: str, value: str, known: Sequence[str]) -> None:
  """Refuses a value that an option of the data section does not have.

  >>> check_option('on_error', 'ignore', ON_ERROR)
  Traceback (most recent call last):
  ValueError: data.on_error is 'ignore'; it is 'stop' or 'skip'
  """
  if value not in known:
    raise ValueError(f'data.{name} is {value!r}; it is ' + ' or '.join(repr(each) for each in known))


def check_needed(where: str, source: Callable[..., Any], given: Mapping[str, Any]) -> None:
  """Refuses options among which one is missing that has no default.

  >>> check_needed('data source cats', source_of(lambda split, *, path: None), {})
  Traceback (most recent call last):
  ValueError: data source cats needs data.path; give it
  """
  missing = [f'data.{option}' for option, parameter in inspect.signature(source).parameters.items()
             if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
             and option not in given]
  if missing:
    raise ValueError(f'{where} needs {", ".join(missing)}; give it')


def source_of(read: Callable[..., Labelled], *own: str) -> Callable[..., LabelledSource]:
  """The source that stands on a reader, for the table of sources.

  Args:
    read: `read(split, *, path, ...) -> Labelled`.
    own: further options of `LabelledSource` that this format needs, beside `on_error` and `size`.

  Returns:
    A function (split, **options) -> `LabelledSource`, whose signature lists the options of both.

  >>> def read(split, *, path): ...
  >>> inspect.signature(source_of(read))
  <Signature (split, *, path, on_error: 'str' = 'stop', size: 'int | None' = None) -> 'LabelledSource'>
  """
  own = ('on_error', 'size', *own)
  mine = inspect.signature(LabelledSource).parameters
  signature = inspect.signature(read)

  @functools.wraps(read)
  def source(split: str, **options: Any) -> LabelledSource:
    name = f'data source {read.__module__.rpartition(".")[2]}'
    check_options(name, option_names(source), options)
    check_needed(name, source, options)
    reading = {name: value for name, value in options.items() if name not in own}
    return LabelledSource(read(split, **reading), **{name: options[name] for name in own if name in options})

  source.__signature__ = signature.replace(
      parameters=[*signature.parameters.values(), *(mine[name] for name in own)], return_annotation='LabelledSource')
  return source


def image_size(path: pathlib.Path | str) -> tuple[int, int]:
  """The (h, w) of an image file, upright, from its header alone.

  Args:
    path: of the image.

  Returns:
    (h, w) in pixels, swapped where the EXIF data turn the image by a quarter.

  Raises:
    ValueError: the file is missing or no image.

  >>> image_size('no/such/file.png')
  Traceback (most recent call last):
  ValueError: cannot read image no/such/file.png: no such file; check the path
  """
  from PIL import Image
  if not pathlib.Path(path).is_file():
    raise ValueError(f'cannot read image {path}: no such file; check the path')
  try:
    with Image.open(path) as opened:
      w, h = opened.size
      turned = opened.getexif().get(_ORIENTATION) in _TURNED
  except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error and more
    raise ValueError(f'cannot read image {path}: not an image, or a corrupt or unknown format; replace the file or '
                     'take it out of the list') from error
  return (w, h) if turned else (h, w)


def read_segmentation(path: pathlib.Path, values: Mapping[int, int]) -> np.ndarray:
  """The class of every pixel of a mask image.

  Args:
    path: of an image with one channel or a palette.
    values: pixel value, 0..65535 -> our class, -1 for void.

  Returns:
    int32 [H, W], -1 where void.

  Raises:
    ValueError: the file cannot be read, or has a value that `values` does not have.
  """
  pixels = read_values(path)
  missing = np.iinfo(np.int32).min
  table = np.full(max(65536, *(value + 1 for value in values)), missing, np.int32)
  table[list(values)] = list(values.values())
  strange = pixels[(pixels < 0) | (pixels >= len(table))]
  classes = table[np.clip(pixels, 0, len(table) - 1)]
  strange = np.unique(strange if strange.size else pixels[classes == missing])
  if strange.size:
    shown = ', '.join(map(str, strange[:5].tolist()))
    raise ValueError(f'mask {path} has the value {shown}{", ..." if strange.size > 5 else ""}, which is no class; the '
                     'values of the classes are ' + ', '.join(map(str, sorted(values))))
  return classes


class _Columns(NamedTuple):
  """The records as arrays, n images and N objects: they take a tenth of the memory of objects, and pickle at once."""

  names: list[str]
  paths: list[str]
  sizes: np.ndarray  # [n, 2] int64 (h, w), -1 where the labels do not state it
  label: np.ndarray  # [n] int64, -1 without
  segmentation: list[Any]
  first: np.ndarray  # [n + 1] int64, where the objects of each image begin
  boxes: np.ndarray  # [N, 4] float64
  labels: np.ndarray  # [N] int32
  crowd: np.ndarray  # [N] bool
  difficult: np.ndarray  # [N] bool
  areas: np.ndarray | None  # [N] float64, NaN where the file has none
  ids: np.ndarray | None  # [N] int64
  masks: _Masks


def _columns(labelled: Labelled) -> _Columns:
  records = labelled.records
  objects: list[Object] = [each for record in records for each in record.objects]
  ids = [each.id for each in objects]
  areas = np.array([np.nan if each.area is None else each.area for each in objects], np.float64)
  return _Columns(
      names=[record.name for record in records],
      paths=[str(record.path) for record in records],
      sizes=np.array([record.size or (-1, -1) for record in records], np.int64).reshape(-1, 2),
      label=np.array([-1 if record.label is None else record.label for record in records], np.int64),
      segmentation=[record.segmentation for record in records],
      first=np.cumsum([0, *(len(record.objects) for record in records)]),
      boxes=np.array([each.box for each in objects], np.float64).reshape(-1, 4),
      labels=np.array([each.label for each in objects], np.int32),
      crowd=np.array([each.crowd for each in objects], bool),
      difficult=np.array([each.difficult for each in objects], bool),
      areas=None if np.isnan(areas).all() else areas,
      ids=np.array(ids, np.int64) if ids and all(isinstance(i, int) for i in ids) else None,
      masks=_Masks([each.mask for each in objects] if 'masks' in labelled.fields else []))


class _Masks:
  """The masks of many objects, all polygon corners in one array."""

  def __init__(self, masks: Sequence[Any]):
    groups = [mask['polygons'] if mask and 'polygons' in mask else () for mask in masks]
    flat = [np.asarray(polygon, np.float64).ravel() for group in groups for polygon in group]
    self._points = np.concatenate(flat) if flat else np.zeros(0)
    self._bounds = np.cumsum([0, *(len(polygon) for polygon in flat)])  # of polygons among the numbers
    self._first = np.cumsum([0, *(len(group) for group in groups)])  # of objects among the polygons
    self._others = {row: mask for row, mask in enumerate(masks) if mask and 'polygons' not in mask}

  def __getitem__(self, row: int) -> Mapping[str, Any]:
    if row in self._others:
      return self._others[row]
    bounds = self._bounds[self._first[row]:self._first[row + 1] + 1]
    return {'polygons': [self._points[a:b] for a, b in itertools.pairwise(bounds)]}
