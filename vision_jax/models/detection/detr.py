"""DETR: a transformer that answers an image with a set of boxes, without anchors and without suppression.

Nicolas Carion et al., End-to-End Object Detection with Transformers, arXiv 2005.12872, Figures 2 and 10, section A.4.
What happens to a canvas of H x W, with h = ceil(H / 32), w = ceil(W / 32), Q queries, L decoder layers, K classes:

| part | what | output |
|---|---|---|
| backbone.0.body | ResNet's last map | h x w x 2048 |
| input_proj | 1x1 convolution | h w tokens of 256 |
| transformer.encoder | 6 layers: attention among the tokens, MLP of 2048 | h w tokens of 256 |
| query_embed | learned | Q queries of 256 |
| transformer.decoder | 6 layers: attention among the answers, attention to the tokens, MLP; norm | L x Q x 256 |
| class_embed | fully connected; no object is the last class | L x Q x (K + 1) |
| bbox_embed | three fully connected layers, sigmoid | L x Q x 4 |

Every attention and every MLP is added to its input, and the sum normalised ("post-norm"). Sines and cosines of their
places are added to the tokens where they are queries or keys, in every layer, and never where they are values; so are
the learned queries to the answers, which start as zeros.

| model | backbone | stride | parameters at K = 91 |
|---|---|---|---|
| detr_resnet50 | ResNet-50 | 32 | 41,577,888 |
| detr_resnet50_dc5 | ResNet-50, its last stage dilated | 16 | 41,577,888 |
| detr_resnet101 | ResNet-101 | 32 | 60,570,016 |
| detr_resnet101_dc5 | ResNet-101, its last stage dilated | 16 | 60,570,016 |

The authors' count for ResNet-50, 41,524,768, leaves out its 53,120 scales and biases of BatchNorm, which never change
there. Submodules bear the names of the authors' code, so that its checkpoints can be read. Those know COCO's file ids 0
to 90 as classes: `num_classes=91`.

Differs from the authors' code: attention's output projections start as torch's linear layers do, not as Xavier's, and
all biases start at 0.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.models.attention import Attention
from vision_jax.models.classification import resnet
from vision_jax.models.detection import fpn
from vision_jax.models.layers import Conv, linear_init, make_norm
from vision_jax.models.noise import Dropout

Array = jax.Array
BODIES = {'resnet18': resnet.resnet18, 'resnet34': resnet.resnet34, 'resnet50': resnet.resnet50,
          'resnet101': resnet.resnet101, 'resnet152': resnet.resnet152}


class DETR(nn.Module):
  """A backbone, a transformer and two heads: for each query of each decoder layer a class and a box.

  Args:
    body: the backbone, a module whose `features(x, train=)` gives maps `[B, h, w, C]` by name.
    levels: the name of the one map that becomes tokens.
    num_classes: K.
    num_queries: Q, the most objects that one image can be answered with.
    hidden_dim: E, the numbers of a token and of a query; a multiple of 4 and of `num_heads`.
    num_heads: of every attention.
    encoder_layers, decoder_layers: how many; the latter is L.
    mlp_dim: numbers between the two layers of an MLP.
    dropout: of attention weights, in MLPs and of what is added to the tokens.
    aux_outputs: whether every decoder layer answers; otherwise the last alone, and L is 1.
    dtype: the compute dtype.
    pre_norm: whether layers normalise what goes into their branches (`--pre_norm` of the authors' program) and not, as
      in the paper, the sums that come out.
    temperature: as in `sine_positions`; a map of few cells needs less than the paper's.

  Returns:
    `logits` float32 `[L, B, Q, K + 1]`, the last class being no object, and `boxes` float32 `[L, B, Q, 4]`: cx, cy, w,
    h in 0..1, shares of the image's content. From `[B, H, W, 3]` of any size and `image_size [B, 2]`, the (h, w) of the
    contents in pixels; the whole canvas when left out. What lies outside of the content is hidden from every attention.

  Raises:
    ValueError: not one level, or sizes of tokens that cannot be split.

  >>> model = detr_small(num_classes=10, num_queries=5)
  >>> outputs = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 96, 128, 3)))[0]
  >>> outputs['logits'].shape, outputs['boxes'].shape
  ((3, 2, 5, 11), (3, 2, 5, 4))
  """

  body: nn.Module
  levels: tuple[str, ...]
  num_classes: int
  num_queries: int = 100
  hidden_dim: int = 256
  num_heads: int = 8
  encoder_layers: int = 6
  decoder_layers: int = 6
  mlp_dim: int = 2048
  dropout: float = 0.1
  aux_outputs: bool = True
  dtype: Any = jnp.float32
  pre_norm: bool = False
  temperature: float = 10_000.0

  @nn.compact
  def __call__(self, x: Array, *, image_size: Array | None = None, train: bool = False) -> dict[str, Array]:
    self._check()
    dense = functools.partial(nn.Dense, kernel_init=linear_init, dtype=jnp.dtype(self.dtype))
    body = self.body.clone(parent=None, name=None)  # so that it becomes a part of Backbone, and not of this module
    features = Backbone(body, self.levels[0], name='backbone_0')(x, train=train)
    tokens = Conv(self.hidden_dim, 1, kernel_init=linear_init, dtype=self.dtype, name='input_proj')(features)
    tokens = tokens.reshape(x.shape[0], -1, self.hidden_dim)

    size = features.shape[1:3]
    valid = jnp.ones((1, *size), bool) if image_size is None else content_cells(image_size, x.shape[1:3], size)
    positions = sine_positions(valid, self.hidden_dim, temperature=self.temperature)
    positions = positions.reshape(-1, size[0] * size[1], self.hidden_dim)
    key_valid = None if image_size is None else valid.reshape(x.shape[0], -1)
    queries = Queries(self.num_queries, self.hidden_dim, name='query_embed')()
    answers = Transformer(self.num_heads, self.encoder_layers, self.decoder_layers, self.mlp_dim, self.dropout,
                          self.dtype, self.pre_norm, name='transformer')(
        tokens, positions, queries, key_valid=key_valid, train=train)
    answers = answers if self.aux_outputs else answers[-1:]
    logits = dense(self.num_classes + 1, name='class_embed')(answers)
    boxes = BoxHead(self.dtype, name='bbox_embed')(answers)
    return {'logits': logits.astype(jnp.float32), 'boxes': nn.sigmoid(boxes.astype(jnp.float32))}

  def _check(self) -> None:
    if len(self.levels) != 1:
      raise ValueError(f'DETR: {len(self.levels)} levels {self.levels}; give the one whose pixels become tokens')
    if self.hidden_dim % 4 or self.hidden_dim % self.num_heads:
      raise ValueError(f'DETR: hidden_dim {self.hidden_dim} must be a multiple of 4, for the sine and cosine of x and '
                       f'y, and of the {self.num_heads} heads')


class Backbone(nn.Module):
  """One map `[B, h, w, C]` of a backbone; here for its name in the authors' checkpoints."""

  body: nn.Module
  level: str

  def __call__(self, x: Array, *, train: bool = False) -> Array:
    maps = self.body.features(x, train=train)
    if self.level not in maps:
      raise ValueError(f'DETR: the backbone has no map {self.level!r}; it has {", ".join(maps)}')
    return maps[self.level]


class Queries(nn.Module):
  """The learned queries `[Q, E]`: float32, one parameter under torch's name."""

  num_queries: int
  hidden_dim: int

  @nn.compact
  def __call__(self) -> Array:
    return self.param('weight', nn.initializers.normal(1.0), (self.num_queries, self.hidden_dim), jnp.float32)


class Transformer(nn.Module):
  """The encoder on tokens and the decoder on queries.

  Args:
    num_heads, encoder_layers, decoder_layers, mlp_dim, dropout, dtype, pre_norm: as in `DETR`.

  Returns:
    `[L, B, Q, E]` in `dtype`, the normalised output of every decoder layer, from tokens `[B, T, E]`, their positions
    `[B, T, E]` or `[1, T, E]`, queries `[Q, E]`, and `key_valid [B, T]`, False for tokens that nothing looks at.

  >>> layer, inputs = Transformer(2, 1, 3, 8), map(jnp.zeros, ((2, 6, 4), (1, 6, 4), (5, 4)))
  >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), *inputs)[0].shape
  (3, 2, 5, 4)
  """

  num_heads: int
  encoder_layers: int
  decoder_layers: int
  mlp_dim: int
  dropout: float = 0.0
  dtype: Any = jnp.float32
  pre_norm: bool = False

  @nn.compact
  def __call__(self, tokens: Array, positions: Array, queries: Array, *, key_valid: Array | None = None,
               train: bool = False) -> Array:
    options = (self.num_heads, self.mlp_dim, self.dropout, self.dtype, self.pre_norm)
    positions, queries = positions.astype(self.dtype), queries.astype(self.dtype)
    tokens = Encoder(self.encoder_layers, *options, name='encoder')(tokens, positions, key_valid=key_valid, train=train)
    return Decoder(self.decoder_layers, *options, name='decoder')(tokens, positions, queries, key_valid=key_valid,
                                                                  train=train)


class Encoder(nn.Module):
  """Encoder layers, one after the other: `[B, T, E]` from `[B, T, E]`; arguments as in `Transformer`."""

  num_layers: int
  num_heads: int
  mlp_dim: int
  dropout: float = 0.0
  dtype: Any = jnp.float32
  pre_norm: bool = False

  @nn.compact
  def __call__(self, x: Array, positions: Array, *, key_valid: Array | None = None, train: bool = False) -> Array:
    for i in range(self.num_layers):
      x = EncoderLayer(self.num_heads, self.mlp_dim, self.dropout, self.dtype, self.pre_norm, name=f'layers_{i}')(
          x, positions, key_valid=key_valid, train=train)
    return make_norm('layer', x.shape[-1], dtype=self.dtype, name='norm')(x) if self.pre_norm else x


class Decoder(nn.Module):
  """Decoder layers, one after the other, from zeros: `[L, B, Q, E]`, each normalised; arguments as in `Transformer`."""

  num_layers: int
  num_heads: int
  mlp_dim: int
  dropout: float = 0.0
  dtype: Any = jnp.float32
  pre_norm: bool = False

  @nn.compact
  def __call__(self, tokens: Array, positions: Array, queries: Array, *, key_valid: Array | None = None,
               train: bool = False) -> Array:
    norm = make_norm('layer', queries.shape[-1], dtype=self.dtype, name='norm')
    x, answers = jnp.zeros((tokens.shape[0], *queries.shape), tokens.dtype), []
    for i in range(self.num_layers):
      x = DecoderLayer(self.num_heads, self.mlp_dim, self.dropout, self.dtype, self.pre_norm, name=f'layers_{i}')(
          x, queries, tokens, positions, key_valid=key_valid, train=train)
      answers.append(norm(x))
    return jnp.stack(answers)


class Layer(nn.Module):
  """What the layers of the encoder and the decoder share: branches that are added and normalised, one an MLP."""

  num_heads: int
  mlp_dim: int
  dropout: float = 0.0
  dtype: Any = jnp.float32
  pre_norm: bool = False

  def _attention(self, name: str) -> Attention:
    return Attention(self.num_heads, self.dropout, self.dtype, name=name)

  def _added(self, x: Array, branch: Callable[[Array], Array], number: int, train: bool) -> Array:
    norm = make_norm('layer', x.shape[-1], dtype=self.dtype, name=f'norm{number}')
    dropped = Dropout(self.dropout, name=f'dropout{number}')
    y = dropped(branch(norm(x) if self.pre_norm else x), train=train)
    return x + y if self.pre_norm else norm(x + y)

  def _mlp(self, x: Array, train: bool) -> Array:
    dense = functools.partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform(), dtype=jnp.dtype(self.dtype))
    hidden = nn.relu(dense(self.mlp_dim, name='linear1')(x))
    return dense(x.shape[-1], name='linear2')(Dropout(self.dropout, name='dropout')(hidden, train=train))


class EncoderLayer(Layer):
  """Self-attention and an MLP on tokens `[B, T, E]`; the positions go to its queries and keys, not to its values.

  >>> layer, x = EncoderLayer(2, 16), jnp.zeros((1, 6, 8))
  >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), x, x)[0].shape
  (1, 6, 8)
  """

  @nn.compact
  def __call__(self, x: Array, positions: Array, *, key_valid: Array | None = None, train: bool = False) -> Array:
    def attend(x: Array) -> Array:
      placed = x + positions
      return self._attention('self_attn')(placed, placed, x, key_valid=key_valid, train=train)

    return self._added(self._added(x, attend, 1, train), lambda x: self._mlp(x, train), 2, train)


class DecoderLayer(Layer):
  """Self-attention among answers `[B, Q, E]`, attention to tokens `[B, T, E]`, and an MLP.

  >>> layer, x, tokens = DecoderLayer(2, 16), jnp.zeros((1, 5, 8)), jnp.zeros((1, 6, 8))
  >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), x, x, tokens, tokens)[0].shape
  (1, 5, 8)
  """

  @nn.compact
  def __call__(self, x: Array, queries: Array, tokens: Array, positions: Array, *, key_valid: Array | None = None,
               train: bool = False) -> Array:
    def compare(x: Array) -> Array:
      placed = x + queries
      return self._attention('self_attn')(placed, placed, x, train=train)

    def look(x: Array) -> Array:
      return self._attention('multihead_attn')(x + queries, tokens + positions, tokens, key_valid=key_valid,
                                               train=train)

    x = self._added(self._added(x, compare, 1, train), look, 2, train)
    return self._added(x, lambda x: self._mlp(x, train), 3, train)


class BoxHead(nn.Module):
  """Three fully connected layers: `[..., 4]` in `dtype`, before the sigmoid, from `[..., E]`."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    dense = functools.partial(nn.Dense, kernel_init=linear_init, dtype=jnp.dtype(self.dtype))
    for i in range(2):
      x = nn.relu(dense(x.shape[-1], name=f'layers_{i}')(x))
    return dense(4, name='layers_2')(x)


def content_cells(image_size: Array, canvas: tuple[int, int], size: tuple[int, int]) -> Array:
  """Which cells of a map stand for a pixel of the content, bool `[B, h, w]`: those whose first pixel is one.

  Args:
    image_size: `[B, 2]`, (h, w) of the contents at the top left of the canvas, pixels.
    canvas: its (H, W), pixels.
    size: (h, w) of the map.

  >>> content_cells(jnp.array([[33, 64]]), (96, 96), (3, 3))[0].astype(int).tolist()
  [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
  """
  def inside(axis: int) -> Array:
    # In float32, as torch's nearest interpolation of a padding mask has it.
    pixel = np.floor(np.arange(size[axis], dtype=np.float32) * np.float32(canvas[axis] / size[axis]))
    return pixel < image_size[:, axis, None]

  return inside(0)[:, :, None] & inside(1)[:, None, :]


def sine_positions(valid: Array, features: int, *, temperature: float = 10_000.0) -> Array:
  """Sines and cosines of where a cell lies in its image's content: float32 `[B, h, w, features]`.

  y and x, counted over the valid cells from 1 on, go from almost 0 to 2 pi over the content. The first half of the
  features are sin(y / t), cos(y / t) for t from 1 up to almost the temperature, the second half the same of x.

  Args:
    valid: bool `[B, h, w]`, True on the content.
    features: a multiple of 4.
    temperature: the longest wave, in units of 2 pi.

  Ashish Vaswani et al., Attention Is All You Need, arXiv 1706.03762, section 3.5, in two dimensions: Carion et al.,
  arXiv 2005.12872, section A.4.

  >>> sine_positions(jnp.ones((1, 3, 5), bool), 8).shape
  (1, 3, 5, 8)
  """
  waves = temperature ** (np.arange(features // 4, dtype=np.float32) / (features // 4))
  halves = []
  for axis in (1, 2):
    place = jnp.cumsum(valid, axis, dtype=jnp.float32)
    last = jax.lax.slice_in_dim(place, place.shape[axis] - 1, place.shape[axis], axis=axis)
    angle = (place / (last + 1e-6) * (2 * np.pi))[..., None] / waves
    halves.append(jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(*valid.shape, -1))
  return jnp.concatenate(halves, axis=-1)


def detr(*, backbone: str = 'resnet50', output_stride: int = 32, num_classes: int = 80, num_queries: int = 100,
         hidden_dim: int = 256, num_heads: int = 8, encoder_layers: int = 6, decoder_layers: int = 6,
         mlp_dim: int = 2048, dropout: float = 0.1, aux_outputs: bool = True, norm: str = 'frozen',
         dtype: Any = jnp.float32) -> DETR:
  """DETR of the paper on a ResNet; `detr_resnet50` to `detr_resnet101_dc5` are its rows.

  Args:
    backbone: 'resnet18' to 'resnet152'.
    output_stride: of the map that becomes tokens; 16 dilates the last stage (the paper's DC5).
    num_classes: K; 91 for the authors' checkpoints, whose classes are COCO's file ids.
    num_queries, hidden_dim, num_heads, encoder_layers, decoder_layers, mlp_dim, dropout, aux_outputs: as in `DETR`.
    norm: of the backbone, see `layers.make_norm`; with 'frozen' its statistics stay those of pretrained weights.
    dtype: the compute dtype.

  Raises:
    ValueError: an unknown backbone.

  >>> detr(num_classes=91, backbone='resnet18').levels
  ('layer4',)
  """
  if backbone not in BODIES:
    raise ValueError(f'detr: unknown backbone {backbone!r}; known: {", ".join(BODIES)}')
  body = BODIES[backbone](num_classes=0, norm=norm, output_stride=output_stride, dtype=dtype)
  return DETR(body, ('layer4',), num_classes, num_queries, hidden_dim, num_heads, encoder_layers, decoder_layers,
              mlp_dim, dropout, aux_outputs, dtype)


def detr_small(*, num_classes: int = 80, num_queries: int = 20, stride: int = 16, width: int = 16,
               hidden_dim: int = 128, num_heads: int = 4, encoder_layers: int = 2, decoder_layers: int = 3,
               mlp_dim: int = 256, dropout: float = 0.0, aux_outputs: bool = True, pre_norm: bool = True,
               temperature: float = 20.0, norm: str = 'batch', dtype: Any = jnp.float32) -> DETR:
  """DETR with few and narrow layers on a small Darknet, for canvases of about 100 pixels on a CPU.

  Args:
    num_classes: K.
    num_queries, hidden_dim, num_heads, encoder_layers, decoder_layers, mlp_dim, dropout, aux_outputs, pre_norm,
      temperature: as in `DETR`.
    stride: pixels of the canvas that one token stands for: 8 or 16.
    width: channels of the Darknet's first convolution, see `darknet_small`, whose weights it can begin with.
    norm, dtype: as in `detr`.

  Raises:
    ValueError: another stride.

  >>> detr_small(num_classes=10, stride=8).levels
  ('stage2',)
  """
  body, levels = fpn.small_body(width, norm, dtype)
  if stride not in (8, 16):
    raise ValueError(f'detr_small: stride {stride!r}; known: 8, 16')
  return DETR(body, (levels[stride == 16],), num_classes, num_queries, hidden_dim, num_heads, encoder_layers,
              decoder_layers, mlp_dim, dropout, aux_outputs, dtype, pre_norm, temperature)


detr_resnet50 = detr
detr_resnet50_dc5 = functools.partial(detr, output_stride=16)
detr_resnet101 = functools.partial(detr, backbone='resnet101')
detr_resnet101_dc5 = functools.partial(detr, backbone='resnet101', output_stride=16)
