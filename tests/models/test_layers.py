"""The shared layers against slow NumPy truth, and what torch's conventions say."""

from __future__ import annotations

import itertools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax.models import layers

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
  return RNG.standard_normal(shape).astype(np.float32)


def slow_convolution(x, kernel, stride, padding, dilation, groups):
  """torch.nn.functional.conv2d on NHWC and HWIO, in float64, one output at a time."""
  (kh, kw, per_group, features), (b, height, width, _) = kernel.shape, x.shape
  x = np.pad(x.astype(np.float64), ((0, 0), *padding, (0, 0)))
  h = (height + sum(padding[0]) - dilation * (kh - 1) - 1) // stride + 1
  w = (width + sum(padding[1]) - dilation * (kw - 1) - 1) // stride + 1
  out = np.zeros((b, h, w, features))
  for i, j, f in itertools.product(range(h), range(w), range(features)):
    group = f // (features // groups)
    window = x[:, i * stride:i * stride + dilation * kh:dilation, j * stride:j * stride + dilation * kw:dilation,
               group * per_group:(group + 1) * per_group]
    out[:, i, j, f] = (window[:, :kh, :kw] * kernel[..., f]).sum((1, 2, 3))
  return out


@pytest.mark.parametrize(('size', 'stride', 'padding', 'dilation', 'groups'), [
    (3, 1, ((1, 1), (1, 1)), 1, 1), (3, 2, ((1, 1), (1, 1)), 1, 2), (3, 2, ((0, 1), (2, 0)), 2, 1),
    (1, 2, ((0, 0), (0, 0)), 1, 1), (1, 1, ((1, 0), (0, 0)), 1, 1), (1, 3, ((0, 0), (0, 0)), 1, 4)])
def test_convolution_equals_the_definition(size, stride, padding, dilation, groups):
  x, kernel = normal(2, 7, 9, 4), normal(size, size, 4 // groups, 8)
  found = layers.convolve(x, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups)
  truth = slow_convolution(x, kernel, stride, padding, dilation, groups)
  assert found.shape == truth.shape
  # Sums of at most 36 products of unit normals in float32.
  np.testing.assert_allclose(found, truth, atol=2e-5)


@pytest.mark.parametrize('stride', [1, 2, (2, 3)])
def test_a_1x1_convolution_as_a_matrix_product_equals_xla_and_has_its_gradient(stride):
  x, kernel = normal(2, 7, 9, 5), normal(1, 1, 5, 6)

  def theirs(x, kernel):
    return lax.conv_general_dilated(x, kernel, layers.pair(stride), 'VALID',
                                    dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

  def ours(x, kernel):
    return layers.convolve(x, kernel, stride=stride)

  assert 'conv_general_dilated' not in str(jax.make_jaxpr(ours)(x, kernel))
  np.testing.assert_allclose(ours(x, kernel), theirs(x, kernel), atol=1e-5)  # sums of five products
  gradients = [jax.grad(lambda *a, f=f: (f(*a) ** 2).sum(), argnums=(0, 1))(x, kernel) for f in (ours, theirs)]
  for found, truth in zip(*gradients, strict=True):
    np.testing.assert_allclose(found, truth, rtol=1e-4, atol=1e-3)  # sums of up to 126 squares


def slow_transposed_convolution(x, kernel, stride, padding, output_padding):
  """torch.nn.functional.conv_transpose2d: each input adds its kernel to the output. The kernel is [h, w, out, in]."""
  (b, height, width, _), (kh, kw, features, _) = x.shape, kernel.shape
  whole = np.zeros((b, (height - 1) * stride + kh + output_padding, (width - 1) * stride + kw + output_padding,
                    features))
  for i, j in itertools.product(range(height), range(width)):
    whole[:, i * stride:i * stride + kh, j * stride:j * stride + kw] += np.einsum(
        'bc,hwoc->bhwo', x[:, i, j].astype(np.float64), kernel)
  h, w = whole.shape[1] - 2 * padding, whole.shape[2] - 2 * padding
  return whole[:, padding:padding + h, padding:padding + w]


@pytest.mark.parametrize(('size', 'stride', 'padding', 'output_padding'), [
    (2, 2, 0, 0), (3, 3, 0, 0), (3, 2, 1, 1), (4, 2, 1, 0), (3, 1, 0, 0), (2, 3, 0, 1)])
def test_transposed_convolution_equals_torch_definition(size, stride, padding, output_padding):
  layer = layers.ConvTranspose(3, size, stride, padding, output_padding)
  x = normal(2, 3, 4, 5)
  params = {'kernel': normal(size, size, 3, 5), 'bias': normal(3)}
  found = layer.apply({'params': params}, x)
  truth = slow_transposed_convolution(x, params['kernel'], stride, padding, output_padding) + params['bias']
  assert found.shape == truth.shape
  np.testing.assert_allclose(found, truth, atol=2e-5)  # sums of at most 20 products


@pytest.mark.parametrize(('size', 'stride'), [(2, 2), (4, 2)])
def test_transposed_convolution_keeps_the_variance_that_he_initialisation_promises(size, stride):
  # N inputs reach one output: kernel^2 / stride^2 * channels; weights of variance 2 / N double a unit variance.
  layer = layers.ConvTranspose(256, size, stride)
  y = layer.init_with_output(jax.random.key(0), normal(1, 12, 12, 128))[0][:, 4:-4, 4:-4]
  assert float(y.var()) == pytest.approx(2, rel=0.1)  # the spread over seeds is about 0.03


@pytest.mark.parametrize(('window', 'stride', 'padding'), [(3, 2, 1), (2, None, 0), ((2, 3), None, 0), (3, 1, 1)])
def test_max_pool_never_lets_the_border_win(window, stride, padding):
  x = normal(2, 7, 9, 3) - 10
  found = layers.max_pool(x, window, stride=stride, padding=padding)
  (wh, ww), (sh, sw) = layers.pair(window), layers.pair(window if stride is None else stride)
  padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=-np.inf)
  h, w = (7 + 2 * padding - wh) // sh + 1, (9 + 2 * padding - ww) // sw + 1
  truth = [[padded[:, i * sh:i * sh + wh, j * sw:j * sw + ww].max((1, 2)) for j in range(w)] for i in range(h)]
  np.testing.assert_array_equal(found, np.moveaxis(truth, 2, 0))


def test_bilinear_upsampling_samples_between_pixel_centres_and_repeats_the_border():
  x = normal(1, 3, 4, 2)
  found = np.asarray(layers.upsample(x, 2, method='bilinear'))
  rows, columns = [np.clip((np.arange(2 * n) + 0.5) / 2 - 0.5, 0, n - 1) for n in (3, 4)]
  for i, j in itertools.product(range(6), range(8)):
    y, x0 = int(rows[i]), int(columns[j])
    dy, dx = rows[i] - y, columns[j] - x0
    y1, x1 = min(y + 1, 2), min(x0 + 1, 3)
    truth = (1 - dy) * ((1 - dx) * x[0, y, x0] + dx * x[0, y, x1]) + dy * (
        (1 - dx) * x[0, y1, x0] + dx * x[0, y1, x1])
    np.testing.assert_allclose(found[0, i, j], truth, atol=1e-6)  # four products in float32


def test_nearest_upsampling_repeats_each_pixel():
  x = normal(1, 2, 3, 2)
  np.testing.assert_array_equal(layers.upsample(x, 4), x.repeat(4, 1).repeat(4, 2))


def test_an_unknown_norm_or_method_is_answered_with_what_is_known():
  with pytest.raises(ValueError, match=r"unknown norm 'bach'; known: batch, frozen, group, layer, none, sync"):
    layers.make_norm('bach', 8)
  with pytest.raises(ValueError, match="unknown norm 'batch:devices'"):
    layers.make_norm('batch:devices', 8)
  with pytest.raises(ValueError, match=r"unknown method 'cubic'; give nearest or bilinear"):
    layers.upsample(jnp.zeros((1, 1, 1, 1)), 2, method='cubic')


def run_norm(kind: str, x, variables=None, **options):
  layer = layers.make_norm(kind, x.shape[-1], train=True, **options)
  variables = variables or layer.init(jax.random.key(0), x)
  return (*layer.apply(variables, x, mutable=['batch_stats']), variables)


def test_batch_norm_keeps_nine_tenths_of_its_statistics_and_adds_eps_to_the_variance():
  x = 3 * normal(4, 5, 6, 2) + 2
  y, new, old = run_norm('batch', x)
  mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
  np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), atol=1e-5)  # float32, values of about 3
  np.testing.assert_allclose(new['batch_stats']['mean'], 0.1 * mean, rtol=1e-5)
  np.testing.assert_allclose(new['batch_stats']['var'], 0.9 + 0.1 * var, rtol=1e-5)
  assert set(old['params']) == {'scale', 'bias'}


def test_frozen_norm_uses_and_keeps_its_statistics_in_training():
  x = 3 * normal(4, 5, 6, 2) + 2
  variables = {'params': {'scale': jnp.array([1., 2.]), 'bias': jnp.array([0., 1.])},
               'batch_stats': {'mean': jnp.array([2., 3.]), 'var': jnp.array([4., 9.])}}
  y, new, _ = run_norm('frozen', x, variables)
  np.testing.assert_allclose(y, (x - [2, 3]) / np.sqrt([4 + 1e-5, 9 + 1e-5]) * [1, 2] + [0, 1], atol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, new.get('batch_stats', variables['batch_stats']),
               variables['batch_stats'])


@pytest.mark.parametrize(('kind', 'axes'), [('layer', (3,)), ('group', (1, 2, 4))])
def test_group_and_layer_norm_normalise_what_they_say(kind, axes):
  x = 3 * normal(2, 4, 5, 64) + 2
  y, _, _ = run_norm(kind, x)
  groups = x.reshape(2, 4, 5, 32, 2) if kind == 'group' else x
  truth = (groups - groups.mean(axes, keepdims=True)) / np.sqrt(groups.var(axes, keepdims=True) + 1e-5)
  np.testing.assert_allclose(y, truth.reshape(x.shape), atol=1e-4)  # one-pass variance in float32


def test_sync_norm_takes_its_statistics_over_the_named_axis():
  x = 3 * normal(4, 2, 3, 5) + 2
  for kind, axis in (('sync', layers.SYNC_AXIS), ('sync:shards', 'shards')):
    layer = layers.make_norm(kind, 5, train=True)
    variables = layer.init(jax.random.key(0), x)
    apply = jax.vmap(lambda shard, f=layer, v=variables: f.apply(v, shard, mutable=['batch_stats']), axis_name=axis)
    parts, stats = apply(x.reshape(2, 2, 2, 3, 5))
    whole, one, _ = run_norm('batch', x)
    np.testing.assert_allclose(parts.reshape(x.shape), whole, atol=1e-5)  # the order of a float32 sum
    np.testing.assert_allclose(stats['batch_stats']['var'][1], one['batch_stats']['var'], rtol=1e-5)


@pytest.mark.parametrize('kind', ['batch', 'frozen', 'group', 'layer', 'sync'])
def test_norms_compute_in_float32_under_bfloat16(kind):
  # A mean of 300 with a spread of 1: statistics in bfloat16 (8 bits) would be off by whole units.
  x = jnp.asarray(300 + normal(8, 6, 6, 64), jnp.bfloat16)
  layer = layers.make_norm(kind, 64, train=kind != 'sync', dtype='bfloat16')
  y, variables = layer.init_with_output(jax.random.key(0), x)
  assert y.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  if kind in ('batch', 'group', 'layer'):
    assert abs(float(y.astype(jnp.float32).mean())) < 0.01
    assert float(y.astype(jnp.float32).std()) == pytest.approx(1, abs=0.05)  # E[x^2] - E[x]^2 in float32 at 300


def test_group_norm_has_at_least_two_channels_a_group():
  assert [layers.make_norm('group', c).num_groups for c in (1, 7, 16, 24, 64, 96, 256)] == [1, 1, 8, 12, 32, 32, 32]


def test_conv_norm_adds_a_bias_only_without_a_norm():
  x = jnp.zeros((1, 4, 6, 3))
  for norm, names in (('none', {'conv/kernel', 'conv/bias'}), ('batch', {'conv/kernel', 'bn/scale', 'bn/bias'})):
    params = layers.ConvNorm(4, norm=norm).init(jax.random.key(0), x)['params']
    assert {jax.tree_util.keystr(path, simple=True, separator='/')
            for path, _ in jax.tree_util.tree_leaves_with_path(params)} == names


def test_groups_that_do_not_divide_the_channels_are_refused():
  with pytest.raises(ValueError, match='3 groups must divide 4 channels in and 6 out'):
    layers.Conv(6, groups=3).init(jax.random.key(0), jnp.zeros((1, 4, 4, 4)))


def slow_pool(x, window, stride, pads, reduce, fill):
  """The reduction of every window of `[B, H, W, C]`, one output at a time, without any remainder."""
  x = np.pad(x.astype(np.float64), ((0, 0), *pads, (0, 0)), constant_values=fill)
  h, w = (x.shape[1] - window) // stride + 1, (x.shape[2] - window) // stride + 1
  return np.stack([np.stack([reduce(x[:, i * stride:i * stride + window, j * stride:j * stride + window], (1, 2))
                             for j in range(w)], 1) for i in range(h)], 1)


@pytest.mark.parametrize(('size', 'window', 'stride', 'padding', 'expected'), [
    # torch: ceil((size + 2 p - window) / stride) + 1, less one where the last window would begin in the padding after.
    (6, 3, 2, 0, 3), (7, 3, 2, 0, 3), (112, 3, 2, 0, 56), (5, 2, 2, 0, 3), (4, 2, 2, 1, 3), (5, 3, 3, 1, 2),
    (2, 2, 3, 1, 1), (3, 1, 2, 0, 2)])
def test_ceil_mode_counts_the_windows_that_begin_inside(size, window, stride, padding, expected):
  x = normal(1, size, size, 2) - 10
  found = layers.max_pool(x, window, stride=stride, padding=padding, ceil_mode=True)
  assert found.shape == (1, expected, expected, 2)
  end = (expected - 1) * stride + window - size - padding
  truth = slow_pool(x, window, stride, ((padding, max(0, end)),) * 2, np.max, -np.inf)
  np.testing.assert_array_equal(found, truth[:, :expected, :expected])


@pytest.mark.parametrize(('window', 'stride', 'padding'), [(3, 1, 1), (3, 2, 1), (2, 2, 0), (5, 3, 0)])
def test_average_pool_counts_the_padding_as_zeros(window, stride, padding):
  x = normal(2, 7, 8, 3)
  truth = slow_pool(x, window, stride, ((padding, padding),) * 2, np.mean, 0)
  np.testing.assert_allclose(layers.avg_pool(x, window, stride=stride, padding=padding), truth, atol=1e-6)


@pytest.mark.parametrize(('size', 'bins'), [((7, 5), (7, 5)), ((13, 9), (6, 6)), ((3, 2), (7, 7)), ((8, 12), (2, 3))])
def test_adaptive_pool_has_torch_bins(size, bins):
  x = normal(1, *size, 2)
  found = layers.adaptive_avg_pool(x, bins)
  for i, j in itertools.product(*map(range, bins)):
    (top, bottom), (left, right) = ((k * n // b, -(-(k + 1) * n // b)) for k, n, b in zip((i, j), size, bins,
                                                                                         strict=True))
    np.testing.assert_allclose(found[0, i, j], x[0, top:bottom, left:right].mean((0, 1)), atol=1e-6)


def test_global_pool_is_the_adaptive_one_with_a_single_bin():
  x = normal(2, 5, 7, 3)
  np.testing.assert_allclose(layers.global_avg_pool(x), layers.adaptive_avg_pool(x, 1)[:, 0, 0], atol=1e-6)


def test_flat_dense_is_a_dense_layer_on_the_flattened_map():
  x, layer = normal(2, 3, 4, 5), layers.FlatDense(6)
  params = {'flat_kernel': normal(3, 4, 5, 6), 'bias': normal(6)}
  truth = np.einsum('bhwc,hwco->bo', x.astype(np.float64), params['flat_kernel']) + params['bias']
  np.testing.assert_allclose(layer.apply({'params': params}, x), truth, atol=2e-5)  # 60 products


def test_squeeze_excite_scales_channels_by_their_means():
  x, layer = normal(2, 3, 4, 6), layers.SqueezeExcite(2)
  params = {'fc1': {'kernel': normal(1, 1, 6, 2), 'bias': normal(2)},
            'fc2': {'kernel': normal(1, 1, 2, 6), 'bias': normal(6)}}
  hidden = np.maximum(x.mean((1, 2)) @ params['fc1']['kernel'][0, 0] + params['fc1']['bias'], 0)
  gate = 1 / (1 + np.exp(-(hidden @ params['fc2']['kernel'][0, 0] + params['fc2']['bias'])))
  np.testing.assert_allclose(layer.apply({'params': params}, x), x * gate[:, None, None], atol=1e-5)


@pytest.mark.parametrize(('value', 'expected'), [(16 * 0.35, 8), (32 * 1.4, 48), (24 * 0.75, 24), (96 * 0.5, 48)])
def test_widths_are_rounded_to_eights_but_never_a_tenth_down(value, expected):
  assert layers.make_divisible(value) == expected
