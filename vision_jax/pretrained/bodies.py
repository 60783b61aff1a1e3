"""A classifier's weights in the body of a detector: everything else of the detector stays as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
import dataclasses
import re
from typing import Any

import flax.linen as nn

from vision_jax.conventions import Variables
from vision_jax.pretrained.convert import Report
from vision_jax.pretrained.variables import flat_variables, nested


def body_of(model: nn.Module) -> nn.Module:
  """The body of a detector, a module of its own, with which its weights are loaded.

  Args:
    model: with a field `body`.

  Raises:
    ValueError: a model without.

  >>> from vision_jax.models.detection.retinanet import retinanet_small
  >>> type(body_of(retinanet_small())).__name__
  'Darknet'
  """
  if not isinstance(body := getattr(model, 'body', None), nn.Module):
    raise ValueError(f'{type(model).__name__} has no body that takes the weights of a classifier; detectors on a '
                     'backbone have one, such as retinanet_resnet50_fpn')
  return body.clone(parent=None, name=None)


def fill_body(model: nn.Module, variables: Variables, body: Variables,
              report: Report) -> tuple[dict[str, Any], Report]:
  """A detector's variables with those of its body in their place.

  Args:
    model: the detector.
    variables: its own, by collection.
    body: of `body_of(model)`, loaded; BatchNorm's statistics too. What the detector leaves out of it has no place.
    report: of that loading.

  Returns:
    (variables, report), the report with the detector's paths: loaded, not found in the weights, and not used.

  Raises:
    ValueError: variables that have no such body.
  """
  ours, theirs = flat_variables(variables), flat_variables(body)
  place = _place(type(model).__name__, ours, theirs)
  places = {path: _below(place, path) for path in theirs if _below(place, path) in ours}
  loaded, fresh = (tuple(places[path] for path in paths if path in places) for paths in (report.loaded, report.fresh))
  outside = tuple(path.split('/', 1)[1] for path in report.loaded if path not in places)
  rest = sorted({_part(place, path) for path in ours.keys() - set(places.values())})
  notes = (*report.notes, f'the rest is as initialised: {", ".join(rest)}') if rest else report.notes
  counted = sum(ours[path].size for path in loaded if path.startswith('params/'))
  filled = {**ours, **{path: theirs[name] for name, path in places.items()}}
  return nested(filled), dataclasses.replace(
      report, model=f'{type(model).__name__} at {place} ({report.model})', loaded=loaded, parameters=counted,
      fresh=fresh, unused=(*report.unused, *outside), notes=notes, categories=())


def _below(place: str, path: str) -> str:
  """A path of the body in the detector."""
  collection, rest = path.split('/', 1)
  return f'{collection}/{place}/{rest}'


def _place(title: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
  """Where the body's variables are among the detector's: under which path most of them are."""
  found = Counter()
  for path in ours:
    collection, *parts = path.split('/')
    found.update('/'.join(parts[:i]) for i in range(1, len(parts)) if '/'.join([collection, *parts[i:]]) in theirs)
  if not found:
    raise ValueError(f'{title} has no variables of its body, such as {next(iter(theirs))}')
  return found.most_common(1)[0][0]


def _part(place: str, path: str) -> str:
  """The part of the detector that a path outside of the body belongs to, such as `backbone/fpn` or `head`."""
  parts, body = path.split('/')[1:], place.split('/')
  depth = next((i for i, (part, name) in enumerate(zip(parts, body, strict=False)) if part != name), len(body))
  return re.sub(r'(_\d+)+$', '', '/'.join(parts[:depth + 1]))
