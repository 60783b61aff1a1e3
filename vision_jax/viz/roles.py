"""What a detector's loss takes its predictions for, drawn on the image.

Images are uint8 RGB `[H, W, 3]`, boxes xyxy in their pixels.
"""

from __future__ import annotations

import numpy as np

from vision_jax.host import boxes as host_boxes
from vision_jax.viz import canvas
from vision_jax.viz.colours import ink_on, palette
from vision_jax.viz.draw import corners_of, dashed_rectangle

_NEGATIVE, _IGNORED, _MISSED = (150, 160, 170), (255, 214, 70), (255, 0, 0)


def draw_assignment(image: np.ndarray, boxes: np.ndarray, roles: np.ndarray, owners: np.ndarray, objects: np.ndarray,
                    *, scale: int = 1) -> np.ndarray:
  """The image with its objects dashed, and what learns them in the same colour.

  Every object has a colour of its own, which the boxes of its positive predictions bear too; an object that none of
  them learns is red and crossed out. Negative predictions are grey dots at the middle of their boxes, ignored ones
  yellow dots below them.

  Args:
    image: uint8 `[H, W, 3]`.
    boxes: `[Q, 4]` the predictions.
    roles: int `[Q]`, 1 positive, 0 negative, -1 ignored.
    owners: int `[Q]`, the object of a positive prediction.
    objects: `[n, 4]`.
    scale: how many times larger the picture is than the image.

  Returns:
    uint8 `[H * scale, W * scale, 3]`; boxes are cut at the border, one that is not finite is not drawn.

  Raises:
    ValueError: the image is not uint8 RGB, or the arrays do not fit together.

  >>> image, box = np.zeros((48, 64, 3), np.uint8), np.array([[4, 4, 28, 20]])
  >>> draw_assignment(image, box, np.array([1]), np.array([0]), box, scale=2).shape
  (96, 128, 3)
  """
  image = canvas.checked_image(image, 'draw_assignment')
  boxes, objects = (np.asarray(x, np.float64).reshape(-1, 4) for x in (boxes, objects))
  roles, owners = np.asarray(roles), np.asarray(owners)
  if not len(boxes) == len(roles) == len(owners):
    raise ValueError(f'draw_assignment: {len(boxes)} boxes, {len(roles)} roles, {len(owners)} owners; give as many '
                     'of each')
  sheet, draw = canvas.painter(canvas.enlarged(image, scale))
  width = max(1, round(min(sheet.size) / 200))
  finite = np.isfinite(boxes).all(axis=1)
  for role, colour in ((-1, _IGNORED), (0, _NEGATIVE)):  # what has a loss stays in sight
    for x, y in scale * (boxes[finite & (roles == role), :2] + boxes[finite & (roles == role), 2:]) / 2:
      draw.ellipse((x - width, y - width, x + width, y + width), fill=colour)
  colours = palette(len(objects) + 2)[2:]  # neither black nor red, which means something else
  positive = finite & (roles == 1)
  for box, owner in zip(boxes[positive], owners[positive], strict=True):
    draw.rectangle(corners_of(host_boxes.clip(box, image.shape[:2]), scale), outline=tuple(colours[owner].tolist()),
                   width=width)
  learned = np.bincount(owners[roles == 1], minlength=len(objects))
  face = canvas.font(canvas.font_size(sheet.size))
  for box, colour, count in zip(objects, colours, learned, strict=True):
    corners = corners_of(host_boxes.clip(box, image.shape[:2]), scale)
    colour = np.array(colour if count else _MISSED)
    dashed_rectangle(draw, corners, tuple(colour.tolist()), width + 1)
    if not count:
      draw.line(corners, fill=_MISSED, width=width + 1)
    _number(draw, corners, str(count), colour, face)
  return np.asarray(sheet)


def _number(draw, corners: tuple[int, int, int, int], text: str, colour: np.ndarray, face) -> None:
  """How many learn an object, in its upper left corner."""
  across, down = canvas.text_size(text, face)
  left, top = corners[:2]
  draw.rectangle((left, top, left + across + 3, top + down), fill=tuple(colour.tolist()))
  draw.text((left + 2, top), text, fill=ink_on(colour), font=face)
