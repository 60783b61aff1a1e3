"""GoogLeNet: nine inception modules, each of four branches side by side.

Christian Szegedy et al., Going Deeper with Convolutions, arXiv 1409.4842, Table 1. Maps on an image of 224 x 224:

| part | what | map |
|---|---|---|
| conv1 | 7x7 convolution / 2 | 112 x 112 x 64 |
| conv2, conv3 | 3x3 max pool / 2; 1x1, 3x3 convolution | 56 x 56 x 192 |
| inception3a, 3b | 3x3 max pool / 2 | 28 x 28 x 256, 480 |
| inception4a to 4e | 3x3 max pool / 2; `aux1` after 4a, `aux2` after 4d | 14 x 14 x 512, 512, 512, 528, 832 |
| inception5a, 5b | 2x2 max pool / 2 | 7 x 7 x 832, 1024 |
| fc | mean over the pixels, dropout, fully connected | K |

Parameters at K = 1000: 6,624,904; with the auxiliary heads 13,004,888; of the paper's network, `branch='5x5'` and
`norm='none'`, 6,998,552 and 13,378,280. Submodules bear torchvision's names.

Differs from the paper: BatchNorm after every convolution in place of two response normalisations; the third branch has
3x3 convolutions where the paper has 5x5 ones, as torchvision's weights do (a known slip: pytorch/vision issue 906), but
`branch='5x5'` gives the paper's; the auxiliary heads average into 4 x 4 bins, so that any size of image fits.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.layers import ConvNorm, FlatDense, adaptive_avg_pool, check_size, global_avg_pool, max_pool
from vision_jax.models.noise import Dropout

Array = jax.Array
# Pixels of the smallest image: the first convolution makes 8 of 15, three pools 4, 2 and 1.
SMALLEST = 15
# How much the loss of each auxiliary head counts in training, beside 1 for that of the logits (section 5).
AUXILIARY_WEIGHTS = (0.3, 0.3)
BRANCHES = {'3x3': 3, '5x5': 5}
# The channels of each module's branches, Table 1: 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; pool projection. The modules
# of each stage come after a pool.
STAGES = (
    (('inception3a', (64, 96, 128, 16, 32, 32)),
     ('inception3b', (128, 128, 192, 32, 96, 64))),
    (('inception4a', (192, 96, 208, 16, 48, 64)),
     ('inception4b', (160, 112, 224, 24, 64, 64)),
     ('inception4c', (128, 128, 256, 24, 64, 64)),
     ('inception4d', (112, 144, 288, 32, 64, 64)),
     ('inception4e', (256, 160, 320, 32, 128, 128))),
    (('inception5a', (256, 160, 320, 32, 128, 128)),
     ('inception5b', (384, 192, 384, 48, 128, 128))),
)
# torchvision cuts its normal distribution at -2 and 2, 200 standard deviations off.
normal_init = nn.initializers.normal(0.01)


class GoogLeNet(nn.Module):
  """The first network of inception modules; `googlenet` is its row.

  Args:
    stages: the name and the channels of each inception module, as in `STAGES`.
    num_classes: K; 0 gives the mean of the last map, and no `fc` and no auxiliary heads.
    aux: whether the auxiliary heads `aux1` and `aux2` exist. `__call__` never computes them; `with_auxiliaries` does,
      which the task of classification trains.
    branch: kernel size of the third branch, '3x3' (torchvision's weights) or '5x5' (the paper).
    transform_input: takes images normalised by ImageNet's means and deviations to the range -1 to 1 of the weights
      that torchvision publishes.
    dropout: of the mean of the last map, in training.
    dropout_aux: of the hidden layer of the auxiliary heads, in training.
    norm: see `layers.make_norm`.
    dtype: the compute dtype.

  Returns:
    Float32 logits `[B, K]`, or features `[B, 1024]`, from `[B, H, W, 3]` with sides of at least 15 pixels.

  Raises:
    ValueError: a smaller image; an unknown branch.

  >>> model = googlenet(num_classes=10)
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 15, 32, 3)))[0].shape
  (2, 10)
  """

  stages: tuple[tuple[tuple[str, tuple[int, ...]], ...], ...]
  num_classes: int = 1000
  aux: bool = False
  branch: str = '3x3'
  transform_input: bool = False
  dropout: float = 0.2
  dropout_aux: float = 0.7
  norm: str = 'batch'
  dtype: Any = jnp.float32

  def setup(self):
    if self.num_classes:
      self.drop = Dropout(self.dropout)
      self.fc = nn.Dense(self.num_classes, kernel_init=normal_init, dtype=jnp.dtype(self.dtype))
      if self.aux:
        head = functools.partial(AuxiliaryHead, self.num_classes, self.dropout_aux, self.norm, self.dtype)
        self.aux1, self.aux2 = head(), head()

  def __call__(self, x: Array, *, train: bool = False) -> Array:
    if self.is_initializing() and self.auxiliary_weights:
      return self.with_auxiliaries(x, train=train)[0]
    return self._logits(self._maps(x, train=train), train=train)

  def with_auxiliaries(self, x: Array, *, train: bool = False) -> tuple[Array, Array, Array]:
    """The logits, and those of the heads `aux1` and `aux2`, float32 `[B, K]` each; see `auxiliary_weights`."""
    if not self.auxiliary_weights:
      raise ValueError('GoogLeNet: this model has no auxiliary heads; make it with aux=True and num_classes above 0')
    maps = self._maps(x, train=train)
    return (self._logits(maps, train=train), self.aux1(maps['inception4a'], train=train),
            self.aux2(maps['inception4d'], train=train))

  @property
  def auxiliary_weights(self) -> tuple[float, ...]:
    """How much the loss of each further result of `with_auxiliaries` counts in training; empty without the heads."""
    return AUXILIARY_WEIGHTS if self.aux and self.num_classes else ()

  def features(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    """The last map of every stride by name, in `dtype`.

    They are `conv1` (stride 2), `conv3` (4), `inception3b` (8), `inception4e` (16) and `inception5b` (32).
    """
    maps = self._maps(x, train=train)
    return {name: maps[name] for name in ('conv1', 'conv3', *(stage[-1][0] for stage in self.stages))}

  def _logits(self, maps: dict[str, Array], *, train: bool) -> Array:
    *_, x = maps.values()
    x = global_avg_pool(x)
    return self.fc(self.drop(x, train=train)).astype(jnp.float32) if self.num_classes else x

  @nn.compact
  def _maps(self, x: Array, *, train: bool) -> dict[str, Array]:
    """The map of every convolution of the stem and of every inception module by name."""
    if self.branch not in BRANCHES:
      raise ValueError(f'GoogLeNet: unknown branch {self.branch!r}; known: {", ".join(BRANCHES)}')
    check_size('GoogLeNet', x, SMALLEST)
    x = recentre(x) if self.transform_input else x
    conv = functools.partial(basic_conv, norm=self.norm, dtype=self.dtype, kernel_init=normal_init)
    pool = functools.partial(max_pool, stride=2, ceil_mode=True)
    maps = {}
    x = maps['conv1'] = conv(64, 7, stride=2, name='conv1')(x, train=train)
    x = maps['conv2'] = conv(64, 1, name='conv2')(pool(x, 3), train=train)
    x = maps['conv3'] = conv(192, 3, name='conv3')(x, train=train)
    for i, stage in enumerate(self.stages):
      x = pool(x, 3 if i < 2 else 2)
      for name, channels in stage:
        x = maps[name] = Inception(channels, BRANCHES[self.branch], self.norm, self.dtype, name=name)(x, train=train)
    return maps


class Inception(nn.Module):
  """An inception module: four branches on the same map, and their channels one after the other.

  Args:
    channels: of the 1x1 convolution; of the 1x1 and 3x3; of the 1x1 and 5x5; and of the 1x1 after a 3x3 max pool.
    kernel_size: of the branch that is 5x5 in the paper.
    norm, dtype: as in `GoogLeNet`.

  Returns:
    `[B, H, W, C]` in `dtype`, C the sum of the first, third, fifth and sixth of `channels`.

  Christian Szegedy et al., Going Deeper with Convolutions, arXiv 1409.4842, Figure 2 (b).

  >>> block = Inception((8, 4, 8, 2, 4, 4), kernel_size=5)
  >>> jax.eval_shape(block.init_with_output, jax.random.key(0), jnp.zeros((1, 5, 6, 16)))[0].shape
  (1, 5, 6, 24)
  """

  channels: tuple[int, int, int, int, int, int]
  kernel_size: int = 3
  norm: str = 'batch'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    one, reduce3, three, reduce5, five, projection = self.channels

    def conv(x, features, size, name):
      return basic_conv(features, size, norm=self.norm, dtype=self.dtype, kernel_init=normal_init, name=name)(
          x, train=train)

    return jnp.concatenate([
        conv(x, one, 1, 'branch1'),
        conv(conv(x, reduce3, 1, 'branch2_0'), three, 3, 'branch2_1'),
        conv(conv(x, reduce5, 1, 'branch3_0'), five, self.kernel_size, 'branch3_1'),
        conv(max_pool(x, 3, stride=1, padding=1), projection, 1, 'branch4_1'),
    ], -1)


class AuxiliaryHead(nn.Module):
  """A classifier on a map in the middle of the network, which only training uses (section 5).

  Args:
    num_classes: K.
    dropout: of its hidden layer, in training.
    norm, dtype: as in `GoogLeNet`.

  Returns:
    Float32 logits `[B, K]`, from `[B, H, W, C]` of any size.

  >>> jax.eval_shape(AuxiliaryHead(5).init_with_output, jax.random.key(0), jnp.zeros((2, 14, 14, 8)))[0].shape
  (2, 5)
  """

  num_classes: int
  dropout: float = 0.7
  norm: str = 'batch'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    x = adaptive_avg_pool(x.astype(jnp.float32), 4)
    x = basic_conv(128, 1, norm=self.norm, dtype=self.dtype, kernel_init=normal_init, name='conv')(x, train=train)
    x = nn.relu(FlatDense(1024, self.dtype, normal_init, name='fc1')(x))
    x = Dropout(self.dropout)(x, train=train)
    x = nn.Dense(self.num_classes, kernel_init=normal_init, dtype=jnp.dtype(self.dtype), name='fc2')(x)
    return x.astype(jnp.float32)


# The convolution of both Inceptions: without a bias, then BatchNorm with its own epsilon, then a ReLU.
basic_conv = functools.partial(ConvNorm, eps=1e-3)


def recentre(x: Array) -> Array:
  """Images normalised by ImageNet's means and deviations, normalised by 0.5 and 0.5 instead.

  >>> black = -jnp.array([0.485, 0.456, 0.406]) / jnp.array([0.229, 0.224, 0.225])
  >>> recentre(black).round(3).tolist()
  [-1.0, -1.0, -1.0]
  """
  mean, deviation = jnp.array([0.485, 0.456, 0.406]), jnp.array([0.229, 0.224, 0.225])
  return x * (deviation / 0.5) + (mean - 0.5) / 0.5


googlenet = functools.partial(GoogLeNet, STAGES)
