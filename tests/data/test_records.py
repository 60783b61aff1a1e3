"""Records, findings, and the masks that they point to."""

import pathlib

import numpy as np
from PIL import Image
import pytest

from tests.data import builders
from vision_jax.conventions import ClassMap
from vision_jax.data.records import Finding, Labelled, Record, object_mask, object_rle, read_values, select
from vision_jax.host import polygons, rle

MASK = np.zeros(builders.SIZE, bool)
MASK[2:7, 3:11] = True


def test_a_finding_of_an_unknown_kind_is_refused():
  with pytest.raises(ValueError, match="unknown kind of finding 'box-odd'"):
    Finding('box-odd', 'a.txt:1', 'odd')


def test_a_selection_keeps_the_findings_and_points_them_to_the_new_places():
  records = tuple(Record(pathlib.Path(f'{i}.png'), f'{i}.png') for i in range(4))
  findings = tuple(Finding('box-clipped', f'{i}.txt:1', 'out', i) for i in range(4)) + (
      Finding('label-orphan', 'x.txt', 'no image'),)
  labelled = Labelled(records, ClassMap(('cat',)), ('boxes', 'labels'), findings, pathlib.Path('x'), 'yolo')
  chosen = select(labelled, (3, 1))
  assert [record.name for record in chosen.records] == ['3.png', '1.png']
  assert [(finding.where, finding.item) for finding in chosen.findings] == [
      ('0.txt:1', None), ('1.txt:1', 1), ('2.txt:1', None), ('3.txt:1', 0), ('x.txt', None)]


def test_a_mask_is_the_same_whether_it_is_a_polygon_run_lengths_or_an_image(tmp_path):
  image = tmp_path / 'mask.png'
  Image.fromarray(np.where(MASK, 7, 2).astype(np.uint8)).save(image)
  packed = rle.encode(MASK)
  masks = ({'polygons': [[3, 2, 11, 2, 11, 7, 3, 7]]}, {'rle': packed},
           {'rle': {'size': list(builders.SIZE), 'counts': rle.run_lengths(packed).tolist()}},
           {'path': image, 'value': 7})
  for mask in masks:
    np.testing.assert_array_equal(object_mask(mask, builders.SIZE), MASK)
    assert object_rle(mask, builders.SIZE) == packed


def test_a_mask_image_without_a_value_is_all_that_is_not_zero(tmp_path):
  Image.fromarray((MASK * 200).astype(np.uint8)).save(tmp_path / 'mask.png')
  np.testing.assert_array_equal(object_mask({'path': tmp_path / 'mask.png'}, builders.SIZE), MASK)


@pytest.mark.parametrize('make', [lambda path: {'rle': rle.encode(MASK.T)}, lambda path: {'path': path}])
def test_a_mask_of_another_size_than_its_image_is_refused(tmp_path, make):
  Image.fromarray(MASK.T).save(tmp_path / 'mask.png')
  with pytest.raises(ValueError, match=r'the mask has size \(16, 12\), its image \(12, 16\), both \(h, w\); write'):
    object_mask(make(tmp_path / 'mask.png'), builders.SIZE)


def test_several_polygons_of_an_object_are_one_mask():
  pieces = [[0, 0, 4, 0, 4, 4, 0, 4], [8, 6, 12, 6, 12, 10, 8, 10]]
  both = polygons.rasterise(pieces[:1], builders.SIZE) | polygons.rasterise(pieces[1:], builders.SIZE)
  np.testing.assert_array_equal(object_mask({'polygons': pieces}, builders.SIZE), both)


def test_mask_values_are_palette_indices_and_grey_levels(tmp_path):
  values = np.arange(6, dtype=np.uint8).reshape(2, 3)
  palette = Image.fromarray(values).convert('P')
  palette.putpalette([0, 0, 0, 200, 0, 0, 200, 0, 0, 0, 0, 9, 1, 2, 3, 255, 255, 255])
  palette.save(tmp_path / 'palette.png')
  Image.fromarray(values.astype(np.uint16) * 1000).save(tmp_path / 'deep.png')
  Image.fromarray(np.repeat(values[..., None], 3, -1)).save(tmp_path / 'equal.png')
  Image.fromarray(values > 2).save(tmp_path / 'bits.png')
  np.testing.assert_array_equal(read_values(tmp_path / 'palette.png'), values)
  np.testing.assert_array_equal(read_values(tmp_path / 'deep.png'), values.astype(np.uint16) * 1000)
  np.testing.assert_array_equal(read_values(tmp_path / 'equal.png'), values)
  np.testing.assert_array_equal(read_values(tmp_path / 'bits.png'), values > 2)


def test_a_colour_image_is_no_mask(tmp_path):
  with pytest.raises(ValueError, match='has 3 channels that differ; write it as one channel or a palette'):
    read_values(builders.write_image(tmp_path / 'a.png'))
