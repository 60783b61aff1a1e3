"""Batches: a pure function of (seed, step), made by threads ahead of time.

Units: boxes in pixels of the canvas; `mean` and `std` of images in 0..1; times in seconds.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
import contextlib
import functools
import itertools
import math
import numbers
import os
import threading
import time
from typing import Any

import numpy as np

from vision_jax.data.augment import AUGMENTATIONS, MIXES, compose, gives_mixed_labels
from vision_jax.data.colour import normalise
from vision_jax.data.resize import RESIZES, resize_policy
from vision_jax.data.samples import Sample, Size, clip_boxes

__all__ = ['AUGMENTATIONS', 'MIXES', 'RESIZES', 'Loader']

# Streams of one seed; SeedSequence pads with zeros, so lists of other lengths could coincide.
_ORDER, _EXAMPLE, _OTHERS, _CANVAS = 0, 1, 2, 3
_KNOWN_FIELDS = ('label', 'boxes', 'labels', 'masks', 'segmentation', 'pixels_valid')
Row = tuple[int, int | None]  # (index in the source, epoch or None for no augmentation)
Batch = dict[str, np.ndarray]


class Loader:
  """Makes batches of a source, on the canvas of a network, for training and for evaluation.

  A training epoch is `len(source) // batch_size` steps over a fresh permutation; what does not fill a batch is left out
  of that epoch, and the next permutation leaves out something else. An evaluation covers every item once, in the
  source's order, without augmentation, its last batch padded with `valid` False.

  Args:
    source: what `vision_jax.data` calls a source.
    batch_size: B of the global batch, over all shards.
    canvas: (h, w) of the network's input, in pixels, or several of them. Of several, training draws one for every
      `canvas_every` batches, by (seed, step // canvas_every), the same in all shards; evaluation takes the first. A
      step function compiles once for each.
    eval_canvas: (h, w) of an evaluation, where it is none of them: networks that average over their last map may see
      larger images there than in training (Touvron et al., arXiv 1906.06423).
    resize: a policy out of `resize.RESIZES`, or (name, options).
    augment: (name, options) pairs out of `augment.AUGMENTATIONS` and `augment.MIXES`, in this order, for training only;
      what `augment.BEFORE_RESIZE` names works on the image as it was read, the others on the canvas's content.
    max_objects: N, the slots for objects; with more objects the N with the largest boxes stay, in the source's order.
    fields: the target fields that a batch shall have; all that the source gives when left out. `boxes` brings
      `boxes_valid`, `segmentation` brings `pixels_valid`.
    seed: a non-negative int.
    workers: threads that make batches ahead, one batch each; 0 makes them when asked. At most 4 when left out.
    shard: (k, P): only rows k * B / P .. (k + 1) * B / P of the same global batch.
    canvas_every: batches that share a canvas, at least 1.
    mean: three numbers, of images in 0..1.
    std: three positive numbers, of images in 0..1.

  A batch is a dict of NumPy arrays, with B / P rows: `image` float32 [B, H, W, 3], `image_size` and `original_size`
  int32 [B, 2] (h, w), `scale` and `offset` float32 [B, 2] (x, y), `index` int32 [B] (the place in the source),
  `position` int32 [B] (the row in the global batch), `valid` bool [B]; and as asked `label` int32 [B], `boxes` float32
  [B, N, 4], `labels` int32 [B, N], `boxes_valid` bool [B, N], `masks` bool [B, N, H, W], `segmentation` int32 [B, H,
  W], `pixels_valid` bool [B, H, W] (False on the padding, where void, and where an augmentation moved nothing to).
  Images are zero on the padding. With `label`, if `mixup` or `cutmix` is among the augmentations, every batch has
  `mixed_label` int32 [B], the class of what was mixed in, and `mix` float32 [B] in 0..1, the share of `label`; where
  nothing was mixed in, and in evaluation, they are `label` and 1.

  `dropped_objects` counts the objects for which there was no slot, and `seconds_waited` the seconds that a consumer of
  `batches` or `eval_batches` waited, both over the batches handed out since the loader was made.

  Raises:
    ValueError: an unknown policy, augmentation, option or field; a field that the source does not give; a batch size
      that the shards do not divide; sizes out of range. On access: a source smaller than a batch (training), and
      whatever is wrong with an item, with its name.

  >>> from vision_jax.data.digits import Digits
  >>> loader = Loader(Digits('val'), batch_size=32, canvas=(16, 24), augment=(('shift', {'pixels': 1}),), workers=0)
  >>> batch = loader.batch(7)
  >>> loader.steps_per_epoch, batch['image'].shape, batch['image_size'][0].tolist(), batch['label'].shape
  (11, (32, 16, 24, 3), [16, 16], (32,))
  """

  def __init__(self, source: Any, *, batch_size: int, canvas: Size | Sequence[Size], eval_canvas: Size | None = None,
               resize: str | tuple[str, Mapping[str, Any]] = 'letterbox',
               augment: Sequence[tuple[str, dict[str, Any]]] = (), max_objects: int = 100,
               fields: Sequence[str] | None = None, seed: int = 0, workers: int | None = None,
               shard: tuple[int, int] = (0, 1), canvas_every: int = 10,
               mean: Sequence[float] = (0.0, 0.0, 0.0), std: Sequence[float] = (1.0, 1.0, 1.0)):
    self.source, self.batch_size, self.seed = source, int(batch_size), int(seed)
    self.canvases, self.canvas_every = _check_canvases(canvas), int(canvas_every)
    self.canvas = self.canvases[0] if eval_canvas is None else _check_canvases(eval_canvas)[0]  # of an evaluation
    self.max_objects, self.mean, self.std = int(max_objects), tuple(mean), tuple(std)
    self.workers = min(4, os.cpu_count() or 1) if workers is None else int(workers)
    self.shard = _check_shard(shard, self.batch_size)
    self.fields = _check_fields(source, fields)
    self.dropped_objects = 0
    self.seconds_waited = 0.0
    self.resize, self._resize = resize, resize_policy(resize)
    self._augment = compose(augment, resize) if augment else None
    self._mixed = 'label' in self.fields and gives_mixed_labels(augment)
    self._lock = threading.Lock()
    self._memory = _Memory(self.workers + 10)  # made ahead, with the consumer, and in the eight steps in flight
    self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))
    if min(self.canvas_every, self.max_objects) < 1 or min(self.seed, self.workers) < 0:
      raise ValueError(f'loader: canvas_every {canvas_every}, max_objects {max_objects}, seed {seed}, workers '
                       f'{workers} are out of range; the first two are at least 1, seed and workers at least 0')
    if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
      raise ValueError(f'loader: mean {self.mean}, std {self.std} are out of range; give three numbers each, '
                       'std positive')

  @property
  def steps_per_epoch(self) -> int:
    """The full batches in the source; a ValueError if there is not one."""
    steps = len(self.source) // self.batch_size
    if not steps:
      raise ValueError(f'the source has {len(self.source)} items, too few for one training batch of {self.batch_size}; '
                       'lower batch_size or add data')
    return steps

  @property
  def eval_steps(self) -> int:
    """The batches of an evaluation, the last one padded; the same for every shard."""
    return -(-len(self.source) // self.batch_size)

  def canvas_of(self, step: int) -> Size:
    """(h, w) of the training batch of one step, the same in all shards.

    >>> from vision_jax.data.digits import Digits
    >>> loader = Loader(Digits('val'), batch_size=4, canvas=((8, 8), (8, 12), (16, 16)), canvas_every=2, workers=0)
    >>> [loader.canvas_of(step) for step in range(6)]
    [(8, 12), (8, 12), (16, 16), (16, 16), (8, 12), (8, 12)]
    """
    rng = np.random.default_rng(np.random.SeedSequence([self.seed, _CANVAS, step // self.canvas_every]))
    return self.canvases[rng.integers(len(self.canvases))]

  def batch(self, step: int) -> Batch:
    """The training batch of one step (of this shard), made in the calling thread."""
    batch, dropped = self._make_train(step)
    self._count(dropped, 0.0)
    return batch

  def batches(self, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
    """The training batches of steps `start` .. `stop - 1`, without end if there is no stop, made ahead by threads."""
    steps = itertools.count(start) if stop is None else range(start, stop)
    return self._ahead(functools.partial(self._make_train, step) for step in steps)

  def eval_batches(self, shard: tuple[int, int] | None = None) -> Iterator[Batch]:
    """The batches of an evaluation: every item once over all shards, the same number of batches for each shard.

    Args:
      shard: (k, P) instead of the loader's own.

    Returns:
      An iterator of `eval_steps` batches. In rows with `valid` False the image is zero and the rest unspecified.
    """
    shard = self.shard if shard is None else _check_shard(shard, self.batch_size)
    return self._ahead(functools.partial(self._make, self._eval_rows(step), shard, self.canvas)
                       for step in range(self.eval_steps))

  # --- which examples a batch has -----------------------------------------------------------------------------------

  def _train_rows(self, step: int) -> list[Row]:
    epoch, within = divmod(step, self.steps_per_epoch)
    order = self._permutation(epoch)
    return [(int(i), epoch) for i in order[within * self.batch_size:(within + 1) * self.batch_size]]

  def _eval_rows(self, step: int) -> list[Row]:
    first = step * self.batch_size
    return [(i, None) for i in range(first, min(first + self.batch_size, len(self.source)))]

  def _permutation(self, epoch: int) -> np.ndarray:
    known, order = self._order
    if known != epoch:
      rng = np.random.default_rng(np.random.SeedSequence([self.seed, _ORDER, epoch]))
      order = rng.permutation(len(self.source))
      self._order = (epoch, order)  # one assignment: threads in two epochs make it again, never mix it up
    return order

  # --- how a batch is made ------------------------------------------------------------------------------------------

  def _make_train(self, step: int) -> tuple[Batch, int]:
    return self._make(self._train_rows(step), self.shard, self.canvas_of(step))

  def _make(self, rows: list[Row], shard: tuple[int, int], canvas: Size) -> tuple[Batch, int]:
    """A shard's part of the batch with these rows, and how many objects found no slot."""
    count = self.batch_size // shard[1]
    first = shard[0] * count
    batch = self._empty(count, canvas)
    batch['position'] = np.arange(first, first + count, dtype=np.int32)
    dropped, rows = 0, rows[first:first + count]
    batch['image'][len(rows):] = 0
    for slot, (index, epoch) in enumerate(rows):
      dropped += self._fill(batch, slot, index, self._example(index, epoch, canvas))
    return batch, dropped

  def _empty(self, count: int, canvas: Size) -> Batch:
    """A batch of invalid rows, its images still to be written; sizes and scales are those of a full canvas, so that
    nobody divides by zero."""
    slots, sizes = (count, self.max_objects), np.tile(np.array(canvas, np.int32), (count, 1))
    batch = {'image': self._memory.array((count, *canvas, 3)), 'valid': np.zeros(count, bool),
             'index': np.zeros(count, np.int32), 'image_size': sizes, 'original_size': sizes.copy(),
             'scale': np.ones((count, 2), np.float32), 'offset': np.zeros((count, 2), np.float32)}
    shapes = {'label': ((count,), np.int32), 'boxes': ((*slots, 4), np.float32), 'labels': (slots, np.int32),
              'boxes_valid': (slots, bool), 'masks': ((*slots, *canvas), bool),
              'segmentation': ((count, *canvas), np.int32), 'pixels_valid': ((count, *canvas), bool)}
    batch.update({name: np.zeros(*shapes[name]) for name in self.fields})
    if self._mixed:
      batch.update(mixed_label=np.zeros(count, np.int32), mix=np.ones(count, np.float32))
    return batch

  def _example(self, index: int, epoch: int | None, canvas: Size) -> Sample:
    """One sample on the canvas, augmented by (seed, epoch, index); errors say which item it was."""
    with self._named(index):
      if self._augment is None or epoch is None:
        return self._resize(self._read(index), canvas)
      rng, partners = (np.random.default_rng(np.random.SeedSequence([self.seed, stream, epoch, index]))
                       for stream in (_EXAMPLE, _OTHERS))
      return self._augment(rng, self._read(index), canvas, functools.partial(self._others, partners))

  def _read(self, index: int) -> Sample:
    """One sample as the source gives it, with what every sample needs."""
    sample = self.source[index]
    _check_image(sample['image'])
    if 'segmentation' in self.fields and 'pixels_valid' not in sample:
      sample = {**sample, 'pixels_valid': np.ones(sample['image'].shape[:2], bool)}
    return sample

  def _others(self, rng: np.random.Generator, count: int) -> list[Sample]:
    """Further samples of the source, for an augmentation that mixes several."""
    others = []
    for index in rng.integers(len(self.source), size=count).tolist():
      with self._named(index):
        others.append(self._read(index))
    return others

  @contextlib.contextmanager
  def _named(self, index: int) -> Iterator[None]:
    """Puts an item's name before the message of an error."""
    try:
      yield
    except Exception as error:
      kind = ValueError if isinstance(error, ValueError | OSError) else RuntimeError
      # An item that was to be mixed in has been named already; both names stand in the message.
      cause = str(error) if kind is ValueError or type(error) is kind else f'{type(error).__name__}: {error}'
      raise kind(f'item {index} ({self.source.name_of(index)}): {cause}') from error

  def _fill(self, batch: Batch, slot: int, index: int, sample: Sample) -> int:
    """Writes a sample into its row; returns how many objects found no slot."""
    batch['valid'][slot], batch['index'][slot] = True, index
    for name in ('image_size', 'original_size', 'scale', 'offset'):
      batch[name][slot] = sample[name]
    normalise(sample['image'], self.mean, self.std, image_size=sample['image_size'], out=batch['image'][slot])
    for name in ('label', 'segmentation', 'pixels_valid'):
      if name in self.fields:
        batch[name][slot] = sample[name]
    if self._mixed:
      batch['mixed_label'][slot], batch['mix'][slot] = sample.get('mixed_label', sample['label']), sample.get('mix', 1)
    if 'boxes' not in sample or not {'boxes', 'labels', 'masks'} & set(self.fields):
      return 0
    kept = self._largest(sample['boxes'])
    for name, values in (('boxes', clip_boxes(sample['boxes'], sample['image_size'])),
                         ('labels', sample.get('labels')), ('masks', sample.get('masks'))):
      if name in self.fields:
        batch[name][slot, :len(kept)] = values[kept]
    batch['boxes_valid'][slot, :len(kept)] = True
    return len(sample['boxes']) - len(kept)

  def _largest(self, boxes: np.ndarray) -> np.ndarray:
    """The places of the largest boxes, as many as there are slots, in their old order; ties go to the lower place."""
    if len(boxes) <= self.max_objects:
      return np.arange(len(boxes))
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return np.sort(np.argsort(-areas, kind='stable')[:self.max_objects])

  # --- threads ------------------------------------------------------------------------------------------------------

  def _ahead(self, jobs: Iterable[Callable[[], tuple[Batch, int]]]) -> Iterator[Batch]:
    """Runs the jobs in threads, a few ahead of the consumer, and hands their batches out in order."""
    pool = ThreadPoolExecutor(self.workers, thread_name_prefix='loader') if self.workers else None
    jobs, waiting = iter(jobs), collections.deque()
    try:
      while True:
        began = time.perf_counter()
        while pool and len(waiting) <= self.workers and (job := next(jobs, None)):
          waiting.append(pool.submit(job))
        if pool is None and (job := next(jobs, None)):
          batch, dropped = job()
        elif waiting:
          batch, dropped = waiting.popleft().result()
        else:
          return
        self._count(dropped, time.perf_counter() - began)
        yield batch
    finally:  # also when the consumer stops early: no thread outlives the iterator
      if pool:
        pool.shutdown(wait=True, cancel_futures=True)

  def _count(self, dropped: int, seconds: float) -> None:
    with self._lock:
      self.dropped_objects += dropped
      self.seconds_waited += seconds


class _Memory:
  """Memory for the images of batches, handed out again once nobody holds an array in it.

  The system clears fresh memory page by page, which takes as long as all arithmetic on the images. Each piece starts at
  a multiple of 64 bytes: XLA on a CPU then reads it where it lies, and copies it otherwise.

  Args:
    keep: how many pieces to keep at most.
  """

  def __init__(self, keep: int):
    self._free: collections.deque[np.ndarray] = collections.deque(maxlen=keep)

  def array(self, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 array that holds anything."""
    size = math.prod(shape)
    try:
      memory = self._free.pop()
    except IndexError:
      memory = np.empty(0, np.float32)
    if memory.size < size:  # the first on a canvas that is larger than those before
      memory = np.empty(size + 16, np.float32)
      memory = memory[-memory.ctypes.data % 64 // 4:][:size]
    return np.asarray(_Lease(memory, self._free))[:size].reshape(shape)


class _Lease:
  """What every array in a piece of memory refers to; the last one that goes gives the piece back."""

  def __init__(self, memory: np.ndarray, free: collections.deque[np.ndarray]):
    self.__array_interface__ = memory.__array_interface__
    self._memory, self._free = memory, free

  def __del__(self):
    self._free.append(self._memory)


def _check_shard(shard: tuple[int, int], batch_size: int) -> tuple[int, int]:
  place, count = (int(number) for number in shard)
  if count < 1 or not 0 <= place < count:
    raise ValueError(f'loader: shard {tuple(shard)} does not exist; give (k, P) with 0 <= k < P')
  if batch_size < 1 or batch_size % count:
    raise ValueError(f'loader: {count} shards do not divide batch_size {batch_size}; '
                     f'give a positive multiple of {count}')
  return place, count


def _check_canvases(canvas: Size | Sequence[Size]) -> tuple[Size, ...]:
  """The canvases as pairs of ints; one pair is a list of one."""
  listed = isinstance(canvas, Sequence) and len(canvas) > 0 and all(isinstance(one, Sequence) for one in canvas)
  canvases = tuple(tuple(one) if isinstance(one, Sequence) else one for one in (canvas if listed else (canvas,)))
  for one in canvases:
    if not isinstance(one, tuple) or len(one) != 2 or not all(isinstance(n, numbers.Integral) and n > 0 for n in one):
      raise ValueError(f'loader: canvas is {canvas!r}; give (h, w) in whole pixels, at least 1, or several such pairs')
  return tuple((int(h), int(w)) for h, w in canvases)


def _check_fields(source: Any, fields: Sequence[str] | None) -> tuple[str, ...]:
  """The batch's target fields, with the bool twins that come along."""
  fields = tuple(source.fields if fields is None else fields)
  fields = tuple(name for name in fields if name != 'boxes_valid')
  for name in fields:
    if name not in _KNOWN_FIELDS:
      raise ValueError(f'loader: unknown field {name!r}; known: {", ".join(_KNOWN_FIELDS)}')
  missing = [name for name in fields if name not in source.fields and name != 'pixels_valid']
  if missing:
    raise ValueError(f'loader: fields {", ".join(missing)} are asked for, but source {type(source).__name__} gives '
                     f'{", ".join(source.fields) or "none"}; choose a source that fits the task')
  if {'boxes', 'labels', 'masks'} & set(fields):
    fields += ('boxes_valid',)
  if 'segmentation' in fields and 'pixels_valid' not in fields:
    fields += ('pixels_valid',)
  return fields


def _check_image(image: np.ndarray) -> None:
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
    raise ValueError(f'image is {image.dtype} {image.shape}; sources give uint8 RGB [H, W, 3] with at least one pixel')
