"""VGG: stages of 3x3 convolutions, each stage ended by a 2x2 max pool.

Karen Simonyan and Andrew Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, arXiv
1409.1556, Table 1 (configurations A, B, D and E). Maps on an image of 224 x 224, and convolutions of each stage:

| stage | map before its pool | 11 | 13 | 16 | 19 |
|---|---|---|---|---|---|
| 1 | 224 x 224 x 64 | 1 | 2 | 2 | 2 |
| 2 | 112 x 112 x 128 | 1 | 2 | 2 | 2 |
| 3 | 56 x 56 x 256 | 2 | 2 | 3 | 4 |
| 4 | 28 x 28 x 512 | 2 | 2 | 3 | 4 |
| 5 | 14 x 14 x 512 | 2 | 2 | 3 | 4 |
| head | 7 x 7 x 512, then 4096, 4096, K | | | | |

Parameters at K = 1000: 132,863,336; 133,047,848; 138,357,544; 143,667,240. The rows `*_bn` have BatchNorm between
convolution and ReLU, and two parameters more for each of its channels. Submodules bear torchvision's names:
`features_<i>` counts convolutions, normalisations, ReLUs and pools from 0.

Differs from the paper: He's initialisation in place of pre-training with 11 layers; BatchNorm, in the rows `*_bn`, is
of later; on images of another size the last map is averaged into 7 x 7 bins instead of the head sliding over it.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.layers import Conv, FlatDense, adaptive_avg_pool, check_size, he_fan_out, make_norm, max_pool
from vision_jax.models.noise import Dropout

Array = jax.Array
# Pixels of the smallest image: five pools halve it to 1.
SMALLEST = 32


class VGG(nn.Module):
  """A VGG network; `vgg11` to `vgg19` and `vgg11_bn` to `vgg19_bn` are its rows.

  Args:
    stage_sizes: the number of convolutions of each stage.
    num_classes: K; 0 gives the features of the last hidden layer.
    width: channels of the first stage; each stage has twice as many as the one before, up to eight times as many.
    hidden: features of the head's two hidden layers.
    dropout: of those features, in training.
    norm: see `layers.make_norm`; 'none' for the paper's networks. The convolutions have a bias with every norm.
    ceil_mode: whether pools round sizes up, as SSD has it: 75 pixels become 38.
    dtype: the compute dtype.

  Returns:
    Float32 logits `[B, K]`, or features `[B, hidden]`, from `[B, H, W, 3]` of 32 x 32 pixels or more.

  Raises:
    ValueError: a smaller image.

  >>> model = vgg11(num_classes=10, width=4, hidden=16)
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 32, 50, 3)))[0].shape
  (2, 10)
  """

  stage_sizes: tuple[int, ...]
  num_classes: int = 1000
  width: int = 64
  hidden: int = 4096
  dropout: float = 0.5
  norm: str = 'none'
  ceil_mode: bool = False
  dtype: Any = jnp.float32

  def setup(self):
    init = nn.initializers.normal(0.01)
    dense = functools.partial(nn.Dense, kernel_init=init, dtype=jnp.dtype(self.dtype))
    self.classifier_0 = FlatDense(self.hidden, self.dtype, init)
    self.classifier_2 = Dropout(self.dropout)
    self.classifier_3 = dense(self.hidden)
    self.classifier_5 = Dropout(self.dropout)
    if self.num_classes:
      self.classifier_6 = dense(self.num_classes)

  def __call__(self, x: Array, *, train: bool = False) -> Array:
    *_, x = self.features(x, train=train).values()
    x = adaptive_avg_pool(x.astype(jnp.float32), 7)
    x = self.classifier_2(nn.relu(self.classifier_0(x)), train=train)
    x = self.classifier_5(nn.relu(self.classifier_3(x)), train=train)
    return (self.classifier_6(x) if self.num_classes else x).astype(jnp.float32)

  def features(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    """The last map of every stride by name, in `dtype`: the last ReLU before each pool, and the last pool.

    For `vgg16` these are `features_3` (stride 1), `features_8`, `features_15`, `features_22` (conv4_3 of the SSD
    paper), `features_29` (16) and `features_30` (32).
    """
    stages, pooled = self._stages(x, train=train)
    return dict(list(stage.items())[-1] for stage in stages) | pooled

  def activations(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    """The map of every ReLU by the name that papers on style use: `relu1_1` to `relu5_4` for `vgg19`, in `dtype`.

    Leon Gatys et al., A Neural Algorithm of Artistic Style, arXiv 1508.06576, calls them conv1_1 to conv5_4.
    """
    stages, _ = self._stages(x, train=train)
    return {f'relu{i}_{j}': x for i, stage in enumerate(stages, start=1) for j, x in enumerate(stage.values(), start=1)}

  @nn.compact
  def _stages(self, x: Array, *, train: bool = False) -> tuple[list[dict[str, Array]], dict[str, Array]]:
    """For each stage the map of every ReLU by its torchvision name; then the last pool's map by its name."""
    check_size('VGG', x, SMALLEST)
    stages, index = [], 0
    for stage, convolutions in enumerate(self.stage_sizes):
      channels, maps = self.width * min(2 ** stage, 8), {}
      for _ in range(convolutions):
        x = Conv(channels, 3, padding=1, dtype=self.dtype, kernel_init=he_fan_out, name=f'features_{index}')(x)
        if self.norm != 'none':
          index += 1
          x = make_norm(self.norm, channels, train=train, dtype=self.dtype, name=f'features_{index}')(x)
        x = maps[f'features_{index + 1}'] = nn.relu(x)
        index += 2
      x = max_pool(x, 2, ceil_mode=self.ceil_mode)
      index += 1
      stages.append(maps)
    return stages, {f'features_{index - 1}': x}


vgg11 = functools.partial(VGG, (1, 1, 2, 2, 2))
vgg13 = functools.partial(VGG, (2, 2, 2, 2, 2))
vgg16 = functools.partial(VGG, (2, 2, 3, 3, 3))
vgg19 = functools.partial(VGG, (2, 2, 4, 4, 4))
vgg11_bn = functools.partial(vgg11, norm='batch')
vgg13_bn = functools.partial(vgg13, norm='batch')
vgg16_bn = functools.partial(vgg16, norm='batch')
vgg19_bn = functools.partial(vgg19, norm='batch')
