"""Attention as torch packs it: one projection for queries, keys and values."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.layers import linear_init
from vision_jax.models.noise import Dropout

Array = jax.Array


class Attention(nn.Module):
  """Multi-head attention with torch's packed projection: softmax(q k' / sqrt(E / heads)) v.

  Args:
    num_heads: into which the E channels are split.
    dropout: the rate of dropout on the attention weights.
    dtype: the compute dtype; the softmax is float32.

  Returns:
    `[B, Q, E]` in `dtype`, from queries `[B, Q, E]`, keys `[B, T, E]` and values `[B, T, E]` (the queries when left
    out). `key_valid [B, T]` is False for keys that nothing may look at; at least one of each row must be True.

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
    keys = queries if keys is None else keys
    values = keys if values is None else values
    q, k, v = (x.reshape(*x.shape[:2], self.num_heads, -1)
               for x in PackedProjection(self.dtype, name='in_proj')(queries, keys, values))
    logits = jnp.einsum('bqhd,bthd->bhqt', q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
    if key_valid is not None:
      logits = jnp.where(key_valid[:, None, None], logits, -jnp.inf)
    weights = Dropout(self.dropout)(nn.softmax(logits), train=train).astype(self.dtype)
    x = jnp.einsum('bhqt,bthd->bqhd', weights, v).reshape(queries.shape)
    return nn.Dense(queries.shape[-1], dtype=jnp.dtype(self.dtype), kernel_init=linear_init, name='out_proj')(x)


class PackedProjection(nn.Module):
  """The projections of queries, keys and values, side by side in one kernel `[E, 3 E]` and one bias `[3 E]`."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, queries: Array, keys: Array, values: Array) -> tuple[Array, Array, Array]:
    channels = queries.shape[-1]
    kernel = self.param('kernel', nn.initializers.xavier_uniform(), (channels, 3 * channels), jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (3 * channels,), jnp.float32)
    kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
    if queries is keys and keys is values:  # one product instead of three
      return tuple(jnp.split(queries.astype(self.dtype) @ kernel + bias, 3, axis=-1))
    parts = zip((queries, keys, values), jnp.split(kernel, 3, axis=-1), jnp.split(bias, 3), strict=True)
    return tuple(x.astype(self.dtype) @ k + b for x, k, b in parts)
