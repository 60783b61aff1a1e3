"""Image files: reading one into RGB, and a source of files that have no targets.

Units: pixels; grey levels 0..255; sizes are (h, w).
"""

from __future__ import annotations

from collections.abc import Iterable
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vision_jax.conventions import ClassMap

if TYPE_CHECKING:
  from PIL import Image

SUFFIXES = ('.bmp', '.gif', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
_REMEDY = 'replace the file or take it out of the list'


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
  """Reads an image file as RGB, upright.

  Args:
    path: a file that Pillow can read; of several frames the first counts.

  Returns:
    uint8 RGB [H, W, 3]. The turn in the EXIF data is applied. Grey becomes three equal channels; a palette is looked
    up; transparency is laid over white; 16-bit grey is scaled by 255 / 65535 and rounded (16-bit colour: Pillow keeps
    the upper byte); CMYK, YCbCr and the like go through Pillow's conversion to RGB.

  Raises:
    ValueError: the file is missing, unreadable, corrupt, cut short, or holds floats or integers outside 0..65535, for
      which there is no common range.

  >>> read_image('no/such/file.png')
  Traceback (most recent call last):
  ValueError: cannot read image no/such/file.png: no such file; check the path
  """
  from PIL import Image, ImageOps
  path = Path(path)
  if not path.exists():
    raise ValueError(f'cannot read image {path}: no such file; check the path')
  if path.is_dir():
    raise ValueError(f'cannot read image {path}: it is a folder; give a file in it')
  try:
    with Image.open(path) as opened:
      opened.load()
      ImageOps.exif_transpose(opened, in_place=True)  # the other way copies every image, turned or not
      return to_rgb(opened)
  except PermissionError as error:
    raise ValueError(f'cannot read image {path}: no permission; make the file readable') from error
  except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error and more
    raise ValueError(f'cannot read image {path}: {_cause(error, path)}; {_REMEDY}') from error


def _cause(error: Exception, path: Path) -> str:
  if path.stat().st_size == 0:
    return 'the file is empty'
  if type(error).__name__ == 'UnidentifiedImageError':
    return 'not an image, or a corrupt or unknown format'
  return ' '.join(str(error).split()) or type(error).__name__


def to_rgb(image: Image.Image) -> np.ndarray:
  """The pixels of a decoded image as `read_image` makes them of a file: uint8 RGB [H, W, 3], not turned."""
  from PIL import Image
  if image.mode.startswith('I'):  # 'I;16', 'I;16B' or 'I', by Pillow's version and the file's format
    return _from_16_bit(np.asarray(image))
  if image.mode == 'F':
    raise ValueError('float pixels have no common range')
  if 'transparency' in image.info or image.mode in ('LA', 'La', 'PA', 'RGBA', 'RGBa'):
    image = image.convert('RGBA')
    image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
  return np.asarray(image if image.mode == 'RGB' else image.convert('RGB'))


def _from_16_bit(values: np.ndarray) -> np.ndarray:
  values = values.astype(np.int64)
  if values.min() < 0 or values.max() > 65535:
    raise ValueError(f'pixel values {values.min()}..{values.max()} are outside 0..65535')
  grey = ((values + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257
  return np.repeat(grey[..., None], 3, axis=-1)


class ImageFiles:
  """Image files as a source without targets, to predict on.

  Args:
    paths: a file, a folder (all images in it and below it, hidden ones aside, sorted by path), or several of either,
      in the order given. Files found in a folder are known by their suffix; a file that is named is taken whatever it
      is called.
    classes: the classes to predict, for whoever asks the source for them.

  `source[i]` is a dict of `image` alone, uint8 RGB [H, W, 3]; `source.paths[i]` is its file.

  Raises:
    ValueError: nothing given, a missing path, a folder without images, or, on access, what `read_image` refuses.

  >>> ImageFiles('no/such/folder')
  Traceback (most recent call last):
  ValueError: no such file or folder: no/such/folder; check the path
  """

  fields: tuple[str, ...] = ()

  def __init__(self, paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *,
               classes: ClassMap | None = None):
    self.classes = ClassMap(names=()) if classes is None else classes
    paths = [paths] if isinstance(paths, str | os.PathLike) else paths
    found = [entry for path in paths for entry in _images_of(Path(path))]
    if not found:
      raise ValueError('no image files given; name files or a folder')
    self._names, self.paths = zip(*found, strict=True)

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {'image': read_image(self.paths[index])}

  def target(self, index: int) -> dict[str, Any]:
    """An empty dict: there is no truth."""
    return {}

  def name_of(self, index: int) -> str:
    """The file's path: below the folder it was found in, as it was given otherwise."""
    return self._names[index]


def _images_of(path: Path) -> list[tuple[str, Path]]:
  """The (name, path) of a file, or of each image below a folder."""
  if not path.exists():
    raise ValueError(f'no such file or folder: {path}; check the path')
  if not path.is_dir():
    return [(path.as_posix(), path)]
  found = sorted(p for p in path.rglob('*') if p.suffix.lower() in SUFFIXES and p.is_file()
                 and not any(part.startswith('.') for part in p.relative_to(path).parts))
  if not found:
    raise ValueError(f'no images in folder {path}; known suffixes: {" ".join(SUFFIXES)}')
  return [(p.relative_to(path).as_posix(), p) for p in found]
