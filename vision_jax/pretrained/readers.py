"""State dicts out of files: torch's zip format and its older one, and safetensors, without torch.

Arrays are views of the mapped file, so a file of 600 MB takes no memory until its arrays are used; bfloat16 becomes
float32 at once, as NumPy has none. No code of a file runs, see `pickles`. A file's format is told by its first bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
import io
import json
import math
import mmap
import pathlib
import re
from typing import Any, BinaryIO, NamedTuple
import zipfile
import zlib

import numpy as np

from vision_jax.pretrained.pickles import Damaged, Name, Refused, read_pickle

_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_LONGEST_PICKLE, _LONGEST_HEADER = 1 << 28, 10 ** 8  # bytes; a header's limit is that of safetensors' own reader
_LARGEST_REPEAT = 1 << 24  # elements of a tensor that shows its storage several times over
_MOST_DIMENSIONS = 64  # of a size; torch itself has no tensor of more

_STORAGES = {'FloatStorage': 'f4', 'DoubleStorage': 'f8', 'HalfStorage': 'f2', 'BFloat16Storage': 'bf16',
             'LongStorage': 'i8', 'IntStorage': 'i4', 'ShortStorage': 'i2', 'CharStorage': 'i1', 'ByteStorage': 'u1',
             'BoolStorage': 'bool', 'ComplexFloatStorage': 'c8', 'ComplexDoubleStorage': 'c16'}
_SAFETENSORS = {'F64': 'f8', 'F32': 'f4', 'F16': 'f2', 'BF16': 'bf16', 'I64': 'i8', 'I32': 'i4', 'I16': 'i2',
                'I8': 'i1', 'U64': 'u8', 'U32': 'u4', 'U16': 'u2', 'U8': 'u1', 'BOOL': 'bool'}
_DTYPES = ('float32', 'float64', 'float16', 'bfloat16', 'int64', 'int32', 'int16', 'int8', 'uint8', 'bool')

# Where trainers put the state dict, the likeliest first.
_PLACES = ('state_dict', 'model_state_dict', 'model_state', 'model', 'net', 'network', 'params', 'weights')
_PREFIXES = ('module.', '_orig_mod.', 'model.', 'net.')


class StateDict(dict):
  """Name -> array, with where it came from.

  Args:
    tensors: name -> array.
    source: the file.
    notes: what was done to find it, a line each.
  """

  def __init__(self, tensors: Mapping[str, np.ndarray], *, source: str = '', notes: Iterable[str] = ()):
    super().__init__(tensors)
    self.source, self.notes = source, tuple(notes)


def read_state_dict(path: str | pathlib.Path, *, key: str | None = None) -> StateDict:
  """The state dict in a `.pth`, `.pt`, `.bin` or `.safetensors` file.

  In a trainer's checkpoint it is looked for under its usual names ('state_dict', 'model', ...), and a prefix that all
  names share ('module.') is taken off; `notes` says so.

  Args:
    path: of the file.
    key: where in a checkpoint the state dict is, such as 'model_ema'; found when left out.

  Returns:
    A dict of read-only arrays in torch's layout, bfloat16 as float32.

  Raises:
    ValueError: a file that is missing, damaged, of another format, or asks for anything but tensors.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f'{path} is no file; give the path of a .pth, .pt, .bin or .safetensors file')
  try:
    content = _reader(path)(path)
  except Refused as error:
    raise ValueError(f'{path} {error}; nothing of it was run. Save the tensors alone: torch.save(model.state_dict(), '
                     'FILE), or safetensors') from error
  except (Damaged, OSError) as error:
    raise ValueError(f'{path}: {error}; copy or download it again') from error
  found, notes = _find(content, key, path)
  found, more = _without_prefix(found)
  return StateDict(found, source=str(path), notes=[*notes, *more])


def _reader(path: pathlib.Path) -> Callable[[pathlib.Path], Any]:
  """Which of the formats a file has."""
  with open(path, 'rb') as file:
    start = file.read(16)
  if start.startswith(b'PK\x03\x04'):
    return _read_zip
  if len(start) > 8 and start[8:9] == b'{':
    return _read_safetensors
  if start.startswith(b'\x80'):
    return _read_legacy
  raise ValueError(f'{path} is neither a file of torch (zip or older) nor safetensors; its first bytes are '
                   f'{start[:4].hex(" ") or "none"}')


# Tensors.


class _Storage(NamedTuple):
  """Numbers in a row, raw."""

  kind: str
  data: np.ndarray  # uint8, whole elements
  swapped: bool  # most significant byte first
  title: str

  def __len__(self) -> int:
    return len(self.data) // _item_size(self.kind)


def _item_size(kind: str) -> int:
  return {'bf16': 2, 'bool': 1}.get(kind) or np.dtype(kind).itemsize


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
  """What `torch._utils._rebuild_tensor_v2` makes: a view of a storage."""
  if not isinstance(storage, _Storage):
    raise Refused('makes a tensor of what is no storage')
  numbers = (offset, *size, *stride)
  if len(size) != len(stride) or len(size) > 16 or not all(type(n) is int and n >= 0 for n in numbers):
    raise _broken(storage, offset, size, stride)
  elements = math.prod(size)
  last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if elements else 0
  if max(last, offset) >= len(storage) + (not elements) or elements > max(len(storage), _LARGEST_REPEAT):
    raise _broken(storage, offset, size, stride)
  item = _item_size(storage.kind)
  raw = {'bf16': np.dtype('u2'), 'bool': np.dtype('u1')}.get(storage.kind) or np.dtype(storage.kind)
  flat = storage.data[offset * item if elements else 0:][:(last - offset + 1) * item if elements else 0].view(
      raw.newbyteorder('>' if storage.swapped else '<'))
  array = np.lib.stride_tricks.as_strided(flat, size, [step * item for step in stride], writeable=False)
  return _native(array, storage.kind)


def _native(array: np.ndarray, kind: str) -> np.ndarray:
  """An array of this machine's byte order and of a dtype that NumPy has."""
  if kind == 'bool':
    return array != 0
  array = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder('='))
  # bfloat16 is the upper half of float32.
  return (array.astype(np.uint32) << 16).view(np.float32) if kind == 'bf16' else array


def _broken(storage: _Storage, offset: Any, size: Any, stride: Any) -> Damaged:
  return Damaged(f'it has a tensor of size {_short(size)}, stride {_short(stride)} and offset {_short(offset)}, which '
                 f'does not fit storage {storage.title[:40]!r} of {len(storage)} elements')


def _short(value: Any) -> str:
  """A number or a row of numbers, for an error line."""
  # One level deep, because each level of tuples in tuples could multiply the text.
  if isinstance(value, tuple | list):
    return f'({", ".join(map(_one, value[:8]))}{", ..." if len(value) > 8 else ""})'
  return _one(value)


def _one(value: Any) -> str:
  return str(value) if isinstance(value, int) and abs(value) < 1 << 64 else f'a {type(value).__name__}'


# What torch's pickles may call, and name.


def _parameter(tensor: Any, *_: Any) -> Any:
  if not isinstance(tensor, np.ndarray):
    raise Refused('makes a parameter of what is no tensor')
  return tensor


def _of_type(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
  if function not in (_REBUILD, _REBUILD_OLD) or not isinstance(arguments, tuple):
    raise Refused('makes a tensor in an unknown way')
  return _tensor(*arguments)


def _dict(pairs: Any = ()) -> dict[str, Any]:
  if not isinstance(pairs, dict):
    pairs = [tuple(pair) for pair in pairs]
    if not all(isinstance(key, str | int) for key, _ in pairs):
      raise Refused('has a dict whose keys are no strings')
  return dict(pairs)


def _size(numbers: Any = ()) -> tuple[int, ...]:
  if not (isinstance(numbers, tuple | list) and len(numbers) <= _MOST_DIMENSIONS
          and all(type(n) is int for n in numbers)):
    raise Refused('makes a size of what is no row of numbers')
  return tuple(numbers)


def _device(kind: Any, index: Any = None) -> str:
  # Only a short text: whatever else stood here would be written out, tuples in tuples 2 ** depth times.
  if not isinstance(kind, str) or len(kind) > 64 or not (index is None or type(index) is int):
    raise Refused('makes a device of what is no name and number')
  return kind if index is None else f'{kind}:{_one(index)}'


def _bytes(text: str, encoding: str) -> bytes:
  if encoding != 'latin1' or not isinstance(text, str):
    raise Refused('encodes a text')
  return text.encode('latin1')


_REBUILD, _REBUILD_OLD = Name('torch._utils', '_rebuild_tensor_v2'), Name('torch._utils', '_rebuild_tensor')
_CALLS = {
    _REBUILD: _tensor,
    _REBUILD_OLD: _tensor,
    Name('torch._utils', '_rebuild_parameter'): _parameter,
    Name('torch._utils', '_rebuild_parameter_with_state'): _parameter,
    Name('torch._tensor', '_rebuild_from_type_v2'): _of_type,
    Name('collections', 'OrderedDict'): _dict,
    Name('collections', 'Counter'): _dict,
    Name('torch', 'Size'): _size,
    Name('torch', 'device'): _device,
    Name('_codecs', 'encode'): _bytes,
}
_TENSORS = tuple(name for name in _CALLS if name.name.startswith('_rebuild'))
_WORDS = frozenset((*(Name(module, storage) for storage in _STORAGES for module in ('torch', 'torch.cuda')),
                    Name('torch', 'Tensor'), Name('torch.nn.parameter', 'Parameter'),
                    *(Name('torch', dtype) for dtype in _DTYPES)))


def _storage_id(value: Any, lengths: tuple[int, ...]) -> tuple[str, str, int]:
  """(dtype, key, elements) of ('storage', type, key, location, elements[, view])."""
  if not (isinstance(value, tuple) and len(value) in lengths and value[0] == 'storage'
          and isinstance(value[1], Name) and value[1].name in _STORAGES and isinstance(value[2], str)
          and type(value[4]) is int and value[4] >= 0):
    raise Refused('has a persistent id that is no storage')
  return _STORAGES[value[1].name], value[2], value[4]


# The formats.


def _mapped(path: pathlib.Path) -> np.ndarray:
  """The bytes of a file, read when they are looked at."""
  with open(path, 'rb') as file:
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def _read_zip(path: pathlib.Path) -> Any:
  """torch.save since 1.6: an uncompressed zip of `NAME/data.pkl` and one record `NAME/data/KEY` for each storage."""
  data = _mapped(path)
  try:
    with zipfile.ZipFile(path) as archive:
      records = {info.filename: info for info in archive.infolist()}
  except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
    raise Damaged('it is cut off or no whole zip file') from error
  pickled = [name for name in records if re.fullmatch(r'[^/]+/data\.pkl', name)]
  if len(pickled) != 1:
    raise Refused('is a zip file, but none of torch.save: it has no data.pkl')
  folder = pickled[0].removesuffix('data.pkl')
  if f'{folder}constants.pkl' in records:
    raise Refused('is a TorchScript program')
  order = bytes(_record(data, records[f'{folder}byteorder'])) if f'{folder}byteorder' in records else b'little'
  if order not in (b'little', b'big'):
    raise Damaged(f'it has the unknown byte order {order[:16]!r}')
  storages: dict[str, np.ndarray] = {}

  def persistent(value: Any) -> _Storage:
    kind, key, count = _storage_id(value, (5,))
    name = f'{folder}data/{key}'
    if name not in records:
      raise Damaged(f'it names a storage {key[:40]!r} that it does not have')
    if name not in storages:
      storages[name] = _record(data, records[name])
    need = count * _item_size(kind)
    if need > len(storages[name]):
      raise Damaged(f'it has {len(storages[name])} bytes of storage {key}, and says that it has {need}')
    return _Storage(kind, storages[name][:need], order == b'big', key)

  if records[pickled[0]].file_size > _LONGEST_PICKLE:
    raise Refused('has a pickle of more than 256 MB')
  pickle = io.BytesIO(bytes(_record(data, records[pickled[0]])))
  return read_pickle(pickle, calls=_CALLS, words=_WORDS, persistent=persistent)


def _record(data: np.ndarray, info: zipfile.ZipInfo) -> np.ndarray:
  """The bytes of one record of a zip file, checked."""
  if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
    raise Refused(f'has a compressed or encrypted record {info.filename[:60]!r}, which torch does not write')
  header = bytes(data[info.header_offset:info.header_offset + 30])
  if len(header) < 30 or header[:4] != b'PK\x03\x04':
    raise Damaged(f'its record {info.filename[:60]!r} is not where its directory says')
  start = info.header_offset + 30 + int.from_bytes(header[26:28], 'little') + int.from_bytes(header[28:30], 'little')
  found = data[start:start + info.file_size]
  if len(found) < info.file_size:
    raise Damaged(f'its record {info.filename[:60]!r} is cut off')
  if info.CRC and zlib.crc32(found) != info.CRC:
    raise Damaged(f'its record {info.filename[:60]!r} is damaged: its checksum differs')
  return found


def _read_legacy(path: pathlib.Path) -> Any:
  """torch.save before 1.6: pickles of a magic number, a version, the machine, the object and the storages' keys; then
  each storage as its number of elements (int64) and its elements, always the least significant byte first."""
  data = _mapped(path)
  kinds: dict[str, tuple[str, int]] = {}

  def collect(value: Any) -> None:
    kind, key, count = _legacy_id(value)
    if kinds.setdefault(key, (kind, count)) != (kind, count):
      raise Damaged(f'it describes storage {key[:40]!r} in two ways')

  def read(file: BinaryIO, calls: Mapping[Name, Callable[..., Any]], persistent: Any = collect) -> Any:
    return read_pickle(file, calls=calls, words=_WORDS, persistent=persistent)

  with open(path, 'rb') as file:
    if read(file, {}) != _LEGACY_MAGIC or read(file, {}) != _LEGACY_PROTOCOL:
      raise Refused('is a pickle, but none of torch.save')
    read(file, {})  # the machine
    start = file.tell()
    # Once to learn which storages there are, as they come after it, and once more to make the tensors.
    read(file, {**_CALLS, **dict.fromkeys(_TENSORS, lambda *_: None)})
    keys = read(file, {})
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(kinds):
      raise Damaged('its list of storages is not that of its tensors')
    storages = _legacy_storages(data, file.tell(), keys, kinds)
    file.seek(start)
    return read(file, _CALLS, lambda value: storages[_legacy_id(value)[1]])


def _legacy_id(value: Any) -> tuple[str, str, int]:
  if isinstance(value, tuple) and len(value) == 6 and value[5] is not None:
    raise Refused('has a view of a storage, which torch stopped writing with 0.4')
  return _storage_id(value, (5, 6))


def _legacy_storages(data: np.ndarray, place: int, keys: list[str],
                     kinds: Mapping[str, tuple[str, int]]) -> dict[str, _Storage]:
  """The storages that stand one after the other from `place` on."""
  storages = {}
  for key in keys:
    kind, count = kinds[key]
    end = place + 8 + count * _item_size(kind)
    if end > len(data) or int.from_bytes(bytes(data[place:place + 8]), 'little') != count:
      raise Damaged(f'its storage {key[:40]!r} is cut off or damaged')
    storages[key] = _Storage(kind, data[place + 8:end], False, key)
    place = end
  return storages


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  """safetensors: the length of the header (8 bytes), the header (JSON: dtype, shape, place), the tensors' bytes."""
  data = _mapped(path)
  length = int.from_bytes(bytes(data[:8]), 'little')
  if length > min(len(data) - 8, _LONGEST_HEADER):
    raise Damaged(f'its header of {length:,} bytes is longer than the file, or than 100 MB')
  try:
    header = json.loads(bytes(data[8:8 + length]), object_pairs_hook=_once)
  except Damaged:
    raise
  except (ValueError, RecursionError) as error:
    raise Damaged(f'its header is no JSON ({type(error).__name__})') from error
  body = data[8 + length:]
  return {name: _safetensor(name, row, body) for name, row in header.items() if name != '__metadata__'}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  if len(dict(pairs)) < len(pairs):
    raise Damaged('its header has a name twice')
  return dict(pairs)


def _safetensor(name: str, row: Any, body: np.ndarray) -> np.ndarray:
  """One tensor by its row of the header."""
  kind = _SAFETENSORS.get(str(row.get('dtype'))) if isinstance(row, dict) else None
  if kind is None:
    raise Damaged(f'its tensor {name[:60]!r} has no dtype that is read here ({", ".join(_SAFETENSORS)})')
  shape, place = row.get('shape'), row.get('data_offsets')
  if not all(isinstance(part, list) and all(type(n) is int and n >= 0 for n in part) for part in (shape, place)):
    raise Damaged(f'its tensor {name[:60]!r} has no shape or place')
  if len(place) != 2 or place[1] > len(body) or place[1] - place[0] != math.prod(shape) * _item_size(kind):
    raise Damaged(f'its tensor {name[:60]!r} of shape {_short(shape)} does not fit its place {_short(place)} in '
                     f'{len(body)} bytes')
  storage = _Storage(kind, body[place[0]:place[1]], False, name)
  strides = [math.prod(shape[i + 1:]) for i in range(len(shape))]
  return _tensor(storage, 0, shape, strides)


# The state dict in what was read.


def _find(content: Any, key: str | None, path: pathlib.Path) -> tuple[dict[str, np.ndarray], list[str]]:
  """The dict of tensors in a checkpoint, and notes: where it was, what was beside it."""
  notes = []
  if key is not None:
    if not isinstance(content, dict) or not _tensors(content.get(key)):
      raise ValueError(f'{path} has no state dict under {key!r}; {_contents(content)}')
    content = content[key]
  elif not _tensors(content):
    place = next((place for place in _PLACES if isinstance(content, dict) and _tensors(content.get(place))), None)
    if place is None:
      raise ValueError(f'{path} has no state dict; {_contents(content)}; name its place with key=')
    beside = [str(other) for other in content if other != place]
    notes.append(f'found under {place!r}' + (f'; beside it, and not used: {", ".join(beside)[:200]}' if beside else ''))
    content = content[place]
  tensors = _tensors(content)
  if others := [str(name) for name in content if name not in tensors]:
    notes.append(f'no tensors, and not used: {", ".join(others)[:200]}')
  return tensors, notes


def _tensors(content: Any) -> dict[str, np.ndarray]:
  """The tensors that stand in a dict under strings; none in anything else."""
  if not isinstance(content, dict):
    return {}
  return {name: value for name, value in content.items() if isinstance(value, np.ndarray) and isinstance(name, str)}


def _contents(content: Any) -> str:
  if not isinstance(content, dict):
    return f'it holds a {type(content).__name__}'
  return f'it holds {", ".join(map(str, content))[:200] or "an empty dict"}'


def _without_prefix(tensors: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
  """Takes off what wrappers (DataParallel, torch.compile, Lightning) put before every name."""
  taken = ''
  while found := next((p for p in _PREFIXES if tensors and all(name.startswith(p) for name in tensors)), None):
    tensors = {name.removeprefix(found): array for name, array in tensors.items()}
    taken += found
  return tensors, [f'the prefix {taken} of all names was taken off'] if taken else []
