"""Components and morphology, pixel for pixel those of `scipy.ndimage`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from vision_jax import ops

pytestmark = pytest.mark.medium  # many small compilations: together more than the fast tests can spare

STRUCTURES = {4: ndimage.generate_binary_structure(2, 1), 8: np.ones((3, 3), bool)}
SHAPE = (24, 31)
MORPHOLOGY = 'binary_dilation', 'binary_erosion', 'binary_opening', 'binary_closing'
OFF_CENTRE = ((0, 1, 1), (0, 0, 1), (1, 0, 0), (0, 0, 0), (0, 0, 1))


def some_masks(seed):
  """bool [24, 24, 31] from nearly empty to full, in grains and in blobs."""
  rng = np.random.default_rng(seed)
  noise = rng.uniform(size=(11, *SHAPE)), ndimage.gaussian_filter(rng.normal(size=(11, *SHAPE)), (0, 1.5, 1.5))
  limits = np.linspace(0.02, 0.98, 11)[:, None, None]
  blobs = noise[1] < np.quantile(noise[1], limits.ravel())[:, None, None]
  return np.concatenate([noise[0] < limits, blobs, np.zeros((1, *SHAPE), bool), np.ones((1, *SHAPE), bool)])


def spiral(size):
  """A line that winds inwards, one pixel wide, with one pixel between its turns."""
  mask, (y, x), step, length = np.zeros((size, size), bool), (0, 0), (0, 1), size - 1
  mask[0, 0] = True
  for turn in range(2 * size):
    if length < 1:
      break
    for _ in range(length):
      y, x = y + step[0], x + step[1]
      mask[y, x] = True
    step = step[1], -step[0]
    length -= 2 if turn >= 2 and turn % 2 == 0 else 0
  return mask


def maze(rng, shape):
  """A random tree of corridors: one piece with long detours."""
  mask, seen, path = np.zeros(shape, bool), set(), [(0, 0)]
  while path:
    y, x = path[-1]
    seen.add((y, x))
    mask[y, x] = True
    ways = [(dy, dx) for dy, dx in ((0, 2), (2, 0), (0, -2), (-2, 0)) if (y + dy, x + dx) not in seen
            and 0 <= y + dy < shape[0] and 0 <= x + dx < shape[1]]
    if not ways:
      path.pop()
      continue
    dy, dx = ways[rng.integers(len(ways))]
    mask[y + dy // 2, x + dx // 2] = True
    path.append((y + dy, x + dx))
  return mask


def difficult_masks():
  """bool [8, 45, 45]: what makes labels travel far."""
  comb, snake = np.zeros((45, 45), bool), np.zeros((45, 45), bool)
  comb[:, ::2], comb[-1] = True, True
  snake[::2], snake[1::4, -1], snake[3::4, 0] = True, True, True
  rng = np.random.default_rng(7)
  mazes = [maze(rng, (45, 45)) for _ in range(2)]
  broken = mazes[0] & (rng.uniform(size=(45, 45)) < 0.97)
  return np.stack([spiral(45), spiral(45)[::-1, ::-1], comb, comb[::-1], snake, snake.T, mazes[1], broken])


@functools.cache
def components(connectivity):
  return jax.jit(functools.partial(ops.connected_components, connectivity=connectivity))


def assert_components_are_scipys(masks, connectivity):
  labels, count = jax.device_get(components(connectivity)(masks))
  assert labels.dtype == count.dtype == np.int32
  for mask, found, number in zip(masks, labels, count):
    expected, pieces = ndimage.label(mask, STRUCTURES[connectivity])
    np.testing.assert_array_equal(found, expected)
    assert number == pieces


@pytest.mark.parametrize('connectivity', [4, 8])
def test_components_are_numbered_as_scipy_does(connectivity):
  for seed in range(5):
    assert_components_are_scipys(some_masks(seed), connectivity)


def test_a_run_whose_pixels_point_to_different_pieces_stays_in_one():
  # Found by leaving out the neighbours in the row: then 2 in 1,600 such masks fall apart.
  assert_components_are_scipys(np.random.default_rng(47).uniform(size=(24, *SHAPE)) < 0.62, 4)


@pytest.mark.parametrize('connectivity', [4, 8])
def test_spirals_combs_and_mazes_are_labelled_right(connectivity):
  masks = difficult_masks()
  assert_components_are_scipys(masks, connectivity)
  assert components(connectivity)(masks)[1][:7].tolist() == [1] * 7


def test_spirals_combs_and_mazes_take_few_passes(monkeypatch):
  passes, loop = [], jax.lax.while_loop

  def counted(condition, body, start):
    state, count = loop(lambda s: condition(s[0]), lambda s: (body(s[0]), s[1] + 1), (start, 0))
    passes.append(count)
    return state

  monkeypatch.setattr(jax.lax, 'while_loop', counted)
  run = jax.jit(lambda mask: (ops.connected_components(mask), passes[-1])[1])
  # The spiral has 45 straight stretches, and the corridors of a maze many more.
  assert all(run(mask) <= 8 for mask in difficult_masks()) and len(passes) == 1


def test_masks_without_pixels_have_no_components():
  labels, count = ops.connected_components(np.zeros((3, 0, 5), bool))
  assert labels.shape == (3, 0, 5) and count.tolist() == [0, 0, 0]
  assert ops.connected_components(np.zeros((0, 4, 5), bool))[1].shape == (0,)


@pytest.mark.parametrize(('structure', 'iterations'), [
    (None, 1), (ops.CROSS, 3), (ops.SQUARE, 1), (ops.SQUARE, 2), (OFF_CENTRE, 1), (OFF_CENTRE, 2), (((1,),), 1)])
def test_morphology_is_scipys(structure, iterations):
  masks = some_masks(9)[::3]
  options = {'structure': structure, 'iterations': iterations} if structure else {}
  found = jax.jit(lambda masks: {name: getattr(ops, name)(masks, **options) for name in MORPHOLOGY})(masks)
  for name in MORPHOLOGY:
    assert found[name].dtype == bool
    expected = [getattr(ndimage, name)(mask, structure, iterations) for mask in masks]
    np.testing.assert_array_equal(found[name], expected)


def test_opening_shrinks_closing_grows_and_twice_is_once():
  masks = np.pad(some_masks(4), ((0, 0), (2, 2), (2, 2)))  # so that no foreground is near the border
  opened, closed = (jax.jit(functools.partial(getattr(ops, f'binary_{name}'), structure=ops.SQUARE))
                    for name in ('opening', 'closing'))
  small, large = np.asarray(opened(masks)), np.asarray(closed(masks))
  assert not (small & ~masks).any() and not (masks & ~large).any()
  np.testing.assert_array_equal(opened(small), small)
  np.testing.assert_array_equal(closed(large), large)


@pytest.mark.parametrize('connectivity', [4, 8])
def test_holes_are_filled_as_scipy_does(connectivity):
  masks = some_masks(5)
  found = np.asarray(jax.jit(functools.partial(ops.fill_holes, connectivity=connectivity))(masks))
  for mask, each in zip(masks, found):
    np.testing.assert_array_equal(each, ndimage.binary_fill_holes(mask, STRUCTURES[connectivity]))
  assert (found != masks).any()


@pytest.mark.parametrize('connectivity', [4, 8])
def test_pieces_of_fewer_pixels_go_and_those_of_just_as_many_stay(connectivity):
  masks = some_masks(6)
  remove = jax.jit(lambda masks, n: ops.remove_small_components(masks, min_area=n, connectivity=connectivity))
  for least in (0, 1, 4, 1000):
    for mask, each in zip(masks, np.asarray(remove(masks, least))):
      labels, _ = ndimage.label(mask, STRUCTURES[connectivity])
      areas = np.bincount(labels.ravel())
      np.testing.assert_array_equal(each, mask & (areas[labels] >= least))


def test_a_loss_may_hold_masks_made_from_its_logits():
  def loss(logits):
    labels, count = ops.connected_components(ops.binary_opening(logits > 0))
    return jnp.sum(jnp.where(labels == 1, logits, 0)) / jnp.maximum(count, 1)

  logits = np.where(some_masks(2)[14], 2.0, -1.0).astype(np.float32)
  value, gradient = jax.jit(jax.value_and_grad(loss))(logits)
  assert value > 0 and np.isfinite(gradient).all() and gradient.max() > 0


def test_wrong_arguments_are_refused_in_one_line():
  mask = np.ones((4, 5), bool)
  with pytest.raises(ValueError, match=r'connected_components: connectivity is 6; give 4'):
    ops.connected_components(mask, connectivity=6)
  with pytest.raises(ValueError, match=r'fill_holes: connectivity is 1'):
    ops.fill_holes(mask, connectivity=1)
  with pytest.raises(ValueError, match=r'binary_dilation: structure has shape \[2, 3\] and 6 ones; give rows'):
    ops.binary_dilation(mask, structure=((1, 1, 1), (1, 1, 1)))
  with pytest.raises(ValueError, match=r'binary_erosion: structure has shape \[1, 1\] and 0 ones'):
    ops.binary_erosion(mask, structure=((0,),))
  with pytest.raises(ValueError, match=r'binary_erosion: iterations is 0; give a whole number from 1'):
    ops.binary_opening(mask, iterations=0)
  with pytest.raises(ValueError, match=r'connected_components: got float32 \[4, 5\]'):
    ops.connected_components(mask.astype(np.float32))
  with pytest.raises(ValueError, match=r'binary_dilation: got bool \[5\]'):
    ops.binary_dilation(mask[0])
