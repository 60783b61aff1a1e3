"""Receptive fields: which pixels of the image each number of a map can depend on, followed through a jaxpr.

Along each axis of the image the number at the place (i, j, ...) of an array depends on the pixels from
`low + i * step_i + j * step_j + ...` to `high + i * step_i + ...`. Convolutions, pools, slices and reshapes keep this
form; what mixes all places (attention, a mean over the image that is multiplied back) loses it, and is said to
depend on the whole image. Borders are not cut off, so the field is the theoretical one and may exceed the image. Where
a map is enlarged, steps are fractions, and fields are right to within a step of the smaller map.

Wenjie Luo et al., Understanding the Effective Receptive Field in Deep Convolutional Neural Networks, arXiv 1701.04128.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
import math
from typing import Any, NamedTuple

from jax.extend.core import JaxprEqn, Literal

Number = int | Fraction
Shape = tuple[int, ...]


class Field(NamedTuple):
  """What an array depends on along one axis of the image.

  `steps` has for each axis of the array how many pixels further its next place looks, `low` and `high` are the first
  and last pixel of its place 0, and `whole` says that it may be any pixel.
  """

  steps: tuple[Number, ...]
  low: Number = 0
  high: Number = 0
  whole: bool = False

  @property
  def size(self) -> int | None:
    """How many pixels wide; None for the whole image."""
    return None if self.whole else math.floor(self.high - self.low) + 1


Fields = list[Field | None]  # None: nothing of the image


def propagate(equations: Sequence[JaxprEqn], fields: dict[Any, Field], extent: int) -> dict[str, Field]:
  """The fields of all that `checkpoint_name` names, for one axis of the image.

  Args:
    equations: of a jaxpr.
    fields: of its variables that hold the image; those of all other variables are added.
    extent: of the image along the axis, pixels.

  Returns:
    The name's field; a name is missing where nothing of the image arrives.
  """
  named = {}
  for equation in equations:
    inputs = [None if isinstance(atom, Literal) else fields.get(atom) for atom in equation.invars]
    if all(field is None for field in inputs):
      continue
    if equation.primitive.name == 'name':
      named[equation.params['name']] = inputs[0]
    outputs = _apply(equation, inputs, extent, named)
    fields.update((v, field) for v, field in zip(equation.outvars, outputs, strict=True) if field is not None)
  return named


def _apply(equation: JaxprEqn, inputs: Fields, extent: int, named: dict[str, Field]) -> Fields:
  """The fields of an equation's results."""
  name, params, shape = equation.primitive.name, equation.params, equation.outvars[0].aval.shape
  if name == 'cond':
    branches = [_call(branch, inputs[1:], extent, named) for branch in params['branches']]
    return [_join(options, v.aval.shape) for options, v in zip(zip(*branches, strict=True), equation.outvars,
                                                               strict=True)]
  inner = params.get('jaxpr', params.get('call_jaxpr'))
  called = hasattr(inner, 'eqns') and name != 'scan' and not name.startswith('reduce')
  if called and _arity(inner) == (len(inputs), len(equation.outvars)):
    return _call(inner, inputs, extent, named)
  if name == 'split':
    return _split(params, inputs[0])
  if name in RULES:
    return [RULES[name](equation, inputs, extent)]
  if name.startswith(('reduce_window', 'reduce_', 'arg')) and name != 'reduce_precision':
    rule = _window if name.startswith('reduce_window') else _reduction
    return [rule(equation, inputs, extent) for _ in equation.outvars]
  places = [v.aval.shape for v, field in zip(equation.invars, inputs, strict=True) if field is not None]
  mixing = name.startswith(('cum', 'sort', 'fft', 'scan', 'while', 'top_k', 'gather', 'scatter'))
  if mixing or any(place and not _fits(place, shape) for place in places):
    return [_anywhere(v.aval.shape) for v in equation.outvars]
  return [_join(inputs, shape)] * len(equation.outvars)  # element by element


def _call(jaxpr: Any, inputs: Fields, extent: int, named: dict[str, Field]) -> Fields:
  """The results of an inner jaxpr, such as that of a jitted function."""
  jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
  fields = {v: field for v, field in zip(jaxpr.invars, inputs, strict=True) if field is not None}
  named.update(propagate(jaxpr.eqns, fields, extent))
  return [None if isinstance(atom, Literal) else fields.get(atom) for atom in jaxpr.outvars]


def _arity(jaxpr: Any) -> tuple[int, int]:
  jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
  return len(jaxpr.invars), len(jaxpr.outvars)


def _fits(place: Shape, shape: Shape) -> bool:
  """Whether an operand of this shape is met element by element, or repeated along axes where it is 1 long."""
  return len(place) == len(shape) and all(n in (1, m) for n, m in zip(place, shape, strict=True))


def _anywhere(shape: Shape) -> Field:
  return Field((0,) * len(shape), whole=True)


def _join(fields: Sequence[Field | None], shape: Shape) -> Field | None:
  """What depends on all of these at once; where they do not move in step, that is the whole image."""
  known = [field if len(field.steps) == len(shape) else field._replace(steps=(0,) * len(shape))
           for field in fields if field is not None]
  if not known:
    return None
  steps, whole = [], any(field.whole for field in known)
  for axis, length in enumerate(shape):
    found = {field.steps[axis] for field in known}
    whole |= len(found) > 1 and length > 1
    steps.append(max(found, key=abs) if len(found - {0}) < 2 else 0)
  return Field(tuple(steps), min(field.low for field in known), max(field.high for field in known), whole)


def _spread(field: Field, axis: int, length: int) -> Field:
  """The field of `length` places along an axis taken together."""
  reach = (length - 1) * field.steps[axis]
  return field._replace(low=field.low + min(reach, 0), high=field.high + max(reach, 0))


def _reduce(field: Field, axes: Sequence[int], shape: Shape, extent: int) -> Field:
  """Without these axes; what then looks at everything, wherever it is, depends on the whole image."""
  moved = any(field.steps)
  for axis in axes:
    field = _spread(field, axis, shape[axis])
  field = field._replace(steps=tuple(step for axis, step in enumerate(field.steps) if axis not in axes))
  everything = moved and not any(field.steps) and field.high - field.low + 1 >= extent
  return field._replace(whole=field.whole or everything)


def _reduction(equation: JaxprEqn, inputs: Fields, extent: int) -> Field:
  axes = equation.params.get('axes', equation.params.get('dimensions'))
  shape = equation.invars[0].aval.shape
  return _join([_reduce(f, axes, shape, extent) for f in inputs if f is not None], equation.outvars[0].aval.shape)


def _slide(field: Field, axis: int, *, size: int, stride: int, before: int, dilation: int, spacing: int) -> Field:
  """A window along an axis, on places that have `spacing - 1` zeros between them."""
  step = _divided(field.steps[axis], spacing)
  steps = (*field.steps[:axis], step * stride, *field.steps[axis + 1:])
  return field._replace(steps=steps, low=field.low - step * before,
                        high=field.high + step * ((size - 1) * dilation - before))


def _divided(step: Number, parts: int) -> Number:
  return step // parts if step % parts == 0 else Fraction(step, parts)


def _window(equation: JaxprEqn, inputs: Fields, extent: int) -> Field:
  field, params = inputs[0], equation.params
  for axis, size in enumerate(params['window_dimensions']):
    field = _slide(field, axis, size=size, stride=params['window_strides'][axis], before=params['padding'][axis][0],
                   dilation=params['window_dilation'][axis], spacing=params['base_dilation'][axis])
  return field


def _convolution(equation: JaxprEqn, inputs: Fields, extent: int) -> Field:
  field, params, shape = inputs[0], equation.params, equation.outvars[0].aval.shape
  if inputs[1] is not None:
    return _anywhere(shape)
  spec = params['dimension_numbers']
  for i, axis in enumerate(spec.lhs_spec[2:]):
    field = _slide(field, axis, size=equation.invars[1].aval.shape[spec.rhs_spec[2 + i]],
                   stride=params['window_strides'][i], before=params['padding'][i][0],
                   dilation=params['rhs_dilation'][i], spacing=params['lhs_dilation'][i])
  field = _spread(field, spec.lhs_spec[1], equation.invars[0].aval.shape[spec.lhs_spec[1]])
  steps = [0] * len(shape)
  for source, target in zip(spec.lhs_spec, spec.out_spec, strict=True):
    steps[target] = 0 if source == spec.lhs_spec[1] else field.steps[source]
  return field._replace(steps=tuple(steps))


def _product(equation: JaxprEqn, inputs: Fields, extent: int) -> Field:
  contracted, batch = equation.params['dimension_numbers']
  shape = equation.outvars[0].aval.shape
  places = len(batch[0])  # where the free axes of an operand begin in the result
  parts = []
  for side, field in enumerate(inputs):
    lengths = equation.invars[side].aval.shape
    free = [axis for axis in range(len(lengths)) if axis not in (*contracted[side], *batch[side])]
    if field is not None:
      kept = sorted((*batch[side], *free))
      field = _reduce(field, contracted[side], lengths, extent)
      by_axis = dict(zip(kept, field.steps, strict=True))
      steps = [0] * len(shape)
      for target, axis in enumerate(batch[side]):
        steps[target] = by_axis[axis]
      for target, axis in enumerate(free, start=places):
        steps[target] = by_axis[axis]
      parts.append(field._replace(steps=tuple(steps)))
    places += len(free)
  return _join(parts, shape)


def _broadcast(equation: JaxprEqn, inputs: Fields, extent: int) -> Field:
  steps = [0] * len(equation.params['shape'])
  for source, target in enumerate(equation.params['broadcast_dimensions']):
    same = equation.invars[0].aval.shape[source] == equation.params['shape'][target]
    steps[target] = inputs[0].steps[source] if same else 0
  return inputs[0]._replace(steps=tuple(steps))


def _transpose(equation: JaxprEqn, inputs: Fields, extent: int) -> Field:
  return inputs[0]._replace(steps=tuple(inputs[0].steps[i] for i in equation.params['permutation']))


def _squeeze(equation: JaxprEqn, inputs: Fields, extent: int) -> Field:
  return _reduce(inputs[0], equation.params['dimensions'], equation.invars[0].aval.shape, math.inf)


def _slice(equation: JaxprEqn, inputs: Fields, extent: int) -> Field:
  field, start = inputs[0], equation.params['start_indices']
  shift = sum(step * first for step, first in zip(field.steps, start, strict=True))
  strides = equation.params['strides'] or (1,) * len(start)
  steps = tuple(step * stride for step, stride in zip(field.steps, strides, strict=True))
  return field._replace(steps=steps, low=field.low + shift, high=field.high + shift)


def _split(params: dict[str, Any], field: Field) -> Fields:
  starts = [sum(params['sizes'][:i]) * field.steps[params['axis']] for i in range(len(params['sizes']))]
  return [field._replace(low=field.low + start, high=field.high + start) for start in starts]


def _dynamic_slice(equation: JaxprEqn, inputs: Fields, extent: int) -> Field:
  field = inputs[0]
  for axis, (length, kept) in enumerate(zip(equation.invars[0].aval.shape, equation.params['slice_sizes'],
                                            strict=True)):
    field = _spread(field, axis, length - kept + 1)
  return field


def _reverse(equation: JaxprEqn, inputs: Fields, extent: int) -> Field:
  field = inputs[0]
  for axis in equation.params['dimensions']:
    shift = (equation.invars[0].aval.shape[axis] - 1) * field.steps[axis]
    steps = (*field.steps[:axis], -field.steps[axis], *field.steps[axis + 1:])
    field = Field(steps, field.low + shift, field.high + shift, field.whole)
  return field


def _pad(equation: JaxprEqn, inputs: Fields, extent: int) -> Field:
  field = inputs[0]
  for axis, (before, _, between) in enumerate(equation.params['padding_config']):
    field = _slide(field, axis, size=1, stride=1, before=before, dilation=1, spacing=between + 1)
  return field


def _concatenate(equation: JaxprEqn, inputs: Fields, extent: int) -> Field:
  axis, start, parts = equation.params['dimension'], 0, []
  for variable, field in zip(equation.invars, inputs, strict=True):
    if field is not None:
      shift = start * field.steps[axis]
      parts.append(field._replace(low=field.low - shift, high=field.high - shift))
    start += variable.aval.shape[axis]
  return _join(parts, equation.outvars[0].aval.shape)


def _reshape(equation: JaxprEqn, inputs: Fields, extent: int) -> Field:
  """Axes are merged and split in the smallest groups that hold as many numbers before as after."""
  field, before, after = inputs[0], list(equation.invars[0].aval.shape), list(equation.params['new_sizes'])
  steps, whole, i, j = [], field.whole, 0, 0
  while i < len(before) or j < len(after):
    first, last = (i, j), (min(i + 1, len(before)), min(j + 1, len(after)))
    (i, j) = last
    while math.prod(before[first[0]:i]) != math.prod(after[first[1]:j]):
      if math.prod(before[first[0]:i]) < math.prod(after[first[1]:j]):
        i += 1
      else:
        j += 1
    if before[first[0]:i] == after[first[1]:j]:
      steps += field.steps[first[0]:i]
      continue
    step, lost = _merged(before[first[0]:i], field.steps[first[0]:i])
    whole = whole or lost
    steps += [step * math.prod(after[k + 1:j]) for k in range(first[1], j)]
  return Field(tuple(steps), field.low, field.high, whole)


def _merged(lengths: Sequence[int], steps: Sequence[Number]) -> tuple[Number, bool]:
  """The step of several axes made one, and whether there is none."""
  length, step = 1, 0
  for n, minor in zip(lengths, steps, strict=True):
    if length == 1 or (n > 1 and step == minor * n):
      step = minor
    elif n > 1 and minor == 0:  # each place is repeated, as when a map is enlarged
      step = _divided(step, n)
    elif n > 1:
      return 0, True
    length *= n
  return step, False


RULES = {
    'broadcast_in_dim': _broadcast,
    'concatenate': _concatenate,
    'conv_general_dilated': _convolution,
    'dot_general': _product,
    'dynamic_slice': _dynamic_slice,
    'pad': _pad,
    'reduce': _reduction,
    'reshape': _reshape,
    'rev': _reverse,
    'slice': _slice,
    'squeeze': _squeeze,
    'transpose': _transpose,
}
