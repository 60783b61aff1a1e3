"""Data sets that tensorflow_datasets prepared, read without TensorFlow.

Reading needs no TensorFlow where a data set was prepared in the file format array_record. Preparing does need it:
tensorflow_datasets unpacks archives, lists folders and encodes images with it, and some builders, as that of coco,
cannot even be made without it. So prepare once, on any machine that has TensorFlow, by `tfds build <name>
--file_format=array_record --data_dir=DIR`; the folder `DIR/<name>` that comes out is all that is needed here.

What is read so, of the data sets of tensorflow_datasets 4.9.10:

| data sets | what is learned |
|---|---|
| mnist, fashion_mnist, kmnist, emnist, cifar10, svhn_cropped, stl10, imagenet2012, imagenette, food101, caltech101, | |
| oxford_flowers102, dtd, sun397, cars196, eurosat, places365_small and their like | the label |
| cifar100, omniglot, stanford_dogs, caltech_birds2011, oxford_iiit_pet, smallnorb | what `feature` names, of several |
| voc/2007, voc/2012, coco/2014, coco/2017, lvis, open_images_v4, kitti, bccd | boxes and labels |
| wider_face | boxes, one class |
| oxford_iiit_pet (`feature='segmentation_mask'`), cityscapes | masks, with `names` |
| lfw, celeb_a, scene_parse150, nyu_depth_v2 | nothing: they have neither class labels, boxes nor masks of one channel |

Units: boxes are xyxy in pixels of the image as stored; tensorflow_datasets heeds no turn in EXIF data, so nor do we.

Reference: tensorflow.org/datasets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import difflib
import io
import os
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from vision_jax.conventions import ClassMap
from vision_jax.data.digits import check_split
from vision_jax.data.files import DIFFICULT, ON_ERROR, check_option
from vision_jax.data.formats.layout import box_fault, named_classes
from vision_jax.data.images import to_rgb
from vision_jax.data.records import Finding
from vision_jax.host.boxes import clip

_VAL = ('validation', 'val', 'valid', 'test')  # what stands for val, the first that there is
_FILE_NAMES = ('image/filename', 'image/file_name', 'file_name', 'filename')
_CROWD, _DIFFICULT = ('is_crowd', 'is_group_of'), ('is_difficult',)
_LABELS = ('label', 'type')
_Y_UP = ('kitti',)  # data sets that count y from the bottom
_DEFAULT_FOLDER = '~/tensorflow_datasets'


class _Plan(NamedTuple):
  """Which features of a data set become what."""

  image: str
  feature: str  # what is learned
  field: str  # 'label', 'boxes' or 'segmentation'
  label: str | None  # of the objects
  name: str | None  # of the file
  skipped: Mapping[str, Any]  # images that are not decoded, as tensorflow_datasets wants to be told


class TfdsSource:
  """One split of a data set that tensorflow_datasets prepared.

  Args:
    split: 'train' or 'val'.
    dataset: its name, with the configuration where there are several: 'mnist', 'voc/2012', 'coco/2017:1.1.0'.
    data_dir: the folder with the prepared data sets, or the one with `dataset_info.json`; tensorflow_datasets' own,
      `~/tensorflow_datasets`, when left out.
    splits: {'train': ..., 'val': ...} in tensorflow_datasets' words, for example 'train[:90%]' and 'train[90%:]'. When
      left out they are 'train' and the first that there is of 'validation', 'val', 'valid' and 'test'.
    feature: which one to learn: a class label, a sequence of objects with `bbox`, or a mask image. Found when left out
      where there is only one.
    names: the names of the classes in order, or a text file with a name, or an id and a name, in each line. Needed for
      a mask image, whose values are the ids 0, 1, ...; else tensorflow_datasets knows them.
    void: the value of a mask image, or values, that belong to no class; None for none.
    on_error: what to do with a bad box, of which one learns as the image is read: 'stop' there, or 'skip' it, which
      `findings` then lists.
    difficult: 'ignore' leaves objects marked difficult out of training samples, 'train' takes them as any other.
    size: only so many images, the first; all of them when left out.

  `source[i]` is a dict of `image`, uint8 RGB [H, W, 3], and the fields: `label`, an int; `boxes` float32 [n, 4] and
  `labels` int32 [n], without crowds; or `segmentation` int32 [H, W] and `pixels_valid` bool [H, W].

  Raises:
    ValueError: a data set that is not known, not prepared, or prepared in another file format; a split or feature that
      it does not have; a size that is not there. On access: an image that cannot be read, a bad box, a value that is no
      class.

  >>> TfdsSource('test', dataset='mnist')
  Traceback (most recent call last):
  ValueError: tfds has no split 'test'; known: train, val
  """

  def __init__(self, split: str, *, dataset: str, data_dir: str | os.PathLike[str] | None = None,
               splits: Mapping[str, str] | None = None, feature: str | None = None,
               names: str | Sequence[str] | None = None, void: int | Sequence[int] | None = 255, on_error: str = 'stop',
               difficult: str = 'ignore', size: int | None = None):
    self.split = check_split('tfds', split)
    check_option('on_error', on_error, ON_ERROR)
    check_option('difficult', difficult, DIFFICULT)
    builder = _builder(dataset, None if data_dir is None else os.fspath(data_dir))
    part = _part(dataset, builder, split, splits)
    self._plan = _plan(dataset, builder.info.features, feature)
    self._data = _open(dataset, builder, part, self._plan)
    self._name, self._y_up = f'{dataset}/{part}', builder.name in _Y_UP
    if size is not None and not 0 <= size <= len(self._data):
      raise ValueError(f'tfds: size {size} is out of range; {part} of {dataset} has {len(self._data)} images')
    self._size = len(self._data) if size is None else size
    self.classes = _classes(dataset, builder.info.features, self._plan, names)
    self.fields = {'label': ('label',), 'boxes': ('boxes', 'labels'),
                   'segmentation': ('segmentation', 'pixels_valid')}[self._plan.field]
    self._values = {file_id: label for label, file_id in enumerate(self.classes.ids)}
    void = () if void is None else (void,) if isinstance(void, int) else void
    self._values.update({value: -1 for value in void if value not in self._values})
    self.on_error, self.difficult = on_error, difficult
    self._found: dict[str, Finding] = {}

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> dict[str, Any]:
    record = self._record(index)
    image = self._image(index, record, decode=True)
    if self._plan.field != 'boxes':
      return {'image': image, **self._target(index, record, image.shape[:2])}
    objects = self._target(index, record, image.shape[:2])
    kept = ~objects['crowd']
    if self.difficult == 'ignore':
      kept &= ~objects['difficult']
    return {'image': image, 'boxes': clip(objects['boxes'][kept], image.shape[:2]).astype(np.float32),
            'labels': objects['labels'][kept]}

  def target(self, index: int) -> dict[str, Any]:
    """The whole truth of one image without the image, as the metrics take it.

    Args:
      index: 0..len - 1.

    Returns:
      `label`; `segmentation` and `pixels_valid`; or `boxes` float64 [n, 4], not clipped, `labels` int32 [n], `crowd`
      and `difficult` bool [n] of all objects, and `area` float64 [n] and `ids` int64 [n] where the data set has them.
    """
    record = self._record(index)
    size = self._image(index, record, decode=False) if self._plan.field == 'boxes' else None
    return self._target(index, record, size)

  def name_of(self, index: int) -> str:
    """The file name that the data set keeps, or the split and the place in it."""
    return self._named(index, self._record(index)) if self._plan.name else f'{self._name}/{self._check(index):06d}'

  @property
  def findings(self) -> tuple[Finding, ...]:
    """What was wrong in the images that were read so far."""
    return tuple(self._found.values())

  def _check(self, index: int) -> int:
    if not 0 <= index < len(self):
      raise IndexError(f'image {index} of {len(self)}')
    return int(index)

  def _record(self, index: int) -> Mapping[str, Any]:
    return self._data[self._check(index)]

  def _named(self, index: int, record: Mapping[str, Any]) -> str:
    if self._plan.name is None:
      return f'{self._name}/{index:06d}'
    return record[self._plan.name].decode('utf-8', 'replace')

  def _image(self, index: int, record: Mapping[str, Any], *, decode: bool) -> Any:
    """uint8 RGB [H, W, 3], or (h, w) alone, which the header has."""
    from PIL import Image
    try:
      with Image.open(io.BytesIO(record[self._plan.image])) as opened:
        if not decode:
          return opened.size[::-1]
        opened.load()
        return to_rgb(opened)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error and more
      raise ValueError(f'tfds: cannot read image {self._named(index, record)} of {self._name}: '
                       f'{_one_line(error)}; prepare the data set again') from error

  def _target(self, index: int, record: Mapping[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    found = record[self._plan.feature]
    if self._plan.field == 'label':
      return {'label': int(found)}
    if self._plan.field == 'boxes':
      return self._objects(self._named(index, record), found, size)
    return self._segmentation(self._named(index, record), found[..., 0], size)

  def _objects(self, name: str, found: Mapping[str, Sequence[Any]], size: tuple[int, int]) -> dict[str, Any]:
    h, w = size
    y1, x1, y2, x2 = np.array(found['bbox'], np.float64).reshape(-1, 4).T
    if self._y_up:
      y1, y2 = 1 - y2, 1 - y1
    boxes = np.stack([x1 * w, y1 * h, x2 * w, y2 * h], axis=-1)
    sound = np.array([self._sound(name, k, box, size) for k, box in enumerate(boxes.tolist())], bool)
    count = len(boxes)
    labels = np.array(found[self._plan.label] if self._plan.label else [0] * count, np.int32)
    flags = {flag: np.array(next((found[key] for key in keys if key in found), [False] * count), bool)
             for flag, keys in (('crowd', _CROWD), ('difficult', _DIFFICULT))}
    target = {'boxes': boxes, 'labels': labels, **flags}
    target.update({key: np.array(found[name], dtype) for key, name, dtype in
                   (('area', 'area', np.float64), ('ids', 'id', np.int64)) if name in found})
    return {key: value[sound] for key, value in target.items()}

  def _sound(self, name: str, place: int, box: Sequence[float], size: tuple[int, int]) -> bool:
    """Whether a box can be used; what is wrong with it becomes a finding, or an error."""
    fault = box_fault(box, size)
    if fault is None:
      return True
    where = f'{name}: object {place}'
    if self.on_error == 'stop':
      raise ValueError(f'tfds: {self._name}: {where}: {fault[1]}; leave such objects out with data.on_error=skip, '
                       'which lists each skip')
    self._found[where] = Finding('box-outside' if fault[0] == 'box-clipped' else fault[0], where, fault[1])
    return False

  def _segmentation(self, name: str, values: np.ndarray, size: tuple[int, int] | None) -> dict[str, Any]:
    if size is not None and values.shape != size:
      raise ValueError(f'tfds: the mask of {name} of {self._name} is {values.shape[1]} x {values.shape[0]} pixels and '
                       f'its image {size[1]} x {size[0]}; prepare the data set again')
    found, places = np.unique(values, return_inverse=True)
    strange = [value for value in found.tolist() if value not in self._values]
    if strange:
      raise ValueError(f'tfds: the mask of {name} of {self._name} has the value {strange[0]}, which is no class; name '
                       'the classes of all values by data.names, or give data.void')
    classes = np.array([self._values[value] for value in found.tolist()], np.int32)[places].reshape(values.shape)
    return {'segmentation': np.maximum(classes, 0), 'pixels_valid': classes >= 0}


def _one_line(error: BaseException) -> str:
  return ' '.join(str(error).split())[:300] or type(error).__name__


def _builder(dataset: str, data_dir: str | None) -> Any:
  """What reads a data set that is prepared; no builder is made, which can need TensorFlow."""
  import tensorflow_datasets as tfds
  if data_dir is not None and (pathlib.Path(data_dir) / 'dataset_info.json').is_file():
    return tfds.builder_from_directory(data_dir)
  try:
    return tfds.core.read_only_builder.builder_from_files(dataset, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as error:
    raise ValueError(_not_prepared(dataset, data_dir, tfds.list_builders(with_community_datasets=False))) from error
  except Exception as error:  # a name that cannot be read, damaged files
    raise ValueError(f'tfds: cannot read {dataset!r}: {_one_line(error)}; check data.dataset and '
                     'data.data_dir') from error


def _not_prepared(dataset: str, data_dir: str | None, known: Sequence[str]) -> str:
  """Why a data set is not there, and how to get it."""
  folder, name = pathlib.Path(data_dir or _DEFAULT_FOLDER).expanduser(), re.split('[/:]', dataset)[0]
  there = sorted(info.parent.relative_to(folder).as_posix() for info in (folder / name).rglob('dataset_info.json'))
  if there:
    return f'tfds: {dataset} is not among what is prepared in {folder}: {", ".join(there)}; give one as data.dataset'
  if name not in known:
    close = ', '.join(difflib.get_close_matches(name, known, n=3, cutoff=0.5))
    return (f'tfds: no data set {dataset!r} is prepared in {folder} or known to tensorflow_datasets; '
            f'{f"did you mean {close}?" if close else "check data.dataset and data.data_dir"}')
  return (f'tfds: {dataset} is not prepared in {folder}, and preparing it needs TensorFlow; once, on any machine that '
          f'has it, run `tfds build {dataset} --file_format=array_record --data_dir=DIR`, and give that DIR as '
          'data.data_dir: reading needs no TensorFlow')


def _part(dataset: str, builder: Any, split: str, splits: Mapping[str, str] | None) -> str:
  """The split in tensorflow_datasets' words."""
  known = {name: info.num_examples for name, info in builder.info.splits.items()}
  if splits is not None:
    if split not in splits:
      raise ValueError(f'tfds: data.splits has nothing for {split}; give what stands for it, out of {", ".join(known)}')
    return splits[split]
  for name in ('train',) if split == 'train' else _VAL:
    if known.get(name):
      return name
  raise ValueError(f"tfds: {dataset} has no split for {split}, only {', '.join(known) or 'none'}; give data.splits, "
                   "for example {'train': 'train[:80%]', 'val': 'train[80%:]'}")


def _plan(dataset: str, features: Any, wanted: str | None) -> _Plan:
  """Which feature is the image and which one is learned."""
  import tensorflow_datasets as tfds
  features = dict(sorted(features.items()))  # they come out of the file in any order
  images = [name for name, feature in features.items()
            if isinstance(feature, tfds.features.Image) and feature.np_dtype != np.float32]
  image = min(images, key=lambda name: (name != 'image', not name.startswith('image'), name), default='')
  masks = [name for name in images if name != image and features[name].shape[-1] == 1]
  fields = {name: 'label' for name, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)}
  fields.update({name: 'boxes' for name, feature in features.items() if _has_boxes(feature)})
  fields.update(dict.fromkeys(masks, 'segmentation'))
  if not images or not fields:
    raise ValueError(f'tfds: {dataset} has no image with a label, objects or a mask; its features are '
                     f'{", ".join(features)}')
  if (wanted is None and len(fields) > 1) or (wanted is not None and wanted not in fields):
    raise ValueError(f'tfds: {dataset} can teach {", ".join(f"{name} ({field})" for name, field in fields.items())}; '
                     f'give one as data.feature{f", not {wanted!r}" if wanted else ""}')
  learned = wanted or next(iter(fields))
  skipped = {name: tfds.decode.SkipDecoding() for name in images if name != learned}  # inside sequences it cannot
  label = None
  if fields[learned] == 'boxes':
    labels = {name for name, feature in features[learned].feature.items()
              if isinstance(feature, tfds.features.ClassLabel)}
    label = next((name for name in _LABELS if name in labels), None)
  texts = {name for name, feature in features.items() if isinstance(feature, tfds.features.Text)}
  name = next((name for name in _FILE_NAMES if name in texts), None)
  return _Plan(image, learned, fields[learned], label, name, skipped)


def _has_boxes(feature: Any) -> bool:
  """Whether a feature is a sequence of objects with `bbox`, in shares of the image and y before x."""
  import tensorflow_datasets as tfds
  inner = getattr(feature, 'feature', None)
  box = inner['bbox'] if hasattr(inner, 'keys') and 'bbox' in inner else None
  # Data sets of old versions do not state the format; there was only one.
  return isinstance(box, tfds.features.BBoxFeature) and getattr(box.bbox_format, 'value', None) in (None, 'REL_YXYX')


def _open(dataset: str, builder: Any, part: str, plan: _Plan) -> Any:
  """tensorflow_datasets' own random access to a split."""
  try:
    return builder.as_data_source(part, decoders=dict(plan.skipped))
  except NotImplementedError as error:
    raise ValueError(f'tfds: {builder.data_dir} is prepared as {builder.info.file_format.value}, which only TensorFlow '
                     f'reads; once, on a machine with TensorFlow, run `tfds build {dataset} '
                     '--file_format=array_record --data_dir=DIR`, then give that DIR as data.data_dir') from error
  except ImportError as error:
    raise ValueError(f'tfds: {_one_line(error)}; pip install array_record') from error
  except Exception as error:  # ValueError, AssertionError and others for a split that it does not know
    raise ValueError(f'tfds: split {part!r} of {dataset}: {_one_line(error)}; check data.splits') from error


def _classes(dataset: str, features: Any, plan: _Plan, names: str | Sequence[str] | None) -> ClassMap:
  feature = features[plan.feature]
  if plan.field == 'boxes':
    feature = feature.feature[plan.label] if plan.label else None
  known = None
  if plan.field != 'segmentation':
    known = tuple(feature.names or map(str, range(feature.num_classes))) if feature is not None else ('object',)
  if names is None:
    if known is None:
      raise ValueError(f'tfds: {dataset}: nothing says what the values of {plan.feature} mean; give data.names')
    return ClassMap(known)
  classes = named_classes(names, pathlib.Path())
  if known is not None and len(classes) != len(known):
    raise ValueError(f'tfds: {dataset} has {len(known)} classes and data.names {len(classes)}; give a name to each')
  return classes
