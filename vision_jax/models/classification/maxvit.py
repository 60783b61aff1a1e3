"""MaxViT: in every block a convolution, attention within windows, and attention across the whole map on a sparse grid.

Zhengzhong Tu et al., MaxViT: Multi-Axis Vision Transformer, arXiv 2204.01697, Figures 2 and 3, Table 1. Maps of
`maxvit_t` on an image of 224 x 224:

| part | what | output |
|---|---|---|
| stem | 3x3 convolution / 2, norm, GELU; 3x3 convolution | 112 x 112 x 64 |
| blocks.0 | 2 layers, the first / 2 | 56 x 56 x 64 |
| blocks.1 | 2 layers, / 2 | 28 x 28 x 128 |
| blocks.2 | 5 layers, / 2 | 14 x 14 x 256 |
| blocks.3 | 2 layers, / 2 | 7 x 7 x 512 |
| classifier | mean over the pixels, norm, fully connected, tanh, fully connected | K |

A layer is an inverted residual with squeeze and excite, then attention within windows of 7 x 7 pixels, then attention
within grids of 7 x 7 pixels, as far apart as the map allows, so that each grid spans the map. Heads have 32 channels.
Parameters at K = 1000: 30,919,624. Submodules bear torchvision's names.

Differs from the paper: similarities are divided by the root of all channels, not of a head's, as in the original's
code and torchvision's; the inverted residual's norms come before and between its convolutions, none after the last.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.attention import (
  Mlp,
  PackedProjection,
  attend,
  gelu,
  merge_windows,
  partition_windows,
  position_bias,
  split_heads,
)
from vision_jax.models.layers import Conv, ConvNorm, Dense, SqueezeExcite, avg_pool, global_avg_pool, make_norm
from vision_jax.models.noise import Dropout, StochasticDepth

Array = jax.Array
EPS, MOMENTUM = 1e-3, 0.99  # of the BatchNorms
normal_init = nn.initializers.normal(0.02)


class MaxViT(nn.Module):
  """A MaxViT; `maxvit_t` is its row.

  Args:
    stem_channels: of the first map.
    widths: channels of each block.
    depths: layers of each block.
    head_dim: channels of an attention head.
    num_classes: K; 0 gives features and no classifier.
    partition_size: side of a window and of a grid, in pixels: images are multiples of 2 ** (blocks + 1) times this.
    dropout: at the end of every MLP.
    attention_dropout: at the end of every attention.
    stochastic_depth: in [0, 1): how often training drops a branch of the last layer; it grows linearly from 0.
    norm: of the convolutions; see `layers.make_norm`.
    dtype: the compute dtype.

  Returns:
    Float32 logits `[B, K]`, or features `[B, C]` (the mean of the last map), from `[B, H, W, 3]`.

  Raises:
    ValueError: an image of another size, with the nearest that is allowed.

  >>> model = MaxViT(8, (8, 16), (1, 1), head_dim=4, num_classes=10)
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 56, 112, 3)))[0].shape
  (2, 10)
  """

  stem_channels: int
  widths: tuple[int, ...]
  depths: tuple[int, ...]
  head_dim: int
  num_classes: int = 1000
  partition_size: int = 7
  dropout: float = 0.0
  attention_dropout: float = 0.0
  stochastic_depth: float = 0.2
  norm: str = 'batch'
  dtype: Any = jnp.float32

  def setup(self):
    if self.num_classes:
      dense = functools.partial(nn.Dense, kernel_init=normal_init, dtype=jnp.dtype(self.dtype))
      self.classifier_2 = make_norm('layer', self.widths[-1], dtype=self.dtype)
      self.classifier_3 = dense(self.widths[-1])
      self.classifier_5 = dense(self.num_classes, use_bias=False)

  def __call__(self, x: Array, *, train: bool = False) -> Array:
    *_, x = self.features(x, train=train).values()
    x = global_avg_pool(x)
    if not self.num_classes:
      return x
    return self.classifier_5(nn.tanh(self.classifier_3(self.classifier_2(x)))).astype(jnp.float32)

  @nn.compact
  def features(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    """The maps `stem` (stride 2), `blocks_0` (4), `blocks_1`, ... in `dtype`."""
    self._check(x)
    x = ConvNorm(self.stem_channels, 3, 2, norm=self.norm, activation=gelu, dtype=self.dtype, kernel_init=normal_init,
                 eps=EPS, momentum=MOMENTUM, parts=('0', '1'), name='stem_0')(x, train=train)
    x = Conv(self.stem_channels, 3, padding=1, dtype=self.dtype, kernel_init=normal_init, name='stem_1_0')(x)
    maps, last, done = {'stem': x}, sum(self.depths) - 1, 0
    for block, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
      for i in range(depth):
        x = Layer(width, 1 if i else 2, self.head_dim, self.partition_size, self.dropout, self.attention_dropout,
                  self.stochastic_depth * done / max(1, last), self.norm, self.dtype,
                  name=f'blocks_{block}_layers_{i}')(x, train=train)
        done += 1
      maps[f'blocks_{block}'] = x
    return maps

  def _check(self, x: Array) -> None:
    unit = self.partition_size * 2 ** (len(self.widths) + 1)
    if any(side < unit or side % unit for side in x.shape[1:3]):
      near = ' x '.join(str(max(1, round(side / unit)) * unit) for side in x.shape[1:3])
      raise ValueError(f'MaxViT: the sides of images are multiples of {unit} for a partition_size of '
                       f'{self.partition_size}, not {x.shape[1]} x {x.shape[2]}; the nearest size is {near}')


class Layer(nn.Module):
  """An inverted residual, attention within windows, attention within grids.

  Args:
    features: channels that come out.
    stride: 1 or 2.
    head_dim, partition_size, dropout, attention_dropout, stochastic_depth, norm, dtype: as in `MaxViT`.

  Returns:
    `[B, H / stride, W / stride, features]` in `dtype`.

  >>> layer = Layer(8, 2, 4, 2)
  >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.zeros((1, 8, 12, 8)))[0].shape
  (1, 4, 6, 8)
  """

  features: int
  stride: int
  head_dim: int
  partition_size: int
  dropout: float = 0.0
  attention_dropout: float = 0.0
  stochastic_depth: float = 0.0
  norm: str = 'batch'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    x = MBConv(self.features, self.stride, self.stochastic_depth, self.norm, self.dtype, name='layers_MBconv')(
        x, train=train)
    for kind in ('window', 'grid'):
      x = PartitionAttention(kind, self.partition_size, self.head_dim, self.dropout, self.attention_dropout,
                             self.stochastic_depth, self.dtype, name=f'layers_{kind}_attention')(x, train=train)
    return x


class MBConv(nn.Module):
  """The inverted residual of MaxViT: norm, 1x1 to four times the features, 3x3 of each channel alone, squeeze, 1x1.

  Args:
    features: channels that come out.
    stride: 1 or 2, of the 3x3 convolution; the shortcut then is a 3x3 mean / 2 before its 1x1 convolution.
    stochastic_depth: in [0, 1): how often training drops the branch of an example.
    norm, dtype: as in `MaxViT`.

  Returns:
    `[B, ceil(H / stride), ceil(W / stride), features]` in `dtype`.

  Zhengzhong Tu et al., arXiv 2204.01697, section 3.3.

  >>> layer = MBConv(8, 2)
  >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.zeros((1, 5, 6, 4)))[0].shape
  (1, 3, 3, 8)
  """

  features: int
  stride: int = 1
  stochastic_depth: float = 0.0
  norm: str = 'batch'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    common = {'norm': self.norm, 'eps': EPS, 'momentum': MOMENTUM, 'dtype': self.dtype}
    expanded = 4 * self.features
    conv_norm = functools.partial(ConvNorm, expanded, activation=gelu, kernel_init=normal_init, parts=('0', '1'),
                                  **common)
    conv = functools.partial(Conv, self.features, 1, dtype=self.dtype, kernel_init=normal_init)
    y = make_norm(self.norm, x.shape[-1], train=train, dtype=self.dtype, eps=EPS, momentum=MOMENTUM,
                  name='layers_pre_norm')(x)
    y = conv_norm(1, name='layers_conv_a')(y, train=train)
    y = conv_norm(3, self.stride, groups=expanded, name='layers_conv_b')(y, train=train)
    y = SqueezeExcite(self.features // 4, nn.silu, dtype=self.dtype, kernel_init=normal_init,
                      name='layers_squeeze_excitation')(y)
    y = conv(name='layers_conv_c')(y)
    if self.stride == 2:
      x = conv(name='proj_1')(avg_pool(x, 3, stride=2, padding=1))
    elif x.shape[-1] != self.features:
      x = conv(name='proj_0')(x)
    return x + StochasticDepth(self.stochastic_depth, name='stochastic_depth')(y, train=train)


class PartitionAttention(nn.Module):
  """A pre-norm transformer block within windows, or within grids that span the map.

  Args:
    kind: 'window' or 'grid'.
    partition_size: side of a window, or of a grid, in pixels.
    head_dim: channels of a head.
    dropout: at the end of the MLP.
    attention_dropout: at the end of the attention.
    stochastic_depth: in [0, 1): how often training drops a branch of an example.
    dtype: the compute dtype.

  Returns:
    `[B, H, W, C]` in `dtype`, from `[B, H, W, C]`, H and W multiples of `partition_size`.

  Raises:
    ValueError: an unknown kind.

  Zhengzhong Tu et al., arXiv 2204.01697, section 3.2, Algorithm 1.

  >>> layer = PartitionAttention('grid', 2, head_dim=4)
  >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.zeros((1, 4, 6, 8)))[0].shape
  (1, 4, 6, 8)
  """

  kind: str
  partition_size: int
  head_dim: int
  dropout: float = 0.0
  attention_dropout: float = 0.0
  stochastic_depth: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    if self.kind not in ('window', 'grid'):
      raise ValueError(f'PartitionAttention: unknown kind {self.kind!r}; known: window, grid')
    size, channels, grid = x.shape[1:3], x.shape[-1], self.kind == 'grid'
    # A grid is the pixels at one place of all windows, of which there are then partition_size by partition_size.
    window = tuple(side // self.partition_size if grid else self.partition_size for side in size)
    swap = (lambda x: x.swapaxes(1, 2)) if grid else (lambda x: x)
    norm = functools.partial(make_norm, 'layer', channels, dtype=self.dtype)
    x = swap(partition_windows(x, window))
    y = RelativeAttention(self.head_dim, self.partition_size, self.dtype, name='attn_layer_1')(
        norm(name='attn_layer_0')(x))
    y = Dropout(self.attention_dropout, name='attention_drop')(y, train=train)
    x = x + StochasticDepth(self.stochastic_depth, name='stochastic_depth_1')(y, train=train)
    y = Mlp(4 * channels, dtype=self.dtype, kernel_init=normal_init, parts=('1', '3'), name='mlp_layer')(
        norm(name='mlp_layer_0')(x))
    y = Dropout(self.dropout, name='drop')(y, train=train)
    x = x + StochasticDepth(self.stochastic_depth, name='stochastic_depth_2')(y, train=train)
    return merge_windows(swap(x), window, size)


class RelativeAttention(nn.Module):
  """Attention among the pixels of a square, with a bias for each offset between two of them.

  Args:
    head_dim: channels of a head.
    side: of the square, in pixels.
    dtype: the compute dtype; the softmax is float32.

  Returns:
    `[B, squares, side * side, C]` in `dtype`, from the same.

  Raises:
    ValueError: heads of this size do not divide the channels.

  >>> layer = RelativeAttention(head_dim=4, side=2)
  >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.zeros((1, 6, 4, 8)))[0].shape
  (1, 6, 4, 8)
  """

  head_dim: int
  side: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    channels = x.shape[-1]
    heads, rest = divmod(channels, self.head_dim)
    if rest:
      raise ValueError(f'RelativeAttention: heads of {self.head_dim} must divide {channels} channels')
    projection = PackedProjection(dtype=self.dtype, kernel_init=normal_init, name='to_qkv')
    q, k, v = (split_heads(part, heads) for part in projection(x, x, x))
    table = self.param('relative_position_bias_table', normal_init, ((2 * self.side - 1) ** 2, heads), jnp.float32)
    x = attend(q, k, v, scale=channels ** -0.5, bias=position_bias(table, (self.side, self.side)))
    return Dense(channels, kernel_init=normal_init, dtype=jnp.dtype(self.dtype), name='merge')(x)


maxvit_t = functools.partial(MaxViT, 64, (64, 128, 256, 512), (2, 2, 5, 2), 32)
