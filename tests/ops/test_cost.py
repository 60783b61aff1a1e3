"""Sizes and costs of convolutions against counting, XLA's own shapes, and published numbers."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from tests import oracles
from vision_jax import ops


def shape_by_xla(size, kernel, stride, padding, dilation, spread=1):
  """The length that XLA gives a convolution; `spread` puts zeros between the pixels, for a transposed one."""
  out = jax.eval_shape(
      lambda x, w: jax.lax.conv_general_dilated(x, w, (stride,), [padding], lhs_dilation=(spread,),
                                                rhs_dilation=(dilation,)),
      jnp.zeros((1, 1, size)), jnp.zeros((1, 1, kernel)))
  return out.shape[-1]


def cases(sizes=(1, 2, 5, 8, 13), paddings=(0, 1, 3)):
  for case in itertools.product(sizes, (1, 2, 3, 5), (1, 2, 3), paddings, (1, 2)):
    size, kernel, _, padding, dilation = case
    if size + 2 * padding > dilation * (kernel - 1):
      yield dict(zip(('size', 'kernel', 'stride', 'padding', 'dilation'), case))


def test_output_size_counts_the_windows_that_torch_places():
  for case in cases():
    for ceil_mode in (False, True):
      expected = len(oracles.window_starts(ceil_mode=ceil_mode, **case))
      assert ops.conv_output_size(ceil_mode=ceil_mode, **case) == expected, (case, ceil_mode)


def test_output_size_is_what_xla_makes():
  for case in cases(sizes=(4, 9), paddings=(0, 2)):
    padding = (case['padding'],) * 2
    assert ops.conv_output_size(**case) == shape_by_xla(**{**case, 'padding': padding}), case


def test_a_window_that_would_begin_in_the_padding_at_the_end_is_left_out():
  # torch.nn.MaxPool2d(2, stride=3, padding=1, ceil_mode=True) on 4 pixels: windows at -1 and 2, none at 5.
  assert ops.conv_output_size(size=4, kernel=2, stride=3, padding=1, ceil_mode=True) == 2
  # SSD's third pooling, 75 pixels of VGG-16 at 300 x 300, keeps the last half window.
  assert ops.conv_output_size(size=75, kernel=2, stride=2, ceil_mode=True) == 38


def test_transposed_output_size_is_what_xla_makes_and_the_convolution_leads_back():
  for case in cases(sizes=(3, 6), paddings=(0, 1)):
    edge = case['dilation'] * (case['kernel'] - 1) - case['padding']
    for output_padding in range(max(case['stride'], case['dilation'])):
      if (case['size'] - 1) * case['stride'] + 2 * edge - case['dilation'] * (case['kernel'] - 1) + output_padding < 0:
        continue
      found = ops.conv_transpose_output_size(output_padding=output_padding, **case)
      assert found == shape_by_xla(case['size'], case['kernel'], 1, (edge, edge + output_padding), case['dilation'],
                                   spread=case['stride']), case
      if output_padding < case['stride']:
        assert ops.conv_output_size(**{**case, 'size': found}) == case['size']


def counted(in_channels, out_channels, kernel, pixels, groups):
  """Weights, and multiplications one by one."""
  weights = {(i, o, *place) for i in range(in_channels) for o in range(out_channels)
             for place in itertools.product(*map(range, kernel))
             if i // (in_channels // groups) == o // (out_channels // groups)}
  return len(weights), sum(len(weights) for _ in itertools.product(*map(range, pixels)))


@pytest.mark.parametrize('groups', [1, 2, 4])
def test_costs_are_those_of_counting(groups):
  channels = {'in_channels': 4, 'out_channels': 8, 'kernel': (3, 2)}
  weights, products = counted(4, 8, (3, 2), (5, 7), groups)
  plain = ops.conv_cost(**channels, output_size=(5, 7), groups=groups)
  assert plain == ops.ConvCost(parameters=weights, multiply_adds=products)
  with_bias = ops.conv_cost(**channels, output_size=(5, 7), groups=groups, bias=True)
  assert with_bias == ops.ConvCost(parameters=weights + 8, multiply_adds=products)
  assert ops.conv_transpose_cost(**channels, input_size=(5, 7), groups=groups, bias=True) == with_bias


def test_published_costs():
  # ResNet-50's first convolution.
  assert ops.conv_cost(in_channels=3, out_channels=64, kernel=(7, 7), output_size=(112, 112)) == (9408, 118013952)
  # U-Net's first up-convolution: 1024 * 512 * 4 weights and 512 biases, on 28 x 28 pixels.
  assert ops.conv_transpose_cost(in_channels=1024, out_channels=512, kernel=(2, 2), input_size=(28, 28),
                                 bias=True) == (2097664, 1644167168)


def test_mobilenet_costs_what_its_paper_says():
  # Table 1 of arXiv 1704.04861, after the first convolution: channels in and out, and side of the output.
  blocks = [(32, 64, 112), (64, 128, 56), (128, 128, 56), (128, 256, 28), (256, 256, 28), (256, 512, 14),
            *[(512, 512, 14)] * 5, (512, 1024, 7), (1024, 1024, 7)]

  def total(cost):
    first = ops.conv_cost(in_channels=3, out_channels=32, kernel=(3, 3), output_size=(112, 112))
    last = ops.conv_cost(in_channels=1024, out_channels=1000, kernel=(1, 1), output_size=(1, 1), bias=True)
    parts = [cost(in_channels=i, out_channels=o, kernel=(3, 3), output_size=(s, s)) for i, o, s in blocks]
    return [sum(numbers) for numbers in zip(first, last, *parts)]

  # Table 4: 4.2 and 29.3 million parameters, 569 and 4,866 million multiply-adds (4,867 with the last layer's million).
  for cost, parameters, multiply_adds in ((ops.separable_conv_cost, 4.2, 569), (ops.conv_cost, 29.3, 4866)):
    found = total(cost)
    assert round(found[0] / 1e6, 1) == parameters
    assert found[1] / 1e6 == pytest.approx(multiply_adds, abs=1.5)


def test_a_separable_convolution_costs_one_over_channels_plus_one_over_window_of_a_whole_one():
  for out_channels, kernel in ((256, (3, 3)), (64, (5, 5)), (7, (1, 3))):
    case = {'in_channels': 24, 'out_channels': out_channels, 'kernel': kernel, 'output_size': (14, 14)}
    share = ops.separable_conv_cost(**case).multiply_adds / ops.conv_cost(**case).multiply_adds
    assert share == pytest.approx(1 / out_channels + 1 / (kernel[0] * kernel[1]))
  # One bias for each channel of both steps.
  plain, biased = (ops.separable_conv_cost(**case, bias=bias).parameters for bias in (False, True))
  assert biased - plain == 24 + 7


def test_what_cannot_be_is_refused_in_one_line():
  with pytest.raises(ValueError, match=r'conv_output_size: a window of 5 does not fit into 2 \+ 2 \* 1 pixels'):
    ops.conv_output_size(size=2, kernel=3, dilation=2, padding=1)
  with pytest.raises(ValueError, match='conv_output_size: stride 0; give 1 or more'):
    ops.conv_output_size(size=2, kernel=1, stride=0)
  with pytest.raises(ValueError, match='output_padding 2 with stride 2 and dilation 1'):
    ops.conv_transpose_output_size(size=2, kernel=3, stride=2, output_padding=2)
  with pytest.raises(ValueError, match='-1 pixels would be left of 1'):
    ops.conv_transpose_output_size(size=1, kernel=1, padding=1)
  with pytest.raises(ValueError, match='conv_cost: 3 groups of 6 channels in and 4 out'):
    ops.conv_cost(in_channels=6, out_channels=4, kernel=(1, 1), output_size=(1, 1), groups=3)
