"""Every classifier that torchvision has: parameters and multiply-adds beside the published ones, by one trace."""

import json
import pathlib

import pytest

from tests.golden_files import FOLDER
from vision_jax import models
from vision_jax.inspect import zoo

pytestmark = pytest.mark.medium
PUBLISHED = json.loads((FOLDER / 'torchvision_models.json').read_text(encoding='utf-8'))
DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / 'docs' / 'models.md'


def document() -> list[str]:
  return DOCUMENT.read_text(encoding='utf-8').splitlines()


def test_the_table_has_80_models_and_all_of_them_exist():
  assert len(PUBLISHED) == 80
  assert set(PUBLISHED) <= set(models.names())


# One of a family in the plain suite: tracing all of them takes a minute on two cores.
TYPICAL = ('alexnet', 'vgg11', 'squeezenet1_1', 'resnet18', 'shufflenet_v2_x0_5', 'regnet_y_400mf',
           'mobilenet_v3_small', 'convnext_tiny', 'vit_b_32', 'darknet19', 'yolov3_tiny', 'ssd300_vgg16',
           'retinanet_resnet50_fpn', 'fasterrcnn_resnet50_fpn', 'detr_resnet50')


@pytest.mark.parametrize('name', [
    name if name in TYPICAL or name.endswith('_small') else pytest.param(name, marks=pytest.mark.slow)
    for name in models.names()])
def test_a_model_has_the_published_figures_and_its_line_in_the_document(name):
  found = zoo.sheet(name)
  if name in PUBLISHED:
    row = PUBLISHED[name]
    assert found.inputs == ((1, row['size'], row['size'], 3),)
    assert found.parameters == row['params']
    # The published figures have three decimals; there is no exception.
    assert abs(found.multiply_adds / 1e9 - row['gmacs']) <= 0.0005 + 1e-9
  assert zoo.row(name) in document(), 'python experiments/summary.py --table > docs/models.md'


def test_the_document_has_every_model_once_in_the_order_of_the_table_and_detectors_apart():
  names = sorted(models.names(), key=zoo.is_detector)  # which keeps the order otherwise
  assert [line.split('`')[1] for line in document() if line.startswith('| `')] == names


@pytest.mark.parametrize(('name', 'parameters', 'statistics'), [
    ('retinanet_resnet50_fpn', 34_014_999, 53_120), ('fcos_resnet50_fpn', 32_269_600, 53_120),
    ('fasterrcnn_resnet50_fpn', 41_755_286, 53_120), ('fasterrcnn_mobilenet_v3_large_fpn', 19_386_354, 24_400),
    ('yolov2', 50_942_217, 20_672)])
def test_a_detector_s_line_tells_what_a_published_count_leaves_out(name, parameters, statistics):
  cells = [cell.replace(',', '') for cell in zoo.row(name).split(' | ')]
  # A norm has as many scales and biases as means and variances; torchvision's count has neither.
  assert tuple(map(int, cells[3:6])) == (parameters + statistics, statistics, statistics)
