"""The parts that transformers share: attention, the packed projection of torch, windows, the MLP.

Tokens are `[..., T, E]`, the batch first; any number of axes, such as windows, may stand in between.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.models.layers import Dense, linear_init
from vision_jax.models.noise import Dropout
from vision_jax.models.windows import pixels

Array = jax.Array

# With the error function; Flax's default is an approximation by tanh.
gelu = functools.partial(nn.gelu, approximate=False)
# What hides a key: its weight is exactly 0, and where all are hidden the softmax is still finite.
HIDDEN = -1e30


def attend(queries: Array, keys: Array, values: Array, *, scale: float | Array, bias: Array | None = None,
           drop: Callable[[Array], Array] | None = None) -> Array:
  """softmax(scale q k' + bias) v, for each head; the softmax is float32.

  Args:
    queries: `[..., Q, heads, D]`.
    keys, values: `[..., T, heads, D]`.
    scale: what the products are multiplied by; one number, or whatever broadcasts to `[..., heads, Q, T]`.
    bias: added to them; broadcasts to `[..., heads, Q, T]`. `HIDDEN` hides a key.
    drop: what happens to the weights `[..., heads, Q, T]`, a dropout say.

  Returns:
    `[..., Q, heads * D]` in the dtype of the values.

  Ashish Vaswani et al., Attention Is All You Need, arXiv 1706.03762, section 3.2.1.

  >>> q, kv = jnp.zeros((2, 5, 4, 8)), jnp.ones((2, 3, 4, 8))
  >>> attend(q, kv, kv, scale=8 ** -0.5).shape
  (2, 5, 32)
  """
  logits = jnp.einsum('...qhd,...thd->...hqt', queries, keys, preferred_element_type=jnp.float32) * scale
  logits = logits if bias is None else logits + bias
  weights = nn.softmax(logits)
  weights = weights if drop is None else drop(weights)
  x = jnp.einsum('...hqt,...thd->...qhd', weights.astype(values.dtype), values)
  return x.reshape(*x.shape[:-2], -1)


def split_heads(x: Array, heads: int) -> Array:
  """`[..., T, heads, E / heads]`, from `[..., T, E]`.

  >>> split_heads(jnp.zeros((2, 5, 32)), 4).shape
  (2, 5, 4, 8)
  """
  return x.reshape(*x.shape[:-1], heads, -1)


class Attention(nn.Module):
  """Multi-head attention with torch's packed projection: softmax(q k' / sqrt(E / heads)) v.

  Args:
    num_heads: into which the E channels are split.
    dropout: the rate of dropout on the attention weights.
    dtype: the compute dtype; the softmax is float32.

  Returns:
    `[B, Q, E]` in `dtype`, from queries `[B, Q, E]`, keys `[B, T, E]` (the queries when left out) and values
    `[B, T, E]` (the keys when left out). `key_valid [B, T]` is False for keys and values that nothing looks at,
    whatever they hold; a row without a key that is valid gives finite numbers without a meaning.

  Raises:
    ValueError: the heads do not divide the channels.

  Ashish Vaswani et al., Attention Is All You Need, arXiv 1706.03762, section 3.2.

  >>> layer = Attention(num_heads=2)
  >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.zeros((1, 5, 8)))[0].shape
  (1, 5, 8)
  """

  num_heads: int
  dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, queries: Array, keys: Array | None = None, values: Array | None = None, *,
               key_valid: Array | None = None, train: bool = False) -> Array:
    channels = queries.shape[-1]
    if channels % self.num_heads:
      raise ValueError(f'Attention {self.name}: {self.num_heads} heads must divide {channels} channels')
    keys = queries if keys is None else keys
    values = keys if values is None else values
    bias = None
    if key_valid is not None:
      bias = jnp.where(key_valid[:, None, None], 0.0, HIDDEN)
      # A weight of 0 does not undo a NaN. Where queries and keys are one array they stay so: one product, not three.
      clean = {id(x): jnp.where(key_valid[..., None], x, 0) for x in (keys, values)}
      queries, keys, values = (clean.get(id(x), x) for x in (queries, keys, values))
    q, k, v = (split_heads(x, self.num_heads)
               for x in PackedProjection(dtype=self.dtype, name='in_proj')(queries, keys, values))
    x = attend(q, k, v, scale=q.shape[-1] ** -0.5, bias=bias,
               drop=functools.partial(Dropout(self.dropout, name='drop'), train=train))
    return Dense(channels, dtype=jnp.dtype(self.dtype), kernel_init=linear_init, name='out_proj')(x)


class PackedProjection(nn.Module):
  """The projections of queries, keys and values, side by side in one kernel `[E, 3 E]` and one bias `[3 E]`.

  Args:
    key_bias: whether the keys' part of the bias is used.
    dtype: the compute dtype.
    kernel_init: initialiser of the kernel.

  Returns:
    Three arrays `[..., T, E]` in `dtype`.

  >>> layer, x = PackedProjection(), jnp.zeros((1, 5, 8))
  >>> [y.shape for y in jax.eval_shape(layer.init_with_output, jax.random.key(0), x, x, x)[0]]
  [(1, 5, 8), (1, 5, 8), (1, 5, 8)]
  """

  key_bias: bool = True
  dtype: Any = jnp.float32
  kernel_init: Callable = nn.initializers.xavier_uniform()

  @nn.compact
  def __call__(self, queries: Array, keys: Array, values: Array) -> tuple[Array, Array, Array]:
    channels = queries.shape[-1]
    kernel = self.param('kernel', self.kernel_init, (channels, 3 * channels), jnp.float32).astype(self.dtype)
    bias = self.param('bias', nn.initializers.zeros, (3 * channels,), jnp.float32).astype(self.dtype)
    if not self.key_bias:
      bias = jnp.where(np.repeat([True, False, True], channels), bias, 0)
    if queries is keys and keys is values:  # one product instead of three
      return tuple(jnp.split(pixels(queries.astype(self.dtype), kernel) + bias, 3, axis=-1))
    parts = zip((queries, keys, values), jnp.split(kernel, 3, axis=-1), jnp.split(bias, 3), strict=True)
    return tuple(pixels(x.astype(self.dtype), k) + b for x, k, b in parts)


class Mlp(nn.Module):
  """Two fully connected layers with a GELU in between, on every token.

  Args:
    hidden: numbers between the two.
    dropout: the rate of dropout after each.
    dtype: the compute dtype.
    kernel_init, bias_init: initialisers of both.
    parts: the names of the two layers; torchvision numbers them.

  Returns:
    `[..., E]` in `dtype`, from `[..., E]`.

  >>> layer = Mlp(32)
  >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.zeros((1, 5, 8)))[0].shape
  (1, 5, 8)
  """

  hidden: int
  dropout: float = 0.0
  dtype: Any = jnp.float32
  kernel_init: Callable = linear_init
  bias_init: Callable = nn.initializers.zeros
  parts: tuple[str, str] = ('0', '3')

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    dense = functools.partial(Dense, dtype=jnp.dtype(self.dtype), kernel_init=self.kernel_init,
                              bias_init=self.bias_init)
    y = gelu(dense(self.hidden, name=self.parts[0])(x))
    y = Dropout(self.dropout, name='drop_0')(y, train=train)
    y = dense(x.shape[-1], name=self.parts[1])(y)
    return Dropout(self.dropout, name='drop_1')(y, train=train)


def partition_windows(x: Array, window: tuple[int, int]) -> Array:
  """Cuts a map into windows that do not overlap, row by row.

  Args:
    x: `[B, H, W, C]`, H and W multiples of the window.
    window: its (height, width) in pixels.

  Returns:
    `[B, windows, height * width, C]`.

  >>> partition_windows(jnp.arange(8).reshape(1, 2, 4, 1), (2, 2))[0, :, :, 0].tolist()
  [[0, 1, 4, 5], [2, 3, 6, 7]]
  """
  b, height, width, c = x.shape
  h, w = window
  x = x.reshape(b, height // h, h, width // w, w, c).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, -1, h * w, c)


def merge_windows(x: Array, window: tuple[int, int], size: tuple[int, int]) -> Array:
  """The map `[B, H, W, C]` that `partition_windows` cut into `x`.

  Args:
    x: `[B, windows, height * width, C]`.
    window: (height, width) in pixels.
    size: (H, W).

  >>> x = jnp.arange(8).reshape(1, 2, 4, 1)
  >>> bool((merge_windows(partition_windows(x, (1, 2)), (1, 2), (2, 4)) == x).all())
  True
  """
  (h, w), (height, width) = window, size
  x = x.reshape(x.shape[0], height // h, width // w, h, w, -1).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(x.shape[0], height, width, -1)


def relative_position_index(window: tuple[int, int]) -> np.ndarray:
  """Which row of a table of (2 h - 1)(2 w - 1) offsets belongs to each pair of the h w pixels of a window.

  Args:
    window: (h, w) in pixels.

  Returns:
    Whole numbers `[h * w, h * w]`: row i, column j is the offset (dy, dx) from pixel j to pixel i, as
    (dy + h - 1)(2 w - 1) + dx + w - 1.

  >>> relative_position_index((1, 3)).tolist()
  [[2, 1, 0], [3, 2, 1], [4, 3, 2]]
  """
  h, w = window
  y, x = np.divmod(np.arange(h * w), w)
  return (y[:, None] - y + h - 1) * (2 * w - 1) + x[:, None] - x + w - 1


def position_bias(table: Array, window: tuple[int, int]) -> Array:
  """The bias of every pair of pixels of a window, `[heads, h * w, h * w]`, from a table of offsets `[offsets, heads]`.

  Args:
    table: `[(2 h - 1)(2 w - 1), heads]`; see `relative_position_index`.
    window: (h, w) in pixels.

  >>> position_bias(jnp.arange(5.)[:, None], (1, 3))[0].tolist()
  [[2.0, 1.0, 0.0], [3.0, 2.0, 1.0], [4.0, 3.0, 2.0]]
  """
  return jnp.moveaxis(table[relative_position_index(window)], -1, 0)
