"""Box losses of the IoU family, un-reduced: 1 less the similarity of each predicted box with its target.

Units: boxes xyxy in pixels (any one unit: these losses do not depend on it). Finite values and gradients for every
box; see `vision_jax.ops.boxes` for what a degenerate one is worth.
"""

from __future__ import annotations

from vision_jax.conventions import Array
from vision_jax.ops.boxes import ciou, diou, giou, iou


def iou_loss(predicted: Array, target: Array) -> Array:
  """1 - IoU; without gradient where the boxes do not touch.

  Args:
    predicted: [..., 4] xyxy.
    target: [..., 4] xyxy.

  Returns:
    float32 [...] in 0..1.

  Raises:
    ValueError: a last axis is not 4 long.

  >>> iou_loss([0, 0, 2, 2], [0, 0, 2, 1]).item()
  0.5
  """
  return 1 - iou(predicted, target)


def giou_loss(predicted: Array, target: Array) -> Array:
  """1 - generalised IoU; it also draws together boxes that do not touch.

  Args:
    predicted: [..., 4] xyxy.
    target: [..., 4] xyxy.

  Returns:
    float32 [...] in 0..2.

  Raises:
    ValueError: a last axis is not 4 long.

  Reference: Rezatofighi et al., Generalized Intersection over Union, arXiv 1902.09630, algorithm 1.

  >>> giou_loss([0, 0, 1, 1], [3, 0, 4, 1]).item()
  1.5
  """
  return 1 - giou(predicted, target)


def diou_loss(predicted: Array, target: Array) -> Array:
  """1 - distance IoU; it draws the centres together.

  Args:
    predicted: [..., 4] xyxy.
    target: [..., 4] xyxy.

  Returns:
    float32 [...] in 0..2.

  Raises:
    ValueError: a last axis is not 4 long.

  Reference: Zheng et al., Distance-IoU Loss, arXiv 1911.08287, equation 7.

  >>> diou_loss([0, 0, 2, 2], [0, 0, 2, 2]).item()
  0.0
  """
  return 1 - diou(predicted, target)


def ciou_loss(predicted: Array, target: Array) -> Array:
  """1 - complete IoU; it draws the centres together and matches the aspect ratio.

  Args:
    predicted: [..., 4] xyxy.
    target: [..., 4] xyxy.

  Returns:
    float32 [...] in 0..3.

  Raises:
    ValueError: a last axis is not 4 long.

  Reference: Zheng et al., Distance-IoU Loss, arXiv 1911.08287, equations 8 to 11.
  Differs from the paper: see `vision_jax.ops.ciou`.

  >>> ciou_loss([0, 0, 2, 2], [0, 0, 2, 2]).item()
  0.0
  """
  return 1 - ciou(predicted, target)
