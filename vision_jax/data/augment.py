"""The tables of augmentations, RandAugment, and the way of a training sample from its source to the canvas.

An *augmentation* (the table `AUGMENTATIONS`) is a pure function of (rng, sample) with options by keyword; one that
mixes several samples (the table `MIXES`) is one of (rng, sample, others). A config writes both in one list of (name,
options).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import functools
import math
from typing import Any, NamedTuple

import numpy as np

from vision_jax.conventions import check_options, find, option_names
from vision_jax.data.colour import COLOUR_OPERATIONS, brightness_contrast, colour_jitter, cutout, hsv, noise, recoloured
from vision_jax.data.geometry import affine, flip, random_resized_crop, rotation, shift, ssd_crop, transformed, zoom_out
from vision_jax.data.mixing import LABEL_MIXES, MIXES, Others
from vision_jax.data.options import check_number
from vision_jax.data.resize import resize_policy, warp
from vision_jax.data.samples import Sample, Size, content_of, fill_level, pad_sample

# --- RandAugment ----------------------------------------------------------------------------------------------------

_SIGNED = ('shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate', 'brightness', 'saturation', 'contrast',
           'sharpness')
OPERATIONS = ('identity', *_SIGNED, *(name for name in COLOUR_OPERATIONS if name not in _SIGNED))


def rand_augment(rng: np.random.Generator, sample: Sample, *, operations: int = 2, magnitude: int = 9,
                 bins: int = 31, fill: int | str = 0) -> Sample:
  """Some of torchvision's fourteen operations, drawn anew for each sample, all of one strength.

  Args:
    rng: where the randomness comes from.
    sample: with `image` uint8 [H, W, 3] and any target fields.
    operations: how many, one after the other; the same may come twice.
    magnitude: the strength, 0..bins - 1.
    bins: the number of strengths, at least 2.
    fill: what lies outside of a moved image, as for `affine`.

  Returns:
    The sample. Shear, translation and rotation move boxes, masks and segmentation along, as `affine` does; the other
    operations are Pillow's, on the image alone. Autocontrast and equalize act whatever the magnitude.

  Reference: Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space",
  arXiv:1909.13719. Operations and strengths are those of torchvision's `RandAugment`; images are moved bilinearly, as
  in its training recipes.

  >>> sample = {'image': np.full((6, 8, 3), 100, np.uint8)}
  >>> rand_augment(np.random.default_rng(0), sample, operations=0) is sample
  True
  """
  where = 'augmentation rand_augment'
  check_number(where, 'operations', operations, whole=True)
  check_number(where, 'bins', bins, 2, whole=True)
  check_number(where, 'magnitude', magnitude, 0, bins - 1, whole=True)
  fill_level(sample['image'], fill)
  for operation, negative in zip(rng.integers(len(OPERATIONS), size=operations), rng.random(operations) < 0.5,
                                 strict=True):
    name = OPERATIONS[operation]
    value = strength(name, magnitude, bins, sample['image'].shape[:2])
    sample = operate(sample, name, -value if negative and name in _SIGNED else value, fill)
  return sample


def strength(operation: str, magnitude: int, bins: int, size: Size) -> float:
  """What a magnitude means for one of RandAugment's operations.

  Args:
    operation: a name out of `OPERATIONS`.
    magnitude: 0..bins - 1.
    bins: at least 2.
    size: (h, w) of the image.

  Returns:
    The largest: 0.3 for shears, 150 / 331 of the side for translations, 30 degrees, 0.9 for brightness, saturation,
    contrast and sharpness, 4 bits, the level 0 from which to solarize (255 at magnitude 0).

  >>> strength('rotate', 9, 31, (6, 8)), strength('posterize', 9, 31, (6, 8))
  (9.0, 7)
  """
  level = magnitude / (bins - 1)
  if operation == 'posterize':
    return 8 - round(4 * level)
  if operation == 'solarize':
    return 255 * (1 - level)
  most = {'shear_x': 0.3, 'shear_y': 0.3, 'translate_x': 150 / 331 * size[1], 'translate_y': 150 / 331 * size[0],
          'rotate': 30.0}
  return level * most.get(operation, 0.9)


def operate(sample: Sample, operation: str, value: float, fill: int | str = 0) -> Sample:
  """The sample after one of RandAugment's operations.

  Args:
    sample: with `image` uint8 [H, W, 3] and any target fields.
    operation: a name out of `OPERATIONS`.
    value: its strength, with its sign; a rotation is counter-clockwise, in degrees.
    fill: what lies outside of a moved image, as for `affine`.

  Returns:
    The sample.

  >>> sample = {'image': np.zeros((6, 8, 3), np.uint8), 'boxes': np.float32([[1, 1, 3, 3]])}
  >>> operate(sample, 'translate_x', 2.9)['boxes'].tolist()
  [[3.0, 1.0, 5.0, 3.0]]
  """
  if operation == 'identity':
    return sample
  if operation in COLOUR_OPERATIONS:
    return recoloured(sample, operation, value)
  h, w = sample['image'].shape[:2]
  if operation == 'rotate':
    cos, sin = math.cos(math.radians(value)), math.sin(math.radians(value))
    matrix, middle = np.array([[cos, sin], [-sin, cos]]), np.array([w / 2, h / 2])
    return transformed(sample, matrix, middle - matrix @ middle, fill)
  if operation in ('translate_x', 'translate_y'):
    return transformed(sample, np.eye(2), (int(value), 0) if operation == 'translate_x' else (0, int(value)), fill)
  # The shear is that of where a pixel comes from: x + value * y, from the upper left corner.
  matrix = np.array([[1, -value], [0, 1]] if operation == 'shear_x' else [[1, 0], [-value, 1]])
  return transformed(sample, matrix, (0, 0), fill)


# --- tables ---------------------------------------------------------------------------------------------------------

AUGMENTATIONS: dict[str, Callable[..., Sample]] = {
    'random_resized_crop': random_resized_crop,
    'ssd_crop': ssd_crop,
    'zoom_out': zoom_out,
    'shift': shift,
    'flip': flip,
    'affine': affine,
    'rotation': rotation,
    'brightness_contrast': brightness_contrast,
    'colour_jitter': colour_jitter,
    'hsv': hsv,
    'noise': noise,
    'cutout': cutout,
    'rand_augment': rand_augment,
}
BEFORE_RESIZE = ('random_resized_crop', 'ssd_crop', 'zoom_out')  # these work on an image as it was read


# --- from the source to the canvas ----------------------------------------------------------------------------------


class Step(NamedTuple):
  """One entry of an `augment` list.

  Args:
    name: in one of the tables.
    function: of (rng, sample), or of (rng, sample, others) for a mix; its options are bound.
  """

  name: str
  function: Callable[..., Sample]


def compose(augment: Sequence[tuple[str, Mapping[str, Any]]], resize: str | tuple[str, Mapping[str, Any]] = 'letterbox'
            ) -> Callable[..., Sample]:
  """One function that brings a source's sample onto a canvas, augmented.

  Args:
    augment: (name, options) pairs, names out of `AUGMENTATIONS` and `MIXES`, applied in this order. Those in
      `BEFORE_RESIZE` stand first: they see the image as it was read. The others see the content of the canvas only,
      and leave the padding zero.
    resize: a policy out of `RESIZES`, or (name, options). After `random_resized_crop` the part is stretched to the
      canvas instead, with the policy's interpolation.

  Returns:
    A function (rng, sample, canvas, others=None) -> sample. `others(count)` gives a mix that many further samples of
    the source, as they were read; they are brought onto the canvas in the same way, through the augmentations that
    stand before the mix, but for other mixes. `original_size`, `scale` and `offset` tell of the resize alone.

  Raises:
    ValueError: an unknown name or option, a value out of range, or a wrong order.

  >>> run = compose((('shift', {'pixels': 1}), ('noise', {'deviation': 4.0})))
  >>> sample = run(np.random.default_rng(0), {'image': np.full((4, 8, 3), 9, np.uint8)}, (8, 8))
  >>> int(sample['image'][:4].min()) > 0, int(sample['image'][4:].max())
  (False, 0)
  """
  steps = [_step(pair) for pair in augment]
  place = resize_policy(resize)
  before = [step for step in steps if step.name in BEFORE_RESIZE]
  if steps[:len(before)] != before:
    late = next(step.name for step in steps[len(before):] if step.name in BEFORE_RESIZE)
    first = next(step.name for step in steps if step.name not in BEFORE_RESIZE)
    raise ValueError(f'augment has {late!r} after {first!r}; it works on the image before its resize: put it first')
  if any(step.name == 'random_resized_crop' for step in before):
    place = functools.partial(warp, **{k: v for k, v in place.keywords.items() if k == 'interpolation'})
  after = steps[len(before):]
  mixes = [step.name for step in after if step.name in MIXES]

  def content(rng: np.random.Generator, sample: Sample, canvas: Size) -> Sample:
    return content_of(place(_applied(rng, sample, before), canvas))

  def run(rng: np.random.Generator, sample: Sample, canvas: Size, others: Others | None = None) -> Sample:
    if mixes and others is None:
      raise ValueError(f'augmentation {mixes[0]} mixes several samples; give others')

    def prepared(count: int, *, steps: Sequence[Step]) -> list[Sample]:
      return [pad_sample(_applied(rng, content(rng, other, canvas), steps), canvas) for other in others(count)]

    sample, plain = content(rng, sample, canvas), ()
    for step in after:
      if step.name in MIXES:
        further = functools.partial(prepared, steps=plain)
        sample = content_of(step.function(rng, pad_sample(sample, canvas), further))
      else:
        sample, plain = step.function(rng, sample), (*plain, step)
    return pad_sample(sample, canvas)

  return run


def _applied(rng: np.random.Generator, sample: Sample, steps: Sequence[Step]) -> Sample:
  for step in steps:
    sample = step.function(rng, sample)
  return sample


def gives_mixed_labels(augment: Sequence[tuple[str, Mapping[str, Any]]]) -> bool:
  """Whether samples with a `label` come out of this list with `mixed_label` and `mix`.

  >>> gives_mixed_labels((('flip', {}), ('cutmix', {})))
  True
  """
  return any(name in LABEL_MIXES for name, _ in augment)


def _step(pair: tuple[str, Mapping[str, Any]]) -> Step:
  """One pair of a config, its name and options checked and its values tried."""
  if isinstance(pair, str) or len(pair) != 2 or not isinstance(pair[1], Mapping):
    raise ValueError(f"augment has {pair!r}; give (name, options) pairs, for example ('flip', {{}})")
  name, options = pair
  function = find({**AUGMENTATIONS, **MIXES}, 'augmentation', name)
  check_options(f'augmentation {name}', option_names(function), options)
  step = Step(name, functools.partial(function, **options))
  _try(step)
  return step


def _try(step: Step) -> None:
  """Runs a step on a small sample, so that a wrong value is answered before any data is read."""
  rng, sample = np.random.default_rng(0), {'image': np.zeros((6, 8, 3), np.uint8)}
  if step.name not in MIXES:
    step.function(rng, sample)
    return
  sample['image_size'] = np.array([6, 8], np.int32)
  if step.name in LABEL_MIXES:
    sample['label'] = 0
  else:
    sample.update(boxes=np.zeros((0, 4), np.float32), labels=np.zeros(0, np.int32), masks=np.zeros((0, 6, 8), bool))
  step.function(rng, sample, lambda count: [sample] * count)
