"""Inception v3: inception modules whose large convolutions are made of small and of one-dimensional ones.

Christian Szegedy et al., Rethinking the Inception Architecture for Computer Vision, arXiv 1512.00567, Table 1. Maps on
an image of 299 x 299:

| part | what | map |
|---|---|---|
| Conv2d_1a, 2a, 2b | 3x3 / 2, 3x3 without border, 3x3 | 147 x 147 x 64 |
| Conv2d_3b, 4a | 3x3 max pool / 2; 1x1, 3x3 without border | 71 x 71 x 192 |
| Mixed_5b to 5d | 3x3 max pool / 2; 5x5 and double 3x3 (Figure 5) | 35 x 35 x 256, 288, 288 |
| Mixed_6a | 3x3 / 2 side by side (Figure 10) | 17 x 17 x 768 |
| Mixed_6b to 6e | 1x7 and 7x1 (Figure 6); then `AuxLogits` | 17 x 17 x 768 |
| Mixed_7a | 3x3 / 2 side by side | 8 x 8 x 1280 |
| Mixed_7b, 7c | 1x3 and 3x1 side by side (Figure 7) | 8 x 8 x 2048 |
| fc | mean over the pixels, dropout, fully connected | K |

Parameters at K = 1000: 27,161,264 with the auxiliary head, 23,834,568 without. Submodules bear torchvision's names.

Differs from the paper: where its text and its published code differ (the stem, the channels of the modules) the code
counts, as in torchvision.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.classification.googlenet import basic_conv, recentre
from vision_jax.models.layers import Size, avg_pool, check_size, global_avg_pool, max_pool
from vision_jax.models.noise import Dropout

Array = jax.Array
# Pixels of the smallest image: its maps have 37, 35, 17, 15, 7, 3 and 1 pixels after each layer without a border.
SMALLEST = 75
# How much the loss of the auxiliary head counts in training, beside 1 for that of the logits: as in the authors' code
# (tensorflow/models, inception_model.py).
AUXILIARY_WEIGHTS = (0.4,)
# Maps of at least 17 pixels, so images of 299, give the auxiliary head something to see.
SMALLEST_AUXILIARY = 17
# torchvision cuts its normal distribution at -2 and 2, 20 standard deviations off.
normal_init = nn.initializers.normal(0.1)


class InceptionV3(nn.Module):
  """The third network of inception modules; `inception_v3` is its row.

  Args:
    stages: for each stage the names of its modules, what they are, and their widths, as in `STAGES`.
    num_classes: K; 0 gives the mean of the last map, and no `fc` and no auxiliary head.
    aux: whether the auxiliary head `AuxLogits` exists. `__call__` never computes it; `with_auxiliaries` does, which the
      task of classification trains: then images have at least 299 x 299 pixels.
    transform_input: takes images normalised by ImageNet's means and deviations to the range -1 to 1 of the weights
      that torchvision publishes.
    dropout: of the mean of the last map, in training.
    norm: see `layers.make_norm`.
    dtype: the compute dtype.

  Returns:
    Float32 logits `[B, K]`, or features `[B, 2048]`, from `[B, H, W, 3]` with sides of at least 75 pixels.

  Raises:
    ValueError: a smaller image.

  >>> model = inception_v3(num_classes=10)
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 75, 80, 3)))[0].shape
  (2, 10)
  """

  stages: tuple[tuple[tuple[Any, ...], ...], ...]
  num_classes: int = 1000
  aux: bool = True
  transform_input: bool = False
  dropout: float = 0.5
  norm: str = 'batch'
  dtype: Any = jnp.float32

  def setup(self):
    if self.num_classes:
      self.drop = Dropout(self.dropout)
      self.fc = nn.Dense(self.num_classes, kernel_init=normal_init, dtype=jnp.dtype(self.dtype))
      if self.aux:
        self.AuxLogits = AuxiliaryHead(self.num_classes, self.norm, self.dtype)

  def __call__(self, x: Array, *, train: bool = False) -> Array:
    maps = self.features(x, train=train)
    if self.is_initializing() and self.auxiliary_weights:
      # The parameters of the head do not depend on the image, which may be too small for it.
      channels = maps[self._names[1]].shape[-1]
      self.AuxLogits(jnp.zeros((1, SMALLEST_AUXILIARY, SMALLEST_AUXILIARY, channels)))
    return self._logits(maps, train=train)

  def with_auxiliaries(self, x: Array, *, train: bool = False) -> tuple[Array, Array]:
    """The logits, and those of the head `AuxLogits`, float32 `[B, K]` each; see `auxiliary_weights`.

    Images have at least 299 x 299 pixels.
    """
    if not self.auxiliary_weights:
      raise ValueError('InceptionV3: this model has no auxiliary head; make it with aux=True and num_classes above 0')
    check_size('InceptionV3 with its auxiliary head (aux=False leaves it out)', x, 299)
    maps = self.features(x, train=train)
    return self._logits(maps, train=train), self.AuxLogits(maps[self._names[1]], train=train)

  @property
  def auxiliary_weights(self) -> tuple[float, ...]:
    """How much the loss of each further result of `with_auxiliaries` counts in training; empty without the head."""
    return AUXILIARY_WEIGHTS if self.aux and self.num_classes else ()

  @property
  def _names(self) -> list[str]:
    """The last module of every stage."""
    return [stage[-1][0] for stage in self.stages]

  def _logits(self, maps: dict[str, Array], *, train: bool) -> Array:
    x = global_avg_pool(maps[self._names[-1]])
    return self.fc(self.drop(x, train=train)).astype(jnp.float32) if self.num_classes else x

  @nn.compact
  def features(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    """The last map of every stride by name, in `dtype`.

    They are `Conv2d_2b_3x3` (stride 2), `Conv2d_4a_3x3` (4), `Mixed_5d` (8), `Mixed_6e` (16) and `Mixed_7c` (32).
    """
    check_size('InceptionV3', x, SMALLEST)
    conv = Convolutions(self.norm, self.dtype, train)
    x = recentre(x) if self.transform_input else x
    x = conv(x, 'Conv2d_1a_3x3', 32, 3, stride=2)
    x = conv(x, 'Conv2d_2a_3x3', 32, 3, padding=0)
    x = conv(x, 'Conv2d_2b_3x3', 64, 3)
    maps = {'Conv2d_2b_3x3': x}
    x = conv(max_pool(x, 3, stride=2), 'Conv2d_3b_1x1', 80)
    x = maps['Conv2d_4a_3x3'] = conv(x, 'Conv2d_4a_3x3', 192, 3, padding=0)
    x = max_pool(x, 3, stride=2)
    for stage in self.stages:
      for name, module, *widths in stage:
        x = module(*widths, norm=self.norm, dtype=self.dtype, name=name)(x, train=train)
      maps[name] = x
    return maps


class Convolutions:
  """Makes the convolutions of one module: a ConvNorm by name, without a border where it strides.

  Args:
    norm, dtype, train: of each of them.
  """

  def __init__(self, norm: str, dtype: Any, train: bool):
    self.make = functools.partial(basic_conv, norm=norm, dtype=dtype, kernel_init=normal_init)
    self.train = train

  def __call__(self, x: Array, name: str, features: int, kernel_size: Size = 1, *, stride: int = 1,
               padding: int | None = None) -> Array:
    padding = 0 if stride > 1 else padding
    return self.make(features, kernel_size, stride, padding, name=name)(x, train=self.train)


class InceptionA(nn.Module):
  """1x1, 5x5, double 3x3 and mean-pooled branches: Figure 5, with one 5x5 left.

  Args:
    pool_features: channels of the pooled branch.
    norm, dtype: as in `InceptionV3`.

  Returns:
    `[B, H, W, 224 + pool_features]` in `dtype`.

  >>> jax.eval_shape(InceptionA(32).init_with_output, jax.random.key(0), jnp.zeros((1, 5, 6, 8)))[0].shape
  (1, 5, 6, 256)
  """

  pool_features: int
  norm: str = 'batch'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    conv = Convolutions(self.norm, self.dtype, train)
    five = conv(conv(x, 'branch5x5_1', 48), 'branch5x5_2', 64, 5)
    double = conv(conv(x, 'branch3x3dbl_1', 64), 'branch3x3dbl_2', 96, 3)
    double = conv(double, 'branch3x3dbl_3', 96, 3)
    pooled = conv(avg_pool(x, 3, stride=1, padding=1), 'branch_pool', self.pool_features)
    return jnp.concatenate([conv(x, 'branch1x1', 64), five, double, pooled], -1)


class InceptionB(nn.Module):
  """Halves the map: 3x3 / 2, double 3x3 / 2 and a max pool / 2 side by side, Figure 10.

  Args:
    norm, dtype: as in `InceptionV3`.

  Returns:
    `[B, h, w, 480 + C]` in `dtype`, with `h = (H - 1) // 2`.

  >>> jax.eval_shape(InceptionB().init_with_output, jax.random.key(0), jnp.zeros((1, 5, 6, 8)))[0].shape
  (1, 2, 2, 488)
  """

  norm: str = 'batch'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    conv = Convolutions(self.norm, self.dtype, train)
    double = conv(conv(x, 'branch3x3dbl_1', 64), 'branch3x3dbl_2', 96, 3)
    double = conv(double, 'branch3x3dbl_3', 96, 3, stride=2)
    return jnp.concatenate([conv(x, 'branch3x3', 384, 3, stride=2), double, max_pool(x, 3, stride=2)], -1)


class InceptionC(nn.Module):
  """1x1, 7x7 and double 7x7 branches, each 7x7 as 1x7 and 7x1, and a mean-pooled one: Figure 6.

  Args:
    width: channels between the one-dimensional convolutions.
    norm, dtype: as in `InceptionV3`.

  Returns:
    `[B, H, W, 768]` in `dtype`.

  >>> jax.eval_shape(InceptionC(4).init_with_output, jax.random.key(0), jnp.zeros((1, 5, 6, 8)))[0].shape
  (1, 5, 6, 768)
  """

  width: int
  norm: str = 'batch'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    conv = Convolutions(self.norm, self.dtype, train)
    seven = conv(conv(x, 'branch7x7_1', self.width), 'branch7x7_2', self.width, (1, 7))
    seven = conv(seven, 'branch7x7_3', 192, (7, 1))
    double = conv(conv(x, 'branch7x7dbl_1', self.width), 'branch7x7dbl_2', self.width, (7, 1))
    double = conv(conv(double, 'branch7x7dbl_3', self.width, (1, 7)), 'branch7x7dbl_4', self.width, (7, 1))
    double = conv(double, 'branch7x7dbl_5', 192, (1, 7))
    pooled = conv(avg_pool(x, 3, stride=1, padding=1), 'branch_pool', 192)
    return jnp.concatenate([conv(x, 'branch1x1', 192), seven, double, pooled], -1)


class InceptionD(nn.Module):
  """Halves the map: 3x3 / 2, 7x7 (as 1x7 and 7x1) with 3x3 / 2, and a max pool / 2 side by side.

  Args:
    norm, dtype: as in `InceptionV3`.

  Returns:
    `[B, h, w, 512 + C]` in `dtype`, with `h = (H - 1) // 2`.

  >>> jax.eval_shape(InceptionD().init_with_output, jax.random.key(0), jnp.zeros((1, 5, 6, 8)))[0].shape
  (1, 2, 2, 520)
  """

  norm: str = 'batch'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    conv = Convolutions(self.norm, self.dtype, train)
    three = conv(conv(x, 'branch3x3_1', 192), 'branch3x3_2', 320, 3, stride=2)
    seven = conv(conv(x, 'branch7x7x3_1', 192), 'branch7x7x3_2', 192, (1, 7))
    seven = conv(conv(seven, 'branch7x7x3_3', 192, (7, 1)), 'branch7x7x3_4', 192, 3, stride=2)
    return jnp.concatenate([three, seven, max_pool(x, 3, stride=2)], -1)


class InceptionE(nn.Module):
  """1x1, 3x3, 3x3 twice and mean-pooled branches, the last 3x3 of each as 1x3 and 3x1 side by side: Figure 7.

  Args:
    norm, dtype: as in `InceptionV3`.

  Returns:
    `[B, H, W, 2048]` in `dtype`.

  >>> jax.eval_shape(InceptionE().init_with_output, jax.random.key(0), jnp.zeros((1, 5, 6, 8)))[0].shape
  (1, 5, 6, 2048)
  """

  norm: str = 'batch'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    conv = Convolutions(self.norm, self.dtype, train)
    three = conv(x, 'branch3x3_1', 384)
    double = conv(conv(x, 'branch3x3dbl_1', 448), 'branch3x3dbl_2', 384, 3)
    pooled = conv(avg_pool(x, 3, stride=1, padding=1), 'branch_pool', 192)
    return jnp.concatenate([
        conv(x, 'branch1x1', 320),
        conv(three, 'branch3x3_2a', 384, (1, 3)), conv(three, 'branch3x3_2b', 384, (3, 1)),
        conv(double, 'branch3x3dbl_3a', 384, (1, 3)), conv(double, 'branch3x3dbl_3b', 384, (3, 1)), pooled], -1)


class AuxiliaryHead(nn.Module):
  """A classifier on the last map of 17 x 17 pixels, which only training uses (section 4).

  Args:
    num_classes: K.
    norm, dtype: as in `InceptionV3`.

  Returns:
    Float32 logits `[B, K]`, from `[B, H, W, C]` of 17 x 17 or more.

  >>> jax.eval_shape(AuxiliaryHead(5).init_with_output, jax.random.key(0), jnp.zeros((2, 17, 20, 8)))[0].shape
  (2, 5)
  """

  num_classes: int
  norm: str = 'batch'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    conv = Convolutions(self.norm, self.dtype, train)
    x = conv(conv(avg_pool(x, 5, stride=3), 'conv0', 128), 'conv1', 768, 5, padding=0)
    x = global_avg_pool(x)
    x = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.001), dtype=jnp.dtype(self.dtype), name='fc')(x)
    return x.astype(jnp.float32)


STAGES = (
    (('Mixed_5b', InceptionA, 32), ('Mixed_5c', InceptionA, 64), ('Mixed_5d', InceptionA, 64)),
    (('Mixed_6a', InceptionB), ('Mixed_6b', InceptionC, 128), ('Mixed_6c', InceptionC, 160),
     ('Mixed_6d', InceptionC, 160), ('Mixed_6e', InceptionC, 192)),
    (('Mixed_7a', InceptionD), ('Mixed_7b', InceptionE), ('Mixed_7c', InceptionE)),
)
inception_v3 = functools.partial(InceptionV3, STAGES)
