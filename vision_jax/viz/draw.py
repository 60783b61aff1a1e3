"""Predictions drawn on images: boxes, class maps, top classes; and contact sheets and palette files.

Images are uint8 RGB `[H, W, 3]`, predictions and truth are in the image's pixels. `scale` enlarges a picture by a whole
number before anything is written on it, so that text on a small image can be read (`legible_scale` finds one).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
import os
from typing import Any

import numpy as np

from vision_jax.conventions import ClassMap
from vision_jax.host import boxes as host_boxes
from vision_jax.viz import canvas
from vision_jax.viz.colours import class_colours, ink_on

_TRUTH = np.array([255, 255, 255])
_TRUTH_TAG = np.array([40, 40, 40])


def draw_detections(image: np.ndarray, prediction: Mapping[str, Any], classes: ClassMap, *, threshold: float = 0.5,
                    truth: Mapping[str, Any] | None = None, scale: int = 1) -> np.ndarray:
  """The image with a box, a class name and a score for each detection, and dashed white boxes for the truth.

  Args:
    image: uint8 `[H, W, 3]`.
    prediction: `boxes [M, 4]` xyxy pixels of the image, `labels [M]`, `scores [M]` unless it is the truth that is
      drawn, and `valid [M]` where there are empty slots.
    classes: the names of the classes.
    threshold: detections with a lower score are left out.
    truth: `boxes [n, 4]` and `labels [n]`, or None.
    scale: how many times larger the picture is than the image.

  Returns:
    uint8 `[H * scale, W * scale, 3]`; boxes are cut at the border, one that is not finite is not drawn.

  Raises:
    ValueError: the image is not uint8 RGB, or a label is no class.

  >>> prediction = {'boxes': np.array([[4, 4, 28, 20]]), 'scores': np.array([0.9]), 'labels': np.array([0])}
  >>> draw_detections(np.zeros((48, 64, 3), np.uint8), prediction, ClassMap(names=('cat',)), scale=2).shape
  (96, 128, 3)
  """
  image = canvas.checked_image(image, 'draw_detections')
  scores = np.asarray(prediction.get('scores', np.full(len(prediction['labels']), np.inf)), np.float64)
  kept = (scores >= threshold) & np.asarray(prediction.get('valid', np.ones(scores.shape, bool)), bool)
  chosen = np.flatnonzero(kept)[np.argsort(-scores[kept], kind='stable')]
  colours = class_colours(len(classes), None)
  found = [(box, colours[label], colours[label],
            classes.names[label] + (f': {scores[i]:.2f}' if 'scores' in prediction else '')) for i, box, label in
           _drawable(prediction, chosen, image.shape[:2], classes, 'prediction')]
  true = [] if truth is None else [
    (box, _TRUTH, _TRUTH_TAG, classes.names[label]) for _, box, label in
    _drawable(truth, np.arange(len(truth['labels'])), image.shape[:2], classes, 'truth')]
  return _with_boxes(canvas.enlarged(image, scale), found, true, scale)


def _drawable(fields: Mapping[str, Any], chosen: np.ndarray, size: tuple[int, int], classes: ClassMap,
              where: str) -> list[tuple[int, np.ndarray, int]]:
  """(slot, clipped box, class) of each chosen slot whose box is finite."""
  boxes = np.asarray(fields['boxes'], np.float64).reshape(-1, 4)
  labels = np.asarray(fields['labels'])
  for label in labels[chosen]:
    if not 0 <= label < len(classes):
      raise ValueError(f'draw_detections: the {where} holds label {label}, the classes are 0..{len(classes) - 1}')
  return [(int(i), host_boxes.clip(boxes[i], size), int(labels[i])) for i in chosen if np.isfinite(boxes[i]).all()]


def _with_boxes(picture: np.ndarray, found: list, true: list, scale: int) -> np.ndarray:
  """The picture with solid boxes (weakest first, so that the strongest is on top), dashed ones, then all labels."""
  sheet, draw = canvas.painter(picture)
  width = max(1, round(min(picture.shape[:2]) / 200))
  for box, colour, _, _ in found[::-1]:
    draw.rectangle(corners_of(box, scale), outline=tuple(colour.tolist()), width=width)
  for box, colour, _, _ in true:
    dashed_rectangle(draw, corners_of(box, scale), tuple(colour.tolist()), width)
  face = canvas.font(canvas.font_size(picture.shape[:2]))
  tags: list[tuple[int, int, int, int]] = []
  for items, below in ((found, False), (true, True)):
    for box, _, colour, text in items:
      tag = _free_place(corners_of(box, scale), canvas.text_size(text, face), sheet.size, tags, below)
      tags.append(tag)
      draw.rectangle((tag[0], tag[1], tag[2] - 1, tag[3] - 1), fill=tuple(colour.tolist()))
      draw.text((tag[0] + 2, tag[1]), text, fill=ink_on(colour), font=face)
  return np.asarray(sheet)


def corners_of(box: np.ndarray, scale: int) -> tuple[int, int, int, int]:
  """The first and last pixel, across and down, of a box on the enlarged picture."""
  left, top, right, bottom = (round(float(v) * scale) for v in box)
  return left, top, max(left, right - 1), max(top, bottom - 1)


def dashed_rectangle(draw: Any, corners: tuple[int, int, int, int], colour: tuple, width: int) -> None:
  """Dashes with a dark rim, to be seen on light and dark ground; what lies beneath shows in the gaps."""
  left, top, right, bottom = corners
  dash = 4 + 2 * width
  rim = width if width > 1 else 0  # on a picture at original size a rim would hide what it marks
  for grow, paint in ((rim // 2, (0, 0, 0)), (0, colour)):
    for start in range(left, right + 1, 2 * dash):
      end = min(start + dash - 1, right)
      for y in (top, bottom - width + 1):
        draw.rectangle((start - grow, y - grow, end + grow, y + width - 1 + grow), fill=paint)
    for start in range(top, bottom + 1, 2 * dash):
      end = min(start + dash - 1, bottom)
      for x in (left, right - width + 1):
        draw.rectangle((x - grow, start - grow, x + width - 1 + grow, end + grow), fill=paint)


def _free_place(corners: tuple[int, int, int, int], text: tuple[int, int], size: tuple[int, int],
                taken: list[tuple[int, int, int, int]], below: bool) -> tuple[int, int, int, int]:
  """Where a box's label goes: the first place around the box that is in the picture and on no other label."""
  left, top, right, bottom = corners
  width, height = text[0] + 4, text[1] + 1
  over = [(left, top - height), (right + 1 - width, top - height)]
  under = [(left, bottom + 1), (right + 1 - width, bottom + 1)]
  inside = [(left, top), (right + 1 - width, bottom + 1 - height), (right + 1, top), (left - width, top)]
  places = [*under, *over, *inside] if below else [*over, *under, *inside]
  tags = []
  for x, y in places:
    # Sliding along the border is fine, leaving the picture is not.
    x = max(0, min(x, size[0] - width))
    if 0 <= y <= size[1] - height:
      tags.append((x, y, x + width, y + height))
  for tag in tags:
    if not any(tag[0] < t[2] and t[0] < tag[2] and tag[1] < t[3] and t[1] < tag[3] for t in taken):
      return tag
  x, y = max(0, min(left, size[0] - width)), max(0, min(top, size[1] - height))
  return tags[0] if tags else (x, y, x + width, y + height)


def draw_segmentation(image: np.ndarray, segmentation: np.ndarray, classes: ClassMap, *, alpha: float = 0.5,
                      background: int | None = 0, scale: int = 1, legend: bool = True) -> np.ndarray:
  """The image under the colours of its classes, outlined, with a legend of the classes present beneath.

  Args:
    image: uint8 `[H, W, 3]`.
    segmentation: `[H, W]` integers in `0..K-1`.
    classes: the names of the classes.
    alpha: how much of a class's colour covers the image, 0..1; the outline is opaque.
    background: the class that stays uncoloured, or None to colour all.
    scale: how many times larger the picture is than the image.
    legend: whether a white strip with the names is added; without it the picture has the size of the image.

  Returns:
    uint8 `[H * scale + strip, W * scale, 3]`; wider where a single name needs it, with the picture in the middle.

  Raises:
    ValueError: the image is not uint8 RGB, the map has another size or holds a value that is no class, or `alpha` is
      out of range.

  >>> segmentation = np.zeros((48, 64), np.int32)
  >>> segmentation[8:20, 8:30] = 1
  >>> classes = ClassMap(names=('background', 'cat'))
  >>> draw_segmentation(np.zeros((48, 64, 3), np.uint8), segmentation, classes, legend=False).shape
  (48, 64, 3)
  """
  image = canvas.checked_image(image, 'draw_segmentation')
  segmentation = _checked_map(segmentation, classes, 'draw_segmentation')
  if segmentation.shape != image.shape[:2]:
    raise ValueError(f'draw_segmentation: the map is {segmentation.shape}, the image {image.shape[:2]}; '
                     'map the prediction back to original pixels first')
  if not 0.0 <= alpha <= 1.0:
    raise ValueError(f'draw_segmentation: alpha is {alpha}; give a number in 0..1')
  colours = class_colours(len(classes), background)
  large, picture = canvas.enlarged(segmentation, scale), canvas.enlarged(image, scale)
  painted = large != (-1 if background is None else background)
  opacity = np.where(painted, np.where(_inner_border(large), 1.0, alpha), 0.0)[..., None]
  picture = (picture * (1 - opacity) + colours[large] * opacity).round().astype(np.uint8)
  if not legend:
    return picture
  present = [int(c) for c in np.unique(segmentation) if c != background]
  entries = [(classes.names[c], tuple(colours[c].tolist())) for c in present]
  return canvas.stacked(picture, _legend(entries or [('background only', canvas.SHADE)], picture.shape))


def _checked_map(segmentation: np.ndarray, classes: ClassMap, where: str) -> np.ndarray:
  segmentation = np.asarray(segmentation)
  if segmentation.ndim != 2 or not np.issubdtype(segmentation.dtype, np.integer):
    raise ValueError(f'{where}: the map is {segmentation.dtype} {segmentation.shape}; give integers [H, W]')
  if segmentation.size and not 0 <= segmentation.min() <= segmentation.max() < len(classes):
    raise ValueError(f'{where}: the map holds values {segmentation.min()}..{segmentation.max()}, '
                     f'the classes are 0..{len(classes) - 1}')
  return segmentation


def _inner_border(segmentation: np.ndarray) -> np.ndarray:
  """`[H, W]` bool: pixels with one of another class among their four neighbours."""
  border = np.zeros(segmentation.shape, bool)
  down, right = segmentation[1:] != segmentation[:-1], segmentation[:, 1:] != segmentation[:, :-1]
  border[1:] |= down
  border[:-1] |= down
  border[:, 1:] |= right
  border[:, :-1] |= right
  return border


def _legend(entries: Sequence[tuple[str, tuple]], shape: tuple[int, ...]) -> np.ndarray:
  """A white strip as wide as the picture, or as the widest entry, with a swatch and a name for each entry."""
  face = canvas.font(canvas.font_size(shape[:2]))
  _, height = canvas.text_size('', face)
  swatch, gap = round(height * 0.7), max(4, height // 3)
  widths = [swatch + gap + canvas.text_size(name, face)[0] for name, _ in entries]
  width = max(shape[1], max(widths) + 2 * gap)
  places, x, y = [], gap, gap
  for entry in widths:
    if x > gap and x + entry + gap > width:
      x, y = gap, y + height + gap // 2
    places.append((x, y))
    x += entry + 3 * gap
  sheet, draw = canvas.painter(canvas.blank(width, y + height + gap))
  for (name, colour), (x, y) in zip(entries, places, strict=True):
    top = y + (height - swatch) // 2
    draw.rectangle((x, top, x + swatch - 1, top + swatch - 1), fill=colour)
    draw.text((x + swatch + gap, y), name, fill=canvas.INK, font=face)
  return np.asarray(sheet)


def draw_classification(image: np.ndarray, probabilities: np.ndarray, classes: ClassMap, *, label: int | None = None,
                        top: int = 5, scale: int = 1) -> np.ndarray:
  """The image with its most probable classes beneath, each with a bar and a percentage.

  Args:
    image: uint8 `[H, W, 3]`.
    probabilities: `[K]` in 0..1.
    classes: the names of the classes.
    label: the true class, whose row is then green and, if it is not among the top ones, is added as the last; or None.
    top: how many classes.
    scale: how many times larger the picture is than the image.

  Returns:
    uint8 `[H * scale + strip, max(W * scale, some 160), 3]`, the image in the middle.

  Raises:
    ValueError: the image is not uint8 RGB, there is not one probability for each class, or the label is no class.

  >>> picture = draw_classification(np.zeros((96, 200, 3), np.uint8), np.array([0.2, 0.8]),
  ...                               ClassMap(names=('cat', 'dog')))
  >>> picture.shape[1]
  200
  """
  image = canvas.checked_image(image, 'draw_classification')
  probabilities = np.asarray(probabilities, np.float64)
  if probabilities.shape != (len(classes),):
    raise ValueError(f'draw_classification: probabilities have shape {probabilities.shape} for {len(classes)} classes; '
                     'give one for each')
  if label is not None and not 0 <= label < len(classes):
    raise ValueError(f'draw_classification: label {label} is outside 0..{len(classes) - 1}')
  picture = canvas.enlarged(image, scale)
  rows = np.argsort(-probabilities, kind='stable')[:top].tolist()
  if label is not None and label not in rows:
    rows.append(label)
  face = canvas.font(max(12, canvas.font_size(picture.shape[:2])))
  entries = [(classes.names[c], float(probabilities[c]), c == label) for c in rows]
  return canvas.stacked(picture, _bars(entries, picture.shape[1], face))


def _bars(entries: Sequence[tuple[str, float, bool]], width: int, face: Any) -> np.ndarray:
  """A white strip with, in each row, a name and a percentage over a bar as long as the probability."""
  _, height = canvas.text_size('', face)
  gap, number = max(4, height // 3), canvas.text_size('100.0 %', face)[0]
  width = max(width, round(2.2 * number) + 4 * gap)
  row = height + gap
  sheet, draw = canvas.painter(canvas.blank(width, row * len(entries) + gap))
  for i, (name, probability, true) in enumerate(entries):
    top, inner = gap + i * row, width - 2 * gap
    draw.rectangle((gap, top, gap + inner - 1, top + height), fill=(214, 240, 221) if true else canvas.SHADE)
    share = round(inner * float(np.clip(np.nan_to_num(probability), 0.0, 1.0)))
    if share:
      draw.rectangle((gap, top, gap + share - 1, top + height), fill=(140, 215, 160) if true else (165, 200, 245))
    room = inner - number - 3 * gap
    draw.text((2 * gap, top), canvas.shortened(name, face, room), fill=canvas.INK, font=face)
    percent = f'{100 * probability:.1f} %'
    left = width - 2 * gap - canvas.text_size(percent, face)[0]
    draw.text((left, top), percent, fill=canvas.INK, font=face)
  return np.asarray(sheet)


def save_palette_png(path: str | os.PathLike, segmentation: np.ndarray, classes: ClassMap, *,
                     background: int | None = 0) -> None:
  """Writes a class map as a PNG file of mode P, whose values are the file's class ids and whose text names them.

  The text chunk `classes` holds JSON, `{"<id>": "<name>", ...}`; any viewer shows the map in the colours of
  `draw_segmentation`.

  Args:
    path: the file; an existing one is replaced.
    segmentation: `[H, W]` integers, our classes `0..K-1`.
    classes: names and ids.
    background: the class that is black, or None.

  Raises:
    ValueError: the map holds a value that is no class, or an id does not fit into a byte.

  >>> import io
  >>> from PIL import Image
  >>> file = io.BytesIO()
  >>> save_palette_png(file, np.array([[0, 1]]), ClassMap(names=('background', 'cat'), ids=(0, 17)))
  >>> image = Image.open(file)
  >>> image.mode, image.getpixel((1, 0)), image.text['classes']
  ('P', 17, '{"0": "background", "17": "cat"}')
  """
  from PIL import Image, PngImagePlugin
  segmentation = _checked_map(segmentation, classes, 'save_palette_png')
  ids = np.array(classes.ids, np.int64)
  if ids.min() < 0 or ids.max() > 255:
    raise ValueError(f'save_palette_png: class ids run from {ids.min()} to {ids.max()}, a palette file holds 0..255; '
                     'give the classes other ids')
  colours = np.zeros((256, 3), np.uint8)
  colours[ids] = class_colours(len(classes), background)
  picture = Image.fromarray(ids.astype(np.uint8)[segmentation])
  picture.putpalette(colours.tobytes())  # turns a picture of mode L into one of mode P
  text = PngImagePlugin.PngInfo()
  text.add_text('classes', json.dumps({str(i): name for i, name in zip(classes.ids, classes.names, strict=True)}))
  picture.save(path, format='PNG', pnginfo=text)


def contact_sheet(images: Sequence[np.ndarray], captions: Sequence[str] | None = None, *, columns: int | None = None,
                  gap: int = 8) -> np.ndarray:
  """Many pictures on one sheet, in rows, each with its caption beneath.

  Args:
    images: uint8 `[h, w, 3]` each; sizes may differ, each cell is as large as the largest.
    captions: one for each, wrapped to at most three lines; or None.
    columns: how many in a row; by default as many as make the sheet about 4 to 3.
    gap: white pixels between pictures.

  Returns:
    uint8 `[H, W, 3]`.

  Raises:
    ValueError: no image, an image that is not uint8 RGB, or another number of captions.

  >>> contact_sheet([np.zeros((40, 40, 3), np.uint8)] * 4, columns=2).shape
  (104, 104, 3)
  """
  images = [canvas.checked_image(image, 'contact_sheet') for image in images]
  captions = [''] * len(images) if captions is None else list(captions)
  if not images or len(captions) != len(images) or (columns is not None and columns < 1):
    raise ValueError(f'contact_sheet: {len(images)} images, {len(captions)} captions, columns={columns}; '
                     'give at least one image, a caption for each, and at least one column')
  height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
  face = canvas.font(max(11, canvas.font_size((height, width))))
  texts = [canvas.wrapped(caption, face, width) for caption in captions]
  line = canvas.text_size('', face)[1]
  cell = height + line * max(map(len, texts))
  columns = columns or int(np.clip(round(np.sqrt(len(images) * 4 / 3 * cell / width)), 1, len(images)))
  rows = -(-len(images) // columns)
  sheet = canvas.blank(gap + columns * (width + gap), gap + rows * (cell + gap))
  places = [(gap + i % columns * (width + gap), gap + i // columns * (cell + gap)) for i in range(len(images))]
  for image, (x, y) in zip(images, places, strict=True):
    left = x + (width - image.shape[1]) // 2
    sheet[y:y + image.shape[0], left:left + image.shape[1]] = image
  return _with_captions(sheet, texts, [(x, y + image.shape[0]) for image, (x, y) in zip(images, places, strict=True)],
                        width, face)


def _with_captions(sheet: np.ndarray, texts: Sequence[Sequence[str]], places: Sequence[tuple[int, int]], width: int,
                   face: Any) -> np.ndarray:
  paper, draw = canvas.painter(sheet)
  line = canvas.text_size('', face)[1]
  for rows, (x, y) in zip(texts, places, strict=True):
    for i, row in enumerate(rows):
      left = x + (width - canvas.text_size(row, face)[0]) // 2
      draw.text((left, y + i * line), row, fill=canvas.INK, font=face)
  return np.asarray(paper)
