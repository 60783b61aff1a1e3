"""torch loads what is written, where there is a torch: in this Python, or in the one that TORCH_PYTHON names."""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.golden_files import FOLDER
from tests.pretrained import formula
from vision_jax import models
from vision_jax.pretrained import from_torch, to_torch, write_pth

PYTHON = os.environ.get('TORCH_PYTHON') or (sys.executable if importlib.util.find_spec('torchvision') else None)


@pytest.mark.medium
@pytest.mark.skipif(PYTHON is None, reason='there is no torchvision; TORCH_PYTHON may name a Python that has it')
@pytest.mark.parametrize('name', ['resnet18', 'mnasnet0_5', 'swin_v2_t', 'maxvit_t', 'vit_b_32', 'inception_v3'])
def test_torch_loads_what_we_write_strictly_and_computes_its_own_logits(name, tmp_path):
  model = models.create(name)
  variables, _ = from_torch(model, formula.state_dict(name))
  write_pth(tmp_path / f'{name}.pth', to_torch(model, variables))
  result = subprocess.run([PYTHON, str(FOLDER / 'check_torch_loads.py'), str(tmp_path / f'{name}.pth')],
                          capture_output=True, text=True, timeout=300, check=False)
  assert result.returncode == 0, result.stdout + result.stderr
  assert 'tensors loaded strictly' in result.stdout
