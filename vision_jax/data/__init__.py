"""Sources of samples, transforms of them, and batches: NumPy all the way, a pure function of (seed, epoch, index).

A source gives random access: `len(source)`, `source[i]` (a dict of `image`, uint8 RGB [H, W, 3], and the target's
fields), `source.target(i)` (the truth in original pixels without the image), `source.name_of(i)`, `source.classes`
and `source.fields`. Arrays that it returns may be read-only. Nothing here imports JAX.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vision_jax.conventions import check_options, find, option_names
from vision_jax.data.digits import Digits
from vision_jax.data.files import LabelledSource, check_needed, source_of
from vision_jax.data.formats import coco, image_folder, mask_folder, object_masks, voc, yolo
from vision_jax.data.formats.idx import IdxFiles
from vision_jax.data.formats.tfds import TfdsSource
from vision_jax.data.images import ImageFiles, read_image
from vision_jax.data.loader import Loader
from vision_jax.data.scenes import DigitScenes

__all__ = ['SOURCES', 'Digits', 'DigitScenes', 'ImageFiles', 'LabelledSource', 'Loader', 'create', 'names',
           'read_image']

SOURCES: dict[str, Callable[..., Any]] = {
    'digits': Digits,
    'digit_scenes': DigitScenes,
    'image_folder': source_of(image_folder.read),
    'identities': source_of(image_folder.identities),
    'coco': source_of(coco.read),
    'voc': source_of(voc.read, 'difficult'),
    'yolo': source_of(yolo.read),
    'mask_folder': source_of(mask_folder.read),
    'object_masks': source_of(object_masks.read),
    'idx': IdxFiles,
    'tfds': TfdsSource,
}


def create(name: str, split: str, **options: Any) -> Any:
  """Makes the source that the table holds under `name`.

  Args:
    name: a name out of `names()`.
    split: which part of the data, for example 'train' or 'val'.
    options: keyword-only options of that source.

  Returns:
    The source.

  Raises:
    ValueError: an unknown source, split or option; one that is missing.

  >>> len(create('digits', 'val'))
  360
  >>> create('digit_scene', 'val')  # doctest: +ELLIPSIS
  Traceback (most recent call last):
  ValueError: unknown data source 'digit_scene'; did you mean digit_scenes, digits? known: coco, digit_scenes, ...
  """
  source = find(SOURCES, 'data source', name)
  check_options(f'data source {name}', option_names(source), options)
  check_needed(f'data source {name}', source, options)
  return source(split, **options)


def names() -> tuple[str, ...]:
  """The names of all data sources, sorted."""
  return tuple(sorted(SOURCES))
