"""One mask image an object: boxes and masks from them, and what is said about bad ones."""

import pickle

import numpy as np
import pytest

from tests.data.builders import SIZE, kinds, write_image, write_mask
from vision_jax import data
from vision_jax.data.files import LabelledSource
from vision_jax.data.formats import object_masks
from vision_jax.host import rle


def rectangle(x1, y1, x2, y2, size=SIZE):
  mask = np.zeros(size, np.uint8)
  mask[y1:y2, x1:x2] = 255
  return mask


def one(folder, name, masks, seed=0):
  """<name>/images/<name>.png and <name>/masks/<k>.png."""
  write_image(folder / name / 'images' / f'{name}.png', seed)
  for k, mask in enumerate(masks):
    write_mask(folder / name / 'masks' / f'{k}.png', mask)
  return folder


def test_boxes_are_tight_around_the_masks(tmp_path):
  masks = [rectangle(2, 3, 9, 7), rectangle(15, 11, 16, 12)]
  masks[0][3, 2] = 0  # a corner: the box stays
  one(tmp_path, 'a', masks)
  one(tmp_path, 'b', [])
  labelled = object_masks.read('train', path=tmp_path)
  (record,) = labelled.records
  assert (record.name, record.size, record.id, record.where) == ('a/images/a.png', SIZE, 'a', 'a/masks')
  assert [(each.box, each.label, each.where) for each in record.objects] == [
      ((2, 3, 9, 7), 0, 'a/masks/0.png'), ((15, 11, 16, 12), 0, 'a/masks/1.png')]
  assert labelled.classes.names == ('object',) and labelled.fields == ('boxes', 'labels', 'masks')
  source = LabelledSource(labelled)
  np.testing.assert_array_equal(source[0]['masks'], np.array(masks) > 0)
  assert source[0]['labels'].tolist() == [0, 0]
  target = pickle.loads(pickle.dumps(source)).target(0)
  assert target['masks'] == [rle.encode(mask > 0) for mask in masks]
  assert target['boxes'].tolist() == [[2, 3, 9, 7], [15, 11, 16, 12]]


def test_the_name_of_the_class_and_boxes_alone_are_options(tmp_path):
  for name in ('a', 'b'):
    one(tmp_path, name, [rectangle(1, 1, 4, 5)])
  labelled = object_masks.read('train', path=tmp_path, class_name='nucleus', masks=False)
  assert labelled.classes.names == ('nucleus',) and labelled.fields == ('boxes', 'labels')
  assert set(LabelledSource(labelled)[0]) == {'image', 'boxes', 'labels'}
  assert labelled.records[0].objects[0].mask is None


def test_the_last_fifth_by_id_in_natural_order_is_val_or_the_folders_say(tmp_path):
  for k in (2, 10, 1, 3, 9):
    one(tmp_path / 'flat', f'i{k}', [rectangle(0, 0, 2, 2)])
  (tmp_path / 'flat' / 'notes').mkdir()
  train, val = (object_masks.read(split, path=tmp_path / 'flat') for split in ('train', 'val'))
  assert [record.id for record in train.records] == ['i1', 'i2', 'i3', 'i9']
  assert [record.id for record in val.records] == ['i10']
  one(tmp_path / 'two' / 'train', 'a', [rectangle(0, 0, 2, 2)])
  with pytest.raises(ValueError, match='object_masks: no folders of split val in .*two; lay the images out as '):
    object_masks.read('val', path=tmp_path / 'two')
  one(tmp_path / 'two' / 'valid', 'b', [rectangle(0, 0, 2, 2)])
  (record,) = object_masks.read('val', path=tmp_path / 'two').records
  assert record.name == 'valid/b/images/b.png'


def test_bad_masks_and_images_are_told_of_and_left_out(tmp_path):
  one(tmp_path, 'a', [rectangle(2, 3, 9, 7), rectangle(0, 0, 0, 0), rectangle(1, 1, 3, 3, (16, 12))])
  (tmp_path / 'a' / 'masks' / '3.png').write_bytes(b'no image')
  one(tmp_path, 'b', [rectangle(1, 1, 2, 2)])
  write_image(tmp_path / 'b' / 'images' / 'second.png')
  one(tmp_path, 'c', [rectangle(1, 1, 2, 2)])
  (tmp_path / 'c' / 'images' / 'c.png').unlink()
  one(tmp_path, 'd', [rectangle(1, 1, 2, 2)])
  (tmp_path / 'd' / 'images' / 'd.png').write_bytes(b'')
  one(tmp_path, 'e', [])
  write_mask(tmp_path / 'f' / 'masks' / '0.png', rectangle(1, 1, 2, 2))
  one(tmp_path, 'z', [rectangle(1, 1, 2, 2)])
  labelled = object_masks.read('train', path=tmp_path, val_share=0.1)
  assert kinds(labelled) == [
      ('mask-empty', 'a/masks/1.png'), ('mask-size', 'a/masks/2.png'), ('mask-corrupt', 'a/masks/3.png'),
      ('image-id-twice', 'b/images'), ('image-missing', 'c/images'), ('image-corrupt', 'd/images/d.png'),
      ('image-unlabelled', 'e/images/e.png'), ('image-missing', 'f/images')]
  assert [(record.id, len(record.objects)) for record in labelled.records] == [('a', 1), ('e', 0)]
  assert [finding.item for finding in labelled.findings] == [0, 0, 0, None, None, None, 1, None]
  assert str(labelled.findings[1]) == 'a/masks/2.png: the mask has size [16, 12], its image [12, 16], both (h, w)'
  assert str(labelled.findings[3]) == 'b/images: several images: b.png, second.png'
  with pytest.raises(ValueError, match='7 errors in the labels of .*: a/masks/1.png: the mask has no pixel; '):
    data.create('object_masks', 'train', path=tmp_path, val_share=0.1)


def test_a_folder_of_another_layout_is_answered_in_one_line(tmp_path):
  write_image(tmp_path / 'cat' / 'a.png')
  with pytest.raises(ValueError, match='object_masks: no folder with images in .*; lay them out as <id>/images and '):
    object_masks.read('train', path=tmp_path)
  with pytest.raises(ValueError, match='object_masks: no such folder: .*nowhere'):
    object_masks.read('train', path=tmp_path / 'nowhere')
