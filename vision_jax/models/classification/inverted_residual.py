"""The inverted residual block of MobileNetV2, which MobileNetV3, MNASNet and EfficientNet are made of, too.

Mark Sandler, Andrew Howard, Menglong Zhu, Andrey Zhmoginov and Liang-Chieh Chen, MobileNetV2: Inverted Residuals and
Linear Bottlenecks, arXiv 1801.04381, section 3.3 and Table 1. A block on a map of h x w x C:

| part | what | map |
|---|---|---|
| expand | 1x1 convolution, norm, activation; left out where E = C | h x w x E |
| depthwise | k x k convolution of each channel alone / s, norm, activation | h/s x w/s x E |
| squeeze and excite | optional: MobileNetV3, arXiv 1905.02244, Figure 4 | h/s x w/s x E |
| project | 1x1 convolution, norm, no activation: the bottleneck is linear | h/s x w/s x F |
| shortcut | plus the input, where s = 1 and F = C | h x w x F |

It is a residual block turned inside out: the shortcut joins the narrow maps, and the wide ones are in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.layers import Conv, SqueezeExcite, he_fan_out, make_norm
from vision_jax.models.noise import StochasticDepth

Array = jax.Array

# The names of layer i of n, (convolution, norm): torchvision numbers those of each paper's block in its own way.
LAYOUTS: dict[str, Callable[[int, int], tuple[str, str]]] = {
    'block': lambda i, n: (f'block_{i}_0', f'block_{i}_1'),
    'conv': lambda i, n: (f'conv_{i}', f'conv_{i + 1}') if i == n - 1 else (f'conv_{i}_0', f'conv_{i}_1'),
    'layers': lambda i, n: (f'layers_{3 * i}', f'layers_{3 * i + 1}'),
}


class InvertedResidual(nn.Module):
  """Expands, convolves each channel alone, projects, and adds its input where the shape is the same.

  Args:
    features: channels that come out.
    expanded: channels in between; as many as come in: no expansion.
    kernel_size, stride, dilation: of the depthwise convolution.
    squeeze: numbers between the two layers of squeeze and excite; 0 for none.
    activation: after the expansion and the depthwise convolution.
    squeeze_activation, gate: of squeeze and excite.
    shortcut: whether the input is added where the shape is the same.
    stochastic_depth: in [0, 1): how often training drops the branch of an example that has a shortcut.
    norm, eps, momentum: as in `layers.make_norm`.
    dtype: the compute dtype.
    layout: how torchvision numbers the layers: 'conv' (MobileNetV2), 'block' (MobileNetV3, EfficientNet) or
      'layers' (MNASNet).

  Returns:
    `[B, h, w, features]` in `dtype`.

  Raises:
    ValueError: an unknown layout.

  >>> block = InvertedResidual(8, expanded=48, stride=2)
  >>> jax.eval_shape(block.init_with_output, jax.random.key(0), jnp.zeros((1, 5, 6, 8)))[0].shape
  (1, 3, 3, 8)
  """

  features: int
  expanded: int
  kernel_size: int = 3
  stride: int = 1
  dilation: int = 1
  squeeze: int = 0
  activation: Callable = nn.relu6
  squeeze_activation: Callable = nn.relu
  gate: Callable = nn.sigmoid
  shortcut: bool = True
  stochastic_depth: float = 0.0
  norm: str = 'batch'
  eps: float = 1e-5
  momentum: float = 0.9
  dtype: Any = jnp.float32
  layout: str = 'block'

  def __call__(self, x: Array, *, train: bool = False) -> Array:
    return self.with_expanded(x, train=train)[0]

  @nn.compact
  def with_expanded(self, x: Array, *, train: bool = False) -> tuple[Array, Array]:
    """What the block gives, and its expanded map `[B, H, W, expanded]`, which SSDLite's finest head looks at."""
    if self.layout not in LAYOUTS:
      raise ValueError(f'InvertedResidual: unknown layout {self.layout!r}; known: {", ".join(LAYOUTS)}')
    expands = self.expanded != x.shape[-1]
    layers = 2 + expands + bool(self.squeeze)
    y = x.astype(self.dtype)
    if expands:
      y = self.activation(self._conv_norm(y, self.expanded, 0, layers, train))
    between = y
    y = self._conv_norm(y, self.expanded, expands, layers, train, kernel_size=self.kernel_size, stride=self.stride,
                        padding=self.dilation * (self.kernel_size - 1) // 2, dilation=self.dilation,
                        groups=self.expanded)
    y = self.activation(y)
    if self.squeeze:
      y = SqueezeExcite(self.squeeze, self.squeeze_activation, self.gate, self.dtype, he_fan_out,
                        name=f'block_{layers - 2}')(y)
    y = self._conv_norm(y, self.features, layers - 1, layers, train)
    if self.shortcut and self.stride == 1 and self.features == x.shape[-1]:
      y = x + StochasticDepth(self.stochastic_depth, name='stochastic_depth')(y, train=train)
    return y, between

  def _conv_norm(self, x: Array, features: int, i: int, layers: int, train: bool, kernel_size: int = 1,
                 **options: int) -> Array:
    conv, norm = LAYOUTS[self.layout](int(i), layers)
    x = Conv(features, kernel_size, use_bias=self.norm == 'none', dtype=self.dtype, kernel_init=he_fan_out, name=conv,
             **options)(x)
    return make_norm(self.norm, features, train=train, dtype=self.dtype, eps=self.eps, momentum=self.momentum,
                     name=norm)(x)
