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


@pytest.mark.parametrize('name', models.names())
def test_a_model_has_the_published_figures_and_its_line_in_the_document(name):
  found = zoo.sheet(name)
  if name in PUBLISHED:
    row = PUBLISHED[name]
    assert found.inputs == ((1, row['size'], row['size'], 3),)
    assert found.parameters == row['params']
    # The published figures have three decimals; there is no exception.
    assert abs(found.multiply_adds / 1e9 - row['gmacs']) <= 0.0005 + 1e-9
  assert zoo.row(name) in document(), 'python experiments/summary.py --table > docs/models.md'


def test_the_document_has_every_model_once_and_in_the_order_of_the_table():
  assert [line.split('`')[1] for line in document() if line.startswith('| `')] == list(models.names())
