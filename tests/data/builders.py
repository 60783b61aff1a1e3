"""Tiny data sets of each format, written into a test's folder; images are 12 x 16 (h, w) unless said otherwise."""

import json
import pathlib

import numpy as np
from PIL import Image

SIZE = (12, 16)  # (h, w), not square


def pixels(seed=0, size=SIZE):
  """uint8 RGB [h, w, 3] that differ from seed to seed."""
  return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def write_image(path, seed=0, size=SIZE, orientation=None):
  """An RGB image file, its folders made where they are missing; `orientation` is the EXIF turn, 1..8."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  options = {}
  if orientation is not None:
    options['exif'] = Image.Exif()
    options['exif'][0x0112] = orientation
  Image.fromarray(pixels(seed, size)).save(path, **options)
  return path


def write_text(path, text):
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text, encoding='utf-8')
  return path


def coco_image(image_id, name, size=SIZE):
  return {'id': image_id, 'file_name': name, 'height': size[0], 'width': size[1]}


def coco_annotation(annotation_id, image_id, category_id, bbox, **more):
  return {'id': annotation_id, 'image_id': image_id, 'category_id': category_id, 'bbox': bbox, **more}


CATEGORIES = ({'id': 7, 'name': 'dog'}, {'id': 3, 'name': 'cat'})  # ids with gaps, not in order


def coco_set(folder, annotations, *, images=None, categories=CATEGORIES, split='train', files=True, **more):
  """`annotations/instances_<split>.json` and the images in `<split>`: a.png (id 1) and b.png (id 2) by default."""
  images = [coco_image(1, 'a.png'), coco_image(2, 'b.png')] if images is None else images
  content = {'images': images, 'annotations': annotations, 'categories': list(categories), **more}
  write_text(folder / 'annotations' / f'instances_{split}.json', json.dumps(content))
  for seed, image in enumerate(images if files else ()):
    write_image(folder / split / image['file_name'], seed)
  return folder


def voc_object(name, box, **more):
  """The XML of one object; `box` is xmin, ymin, xmax, ymax as the file has them, pixels counted from 1."""
  extra = ''.join(f'<{tag}>{value}</{tag}>' for tag, value in more.items())
  corners = ''.join(f'<{tag}>{value}</{tag}>' for tag, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), box))
  return f'<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>'


def voc_xml(objects, size=SIZE, name='a.png'):
  """An annotation with the first object in line 4, each in a line of its own."""
  stated = '' if size is None else f'<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>'
  return '\n'.join(['<annotation>', f'  <filename>{name}</filename>', f'  {stated}', *objects, '</annotation>', ''])


def voc_set(folder, objects, *, split='train', size=SIZE):
  """ImageSets, Annotations and JPEGImages of {name: [XML of objects]}; images are PNG."""
  names = list(objects)
  write_text(folder / 'ImageSets' / 'Main' / f'{split}.txt', ''.join(f'{name}\n' for name in names))
  for seed, name in enumerate(names):
    write_text(folder / 'Annotations' / f'{name}.xml', voc_xml(objects[name], size, f'{name}.png'))
    write_image(folder / 'JPEGImages' / f'{name}.png', seed)
  return folder


def yolo_set(folder, labels, *, split='train', names=('cat', 'dog')):
  """images/<split>, labels/<split> and data.yaml of {name: text of the label file, or None for no file}."""
  for seed, (name, text) in enumerate(labels.items()):
    write_image(folder / 'images' / split / f'{name}.png', seed)
    if text is not None:
      write_text(folder / 'labels' / split / f'{name}.txt', text)
  write_text(folder / 'data.yaml', 'names:\n' + ''.join(f'  {i}: {name}\n' for i, name in enumerate(names)))
  return folder


def kinds(labelled):
  """(kind, where) of each finding."""
  return [(finding.kind, finding.where) for finding in labelled.findings]


def write_mask(path, values, *, palette=None):
  """A mask image of these values [h, w]: grey levels in their own type, or places in a palette; 1 bit for bools."""
  path, values = pathlib.Path(path), np.asarray(values)
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(values)
  if palette is not None:
    image = Image.fromarray(values.astype(np.uint8), 'L').convert('P')
    image.putdata(values.ravel().tolist())
    image.putpalette(palette)
  image.save(path)
  return path


def class_folders(folder, counts, *, name='{}.png'):
  """<folder>/<class>/<0..n-1>.png for {class: n}; no two images are alike."""
  seed = 0
  for each, count in counts.items():
    (folder / each).mkdir(parents=True, exist_ok=True)
    for k in range(count):
      write_image(folder / each / name.format(k), seed)
      seed += 1
  return folder


def idx_bytes(values):
  """An idx file of unsigned bytes."""
  values = np.asarray(values, np.uint8)
  return bytes((0, 0, 8, values.ndim)) + np.array(values.shape, '>u4').tobytes() + values.tobytes()
