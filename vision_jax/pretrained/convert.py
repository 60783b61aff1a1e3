"""Weights into a model's variables, and back, with a report of what was loaded and what was not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import difflib
import math
import pathlib
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax import models
from vision_jax.conventions import Variables, option_names
from vision_jax.models.classification.vit import resize_position_embeddings
from vision_jax.models.layers import pair
from vision_jax.pretrained import catalogue, darknet, names
from vision_jax.pretrained.buffers import buffers
from vision_jax.pretrained.heads import pick_classes, with_classes
from vision_jax.pretrained.readers import read_state_dict
from vision_jax.pretrained.variables import (
    flat_variables,
    head_paths,
    image_shape,
    image_shape_of,
    initial_values,
    nested,
    some,
    training_paths,
    variable_shapes,
)

HEADS = ('fit', 'load', 'fresh')


@dataclasses.dataclass(frozen=True)
class Report:
  """What became of weights; `print(report)` says it in a few lines.

  Args:
    source: the file or the name of published weights.
    model: the class or name of the model.
    loaded: the model's paths that the weights filled.
    parameters: how many numbers that are, batch statistics aside.
    head: paths of the head that was left as initialised, as it is for another number of classes or was to be fresh.
    fresh: other paths left as initialised (only with `strict=False`).
    unused: names in the weights without a place in the model: its head where `num_classes=0`, auxiliary heads where
      they are off, anything with `strict=False`.
    notes: a line each: what was resized, renamed, unpacked, or is not finite.
    published: the row of the catalogue, where the weights have one.
    preprocessing: options of the loader that belong to the weights: `resize`, `canvas`, `mean`, `std`. Empty: unknown.
    categories: the class names of the head that was loaded. Empty: unknown.
  """

  source: str
  model: str
  loaded: tuple[str, ...]
  parameters: int
  head: tuple[str, ...] = ()
  fresh: tuple[str, ...] = ()
  unused: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()
  published: catalogue.Published | None = None
  preprocessing: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  categories: tuple[str, ...] = ()

  def __str__(self) -> str:
    total = len(self.loaded) + len(self.head) + len(self.fresh)
    lines = [f'{self.model}: {len(self.loaded)} of {total} arrays ({self.parameters:,} parameters) loaded from '
             f'{self.source}']
    for what, found in (('head not loaded, left as initialised', self.head),
                        ('not loaded, left as initialised', self.fresh),
                        ('in the weights, and not used', self.unused)):
      if found:
        lines.append(f'  {what}: {some(found)}')
    return '\n'.join([*lines, *(f'  {note}' for note in self.notes)])


def load(source: str | pathlib.Path, model: nn.Module | str, *, like: Variables | None = None, head: str = 'fit',
         strict: bool = True, key: jax.Array | None = None, place: str | None = None, progress: bool = True,
         classes: Sequence[str] = ()) -> tuple[dict[str, Any], Report]:
  """A model's variables out of published weights or a file of torch's, safetensors' or darknet's.

  Args:
    source: a name such as 'resnet50:IMAGENET1K_V2' or 'resnet50:DEFAULT', which is downloaded once into
      `cache_folder()`, or the path of a `.pth`, `.pt`, `.bin`, `.safetensors` or `.weights` file. A `.weights` file may
      end before the model does only with `strict=False`, and go on after it only where the model has no classes.
    model: a module, or the name of one.
    like, head, strict, key, classes: as in `from_torch`.
    place: where in a trainer's checkpoint the weights are, such as 'model_ema'; found when left out.
    progress: whether a download shows its bar.

  Returns:
    (variables, report), the report with the preprocessing and the categories of published weights.

  Raises:
    ValueError: no such file or name, a file that cannot be read, weights that do not fit.
  """
  published, path = locate(source, progress=progress)
  model = models.create(model) if isinstance(model, str) else model
  if darknet.is_weights(path):
    return _from_darknet(model, path, like=like, head=head, strict=strict, key=key)
  state_dict = read_state_dict(path, key=place)
  options = {'like': like, 'head': head, 'strict': strict, 'key': key, 'classes': classes}
  if published is None:
    return from_torch(model, state_dict, source=str(path), **options)
  try:
    variables, report = from_torch(model, state_dict, categories=published.categories(),
                                   source=f'{published.name} ({path})', **options)
  except _MisfitError as error:
    raise ValueError(f'{error}{_other_options(model, published)}') from None
  differ = [f'{name}={value!r}' for name, value in published.options.items()
            if name not in ('image_size', 'num_classes') and _option(model, name, value) != value]
  notes = (*report.notes, *(f'the weights were trained with {option} of the model' for option in differ),
           *([f'these weights have a licence of their own: {published.licence}'] if published.licence else []))
  return variables, dataclasses.replace(report, notes=notes, published=published,
                                        preprocessing=published.data_options())


def _option(model: nn.Module, name: str, default: Any) -> Any:
  """An option of a model; `norm` is one of a detector's body."""
  return getattr(model, name, getattr(getattr(model, 'body', None), name, default))


def _other_options(model: nn.Module, published: catalogue.Published) -> str:
  """The options that decide shapes and differ from those of the model that the weights were trained in, as a hint."""
  theirs = models.create(published.model, **published.options)
  if type(theirs) is not type(model):
    return ''
  # No floats, such as the momentum of BatchNorm, which change no shape; no modules.
  differ = [f'{name}={getattr(theirs, name)!r}' for name in option_names(type(model))
            if name != 'num_classes' and isinstance(getattr(theirs, name), (int, str))
            and getattr(theirs, name) != getattr(model, name)]
  return f'; they were trained with {", ".join(differ)} of the model' if differ else ''


def _from_darknet(model: nn.Module, path: pathlib.Path, *, strict: bool,
                  **options: Any) -> tuple[dict[str, Any], Report]:
  """`load` of a `.weights` file."""
  if not path.is_file():
    raise ValueError(f'{path} is no file')
  own = getattr(model, 'num_classes', None)
  theirs = darknet.fitting_classes(model, path) or own
  # Of a body, what the file has after its last layer is the head.
  found, read = darknet.from_darknet(model if theirs == own else model.clone(num_classes=theirs), path, variables={},
                                     partial=own == 0 or not strict)
  variables, report = from_variables(model, found, strict=strict, source=str(path), **options)
  more = [f'{read.unused:,} numbers of the file come after the last layer, and are not used'] if read.unused else []
  other = [f'the file knows {theirs} classes, and the model {own}'] if theirs != own else []
  return variables, dataclasses.replace(report, notes=(*report.notes, *more, *other))


def locate(source: str | pathlib.Path, *, progress: bool = True) -> tuple[catalogue.Published | None, pathlib.Path]:
  """Where weights are: the row of published ones, or None, and the file, downloaded where it has to be.

  Args:
    source, progress: as in `load`.

  Returns:
    (row, path). A file that is a published one, by its name and its SHA-256, has its row too.

  Raises:
    ValueError: an unknown name; a download that fails.
  """
  if _is_file(source):
    return catalogue.find_file(pathlib.Path(source)), pathlib.Path(source)
  published = catalogue.find_published(str(source))
  return published, catalogue.download(published, progress=progress)


def create(source: str, *, key: jax.Array | None = None, progress: bool = True,
           **options: Any) -> tuple[nn.Module, dict[str, Any], Report]:
  """Published weights in the model that they belong to.

  Args:
    source: a name such as 'resnet50:IMAGENET1K_V2'.
    key, progress: as in `load`.
    **options: of the model, beside those that the weights ask for.

  Returns:
    (model, variables, report).

  Raises:
    ValueError: as in `load`; an option that the model does not have.
  """
  published = catalogue.find_published(source)
  model = models.create(published.model, **{**published.options, **options})
  return model, *load(source, model, key=key, progress=progress)


def from_torch(model: nn.Module | str, state_dict: Mapping[str, np.ndarray], *, like: Variables | None = None,
               head: str = 'fit', strict: bool = True, key: jax.Array | None = None, source: str | None = None,
               classes: Sequence[str] = (), categories: Sequence[str] = ()) -> tuple[dict[str, Any], Report]:
  """A model's variables out of a torch state dict.

  Args:
    model: a module, or the name of one.
    state_dict: name -> array in torch's layout, as `read_state_dict` gives.
    like: the model's variables, or their shapes, where those for RGB images of about 224 x 224 pixels are not meant.
      Where it holds arrays, what the weights do not fill is taken from it.
    head: 'fit' loads the head where it has as many classes and else leaves it as initialised, 'load' insists on it,
      'fresh' never loads it. The head is what depends on `num_classes`.
    strict: whether anything else that is missing, unexpected or of another shape is an error.
    key: of the initialisation of what is left fresh; `jax.random.key(0)` when left out.
    source: what the report calls the weights.
    classes, categories: the names of the model's classes and of the weights'. Where both are given and differ, a
      detector's head is put together from theirs by name, and the report says so. Classes that the weights have not
      are left as initialised, and named; where there are as many classes on both sides, or `head` is 'load', a head
      with such a class is taken as it stands.

  Returns:
    (variables, report): nested dicts of float32 NumPy arrays, by collection, and what was loaded.

  Raises:
    ValueError: names that are missing, unexpected or of another shape, listed; an unknown `head` or model; a class that
      is named twice.

  >>> from vision_jax.models.classification.resnet import ResNet
  >>> model = ResNet('basic', (1,), width=8, num_classes=10)
  >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  >>> state_dict = to_torch(model, variables)
  >>> state_dict['layer1.0.conv1.weight'].shape
  (8, 8, 3, 3)
  >>> print(from_torch(model.clone(num_classes=3), state_dict, source='digits.pth')[1])
  ResNet: 15 of 17 arrays (2,376 parameters) loaded from digits.pth
    head not loaded, left as initialised: params/fc/bias, params/fc/kernel
  """
  given = {names.modern_name(name): array for name, array in state_dict.items()}
  notes = list(getattr(state_dict, 'notes', ()))
  renamed = sum(name not in state_dict for name in given)
  if renamed:
    notes.append(f'{renamed} names of an older checkpoint were modernised')
  given = {name: array for name, array in given.items() if not names.is_buffer(name)}
  return _fit(_TORCH, model, given, like=like, head=head, strict=strict, key=key, notes=notes, classes=classes,
              categories=categories, source=source or getattr(state_dict, 'source', 'a state dict'))


def from_variables(model: nn.Module | str, variables: Variables, *, like: Variables | None = None, head: str = 'fit',
                   strict: bool = True, key: jax.Array | None = None, source: str = 'variables',
                   classes: Sequence[str] = (), categories: Sequence[str] = ()) -> tuple[dict[str, Any], Report]:
  """A model's variables out of those of one like it, a head for another number of classes left fresh.

  Args:
    model, like, head, strict, key, source, classes, categories: as in `from_torch`.
    variables: by collection, as `init` makes them or a checkpoint holds them.

  Returns:
    (variables, report), as `from_torch`.

  Raises:
    ValueError: as `from_torch`.
  """
  return _fit(_OURS, model, flat_variables(variables), like=like, head=head, strict=strict, key=key, source=source,
              classes=classes, categories=categories)


def to_torch(model: nn.Module | str, variables: Variables) -> dict[str, np.ndarray]:
  """The state dict of a model's variables, which torch loads strictly into the same model of torchvision.

  Args:
    model: the module, or the name of one; its options say what else torch's module keeps (position indices).
    variables: by collection, `params` and `batch_stats`.

  Returns:
    name -> array in torch's layout, float32, with torch's buffers (`num_batches_tracked` 0), in natural order.
  """
  model = models.create(model) if isinstance(model, str) else model
  flat = {path: np.asarray(leaf) for path, leaf in flat_variables(variables).items()}
  found = {names.torch_name(path): names.to_torch(path, array) for path, array in flat.items()}
  found |= buffers(model, flat)
  return {name: found[name] for name in sorted(found, key=_natural)}


# How a layout's names, shapes and arrays go with our paths.


class _Layout(NamedTuple):
  name: Callable[[str], str]
  shape: Callable[[str, Iterable[int]], tuple[int, ...]]
  convert: Callable[[str, np.ndarray, Iterable[int]], np.ndarray]
  features_axis: int  # of a layer's numbers


_TORCH = _Layout(names.torch_name, names.torch_shape, names.to_flax, 0)
_OURS = _Layout(lambda path: path, lambda path, shape: tuple(shape), lambda path, array, shape: array, -1)


def _fit(layout: _Layout, model: nn.Module | str, given: Mapping[str, Any], *, like: Variables | None, head: str,
         strict: bool, key: jax.Array | None, source: str, notes: Iterable[str] = (), classes: Sequence[str] = (),
         categories: Sequence[str] = ()) -> tuple[dict[str, Any], Report]:
  """`from_torch` for any layout."""
  if head not in HEADS:
    raise ValueError(f'from_torch: head is {head!r}; it is one of {", ".join(HEADS)}')
  title = model if isinstance(model, str) else type(model).__name__
  model = models.create(model) if isinstance(model, str) else model
  wanted = flat_variables(variable_shapes(model, image_shape(model)) if like is None else like)
  pick = _Pick() if head == 'fresh' else _picked(layout, model, wanted, given, tuple(categories), tuple(classes), head)
  arrays, missing, misshapen, notes = _match(layout, model, wanted, {**given, **pick.arrays}, list(notes))
  replaced = [path for path in wanted if layout.name(path) in pick.arrays]
  if replaced and not misshapen.keys() & set(replaced):
    notes.append(f'head replaced: {len(classes) - len(pick.unknown)} of its {len(categories)} classes were picked by '
                 f'name ({some(map(layout.name, replaced))})')
    categories = classes
  mixed = [path for path in replaced if path in arrays] if pick.unknown else []
  notes += [pick.said] if pick.said else []
  unexpected = sorted(given.keys() - {layout.name(path) for path in wanted}, key=_natural)
  heads = extras = frozenset()
  image = None
  if missing or misshapen or unexpected or mixed or head == 'fresh':
    image = image_shape(model) if like is None else image_shape_of(model, wanted)
    heads, extras = head_paths(model, image), training_paths(model, image)
  if head == 'fresh':
    arrays = {path: array for path, array in arrays.items() if path not in heads}
  lacking = [path for path in wanted if path not in arrays]
  # Weights without any head are as good a backbone as those with another one.
  headless = heads.issubset(missing)
  fresh_head = [path for path in lacking if path in heads and (
      head == 'fresh' or (head == 'fit' and (headless or path in misshapen)))]
  if strict:
    _refuse(title, source, {
        'missing': [layout.name(path) for path in missing if path not in fresh_head],
        'unexpected': [name for name in unexpected if name not in {*map(layout.name, (*heads, *extras))}],
        'of another shape': [text for path, text in misshapen.items() if path not in fresh_head],
    }, pick.said if head == 'load' else '')
  initial = initial_values(model, image, {path: wanted[path] for path in (*lacking, *mixed)}, key)
  for path in mixed:
    initial[path] = with_classes(names.torch_name(path), arrays[path], initial[path], classes, pick.unknown)
  arrays.update(initial)
  loaded = tuple(path for path in wanted if path not in lacking)
  counted = sum(math.prod(wanted[path].shape) for path in loaded if path.startswith('params/'))
  return nested(arrays), Report(source, title, loaded, counted, tuple(fresh_head),
                                 tuple(path for path in lacking if path not in fresh_head), tuple(unexpected),
                                 tuple(notes), categories=tuple(categories))


class _Pick(NamedTuple):
  """A detector's classification layers for our classes, by the layout's name; which classes they lack; a note."""

  arrays: Mapping[str, np.ndarray] = {}
  unknown: tuple[str, ...] = ()
  said: str = ''


def _picked(layout: _Layout, model: nn.Module, wanted: Mapping[str, Any], given: Mapping[str, np.ndarray],
            theirs: tuple[str, ...], ours: tuple[str, ...], head: str) -> _Pick:
  """What becomes of the weights' classes where the model has others."""
  if not ours or not theirs or theirs == ours:
    return _Pick()
  found = {layout.name(path): pick_classes(names.torch_name(path), np.asarray(given[layout.name(path)]), theirs, ours,
                                           axis=layout.features_axis) for path in wanted if layout.name(path) in given}
  found = {name: array for name, array in found.items() if array is not None}
  if not found:
    return _Pick()
  if twice := [name for name, count in Counter(ours).items() if count > 1]:
    raise ValueError(f'from_torch: classes names {", ".join(map(repr, twice))} twice; give each class once')
  if len(ours) != (own := getattr(model, 'num_classes', None)):
    return _Pick(said=f'no class was picked by name: {len(ours)} are named, and the model has {own}')
  unknown = tuple(name for name in ours if name not in theirs)
  said = f"{len(unknown)} of {len(ours)} classes are not among the weights': {_unknown(unknown, theirs)}"
  if unknown and (head == 'load' or len(ours) in (len(theirs), len(unknown))):
    return _Pick(said=said)
  return _Pick(found, unknown, f'{said}; they are as initialised' if unknown else '')


def _unknown(lacking: Sequence[str], known: Sequence[str]) -> str:
  """Names, each with the known one that is most like it."""
  close = {name: difflib.get_close_matches(name, known, n=1) for name in lacking}
  return some((f'{name} (they have {found[0]})' if found else name for name, found in close.items()), shown=20)


def _match(layout: _Layout, model: nn.Module, wanted: Mapping[str, Any], given: Mapping[str, np.ndarray],
           notes: list[str]) -> tuple[dict[str, np.ndarray], list[str], dict[str, str], list[str]]:
  """The arrays that fit, the paths that have none, those of another shape with a text each, and notes."""
  arrays, missing, misshapen, infinite = {}, [], {}, []
  for path, leaf in wanted.items():
    name, shape = layout.name(path), layout.shape(path, leaf.shape)
    if name not in given:
      missing.append(path)
      continue
    array = np.asarray(given[name])
    if array.shape != shape and path.endswith('/pos_embedding') and _is_square(array.shape):
      array, note = _resize_positions(model, array)
      notes.append(note)
    if array.shape != shape or not jnp.issubdtype(array.dtype, jnp.floating):
      kind = '' if jnp.issubdtype(array.dtype, jnp.floating) else f' of {array.dtype}'
      misshapen[path] = f'{name} {array.shape}{kind} for {shape}'
      continue
    # A copy, because the array may be a view of a file.
    arrays[path] = np.array(layout.convert(path, array, leaf.shape), np.float32, order='C')
    if not np.isfinite(arrays[path]).all():
      infinite.append(name)
  if infinite:
    notes.append(f'not finite: {some(infinite)}')
  return arrays, missing, misshapen, notes


def _is_square(shape: tuple[int, ...]) -> bool:
  """Whether these are position embeddings `[1, 1 + h * h, C]` with a class token."""
  return len(shape) == 3 and shape[0] == 1 and shape[1] > 1 and math.isqrt(shape[1] - 1) ** 2 == shape[1] - 1


def _resize_positions(model: nn.Module, array: np.ndarray) -> tuple[np.ndarray, str]:
  """ViT's position embeddings of square images for the size of the model's, and a note."""
  old, new = math.isqrt(array.shape[1] - 1), tuple(side // model.patch_size for side in pair(model.image_size))
  resized = resize_position_embeddings(jnp.asarray(array, jnp.float32), new)
  return np.asarray(resized), (f'the position embeddings were resized from {old} x {old} to {new[0]} x {new[1]} '
                               'patches')


class _MisfitError(ValueError):
  """Weights of another model."""


def _refuse(model: str, source: str, kinds: Mapping[str, list[str]], said: str = '') -> None:
  """Refuses weights of which anything is listed, and says what else is known about them."""
  found = [f'{kind}: {some(listed)}' for kind, listed in kinds.items() if listed]
  if found:
    found += [said] if said else []
    raise _MisfitError(f'{source} does not fit {model}; {"; ".join(found)}; choose the model and options that it was '
                       'made with, or strict=False to load what fits')


def _natural(name: str) -> list[tuple[int, int, str]]:
  """Sorts 'layer.2' before 'layer.10'."""
  return [(0, int(part), '') if part.isdigit() else (1, 0, part) for part in re.split(r'(\d+)', name)]


def _is_file(source: str | pathlib.Path) -> bool:
  """Whether a source means a file: by what is there, or by its look."""
  text = str(source)
  return pathlib.Path(source).is_file() or '/' in text or text.endswith(
      ('.pth', '.pt', '.bin', '.safetensors', '.weights'))
