"""Pictures of numbers: a confusion matrix, and curves over the steps of a training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import math
from typing import Any

import numpy as np

from vision_jax.conventions import ClassMap
from vision_jax.viz import canvas
from vision_jax.viz.colours import ink_on, palette

_RIGHT, _WRONG = np.array([25, 90, 190]), np.array([200, 45, 35])
_FINE = 2  # drawn so many times larger and shrunk, because Pillow's lines have no smooth edges
_PANEL = (300, 440)  # (height, width) of one panel of curves
_MARGIN = {'left': 62, 'right': 18, 'top': 34, 'bottom': 34}


def draw_confusion(matrix: np.ndarray, classes: ClassMap, *, title: str = '') -> np.ndarray:
  """A confusion matrix as a table: counts, and colours by the share of each true class.

  Hits are blue and confusions red, at the square root of their share, so that rare ones are seen. The last column is
  the recall of each class. With many classes the cells shrink, counts are left out where they do not fit, and only
  every n-th name is written.

  Args:
    matrix: `[K true, K predicted]` counts.
    classes: the names of the classes.
    title: stands above.

  Returns:
    uint8 `[H, W, 3]`.

  Raises:
    ValueError: the matrix is not K by K.

  >>> draw_confusion(np.array([[3, 1], [0, 2]]), ClassMap(names=('cat', 'dog'))).dtype
  dtype('uint8')
  """
  matrix = np.asarray(matrix)
  count = len(classes)
  if matrix.shape != (count, count) or not count:
    raise ValueError(f'draw_confusion: the matrix has shape {matrix.shape} for {count} classes; give [K, K]')
  cell = int(np.clip(720 // count, 3, 46))
  face, small = canvas.font(14), canvas.font(12)
  names = [canvas.shortened(name, small, 130) for name in classes.names]
  longest = max(canvas.text_size(name, small)[0] for name in names)
  left, top = 34 + longest, (34 if title else 8) + 24 + longest
  width = left + cell * count + 74
  if title:
    width = max(width, canvas.text_size(title, face)[0] + 24)
  sheet, draw = canvas.painter(canvas.blank(width, top + cell * count + 12))
  draw.text((12, 8), title, fill=canvas.INK, font=face)
  _confusion_cells(draw, matrix, (left, top), cell)
  _confusion_names(sheet, draw, names, (left, top), cell, small)
  recall = np.diag(matrix) / np.maximum(matrix.sum(axis=1), 1)
  for i in range(0, count, _every(cell)):
    text = f'{100 * recall[i]:.1f} %' if matrix[i].sum() else 'none'
    draw.text((left + count * cell + 8, top + (i + 0.5) * cell), text, fill=canvas.INK, font=small, anchor='lm')
  draw.text((left + count * cell + 8, top - 6), 'recall', fill=canvas.GREY, font=small, anchor='ls')
  return np.asarray(sheet)


def _every(cell: int) -> int:
  """How many rows lie between two names, for the names not to touch."""
  return -(-15 // cell)


def _confusion_cells(draw: Any, matrix: np.ndarray, origin: tuple[int, int], cell: int) -> None:
  share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
  left, top = origin
  line = 1 if cell >= 8 else 0
  digits = len(str(int(matrix.max(initial=0))))
  size = min(15, int(1.5 * (cell - 4) / digits), cell - 6)
  for i, j in np.argwhere(matrix != 0):  # the paper is white already
    strength = math.sqrt(min(1.0, max(0.0, float(share[i, j]))))
    colour = 255 + (np.where(i == j, _RIGHT, _WRONG) - 255) * strength
    x, y = left + j * cell, top + i * cell
    draw.rectangle((x, y, x + cell - 1 - line, y + cell - 1 - line), fill=tuple(int(v) for v in colour))
    if size >= 8:
      middle = (x + cell / 2, y + cell / 2)
      draw.text(middle, str(matrix[i, j]), fill=ink_on(colour), font=canvas.font(size), anchor='mm')
  edge = len(matrix) * cell
  draw.rectangle((left - 1, top - 1, left + edge, top + edge), outline=canvas.GREY)


def _confusion_names(sheet: Any, draw: Any, names: Sequence[str], origin: tuple[int, int], cell: int,
                     face: Any) -> None:
  left, top = origin
  flat = max(canvas.text_size(name, face)[0] for name in names) <= cell - 4
  for i in range(0, len(names), _every(cell)):
    middle = (i + 0.5) * cell
    draw.text((left - 6, top + middle), names[i], fill=canvas.INK, font=face, anchor='rm')
    if flat:
      draw.text((left + middle, top - 6), names[i], fill=canvas.INK, font=face, anchor='ms')
    else:
      _upright_text(sheet, names[i], (left + middle, top - 6), face, canvas.INK)
  height = canvas.text_size('', face)[1]
  longest = height if flat else max(canvas.text_size(name, face)[0] for name in names)
  draw.text((left, top - longest - 12), 'predicted', fill=canvas.GREY, font=face, anchor='ls')
  _upright_text(sheet, 'true', (14, top + canvas.text_size('true', face)[0]), face, canvas.GREY)


def _upright_text(sheet: Any, text: str, foot: tuple[float, float], face: Any, colour: tuple) -> None:
  """Text that runs upwards from `foot`, the middle of its lower edge."""
  from PIL import Image, ImageDraw
  width, height = canvas.text_size(text, face)
  stencil = Image.new('L', (max(width, 1), height), 0)
  ImageDraw.Draw(stencil).text((0, 0), text, fill=255, font=face)
  stencil = stencil.rotate(90, expand=True)
  sheet.paste(colour, (round(foot[0] - height / 2), round(foot[1] - stencil.height)), stencil)


def draw_curves(records: Sequence[Mapping[str, Any]], *, panels: Mapping[str, Sequence[str]] | None = None,
                title: str = '') -> np.ndarray:
  """What a training logged, as curves over the step, in panels side by side.

  Without `panels`, names of one or two parts share a panel with those of the same last part (`train/loss` with
  `eval/loss`), longer ones with those of the same beginning (`eval/AP/cat` with `eval/AP/dog`). Beside a name stands
  its last value. A value that is not finite leaves a gap; what is not a number is left out.

  Args:
    records: `{'step': int, name: number, ...}` each, in any order; a name may be missing from some of them.
    panels: the title of each panel and the names it shows, or None for all.
    title: stands above.

  Returns:
    uint8 `[H, W, 3]`.

  Raises:
    ValueError: a record without `step`, a name in `panels` that no record has, or nothing to draw.

  >>> records = [{'step': s, 'train/loss': 1 / (s + 1), 'eval/loss': 1.2 / (s + 1)} for s in range(5)]
  >>> draw_curves(records).shape
  (300, 440, 3)
  """
  series = _series(records)
  panels = _default_panels(series) if panels is None else panels
  for name in (name for names in panels.values() for name in names):
    if name not in series:
      raise ValueError(f'draw_curves: no record has a number under {name!r}; known: {", ".join(sorted(series))}')
  if not panels:
    raise ValueError('draw_curves: the records hold no numbers but the step; log something first')
  columns = min(3, len(panels)) if len(panels) != 4 else 2
  height, width = _PANEL
  offset = 30 if title else 0
  sheet = canvas.blank(columns * width, offset + -(-len(panels) // columns) * height)
  for i, (panel, names) in enumerate(panels.items()):
    y, x = offset + i // columns * height, i % columns * width
    sheet[y:y + height, x:x + width] = _panel(panel, {name: series[name] for name in names})
  paper, draw = canvas.painter(sheet)
  draw.text((14, 8), title, fill=canvas.INK, font=canvas.font(16))
  return np.asarray(paper)


def _series(records: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
  """The (step, value) pairs of each name that holds numbers, by rising step."""
  series: dict[str, list[tuple[float, float]]] = {}
  for record in records:
    if 'step' not in record:
      raise ValueError(f"draw_curves: a record has no 'step'; it has {', '.join(sorted(record)) or 'nothing'}")
    for name, value in record.items():
      number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
      if name != 'step' and number:
        series.setdefault(name, []).append((float(record['step']), float(value)))
  return {name: sorted(pairs, key=lambda pair: pair[0]) for name, pairs in series.items()}


def _default_panels(names: Sequence[str]) -> dict[str, list[str]]:
  panels: dict[str, list[str]] = {}
  for name in names:
    parts = name.split('/')
    panels.setdefault('/'.join([*parts[:-1], '*']) if len(parts) > 2 else parts[-1], []).append(name)
  # A panel of one is called by its whole name.
  return {names[0] if len(names) == 1 else panel: names for panel, names in panels.items()}


def _panel(title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> np.ndarray:
  from PIL import Image
  height, width = _PANEL
  sheet, draw = canvas.painter(canvas.blank(width * _FINE, height * _FINE))
  points = np.array([pair for pairs in series.values() for pair in pairs])
  finite = points[np.isfinite(points).all(axis=1)]
  if not len(finite):
    finite = np.array([[0.0, 0.0]])
  frame = _Frame(finite[:, 0], finite[:, 1])
  frame.axes(draw)
  colours = palette(len(series) + 1)[1:]
  for colour, pairs in zip(colours, series.values(), strict=True):
    frame.curve(draw, pairs, tuple(colour.tolist()))
  _panel_title(draw, title, [pairs[-1][1] for pairs in series.values()])
  if len(series) > 1:
    _panel_legend(draw, frame, series, colours)
  return np.asarray(sheet.resize((width, height), Image.Resampling.LANCZOS))


def _panel_title(draw: Any, title: str, last: Sequence[float]) -> None:
  """The title and, where there is one curve only, its last value."""
  face = canvas.font(14 * _FINE)
  left, right, top = _MARGIN['left'] * _FINE, (_PANEL[1] - _MARGIN['right']) * _FINE, 10 * _FINE
  value = f'{last[0]:.4g}' if len(last) == 1 else ''
  room = right - left - canvas.text_size(value, face)[0] - 10 * _FINE
  draw.text((left, top), canvas.shortened(title, face, room), fill=canvas.INK, font=face)
  draw.text((right, top), value, fill=canvas.INK, font=face, anchor='ra')


def _panel_legend(draw: Any, frame: _Frame, series: Mapping[str, Sequence[tuple[float, float]]],
                  colours: np.ndarray) -> None:
  """The curves' names and last values, in the corner that hides least of the curves."""
  face = canvas.font(11 * _FINE)
  shown = list(series)[:12]  # a legend of more would leave no place for the curves
  rows = [f'{label}  {series[name][-1][1]:.4g}' for label, name in zip(_unlike_parts(shown), shown, strict=True)]
  if len(series) > len(shown):
    rows.append(f'and {len(series) - len(shown)} more')
  line = canvas.text_size('', face)[1]
  width = max(canvas.text_size(row, face)[0] for row in rows) + 24 * _FINE
  left, top, right, bottom = frame.free_corner((width, line * len(rows) + 6 * _FINE), series.values())
  draw.rectangle((left, top, right, bottom), fill=canvas.PAPER, outline=canvas.SHADE, width=_FINE)
  for i, row in enumerate(rows):
    y = top + 3 * _FINE + (i + 0.5) * line
    if i < len(shown):
      draw.line((left + 5 * _FINE, y, left + 15 * _FINE, y), fill=tuple(colours[i].tolist()), width=2 * _FINE)
    draw.text((left + 19 * _FINE, y), row, fill=canvas.INK, font=face, anchor='lm')


def _unlike_parts(names: Sequence[str]) -> list[str]:
  """What tells the names of one panel apart: their beginnings, where the ends are the same, or their ends."""
  heads, _, tails = zip(*(name.rpartition('/') for name in names), strict=True)
  if len(set(tails)) == len(names):
    return list(tails)
  return list(heads) if len(set(tails)) == 1 and all(heads) else list(names)


class _Frame:
  """The axes of one panel: where a step and a value lie on the fine paper."""

  def __init__(self, steps: np.ndarray, values: np.ndarray):
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    self.x_range = (float(steps.min()), max(float(steps.max()), float(steps.min()) + 1))
    self.y_range = (low - margin, high + margin)
    height, width = _PANEL
    self.left, self.right = _MARGIN['left'] * _FINE, (width - _MARGIN['right']) * _FINE
    self.top, self.bottom = _MARGIN['top'] * _FINE, (height - _MARGIN['bottom']) * _FINE

  def place(self, step: float, value: float) -> tuple[float, float]:
    across = (step - self.x_range[0]) / (self.x_range[1] - self.x_range[0])
    up = (value - self.y_range[0]) / (self.y_range[1] - self.y_range[0])
    return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)

  def free_corner(self, size: tuple[float, float], curves: Iterable[Sequence[tuple[float, float]]]) -> tuple:
    """The place (left, top, right, bottom) for a box of (width, height), in the corner with the least curve in it."""
    dots = np.concatenate([self._along(pairs) for pairs in curves])
    gap = 4 * _FINE
    corners = []
    for x in (self.right - gap - size[0], self.left + gap):
      for y in (self.top + gap, self.bottom - gap - size[1]):
        half = np.array(size) / 2
        inside = np.abs(dots - (np.array([x, y]) + half)) <= half + gap
        corners.append((int(inside.all(axis=1).sum()), x, y))
    _, x, y = min(corners, key=lambda corner: corner[0])
    return x, y, x + size[0], y + size[1]

  def _along(self, pairs: Sequence[tuple[float, float]]) -> np.ndarray:
    """`[64, 2]` places along a curve, at even distances of the step."""
    steps, values = np.array([pair for pair in pairs if math.isfinite(pair[1])] or [(self.x_range[0], 0.0)]).T
    even = np.linspace(steps[0], steps[-1], 64)
    return np.stack(self.place(even, np.interp(even, steps, values)), axis=1)

  def axes(self, draw: Any) -> None:
    face = canvas.font(11 * _FINE)
    for value in _ticks(*self.y_range):
      _, y = self.place(self.x_range[0], value)
      draw.line((self.left, y, self.right, y), fill=canvas.SHADE, width=_FINE)
      draw.text((self.left - 6 * _FINE, y), f'{value:.4g}', fill=canvas.GREY, font=face, anchor='rm')
    for step in _ticks(*self.x_range, whole=True):
      x, _ = self.place(step, self.y_range[0])
      draw.line((x, self.bottom, x, self.bottom + 4 * _FINE), fill=canvas.GREY, width=_FINE)
      draw.text((x, self.bottom + 6 * _FINE), _short_number(step), fill=canvas.GREY, font=face, anchor='ma')
    draw.line((self.left, self.bottom, self.right, self.bottom), fill=canvas.GREY, width=_FINE)
    draw.text((self.left, self.bottom + 19 * _FINE), 'step', fill=canvas.GREY, font=face)

  def curve(self, draw: Any, pairs: Sequence[tuple[float, float]], colour: tuple) -> None:
    """A line through the finite values, with a dot at each where they are few."""
    run: list[tuple[float, float]] = []
    for step, value in [*pairs, (0.0, math.nan)]:  # the last one ends the last run
      if math.isfinite(value):
        run.append(self.place(step, value))
        continue
      if len(run) > 1:
        draw.line(run, fill=colour, width=2 * _FINE, joint='curve')
      for x, y in run if len(pairs) <= 30 or len(run) == 1 else ():
        radius = 3 * _FINE
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
      run = []


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
  """Some four to eight round numbers in a range: multiples of 1, 2 or 5 times a power of ten."""
  rough = (high - low) / 4
  power = 10.0 ** math.floor(math.log10(rough))
  spacing = next(m * power for m in (5, 2, 1) if m * power <= rough * 1.001)
  if whole:
    spacing = max(1.0, spacing)
  first, last = math.ceil(low / spacing - 1e-9), math.floor(high / spacing + 1e-9)
  # Rounded, so that 3 * 0.1 is written 0.3.
  return [round(i * spacing, 12 - math.floor(math.log10(spacing))) for i in range(first, last + 1)]


def _short_number(value: float) -> str:
  """1500 as 1.5k, 2000000 as 2M."""
  for size, letter in ((1e6, 'M'), (1e3, 'k')):
    if abs(value) >= size:
      return f'{value / size:g}{letter}'
  return f'{value:g}'
