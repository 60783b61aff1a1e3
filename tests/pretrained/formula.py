"""Our models under the weights that a formula draws, for the originals' outputs under the same."""

import functools
import json

import jax
import numpy as np

from tests.golden_files import FOLDER, golden
from vision_jax import models
from vision_jax.pretrained import from_torch, names
from vision_jax.pretrained.variables import flat_shapes

TOLERANCE = 1e-4  # of the largest logit; the two images differ by at least 80 times that, float32 runs by a tenth of it


@functools.cache
def digests() -> dict[str, list[int]]:
  """Of each classifier's names and shapes in torch: how many, and their crc32."""
  return json.loads((FOLDER / 'classifier_names.json').read_text(encoding='utf-8'))


def shapes(model) -> dict[str, tuple[int, ...]]:
  """torch's names and shapes of a model's variables."""
  return {names.torch_name(path): names.torch_shape(path, leaf.shape) for path, leaf in flat_shapes(model)}


def state_dict(name: str) -> dict[str, np.ndarray]:
  """The state dict that the formula draws for a model, without what torch computes."""
  script, _ = golden('classifier_logits')
  gain = script.gain(name)
  return {key: script.fill(key, shape, gain) for key, shape in shapes(models.create(name)).items()}


def detector(model, gain: float, digest: np.ndarray) -> dict:
  """The variables of a detector under the formula's weights; its torch names and shapes must have this digest."""
  script = golden('detectors')[0]
  wanted = shapes(model)
  assert script.digest(wanted) == digest.tolist()
  variables, report = from_torch(model, {key: script.fill(key, shape, gain) for key, shape in wanted.items()})
  assert not (report.head or report.fresh or report.unused), str(report)
  return variables


def error(name: str) -> tuple[float, float]:
  """How far our logits are from torchvision's, as a share of the largest, and the largest."""
  script, stored = golden('classifier_logits')
  model = models.create(name)
  variables, report = from_torch(model, state_dict(name))
  assert not (report.head or report.fresh or report.unused), str(report)
  found = np.asarray(jax.jit(model.apply)(variables, script.images(name).transpose(0, 2, 3, 1)))
  largest = float(stored[name][0, -1])
  return float(np.abs(script.kept(found) - stored[name]).max()) / largest, largest
