"""Swin: shifted windows beside a definition and loops, patch merging, both versions, sizes."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import drawn
from vision_jax import models
from vision_jax.models.classification.swin import (
    Block,
    PatchMerging,
    Swin,
    WindowAttention,
    relative_coords_table,
    shift_mask,
)

pytestmark = pytest.mark.medium  # many small compilations

TINY = functools.partial(Swin, width=4, depths=(1, 2), num_heads=(1, 2), window=2, num_classes=3)
RNG = np.random.default_rng(2)


@pytest.mark.parametrize(('size', 'window', 'shift'), [
    ((6, 6), (3, 3), (1, 1)), ((4, 8), (4, 4), (0, 2)), ((8, 4), (4, 4), (2, 0)), ((4, 6), (2, 3), (1, 2))])
def test_pixels_see_each_other_exactly_if_no_border_came_between_them(size, window, shift):
  mask = shift_mask(size, window, shift)
  starts = list(itertools.product(range(0, size[0], window[0]), range(0, size[1], window[1])))
  assert mask.shape == (len(starts), window[0] * window[1], window[0] * window[1])
  for number, start in enumerate(starts):
    places = [np.add(start, offset) for offset in np.ndindex(*window)]
    # Where each pixel was before the map moved; neighbours that wrapped around are now nearer than they were.
    before = [(place + shift) % size for place in places]
    for i, j in itertools.product(range(len(places)), repeat=2):
      assert mask[number, i, j] == (abs(places[i] - places[j]) == abs(before[i] - before[j])).all()


def slow_window_attention(version, params, x, heads, window, shift):
  """Pixel by pixel, on one padded image `[H, W, C]`, in float64."""
  params, x = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, x))
  shape = x.shape
  x = np.pad(x, ((0, -shape[0] % window), (0, -shape[1] % window), (0, 0)))
  (height, width, channels), size = x.shape, x.shape[-1] // heads
  shift = [shift if side > window else 0 for side in (height, width)]
  bias = params['qkv']['bias'].copy()
  bias[channels:2 * channels] *= version == 1
  q, k, v = np.split(x @ params['qkv']['kernel'] + bias, 3, axis=-1)
  # Pixels share a window if, moved up and left around the border, they fall into one.
  moved = {(y, z): ((y - shift[0]) % height, (z - shift[1]) % width) for y, z in np.ndindex(height, width)}
  out = np.zeros_like(x)
  for a, head in itertools.product(np.ndindex(height, width), range(heads)):
    part, logits, seen = slice(head * size, (head + 1) * size), [], []
    for b in np.ndindex(height, width):
      (ay, ax), (by, bx) = moved[a], moved[b]
      if (ay // window, ax // window) != (by // window, bx // window):
        continue
      if (ay - by, ax - bx) != (a[0] - b[0], a[1] - b[1]):
        continue  # the border came between them
      product = q[a][part] @ k[b][part]
      offset = np.array([ay - by, ax - bx])
      if version == 1:
        row = (offset[0] + window - 1) * (2 * window - 1) + offset[1] + window - 1
        logits.append(product / np.sqrt(size) + params['relative_position_bias_table'][row, head])
      else:
        cosine = product / np.linalg.norm(q[a][part]) / max(np.linalg.norm(k[b][part]), 1e-12)
        offset = 8 * offset / (window - 1)
        offset = np.sign(offset) * np.log2(1 + np.abs(offset)) / np.log2(8)
        hidden = np.maximum(offset @ params['cpb_mlp_0']['kernel'] + params['cpb_mlp_0']['bias'], 0)
        continuous = (hidden @ params['cpb_mlp_2']['kernel'])[head]
        logits.append(cosine * min(np.exp(params['logit_scale'][head]), 100) + 16 / (1 + np.exp(-continuous)))
      seen.append(v[b][part])
    weights = np.exp(np.array(logits) - max(logits))
    out[a][part] = weights / weights.sum() @ np.array(seen)
  return (out @ params['proj']['kernel'] + params['proj']['bias'])[:shape[0], :shape[1]]


@pytest.mark.medium
@pytest.mark.parametrize('version', [1, 2])
@pytest.mark.parametrize(('size', 'shift'), [((5, 7), 1), ((3, 7), 1), ((6, 3), 0)])
def test_window_attention_equals_a_slow_one(version, size, shift):
  layer = WindowAttention(version, num_heads=2, window=3, shift=shift)
  x = RNG.standard_normal((1, *size, 4)).astype(np.float32)
  params = drawn.variables(layer, x)['params']
  if version == 2:
    # The second is beyond the bound; with a shift it would show through what separates borders, as in the original.
    params['logit_scale'] = np.array([1.0, 2.0 if shift else 9.0], np.float32)
  found = jax.jit(layer.apply)({'params': params}, x)[0]
  # Logits of up to 100 in float32, whose errors the softmax passes on.
  np.testing.assert_allclose(found, slow_window_attention(version, params, x[0], 2, 3, shift), atol=1e-4)


def test_cosine_attention_on_a_map_of_zeros_has_a_finite_gradient():
  layer, x = WindowAttention(2, num_heads=2, window=2), jnp.zeros((1, 2, 2, 4))
  params = drawn.variables(layer, x)['params']
  params['qkv']['bias'] = np.zeros_like(params['qkv']['bias'])
  gradients = jax.jit(jax.grad(lambda p, x: layer.apply({'params': p}, x).sum(), (0, 1)))(params, x)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize('version', [1, 2])
def test_patch_merging_takes_four_neighbours_column_by_column(version):
  layer, x = PatchMerging(version), RNG.standard_normal((1, 3, 5, 2)).astype(np.float32)
  params = drawn.variables(layer, x)['params']
  padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
  expected = np.zeros((1, 2, 3, 4))
  for i, j in np.ndindex(2, 3):
    cell = padded[0, 2 * i:2 * i + 2, 2 * j:2 * j + 2]
    y = np.concatenate([cell[0, 0], cell[1, 0], cell[0, 1], cell[1, 1]])
    for step in ('norm', 'reduction') if version == 1 else ('reduction', 'norm'):
      if step == 'norm':
        y = (y - y.mean()) / np.sqrt(y.var() + 1e-5) * params['norm']['scale'] + params['norm']['bias']
      else:
        y = y @ params['reduction']['kernel']
    expected[0, i, j] = y
  np.testing.assert_allclose(jax.jit(layer.apply)({'params': params}, x), expected, atol=1e-4)


def test_logarithmic_offsets_are_odd_and_end_at_log2_of_9_over_3():
  table = relative_coords_table((8, 4))
  assert table.shape == (1, 15, 7, 2) and table.dtype == np.float32
  np.testing.assert_allclose(table, -table[:, ::-1, ::-1])
  np.testing.assert_allclose(table[0, -1, -1], np.log2(9) / 3, rtol=1e-6)


@pytest.mark.parametrize(('name', 'size'), [('swin_t', (37, 50)), ('swin_v2_t', (64, 96))])
def test_features_have_the_strides_and_channels_of_their_stage(name, size):
  maps, variables = drawn.shapes(models.create(name), 2, *size, 3, method='features')
  names = ('features_1', 'features_3', 'features_5', 'norm')
  assert {k: m.shape for k, m in maps.items()} == {
      k: (2, *(-(-(side // 4) // 2 ** i) for side in size), 96 * 2 ** i) for i, k in enumerate(names)}
  features, same = drawn.shapes(models.create(name, num_classes=0), 2, *size, 3)
  assert features.shape == (2, 768) and jax.tree.structure(variables) == jax.tree.structure(same)


@pytest.mark.medium
def test_noise_of_an_example_depends_on_its_place_and_not_on_its_batch():
  block = Block(1, num_heads=2, window=2, shift=1, attention_dropout=0.5, stochastic_depth=0.2)
  x = RNG.standard_normal((2, 4, 4, 4)).astype(np.float32)
  variables = drawn.variables(block, x)

  @jax.jit
  def run(x, position):
    return block.apply({**variables, 'example': {'position': position}}, x, train=True,
                       rngs={'dropout': jax.random.key(0)})

  truth = run(x, jnp.array([0, 1]))[1]
  found = run(x[[1, 1]], jnp.array([1, 3]))
  np.testing.assert_allclose(found[0], truth, atol=1e-5)
  assert np.abs(found[1] - truth).max() > 1e-3


@pytest.mark.medium
def test_version_2_in_bfloat16_is_near_float32():
  x, layer = RNG.standard_normal((1, 4, 4, 4)).astype(np.float32), WindowAttention(2, num_heads=2, window=2, shift=1)
  variables = drawn.variables(layer, x)
  truth, found = jax.jit(layer.apply)(variables, x), jax.jit(layer.clone(dtype='bfloat16').apply)(variables, x)
  assert found.dtype == jnp.bfloat16 and drawn.shapes(TINY(2, dtype='bfloat16'), 1, 8, 8, 3)[0].dtype == jnp.float32
  # A few layers, each rounding to 8 bits (0.4 %), relative to the largest result.
  assert 0 < float(jnp.abs(found - truth).max()) < 0.05 * float(jnp.abs(truth).max())


def test_what_swin_cannot_do_is_refused():
  with pytest.raises(ValueError, match='at least 4 x 4 pixels, not 3 x 8; the nearest size is 4 x 8'):
    drawn.shapes(TINY(1), 1, 3, 8, 3)
  with pytest.raises(ValueError, match='there is no version 3; known: 1, 2'):
    drawn.shapes(TINY(3), 1, 8, 8, 3)
