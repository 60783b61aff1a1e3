"""What a model is made of: its layers with shapes, parameters, multiply-adds and receptive fields, from one trace."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import math
import re
from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from vision_jax.inspect.counting import live_equations, products
from vision_jax.inspect.receptive import Field, propagate

Path = tuple[str, ...]
Pixels = tuple[int, int] | None
CALL = re.compile(r'call:(\d+)')


@dataclasses.dataclass(frozen=True)
class Output:
  """An array that a layer gives.

  `name` is its key where a layer gives several; `shape` has the batch; `stride` is how many pixels of the image its
  neighbours are apart, None for what is no map; `receptive_field` is how many pixels of the image (h, w) each of its
  numbers sees, None for all of them or none.
  """

  name: str
  shape: tuple[int, ...]
  stride: Pixels = None
  receptive_field: Pixels = None


@dataclasses.dataclass(frozen=True)
class Layer:
  """A module of a model, with all that is inside it.

  `path` is the names of the modules that it is in, and its own; `kind` its class; `calls` how often it is called;
  `outputs` what its first call gives; `parameters`, `statistics` (of BatchNorm) and `multiply_adds` are counted over
  all calls and all modules inside.
  """

  path: Path
  kind: str
  calls: int
  outputs: tuple[Output, ...]
  parameters: int
  statistics: int
  multiply_adds: int


@dataclasses.dataclass(frozen=True)
class Summary:
  """A model's layers in the order of their first call, the model itself first; `str` of it is a table.

  `inputs` are the shapes that it was given, `maps` what its method `features` gives where it has one.
  """

  inputs: tuple[tuple[int, ...], ...]
  layers: tuple[Layer, ...]
  maps: tuple[Output, ...]

  @property
  def parameters(self) -> int:
    """Numbers that training changes."""
    return self.layers[0].parameters

  @property
  def statistics(self) -> int:
    """Numbers that training keeps beside them, such as BatchNorm's running means and variances."""
    return self.layers[0].statistics

  @property
  def multiply_adds(self) -> int:
    """Products of convolutions and matrix products; a GMAC is 1e9 of them."""
    return self.layers[0].multiply_adds

  @property
  def flops(self) -> int:
    """Floating point operations of these: a multiplication and an addition each."""
    return 2 * self.multiply_adds

  def table(self, depth: int | None = None) -> str:
    """The layers as text.

    Args:
      depth: how many levels of modules are shown; all when left out. What is deeper counts in those above it.

    Returns:
      Lines: a header, a line for each layer, and the totals.
    """
    rows = [HEADER, *(_row(layer) for layer in self.layers if depth is None or len(layer.path) <= depth)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    lines = ['  '.join(cell.ljust(width) if i < 3 else cell.rjust(width)
                       for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]
    return '\n'.join([*lines, '', self.totals()])

  def totals(self) -> str:
    """Parameters, statistics and work in one sentence."""
    size = ', '.join(' x '.join(map(str, shape)) for shape in self.inputs)
    return (f'{self.parameters:,} parameters, {self.statistics:,} batch statistics; for an input of {size}: '
            f'{_short(self.multiply_adds)} multiply-adds (what tables often call FLOPs), {_short(self.flops)}FLOP')

  def __str__(self) -> str:
    return self.table()


def summary(model: nn.Module, *inputs: Any, method: str | None = None, **options: Any) -> Summary:
  """What a model is made of, from one trace of its initialisation: nothing is compiled, no weight is allocated.

  Args:
    model: any Linen module.
    *inputs: what it takes: shapes such as (1, 224, 224, 3), for float32, or what has a shape and a dtype. The first
      `[B, H, W, C]` is the image whose pixels the receptive fields are of.
    method: the method to call, when it is not `__call__`.
    **options: further options of that method, such as `train=True`.

  Returns:
    A `Summary`.

  Raises:
    ValueError: from the model, when it does not take the input.

  Differs from torchvision's figures: "GFLOPS" there are multiply-adds; both are given here.

  >>> from vision_jax import models
  >>> result = summary(models.create('resnet50'), (1, 224, 224, 3))
  >>> result.parameters, round(result.multiply_adds / 1e9, 3), result.maps[-1]
  (25557032, 4.089, Output(name='layer4', shape=(1, 7, 7, 2048), stride=(32, 32), receptive_field=(427, 427)))
  """
  inputs = tuple(jax.ShapeDtypeStruct(x, jnp.float32) if isinstance(x, tuple | list) else
                 jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs)
  calls = _Calls()
  key = jax.eval_shape(lambda: jax.random.key(0))

  def run(key, *arrays):
    with nn.intercept_methods(calls.intercept):
      return model.init_with_output({'params': key, 'dropout': key}, *arrays, method=method, **options)

  jaxpr, (results, variables) = jax.make_jaxpr(run, return_shape=True)(key, *inputs)
  # What no result needs (initialisers, heads for training alone) is not part of the model's work.
  equations = live_equations(jaxpr.jaxpr, jaxpr.jaxpr.outvars[:len(jax.tree.leaves(results))])
  work = [(calls.paths[int(CALL.findall(scope)[-1])] if CALL.search(scope) else (), count)
          for scope, count in products(equations)]
  fields = _fields(jaxpr.jaxpr.eqns, jaxpr.jaxpr.invars[1:], inputs)
  found = calls.summary(tuple(x.shape for x in inputs), variables, work, fields)
  if method is None and not found.maps and callable(getattr(model, 'features', None)):  # `__call__` goes another way
    maps = summary(model, *inputs, method='features', **options).layers[0].outputs
    found = dataclasses.replace(found, maps=maps)
  return found


def _fields(equations, variables, inputs) -> tuple[tuple[int, int], list[dict[str, Field]]]:
  """The image's size, and for its height and its width the fields of what is named in the equations."""
  image = next(((v, x.shape) for v, x in zip(variables, inputs, strict=True) if len(x.shape) == 4), None)
  if image is None:
    return (0, 0), [{}, {}]
  variable, (_, *size, _) = image
  starts = [(0, 1, 0, 0), (0, 0, 1, 0)]
  return tuple(size), [propagate(equations, {variable: Field(steps)}, extent)
                       for steps, extent in zip(starts, size, strict=True)]


class _Calls:
  """The calls of modules' methods during a trace; each has a number, which scopes and names in the jaxpr carry."""

  def __init__(self):
    self.paths: list[Path] = []
    self.kinds: dict[Path, str] = {}
    self.methods: list[str] = []
    self.results: list[list[tuple[str, Any]]] = []

  def intercept(self, function, args, kwargs, context):
    """Flax calls this in place of each method of each module."""
    if context.method_name == 'setup':
      return function(*args, **kwargs)
    number, path = len(self.paths), context.module.path
    self.paths.append(path)
    self.kinds.setdefault(path, type(context.module).__name__)
    self.methods.append(context.method_name)
    self.results.append([])
    with jax.named_scope(f'call:{number}'):
      result = function(*args, **kwargs)
    return self._name(number, '', result)

  def _name(self, number: int, key: str, result):
    """The same result with names on its arrays; a dictionary keeps its order, which jax.tree.map would not."""
    if isinstance(result, dict):
      return type(result)({k: self._name(number, f'{key}.{k}' if key else str(k), v) for k, v in result.items()})
    if type(result) in (tuple, list):
      return type(result)(self._name(number, f'{key}.{i}' if key else str(i), v) for i, v in enumerate(result))
    if not isinstance(result, jax.Array):
      return result
    found = self.results[number]
    found.append((key, result.shape))
    return checkpoint_name(result, f'call:{number}:{len(found) - 1}')

  def summary(self, inputs, variables, work, fields) -> Summary:
    first, counts = {}, {}
    for number, (path, method) in enumerate(zip(self.paths, self.methods, strict=True)):
      for end in range(len(path) + 1):
        first.setdefault(path[:end], None)
      if self.results[number]:
        if first[path] is None or (method == '__call__' and not counts.get(path)):
          first[path] = number
        counts[path] = counts.get(path, 0) + (method == '__call__')
    parameters = _totals(_sizes(variables.get('params', {})))
    statistics = _totals(_sizes(variables.get('batch_stats', {})))
    products = _totals(work)
    layers = tuple(
        Layer(path, self.kinds.get(path, ''), counts.get(path, 0), self._outputs(number, fields),
              parameters.get(path, 0), statistics.get(path, 0), products.get(path, 0))
        for path, number in first.items())
    maps = next((n for n, path in enumerate(self.paths) if path == () and self.methods[n] == 'features'), None)
    return Summary(inputs, layers, self._outputs(maps, fields))

  def _outputs(self, number: int | None, fields) -> tuple[Output, ...]:
    if number is None:
      return ()
    size, axes = fields
    found = []
    for i, (name, shape) in enumerate(self.results[number]):
      pair = [axis.get(f'call:{number}:{i}') for axis in axes]
      sizes = tuple(field.size if field else None for field in pair)
      found.append(Output(name, shape, _stride(shape, size, pair), None if None in sizes else sizes))
    return tuple(found)


def _stride(shape, size, pair) -> Pixels:
  """The step of a map; where its form is lost, as after attention in windows, what the sizes tell."""
  if len(shape) != 4 or None in pair:
    return None
  steps = []
  for axis, field in enumerate(pair):
    step = abs(field.steps[axis + 1])
    if not step and shape[axis + 1] > 1 and size[axis] % shape[axis + 1] == 0:
      step = size[axis] // shape[axis + 1]
    steps.append(step)
  return tuple(int(step) if step == int(step) else float(step) for step in steps) if all(steps) else None


def _sizes(tree) -> Iterator[tuple[Path, int]]:
  """(path of the module, how many numbers) of each variable."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    yield tuple(key.key for key in path[:-1]), math.prod(leaf.shape)


def _totals(parts) -> dict[Path, int]:
  """Sums of (path, number) over all that is at a path or inside it."""
  totals = {}
  for path, number in parts:
    for end in range(len(path) + 1):
      totals[path[:end]] = totals.get(path[:end], 0) + number
  return totals


HEADER = ('layer', 'kind', 'output', 'parameters', 'multiply-adds', 'receptive field', 'stride')


def _row(layer: Layer) -> tuple[str, ...]:
  name = '  ' * len(layer.path) + (layer.path[-1] if layer.path else 'model')
  kind = f'{layer.kind} x{layer.calls}' if layer.calls > 1 else layer.kind
  last = layer.outputs[-1] if layer.outputs else Output('', ())
  shape = ' x '.join(map(str, last.shape[1:])) + (f' (last of {len(layer.outputs)})' if len(layer.outputs) > 1 else '')
  field = 'all' if last.receptive_field is None and layer.outputs else _by(last.receptive_field)
  return name, kind, shape, f'{layer.parameters:,}', f'{layer.multiply_adds:,}', field, _by(last.stride)


def _short(count: int) -> str:
  scale, unit = next(pair for pair in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k'), (1, '')) if count >= pair[0] or not pair[1])
  return f'{count / scale:,.3f} {unit}' if unit else f'{count} '


def _by(pair: Pixels) -> str:
  return '' if pair is None else str(pair[0]) if pair[0] == pair[1] else f'{pair[0]} x {pair[1]}'
