"""Multiply-adds, counted from what JAX traces: nothing is compiled and no array is allocated.

A multiply-add is one product of a convolution or of a matrix product together with its addition; the literature calls
a thousand million of them a GMAC, and often, misleadingly, a GFLOP. One is two floating point operations. Everything
else (normalisations, activations, pools, biases) is left out, as it is in the published tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
import math
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Literal


def multiply_adds(function: Callable, *args: Any, **kwargs: Any) -> int:
  """How many multiply-adds a function takes, gradients and all if it takes some.

  Convolutions count the border that they pad, as published figures do, and transposed ones only what is not inserted
  zeros. A loop of known length counts each round, a `while` one round, and of several branches the dearest counts.
  What the results do not need does not count.

  Args:
    function: of arrays, to arrays.
    *args: its arrays, or what has their shapes and dtypes.
    **kwargs: its options.

  Returns:
    A whole number.

  >>> import jax.numpy as jnp
  >>> multiply_adds(jnp.matmul, jnp.zeros((2, 3)), jnp.zeros((3, 5)))
  30
  """
  jaxpr = jax.make_jaxpr(lambda *arrays: function(*arrays, **kwargs))(*args).jaxpr
  return sum(count for _, count in products(live_equations(jaxpr, jaxpr.outvars)))


def live_equations(jaxpr: Jaxpr, outvars: Iterable[Any]) -> list[JaxprEqn]:
  """The equations of a jaxpr that these of its variables need."""
  needed, kept = set(_variables(outvars)), []
  for equation in reversed(jaxpr.eqns):
    if not needed.isdisjoint(equation.outvars):
      needed.update(_variables(equation.invars))
      kept.append(equation)
  return kept[::-1]


def products(equations: Iterable[JaxprEqn], scope: str = '') -> Iterator[tuple[str, int]]:
  """(name scopes from the outermost in, multiply-adds) of each convolution and matrix product."""
  for equation in equations:
    name, params = equation.primitive.name, equation.params
    inside = f'{scope}/{equation.source_info.name_stack}'
    if name == 'conv_general_dilated':
      yield inside, _of_convolution(equation)
    elif name == 'dot_general':
      (axes, _), _ = params['dimension_numbers']
      yield inside, equation.outvars[0].aval.size * math.prod(equation.invars[0].aval.shape[i] for i in axes)
    elif name == 'scan':
      yield from ((where, count * params['length']) for where, count in products(params['jaxpr'].eqns, inside))
    elif name == 'cond':
      branches = [list(products(branch.eqns, inside)) for branch in params['branches']]
      yield from max(branches, key=lambda branch: sum(count for _, count in branch))
    else:
      for inner in _inner(params):
        yield from products(inner.eqns, inside)


def _of_convolution(equation: JaxprEqn) -> int:
  """Each output times the kernel that makes it; for a transposed convolution each input times the kernel it meets."""
  lhs, rhs = (variable.aval for variable in equation.invars)
  spec = equation.params['dimension_numbers'].rhs_spec
  taps = math.prod(rhs.shape[i] for i in spec[2:])
  if math.prod(equation.params['lhs_dilation']) > 1:
    return lhs.size * taps * rhs.shape[spec[0]] // equation.params['feature_group_count']
  return equation.outvars[0].aval.size * taps * rhs.shape[spec[1]]


def _inner(params: dict[str, Any]) -> Iterator[Any]:
  """The jaxprs among an equation's parameters: those of jit, remat, custom derivatives and while."""
  for value in params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      if hasattr(item, 'eqns'):
        yield item


def _variables(atoms: Iterable[Any]) -> Iterator[Any]:
  return (atom for atom in atoms if not isinstance(atom, Literal))
