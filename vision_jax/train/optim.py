"""Optimisers by name, schedules, durations, and rules for single parameters; all of it from Optax's pieces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import math
import re
from typing import Any

import jax
import optax

from vision_jax.conventions import check_options, find, option_names

Rules = Sequence[tuple[str, Mapping[str, Any]]]


def parse_duration(text: str, *, steps_per_epoch: int, where: str) -> int:
  """A duration in steps, from '300 steps' or '12 epochs' (fractions of an epoch are fine).

  >>> parse_duration('2.5 epochs', steps_per_epoch=100, where='train.duration')
  250
  """
  match = re.fullmatch(r'\s*(\d+(?:\.\d+)?)\s*(step|epoch)s?\s*', str(text))
  if not match or (match[2] == 'step' and '.' in match[1]):
    raise ValueError(f"{where} is {text!r}; write it as '300 steps' or '12 epochs'")
  return int(match[1]) if match[2] == 'step' else round(float(match[1]) * steps_per_epoch)


def constant_schedule(lr: float, steps: int) -> optax.Schedule:
  """The same learning rate throughout."""
  return optax.constant_schedule(lr)


def cosine_schedule(lr: float, steps: int, *, final: float = 0.0) -> optax.Schedule:
  """Half a cosine from `lr` to `final * lr` (Loshchilov and Hutter, SGDR, arXiv 1608.03983)."""
  return optax.cosine_decay_schedule(lr, max(1, steps), alpha=final)


def step_schedule(lr: float, steps: int, *, boundaries: tuple[float, ...] = (0.5, 0.75),
                  factor: float = 0.1) -> optax.Schedule:
  """`lr` times `factor` after each boundary, given as a share in (0, 1) of the steps after the warm-up."""
  if not all(0.0 < share < 1.0 for share in boundaries):
    raise ValueError(f'optim.boundaries {tuple(boundaries)} must be shares of the run between 0 and 1')
  scales: dict[int, float] = {}
  for share in boundaries:
    scales[round(share * steps)] = factor * scales.get(round(share * steps), 1.0)
  return optax.piecewise_constant_schedule(lr, scales)


def polynomial_schedule(lr: float, steps: int, *, power: float = 0.9, final: float = 0.0) -> optax.Schedule:
  """From `lr` to `final * lr` as (1 - t / steps) ** power (the 'poly' rule of DeepLab, arXiv 1606.00915)."""
  return optax.polynomial_schedule(lr, final * lr, power, max(1, steps))


SCHEDULES = {'constant': constant_schedule, 'cosine': cosine_schedule, 'step': step_schedule,
             'polynomial': polynomial_schedule}


def _sgd(*, momentum: float = 0.9, nesterov: bool = False):
  return optax.trace(decay=momentum, nesterov=nesterov) if momentum else optax.identity()


def _adam(*, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8):
  return optax.scale_by_adam(b1=b1, b2=b2, eps=eps)


def _rmsprop(*, decay_rate: float = 0.9, eps: float = 1e-8, momentum: float = 0.0):
  pieces = [optax.scale_by_rms(decay=decay_rate, eps=eps)]
  return optax.chain(*pieces, *([optax.trace(decay=momentum)] if momentum else []))


def _lion(*, b1: float = 0.9, b2: float = 0.99):
  return optax.scale_by_lion(b1=b1, b2=b2)


# name -> what scales the gradient, and whether weight decay comes after it (decoupled) or is added to the gradient.
_SCALES = {'sgd': (_sgd, False), 'adam': (_adam, False), 'adamw': (_adam, True), 'rmsprop': (_rmsprop, False),
           'lion': (_lion, True)}


def names() -> tuple[str, ...]:
  """The names of the optimisers."""
  return tuple(_SCALES)


def schedule_options(name: str) -> tuple[str, ...]:
  """The options of a schedule."""
  return option_names(find(SCHEDULES, 'schedule', name))


def create_schedule(*, lr: float, steps: int, schedule: str = 'cosine', warmup_steps: int = 0,
                    options: Mapping[str, Any] | None = None) -> optax.Schedule:
  """A schedule by name after a linear warm-up from zero.

  Args:
    lr: the highest learning rate.
    steps: the length of the run, warm-up included.
    schedule: 'constant', 'cosine', 'step' or 'polynomial'.
    warmup_steps: in which the learning rate grows from lr / warmup_steps to lr.
    options: of the schedule (`final`, `boundaries`, `factor`, `power`).
  """
  make, options = find(SCHEDULES, 'schedule', schedule), dict(options or {})
  check_options(f'optim (schedule {schedule})', option_names(make), options)
  if not 0 <= warmup_steps <= steps:
    raise ValueError(f'optim.warmup is {warmup_steps} steps, which is longer than the run of {steps} steps')
  main = make(lr, steps - warmup_steps, **options)
  if not warmup_steps:
    return main
  warmup = optax.linear_schedule(lr / warmup_steps, lr, max(1, warmup_steps - 1))
  return optax.join_schedules([warmup, main], [warmup_steps])


def parameter_rules(params: Any, rules: Rules) -> Any:
  """For each parameter a dict(frozen, lr, decay): until when it is frozen, and two multipliers.

  Args:
    params: the parameters, or their shapes.
    rules: pairs (regex, dict with some of the keys below); a regex is searched in the parameter's path
      ('layer1_0/conv1/kernel'), and later rules win. Without a rule, weight decay spares vectors and scalars: norms and
      biases. `freeze` is True for the parameters and the BatchNorms whose statistics have such a path
      ('layer1_0/bn1/mean'), 'params' or 'statistics' for one of the two, or False; `until` is the number of steps
      after which that ends (and means `freeze=True` where it stands alone); `lr` and `decay` multiply the learning
      rate and the weight decay.

  Returns:
    A tree of dicts. `frozen` is the number of first steps in which a parameter does not move, infinite for ever.

  Raises:
    ValueError: a rule that matches no parameter, or that sets something unknown.
  """
  rules = [rule for rule in map(_checked, rules) if set(rule[1]) - {'until'} != {'freeze'} or
           rule[1]['freeze'] != 'statistics']
  matched = {pattern: 0 for pattern, _ in rules}

  def settings(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    chosen = {'frozen': 0, 'lr': 1.0, 'decay': 1.0 if len(leaf.shape) > 1 else 0.0}
    for pattern, values in rules:
      if re.search(pattern, name):
        matched[pattern] += 1
        chosen.update({key: values[key] for key in ('lr', 'decay') if key in values}, **_frozen(values, 'params'))
    return chosen

  table = jax.tree_util.tree_map_with_path(settings, params)
  _refuse_idle(matched, 'parameter', params)
  return table


def frozen_at(step: int, params: Any, batch_stats: Any, rules: Rules) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """What the rules freeze in the training step after `step` others: paths of parameters, paths of BatchNorms.

  Args:
    step: 0 or more.
    params: the parameters, or their shapes.
    batch_stats: the collection of the BatchNorms' statistics, or their shapes.
    rules: as in `parameter_rules`.

  Raises:
    ValueError: a rule of `freeze='statistics'` that matches none.
  """
  table = jax.tree_util.tree_leaves_with_path(parameter_rules(params, rules), is_leaf=_is_setting)
  frozen = tuple(jax.tree_util.keystr(path, simple=True, separator='/') for path, s in table if step < s['frozen'])
  rules = [_checked(rule) for rule in rules]
  matched = {pattern: 0 for pattern, values in rules if values.get('freeze') == 'statistics'}
  norms: dict[str, float] = {}
  for path, _ in jax.tree_util.tree_leaves_with_path(batch_stats):
    name, until = jax.tree_util.keystr(path, simple=True, separator='/'), 0
    for pattern, values in rules:
      if re.search(pattern, name):
        matched.update({pattern: 1} if pattern in matched else {})
        until = _frozen(values, 'statistics').get('frozen', until)
    norm = name.rpartition('/')[0]
    norms[norm] = max(until, norms.get(norm, 0))
  _refuse_idle(matched, 'BatchNorm', batch_stats)
  return frozen, tuple(norm for norm, until in norms.items() if step < until)


def thaws(rules: Rules) -> tuple[int, ...]:
  """The steps after which something that was frozen begins to learn, in order."""
  return tuple(sorted({values['until'] for _, values in map(_checked, rules) if 'until' in values}))


def _checked(rule: tuple[str, Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
  """A rule whose keys, values and regex are sound, its `freeze` written out."""
  pattern, values = rule
  where = f'optim.rules {pattern!r}'
  check_options(where, ('freeze', 'until', 'lr', 'decay'), values)
  try:
    re.compile(pattern)
  except re.error as error:
    raise ValueError(f'{where} is no regular expression: {error}') from None
  values = {**({'freeze': True} if 'until' in values else {}), **values}
  if values.get('freeze', False) not in (True, False, 'params', 'statistics'):
    raise ValueError(f"{where}: freeze is {values['freeze']!r}; it is True, False, 'params' or 'statistics'")
  if 'until' in values and (not isinstance(values['until'], int) or values['until'] < 0 or not values['freeze']):
    raise ValueError(f'{where}: until is {values["until"]!r}; it is a number of steps, with freeze')
  return pattern, values


def _frozen(values: Mapping[str, Any], kind: str) -> dict[str, float]:
  """What a rule says about the freezing of 'params' or 'statistics', if anything."""
  freeze = values.get('freeze')
  if freeze not in (True, False, kind):
    return {}
  return {'frozen': values.get('until', math.inf) if freeze else 0}


def _refuse_idle(matched: Mapping[str, int], kind: str, tree: Any) -> None:
  """Refuses rules that matched nothing."""
  for pattern, count in matched.items():
    if not count:
      known = [jax.tree_util.keystr(path, simple=True, separator='/')
               for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
      shown = ', '.join(known[:6]) + (f', ... ({len(known)} in all)' if len(known) > 6 else '')
      raise ValueError(f'optim.rules {pattern!r} matches no {kind}; there are {shown or "none"}')


def create(name: str, schedule: optax.Schedule, params: Any, *, weight_decay: float = 0.0, clip: float | None = None,
           rules: Rules = (), **options: Any) -> optax.GradientTransformation:
  """An optimiser by name.

  Args:
    name: 'sgd', 'adam', 'adamw', 'lion' or 'rmsprop'. Weight decay is decoupled in 'adamw' and 'lion' (Loshchilov and
      Hutter, arXiv 1711.05101) and added to the gradient in the others, as in torch.
    schedule: step -> learning rate.
    params: the parameters, or their shapes.
    weight_decay: for what `rules` does not set otherwise, of kernels only.
    clip: the largest global norm of the gradient of what is trained.
    rules: see `parameter_rules`. While it is frozen, a parameter has no gradient in the norm and no decay; it has no
      moments, or they begin when it thaws.
    **options: of the optimiser (`momentum`, `nesterov`, `b1`, `b2`, `eps`, `decay_rate`).
  """
  scale, decoupled = find(_SCALES, 'optimiser', name)
  check_options(f'optim ({name})', (*option_names(scale), 'weight_decay', 'clip', 'rules'), options)
  table = parameter_rules(params, rules)

  def where(test: Callable[[dict], bool]) -> Any:
    return jax.tree.map(test, table, is_leaf=_is_setting)

  settings = jax.tree.leaves(table, is_leaf=_is_setting)

  def moving(start: float) -> list[optax.GradientTransformation]:
    """What makes updates of the gradients of the parameters that learn from this step on."""
    decays = sorted({s['decay'] for s in settings if s['decay'] and s['frozen'] == start})
    decay = [optax.add_decayed_weights(weight_decay * d, where(lambda s, d=d: s['decay'] == d and s['frozen'] == start))
             for d in decays if weight_decay]
    moments = optax.masked(scale(**options), where(lambda s: s['frozen'] == start))
    return [moments, *decay] if decoupled else [*decay, moments]

  def later(start: float, transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """Zeroes what has to wait for this step, and keeps the transformation as it began until then."""
    return optax.masked(optax.conditionally_mask(transformation, lambda step: step >= start),
                        where(lambda s: s['frozen'] == start))

  starts = sorted({s['frozen'] for s in settings if 0 < s['frozen'] < math.inf})
  multipliers = [optax.masked(optax.scale(m), where(lambda s, m=m: s['lr'] == m))
                 for m in sorted({s['lr'] for s in settings} - {1.0})]
  return optax.chain(
      optax.masked(optax.set_to_zero(), where(lambda s: s['frozen'] == math.inf)),
      *(later(start, optax.identity()) for start in starts),
      *([optax.clip_by_global_norm(clip)] if clip else []),
      *moving(0),
      *(later(start, optax.chain(*moving(start))) for start in starts),
      *multipliers,
      optax.scale_by_learning_rate(schedule))


def _is_setting(x: Any) -> bool:
  return isinstance(x, dict) and set(x) == {'frozen', 'lr', 'decay'}
