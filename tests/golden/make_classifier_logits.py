"""Writes classifier_logits.npz and classifier_names.json: torchvision's classifiers under weights from a formula.

    python tests/golden/make_classifier_logits.py [NAME...]

Made with torch 2.13.0 and torchvision 0.28.0 on a CPU, in about ten minutes. The npz holds for each of 78 models
float32 [2, 201]: every fifth logit of two images in eval mode, and last the largest absolute one of all. The JSON holds
for each of 80 models how many entries its state dict has, and the crc32 of their names and shapes. With NAMEs it prints
how far these models are from the file, and writes nothing.

Weights and images come from `numpy.random.default_rng`, so the tests draw them anew: `fill` and `images`. The gain of a
model keeps its logits in a range in which float32 is no concern and the image matters.
"""

from __future__ import annotations

import json
import pathlib
import sys
import zlib

import numpy as np

FOLDER = pathlib.Path(__file__).resolve().parent
COMPUTED = ('relative_position_index', 'relative_coords_table')  # entries that keep what torchvision computes
TOO_LARGE = ('regnet_y_128gf', 'vit_h_14')  # names only
SIZES = {'swin_v2_t': 256, 'swin_v2_s': 256, 'swin_v2_b': 256, 'inception_v3': 299}  # others: 224
GAINS = {  # others: 1
    0.95: 'efficientnet_v2_l',
    1.1: 'efficientnet_v2_s',
    1.2: 'efficientnet_b7 maxvit_t resnet50',
    1.25: 'efficientnet_b6 regnet_y_1_6gf',
    1.3: 'efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 regnet_y_16gf regnet_y_32gf '
         'regnet_y_3_2gf regnet_y_8gf resnet101 resnext101_32x8d',
    1.4: 'efficientnet_b0 regnet_y_400mf regnet_y_800mf',
    1.5: 'densenet121 mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small '
         'shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_1 vgg11 vgg11_bn '
         'vgg16 vgg19 vit_l_16 swin_v2_b',
    2.0: 'densenet161 densenet169 densenet201 googlenet squeezenet1_0 vgg16_bn vgg19_bn inception_v3',
    4.0: 'vgg13 vgg13_bn',
}


def gain(model: str) -> float:
  return next((gain for gain, names in GAINS.items() if model in names.split()), 1.0)


def fill(name: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
  """The value of a state dict's entry."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  last = name.rpartition('.')[2]
  if last == 'num_batches_tracked':
    return np.zeros(shape, np.int64)
  if last == 'running_var':
    value = rng.uniform(0.5, 1.5, shape)
  elif last in ('bias', 'running_mean') or not shape:
    value = 0.1 * rng.standard_normal(shape)
  elif len(shape) == 1:
    value = rng.uniform(0.5, 1.5, shape)
  else:
    value = rng.standard_normal(shape) * gain / np.sqrt(np.prod(shape[1:]))
  return np.asarray(value, np.float32)


def images(model: str) -> np.ndarray:
  """Two images float32 [2, 3, size, size]."""
  size = SIZES.get(model, 224)
  return np.random.default_rng(0).standard_normal((2, 3, size, size)).astype(np.float32)


def digest(shapes: dict[str, tuple[int, ...]]) -> list[int]:
  """How many names there are, and the crc32 of the lines 'name [d, d]' in order of the names."""
  text = '\n'.join(f'{name} {list(shape)}' for name, shape in sorted(shapes.items()))
  return [len(shapes), zlib.crc32(text.encode())]


def kept(logits: np.ndarray) -> np.ndarray:
  """What the file keeps of logits [2, 1000]."""
  return np.concatenate([logits[:, ::5], np.full((2, 1), np.abs(logits).max())], axis=1).astype(np.float32)


# Below: what needs torch.

_LIBRARIES = []


def build(model: str):
  import torchvision
  options = {'init_weights': False} if model in ('googlenet', 'inception_v3') else {}
  options |= {'aux_logits': False} if model == 'googlenet' else {}
  options |= {'image_size': 518} if model == 'vit_h_14' else {}  # of its default weights
  return torchvision.models.get_model(model, **options).eval()


def logits(model: str, module) -> np.ndarray:
  import torch
  state = module.state_dict()  # with its version, which MNASNet asks for
  for name, value in state.items():
    if not name.endswith(COMPUTED):
      state[name] = torch.from_numpy(fill(name, tuple(value.shape), gain(model)))
  module.load_state_dict(state)
  with torch.no_grad():
    return module(torch.from_numpy(images(model))).numpy()


def prepare_torch() -> None:
  """Lets torchvision be imported where its compiled part is for another torch."""
  import torch
  if not hasattr(torch.ops.torchvision, 'nms'):
    library = torch.library.Library('torchvision', 'FRAGMENT')
    library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    library.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    _LIBRARIES.append(library)  # what it defines ends with it


def main() -> None:
  prepare_torch()
  import torchvision
  if sys.argv[1:]:
    stored = np.load(FOLDER / 'classifier_logits.npz')
    for name in sys.argv[1:]:
      print(name, np.abs(kept(logits(name, build(name))) - stored[name]).max() / stored[name][0, -1])
    return
  names = torchvision.models.list_models(torchvision.models)
  digests, found = {}, {}
  for name in names:
    module = build(name)
    digests[name] = digest({key: tuple(value.shape) for key, value in module.state_dict().items()})
    if name not in TOO_LARGE:
      found[name] = kept(logits(name, module))
    print(name, digests[name], flush=True)
  text = json.dumps(digests).replace('], ', '],\n ')
  (FOLDER / 'classifier_names.json').write_text(text + '\n', encoding='utf-8')
  np.savez_compressed(FOLDER / 'classifier_logits.npz', **found)


if __name__ == '__main__':
  main()
