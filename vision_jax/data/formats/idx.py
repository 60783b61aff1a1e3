"""The idx files of MNIST and of its successors: all images in one file, all labels in another, gz or not.

Units: grey levels 0..255, as stored.

Reference: Y. LeCun, C. Cortes and C. J. C. Burges, The MNIST database of handwritten digits, 1998, whose page defines
the format: two zero bytes, the type (8: unsigned bytes), the number of axes, the length of each axis in four bytes, the
highest first, and the values.
"""

from __future__ import annotations

from collections.abc import Sequence
import gzip
import math
import os
import pathlib
from typing import Any
import zlib

import numpy as np

from vision_jax.conventions import ClassMap
from vision_jax.data.digits import SPLITS, check_split
from vision_jax.data.files import ON_ERROR, check_option, stop_on_errors
from vision_jax.data.formats.layout import check_folder, named_classes, the_only
from vision_jax.data.records import Finding, Labelled

_PREFIXES = {'train': ('train',), 'val': ('t10k', 'test', 'val')}
_UNSIGNED_BYTES = 8
_GZIP = b'\x1f\x8b'


class IdxFiles:
  """A pair of idx files as a classification source.

  Args:
    split: 'train' (`train-images-idx3-ubyte` and `train-labels-idx1-ubyte`) or 'val' (`t10k-...`; 'test' and 'val' will
      do). Something may stand before these names (`emnist-letters-train-...`), a dot for the second dash, and `.gz`
      behind them.
    path: the folder with the files.
    names: of the classes, for the labels 0, 1, ...; or a text file in the folder with a name, or a label and a name, in
      each line. When left out the classes are the labels in the files of both splits, ascending.
    on_error: 'stop' refuses labels that are no class; 'skip' leaves these images out, and `findings` lists them.
    size: only so many images, the first; all of them when left out.

  `source[i]` is a dict of `image`, uint8 RGB [h, w, 3] with three equal channels, and `label`, an int in 0..K-1. EMNIST
  is given as it is stored, with rows and columns swapped.

  Raises:
    ValueError: files that are missing, several for one, cut short, too long, damaged or of another type; a number of
      labels that is not the number of images; a size that is not there.

  >>> IdxFiles('train', path='no/such/folder')
  Traceback (most recent call last):
  ValueError: idx: no such folder: no/such/folder; give data.path, the folder of the data set
  """

  fields = ('label',)

  def __init__(self, split: str, *, path: str | os.PathLike[str], names: str | Sequence[str] | None = None,
               on_error: str = 'stop', size: int | None = None):
    root = check_folder('idx', path)
    check_option('on_error', on_error, ON_ERROR)
    self.split = check_split('idx', split)
    file, labels_file = _find(root, 'images', split), _find(root, 'labels', split)
    images, stored = read_idx(file, axes=3), read_idx(labels_file, axes=1)
    if len(images) != len(stored):
      raise ValueError(f'idx: {file} has {len(images)} images and {labels_file} {len(stored)} labels; they are not of '
                       'one data set: fetch both again')
    self.classes = _classes(root, split, stored) if names is None else named_classes(names, root)
    labels, findings = _labels(stored, self.classes, labels_file.name)
    self.findings = tuple(findings)
    if on_error == 'stop':
      stop_on_errors(Labelled((), self.classes, self.fields, self.findings, root, 'idx', split))
    kept = np.flatnonzero(labels >= 0)
    if size is not None and not 0 <= size <= len(kept):
      raise ValueError(f'idx: size {size} is out of range; the split {split} of {root} has {len(kept)} images')
    self._rows, self._name = kept[:size], file.name.removesuffix('.gz')
    self._images, self._labels = images[self._rows], labels[self._rows]

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> dict[str, Any]:
    target = self.target(index)
    return {'image': np.repeat(self._images[index][..., None], 3, axis=-1), **target}

  def target(self, index: int) -> dict[str, Any]:
    """The truth of one image without the image: `label`, an int in 0..K-1."""
    return {'label': int(self._labels[self._check(index)])}

  def name_of(self, index: int) -> str:
    """The file of the images and the place in it, counted from 0."""
    return f'{self._name}/{self._rows[self._check(index)]:05d}'

  def _check(self, index: int) -> int:
    if not 0 <= index < len(self):
      raise IndexError(f'image {index} of {len(self)}')
    return index


def read_idx(file: pathlib.Path, *, axes: int) -> np.ndarray:
  """The array of an idx file of unsigned bytes.

  Args:
    file: packed by gzip or not, whatever it is called.
    axes: how many the array must have.

  Returns:
    uint8, in the file's shape.

  Raises:
    ValueError: the file is missing, cut short, too long, damaged, or something else.

  >>> read_idx(pathlib.Path('no/such/file.gz'), axes=3)
  Traceback (most recent call last):
  ValueError: idx: cannot read no/such/file.gz: No such file or directory; check the path
  """
  try:
    content = file.read_bytes()
    if content.startswith(_GZIP):  # not by the name: browsers unpack and keep it
      content = gzip.decompress(content)
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise ValueError(f'idx: {file} is cut short or damaged: {error}; fetch it again') from error
  except OSError as error:
    raise ValueError(f'idx: cannot read {file}: {error.strerror or error}; check the path') from error
  expected = bytes((0, 0, _UNSIGNED_BYTES, axes))
  if content[:4] != expected:
    raise ValueError(f'idx: {file} begins with {content[:4].hex(" ") or "nothing"}, and an idx file of {axes} '
                     f'{"axis" if axes == 1 else "axes"} of bytes with {expected.hex(" ")}; fetch it again')
  start = 4 + 4 * axes
  if len(content) < start:
    raise ValueError(f'idx: {file} is cut short in its header; fetch it again')
  shape = tuple(np.frombuffer(content[4:start], '>u4').tolist())
  length = start + math.prod(shape)
  if len(content) != length:
    raise ValueError(f'idx: {file} is cut short or damaged: its header says {" x ".join(map(str, shape))}, which makes '
                     f'{length} bytes with the header, and there are {len(content)}; fetch it again')
  return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _find(root: pathlib.Path, part: str, split: str) -> pathlib.Path:
  """The file of a split's images or labels; the plain one where there is a gz of it too."""
  axes = 3 if part == 'images' else 1
  found = [file for prefix in _PREFIXES[split] for file in root.glob(f'*{prefix}-{part}[-.]idx{axes}-ubyte*')
           if file.name.endswith(('ubyte', 'ubyte.gz'))]
  name = f'{_PREFIXES[split][0]}-{part}-idx{axes}-ubyte'
  return the_only((file for file in found if file.suffix != '.gz' or file.with_suffix('') not in found),
                  f'idx: no files with the {part} of split {split} in {root}',
                  f'they are called {name} or {name}.gz')


def _classes(root: pathlib.Path, split: str, stored: np.ndarray) -> ClassMap:
  """The labels in the files of both splits; of this one alone where there is no other."""
  found = set(stored.tolist())
  for other in SPLITS:
    if other != split:
      try:
        found |= set(read_idx(_find(root, 'labels', other), axes=1).tolist())
      except ValueError:
        continue  # reading that split says so
  return ClassMap(tuple(map(str, sorted(found))), tuple(sorted(found)))


def _labels(stored: np.ndarray, classes: ClassMap, where: str) -> tuple[np.ndarray, list[Finding]]:
  """Our label of each image, int64 [n], -1 for one that is no class; and what is wrong or worth knowing."""
  table = np.full(256, -1, np.int64)
  table[[file_id for file_id in classes.ids if file_id < 256]] = [k for k, i in enumerate(classes.ids) if i < 256]
  labels, findings = table[stored], []
  for place in np.flatnonzero(labels < 0).tolist():
    findings.append(Finding('class-unknown', f'{where}: label {place}', f'{stored[place]} is none of the classes '
                            f'{", ".join(map(str, classes.ids))}'))
  if classes.ids != tuple(range(len(classes))):
    findings.append(Finding('class-gap', where, f'the labels of the classes are {", ".join(map(str, classes.ids))}'))
  counts = np.bincount(labels[labels >= 0], minlength=len(classes))
  findings += [Finding('class-absent', where, f'class {classes.names[label]!r} has no image')
               for label in np.flatnonzero(counts == 0).tolist()]
  return labels, findings
