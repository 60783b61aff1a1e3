"""Reading COCO's JSON: where things are found, what an annotation becomes, and what is said about bad ones."""

import json

import numpy as np
import pytest

from tests.data import builders
from tests.data.builders import coco_annotation as annotation
from tests.data.builders import coco_image, coco_set, kinds, write_image, write_text
from vision_jax.data.files import LabelledSource
from vision_jax.data.formats import coco
from vision_jax.host import rle

FILE = 'annotations/instances_train.json'
SQUARE = [2.0, 3.0, 6.0, 3.0, 6.0, 8.0, 2.0, 8.0]


def finding_of(folder, one, **options):
  """What reading says about a single bad annotation, which is left out."""
  labelled = coco.read('train', path=coco_set(folder, [one, annotation(99, 2, 3, [1, 1, 2, 2], segmentation=[SQUARE])]),
                       **options)
  assert [each.id for record in labelled.records for each in record.objects] == [99]
  (found,) = labelled.findings
  assert found.rule.severity == 'error' or found.kind == 'label-orphan'
  return found.kind, str(found), found.item


def test_boxes_become_xyxy_and_sparse_ids_classes_from_0_in_their_order(tmp_path):
  labelled = coco.read('train', path=coco_set(tmp_path, [
      annotation(12, 2, 7, [2.5, 3, 4, 5.25], area=17.5), annotation(11, 1, 3, [0, 0, 16, 12], iscrowd=1),
      annotation(13, 2, 3, [1, 1, 2, 2], difficult=1)]))
  assert labelled.classes.names == ('cat', 'dog') and labelled.classes.ids == (3, 7)
  assert labelled.fields == ('boxes', 'labels') and labelled.findings == ()
  first, second = labelled.records
  assert (first.name, first.size, first.id, first.path) == ('train/a.png', (12, 16), 1, tmp_path / 'train' / 'a.png')
  (crowd,), (one, two) = first.objects, second.objects
  assert (crowd.box, crowd.label, crowd.crowd, crowd.area) == ((0, 0, 16, 12), 0, True, None)
  assert (one.box, one.label, one.crowd, one.area, one.id) == ((2.5, 3, 6.5, 8.25), 1, False, 17.5, 12)
  assert one.where == f'{FILE}: annotation 12' and two.difficult and not one.difficult
  assert all(each.mask is None for each in (crowd, one, two))


def test_an_image_without_annotations_stays(tmp_path):
  assert [len(r.objects) for r in coco.read('train', path=coco_set(tmp_path, [])).records] == [0, 0]


def test_polygons_and_both_kinds_of_run_lengths_become_masks(tmp_path):
  mask = np.zeros(builders.SIZE, bool)
  mask[3:8, 2:6] = True
  packed = rle.encode(mask)
  plain = {'size': packed['size'], 'counts': rle.run_lengths(packed).tolist()}
  source = LabelledSource(coco.read('train', masks=True, path=coco_set(tmp_path, [
      annotation(k, 1, 3, [2, 3, 4, 5], segmentation=segmentation)
      for k, segmentation in enumerate(([SQUARE], plain, packed, [SQUARE[:], SQUARE[:]]), 1)])))
  assert source.fields == ('boxes', 'labels', 'masks')
  np.testing.assert_array_equal(source[0]['masks'], [mask] * 4)
  assert source.target(0)['masks'] == [packed] * 4


def test_masks_are_kept_for_conversions_without_being_asked_of_every_object(tmp_path):
  labelled = coco.read('train', masks=None, path=coco_set(tmp_path, [
      annotation(1, 1, 3, [2, 3, 4, 5], segmentation=[SQUARE]), annotation(2, 1, 3, [2, 3, 4, 5], segmentation=[])]))
  assert labelled.fields == ('boxes', 'labels') and labelled.findings == ()
  with_mask, without = labelled.records[0].objects
  assert list(with_mask.mask['polygons'][0]) == SQUARE and without.mask is None


@pytest.mark.parametrize('bad, kind, what', [
    (annotation(5, 1, 4, [1, 1, 2, 2]), 'class-unknown', 'category_id 4 is not among the categories'),
    (annotation(5, 1, '3', [1, 1, 2, 2]), 'class-unknown', "category_id '3' is not among the categories"),
    (annotation(5, 1, [3], [1, 1, 2, 2]), 'class-unknown', 'category_id [3] is not among the categories'),
    (annotation(5, 1, 3, [1, 1, 0, 2]), 'box-zero', 'the box (1, 1, 1, 3) is 0 x 2 pixels'),
    (annotation(5, 1, 3, [4, 4, -3, 2]), 'box-inverted', 'the box (4, 4, 1, 6) ends before it begins'),
    (annotation(5, 1, 3, [16, 1, 3, 2]), 'box-outside', 'the box (16, 1, 19, 3) lies outside the image of 16 x 12'),
    (annotation(5, 1, 3, [1, float('nan'), 3, 2]), 'box-not-finite',
     'the box (1, nan, 4, nan) is not made of finite numbers'),
    (annotation(5, 1, 3, [1, 2, 3]), 'label-syntax', 'bbox is [1, 2, 3], not four numbers x, y, width, height'),
    (annotation(5, 1, 3, None), 'label-syntax', 'bbox is None, not four numbers x, y, width, height')])
def test_a_bad_annotation_is_left_out_and_named_by_its_id(tmp_path, bad, kind, what):
  assert finding_of(tmp_path, bad) == (kind, f'{FILE}: annotation 5: {what}', 0)


@pytest.mark.parametrize('bad, kind, what', [
    ({'id': 5, 'category_id': 3}, 'label-syntax',
     'annotation 5: it has no image_id; an annotation has image_id, category_id and bbox'),
    ('text', 'label-syntax',
     'annotations[0]: it has no image_id; an annotation has image_id, category_id and bbox'),
    (annotation(5, 8, 3, [1, 1, 2, 2]), 'label-orphan', 'annotation 5: image_id 8 is not among the images'),
    (annotation(5, '1', 3, [1, 1, 2, 2]), 'label-orphan', "annotation 5: image_id '1' is not among the images")])
def test_an_annotation_without_an_image_of_the_file_is_left_out(tmp_path, bad, kind, what):
  assert finding_of(tmp_path, bad) == (kind, f'{FILE}: {what}', None)


@pytest.mark.parametrize('segmentation, kind, what', [
    (None, 'mask-missing', 'it has no segmentation'),
    ([], 'mask-missing', 'it has no segmentation'),
    ([[1, 1, 2, 2]], 'polygon-bad', 'polygon 0 has 4 numbers, not x and y of three points or more'),
    ([SQUARE, SQUARE[:7]], 'polygon-bad', 'polygon 1 has 7 numbers, not x and y of three points or more'),
    ([[1, 1, 2, 2, 3, float('inf')]], 'polygon-bad', 'polygon 0 has a coordinate that is not finite'),
    (SQUARE, 'polygon-bad', 'polygon 0 is not a list of numbers x, y, x, y, ...'),
    ([['1', 1, 2, 2, 3, 3]], 'polygon-bad', 'polygon 0 is not a list of numbers x, y, x, y, ...'),
    ('11,12', 'polygon-bad', 'polygon 0 is not a list of numbers x, y, x, y, ...'),
    ({'size': [12, 16], 'counts': [192]}, 'mask-empty', 'the mask has no pixel'),
    ({'size': [16, 12], 'counts': [0, 192]}, 'mask-size',
     'the mask has size [16, 12], its image [12, 16], both (h, w)'),
    ({'size': [12, 16], 'counts': [0, 7]}, 'rle-bad', 'run_lengths: the counts sum to 7, but size [12, 16] has 192')])
def test_a_bad_mask_is_left_out_where_masks_are_asked_for(tmp_path, segmentation, kind, what):
  bad = annotation(5, 1, 3, [1, 1, 2, 2], segmentation=segmentation)
  found_kind, text, item = finding_of(tmp_path, bad, masks=True)
  assert (found_kind, item) == (kind, 0)
  assert text.startswith(f'{FILE}: annotation 5: {what}')


def test_a_bad_mask_does_not_matter_to_boxes(tmp_path):
  bad = annotation(5, 1, 3, [1, 1, 2, 2], segmentation=[[1]])
  assert coco.read('train', path=coco_set(tmp_path, [bad])).findings == ()


def test_a_box_that_leaves_the_image_stays_and_is_told_of_unless_it_is_rounding(tmp_path):
  labelled = coco.read('train', path=coco_set(tmp_path, [
      annotation(1, 1, 3, [10, 2, 8, 4]), annotation(2, 1, 3, [10, 2, 6.4, 4])]))
  assert [each.box for each in labelled.records[0].objects] == [(10, 2, 18, 6), (10, 2, 16.4, 6)]
  (found,) = labelled.findings
  assert found.kind == 'box-clipped' and found.rule.severity == 'warning'
  assert str(found) == f'{FILE}: annotation 1: the box (10, 2, 18, 6) leaves the image of 16 x 12 by 2 pixels'


def test_ids_that_are_0_or_stand_twice_are_told_of(tmp_path):
  labelled = coco.read('train', path=coco_set(tmp_path, [
      annotation(0, 1, 3, [1, 1, 2, 2]), annotation(4, 1, 3, [1, 1, 2, 2]), annotation(4, 2, 3, [1, 1, 2, 2])]))
  assert kinds(labelled) == [
      ('annotation-id-0', f'{FILE}: annotation 0'), ('annotation-id-twice', f'{FILE}: annotation 4')]
  assert sum(len(record.objects) for record in labelled.records) == 3


def test_corners_in_place_of_width_and_height_are_not_guessed_but_refused(tmp_path):
  corners = [[6, 5, 15, 11], [8, 2, 14, 12], [9, 6, 16, 12], [1, 1, 5, 5]]
  labelled = coco.read('train', path=coco_set(tmp_path, [annotation(k, 1, 3, box) for k, box in enumerate(corners, 1)]))
  (found,) = [found for found in labelled.findings if found.kind == 'box-format']
  assert str(found) == (f"{FILE}: 3 of 4 boxes leave their image when read as x, y, width, height, COCO's order, and "
                        'none as x1, y1, x2, y2')
  with pytest.raises(ValueError, match='boxes leave their image when read as x, y, width, height'):
    LabelledSource(labelled)


def test_boxes_of_large_objects_at_the_border_are_not_taken_for_corners(tmp_path):
  boxes = [[6, 5, 15, 11], [8, 2, 14, 12], [9, 6, 16, 12], [9, 6, 5, 5]]
  labelled = coco.read('train', path=coco_set(tmp_path, [annotation(k, 1, 3, box) for k, box in enumerate(boxes, 1)]))
  assert {found.kind for found in labelled.findings} == {'box-clipped'}


def test_a_file_that_states_another_box_format_is_refused(tmp_path):
  coco_set(tmp_path, [], bbox_format='xyxy')
  with pytest.raises(ValueError, match="it says bbox_format 'xyxy'; COCO's boxes are x, y, width, height: convert"):
    coco.read('train', path=tmp_path)
  coco_set(tmp_path, [], bbox_format='xywh')
  assert len(coco.read('train', path=tmp_path).records) == 2


def test_an_image_without_a_file_is_left_out_with_its_annotations(tmp_path):
  coco_set(tmp_path, [annotation(1, 1, 3, [1, 1, 2, 2]), annotation(2, 2, 3, [1, 1, 2, 2])])
  (tmp_path / 'train' / 'a.png').unlink()
  labelled = coco.read('train', path=tmp_path)
  assert [record.name for record in labelled.records] == ['train/b.png']
  assert [str(found) for found in labelled.findings] == [f'{FILE}: image 1: train/a.png does not exist']


def test_an_entry_of_an_image_that_is_no_image_is_left_out(tmp_path):
  images = [coco_image(1, 'a.png'), coco_image(1, 'b.png'), {'id': 3}, 'text']
  coco_set(tmp_path, [annotation(1, 1, 3, [1, 1, 2, 2])], images=images, files=False)
  write_image(tmp_path / 'train' / 'a.png')
  labelled = coco.read('train', path=tmp_path)
  assert [str(found) for found in labelled.findings] == [
      f'{FILE}: image 1: the id stands twice, again for b.png',
      f'{FILE}: images[2]: it is no object with id and file_name',
      f'{FILE}: images[3]: it is no object with id and file_name']
  assert [len(record.objects) for record in labelled.records] == [1]


def test_a_size_that_is_not_stated_comes_from_the_image_and_a_corrupt_one_is_left_out(tmp_path):
  images = [{'id': 1, 'file_name': 'a.png'}, {'id': 2, 'file_name': 'b.png', 'height': 0, 'width': 0}]
  coco_set(tmp_path, [], images=images)
  write_text(tmp_path / 'train' / 'b.png', 'no image')
  labelled = coco.read('train', path=tmp_path)
  assert [(record.id, record.size) for record in labelled.records] == [(1, builders.SIZE)]
  assert kinds(labelled) == [('image-corrupt', f'{FILE}: image 2')]


@pytest.mark.parametrize('file, folder', [
    ('annotations/instances_train2017.json', 'train2017'), ('annotations/train.json', 'images/train'),
    ('train.json', 'images'), ('train/_annotations.coco.json', 'train'), ('annotations/training.json', '.'),
    ('annotations/instances_train.json', 'annotations')])
def test_the_usual_layouts_are_found(tmp_path, file, folder):
  write_text(tmp_path / file, json.dumps({'images': [coco_image(1, 'a.png')], 'annotations': [], 'categories': []}))
  write_image(tmp_path / folder / 'a.png')
  assert [record.path for record in coco.read('train', path=tmp_path).records] == [tmp_path / folder / 'a.png']


def test_valid_stands_for_val_and_backslashes_for_slashes(tmp_path):
  coco_set(tmp_path, [], images=[coco_image(1, 'sub\\a.png')], split='valid', files=False)
  write_image(tmp_path / 'valid' / 'sub' / 'a.png')
  assert [record.name for record in coco.read('val', path=tmp_path).records] == ['valid/sub/a.png']


def test_several_candidates_are_listed_and_an_option_decides(tmp_path):
  coco_set(tmp_path, [])
  coco_set(tmp_path, [], split='train2014')
  with pytest.raises(ValueError, match=r'coco: several annotations of split train in .*: .*instances_train\.json, '
                                       r'.*instances_train2014\.json; give data\.annotations'):
    coco.read('train', path=tmp_path)
  options = {'path': tmp_path, 'annotations': 'annotations/instances_{split}2014.json'}
  with pytest.raises(ValueError, match=r"coco: several folders with the images of .*, the first is 'a\.png': "
                                       r'.*/train, .*/train2014; give data\.images'):
    coco.read('train', **options)
  for images in ('{split}2014', {'train': 'train2014'}):
    labelled = coco.read('train', images=images, **options)
    assert [record.name for record in labelled.records] == ['train2014/a.png', 'train2014/b.png']


def test_one_annotation_file_for_both_splits_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"data\.annotations 'all\.json' is the same for train and val"):
    coco.read('train', path=coco_set(tmp_path, []), annotations='all.json')
  with pytest.raises(ValueError, match=r'data\.annotations has nothing for split val, only for train; add it'):
    coco.read('val', path=tmp_path, annotations={'train': FILE})
  with pytest.raises(ValueError, match=r'data\.annotations: .*x_val\.json does not exist; give a path below'):
    coco.read('val', path=tmp_path, annotations='x_{split}.json')


def test_what_is_missing_is_named_with_what_was_looked_for(tmp_path):
  with pytest.raises(ValueError, match=r'coco: no annotations of split val in .*; give data\.annotations, for example '
                                       r"'annotations/instances_\{split\}\.json' \(looked for .*val/_annotations"):
    coco.read('val', path=coco_set(tmp_path, []))
  (tmp_path / 'train').rename(tmp_path / 'photos')
  with pytest.raises(ValueError, match=r"coco: no folders with the images of .*, the first is 'a\.png'; give data\.im"):
    coco.read('train', path=tmp_path)


@pytest.mark.parametrize('text, message', [
    ('{"images": [],\n "annotations": [}', r':2: not JSON: Expecting value \(column 18\); write the file again'),
    ('[]', r": no COCO annotations: it has no list 'images'; it needs images, annotations and categories"),
    ('{"images": [], "annotations": []}', r": no COCO annotations: it has no list 'categories'"),
    ('{"images": [], "annotations": [], "categories": [{"id": "1", "name": "cat"}]}',
     r': categories\[0\] is no object with a whole number as id and a name'),
    ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]}',
     r': class name cat stands twice; give each class its own name')])
def test_a_file_that_cannot_be_read_is_refused_with_its_place(tmp_path, text, message):
  write_text(tmp_path / 'train.json', text)
  with pytest.raises(ValueError, match=r'train\.json' + message):
    coco.read('train', path=tmp_path)


def test_a_file_that_is_not_utf8_is_refused_with_its_line(tmp_path):
  (tmp_path / 'train.json').write_bytes(b'{"images": [\n"\xff"]}')
  with pytest.raises(ValueError, match=r'train\.json:2: not UTF-8 \(byte 0xff\); save it as UTF-8'):
    coco.read('train', path=tmp_path)


def test_an_unknown_split_or_folder_is_refused(tmp_path):
  with pytest.raises(ValueError, match="coco has no split 'test'; known: train, val"):
    coco.read('test', path=coco_set(tmp_path, []))
  with pytest.raises(ValueError, match=r'coco: is a file: .*a\.png; give data\.path, the folder of the data set'):
    coco.read('train', path=tmp_path / 'train' / 'a.png')
