"""What a task is, and the helpers that every task needs.

A task is a frozen dataclass that holds a module and static hyper-parameters. It owns no machinery (no EMA, devices,
input or output, random state); the training loop knows this protocol and nothing else about it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, Protocol

from flax import linen as nn

from vision_jax.conventions import Array, Batch, Term, Variables


class Task(Protocol):
  """The pure functions that one loop needs to train, evaluate and predict.

  Attributes:
    kind: `'classification'`, `'detection'` or `'segmentation'`: which pictures and files its predictions become.
    fields: the target fields that its batches must hold, such as `('boxes', 'labels')`.
    weights: pairs (name or prefix of a Term, weight); see `resolve_weights`.
  """

  kind: str
  fields: tuple[str, ...]
  weights: tuple[tuple[str, float], ...]

  def init(self, key: Array, batch: Batch) -> Variables:
    """Fresh variables: `params` and any other collections, for batches like this one."""

  def loss(self, params: Any, model_state: Any, batch: Batch, key: Array, step: Array,
           train: bool) -> tuple[dict[str, Term], dict[str, Array], Any]:
    """The Terms to minimise, scalars that are only logged, and the new model state."""

  def predict(self, variables: Variables, batch: Batch) -> dict[str, Array]:
    """Decoded predictions of static shape, in pixels of the canvas."""

  def metrics(self) -> Sequence[Any]:
    """Fresh whole-dataset accumulators (`metrics.base.Accumulator`)."""


def on_images(module: nn.Module, batch: Batch, train: bool) -> Any:
  """The outputs of a bound module that takes images alone."""
  return module(batch['image'], train=train)


def apply_module(module: nn.Module, params: Any, model_state: Mapping[str, Any], batch: Batch, *, key: Array,
                 train: bool, forward: Callable[..., Any] = on_images) -> tuple[Any, Mapping[str, Any]]:
  """The outputs of `forward(bound module, batch=, train=)`, and the module's state after them.

  The state is unchanged unless `train`.

  In training the module draws its noise (`models.noise`) from the key, which all devices share, and the place of each
  example in the global batch, the variable 'position' of the collection 'example': the same noise on one device and on
  eight. The collection is no state, and does not come back. What a task draws itself, it folds from (key,
  `batch['position']`) too.
  """
  variables = {'params': params, **model_state}
  call = functools.partial(forward, batch=batch, train=train)
  if not train:
    return module.apply(variables, method=call), model_state
  variables['example'] = {'position': batch['position']}
  outputs, updated = module.apply(variables, method=call, mutable=list(model_state), rngs={'dropout': key})
  return outputs, {**model_state, **updated}


def init_module(module: nn.Module, key: Array, batch: Batch) -> Variables:
  """Fresh variables of a module that is called with images; one image is enough for their shapes."""
  return module.init(key, batch['image'][:1], train=False)


def resolve_weights(weights: tuple[tuple[str, float], ...], names: Sequence[str], *,
                    train: bool = True) -> dict[str, float]:
  """The weight of each Term, from pairs whose key is its name or a prefix of it up to an underscore.

  Args:
    weights: pairs (key, weight); the longest key that fits a name counts, so `loss_bbox` covers `loss_bbox_0`.
    names: the names of the Terms.
    train: whether these are the Terms of training. An evaluation may have fewer (no auxiliary heads), so that there a
      key may cover none.

  Returns:
    One weight for each name.

  Raises:
    ValueError: a Term without a weight, a key that covers no Term of training, or a key that stands twice.

  >>> resolve_weights((('loss_bbox', 5.0), ('loss_class', 1.0)), ('loss_bbox', 'loss_bbox_0', 'loss_class'))
  {'loss_bbox': 5.0, 'loss_bbox_0': 5.0, 'loss_class': 1.0}
  """
  keys = [key for key, _ in weights]
  if len(set(keys)) != len(keys):
    raise ValueError(f'task.weights gives a key twice: {", ".join(keys)}')
  table, used, resolved = dict(weights), set(), {}
  for name in names:
    fitting = [key for key in table if name == key or name.startswith(key + '_')]
    if not fitting:
      raise ValueError(f'task.weights has no weight for {name}; its keys are {", ".join(keys) or "none"}')
    key = max(fitting, key=len)
    used.add(key)
    resolved[name] = table[key]
  unused = [key for key in table if key not in used]
  if unused and train:
    raise ValueError(f'task.weights names {", ".join(unused)}, which the loss does not have; it has {", ".join(names)}')
  return resolved
