"""One training step and one evaluation step; the only file with pmap.

The state has no device axis: `pmap(step, in_axes=(None, 0), out_axes=None)` takes and gives it un-replicated, and what
it logs is summed over the devices inside. Each device sees its share of the global batch, the divisors of the Terms are
summed over all of them, and so are the gradients: one device and eight give the same update (BatchNorm apart, whose
statistics are those of one device's share and whose running averages are then averaged).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools
import os
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from vision_jax.conventions import Array, Batch, Term
from vision_jax.tasks.base import Task, resolve_weights
from vision_jax.train.state import TrainState, averaged

AXIS = 'devices'


def make_train_step(task: Task, optimiser: optax.GradientTransformation, *, seed: int = 0, accumulate: int = 1,
                    ema_decay: float | None = None) -> Callable[[TrainState, Batch], tuple[TrainState, dict]]:
  """The update of a task under pmap: (state, sharded batch) -> (state, logs); it donates the state.

  Args:
    task: whose Terms are minimised.
    optimiser: from `optim.create`.
    seed: the step's random key is `fold_in(key(seed), step)`, the same on every device; what is drawn for an example
      must be folded with `batch['position']`.
    accumulate: micro-batches to a step. Their divisors are summed before dividing, so that four of them give what one
      batch gives; BatchNorm sees them one after another.
    ema_decay: of the moving average in `state.ema`; the first steps use min(decay, (1 + step) / (10 + step)).

  Returns:
    A function of the state and of `shard_batch`'s batch. Its logs are scalars: each Term's mean, the task's scalars,
    `loss` (the weighted sum) and `gradient_norm` (before clipping).
  """
  gradients = _one_batch if accumulate == 1 else functools.partial(_micro_batches, accumulate=accumulate)

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict]:
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    grads, terms, scalars, model_state = gradients(task, state, batch, key)
    if 'batch_stats' in model_state:
      model_state = {**model_state, 'batch_stats': lax.pmean(model_state['batch_stats'], AXIS)}
    updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema_decay is not None:
      decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
      ema = jax.tree.map(lambda mean, new: decay * mean + (1.0 - decay) * new, ema, averaged(params, model_state))
    means = {name: term.total / jnp.maximum(term.count, term.floor) for name, term in terms.items()}
    weights = resolve_weights(task.weights, tuple(terms))
    logs = {**means, **lax.pmean(scalars, AXIS), 'loss': sum(weights[name] * mean for name, mean in means.items()),
            'gradient_norm': optax.tree.norm(grads)}
    return TrainState(state.step + 1, params, model_state, opt_state, ema), logs

  return jax.pmap(step, axis_name=AXIS, in_axes=(None, 0), out_axes=(None, None), donate_argnums=0)


def make_eval_step(task: Task) -> Callable[[Any, Batch], tuple[dict, dict[str, Term]]]:
  """A task's predictions under pmap: (variables, sharded batch) -> (predictions [D, B/D, ...], Terms of the batch).

  The Terms are those of the whole global batch, and none where the batch has no targets.
  """

  def step(variables: Mapping[str, Any], batch: Batch) -> tuple[dict, dict[str, Term]]:
    predictions = task.predict(variables, batch)
    if not set(task.fields) <= set(batch):
      return predictions, {}
    model_state = {name: value for name, value in variables.items() if name != 'params'}
    terms, _, _ = task.loss(variables['params'], model_state, batch, jax.random.key(0), jnp.zeros((), jnp.int32), False)
    return predictions, _sum_terms(terms)

  return jax.pmap(step, axis_name=AXIS, in_axes=(None, 0), out_axes=(0, None))


def _sum_terms(terms: Mapping[str, Term]) -> dict[str, Term]:
  """The Terms of the global batch: totals and counts summed over the devices."""
  return {name: Term(lax.psum(total, AXIS), lax.psum(count, AXIS), floor)
          for name, (total, count, floor) in terms.items()}


def _one_batch(task: Task, state: TrainState, batch: Batch, key: Array):
  """Gradients of the whole batch at once: the counts are summed over the devices, then the gradients are."""

  def objective(params):
    terms, scalars, model_state = task.loss(params, state.model_state, batch, key, state.step, True)
    weights = resolve_weights(task.weights, tuple(terms))
    # Only the counts are summed before differentiating: through a psum of the loss, gradients would grow D times.
    counts = {name: lax.psum(lax.stop_gradient(term.count), AXIS) for name, term in terms.items()}
    loss = sum(weights[name] * term.total / jnp.maximum(counts[name], term.floor) for name, term in terms.items())
    return loss, (terms, scalars, model_state)

  grads, (terms, scalars, model_state) = jax.grad(objective, has_aux=True)(state.params)
  return lax.psum(grads, AXIS), _sum_terms(terms), scalars, model_state


def _micro_batches(task: Task, state: TrainState, batch: Batch, key: Array, *, accumulate: int):
  """Gradients of `accumulate` micro-batches: one sum for each distinct count, divided when the counts are known."""
  batch = jax.tree.map(lambda x: x.reshape(accumulate, x.shape[0] // accumulate, *x.shape[1:]), dict(batch))
  groups: list[list[str]] = []  # names of Terms that share a count, known once the loss was traced

  def grouped(params, model_state, micro):
    terms, scalars, model_state = task.loss(params, model_state, micro, key, state.step, True)
    weights = resolve_weights(task.weights, tuple(terms))
    by_count: dict[tuple[int, float], list[str]] = {}
    for name, term in terms.items():
      by_count.setdefault((id(term.count), term.floor), []).append(name)
    groups[:] = by_count.values()
    totals = [sum(weights[name] * terms[name].total for name in names) for names in groups]
    floors.update({name: term.floor for name, term in terms.items()})
    sums = {name: (term.total, term.count) for name, term in terms.items()}
    return totals, (sums, scalars, model_state)

  floors: dict[str, float] = {}
  first = jax.tree.map(lambda x: x[0], batch)
  _, (sums, scalars, _) = jax.eval_shape(grouped, state.params, state.model_state, first)
  zeros = functools.partial(jax.tree.map, lambda x: jnp.zeros(x.shape, x.dtype))

  def body(carry, micro):
    grads, sums, scalars, model_state = carry
    totals, pullback, aux = jax.vjp(lambda params: grouped(params, model_state, micro), state.params, has_aux=True)
    one_hot = [[jnp.asarray(float(i == j), total.dtype) for j, total in enumerate(totals)] for i in range(len(totals))]
    new = [pullback(cotangent)[0] for cotangent in one_hot]
    add = functools.partial(jax.tree.map, jnp.add)
    return (add(grads, new), add(sums, aux[0]), add(scalars, aux[1]), aux[2]), None

  start = ([zeros(state.params) for _ in groups], zeros(sums), zeros(scalars), state.model_state)
  (grads, sums, scalars, model_state), _ = lax.scan(body, start, batch)
  terms = _sum_terms({name: Term(total, count, floors[name]) for name, (total, count) in sums.items()})
  divisors = [jnp.maximum(terms[names[0]].count, floors[names[0]]) for names in groups]
  grads = jax.tree.map(lambda *leaves: sum(g / d for g, d in zip(leaves, divisors, strict=True)), *grads)
  return lax.psum(grads, AXIS), terms, jax.tree.map(lambda x: x / accumulate, scalars), model_state


def check_batch_size(batch_size: int, *, accumulate: int = 1) -> None:
  """Refuses a global batch that the devices and micro-batches do not divide."""
  shares = jax.device_count() * accumulate
  if batch_size % shares:
    nearest = max(1, round(batch_size / shares)) * shares
    raise ValueError(f'data.batch_size {batch_size} is not divisible by {jax.device_count()} devices x {accumulate} '
                     f'micro-batches; the nearest that is: {nearest}')


def shard_batch(batch: Batch) -> dict[str, np.ndarray]:
  """This process's rows of the global batch, [B, ...], as [D, B/D, ...] over its local devices."""
  devices = jax.local_device_count()
  return {name: x.reshape(devices, x.shape[0] // devices, *x.shape[1:]) for name, x in batch.items()}


def unshard(tree: Any) -> Any:
  """Predictions [D, B/D, ...] of the local devices as NumPy [B, ...]."""
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), local_values(tree))


def local_values(tree: Any) -> Any:
  """The part of a pmapped output that this process holds, as NumPy."""

  def gather(x):
    if x.is_fully_addressable:
      return np.asarray(x)
    shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])

  return jax.tree.map(gather, tree)


def steps_in_flight() -> int:
  """How many steps may be dispatched before the oldest is waited for.

  Several CPU devices on few cores can hang in XLA's collectives. They do not with NPROC = 8 x devices in the
  environment before jax is imported (the programs in `experiments/` set it) and at most 8 steps in flight; nor, as long
  as the step has no host callback, with one step at a time.
  """
  several = jax.default_backend() == 'cpu' and jax.local_device_count() > 1
  return 1 if several and int(os.environ.get('NPROC') or 0) < 8 * jax.local_device_count() else 8


def replicate(state: TrainState) -> TrainState:
  """The state on every local device, placed as the step returns it, so that the step compiles once."""
  mesh = jax.sharding.Mesh(np.array(jax.local_devices()), (AXIS,))
  return jax.device_put(state, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
