"""Box losses, un-reduced: L1 and smooth L1 of each number, and 1 less the similarity of each box with its target.

Units: the IoU family takes boxes xyxy in pixels (any one unit: these losses do not depend on it); L1 and smooth L1 take
whatever numbers a detector regresses, and come in their unit. Finite values and gradients for every box that is
finite; see `vision_jax.ops.boxes` for what a degenerate one is worth. None takes `valid`: empty invalid slots before,
and select after; a NaN that is only selected away at the end comes back in the gradient.
"""

from __future__ import annotations

import jax.numpy as jnp

from vision_jax.conventions import Array
from vision_jax.ops.arrays import absolute, at_least_float32
from vision_jax.ops.boxes import ciou, diou, giou, iou


def l1_loss(predicted: Array, target: Array) -> Array:
  """The absolute difference of each pair of numbers.

  Args:
    predicted: [...], boxes or deltas in any unit.
    target: the same shape and unit.

  Returns:
    float32 of the same shape, at least 0; without gradient where both are equal.

  Raises:
    ValueError: the shapes differ.

  >>> l1_loss([0.0, 2, 5, 5], [0.0, 2, 4, 8]).tolist()
  [0.0, 0.0, 1.0, 3.0]
  """
  return _distance('l1_loss', predicted, target)


def smooth_l1_loss(predicted: Array, target: Array, *, beta: float = 1.0) -> Array:
  """The absolute difference d of each pair of numbers less beta / 2, rounded to d^2 / (2 beta) below beta.

  Args:
    predicted: [...], boxes or deltas in any unit.
    target: the same shape and unit.
    beta: at least 0, in that unit: the difference from which the loss is linear; 0 gives `l1_loss`.

  Returns:
    float32 of the same shape, at least 0.

  Raises:
    ValueError: the shapes differ, or beta is negative.

  Reference: Girshick, Fast R-CNN, arXiv 1504.08083, equation 3 (beta = 1).

  >>> smooth_l1_loss([0.0, 2, 5, 5], [0.0, 2, 4, 8], beta=2.0).tolist()
  [0.0, 0.0, 0.25, 2.0]
  """
  if not beta >= 0:
    raise ValueError(f'smooth_l1_loss: beta is {beta}; give a number of at least 0')
  distance = _distance('smooth_l1_loss', predicted, target)
  if beta == 0:
    return distance
  return jnp.where(distance < beta, distance**2 / (2 * beta), distance - beta / 2)


def iou_loss(predicted: Array, target: Array) -> Array:
  """1 - IoU; without gradient where the boxes do not touch.

  Args:
    predicted: [..., 4] xyxy.
    target: [..., 4] xyxy; its leading axes broadcast against those of `predicted`.

  Returns:
    float32 [...] in 0..1.

  Raises:
    ValueError: a last axis is not 4 long, or the leading axes do not broadcast.

  >>> iou_loss([0, 0, 2, 2], [0, 0, 2, 1]).item()
  0.5
  """
  return 1 - iou(predicted, target)


def giou_loss(predicted: Array, target: Array) -> Array:
  """1 - generalised IoU; it also draws together boxes that do not touch.

  Args:
    predicted: [..., 4] xyxy.
    target: [..., 4] xyxy; its leading axes broadcast against those of `predicted`.

  Returns:
    float32 [...] in 0..2.

  Raises:
    ValueError: a last axis is not 4 long, or the leading axes do not broadcast.

  Reference: Rezatofighi et al., Generalized Intersection over Union, arXiv 1902.09630, algorithm 1.

  >>> giou_loss([0, 0, 1, 1], [3, 0, 4, 1]).item()
  1.5
  """
  return 1 - giou(predicted, target)


def diou_loss(predicted: Array, target: Array) -> Array:
  """1 - distance IoU; it draws the centres together.

  Args:
    predicted: [..., 4] xyxy.
    target: [..., 4] xyxy; its leading axes broadcast against those of `predicted`.

  Returns:
    float32 [...] in 0..2.

  Raises:
    ValueError: a last axis is not 4 long, or the leading axes do not broadcast.

  Reference: Zheng et al., Distance-IoU Loss, arXiv 1911.08287, equation 7.

  >>> diou_loss([0, 0, 2, 2], [0, 0, 2, 2]).item()
  0.0
  """
  return 1 - diou(predicted, target)


def ciou_loss(predicted: Array, target: Array) -> Array:
  """1 - complete IoU; it draws the centres together and matches the aspect ratio.

  Args:
    predicted: [..., 4] xyxy.
    target: [..., 4] xyxy; its leading axes broadcast against those of `predicted`.

  Returns:
    float32 [...] in 0..3.

  Raises:
    ValueError: a last axis is not 4 long, or the leading axes do not broadcast.

  Reference: Zheng et al., Distance-IoU Loss, arXiv 1911.08287, equations 8 to 11.
  Differs from the paper: see `vision_jax.ops.ciou`.

  >>> ciou_loss([0, 0, 2, 2], [0, 0, 2, 2]).item()
  0.0
  """
  return 1 - ciou(predicted, target)


def _distance(where: str, predicted: Array, target: Array) -> Array:
  predicted, target = at_least_float32(predicted), at_least_float32(target)
  if predicted.shape != target.shape:
    raise ValueError(f'{where}: predicted {list(predicted.shape)} and target {list(target.shape)}; '
                     'give two arrays of one shape')
  return absolute(predicted - target)
