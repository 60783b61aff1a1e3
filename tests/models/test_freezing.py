"""What is frozen does not learn: no gradient, no new statistics, no backward pass below the lowest part that learns."""

from __future__ import annotations

import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import drawn
from vision_jax.models.classification.resnet import ResNet
from vision_jax.models.freezing import Frozen

pytestmark = pytest.mark.medium  # many small compilations

MODEL = functools.partial(ResNet, 'basic', (1, 1), width=8, stem='small', num_classes=5)()
IMAGE = np.random.default_rng(0).standard_normal((2, 8, 12, 3)).astype(np.float32)


def paths(tree) -> list[str]:
  return [jax.tree_util.keystr(path, simple=True, separator='/')
          for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


@functools.cache
def variables():
  return drawn.variables(MODEL, IMAGE)


def body() -> tuple[str, ...]:
  return tuple(name for name in paths(variables()['params']) if not name.startswith('fc/'))


def norms() -> tuple[str, ...]:
  return tuple(sorted({name.rpartition('/')[0] for name in paths(variables()['batch_stats'])}))


def run(module, train=True):
  return jax.jit(lambda v: module.apply(v, IMAGE, train=train, mutable=['batch_stats']))(variables())


def test_frozen_norms_normalise_and_keep_their_statistics_as_in_test_mode():
  logits, state = run(Frozen(MODEL, norms=norms()))
  np.testing.assert_array_equal(logits, run(MODEL, train=False)[0])
  assert jax.tree.structure(state['batch_stats']) == jax.tree.structure(variables()['batch_stats'])
  jax.tree.map(np.testing.assert_array_equal, state['batch_stats'], variables()['batch_stats'])
  assert np.abs(logits - run(MODEL)[0]).max() > 1e-3, 'the batch would have given something else'


def test_only_the_named_norms_are_frozen():
  _, state = run(Frozen(MODEL, norms=('bn1', 'layer2_0/bn2')))
  same = jax.tree.map(lambda new, old: bool((np.asarray(new) == old).all()), state['batch_stats'],
                      variables()['batch_stats'])
  still = {name.rpartition('/')[0] for name, kept in zip(paths(same), jax.tree.leaves(same)) if kept}
  assert still == {'bn1', 'layer2_0/bn2'}


def gradient(module):
  rest = {name: value for name, value in variables().items() if name != 'params'}
  return lambda params: jnp.square(module.apply({'params': params, **rest}, IMAGE, train=True,
                                                mutable=['batch_stats'])[0]).sum()


@pytest.mark.medium
def test_frozen_parameters_have_no_gradient_and_the_others_have_theirs():
  found = jax.jit(jax.grad(gradient(Frozen(MODEL, params=body()))))(variables()['params'])
  truth = jax.jit(jax.grad(gradient(MODEL)))(variables()['params'])
  for name, leaf, expected in zip(paths(found), jax.tree.leaves(found), jax.tree.leaves(truth)):
    if name.startswith('fc/'):
      np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=1e-4)
    else:
      assert not np.asarray(leaf).any() and np.asarray(expected).any(), name


def test_a_frozen_body_has_no_backward_pass():
  def convolutions(module, function):
    return str(jax.make_jaxpr(function(gradient(module)))(variables()['params'])).count('conv_general_dilated[')

  forward = convolutions(MODEL, lambda f: f)
  assert convolutions(Frozen(MODEL, body(), norms()), jax.grad) == forward
  assert convolutions(MODEL, jax.grad) > 2 * forward


def test_a_frozen_module_has_the_init_and_the_attributes_of_its_own_and_can_be_copied():
  module = Frozen(MODEL, body(), norms())
  assert module.num_classes == 5 and hasattr(module, 'features') and not hasattr(module, 'anchors')
  assert copy.deepcopy(module) == module == pickle.loads(pickle.dumps(module))
  assert hash(module) == hash(Frozen(MODEL, body(), norms())) != hash(Frozen(MODEL, body()))
  shapes = [jax.eval_shape(m.init, jax.random.key(0), IMAGE) for m in (module, MODEL)]
  assert shapes[0] == shapes[1]


def test_a_path_that_the_module_does_not_have_is_an_error():
  with pytest.raises(ValueError, match='has no parameter conv9/kernel; it has bn1/bias'):
    Frozen(MODEL, ('conv9/kernel',)).apply(variables(), IMAGE)
