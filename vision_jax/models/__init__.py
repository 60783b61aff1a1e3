"""Flax Linen modules, one paper a file: images in, logits or raw predictions out.

Every model takes `[B, H, W, 3]` and `train=`, has a compute `dtype`, float32 parameters and float32 results, and knows
no loss, target or configuration. Constructors take options by name only; the module they give is frozen and hashable.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any

import flax.linen as nn

from vision_jax.conventions import check_options, find, option_names
from vision_jax.models.classification.lenet import lenet5, lenet5_original
from vision_jax.models.classification.resnet import resnet18, resnet34, resnet50, resnet101, resnet152
from vision_jax.models.detection.yolov3 import yolov3_small
from vision_jax.models.segmentation.unet import unet, unet_small

MODELS: dict[str, Callable[..., nn.Module]] = {
    'lenet5': lenet5,
    'lenet5_original': lenet5_original,
    'resnet18': resnet18,
    'resnet34': resnet34,
    'resnet50': resnet50,
    'resnet101': resnet101,
    'resnet152': resnet152,
    'yolov3_small': yolov3_small,
    'unet': unet,
    'unet_small': unet_small,
}


DTYPES = ('float32', 'bfloat16', 'float16')


def create(name: str, **kwargs: Any) -> nn.Module:
  """The model called `name`, with the options that its constructor knows.

  Args:
    name: a key of `MODELS`.
    **kwargs: options of that constructor (`options(name)` lists them).

  Returns:
    A Linen module, without variables.

  Raises:
    ValueError: an unknown name, option or dtype, with what is close and what is known.

  >>> create('unet_small', num_classes=11).num_classes
  11
  >>> create('resnet19')  # doctest: +ELLIPSIS
  Traceback (most recent call last):
  ValueError: unknown model 'resnet19'; did you mean resnet18, resnet152, resnet101? known: ...
  """
  constructor = find(MODELS, 'model', name)
  check_options(f'model ({name})', options(name), kwargs)
  if isinstance(kwargs.get('dtype'), str) and kwargs['dtype'] not in DTYPES:
    raise ValueError(f'model ({name}) has no dtype {kwargs["dtype"]!r}; known: {", ".join(DTYPES)}')
  return constructor(**kwargs)


def names() -> tuple[str, ...]:
  """The names of all models, in the order of the table."""
  return tuple(MODELS)


def options(name: str) -> tuple[str, ...]:
  """The options of the model called `name`; what makes it that row of its family (its depth, say) is none of them.

  >>> options('lenet5')
  ('num_classes', 'grey', 'dtype')
  """
  constructor = find(MODELS, 'model', name)
  if isinstance(constructor, functools.partial):
    # Rows of a family: what is bound by position makes the row what it is, what is bound by keyword is a default.
    return option_names(constructor.func)[len(constructor.args):]
  return option_names(constructor)
