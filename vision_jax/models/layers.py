"""The layers that all models share: one convolution, one factory of normalisations, pools, upsampling, blocks.

Units: images and feature maps are `[B, H, W, C]`; padding, stride and dilation are in pixels and mean what torch means
by them, an explicit number at each border. Kernels are HWIO, and those of transposed convolutions HWOI, so that one
permutation (2, 3, 1, 0) carries both kinds over from torch. Parameters and statistics are float32 whatever the compute
dtype. He initialisation throughout: Kaiming He et al., Delving Deep into Rectifiers, arXiv 1502.01852.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import math
from typing import Any

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from vision_jax.models import windows

Array = jax.Array
Size = int | tuple[int, int]
Padding = int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]]

NORMS = ('batch', 'frozen', 'group', 'layer', 'none', 'sync')
SYNC_AXIS = 'devices'

he_fan_in = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')
he_fan_out = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
# Uniform within 1 / sqrt(fan_in): what torch gives the kernel of a fully connected layer.
linear_init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def pair(value: Size) -> tuple[int, int]:
  """`(h, w)` of an option that may be one number for both.

  >>> pair(3), pair((1, 7))
  ((3, 3), (1, 7))
  """
  return (value, value) if isinstance(value, int) else tuple(value)


def pad_pairs(padding: Padding) -> tuple[tuple[int, int], tuple[int, int]]:
  """`((top, bottom), (left, right))` of a padding that may be one number, or one for each axis.

  >>> pad_pairs(1), pad_pairs((0, 3)), pad_pairs(((0, 1), (0, 1)))
  (((1, 1), (1, 1)), ((0, 0), (3, 3)), ((0, 1), (0, 1)))
  """
  return tuple(pair(side) for side in pair(padding))


def check_size(model: str, x: Array, smallest: int) -> None:
  """Refuses images `[B, H, W, C]` with a side under `smallest` pixels, of which a network's pools would leave nothing.

  Args:
    model: what the error names.
    x: `[B, H, W, C]`.
    smallest: pixels, 1 or more.

  Raises:
    ValueError: such an image, with the nearest size that is allowed.

  >>> check_size('VGG', jnp.ones((1, 20, 48, 3)), 32)
  Traceback (most recent call last):
  ValueError: VGG: images have at least 32 x 32 pixels, not 20 x 48; the nearest size is 32 x 48
  """
  height, width = x.shape[1:3]
  if min(height, width) < smallest:
    raise ValueError(f'{model}: images have at least {smallest} x {smallest} pixels, not {height} x {width}; the '
                     f'nearest size is {max(height, smallest)} x {max(width, smallest)}')


def convolve(x: Array, kernel: Array, *, stride: Size = 1, padding: Padding = 0, dilation: Size = 1,
             groups: int = 1) -> Array:
  """The convolution of every model: torch's, on `[B, H, W, C]`.

  A 1x1 convolution without padding is computed as a matrix product of the pixels that the stride keeps, and large ones
  of other sizes have gradients, and depthwise ones a form, made for CPUs: see `windows`. On a CPU a training step of
  ResNet-50 takes 0.55 of the processor time that it takes with the gradients JAX derives. Large ones refuse forward
  mode (`jax.jvp`) unless they have been differentiated in reverse before.

  Args:
    x: `[B, H, W, C]`.
    kernel: `[kh, kw, C / groups, features]`, of x's dtype.
    stride, dilation: pixels, one number or (h, w).
    padding: zeros at each border, one number, (h, w) or ((top, bottom), (left, right)).
    groups: into how many independent parts the channels fall.

  Returns:
    `[B, h, w, features]` with `h = floor((H + top + bottom - dilation * (kh - 1) - 1) / stride) + 1`.

  >>> convolve(jnp.ones((1, 7, 9, 4)), jnp.ones((3, 3, 4, 8)), stride=2, padding=1).shape
  (1, 4, 5, 8)
  """
  stride, pads = pair(stride), pad_pairs(padding)
  if kernel.shape[:2] == (1, 1) and groups == 1 and pads == ((0, 0), (0, 0)):
    x = x if stride == (1, 1) else x[:, ::stride[0], ::stride[1]]
    return windows.pixels(x, kernel[0, 0])
  return windows.convolution(x, kernel, stride, pads, pair(dilation), groups)


class Conv(nn.Module):
  """Convolution with explicit padding, the one that all models use.

  Args:
    features: channels that come out.
    kernel_size, stride, padding, dilation, groups: as in `convolve`; padding is 0 unless given, as in torch.
    use_bias: whether a bias is added.
    dtype: the compute dtype; parameters stay float32.
    kernel_init, bias_init: initialisers.

  Returns:
    `[B, h, w, features]` in `dtype`, from `[B, H, W, C]`. Parameters: `kernel` HWIO and `bias`.

  Raises:
    ValueError: the groups do not divide the channels.

  >>> layer = Conv(8, 3, stride=2, padding=1)
  >>> y, variables = jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.zeros((1, 6, 8, 4)))
  >>> y.shape, variables['params']['kernel'].shape
  ((1, 3, 4, 8), (3, 3, 4, 8))
  """

  features: int
  kernel_size: Size = 3
  stride: Size = 1
  padding: Padding = 0
  dilation: Size = 1
  groups: int = 1
  use_bias: bool = True
  dtype: Any = jnp.float32
  kernel_init: Callable = he_fan_in
  bias_init: Callable = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: Array) -> Array:
    channels = x.shape[-1]
    if channels % self.groups or self.features % self.groups:
      raise ValueError(f'Conv {self.name}: {self.groups} groups must divide {channels} channels in and '
                       f'{self.features} out')
    shape = (*pair(self.kernel_size), channels // self.groups, self.features)
    kernel = self.param('kernel', self.kernel_init, shape, jnp.float32)
    x = convolve(x.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride, padding=self.padding,
                 dilation=self.dilation, groups=self.groups)
    if self.use_bias:
      x = x + self.param('bias', self.bias_init, (self.features,), jnp.float32).astype(self.dtype)
    return x


class ConvTranspose(nn.Module):
  """Transposed convolution, equal to torch's: the gradient of a convolution with respect to its input.

  Where kernel and stride are equal (U-Net's 2x2 up-convolution) no two kernels overlap, and it is a matrix product.

  Args:
    features: channels that come out.
    kernel_size, stride: pixels, one number or (h, w).
    padding: what the convolution it is the gradient of would pad, so it takes away from the output.
    output_padding: rows and columns added at the bottom and right.
    use_bias, dtype, bias_init: as in `Conv`.
    kernel_init: an initialiser; when left out N(0, sqrt(2 / N)), N = how many inputs reach one output.

  Returns:
    `[B, h, w, features]`, `h = (H - 1) * stride - 2 * padding + kernel_size + output_padding`. The `kernel` is HWOI.

  >>> layer = ConvTranspose(8, 4, stride=2, padding=1)
  >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.zeros((1, 3, 5, 4)))[0].shape
  (1, 6, 10, 8)
  """

  features: int
  kernel_size: Size = 2
  stride: Size = 2
  padding: Size = 0
  output_padding: Size = 0
  use_bias: bool = True
  dtype: Any = jnp.float32
  kernel_init: Callable | None = None
  bias_init: Callable = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: Array) -> Array:
    size, stride = pair(self.kernel_size), pair(self.stride)
    kernel = self.param('kernel', self.kernel_init or _he_transposed(stride), (*size, self.features, x.shape[-1]),
                        jnp.float32).astype(self.dtype)
    x = x.astype(self.dtype)
    if size == stride and not any(pair(self.padding) + pair(self.output_padding)):
      x = _tile_pixels(x, kernel)
    else:
      pads = [(k - 1 - p, k - 1 - p + extra)
              for k, p, extra in zip(size, pair(self.padding), pair(self.output_padding), strict=True)]
      x = lax.conv_transpose(x, kernel, stride, pads, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), transpose_kernel=True)
    if self.use_bias:
      x = x + self.param('bias', self.bias_init, (self.features,), jnp.float32).astype(self.dtype)
    return x


def _he_transposed(stride: tuple[int, int]) -> Callable:
  """He's initialiser for a kernel HWOI of which each output meets one tap in stride * stride."""
  return nn.initializers.variance_scaling(2.0 * math.prod(stride), 'fan_in', 'normal', in_axis=-1, out_axis=-2)


def _tile_pixels(x: Array, kernel: Array) -> Array:
  """Each pixel times the kernel `[kh, kw, O, I]`, laid side by side: `[B, H * kh, W * kw, O]`."""
  b, h, w, _ = x.shape
  kh, kw, features, channels = kernel.shape
  tiles = x @ kernel.reshape(-1, channels).T
  tiles = tiles.reshape(b, h, w, kh, kw, features).transpose(0, 1, 3, 2, 4, 5)
  return tiles.reshape(b, h * kh, w * kw, features)


def max_pool(x: Array, window: Size, *, stride: Size | None = None, padding: Padding = 0,
             ceil_mode: bool = False) -> Array:
  """Maximum over windows, the border padded with -inf, as torch does.

  Where the windows neither overlap nor stick out, it is a maximum over an axis, whose gradient is much cheaper
  than XLA's on a CPU; there, inputs that tie for the maximum share the gradient.

  Args:
    x: `[B, H, W, C]`.
    window: pixels, one number or (h, w).
    stride: pixels; the window when left out.
    padding: less than the window, one number, (h, w) or ((top, bottom), (left, right)).
    ceil_mode: whether a last window that sticks out at the bottom or right counts; it must begin inside the image or
      its top or left padding.

  Returns:
    `[B, h, w, C]`, `h = floor((H + top + bottom - window) / stride) + 1`, or with `ceil_mode` the ceiling of it.

  >>> max_pool(-jnp.ones((1, 7, 9, 2)), 3, stride=2, padding=1)[0, :2, :2, 0].tolist()
  [[-1.0, -1.0], [-1.0, -1.0]]
  >>> max_pool(jnp.ones((1, 6, 8, 2)), 3, stride=2, ceil_mode=True).shape
  (1, 3, 4, 2)
  """
  window, pads = pair(window), pad_pairs(padding)
  stride = window if stride is None else pair(stride)
  if ceil_mode:
    pads = tuple(_ceil_pads(*sizes) for sizes in zip(x.shape[1:3], window, stride, pads, strict=True))
  if stride == window and pads == ((0, 0), (0, 0)):
    return _windows(x, window).max((2, 4))
  return windows.max_pool(x, window, stride, pads)


def _ceil_pads(size: int, window: int, stride: int, pads: tuple[int, int]) -> tuple[int, int]:
  """The padding with which the last window, if it begins inside the image or the padding before it, is whole."""
  before, after = pads
  count = -(-(size + before + after - window) // stride) + 1
  count -= (count - 1) * stride >= size + before
  return before, max(after, (count - 1) * stride + window - size - before)


def avg_pool(x: Array, window: Size, *, stride: Size | None = None, padding: Padding = 0) -> Array:
  """Mean over windows; the zeros of the padding count, and what is left over at the end is dropped, as in torch.

  Args:
    x: `[B, H, W, C]`.
    window: pixels, one number or (h, w).
    stride: pixels; the window when left out.
    padding: one number, (h, w) or ((top, bottom), (left, right)).

  Returns:
    `[B, h, w, C]`, `h = floor((H + top + bottom - window) / stride) + 1`.

  >>> avg_pool(jnp.arange(16.).reshape(1, 4, 4, 1), 2)[0, :, :, 0].tolist()
  [[2.5, 4.5], [10.5, 12.5]]
  """
  window, pads = pair(window), pad_pairs(padding)
  stride = window if stride is None else pair(stride)
  if stride == window and pads == ((0, 0), (0, 0)):
    return _windows(x, window).mean((2, 4))
  return nn.avg_pool(x, window, stride, pads)


def adaptive_avg_pool(x: Array, size: Size) -> Array:
  """Mean over bins that cover the map, as torch's: bin i goes from floor(i H / h) to ceil((i + 1) H / h).

  Args:
    x: `[B, H, W, C]`.
    size: (h, w) of the result, or one number for both.

  Returns:
    `[B, h, w, C]`.

  >>> adaptive_avg_pool(jnp.arange(5.).reshape(1, 1, 5, 1), (1, 3))[0, 0, :, 0].tolist()
  [0.5, 2.0, 3.5]
  """
  for axis, count in zip((1, 2), pair(size), strict=True):
    length = x.shape[axis]
    bins = [slice(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]
    index = (slice(None),) * axis
    x = x if length == count else jnp.stack([x[(*index, part)].mean(axis) for part in bins], axis)
  return x


def global_avg_pool(x: Array) -> Array:
  """The mean of all pixels, float32 `[B, C]`, from `[B, H, W, C]` of any dtype.

  Min Lin et al., Network in Network, arXiv 1312.4400, section 3.2.

  >>> global_avg_pool(jnp.ones((2, 5, 3, 4))).shape
  (2, 4)
  """
  return x.astype(jnp.float32).mean((1, 2))


def _windows(x: Array, window: tuple[int, int]) -> Array:
  """`[B, H // wh, wh, W // ww, ww, C]`."""
  b, height, width, c = x.shape
  h, w = height // window[0], width // window[1]
  return x[:, :h * window[0], :w * window[1]].reshape(b, h, window[0], w, window[1], c)


def upsample(x: Array, factor: int, *, method: str = 'nearest') -> Array:
  """A map made `factor` times larger, as torch's `interpolate` with `align_corners=False` does.

  Args:
    x: `[B, H, W, C]`.
    factor: a whole number of 1 or more.
    method: 'nearest' or 'bilinear'.

  Returns:
    `[B, H * factor, W * factor, C]` of x's dtype.

  Raises:
    ValueError: an unknown method.

  >>> upsample(jnp.array([[1., 2.]])[None, ..., None], 2)[0, :, :, 0].tolist()
  [[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]
  """
  if method not in ('nearest', 'bilinear'):
    raise ValueError(f'upsample: unknown method {method!r}; give nearest or bilinear')
  b, h, w, c = x.shape
  if factor == 1:
    return x
  if method == 'bilinear':
    return jax.image.resize(x, (b, h * factor, w * factor, c), 'bilinear')
  x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, factor, w, factor, c))
  return x.reshape(b, h * factor, w * factor, c)


class Identity(nn.Module):
  """What `norm='none'` gives: its input."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return x


class BatchNorm(nn.BatchNorm):
  """Flax's, with its mode in a field, and with one map for its gradient to keep.

  As x * a + b, with a and b a number a channel, what the gradient needs is x, which the convolution before it has
  written; Flax's (x - mean) * a + bias keeps x - mean beside it. On a CPU that is 8 % of a training step of ResNet-50
  and a third of its memory. A call may name the other mode, for an interceptor to change it: `freezing.Frozen` does.

  Args:
    train: whether to use, and to update, the statistics of the batch.

  >>> layer = BatchNorm(train=True)
  >>> y, variables = jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.ones((2, 3, 3, 4)))
  >>> y.shape, sorted(variables['batch_stats'])
  ((2, 3, 3, 4), ['mean', 'var'])
  """

  train: bool = False

  @nn.compact
  def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
    test = not self.train if use_running_average is None else use_running_average
    if self.axis_name is not None:  # what several devices share is in Flax's
      return super().__call__(x, use_running_average=test)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    channels, axes = x.shape[-1:], tuple(range(x.ndim - 1))
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, channels, jnp.float32)
    running_var = self.variable('batch_stats', 'var', jnp.ones, channels, jnp.float32)
    mean, var = running_mean.value, running_var.value
    if not test:
      mean = wide.mean(axes)
      var = jnp.maximum(0, (wide ** 2).mean(axes) - mean ** 2)
      if not self.is_initializing():
        running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
        running_var.value = self.momentum * running_var.value + (1 - self.momentum) * var
    scale = self.param('scale', self.scale_init, channels, jnp.float32) * lax.rsqrt(var + self.epsilon)
    bias = self.param('bias', self.bias_init, channels, jnp.float32) - mean * scale
    return (wide * scale + bias).astype(self.dtype)


def make_norm(kind: str, features: int, *, train: bool = False, dtype: Any = jnp.float32, eps: float = 1e-5,
              momentum: float = 0.9, scale_init: Callable = nn.initializers.ones, name: str | None = None) -> nn.Module:
  """The normalisation that `norm=` asks for; the one factory of all models.

  Statistics and the normalisation itself are float32; only the result has the compute dtype.

  Args:
    kind: 'batch' normalises over the batch in training, and by running statistics otherwise; 'frozen' is 'batch' in
      test mode whatever `train` says, so its statistics never change, and 'frozen:EPS' has an eps of its own;
      'sync' is 'batch' over all devices of the mapped axis 'devices', or of the axis NAME in 'sync:NAME'; 'group' has
      32 groups (fewer where 32 do not divide the channels into at least two each); 'layer' normalises the channels of
      each pixel; 'none' does nothing.
    features: channels of what will be normalised.
    train: whether 'batch' and 'sync' use, and update, the statistics of the batch.
    dtype: the compute dtype.
    eps: added to the variance.
    momentum: how much of the running statistics a step keeps; torch's 0.1 is our 0.9.
    scale_init: initialiser of the scale.
    name: the name of the module.

  Returns:
    A Linen module `[..., C] -> [..., C]`.

  Raises:
    ValueError: an unknown kind, or an EPS that is no number of 0 or more.

  Sergey Ioffe and Christian Szegedy, Batch Normalization, arXiv 1502.03167; Yuxin Wu and Kaiming He, Group
  Normalization, arXiv 1803.08494; Jimmy Ba et al., Layer Normalization, arXiv 1607.06450.

  Differs from torch: the running variance averages the biased variances of the batches.

  >>> layer = make_norm('group', 48)
  >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.ones((1, 2, 2, 48)))[0].shape, layer.num_groups
  ((1, 2, 2, 48), 24)
  """
  kind, _, own = kind.partition(':')
  if kind not in NORMS or (own and kind not in ('sync', 'frozen')):
    raise ValueError(f'unknown norm {kind + ":" * bool(own) + own!r}; known: {", ".join(NORMS)}, sync:AXIS, '
                     'frozen:EPS')
  if kind == 'frozen' and own:
    eps = _own_eps(own)
  if kind == 'none':
    return Identity(name=name)
  common = {'epsilon': eps, 'dtype': jnp.dtype(dtype), 'scale_init': scale_init, 'name': name}
  if kind == 'layer':
    return nn.LayerNorm(**common)
  if kind == 'group':
    groups = max(g for g in range(1, 33) if features % g == 0 and (g == 1 or features >= 2 * g))
    return nn.GroupNorm(groups, **common)
  return BatchNorm(train=train and kind != 'frozen', momentum=momentum,
                   axis_name=(own or SYNC_AXIS) if kind == 'sync' else None, **common)


def _own_eps(text: str) -> float:
  """The EPS of 'frozen:EPS'."""
  try:
    eps = float(text)
  except ValueError:
    eps = -1.0
  if not 0 <= eps < math.inf:
    raise ValueError(f"norm 'frozen:{text}': {text!r} is no number of 0 or more; torchvision's oldest detectors have "
                     "'frozen:0', its others 'frozen'")
  return eps


def leaky_relu(x: Array) -> Array:
  """Darknet's activation, with a slope of 0.1 below zero."""
  return nn.leaky_relu(x, 0.1)


class ConvNorm(nn.Module):
  """Convolution, normalisation, activation: the block that most networks are made of.

  Args:
    features, kernel_size, stride, dilation, groups: as in `Conv`.
    padding: as in `Conv`; when left out, what keeps the size at stride 1.
    norm, eps, momentum: as in `make_norm`.
    activation: a function, or None.
    use_bias: when left out, only without a normalisation.
    dtype: the compute dtype.
    kernel_init: initialiser of the kernel.
    parts: the names of the convolution and of the normalisation; torchvision often numbers them ('0', '1').

  Returns:
    `[B, h, w, features]` in `dtype`.

  >>> layer = ConvNorm(8, 3, stride=2)
  >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.zeros((1, 6, 9, 4)))[0].shape
  (1, 3, 5, 8)
  """

  features: int
  kernel_size: Size = 3
  stride: Size = 1
  padding: Padding | None = None
  dilation: Size = 1
  groups: int = 1
  norm: str = 'batch'
  activation: Callable | None = nn.relu
  use_bias: bool | None = None
  dtype: Any = jnp.float32
  kernel_init: Callable = he_fan_in
  eps: float = 1e-5
  momentum: float = 0.9
  parts: tuple[str, str] = ('conv', 'bn')

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    padding = self.padding
    if padding is None:
      padding = tuple(d * (k - 1) // 2 for k, d in zip(pair(self.kernel_size), pair(self.dilation), strict=True))
    use_bias = self.norm == 'none' if self.use_bias is None else self.use_bias
    x = Conv(self.features, self.kernel_size, self.stride, padding, self.dilation, self.groups, use_bias, self.dtype,
             self.kernel_init, name=self.parts[0])(x)
    x = make_norm(self.norm, self.features, train=train, dtype=self.dtype, eps=self.eps, momentum=self.momentum,
                  name=self.parts[1])(x)
    return x if self.activation is None else self.activation(x)


def _row_product(x: Array, kernel: Array, dimensions: Any, precision: Any = None) -> Array:
  """What Flax's Dense asks of `lax.dot_general`: the product of the last axis with the kernel's first."""
  return windows.pixels(x, kernel)


class Dense(nn.Dense):
  """Flax's fully connected layer on the last axis, with the gradient of `windows.pixels`.

  On a CPU a training step of ViT-B/16 takes 0.9 of the time that it takes with Flax's own.

  >>> jax.eval_shape(Dense(5).init_with_output, jax.random.key(0), jnp.ones((2, 3, 4)))[0].shape
  (2, 3, 5)
  """

  dot_general: Any = _row_product


class FlatDense(nn.Module):
  """A fully connected layer on a whole map, for heads that torch writes as flatten and Linear (AlexNet, VGG).

  Args:
    features: numbers that come out.
    dtype: the compute dtype; parameters stay float32.
    kernel_init, bias_init: initialisers.

  Returns:
    `[B, features]` in `dtype`, from `[B, h, w, C]`. Parameters: `flat_kernel [h, w, C, features]`, so that the order of
    torch's flattening (C, h, w) is plain to whoever carries weights over, and `bias`.

  >>> layer = FlatDense(8)
  >>> y, variables = jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.zeros((2, 7, 7, 4)))
  >>> y.shape, variables['params']['flat_kernel'].shape
  ((2, 8), (7, 7, 4, 8))
  """

  features: int
  dtype: Any = jnp.float32
  kernel_init: Callable = linear_init
  bias_init: Callable = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: Array) -> Array:
    kernel = self.param('flat_kernel', self.kernel_init, (*x.shape[1:], self.features), jnp.float32)
    bias = self.param('bias', self.bias_init, (self.features,), jnp.float32)
    x = x.astype(self.dtype).reshape(x.shape[0], math.prod(x.shape[1:]))  # of no rows too
    return x @ kernel.reshape(-1, self.features).astype(self.dtype) + bias.astype(self.dtype)


class SqueezeExcite(nn.Module):
  """Scales each channel by what two fully connected layers make of the means of all channels.

  Args:
    features: numbers between the two layers, `fc1` and `fc2`.
    activation: after the first.
    gate: after the second.
    dtype: the compute dtype.
    kernel_init: initialiser of both kernels.

  Returns:
    `[B, H, W, C]` in `dtype`. The layers are 1x1 convolutions in torchvision, so their kernels are `[1, 1, I, O]`.

  Jie Hu et al., Squeeze-and-Excitation Networks, arXiv 1709.01507, section 3.

  >>> layer = SqueezeExcite(2)
  >>> jax.eval_shape(layer.init_with_output, jax.random.key(0), jnp.zeros((1, 5, 3, 8)))[0].shape
  (1, 5, 3, 8)
  """

  features: int
  activation: Callable = nn.relu
  gate: Callable = nn.sigmoid
  dtype: Any = jnp.float32
  kernel_init: Callable = he_fan_in

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = x.astype(self.dtype)
    means = x.mean((1, 2), keepdims=True)
    conv = functools.partial(Conv, kernel_size=1, dtype=self.dtype, kernel_init=self.kernel_init)
    hidden = self.activation(conv(self.features, name='fc1')(means))
    return x * self.gate(conv(x.shape[-1], name='fc2')(hidden))


def make_divisible(value: float, divisor: int = 8) -> int:
  """The multiple of `divisor` next to `value`, at least `divisor`, and never more than a tenth below `value`.

  Mark Sandler et al., MobileNetV2, arXiv 1801.04381: how widths are rounded in its published code.

  >>> make_divisible(33.6), make_divisible(12), make_divisible(3)
  (32, 16, 8)
  """
  rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
  return rounded + divisor if rounded < 0.9 * value else rounded
