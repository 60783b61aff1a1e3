"""idx files: what they hold, and what is said about missing and damaged ones."""

import gzip
import pickle

import numpy as np
import pytest

from tests.data.builders import SIZE, idx_bytes, write_text
from vision_jax import data
from vision_jax.data.formats.idx import IdxFiles, read_idx

IMAGES = np.random.default_rng(0).integers(0, 256, (6, *SIZE), np.uint8)
LABELS = np.array([2, 0, 5, 2, 0, 2], np.uint8)


def written(folder, *, images=IMAGES, labels=LABELS, prefix='train', end='', pack=False, dot='-'):
  """The two files of a split."""
  folder.mkdir(exist_ok=True)
  for part, values in (('images', images), ('labels', labels)):
    content, axes = idx_bytes(values), np.ndim(values)
    (folder / f'{prefix}-{part}{dot}idx{axes}-ubyte{end}').write_bytes(gzip.compress(content) if pack else content)
  return folder


def refused(folder, split='train', **options):
  with pytest.raises(ValueError) as caught:
    data.create('idx', split, path=folder, **options)
  assert '\n' not in str(caught.value)
  return str(caught.value).replace(str(folder), 'ROOT')


@pytest.mark.parametrize('more', [
    {}, {'end': '.gz', 'pack': True}, {'end': '.gz'}, {'dot': '.'}, {'prefix': 'emnist-letters-train'}])
def test_images_and_labels_come_out_as_they_were_written_packed_or_not(tmp_path, more):
  source = IdxFiles('train', path=written(tmp_path, **more))
  assert len(source) == 6 and source.fields == ('label',)
  assert (source.classes.names, source.classes.ids) == (('0', '2', '5'), (0, 2, 5))
  for k in range(6):
    sample = source[k]
    assert set(sample) == {'image', 'label'} and sample['image'].dtype == np.uint8
    np.testing.assert_array_equal(sample['image'], np.repeat(IMAGES[k][..., None], 3, -1))
    assert source.classes.ids[sample['label']] == LABELS[k] and source.target(k) == {'label': sample['label']}


@pytest.mark.parametrize('prefix', ['t10k', 'test'])
def test_val_is_the_test_set_and_the_classes_are_those_of_both(tmp_path, prefix):
  written(tmp_path)
  written(tmp_path, images=IMAGES[:2], labels=np.array([7, 0]), prefix=prefix)
  train, val = (IdxFiles(split, path=tmp_path) for split in ('train', 'val'))
  assert train.classes == val.classes and val.classes.ids == (0, 2, 5, 7)
  assert [val[k]['label'] for k in range(2)] == [3, 0]
  assert val.name_of(1) == f'{prefix}-images-idx3-ubyte/00001'
  assert [(f.kind, f.what) for f in train.findings] == [
      ('class-gap', 'the labels of the classes are 0, 2, 5, 7'), ('class-absent', "class '7' has no image")]


def test_size_takes_the_first_and_a_copy_by_pickle_is_the_same(tmp_path):
  source = IdxFiles('train', path=written(tmp_path), size=2)
  copy = pickle.loads(pickle.dumps(source))
  assert len(source) == len(copy) == 2 and list(range(2)) == [k for k, _ in enumerate(copy)]
  np.testing.assert_array_equal(copy[1]['image'], source[1]['image'])
  assert copy.name_of(1) == source.name_of(1) and copy.classes == source.classes
  with pytest.raises(IndexError):
    source[2]
  assert refused(tmp_path, size=7) == 'idx: size 7 is out of range; the split train of ROOT has 6 images'


def test_a_label_without_a_name_is_an_error_or_left_out(tmp_path):
  written(tmp_path)
  assert IdxFiles('train', path=tmp_path, names=tuple('abcdef')).classes.names == tuple('abcdef')
  assert refused(tmp_path, names=('a', 'b', 'c')).startswith(
      '1 error in the labels of ROOT (train): train-labels-idx1-ubyte: label 2: 5 is none of the classes 0, 1, 2; ')
  source = IdxFiles('train', path=tmp_path, names=('a', 'b', 'c'), on_error='skip')
  assert [source.target(k)['label'] for k in range(5)] == [2, 0, 2, 0, 2] and len(source) == 5
  assert [f.kind for f in source.findings] == ['class-unknown', 'class-absent']
  np.testing.assert_array_equal(source[2]['image'][..., 0], IMAGES[3])
  assert source.name_of(2) == 'train-images-idx3-ubyte/00003'
  write_text(tmp_path / 'mapping.txt', '0 zero\n2 two\n5 five\n')
  assert IdxFiles('train', path=tmp_path, names='mapping.txt').classes.names == ('zero', 'two', 'five')


WHOLE = idx_bytes(IMAGES)
PACKED = gzip.compress(WHOLE, mtime=0)


@pytest.mark.parametrize('content, message', [
    (WHOLE[:-1], 'is cut short or damaged: its header says 6 x 12 x 16, which makes 1168 bytes with the header, and '
                 'there are 1167;'),
    (WHOLE + b'x', 'is cut short or damaged: its header says 6 x 12 x 16, which makes 1168 bytes with the header, and '
                   'there are 1169;'),
    (WHOLE[:9], 'is cut short in its header;'),
    (WHOLE[:4], 'is cut short in its header;'),
    (b'', 'begins with nothing, and an idx file of 3 axes of bytes with 00 00 08 03;'),
    (b'<!DOCTYPE html>', 'begins with 3c 21 44 4f, and an idx file of 3 axes of bytes with 00 00 08 03;'),
    (idx_bytes(LABELS), 'begins with 00 00 08 01, and an idx file of 3 axes of bytes with 00 00 08 03;'),
    (b'\0\0\x0d\x03' + WHOLE[4:], 'begins with 00 00 0d 03, and an idx file of 3 axes of bytes with 00 00 08 03;'),
    (PACKED[:-30], 'is cut short or damaged: '),
    (PACKED[:5], 'is cut short or damaged: '),
    (PACKED[:40] + bytes(255 - b for b in PACKED[40:80]) + PACKED[80:], 'is cut short or damaged: '),
    (PACKED[:-8] + bytes(4) + PACKED[-4:], 'is cut short or damaged: CRC check failed'),
])
def test_damage_is_answered_in_one_line_with_file_and_remedy(tmp_path, content, message):
  written(tmp_path)
  (tmp_path / 'train-images-idx3-ubyte').write_bytes(content)
  text = refused(tmp_path)
  assert text.startswith(f'idx: ROOT/train-images-idx3-ubyte {message}') and text.endswith('; fetch it again')


def test_missing_and_several_files_and_unequal_numbers_are_answered_in_one_line(tmp_path):
  assert refused(tmp_path / 'x') == 'idx: no such folder: ROOT; give data.path, the folder of the data set'
  assert refused(tmp_path) == ('idx: no files with the images of split train in ROOT; they are called '
                               'train-images-idx3-ubyte or train-images-idx3-ubyte.gz')
  written(tmp_path)
  assert refused(tmp_path, 'val').startswith('idx: no files with the images of split val in ROOT; they are called t10k')
  written(tmp_path, end='.gz', pack=True)
  assert len(IdxFiles('train', path=tmp_path)) == 6  # of a file and its gz the plain one is read
  written(tmp_path, prefix='emnist-train')
  assert refused(tmp_path).startswith('idx: several files with the images of split train in ROOT: '
                                      'ROOT/emnist-train-images-idx3-ubyte, ROOT/train-images-idx3-ubyte; ')
  other = written(tmp_path / 'other', labels=LABELS[:4])
  assert refused(other) == ('idx: ROOT/train-images-idx3-ubyte has 6 images and ROOT/train-labels-idx1-ubyte 4 labels; '
                            'they are not of one data set: fetch both again')
  assert refused(other, on_error='go') == "data.on_error is 'go'; it is 'stop' or 'skip'"
  with pytest.raises(ValueError, match='data source idx needs data.path; give it'):
    data.create('idx', 'train')


def test_read_idx_gives_the_array(tmp_path):
  (tmp_path / 'a').write_bytes(idx_bytes(LABELS))
  np.testing.assert_array_equal(read_idx(tmp_path / 'a', axes=1), LABELS)
