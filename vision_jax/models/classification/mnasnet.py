"""MNASNet-B1: inverted residual blocks of 3x3 and 5x5 kernels, found by a search that measured the time on a phone.

Mingxing Tan et al., MnasNet: Platform-Aware Neural Architecture Search for Mobile, arXiv 1807.11626. Maps of
`mnasnet1_0` on an image of 224 x 224; the block is in `inverted_residual.py`:

| part | what | map |
|---|---|---|
| layers_0, 1 | 3x3 / 2, 32 | 112 x 112 x 32 |
| layers_3, 4, 6, 7 | a depthwise separable convolution, the last part linear | 112 x 112 x 16 |
| layers_8 | three 3x3 blocks that expand three times, the first / 2 | 56 x 56 x 24 |
| layers_9 | three 5x5, expand three times, / 2 | 28 x 28 x 40 |
| layers_10 | three 5x5, expand six times, / 2 | 14 x 14 x 80 |
| layers_11 | two 3x3, six times | 14 x 14 x 96 |
| layers_12 | four 5x5, six times, / 2 | 7 x 7 x 192 |
| layers_13 | one 3x3, six times | 7 x 7 x 320 |
| layers_14, 15 | 1x1; after its ReLU the map is called layers_16 | 7 x 7 x 1280 |
| classifier_1 | mean over the pixels, dropout, fully connected | K |

The other networks multiply every width but the last. Parameters at K = 1000 with 0.5, 0.75, 1 and 1.3 times the width:
2,218,512; 3,170,208; 4,383,312; 6,282,256. Submodules bear torchvision's names (in its second version, whose first
layers are scaled, too).

Differs from the paper: the network of its Figure 7, A1, has squeeze and excite; B1, from the authors' code, was found
without it.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.classification.inverted_residual import InvertedResidual
from vision_jax.models.classification.maps import choose_maps
from vision_jax.models.classification.mobilenetv1 import DepthwiseSeparable
from vision_jax.models.layers import Conv, global_avg_pool, he_fan_out, make_divisible, make_norm
from vision_jax.models.noise import Dropout

Array = jax.Array

# Expansion, kernel size, channels, blocks, stride of the first.
STAGES = ((3, 3, 24, 3, 2), (3, 5, 40, 3, 2), (6, 5, 80, 3, 2), (6, 3, 96, 2, 1), (6, 5, 192, 4, 2), (6, 3, 320, 1, 1))
# Uniform within sqrt(3 / K), as torchvision initialises the fully connected layer.
dense_init = nn.initializers.variance_scaling(1.0, 'fan_out', 'uniform')


class MNASNet(nn.Module):
  """MNASNet-B1; `mnasnet0_5` to `mnasnet1_3` are its rows.

  Args:
    width_mult: every width but the last is multiplied by this and rounded to eights.
    stages: as `STAGES`.
    num_classes: K; 0 gives features and no `classifier_1`.
    dropout: before the last layer.
    norm, eps, momentum: see `layers.make_norm`.
    dtype: the compute dtype.

  Returns:
    Float32 logits `[B, K]`, or features `[B, 1280]`, from `[B, H, W, 3]` of any size.

  >>> model = mnasnet0_5(num_classes=10)
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 32, 48, 3)))[0].shape
  (2, 10)
  """

  width_mult: float
  stages: tuple[tuple[int, int, int, int, int], ...]
  num_classes: int = 1000
  dropout: float = 0.2
  norm: str = 'batch'
  eps: float = 1e-5
  momentum: float = 0.9997
  dtype: Any = jnp.float32

  def setup(self):
    if self.num_classes:
      self.classifier_0 = Dropout(self.dropout)
      self.classifier_1 = nn.Dense(self.num_classes, kernel_init=dense_init, dtype=jnp.dtype(self.dtype))

  def __call__(self, x: Array, *, train: bool = False) -> Array:
    x = list(self.features(x, train=train).values())[-1]
    x = global_avg_pool(x)
    return self.classifier_1(self.classifier_0(x, train=train)).astype(jnp.float32) if self.num_classes else x

  @nn.compact
  def features(self, x: Array, *, train: bool = False, names: tuple[str, ...] | None = None) -> dict[str, Array]:
    """The last map of every stride by name, fine to coarse, in `dtype`, or the maps of these `names`.

    The names are `layers_7` to `layers_13` and `layers_16`, the ReLU after the last convolution.
    """
    common = {'eps': self.eps, 'momentum': self.momentum, 'dtype': self.dtype}
    norm = functools.partial(make_norm, self.norm, train=train, **common)
    conv = functools.partial(Conv, use_bias=self.norm == 'none', dtype=self.dtype, kernel_init=he_fan_out)
    stem, first = make_divisible(32 * self.width_mult), make_divisible(16 * self.width_mult)
    x = nn.relu(norm(stem, name='layers_1')(conv(stem, 3, 2, 1, name='layers_0')(x)))
    x = DepthwiseSeparable(first, activation=nn.relu, last_activation=None, norm=self.norm, **common,
                           kernel_init=he_fan_out, parts=('3', '4', '6', '7'), name='layers')(x, train=train)
    stride, maps = 2, {'layers_7': (2, x)}
    for stage, (expansion, size, channels, blocks, step) in enumerate(self.stages, start=8):
      for i in range(blocks):
        x = InvertedResidual(make_divisible(channels * self.width_mult), expansion * x.shape[-1], size,
                             1 if i else step, activation=nn.relu, norm=self.norm, **common, layout='layers',
                             name=f'layers_{stage}_{i}')(x, train=train)
      stride *= step
      maps[f'layers_{stage}'] = (stride, x)
    last = 8 + len(self.stages)
    x = nn.relu(norm(1280, name=f'layers_{last + 1}')(conv(1280, 1, name=f'layers_{last}')(x)))
    return choose_maps(maps | {f'layers_{last + 2}': (stride, x)}, names)


mnasnet0_5 = functools.partial(MNASNet, 0.5, STAGES)
mnasnet0_75 = functools.partial(MNASNet, 0.75, STAGES)
mnasnet1_0 = functools.partial(MNASNet, 1.0, STAGES)
mnasnet1_3 = functools.partial(MNASNet, 1.3, STAGES)
