"""Data sets that tensorflow_datasets prepared, read without TensorFlow, and what is said about those that cannot be.

The data sets here are made by the tests with builders of their own, in array_record.
"""

from concurrent.futures import ThreadPoolExecutor
import io
import pickle
import sys

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from tests.data.builders import SIZE, kinds, pixels
from vision_jax import data
from vision_jax.data.formats import tfds as reader
from vision_jax.data.formats.tfds import TfdsSource

F = tfds.features
# ymin, xmin, ymax, xmax as shares; in pixels of 12 x 16 (h, w): (8, 3, 16, 9) and (0, 0, 4, 6)
BOXES = (F.BBox(0.25, 0.5, 0.75, 1.0), F.BBox(0.0, 0.0, 0.5, 0.25))


def encoded(values, kind='PNG', **options):
  """A file object: tensorflow_datasets would need TensorFlow to encode an array."""
  file = io.BytesIO()
  Image.fromarray(values).save(file, kind, **options)
  file.seek(0)
  return file


def prepare(folder, name, features, splits):
  """Prepares {split: examples}; the order of examples within a split is tensorflow_datasets' own."""
  kind = type(name, (tfds.core.GeneratorBasedBuilder,), {
      'VERSION': tfds.core.Version('1.0.0'), '__module__': '__main__',  # so that no files are looked for beside it
      '_info': lambda self: tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(features)),
      '_split_generators': lambda self, _: {key: enumerate(examples) for key, examples in splits.items()},
      '_generate_examples': lambda self: None})
  kind(data_dir=str(folder), file_format='array_record').download_and_prepare()
  return folder


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The data sets `tiny_labels`, `tiny_objects` and `tiny_masks`."""
  place = tmp_path_factory.mktemp('prepared')
  image = {'image': F.Image(shape=(None, None, 3))}
  prepare(place, 'TinyLabels', {'image': F.Image(shape=(None, None, 1)), 'label': F.ClassLabel(names=['cat', 'dog'])}, {
      'train': [{'image': encoded(pixels(k)[..., 0]), 'label': ('cat', 'dog', 'dog')[k]} for k in range(3)],
      'test': [{'image': encoded(pixels(9)[..., 0]), 'label': 'cat'}]})
  objects = F.Sequence({'bbox': F.BBoxFeature(), 'label': F.ClassLabel(names=['cat', 'dog']), 'is_crowd': np.bool_,
                        'is_difficult': np.bool_, 'area': np.int64, 'id': np.int64})
  each = [{'bbox': box, 'label': k, 'is_crowd': False, 'is_difficult': k == 1, 'area': 7 + k, 'id': 70 + k}
          for k, box in enumerate(BOXES)]
  crowd = {**each[0], 'bbox': F.BBox(0.0, 0.0, 1.0, 1.0), 'is_crowd': True}
  empty = {**each[0], 'bbox': F.BBox(0.5, 0.5, 0.5, 0.75)}
  over = {**each[0], 'bbox': F.BBox(0.5, 0.5, 1.0, 1.0)}
  prepare(place, 'TinyObjects', {**image, 'image/filename': F.Text(), 'objects': objects}, {
      'train': [{'image': encoded(pixels(1)), 'image/filename': 'full.png', 'objects': [*each, crowd]},
                {'image': encoded(pixels(2)), 'image/filename': 'none.png', 'objects': []}],
      'validation': [{'image': encoded(pixels(3)), 'image/filename': 'bad.png', 'objects': [empty, over]}],
      'test': [{'image': encoded(pixels(4)), 'image/filename': 'test.png', 'objects': []}]})
  mask = np.zeros((*SIZE,), np.uint8)
  mask[2:5], mask[5:] = 1, 255
  turned = Image.Exif()
  turned[0x0112] = 6
  prepare(place, 'TinyMasks', {**image, 'segmentation_mask': F.Image(shape=(None, None, 1)),
                               'label': F.ClassLabel(num_classes=2), 'breed': F.ClassLabel(names=['tabby', 'lab'])}, {
      'train': [{'image': encoded(pixels(5), exif=turned), 'segmentation_mask': encoded(mask), 'label': 1,
                 'breed': 0}]})
  return place


def at(source, name):
  """The place of an image."""
  return next(k for k in range(len(source)) if source.name_of(k).startswith(name))


def refused(folder, split='train', **options):
  with pytest.raises(ValueError) as caught:
    data.create('tfds', split, data_dir=folder, **options)
  assert '\n' not in str(caught.value)
  return str(caught.value).replace(str(folder), 'ROOT')


def test_images_and_labels_are_read_without_tensorflow(folder):
  source = TfdsSource('train', dataset='tiny_labels', data_dir=folder)
  assert len(source) == 3 and source.fields == ('label',) and source.classes.names == ('cat', 'dog')
  for k in range(3):
    sample = source[k]
    assert set(sample) == {'image', 'label'} and sample['image'].shape == (*SIZE, 3)
    seed = next(s for s in range(3) if (pixels(s)[..., 0] == sample['image'][..., 0]).all())
    np.testing.assert_array_equal(sample['image'], pixels(seed)[..., :1].repeat(3, -1))
    assert sample['label'] == source.target(k)['label'] == (0, 1, 1)[seed]
    assert source.name_of(k) == f'tiny_labels/train/{k:06d}'
  assert 'tensorflow' not in sys.modules
  with pytest.raises(IndexError):
    source[3]


def test_val_is_validation_or_else_test_or_what_splits_says(folder):
  assert TfdsSource('val', dataset='tiny_labels', data_dir=folder).name_of(0) == 'tiny_labels/test/000000'
  assert TfdsSource('val', dataset='tiny_objects', data_dir=folder, on_error='skip').name_of(0) == 'bad.png'
  splits = {'train': 'train[1:]', 'val': 'train[:1]'}
  train, val, whole = (TfdsSource(split, dataset='tiny_labels', data_dir=folder, splits=given)
                       for split, given in (('train', splits), ('val', splits), ('train', None)))
  assert (len(train), len(val)) == (2, 1)
  np.testing.assert_array_equal(val[0]['image'], whole[0]['image'])
  np.testing.assert_array_equal(train[0]['image'], whole[1]['image'])


def test_the_folder_of_one_data_set_will_do(folder):
  assert len(TfdsSource('train', dataset='tiny_labels', data_dir=folder / 'tiny_labels' / '1.0.0')) == 3


def test_boxes_become_pixels_and_crowds_and_difficult_objects_are_not_trained_on(folder):
  source = TfdsSource('train', dataset='tiny_objects', data_dir=folder)
  k = at(source, 'full')
  sample, target = source[k], source.target(k)
  assert source.fields == ('boxes', 'labels') and source.classes.names == ('cat', 'dog')
  np.testing.assert_array_equal(sample['image'], pixels(1))
  assert sample['boxes'].dtype == np.float32 and sample['boxes'].tolist() == [[8, 3, 16, 9]]
  assert sample['labels'].tolist() == [0] and sample['labels'].dtype == np.int32
  assert target['boxes'].dtype == np.float64
  assert target['boxes'].tolist() == [[8, 3, 16, 9], [0, 0, 4, 6], [0, 0, 16, 12]]
  assert target['crowd'].tolist() == [False, False, True] and target['difficult'].tolist() == [False, True, False]
  assert target['area'].tolist() == [7, 8, 7] and target['ids'].tolist() == [70, 71, 70]
  both = TfdsSource('train', dataset='tiny_objects', data_dir=folder, difficult='train')
  assert both[k]['labels'].tolist() == [0, 1]
  none = source[at(source, 'none')]
  assert none['boxes'].shape == (0, 4) and none['labels'].shape == (0,)
  assert source.target(at(source, 'none'))['boxes'].shape == (0, 4) and source.findings == ()


def test_boxes_that_count_y_from_the_bottom_are_turned_over(folder, monkeypatch):
  monkeypatch.setattr(reader, '_Y_UP', ('tiny_objects',))
  source = TfdsSource('train', dataset='tiny_objects', data_dir=folder)
  assert source.target(at(source, 'full'))['boxes'].tolist() == [[8, 3, 16, 9], [0, 6, 4, 12], [0, 0, 16, 12]]


def test_a_bad_box_stops_or_is_left_out_and_listed(folder):
  source = TfdsSource('val', dataset='tiny_objects', data_dir=folder)
  message = ('tfds: tiny_objects/validation: bad.png: object 0: the box .* is 4 x 0 pixels; leave such objects out '
             'with data.on_error=skip, which lists each skip')
  for read in (source.target, source.__getitem__):
    with pytest.raises(ValueError, match=message):
      read(0)
  source = TfdsSource('val', dataset='tiny_objects', data_dir=folder, on_error='skip')
  assert source.findings == ()
  assert source[0]['boxes'].tolist() == source.target(0)['boxes'].tolist() == [[8, 6, 16, 12]]
  assert kinds(source) == [('box-zero', 'bad.png: object 0')]


def test_a_mask_image_is_learned_with_names_and_void_and_no_turn_in_exif_counts(folder):
  source = TfdsSource('train', dataset='tiny_masks', data_dir=folder, feature='segmentation_mask', names=('sky', 'sea'))
  sample = source[0]
  assert source.fields == ('segmentation', 'pixels_valid') and set(sample) == {'image', *source.fields}
  np.testing.assert_array_equal(sample['image'], pixels(5))
  rows = np.arange(SIZE[0])
  assert sample['segmentation'].dtype == np.int32 and sample['segmentation'].shape == SIZE
  np.testing.assert_array_equal(sample['pixels_valid'], np.tile(rows[:, None] < 5, SIZE[1]))
  np.testing.assert_array_equal(sample['segmentation'], np.tile(((rows >= 2) & (rows < 5))[:, None], SIZE[1]))
  np.testing.assert_array_equal(source.target(0)['segmentation'], sample['segmentation'])
  strange = TfdsSource('train', dataset='tiny_masks', data_dir=folder, feature='segmentation_mask', names=('sky',))
  with pytest.raises(ValueError, match='tfds: the mask of tiny_masks/train/000000 of .* has the value 1, which is no '
                                       'class; name the classes of all values by data.names, or give data.void'):
    strange[0]


def test_of_several_features_one_must_be_named(folder):
  text = 'tiny_masks can teach breed (label), label (label), segmentation_mask (segmentation); give one as data.feature'
  assert refused(folder, dataset='tiny_masks') == f'tfds: {text}'
  assert refused(folder, dataset='tiny_masks', feature='image') == f"tfds: {text}, not 'image'"
  breed = TfdsSource('train', dataset='tiny_masks', data_dir=folder, feature='breed')
  assert breed.classes.names == ('tabby', 'lab') and breed[0]['label'] == 0
  label = TfdsSource('train', dataset='tiny_masks', data_dir=folder, feature='label', names=('cat', 'dog'))
  assert label.classes.names == ('cat', 'dog') and label[0]['label'] == 1
  assert refused(folder, dataset='tiny_masks', feature='label', names=('cat',)) == (
      'tfds: tiny_masks has 2 classes and data.names 1; give a name to each')
  assert refused(folder, dataset='tiny_masks', feature='segmentation_mask') == (
      'tfds: tiny_masks: nothing says what the values of segmentation_mask mean; give data.names')


def test_a_pickled_source_and_many_threads_give_the_same_samples(folder):
  source = TfdsSource('train', dataset='tiny_objects', data_dir=folder)
  expected = [source[k]['image'] for k in range(2)]
  copy = pickle.loads(pickle.dumps(source))
  assert [copy.name_of(k) for k in range(2)] == [source.name_of(k) for k in range(2)]
  with ThreadPoolExecutor(8) as pool:
    for k, sample in enumerate(pool.map(copy.__getitem__, [0, 1] * 40)):
      np.testing.assert_array_equal(sample['image'], expected[k % 2])


def test_size_takes_the_first(folder):
  source = TfdsSource('train', dataset='tiny_labels', data_dir=folder, size=2)
  assert len(source) == 2 and sum(1 for _ in source) == 2
  assert refused(folder, dataset='tiny_labels', size=4) == (
      'tfds: size 4 is out of range; train of tiny_labels has 3 images')


@pytest.mark.parametrize('dataset', ['coco', 'coco/2017', 'mnist'])
def test_what_is_not_prepared_is_answered_with_how_to_prepare_it_elsewhere(tmp_path, dataset):
  assert refused(tmp_path, dataset=dataset) == (
      f'tfds: {dataset} is not prepared in ROOT, and preparing it needs TensorFlow; once, on any machine that has it, '
      f'run `tfds build {dataset} --file_format=array_record --data_dir=DIR`, and give that DIR as data.data_dir: '
      'reading needs no TensorFlow')


def test_names_splits_and_formats_that_are_not_there_are_answered_in_one_line(folder, tmp_path):
  assert refused(folder, dataset='mnst') == (
      "tfds: no data set 'mnst' is prepared in ROOT or known to tensorflow_datasets; did you mean mnist, kmnist, "
      'emnist?')
  assert refused(folder, dataset='tiny_labels:2.0.0') == (
      'tfds: tiny_labels:2.0.0 is not among what is prepared in ROOT: tiny_labels/1.0.0; give one as data.dataset')
  assert refused(folder, dataset='a b').startswith("tfds: cannot read 'a b': Parsing builder name string a b failed.")
  assert refused(folder, dataset='tiny_masks', feature='label', split='val') == (
      "tfds: tiny_masks has no split for val, only train; give data.splits, for example {'train': 'train[:80%]', "
      "'val': 'train[80%:]'}")
  assert refused(folder, dataset='tiny_labels', split='val', splits={'train': 'train'}) == (
      'tfds: data.splits has nothing for val; give what stands for it, out of train, test')
  assert refused(folder, dataset='tiny_labels', splits={'train': 'whole'}).startswith(
      "tfds: split 'whole' of tiny_labels: Unknown split 'whole'.")
  with pytest.raises(ValueError, match='data source tfds needs data.dataset; give it'):
    data.create('tfds', 'train')
  prepare(tmp_path, 'TinyFloats', {'image': F.Image(), 'depth': F.Tensor(shape=(2,), dtype=np.float32)}, {
      'train': [{'image': encoded(pixels(0)), 'depth': np.zeros(2, np.float32)}]})
  assert refused(tmp_path, dataset='tiny_floats') == (
      'tfds: tiny_floats has no image with a label, objects or a mask; its features are depth, image')
  in_pixels = F.Sequence({'bbox': F.BBoxFeature(bbox_format='XYWH')})
  prepare(tmp_path, 'TinyPixels', {'image': F.Image(), 'objects': in_pixels}, {
      'train': [{'image': encoded(pixels(0)), 'objects': []}]})
  assert refused(tmp_path, dataset='tiny_pixels').startswith('tfds: tiny_pixels has no image with a label, objects or ')
  info = tmp_path / 'tiny_floats' / '1.0.0' / 'dataset_info.json'
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  features = tmp_path / 'tiny_floats' / '1.0.0' / 'features.json'
  features.write_text((folder / 'tiny_labels' / '1.0.0' / 'features.json').read_text())
  assert refused(tmp_path, dataset='tiny_floats') == (
      'tfds: ROOT/tiny_floats/1.0.0 is prepared as tfrecord, which only TensorFlow reads; once, on a machine with '
      'TensorFlow, run `tfds build tiny_floats --file_format=array_record --data_dir=DIR`, then give that DIR as '
      'data.data_dir')


def test_an_image_that_cannot_be_read_is_named(tmp_path):
  prepare(tmp_path, 'TinyDamage', {'image': F.Image(), 'label': F.ClassLabel(names=['cat']), 'file_name': F.Text()},
          {'train': [{'image': io.BytesIO(b'no image'), 'label': 'cat', 'file_name': 'a.jpg'}]})
  source = TfdsSource('train', dataset='tiny_damage', data_dir=tmp_path)
  with pytest.raises(ValueError, match='tfds: cannot read image a.jpg of tiny_damage/train: .*; prepare the data set '):
    source[0]


def test_importing_the_table_of_sources_does_not_load_tensorflow_datasets(run_python):
  run_python("import sys, vision_jax.data; assert 'tensorflow_datasets' not in sys.modules")
