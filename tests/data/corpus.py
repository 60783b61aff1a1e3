"""Data sets that are broken on purpose, each in its own way, with what the checker must say and what must survive."""

from collections.abc import Callable
import dataclasses
import functools
import gzip
import io
import json
import os
import struct
import zlib

import numpy as np
from PIL import Image

from tests.data import builders
from tests.data.builders import SIZE, coco_annotation, coco_image, voc_object, voc_set, write_image, write_text


@dataclasses.dataclass(frozen=True)
class Case:
  """A broken data set.

  Args:
    name: of the function that builds it.
    format: how it is read.
    build: writes it into a folder.
    says: '<kind> <where>: <what>' of each finding, with SET for the folder.
    keeps: the names of the images that must be there, with how many objects for detection.
    splits: to check.
    options: of the reader.
  """

  name: str
  format: str
  build: Callable
  says: tuple[str, ...]
  keeps: tuple
  splits: tuple[str, ...] = ('train',)
  options: dict = dataclasses.field(default_factory=dict)


CASES: list[Case] = []


def broken(format, *says, keeps=(), splits=('train',), **options):
  def add(build):
    CASES.append(Case(build.__name__, format, build, says, tuple(keeps), splits, options))
    return build
  return add


def jpeg(seed=0, size=(60, 80)):
  """The bytes of a JPEG, large enough to be cut."""
  stream = io.BytesIO()
  Image.fromarray(builders.pixels(seed, size)).save(stream, 'JPEG')
  return stream.getvalue()


def png_header(width, height):
  """The start of a PNG that promises so many pixels."""
  chunks = (b'IHDR' + struct.pack('>2I5B', width, height, 8, 2, 0, 0, 0), b'IDAT' + zlib.compress(bytes(1000)))
  return b'\x89PNG\r\n\x1a\n' + b''.join(struct.pack('>I', len(chunk) - 4) + chunk
                                           + struct.pack('>I', zlib.crc32(chunk)) for chunk in chunks)


def write_bytes(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content)


def write_mask(path, pixels, palette=None):
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(np.asarray(pixels, np.uint8))
  if palette is not None:
    image.putpalette(palette)
  image.save(path)


def smooth(turn=0.0, size=(48, 64)):
  """A picture whose patches differ: two waves."""
  y, x = np.mgrid[:size[0], :size[1]] / size[0]
  waves = [np.sin(7 * x + 3 * y + turn + k) + np.cos(5 * y - 2 * x + 2 * turn) for k in range(3)]
  return (np.stack(waves, -1) * 60 + 128).astype(np.uint8)


coco_set = functools.partial(builders.coco_set, categories=({'id': 3, 'name': 'cat'}, {'id': 4, 'name': 'dog'}))
SOUND = (coco_annotation(1, 1, 3, [1, 2, 5, 4]), coco_annotation(2, 2, 4, [0, 0, 16, 12]))
A_AND_B = (('train/a.png', 1), ('train/b.png', 1))


# COCO.


@broken('coco',
        'split-unreadable train: SET/annotations/instances_train.json:1: not JSON: Unterminated string starting at '
        '(column 318); write the file again, or mend that place')
def coco_json_cut_short(folder):
  coco_set(folder, SOUND)
  file = folder / 'annotations' / 'instances_train.json'
  file.write_text(file.read_text()[:-30])


@broken('coco',
        'split-unreadable train: SET/annotations/instances_train.json: class id 3 stands twice; give each class its '
        'own id')
def coco_category_twice(folder):
  coco_set(folder, SOUND, categories=({'id': 3, 'name': 'cat'}, {'id': 3, 'name': 'dog'}))


@broken('coco',
        'split-unreadable train: coco: several annotations of split train in SET: '
        'SET/annotations/instances_train.json, SET/annotations/instances_train2.json; give data.annotations, for '
        "example 'annotations/instances_{split}.json' (looked for annotations/instances_train*.json, "
        'annotations/train*.json, train.json, train/_annotations.coco.json)')
def coco_two_annotation_files(folder):
  coco_set(folder, SOUND)
  coco_set(folder, SOUND, split='train2', files=False)


@broken('coco',
        'box-zero annotations/instances_train.json: annotation 3: the box (4, 4, 4, 7) is 0 x 3 pixels',
        'box-inverted annotations/instances_train.json: annotation 4: the box (8, 8, 4, 11) ends before it begins',
        'label-syntax annotations/instances_train.json: annotation 5: bbox is [1, 1, 2], not four numbers x, y, '
        'width, height',
        'box-not-finite annotations/instances_train.json: annotation 6: the box (1, 1, nan, 3) is not made of finite '
        'numbers',
        keeps=A_AND_B)
def coco_boxes_without_area(folder):
  coco_set(folder, (*SOUND, coco_annotation(3, 1, 3, [4, 4, 0, 3]), coco_annotation(4, 1, 3, [8, 8, -4, 3]),
                    coco_annotation(5, 2, 3, [1, 1, 2]), coco_annotation(6, 2, 3, [1, 1, float('nan'), 2])))


@broken('coco',
        'box-outside annotations/instances_train.json: annotation 3: the box (20, 2, 25, 7) lies outside the image of '
        '16 x 12',
        'box-clipped annotations/instances_train.json: annotation 4: the box (10, 2, 19, 7) leaves the image of 16 x '
        '12 by 3 pixels',
        keeps=(('train/a.png', 2), ('train/b.png', 1)))
def coco_boxes_outside(folder):
  coco_set(folder, (*SOUND, coco_annotation(3, 1, 3, [20, 2, 5, 5]), coco_annotation(4, 1, 4, [10, 2, 9, 5])))


@broken('coco',
        'box-clipped annotations/instances_train.json: annotation 3: the box (6, 2, 18, 10) leaves the image of 16 x '
        '12 by 2 pixels',
        'box-clipped annotations/instances_train.json: annotation 4: the box (7, 2, 20, 10) leaves the image of 16 x '
        '12 by 4 pixels',
        'box-clipped annotations/instances_train.json: annotation 5: the box (8, 2, 22, 10) leaves the image of 16 x '
        '12 by 6 pixels',
        'box-format annotations/instances_train.json: 3 of 4 boxes leave their image when read as x, y, width, '
        "height, COCO's order, and none as x1, y1, x2, y2",
        keeps=(('train/a.png', 3), ('train/b.png', 1)))
def coco_boxes_as_corners(folder):
  coco_set(folder, (*SOUND[1:], *(coco_annotation(3 + k, 1, 3, [6 + k, 2, 12 + k, 8]) for k in range(3))))


@broken('coco',
        "annotation-id-0 annotations/instances_train.json: annotation 0: COCO's own evaluation loses this object",
        'annotation-id-twice annotations/instances_train.json: annotation 2: the id stands twice',
        keeps=(('train/a.png', 2), ('train/b.png', 2)))
def coco_annotation_ids(folder):
  coco_set(folder, (*SOUND, coco_annotation(0, 1, 3, [6, 6, 3, 4]), coco_annotation(2, 2, 3, [3, 3, 2, 2])))


@broken('coco',
        'class-unknown annotations/instances_train.json: annotation 3: category_id 5 is not among the categories',
        'label-orphan annotations/instances_train.json: annotation 4: image_id 9 is not among the images',
        'class-gap set (train): the class ids run from 3 to 9 without 5, 6, 7, 8',
        keeps=A_AND_B)
def coco_unknown_category_and_image(folder):
  coco_set(folder, (*SOUND, coco_annotation(3, 1, 5, [6, 6, 3, 4]), coco_annotation(4, 9, 3, [3, 3, 2, 2])),
           categories=({'id': 3, 'name': 'cat'}, {'id': 4, 'name': 'dog'}, {'id': 9, 'name': 'cow'}))


@broken('coco',
        'image-id-twice annotations/instances_train.json: image 2: the id stands twice, again for d.png',
        'image-missing annotations/instances_train.json: image 3: train/c.png does not exist',
        keeps=A_AND_B)
def coco_images_missing_and_twice(folder):
  images = [coco_image(1, 'a.png'), coco_image(2, 'b.png'), coco_image(3, 'c.png'), coco_image(2, 'd.png')]
  coco_set(folder, (*SOUND, coco_annotation(3, 3, 3, [1, 1, 2, 2])), images=images)
  (folder / 'train' / 'c.png').unlink()


@broken('coco',
        'box-tiny annotations/instances_train.json: annotation 4: the box of a cat is 1 x 3 pixels',
        'box-duplicate annotations/instances_train.json: annotation 3: probably the cat of '
        'annotations/instances_train.json: annotation 1 once more: the IoU of the two is 0.980',
        keeps=(('train/a.png', 3), ('train/b.png', 1)))
def coco_objects_twice_and_tiny(folder):
  coco_set(folder, (*SOUND, coco_annotation(3, 1, 3, [1, 2, 5.1, 4]), coco_annotation(4, 1, 3, [8, 8, 1, 3])))


@broken('coco',
        'image-exif train/a.jpg: its EXIF data say orientation 6: it is shown turned by 90 degrees',
        'image-size train/a.jpg: it is 12 x 16 pixels upright, its labels say 16 x 12; they were made before its EXIF '
        'data turn it',
        'image-size train/b.png: it is 16 x 12 pixels upright, its labels say 32 x 24',
        'image-exif train/c.png: its EXIF data say orientation 8: it is shown turned by 270 degrees',
        keeps=(('train/a.jpg', 1), ('train/b.png', 1), ('train/c.png', 0)))
def coco_sizes_and_turns(folder):
  images = [coco_image(1, 'a.jpg'), coco_image(2, 'b.png', (24, 32)), coco_image(3, 'c.png')]
  coco_set(folder, SOUND, images=images)
  write_image(folder / 'train' / 'a.jpg', orientation=6)  # shown 16 x 12, which the labels do not say
  write_image(folder / 'train' / 'c.png', size=SIZE[::-1], orientation=8)  # shown as the labels say


@broken('coco',
        'image-size train/a.jpg: it is 16 x 12 pixels upright, its labels say 80 x 60',
        'image-truncated train/b.jpg: image file is truncated (149 bytes not processed)',
        'image-corrupt train/c.png: the file is empty',
        'image-corrupt train/d.png: not an image, or a corrupt or unknown format',
        keeps=(('train/a.jpg', 1), ('train/b.jpg', 1), ('train/c.png', 0), ('train/d.png', 0), ('train/e.jpg', 0)))
def coco_files_that_are_no_images(folder):
  names = ('a.jpg', 'b.jpg', 'c.png', 'd.png', 'e.jpg')
  coco_set(folder, SOUND, images=[coco_image(k, name, (60, 80)) for k, name in enumerate(names, 1)])
  write_bytes(folder / 'train' / 'b.jpg', jpeg()[:2000])
  write_bytes(folder / 'train' / 'c.png', b'')
  write_bytes(folder / 'train' / 'd.png', b'<html>not found</html>')
  write_bytes(folder / 'train' / 'e.jpg', jpeg())


@broken('coco',
        'polygon-bad annotations/instances_train.json: annotation 3: polygon 0 has 4 numbers, not x and y of three '
        'points or more',
        'polygon-bad annotations/instances_train.json: annotation 4: polygon 0 is not a list of numbers x, y, x, y, '
        '...',
        'rle-bad annotations/instances_train.json: annotation 6: run_lengths: the counts sum to 3, but size [12, 16] '
        'has 192 pixels; give the size (h, w) of the image that the mask was made for',
        'mask-size annotations/instances_train.json: annotation 7: the mask has size [16, 12], its image [12, 16], '
        'both (h, w)',
        'mask-empty annotations/instances_train.json: annotation 8: the mask has no pixel',
        'polygon-empty annotations/instances_train.json: annotation 5: the mask has no pixel',
        keeps=(('train/a.png', 2), ('train/b.png', 1)), masks=None)
def coco_masks(folder):
  masks = ([[1, 2, 3, 4]], [['x', 2, 3, 4, 5, 6]], [[1.2, 2.2, 1.3, 2.2, 1.3, 2.3]],
           {'size': [12, 16], 'counts': [1, 2]}, {'size': [16, 12], 'counts': [10, 182]},
           {'size': [12, 16], 'counts': [192]})
  coco_set(folder, (*SOUND, *(coco_annotation(3 + k, 1, 3, [1, 2, 5, 4 + k], segmentation=mask)
                              for k, mask in enumerate(masks))))


@broken('coco',
        'label-syntax annotations/instances_train.json: images[2]: it is no object with id and file_name',
        'label-syntax annotations/instances_train.json: annotations[2]: it has no image_id; an annotation has '
        'image_id, category_id and bbox',
        'label-syntax annotations/instances_train.json: annotation 7: it has no image_id; an annotation has image_id, '
        'category_id and bbox',
        keeps=A_AND_B)
def coco_entries_of_another_kind(folder):
  images = [coco_image(1, 'a.png'), coco_image(2, 'b.png')]
  coco_set(folder, (*SOUND, 'cat', {'id': 7}), images=images)
  file = folder / 'annotations' / 'instances_train.json'
  content = json.loads(file.read_text())
  file.write_text(json.dumps({**content, 'images': [*images, {'id': 3}]}))


@broken('coco',
        'split-unreadable train: SET/annotations/instances_train.json: no COCO annotations: it is nested too deep; '
        'write the file again')
def coco_json_nested(folder):
  coco_set(folder, SOUND)
  write_text(folder / 'annotations' / 'instances_train.json', '[' * 100_000)


@broken('coco',
        "split-unreadable train: SET/annotations/instances_train.json: no COCO annotations: it has no list 'images'; "
        'it needs images, annotations and categories')
def coco_json_list(folder):
  coco_set(folder, SOUND)
  write_text(folder / 'annotations' / 'instances_train.json', json.dumps(SOUND))


# Pascal VOC.

CAT = voc_object('cat', (2, 3, 9, 10))


@broken('voc',
        'label-syntax Annotations/b.xml:3: not XML: mismatched tag (column 3)',
        'label-syntax Annotations/c.xml:1: not XML: no element found (column 1)',
        keeps=(('JPEGImages/a.png', 1),))
def voc_xml_broken(folder):
  voc_set(folder, {'a': [CAT], 'b': [CAT], 'c': [CAT]})
  write_text(folder / 'Annotations' / 'b.xml', '<annotation>\n  <object>\n</annotation>\n')
  write_text(folder / 'Annotations' / 'c.xml', '')


@broken('voc',
        'box-inverted Annotations/a.xml:5: the box is xmin 9, ymin 3, xmax 4, ymax 10: it ends before it begins',
        'label-syntax Annotations/a.xml:6: the object has no bndbox with numbers xmin, ymin, xmax, ymax',
        'box-outside Annotations/a.xml:7: the box is xmin 20, ymin 3, xmax 24, ymax 10: it lies outside the image of '
        '16 x 12',
        'box-clipped Annotations/a.xml:8: the box is xmin 0, ymin 3, xmax 9, ymax 13: it leaves the image of 16 x 12, '
        'whose pixels count from 1',
        'label-syntax Annotations/a.xml:10: the object has no name',
        'box-not-finite Annotations/a.xml:11: the box is xmin nan, ymin 3, xmax 4, ymax 10: it is not made of finite '
        'numbers',
        'box-tiny Annotations/a.xml:9: the box of a dog is 1 x 5 pixels',
        keeps=(('JPEGImages/a.png', 3),))
def voc_boxes(folder):
  voc_set(folder, {'a': [CAT, voc_object('dog', (9, 3, 4, 10)), voc_object('dog', ('x', 3, 4, 10)),
                         voc_object('dog', (20, 3, 24, 10)), voc_object('dog', (0, 3, 9, 13)),
                         voc_object('dog', (5, 5, 5, 9)), '<object><bndbox/></object>',
                         voc_object('dog', ('nan', 3, 4, 10))]})


@broken('voc',
        'label-missing ImageSets/Main/train.txt:2: Annotations/b.xml does not exist',
        'image-missing ImageSets/Main/train.txt:3: no image JPEGImages/c.*',
        'image-id-twice ImageSets/Main/train.txt:4: a stands twice in the list',
        keeps=(('JPEGImages/a.png', 1),))
def voc_lists(folder):
  voc_set(folder, {'a': [CAT], 'b': [CAT], 'c': [CAT]})
  (folder / 'Annotations' / 'b.xml').unlink()
  (folder / 'JPEGImages' / 'c.png').unlink()
  write_text(folder / 'ImageSets' / 'Main' / 'train.txt', 'a\nb\nc\na\n')


@broken('voc',
        'label-syntax Annotations/b.xml:1: it declares an entity, which no annotation needs',
        keeps=(('JPEGImages/a.png', 1),))
def voc_xml_that_swells(folder):
  voc_set(folder, {'a': [CAT], 'b': [CAT]})
  doctype = ''.join(f'<!ENTITY x{k} "{f"&x{k - 1};" * 10 if k else "swell" * 100}">' for k in range(9))
  write_text(folder / 'Annotations' / 'b.xml', f'<!DOCTYPE a [{doctype}]><annotation>&x8;</annotation>')


@broken('voc',
        "class-unknown Annotations/a.xml:5: 'Cat' is none of the classes cat",
        keeps=(('JPEGImages/a.png', 1),), classes=('cat',))
def voc_unknown_class(folder):
  voc_set(folder, {'a': [CAT, voc_object('Cat', (5, 5, 9, 9))]})


@broken('voc',
        'image-size JPEGImages/b.png: it is 16 x 12 pixels upright, its labels say 12 x 16; width and height are '
        'swapped',
        keeps=(('JPEGImages/a.png', 1), ('JPEGImages/b.png', 1)))
def voc_size_swapped(folder):
  voc_set(folder, {'a': [CAT], 'b': [CAT]})
  write_text(folder / 'Annotations' / 'b.xml', builders.voc_xml([CAT], SIZE[::-1], 'b.png'))


@broken('voc',
        'split-empty set (val): the split has no image',
        keeps=(('JPEGImages/a.png', 1),), splits=('train', 'val'))
def voc_val_empty(folder):
  voc_set(folder, {'a': [CAT]})
  write_text(folder / 'ImageSets' / 'Main' / 'val.txt', '\n')


@broken('voc',
        'class-absent set (train): no object of 1 of the 2 classes: dog',
        'split-overlap JPEGImages/a.png: the file is in train and in val',
        'image-duplicate JPEGImages/b.png: in val, looks like JPEGImages/a.png in train (0 of 64 bits and 0.0 grey '
        'levels differ)',
        keeps=(('JPEGImages/a.png', 1), ('JPEGImages/a.png', 1), ('JPEGImages/b.png', 1)),
        splits=('train', 'val'))
def voc_file_in_both_splits(folder):
  voc_set(folder, {'b': [voc_object('dog', (2, 3, 9, 10))], 'a': [CAT]}, split='val')
  voc_set(folder, {'a': [CAT]})


# YOLO.


@broken('yolo',
        'box-not-normalised labels/train/a.txt:3: 8 6 4 6 are pixels; numbers are shares of width and height, 0 to 1',
        'class-unknown labels/train/a.txt:4: class 2 is none of the 2 classes 0..1',
        'label-syntax labels/train/a.txt:5: 4 numbers; a box is class cx cy w h, a polygon is the class and x y of '
        'three points or more',
        "label-syntax labels/train/b.txt:1: 'cat 0.5 0.5 0.1 0.1' is not made of numbers",
        'box-zero labels/train/b.txt:2: the box (8, 5.4, 8, 6.6) is 0 x 1.2 pixels',
        'box-inverted labels/train/b.txt:3: the box (8.8, 5.4, 7.2, 6.6) ends before it begins',
        'box-not-finite labels/train/b.txt:4: the box (7.2, nan, 8.8, nan) is not made of finite numbers',
        'class-unknown labels/train/b.txt:5: class 1.5 is none of the 2 classes 0..1',
        keeps=(('images/train/a.png', 1), ('images/train/b.png', 0)))
def yolo_lines(folder):
  builders.yolo_set(folder, {'a': '0 0.5 0.5 0.25 0.5\n\n0 8 6 4 6\n2 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1\n',
                             'b': 'cat 0.5 0.5 0.1 0.1\n0 0.5 0.5 0 0.1\n0 0.5 0.5 -0.1 0.1\n0 0.5 nan 0.1 0.1\n'
                                  '1.5 0.5 0.5 0.1 0.1\n'})


@broken('yolo',
        'split-unreadable train: yolo: no names of the classes in SET; write one data.yaml with names in it, or '
        'classes.txt with a name in each line, or give data.classes')
def yolo_without_names(folder):
  builders.yolo_set(folder, {'a': '0 0.5 0.5 0.25 0.5\n'})
  (folder / 'data.yaml').unlink()


@broken('yolo',
        "split-unreadable train: SET/data.yaml:3: not YAML: expected ',' or ']', but got '<stream end>'; mend that "
        'place')
def yolo_names_broken(folder):
  builders.yolo_set(folder, {'a': '0 0.5 0.5 0.25 0.5\n'})
  write_text(folder / 'data.yaml', 'train: images\nnames: [cat, dog\n')


@broken('yolo',
        'label-orphan labels/train/c.txt: there is no image of that name in images/train',
        'image-unlabelled images/train/b.png: there is no labels/train/b.txt',
        keeps=(('images/train/a.png', 1), ('images/train/b.png', 0)))
def yolo_files_without_partner(folder):
  builders.yolo_set(folder, {'a': '0 0.5 0.5 0.25 0.5\n', 'b': None})
  write_text(folder / 'labels' / 'train' / 'c.txt', '0 0.5 0.5 0.25 0.5\n')


@broken('yolo',
        'label-syntax labels/train/b.txt:2: not UTF-8 (byte 0xe9)',
        'image-corrupt images/train/c.png: not an image, or a corrupt or unknown format',
        'image-corrupt images/train/d.png: not an image, or a corrupt or unknown format',
        'image-missing images/train/e.png: no such file',
        keeps=(('images/train/a.png', 1), ('images/train/b.png', 0)))
def yolo_files_damaged(folder):
  builders.yolo_set(folder, {'a': '0 0.5 0.5 0.25 0.5\n', 'b': '', 'c': '0 0.5 0.5 0.25 0.5\n', 'd': '', 'e': ''})
  write_bytes(folder / 'labels' / 'train' / 'b.txt', b'0 0.5 0.5 0.25 0.5\n0 0.5 0.5 0.25 0.5 \xe9\n')
  image = folder / 'images' / 'train' / 'c.png'
  write_bytes(image, image.read_bytes()[:300])
  write_bytes(folder / 'images' / 'train' / 'd.png', b'\x89PNG\r\n')
  (folder / 'images' / 'train' / 'e.png').unlink()
  os.mkfifo(folder / 'images' / 'train' / 'e.png')  # reading it would wait for ever


@broken('yolo',
        keeps=(('images/train/a.png', 1), ('images/train/b.png', 0)))
def yolo_folder_in_itself(folder):
  builders.yolo_set(folder, {'a': '0 0.5 0.5 0.25 0.5\n', 'b': ''})
  for name in ('again', 'once_more'):
    (folder / 'images' / 'train' / name).symlink_to(folder / 'images' / 'train', target_is_directory=True)


@broken('yolo',
        'box-clipped labels/train/a.txt:1: the box (10.4, 3, 18.4, 9) leaves the image of 16 x 12 by 2.4 pixels',
        'box-inverted labels/train/a.txt:3: the box (15.2, 10.2, 13.6, 11.4) ends before it begins',
        'box-outside labels/train/a.txt:4: the box (-8.8, 5.4, -7.2, 6.6) lies outside the image of 16 x 12',
        keeps=(('images/train/a.png', 2),))
def yolo_boxes_that_leave_the_image(folder):
  builders.yolo_set(folder, {'a': '0 0.9 0.5 0.5 0.5\n1 0.5 0.5 0.25 0.5\n1 0.9 0.9 -0.1 0.1\n1 -0.5 0.5 0.1 0.1\n'})


# Image folders.


@broken('image_folder',
        'image-alpha train/cat/alpha.png: some of it is transparent',
        'image-corrupt train/cat/bomb.png: Image size (3600000000 pixels) exceeds limit of 178956970 pixels, could be '
        'decompression bomb DOS attack.',
        'image-truncated train/cat/cut.jpg: image file is truncated (71 bytes not processed)',
        'image-16bit train/cat/deep.png: its pixels have more than 8 bits (mode I;16)',
        'image-corrupt train/cat/empty.png: the file is empty',
        'image-grey train/cat/grey.png: it is grey',
        'image-corrupt train/cat/page.jpg: not an image, or a corrupt or unknown format',
        'image-palette train/cat/palette.png: its colours are a palette',
        'image-missing train/cat/pipe.png: it is no regular file',
        'image-exif train/cat/turned.jpg: its EXIF data say orientation 3: it is shown turned by 180 degrees',
        keeps=[*(f'train/cat/{name}' for name in (
            'alpha.png', 'bomb.png', 'cut.jpg', 'deep.png', 'empty.png', 'grey.png', 'page.jpg', 'palette.png',
            'pipe.png', 'sound.png', 'turned.jpg')), 'train/dog/sound.png', 'val/cat/sound.png', 'val/dog/sound.png'],
        splits=('train', 'val'))
def folder_of_odd_images(folder):
  cat = folder / 'train' / 'cat'
  write_image(cat / 'sound.png', 1)
  write_image(folder / 'train' / 'dog' / 'sound.png', 2)
  write_image(folder / 'val' / 'dog' / 'sound.png', 3)
  write_image(folder / 'val' / 'cat' / 'sound.png', 8)
  write_bytes(cat / 'cut.jpg', jpeg()[:3000])
  write_bytes(cat / 'empty.png', b'')
  write_bytes(cat / 'page.jpg', b'<html>404</html>')
  os.mkfifo(cat / 'pipe.png')
  write_bytes(cat / 'bomb.png', png_header(60_000, 60_000))
  grey = builders.pixels(4)[..., 0]
  Image.fromarray(grey).save(cat / 'grey.png')
  Image.fromarray(grey.astype(np.uint16) * 257).save(cat / 'deep.png')
  Image.fromarray(builders.pixels(5)).quantize(8).save(cat / 'palette.png')
  Image.fromarray(np.dstack([builders.pixels(6), grey])).save(cat / 'alpha.png')
  write_image(cat / 'turned.jpg', 7, orientation=3)


@broken('image_folder',
        "file-unknown train/cat/notes.txt: '.txt' is no suffix of an image; files: 1",
        "class-unknown val/cow: 'cow' is no class of train; images: 1",
        "class-absent val/cat: class 'cat' has no image in val",
        keeps=('train/cat/a.png', 'train/dog/a.png', 'val/dog/a.png'), splits=('train', 'val'))
def folder_with_other_classes_in_val(folder):
  write_image(folder / 'train' / 'cat' / 'a.png', 1)
  write_image(folder / 'train' / 'dog' / 'a.png', 2)
  write_image(folder / 'val' / 'dog' / 'a.png', 3)
  write_image(folder / 'val' / 'cow' / 'a.png', 4)
  write_text(folder / 'train' / 'cat' / 'notes.txt', 'my cats')


@broken('image_folder',
        'image-duplicate val/cat/c.jpg: in val, looks like train/cat/a.png in train (1 of 64 bits and 1.4 grey levels '
        'differ)',
        'image-duplicate val/cat/red.png: in val, looks like train/cat/red.png in train (0 of 64 bits and 0.0 grey '
        'levels differ)',
        keeps=('train/cat/a.png', 'train/cat/blue.png', 'train/cat/red.png', 'val/cat/b.png',
                               'val/cat/c.jpg', 'val/cat/green.png', 'val/cat/red.png'), splits=('train', 'val'))
def folder_with_the_same_image_in_both_splits(folder):
  for split, name, pixels in (
      ('train', 'a.png', smooth()), ('val', 'b.png', smooth(1.5)),
      ('train', 'red.png', np.full((48, 64, 3), (200, 0, 0), np.uint8)),
      ('train', 'blue.png', np.full((48, 64, 3), (0, 0, 200), np.uint8)),
      ('val', 'green.png', np.full((48, 64, 3), (0, 200, 0), np.uint8)),
      ('val', 'red.png', np.full((30, 40, 3), (200, 0, 0), np.uint8))):
    place = folder / split / 'cat' / name
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(place)
  Image.fromarray(smooth()).resize((96, 72), Image.Resampling.BICUBIC).save(folder / 'val/cat/c.jpg', quality=60)


@broken('image_folder',
        'split-unreadable train: image_folder: no images in the folders of SET/train; lay them out as '
        'SET/train/<name>/*, in files that end in .bmp .gif .jpeg .jpg .pgm .png .ppm .tif .tiff .webp')
def folder_without_images(folder):
  (folder / 'train' / 'cat').mkdir(parents=True)
  (folder / 'val' / 'cat').mkdir(parents=True)


# Images with masks.


def mask_set(folder, masks, *, image_size=SIZE, split='train'):
  for seed, (name, pixels) in enumerate(masks.items()):
    write_image(folder / 'images' / split / f'{name}.png', seed, image_size)
    if pixels is not None:
      write_mask(folder / 'masks' / split / f'{name}.png', pixels)
  return folder


def half(first, second, size=SIZE):
  pixels = np.full(size, first)
  pixels[:, size[1] // 2:] = second
  return pixels


@broken('mask_folder',
        'mask-values masks/train/b.png: 96 pixels have the value 9, which is no class; the values are 0, 1, 255',
        'mask-size masks/train/c.png: it is 12 x 16 pixels, its image 16 x 12',
        'mask-void masks/train/d.png: every pixel is void',
        keeps=[f'images/train/{name}.png' for name in 'abcd'],
        mask_values='ids', names=('background', 'cat'))
def masks_of_other_values_and_sizes(folder):
  mask_set(folder, {'a': half(0, 1), 'b': half(0, 9), 'c': half(0, 1, SIZE[::-1]), 'd': half(255, 255)})


@broken('mask_folder',
        'label-orphan masks/train/z.png: there is no image of that name',
        'image-extra images/train/b.png: there is no mask of that name',
        'mask-corrupt masks/train/c.png: not an image, or a corrupt or unknown format',
        keeps=('images/train/a.png',), mask_values='ids')
def masks_missing_and_damaged(folder):
  mask_set(folder, {'a': half(0, 1), 'b': None, 'c': half(0, 1)})
  write_mask(folder / 'masks' / 'train' / 'z.png', half(0, 1))
  write_bytes(folder / 'masks' / 'train' / 'c.png', b'nothing')


@broken('mask_folder',
        'split-unreadable train: mask_folder: SET/masks/train/a.jpg is a JPEG (1 of the masks are), which changes '
        'pixel values; write the masks as PNG from what they were made from, or set each value to the nearest class')
def masks_in_jpeg(folder):
  mask_set(folder, {'a': None})
  write_bytes(folder / 'masks' / 'train' / 'a.jpg', jpeg())


@broken('mask_folder',
        "mask-reading masks/train: taken as 'binary': the 1 masks looked at have the values 0, 255",
        'mask-corrupt masks/train/b.png: has 3 channels that differ',
        keeps=('images/train/a.png',))
def masks_in_colour(folder):
  mask_set(folder, {'a': half(0, 255), 'b': None})
  write_mask(folder / 'masks' / 'train' / 'b.png', builders.pixels())


@broken('object_masks',
        'mask-corrupt a/masks/damaged.png: not an image, or a corrupt or unknown format',
        'mask-empty a/masks/empty.png: the mask has no pixel',
        'mask-size a/masks/turned.png: the mask has size [16, 12], its image [12, 16], both (h, w)',
        'image-unlabelled c/images/c.png: there is no mask in c/masks',
        'image-missing d/images: there is no image in it',
        keeps=(('a/images/a.png', 1), ('c/images/c.png', 0)), val_share=0.25)
def object_masks_damaged(folder):
  for name in 'acdz':
    write_image(folder / name / 'images' / f'{name}.png')
  (folder / 'd' / 'images' / 'd.png').unlink()
  write_mask(folder / 'a' / 'masks' / 'sound.png', half(0, 255))
  write_mask(folder / 'a' / 'masks' / 'empty.png', half(0, 0))
  write_mask(folder / 'a' / 'masks' / 'turned.png', half(0, 255, SIZE[::-1]))
  write_bytes(folder / 'a' / 'masks' / 'damaged.png', b'nothing')
  write_mask(folder / 'd' / 'masks' / 'sound.png', half(0, 255))


# MNIST's files.


def idx_set(folder, images=3, labels=(0, 1, 1), *, kept=None):
  header = struct.pack('>4B3I', 0, 0, 8, 3, images, *SIZE)
  pixels = np.random.default_rng(0).integers(0, 256, (images, *SIZE), np.uint8).tobytes()
  write_bytes(folder / 'train-images-idx3-ubyte', (header + pixels)[:kept])
  write_bytes(folder / 'train-labels-idx1-ubyte.gz',
              gzip.compress(struct.pack('>4BI', 0, 0, 8, 1, len(labels)) + bytes(labels), mtime=0))


@broken('idx',
        'split-unreadable train: idx: SET/train-images-idx3-ubyte is cut short or damaged: its header says 3 x 12 x '
        '16, which makes 592 bytes with the header, and there are 100; fetch it again')
def idx_cut_short(folder):
  idx_set(folder, kept=100)


@broken('idx',
        'split-unreadable train: idx: SET/train-images-idx3-ubyte has 3 images and SET/train-labels-idx1-ubyte.gz 2 '
        'labels; they are not of one data set: fetch both again')
def idx_with_fewer_labels(folder):
  idx_set(folder, labels=(0, 1))


@broken('idx',
        'split-unreadable train: idx: SET/train-labels-idx1-ubyte.gz begins with 1f 8b 08 00, and an idx file of 1 '
        'axis of bytes with 00 00 08 01; fetch it again')
def idx_packed_twice(folder):
  idx_set(folder)
  file = folder / 'train-labels-idx1-ubyte.gz'
  file.write_bytes(gzip.compress(file.read_bytes()))


@broken('idx',
        'class-unknown train-labels-idx1-ubyte.gz: label 2: 9 is none of the classes 0, 1',
        keeps=('train-images-idx3-ubyte/00000', 'train-images-idx3-ubyte/00001'), names=('zero', 'one'))
def idx_with_an_unknown_label(folder):
  idx_set(folder, labels=(0, 1, 9))
