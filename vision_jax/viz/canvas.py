"""What all pictures share: checking and enlarging images, fonts and text that fits, writing a PNG file.

Images are uint8 RGB `[H, W, 3]`. Text is in the font that Pillow brings along, which covers Latin scripts.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np

PAPER = (255, 255, 255)
INK = (33, 37, 41)
GREY = (134, 142, 150)
SHADE = (233, 236, 239)


def checked_image(image: np.ndarray, where: str) -> np.ndarray:
  """The image as an array, or a ValueError that says what it should be.

  >>> checked_image(np.zeros((2, 2)), 'draw_detections')
  Traceback (most recent call last):
  ValueError: draw_detections: the image is float64 (2, 2); give uint8 RGB [H, W, 3], not the normalised input
  """
  image = np.asarray(image)
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
    raise ValueError(f'{where}: the image is {image.dtype} {image.shape}; '
                     'give uint8 RGB [H, W, 3], not the normalised input')
  return image


def enlarged(picture: np.ndarray, scale: int) -> np.ndarray:
  """Each pixel as a square of `scale` x `scale` pixels; for images `[H, W, 3]` and for maps `[H, W]`.

  >>> enlarged(np.array([[1, 2]]), 2).tolist()
  [[1, 1, 2, 2], [1, 1, 2, 2]]
  """
  if scale < 1 or int(scale) != scale:
    raise ValueError(f'scale is {scale}; give a whole number from 1')
  return np.repeat(np.repeat(picture, scale, axis=0), scale, axis=1)


def legible_scale(size: tuple[int, int], *, shortest: int = 384) -> int:
  """The least whole factor that brings the shorter side of a picture to `shortest` pixels, for its text to be read.

  Args:
    size: (height, width) of the image.
    shortest: pixels.

  Returns:
    An int from 1, for the `scale` of the drawing functions.

  >>> legible_scale((96, 128)), legible_scale((480, 640))
  (4, 1)
  """
  return max(1, -(-shortest // max(1, min(size))))


def save_png(path: str | os.PathLike, image: np.ndarray) -> None:
  """Writes a picture as a PNG file.

  Args:
    path: the file; an existing one is replaced.
    image: uint8 `[H, W, 3]`.

  Raises:
    ValueError: the picture has another dtype or shape.

  >>> import io
  >>> file = io.BytesIO()
  >>> save_png(file, np.zeros((4, 6, 3), np.uint8))
  >>> file.getvalue()[1:4]
  b'PNG'
  """
  from PIL import Image
  Image.fromarray(checked_image(image, 'save_png')).save(path, format='PNG')


@functools.cache
def font(size: int) -> Any:
  """Pillow's own font at `size` pixels."""
  from PIL import ImageFont
  return ImageFont.load_default(size=size)


def font_size(size: tuple[int, int]) -> int:
  """The font size, in pixels, that suits a picture of (height, width)."""
  return int(np.clip(min(size) / 26, 10, 28))


def text_size(text: str, face: Any) -> tuple[int, int]:
  """(width, height) of a line of text in pixels; the height does not depend on the letters."""
  ascent, descent = face.getmetrics()
  return int(np.ceil(face.getlength(text))), ascent + descent


def shortened(text: str, face: Any, width: int) -> str:
  """The text, cut with an ellipsis where it is wider than `width` pixels."""
  if text_size(text, face)[0] <= width:
    return text
  while text and text_size(text + '…', face)[0] > width:
    text = text[:-1]
  return text.rstrip() + '…' if text else ''


def wrapped(text: str, face: Any, width: int, *, lines: int = 3) -> list[str]:
  """The text in at most `lines` lines of `width` pixels, broken at spaces, the last one cut where it must be."""
  rows, words = [], text.split()
  while words and len(rows) < lines - 1:
    row = words.pop(0)
    while words and text_size(f'{row} {words[0]}', face)[0] <= width:
      row = f'{row} {words.pop(0)}'
    rows.append(shortened(row, face, width))
  return rows + [shortened(' '.join(words), face, width)] if words else rows


def painter(picture: np.ndarray) -> tuple[Any, Any]:
  """A Pillow image of a copy of the picture, and what draws on it."""
  from PIL import Image, ImageDraw
  sheet = Image.fromarray(np.ascontiguousarray(picture))
  return sheet, ImageDraw.Draw(sheet)


def blank(width: int, height: int) -> np.ndarray:
  """White paper."""
  return np.full((height, width, 3), 255, np.uint8)


def stacked(above: np.ndarray, below: np.ndarray) -> np.ndarray:
  """One picture over another, both centred on white as wide as the wider."""
  width = max(above.shape[1], below.shape[1])
  sheet = blank(width, len(above) + len(below))
  for top, part in ((0, above), (len(above), below)):
    left = (width - part.shape[1]) // 2
    sheet[top:top + len(part), left:left + part.shape[1]] = part
  return sheet
