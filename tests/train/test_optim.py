"""Optimisers, schedules, durations and rules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vision_jax.train import optim

PARAMS = {'stem': {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)}, 'norm': {'scale': jnp.ones(3)},
          'head': {'kernel': jnp.full((3, 2), 2.0), 'bias': jnp.ones(2)}}
GRADS = jax.tree.map(lambda p: 0.1 * jnp.ones_like(p), PARAMS)


def updated(name='sgd', rules=(), lr=0.5, grads=GRADS, **options):
  optimiser = optim.create(name, optax.constant_schedule(lr), PARAMS, rules=rules, **options)
  updates, state = optimiser.update(grads, optimiser.init(PARAMS), PARAMS)
  return optax.apply_updates(PARAMS, updates), state


def test_weight_decay_moves_kernels_and_spares_norms_and_biases():
  zero = jax.tree.map(jnp.zeros_like, GRADS)
  new, _ = updated(weight_decay=0.1, momentum=0.0, grads=zero)
  np.testing.assert_allclose(new['head']['kernel'], 2.0 * (1 - 0.5 * 0.1))
  np.testing.assert_array_equal(new['head']['bias'], 1.0)
  np.testing.assert_array_equal(new['norm']['scale'], 1.0)


def test_decoupled_decay_is_not_scaled_by_the_moments_and_coupled_decay_is():
  zero = jax.tree.map(jnp.zeros_like, GRADS)
  decoupled, _ = updated('adamw', weight_decay=0.1, grads=zero)
  np.testing.assert_allclose(decoupled['head']['kernel'], 2.0 * (1 - 0.5 * 0.1), rtol=1e-6)
  coupled, _ = updated('adam', weight_decay=0.1, grads=zero)
  np.testing.assert_allclose(coupled['head']['kernel'], 2.0 - 0.5, rtol=1e-5)  # Adam's first step has size lr


def test_a_frozen_parameter_stays_has_no_moments_and_is_left_out_of_the_clipped_norm():
  rules = (('^stem/', {'freeze': True}),)
  new, state = updated('adam', rules)
  jax.tree.map(np.testing.assert_array_equal, new['stem'], PARAMS['stem'])
  assert not any('stem' in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state))
  large = {**GRADS, 'stem': jax.tree.map(lambda g: 1e6 * g, GRADS['stem'])}
  clipped, _ = updated(rules=rules, momentum=0.0, clip=1e3, grads=large)
  np.testing.assert_allclose(clipped['head']['kernel'], 2.0 - 0.5 * 0.1)


def test_rules_multiply_learning_rate_and_decay_and_the_later_one_wins():
  rules = (('stem', {'lr': 0.1}), ('stem/bias', {'lr': 2.0, 'decay': 1.0}))
  new, _ = updated(rules=rules, momentum=0.0, weight_decay=0.2)
  np.testing.assert_allclose(new['stem']['kernel'], 1.0 - 0.5 * 0.1 * (0.1 + 0.2), rtol=1e-6)
  np.testing.assert_allclose(new['stem']['bias'], 1.0 - 0.5 * 2.0 * (0.1 + 0.2), rtol=1e-6)
  np.testing.assert_allclose(new['norm']['scale'], 1.0 - 0.5 * 0.1, rtol=1e-6)


def test_a_rule_that_matches_nothing_is_an_error_that_names_parameters():
  with pytest.raises(ValueError, match=r"optim.rules 'backbone' matches no parameter; there are head/bias, head/"):
    updated(rules=(('backbone', {'freeze': True}),))


def test_a_rule_that_sets_something_unknown_is_an_error():
  with pytest.raises(ValueError, match=r"has no option 'frozen'; did you mean freeze\?"):
    updated(rules=(('stem', {'frozen': True}),))


def test_an_unknown_optimiser_or_option_names_the_close_ones():
  with pytest.raises(ValueError, match="unknown optimiser 'adanw'; did you mean adamw"):
    updated('adanw')
  with pytest.raises(ValueError, match=r"optim \(sgd\) has no option 'momentun'; did you mean momentum"):
    updated(momentun=0.9)


@pytest.mark.parametrize('name', optim.names())
def test_every_optimiser_lowers_a_quadratic(name):
  optimiser = optim.create(name, optax.constant_schedule(0.05), PARAMS, clip=1.0)
  loss = lambda p: sum(jnp.square(x).sum() for x in jax.tree.leaves(p))
  params, state = PARAMS, optimiser.init(PARAMS)
  step = jax.jit(lambda p, s: optimiser.update(jax.grad(loss)(p), s, p))
  for _ in range(20):
    updates, state = step(params, state)
    params = optax.apply_updates(params, updates)
  assert loss(params) < 0.5 * loss(PARAMS)


def test_cosine_warms_up_to_lr_and_ends_at_the_final_share():
  schedule = optim.create_schedule(lr=2.0, steps=110, warmup_steps=10, options={'final': 0.1})
  np.testing.assert_allclose([schedule(0), schedule(9), schedule(10), schedule(60), schedule(110)],
                             [0.2, 2.0, 2.0, 1.1, 0.2], rtol=1e-6)


def test_step_and_polynomial_schedules_follow_their_formulas():
  step = optim.create_schedule(lr=1.0, steps=100, schedule='step', options={'boundaries': (0.5, 0.9)})
  np.testing.assert_allclose([step(0), step(49), step(51), step(91)], [1, 1, 0.1, 0.01], rtol=1e-6)
  poly = optim.create_schedule(lr=1.0, steps=100, schedule='polynomial', options={'power': 2.0})
  np.testing.assert_allclose([poly(0), poly(50), poly(100)], [1.0, 0.25, 0.0], atol=1e-7)


def test_a_warmup_longer_than_the_run_is_an_error():
  with pytest.raises(ValueError, match='optim.warmup is 11 steps, which is longer than the run of 10 steps'):
    optim.create_schedule(lr=1.0, steps=10, warmup_steps=11)


@pytest.mark.parametrize(('text', 'steps'), [('300 steps', 300), ('1 step', 1), ('12 epochs', 84), ('0.5 epochs', 4)])
def test_a_duration_is_in_steps_or_in_epochs(text, steps):
  assert optim.parse_duration(text, steps_per_epoch=7, where='x') == steps


@pytest.mark.parametrize('text', ['300', '3 minutes', '1.5 steps', '3 steps 2 epochs', '-1 steps', ''])
def test_any_other_duration_is_an_error_that_shows_both_forms(text):
  with pytest.raises(ValueError, match="train.duration is .*; write it as '300 steps' or '12 epochs'"):
    optim.parse_duration(text, steps_per_epoch=7, where='train.duration')


def walked(name, rules, steps, **options):
  """The parameters after each of some steps of constant gradients."""
  optimiser = optim.create(name, optax.constant_schedule(0.5), PARAMS, rules=rules, **options)
  params, state, seen = PARAMS, optimiser.init(PARAMS), []
  step = jax.jit(lambda p, s: optimiser.update(GRADS, s, p))
  for _ in range(steps):
    updates, state = step(params, state)
    params = optax.apply_updates(params, updates)
    seen.append(params)
  return seen


@pytest.mark.parametrize('name', ['sgd', 'adamw'])
def test_a_parameter_frozen_until_a_step_stays_and_then_goes_as_if_training_began_there(name):
  options = {'weight_decay': 0.1}
  seen = walked(name, (('^stem/', {'freeze': True, 'until': 3}),), 5, **options)
  free = walked(name, (), 5, **options)
  for params in seen[:3]:
    jax.tree.map(np.testing.assert_array_equal, params['stem'], PARAMS['stem'])
  for delayed, params in zip(seen[3:], free):  # its own moments and their bias correction begin at the thaw
    jax.tree.map(np.testing.assert_array_equal, delayed['stem'], params['stem'])
  for params, whole in zip(seen, free):
    jax.tree.map(np.testing.assert_array_equal, params['head'], whole['head'])


def test_until_alone_means_freeze_and_what_waits_is_left_out_of_the_clipped_norm():
  rules = (('^stem/', {'until': 1, 'lr': 0.1}),)
  large = {**GRADS, 'stem': jax.tree.map(lambda g: 1e6 * g, GRADS['stem'])}
  first, _ = updated(rules=rules, momentum=0.0, clip=1e3, grads=large)
  np.testing.assert_allclose(first['head']['kernel'], 2.0 - 0.5 * 0.1)
  np.testing.assert_array_equal(first['stem']['kernel'], 1.0)
  second = walked('sgd', rules, 2, momentum=0.0)[1]
  np.testing.assert_allclose(second['stem']['kernel'], 1.0 - 0.5 * 0.1 * 0.1, rtol=1e-6)


STATS = {'norm': {'mean': jnp.zeros(3), 'var': jnp.ones(3)},
         'last': {'norm': {'mean': jnp.zeros(2), 'var': jnp.ones(2)}}}


@pytest.mark.parametrize(('rules', 'params', 'norms'), [
    ((('norm', {'freeze': True}),), {'norm/scale'}, {'norm', 'last/norm'}),
    ((('^norm/', {'freeze': 'params'}),), {'norm/scale'}, set()),
    ((('^norm/', {'freeze': 'statistics'}),), set(), {'norm'}),
    ((('.', {'freeze': 'statistics'}), ('^norm/', {'freeze': False})), set(), {'last/norm'}),
    ((('.', {'freeze': True}), ('^norm/', {'freeze': False, 'lr': 2.0})),
     {'stem/kernel', 'stem/bias', 'head/kernel', 'head/bias'}, {'last/norm'}),
    ((('^norm/', {'freeze': 'params'}), ('^norm/', {'freeze': 'statistics'})), {'norm/scale'}, {'norm'}),
    ((('kernel', {'lr': 0.1}),), set(), set()),
])
def test_parameters_and_statistics_are_frozen_together_or_each_by_name(rules, params, norms):
  found = optim.frozen_at(0, PARAMS, STATS, rules)
  assert (set(found[0]), set(found[1])) == (params, norms)


def test_what_is_frozen_until_a_step_thaws_there():
  rules = (('^stem', {'until': 10}), ('norm', {'freeze': 'statistics', 'until': 20}), ('^head/bias', {'freeze': True}))
  assert optim.thaws(rules) == (10, 20)
  found = [optim.frozen_at(step, PARAMS, STATS, rules) for step in (0, 9, 10, 19, 20)]
  assert [len(params) for params, _ in found] == [3, 3, 1, 1, 1]
  assert [len(norms) for _, norms in found] == [2, 2, 2, 2, 0]


@pytest.mark.parametrize(('values', 'message'), [
    ({'freeze': 'stats'}, "freeze is 'stats'; it is True, False, 'params' or 'statistics'"),
    ({'freeze': False, 'until': 3}, 'until is 3; it is a number of steps, with freeze'),
    ({'until': '3 epochs'}, "until is '3 epochs'; it is a number of steps"),
])
def test_a_rule_with_a_wrong_value_is_an_error(values, message):
  with pytest.raises(ValueError, match=message):
    optim.parameter_rules(PARAMS, (('stem', values),))


def test_a_rule_for_statistics_that_matches_none_is_an_error_that_names_them():
  with pytest.raises(ValueError, match=r"optim.rules 'stem' matches no BatchNorm; there are .*norm/mean"):
    optim.frozen_at(0, PARAMS, STATS, (('stem', {'freeze': 'statistics'}),))
