"""Folders of images by class and by identity: what is found, how it is divided, and what is said about the rest."""

import pickle

import numpy as np
import pytest

from tests.data.builders import class_folders, kinds, pixels, write_image, write_text
from vision_jax import data
from vision_jax.data.formats import image_folder
from vision_jax.data.formats.layout import part_of


def names_of(labelled):
  return [record.name for record in labelled.records]


def labels_of(labelled):
  return [record.label for record in labelled.records]


def test_classes_are_the_folders_in_natural_order_and_the_last_fifth_of_each_is_val(tmp_path):
  class_folders(tmp_path, {'c10': 12, 'c9': 5, 'B2': 3})
  train, val = (image_folder.read(split, path=tmp_path) for split in ('train', 'val'))
  assert train.classes.names == val.classes.names == ('B2', 'c9', 'c10')
  assert names_of(val) == ['B2/2.png', 'c9/4.png', 'c10/10.png', 'c10/11.png']
  assert names_of(train)[5:] == ['c9/3.png', *(f'c10/{k}.png' for k in range(10))]
  assert labels_of(train) == [0] * 2 + [1] * 4 + [2] * 10 and labels_of(val) == [0, 1, 2, 2]
  assert train.findings == val.findings == ()
  assert not set(names_of(train)) & set(names_of(val))


def test_the_share_of_val_is_an_option_and_either_side_keeps_one():
  assert [*part_of('val', range(8), 0.2)] == [6, 7] and [*part_of('val', range(7), 0.2)] == [6]
  for count in range(2, 12):
    for share in (0.01, 0.2, 0.5, 0.99):
      train, val = (part_of(split, range(count), share) for split in ('train', 'val'))
      assert [*train, *val] == list(range(count)) and len(train) and len(val)
      assert abs(len(val) - share * count) <= 0.5 or 1 in (len(train), len(val))
  for share in (0, 1, -0.1, 20):
    with pytest.raises(ValueError, match=f'data.val_share is {share}; it lies between 0 and 1'):
      part_of('val', range(9), share)


@pytest.mark.parametrize('train, val', [('train', 'val'), ('training', 'validation'), ('train', 'valid')])
def test_folders_of_train_and_val_divide_the_data_and_train_numbers_the_classes(tmp_path, train, val):
  class_folders(tmp_path / train, {'dog': 2, 'cat': 1, 'cow': 1})
  class_folders(tmp_path / val, {'dog': 1, 'cat': 2})
  first, second = (image_folder.read(split, path=tmp_path) for split in ('train', 'val'))
  assert first.classes == second.classes and first.classes.names == ('cat', 'cow', 'dog')
  assert names_of(second) == [f'{val}/cat/0.png', f'{val}/cat/1.png', f'{val}/dog/0.png']
  assert labels_of(second) == [0, 0, 2] and labels_of(first) == [0, 1, 2, 2]
  assert first.findings == ()
  assert kinds(second) == [('class-absent', f'{val}/cow')]


def test_a_class_that_train_does_not_have_is_an_error_and_its_images_are_left_out(tmp_path):
  class_folders(tmp_path / 'train', {'cat': 1})
  class_folders(tmp_path / 'val', {'cat': 1, 'gnu': 2})
  labelled = image_folder.read('val', path=tmp_path)
  assert kinds(labelled) == [('class-unknown', 'val/gnu')] and names_of(labelled) == ['val/cat/0.png']
  assert str(labelled.findings[0]) == "val/gnu: 'gnu' is no class of train; images: 2"
  with pytest.raises(ValueError, match="1 error in the labels of .*: val/gnu: 'gnu' is no class of train; images: 2; "):
    data.create('image_folder', 'val', path=tmp_path)
  assert len(data.create('image_folder', 'val', path=tmp_path, on_error='skip')) == 1


def test_given_classes_stand_in_the_order_given_and_other_folders_are_errors(tmp_path):
  class_folders(tmp_path, {'cat': 2, 'dog': 2, 'cow': 2})
  labelled = image_folder.read('val', path=tmp_path, classes=('dog', 'ant', 'cat'))
  assert labelled.classes.names == ('dog', 'ant', 'cat')
  assert names_of(labelled) == ['dog/1.png', 'cat/1.png'] and labels_of(labelled) == [0, 2]
  assert kinds(labelled) == [('class-unknown', 'cow'), ('class-absent', 'ant')]


def test_empty_folders_and_single_images_leave_a_class_without_images_in_a_split(tmp_path):
  class_folders(tmp_path, {'cat': 3, 'dog': 1, 'empty': 0})
  train, val = (image_folder.read(split, path=tmp_path) for split in ('train', 'val'))
  assert train.classes.names == ('cat', 'dog', 'empty')
  assert kinds(train) == [('class-absent', 'empty')]
  assert kinds(val) == [('class-absent', 'dog'), ('class-absent', 'empty')]
  assert names_of(val) == ['cat/2.png']


def test_what_is_no_image_of_a_class_is_told_of_and_hidden_things_are_not(tmp_path):
  class_folders(tmp_path, {'cat': 2, '.cache': 1})
  write_image(tmp_path / 'stray.png')
  write_image(tmp_path / 'cat' / 'deep' / 'x.png')
  for name in ('a.heic', 'b.heic', 'README', '.DS_Store'):
    write_text(tmp_path / 'cat' / name, '')
  write_text(tmp_path / 'LICENSE', 'above the classes')
  labelled = image_folder.read('train', path=tmp_path)
  assert labelled.classes.names == ('cat',)
  assert kinds(labelled) == [('image-extra', 'stray.png'), ('file-unknown', 'cat/README'),
                             ('file-unknown', 'cat/a.heic')]
  assert labelled.findings[2].what == "'.heic' is no suffix of an image; files: 2"
  assert names_of(labelled) == ['cat/0.png', 'cat/1.png']  # and cat/deep/x.png is the last
  assert kinds(image_folder.read('val', path=tmp_path)) == []  # the same folder: said once


def test_a_folder_called_train_among_classes_is_a_class(tmp_path):
  class_folders(tmp_path, {'bus': 2, 'train': 2})
  assert image_folder.read('train', path=tmp_path).classes.names == ('bus', 'train')


@pytest.mark.parametrize('folders, message', [
    ({}, 'image_folder: no images in the folders of {root}; lay them out as {root}/<name>/*, in files that '),
    ({'cat': 0}, 'image_folder: no images in the folders of {root}; lay them out as {root}/<name>/*, in files'),
    ({'train/cat': 1}, 'image_folder: no folders of split val in {root}; lay the images out as train/<name>/* and '
                       'val/<name>/*, or give data.path {root}/train, which data.val_share then divides'),
    ({'train': 1, 'val': 1}, 'image_folder: no images in the folders of {root}/val; lay them out as {root}/val/<'),
    ({'train/cat': 1, 'val/cat': 1, 'valid/cat': 1},
     'image_folder: several folders of split val in {root}: {root}/val, {root}/valid; lay'),
])
def test_a_layout_that_cannot_be_read_is_answered_in_one_line(tmp_path, folders, message):
  class_folders(tmp_path, folders)
  with pytest.raises(ValueError) as caught:
    image_folder.read('val', path=tmp_path)
  assert str(caught.value).startswith(message.format(root=tmp_path)) and '\n' not in str(caught.value)
  with pytest.raises(ValueError, match='image_folder: no such folder: .*/nowhere; give data.path'):
    image_folder.read('val', path=tmp_path / 'nowhere')


def test_the_source_gives_image_and_label_and_pickles(tmp_path):
  class_folders(tmp_path, {'cat': 4, 'dog': 4})
  source = data.create('image_folder', 'train', path=tmp_path, size=5)
  assert len(source) == 5 and source.fields == ('label',) and source.findings == ()
  sample = source[4]
  assert set(sample) == {'image', 'label'} and sample['label'] == source.target(4)['label'] == 1
  np.testing.assert_array_equal(sample['image'], pixels(5))  # dog/1.png is the sixth that was written
  assert source.name_of(4) == 'dog/1.png'
  copy = pickle.loads(pickle.dumps(source))
  np.testing.assert_array_equal(copy[4]['image'], sample['image'])
  assert copy.classes == source.classes and copy.name_of(4) == 'dog/1.png'


# Identities.


def test_the_last_fifth_of_the_identities_is_val_and_ids_count_through_both(tmp_path):
  class_folders(tmp_path, {f'p{k}': 2 for k in range(10)})
  train, val = (image_folder.identities(split, path=tmp_path) for split in ('train', 'val'))
  assert train.classes.names == tuple(f'p{k}' for k in range(8)) and train.classes.ids == tuple(range(8))
  assert val.classes.names == ('p8', 'p9') and val.classes.ids == (8, 9)
  assert labels_of(val) == [0, 0, 1, 1] and names_of(val)[0] == 'p8/0.png'
  write_image(tmp_path / 'stray.png')
  assert kinds(image_folder.identities('train', path=tmp_path)) == [('image-extra', 'stray.png')]
  assert image_folder.identities('val', path=tmp_path) == val  # the same folder: said once
  assert train.format == 'identities' and train.fields == ('label',) and train.findings == val.findings == ()


def test_each_folder_with_images_is_an_identity_unless_depth_says_otherwise(tmp_path):
  class_folders(tmp_path, {f'greek/{name}': 2 for name in ('a-1', 'a')} | {f'latin/{name}': 2 for name in 'cd'})
  labelled = image_folder.identities('train', path=tmp_path, val_share=0.25)
  assert labelled.classes.names == ('greek/a', 'greek/a-1', 'latin/c')
  assert image_folder.identities('train', path=tmp_path, depth=2, val_share=0.25) == labelled
  by_alphabet = image_folder.identities('train', path=tmp_path, depth=1)
  assert by_alphabet.classes.names == ('greek',) and len(by_alphabet.records) == 4
  write_image(tmp_path / 'greek' / 'x.png')
  with pytest.raises(ValueError, match='identities: .*/greek holds images and folders with images; give data.depth'):
    image_folder.identities('train', path=tmp_path)
  assert kinds(image_folder.identities('train', path=tmp_path, depth=2)) == [('image-extra', 'greek/x.png')]
  with pytest.raises(ValueError, match='data.depth is 0; it is at least 1'):
    image_folder.identities('train', path=tmp_path, depth=0)


def test_folders_of_train_and_val_hold_identities_of_their_own(tmp_path):
  class_folders(tmp_path / 'train', {'ann': 2, 'bob': 2})
  class_folders(tmp_path / 'val', {'bob': 1, 'eve': 2})
  train, val = (image_folder.identities(split, path=tmp_path) for split in ('train', 'val'))
  assert (train.classes.names, train.classes.ids) == (('ann', 'bob'), (0, 1)) and train.findings == ()
  assert (val.classes.names, val.classes.ids) == (('bob', 'eve'), (1, 2)) and labels_of(val) == [0, 1, 1]
  assert kinds(val) == [('split-overlap', 'val/bob')]


def test_identities_that_are_not_disjoint_are_divided_by_image_and_have_the_classes_of_train(tmp_path):
  class_folders(tmp_path / 'flat', {'ann': 5, 'bob': 5})
  train, val = (image_folder.identities(split, path=tmp_path / 'flat', disjoint=False) for split in ('train', 'val'))
  assert train.classes == val.classes and names_of(val) == ['ann/4.png', 'bob/4.png'] and labels_of(val) == [0, 1]
  class_folders(tmp_path / 'train', {'ann': 2, 'bob': 2})
  class_folders(tmp_path / 'val', {'bob': 1, 'eve': 2})
  val = image_folder.identities('val', path=tmp_path, disjoint=False)
  assert val.classes.names == ('ann', 'bob') and labels_of(val) == [1]
  assert kinds(val) == [('class-unknown', 'val/eve'), ('class-absent', 'val/ann')]
