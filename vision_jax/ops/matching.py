"""Bipartite matching: each target gets a query of its own so that the sum of the costs is least.

Two solvers stand behind one signature, SciPy on the host and one loop on the device. Both find the least total; where
several matchings share it, they may choose different ones.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.conventions import Array
from vision_jax.ops.arrays import at_least_float32

# The device cuts finite costs here: sums of thousands of them, times their number, still fit float32 (3e38).
_LARGEST = 1e25
# The least scale of costs, so that a pair to avoid costs more than the others even where these are all alike.
_SMALLEST = 1e-25


def hungarian_matching(cost: Array, *, solver: str = 'auto', valid: Array | None = None) -> tuple[Array, Array]:
  """The query of each target in the one-to-one matching of least total cost.

  All leading axes are solved by one call: give the costs of all images and all decoder layers together.

  Args:
    cost: [..., Q, N], what it costs to give query q to target n. Pairs whose cost is NaN or infinite, of either sign,
      are as few as can be; among such matchings the sum of the other costs decides.
    solver: 'host' is SciPy behind one callback; 'device' is a loop over shortest augmenting paths inside the program,
      which cuts finite costs at +-1e25; 'auto' is 'device' where a callback can hang, on a CPU that plays several
      devices or has one core, and 'host' elsewhere.
    valid: bool [..., N], True for real targets; its leading axes broadcast to those of cost. All when left out. What
      the costs of the others hold does not matter.

  Returns:
    `(indices, matched)`: int32 [..., N] in 0..Q-1 and bool [..., N]. All valid targets are matched, or Q of them where
    they are more. A target that is not matched, or not valid, holds index 0. Gradients do not pass.

  Raises:
    ValueError: cost has fewer than two axes, valid does not fit it, or the solver is unknown.

  Cost: on a CPU, for 48 problems of 100 queries and up to 25 targets, the device takes twice the host's time, with 100
  targets each three to four times. Forbid a pair by inf rather than by a large number, beside which float32 has no
  digits left for the other costs.

  Reference: Carion et al., End-to-End Object Detection with Transformers, arXiv 2005.12872, equation 1; Crouse, On
  implementing 2D rectangular assignment algorithms, IEEE Transactions on Aerospace and Electronic Systems 52(4), 2016.

  >>> cost = jnp.array([[1, 2.0], [0, 4], [9, 9]])  # three queries, two targets
  >>> indices, matched = hungarian_matching(cost)
  >>> indices.tolist(), matched.tolist()
  ([1, 0], [True, True])
  """
  cost = jax.lax.stop_gradient(at_least_float32(cost))  # no solver has a derivative, and none is needed
  if cost.ndim < 2:
    raise ValueError(f'hungarian_matching: cost {list(cost.shape)}; give [..., Q, N], queries by targets')
  *leading, queries, targets = cost.shape
  valid = jnp.ones(targets, bool) if valid is None else jnp.asarray(valid, bool)
  wanted = (*leading, targets)
  fits = all(a in (1, b) for a, b in zip(valid.shape[-2::-1], leading[::-1], strict=False))
  if valid.shape[-1:] != (targets,) or valid.ndim > len(wanted) or not fits:
    raise ValueError(f'hungarian_matching: valid {list(valid.shape)} for cost {list(cost.shape)}; '
                     f'give what broadcasts to {list(wanted)}, with the {targets} targets last')
  if solver not in ('auto', 'host', 'device'):
    raise ValueError(f'hungarian_matching: unknown solver {solver!r}; known: auto, host, device')
  valid = jnp.broadcast_to(valid, wanted)
  if queries == 0 or valid.size == 0:
    return jnp.zeros(wanted, jnp.int32), jnp.zeros(wanted, bool)
  on_device = solver == 'device' or (solver == 'auto' and _callbacks_can_hang())
  query = (_solve_on_device if on_device else _solve_on_host)(cost, valid)
  return jnp.maximum(query, 0), query >= 0


def _callbacks_can_hang() -> bool:
  """Whether a callback might wait for ever for the threads of XLA's CPU client, which are as many as the cores.

  A callback holds one while its arguments (from 100 kB on) are copied by another, so one thread is not enough; several
  devices that wait for each other in a collective can use up any number.
  """
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  return jax.default_backend() == 'cpu' and (jax.local_device_count() > 1 or cores == 1)


# The host's solver.


def _solve_on_host(cost: Array, valid: Array) -> Array:
  """The query of each target, -1 for none, by one callback for all problems, vmapped ones too."""
  return jax.pure_callback(_solve_each, jax.ShapeDtypeStruct(valid.shape, jnp.int32), cost, valid,
                           vmap_method='broadcast_all')


def _solve_each(cost: Array, valid: Array) -> np.ndarray:
  # Only NumPy and SciPy in here: jax inside a callback can wait for itself for ever.
  from scipy.optimize import linear_sum_assignment

  cost, valid = np.asarray(cost), np.asarray(valid)
  *_, queries, targets = cost.shape
  query = np.full(valid.shape, -1, np.int32)
  for row, problem, slots in zip(query.reshape(-1, targets), cost.reshape(-1, queries, targets),
                                 valid.reshape(-1, targets), strict=True):
    real = np.flatnonzero(slots)
    count = real.size
    if count == 0:
      continue
    columns = slice(count) if real[-1] < count else real  # a slice, as real targets mostly come first, needs no copy
    own = problem[:, columns].T
    try:
      chosen, found = linear_sum_assignment(own)
    except ValueError:  # it knows no NaN or -inf, and +inf only where it can be avoided
      chosen, found = linear_sum_assignment(_with_finite_costs(own))
    row[columns if count <= queries else real[chosen]] = found
  return query


def _with_finite_costs(cost: np.ndarray) -> np.ndarray:
  """Costs in which one NaN or infinite pair less is worth more than any sum of the others."""
  finite = np.isfinite(cost)
  cost = np.where(finite, cost, 0).astype(np.float64).clip(-_LARGEST, _LARGEST)  # in float64 their sum could overflow
  return np.where(finite, cost, (2 * min(cost.shape) + 2) * np.abs(cost).max(initial=_SMALLEST))


# The device's solver.


class _Search(NamedTuple):
  """The matching of one problem so far, and where its search for the next shortest augmenting path stands.

  C columns are queries (and dummies), N rows are targets. A search starts at a row without a column. It goes forth
  from column to column in the order of their distance until one has no owner, and back along the shortest path to it,
  where each column goes to the row that reached it.
  """

  steps: Array  # int32 [], forth and back, of all searches
  owner: Array  # int32 [C], the row that has each column, -1 for none
  price: Array  # [C], the dual variable, never above 0
  waiting: Array  # bool [N], the row is valid and has no column yet
  root: Array  # int32 [], the row that searches
  column: Array  # int32 [], the column just reached, -1 for the root
  back: Array  # bool [], on the way back
  distance: Array  # [C], from the root to each column, as far as known
  before: Array  # int32 [C], the column before it on that path, -1 for the root
  scanned: Array  # bool [C], the distance is final


@jax.jit  # called by itself, op by op, it would compile for seconds
def _solve_on_device(cost: Array, valid: Array) -> Array:
  """The query of each target, -1 for none, by one loop for all problems."""
  queries, targets = cost.shape[-2:]
  query = jax.vmap(_shortest_augmenting_paths)(cost.reshape(-1, queries, targets), valid.reshape(-1, targets))
  return query.reshape(valid.shape)


def _shortest_augmenting_paths(cost: Array, valid: Array) -> Array:
  """Jonker and Volgenant's algorithm on the valid targets of one problem, cost [Q, N], in one flat loop.

  At most N searches go forth over at most N columns each, none twice, and back over no more: 2 N^2 steps. They are
  counted all the same, so that no arithmetic whatever makes a program hang.
  """
  queries, targets = cost.shape
  cost = _reduced(cost, valid)

  def step(s: _Search) -> _Search:
    row = jnp.where(s.column < 0, s.root, s.owner[s.column])
    moved = jax.tree.map(lambda back, forth: jnp.where(s.back, back, forth), _back(s), _forth(s, cost[:, row]))
    return moved._replace(steps=s.steps + 1)

  def unfinished(s: _Search) -> Array:
    return jnp.any(s.waiting) & (s.steps < 2 * targets**2)

  owner = jax.lax.while_loop(unfinished, step, _greedy(cost, valid)).owner
  query = jnp.full(targets, -1, jnp.int32)
  query = query.at[jnp.where(owner < 0, targets, owner)].set(jnp.arange(owner.size, dtype=jnp.int32), mode='drop')
  return jnp.where(query < queries, query, -1)


def _reduced(cost: Array, valid: Array) -> Array:
  """Costs [C, N] >= 0 of which each target has one at 0; C is Q, or N with dummy queries where Q < N.

  n valid targets need n columns, so n - Q dummies are open at one price for all, which favours no matching. The cost of
  NaN and infinite pairs is such that one less is worth more than any sum of the others.
  """
  queries, targets = cost.shape
  finite, count = jnp.isfinite(cost), jnp.sum(valid)
  cost = jnp.clip(cost, -_LARGEST, _LARGEST)
  cost = cost - jnp.min(cost, initial=_LARGEST, where=finite & valid)
  highest = jnp.max(cost, initial=_SMALLEST, where=finite & valid)
  cost = jnp.where(finite, cost, (count + 2) * highest)
  if targets > queries:
    is_open = jnp.arange(targets - queries)[:, None] < count - queries
    dummies = jnp.broadcast_to(jnp.where(is_open, highest, jnp.inf), (targets - queries, targets))
    cost = jnp.concatenate([cost, dummies.astype(cost.dtype)])
  return cost - jnp.min(cost, axis=0)


def _greedy(cost: Array, valid: Array) -> _Search:
  """Gives each column to the first valid target for which it is the best; the other targets have to search."""
  columns, targets = cost.shape
  rows = jnp.arange(targets, dtype=jnp.int32)
  # The least index of a zero: argmax would take twice as long on a CPU.
  best = jnp.min(jnp.where(cost == 0, jnp.arange(columns, dtype=jnp.int32)[:, None], columns), axis=0)
  owner = jnp.full(columns, targets, jnp.int32).at[jnp.where(valid, best, columns)].min(rows, mode='drop')
  waiting = valid & (owner[best] != rows)
  nothing, none = jnp.zeros(columns, cost.dtype), jnp.full(columns, -1, jnp.int32)
  return _Search(steps=jnp.int32(0), owner=jnp.where(owner < targets, owner, -1), price=nothing, waiting=waiting,
                 root=_first(waiting), column=jnp.int32(-1), back=jnp.bool_(False), distance=nothing + jnp.inf,
                 before=none, scanned=none >= 0)


def _forth(s: _Search, cost: Array) -> _Search:
  """Goes on to the nearest column, over the row that has the last one and its cost [C] for each column."""
  columns = jnp.arange(cost.size, dtype=jnp.int32)
  reach = cost - s.price
  reach = reach + jnp.where(s.column < 0, 0, s.distance[s.column] - reach[s.column])
  closer = ~s.scanned & (reach < s.distance)
  distance = jnp.where(closer, reach, s.distance)
  ahead = jnp.where(s.scanned, jnp.inf, distance)
  least = jnp.min(ahead)
  # Of equally near ones a column without an owner, for it ends the search; they rank before all that have one.
  rank = jnp.min(jnp.where(ahead == least, columns + jnp.where(s.owner < 0, 0, cost.size), 2 * cost.size))
  found, nearest = rank < cost.size, rank % cost.size
  return s._replace(column=nearest, back=found, distance=distance, before=jnp.where(closer, s.column, s.before),
                    price=jnp.where(found & s.scanned, s.price + distance - least, s.price),
                    scanned=s.scanned | (columns == nearest))


def _back(s: _Search) -> _Search:
  """Gives the column to the row that reached it and goes to the one before; from the root on, the next row searches."""
  before = s.before[s.column]
  done = before < 0
  row = jnp.where(done, s.root, s.owner[before])
  waiting = s.waiting & ~(done & (jnp.arange(s.waiting.size) == s.root))
  return s._replace(owner=jnp.where(jnp.arange(s.owner.size) == s.column, row, s.owner), waiting=waiting,
                    root=jnp.where(done, _first(waiting), s.root), column=before, back=~done,
                    distance=jnp.where(done, jnp.inf, s.distance), scanned=s.scanned & ~done)


def _first(waiting: Array) -> Array:
  return jnp.argmax(waiting).astype(jnp.int32)
