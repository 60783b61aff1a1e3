"""Reading YOLO's text labels: shares of the image, polygons, names of the classes, and the line of what is wrong."""

import numpy as np
import pytest

from tests.data import builders
from tests.data.builders import kinds, write_image, write_text, yolo_set
from vision_jax.data.files import LabelledSource
from vision_jax.data.formats import yolo
from vision_jax.data.records import object_mask
from vision_jax.host import polygons

BOX = '1 0.5 0.5 0.25 0.5\n'  # of 16 x 12: (6, 3, 10, 9)


def test_shares_of_the_image_become_pixels(tmp_path):
  labelled = yolo.read('train', path=yolo_set(tmp_path, {'a': f'0 0.25 0.5 0.5 1\n\n{BOX}'}))
  (record,) = labelled.records
  assert (record.name, record.size, record.where) == ('images/train/a.png', builders.SIZE, 'labels/train/a.txt')
  assert [(each.box, each.label, each.where) for each in record.objects] == [
      ((0, 0, 8, 12), 0, 'labels/train/a.txt:1'), ((6, 3, 10, 9), 1, 'labels/train/a.txt:3')]
  assert labelled.classes.names == ('cat', 'dog') and labelled.findings == ()


def test_shares_are_of_the_upright_image(tmp_path):
  yolo_set(tmp_path, {'a': BOX})
  (tmp_path / 'images' / 'train' / 'a.png').unlink()
  write_image(tmp_path / 'images' / 'train' / 'a.jpg', orientation=6)
  labelled = yolo.read('train', path=tmp_path)
  assert labelled.records[0].objects[0].box == (4.5, 4, 7.5, 12)
  assert LabelledSource(labelled)[0]['image'].shape == (16, 12, 3)


def test_a_polygon_gives_its_tight_box_and_its_mask_when_asked_for(tmp_path):
  yolo_set(tmp_path, {'a': '1 0.25 0.25 0.75 0.25 0.75 0.75\n'})
  plain = yolo.read('train', path=tmp_path).records[0].objects[0]
  assert plain.box == (4, 3, 12, 9) and plain.mask is None
  labelled = yolo.read('train', path=tmp_path, masks=True)
  assert labelled.fields == ('boxes', 'labels', 'masks')
  mask = object_mask(labelled.records[0].objects[0].mask, builders.SIZE)
  np.testing.assert_array_equal(mask, polygons.rasterise([[4, 3, 12, 3, 12, 9]], builders.SIZE))
  assert mask.sum() > 10


def test_a_box_without_a_polygon_is_left_out_only_where_masks_are_asked_for(tmp_path):
  yolo_set(tmp_path, {'a': BOX})
  labelled = yolo.read('train', path=tmp_path, masks=True)
  assert [str(found) for found in labelled.findings] == ['labels/train/a.txt:1: it is a box and no polygon']
  assert labelled.records[0].objects == ()
  assert len(yolo.read('train', path=tmp_path, masks=None).records[0].objects) == 1


@pytest.mark.parametrize('line, kind, what', [
    ('0 0.5 0.5 0.25', 'label-syntax',
     '4 numbers; a box is class cx cy w h, a polygon is the class and x y of three points or more'),
    ('0 0.5 0.5 0.25 0.5 0.9', 'label-syntax',
     '6 numbers; a box is class cx cy w h, a polygon is the class and x y of three points or more'),
    ('cat 0.5 0.5 0.25 0.5', 'label-syntax', "'cat 0.5 0.5 0.25 0.5' is not made of numbers"),
    ('0,0.5,0.5,0.25,0.5', 'label-syntax', "'0,0.5,0.5,0.25,0.5' is not made of numbers"),
    ('2 0.5 0.5 0.25 0.5', 'class-unknown', 'class 2 is none of the 2 classes 0..1'),
    ('-1 0.5 0.5 0.25 0.5', 'class-unknown', 'class -1 is none of the 2 classes 0..1'),
    ('0.5 0.5 0.5 0.25 0.5', 'class-unknown', 'class 0.5 is none of the 2 classes 0..1'),
    ('0 8 6 4 6', 'box-not-normalised', '8 6 4 6 are pixels; numbers are shares of width and height, 0 to 1'),
    ('0 0.5 0.5 0 0.5', 'box-zero', 'the box (8, 3, 8, 9) is 0 x 6 pixels'),
    ('0 0.5 0.5 -0.25 0.5', 'box-inverted', 'the box (10, 3, 6, 9) ends before it begins'),
    ('0 0.5 nan 0.25 0.5', 'box-not-finite', 'the box (6, nan, 10, nan) is not made of finite numbers'),
    ('0 -0.25 0.5 0.25 0.5', 'box-outside', 'the box (-6, 3, -2, 9) lies outside the image of 16 x 12')])
def test_a_bad_line_is_left_out_with_its_number(tmp_path, line, kind, what):
  labelled = yolo.read('train', path=yolo_set(tmp_path, {'a': f'{BOX}{line}\n{BOX}'}))
  (found,) = labelled.findings
  assert (found.kind, str(found), found.item) == (kind, f'labels/train/a.txt:2: {what}', 0)
  assert found.rule.severity == 'error' and len(labelled.records[0].objects) == 2


def test_a_box_that_leaves_the_image_stays_and_is_told_of(tmp_path):
  labelled = yolo.read('train', path=yolo_set(tmp_path, {'a': '0 1 0.5 0.25 0.5\n'}))
  assert labelled.records[0].objects[0].box == (14, 3, 18, 9)
  assert kinds(labelled) == [('box-clipped', 'labels/train/a.txt:1')]


def test_an_image_without_a_label_file_has_no_objects_and_is_told_of_but_an_empty_file_is_sound(tmp_path):
  labelled = yolo.read('train', path=yolo_set(tmp_path, {'a': None, 'b': '', 'c': BOX}))
  assert [len(record.objects) for record in labelled.records] == [0, 0, 1]
  assert [str(found) for found in labelled.findings] == ['images/train/a.png: there is no labels/train/a.txt']
  assert labelled.findings[0].rule.severity == 'warning' and labelled.findings[0].item == 0


def test_labels_without_an_image_and_images_that_are_none_are_left_out(tmp_path):
  yolo_set(tmp_path, {'a': BOX, 'b': BOX})
  (tmp_path / 'images' / 'train' / 'a.png').write_text('no image')
  write_text(tmp_path / 'labels' / 'train' / 'c.txt', BOX)
  write_text(tmp_path / 'labels' / 'train' / 'classes.txt', 'cat\ndog\n')
  labelled = yolo.read('train', path=tmp_path)
  assert [record.name for record in labelled.records] == ['images/train/b.png']
  assert kinds(labelled) == [('label-orphan', 'labels/train/c.txt'), ('image-corrupt', 'images/train/a.png')]


def test_a_label_file_that_is_no_text_is_left_out(tmp_path):
  yolo_set(tmp_path, {'a': BOX})
  (tmp_path / 'labels' / 'train' / 'a.txt').write_bytes(b'0 0.5\n\xff\xfe')
  labelled = yolo.read('train', path=tmp_path)
  assert kinds(labelled) == [('label-syntax', 'labels/train/a.txt:2')]
  assert labelled.findings[0].what == 'not UTF-8 (byte 0xff)'


@pytest.mark.parametrize('image, label', [
    ('images/train/a.png', 'labels/train/a.txt'), ('train/images/a.png', 'train/labels/a.txt'),
    ('images/training/sub/a.png', 'labels/training/sub/a.txt')])
def test_the_usual_layouts_are_found(tmp_path, image, label):
  write_image(tmp_path / image)
  write_text(tmp_path / label, BOX)
  (record,) = yolo.read('train', path=tmp_path, classes=('cat', 'dog')).records
  assert (record.name, record.where, len(record.objects)) == (image, label, 1)


def test_a_list_of_images_keeps_its_order_and_names_the_line_of_a_missing_one(tmp_path):
  root = tmp_path / 'images' / 'set'  # 'images' above the data set stays as it is
  for name in ('images/b.png', 'photos/a.png'):
    write_image(root / name)
  write_text(root / 'labels' / 'b.txt', BOX)
  write_text(root / 'photos' / 'a.txt', BOX)
  write_text(root / 'val.txt', f'images/b.png\n\n./images/c.png\n{(root / "photos" / "a.png").as_posix()}\n')
  labelled = yolo.read('val', path=root, classes=('cat', 'dog'))
  assert [(record.name, len(record.objects)) for record in labelled.records] == [
      ('images/b.png', 1), ('photos/a.png', 1)]
  assert kinds(labelled) == [('image-missing', 'val.txt:3')]


def test_several_layouts_are_listed_and_an_option_decides(tmp_path):
  yolo_set(tmp_path, {'a': BOX})
  write_text(tmp_path / 'train.txt', 'images/train/a.png\n')
  with pytest.raises(ValueError, match=r'yolo: several images of split train in .*: .*images/train, .*train\.txt; lay'):
    yolo.read('train', path=tmp_path)
  for images in ('{split}.txt', 'images/{split}', {'train': 'images/train'}):
    assert [len(record.objects) for record in yolo.read('train', path=tmp_path, images=images).records] == [1]
  with pytest.raises(ValueError, match=r'yolo: no images of split val in .*; lay them out as images/val and'):
    yolo.read('val', path=tmp_path)


@pytest.mark.parametrize('file, text, names, ids', [
    ('data.yaml', "nc: 2\nnames: ['cat', 'big dog']\n", ('cat', 'big dog'), (0, 1)),
    ('x.yml', 'names:\n  0: cat\n  1: big dog\n', ('cat', 'big dog'), (0, 1)),
    ('data.yaml', 'names: {5: dog, 1: cat}\n', ('cat', 'dog'), (1, 5)),
    ('data.yaml', 'names: [1, no]\n', ('1', 'no'), (0, 1)),
    ('classes.txt', 'cat\r\nbig dog\n\n', ('cat', 'big dog'), (0, 1)),
    ('obj.names', 'cat\n\ndog\n', ('cat', 'dog'), (0, 2))])
def test_the_names_of_the_classes_are_found(tmp_path, file, text, names, ids):
  write_image(tmp_path / 'images' / 'train' / 'a.png')
  write_text(tmp_path / 'other.yaml', 'lr: 1\n')
  write_text(tmp_path / file, text)
  write_text(tmp_path / 'labels' / 'train' / 'a.txt', f'{ids[1]}{BOX[1:]}')
  labelled = yolo.read('train', path=tmp_path)
  assert (labelled.classes.names, labelled.classes.ids) == (names, ids)
  assert [each.label for each in labelled.records[0].objects] == [1]


def test_names_that_differ_are_listed_and_names_that_agree_are_fine(tmp_path):
  yolo_set(tmp_path, {'a': BOX})
  write_text(tmp_path / 'classes.txt', 'cat\ndog\n')
  assert yolo.read('train', path=tmp_path).classes.names == ('cat', 'dog')
  write_text(tmp_path / 'classes.txt', 'dog\ncat\n')
  with pytest.raises(ValueError, match=r'yolo: several names of the classes in .*: .*classes\.txt, .*data\.yaml; '):
    yolo.read('train', path=tmp_path)
  assert yolo.read('train', path=tmp_path, classes=('a', 'b')).classes.names == ('a', 'b')


@pytest.mark.parametrize('text, message', [
    ('names: [cat\nx: 1\n', r'data\.yaml:2: not YAML: .*; mend that place'),
    ('names: cat\n', r"data\.yaml: names is neither a list nor a dict from numbers; write names: \['cat', 'dog'\]"),
    ('names: {a: cat}\n', r'data\.yaml: names is neither a list nor a dict from numbers'),
    ('nc: 3\nnames: [cat, dog]\n', r'data\.yaml: nc is 3 and there are 2 names; make them agree'),
    ('names: [cat, cat]\n', r'data\.yaml: class name cat stands twice'),
    ('lr: 1\n', r'yolo: no names of the classes in .*; write one data\.yaml with names in it, or classes\.txt')])
def test_a_names_file_that_cannot_be_read_is_refused(tmp_path, text, message):
  yolo_set(tmp_path, {'a': BOX})
  write_text(tmp_path / 'data.yaml', text)
  with pytest.raises(ValueError, match=message):
    yolo.read('train', path=tmp_path)
