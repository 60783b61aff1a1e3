"""What is wrong with the image and mask files of a data set, seen by opening each, and which images look the same.

Units: sizes are (h, w); grey levels 0..255.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
import concurrent.futures
import dataclasses
import functools
import itertools
import pathlib
from typing import Any

import numpy as np

from vision_jax.data.formats.layout import box_fault, cause, relative_name
from vision_jax.data.images import read_image
from vision_jax.data.records import Finding, Labelled, Record, Size, object_rle, read_values
from vision_jax.host.rle import area

HASH_BITS = 6  # of 64 that may differ between the difference hashes of two images that look the same
MEAN_LEVELS = 3.0  # by which their thumbnails may differ, in the mean
MOST_LEVELS = 24  # and at the most
_SIDE = 16  # pixels of a thumbnail
_ORIENTATION = 0x0112
_TURNS = {2: 'mirrored', 3: 'turned by 180 degrees', 4: 'mirrored, upside down', 5: 'mirrored and turned by 90 degrees',
          6: 'turned by 90 degrees', 7: 'mirrored and turned by 270 degrees', 8: 'turned by 270 degrees'}
_GREY = ('1', 'L', 'LA', 'La')
_ALPHA = ('LA', 'PA', 'RGBA')


@dataclasses.dataclass(frozen=True)
class Seen:
  """What the images of a split look like, n of them.

  Args:
    opened: bool [n], which could be read.
    hashes: uint64 [n], the difference hash: whether the brightness rises from each of 8 x 9 patches to the next.
    thumbnails: uint8 [n, 16, 16, 3].
    pixels: int64 [K], the pixels of each class in the mask images, None without mask images.
  """

  opened: np.ndarray
  hashes: np.ndarray
  thumbnails: np.ndarray
  pixels: np.ndarray | None = None


@dataclasses.dataclass
class _Look:
  """What one image showed: (kind of finding, where, what), and the rows of `Seen`."""

  faults: list[tuple[str, str, str]]
  opened: bool = False
  hash: int = 0
  thumbnail: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((_SIDE, _SIDE, 3), np.uint8))
  pixels: np.ndarray | int = 0


def check_images(labelled: Labelled, *, workers: int = 4, source: Any = None,
                 progress: Callable[[Iterator[Any]], Iterable[Any]] = iter) -> tuple[tuple[Finding, ...], Seen]:
  """Opens every image and every mask of a split.

  Args:
    labelled: a split.
    workers: threads that read.
    source: gives the images, where they are no files of their own.
    progress: is given the results as they come, one an image, and passes them on.

  Returns:
    The findings that the reader of the labels does not have, in the order of the images: files that are missing,
    corrupt or cut short; sizes that differ from the labels'; turns in EXIF data; grey, palette, 16-bit and transparent
    images; boxes outside an image whose size the labels do not state; masks that are missing, damaged, of another size,
    empty, or with values that are no class. Beside them what the images look like.
  """
  findings, looks = [], []
  known = {(finding.kind, finding.where) for finding in labelled.findings}
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    look_at = functools.partial(_look, labelled, source)
    for item, look in enumerate(progress(pool.map(look_at, range(len(labelled.records))))):
      findings += [Finding(*fault, item) for fault in look.faults if fault[:2] not in known]
      looks.append(look)
  seen = Seen(np.array([look.opened for look in looks], bool), np.array([look.hash for look in looks], np.uint64),
              np.array([look.thumbnail for look in looks], np.uint8).reshape(-1, _SIDE, _SIDE, 3),
              None if labelled.segmentation_values is None else
              sum((look.pixels for look in looks), np.zeros(len(labelled.classes), np.int64)))
  return tuple(findings), seen


def near_identical(train: Seen, val: Seen) -> Iterator[tuple[int, int, str]]:
  """The images of one split that look like one of another.

  Two images look the same when at most 6 of the 64 bits of their difference hashes differ, and their thumbnails of
  16 x 16 pixels differ by at most 3 grey levels in the mean and 24 at the most. The second rule tells plain pictures
  apart, in which the hash finds nothing. Copies that are resized or compressed again look the same; crops, mirrored or
  recoloured images do not.

  Args:
    train: what was seen of a split, n images.
    val: what was seen of another, m images.

  Returns:
    (place in `val`, place in `train`, what differs in words), the most similar image of `train` for each.
  """
  usable = np.flatnonzero(train.opened)
  hashes, means = train.hashes[usable], train.thumbnails[usable].mean((1, 2, 3))
  for item in np.flatnonzero(val.opened):
    bits = np.bitwise_count(hashes ^ val.hashes[item])
    close = (bits <= HASH_BITS) & (np.abs(means - val.thumbnails[item].mean()) <= MEAN_LEVELS)
    rows = np.flatnonzero(close)
    levels = np.abs(train.thumbnails[usable[rows]].astype(np.int16) - val.thumbnails[item])
    mean, most = levels.mean((1, 2, 3)), levels.max((1, 2, 3), initial=0)
    same = np.flatnonzero((mean <= MEAN_LEVELS) & (most <= MOST_LEVELS))
    if same.size:
      best = same[np.argmin(mean[same])]
      yield int(item), int(usable[rows[best]]), (f'{bits[rows[best]]} of 64 bits and {mean[best]:.1f} grey levels '
                                                 'differ')


def _look(labelled: Labelled, source: Any, item: int) -> _Look:
  """What one image, its boxes and its masks show."""
  record, faults = labelled.records[item], []
  try:
    if source is None:
      if not record.path.is_file():  # before anything is opened: reading a pipe would wait for ever
        what = 'it is no regular file' if record.path.exists() else 'there is no such file'
        return _Look([('image-missing', record.name, what)])
      faults += _header(record.path, record.name)
    pixels = read_image(record.path) if source is None else source[item]['image']
  except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error and more
    return _Look([_unreadable(record, error, source is None)])
  size = pixels.shape[:2]
  if record.size is not None and tuple(record.size) != size:
    turned = any(kind == 'image-exif' for kind, _, _ in faults)
    faults.append(('image-size', record.name, _sizes_differ(record.size, size, turned)))
  elif record.size is None:
    found = ((each.where, box_fault(each.box, size)) for each in record.objects)
    faults += [(fault[0], where, fault[1]) for where, fault in found if fault is not None]
  faults += _object_masks(record, record.size or size)
  counts = 0
  if record.segmentation is not None:
    found, counts = _segmentation(labelled, pathlib.Path(record.segmentation['path']), size)
    faults += found
  return _Look(faults, True, *_appearance(pixels), counts)


def _header(path: pathlib.Path, name: str) -> Iterator[tuple[str, str, str]]:
  """What is worth knowing about how an image is stored."""
  from PIL import Image
  with Image.open(path) as opened:
    mode, turn = opened.mode, opened.getexif().get(_ORIENTATION, 1)
    transparent = 'transparency' in opened.info or (mode in _ALPHA and opened.getchannel('A').getextrema()[0] < 255)
  if turn in _TURNS:
    yield 'image-exif', name, f'its EXIF data say orientation {turn}: it is shown {_TURNS[turn]}'
  if mode in _GREY:
    yield 'image-grey', name, 'it is grey' if mode != '1' else 'it is black and white'
  if mode in ('P', 'PA'):
    yield 'image-palette', name, 'its colours are a palette'
  if mode.startswith('I'):
    yield 'image-16bit', name, f'its pixels have more than 8 bits (mode {mode})'
  if transparent:
    yield 'image-alpha', name, 'some of it is transparent'


def _unreadable(record: Record, error: Exception, is_file: bool) -> tuple[str, str, str]:
  try:  # a file that Pillow cannot even open gets the words of read_image too
    if is_file:
      read_image(record.path)
  except ValueError as again:
    error = again
  what = cause(error, record.path)
  return 'image-truncated' if 'truncated' in what.lower() else 'image-corrupt', record.name, what


def _sizes_differ(stated: Size, real: tuple[int, ...], turned: bool) -> str:
  why = ''
  if tuple(stated) == tuple(real)[::-1]:
    why = '; they were made before its EXIF data turn it' if turned else '; width and height are swapped'
  return f'it is {real[1]} x {real[0]} pixels upright, its labels say {stated[1]} x {stated[0]}{why}'


def _object_masks(record: Record, size: Size) -> Iterator[tuple[str, str, str]]:
  """Masks of objects that cannot be decoded, or have no pixel."""
  for each in record.objects:
    if each.mask is None:
      continue
    kind = 'polygon' if 'polygons' in each.mask else 'rle' if 'rle' in each.mask else 'mask'
    try:
      if not area(object_rle(each.mask, size)):
        yield ('polygon-empty' if kind == 'polygon' else 'mask-empty'), each.where, 'the mask has no pixel'
    except ValueError as error:
      bad = 'mask-size' if 'has size' in str(error) else 'mask-corrupt' if kind == 'mask' else f'{kind}-bad'
      yield bad, each.where, str(error).rpartition('; ')[0]


def _segmentation(labelled: Labelled, path: pathlib.Path,
                  size: tuple[int, ...]) -> tuple[list[tuple[str, str, str]], np.ndarray | int]:
  """Faults of a mask image, and how many pixels each class has in it."""
  where, values = relative_name(path, labelled.root), labelled.segmentation_values
  try:
    pixels = read_values(path)
  except ValueError as error:
    return [('mask-corrupt', where, cause(error, path))], 0
  found, faults = dict(zip(*map(np.ndarray.tolist, np.unique(pixels, return_counts=True)), strict=True)), []
  if pixels.shape != size:
    faults.append(('mask-size', where, f'it is {pixels.shape[1]} x {pixels.shape[0]} pixels, its image {size[1]} x '
                   f'{size[0]}'))
  strange = [value for value in found if value not in values]
  if strange:
    shown = ', '.join(map(str, strange[:5])) + (', ...' if len(strange) > 5 else '')
    faults.append(('mask-values', where, f'{sum(found[value] for value in strange)} pixels have the value {shown}, '
                   f'which is no class; the values are {_ranges(sorted(values))}'))
  elif all(values[value] < 0 for value in found):
    faults.append(('mask-void', where, 'every pixel is void'))
  counts = np.zeros(len(labelled.classes), np.int64)
  for value, count in found.items():
    if values.get(value, -1) >= 0:
      counts[values[value]] += count
  return faults, counts


def _ranges(values: list[int]) -> str:
  """'0..3, 255' of sorted numbers."""
  runs = [[value for _, value in run] for _, run in
          itertools.groupby(enumerate(values), key=lambda pair: pair[1] - pair[0])]
  return ', '.join(f'{run[0]}..{run[-1]}' if len(run) > 2 else ', '.join(map(str, run)) for run in runs)


def _appearance(pixels: np.ndarray) -> tuple[int, np.ndarray]:
  """The difference hash and the thumbnail of an image."""
  from PIL import Image
  image = Image.fromarray(pixels)
  grey = np.asarray(image.convert('L').resize((9, 8), Image.Resampling.BOX))
  bits = np.packbits(grey[:, 1:] > grey[:, :-1])
  return int(bits.view(np.uint64)[0]), np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX))
