"""ViT: its map, sizes, tokens; position embeddings of another size."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import drawn
from vision_jax import models
from vision_jax.models.classification.vit import ViT, resize_position_embeddings

pytestmark = pytest.mark.medium  # many small compilations

TINY = functools.partial(ViT, 4, 2, 2, 8, 16, image_size=(8, 12), num_classes=5)

# torch.nn.functional.interpolate(x, size, mode='bicubic', align_corners=True) of x = (arange(12) ** 2 / 10) as 3 x 4,
# by torch 2.13.
TALLER = [[0.0, 0.0288, 0.1504, 0.3016, 0.6264, 0.9], [0.35, 0.5426, 0.906, 1.221, 1.7876, 2.225],
          [1.6, 2.032, 2.7488, 3.3032, 4.2232, 4.9], [4.15, 4.8214, 5.8916, 6.6854, 7.9588, 8.875],
          [6.4, 7.2352, 8.5472, 9.5048, 11.02, 12.1]]
SMALLER = [[0.0, 0.2125, 0.9], [6.4, 9.0125, 12.1]]


def test_the_map_is_of_patches_and_the_rows_are_the_papers():
  maps, variables = drawn.shapes(models.create('vit_b_16', image_size=(64, 96)), 2, 64, 96, 3, method='features')
  assert {k: m.shape for k, m in maps.items()} == {'encoder': (2, 4, 6, 768)}
  assert variables['params']['encoder']['pos_embedding'].shape == (1, 25, 768)
  assert set(variables['params']) == {'class_token', 'conv_proj', 'encoder'}
  assert models.create('vit_h_14').image_size == 518  # what its published default weights are for


def test_no_classes_gives_the_class_token_after_the_norm():
  x = np.random.default_rng(0).standard_normal((2, 8, 12, 3)).astype(np.float32)
  variables = drawn.variables(TINY(num_classes=0), x)
  assert 'heads_head' not in variables['params']
  features, tokens = jax.jit(lambda v, x: (TINY(num_classes=0).apply(v, x), TINY().apply(v, x, method='_tokens')))(
      variables, x)
  assert tokens.shape == (2, 7, 8)
  np.testing.assert_array_equal(features, tokens[:, 0])


@pytest.mark.medium
def test_patches_that_move_with_their_position_embeddings_change_no_logit():
  x = np.random.default_rng(0).standard_normal((1, 8, 12, 3)).astype(np.float32)
  variables = drawn.variables(TINY(), x)
  order = np.array([3, 0, 5, 1, 4, 2])
  patches = x.reshape(2, 4, 3, 4, 3).transpose(0, 2, 1, 3, 4).reshape(6, 4, 4, 3)[order]
  moved = patches.reshape(2, 3, 4, 4, 3).transpose(0, 2, 1, 3, 4).reshape(1, 8, 12, 3)
  encoder = variables['params']['encoder']
  embeddings = encoder['pos_embedding'][:, np.concatenate([[0], 1 + order])]
  other = {'params': {**variables['params'], 'encoder': {**encoder, 'pos_embedding': embeddings}}}
  run = jax.jit(TINY().apply)
  np.testing.assert_allclose(run(other, moved), run(variables, x), atol=1e-5)
  assert np.abs(run(variables, moved) - run(variables, x)).max() > 1e-3  # the embeddings are seen


def test_dropouts_are_off_by_default_and_need_a_key_when_asked_for():
  x = np.ones((1, 8, 12, 3), np.float32)
  variables = drawn.variables(TINY(), x)
  jax.eval_shape(functools.partial(TINY().apply, train=True), variables, x)
  for options in ({'dropout': 0.1}, {'attention_dropout': 0.1}):
    with pytest.raises(Exception, match='dropout'):
      jax.eval_shape(functools.partial(TINY(**options).apply, train=True), variables, x)


def test_images_of_another_size_are_refused_with_what_to_do():
  with pytest.raises(ValueError, match=r'for images of \(8, 12\), not \(12, 8\); .* resize_position_embeddings'):
    drawn.shapes(TINY(), 1, 12, 8, 3)
  with pytest.raises(ValueError, match=r'image_size \(9, 3\) is no multiple of the patch, 4; the nearest is \(8, 4\)'):
    drawn.shapes(TINY(image_size=(9, 3)), 1, 9, 3, 3)


@pytest.mark.parametrize(('size', 'expected'), [((5, 6), TALLER), ((2, 3), SMALLER)])
def test_position_embeddings_are_resized_as_torch_does(size, expected):
  grid = (np.arange(12, dtype=np.float32) ** 2 / 10)[None, :, None]
  found = resize_position_embeddings(np.concatenate([np.full((1, 1, 1), 7, np.float32), grid], 1), size,
                                     old_size=(3, 4))
  assert found[0, 0, 0] == 7  # the class token's
  np.testing.assert_allclose(found[0, 1:, 0], np.ravel(expected), atol=1e-5)


def test_position_embeddings_of_the_same_size_are_unchanged():
  embeddings = np.random.default_rng(0).standard_normal((1, 10, 4)).astype(np.float32)
  np.testing.assert_array_equal(resize_position_embeddings(jnp.asarray(embeddings), (3, 3)), embeddings)


@pytest.mark.parametrize(('shape', 'old_size'), [((1, 12, 4), None), ((1, 10, 4), (2, 4)), ((2, 10, 4), None)])
def test_position_embeddings_that_fit_no_grid_are_refused(shape, old_size):
  with pytest.raises(ValueError, match='give the size in patches as old_size'):
    resize_position_embeddings(np.zeros(shape, np.float32), (4, 4), old_size=old_size)
