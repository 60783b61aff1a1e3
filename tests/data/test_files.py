"""The source of labelled image files: what a sample and a target hold, and what is refused."""

import inspect
import json
import pathlib
import pickle

import numpy as np
from PIL import Image
import pytest

from tests.data import builders
from vision_jax import data
from vision_jax.conventions import ClassMap
from vision_jax.data.files import LabelledSource, image_size, read_segmentation, source_of
from vision_jax.data.records import Finding, Labelled, Object, Record, object_mask
from vision_jax.host import rle

CLASSES = ClassMap(('cat', 'dog'), (3, 7))
POLYGON = {'polygons': ([1.0, 2.0, 9.0, 2.0, 9.0, 8.0],)}
OBJECTS = (
    Object((-1.0, 2.0, 9.5, 8.0), 1, 'a.txt:1', POLYGON, area=24.0, id=5),
    Object((0.0, 0.0, 16.0, 12.0), 0, 'a.txt:2', {'rle': rle.encode(np.ones(builders.SIZE, bool))}, crowd=True,
           area=192.0, id=6),
    Object((3.0, 3.0, 5.0, 7.0), 0, 'a.txt:3', {'polygons': ([3, 3, 5, 3, 5, 7], [4, 4, 5, 4, 5, 5])}, difficult=True,
           area=8.0, id=0),
)


def labelled_of(*records, fields=('boxes', 'labels'), findings=(), root=pathlib.Path('cats'), **more):
  return Labelled(records, CLASSES, fields, findings, root, 'yolo', **more)


def one_image(folder, objects=OBJECTS, *, size=builders.SIZE, fields=('boxes', 'labels', 'masks'), **more):
  path = builders.write_image(folder / 'images' / 'a.png')
  return labelled_of(Record(path, 'images/a.png', size, objects=objects, **more), fields=fields, root=folder)


def test_a_sample_has_clipped_boxes_and_neither_crowds_nor_difficult_objects(tmp_path):
  sample = LabelledSource(one_image(tmp_path))[0]
  np.testing.assert_array_equal(sample['image'], builders.pixels())
  assert sample['boxes'].dtype == np.float32 and sample['labels'].dtype == np.int32
  assert sample['boxes'].tolist() == [[0.0, 2.0, 9.5, 8.0]]
  assert sample['labels'].tolist() == [1]
  np.testing.assert_array_equal(sample['masks'], [object_mask(POLYGON, builders.SIZE)])


def test_difficult_objects_are_trained_on_when_asked_for(tmp_path):
  sample = LabelledSource(one_image(tmp_path), difficult='train')[0]
  assert sample['labels'].tolist() == [1, 0]
  assert sample['masks'].shape == (2, *builders.SIZE)
  np.testing.assert_array_equal(sample['masks'][1], object_mask(OBJECTS[2].mask, builders.SIZE))


def test_a_target_has_all_objects_as_the_file_has_them(tmp_path):
  target = LabelledSource(one_image(tmp_path)).target(0)
  assert target['boxes'].dtype == np.float64
  assert target['boxes'].tolist() == [list(each.box) for each in OBJECTS]
  assert target['labels'].tolist() == [1, 0, 0]
  assert target['crowd'].tolist() == [False, True, False]
  assert target['difficult'].tolist() == [False, False, True]
  assert target['area'].tolist() == [24.0, 192.0, 8.0]
  assert target['ids'].tolist() == [5, 6, 0]
  for mask, each in zip(target['masks'], OBJECTS, strict=True):
    np.testing.assert_array_equal(rle.decode(mask), object_mask(each.mask, builders.SIZE))


def test_a_target_has_neither_areas_nor_ids_where_the_file_has_none(tmp_path):
  target = LabelledSource(one_image(tmp_path, (Object((1, 1, 3, 4), 0, 'a.txt:1'),), fields=('boxes', 'labels')))
  assert set(target.target(0)) == {'boxes', 'labels', 'crowd', 'difficult'}


@pytest.mark.parametrize('fields, own', [(('boxes', 'labels'), 6.0), (('boxes', 'labels', 'masks'), None)])
def test_an_object_without_the_area_that_others_have_gets_its_own(tmp_path, fields, own):
  mask = {'polygons': ([1.0, 1.0, 3.0, 1.0, 3.0, 4.0],)}
  objects = (OBJECTS[0], Object((1.0, 1.0, 3.0, 4.0), 0, 'a.txt:2', mask))
  area = LabelledSource(one_image(tmp_path, objects, fields=fields)).target(0)['area']
  assert area.tolist() == [24.0, own or object_mask(mask, builders.SIZE).sum()]
  assert area[1] != 0


def test_an_image_without_objects_has_empty_fields(tmp_path):
  source = LabelledSource(one_image(tmp_path, ()))
  assert source[0]['boxes'].shape == (0, 4)
  assert source[0]['masks'].shape == (0, *builders.SIZE)
  assert source.target(0)['masks'] == []


def test_masks_of_images_whose_labels_state_no_size_are_as_large_as_the_file(tmp_path):
  target = LabelledSource(one_image(tmp_path, OBJECTS[:1], size=None)).target(0)
  np.testing.assert_array_equal(rle.decode(target['masks'][0]), object_mask(POLYGON, builders.SIZE))


def test_errors_in_the_labels_stop_with_the_first_three_and_their_number():
  found = tuple(Finding('box-zero', f'a.txt:{i}', 'the box is 0 pixels wide') for i in range(1, 6))
  labelled = labelled_of(findings=(Finding('box-clipped', 'a.txt:9', 'a warning'), *found))
  with pytest.raises(ValueError) as error:
    LabelledSource(labelled)
  assert str(error.value) == (
      '5 errors in the labels of cats (train): a.txt:1: the box is 0 pixels wide; a.txt:2: the box is 0 pixels wide; '
      'a.txt:3: the box is 0 pixels wide; ... and 2 more; mend them (run experiments/check_data.py to see everything), '
      'or leave them out with data.on_error=skip, which lists each skip')
  assert LabelledSource(labelled, on_error='skip').findings == labelled.findings


def test_warnings_and_notes_do_not_stop():
  found = Finding('box-clipped', 'a.txt:1', 'out by 2 pixels'), Finding('annotation-id-0', 'a.json: annotation 0', '0')
  assert LabelledSource(labelled_of(findings=found)).findings == found


def test_size_takes_the_first_images_and_refuses_more_than_there_are(tmp_path):
  records = tuple(Record(builders.write_image(tmp_path / f'{i}.png', i), f'{i}.png') for i in range(3))
  source = LabelledSource(labelled_of(*records), size=2)
  assert [source.name_of(i) for i in range(len(source))] == ['0.png', '1.png']
  with pytest.raises(ValueError, match='yolo: size 4 is out of range; the split train of cats has 3 images'):
    LabelledSource(labelled_of(*records), size=4)


@pytest.mark.parametrize('option, message', [
    ({'on_error': 'ignore'}, "data.on_error is 'ignore'; it is 'stop' or 'skip'"),
    ({'difficult': True}, "data.difficult is True; it is 'ignore' or 'train'")])
def test_an_unknown_value_of_an_option_is_refused(option, message):
  with pytest.raises(ValueError, match=message):
    LabelledSource(labelled_of(), **option)


def test_an_image_of_another_size_than_its_labels_say_is_refused(tmp_path):
  source = LabelledSource(one_image(tmp_path, size=(10, 20)))
  with pytest.raises(ValueError, match=r'a\.png is 16 x 12 pixels \(upright\), its labels say 20 x 10; label the'):
    source[0]


def test_an_image_that_its_exif_data_turn_must_be_labelled_upright(tmp_path):
  path = builders.write_image(tmp_path / 'a.jpg', orientation=6)
  upright = LabelledSource(labelled_of(Record(path, 'a.jpg', (16, 12))))
  assert upright[0]['image'].shape == (16, 12, 3)
  lying = LabelledSource(labelled_of(Record(path, 'a.jpg', (12, 16))))
  with pytest.raises(ValueError, match='a turn in its EXIF data swaps the two'):
    lying[0]


def test_the_size_of_an_image_is_that_of_its_upright_pixels(tmp_path):
  for orientation in range(1, 9):
    path = builders.write_image(tmp_path / f'{orientation}.jpg', orientation=orientation)
    assert image_size(path) == data.read_image(path).shape[:2]
  builders.write_text(tmp_path / 'b.png', 'text')
  with pytest.raises(ValueError, match=r'cannot read image .*b\.png: not an image'):
    image_size(tmp_path / 'b.png')


def test_a_pickled_source_gives_the_same_samples_without_an_object_for_each_annotation(tmp_path):
  source = LabelledSource(one_image(tmp_path, OBJECTS * 200))
  pickled = pickle.dumps(source)
  assert b'vision_jax.data.records' not in pickled
  again = pickle.loads(pickled)
  assert source.labelled is not None and again.labelled is None
  assert again.name_of(0) == 'images/a.png' and again.path_of(0) == source.path_of(0)
  for one, other in ((source[0], again[0]), (source.target(0), again.target(0))):
    assert one.keys() == other.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], other[name])


def test_an_index_outside_is_refused(tmp_path):
  source = LabelledSource(one_image(tmp_path))
  for index in (-1, 1):
    with pytest.raises(IndexError, match=f'image {index} of 1'):
      source[index]


def test_a_damaged_mask_names_its_image_and_object(tmp_path):
  bad = Object((1, 1, 3, 4), 0, 'a.txt:2', {'rle': {'size': list(builders.SIZE), 'counts': [5]}})
  with pytest.raises(ValueError, match=r'images/a\.png: object 1: .* the counts sum to 5'):
    LabelledSource(one_image(tmp_path, (OBJECTS[0], bad)))[0]


def test_a_class_label_is_an_int(tmp_path):
  source = LabelledSource(one_image(tmp_path, (), size=None, fields=('label',), label=1))
  assert source.fields == ('label',)
  assert source.target(0) == {'label': 1}
  assert source[0]['label'] == 1 and set(source[0]) == {'image', 'label'}


def test_a_segmentation_has_classes_and_void(tmp_path):
  values = np.zeros(builders.SIZE, np.uint8)
  values[3:5, 2:9], values[0] = 9, 255
  Image.fromarray(values).save(tmp_path / 'mask.png')
  record = Record(builders.write_image(tmp_path / 'a.png'), 'a.png', segmentation={'path': tmp_path / 'mask.png'})
  labelled = labelled_of(record, fields=('segmentation',), segmentation_values={0: 0, 9: 1, 255: -1})
  source = LabelledSource(labelled)
  assert source.fields == ('segmentation', 'pixels_valid')
  for found in (source[0], source.target(0)):
    np.testing.assert_array_equal(found['segmentation'], values == 9)
    np.testing.assert_array_equal(found['pixels_valid'], values != 255)
    assert found['segmentation'].dtype == np.int32


def test_a_mask_value_that_is_no_class_is_refused_with_the_values_that_are(tmp_path):
  Image.fromarray(np.array([[0, 1], [4, 6]], np.uint8)).save(tmp_path / 'mask.png')
  with pytest.raises(ValueError, match=r'mask\.png has the value 4, 6, which is no class; the values .* are 0, 1, 255'):
    read_segmentation(tmp_path / 'mask.png', {0: 0, 1: 1, 255: -1})


def test_a_segmentation_of_another_size_than_its_image_is_refused(tmp_path):
  Image.fromarray(np.zeros((12, 12), np.uint8)).save(tmp_path / 'mask.png')
  record = Record(builders.write_image(tmp_path / 'a.png'), 'a.png', segmentation={'path': tmp_path / 'mask.png'})
  source = LabelledSource(labelled_of(record, fields=('segmentation',), segmentation_values={0: 0}))
  with pytest.raises(ValueError, match=r'mask\.png is 12 x 12 pixels and its image 16 x 12; write the mask'):
    source[0]


def test_a_source_has_the_options_of_its_reader_and_its_own():
  def read(split, *, path, masks=False):
    return labelled_of(split=split)

  source = source_of(read, 'difficult')
  assert list(inspect.signature(source).parameters) == ['split', 'path', 'masks', 'on_error', 'size', 'difficult']
  assert len(source('val', path='x', masks=True, on_error='skip', difficult='train')) == 0
  with pytest.raises(ValueError, match="has no option 'mask'; did you mean masks"):
    source('val', path='x', mask=True)
  with pytest.raises(ValueError, match=r'needs data\.path; give it'):
    source('val')


def test_the_loader_batches_labelled_files(tmp_path):
  builders.coco_set(tmp_path, [builders.coco_annotation(1, 1, 7, [2, 3, 4, 5])])
  source = data.create('coco', 'train', path=tmp_path)
  batch = next(iter(data.Loader(source, batch_size=2, canvas=(16, 16), workers=0).eval_batches()))
  assert batch['boxes'][0, 0].tolist() == [2, 3, 6, 8]
  assert batch['boxes_valid'].sum(1).tolist() == [1, 0]
  assert json.dumps(batch['image_size'].tolist()) == '[[12, 16], [12, 16]]'
