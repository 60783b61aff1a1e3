"""Predictions as JSON: which ids their images have."""

import json

import numpy as np
import pytest

from tests.data.builders import coco_image, coco_set, write_text
from vision_jax.conventions import ClassMap
from vision_jax.data.formats import coco
from vision_jax.data.images import ImageFiles
from vision_jax.data.predictions import coco_image_ids, write_detections

CLASSES = ClassMap(('cat', 'dog'), (3, 7))
FOUND = {'boxes': np.array([[1, 2, 5, 9.0]]), 'scores': np.array([0.75]), 'labels': np.array([1])}


def test_detections_have_the_ids_of_the_coco_file_that_is_named(tmp_path):
  # In the file's order the ids are neither 0, 1 nor those of the sorted names.
  images = [coco_image(42, 'b.png'), coco_image(9, 'a.png'), coco_image(500, 'c.png')]
  coco_set(tmp_path, [], images=images, split='val')
  source = ImageFiles(tmp_path / 'val')
  names = [source.name_of(i) for i in range(len(source))]
  ids = coco_image_ids(tmp_path / 'annotations' / 'instances_val.json', names)
  assert dict(zip(names, ids, strict=True)) == {'a.png': 9, 'b.png': 42, 'c.png': 500}
  assert set(ids) == {record.id for record in coco.read('val', path=tmp_path).records}

  write_detections(tmp_path / 'found.json', [(name, (12, 16), FOUND) for name in names], CLASSES, image_ids=ids)
  written = json.loads((tmp_path / 'found.json').read_text())
  assert [image['id'] for image in written['images']] == [9, 42, 500]
  assert [found['image_id'] for found in written['annotations']] == [9, 42, 500]
  assert written['annotations'][0] == {'image_id': 9, 'category_id': 7, 'label': 'dog', 'bbox': [1, 2, 4, 7],
                                       'score': 0.75}


def test_without_a_coco_file_images_are_numbered_in_their_order(tmp_path):
  write_detections(tmp_path / 'found.json', [(name, (12, 16), FOUND) for name in 'ba'], CLASSES)
  written = json.loads((tmp_path / 'found.json').read_text())
  assert [(image['id'], image['file_name']) for image in written['images']] == [(0, 'b'), (1, 'a')]
  assert [found['image_id'] for found in written['annotations']] == [0, 1]


@pytest.mark.parametrize(('content', 'message'), [
    ('{"images": [{"id": 1, "file_name": "val/a.png"}]}', "has no image 'a.png'; give the folder that its file names"),
    ('{"images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "a.png"}]}', 'has a file_name twice; '),
    ('{"images": [{"id": 1}]}', r"is no COCO file with the id and file_name of its images \(KeyError: 'file_name'\)"),
    ('[]', 'is no COCO file'), ('{', 'is no COCO file .*JSONDecodeError'),
    (None, 'is no COCO file .*FileNotFoundError'),
])
def test_a_file_without_the_images_is_refused_in_one_line(content, message, tmp_path):
  path = tmp_path / 'images.json' if content is None else write_text(tmp_path / 'images.json', content)
  with pytest.raises(ValueError, match=message) as raised:
    coco_image_ids(path, ['a.png'])
  assert '\n' not in str(raised.value)
