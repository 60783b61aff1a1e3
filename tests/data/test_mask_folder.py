"""Folders of images and masks: which belong together, what pixel values mean, and what is said about bad ones."""

import pickle

import numpy as np
from PIL import Image
import pytest

from tests.data.builders import SIZE, kinds, pixels, write_image, write_mask, write_text
from vision_jax import data
from vision_jax.data.files import LabelledSource
from vision_jax.data.formats import mask_folder

PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0, *(0,) * (253 * 3)]


def stripes(*values):
  """uint8 [12, 16] with these values in columns of equal width."""
  return np.repeat(np.array(values, np.uint8), -(-SIZE[1] // len(values)))[None, :SIZE[1]].repeat(SIZE[0], 0)


def flat(folder, masks, *, palette=None):
  """images/<name>.jpg and masks/<name>.png of {name: values of the mask, or None for none}."""
  for seed, (name, values) in enumerate(masks.items()):
    write_image(folder / 'images' / f'{name}.jpg', seed)
    if values is not None:
      write_mask(folder / 'masks' / f'{name}.png', values, palette=palette)
  return folder


def names_of(labelled):
  return [record.name for record in labelled.records]


def reading_of(labelled):
  """The note that says how the values were taken."""
  (found,) = (finding for finding in labelled.findings if finding.kind == 'mask-reading')
  return found.what


def refused(folder, split='train', **options):
  with pytest.raises(ValueError) as caught:
    mask_folder.read(split, path=folder, **options)
  assert '\n' not in str(caught.value)
  return str(caught.value).replace(str(folder), 'ROOT')


def test_the_last_fifth_in_natural_order_is_val(tmp_path):
  flat(tmp_path, {f'i{k}': stripes(0, 1) for k in (9, 10, 1, 2, 3)})
  train, val = (mask_folder.read(split, path=tmp_path) for split in ('train', 'val'))
  assert names_of(train) == [f'images/i{k}.jpg' for k in (1, 2, 3, 9)] and names_of(val) == ['images/i10.jpg']
  assert train.fields == ('segmentation', 'pixels_valid') and train.records[0].where == 'masks/i1.png'
  assert train.classes.names == ('0', '1')


def test_values_are_class_ids_with_255_for_void(tmp_path):
  flat(tmp_path, {'a': stripes(0, 2, 255), 'b': stripes(0, 7)})
  labelled = mask_folder.read('train', path=tmp_path)
  assert (labelled.classes.names, labelled.classes.ids) == (('0', '2', '7'), (0, 2, 7))  # 7 stands in val alone
  assert reading_of(labelled) == "taken as 'ids': the 2 masks looked at have the values 0, 2, 7, 255"
  source = LabelledSource(labelled)
  sample = source[0]
  assert set(sample) == {'image', *source.fields} and sample['segmentation'].dtype == np.int32
  np.testing.assert_array_equal(sample['pixels_valid'], stripes(0, 2, 255) != 255)
  np.testing.assert_array_equal(np.where(sample['pixels_valid'], sample['segmentation'], 9), stripes(0, 1, 9))
  np.testing.assert_array_equal(source.target(0)['segmentation'], sample['segmentation'])
  np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[0]['segmentation'], sample['segmentation'])


def test_the_image_is_the_one_of_the_masks_name(tmp_path):
  for seed, name in enumerate(('b', 'a')):
    write_image(tmp_path / 'images' / f'{name}.png', seed)
    write_mask(tmp_path / 'masks' / f'{name}.png', stripes(seed))
  source = LabelledSource(mask_folder.read('train', path=tmp_path))
  assert source.name_of(0) == 'images/a.png'
  np.testing.assert_array_equal(source[0]['image'], pixels(1))
  assert source.classes.ids == (0, 1) and source[0]['segmentation'].tolist() == np.ones(SIZE, int).tolist()


def test_a_palette_is_read_by_place_and_not_by_colour(tmp_path):
  flat(tmp_path, {'a': stripes(0, 2, 255), 'b': stripes(1)}, palette=PALETTE)
  labelled = mask_folder.read('train', path=tmp_path)
  assert "taken as 'palette'" in reading_of(labelled) and labelled.classes.ids == (0, 1, 2)
  np.testing.assert_array_equal(LabelledSource(labelled)[0]['segmentation'], stripes(0, 2, 0))
  assert mask_folder.read('train', path=tmp_path, mask_values='palette').classes == labelled.classes


@pytest.mark.parametrize('values', ['auto', 'binary'])
def test_0_and_255_are_background_and_object(tmp_path, values):
  flat(tmp_path, {'a': stripes(0, 255), 'b': stripes(0)})
  labelled = mask_folder.read('train', path=tmp_path, mask_values=values)
  assert (labelled.classes.names, labelled.classes.ids) == (('background', 'object'), (0, 255))
  sample = LabelledSource(labelled)[0]
  np.testing.assert_array_equal(sample['segmentation'], stripes(0, 1))
  assert sample['pixels_valid'].all()
  assert kinds(labelled) == ([('mask-reading', 'masks')] if values == 'auto' else [])
  named = mask_folder.read('train', path=tmp_path, mask_values=values, names=('skin', 'lesion'))
  assert named.classes.names == ('skin', 'lesion') and named.classes.ids == (0, 255)


def test_0_and_255_are_a_class_and_void_where_there_are_three_names(tmp_path):
  flat(tmp_path, {'a': stripes(0, 255), 'b': stripes(0)})
  labelled = mask_folder.read('train', path=tmp_path, names=('road', 'car', 'sky'))
  assert "taken as 'ids'" in reading_of(labelled) and labelled.classes.ids == (0, 1, 2)
  np.testing.assert_array_equal(LabelledSource(labelled)[0]['pixels_valid'], stripes(1, 0))


def test_black_and_white_masks_of_one_bit_can_be_binary(tmp_path):
  flat(tmp_path, {'a': stripes(0, 1).astype(bool), 'b': stripes(0).astype(bool)})
  source = LabelledSource(mask_folder.read('train', path=tmp_path, mask_values='binary'))
  np.testing.assert_array_equal(source[0]['segmentation'], stripes(0, 1))


def test_16_bit_masks_hold_ids_above_255(tmp_path):
  flat(tmp_path, {'a': stripes(0, 1).astype(np.uint16) * 1000, 'b': stripes(0)})
  labelled = mask_folder.read('train', path=tmp_path)
  assert labelled.classes.ids == (0, 1000)
  np.testing.assert_array_equal(LabelledSource(labelled)[0]['segmentation'], stripes(0, 1))


def test_names_come_from_the_option_or_a_file_and_may_have_ids(tmp_path):
  flat(tmp_path, {'a': stripes(0, 2, 255), 'b': stripes(2)})
  labelled = mask_folder.read('train', path=tmp_path, mask_values='ids', names=('road', 'car', 'sky'))
  assert labelled.classes.names == ('road', 'car', 'sky') and labelled.findings == ()
  np.testing.assert_array_equal(LabelledSource(labelled)[0]['segmentation'], stripes(0, 2, 0))
  write_text(tmp_path / 'names.txt', 'road\ncar\n\nsky\n')
  assert mask_folder.read('train', path=tmp_path, mask_values='ids', names='names.txt').classes == labelled.classes
  for text in ('2 open sky\n0 road\n', '2: open sky\n0: road', '0,road\n2, open sky\n'):
    write_text(tmp_path / 'ids.txt', text)
    sparse = mask_folder.read('train', path=tmp_path, names='ids.txt')
    assert (sparse.classes.names, sparse.classes.ids) == (('road', 'open sky'), (0, 2))
    np.testing.assert_array_equal(LabelledSource(sparse)[0]['segmentation'], stripes(0, 1, 0))
  write_text(tmp_path / 'empty.txt', '\n')
  assert refused(tmp_path, names='empty.txt') == 'ROOT/empty.txt: there is no name in it; write a name in each line'
  write_text(tmp_path / 'twice.txt', 'road\nroad\n')
  assert refused(tmp_path, names='twice.txt').startswith('ROOT/twice.txt: class name road stands twice; ')


def test_a_value_without_a_class_is_an_error_and_its_image_is_left_out(tmp_path):
  flat(tmp_path, {'a': stripes(0, 3), 'b': stripes(0, 1), 'c': stripes(0)})
  labelled = mask_folder.read('train', path=tmp_path, names=('road', 'car'))
  assert [str(finding) for finding in labelled.findings][1:] == ['masks/a.png: the value 3 is no class']
  assert kinds(labelled)[1] == ('mask-values', 'masks/a.png') and names_of(labelled) == ['images/b.jpg']
  with pytest.raises(ValueError, match='1 error in the labels of .*: masks/a.png: the value 3 is no class; mend it'):
    data.create('mask_folder', 'train', path=tmp_path, names=('road', 'car'))
  unseen = LabelledSource(mask_folder.read('train', path=tmp_path, mask_values='ids', names=('road', 'car')))
  with pytest.raises(ValueError, match='mask .*/masks/a.png has the value 3, which is no class'):
    unseen[0]


def test_void_is_an_option(tmp_path):
  flat(tmp_path, {'a': stripes(0, 1, 2, 255), 'b': stripes(1)})
  source = LabelledSource(mask_folder.read('train', path=tmp_path, void=(0, 255)))
  assert source.classes.ids == (1, 2)
  np.testing.assert_array_equal(source[0]['pixels_valid'], np.isin(stripes(0, 1, 2, 255), (1, 2)))
  assert mask_folder.read('train', path=tmp_path, void=None).classes.ids == (0, 1, 2, 255)
  assert refused(tmp_path, void=1, names=('road', 'car', 'sky')).startswith(
      "mask_folder: 1 is data.void and the id of class 'car'; give data.void another value")
  flat(tmp_path / 'blank', {'a': stripes(255), 'b': stripes(255)})
  assert refused(tmp_path / 'blank', mask_values='ids').startswith(
      'mask_folder: the masks have no value but that of void, 255; give data.void')


def test_what_has_no_partner_is_told_of_once_and_not_used(tmp_path):
  flat(tmp_path, {'a': stripes(0), 'b': stripes(0, 1), 'c': None, 'd': stripes(1)})
  write_mask(tmp_path / 'masks' / 'z.png', stripes(0))
  write_image(tmp_path / 'images' / 'a.png')
  train = mask_folder.read('train', path=tmp_path)
  assert kinds(train)[:-1] == [('image-id-twice', 'images/a.png'), ('label-orphan', 'masks/z.png'),
                               ('image-extra', 'images/c.jpg')]
  assert names_of(train) == ['images/a.jpg', 'images/b.jpg']
  assert kinds(mask_folder.read('val', path=tmp_path)) == [('mask-reading', 'masks')]


@pytest.mark.parametrize('images, masks', [
    ('images/{}', 'masks/{}'), ('{}/images', '{}/masks'), ('images/{}', '{}/masks')])
@pytest.mark.parametrize('val', ['val', 'validation'])
def test_folders_of_train_and_val_divide_the_data(tmp_path, images, masks, val):
  for split, count in (('train', 3), (val, 1)):
    for k in range(count):
      write_image(tmp_path / images.format(split) / 'city' / f'{k}.png')
      write_mask(tmp_path / masks.format(split) / 'city' / f'{k}.png', stripes(k, k))
  train, second = (mask_folder.read(split, path=tmp_path) for split in ('train', 'val'))
  assert names_of(train) == [f'{images.format("train")}/city/{k}.png' for k in range(3)]
  assert names_of(second) == [f'{images.format(val)}/city/0.png']
  assert train.classes == second.classes and second.classes.ids == (0, 1, 2)


def test_lists_divide_the_data_and_name_images_with_or_without_folder_and_suffix(tmp_path):
  flat(tmp_path, {name: stripes(0, 1) for name in 'abcde'} | {'bare': None})
  write_text(tmp_path / 'train.txt', 'd\nimages/a.jpg\n\nb.jpg\nnowhere\nbare\nd\n')
  labelled = mask_folder.read('train', path=tmp_path, mask_values='ids', names=('road', 'car'))
  assert names_of(labelled) == ['images/d.jpg', 'images/a.jpg', 'images/b.jpg']
  assert [(kind, where) for kind, where in kinds(labelled)] == [
      ('image-missing', 'train.txt:5'), ('image-id-twice', 'train.txt:7'), ('label-missing', 'images/bare.jpg')]
  assert refused(tmp_path, 'val') == 'mask_folder: no lists of split val in ROOT; write val.txt beside the other'
  write_text(tmp_path / 'sets' / 'val.txt', 'c\n')
  assert names_of(mask_folder.read('val', path=tmp_path, lists={'val': 'sets/val.txt'})) == ['images/c.jpg']
  flat(tmp_path, {'f_left': None})
  write_mask(tmp_path / 'masks' / 'f.png', stripes(0))
  write_text(tmp_path / 'val.txt', 'f_left.jpg\n')
  assert names_of(mask_folder.read('val', path=tmp_path, image_tail='_left')) == ['images/f_left.jpg']


def test_folders_lists_and_tails_can_be_given(tmp_path):
  for split in ('train', 'val'):
    write_image(tmp_path / 'left' / split / 'a_left.png')
    write_mask(tmp_path / 'fine' / split / 'a_ids.png', stripes(0, 1))
    write_mask(tmp_path / 'fine' / split / 'a_colour.png', stripes(0, 99))
  write_image(tmp_path / 'left' / 'train' / 'b.png')
  labelled = mask_folder.read('train', path=tmp_path, images='left/{split}', mask_images='fine/{split}',
                              image_tail='_left', mask_tail='_ids')
  assert [(r.name, r.where) for r in labelled.records] == [('left/train/a_left.png', 'fine/train/a_ids.png')]
  assert labelled.classes.ids == (0, 1) and kinds(labelled)[0] == ('image-extra', 'left/train/b.png')
  assert refused(tmp_path, images='right/{split}') == (
      'mask_folder: data.images: ROOT/right/train does not exist; give a path below ROOT')


def test_images_and_masks_may_lie_in_one_folder_if_their_names_differ(tmp_path):
  for k in range(5):
    write_image(tmp_path / f'{k}.jpg', k)
    write_mask(tmp_path / f'{k}_mask.png', stripes(0, 1))
  labelled = mask_folder.read('train', path=tmp_path, images='.', mask_images='.', mask_tail='_mask')
  assert names_of(labelled) == [f'{k}.jpg' for k in range(4)] and kinds(labelled) == [('mask-reading', '.')]
  assert refused(tmp_path, images='.', mask_images='.').startswith(
      'mask_folder: images and masks both lie in ROOT; give data.mask_tail')


def test_a_mask_that_cannot_be_read_is_an_error_and_its_image_is_left_out(tmp_path):
  flat(tmp_path, {'a': stripes(0, 1), 'b': stripes(0, 1), 'c': stripes(0)})
  cut = (tmp_path / 'masks' / 'a.png').read_bytes()[:50]
  (tmp_path / 'masks' / 'a.png').write_bytes(cut)
  Image.fromarray(pixels()).save(tmp_path / 'masks' / 'b.png')
  write_mask(tmp_path / 'masks' / 'c.png', stripes(0, 1))
  labelled = mask_folder.read('train', path=tmp_path)
  assert labelled.records == () and labelled.classes.ids == (0, 1)
  assert kinds(labelled)[1:] == [('mask-corrupt', 'masks/a.png'), ('mask-corrupt', 'masks/b.png')]
  assert labelled.findings[2].what == 'has 3 channels that differ'


def test_a_mask_of_another_size_is_refused_when_it_is_read(tmp_path):
  flat(tmp_path, {'a': stripes(0, 1)[:6], 'b': stripes(0)})
  source = LabelledSource(mask_folder.read('train', path=tmp_path))
  with pytest.raises(ValueError, match='mask .*/a.png is 16 x 6 pixels and its image 16 x 12; write the mask in the'):
    source[0]


def test_a_layout_or_option_that_cannot_be_is_answered_in_one_line(tmp_path):
  assert refused(tmp_path / 'x').startswith('mask_folder: no such folder: ROOT; ')
  write_image(tmp_path / 'images' / 'a.png')
  assert refused(tmp_path) == ('mask_folder: no folders of the masks of split train in ROOT; lay them out as '
                               'masks/train or masks, or give data.mask_images')
  write_mask(tmp_path / 'masks' / 'b.png', stripes(0))
  assert refused(tmp_path).startswith('mask_folder: no image of split train in ROOT has a mask; a mask is named as ')
  assert refused(tmp_path, mask_values='colour') == (
      "mask_folder: data.mask_values is 'colour'; it is one of auto, ids, palette, binary")
  flat(tmp_path, {'a': stripes(0, 255), 'c': stripes(0)})
  assert refused(tmp_path, mask_values='binary', names=('a', 'b', 'c')).startswith(
      "mask_folder: data.names has 3 names and data.mask_values is 'binary'; give two")
  Image.fromarray(stripes(0, 255)).save(tmp_path / 'masks' / 'a.jpg')
  (tmp_path / 'masks' / 'a.png').unlink()
  assert refused(tmp_path).startswith('mask_folder: ROOT/masks/a.jpg is a JPEG (1 of the masks are), which changes ')
  write_image(tmp_path / 'images' / 'train' / 'a.png')
  assert refused(tmp_path, 'val').startswith('mask_folder: no folders of the images of split val in ROOT; lay them ')
