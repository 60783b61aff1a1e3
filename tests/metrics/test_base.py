"""What all metrics have in common."""

import subprocess
import sys

import pytest

from vision_jax.conventions import ClassMap
from vision_jax.metrics import Accumulator, Confusion, DetectionAP, SegmentationScores, TopK

CLASSES = ClassMap(names=('a', 'b'))


@pytest.mark.parametrize('metric', [TopK(), Confusion(CLASSES), DetectionAP(CLASSES), SegmentationScores(CLASSES)],
                         ids=lambda m: type(m).__name__)
def test_every_metric_is_an_accumulator_with_plain_floats(metric):
  assert isinstance(metric, Accumulator)
  assert all(type(value) is float for value in metric.result().values())


def test_importing_the_host_rooms_loads_neither_pillow_nor_scikit_learn_nor_scipy():
  code = ('import sys, vision_jax.metrics, vision_jax.host, vision_jax.viz; '
          'print(sorted({"PIL", "sklearn", "scipy"} & set(sys.modules)))')
  found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert found.stdout.strip() == '[]', found.stdout
