"""Everything that a training run carries from step to step; it has no device axis."""

from __future__ import annotations

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vision_jax.conventions import Array, Batch, Variables
from vision_jax.tasks.base import Task


@struct.dataclass
class TrainState:
  """The state of a run after `step` updates.

  Args:
    step: int32 scalar.
    params: what the optimiser moves.
    model_state: the other collections (`batch_stats`, frozen networks), which it cannot see.
    opt_state: Optax's.
    ema: the moving average of `params` and `batch_stats`, or an empty dict.
  """

  step: Array
  params: Any
  model_state: Any
  opt_state: Any
  ema: Any

  def evaluation_variables(self) -> Variables:
    """What evaluation and prediction use: the moving average where there is one."""
    return {'params': self.params, **self.model_state, **self.ema}


def averaged(params: Any, model_state: Any) -> dict[str, Any]:
  """The collections that a moving average covers."""
  return {'params': params, **{name: model_state[name] for name in ('batch_stats',) if name in model_state}}


def create_state(task: Task, optimiser: optax.GradientTransformation, batch: Batch, *, seed: int = 0,
                 ema: bool = False, initial: Variables | None = None) -> TrainState:
  """A fresh state on the host, as NumPy, with no buffer held twice (a donated one would crash pmap on the CPU).

  Args:
    task: whose `init` gives the variables.
    optimiser: from `optim.create`.
    batch: one example batch, for shapes.
    seed: of the parameters.
    ema: whether to keep a moving average.
    initial: the variables to begin with, in place of those that `init` draws.

  Raises:
    ValueError: initial variables of other names or shapes than the task's.
  """
  if initial is None:
    return to_host(jax.jit(lambda key, batch: _fresh(task, optimiser, batch, key, ema))(jax.random.key(seed), batch))
  shapes = jax.eval_shape(task.init, jax.random.key(seed), batch)
  differ = sorted(_shapes_by_path(shapes).items() ^ _shapes_by_path(initial).items())
  if differ:
    raise ValueError(f'initial variables do not fit the task: {", ".join(f"{n} {s}" for n, s in differ[:4])}; make '
                     'them with the same model and options, or fit them with pretrained.from_variables')
  return to_host(jax.jit(lambda variables: _state(variables, optimiser, ema))(to_host(initial)))


def state_shapes(task: Task, optimiser: optax.GradientTransformation, batch: Batch, *, ema: bool = False) -> TrainState:
  """The shapes of `create_state`'s result, without computing it."""
  return jax.eval_shape(lambda key, batch: _fresh(task, optimiser, batch, key, ema), jax.random.key(0), batch)


def _fresh(task: Task, optimiser: optax.GradientTransformation, batch: Batch, key: Array, ema: bool) -> TrainState:
  return _state(task.init(key, batch), optimiser, ema)


def _state(variables: Variables, optimiser: optax.GradientTransformation, ema: bool) -> TrainState:
  variables = dict(variables)
  params = variables.pop('params')
  return TrainState(step=jnp.zeros((), jnp.int32), params=params, model_state=variables,
                    opt_state=optimiser.init(params), ema=averaged(params, variables) if ema else {})


def _shapes_by_path(tree: Any) -> dict[str, tuple[int, ...]]:
  return {jax.tree_util.keystr(path, simple=True, separator='/'): tuple(leaf.shape)
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def to_host(state: Any) -> Any:
  """A copy of a tree in host memory; never a view of a buffer that a donated step may overwrite."""
  return jax.tree.map(lambda leaf: np.array(leaf, copy=True), jax.device_get(state))
