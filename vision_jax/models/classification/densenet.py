"""DenseNet: every layer of a block sees the maps of all layers before it.

Gao Huang, Zhuang Liu, Laurens van der Maaten and Kilian Weinberger, Densely Connected Convolutional Networks, arXiv
1608.06993, Table 1. Maps of `densenet121` (growth rate k = 32) on an image of 224 x 224; a block of n layers adds n * k
channels:

| part | what | map |
|---|---|---|
| conv0, norm0, pool0 | 7x7 / 2, 2 * k; then 3x3 max pool / 2 | 56 x 56 x 64 |
| denseblock1 | 6 layers | 56 x 56 x 256 |
| transition1 | 1x1 to half the channels, 2x2 mean pool | 28 x 28 x 128 |
| denseblock2, transition2 | 12 layers | 28 x 28 x 512, 14 x 14 x 256 |
| denseblock3, transition3 | 24 layers | 14 x 14 x 1024, 7 x 7 x 512 |
| denseblock4, norm5 | 16 layers | 7 x 7 x 1024 |
| classifier | mean over the pixels, fully connected | K |

A layer is BatchNorm, ReLU, 1x1 to 4 * k channels, BatchNorm, ReLU, 3x3 to k channels ("DenseNet-BC": bottlenecks, and
compression by a half in the transitions). Parameters at K = 1000: 7,978,856 (121); 28,681,000 (161, k = 48); 14,149,480
(169); 20,013,928 (201). Submodules bear torchvision's names.

Differs from the paper: a normalisation and a ReLU follow the stem's convolution before the max pool, as in torchvision
and in the authors' code.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.layers import (
  Conv,
  avg_pool,
  check_size,
  global_avg_pool,
  he_fan_in,
  linear_init,
  make_norm,
  max_pool,
)
from vision_jax.models.noise import Dropout

Array = jax.Array
BOTTLENECK = 4


class DenseNet(nn.Module):
  """A densely connected network; `densenet121` to `densenet201` are its rows.

  Args:
    growth: k, the channels that each layer adds.
    block_sizes: the number of layers of each block.
    num_classes: K; 0 gives features and no `classifier`.
    dropout: rate after every layer.
    norm: see `layers.make_norm`.
    dtype: the compute dtype.

  Returns:
    Float32 logits `[B, K]`, or features `[B, C]`, from `[B, H, W, 3]`; with four blocks H and W are at least 29.

  Raises:
    ValueError: the image is too small for the pools.

  >>> model = densenet121(num_classes=10)
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 32, 48, 3)))[0].shape
  (2, 10)
  """

  growth: int
  block_sizes: tuple[int, ...]
  num_classes: int = 1000
  dropout: float = 0.0
  norm: str = 'batch'
  dtype: Any = jnp.float32

  def setup(self):
    if self.num_classes:
      self.classifier = nn.Dense(self.num_classes, kernel_init=linear_init, dtype=jnp.dtype(self.dtype))

  def __call__(self, x: Array, *, train: bool = False) -> Array:
    x = self.features(x, train=train)['norm5']
    x = global_avg_pool(x)
    return self.classifier(x).astype(jnp.float32) if self.num_classes else x

  @nn.compact
  def features(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    """The last map of every stride in `dtype`: `relu0` (2), `denseblock1` (4), ... and `norm5` (32), after its ReLU.

    A block's map is as the transition finds it, before any normalisation.
    """
    # The stem gives ceil(H / 4) rows, and each transition halves them, at least one of which must be left.
    check_size('DenseNet', x, 2 ** (len(self.block_sizes) + 1) - 3)
    return Trunk(self.growth, self.block_sizes, self.dropout, self.norm, self.dtype, name='features')(x, train=train)


class Trunk(nn.Module):
  """What torchvision calls `features`: everything before the mean over the pixels.

  Args:
    growth, block_sizes, dropout, norm, dtype: as in `DenseNet`.

  Returns:
    The maps of `DenseNet.features`.
  """

  growth: int
  block_sizes: tuple[int, ...]
  dropout: float
  norm: str
  dtype: Any

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    conv, norm = _parts(self, train)
    x = nn.relu(norm(2 * self.growth, name='norm0')(conv(2 * self.growth, 7, 2, 3, name='conv0')(x)))
    maps = {'relu0': x}
    x = max_pool(x, 3, stride=2, padding=1)
    for i, layers in enumerate(self.block_sizes, start=1):
      x = DenseBlock(layers, self.growth, self.dropout, self.norm, self.dtype, name=f'denseblock{i}')(x, train=train)
      if i < len(self.block_sizes):
        maps[f'denseblock{i}'] = x
        x = Transition(self.norm, self.dtype, name=f'transition{i}')(x, train=train)
    # torchvision's name, however many blocks there are: the normalisation after the four blocks of the paper.
    return maps | {'norm5': nn.relu(norm(x.shape[-1], name='norm5')(x))}


class DenseBlock(nn.Module):
  """Layers of which each adds `growth` channels to all that it sees.

  Args:
    layers: how many.
    growth, dropout, norm, dtype: as in `DenseNet`.

  Returns:
    `[B, h, w, C + layers * growth]` from `[B, h, w, C]`; the first C are what came in, and then the layers in order.

  >>> block = DenseBlock(3, growth=4)
  >>> jax.eval_shape(block.init_with_output, jax.random.key(0), jnp.zeros((1, 5, 6, 8)))[0].shape
  (1, 5, 6, 20)
  """

  layers: int
  growth: int
  dropout: float = 0.0
  norm: str = 'batch'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    for i in range(self.layers):
      new = DenseLayer(self.growth, self.dropout, self.norm, self.dtype, name=f'denselayer{i + 1}')(x, train=train)
      x = jnp.concatenate([x, new], -1)
    return x


class DenseLayer(nn.Module):
  """Normalisation, ReLU, 1x1 to four times `growth` channels; normalisation, ReLU, 3x3 to `growth` channels.

  Args:
    growth, dropout, norm, dtype: as in `DenseNet`.

  Returns:
    `[B, h, w, growth]`, without what came in.
  """

  growth: int
  dropout: float = 0.0
  norm: str = 'batch'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    conv, norm = _parts(self, train)
    inner = BOTTLENECK * self.growth
    x = conv(inner, 1, name='conv1')(nn.relu(norm(x.shape[-1], name='norm1')(x.astype(self.dtype))))
    x = conv(self.growth, 3, padding=1, name='conv2')(nn.relu(norm(inner, name='norm2')(x)))
    return Dropout(self.dropout)(x, train=train)


class Transition(nn.Module):
  """Half the channels by a 1x1 convolution, half the size by a 2x2 mean pool.

  Args:
    norm, dtype: as in `DenseNet`.

  Returns:
    `[B, H // 2, W // 2, C // 2]`.

  >>> layer = Transition()
  >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.zeros((1, 5, 6, 8)))[0].shape
  (1, 2, 3, 4)
  """

  norm: str = 'batch'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    conv, norm = _parts(self, train)
    x = nn.relu(norm(x.shape[-1], name='norm')(x.astype(self.dtype)))
    return avg_pool(conv(x.shape[-1] // 2, 1, name='conv')(x), 2)


def _parts(module: nn.Module, train: bool) -> tuple[functools.partial, functools.partial]:
  """The convolution and the normalisation of a module with the fields `norm` and `dtype`."""
  conv = functools.partial(Conv, use_bias=module.norm == 'none', dtype=module.dtype, kernel_init=he_fan_in)
  return conv, functools.partial(make_norm, module.norm, train=train, dtype=module.dtype)


densenet121 = functools.partial(DenseNet, 32, (6, 12, 24, 16))
densenet161 = functools.partial(DenseNet, 48, (6, 12, 36, 24))
densenet169 = functools.partial(DenseNet, 32, (6, 12, 32, 32))
densenet201 = functools.partial(DenseNet, 32, (6, 12, 48, 32))
