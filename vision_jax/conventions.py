"""The rules that hold in every room of vision_jax, and the few names that all of them share.

1. Boxes are `xyxy`, float32, in continuous pixels of the network's input canvas: x right, y down, never `+1`.
   Other formats exist only in converters whose names state both ends (`cxcywh_to_xyxy`) and privately in heads.
2. Images are `[B, H, W, 3]` float32 RGB, already normalised. The content sits at the top left, zeros elsewhere;
   `image_size [B, 2]` is its (height, width). Sizes are (h, w), coordinates are (x, y).
3. Classes are `0..K-1`: foreground only for boxes and instances, background included for semantic segmentation.
   `ClassMap` keeps the two-way map between a file's ids and ours; predictions go out with the file's ids and names.
4. Padding is never a value. What varies in length has a fixed number of slots and a bool twin, True = real:
   `valid [B]`, `boxes_valid [B, N]`, `pixels_valid [B, H, W]`. What an invalid slot holds is unspecified, so select
   with `where`, never multiply. Images are the exception: their padding is zero. *Mask* means a segmentation mask.
5. Letters: B batch, H W image, h w feature map, C channels, K classes, N ground-truth slots, Q predictions,
   M kept detections, L layers or levels, E embedding, D devices.
6. Losses return un-reduced arrays (element-wise) or `Term`s (composite). Arrays are positional, options
   keyword-only, `valid=` last; a random key is called `key` and comes first.
7. Every public op and loss is safe under jit, vmap and grad: a finite value and a finite gradient on zero-area,
   inverted and identical boxes, without any object, and on all-invalid input.
8. Parameters are float32, the compute dtype is a field of the model, losses, IoU and softmax are float32.
9. Randomness is a pure function of (seed, epoch, index) on the host and of (seed, step, global position of the
   example) on the device, so that it depends neither on the number of devices nor on where a run was resumed.

A batch is a dict of arrays. Every batch has `image`, `image_size`, `valid`, `index [B]` (the place in the source),
`position [B]` (the place in the global batch), `original_size [B, 2]`, `scale [B, 2]` and `offset [B, 2]` (x, y:
canvas = original * scale + offset). Classification adds `label [B]` and, where two images are mixed in one,
`mixed_label [B]` and `mix [B]`, the share of `label`'s image; detection `boxes [B, N, 4]`, `labels [B, N]`,
`boxes_valid [B, N]` and, where asked for, `masks [B, N, H, W]`, semantic segmentation `segmentation [B, H, W]` and
`pixels_valid [B, H, W]`.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
import dataclasses
import difflib
import inspect
from typing import Any, NamedTuple

Array = Any  # jax.Array or numpy.ndarray; this module loads neither jax nor numpy
Batch = Mapping[str, Array]
Variables = Mapping[str, Any]


class Term(NamedTuple):
  """A sum and what to divide it by: worth `total / max(count, floor)` over the whole global batch.

  Args:
    total: scalar, the sum to minimise over the examples at hand.
    count: scalar, what it is divided by (images, objects, pixels), summed over devices and micro-batches first.
    floor: the least divisor, so that a batch without any object is worth zero and not NaN.

  Terms of one composite that share a divisor should hold the same `count` object: gradient accumulation keeps one
  gradient for each distinct one.
  """

  total: Array
  count: Array
  floor: float = 1.0


@dataclasses.dataclass(frozen=True)
class ClassMap:
  """The two-way map between the class ids of a file and ours.

  Args:
    names: the name of each of our classes `0..K-1`.
    ids: the file's id of each; `0..K-1` when left out.

  Raises:
    ValueError: ids and names differ in number, or one of them stands twice.

  >>> classes = ClassMap(names=('cat', 'dog'), ids=(17, 18))
  >>> classes.index(18), classes.ids[0], classes.names[1]
  (1, 17, 'dog')
  """

  names: tuple[str, ...]
  ids: tuple[int, ...] = ()

  def __post_init__(self):
    object.__setattr__(self, 'names', tuple(self.names))
    object.__setattr__(self, 'ids', tuple(self.ids) or tuple(range(len(self.names))))
    if len(self.ids) != len(self.names):
      raise ValueError(f'{len(self.names)} class names for {len(self.ids)} class ids; give one name to each id')
    for kind, values in (('name', self.names), ('id', self.ids)):
      twice = sorted(str(value) for value, count in collections.Counter(values).items() if count > 1)
      if twice:
        raise ValueError(f'class {kind} {", ".join(twice)} stands twice; give each class its own {kind}')

  def __len__(self) -> int:
    return len(self.names)

  def index(self, file_id: int) -> int:
    """Our class of a file's id; a ValueError names the ids that exist."""
    if file_id not in self.ids:
      raise ValueError(f'unknown class id {file_id}; the known ids are {", ".join(map(str, self.ids))}')
    return self.ids.index(file_id)


def find(table: Mapping[str, Callable], kind: str, name: str) -> Callable:
  """The constructor that `table` holds under `name`; a ValueError lists close matches, or all names.

  >>> find({'sgd': dict, 'adam': list}, 'optimiser', 'adma')
  Traceback (most recent call last):
  ValueError: unknown optimiser 'adma'; did you mean adam? known: adam, sgd
  """
  if name in table:
    return table[name]
  close = difflib.get_close_matches(str(name), table, n=3, cutoff=0.5)
  meant = f' did you mean {", ".join(close)}?' if close else ''
  raise ValueError(f'unknown {kind} {name!r};{meant} known: {", ".join(sorted(table))}')


def option_names(function: Callable) -> tuple[str, ...]:
  """The keyword-only options of a function or dataclass, in the order of its signature."""
  if dataclasses.is_dataclass(function):
    return tuple(f.name for f in dataclasses.fields(function) if f.init and f.name not in ('parent', 'name'))
  return tuple(p.name for p in inspect.signature(function).parameters.values()
               if p.kind is p.KEYWORD_ONLY)


def option_defaults(function: Callable) -> dict[str, Any]:
  """The keyword-only options of a function that have a default, and these defaults."""
  return {p.name: p.default for p in inspect.signature(function).parameters.values()
          if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}


def check_options(where: str, known: tuple[str, ...], given: Mapping[str, Any]) -> None:
  """Refuses an option that is not known, with one line that names the place, the option and what is known.

  >>> check_options('optim (sgd)', ('lr', 'momentum'), {'momentun': 0.9})
  Traceback (most recent call last):
  ValueError: optim (sgd) has no option 'momentun'; did you mean momentum? known: lr, momentum
  """
  for name in given:
    if name not in known:
      close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
      meant = f' did you mean {close[0]}?' if close else ''
      raise ValueError(f'{where} has no option {name!r};{meant} known: {", ".join(sorted(known))}')
