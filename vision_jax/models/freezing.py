"""Parts of a module that do not learn: parameters without a gradient, BatchNorms in test mode.

Freezing parameters and freezing statistics are two things. A layer whose parameters get no update still changes if its
BatchNorms follow the batches: in training they normalise by the batch, and their running averages move on. `Frozen`
does both, each for the parts that are named.

No module and no task knows: the wrapper stops the gradients before the module sees its parameters, and a Linen
interceptor sets the mode of each BatchNorm as it is called.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax

Variables = Any


@dataclasses.dataclass(frozen=True)
class Frozen:
  """A module of which parts are frozen in training; used in its place, it has its `apply`, `init` and attributes.

  What lies below the lowest part that learns is left out of the backward pass: a head alone trains at little more than
  the cost of evaluation.

  Args:
    module: any Linen module.
    params: paths of the parameters that get no gradient, such as 'layer1_0/conv1/kernel'.
    norms: paths of the BatchNorms that use their running statistics, and leave them alone, whatever `train` says:
      'layer1_0/bn1'.

  Raises:
    ValueError: on `apply`, a parameter that the module does not have.

  >>> from vision_jax import models
  >>> module = Frozen(models.create('resnet18', num_classes=3, width=2), ('conv1/kernel',), ('bn1',))
  >>> module.num_classes, hash(module) == hash(dataclasses.replace(module))
  (3, True)
  """

  module: nn.Module
  params: tuple[str, ...] = ()
  norms: tuple[str, ...] = ()

  def init(self, *args: Any, **options: Any) -> Variables:
    """The module's own."""
    return self.module.init(*args, **options)

  def apply(self, variables: Variables, *args: Any, **options: Any) -> Any:
    """The module's own, with the frozen parts frozen."""
    params, norms = _stopped(variables.get('params', {}), frozenset(self.params)), frozenset(self.norms)

    def intercept(call, args, options, context):
      if isinstance(context.module, nn.BatchNorm) and '/'.join(context.module.path) in norms:
        options = {**options, 'use_running_average': True}
      return call(*args, **options)

    with nn.intercept_methods(intercept):
      return self.module.apply({**variables, 'params': params}, *args, **options)

  def __getattr__(self, name: str) -> Any:
    if name.startswith('__') or name == 'module':  # Python's own, asked before there is a module
      raise AttributeError(name)
    return getattr(self.module, name)


def _stopped(params: Any, frozen: frozenset[str]) -> Any:
  """The parameters, those with these paths as constants."""
  seen = set()

  def stop(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    seen.add(name)
    return jax.lax.stop_gradient(leaf) if name in frozen else leaf

  params = jax.tree_util.tree_map_with_path(stop, params)
  if frozen - seen:
    raise ValueError(f'Frozen: the module has no parameter {", ".join(sorted(frozen - seen)[:3])}; it has '
                     f'{", ".join(sorted(seen)[:3])}, ...')
  return params
