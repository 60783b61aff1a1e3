"""Swin transformers: attention within windows that shift from block to block, on maps that halve from stage to stage.

Version 1: Ze Liu et al., Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, arXiv 2103.14030,
Figure 3 and Table 7. Version 2: Ze Liu et al., Swin Transformer V2: Scaling Up Capacity and Resolution, arXiv
2111.09883, Figure 1. Maps of the tiny model on an image of 224 x 224 (version 1; 256 x 256 for version 2):

| part | what | version 1 | version 2 |
|---|---|---|---|
| features.0 | 4x4 convolution / 4, norm | 56 x 56 x 96 | 64 x 64 x 96 |
| features.1 | 2 blocks | 56 x 56 x 96 | 64 x 64 x 96 |
| features.2, 3 | patch merging / 2; 2 blocks | 28 x 28 x 192 | 32 x 32 x 192 |
| features.4, 5 | patch merging / 2; 6 blocks | 14 x 14 x 384 | 16 x 16 x 384 |
| features.6, 7 | patch merging / 2; 2 blocks | 7 x 7 x 768 | 8 x 8 x 768 |
| norm, head | norm; mean over the pixels, fully connected | K | K |

| | version 1 | version 2 |
|---|---|---|
| block | x + attention(norm(x)); x + MLP(norm(x)) | x + norm(attention(x)); x + norm(MLP(x)) |
| similarity | q k' / sqrt(D) | cos(q, k) / tau, tau learned for each head, at least 0.01 |
| bias of an offset | a table | 16 sigmoid(MLP(log offset)) |
| window | 7 x 7 | 8 x 8 |

| model | width | blocks | heads | stochastic depth | version 1 | version 2 |
|---|---|---|---|---|---|---|
| swin_t | 96 | 2, 2, 6, 2 | 3, 6, 12, 24 | 0.2 | 28,288,354 | 28,351,570 |
| swin_s | 96 | 2, 2, 18, 2 | 3, 6, 12, 24 | 0.3 | 49,606,258 | 49,737,442 |
| swin_b | 128 | 2, 2, 18, 2 | 4, 8, 16, 32 | 0.5 | 87,768,224 | 87,930,848 |

Every second block cuts its windows half a window further down and right; what wraps around the border attends only to
what it touched before. Maps that are no multiple of the window are padded with zeros in each attention, and nothing
shifts along an axis that one window covers. Submodules bear torchvision's names.

Differs from the paper: the hidden layer of version 2's bias has biases, and its offsets are normalised to -8 ... 8 for
every window, as in the original's code.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.models.attention import (
  Mlp,
  PackedProjection,
  attend,
  merge_windows,
  partition_windows,
  position_bias,
  split_heads,
)
from vision_jax.models.layers import Conv, Dense, check_size, global_avg_pool, linear_init, make_norm
from vision_jax.models.noise import Dropout, StochasticDepth

Array = jax.Array
# The original cuts it at 2, a hundred standard deviations.
normal_init = nn.initializers.normal(0.02)
# What the original adds to the similarity of pixels that a border separates; published weights were trained with it.
# Where version 2 learned to multiply cosines by nearly 100 they are not quite hidden from each other.
APART = -100.0


class Swin(nn.Module):
  """A Swin transformer; `swin_t` to `swin_v2_b` are its rows.

  Args:
    version: 1 or 2.
    width: channels of the first stage; each stage has twice as many as the one before.
    depths: blocks of each stage.
    num_heads: of each stage.
    window: side of a window in pixels of the map.
    num_classes: K; 0 gives features and no `head`.
    dropout: after each attention and in each MLP.
    attention_dropout: of the attention weights.
    stochastic_depth: in [0, 1): how often training drops a branch of the last block; it grows linearly from 0.
    dtype: the compute dtype.

  Returns:
    Float32 logits `[B, K]`, or features `[B, C]` (the mean of the last map), from `[B, H, W, 3]` of any size from 4 on.

  Raises:
    ValueError: a smaller image, with the nearest size that is allowed; an unknown version.

  >>> model = swin_t(num_classes=10)
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 32, 48, 3)))[0].shape
  (2, 10)
  """

  version: int
  width: int
  depths: tuple[int, ...]
  num_heads: tuple[int, ...]
  window: int
  num_classes: int = 1000
  dropout: float = 0.0
  attention_dropout: float = 0.0
  stochastic_depth: float = 0.2
  dtype: Any = jnp.float32

  def setup(self):
    if self.num_classes:
      self.head = nn.Dense(self.num_classes, kernel_init=normal_init, dtype=jnp.dtype(self.dtype))

  def __call__(self, x: Array, *, train: bool = False) -> Array:
    x = global_avg_pool(self.features(x, train=train)['norm'])
    return self.head(x).astype(jnp.float32) if self.num_classes else x

  @nn.compact
  def features(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    """The map of every stage, `features_1` (stride 4), `features_3`, ..., `norm` (the last one), in `dtype`."""
    check_size('Swin', x, 4)
    if self.version not in (1, 2):
      raise ValueError(f'Swin: there is no version {self.version}; known: 1, 2')
    norm = functools.partial(make_norm, 'layer', dtype=self.dtype)
    x = Conv(self.width, 4, 4, dtype=self.dtype, kernel_init=linear_init, name='features_0_0')(x)
    x = norm(self.width, name='features_0_2')(x)
    last, done, maps = sum(self.depths) - 1, 0, {}
    for stage, (depth, heads) in enumerate(zip(self.depths, self.num_heads, strict=True)):
      if stage:
        x = PatchMerging(self.version, self.dtype, name=f'features_{2 * stage}')(x)
      name = f'features_{2 * stage + 1}'
      for i in range(depth):
        x = Block(self.version, heads, self.window, i % 2 * (self.window // 2), self.dropout, self.attention_dropout,
                  self.stochastic_depth * done / max(1, last), self.dtype, name=f'{name}_{i}')(x, train=train)
        done += 1
      maps[name] = x
    del maps[name]  # the norm's map has its stride
    return maps | {'norm': norm(x.shape[-1], name='norm')(x)}


class PatchMerging(nn.Module):
  """Halves a map and doubles its channels: a fully connected layer on every four neighbours.

  Args:
    version: 1 norms what goes into the layer, 2 what comes out.
    dtype: the compute dtype.

  Returns:
    `[B, ceil(H / 2), ceil(W / 2), 2 C]` in `dtype`, from `[B, H, W, C]`; an odd map is padded with zeros.

  >>> layer = PatchMerging(2)
  >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.zeros((1, 5, 6, 8)))[0].shape
  (1, 3, 3, 16)
  """

  version: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    channels = x.shape[-1]
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
    # Column by column: (0, 0), (1, 0), (0, 1), (1, 1).
    x = jnp.concatenate([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], axis=-1)
    reduction = Dense(2 * channels, use_bias=False, kernel_init=normal_init, dtype=jnp.dtype(self.dtype),
                      name='reduction')
    norm = make_norm('layer', (4 if self.version == 1 else 2) * channels, dtype=self.dtype, name='norm')
    return reduction(norm(x)) if self.version == 1 else norm(reduction(x))


class Block(nn.Module):
  """A transformer block whose attention stays within windows.

  Args:
    version: 1 norms what goes into attention and MLP, 2 what comes out.
    num_heads, window, shift, attention_dropout: as in `WindowAttention`.
    dropout: after the attention and in the MLP.
    stochastic_depth: in [0, 1): how often training drops a branch of an example.
    dtype: the compute dtype.

  Returns:
    `[B, H, W, C]` in `dtype`, from `[B, H, W, C]`.

  >>> block = Block(1, num_heads=2, window=4, shift=2)
  >>> jax.eval_shape(block.init_with_output, jax.random.key(0), jnp.zeros((1, 5, 6, 8)))[0].shape
  (1, 5, 6, 8)
  """

  version: int
  num_heads: int
  window: int
  shift: int = 0
  dropout: float = 0.0
  attention_dropout: float = 0.0
  stochastic_depth: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    channels = x.shape[-1]
    attention = WindowAttention(self.version, self.num_heads, self.window, self.shift, self.dropout,
                                self.attention_dropout, self.dtype, name='attn')
    mlp = Mlp(4 * channels, self.dropout, self.dtype, normal_init, name='mlp')
    for i, branch in enumerate((attention, mlp), start=1):
      norm = make_norm('layer', channels, dtype=self.dtype, name=f'norm{i}')
      y = branch(norm(x), train=train) if self.version == 1 else norm(branch(x, train=train))
      x = x + StochasticDepth(self.stochastic_depth, name=f'stochastic_depth_{i}')(y, train=train)
    return x


class WindowAttention(nn.Module):
  """Attention among the pixels of each window, with a bias for each offset between two pixels.

  Args:
    version: 1 or 2; see the table above.
    num_heads: into which the channels are split.
    window: side of a window in pixels.
    shift: how far the windows are moved down and right.
    dropout: after the last layer.
    attention_dropout: of the attention weights.
    dtype: the compute dtype; similarities and softmax are float32.

  Returns:
    `[B, H, W, C]` in `dtype`, from `[B, H, W, C]` of any size.

  Ze Liu et al., arXiv 2103.14030, section 3.2; arXiv 2111.09883, sections 3.2 and 3.3.

  >>> layer = WindowAttention(2, num_heads=2, window=4, shift=2)
  >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.zeros((1, 5, 6, 8)))[0].shape
  (1, 5, 6, 8)
  """

  version: int
  num_heads: int
  window: int
  shift: int = 0
  dropout: float = 0.0
  attention_dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    height, width, channels = x.shape[1:]
    window = (self.window, self.window)
    x = jnp.pad(x, ((0, 0), (0, -height % self.window), (0, -width % self.window), (0, 0)))
    size = x.shape[1:3]
    shift = tuple(self.shift if side > self.window else 0 for side in size)
    x = partition_windows(_roll(x, (-shift[0], -shift[1])), window)
    projection = PackedProjection(self.version == 1, self.dtype, normal_init, name='qkv')
    q, k, v = (split_heads(part, self.num_heads) for part in projection(x, x, x))
    q, k, scale = self._similarity(q, k)
    bias = self._bias()
    if any(shift):
      bias = bias + jnp.where(shift_mask(size, window, shift), 0, APART)[:, None]
    x = attend(q, k, v, scale=scale, bias=bias,
               drop=functools.partial(Dropout(self.attention_dropout, name='drop'), train=train))
    x = Dense(channels, kernel_init=normal_init, dtype=jnp.dtype(self.dtype), name='proj')(x)
    x = Dropout(self.dropout, name='proj_drop')(x, train=train)
    return _roll(merge_windows(x, window, size), shift)[:, :height, :width]

  def _similarity(self, q: Array, k: Array) -> tuple[Array, Array, float | Array]:
    """Queries, keys and the scale of their products."""
    if self.version == 1:
      return q, k, q.shape[-1] ** -0.5
    scale = self.param('logit_scale', nn.initializers.constant(math.log(10)), (self.num_heads,), jnp.float32)
    return _unit(q), _unit(k), jnp.exp(jnp.minimum(scale, math.log(100)))[:, None, None]

  def _bias(self) -> Array:
    """`[heads, T, T]`, float32."""
    window = (self.window, self.window)
    if self.version == 1:
      shape = ((2 * self.window - 1) ** 2, self.num_heads)
      return position_bias(self.param('relative_position_bias_table', normal_init, shape, jnp.float32), window)
    # Float32 whatever the compute dtype: it is small, and 16 times what an activation would round away adds up.
    hidden = nn.relu(nn.Dense(512, kernel_init=normal_init, name='cpb_mlp_0')(relative_coords_table(window)))
    table = nn.Dense(self.num_heads, use_bias=False, kernel_init=normal_init, name='cpb_mlp_2')(hidden)
    return 16 * nn.sigmoid(position_bias(table.reshape(-1, self.num_heads), window))


def _roll(x: Array, shift: tuple[int, int]) -> Array:
  """The map, moved down and right; what leaves it comes in again on the other side."""
  return jnp.roll(x, shift, (1, 2)) if any(shift) else x


def _unit(x: Array) -> Array:
  """Vectors `[..., D]` of length 1, in x's dtype; zeros stay zeros."""
  y = x.astype(jnp.float32)
  # The bound, squared, is what torch allows the length to be; under the root it keeps the gradient at zero finite.
  return (y * jax.lax.rsqrt(jnp.maximum((y ** 2).sum(-1, keepdims=True), 1e-24))).astype(x.dtype)


def shift_mask(size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]) -> np.ndarray:
  """Which pixels of a window may look at each other, after the map was moved up and left.

  Args:
    size: (H, W) of the map, multiples of the window.
    window: its (height, width).
    shift: how far (up, left) the map was moved, less than the window.

  Returns:
    Bools `[windows, T, T]`, T = height * width; False where moving brought pixels from opposite borders together.

  >>> shift_mask((1, 4), (1, 2), (0, 1)).astype(int).tolist()
  [[[1, 1], [1, 1]], [[1, 0], [0, 1]]]
  """
  # A map falls into three stretches along each axis: whole windows, and the two parts of the last one.
  rows, columns = ((np.arange(n) >= n - w).astype(int) + ((np.arange(n) >= n - s) & (s > 0))
                   for n, w, s in zip(size, window, shift, strict=True))
  (h, w), (height, width) = window, size
  regions = (3 * rows[:, None] + columns).reshape(height // h, h, width // w, w)
  regions = regions.transpose(0, 2, 1, 3).reshape(-1, h * w)
  return regions[:, :, None] == regions[:, None]


def relative_coords_table(window: tuple[int, int]) -> np.ndarray:
  """The offsets between two pixels of a window on a logarithmic scale: what version 2 makes its bias of.

  Args:
    window: (h, w) in pixels, at least 2.

  Returns:
    Float32 `[1, 2 h - 1, 2 w - 1, 2]`: (dy, dx), each sign(d) log2(1 + |d|) / 3 of an offset d in -8 ... 8.

  Ze Liu et al., arXiv 2111.09883, equation 4.

  >>> (relative_coords_table((2, 2))[0, :, 0, 0] * 3 / np.log2(9)).round(4)
  array([-1.,  0.,  1.])
  """
  axes = [8 * np.arange(1 - side, side, dtype=np.float32) / (side - 1) for side in window]
  table = np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1)[None]
  return (np.sign(table) * np.log2(np.abs(table) + 1) / 3).astype(np.float32)


swin_t = functools.partial(Swin, 1, 96, (2, 2, 6, 2), (3, 6, 12, 24), 7, stochastic_depth=0.2)
swin_s = functools.partial(Swin, 1, 96, (2, 2, 18, 2), (3, 6, 12, 24), 7, stochastic_depth=0.3)
swin_b = functools.partial(Swin, 1, 128, (2, 2, 18, 2), (4, 8, 16, 32), 7, stochastic_depth=0.5)
swin_v2_t = functools.partial(Swin, 2, 96, (2, 2, 6, 2), (3, 6, 12, 24), 8, stochastic_depth=0.2)
swin_v2_s = functools.partial(Swin, 2, 96, (2, 2, 18, 2), (3, 6, 12, 24), 8, stochastic_depth=0.3)
swin_v2_b = functools.partial(Swin, 2, 128, (2, 2, 18, 2), (4, 8, 16, 32), 8, stochastic_depth=0.5)
