"""Reading Pascal VOC: pixels that count from 1, difficult objects, and the line of what is wrong."""

import pytest

from tests.data import builders
from tests.data.builders import kinds, voc_object, voc_set, voc_xml, write_image, write_text
from vision_jax import data
from vision_jax.data.files import LabelledSource
from vision_jax.data.formats import voc


def test_the_first_and_last_pixel_counted_from_1_become_continuous_corners(tmp_path):
  labelled = voc.read('train', path=voc_set(tmp_path, {'b': [voc_object('cat', (1, 2, 16, 12)),
                                                             voc_object('ant', (3, 4, 3, 4.5))], 'a': []}))
  assert labelled.classes.names == ('ant', 'cat') and labelled.findings == ()
  first, second = labelled.records
  assert (first.name, first.size, first.where) == ('JPEGImages/b.png', (12, 16), 'Annotations/b.xml')
  assert [(each.box, each.label, each.where) for each in first.objects] == [
      ((0, 1, 16, 12), 1, 'Annotations/b.xml:4'), ((2, 3, 3, 4.5), 0, 'Annotations/b.xml:5')]
  assert second.name == 'JPEGImages/a.png' and second.objects == ()


def test_difficult_objects_are_known_to_the_target_and_trained_on_when_asked_for(tmp_path):
  voc_set(tmp_path, {'a': [voc_object('cat', (1, 2, 5, 6), difficult=1), voc_object('cat', (3, 4, 9, 9), difficult=0)]})
  source = data.create('voc', 'train', path=tmp_path)
  assert source.target(0)['difficult'].tolist() == [True, False]
  assert source[0]['boxes'].tolist() == [[2, 3, 9, 9]]
  assert len(data.create('voc', 'train', path=tmp_path, difficult='train')[0]['boxes']) == 2


def test_both_splits_have_the_classes_of_both(tmp_path):
  voc_set(tmp_path, {'a': [voc_object('dog', (1, 2, 5, 6))]})
  voc_set(tmp_path, {'b': [voc_object('cat', (1, 2, 5, 6))]}, split='val')
  assert {voc.read(split, path=tmp_path).classes.names for split in ('train', 'val')} == {('cat', 'dog')}


def test_a_class_outside_the_given_list_is_left_out_with_its_line(tmp_path):
  voc_set(tmp_path, {'a': [voc_object('dog', (1, 2, 5, 6)), voc_object('cow', (1, 2, 5, 6))]})
  labelled = voc.read('train', path=tmp_path, classes=('dog', 'cat'))
  assert labelled.classes.names == ('dog', 'cat')
  assert [each.label for each in labelled.records[0].objects] == [0]
  assert [str(found) for found in labelled.findings] == [
      "Annotations/a.xml:5: 'cow' is none of the classes dog, cat"]
  assert kinds(labelled) == [('class-unknown', 'Annotations/a.xml:5')] and labelled.findings[0].item == 0


@pytest.mark.parametrize('bad, kind, what', [
    (voc_object('cat', (5, 2, 4, 6)), 'box-inverted',
     'the box is xmin 5, ymin 2, xmax 4, ymax 6: it ends before it begins'),
    (voc_object('cat', (5, 9, 8, 6)), 'box-inverted',
     'the box is xmin 5, ymin 9, xmax 8, ymax 6: it ends before it begins'),
    (voc_object('cat', (17, 2, 20, 6)), 'box-outside',
     'the box is xmin 17, ymin 2, xmax 20, ymax 6: it lies outside the image of 16 x 12'),
    (voc_object('cat', ('nan', 2, 20, 6)), 'box-not-finite',
     'the box is xmin nan, ymin 2, xmax 20, ymax 6: it is not made of finite numbers'),
    (voc_object('cat', ('two', 2, 20, 6)), 'label-syntax',
     'the object has no bndbox with numbers xmin, ymin, xmax, ymax'),
    (voc_object('cat', (1, 2, 3)), 'label-syntax', 'the object has no bndbox with numbers xmin, ymin, xmax, ymax'),
    ('<object><name>cat</name></object>', 'label-syntax',
     'the object has no bndbox with numbers xmin, ymin, xmax, ymax'),
    (voc_object(' ', (1, 2, 3, 4)), 'label-syntax', 'the object has no name')])
def test_a_bad_object_is_left_out_with_its_line(tmp_path, bad, kind, what):
  labelled = voc.read('train', path=voc_set(tmp_path, {'a': [voc_object('cat', (1, 1, 2, 2)), bad]}))
  (found,) = labelled.findings
  assert (found.kind, str(found), found.item) == (kind, f'Annotations/a.xml:5: {what}', 0)
  assert found.rule.severity == 'error' and len(labelled.records[0].objects) == 1


def test_a_box_that_counts_from_0_stays_and_is_told_of(tmp_path):
  labelled = voc.read('train', path=voc_set(tmp_path, {'a': [voc_object('cat', (0, 1, 5, 6))]}))
  assert labelled.records[0].objects[0].box == (-1, 0, 5, 6)
  assert [str(found) for found in labelled.findings] == [
      'Annotations/a.xml:4: the box is xmin 0, ymin 1, xmax 5, ymax 6: it leaves the image of 16 x 12, whose pixels '
      'count from 1']
  assert LabelledSource(labelled)[0]['boxes'].tolist() == [[0, 0, 5, 6]]


def test_the_parts_of_an_object_are_not_objects(tmp_path):
  head = '<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>'
  person = voc_object('person', (1, 1, 9, 9)).replace('</object>', f'{head}</object>')
  labelled = voc.read('train', path=voc_set(tmp_path, {'a': [person]}))
  assert labelled.classes.names == ('person',) and len(labelled.records[0].objects) == 1


@pytest.mark.parametrize('size', [None, (0, 0)])
def test_a_size_that_is_not_stated_comes_from_the_image(tmp_path, size):
  voc_set(tmp_path, {'a': [voc_object('cat', (1, 1, 16, 12))]}, size=size)
  labelled = voc.read('train', path=tmp_path)
  assert labelled.records[0].size == builders.SIZE and labelled.findings == ()


def test_what_is_missing_is_named_with_the_line_of_the_list_and_left_out(tmp_path):
  voc_set(tmp_path, {'a': [voc_object('cat', (1, 1, 2, 2))], 'b': [], 'c': [], 'd': []})
  (tmp_path / 'Annotations' / 'b.xml').unlink()
  (tmp_path / 'JPEGImages' / 'c.png').unlink()
  write_text(tmp_path / 'Annotations' / 'd.xml', voc_xml([], size=None))
  write_text(tmp_path / 'JPEGImages' / 'd.png', 'no image')
  with (tmp_path / 'ImageSets' / 'Main' / 'train.txt').open('a') as file:
    file.write('\na\n')
  labelled = voc.read('train', path=tmp_path)
  listed = 'ImageSets/Main/train.txt'
  assert [record.name for record in labelled.records] == ['JPEGImages/a.png']
  assert [(found.kind, found.where, found.what) for found in labelled.findings[:3]] == [
      ('label-missing', f'{listed}:2', 'Annotations/b.xml does not exist'),
      ('image-missing', f'{listed}:3', 'no image JPEGImages/c.*'),
      ('image-id-twice', f'{listed}:6', 'a stands twice in the list')]
  assert (labelled.findings[3].kind, labelled.findings[3].where) == ('image-corrupt', 'Annotations/d.xml')


@pytest.mark.parametrize('content, where, what', [
    (b'<annotation>\n<object>\n</annotation>', 3, r'not XML: mismatched tag \(column 3\)'),
    (b'', 1, 'not XML: no element found'),
    (b'<?xml version="1.0" encoding="gbk"?>\n<annotation/>', 1, 'not readable: .*; save it as UTF-8'),
    (b'<annotation>\n\xff</annotation>', 2, 'not XML: not well-formed')])
def test_a_file_that_is_not_xml_is_left_out_with_its_line(tmp_path, content, where, what):
  voc_set(tmp_path, {'a': [voc_object('cat', (1, 1, 2, 2))], 'b': []})
  (tmp_path / 'Annotations' / 'b.xml').write_bytes(content)
  labelled = voc.read('train', path=tmp_path)
  assert [record.name for record in labelled.records] == ['JPEGImages/a.png']
  (found,) = labelled.findings
  assert (found.kind, found.where) == ('label-syntax', f'Annotations/b.xml:{where}')
  with pytest.raises(ValueError, match=what):
    LabelledSource(labelled)


def test_of_two_images_of_one_name_the_annotation_says_which(tmp_path):
  voc_set(tmp_path, {'a': [voc_object('cat', (1, 1, 2, 2))]})
  write_image(tmp_path / 'JPEGImages' / 'a.bmp')
  assert voc.read('train', path=tmp_path).records[0].path.name == 'a.png'
  write_text(tmp_path / 'Annotations' / 'a.xml', voc_xml([voc_object('cat', (1, 1, 2, 2))], name='other.png'))
  assert [found.what for found in voc.read('train', path=tmp_path).findings] == [
      'several images for it: JPEGImages/a.bmp, JPEGImages/a.png']


def test_a_list_may_have_suffixes_and_the_marks_of_one_class(tmp_path):
  voc_set(tmp_path, {'a b.c': [voc_object('cat', (1, 1, 2, 2))], 'd': [], 'e': []})
  write_text(tmp_path / 'ImageSets' / 'Main' / 'train.txt', 'a b.c  1\nd.PNG -1\r\n e\n')
  assert [record.path.stem for record in voc.read('train', path=tmp_path).records] == ['a b.c', 'd', 'e']


def test_a_missing_folder_or_list_is_refused_with_what_is_there(tmp_path):
  voc_set(tmp_path, {'a': [voc_object('cat', (1, 1, 2, 2))]})
  with pytest.raises(ValueError, match=r'voc: no list .*val\.txt \(lists there: train\.txt\); write the names'):
    voc.read('val', path=tmp_path)
  (tmp_path / 'JPEGImages').rename(tmp_path / 'photos')
  with pytest.raises(ValueError, match=r'voc: no folder .*JPEGImages; data\.path is the folder with Annotations'):
    voc.read('train', path=tmp_path)


def test_annotations_without_any_object_need_the_classes(tmp_path):
  voc_set(tmp_path, {'a': []})
  with pytest.raises(ValueError, match=r'voc: no object in the annotations of .*; give data\.classes'):
    voc.read('train', path=tmp_path)
  assert len(voc.read('train', path=tmp_path, classes=('cat',)).records) == 1
