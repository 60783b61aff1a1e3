"""Where things lie in a data set's folder, and what is wrong with a box: what several readers need.

Units: boxes are xyxy in pixels; sizes are (h, w).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
import math
import os
import pathlib
import re
from typing import Any

from vision_jax.conventions import ClassMap
from vision_jax.data.images import SUFFIXES

SPLIT_FOLDERS = {'train': ('train', 'training'), 'val': ('val', 'valid', 'validation')}
TOLERANCE = 0.5  # pixels by which a box may leave the image without a word: files round


def check_folder(name: str, path: str | os.PathLike[str]) -> pathlib.Path:
  """The data set's folder, or one line that says it is not there.

  >>> check_folder('voc', 'no/such/folder')
  Traceback (most recent call last):
  ValueError: voc: no such folder: no/such/folder; give data.path, the folder of the data set
  """
  folder = pathlib.Path(path)
  if not folder.is_dir():
    reason = 'is a file' if folder.is_file() else 'no such folder'
    raise ValueError(f'{name}: {reason}: {folder}; give data.path, the folder of the data set')
  return folder


def natural_key(name: str) -> tuple:
  """What sorts names so that numbers in them compare as numbers.

  >>> sorted(['a10.png', 'a9.png', 'A1.png'], key=natural_key)
  ['A1.png', 'a9.png', 'a10.png']
  """
  parts = re.split(r'(\d+)', name)
  return tuple((int(part), part) if i % 2 else part.lower() for i, part in enumerate(parts)), name


def walk(folder: str | os.PathLike[str]) -> Iterator[tuple[str, list[str], list[str]]]:
  """As `os.walk`, through links, but into no hidden folder, and by no link back to a folder above, so that it ends.

  >>> list(walk('no/such/folder'))
  []
  """
  above = {os.fspath(folder): {os.path.realpath(folder)}}
  for place, folders, files in os.walk(os.fspath(folder), followlinks=True):
    reals, chain = {}, above.pop(place)
    for name in folders:
      real = os.path.realpath(os.path.join(place, name))
      if real not in chain and not name.startswith('.'):
        reals[name] = real
    above |= {os.path.join(place, name): chain | {real} for name, real in reals.items()}
    folders[:] = reals
    yield place, folders, files


def cause(error: ValueError, path: pathlib.Path) -> str:
  """What is wrong with a file, out of a message that has its path before and the remedy behind.

  >>> cause(ValueError('cannot read image cats/a.png: the file is empty; replace it'), pathlib.Path('cats/a.png'))
  'the file is empty'
  """
  text = str(error)
  if 'cannot identify image file' in text:  # in Pillow's words the path stands twice
    return 'not an image, or a corrupt or unknown format'
  _, found, rest = text.partition(str(path))
  return rest.lstrip(': ').rpartition('; ')[0] if found else text


def images_in(folder: pathlib.Path, *, deep: bool = False) -> list[pathlib.Path]:
  """The image files in a folder, and below it where `deep`, in natural order; hidden ones are left out.

  They are known by their suffixes, `images.SUFFIXES`.

  >>> images_in(pathlib.Path('no/such/folder'))
  []
  """
  base, found = os.fspath(folder), []
  for place, folders, files in walk(base):
    folders[:] = folders if deep else []
    below, path = place[len(base):], pathlib.Path(place)  # not relative_to: there may be a million files
    found += [(natural_key(f'{below}/{name}'), path / name) for name in files
              if not name.startswith('.') and os.path.splitext(name)[1].lower() in SUFFIXES]
  return [path for _, path in sorted(found)]


def relative_name(path: pathlib.Path, root: pathlib.Path) -> str:
  """A path below the data set's folder with '/', '.' for the folder, or as it is where it lies elsewhere."""
  name, folder = path.as_posix(), f'{root.as_posix()}/'
  if f'{name}/' == folder:
    return '.'
  return name[len(folder):] if name.startswith(folder) else name  # not relative_to: there may be a million files


def the_only(found: Iterable[pathlib.Path], what: str, remedy: str) -> pathlib.Path:
  """The only candidate; a ValueError lists them where there are several, or none.

  >>> the_only([], 'coco: no annotations of split train in x', 'give data.annotations')
  Traceback (most recent call last):
  ValueError: coco: no annotations of split train in x; give data.annotations
  """
  found = sorted({os.path.normpath(path): path for path in found}.values())
  if not found:
    raise ValueError(f'{what}; {remedy}')
  if len(found) > 1:
    several = what.replace(': no ', ': several ', 1)
    raise ValueError(f'{several}: {", ".join(path.as_posix() for path in found)}; {remedy}')
  return found[0]


def given_path(option: str, value: str | Mapping[str, str], split: str, root: pathlib.Path, *,
               alone: bool = False) -> pathlib.Path:
  """The path that an option names for a split.

  Args:
    option: its name, for messages.
    value: a path below `root`, with '{split}' for the split, or {split: path}.
    split: 'train' or 'val'.
    root: the data set's folder.
    alone: whether each split needs a path of its own.

  Returns:
    The path, which exists.

  Raises:
    ValueError: it does not exist, the split has none, or both splits have the same and should not.

  >>> given_path('coco: data.annotations', 'all.json', 'val', pathlib.Path('cats'), alone=True)
  Traceback (most recent call last):
  ValueError: coco: data.annotations 'all.json' is the same for train and val; put '{split}' where they differ
  """
  if isinstance(value, Mapping):
    if split not in value:
      raise ValueError(f'{option} has nothing for split {split}, only for {", ".join(value)}; add it')
    value = value[split]
  elif alone and '{split}' not in value:
    raise ValueError(f"{option} {value!r} is the same for train and val; put '{{split}}' where they differ")
  place = root / value.replace('{split}', split)
  if not place.exists():
    raise ValueError(f'{option}: {place} does not exist; give a path below {root}')
  return place


def read_text(path: pathlib.Path) -> str:
  """A text file in UTF-8, with or without a byte order mark; a ValueError says what is wrong with it."""
  try:
    return path.read_text(encoding='utf-8-sig')
  except UnicodeDecodeError as error:
    line = error.object[:error.start].count(b'\n') + 1
    raise ValueError(f'{path}:{line}: not UTF-8 (byte {error.object[error.start]:#04x}); save it as UTF-8') from error
  except OSError as error:
    raise ValueError(f'cannot read {path}: {error.strerror or error}; check the path') from error


def box_fault(box: Sequence[float], size: tuple[int, int]) -> tuple[str, str] | None:
  """What is wrong with a box.

  Args:
    box: xyxy in pixels.
    size: (h, w) of its image.

  Returns:
    (kind of finding, what is wrong in words), or None. All kinds but 'box-clipped', which stands for a box that leaves
    the image by more than half a pixel, are errors.

  >>> box_fault((1, 1, 5, 4), (10, 20)), box_fault((5, 1, 5, 4), (10, 20))
  (None, ('box-zero', 'the box (5, 1, 5, 4) is 0 x 3 pixels'))
  """
  x1, y1, x2, y2 = box
  h, w = size
  if 0 <= x1 < x2 <= w and 0 <= y1 < y2 <= h:
    return None
  corners = f'the box ({", ".join(f"{float(x):.7g}" for x in box)})'
  if not all(map(math.isfinite, box)):
    return 'box-not-finite', f'{corners} is not made of finite numbers'
  if x2 < x1 or y2 < y1:
    return 'box-inverted', f'{corners} ends before it begins'
  if x2 == x1 or y2 == y1:
    return 'box-zero', f'{corners} is {x2 - x1:.7g} x {y2 - y1:.7g} pixels'
  if x1 >= w or y1 >= h or x2 <= 0 or y2 <= 0:
    return 'box-outside', f'{corners} lies outside the image of {w} x {h}'
  over = max(-x1, -y1, x2 - w, y2 - h)
  return ('box-clipped', f'{corners} leaves the image of {w} x {h} by {over:.3g} pixels') if over > TOLERANCE else None


def part_of(split: str, items: Sequence[Any], val_share: float) -> Sequence[Any]:
  """What a split has of a list that nobody divided: its last share is val, what comes before it train.

  Args:
    split: 'train' or 'val'.
    items: in natural order.
    val_share: of val, between 0 and 1; the number is rounded, and either side has one where there are two.

  Returns:
    A slice of `items`.

  Raises:
    ValueError: a share out of range.

  >>> part_of('train', 'abcdefgh', 0.2), part_of('val', 'abcdefgh', 0.2), part_of('val', 'a', 0.2)
  ('abcdef', 'gh', '')
  """
  if not 0 < val_share < 1:
    raise ValueError(f'data.val_share is {val_share}; it lies between 0 and 1')
  last = min(max(int(len(items) * val_share + 0.5), 1), max(len(items) - 1, 0))
  border = len(items) - last
  return items[:border] if split == 'train' else items[border:]


def named_classes(names: str | Sequence[str], root: pathlib.Path) -> ClassMap:
  """The classes that an option names.

  Args:
    names: the names in order, for the ids 0, 1, ...; or a text file below `root` with a name in each line, or with an
      id and a name in each line (`17 cat`, `17: cat` or `17, cat`).
    root: the data set's folder.

  Raises:
    ValueError: a file that cannot be read or is empty; a name or an id that stands twice.

  >>> named_classes(('road', 'car'), pathlib.Path()).index(1)
  1
  """
  if not isinstance(names, str):
    return ClassMap(tuple(names))
  file = root / names
  lines = [line.strip() for line in read_text(file).splitlines() if line.strip()]
  if not lines:
    raise ValueError(f'{file}: there is no name in it; write a name in each line')
  numbered = [re.fullmatch(r'(\d+)(?:\s*[:,;]\s*|\s+)(\S.*)', line) for line in lines]
  try:
    if not all(numbered):
      return ClassMap(tuple(lines))
    pairs = sorted((int(match[1]), match[2]) for match in numbered if match)
    return ClassMap(tuple(name for _, name in pairs), tuple(file_id for file_id, _ in pairs))
  except ValueError as error:
    raise ValueError(f'{file}: {error}') from error
