"""Writing COCO, VOC and YOLO: the same boxes come back, and what a format cannot hold is counted."""

import json
import pathlib

import numpy as np
from PIL import Image
import pytest

from tests.data import builders
from tests.data.builders import coco_annotation, coco_set, voc_object, voc_set, write_image, yolo_set
from vision_jax.conventions import ClassMap
from vision_jax.data.files import LabelledSource
from vision_jax.data.formats import READERS, coco, voc, yolo
from vision_jax.data.records import Labelled, Object, Record
from vision_jax.data.writers import WRITERS, write_coco, write_voc, write_yolo
from vision_jax.host import rle

MASK = np.zeros(builders.SIZE, bool)
MASK[3:8, 2:6] = True
SQUARE = [2.0, 3.0, 6.0, 3.0, 6.0, 8.0, 2.0, 8.0]


def boxes_of(labelled):
  """{stem of the image: [(class name, box)]}."""
  return {record.path.stem: [(labelled.classes.names[each.label], each.box) for each in record.objects]
          for record in labelled.records}


def assert_same_boxes(labelled, expected):
  found, expected = boxes_of(labelled), boxes_of(expected)
  assert found.keys() == expected.keys() and any(expected.values())
  for stem in expected:
    assert [name for name, _ in found[stem]] == [name for name, _ in expected[stem]]
    for (_, box), (_, other) in zip(found[stem], expected[stem]):
      assert box == pytest.approx(other, abs=0.01)


def some_boxes(folder):
  """VOC with whole, broken and sticking-out corners, a difficult object, and an image without objects."""
  return voc.read('train', path=voc_set(folder, {
      'b': [voc_object('dog', (1, 1, 16, 12)), voc_object('cat', (3, 4, 7.25, 9.5)), voc_object('cat', (0, 2, 5, 13))],
      'a': [voc_object('cat', (2.37, 2, 9, 11), difficult=1)], 'c': []}))


@pytest.mark.parametrize('way', [('coco', 'yolo', 'voc'), ('yolo', 'coco', 'voc'), ('voc', 'yolo', 'coco'),
                                 ('yolo', 'voc', 'yolo'), ('coco', 'coco'), ('voc', 'voc')])
def test_any_format_becomes_any_other_and_back_to_a_hundredth_of_a_pixel(tmp_path, way):
  first = labelled = some_boxes(tmp_path / 'start')
  for i, name in enumerate(way):
    written = WRITERS[name](labelled, tmp_path / f'{i}')
    assert (written.images, written.objects) == (3, 4)
    labelled = READERS[name]('train', path=tmp_path / f'{i}')
    assert {found.kind for found in labelled.findings} <= {'box-clipped'}
  assert_same_boxes(labelled, first)
  originals = {record.path.name: record for record in first.records}
  for record in labelled.records:
    original = originals[record.path.name]
    assert record.path.read_bytes() == original.path.read_bytes()
    assert record.size == original.size


def test_boxes_in_a_large_image_keep_their_hundredth_of_a_pixel(tmp_path):
  path = tmp_path / 'a.png'
  Image.new('1', (9000, 6000)).save(path)
  boxes = np.random.default_rng(0).uniform(1, 2999, (20, 2, 2)).round(2)
  objects = tuple(Object((*low, *(low + extent)), 0, 'a') for low, extent in boxes)
  first = Labelled((Record(path, 'a.png', (6000, 9000), objects=objects),), ClassMap(('cat',)), ('boxes', 'labels'), (),
                   tmp_path, 'coco')
  for name, write in WRITERS.items():
    write(first, tmp_path / name)
    assert_same_boxes(READERS[name]('train', path=tmp_path / name), first)


def everything(folder):
  """COCO with polygons, a crowd, a difficult object, ids with gaps."""
  return coco.read('train', masks=True, path=coco_set(folder, [
      coco_annotation(12, 1, 7, [2, 3, 4, 5], area=17.5, segmentation=[SQUARE]),
      coco_annotation(40, 2, 3, [2, 3, 4, 5], area=20, iscrowd=1,
                      segmentation={'size': list(builders.SIZE), 'counts': rle.run_lengths(rle.encode(MASK)).tolist()}),
      coco_annotation(41, 2, 3, [2, 3, 4, 5], area=20, segmentation=rle.encode(MASK), difficult=1)]))


def test_coco_keeps_everything_of_coco(tmp_path):
  first = everything(tmp_path / 'a')
  written = write_coco(first, tmp_path / 'b')
  assert str(written) == '2 images, 3 objects'
  again = coco.read('train', masks=True, path=tmp_path / 'b')
  assert again.classes == first.classes
  assert [record.id for record in again.records] == [1, 2]
  one, other = LabelledSource(first), LabelledSource(again)
  for i in range(2):
    assert one.target(i)['masks'] == other.target(i)['masks']
    for name in ('boxes', 'labels', 'crowd', 'difficult', 'area', 'ids'):
      np.testing.assert_array_equal(one.target(i)[name], other.target(i)[name])


def test_coco_states_its_box_format_and_fills_in_area_and_an_empty_mask(tmp_path):
  first = yolo.read('train', path=yolo_set(tmp_path / 'a', {'a': '1 0.5 0.5 0.25 0.5\n'}))
  write_coco(first, tmp_path / 'b')
  content = json.loads((tmp_path / 'b' / 'annotations' / 'instances_train.json').read_text())
  assert content == {
      'bbox_format': 'xywh', 'images': [{'id': 1, 'file_name': 'a.png', 'height': 12, 'width': 16}],
      'annotations': [{'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [6.0, 3.0, 4.0, 6.0], 'area': 24.0,
                       'iscrowd': 0, 'segmentation': []}],
      'categories': [{'id': 0, 'name': 'cat'}, {'id': 1, 'name': 'dog'}]}


def test_a_mask_image_becomes_run_lengths_in_coco(tmp_path):
  Image.fromarray(MASK).save(tmp_path / 'mask.png')
  path = write_image(tmp_path / 'a.png')
  record = Record(path, 'a.png', objects=(Object((2, 3, 6, 8), 0, 'a', {'path': tmp_path / 'mask.png'}),))
  write_coco(Labelled((record,), ClassMap(('cell',)), ('boxes', 'labels', 'masks'), (), tmp_path, 'object_masks'),
             tmp_path / 'b')
  again = LabelledSource(coco.read('train', masks=True, path=tmp_path / 'b'))
  np.testing.assert_array_equal(again[0]['masks'], [MASK])
  assert again.target(0)['area'].tolist() == [MASK.sum()]


def test_ids_that_cannot_be_kept_count_from_1(tmp_path):
  first = coco.read('train', path=coco_set(tmp_path / 'a', [
      coco_annotation(0, 1, 3, [1, 1, 2, 2]), coco_annotation(8, 2, 3, [1, 1, 2, 2])]))
  write_coco(first, tmp_path / 'b')
  again = coco.read('train', path=tmp_path / 'b')
  assert [each.id for record in again.records for each in record.objects] == [1, 2]


@pytest.mark.parametrize('write, expected', [
    (write_voc, '2 images, 3 objects; masks left out: 3; crowds written as difficult: 1; class ids left out: 2'),
    (write_yolo, '2 images, 2 objects; masks left out: 3; crowds left out: 1; difficult objects written as ordinary '
                 'ones: 1; class ids changed: 2')])
def test_what_a_format_cannot_hold_is_counted(tmp_path, write, expected):
  assert str(write(everything(tmp_path / 'a'), tmp_path / 'b')) == expected


def test_a_crowd_is_difficult_in_voc_and_absent_in_yolo(tmp_path):
  first = everything(tmp_path / 'a')
  write_voc(first, tmp_path / 'b')
  write_yolo(first, tmp_path / 'c')
  assert [[each.difficult for each in record.objects] for record in voc.read('train', path=tmp_path / 'b').records] == [
      [False], [True, True]]
  assert [len(record.objects) for record in yolo.read('train', path=tmp_path / 'c').records] == [1, 1]


def test_voc_counts_the_classes_that_it_does_not_name(tmp_path):
  first = coco.read('train', path=coco_set(tmp_path / 'a', [coco_annotation(1, 1, 7, [1, 1, 2, 2])]))
  assert write_voc(first, tmp_path / 'b').lost == {'class ids left out': 2, 'classes without an object left out': 1}
  assert voc.read('train', path=tmp_path / 'b').classes.names == ('dog',)


def test_names_with_special_characters_come_back(tmp_path):
  names = ('<cat> & "dog"', "it's: 50 % größer", 'no')
  objects = tuple(Object((1, 1, 5, 4), label, 'a') for label in range(3))
  path = write_image(tmp_path / 'a&b ü.png')
  labelled = Labelled((Record(path, path.name, builders.SIZE, objects=objects),), ClassMap(names), ('boxes', 'labels'),
                      (), tmp_path, 'yolo')
  for name, write in WRITERS.items():
    write(labelled, tmp_path / name)
    assert_same_boxes(READERS[name]('train', path=tmp_path / name), labelled)


def test_images_of_one_name_in_several_folders_are_renamed_and_counted(tmp_path):
  records = tuple(Record(write_image(tmp_path / folder / file, seed), f'{folder}/{file}', builders.SIZE,
                         objects=(Object((1, 1, 5, 4), 0, 'a'),))
                  for seed, (folder, file) in enumerate((('x', 'a.png'), ('y', 'a.png'), ('y', 'b.png'))))
  labelled = Labelled(records, ClassMap(('cat',)), ('boxes', 'labels'), (), tmp_path, 'yolo')
  for name, write in WRITERS.items():
    assert write(labelled, tmp_path / name).lost['images renamed'] == 2
    again = READERS[name]('train', path=tmp_path / name)
    assert sorted(record.path.name for record in again.records) == ['b.png', 'x_a.png', 'y_a.png']
    for record in again.records:
      seed = ('x_a.png', 'y_a.png', 'b.png').index(record.path.name)
      np.testing.assert_array_equal(Image.open(record.path), builders.pixels(seed))


def test_an_image_of_the_other_split_is_not_overwritten(tmp_path):
  for seed, split in enumerate(('train', 'val')):
    path = write_image(tmp_path / split / 'a.png', seed)
    record = Record(path, f'{split}/a.png', builders.SIZE, objects=(Object((1, 1, 5, 4), 0, 'a'),))
    labelled = Labelled((record,), ClassMap(('cat',)), ('boxes', 'labels'), (), tmp_path, 'yolo', split)
    for name, write in WRITERS.items():
      lost = write(labelled, tmp_path / name).lost
      assert lost == ({'images renamed': 1} if (name, split) == ('voc', 'val') else {})
  for name in WRITERS:
    for seed, split in enumerate(('train', 'val')):
      (record,) = READERS[name](split, path=tmp_path / name).records
      np.testing.assert_array_equal(Image.open(record.path), builders.pixels(seed))


def test_links_point_to_the_images(tmp_path):
  first = some_boxes(tmp_path / 'start')
  for name, write in WRITERS.items():
    write(first, tmp_path / name, link=True)
    for record in READERS[name]('train', path=tmp_path / name).records:
      assert record.path.is_symlink() and record.path.resolve().parent == (tmp_path / 'start' / 'JPEGImages').resolve()


@pytest.mark.parametrize('name', WRITERS)
def test_nothing_is_written_over(tmp_path, name):
  first = some_boxes(tmp_path / 'start')
  WRITERS[name](first, tmp_path / 'out')
  before = {path: path.read_bytes() for path in (tmp_path / 'out').rglob('*') if path.is_file()}
  with pytest.raises(ValueError, match=r'exists; write to another folder'):
    WRITERS[name](first, tmp_path / 'out')
  assert {path: path.read_bytes() for path in (tmp_path / 'out').rglob('*') if path.is_file()} == before


def test_yolo_refuses_splits_of_different_classes(tmp_path):
  write_yolo(yolo.read('train', path=yolo_set(tmp_path / 'a', {'a': ''})), tmp_path / 'out')
  other = yolo.read('val', path=yolo_set(tmp_path / 'b', {'a': ''}, split='val', names=('dog', 'cat')))
  with pytest.raises(ValueError, match=r'data\.yaml has other classes than .*b \(val\); write to another folder'):
    write_yolo(other, tmp_path / 'out')


def test_data_without_boxes_are_refused(tmp_path):
  labelled = Labelled((), ClassMap(('cat',)), ('label',), (), pathlib.Path('cats'), 'image_folder')
  for write in WRITERS.values():
    with pytest.raises(ValueError, match='cats has label and no boxes; only boxes can be converted'):
      write(labelled, tmp_path)


def test_an_image_that_cannot_be_copied_is_named(tmp_path):
  first = some_boxes(tmp_path / 'start')
  first.records[0].path.unlink()
  with pytest.raises(ValueError, match=r'cannot put .*b\.png to .*b\.png: No such file'):
    write_coco(first, tmp_path / 'out')
