"""Convolutions and maxima over windows, with the forms and the gradients that are fast on a CPU.

XLA's own operations stay what GPUs and TPUs run, and what small maps run everywhere: `lax.platform_dependent` chooses
when a program is lowered for its device. Figures: 2 cores, jax 0.10.2, batch 8, float32, milliseconds of the two cores.

Functions here have gradients of their own. They can be differentiated in reverse, and then forward or in reverse again;
forward mode at first (`jax.jvp`, `jax.jacfwd`) is refused, as JAX does for such functions.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import math

import jax
from jax import lax
import jax.numpy as jnp

Array = jax.Array
Pair = tuple[int, int]
Pads = tuple[Pair, Pair]

# Below so many multiply-adds (or comparisons) an operation takes less than the compilation of a longer program.
WORTHWHILE = 2 ** 22
MAX_TAPS = 49
# With more taps the kernel's gradient of a depthwise convolution is a loop over the kernel's rows: for 7x7 it compiles
# in a quarter of the time and runs in 0.6 of it, while for 3x3 and 5x5 the loop costs up to a half.
UNROLLED = 25
# A product of this many pixels keeps both cores busy, and its operands in their caches.
ROWS = 3000


def convolution(x: Array, kernel: Array, stride: Pair, pads: Pads, dilation: Pair, groups: int) -> Array:
  """XLA's convolution, NHWC and HWIO; a large one has the gradient of its kernel from `kernel_gradient`, and a large
  depthwise one is `depthwise`.

  Args:
    x: `[B, H, W, C]`.
    kernel: `[kh, kw, C / groups, features]`.
    stride, pads, dilation, groups: as in `layers.convolve`, all in pairs.

  Returns:
    `[B, h, w, features]`.

  >>> convolution(jnp.ones((1, 4, 6, 2)), jnp.ones((3, 3, 2, 5)), (1, 1), ((1, 1), (1, 1)), (1, 1), 1).shape
  (1, 4, 6, 5)
  """
  plain = functools.partial(_xla, stride=stride, pads=pads, dilation=dilation, groups=groups)
  taps, channels = math.prod(kernel.shape[:2]), x.shape[-1]
  work = x.size // math.prod(stride) * math.prod(kernel.shape) // channels
  if 1 < taps <= MAX_TAPS:
    if groups == 1 and work >= WORTHWHILE:
      return _dense(stride, pads, dilation, x, kernel)
    # XLA makes a small depthwise convolution a dense one: 45 ms for the gradient of 3x3, stride 2, on 28 x 28 x 240.
    if groups == channels == kernel.shape[-1] and work >= WORTHWHILE // 4:
      return _depthwise(stride, pads, dilation, x, kernel)
  return plain(x, kernel)


def _xla(x: Array, kernel: Array, *, stride: Pair, pads: Pads, dilation: Pair, groups: int) -> Array:
  return lax.conv_general_dilated(x, kernel, stride, pads, rhs_dilation=dilation, feature_group_count=groups,
                                  dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _dense(stride: Pair, pads: Pads, dilation: Pair, x: Array, kernel: Array) -> Array:
  return _xla(x, kernel, stride=stride, pads=pads, dilation=dilation, groups=1)


def _dense_forward(stride: Pair, pads: Pads, dilation: Pair, x: Array, kernel: Array) -> tuple[Array, tuple]:
  return _xla(x, kernel, stride=stride, pads=pads, dilation=dilation, groups=1), (x, kernel)


def _dense_backward(stride: Pair, pads: Pads, dilation: Pair, saved: tuple, g: Array) -> tuple[Array, Array]:
  x, kernel = saved
  plain = functools.partial(_xla, stride=stride, pads=pads, dilation=dilation, groups=1)
  to_x, = jax.vjp(lambda x: plain(x, kernel), x)[1](g)
  to_kernel = lax.platform_dependent(
      x, g, cpu=lambda x, g: kernel_gradient(x, g, kernel.shape, stride, pads, dilation),
      default=lambda x, g: jax.vjp(lambda kernel: plain(x, kernel), kernel)[1](g)[0])
  return to_x, to_kernel


_dense.defvjp(_dense_forward, _dense_backward)


def kernel_gradient(x: Array, g: Array, shape: tuple[int, ...], stride: Pair, pads: Pads, dilation: Pair) -> Array:
  """The gradient of a convolution's kernel as a matrix product over the pixels.

  For 3x3 on 56 x 56 x 64 it takes 14 ms, where XLA's, a convolution with the batch as its channels, takes 47. At
  stride 1 the shifts along the width go to one factor and those along the height to the other, so that each is three
  copies of a map instead of one of nine.

  Args:
    x: what was convolved, `[B, H, W, C]`.
    g: the gradient of the result, `[B, h, w, features]`.
    shape: of the kernel, `[kh, kw, C, features]`.
    stride, pads, dilation: as in `convolution`.

  Returns:
    An array of that shape.

  >>> x, g = jnp.ones((1, 4, 6, 2)), jnp.ones((1, 2, 4, 5))
  >>> kernel_gradient(x, g, (3, 3, 2, 5), (1, 1), ((0, 0), (0, 0)), (1, 1))[0, 0, 0].tolist()
  [8.0, 8.0, 8.0, 8.0, 8.0]
  """
  kh, kw, c, features = shape
  (h, w), (out_h, out_w) = x.shape[1:3], g.shape[1:3]
  if stride == (1, 1):
    left = [pads[1][0] - j * dilation[1] for j in range(kw)]
    top = [i * dilation[0] - pads[0][0] for i in range(kh)]
    x = jnp.concatenate([_shift(x, 2, before, out_w - w - before) for before in left], -1)
    g = lax.optimization_barrier(g)  # or what it comes from is computed again for every shift
    g = jnp.concatenate([_shift(g, 1, before, h - out_h - before) for before in top], -1)
    return _product(x, g).reshape(kw, c, kh, features).transpose(2, 0, 1, 3)
  x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
  for axis, count in ((2, kw), (1, kh)):
    s, d, length = stride[axis - 1], dilation[axis - 1], g.shape[axis]
    x = jnp.concatenate([lax.slice_in_dim(x, i * d, i * d + (length - 1) * s + 1, s, axis) for i in range(count)], -1)
  return _product(x, g).reshape(shape)


def _shift(x: Array, axis: int, before: int, after: int) -> Array:
  """Zeros before and after along an axis; a negative number takes away instead."""
  return lax.pad(x, jnp.zeros((), x.dtype), [(before, after, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)])


def _product(a: Array, b: Array) -> Array:
  """`[M, N]`, the sum over all pixels of the products of `[..., M]` and `[..., N]`, in equal parts.

  Eigen puts a product whose result is small on one core, however long its sum is; and it is up to 1.7 times as fast
  where the smaller factor stands on the left.
  """
  if a.shape[-1] > b.shape[-1]:
    return _product(b, a).T
  rows = a.size // a.shape[-1]
  parts = max([n for n in range(2, 65) if rows % n == 0 and rows // n >= ROWS], default=1)
  a, b = a.reshape(parts, -1, a.shape[-1]), b.reshape(parts, -1, b.shape[-1])
  sums = lax.dot_general(a, b, (((1,), (1,)), ((0,), (0,))), preferred_element_type=jnp.float32)
  return sums.sum(0).astype(a.dtype)


def pixels(x: Array, kernel: Array) -> Array:
  """A 1x1 convolution: each pixel times a matrix.

  Its gradient makes the pixels one axis first: from a product over several, JAX derives one for which XLA writes the
  whole map transposed. That alone was a quarter of a training step of ResNet-50.

  Args:
    x: `[..., C]`.
    kernel: `[C, features]`.

  Returns:
    `[..., features]`.

  >>> pixels(jnp.ones((1, 2, 3, 4)), jnp.ones((4, 5))).shape
  (1, 2, 3, 5)
  """
  return _pixels(x, kernel) if x.size * kernel.shape[1] >= WORTHWHILE else x @ kernel


@jax.custom_vjp
def _pixels(x: Array, kernel: Array) -> Array:
  return x @ kernel


def _pixels_forward(x: Array, kernel: Array) -> tuple[Array, tuple]:
  return x @ kernel, (x, kernel)


def _pixels_backward(saved: tuple, g: Array) -> tuple[Array, Array]:
  x, kernel = saved
  rows = (array.reshape(-1, array.shape[-1]) for array in (x, g))
  return g @ kernel.T, lax.platform_dependent(*rows, cpu=_product, default=lambda x, g: x.T @ g)


_pixels.defvjp(_pixels_forward, _pixels_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _depthwise(stride: Pair, pads: Pads, dilation: Pair, x: Array, kernel: Array) -> Array:
  plain = functools.partial(_xla, stride=stride, pads=pads, dilation=dilation, groups=x.shape[-1])
  return lax.platform_dependent(
      x, kernel, cpu=lambda x, kernel: depthwise(x, kernel, stride, pads, dilation), default=plain)


def _depthwise_forward(stride: Pair, pads: Pads, dilation: Pair, x: Array, kernel: Array) -> tuple[Array, tuple]:
  plain = functools.partial(_xla, stride=stride, pads=pads, dilation=dilation, groups=x.shape[-1])
  y = lax.platform_dependent(
      x, kernel, cpu=lambda x, kernel: depthwise(x, kernel, stride, pads, dilation), default=plain)
  return y, (x, kernel)


def _depthwise_backward(stride: Pair, pads: Pads, dilation: Pair, saved: tuple, g: Array) -> tuple[Array, Array]:
  plain = functools.partial(_xla, stride=stride, pads=pads, dilation=dilation, groups=g.shape[-1])
  return lax.platform_dependent(
      *saved, g, cpu=lambda x, kernel, g: depthwise_gradients(x, kernel, g, stride, pads, dilation),
      default=lambda x, kernel, g: jax.vjp(plain, x, kernel)[1](g))


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def depthwise(x: Array, kernel: Array, stride: Pair, pads: Pads, dilation: Pair) -> Array:
  """A depthwise convolution as a sum of shifted products, which XLA makes one loop of.

  3x3 on 56 x 56 x 96 takes 2 ms so, and 57 as XLA's grouped convolution.

  Args:
    x: `[B, H, W, C]`.
    kernel: `[kh, kw, 1, C]`.
    stride, pads, dilation: as in `convolution`.

  Returns:
    `[B, h, w, C]`.

  >>> depthwise(jnp.ones((1, 4, 6, 2)), jnp.ones((3, 3, 1, 2)), (1, 1), ((0, 0), (0, 0)), (1, 1))[0, 0, 0].tolist()
  [9.0, 9.0]
  """
  taps = _taps(jnp.pad(x, ((0, 0), *pads, (0, 0))), kernel.shape[:2], stride, dilation)
  weights = kernel.reshape(-1, kernel.shape[-1])
  return functools.reduce(jnp.add, [tap * weight for tap, weight in zip(taps, weights, strict=True)])


def depthwise_gradients(x: Array, kernel: Array, g: Array, stride: Pair, pads: Pads,
                        dilation: Pair) -> tuple[Array, Array]:
  """The gradients of `depthwise`.

  Sums over the batch come first, in one loop with the products: the sums over rows and columns alone are slow when
  XLA fuses the products into them (7 ms where those take 23).

  Args:
    x, kernel, stride, pads, dilation: as in `depthwise`.
    g: the gradient of the result, `[B, h, w, C]`.

  Returns:
    (as x, as kernel).

  >>> x, kernel, g = jnp.ones((1, 4, 6, 2)), jnp.ones((3, 3, 1, 2)), jnp.ones((1, 2, 4, 2))
  >>> depthwise_gradients(x, kernel, g, (1, 1), ((0, 0), (0, 0)), (1, 1))[1][0, 0, 0].tolist()
  [8.0, 8.0]
  """
  weights = kernel.reshape(-1, kernel.shape[-1])
  to_x = _from_taps(lambda tap, g: g * weights[tap], [(g, 0)], x.shape, kernel.shape[:2], stride, pads, dilation)
  g, padded, (kh, kw) = lax.optimization_barrier(g), _padded(x, pads, 0), kernel.shape[:2]

  def row(start: Array) -> Array:
    part = lax.dynamic_slice_in_dim(padded, start, (g.shape[1] - 1) * stride[0] + 1, axis=1)
    return _sums_of_products(_taps(part, (1, kw), stride, dilation), g)

  if kh * kw > UNROLLED:
    to_kernel = lax.map(row, jnp.arange(kh) * dilation[0])
  else:
    to_kernel = _sums_of_products(_taps(padded, (kh, kw), stride, dilation), g)
  return to_x, to_kernel.reshape(kernel.shape).astype(kernel.dtype)


def _sums_of_products(taps: list[Array], g: Array) -> Array:
  """`[taps, C]`: the sum over batch and pixels of each tap times g, in groups of up to eight images first."""
  each = max(n for n in range(1, 9) if len(g) % n == 0)
  sums = [functools.reduce(jnp.add, [tap[i::each] * g[i::each] for i in range(each)]) for tap in taps]
  return lax.optimization_barrier(jnp.stack(sums)).sum((1, 2, 3), dtype=jnp.float32)


def max_pool(x: Array, window: Pair, stride: Pair, pads: Pads) -> Array:
  """The maximum over windows, with the border as -inf; the first of equal ones in a window gets the gradient.

  Args:
    x: `[B, H, W, C]`.
    window, stride, pads: in pairs.

  Returns:
    `[B, h, w, C]`.

  >>> max_pool(-jnp.ones((1, 7, 9, 2)), (3, 3), (2, 2), ((1, 1), (1, 1))).shape
  (1, 4, 5, 2)
  """
  if math.prod(window) > MAX_TAPS or x.size < WORTHWHILE // 64:
    return _xla_max(x, window, stride, pads)
  return _max(window, stride, pads, x)


def _xla_max(x: Array, window: Pair, stride: Pair, pads: Pads) -> Array:
  return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *stride, 1), ((0, 0), *pads, (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _max(window: Pair, stride: Pair, pads: Pads, x: Array) -> Array:
  return _xla_max(x, window, stride, pads)


def _max_forward(window: Pair, stride: Pair, pads: Pads, x: Array) -> tuple[Array, tuple]:
  y = _xla_max(x, window, stride, pads)
  return y, (x, y)


def _max_backward(window: Pair, stride: Pair, pads: Pads, saved: tuple, g: Array) -> tuple[Array]:
  return (lax.platform_dependent(
      *saved, g, cpu=lambda x, y, g: max_pool_gradient(x, y, g, window, stride, pads),
      default=lambda x, y, g: jax.vjp(lambda x: _xla_max(x, window, stride, pads), x)[1](g)[0]),)


_max.defvjp(_max_forward, _max_backward)


def max_pool_gradient(x: Array, y: Array, g: Array, window: Pair, stride: Pair, pads: Pads) -> Array:
  """The gradient of `max_pool`: each pixel asks the windows that it lies in whether it was their first maximum.

  XLA's looks for the place of each maximum by index and scatters there.

  Args:
    x, window, stride, pads: as in `max_pool`.
    y: its result.
    g: the gradient of the result, as y.

  Returns:
    As x.

  >>> x, y, g = jnp.zeros((1, 2, 3, 1)), jnp.zeros((1, 1, 2, 1)), jnp.array([1., 2.]).reshape(1, 1, 2, 1)
  >>> max_pool_gradient(x, y, g, (2, 2), (1, 1), ((0, 0), (0, 0)))[0, :, :, 0].tolist()
  [[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]
  """
  taps = _taps(_padded(x, pads, -jnp.inf), window, stride, (1, 1))
  first = jnp.full(y.shape, -1, jnp.int8)
  for index, tap in reversed(list(enumerate(taps))):
    first = jnp.where(tap == y, jnp.int8(index), first)
  first = lax.optimization_barrier(first)

  def term(tap: int, g: Array, first: Array) -> Array:
    return jnp.where(first == tap, g, 0)

  return _from_taps(term, [(g, 0), (first, -1)], x.shape, window, stride, pads, (1, 1))


def _padded(x: Array, pads: Pads, value: float) -> Array:
  return jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=value)


def _taps(x: Array, size: Pair, stride: Pair, dilation: Pair) -> list[Array]:
  """For each tap of the kernel, row by row, the pixels `[B, h, w, C]` of the padded map that it meets."""
  (kh, kw), (sh, sw), (dh, dw) = size, stride, dilation
  b, height, width, c = x.shape
  h, w = (height - dh * (kh - 1) - 1) // sh + 1, (width - dw * (kw - 1) - 1) // sw + 1
  return [lax.slice(x, (0, i * dh, j * dw, 0), (b, i * dh + (h - 1) * sh + 1, j * dw + (w - 1) * sw + 1, c),
                    (1, sh, sw, 1)) for i in range(kh) for j in range(kw)]


def _from_taps(term: Callable, outputs: list[tuple[Array, float]], shape: tuple[int, ...], size: Pair, stride: Pair,
               pads: Pads, dilation: Pair) -> Array:
  """What goes back to the pixels of a map `shape`: the sum, over the taps that met a pixel, of their terms.

  Pixels are taken by their place modulo the stride, for those of one place meet the same taps. `term(tap, *arrays)`
  gets `outputs` `[B, h, w, C]`, aligned to the pixels that the tap met; where there is no output their second value.
  """
  b, height, width, c = shape
  h, w = outputs[0][0].shape[1:3]
  tall, wide = (-(-(n + sum(p)) // s) for n, s, p in zip((height, width), stride, pads, strict=True))
  before = [(k - 1) * d // s for k, s, d in zip(size, stride, dilation, strict=True)]
  grown = [jnp.pad(array, ((0, 0), (before[0], max(0, tall - h)), (before[1], max(0, wide - w)), (0, 0)),
                   constant_values=value) for array, value in outputs]

  def plane(row: int, column: int) -> Array:
    total = jnp.zeros((b, tall, wide, c), outputs[0][0].dtype)
    for tap in range(math.prod(size)):
      y, x = (i * d for i, d in zip(divmod(tap, size[1]), dilation, strict=True))
      if (y % stride[0], x % stride[1]) == (row, column):
        top, left = before[0] - y // stride[0], before[1] - x // stride[1]
        total += term(tap, *(array[:, top:top + tall, left:left + wide] for array in grown))
    return total

  planes = [jnp.stack([plane(row, column) for column in range(stride[1])], 3) for row in range(stride[0])]
  whole = jnp.stack(planes, 2).reshape(b, tall * stride[0], wide * stride[1], c)
  return whole[:, pads[0][0]:pads[0][0] + height, pads[1][0]:pads[1][0] + width]
