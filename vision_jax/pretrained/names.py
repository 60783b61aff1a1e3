"""One rule between torch's names and layouts of parameters and ours, and the few exceptions to it.

A *path* is ours: `params/layer1_0/conv1/kernel`, the collection first, as a checkpoint of `train` names it. A torch
name is what a state dict holds: `layer1.0.conv1.weight`. Modules of ours bear torchvision's names with '_' for '.', so
the rule joins a path's modules by '.', and then a number after an '_' gets a '.' on both sides.

| ours | torch's |
|---|---|
| `kernel` of a convolution `[kh, kw, I, O]` | `weight [O, I, kh, kw]` |
| `kernel` of a transposed convolution `[kh, kw, O, I]` | `weight [I, O, kh, kw]` |
| `kernel` of a fully connected layer `[I, O]` | `weight [O, I]` |
| `flat_kernel [h, w, C, O]` | `weight [O, C * h * w]`, the flattened map channel by channel |
| `scale`, `bias` | `weight`, `bias` |
| `mean`, `var` of `batch_stats` | `running_mean`, `running_var`, and a `num_batches_tracked` that we do not have |
| anything else | its own name; `layer_scale` and `logit_scale` have two more axes of length 1 there |
"""

from __future__ import annotations

from collections.abc import Iterable
import re

import numpy as np

_LEAVES = {'kernel': 'weight', 'flat_kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean',
           'var': 'running_var'}
_NUMBER, _AFTER_NUMBER = re.compile(r'_(\d+)(?=_|\.|$)'), re.compile(r'(\.\d+)_')

# Where torchvision itself has '_<digits>', or another sign: what the rule makes of our name, and what it should be.
_EXCEPTIONS = tuple((re.compile(pattern), replacement) for pattern, replacement in (
    (r'\b(layers|heads)_(?=[A-Za-z])', r'\1.'),  # ViT's and MaxViT's named lists
    (r'\bencoder_layer\.(\d+)\b', r'encoder_layer_\1'),  # ViT's blocks
    (r'\bln\.(\d)\b', r'ln_\1'),  # their norms
    (r'\b(branch\dx\w+)\.(\d)(?=\.)', r'\1_\2'),  # Inception v3's branch3x3_2
    (r'\b(block\d)\.(\d+)\b', r'\1-\2'),  # RegNet's block1-0
    (r'\bbackbone\.body\.features\.(?=\d)', 'backbone.body.'),  # detectors' MobileNets: the list itself is the body
    (r'\bin_proj\.(weight|bias)$', r'in_proj_\1'),  # torch's packed attention
    # SSD's body in pieces. VGG: up to conv4_3, and conv5 as the first of the extra maps.
    (r'\bbackbone\.trunk\.features\.24\.(weight|bias)$', r'backbone.extra.0.1.\1'),
    (r'\bbackbone\.trunk\.features\.26\.(weight|bias)$', r'backbone.extra.0.3.\1'),
    (r'\bbackbone\.trunk\.features\.28\.(weight|bias)$', r'backbone.extra.0.5.\1'),
    (r'\bbackbone\.trunk\.features\.(\d+)\.(weight|bias)$', r'backbone.features.\1.\2'),
    # MobileNetV3: up to the expansion of block 13, and from there on.
    (r'\bbackbone\.trunk\.features\.13\.block\.0\.', 'backbone.features.0.13.'),
    (r'\bbackbone\.trunk\.features\.13\.block\.', 'backbone.features.1.0.'),
    (r'\bbackbone\.trunk\.features\.14\.', 'backbone.features.1.1.'),
    (r'\bbackbone\.trunk\.features\.15\.', 'backbone.features.1.2.'),
    (r'\bbackbone\.trunk\.features\.16\.', 'backbone.features.1.3.'),
    (r'\bbackbone\.trunk\.features\.(?=\d+\.)', 'backbone.features.0.'),
    (r'\b(backbone\.extra(?:\.\d+)+)\.conv\.', r'\1.'),  # what has no norm of its own
))

# Names of older checkpoints, and what torchvision calls them today.
_LEGACY = tuple((re.compile(pattern), replacement) for pattern, replacement in (
    (r'(\.denselayer\d+\.(?:norm|conv))\.([12])\.', r'\1\2.'),  # DenseNet before 2018
    (r'\.mlp\.linear_1\.', '.mlp.0.'),  # ViT before 0.13
    (r'\.mlp\.linear_2\.', '.mlp.3.'),
    (r'\b((?:inner|layer)_blocks\.\d+)\.(weight|bias)$', r'\1.0.\2'),  # FPN before 0.13
    (r'\brpn\.head\.conv\.(weight|bias)$', r'rpn.head.conv.0.0.\1'),  # RPN before 0.13
))

# Parameters with more axes in torch, all of length 1 at the end: how many.
_TRAILING_AXES = {'layer_scale': 2, 'logit_scale': 2}
# What a state dict holds beside parameters and statistics; computed there, and nothing to load.
_BUFFERS = re.compile(r'(^|\.)(num_batches_tracked|relative_position_index|relative_coords_table)$')


def torch_name(path: str) -> str:
  """What a state dict calls the array at one of our paths.

  >>> torch_name('params/layer1_0/conv1/kernel'), torch_name('batch_stats/features_0_1/var')
  ('layer1.0.conv1.weight', 'features.0.1.running_var')
  >>> torch_name('params/encoder/layers_encoder_layer_0/self_attention/in_proj/kernel')
  'encoder.layers.encoder_layer_0.self_attention.in_proj_weight'
  """
  *modules, leaf = path.split('/')[1:]
  name = _AFTER_NUMBER.sub(r'\1.', _NUMBER.sub(r'.\1', '.'.join(modules)))
  name = f'{name}.{_LEAVES.get(leaf, leaf)}' if modules else leaf
  for pattern, replacement in _EXCEPTIONS:
    name = pattern.sub(replacement, name)
  return name


def modern_name(name: str) -> str:
  """Today's name of what an older checkpoint may call otherwise.

  >>> modern_name('features.denseblock1.denselayer1.norm.1.weight')
  'features.denseblock1.denselayer1.norm1.weight'
  """
  for pattern, replacement in _LEGACY:
    name = pattern.sub(replacement, name)
  return name


def is_buffer(name: str) -> bool:
  """Whether torch computes what bears this name, so that there is nothing to load."""
  return _BUFFERS.search(name) is not None


def torch_shape(path: str, shape: Iterable[int]) -> tuple[int, ...]:
  """The shape in torch of an array of ours.

  >>> torch_shape('params/classifier_1/flat_kernel', (6, 6, 256, 4096))
  (4096, 9216)
  """
  shape, leaf = tuple(shape), path.rpartition('/')[2]
  if leaf == 'flat_kernel':
    h, w, channels, features = shape
    return features, channels * h * w
  if leaf == 'kernel' and len(shape) in (2, 4):
    return shape[:1:-1] + shape[:2] if len(shape) == 4 else shape[::-1]
  return shape + (1,) * _TRAILING_AXES.get(leaf, 0)


def to_flax(path: str, array: np.ndarray, shape: Iterable[int]) -> np.ndarray:
  """A view in our layout of what torch holds for a path.

  Args:
    path: ours.
    array: of the shape that `torch_shape(path, shape)` gives.
    shape: ours.

  >>> to_flax('params/fc/kernel', np.zeros((10, 512)), (512, 10)).shape
  (512, 10)
  """
  shape, leaf = tuple(shape), path.rpartition('/')[2]
  if leaf == 'flat_kernel':
    h, w, channels, features = shape
    return array.reshape(features, channels, h, w).transpose(2, 3, 1, 0)
  if leaf == 'kernel' and len(shape) in (2, 4):
    return array.transpose(2, 3, 1, 0) if len(shape) == 4 else array.T
  return array.reshape(shape)


def to_torch(path: str, array: np.ndarray) -> np.ndarray:
  """An array of ours in torch's layout, the inverse of `to_flax`.

  >>> to_torch('params/conv1/kernel', np.zeros((7, 7, 3, 64))).shape
  (64, 3, 7, 7)
  """
  leaf = path.rpartition('/')[2]
  if leaf == 'flat_kernel':
    array = array.transpose(3, 2, 0, 1)
  elif leaf == 'kernel' and array.ndim in (2, 4):
    array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    return np.ascontiguousarray(array)
  return np.ascontiguousarray(array).reshape(torch_shape(path, array.shape) if leaf != 'flat_kernel'
                                             else (array.shape[0], -1))
