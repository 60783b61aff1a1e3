"""The embedded digits, and the table of sources."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from vision_jax import data
from vision_jax.data.digits import Digits, digit_rasters


def test_train_is_the_first_1437_digits_and_val_the_last_360():
  from sklearn.datasets import load_digits
  table = load_digits()
  train, val = Digits('train'), Digits('val')
  assert (len(train), len(val)) == (1437, 360)
  labels = [s.target(i)['label'] for s in (train, val) for i in range(len(s))]
  np.testing.assert_array_equal(labels, table.target)
  np.testing.assert_array_equal(np.concatenate([digit_rasters('train')[0], digit_rasters('val')[0]]), table.images)


def test_raster_values_are_scaled_to_the_full_range_and_rounded():
  image, raster = Digits('val')[5]['image'], digit_rasters('val')[0][5]
  assert image.dtype == np.uint8 and image.shape == (8, 8, 3)
  for channel in range(3):
    np.testing.assert_array_equal(image[..., channel], np.floor(raster.astype(float) * 255 / 16 + 0.5))
  assert Digits('val')[0]['image'].max() == 255


def test_digits_cannot_be_changed_by_who_reads_them():
  with pytest.raises(ValueError, match='read-only'):
    Digits('val')[0]['image'][0] = 1


def test_a_pickled_source_gives_the_same_samples():
  source = Digits('val')
  copy = pickle.loads(pickle.dumps(source))
  np.testing.assert_array_equal(copy[7]['image'], source[7]['image'])
  assert copy.name_of(7) == source.name_of(7) == 'digit_1444'


def test_an_index_past_the_end_ends_an_iteration():
  assert sum(1 for _ in Digits('val')) == 360


def test_every_source_of_the_table_that_needs_no_files_keeps_the_interface():
  for name in ('digits', 'digit_scenes'):
    source = data.create(name, 'val')
    sample, target = source[0], source.target(0)
    assert sample['image'].dtype == np.uint8
    assert set(sample) == {'image', *source.fields} == {'image', *target}
    assert len(source.classes) and isinstance(source.name_of(0), str)


@pytest.mark.parametrize('name, split, options, message', [
    ('digit', 'val', {}, "unknown data source 'digit'; did you mean digits, digit_scenes. known: coco, digit_scenes"),
    ('digits', 'test', {}, r"digits has no split 'test'; known: train, val"),
    ('digit_scenes', 'all', {}, r"digit_scenes has no split 'all'; known: train, val"),
    ('digit_scenes', 'val', {'canvass': 9}, r"data source digit_scenes has no option 'canvass'; did you mean canvas\?"),
])
def test_a_wrong_name_split_or_option_is_answered_in_one_line(name, split, options, message):
  with pytest.raises(ValueError, match=message) as caught:
    data.create(name, split, **options)
  assert '\n' not in str(caught.value)


def test_importing_data_loads_neither_jax_nor_pillow_nor_scikit_learn_nor_opencv():
  heavy = ('jax', 'PIL', 'sklearn', 'cv2', 'scipy')
  code = f'import sys, vision_jax.data; print([m for m in {heavy} if m in sys.modules])'
  assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
