"""darknet in NumPy: what its cfg files mean, layer by layer, and in which order their numbers stand in a file.

A cfg is a string of words:

| word | layer |
|---|---|
| `c64`, `c64/2`, `p64`, `s64` | convolution of 3x3, 3x3 / 2, 1x1, 7x7 / 2 with BatchNorm and leaky ReLU |
| `f255` | 1x1 convolution with a bias, linear |
| `m`, `m1`, `m5` | max pool: 2x2 / 2; 2x2 / 1; 5x5 / 1 |
| `r-1,8` | route: maps beside each other, relative to the layer or counted from 0 |
| `a` | shortcut from -3 |
| `u`, `o`, `g` | upsample by 2, reorg by 2, mean over the pixels |
| `l256`, `d4096`, `e1470` | locally connected, fully connected with leaky ReLU, fully connected linear |
| `y` | an output |
"""

from __future__ import annotations

import re
import struct

import numpy as np

DARKNET19 = 'c32 m c64 m c128 p64 c128 m c256 p128 c256 m c512 p256 c512 p256 c512 m c1024 p512 c1024 p512 c1024'
EXTRACTION = ('s64 m c192 m p128 c256 p256 c512 m p256 c512 p256 c512 p256 c512 p256 c512 p512 c1024 m p512 c1024 p512 '
              'c1024')
YOLOV1 = f'{EXTRACTION} c1024 c1024/2 c1024 c1024 l256 e{{outputs}} y'
YOLOV1_TINY = 'c16 m c32 m c64 m c128 m c256 m c512 m c1024 c256 e{outputs} y'
YOLOV2 = f'{DARKNET19} c1024 c1024 r-9 p64 o r-1,-4 c1024 f{{outputs}} y'
YOLOV2_TINY = 'c16 m c32 m c64 m c128 m c256 m c512 m1 c1024 c512 f{outputs} y'
YOLOV3_TINY = ('c16 m c32 m c64 m c128 m c256 m c512 m1 c1024 p256 c512 f{outputs} y '
               'r-4 p128 u r-1,8 c256 f{outputs} y')


def darknet53(blocks: tuple[int, ...] = (1, 2, 8, 8, 4)) -> str:
  stages = (f'c{64 << i}/2' + f' p{32 << i} c{64 << i} a' * count for i, count in enumerate(blocks))
  return ' '.join(('c32', *stages))


def yolov3(blocks: tuple[int, ...] = (1, 2, 8, 8, 4), spp: bool = False) -> str:
  """The maps that the finer levels take are the ends of stages 4 and 3: layers 61 and 36 of the paper's network."""
  ends = np.cumsum([1 + 3 * count for count in blocks])
  pyramid = ' m5 r-2 m9 r-4 m13 r-1,-3,-5,-6 p512' if spp else ''
  words = [darknet53(blocks), f'p512 c1024 p512{pyramid} c1024 p512 c1024 f{{outputs}} y']
  for width, end in ((256, ends[3]), (128, ends[2])):
    neck = ' '.join([f'p{width} c{2 * width}'] * 3)
    words.append(f'r-4 p{width} u r-1,{end} {neck} f{{outputs}} y')
  return ' '.join(words)


def scaled(cfg: str, divisor: int) -> str:
  """The cfg with so many times fewer channels."""
  return re.sub(r'\b([cpsl])(\d+)', lambda m: f'{m[1]}{int(m[2]) // divisor}', cfg)


def run(cfg: str, x: np.ndarray, *, seed: int = 0, eps: str = 'inside') -> tuple[list[np.ndarray], np.ndarray]:
  """The outputs of a cfg with numbers drawn on the way, and these numbers in the order of the file.

  Args:
    cfg: words.
    x: an image `[C, H, W]`.
    seed: of the numbers.
    eps: where BatchNorm has its small number: 'inside' the root (1e-5, GPU) or 'outside' (1e-6, CPU).
  """
  rng, numbers, maps, outputs = np.random.default_rng(seed), [], [], []

  def take(values):
    numbers.append(np.asarray(values, np.float32))
    return numbers[-1].astype(np.float64)

  x = np.asarray(x, np.float64)
  for word in cfg.split():
    kind, rest = word[0], word[1:]
    if kind in 'cps':
      channels, _, stride = rest.partition('/')
      x = _conv_norm(x, int(channels), {'c': 3, 'p': 1, 's': 7}[kind], int(stride or (2 if kind == 's' else 1)), rng,
                     take, eps)
    elif kind == 'f':
      bias, kernel = take(0.1 * rng.standard_normal(int(rest))), _kernel(rng, take, int(rest), x.shape[0], 1)
      x = _conv(x, kernel, 1) + bias[:, None, None]
    elif kind == 'm':
      x = _max_pool(x, *{'': (2, 2), '1': (2, 1)}.get(rest, (int(rest or 0), 1)))
    elif kind == 'r':
      places = [int(place) for place in rest.split(',')]
      x = np.concatenate([maps[place if place >= 0 else len(maps) + place] for place in places])
    elif kind == 'a':
      x = x + maps[-3]
    elif kind == 'u':
      x = x.repeat(2, 1).repeat(2, 2)
    elif kind == 'o':
      x = reorg(x)
    elif kind == 'g':
      x = x.mean((1, 2))
    elif kind == 'l':
      x = _local(x, int(rest), rng, take)
    elif kind in 'de':
      bias = take(0.1 * rng.standard_normal(int(rest)))
      x = take(rng.standard_normal((int(rest), x.size)) / np.sqrt(x.size)) @ x.ravel() + bias
      x = _leaky(x) if kind == 'd' else x
    elif kind == 'y':
      outputs.append(x)
    maps.append(x)
  return outputs, np.concatenate([part.ravel() for part in numbers])


def file_bytes(numbers: np.ndarray, *, version: tuple[int, int, int] = (0, 2, 0), seen: int = 0) -> bytes:
  """A `.weights` file."""
  wide = version[0] * 10 + version[1] >= 2 and version[0] < 1000 and version[1] < 1000
  return struct.pack('<iii', *version) + struct.pack('<q' if wide else '<i', seen) + numbers.astype('<f4').tobytes()


def reorg(x: np.ndarray) -> np.ndarray:
  """darknet's reorg_cpu with stride 2, index by index over flat memory."""
  c, h, w = x.shape
  flat, out = x.ravel(), np.zeros(x.size)
  for k in range(c):
    for j in range(h):
      for i in range(w):
        channel, offset = k % (c // 4), k // (c // 4)
        column, row = 2 * i + offset % 2, 2 * j + offset // 2
        out[i + w * (j + h * k)] = flat[column + 2 * w * (row + 2 * h * channel)]
  return out.reshape(4 * c, h // 2, w // 2)


def _conv_norm(x, channels, size, stride, rng, take, eps):
  bias, scale = take(0.1 * rng.standard_normal(channels)), take(rng.uniform(0.5, 1.5, channels))
  mean, var = take(0.1 * rng.standard_normal(channels)), take(rng.uniform(0.001, 1.5, channels))
  x = _conv(x, _kernel(rng, take, channels, x.shape[0], size), stride)
  root = np.sqrt(var + np.float64(1e-5)) if eps == 'inside' else np.sqrt(var) + 1e-6
  columns = [values[:, None, None] for values in (mean, scale / root, bias)]
  return _leaky((x - columns[0]) * columns[1] + columns[2])


def _kernel(rng, take, channels, inputs, size):
  return take(rng.standard_normal((channels, inputs, size, size)) * np.sqrt(1.5 / (inputs * size * size)))


def _patches(x, size, stride):
  """`[C, h, w, size, size]`."""
  pad = size // 2
  x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
  return np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]


def _conv(x, kernel, stride):
  return np.einsum('chwij,ocij->ohw', _patches(x, kernel.shape[-1], stride), kernel, optimize=True)


def _local(x, channels, rng, take):
  c, h, w = x.shape
  bias = take(0.1 * rng.standard_normal((channels, h, w)))
  kernel = take(rng.standard_normal((h, w, channels, c, 3, 3)) / np.sqrt(9 * c))
  return _leaky(np.einsum('chwij,hwocij->ohw', _patches(x, 3, 1), kernel) + bias)


def _max_pool(x, size, stride):
  """Windows begin at multiples of the stride less (size - 1) / 2 rounded down; outside of the map is nothing."""
  before, (_, h, w) = (size - 1) // 2, x.shape
  x = np.pad(x, ((0, 0), (before, size), (before, size)), constant_values=-np.inf)
  windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]
  return windows.max((3, 4))[:, :(h - 1) // stride + 1, :(w - 1) // stride + 1]


def _leaky(x):
  return np.where(x > 0, x, 0.1 * x)
