"""darknet's `.weights` files: read into the YOLOs and Darknets, and written so that darknet loads them.

A file is a header and then float32 numbers, layer by layer in the order of the cfg, without names or shapes:

| part | what |
|---|---|
| header | int32 major, minor, revision; the images seen in training, int64 from version 0.2 on and int32 before |
| convolution | BatchNorm's bias, scale, mean and variance, then the kernel `[O, I, kh, kw]` |
| without BatchNorm | bias, kernel |
| fully connected | bias, kernel `[O, I]`, maps flattened channel by channel; `[I, O]` if major or minor exceed 1000 |
| locally connected | bias `[O, h, w]`, kernel `[h, w, O, I * 3 * 3]` |

Our models compute their layers in the order of the cfg, so that is how the order is found: by tracing the model once,
without computing anything.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools
import pathlib
import re
import struct
from typing import Any, NamedTuple

from flax import traverse_util
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.conventions import Variables
from vision_jax.models.detection.yolov1 import LocalConv
from vision_jax.models.layers import Conv, FlatDense

Path = tuple[str, ...]
EPS = ('inside', 'outside')
# What our BatchNorm adds to the variance, and what darknet on the CPU adds to its root.
_INSIDE, _OUTSIDE = 1e-5, 1e-6
_SIZE = (64, 64)  # of the image that a model's shapes are taken with, where the model has no canvas of its own
_NAME = re.compile(r'\.(weights|conv\.\d+)$')
_TRANSPOSING = 1000  # a major or minor version above this says that fully connected kernels are transposed


class Loaded(NamedTuple):
  """What was read.

  Args:
    version: (major, minor, revision).
    seen: images seen in training.
    layers: the model's layers that were filled, in the order of the file, by the path of their kernel.
    missing: the layers that the file did not reach.
    unused: how many numbers of the file come after the model's last layer.
  """

  version: tuple[int, int, int]
  seen: int
  layers: tuple[str, ...]
  missing: tuple[str, ...]
  unused: int


class Piece(NamedTuple):
  """An array in the file: reshaped to `shape` and transposed by `axes` it is the variable at `path`."""

  path: Path
  shape: tuple[int, ...]
  axes: tuple[int, ...]

  @property
  def size(self) -> int:
    return int(np.prod(self.shape))


def is_weights(path: str | pathlib.Path) -> bool:
  """Whether a file's name is one of darknet's: it ends in `.weights`, or in `.conv.N` where it has the first layers.

  >>> is_weights('yolov3.weights'), is_weights('darknet53.conv.74'), is_weights('resnet50.pth')
  (True, True, False)
  """
  return _NAME.search(str(path)) is not None


def from_darknet(model: nn.Module, path: str | pathlib.Path, *, variables: Variables | None = None,
                 partial: bool = False, eps: str = 'inside') -> tuple[Variables, Loaded]:
  """The variables of a model from a `.weights` file.

  Args:
    model: a YOLO or a Darknet of `models`, with BatchNorm where the cfg has it and as many classes as the file.
    path: of the file.
    variables: what stays where the file holds nothing; needed for a file that ends before the model does, such as
      `darknet53.conv.74`, which has the backbone of `yolov3`.
    partial: allows a file that ends after one of the model's layers; for a model without classes, such as a body, also
      one that goes on after the last of them.
    eps: where the small number of BatchNorm stands: 'inside' the root, as in our models and in darknet on a GPU (1e-5);
      'outside' of it, as in darknet on a CPU (1e-6), which the scales then take in, so that our model computes the
      same.

  Returns:
    The variables, float32, and what was loaded.

  Raises:
    ValueError: a file that is damaged, holds more or fewer numbers than the model, or variances that are none, as it
      belongs to another network; a model with layers that darknet has not, or an unknown eps.
  """
  _check_eps(eps)
  version, seen, numbers = read_weights(path)
  layers = darknet_layers(model, transposed=max(version[:2]) > _TRANSPOSING)
  ends = np.cumsum([sum(piece.size for piece in layer) for layer in layers])
  total, held = int(ends[-1]), len(numbers)
  # Only where no head follows the body: the numbers of one in the middle of a file shift all that come after them.
  longer = held > total and not getattr(model, 'num_classes', 0)
  if held != total and not (partial and (longer or held in ends)):
    raise ValueError(f'{path} holds {held:,} numbers, and {type(model).__name__} of these options takes {total:,}; '
                     'num_classes, anchors and norm must be those of its cfg'
                     + ('; partial=True, or strict=False of `load`, reads a file that ends after a layer'
                        if held in ends else ''))
  if longer and all(len(layer) < 5 for layer in layers):
    raise ValueError(f'{path} holds {held:,} numbers, and {type(model).__name__} takes {total:,} and has no BatchNorm, '
                     'whose variances would show that the first of them are its own; give the model of the whole file')
  count = int(np.searchsorted(ends, held, side='right'))
  if count < len(layers) and variables is None:
    raise ValueError(f'{path} has {count} of {len(layers)} layers; give variables=, for those it has not')
  flat = dict(traverse_util.flatten_dict(variables)) if variables else {}
  place = 0
  for layer in layers[:count]:
    for piece in layer:
      flat[piece.path] = np.ascontiguousarray(
          numbers[place:place + piece.size].reshape(piece.shape).transpose(piece.axes))
      place += piece.size
    _check_variance(path, model, layer, flat)
    _fold_eps(flat, layer, eps, 1)
  names = tuple('/'.join(layer[-1].path) for layer in layers)
  return traverse_util.unflatten_dict(flat), Loaded(version, seen, names[:count], names[count:], max(0, held - total))


def fitting_classes(model: nn.Module, path: str | pathlib.Path) -> int | None:
  """How many classes a model needs to be as long as a `.weights` file; None where no number of them makes it so.

  Args:
    model: a YOLO or a Darknet of `models`, with the anchors and all else that the file has.
    path: of the file.

  Raises:
    ValueError: a file that is damaged, or a model with layers that darknet has not.
  """
  if not (own := getattr(model, 'num_classes', 0)):
    return None

  def length(classes: int) -> int:
    return sum(piece.size for layer in darknet_layers(model.clone(num_classes=classes)) for piece in layer)

  more = len(read_weights(path)[2]) - length(own)
  if not more:
    return own
  more, rest = divmod(more, length(own + 1) - length(own))  # each class adds the same numbers
  return own + more if not rest and own + more > 0 else None


def to_darknet(path: str | pathlib.Path, model: nn.Module, variables: Variables, *, seen: int = 0,
               eps: str = 'inside') -> None:
  """Writes a model's variables as a `.weights` file of version 0.2.0, which darknet loads with the model's cfg.

  Args:
    path: of the file; an existing one is replaced.
    model: a YOLO or a Darknet of `models`.
    variables: of the model.
    seen: images seen in training.
    eps: as in `from_darknet`; 'outside' for darknet on a CPU.

  Raises:
    ValueError: a model with layers that darknet has not, or an unknown eps.
  """
  _check_eps(eps)
  flat = {key: np.asarray(value) for key, value in traverse_util.flatten_dict(variables).items()}
  path = pathlib.Path(path)
  unfinished = path.with_name(f'{path.name}.tmp')
  with unfinished.open('wb') as file:
    file.write(struct.pack('<iiiq', 0, 2, 0, seen))
    for layer in darknet_layers(model):
      held = {piece.path: flat[piece.path] for piece in layer}
      _fold_eps(held, layer, eps, -1)
      for piece in layer:
        array = held[piece.path].transpose(np.argsort(piece.axes))
        file.write(np.ascontiguousarray(array, '<f4').tobytes())
  unfinished.replace(path)


def read_weights(path: str | pathlib.Path) -> tuple[tuple[int, int, int], int, np.ndarray]:
  """The version, the images seen and the numbers, a read-only view of the file, of a `.weights` file.

  Args:
    path: of the file.

  Raises:
    ValueError: a file too short for a header, or whose numbers are no whole float32s.
  """
  size = pathlib.Path(path).stat().st_size
  with pathlib.Path(path).open('rb') as file:
    head = file.read(20)
  if len(head) < 16:
    raise ValueError(f'{path} has {size} bytes; a .weights file begins with a header of 16 or 20')
  version = struct.unpack_from('<iii', head)
  # darknet writes int64 since 0.2; versions above 1000 are flags of older files.
  wide = version[0] * 10 + version[1] >= 2 and max(version[:2]) < _TRANSPOSING
  start = 20 if wide else 16
  if size < start or (size - start) % 4:
    raise ValueError(f'{path} has {size} bytes, which is no header of {start} and whole float32 numbers; the file is '
                     'damaged or of another kind')
  seen, = struct.unpack_from('<q' if wide else '<i', head, 12)
  numbers = np.memmap(path, '<f4', 'r', offset=start) if size > start else np.zeros(0, '<f4')
  return version, seen, numbers


@functools.lru_cache(maxsize=8)
def darknet_layers(model: nn.Module, *, transposed: bool = False) -> tuple[tuple[Piece, ...], ...]:
  """The arrays of each layer of a model in the order of a `.weights` file; the kernel comes last.

  Args:
    model: a YOLO or a Darknet of `models`.
    transposed: whether kernels of fully connected layers are `[I, O]` in the file.

  Raises:
    ValueError: a model with layers that darknet has not.
  """
  calls: list[tuple[str, Path]] = []

  def record(call, args, kwargs, context):
    if context.method_name == '__call__':
      kind = next((kind for kind, cls in _KINDS.items() if isinstance(context.module, cls)), None)
      if kind:
        calls.append((kind, context.module.path))
      elif isinstance(context.module, (nn.GroupNorm, nn.LayerNorm)):
        raise ValueError(f'darknet has no {type(context.module).__name__} ({"/".join(context.module.path)})')
    return call(*args, **kwargs)

  with nn.intercept_methods(record):
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0),
                            jnp.zeros((1, *(getattr(model, 'canvas', None) or _SIZE), 3)))
  flat = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(shapes).items()}
  layers: list[tuple[Piece, ...]] = []
  for (kind, path), (after, norm) in zip(calls, [*calls[1:], ('', ())], strict=True):
    if kind != 'norm':
      layers.append(_layer(kind, path, norm if after == 'norm' else None, flat, transposed))
  known = {piece.path for layer in layers for piece in layer}
  if known != set(flat):
    strange = ', '.join('/'.join(path) for path in sorted(set(flat) - known)[:4])
    raise ValueError(f'{type(model).__name__} has what no .weights file holds: {strange}')
  return tuple(layers)


_KINDS = {'conv': Conv, 'flat': FlatDense, 'dense': nn.Dense, 'local': LocalConv, 'norm': nn.BatchNorm}
# For every kind its kernel's name and axes: transposed by them, the file's array is ours. OIHW to HWIO, and so on.
_KERNELS = {'conv': ('kernel', (2, 3, 1, 0)), 'flat': ('flat_kernel', (2, 3, 1, 0)), 'dense': ('kernel', (1, 0)),
            'local': ('local_kernel', (0, 1, 3, 2))}
_TRANSPOSED = {'flat': (1, 2, 0, 3), 'dense': (0, 1)}


def _layer(kind: str, path: Path, norm: Path | None, shapes: Mapping[Path, tuple[int, ...]],
           transposed: bool) -> tuple[Piece, ...]:
  """The pieces of a layer, and of the BatchNorm after it."""
  name, axes = _KERNELS[kind]
  if transposed:
    axes = _TRANSPOSED.get(kind, axes)
  if norm:
    before = [(('params', *norm, 'bias'), (0,)), (('params', *norm, 'scale'), (0,)),
              (('batch_stats', *norm, 'mean'), (0,)), (('batch_stats', *norm, 'var'), (0,))]
  else:
    before = [(('params', *path, 'bias'), (1, 2, 0) if kind == 'local' else (0,))]
  return tuple(_piece(key, order, shapes[key]) for key, order in (*before, (('params', *path, name), axes)))


def _piece(path: Path, axes: tuple[int, ...], ours: tuple[int, ...]) -> Piece:
  return Piece(path, tuple(ours[i] for i in np.argsort(axes)), axes)


def _check_variance(path: str | pathlib.Path, model: nn.Module, layer: tuple[Piece, ...],
                    flat: Mapping[Path, np.ndarray]) -> None:
  """Refuses a BatchNorm's variance that is none: what was read there is the bias or the kernel of another layer."""
  if len(layer) != 5:
    return
  variance = flat[layer[3].path]
  wrong = variance[~(np.isfinite(variance) & (variance >= 0))]
  if len(wrong):
    raise ValueError(f'{path} does not fit {type(model).__name__}: what stands where it has {"/".join(layer[3].path)} '
                     f'is no variance ({wrong[0]:.3g}), so the file is of another network; give the model and options '
                     'that it was made with (width, num_classes, anchors, norm)')


def _fold_eps(flat: dict[Path, Any], layer: tuple[Piece, ...], eps: str, power: int) -> None:
  """Multiplies the scale of a layer's BatchNorm by what moves eps from outside the root into it (power 1), or back."""
  if eps == 'inside' or len(layer) != 5:
    return
  scale, var = layer[1].path, np.asarray(flat[layer[3].path], np.float64)
  factor = np.sqrt(var + _INSIDE) / (np.sqrt(var) + _OUTSIDE)
  flat[scale] = (flat[scale] * factor ** power).astype(np.float32)


def _check_eps(eps: str) -> None:
  if eps not in EPS:
    raise ValueError(f'unknown eps {eps!r}; known: {", ".join(EPS)}')
