"""A folder for each image, with a mask image for each object in it.

Units: boxes are xyxy in pixels, tight around the masks.

Reference: J. C. Caicedo et al., Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl, Nature
Methods 2019, whose data lie so.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
import os
import pathlib

from vision_jax.conventions import ClassMap
from vision_jax.data.digits import check_split
from vision_jax.data.files import image_size
from vision_jax.data.formats.layout import (
  SPLIT_FOLDERS,
  cause,
  check_folder,
  images_in,
  natural_key,
  part_of,
  relative_name,
  the_only,
)
from vision_jax.data.records import Box, Finding, Labelled, Object, Record, Size, read_values
from vision_jax.host import rle


def read(split: str, *, path: str | os.PathLike[str], class_name: str = 'object', masks: bool | None = True,
         val_share: float = 0.2) -> Labelled:
  """Reads one split of a folder with `<id>/images/*` and `<id>/masks/*`.

  Args:
    split: 'train' or 'val'.
    path: the folder with `<id>/images/<one image>` and `<id>/masks/*`, a mask image for each object, in which all but 0
      is the object; or with `train/<id>/...` and `val/<id>/...` ('training', 'valid' and 'validation' will do).
    class_name: of the only class.
    masks: False gives the boxes alone; None is as True.
    val_share: the last share of the images, by id in natural order, is val where no folder divides them.

  Returns:
    The images by id in natural order. All masks of the split are read at once; they are kept as run lengths.

  Raises:
    ValueError: a folder that is missing; no folder with `images` in it; one split without the other.
  """
  root = check_folder('object_masks', path)
  folders, divided = _folders(root, check_split('object_masks', split))
  if not divided:
    folders = part_of(split, folders, val_share)
  findings: list[Finding] = []
  records = []
  with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding frees Python's lock
    for folder in folders:
      image = _image(folder, root, findings)
      if image is not None:
        objects = _objects(image, folder, root, masks is not False, len(records), findings, pool)
        records.append(Record(image[0], relative_name(image[0], root), image[1], folder.name, objects,
                              where=relative_name(folder / 'masks', root)))
  fields = ('boxes', 'labels') if masks is False else ('boxes', 'labels', 'masks')
  return Labelled(tuple(records), ClassMap((class_name,)), fields, tuple(findings), root, 'object_masks', split)


def _folders(root: pathlib.Path, split: str) -> tuple[list[pathlib.Path], bool]:
  """The folders of the images of a split, or of both, and whether it is those of the split alone."""
  there = {each: [root / name for name in names if (root / name).is_dir() and not (root / name / 'images').is_dir()]
           for each, names in SPLIT_FOLDERS.items()}
  divided = any(there.values())
  base = root if not divided else the_only(
      there[split], f'object_masks: no folders of split {split} in {root}',
      f'lay the images out as {split}/<id>/images and {split}/<id>/masks')
  found = sorted((folder for folder in base.iterdir() if any((folder / part).is_dir() for part in ('images', 'masks'))),
                 key=lambda folder: natural_key(folder.name))
  if not found:
    raise ValueError(f'object_masks: no folder with images in {base}; lay them out as <id>/images and <id>/masks')
  return found, divided


def _image(folder: pathlib.Path, root: pathlib.Path, findings: list[Finding]) -> tuple[pathlib.Path, Size] | None:
  """The only image of a folder and its size."""
  where, images = relative_name(folder / 'images', root), images_in(folder / 'images')
  if len(images) != 1:
    several = ', '.join(image.name for image in images)
    kind = 'image-id-twice' if images else 'image-missing'
    findings.append(Finding(kind, where, f'several images: {several}' if images else 'there is no image in it'))
    return None
  try:
    return images[0], image_size(images[0])
  except ValueError as error:
    findings.append(Finding('image-corrupt', relative_name(images[0], root), cause(error, images[0])))
    return None


def _objects(image: tuple[pathlib.Path, Size], folder: pathlib.Path, root: pathlib.Path, keep: bool, item: int,
             findings: list[Finding], pool: ThreadPoolExecutor) -> tuple[Object, ...]:
  """The sound objects of an image."""
  files = images_in(folder / 'masks')
  if not files:
    findings.append(Finding('image-unlabelled', relative_name(image[0], root),
                            f'there is no mask in {relative_name(folder / "masks", root)}', item))
  objects = []
  for file, found in zip(files, pool.map(_mask, files), strict=True):
    where = relative_name(file, root)
    if isinstance(found, str):
      findings.append(Finding('mask-corrupt', where, found, item))
    elif tuple(found['size']) != image[1]:
      findings.append(Finding('mask-size', where, f'the mask has size {found["size"]}, its image {list(image[1])}, '
                              'both (h, w)', item))
    elif not rle.area(found):
      findings.append(Finding('mask-empty', where, 'the mask has no pixel', item))
    else:
      objects.append(Object(_box(found), 0, where, {'rle': found} if keep else None))
  return tuple(objects)


def _mask(file: pathlib.Path) -> dict | str:
  """The run lengths of a mask image, or why it cannot be read."""
  try:
    return rle.encode(read_values(file) != 0)
  except ValueError as error:
    return cause(error, file)


def _box(mask: dict) -> Box:
  x1, y1, x2, y2 = rle.to_box(mask).tolist()
  return x1, y1, x2, y2
