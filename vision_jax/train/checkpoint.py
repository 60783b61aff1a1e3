"""Checkpoints that are whole or absent, explain a mismatch, and do not know on how many devices they were made.

A state is stored flat, one array under each leaf's path ('params/conv1/kernel'), beside a JSON record of what the host
knows (the metrics, the early stopping's counters). The only file of the project that uses orbax.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any
import warnings

from flax import traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from vision_jax.train.state import to_host

SHOWN = 5  # names of each kind in an error line
_VARIABLES, _RECORD = 'variables', 'weights.json'  # in the folder of `save_variables`


class Checkpoints:
  """The checkpoints of one run: the newest `keep` and the best one by a named metric, written in the background.

  Args:
    folder: made where it is missing, if `create`.
    best: the metric's name, such as 'AP'; None keeps the newest only.
    mode: 'max' or 'min': which values of the metric are better.
    keep: how many of the newest to keep.
    create: whether the run writes; a reader leaves the folder as it is.

  Raises:
    ValueError: an unknown mode.
  """

  def __init__(self, folder: str | pathlib.Path, *, best: str | None = None, mode: str = 'max', keep: int = 2,
               create: bool = True):
    if mode not in ('max', 'min'):
      raise ValueError(f"train.best_mode is {mode!r}; it is 'max' or 'min'")
    self.folder = pathlib.Path(folder).absolute()
    value = (lambda metrics: metrics[best]) if best else None
    preserve = [policies.LatestN(keep)]
    if best:
      preserve.append(policies.BestN(get_metric_fn=value, reverse=mode == 'min', n=1,
                                     keep_checkpoints_without_metrics=False))
    options = ocp.CheckpointManagerOptions(
        create=create, read_only=not create, best_fn=value, best_mode=mode, keep_checkpoints_without_metrics=False,
        cleanup_tmp_directories=create,
        preservation_policy=policies.AnyPreservationPolicy(preserve) if create else None)
    registry = ocp.DefaultCheckpointHandlerRegistry()
    for args in (ocp.args.PyTreeSave, ocp.args.PyTreeRestore):
      registry.add('state', args, ocp.PyTreeCheckpointHandler())
    for args in (ocp.args.JsonSave, ocp.args.JsonRestore):
      registry.add('host', args, ocp.JsonCheckpointHandler())
    self._damaged: set[int] = set()  # seen by restore; the run makes these steps again
    self._manager = ocp.CheckpointManager(self.folder, options=options, handler_registry=registry)

  def save(self, state: Any, *, host: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
    """Copies the state to the host, then writes it in the background under its own step; a second save is no news."""
    step = int(state.step)
    if step in self._damaged:
      self._manager.delete(step)
      self._damaged.discard(step)
    if step in self._manager.all_steps():
      return
    # A copy: the next step donates, and so overwrites, the buffers of this one.
    args = ocp.args.Composite(state=ocp.args.PyTreeSave(_flat(to_host(state))), host=ocp.args.JsonSave(dict(host)))
    self._manager.save(step, args=args, metrics=dict(metrics) if metrics else None, force=True)

  def steps(self) -> tuple[int, ...]:
    """The steps of the checkpoints there are, oldest first."""
    return tuple(sorted(self._manager.all_steps()))

  def best_step(self) -> int | None:
    """The step of the best checkpoint, or None."""
    return self._manager.best_step()

  def restore(self, like: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
    """The state and the host's record at a step, or at the newest one that can be read.

    Args:
      like: a state, or its shapes, of the structure to restore.
      step: which one; None takes the newest, and the one before where the newest is damaged.

    Raises:
      ValueError: no checkpoint, none of this step, none that is whole, or one of another model: which names are
        missing, unexpected or of another shape.
    """
    steps = self.steps()
    if not steps or (step is not None and step not in steps):
      there = f'there are {", ".join(map(str, steps))}' if steps else 'there is none; train first'
      raise ValueError(f'no checkpoint{"" if step is None else f" of step {step}"} in {self.folder}; {there}')
    damaged = []
    for candidate in [step] if step is not None else reversed(steps):
      try:
        return self._read(like, candidate)
      except _Mismatch:
        raise
      except Exception as error:  # orbax raises many kinds for a damaged file; the step before may still be whole
        damaged.append(f'{candidate} ({type(error).__name__})')
        self._damaged.add(candidate)
        warnings.warn(f'checkpoint {candidate} in {self.folder} is damaged; trying the one before', stacklevel=2)
    raise ValueError(f'no whole checkpoint in {self.folder}; damaged: {", ".join(damaged)}; start a fresh --workdir')

  def variables(self, step: int) -> dict[str, Any]:
    """What evaluation uses of the state at a step, by collection, whatever the model was: the average if there is one.

    Raises:
      ValueError: a checkpoint that cannot be read.
    """
    try:
      state, _ = self._arrays(step, self._stored(step))
    except Exception as error:  # orbax raises many kinds for a damaged file
      raise ValueError(f'checkpoint {step} in {self.folder} is damaged ({type(error).__name__}); choose another step '
                       'or run') from error
    chosen: dict[str, np.ndarray] = {}
    for prefix in ('params/', 'model_state/', 'ema/'):  # the later ones win
      own = {name: array for name, array in state.items() if name.startswith(prefix)}
      chosen |= {name if prefix == 'params/' else name.removeprefix(prefix): array for name, array in own.items()}
    return traverse_util.unflatten_dict(chosen, sep='/')

  def _read(self, like: Any, step: int) -> tuple[Any, dict[str, Any]]:
    wanted, stored = _flat(like), self._stored(step)
    _compare(stored, wanted, f'{self.folder}, step {step}')
    state, host = self._arrays(step, stored)
    return jax.tree.unflatten(jax.tree.structure(like), [state[name] for name in wanted]), host

  def _stored(self, step: int) -> Mapping[str, Any]:
    """What a checkpoint holds: name -> shape and dtype."""
    stored = self._manager.item_metadata(step)['state']
    return getattr(stored, 'tree', stored)

  def _arrays(self, step: int, stored: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """All arrays of a checkpoint, and the host's record."""
    restore = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in stored}
    item = self._manager.restore(step, args=ocp.args.Composite(
        state=ocp.args.PyTreeRestore(restore_args=restore), host=ocp.args.JsonRestore()))
    return {name: np.asarray(item['state'][name]) for name in stored}, item['host']

  def wait(self) -> None:
    """Waits until what was saved is on the disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the disk and ends the background threads."""
    self._manager.close()


# Variables alone, for weights that come from elsewhere.


def save_variables(folder: str | pathlib.Path, variables: Mapping[str, Any], record: Mapping[str, Any]) -> None:
  """Writes variables, and beside them what is known about them.

  Args:
    folder: made where it is missing; an older save in it is replaced.
    variables: by collection, nested dicts of arrays.
    record: for JSON; a config's `model.weights` reads `model`, with its `name` and options, and `preprocessing`.
  """
  folder = pathlib.Path(folder).absolute()
  folder.mkdir(parents=True, exist_ok=True)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    checkpointer.save(folder / _VARIABLES, args=ocp.args.PyTreeSave(_flat(to_host(dict(variables)))), force=True)
  unfinished = folder / f'{_RECORD}.tmp'
  unfinished.write_text(json.dumps(dict(record), indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
  unfinished.replace(folder / _RECORD)


def load_variables(folder: str | pathlib.Path) -> dict[str, Any]:
  """The variables that `save_variables` wrote: nested dicts of NumPy arrays, by collection.

  Raises:
    ValueError: no such folder, or a damaged one.
  """
  path = pathlib.Path(folder).absolute() / _VARIABLES
  if not path.is_dir():
    raise ValueError(f'{folder} holds no variables; give a folder that experiments/import_weights.py wrote')
  try:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
      stored = checkpointer.metadata(path).item_metadata
      restore = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in getattr(stored, 'tree', stored)}
      flat = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=restore))
  except Exception as error:  # orbax raises many kinds for a damaged file
    raise ValueError(f'the variables in {folder} are damaged ({type(error).__name__}); import them again') from error
  return traverse_util.unflatten_dict({name: np.asarray(array) for name, array in flat.items()}, sep='/')


def read_record(folder: str | pathlib.Path) -> dict[str, Any]:
  """What `save_variables` wrote beside variables.

  Raises:
    ValueError: there is none, or it is no JSON.
  """
  path = pathlib.Path(folder) / _RECORD
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise ValueError(f'{path} cannot be read ({type(error).__name__}); give a folder that '
                     'experiments/import_weights.py wrote') from error


class _Mismatch(ValueError):
  """A checkpoint of another model."""


def _flat(tree: Any) -> dict[str, Any]:
  """One entry for each leaf, under its path."""
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _compare(stored: Mapping[str, Any], wanted: Mapping[str, Any], place: str) -> None:
  """Refuses a checkpoint whose names or shapes are not the wanted ones."""
  kinds = {
      'missing': [name for name in wanted if name not in stored],
      'unexpected': [name for name in stored if name not in wanted],
      'of another shape': [f'{name} {tuple(stored[name].shape)} for {tuple(np.shape(wanted[name]))}'
                           for name in wanted if name in stored and tuple(stored[name].shape) != _shape(wanted[name])],
  }
  found = [f'{kind}: {_some(names)}' for kind, names in kinds.items() if names]
  if found:
    raise _Mismatch(f'the checkpoint in {place} is of another model or optimiser; {"; ".join(found)}')


def _some(names: Sequence[str]) -> str:
  more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
  return ', '.join(sorted(names)[:SHOWN]) + more


def _shape(leaf: Any) -> tuple[int, ...]:
  return tuple(leaf.shape) if hasattr(leaf, 'shape') else np.shape(leaf)
