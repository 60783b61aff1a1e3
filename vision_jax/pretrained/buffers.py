"""What torch's modules keep in a state dict beside parameters and statistics, so that it loads strictly there."""

from __future__ import annotations

from collections.abc import Mapping
import math

import flax.linen as nn
import numpy as np

from vision_jax.models.attention import relative_position_index
from vision_jax.models.classification.swin import Swin, relative_coords_table
from vision_jax.pretrained import names


def buffers(model: nn.Module, flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The buffers of a model's state dict, by torch's names: counters of batches, offsets within windows.

  Args:
    model: the module.
    flat: its variables by path.

  Returns:
    name -> array: int64 counters (0) and indices, float32 tables of offsets.

  >>> buffers(nn.Dense(1), {'batch_stats/bn1/mean': np.zeros(4)})
  {'bn1.num_batches_tracked': array(0)}
  """
  swin = model if isinstance(model, Swin) else None
  # torch's detectors have a frozen BatchNorm of their own, without a counter.
  frozen = str(getattr(getattr(model, 'body', None), 'norm', '')).startswith('frozen')
  found = {}
  for path, array in flat.items():
    module, _, leaf = path.rpartition('/')
    if module.startswith('batch_stats/') and leaf == 'mean':
      if not frozen:
        found[_beside(path, 'num_batches_tracked')] = np.zeros((), np.int64)
    elif leaf == 'relative_position_bias_table':
      side = (math.isqrt(len(array)) + 1) // 2  # the table has a row for each of (2 side - 1) ** 2 offsets
      index = relative_position_index((side, side)).astype(np.int64)
      found[_beside(path, 'relative_position_index')] = index.ravel() if swin else index
    elif leaf == 'logit_scale' and swin:
      window = (swin.window, swin.window)
      found[_beside(path, 'relative_position_index')] = relative_position_index(window).astype(np.int64).ravel()
      found[_beside(path, 'relative_coords_table')] = relative_coords_table(window)
  return found


def _beside(path: str, leaf: str) -> str:
  """torch's name of another leaf of the same module."""
  return names.torch_name(f'{path.rpartition("/")[0]}/{leaf}')
