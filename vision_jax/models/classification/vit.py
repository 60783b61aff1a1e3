"""ViT: a transformer encoder on the patches of an image.

Alexey Dosovitskiy et al., An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale, arXiv 2010.11929,
Figure 1, equations 1 to 4 and Table 1. What happens to an image of H x W with patches of P x P, h = H / P, w = W / P:

| part | what | output |
|---|---|---|
| conv_proj | P x P convolution / P | h x w x E |
| class_token, encoder.pos_embedding | one more token in front; plus what tells the places apart | 1 + h w tokens of E |
| encoder.layers | L times: x + attention(norm(x)), then x + MLP(norm(x)) | 1 + h w tokens of E |
| encoder.ln | norm | 1 + h w tokens of E |
| heads.head | fully connected, on the class token | K |

| model | P | L | heads | E | MLP | image | parameters |
|---|---|---|---|---|---|---|---|
| vit_b_16 | 16 | 12 | 12 | 768 | 3,072 | 224 | 86,567,656 |
| vit_b_32 | 32 | 12 | 12 | 768 | 3,072 | 224 | 88,224,232 |
| vit_l_16 | 16 | 24 | 16 | 1,024 | 4,096 | 224 | 304,326,632 |
| vit_l_32 | 32 | 24 | 16 | 1,024 | 4,096 | 224 | 306,535,400 |
| vit_h_14 | 14 | 32 | 16 | 1,280 | 5,120 | 518 | 633,470,440 |

Position embeddings are learned for one size of image; `resize_position_embeddings` carries them to another. Submodules
bear torchvision's names.

Differs from the paper: the head has no hidden layer in pre-training either; dropout is 0 unless asked for.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.models.attention import Attention, Mlp
from vision_jax.models.layers import Conv, Size, make_norm, pair
from vision_jax.models.noise import Dropout

Array = jax.Array
EPS = 1e-6  # of every norm


class ViT(nn.Module):
  """A vision transformer; `vit_b_16` to `vit_h_14` are its rows.

  Args:
    patch_size: P, in pixels.
    num_layers: L.
    num_heads: of every attention.
    hidden_dim: E.
    mlp_dim: numbers between the two layers of an MLP.
    num_classes: K; 0 gives features and no `heads_head`.
    image_size: pixels, one number or (h, w), multiples of the patch: what the position embeddings are made for.
    dropout: of the embeddings and in every block.
    attention_dropout: of the attention weights.
    dtype: the compute dtype.

  Returns:
    Float32 logits `[B, K]`, or the class token's features `[B, E]`, from `[B, H, W, 3]`.

  Raises:
    ValueError: an `image_size` that is no multiple of the patch, or images of another size.

  >>> model = vit_b_16(num_classes=10, image_size=(32, 48))
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 32, 48, 3)))[0].shape
  (2, 10)
  """

  patch_size: int
  num_layers: int
  num_heads: int
  hidden_dim: int
  mlp_dim: int
  num_classes: int = 1000
  image_size: Size = 224
  dropout: float = 0.0
  attention_dropout: float = 0.0
  dtype: Any = jnp.float32

  def setup(self):
    if self.num_classes:
      self.heads_head = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, dtype=jnp.dtype(self.dtype))

  def __call__(self, x: Array, *, train: bool = False) -> Array:
    token = self._tokens(x, train=train)[:, 0].astype(jnp.float32)
    return self.heads_head(token).astype(jnp.float32) if self.num_classes else token

  def features(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    """The tokens of the patches as one map, `encoder` `[B, h, w, E]`, in `dtype`."""
    tokens = self._tokens(x, train=train)[:, 1:]
    return {'encoder': tokens.reshape(x.shape[0], *self._grid(), self.hidden_dim)}

  @nn.compact
  def _tokens(self, x: Array, *, train: bool = False) -> Array:
    """The encoded tokens `[B, 1 + h w, E]`, the class token first."""
    self._check(x)
    x = Conv(self.hidden_dim, self.patch_size, self.patch_size, dtype=self.dtype,
             kernel_init=nn.initializers.variance_scaling(1.0, 'fan_in', 'normal'), name='conv_proj')(x)
    x = x.reshape(x.shape[0], -1, self.hidden_dim)
    token = self.param('class_token', nn.initializers.zeros, (1, 1, self.hidden_dim), jnp.float32)
    token = jnp.broadcast_to(token.astype(self.dtype), (x.shape[0], 1, self.hidden_dim))
    return Encoder(self.num_layers, self.num_heads, self.mlp_dim, self.dropout, self.attention_dropout, self.dtype,
                   name='encoder')(jnp.concatenate([token, x], axis=1), train=train)

  def _grid(self) -> tuple[int, int]:
    height, width = pair(self.image_size)
    return height // self.patch_size, width // self.patch_size

  def _check(self, x: Array) -> None:
    size = pair(self.image_size)
    if any(side < self.patch_size or side % self.patch_size for side in size):
      near = tuple(max(1, round(side / self.patch_size)) * self.patch_size for side in size)
      raise ValueError(f'ViT: image_size {size} is no multiple of the patch, {self.patch_size}; the nearest is {near}')
    if x.shape[1:3] != size:
      raise ValueError(f'ViT: the position embeddings are for images of {size}, not {x.shape[1:3]}; create the model '
                       'with that image_size, and carry trained embeddings over by resize_position_embeddings')


class Encoder(nn.Module):
  """Position embeddings, blocks, norm: equations 1 to 4 of the paper on tokens `[B, T, E]`.

  Args:
    num_layers, num_heads, mlp_dim, dropout, attention_dropout, dtype: as in `ViT`.

  Returns:
    `[B, T, E]` in `dtype`.

  >>> layer = Encoder(2, 2, 16)
  >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.zeros((1, 5, 8)))[0].shape
  (1, 5, 8)
  """

  num_layers: int
  num_heads: int
  mlp_dim: int
  dropout: float = 0.0
  attention_dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    embedding = self.param('pos_embedding', nn.initializers.normal(0.02), (1, *x.shape[1:]), jnp.float32)
    x = Dropout(self.dropout, name='drop')(x + embedding.astype(self.dtype), train=train)
    for i in range(self.num_layers):
      x = EncoderBlock(self.num_heads, self.mlp_dim, self.dropout, self.attention_dropout, self.dtype,
                       name=f'layers_encoder_layer_{i}')(x, train=train)
    return make_norm('layer', x.shape[-1], dtype=self.dtype, eps=EPS, name='ln')(x)


class EncoderBlock(nn.Module):
  """A pre-norm transformer block: attention, then an MLP, each added to its input.

  Args:
    num_heads, mlp_dim, dropout, attention_dropout, dtype: as in `ViT`.

  Returns:
    `[B, T, E]` in `dtype`, from `[B, T, E]`.

  >>> layer = EncoderBlock(2, 16)
  >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.zeros((1, 5, 8)))[0].shape
  (1, 5, 8)
  """

  num_heads: int
  mlp_dim: int
  dropout: float = 0.0
  attention_dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    norm = functools.partial(make_norm, 'layer', x.shape[-1], dtype=self.dtype, eps=EPS)
    y = Attention(self.num_heads, self.attention_dropout, self.dtype, name='self_attention')(
        norm(name='ln_1')(x), train=train)
    x = x + Dropout(self.dropout, name='drop')(y, train=train)
    return x + Mlp(self.mlp_dim, self.dropout, self.dtype, nn.initializers.xavier_uniform(),
                   nn.initializers.normal(1e-6), name='mlp')(norm(name='ln_2')(x), train=train)


def resize_position_embeddings(embeddings: Array, size: tuple[int, int], *,
                               old_size: tuple[int, int] | None = None) -> Array:
  """Position embeddings for another number of patches: bicubic, the corners kept; the class token's stays as it is.

  Args:
    embeddings: `[1, 1 + h w, E]`, the class token first, then the patches row by row.
    size: (h, w) in patches, of the result.
    old_size: (h, w) in patches, of what is given; a square when left out.

  Returns:
    `[1, 1 + h w, E]` for the new size. It equals what torchvision's `interpolate_embeddings` gives.

  Raises:
    ValueError: the embeddings are not those of a class token and `old_size` patches.

  Alexey Dosovitskiy et al., arXiv 2010.11929, section 3.2.

  >>> resize_position_embeddings(jnp.ones((1, 1 + 14 * 14, 8)), (24, 32)).shape
  (1, 769, 8)
  """
  tokens = embeddings.shape[1] - 1
  h, w = (round(max(0, tokens) ** 0.5),) * 2 if old_size is None else old_size
  if embeddings.ndim != 3 or embeddings.shape[0] != 1 or tokens < 1 or h * w != tokens:
    raise ValueError(f'resize_position_embeddings: {tuple(embeddings.shape)} is not [1, 1 + h w, E] with (h, w) = '
                     f'{(h, w)}; give the size in patches as old_size')
  grid = embeddings[:, 1:].reshape(1, h, w, -1)
  grid = jnp.einsum('yh,xw,bhwe->byxe', cubic_weights(h, size[0]), cubic_weights(w, size[1]), grid,
                    precision='highest')
  return jnp.concatenate([embeddings[:, :1], grid.reshape(1, size[0] * size[1], -1)], axis=1)


def cubic_weights(old: int, new: int) -> np.ndarray:
  """The matrix `[new, old]` of cubic interpolation between `old` points, from the first to the last of them.

  Robert Keys, Cubic Convolution Interpolation for Digital Image Processing, 1981, with a = -0.75, which is torch's
  choice; beyond the border the last point repeats.

  >>> cubic_weights(3, 5)[1].tolist()
  [0.5, 0.59375, -0.09375]
  """
  a = -0.75
  place = np.arange(new) * ((old - 1) / max(1, new - 1))
  first = np.floor(place).astype(int)
  weights = np.zeros((new, old))
  for tap in (-1, 0, 1, 2):
    t = np.abs(place - first - tap)
    near = (a + 2) * t ** 3 - (a + 3) * t ** 2 + 1
    far = a * (t ** 3 - 5 * t ** 2 + 8 * t - 4)
    weights[np.arange(new), np.clip(first + tap, 0, old - 1)] += np.where(t <= 1, near, far)
  return weights.astype(np.float32)


vit_b_16 = functools.partial(ViT, 16, 12, 12, 768, 3072)
vit_b_32 = functools.partial(ViT, 32, 12, 12, 768, 3072)
vit_l_16 = functools.partial(ViT, 16, 24, 16, 1024, 4096)
vit_l_32 = functools.partial(ViT, 32, 24, 16, 1024, 4096)
vit_h_14 = functools.partial(ViT, 14, 32, 16, 1280, 5120, image_size=518)
