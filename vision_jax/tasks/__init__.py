"""Tasks: the glue between a model, its losses, its decoding and its metrics. The table, and how to find one in it."""

from __future__ import annotations

import functools
from typing import Any

from flax import linen as nn

from vision_jax import ops
from vision_jax.conventions import ClassMap, check_options, find, option_names
from vision_jax.tasks.base import Task, resolve_weights
from vision_jax.tasks.classification import Classification, Features
from vision_jax.tasks.detection import Detection, detr, fcos, retinanet, ssd, yolov1, yolov2, yolov3
from vision_jax.tasks.segmentation import Segmentation
from vision_jax.tasks.two_stage import faster_rcnn

__all__ = ['Classification', 'Detection', 'Features', 'Segmentation', 'Task', 'create', 'names', 'resolve_weights']

TASKS = {'classification': Classification, 'segmentation': Segmentation, 'yolov1': yolov1, 'yolov2': yolov2,
         'yolov3': yolov3,
         'retinanet': retinanet, 'fcos': fcos, 'ssd': ssd, 'ssdlite': functools.partial(ssd, **ops.SSDLITE_DECODE),
         'detr': detr,
         'faster_rcnn': faster_rcnn}


def names() -> tuple[str, ...]:
  """The names of the tasks."""
  return tuple(TASKS)


def create(name: str, module: nn.Module, classes: ClassMap, **options: Any) -> Task:
  """A task by name for a module and its classes.

  Args:
    name: one of `names()`.
    module: what it trains.
    classes: of the data.
    **options: of the task; `weights` may be a dict or pairs.

  Raises:
    ValueError: an unknown name or option, with what is known.
  """
  constructor = find(TASKS, 'task', name)
  known = tuple(o for o in option_names(constructor) if o not in ('module', 'classes'))
  check_options(f'config.task ({name})', known, options)
  if isinstance(options.get('weights'), dict):
    options['weights'] = tuple(options['weights'].items())
  return constructor(module, classes, **options)
