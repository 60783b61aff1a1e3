"""Published weights by name: where they are, what belongs to them, and how they get here, checked.

The rows stand in `classification.tsv` and `detection.tsv`, the class names in `imagenet1k.txt` and `coco91.txt`: facts
of torchvision 0.28's metadata and, for DETR, of its authors.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import fractions
import functools
import hashlib
import http.client
import importlib.resources
import os
import pathlib
import re
from typing import Any
import urllib.error
import urllib.request

from vision_jax.conventions import ClassMap, find

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_ADDRESS = 'https://download.pytorch.org/models/'
_TABLES = ('classification.tsv', 'detection.tsv')
_NOTHING = ('N/A', '__background__')  # names of classes that no object has
_BLOCK = 1 << 20  # bytes
_PATIENCE = 30  # seconds without a byte
_HASH = re.compile(r'-([0-9a-f]{8,64})\.\w+$')


@dataclasses.dataclass(frozen=True)
class Published:
  """One row of published weights.

  Args:
    model: the name of the model, as `models.create` knows it.
    weights: the name of these weights among those of the model.
    default: whether they are what 'DEFAULT' means.
    address: from where they are downloaded.
    parameters: how many numbers the model has with them, the scales and biases of frozen BatchNorm aside.
    gmacs: billions of multiply-adds at their image size; None: not published.
    megabytes: of the file, in units of 2 ** 20 bytes.
    top1, top5: accuracy on ImageNet's validation images in per cent, at the resize and crop below; None: not measured.
    resize: pixels of the shorter side after the resize.
    crop: pixels of the centre crop's sides, or of the canvas'.
    interpolation: of the resize.
    mean, std: of the three channels of an image in 0..1.
    options: of the model, which these weights ask for.
    categories_of: the name of the list of class names; '' where the head has none.
    licence: an address, where these weights have one of their own.
    box_ap: of a detector, its AP on COCO's validation images of 2017 in per cent.
    policy: of the loader's resize: 'resize_crop', 'letterbox' or 'warp'.
  """

  model: str
  weights: str
  default: bool
  address: str
  parameters: int
  gmacs: float | None
  megabytes: float
  top1: float | None
  top5: float | None
  resize: int
  crop: int
  interpolation: str
  mean: tuple[float, float, float] = IMAGENET_MEAN
  std: tuple[float, float, float] = IMAGENET_STD
  options: Any = dataclasses.field(default_factory=dict, hash=False)
  categories_of: str = ''
  licence: str = ''
  box_ap: float | None = None
  policy: str = 'resize_crop'

  @property
  def name(self) -> str:
    """Such as 'resnet50:IMAGENET1K_V2'."""
    return f'{self.model}:{self.weights}'

  @property
  def file(self) -> str:
    """The name of the file."""
    return self.address.rpartition('/')[2]

  @property
  def hash_prefix(self) -> str:
    """The first digits of the file's SHA-256, which its name ends with; '' where it does not."""
    found = _HASH.search(self.file)
    return found[1] if found else ''

  def categories(self) -> tuple[str, ...]:
    """The class names in the order of the logits, or of a detector's labels.

    A list may begin with a background that is no label: where the model has one class less.
    """
    names = categories(self.categories_of) if self.categories_of else ()
    return names[-self.options.get('num_classes', len(names)):] if names else ()

  def class_map(self) -> ClassMap:
    """The classes of the head as they stand, with their ids in the list: of a detector COCO's file ids.

    What the list calls N/A, or background, is named after its id too, as every class has a name of its own.

    >>> classes = find_published('fcos_resnet50_fpn:COCO_V1').class_map()
    >>> classes.names[11:14], classes.ids[11:14]
    (('fire hydrant', 'N/A 12', 'stop sign'), (11, 12, 13))
    """
    names = self.categories()
    first = len(categories(self.categories_of)) - len(names) if names else 0
    return ClassMap(tuple(f'{name} {i}' if name in _NOTHING else name for i, name in enumerate(names, first)),
                    tuple(range(first, first + len(names))))

  def data_options(self) -> dict[str, Any]:
    """What `config.data` takes to feed a model with these weights as they were evaluated.

    >>> find_published('resnet50:IMAGENET1K_V2').data_options()['resize']
    ('resize_crop', {'shorter_side': 232, 'interpolation': 'bilinear'})
    """
    side = {} if self.policy == 'warp' else {'shorter_side': self.resize}
    return {'resize': (self.policy, {**side, 'interpolation': self.interpolation}),
            'canvas': (self.crop, self.crop), 'mean': self.mean, 'std': self.std}


@functools.cache
def published() -> tuple[Published, ...]:
  """All published weights that are known, by model: of classifiers, then of detectors.

  >>> len(published()), len({row.model for row in published()})
  (126, 91)
  """
  return tuple(row for table in _TABLES for row in _rows(table))


def find_published(name: str) -> Published:
  """The row of 'model:WEIGHTS' or 'model:DEFAULT'.

  Raises:
    ValueError: no such model or weights, with what there is.

  >>> find_published('resnet18:DEFAULT').address
  'https://download.pytorch.org/models/resnet18-f37072fd.pth'
  >>> find_published('resnet18:V2')
  Traceback (most recent call last):
  ValueError: unknown weights of resnet18 'V2'; known: DEFAULT, IMAGENET1K_V1
  """
  model, colon, weights = name.partition(':')
  if not colon:
    raise ValueError(f"weights {name!r} are neither a file nor a name; a name is 'model:WEIGHTS', for example "
                     "'resnet50:DEFAULT'")
  of_model: dict[str, dict[str, Published]] = {}
  for row in published():
    of_model.setdefault(row.model, {})[row.weights] = row
    if row.default:
      of_model[row.model]['DEFAULT'] = row
  return find(find(of_model, 'model with published weights', model), f'weights of {model}', weights)


def find_file(path: pathlib.Path) -> Published | None:
  """The row whose file this is, by its name and hash; None where there is none."""
  row = next((row for row in published() if row.file == path.name), None)
  return row if row and path.is_file() and sha256(path).startswith(row.hash_prefix) else None


@functools.cache
def categories(name: str) -> tuple[str, ...]:
  """A list of class names that comes with the package.

  >>> categories('imagenet1k')[:2], len(categories('imagenet1k'))
  (('tench', 'goldfish'), 1000)
  """
  return tuple(_text(f'{name}.txt').splitlines())


def cache_folder() -> pathlib.Path:
  """Where downloads are kept: $VISION_JAX_CACHE, else ~/.cache/vision_jax/weights."""
  given = os.environ.get('VISION_JAX_CACHE')
  return pathlib.Path(given).expanduser() if given else pathlib.Path.home() / '.cache' / 'vision_jax' / 'weights'


def download(row: Published, *, progress: bool = True) -> pathlib.Path:
  """The file of published weights, downloaded unless it is in the cache folder, its hash checked either way.

  What broke off is continued where the server can; two processes do not download at once.

  Args:
    row: what to download.
    progress: whether a bar is shown.

  Returns:
    The path of the file.

  Raises:
    ValueError: the server cannot be reached or answers with an error, the connection broke off, or the hash differs.
  """
  path = cache_folder() / row.file
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(f'the cache folder {path.parent} cannot be made ({error.strerror}); set VISION_JAX_CACHE to a '
                     'folder of your own') from error
  if not path.exists():
    part = path.with_name(f'{path.name}.part')
    with _locked(part):
      if not path.exists():  # another process may have been first
        _fetch(row, part, path, progress)
        if not (found := sha256(part)).startswith(row.hash_prefix):
          part.unlink()
          raise ValueError(f'{part} is damaged: its SHA-256 is {found}, that of {row.name} begins with '
                           f'{row.hash_prefix}; it was deleted, so run again to download it')
        part.replace(path)
        return path
  # What lies there already may be a person's own file: it is never deleted here.
  if not (found := sha256(path)).startswith(row.hash_prefix):
    raise ValueError(f'{path} is not {row.name}: its SHA-256 is {found}, and should begin with {row.hash_prefix}; '
                     'delete it, so that it is downloaded, or put the right file there')
  return path


def sha256(path: pathlib.Path) -> str:
  """The SHA-256 of a file, in hexadecimal digits."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
  """Holds the lock of a file to be written; its end by any means, a kill included, gives it back."""
  try:
    import fcntl
  except ImportError:  # no lock where the system has none
    yield
    return
  with open(path.with_suffix('.lock'), 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def _fetch(row: Published, part: pathlib.Path, path: pathlib.Path, progress: bool) -> None:
  """Writes what the server has to `part`, after what is there already."""
  start = part.stat().st_size if part.exists() else 0
  request = urllib.request.Request(row.address, headers={'User-Agent': 'vision_jax'})
  if start:
    request.add_header('Range', f'bytes={start}-')
  try:
    with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
      start = start if answer.status == 206 else 0
      length = answer.headers.get('Content-Length')
      total = None if length is None else start + int(length)
      done = _copy(answer, part, start, total, row.name if progress else None)
  except urllib.error.HTTPError as error:
    if error.code == 416 and start:  # what is there is no beginning of this file
      part.unlink()
      _fetch(row, part, path, progress)
      return
    raise ValueError(f'{row.name}: the server answers {error.code} ({error.reason}) for {row.address}') from error
  except (OSError, http.client.HTTPException) as error:
    raise ValueError(f'{row.name} could not be downloaded from {row.address} ({getattr(error, "reason", error)}); '
                     f'run again where there is a network, or put the file at {path}') from error
  if total is not None and done < total:
    raise ValueError(f'{row.name}: the connection broke off after {done:,} of {total:,} bytes; run again to continue')


def _copy(answer: Any, part: pathlib.Path, start: int, total: int | None, title: str | None) -> int:
  """Appends an answer to a file, with a bar if it has a title; how many bytes the file then has."""
  import tqdm
  with open(part, 'r+b' if start else 'wb') as file, tqdm.tqdm(
      desc=title, total=total, initial=start, unit='B', unit_scale=True, disable=title is None) as bar:
    file.seek(start)
    while block := answer.read(_BLOCK):
      bar.update(file.write(block))
    return file.tell()


# The tables in the package.


def _text(file: str) -> str:
  return importlib.resources.files('vision_jax.pretrained').joinpath(file).read_text(encoding='utf-8')


def _rows(table: str) -> Iterator[Published]:
  lines = [line.split('\t') for line in _text(table).splitlines() if line and not line.startswith('#')]
  for line in lines[1:]:
    yield _row(dict(zip(lines[0], line, strict=True)))


def _row(cells: dict[str, str]) -> Published:
  options = dict(pair.split('=') for pair in cells['options'].split())
  file, top1, top5, box_ap = (cells.get(name, '') for name in ('file', 'top1', 'top5', 'box_ap'))
  return Published(
      model=cells['model'], weights=cells['weights'], default=cells['default'] == '*',
      address=file if '://' in file else _ADDRESS + file, parameters=int(cells['parameters']),
      gmacs=_number(cells['gmacs']), megabytes=float(cells['megabytes']), top1=_number(top1), top5=_number(top5),
      resize=int(cells['resize']), crop=int(cells['crop']), interpolation=cells['interpolation'],
      mean=_three(cells['mean']) or IMAGENET_MEAN, std=_three(cells['std']) or IMAGENET_STD,
      options={key: _option(value) for key, value in options.items()}, categories_of=cells['categories'],
      licence=cells['licence'], box_ap=_number(box_ap), policy=cells.get('policy', 'resize_crop'))


def _option(cell: str) -> int | bool | str:
  return int(cell) if cell.isdigit() else {'True': True, 'False': False}.get(cell, cell)


def _number(cell: str) -> float | None:
  return float(cell) if cell else None


def _three(cell: str) -> tuple[float, ...]:
  return tuple(float(fractions.Fraction(part)) for part in cell.split(',')) if cell else ()
