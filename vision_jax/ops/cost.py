"""Arithmetic of convolutions: sizes of outputs, numbers of parameters, and multiply-adds.

Units: pixels and plain Python integers, one axis for sizes and (h, w) for costs. Nothing here touches an array.
"""

from __future__ import annotations

from typing import NamedTuple


class ConvCost(NamedTuple):
  """What a convolution costs.

  Args:
    parameters: the numbers that are learned, biases included.
    multiply_adds: multiplications with an addition each, for one image; a bias, only added, does not count.

  >>> ConvCost(parameters=10, multiply_adds=1000).parameters
  10
  """

  parameters: int
  multiply_adds: int


def conv_output_size(*, size: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1,
                     ceil_mode: bool = False) -> int:
  """The length of what a convolution or a pooling makes, along one axis.

  Args:
    size: pixels of the input.
    kernel: f, pixels of the window, 1 or more.
    stride: s, pixels from one window to the next, 1 or more.
    padding: p, pixels added on each of the two sides.
    dilation: d, pixels from one of the window's entries to the next.
    ceil_mode: add a window for what is left over at the end, unless that window would begin in the padding there.

  Returns:
    floor((size + 2p - d (f - 1) - 1) / s) + 1; with `ceil_mode` the ceiling, less one where the last window would not
    begin inside the input or the padding before it.

  Raises:
    ValueError: a number is out of range, or the window does not fit into the padded input.

  Reference: Dumoulin and Visin, A guide to convolution arithmetic, arXiv 1603.07285, relationship 15; the rule for the
  last window is torch's.

  >>> conv_output_size(size=224, kernel=7, stride=2, padding=3)
  112
  >>> conv_output_size(size=75, kernel=2, stride=2), conv_output_size(size=75, kernel=2, stride=2, ceil_mode=True)
  (37, 38)
  """
  _check('conv_output_size', size=(size, 1), kernel=(kernel, 1), stride=(stride, 1), padding=(padding, 0),
         dilation=(dilation, 1))
  room = size + 2 * padding - dilation * (kernel - 1) - 1
  if room < 0:
    raise ValueError(f'conv_output_size: a window of {dilation * (kernel - 1) + 1} does not fit into {size} + 2 * '
                     f'{padding} pixels; give a larger input or more padding')
  if not ceil_mode:
    return room // stride + 1
  windows = -(-room // stride) + 1
  return windows - ((windows - 1) * stride >= size + padding)


def conv_transpose_output_size(*, size: int, kernel: int, stride: int = 1, padding: int = 0, output_padding: int = 0,
                               dilation: int = 1) -> int:
  """The length of what a transposed convolution makes, along one axis.

  Args:
    size: pixels of the input.
    kernel: f, pixels of the window, 1 or more.
    stride: s, pixels of the output from one window to the next, 1 or more.
    padding: p, pixels cut off on each of the two sides: the padding of the convolution that this one reverses.
    output_padding: pixels added at the end, below stride or dilation: a convolution with a stride maps several sizes
      to the same one, and this chooses among them.
    dilation: d, pixels from one of the window's entries to the next.

  Returns:
    (size - 1) s - 2p + d (f - 1) + output_padding + 1.

  Raises:
    ValueError: a number is out of range, or nothing would be left.

  Reference: Dumoulin and Visin, A guide to convolution arithmetic, arXiv 1603.07285, relationship 14.

  >>> conv_transpose_output_size(size=28, kernel=2, stride=2)
  56
  """
  _check('conv_transpose_output_size', size=(size, 1), kernel=(kernel, 1), stride=(stride, 1), padding=(padding, 0),
         output_padding=(output_padding, 0), dilation=(dilation, 1))
  if output_padding >= max(stride, dilation):
    raise ValueError(f'conv_transpose_output_size: output_padding {output_padding} with stride {stride} and dilation '
                     f'{dilation}; give one below the larger of the two')
  made = (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1
  if made < 1:
    raise ValueError(f'conv_transpose_output_size: {made} pixels would be left of {size}; give less padding')
  return made


def conv_cost(*, in_channels: int, out_channels: int, kernel: tuple[int, int], output_size: tuple[int, int],
              groups: int = 1, bias: bool = False) -> ConvCost:
  """Parameters and multiply-adds of a convolution.

  Args:
    in_channels: channels of the input.
    out_channels: channels of the output.
    kernel: (h, w) of the window.
    output_size: (h, w) of the output, as `conv_output_size` gives it; it holds stride, padding and dilation.
    groups: the number of parts that the channels are split into; each part sees only itself.
    bias: one more parameter for each channel of the output.

  Returns:
    `ConvCost`: f_h f_w C_in C_out / groups parameters, and h w times as many multiply-adds.

  Raises:
    ValueError: a number is below 1, or groups does not divide the channels.

  >>> conv_cost(in_channels=3, out_channels=64, kernel=(7, 7), output_size=(112, 112))
  ConvCost(parameters=9408, multiply_adds=118013952)
  """
  return _cost('conv_cost', in_channels, out_channels, kernel, output_size, groups, bias)


def conv_transpose_cost(*, in_channels: int, out_channels: int, kernel: tuple[int, int], input_size: tuple[int, int],
                        groups: int = 1, bias: bool = False) -> ConvCost:
  """Parameters and multiply-adds of a transposed convolution.

  Args:
    in_channels: channels of the input.
    out_channels: channels of the output.
    kernel: (h, w) of the window.
    input_size: (h, w) of the input: each of its pixels is multiplied with the whole window, whatever the stride.
    groups: the number of parts that the channels are split into; each part sees only itself.
    bias: one more parameter for each channel of the output.

  Returns:
    `ConvCost`: f_h f_w C_in C_out / groups parameters, and h w of the input times as many multiply-adds; products that
    padding cuts off count.

  Raises:
    ValueError: a number is below 1, or groups does not divide the channels.

  >>> conv_transpose_cost(in_channels=1024, out_channels=512, kernel=(2, 2), input_size=(28, 28), bias=True)
  ConvCost(parameters=2097664, multiply_adds=1644167168)
  """
  return _cost('conv_transpose_cost', in_channels, out_channels, kernel, input_size, groups, bias)


def separable_conv_cost(*, in_channels: int, out_channels: int, kernel: tuple[int, int], output_size: tuple[int, int],
                        bias: bool = False) -> ConvCost:
  """Parameters and multiply-adds of a depthwise-separable convolution: one window a channel, then 1 x 1 across them.

  Args:
    in_channels: channels of the input, and of what lies between the two steps.
    out_channels: channels of the output.
    kernel: (h, w) of the window.
    output_size: (h, w) of the output of both steps: the first holds stride, padding and dilation.
    bias: one more parameter for each channel that either step makes.

  Returns:
    `ConvCost` of both steps together: 1 / C_out + 1 / (f_h f_w) of a whole convolution's multiply-adds.

  Raises:
    ValueError: a number is below 1.

  Reference: Howard et al., MobileNets, arXiv 1704.04861, section 3.1.

  >>> separable_conv_cost(in_channels=128, out_channels=256, kernel=(3, 3), output_size=(28, 28))
  ConvCost(parameters=33920, multiply_adds=26593280)
  """
  where = 'separable_conv_cost'
  steps = (_cost(where, in_channels, in_channels, kernel, output_size, in_channels, bias),
           _cost(where, in_channels, out_channels, (1, 1), output_size, 1, bias))
  return ConvCost(*(sum(parts) for parts in zip(*steps, strict=True)))


def _cost(where: str, in_channels: int, out_channels: int, kernel: tuple[int, int], pixels: tuple[int, int],
          groups: int, bias: bool) -> ConvCost:
  _check(where, in_channels=(in_channels, 1), out_channels=(out_channels, 1), kernel=(min(kernel), 1),
         size=(min(pixels), 1), groups=(groups, 1))
  if in_channels % groups or out_channels % groups:
    raise ValueError(f'{where}: {groups} groups of {in_channels} channels in and {out_channels} out; '
                     'give a number that divides both')
  weights = kernel[0] * kernel[1] * in_channels * out_channels // groups
  return ConvCost(weights + bias * out_channels, weights * pixels[0] * pixels[1])


def _check(where: str, **numbers: tuple[int, int]) -> None:
  """Refuses a number below the least that is allowed: name=(number, least)."""
  for name, (number, least) in numbers.items():
    if number < least:
      raise ValueError(f'{where}: {name} {number}; give {least} or more')
