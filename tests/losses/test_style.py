"""Losses of style transfer against loops, and what holds for Gram matrices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from vision_jax import losses

B = 3
# Most of the cost here is compilation, and optimising takes most of that.
quick = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


@functools.cache
def example():
  """Features of two layers, what they are compared with, and images; the styles are one for all, of another size."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  features = {'low': draw(B, 4, 5, 3), 'high': draw(B, 2, 3, 4), 'unused': draw(B, 1, 1, 2)}
  content = {'high': draw(B, 2, 3, 4)}
  styles = {'low': draw(3, 3, 3), 'high': draw(B, 1, 2, 4)}
  return features, content, styles, draw(B, 4, 5, 3)


@functools.cache
def loss_and_gradient():
  def total(moving, content, styles, valid):
    features, image = moving
    terms = losses.style_transfer_loss(features, content, styles, image, style_weights={'low': 0.25, 'high': 0.75},
                                       variation='l2', valid=valid)
    return sum(term.total for term in terms.values()), terms
  return quick(jax.value_and_grad(total, has_aux=True))


def test_gram_matrices_agree_with_the_loop_and_normalisations_divide_them():
  maps = np.random.default_rng(1).normal(size=(2, B, 3, 4, 5)).astype(np.float32)
  found = losses.gram_matrix(maps)
  for i, b in np.ndindex(2, B):
    np.testing.assert_allclose(found[i, b], oracles.gram(maps[i, b]), atol=1e-5)  # float32 sums near 20
  np.testing.assert_allclose(losses.gram_matrix(maps, normalize='size'), found / 12, rtol=1e-6)
  np.testing.assert_allclose(losses.gram_matrix(maps, normalize='elements'), found / 60, rtol=1e-6)


def test_gram_matrices_are_symmetric_without_negative_directions_and_blind_to_where():
  maps = np.random.default_rng(2).normal(size=(3, 4, 5)).astype(np.float32)
  gram = np.asarray(losses.gram_matrix(maps))
  shuffled = np.random.default_rng(3).permutation(maps.reshape(12, 5)).reshape(2, 6, 5)
  np.testing.assert_allclose(gram, gram.T, rtol=1e-6)
  np.testing.assert_allclose(losses.gram_matrix(shuffled), gram, atol=1e-5)  # float32 sums in another order
  assert np.linalg.eigvalsh(gram).min() > -1e-4


def test_content_loss_is_half_the_sum_of_squares():
  features, content, _, _ = example()
  found = losses.content_loss(features['high'], content['high'])
  expected = [((features['high'][b].astype(float) - content['high'][b]) ** 2).sum() / 2 for b in range(B)]
  np.testing.assert_allclose(found, expected, rtol=1e-6)  # float32
  assert not losses.content_loss(features['high'], features['high']).any()


def test_style_loss_agrees_with_the_loop_and_with_equation_4_for_maps_of_one_size():
  features, _, styles, _ = example()
  found = losses.style_loss(features['low'], styles['low'])
  np.testing.assert_allclose(found, [oracles.style(f, styles['low']) for f in features['low']], rtol=1e-5)  # float32
  a, b = features['low'][:2]
  paper = ((oracles.gram(a) - oracles.gram(b)) ** 2).sum() / (4 * 3**2 * 20**2)
  np.testing.assert_allclose(losses.style_loss(a, b), paper, rtol=1e-5)
  np.testing.assert_allclose(losses.style_loss(a, np.tile(a, (2, 3, 1))), 0, atol=1e-12)  # the same texture, more of it


@pytest.mark.parametrize('kind, power', [('l1', 1), ('l2', 2)])
def test_total_variation_agrees_with_the_loop(kind, power):
  image = example()[3]
  found = losses.total_variation(image, kind=kind)
  np.testing.assert_allclose(found, [oracles.total_variation(x, power) for x in image], rtol=1e-5)  # float32
  np.testing.assert_allclose(losses.total_variation(image + 2, kind=kind), found, rtol=1e-5)
  assert losses.total_variation(jnp.ones((1, 1, 3)), kind=kind) == 0  # a pixel without neighbours


def test_total_variation_leaves_flat_images_alone():
  gradient = jax.grad(lambda x: losses.total_variation(x) + losses.total_variation(x, kind='l2'))(jnp.ones((3, 3, 1)))
  assert not gradient.any()


def test_the_style_transfer_loss_agrees_with_the_loops():
  features, content, styles, image = example()
  valid = np.array([True, False, True])
  (_, terms), _ = loss_and_gradient()((features, image), content, styles, valid)
  real = np.flatnonzero(valid)
  expected = {
      'loss_content': sum(((features['high'][b].astype(float) - content['high'][b]) ** 2).sum() / 2 for b in real),
      'loss_style': sum(0.25 * oracles.style(features['low'][b], styles['low'])
                        + 0.75 * oracles.style(features['high'][b], styles['high'][b]) for b in real),
      'loss_total_variation': sum(oracles.total_variation(image[b], 2) for b in real),
  }
  assert terms.keys() == expected.keys()
  for name, term in terms.items():
    np.testing.assert_allclose(term.total, expected[name], rtol=1e-5)  # float32
    assert term.count == 2


def test_layers_weigh_alike_and_all_images_count_unless_told_otherwise():
  features, content, styles, image = example()
  plain = losses.style_transfer_loss(features, content, styles, image)
  said = losses.style_transfer_loss(features, content, styles, image, content_weights={'high': 1.0}, variation='l1',
                                    style_weights={'low': 0.5, 'high': 0.5}, valid=np.ones(B, bool))
  for name in plain:
    np.testing.assert_allclose(plain[name], said[name], rtol=1e-6)
  assert len({id(term.count) for term in plain.values()}) == 1 and plain['loss_style'].count == B


def test_a_texture_has_no_content():
  features, _, styles, image = example()
  terms = losses.style_transfer_loss(features, {}, styles, image)
  assert terms['loss_content'].total == 0 and terms['loss_style'].total > 0


def test_what_images_are_compared_with_carries_no_gradient():
  features, content, styles, image = example()
  total = lambda targets: sum(t.total for t in losses.style_transfer_loss(features, *targets, image).values())
  assert not any(np.asarray(g).any() for g in jax.tree.leaves(quick(jax.grad(total))((content, styles))))


@pytest.mark.parametrize('junk', [np.nan, 1e9])
def test_what_padded_images_hold_changes_neither_value_nor_gradient(junk):
  features, content, styles, image = example()
  valid = np.array([True, False, True])
  fill = lambda tree, value: jax.tree.map(
      lambda x: np.where(valid.reshape(-1, 1, 1, 1), x, np.float32(value)) if x.ndim == 4 else x, tree)
  run = loss_and_gradient()
  (value, terms), gradient = run(fill((features, image), 0), fill(content, 0), fill(styles, 0), valid)
  (same, same_terms), same_gradient = run(fill((features, image), junk), fill(content, junk), fill(styles, junk), valid)
  assert np.isfinite(value) and value == same
  jax.tree.map(np.testing.assert_array_equal, (terms, gradient), (same_terms, same_gradient))
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient)) and np.asarray(gradient[1])[valid].any()


def test_a_batch_of_padding_alone_is_worth_nothing():
  features, content, styles, image = jax.tree.map(lambda x: x * np.nan, example())
  (value, terms), gradient = loss_and_gradient()((features, image), content, styles, np.zeros(B, bool))
  assert value == 0 and all(term.count == 0 for term in terms.values())
  assert not any(np.asarray(g).any() for g in jax.tree.leaves(gradient))


def test_the_order_of_the_images_does_not_matter():
  features, content, styles, image = example()
  run, everyone = loss_and_gradient(), np.ones(B, bool)
  (_, terms), _ = run((features, image), content, styles, everyone)
  turn = lambda tree: jax.tree.map(lambda x: x[::-1] if x.ndim == 4 else x, tree)
  (_, turned), _ = run(turn((features, image)), turn(content), turn(styles), everyone)
  for name in terms:
    np.testing.assert_allclose(turned[name].total, terms[name].total, rtol=1e-6)  # float32 sums in another order


def test_gradients_agree_with_finite_differences_in_float64():
  features, content, styles, image = jax.tree.map(np.float64, example())
  rng = np.random.default_rng(4)
  direction = jax.tree.map(lambda x: rng.normal(size=x.shape), (features, image))
  with jax.enable_x64(True):
    run = lambda t: loss_and_gradient()(jax.tree.map(lambda x, d: x + t * d, (features, image), direction), content,
                                        styles, np.ones(B, bool))
    _, gradient = run(0.0)
    along = sum(np.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    assert gradient[1].dtype == np.float64
    # Values near 1000: rounding of 1e-13 / 1e-6
    assert along == pytest.approx(oracles.slope(lambda t: run(t)[0][0], 0.0, 1.0), rel=1e-7)


def test_misfits_are_refused_in_one_line():
  features, content, styles, image = example()
  with pytest.raises(ValueError, match=r'gram_matrix: got \[2, 3\]'):
    losses.gram_matrix(jnp.zeros((2, 3)))
  with pytest.raises(ValueError, match="normalize is 'mean'; give one of none, size, elements"):
    losses.gram_matrix(image, normalize='mean')
  with pytest.raises(ValueError, match=r'content_loss: features \[3, 4, 5, 3\] and target \[3, 3, 3\]'):
    losses.content_loss(features['low'], styles['low'])
  with pytest.raises(ValueError, match=r'style_loss: features \[3, 4, 5, 3\] and target \[3, 1, 2, 4\]'):
    losses.style_loss(features['low'], styles['high'])
  with pytest.raises(ValueError, match="kind is 'l3'"):
    losses.total_variation(image, kind='l3')
  with pytest.raises(ValueError, match=r'image \[4, 5, 3\]; give images \[B, H, W, 3\]'):
    losses.style_transfer_loss(features, content, styles, image[0])
  with pytest.raises(ValueError, match='styles has conv9, which features has not; it has high, low, unused'):
    losses.style_transfer_loss(features, content, {'conv9': image}, image)
  with pytest.raises(ValueError, match='content has high, its weights are for low; give one weight to each layer'):
    losses.style_transfer_loss(features, content, styles, image, content_weights={'low': 1.0})
