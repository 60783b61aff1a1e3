"""Writes labelled boxes as COCO, Pascal VOC or YOLO, where the readers of these formats find them.

Units: boxes come as xyxy in pixels. Nothing is lost in silence: what a format cannot hold is counted in what comes
back. Numbers are rounded to a hundredth of a pixel or finer.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Sequence
import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any
from xml.sax.saxutils import escape

from vision_jax.conventions import ClassMap
from vision_jax.data.files import image_size
from vision_jax.data.records import Labelled, Object, Record, Size, object_rle
from vision_jax.host import rle


@dataclasses.dataclass
class Written:
  """What was written, and what the format could not hold.

  Args:
    images: how many.
    objects: how many.
    lost: what was lost or changed, in words -> how many.

  >>> print(Written(2, 5, {'crowds left out': 1}))
  2 images, 5 objects; crowds left out: 1
  """

  images: int
  objects: int
  lost: dict[str, int]

  def __str__(self) -> str:
    lost = ''.join(f'; {what}: {count}' for what, count in self.lost.items())
    images, objects = (f'{count} {word}{"" if count == 1 else "s"}' for count, word in
                       ((self.images, 'image'), (self.objects, 'object')))
    return f'{images}, {objects}{lost}'


def write_coco(labelled: Labelled, folder: str | os.PathLike[str], *, link: bool = False) -> Written:
  """Writes a split as COCO: `annotations/instances_<split>.json`, and the images in `<split>`.

  Args:
    labelled: a split with boxes.
    folder: the data set's; made where it is missing.
    link: symbolic links to the images in place of copies.

  Returns:
    What was written. The file's own ids are kept where all have one, none twice, and those of annotations are not 0;
    else they count from 1. Masks are kept, polygons as polygons and mask images as run lengths; `difficult` stands as
    1 in an annotation, where COCO has no such key. `bbox_format` says 'xywh'.

  Raises:
    ValueError: the split is there already, a file cannot be read, or the data have no boxes.

  >>> cats = Labelled((), ClassMap(('cat',)), ('label',), (), pathlib.Path('cats'), 'image_folder')
  >>> write_coco(cats, 'cats_coco')
  Traceback (most recent call last):
  ValueError: cats has label and no boxes; only boxes can be converted
  """
  folder, name = _start(labelled, folder, 'annotations/instances_{}.json')
  objects = [each for record in labelled.records for each in record.objects]
  image_ids = _ids([record.id for record in labelled.records], 0)
  object_ids = iter(_ids([each.id for each in objects], 1))
  images, annotations, files = [], [], _file_names(labelled)
  for record, image_id, file in zip(labelled.records, image_ids, files, strict=True):
    _place_image(record, folder / labelled.split / file, link)
    size = record.size or image_size(record.path)
    images.append({'id': image_id, 'file_name': file, 'height': size[0], 'width': size[1]})
    annotations += [_annotation(each, next(object_ids), image_id, labelled.classes, size) for each in record.objects]
  categories = [{'id': i, 'name': name} for i, name in zip(labelled.classes.ids, labelled.classes.names, strict=True)]
  content = {'bbox_format': 'xywh', 'images': images, 'annotations': annotations, 'categories': categories}
  name.write_text(json.dumps(content) + '\n', encoding='utf-8')
  return Written(len(images), len(annotations), _lost(labelled, files))


def write_voc(labelled: Labelled, folder: str | os.PathLike[str], *, link: bool = False) -> Written:
  """Writes a split as Pascal VOC: `ImageSets/Main/<split>.txt`, `Annotations/*.xml` and `JPEGImages/*`.

  Args:
    labelled: a split with boxes.
    folder: the data set's; made where it is missing.
    link: symbolic links to the images in place of copies.

  Returns:
    What was written. Crowds become difficult objects, and masks are lost. Corners are first and last pixel, counted
    from 1, with two decimals where they are not whole. An image whose name another split has takes the split's name in
    front.

  Raises:
    ValueError: the split is there already, a file cannot be read, or the data have no boxes.
  """
  folder, listing = _start(labelled, folder, 'ImageSets/Main/{}.txt')
  (folder / 'Annotations').mkdir(exist_ok=True)
  names, count = [], 0
  for record, file in zip(labelled.records, _file_names(labelled, one_stem=True), strict=True):
    if (folder / 'Annotations' / f'{pathlib.Path(file).stem}.xml').exists():
      file = f'{labelled.split}_{file}'
    _place_image(record, folder / 'JPEGImages' / file, link)
    stem, size = pathlib.Path(file).stem, record.size or image_size(record.path)
    (folder / 'Annotations' / f'{stem}.xml').write_text(_xml(record, file, size, labelled.classes), encoding='utf-8')
    names.append(file)
    count += len(record.objects)
  listing.write_text(''.join(f'{pathlib.Path(name).stem}\n' for name in names), encoding='utf-8')
  seen = {each.label for record in labelled.records for each in record.objects}
  return Written(len(names), count, _lost(labelled, names, masks=True, crowd='crowds written as difficult') | _counted({
      'class ids left out': sum(label != i for label, i in enumerate(labelled.classes.ids)),
      'classes without an object left out': len(labelled.classes) - len(seen)}))


def write_yolo(labelled: Labelled, folder: str | os.PathLike[str], *, link: bool = False,
               masks: bool = False) -> Written:
  """Writes a split as YOLO: `images/<split>`, `labels/<split>` and `data.yaml` with the names of the classes.

  Args:
    labelled: a split with boxes.
    folder: the data set's; made where it is missing.
    link: symbolic links to the images in place of copies.
    masks: an object whose mask is one polygon is written as that polygon; readers take its box from it.

  Returns:
    What was written. Crowds are left out, because as boxes they would be single objects; difficult objects become
    ordinary ones, other masks are lost, and class ids count from 0. Boxes are not clipped.

  Raises:
    ValueError: the split is there already, with other classes or with these, a file cannot be read, or the data have no
      boxes.
  """
  folder, marker = _start(labelled, folder, 'labels/{}')
  marker.mkdir()
  names = ''.join(f'  {label}: {json.dumps(name, ensure_ascii=False)}\n' for label, name in
                  enumerate(labelled.classes.names))
  content = f'train: images/train\nval: images/val\nnames:\n{names}'
  if (folder / 'data.yaml').exists() and (folder / 'data.yaml').read_text(encoding='utf-8') != content:
    raise ValueError(f'{folder / "data.yaml"} has other classes than {labelled.root} ({labelled.split}); write to '
                     'another folder')
  (folder / 'data.yaml').write_text(content, encoding='utf-8')
  count, files = 0, _file_names(labelled, one_stem=True)
  for record, file in zip(labelled.records, files, strict=True):
    _place_image(record, folder / 'images' / labelled.split / file, link)
    lines = list(_lines(record, masks))
    (marker / file).with_suffix('.txt').write_text(''.join(lines), encoding='utf-8')
    count += len(lines)
  lost = _lost(labelled, files, masks=True, crowd='crowds left out',
               difficult='difficult objects written as ordinary ones', kept=masks)
  changed = sum(label != i for label, i in enumerate(labelled.classes.ids))
  return Written(len(labelled.records), count, lost | _counted({'class ids changed': changed}))


WRITERS: dict[str, Callable[..., Written]] = {
    'coco': write_coco,
    'voc': write_voc,
    'yolo': write_yolo,
}


def _start(labelled: Labelled, folder: str | os.PathLike[str], marker: str) -> tuple[pathlib.Path, pathlib.Path]:
  """The data set's folder, and the file or folder that only a written split has."""
  if 'boxes' not in labelled.fields:
    raise ValueError(f'{labelled.root} has {", ".join(labelled.fields)} and no boxes; only boxes can be converted')
  folder = pathlib.Path(folder)
  place = folder / marker.format(labelled.split)
  if place.exists():
    raise ValueError(f'{place} exists; write to another folder')
  place.parent.mkdir(parents=True, exist_ok=True)
  return folder, place


def _file_names(labelled: Labelled, *, one_stem: bool = False) -> list[str]:
  """A file name for each image: its own, or its path with '_' for '/' where several have the same."""

  def stems() -> list[str]:
    return [name.rpartition('.')[0] if one_stem else name for name in names]

  names = [record.path.name for record in labelled.records]
  times = collections.Counter(stems())
  names = [name if times[stem] == 1 else record.name.replace('/', '_')
           for name, stem, record in zip(names, stems(), labelled.records, strict=True)]
  times = collections.Counter(stems())
  twice = next((name for name, stem in zip(names, stems(), strict=True) if times[stem] > 1), None)
  if twice:
    raise ValueError(f'{labelled.root}: several images would be called {twice}; rename one')
  return names


def _place_image(record: Record, place: pathlib.Path, link: bool) -> None:
  place.parent.mkdir(parents=True, exist_ok=True)
  if place.exists() or place.is_symlink():
    raise ValueError(f'{place} exists; write to another folder')
  try:
    if link:
      place.symlink_to(record.path.resolve())
    else:
      shutil.copyfile(record.path, place)
  except OSError as error:
    raise ValueError(f'cannot put {record.path} to {place}: {error.strerror or error}') from error


def _lost(labelled: Labelled, files: list[str], *, masks: bool = False, crowd: str = '', difficult: str = '',
          kept: bool = False) -> dict[str, int]:
  """What a format cannot hold, with how many: names for what becomes of crowds and difficult objects.

  `masks`: whether they are lost; `kept`: whether those of one polygon are not.
  """
  objects = [each for record in labelled.records for each in record.objects]
  renamed = sum(file != record.path.name for file, record in zip(files, labelled.records, strict=True))
  return _counted({
      'images renamed': renamed,
      'masks left out': masks * sum(each.mask is not None and not (kept and _polygon(each)) for each in objects),
      crowd: bool(crowd) * sum(each.crowd for each in objects),
      difficult: bool(difficult) * sum(each.difficult for each in objects)})


def _counted(lost: dict[str, int]) -> dict[str, int]:
  return {what: count for what, count in lost.items() if count}


def _ids(ids: list[Any], least: int) -> list[int]:
  """The ids as they are, where all are whole numbers from `least`, none twice; else 1, 2, ..."""
  sound = all(isinstance(i, int) and i >= least for i in ids) and len(set(ids)) == len(ids)
  return ids if sound else list(range(1, len(ids) + 1))


def _annotation(each: Object, object_id: int, image_id: int, classes: ClassMap, size: Size) -> dict[str, Any]:
  x1, y1, x2, y2 = each.box
  segmentation = _segmentation(each.mask, size)
  area = each.area
  if area is None:
    area = (x2 - x1) * (y2 - y1) if each.mask is None else rle.area(object_rle(each.mask, size))
  entry = {'id': object_id, 'image_id': image_id, 'category_id': classes.ids[each.label],
           'bbox': [round(number, 6) for number in (x1, y1, x2 - x1, y2 - y1)], 'area': round(area, 6),
           'iscrowd': int(each.crowd), 'segmentation': segmentation}
  return {**entry, 'difficult': 1} if each.difficult else entry


def _segmentation(mask: Any, size: Size) -> Any:
  """A mask as COCO writes it; an empty list for none, which COCO's readers expect."""
  if mask is None:
    return []
  if 'polygons' in mask:
    return [list(map(float, polygon)) for polygon in mask['polygons']]
  return mask['rle'] if 'rle' in mask else object_rle(mask, size)


def _xml(record: Record, file: str, size: Size, classes: ClassMap) -> str:
  objects = ''.join(f"""  <object>
    <name>{escape(classes.names[each.label])}</name>
    <difficult>{int(each.difficult or each.crowd)}</difficult>
    <bndbox>
      <xmin>{_pixel(each.box[0] + 1)}</xmin>
      <ymin>{_pixel(each.box[1] + 1)}</ymin>
      <xmax>{_pixel(each.box[2])}</xmax>
      <ymax>{_pixel(each.box[3])}</ymax>
    </bndbox>
  </object>
""" for each in record.objects)
  return f"""<annotation>
  <filename>{escape(file)}</filename>
  <size>
    <width>{size[1]}</width>
    <height>{size[0]}</height>
    <depth>3</depth>
  </size>
{objects}</annotation>
"""


def _pixel(number: float) -> str:
  """'12' or '12.34'."""
  return f'{round(number, 2) + 0.0:.2f}'.rstrip('0').rstrip('.')  # the sum makes 0 of -0


def _polygon(each: Object) -> Sequence[float] | None:
  """The only polygon of an object's mask."""
  polygons = each.mask.get('polygons', ()) if each.mask and not each.crowd else ()
  return polygons[0] if len(polygons) == 1 else None


def _lines(record: Record, masks: bool) -> Iterator[str]:
  """The label file's lines."""
  h, w = record.size or image_size(record.path)
  for each in record.objects:
    if not each.crowd:
      x1, y1, x2, y2 = each.box
      shares = ((x1 + x2) / 2 / w, (y1 + y2) / 2 / h, (x2 - x1) / w, (y2 - y1) / h)
      polygon = _polygon(each) if masks else None
      if polygon is not None:
        shares = tuple(number / (h if i % 2 else w) for i, number in enumerate(polygon))
      yield f'{each.label} {" ".join(f"{share:.8f}" for share in shares)}\n'
