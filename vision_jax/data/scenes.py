"""Scenes composed of real handwritten digits, for detection, semantic and instance segmentation without a download.

Units: pixels of the canvas; sizes are (h, w), coordinates (x, y); grey levels 0..255.

A scene is a ground (a level, a brightness gradient, a tint), clutter on it (thin strokes and soft blobs that are no
digits), noise over both, and 0 to 8 digits over all that:

| what | drawn from |
|---|---|
| number of digits | 0 in one scene of ten, else 1..8, equally likely; one that finds no room in 30 tries is left out |
| scale, turn | 1.8..4.5 times the 8 x 8 raster, -25..25 degrees |
| contrast c | 0.35..1.0: a pixel is `ground + c * alpha * (ink - ground)`, alpha in 0..1 being the warped raster |
| ground, ink | level 20..80 plus a gradient of up to 40 from side to side; ink 215..255 in each channel |
| noise | standard deviation 2..10 |
| clutter | 1..4 strokes up to 2 pixels wide and 0..3 blobs, at contrast 0.1..0.4 |

*Ink* is where alpha is at least `INK_ALPHA`. A digit's mask is its whole ink, also where a later digit covers it, and
its box is the tight box of that mask, always inside the canvas. Two boxes overlap by an IoU of at most 0.25, and at
least 70 % of every digit's ink stays visible. In the semantic map the later digit wins.

Everything is computed in float64 with scalar libm calls at most, on a bit generator whose stream NumPy guarantees, and
is rounded at the end: versions and machines agree to the bit, and a test pins that.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from vision_jax.conventions import ClassMap
from vision_jax.data.digits import SPLITS, check_split, digit_rasters

INK_ALPHA = 0.3
MAX_DIGITS = 8
MAX_IOU = 0.25
MIN_VISIBLE = 0.7
SCALES = (1.8, 4.5)
TURN = 25.0  # degrees
CONTRASTS = (0.35, 1.0)
EMPTY_SHARE = 0.1
TRIES = 30
MIN_SIDE = 48  # the side of the largest digit, turned: 8 * 4.5 * (cos 25 + sin 25) = 47.8
DEFAULT_SIZES = {'train': 4000, 'val': 200}
ANNOTATIONS = {'boxes': ('boxes', 'labels', 'masks'), 'semantic': ('segmentation', 'pixels_valid')}
DIGIT_NAMES = tuple('0123456789')

_FINE, _MARGIN = 4, 2  # rasters are brought to four times their size, with two raster pixels of paper around


class PlacedDigit(NamedTuple):
  """One digit of a scene.

  Args:
    label: 0..9.
    source: its place in the split's digits.
    box: (x1, y1, x2, y2), the tight box of its ink.
    corner: (x, y) of its alpha patch on the canvas; may be negative.
    alpha: float64 [p, p] in 0..1, the warped raster.
    scale: 1.8..4.5.
    turn: degrees, -25..25.
    contrast: 0.35..1.0.
    colour: three grey levels, the ink's RGB.
  """

  label: int
  source: int
  box: tuple[int, int, int, int]
  corner: tuple[int, int]
  alpha: np.ndarray
  scale: float
  turn: float
  contrast: float
  colour: tuple[float, float, float]


class Scene(NamedTuple):
  """The truth of a scene, before it is painted: its digits, from the lowest to the top one, and who owns which pixel.

  Args:
    digits: the digits in the order in which they are painted.
    owner: int8 [H, W], the place in `digits` of the top ink of each pixel, -1 for none.
  """

  digits: tuple[PlacedDigit, ...]
  owner: np.ndarray


class DigitScenes:
  """Scenes of 0 to 8 real digits over noise, a gradient and clutter: a pure function of (seed, split, index).

  Args:
    split: 'train' (built of the first 1,437 digits) or 'val' (of the last 360); no digit is in both.
    canvas: (h, w) of a scene, each at least 48 pixels.
    size: number of scenes; 4,000 for 'train' and 200 for 'val' when left out. Scene i does not depend on it.
    annotation: 'boxes' (fields `boxes`, `labels`, `masks`; ten classes) or 'semantic' (fields `segmentation`,
      `pixels_valid`, which is all True; eleven classes, background 0).
    seed: a non-negative int.
    cache: keep rendered scenes in memory: at most `4 * h * w` bytes and 1 kB each, 50 kB at 96 x 128 (200 MB for 4,000
      scenes). A cached scene equals a rendered one, and pickling leaves the cache behind.
    dark_ink: share of scenes, 0..1, that are inverted: dark ink on a light ground.

  `source[i]` is a dict of `image`, uint8 RGB [h, w, 3], and the fields: `boxes` float32 [n, 4] xyxy, `labels` int32
  [n], `masks` bool [n, h, w], or `segmentation` int32 [h, w] and `pixels_valid` bool [h, w].

  Raises:
    ValueError: an unknown split or annotation, a canvas below 48 pixels, a negative size or seed.

  >>> scenes = DigitScenes('val', canvas=(64, 80))
  >>> sample = scenes[3]
  >>> sample['image'].shape, sample['labels'].tolist(), sample['boxes'].dtype.name
  ((64, 80, 3), [7, 1, 2, 0, 3, 7], 'float32')
  """

  def __init__(self, split: str, *, canvas: tuple[int, int] = (96, 128), size: int | None = None,
               annotation: str = 'boxes', seed: int = 0, cache: bool = False, dark_ink: float = 0.0):
    self.split = check_split('digit_scenes', split)
    if annotation not in ANNOTATIONS:
      raise ValueError(f'digit_scenes has no annotation {annotation!r}; known: {", ".join(ANNOTATIONS)}')
    if len(canvas) != 2 or min(canvas) < MIN_SIDE:
      raise ValueError(f'digit_scenes: canvas {tuple(canvas)} is too small for the largest digit; '
                       f'give (height, width), each at least {MIN_SIDE} pixels')
    size = DEFAULT_SIZES[split] if size is None else size
    if size < 0 or seed < 0 or not 0 <= dark_ink <= 1:
      raise ValueError(f'digit_scenes: size {size}, seed {seed} and dark_ink {dark_ink} are out of range; '
                       'size and seed are at least 0, dark_ink is in 0..1')
    self.canvas, self.size, self.seed = (int(canvas[0]), int(canvas[1])), int(size), int(seed)
    self.annotation, self.fields, self.dark_ink = annotation, ANNOTATIONS[annotation], float(dark_ink)
    self.classes = ClassMap(names=DIGIT_NAMES if annotation == 'boxes' else ('background', *DIGIT_NAMES))
    self._rasters, self._labels = digit_rasters(split)
    self._cache: dict[int, dict[str, Any]] | None = {} if cache else None

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, index: int) -> dict[str, Any]:
    index = self._check(index)
    if self._cache is None:
      return self._render(index)
    packed = self._cache.get(index)
    if packed is None:  # two threads may render the same scene at once; they store the same bytes
      packed = self._cache[index] = _pack(self._render(index))
    return _unpack(packed, self.canvas)

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, '_cache': None if self._cache is None else {}}

  def target(self, index: int) -> dict[str, Any]:
    """The truth of one scene without its image; cheaper than the scene, since nothing is painted."""
    index = self._check(index)
    if self._cache is not None and index in self._cache:
      sample = self[index]
      return {name: sample[name] for name in self.fields}
    return self._truth(self.plan(index)[0])

  def name_of(self, index: int) -> str:
    """The name of one scene."""
    return f'digit_scene_{self.split}_{index:05d}'

  def plan(self, index: int) -> tuple[Scene, np.random.Generator]:
    """Places the digits of one scene, and returns the generator as it stands, from which the rest is painted."""
    sequence = np.random.SeedSequence([self.seed, SPLITS.index(self.split), index])
    rng = np.random.Generator(np.random.PCG64(sequence))
    return place_digits(rng, self._rasters, self._labels, self.canvas), rng

  def _check(self, index: int) -> int:
    if not 0 <= index < self.size:
      raise IndexError(f'digit_scenes: scene {index} of {self.size}')
    return int(index)

  def _render(self, index: int) -> dict[str, Any]:
    scene, rng = self.plan(index)
    inverted = rng.random() < self.dark_ink
    image = paint_scene(rng, scene)
    return {'image': 255 - image if inverted else image, **self._truth(scene)}

  def _truth(self, scene: Scene) -> dict[str, Any]:
    if self.annotation == 'semantic':
      classes = np.array([0] + [d.label + 1 for d in scene.digits], np.int32)
      return {'segmentation': classes[scene.owner + 1], 'pixels_valid': np.ones(self.canvas, bool)}
    masks = np.zeros((len(scene.digits), *self.canvas), bool)
    for mask, digit in zip(masks, scene.digits, strict=True):
      region, patch = _on_canvas(digit.corner, digit.alpha, self.canvas)
      mask[region] = patch >= INK_ALPHA
    return {'boxes': np.array([d.box for d in scene.digits], np.float32).reshape(-1, 4),
            'labels': np.array([d.label for d in scene.digits], np.int32), 'masks': masks}


def _pack(sample: dict[str, Any]) -> dict[str, Any]:
  """A sample in as few bytes as the cache promises; what is handed out again as it is, is made read-only."""
  packed = dict(sample)
  if 'masks' in packed:
    packed['masks'] = np.packbits(packed['masks'], axis=0)  # 8 masks take one byte a pixel
  if 'segmentation' in packed:
    packed['segmentation'] = packed['segmentation'].astype(np.uint8)
    del packed['pixels_valid']
  for array in packed.values():
    array.flags.writeable = False
  return packed


def _unpack(packed: dict[str, Any], canvas: tuple[int, int]) -> dict[str, Any]:
  sample = dict(packed)
  if 'masks' in sample:
    count = len(sample['labels'])
    sample['masks'] = (np.unpackbits(sample['masks'], axis=0, count=count).view(bool) if count
                       else np.zeros((0, *canvas), bool))
  if 'segmentation' in sample:
    sample['segmentation'] = sample['segmentation'].astype(np.int32)
    sample['pixels_valid'] = np.ones(canvas, bool)
  return sample


def place_digits(rng: np.random.Generator, rasters: np.ndarray, labels: np.ndarray, canvas: tuple[int, int]) -> Scene:
  """Draws a scene's digits and finds room for them.

  Args:
    rng: where the randomness comes from.
    rasters: uint8 [n, 8, 8] in 0..16.
    labels: int [n].
    canvas: (h, w) in pixels.

  Returns:
    The scene; digits that found no room are not in it, but the first always does.

  >>> rasters, labels = digit_rasters('val')
  >>> scene = place_digits(np.random.default_rng(1), rasters, labels, (96, 128))
  >>> int(scene.owner.max()) == len(scene.digits) - 1
  True
  """
  count = 0 if rng.random() < EMPTY_SHARE else 1 + int(rng.random() * MAX_DIGITS)
  owner = np.full(canvas, -1, np.int8)
  digits: list[PlacedDigit] = []
  areas: list[int] = []  # of each digit's whole ink
  for _ in range(count):
    digit = _draw_digit(rng, rasters, labels)
    ink = digit.alpha >= INK_ALPHA
    for _ in range(TRIES):
      moved = _moved(rng, digit, canvas)
      region, patch = _on_canvas(moved.corner, ink, canvas)
      if _fits(moved, owner[region][patch], digits, areas, owner):
        owner[region][patch] = len(digits)
        digits.append(moved)
        areas.append(int(ink.sum()))
        break
  return Scene(tuple(digits), owner)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
  return low + (high - low) * rng.random()


def _draw_digit(rng: np.random.Generator, rasters: np.ndarray, labels: np.ndarray) -> PlacedDigit:
  """A digit with its alpha patch at the canvas's origin."""
  source = int(rng.random() * len(labels))
  scale, turn, contrast = _between(rng, *SCALES), _between(rng, -TURN, TURN), _between(rng, *CONTRASTS)
  colour = tuple(_between(rng, 215, 255) for _ in range(3))
  alpha = warp_raster(rasters[source], scale, turn)
  rows, cols = (np.flatnonzero((alpha >= INK_ALPHA).any(axis)) for axis in (1, 0))
  box = (int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1)
  return PlacedDigit(int(labels[source]), source, box, (0, 0), alpha, scale, turn, contrast, colour)


def _moved(rng: np.random.Generator, digit: PlacedDigit, canvas: tuple[int, int]) -> PlacedDigit:
  """The digit at a random place that has all its ink on the canvas."""
  x1, y1, x2, y2 = digit.box
  dx = int(rng.random() * (canvas[1] - (x2 - x1) + 1)) - x1
  dy = int(rng.random() * (canvas[0] - (y2 - y1) + 1)) - y1
  return digit._replace(box=(x1 + dx, y1 + dy, x2 + dx, y2 + dy), corner=(dx, dy))


def _fits(digit: PlacedDigit, covered: np.ndarray, digits: list[PlacedDigit], areas: list[int],
          owner: np.ndarray) -> bool:
  """Whether boxes overlap little enough and enough of the earlier digits stays visible; `covered`: the owners below."""
  if any(_iou(digit.box, other.box) > MAX_IOU for other in digits):
    return False
  hidden = np.bincount(covered + 1, minlength=len(digits) + 1)[1:]
  return all(not lost or np.count_nonzero(owner == k) - lost >= MIN_VISIBLE * areas[k] for k, lost in enumerate(hidden))


def _iou(a: tuple[int, ...], b: tuple[int, ...]) -> float:
  inter = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
  return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def _on_canvas(corner: tuple[int, int], patch: np.ndarray, canvas: tuple[int, int]) -> tuple[tuple, np.ndarray]:
  """Where a patch lies on the canvas, and the part of it that does."""
  (x, y), (h, w) = corner, patch.shape
  x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, canvas[1]), min(y + h, canvas[0])
  return (slice(y1, y2), slice(x1, x2)), patch[y1 - y:y2 - y, x1 - x:x2 - x]


def _cubic_matrix() -> np.ndarray:
  """[48, 12]: a padded raster's side to its fine side, by Catmull-Rom's cubic (Keys 1981, equation 4, a = -1/2)."""
  side = 8 + 2 * _MARGIN
  at = (np.arange(side * _FINE) + 0.5) / _FINE - 0.5
  d = np.abs(at[:, None] - np.arange(side))
  near = (1.5 * d - 2.5) * d * d + 1
  far = ((-0.5 * d + 2.5) * d - 4) * d + 2
  return np.where(d < 1, near, np.where(d < 2, far, 0.0))


_CUBIC = _cubic_matrix()


def warp_raster(raster: np.ndarray, scale: float, turn: float) -> np.ndarray:
  """Scales a digit smoothly and turns it about its middle: cubic to four times its size, then bilinear.

  Args:
    raster: [8, 8] in 0..16.
    scale: pixels per raster pixel.
    turn: degrees.

  Returns:
    float64 [p, p] in 0..1, just large enough for the turned raster; zero where there is no ink.

  >>> warp_raster(np.full((8, 8), 16), 2.0, 0.0).shape
  (18, 18)
  """
  padded = np.zeros((8 + 2 * _MARGIN,) * 2)
  padded[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = raster
  fine = np.clip(_CUBIC @ (padded / 16) @ _CUBIC.T, 0, 1)
  cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
  half = math.ceil(4 * scale * (cos + abs(sin))) + 1  # 4 raster pixels from the middle to a side, and the soft edge
  at = (np.arange(2 * half) + 0.5 - half) * (_FINE / scale)
  middle = (4 + _MARGIN) * _FINE - 0.5
  return _bilinear(fine, cos * at[:, None] - sin * at + middle, sin * at[:, None] + cos * at + middle)


def _bilinear(values: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
  """Samples a square whose outermost pixels are zero, so that clamping coordinates means zero outside."""
  side = len(values)
  y, x = np.clip(y, 0, side - 1.001), np.clip(x, 0, side - 1.001)
  row, col = y.astype(np.int64), x.astype(np.int64)
  y, x = y - row, x - col
  flat, at = values.ravel(), row * side + col
  top = flat[at] * (1 - x) + flat[at + 1] * x
  bottom = flat[at + side] * (1 - x) + flat[at + side + 1] * x
  return top * (1 - y) + bottom * y


def paint_scene(rng: np.random.Generator, scene: Scene) -> np.ndarray:
  """Paints ground, clutter, noise and the scene's digits, in that order.

  Args:
    rng: where the randomness of ground, clutter and noise comes from.
    scene: what `place_digits` returned.

  Returns:
    uint8 RGB [H, W, 3].

  >>> empty = Scene((), np.full((48, 64), -1, np.int8))
  >>> paint_scene(np.random.default_rng(0), empty).shape
  (48, 64, 3)
  """
  canvas = scene.owner.shape
  image = _ground(rng, canvas)
  for _ in range(1 + int(rng.random() * 4)):
    _blend(image, *_stroke(rng, canvas), _between(rng, 0.1, 0.4), _clutter_colour(rng))
  for _ in range(int(rng.random() * 4)):
    _blend(image, *_blob(rng, canvas), _between(rng, 0.1, 0.4), _clutter_colour(rng))
  image += _noise(rng, image.shape) * _between(rng, 2, 10)
  for digit in scene.digits:
    _blend(image, digit.corner, digit.alpha, digit.contrast, digit.colour)
  return np.rint(np.clip(image, 0, 255)).astype(np.uint8)


def _blend(image: np.ndarray, corner: tuple[int, int], alpha: np.ndarray, contrast: float,
           colour: tuple[float, ...]) -> None:
  """Moves the image towards a colour, by contrast * alpha; in place."""
  region, patch = _on_canvas(corner, alpha, image.shape[:2])
  part = image[region]
  part += (contrast * patch)[..., None] * (np.array(colour) - part)


def _ground(rng: np.random.Generator, canvas: tuple[int, int]) -> np.ndarray:
  """A level with a gradient across the canvas's longest way, tinted: float64 [H, W, 3]."""
  h, w = canvas
  level, fall, angle = _between(rng, 20, 80), _between(rng, 0, 40), _between(rng, 0, 2 * math.pi)
  cos, sin = math.cos(angle), math.sin(angle)
  reach = w * abs(cos) + h * abs(sin)  # from side to side along the gradient, so that it falls by `fall` in all
  slope = ((np.arange(h) + 0.5 - h / 2) * sin)[:, None] + (np.arange(w) + 0.5 - w / 2) * cos
  tint = np.array([_between(rng, 0.85, 1.15) for _ in range(3)])
  return (level + fall / reach * slope)[..., None] * tint


def _clutter_colour(rng: np.random.Generator) -> tuple[float, ...]:
  """Light in two cases of three, black otherwise."""
  light = rng.random() < 2 / 3
  return tuple(_between(rng, 150, 255) if light else 0.0 for _ in range(3))


def _stroke(rng: np.random.Generator, canvas: tuple[int, int]) -> tuple[tuple[int, int], np.ndarray]:
  """A thin bent line, at most 2 pixels wide where a digit's own strokes are 3 and more: its corner and alpha."""
  h, w = canvas
  x, y = _between(rng, 0, w), _between(rng, 0, h)
  angle, half = _between(rng, 0, 2 * math.pi), _between(rng, 0.4, 1.0)
  points = [(x, y)]
  for _ in range(2):
    length = _between(rng, 6, 20)
    x, y = x + length * math.cos(angle), y + length * math.sin(angle)
    points.append((x, y))
    angle += _between(rng, -1, 1)
  corner = tuple(math.floor(min(p[k] for p in points)) - 2 for k in (0, 1))
  far = tuple(math.ceil(max(p[k] for p in points)) + 2 for k in (0, 1))
  px, py = np.arange(corner[0], far[0]) + 0.5, (np.arange(corner[1], far[1]) + 0.5)[:, None]
  distance = np.minimum(*(_segment_distance(px, py, a, b) for a, b in itertools.pairwise(points)))
  return corner, np.clip(half + 0.5 - distance, 0, 1)


def _segment_distance(px: np.ndarray, py: np.ndarray, a: tuple[float, float], b: tuple[float, float]) -> np.ndarray:
  dx, dy = b[0] - a[0], b[1] - a[1]
  along = np.clip(((px - a[0]) * dx + (py - a[1]) * dy) / (dx * dx + dy * dy), 0, 1)
  return np.sqrt((px - a[0] - along * dx) ** 2 + (py - a[1] - along * dy) ** 2)


def _blob(rng: np.random.Generator, canvas: tuple[int, int]) -> tuple[tuple[int, int], np.ndarray]:
  """A soft filled ellipse: its corner and alpha. A polynomial and no exponential, which differs between machines."""
  h, w = canvas
  x, y, rx, ry = _between(rng, 0, w), _between(rng, 0, h), _between(rng, 4, 14), _between(rng, 4, 14)
  corner, far = (math.floor(x - rx), math.floor(y - ry)), (math.ceil(x + rx), math.ceil(y + ry))
  dx = (np.arange(corner[0], far[0]) + 0.5 - x) / rx
  dy = (np.arange(corner[1], far[1]) + 0.5 - y) / ry
  return corner, np.clip(1 - dx * dx - (dy * dy)[:, None], 0, 1)


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  """Nearly normal noise of mean 0 and deviation 1: the sum of four bytes of the raw stream, which never changes."""
  count = math.prod(shape)
  raw = rng.bit_generator.random_raw((count + 1) // 2)  # 8 bytes each
  four = raw.astype('<u8', copy=False).view(np.uint8).reshape(-1, 4)[:count]
  total = four[:, 0].astype(np.int64) + four[:, 1] + four[:, 2] + four[:, 3]
  return ((total - 510) / math.sqrt((256 ** 2 - 1) / 3)).reshape(shape)
