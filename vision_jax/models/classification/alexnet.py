"""AlexNet: five convolutions and three fully connected layers, in the paper's form and in the one of one GPU.

Alex Krizhevsky, Ilya Sutskever and Geoffrey Hinton, ImageNet Classification with Deep Convolutional Neural Networks,
NeurIPS 2012 (`alexnet_original`); Alex Krizhevsky, One weird trick for parallelizing convolutional neural networks,
arXiv 1404.5997 (`alexnet`, as in torchvision). Maps on an image of 224 x 224:

| part | map | `alexnet` | `alexnet_original` |
|---|---|---|---|
| 11x11 convolution / 4 | 55 x 55 | 64 | 96, response normalisation |
| 3x3 max pool / 2; 5x5 convolution | 27 x 27 | 192 | 256 in 2 groups, response normalisation |
| 3x3 max pool / 2; 3x3 convolution | 13 x 13 | 384 | 384 |
| 3x3 convolution | 13 x 13 | 256 | 384 in 2 groups |
| 3x3 convolution | 13 x 13 | 256 | 256 in 2 groups |
| 3x3 max pool / 2 | 6 x 6 | 256 | 256 |
| fully connected | | 4096, 4096, K | 4096, 4096, K |
| parameters at K = 1000 | | 61,100,840 | 60,965,224 |

Two groups are what the paper's two GPUs computed apart. Submodules bear torchvision's names: `features_<i>` counts
convolutions, ReLUs, normalisations and pools from 0.

Differs from the paper: its images of 224 pixels give 55 x 55 places only with a border, which is two pixels here, as
in torchvision; images of another size are averaged into 6 x 6 bins before the head.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.layers import Conv, FlatDense, adaptive_avg_pool, check_size, linear_init, max_pool
from vision_jax.models.noise import Dropout

Array = jax.Array
# Pixels of the smallest image: the first convolution makes 15 of 63, the pools 7, 3 and 1.
SMALLEST = 63


class Layer(NamedTuple):
  """A convolution, followed by a ReLU, and by what a word of `then` names: 'norm', 'pool'."""

  features: int
  kernel_size: int
  stride: int = 1
  groups: int = 1
  then: tuple[str, ...] = ()
  bias: float = 0.0  # what its bias begins at


class Variant(NamedTuple):
  """What tells one AlexNet from the other."""

  layers: tuple[Layer, ...]
  kernel_init: Callable
  hidden_bias: float  # what the biases of the head's hidden layers begin at


VARIANTS = {
    'one gpu': Variant(
        (Layer(64, 11, stride=4, then=('pool',)), Layer(192, 5, then=('pool',)), Layer(384, 3), Layer(256, 3),
         Layer(256, 3, then=('pool',))), linear_init, hidden_bias=0.0),
    # Section 5 of the paper: kernels from N(0, 0.01); biases of 1 give the ReLUs positive inputs at first.
    'original': Variant(
        (Layer(96, 11, stride=4, then=('norm', 'pool')), Layer(256, 5, groups=2, then=('norm', 'pool'), bias=1.0),
         Layer(384, 3), Layer(384, 3, groups=2, bias=1.0), Layer(256, 3, groups=2, then=('pool',), bias=1.0)),
        nn.initializers.normal(0.01), hidden_bias=1.0),
}


class AlexNet(nn.Module):
  """An AlexNet; `alexnet` and `alexnet_original` are its rows.

  Args:
    variant: 'one gpu' (torchvision's) or 'original' (the paper's).
    num_classes: K; 0 gives the features of the last hidden layer.
    hidden: features of the head's two hidden layers.
    dropout: of what enters each of them, in training; the original drops what leaves them.
    dtype: the compute dtype.

  Returns:
    Float32 logits `[B, K]`, or features `[B, hidden]`, from `[B, H, W, 3]` of 63 x 63 pixels or more.

  Raises:
    ValueError: a smaller image; an unknown variant.

  >>> model = alexnet(num_classes=10, hidden=16)
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 63, 100, 3)))[0].shape
  (2, 10)
  """

  variant: str
  num_classes: int = 1000
  hidden: int = 4096
  dropout: float = 0.5
  dtype: Any = jnp.float32

  def setup(self):
    if self.variant not in VARIANTS:
      raise ValueError(f'AlexNet: unknown variant {self.variant!r}; known: {", ".join(VARIANTS)}')
    _, kernel_init, bias = VARIANTS[self.variant]
    dense = functools.partial(nn.Dense, kernel_init=kernel_init, dtype=jnp.dtype(self.dtype))
    bias_init = nn.initializers.constant(bias)
    self.drop = [Dropout(self.dropout), Dropout(self.dropout)]
    self.classifier_1 = FlatDense(self.hidden, self.dtype, kernel_init, bias_init)
    self.classifier_4 = dense(self.hidden, bias_init=bias_init)
    if self.num_classes:
      self.classifier_6 = dense(self.num_classes)

  def __call__(self, x: Array, *, train: bool = False) -> Array:
    *_, x = self.features(x, train=train).values()
    x = adaptive_avg_pool(x.astype(jnp.float32), 6)
    for drop, layer in zip(self.drop, (self.classifier_1, self.classifier_4), strict=True):
      if self.variant == 'original':
        x = drop(nn.relu(layer(x)), train=train)
      else:
        x = nn.relu(layer(drop(x, train=train)))
    return (self.classifier_6(x) if self.num_classes else x).astype(jnp.float32)

  @nn.compact
  def features(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    """The last map of every stride by name, in `dtype`.

    For `alexnet` these are `features_1` (stride 4), `features_4` (8), `features_11` (16), `features_12` (32); for
    `alexnet_original` `features_2`, `features_6`, `features_13` and `features_14`.
    """
    check_size('AlexNet', x, SMALLEST)
    layers, kernel_init, _ = VARIANTS[self.variant]
    maps, stride, index = {}, 1, 0
    for layer in layers:
      # 11x11 has a border of 2 pixels, the others keep their size.
      conv = Conv(layer.features, layer.kernel_size, layer.stride, min(layer.kernel_size // 2, 2), groups=layer.groups,
                  dtype=self.dtype, kernel_init=kernel_init, bias_init=nn.initializers.constant(layer.bias),
                  name=f'features_{index}')
      x = nn.relu(conv(x))
      stride, index = stride * layer.stride, index + 2
      maps[stride] = f'features_{index - 1}', x
      for word in layer.then:
        x = max_pool(x, 3, stride=2) if word == 'pool' else local_response_norm(x)
        stride, index = stride * (2 if word == 'pool' else 1), index + 1
        maps[stride] = f'features_{index - 1}', x
    return dict(maps.values())


def local_response_norm(x: Array, *, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> Array:
  """Each number divided by a power of the energy of the channels next to its own, at the same pixel.

  Args:
    x: `[B, H, W, C]`.
    size: how many channels next to each other count, the own in the middle; odd.
    alpha, beta, k: the divisor is `(k + alpha * sum of squares) ** beta`.

  Returns:
    `[B, H, W, C]` of x's dtype, computed in float32.

  Raises:
    ValueError: an even size.

  Alex Krizhevsky et al., ImageNet Classification with Deep Convolutional Neural Networks, NeurIPS 2012, section 3.3.

  Differs from torch and Caffe: they divide alpha by the size, which the paper does not.

  >>> local_response_norm(jnp.ones((1, 1, 1, 4)), size=3, alpha=1., beta=1., k=1.)[0, 0, 0].round(3).tolist()
  [0.3330000042915344, 0.25, 0.25, 0.3330000042915344]
  """
  if size % 2 == 0:
    raise ValueError(f'local_response_norm: size must be odd, not {size}; give {size + 1}')
  squares = jnp.square(x.astype(jnp.float32))
  padded = jnp.pad(squares, ((0, 0), (0, 0), (0, 0), (size // 2, size // 2)))
  energy = sum(padded[..., i:i + x.shape[-1]] for i in range(size))
  return (x * (k + alpha * energy) ** -beta).astype(x.dtype)


alexnet = functools.partial(AlexNet, 'one gpu')
alexnet_original = functools.partial(AlexNet, 'original')
