"""Folders of images, a folder for each class or each identity.

Reference: the layout of torchvision's ImageFolder, and of the folders of LFW, VGGFace and Omniglot.
"""

from __future__ import annotations

from collections.abc import Sequence
import itertools
import operator
import os
import pathlib

from vision_jax.conventions import ClassMap
from vision_jax.data.digits import SPLITS, check_split
from vision_jax.data.formats.layout import (
  SPLIT_FOLDERS,
  check_folder,
  images_in,
  natural_key,
  part_of,
  relative_name,
  the_only,
  walk,
)
from vision_jax.data.images import SUFFIXES
from vision_jax.data.records import Finding, Labelled, Record

Groups = dict[str, list[pathlib.Path]]  # name of a class or an identity -> its images, both in natural order


def read(split: str, *, path: str | os.PathLike[str], classes: Sequence[str] | None = None,
         val_share: float = 0.2) -> Labelled:
  """Reads one split of a folder with a folder of images for each class.

  Args:
    split: 'train' or 'val'.
    path: the folder with `train/<class>/*` and `val/<class>/*` ('training', 'valid' and 'validation' will do), or with
      `<class>/*` alone, divided by `val_share`. Images may lie deeper in a class's folder.
    classes: the names of the classes in order. When left out they are the names of the folders, of train where the data
      set is divided, in natural order: numbers in names compare as numbers.
    val_share: the last share of each class's images, in natural order, is val; it lies between 0 and 1.

  Returns:
    The images by class, each class in natural order.

  Raises:
    ValueError: a folder that is missing; no folder of a class, or none with an image; one split without the other.
  """
  root = check_folder('image_folder', path)
  base = _bases('image_folder', root).get(check_split('image_folder', split), root)
  return _closed('image_folder', split, root, base, classes, 1, val_share)


def identities(split: str, *, path: str | os.PathLike[str], depth: int | None = None, disjoint: bool = True,
               val_share: float = 0.2) -> Labelled:
  """Reads one split of a folder with a folder of images for each identity, to learn embeddings from.

  Args:
    split: 'train' or 'val'.
    path: the folder with `train/<identity>/*` and `val/<identity>/*`, or with `<identity>/*` alone.
    depth: how many folders deep an identity is: 1 for `<person>/*` with whatever lies below, 2 for
      `<alphabet>/<character>/*`. When left out, each folder that holds images is an identity.
    disjoint: True gives each split identities of its own, as verification is measured: its classes are its own
      identities, and the ids count through both splits. Where the data set is not divided, the last `val_share` of the
      identities, in natural order, is val. False has the identities of train in both splits and divides the images of
      each, as `read` does.
    val_share: lies between 0 and 1.

  Returns:
    The images by identity, both in natural order.

  Raises:
    ValueError: as `read`; images beside folders with images, where `depth` is left out.
  """
  name = 'identities'
  if depth is not None and depth < 1:
    raise ValueError(f'{name}: data.depth is {depth}; it is at least 1')
  root = check_folder(name, path)
  bases = _bases(name, root)
  base = bases.get(check_split(name, split), root)
  if not disjoint:
    return _closed(name, split, root, base, None, depth, val_share)
  findings: list[Finding] = []
  groups = _groups(name, root, base, depth, findings if bases or split == 'train' else [])
  if bases:
    names = {each: tuple(groups) if each == split else tuple(_groups(name, root, bases[each], depth, []))
             for each in SPLITS}
    seen = set(names['train'])
    findings += [Finding('split-overlap', relative_name(base / each, root), 'the identity is in train too')
                 for each in groups if split == 'val' and each in seen]
  else:
    names = {each: part_of(each, tuple(groups), val_share) for each in SPLITS}
  ids = {each: k for k, each in enumerate(dict.fromkeys((*names['train'], *names['val'])))}
  classes = ClassMap(names[split], tuple(ids[each] for each in names[split]))
  return _labelled(name, split, root, {each: groups[each] for each in classes.names}, classes, findings)


def _closed(name: str, split: str, root: pathlib.Path, base: pathlib.Path, classes: Sequence[str] | None,
            depth: int | None, val_share: float) -> Labelled:
  """A split with the same classes as the other one: those given, or those of train."""
  findings: list[Finding] = []
  divided = base != root
  groups = _groups(name, root, base, depth, findings if divided or split == 'train' else [])
  names = tuple(groups) if classes is None else tuple(classes)
  if classes is None and split != 'train' and divided:
    train = _bases(name, root)['train']
    names = tuple(_folders(train) if depth == 1 else _groups(name, root, train, depth, []))
  unknown = set(groups) - set(names)
  for group, images in groups.items():
    if group in unknown and images:
      known = 'train' if classes is None else 'data.classes'
      findings.append(Finding('class-unknown', relative_name(base / group, root), f'{group!r} is no class of {known}; '
                              f'images: {len(images)}'))
  chosen = {each: groups.get(each, []) if divided else list(part_of(split, groups.get(each, []), val_share))
            for each in names}
  findings += [Finding('class-absent', relative_name(base / each, root), f'class {each!r} has no image in {split}')
               for each, images in chosen.items() if not images]
  return _labelled(name, split, root, chosen, ClassMap(names), findings)


def _labelled(name: str, split: str, root: pathlib.Path, groups: Groups, classes: ClassMap,
              findings: list[Finding]) -> Labelled:
  records = tuple(Record(image, relative_name(image, root), label=label)
                  for label, each in enumerate(classes.names) for image in groups[each])
  return Labelled(records, classes, ('label',), tuple(findings), root, name, split)


def _bases(name: str, root: pathlib.Path) -> dict[str, pathlib.Path]:
  """The folders of train and val; empty where the data set is not divided.

  A lone folder 'train' without folders in it is a class, of vehicles say.
  """
  there = {split: [root / folder for folder in folders if (root / folder).is_dir()]
           for split, folders in SPLIT_FOLDERS.items()}
  if not all(there.values()) and not any(_folders(folder) for found in there.values() for folder in found):
    return {}
  lone = next(folder for found in there.values() for folder in found)
  return {split: the_only(found, f'{name}: no folders of split {split} in {root}',
                          f'lay the images out as train/<name>/* and val/<name>/*, or give data.path {lone}, which '
                          'data.val_share then divides')
          for split, found in there.items()}


def _folders(folder: pathlib.Path) -> list[str]:
  return sorted((entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith('.')),
                key=natural_key)


def _groups(name: str, root: pathlib.Path, base: pathlib.Path, depth: int | None, findings: list[Finding]) -> Groups:
  """The images by the folders that name them; a folder at depth 1 is there even without an image."""
  groups: Groups = {folder: [] for folder in _folders(base)} if depth == 1 else {}
  for place, images in itertools.groupby(images_in(base, deep=True), operator.attrgetter('parent')):
    folders = place.relative_to(base).parts
    if len(folders) < (depth or 1):
      findings += [Finding('image-extra', relative_name(image, root), 'it lies beside the folders, not in one')
                   for image in images]
    else:
      groups.setdefault('/'.join(folders[:depth]), []).extend(images)
  if not any(groups.values()):
    raise ValueError(f'{name}: no images in the folders of {base}; lay them out as {base}/<name>/*, in files that end '
                     f'in {" ".join(SUFFIXES)}')
  if depth is None:
    above = next(('/'.join(parts[:k]) for parts in (group.split('/') for group in groups)
                  for k in range(1, len(parts)) if '/'.join(parts[:k]) in groups), None)
    if above is not None:
      raise ValueError(f'{name}: {base / above} holds images and folders with images; give data.depth, how many '
                       'folders deep an identity is')
  findings += _strangers(root, base)
  return dict(sorted(groups.items(), key=lambda item: natural_key(item[0])))


def _strangers(root: pathlib.Path, base: pathlib.Path) -> list[Finding]:
  """A finding for each suffix in the folders below `base` that no image has."""
  found: dict[str, list[pathlib.Path]] = {}
  for place, _, files in walk(base):
    for file in files if place != str(base) else ():
      suffix = os.path.splitext(file)[1].lower()
      if suffix not in SUFFIXES and not file.startswith('.'):
        found.setdefault(suffix, []).append(pathlib.Path(place, file))
  return [Finding('file-unknown', relative_name(min(files), root),
                  f'{suffix or "no suffix"!r} is no suffix of an image; files: {len(files)}')
          for suffix, files in sorted(found.items())]
