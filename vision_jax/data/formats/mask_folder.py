"""A folder of images and one of mask images, in which each pixel's value says its class.

Reference: the layout of M. Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 2010, with its palette
PNGs and 255 for void.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
import functools
import os
import pathlib
from typing import NamedTuple

import numpy as np

from vision_jax.conventions import ClassMap
from vision_jax.data.digits import SPLITS, check_split
from vision_jax.data.formats.layout import (
  SPLIT_FOLDERS,
  cause,
  check_folder,
  given_path,
  images_in,
  named_classes,
  part_of,
  read_text,
  relative_name,
  the_only,
)
from vision_jax.data.images import SUFFIXES
from vision_jax.data.records import Finding, Labelled, Record, read_values

VALUES = ('auto', 'ids', 'palette', 'binary')
_OPTIONS = {'images': 'images', 'masks': 'mask_images'}
_LOOKED_AT = 32  # masks that show what the values mean, where the classes have names
_BINARY = {0: 0, 1: 1, 255: 1}
_LOSSY = ('.jpg', '.jpeg')

Place = str | Mapping[str, str] | None


class _Pair(NamedTuple):
  """An image and its mask."""

  image: pathlib.Path
  mask: pathlib.Path


class _Look(NamedTuple):
  """What a mask image has."""

  values: frozenset[int]
  palette: bool
  fault: str | None = None  # why it cannot be read


def read(split: str, *, path: str | os.PathLike[str], images: Place = None, mask_images: Place = None,
         lists: Place = None, mask_values: str = 'auto', names: str | Sequence[str] | None = None,
         void: int | Sequence[int] | None = 255, image_tail: str = '', mask_tail: str = '',
         val_share: float = 0.2) -> Labelled:
  """Reads one split of a folder of images with a mask image for each.

  Args:
    split: 'train' or 'val'.
    path: the folder with `images/train/*` and `masks/train/*`, or `train/images/*` and `train/masks/*` (and so for val;
      'training', 'valid' and 'validation' will do); or with `images/*` and `masks/*` alone, which `train.txt` and
      `val.txt`, or else `val_share`, divide. A mask is named as its image, the suffix aside, in the same subfolder.
    images: the folder of the images below `path`, '{split}' standing for the split, or {split: folder}. Found when left
      out.
    mask_images: the folder of the masks, in the same manner.
    lists: the text files with the names of a split's images, one a line, in the same manner. Found when left out.
    mask_values: what the value of a pixel means. 'ids': it is the id of its class. 'palette': its place in the palette
      is. 'binary': 0 is background and 255 (or 1) the object. 'auto' looks at the masks, and a finding says what it
      took.
    names: of the classes, for the ids 0, 1, ...; or a text file below `path` with a name, or an id and a name, in each
      line. When left out the classes are the values in the masks of both splits, ascending, which means to read all of
      them; with names it is done when an image is asked for.
    void: the value, or values, of pixels that belong to no class; None for none. Not for 'binary'.
    image_tail: what the names of images have at their end and those of masks do not, for example '_leftImg8bit'.
    mask_tail: the same for masks, for example '_mask'.
    val_share: the last share of the images, in natural order, is val where nothing else divides them.

  Returns:
    The images in natural order, or the list's. Classes include the background.

  Raises:
    ValueError: a folder or list that is missing, or stands there in two ways; an unknown way to read values; masks in
      JPEG, which changes values; no image with a mask.

  PASCAL VOC is read with `images='JPEGImages', mask_images='SegmentationClass'`, `lists=
  'ImageSets/Segmentation/{split}.txt'`; Cityscapes with `images='leftImg8bit/{split}', image_tail='_leftImg8bit'`,
  `mask_images='gtFine/{split}', mask_tail='_gtFine_labelTrainIds'`.
  """
  root = check_folder('mask_folder', path)
  if mask_values not in VALUES:
    raise ValueError(f'mask_folder: data.mask_values is {mask_values!r}; it is one of {", ".join(VALUES)}')
  folders = _Folders(root, images, mask_images, lists, image_tail, mask_tail, val_share)
  findings: list[Finding] = []
  pairs = folders.pairs(check_split('mask_folder', split), findings)
  if not pairs:
    raise ValueError(f'mask_folder: no image of split {split} in {root} has a mask; a mask is named as its image, with '
                     'data.image_tail and data.mask_tail at their ends')
  every = list(dict.fromkeys(pair.mask for each in SPLITS for pair in
                             (pairs if each == split else folders.others(each))))
  _refuse_lossy(every)
  given = None if names is None else named_classes(names, root)
  looks = _looks(every, mask_values, given)
  kind = mask_values
  if mask_values == 'auto':
    kind, why = _kind(looks.values(), given)
    findings.append(Finding('mask-reading', relative_name(folders.folder('masks', split), root), why))
  classes, table = _meaning(kind, looks.values(), given, void)
  records = []
  for image, mask in pairs:
    fault = _fault(looks.get(mask), table)
    if fault is None:
      records.append(Record(image, relative_name(image, root), segmentation={'path': mask},
                            where=relative_name(mask, root)))
    else:
      findings.append(Finding(fault[0], relative_name(mask, root), fault[1]))
  return Labelled(tuple(records), classes, ('segmentation', 'pixels_valid'), tuple(findings), root, 'mask_folder',
                  split, table)


class _Folders:
  """Where images, masks and lists of a data set lie."""

  def __init__(self, root: pathlib.Path, images: Place, masks: Place, lists: Place, image_tail: str, mask_tail: str,
               val_share: float):
    self.root, self.lists, self.val_share = root, lists, val_share
    self.given = {'images': images, 'masks': masks}
    self.tails = {'images': image_tail, 'masks': mask_tail}
    found = [name for names in SPLIT_FOLDERS.values() for name in names
             if (root / 'images' / name).is_dir() or (root / name / 'images').is_dir()]
    self.divided = bool(found) if images is None else isinstance(images, Mapping) or '{split}' in images

  def pairs(self, split: str, findings: list[Finding]) -> list[_Pair]:
    """The images of a split with their masks; what lacks one becomes a finding."""
    once = findings if self.divided or split == 'train' else []  # of folders that both splits share
    images, masks = self._files('images', split, once), self._files('masks', split, once)
    once += [Finding('label-orphan', relative_name(mask, self.root), 'there is no image of that name')
             for name, mask in masks.items() if name not in images]
    chosen = self._chosen(split, images, findings)
    if chosen is None:
      once += [Finding('image-extra', relative_name(image, self.root), 'there is no mask of that name')
               for name, image in images.items() if name not in masks]
      chosen = [name for name in images if name in masks]
      chosen = chosen if self.divided else part_of(split, chosen, self.val_share)
    else:
      findings += [Finding('label-missing', relative_name(images[name], self.root), 'there is no mask of that name')
                   for name in chosen if name not in masks]
    return [_Pair(images[name], masks[name]) for name in chosen if name in masks]

  def others(self, split: str) -> list[_Pair]:
    """The pairs of the split that is not read; none where it is not there, which reading it says."""
    try:
      return self.pairs(split, [])
    except ValueError:
      return []

  def folder(self, part: str, split: str) -> pathlib.Path:
    """Of a split's images or masks."""
    given, option = self.given[part], f'data.{_OPTIONS[part]}'
    if given is not None:
      return given_path(f'mask_folder: {option}', given, split, self.root)
    if not self.divided:
      places = [self.root / part]
    else:
      places = [place for name in SPLIT_FOLDERS[split] for place in (self.root / part / name, self.root / name / part)]
    return the_only((place for place in places if place.is_dir()),
                    f'mask_folder: no folders of the {part} of split {split} in {self.root}',
                    f'lay them out as {part}/{split} or {part}, or give {option}')

  def _files(self, part: str, split: str, findings: list[Finding]) -> dict[str, pathlib.Path]:
    """The images, or the masks, by their names below the folder without suffix and tail."""
    folder, files = self.folder(part, split), {}
    both_in_one = folder == self.folder('masks' if part == 'images' else 'images', split)
    mine, others = self.tails[part], self.tails['masks' if part == 'images' else 'images']
    if both_in_one and mine == others:
      raise ValueError(f'mask_folder: images and masks both lie in {folder}; give data.mask_tail, with which the names '
                       "of masks end, for example '_mask'")
    for file in images_in(folder, deep=True):
      name = relative_name(file, folder)[:-len(file.suffix)]
      if both_in_one and len(others) > len(mine) and name.endswith(others):
        continue
      stem, where = name.removesuffix(mine), relative_name(file, self.root)
      if not name.endswith(mine):
        if part == 'images':
          findings.append(Finding('image-extra', where, f'its name does not end in {mine!r}'))
      elif stem in files:
        findings.append(Finding('image-id-twice', where, f'{relative_name(files[stem], self.root)} has the same name'))
      else:
        files[stem] = file
    return files

  def _chosen(self, split: str, images: dict[str, pathlib.Path], findings: list[Finding]) -> list[str] | None:
    """The names that the split's list has; None without lists."""
    if self.lists is not None:
      file = given_path('mask_folder: data.lists', self.lists, split, self.root)
    elif not self.divided and any((self.root / f'{each}.txt').is_file() for each in SPLITS):
      file = the_only((place for place in [self.root / f'{split}.txt'] if place.is_file()),
                      f'mask_folder: no lists of split {split} in {self.root}', f'write {split}.txt beside the other')
    else:
      return None
    folder, chosen = relative_name(self.folder('images', split), self.root), {}
    for number, line in enumerate(read_text(file).splitlines(), 1):
      where = f'{relative_name(file, self.root)}:{number}'
      name = next((each for each in self._readings(line.strip(), folder) if each in images), None)
      if not line.strip():
        continue
      if name is None:
        findings.append(Finding('image-missing', where, f'no image {line.strip()!r} in {folder}'))
      elif name in chosen:
        findings.append(Finding('image-id-twice', where, f'{line.strip()!r} stands in line {chosen[name]} too'))
      else:
        chosen[name] = number
    return list(chosen)

  def _readings(self, line: str, folder: str) -> Iterator[str]:
    """The images that a line of a list may name: below their folder or the data set's, with or without suffix."""
    for name in (line, line.removeprefix(f'{folder}/')):
      stem = os.path.splitext(name)[0] if name.lower().endswith(SUFFIXES) else name
      yield from (stem, stem.removesuffix(self.tails['images']))


def _refuse_lossy(masks: list[pathlib.Path]) -> None:
  lossy = [mask for mask in masks if mask.suffix.lower() in _LOSSY]
  if lossy:
    raise ValueError(f'mask_folder: {lossy[0]} is a JPEG ({len(lossy)} of the masks are), which changes pixel values; '
                     'write the masks as PNG from what they were made from, or set each value to the nearest class')


def _looks(masks: list[pathlib.Path], values: str, names: ClassMap | None) -> dict[pathlib.Path, _Look]:
  """What those masks have that must be looked at before training: none of them, some or all."""
  if names is not None or values == 'binary':
    masks = masks[::-(-len(masks) // _LOOKED_AT)] if values == 'auto' else []
  with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding frees Python's lock
    return dict(zip(masks, pool.map(_look, masks), strict=True))


def _look(mask: pathlib.Path) -> _Look:
  return _look_once(mask, mask.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1 << 17)
def _look_once(mask: pathlib.Path, _: int) -> _Look:
  """What a mask image has; kept, because the split that is read next asks for the same."""
  from PIL import Image
  try:
    pixels = read_values(mask)
  except ValueError as error:
    return _Look(frozenset(), False, cause(error, mask))
  with Image.open(mask) as opened:
    palette = opened.mode == 'P'
  values = np.flatnonzero(np.bincount(pixels.ravel())) if pixels.dtype == np.uint8 else np.unique(pixels)
  return _Look(frozenset(values.tolist()), palette)


def _kind(looks: Iterable[_Look], names: ClassMap | None) -> tuple[str, str]:
  """How to read the values when nobody said it, and why, in words."""
  looks = [look for look in looks if look.fault is None]
  values = set().union(*(look.values for look in looks))
  kind = 'ids'
  if looks and all(look.palette for look in looks):
    kind = 'palette'
  elif values <= {0, 255} and 255 in values and (names is None or len(names) == 2):
    kind = 'binary'
  return kind, (f'taken as {kind!r}: the {len(looks)} masks looked at have the values {_listed(values)}'
                f'{" in a palette" if kind == "palette" else ""}')


def _listed(values: Iterable[int]) -> str:
  values = sorted(values)
  return ', '.join(map(str, values if len(values) <= 12 else (*values[:10], '...', values[-1])))


def _meaning(kind: str, looks: Iterable[_Look], names: ClassMap | None,
             void: int | Sequence[int] | None) -> tuple[ClassMap, dict[int, int]]:
  """The classes, and the class of each value, -1 for void."""
  if kind == 'binary':
    given = ('background', 'object') if names is None else names.names
    if len(given) != 2:
      raise ValueError(f"mask_folder: data.names has {len(given)} names and data.mask_values is 'binary'; give two, of "
                       'the background and the object')
    return ClassMap(given, (0, 255)), dict(_BINARY)
  outside = set() if void is None else {void} if isinstance(void, int) else set(void)
  if names is None:
    ids = tuple(sorted(set().union(*(look.values for look in looks)) - outside))
    names = ClassMap(tuple(map(str, ids)), ids)
  if not names:
    raise ValueError(f'mask_folder: the masks have no value but that of void, {_listed(outside)}; give data.void, or '
                     'write masks with classes')
  both = sorted(outside & set(names.ids))
  if both:
    raise ValueError(f'mask_folder: {both[0]} is data.void and the id of class {names.names[names.index(both[0])]!r}; '
                     'give data.void another value, or None')
  return names, {**{file_id: label for label, file_id in enumerate(names.ids)}, **dict.fromkeys(outside, -1)}


def _fault(look: _Look | None, table: Mapping[int, int]) -> tuple[str, str] | None:
  """(kind of finding, what is wrong) with a mask that was looked at."""
  if look is None:
    return None
  if look.fault is not None:
    return 'mask-corrupt', look.fault
  strange = look.values - table.keys()
  return ('mask-values', f'the value {_listed(strange)} is no class') if strange else None
