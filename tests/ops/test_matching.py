"""Bipartite matching: the least total cost by SciPy and by trial of all matchings, in whatever stands around it."""

import functools
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from tests import oracles
from vision_jax import ops
from vision_jax.ops import matching

pytestmark = pytest.mark.medium  # many small compilations: together more than the fast tests can spare

SOLVERS = 'host', 'device'
both_solvers = pytest.mark.parametrize('solver', SOLVERS)


@functools.cache
def solve(solver):
  """The matching of a batch of problems, compiled once for each shape."""
  compiled = jax.jit(functools.partial(ops.hungarian_matching, solver=solver))
  return lambda cost, valid: jax.device_get(compiled(np.asarray(cost, np.float32), valid=valid))


def pairs_of(cost, valid, indices, matched):
  """The costs of the pairs of one problem, after a look at whether it is a matching at all."""
  assert matched.sum() == min(valid.sum(), cost.shape[0]) and not (matched & ~valid).any()
  assert not indices[~matched].any() and ((indices >= 0) & (indices < cost.shape[0])).all()
  assert len(set(indices[matched])) == matched.sum()
  return cost[indices[matched], np.flatnonzero(matched)].astype(np.float64)


def box_costs(rng, problems, queries, targets):
  """Of class, distance and overlap as in DETR, with many queries near few objects."""
  boxes = rng.uniform(0.2, 0.8, (problems, targets, 2)), rng.uniform(0.05, 0.4, (problems, targets, 2))
  near = rng.integers(0, targets, (problems, queries, 1))
  guesses = [np.take_along_axis(part, near, 1) + rng.normal(0, 0.03, (problems, queries, 2)) for part in boxes]
  corners = [np.concatenate([centre - size / 2, centre + size / 2], -1) for centre, size in (guesses, boxes)]
  apart = sum(np.abs(guess[:, :, None] - box[:, None]).sum(-1) for guess, box in zip(guesses, boxes))
  low, high = (pick(corners[0][:, :, None], corners[1][:, None]) for pick in (np.maximum, np.minimum))
  inter = np.prod(np.maximum(high[..., 2:] - low[..., :2], 0), -1)
  union = np.prod(guesses[1], -1)[:, :, None] + np.prod(boxes[1], -1)[:, None] - inter
  hull = np.prod(np.maximum(corners[0][:, :, None], corners[1][:, None])[..., 2:]
                 - np.minimum(corners[0][:, :, None], corners[1][:, None])[..., :2], -1)
  giou = inter / union - (hull - union) / hull
  return 5 * apart - 2 * giou - rng.dirichlet(np.full(9, 0.2), (problems, queries))[..., rng.integers(0, 9, targets)]


def some_costs(queries, targets, problems=12):
  """float32 [kinds * problems, queries, targets]: smooth, tied, far from 0, of all sizes, and hard for any search."""
  rng = np.random.default_rng(0)
  shape = problems, queries, targets
  row, column = np.arange(1, queries + 1)[:, None], np.arange(1, targets + 1)
  kinds = [rng.uniform(size=shape), box_costs(rng, *shape), -rng.uniform(size=shape), 1e6 + rng.normal(size=shape),
           1e6 * rng.normal(size=shape), 1e-9 * rng.normal(size=shape), np.exp(8 * rng.normal(size=shape)),
           rng.integers(0, 4, shape), rng.integers(0, 2, shape), np.full(shape, 3), row * column + np.zeros(shape),
           np.abs(rng.normal(size=shape[:2] + (1,)) - rng.normal(size=(problems, 1, targets))),
           np.where(rng.uniform(size=shape) < 0.5, 1e9, rng.uniform(size=shape))]
  return np.concatenate(kinds).astype(np.float32)


def some_valid(problems, targets):
  """Any number of valid targets anywhere, all in the first problem and none in the second."""
  rng = np.random.default_rng(1)
  valid = rng.uniform(size=(problems, targets)) < rng.uniform(size=(problems, 1))
  valid[::3] = np.sort(valid[::3], axis=1)[:, ::-1]  # the usual way: real ones first
  valid[0], valid[1] = True, False
  return valid


@pytest.mark.parametrize('shape', [(24, 15), (9, 15)])
@both_solvers
def test_the_total_cost_is_that_of_scipy(solver, shape):
  cost = some_costs(*shape)
  valid = some_valid(len(cost), shape[1])
  for one, real, indices, matched in zip(cost, valid, *solve(solver)(cost, valid)):
    own = one[:, real].astype(np.float64)
    expected = own[linear_sum_assignment(own)].sum()
    # The device sums in float32: a few roundings of 6e-8 for each of up to 15 pairs.
    np.testing.assert_allclose(pairs_of(one, real, indices, matched).sum(), expected, rtol=0,
                               atol=2e-6 * np.abs(own).max(initial=0))


@pytest.mark.parametrize('shape', [(5, 4), (3, 5)])
@both_solvers
def test_nan_and_infinite_costs_are_taken_only_where_nothing_else_is_left(solver, shape):
  rng = np.random.default_rng(2)
  cost = rng.normal(size=(90, *shape)).astype(np.float32) * np.float32([[[1e-3]], [[1]], [[1e6]]] * 30)
  strange = rng.uniform(size=cost.shape) < rng.uniform(size=(90, 1, 1))
  strange[0], strange[1, :, 2], strange[2, 1] = True, True, True
  cost = np.where(strange, rng.choice(np.float32([np.nan, np.inf, -np.inf]), cost.shape), cost)
  valid = some_valid(90, shape[1]) | (np.arange(90) < 3)[:, None]
  for one, real, indices, matched in zip(cost, valid, *solve(solver)(cost, valid)):
    pairs, (strange_pairs, total) = pairs_of(one, real, indices, matched), oracles.best_matching(one[:, real])
    assert np.sum(~np.isfinite(pairs)) == strange_pairs
    scale = np.abs(one[np.isfinite(one)]).max(initial=0)
    np.testing.assert_allclose(pairs[np.isfinite(pairs)].sum(), total, rtol=0, atol=2e-6 * scale)


@pytest.mark.parametrize('junk', [np.nan, 1e9, -np.inf])
@both_solvers
def test_what_the_costs_of_invalid_targets_hold_does_not_matter(solver, junk):
  cost = some_costs(9, 15)
  valid = some_valid(len(cost), 15)
  clean = solve(solver)(np.where(valid[:, None], cost, 0), valid)
  dirty = solve(solver)(np.where(valid[:, None], cost, np.float32(junk)), valid)
  np.testing.assert_array_equal(clean, dirty)


@both_solvers
def test_permuted_queries_and_targets_keep_their_partners(solver):
  rng = np.random.default_rng(3)
  cost, valid = rng.uniform(size=(156, 24, 15)), some_valid(156, 15)
  queries, targets = rng.permutation(24), rng.permutation(15)
  straight, matched = solve(solver)(cost, valid)
  permuted, still = solve(solver)(cost[:, queries][..., targets], valid[:, targets])
  np.testing.assert_array_equal(matched[:, targets], still)
  np.testing.assert_array_equal(np.where(still, straight[:, targets], -1), np.where(still, queries[permuted], -1))


@both_solvers
def test_no_targets_no_queries_and_no_problems_give_empty_matchings(solver):
  for shape in ((4, 0), (0, 3), (2, 0, 3), (0, 4, 3)):
    indices, matched = ops.hungarian_matching(np.zeros(shape), solver=solver)
    assert indices.shape == matched.shape == shape[:-2] + shape[-1:]
    assert not matched.any() and not indices.any()


@both_solvers
def test_leading_axes_are_solved_by_one_call_and_valid_broadcasts_to_them(solver):
  rng = np.random.default_rng(4)
  cost, valid = rng.uniform(size=(3, 2, 7, 5)).astype(np.float32), some_valid(2, 5)
  indices, matched = ops.hungarian_matching(cost, solver=solver, valid=valid)
  for layer, image in np.ndindex(3, 2):
    one, row_matched = ops.hungarian_matching(cost[layer, image], solver=solver, valid=valid[image])
    np.testing.assert_array_equal(indices[layer, image], one)
    np.testing.assert_array_equal(matched[layer, image], row_matched)


def test_the_host_is_called_once_for_all_axes_those_of_vmap_too(monkeypatch):
  shapes, solve_each = [], matching._solve_each
  monkeypatch.setattr(matching, '_solve_each', lambda cost, valid: shapes.append(cost.shape) or solve_each(cost, valid))
  match = functools.partial(ops.hungarian_matching, solver='host')
  cost, valid = np.random.default_rng(5).uniform(size=(2, 3, 4, 6, 5)), some_valid(4, 5)
  twice = jax.vmap(jax.vmap(lambda cost: match(cost, valid=valid)), in_axes=1)
  found = jax.block_until_ready(jax.jit(twice)(cost))
  assert shapes == [(3, 2, 4, 6, 5)]
  np.testing.assert_array_equal(found[0], np.swapaxes(match(cost, valid=valid)[0], 0, 1))


@both_solvers
def test_it_stands_inside_jit_scan_vmap_and_grad_at_once(solver):
  rng = np.random.default_rng(6)
  cost = rng.normal(size=(3, 2, 6, 5)).astype(np.float32)
  valid = some_valid(6, 5).reshape(3, 2, 5)
  cost[1, 1, :, 2] = np.nan
  cost = np.where(valid[..., None, :], cost, np.nan)

  def loss(scale, cost, valid):
    def step(total, one):
      indices, matched = ops.hungarian_matching(scale * one[0], solver=solver, valid=one[1])
      pair = one[0][indices, jnp.arange(5)]
      usable = matched & jnp.isfinite(pair)
      return total + jnp.sum(jnp.where(usable, scale * jnp.where(usable, pair, 0), 0)), None
    return jax.lax.scan(step, 0.0, (cost, valid))[0]

  value, gradient = jax.jit(jax.vmap(jax.value_and_grad(loss), in_axes=(None, 1, 1)))(2.0, cost, valid)
  expected = [sum(oracles.best_matching(cost[i, j][:, valid[i, j]])[1] for i in range(3)) for j in range(2)]
  np.testing.assert_allclose(gradient, expected, rtol=1e-5)  # float32 sums of 15 pairs
  np.testing.assert_allclose(value, 2 * np.float32(expected), rtol=1e-5)


EVERYWHERE = """
import json
import jax, jax.numpy as jnp, numpy as np
from vision_jax import ops

rng = np.random.default_rng(7)
cost = rng.normal(size=(4, 3, 2, 6, 5)).astype(np.float32)
valid = rng.uniform(size=(4, 3, 2, 5)) < 0.7
valid[1, 0] = valid[2, 1, 1] = False  # images without objects
cost[0, 1, 0, :, 1] = cost[3, 2, 1, 4] = np.nan
cost = np.where(valid[..., None, :], cost, np.nan)

def loss(scale, cost, valid, solver):
  def step(total, one):
    indices, matched = ops.hungarian_matching(scale * one[0], solver=solver, valid=one[1])
    pair = jnp.take_along_axis(one[0], indices[:, None], axis=1)[:, 0]
    usable = matched & jnp.isfinite(pair)
    return total + jnp.sum(jnp.where(usable, scale * jnp.where(usable, pair, 0), 0)), (indices, matched)
  return jax.lax.scan(step, 0.0, (cost, valid))

def program(scale, cost, valid, solver):
  gradient, found = jax.grad(loss, has_aux=True)(scale, cost, valid, solver)
  return (jax.lax.psum(gradient, 'devices'), *found)

for solver in ('auto', 'device', 'host'):
  run = jax.pmap(program, axis_name='devices', in_axes=(None, 0, 0), static_broadcasted_argnums=3)
  for _ in range(20):
    gradient, indices, matched = jax.block_until_ready(run(2.0, cost, valid, solver))
  calls = str(jax.make_jaxpr(run, static_argnums=3)(2.0, cost, valid, solver)).count('pure_callback[')
  print(json.dumps({'solver': solver, 'calls': calls, 'devices': jax.local_device_count(),
                    'gradient': np.asarray(gradient).tolist(), 'cost': np.nan_to_num(cost, nan=1e30).tolist(),
                    'valid': valid.tolist(), 'indices': np.asarray(indices).tolist(),
                    'matched': np.asarray(matched).tolist()}))
"""


@pytest.mark.medium
def test_it_stands_inside_pmap_of_grad_of_scan_on_four_devices_where_auto_needs_no_callback(run_python):
  for line in run_python(EVERYWHERE, devices=4).splitlines():
    ran = json.loads(line)
    assert ran['devices'] == 4 and ran['calls'] == (ran['solver'] == 'host')
    cost, valid, indices, matched = (np.array(ran[k]) for k in ('cost', 'valid', 'indices', 'matched'))
    cost, expected = np.where(cost > 1e29, np.nan, cost), 0.0
    for place in np.ndindex(valid.shape[:-1]):
      pairs = pairs_of(cost[place], valid[place], indices[place], matched[place])
      strange, total = oracles.best_matching(cost[place][:, valid[place]])
      assert np.sum(~np.isfinite(pairs)) == strange
      np.testing.assert_allclose(pairs[np.isfinite(pairs)].sum(), total, atol=1e-5)  # float32 sums of 5 pairs
      expected += total
    np.testing.assert_allclose(ran['gradient'], [expected] * 4, rtol=1e-5)  # float32 sums of 80 pairs


@pytest.mark.parametrize(('cores', 'called'), [(1, False), (2, True)])
def test_auto_takes_the_host_unless_it_has_a_single_core(monkeypatch, cores, called):
  monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(cores)), raising=False)
  program = str(jax.make_jaxpr(lambda cost: ops.hungarian_matching(cost))(np.zeros((4, 3), np.float32)))
  assert ('pure_callback' in program) == called


@both_solvers
def test_integers_half_precision_and_float64_are_matched_too(solver):
  cost = [[3, 1, 2], [2, 4, 6], [5, 2, 9]]
  for dtype in (jnp.int32, jnp.bfloat16):
    assert ops.hungarian_matching(jnp.asarray(cost, dtype), solver=solver)[0].tolist() == [1, 2, 0]
  with jax.enable_x64(True):
    apart = np.array([[1.0, 1 + 1e-12], [1 + 3e-12, 1 + 2e-12]])  # one number in float32
    assert ops.hungarian_matching(apart, solver=solver)[0].tolist() == [0, 1]
    assert ops.hungarian_matching(apart[::-1], solver=solver)[0].tolist() == [1, 0]


def test_wrong_costs_targets_and_solvers_are_refused_in_one_line():
  with pytest.raises(ValueError, match=r'cost \[3\]; give \[..., Q, N\]'):
    ops.hungarian_matching(np.zeros(3))
  for shape in ((), (4,), (1,), (3, 3), (5, 2, 3), (1, 5, 2, 3)):
    with pytest.raises(ValueError, match=r'for cost \[5, 1, 4, 3\]; give what broadcasts to \[5, 1, 3\]'):
      ops.hungarian_matching(np.zeros((5, 1, 4, 3)), valid=np.ones(shape, bool))
  with pytest.raises(ValueError, match="unknown solver 'scipy'; known: auto, host, device"):
    ops.hungarian_matching(np.zeros((4, 3)), solver='scipy')
