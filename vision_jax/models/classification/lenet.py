"""LeNet-5: the network of 1998 for 32 x 32 characters, as it was and as it is taught today.

Yann LeCun, Leon Bottou, Yoshua Bengio and Patrick Haffner, Gradient-Based Learning Applied to Document Recognition,
Proceedings of the IEEE 86(11), 1998, section II.B and Table I. Parameters with one channel in:

| part | what | output | `lenet5` | `lenet5_original` |
|---|---|---|---|---|
| c1 | 5x5 convolution | 28 x 28 x 6 | 156 | 156 |
| s2 | 2x2 pool: maximum / trainable mean | 14 x 14 x 6 | 0 | 12 |
| c3 | 5x5 convolution: dense / Table I's 60 connections | 10 x 10 x 16 | 2,416 | 1,516 |
| s4 | 2x2 pool | 5 x 5 x 16 | 0 | 32 |
| c5 | 5x5 convolution | 1 x 1 x 120 | 48,120 | 48,120 |
| f6 | fully connected | 84 | 10,164 | 10,164 |
| output | fully connected / distances to ten fixed codes | 10 | 850 | 0 |
| all | | | 61,706 | 60,000 |

An RGB image is averaged to grey first, which these counts mean; with `grey=False` c1 sees three channels and both
have 300 parameters more.

Differs from the paper: the ten codes of 7 x 12 pixels are drawn anew; He's and LeCun's initialisations in place of
uniform ones; the mean, not the sum, of four pixels meets the trainable coefficient, which begins at 1.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.models.layers import Conv, avg_pool, convolve, global_avg_pool, he_fan_in, linear_init, max_pool

Array = jax.Array

# Table I of the paper: the maps of S2 that each of the 16 maps of C3 sees.
C3_TABLE = ((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5), (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5),
            (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5), (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5))

# The digits 0 to 9 side by side, 7 x 12 pixels each: the codes that the original's output measures distances to.
BITMAPS = """
..###.....##...#####..#####.....##.#######..####.#######.#####..#####.
.##.##...###..##...####...##...###.##......##.........####...####...##
##...##.####..##...##.....##...###.##.....##..........####...####...##
##...##...##.......##.....##..####.##.....##.........##.##...####...##
##...##...##.......##.....##..#.##.##.....##.........##.##...####...##
##...##...##......##...####..##.##.######.######....##...#####..######
##...##...##.....##.......##.#..##......####...##...##..##...##.....##
##...##...##....##........####..##......####...##..##...##...##.....##
##...##...##...##.........#########.....####...##..##...##...##.....##
##...##...##..##..........##....##......####...##..##...##...##.....##
.##.##....##..##.....##...##....##.##...####...##.##....##...##....##.
..###...#############.#####.....##..#####..#####..##.....#####..####..
"""


class Variant(NamedTuple):
  """What tells one LeNet-5 from the other."""

  original: bool  # Table I's connections, trainable pools, fixed output codes
  activation: Callable
  kernel_init: Callable


def scaled_tanh(x: Array) -> Array:
  """The paper's squashing function, 1.7159 tanh(2 x / 3), which maps -1 and 1 to themselves."""
  return 1.7159 * jnp.tanh(x * (2 / 3))


VARIANTS = {
    'modern': Variant(original=False, activation=nn.relu, kernel_init=he_fan_in),
    'original': Variant(original=True, activation=scaled_tanh, kernel_init=nn.initializers.lecun_normal()),
}


class LeNet5(nn.Module):
  """LeNet-5; `lenet5` and `lenet5_original` are its rows.

  Args:
    variant: 'modern' (ReLU, max pools, dense layers) or 'original' (the paper's).
    num_classes: K; 0 gives the 84 features of f6. The original's codes exist for ten classes only.
    grey: averages the channels of the input first.
    dtype: the compute dtype.

  Returns:
    Float32 logits `[B, K]`, or features `[B, 84]`. The original's logits are minus the squared distances to the codes.
    Images are 32 x 32, or 28 x 28, which is padded with zeros; on larger ones c5 slides, and the logits (features) of
    its places are averaged.

  Raises:
    ValueError: another size, with the nearest that is allowed; an unknown variant; another K for the original.

  >>> model = lenet5()
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 32, 32, 3)))[0].shape
  (2, 10)
  """

  variant: str
  num_classes: int = 10
  grey: bool = True
  dtype: Any = jnp.float32

  def setup(self):
    if self.variant not in VARIANTS:
      raise ValueError(f'LeNet5: unknown variant {self.variant!r}; known: {", ".join(VARIANTS)}')
    conv = functools.partial(Conv, dtype=self.dtype, kernel_init=VARIANTS[self.variant].kernel_init)
    self.c5, self.f6 = conv(120, 5), conv(84, 1)
    if self.num_classes and not VARIANTS[self.variant].original:
      self.output = Conv(self.num_classes, 1, dtype=self.dtype, kernel_init=linear_init)

  def __call__(self, x: Array, *, train: bool = False) -> Array:
    original, activation, _ = VARIANTS[self.variant]
    x = self.features(x, train=train)['s4']
    x = activation(self.f6(activation(self.c5(x))))
    if not self.num_classes:
      return global_avg_pool(x)
    if original:
      return -squared_distances(x.astype(jnp.float32), digit_codes()).mean((1, 2))
    return global_avg_pool(self.output(x))

  @nn.compact
  def features(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    """The maps `c1`, `c3` and `s4`, of strides 1, 2 and 4, in `dtype`; without padding each is smaller than that."""
    self._check(x)
    original, activation, kernel_init = VARIANTS[self.variant]
    conv = functools.partial(Conv, kernel_size=5, dtype=self.dtype, kernel_init=kernel_init)
    pool = TrainablePool if original else MaxPool
    squash = activation if original else (lambda x: x)
    x = x.mean(-1, keepdims=True) if self.grey else x
    x = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0))) if x.shape[1:3] == (28, 28) else x
    c1 = activation(conv(6, name='c1')(x))
    x = squash(pool(self.dtype, name='s2')(c1))
    c3 = activation((SparseConv(C3_TABLE, 5, self.dtype, name='c3') if original else conv(16, name='c3'))(x))
    return {'c1': c1, 'c3': c3, 's4': squash(pool(self.dtype, name='s4')(c3))}

  def _check(self, x: Array) -> None:
    if VARIANTS[self.variant].original and self.num_classes not in (0, 10):
      raise ValueError(f'lenet5_original has fixed codes for 10 classes, not {self.num_classes}; use lenet5')
    near = tuple(max(32, 4 * round(side / 4)) for side in x.shape[1:3])
    if x.shape[1:3] not in (near, (28, 28)):
      raise ValueError(f'LeNet5: sizes are 28 x 28, or multiples of 4 from 32 on, not {x.shape[1]} x {x.shape[2]}; '
                       f'the nearest is {near[0]} x {near[1]}')


class MaxPool(nn.Module):
  """A 2x2 max pool, which has no parameters."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return max_pool(x, 2)


class TrainablePool(nn.Module):
  """The mean of 2x2 pixels, times one trainable coefficient a channel, plus one bias.

  >>> jax.eval_shape(TrainablePool().init_with_output, jax.random.key(0), jnp.ones((1, 4, 6, 3)))[0].shape
  (1, 2, 3, 3)
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],), jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],), jnp.float32)
    return avg_pool(x, 2) * scale.astype(self.dtype) + bias.astype(self.dtype)


class SparseConv(nn.Module):
  """A convolution each of whose outputs sees only the channels that a table names.

  Args:
    table: for each output channel the input channels that it sees.
    kernel_size: pixels, without padding.
    dtype: the compute dtype.

  Returns:
    `[B, h, w, len(table)]`. The `kernel [k, k, connections]` has parameters for the table's connections only.

  >>> layer = SparseConv(((0,), (0, 2)), 3)
  >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.ones((1, 4, 6, 3)))[0].shape
  (1, 2, 4, 2)
  """

  table: tuple[tuple[int, ...], ...]
  kernel_size: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    inputs = np.concatenate([np.asarray(row) for row in self.table])
    outputs = np.repeat(np.arange(len(self.table)), [len(row) for row in self.table])
    fan_in = self.kernel_size ** 2 * len(inputs) / len(self.table)
    shape = (self.kernel_size, self.kernel_size)
    weights = self.param('kernel', nn.initializers.normal(fan_in ** -0.5), (*shape, len(inputs)), jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (len(self.table),), jnp.float32)
    kernel = jnp.zeros((*shape, x.shape[-1], len(self.table))).at[:, :, inputs, outputs].set(weights)
    return convolve(x, kernel.astype(self.dtype)) + bias.astype(self.dtype)


def digit_codes() -> np.ndarray:
  """The ten codes, float32 `[10, 84]`: 1 for ink and -1 for paper, row by row."""
  rows = BITMAPS.split()
  return np.array([[1.0 if ink == '#' else -1.0 for row in rows for ink in row[7 * k:7 * k + 7]] for k in range(10)],
                  np.float32)


def squared_distances(x: Array, codes: Array) -> Array:
  """The squared Euclidean distance of `[..., E]` to each of `[K, E]`: `[..., K]`, the paper's equation 7."""
  return jnp.square(x[..., None, :] - codes).sum(-1)


lenet5 = functools.partial(LeNet5, 'modern')
lenet5_original = functools.partial(LeNet5, 'original')
