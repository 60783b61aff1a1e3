"""Files of tensors that torch and safetensors load, written without them."""

from __future__ import annotations

from collections.abc import Mapping
import json
import pathlib
import struct
import zipfile

import numpy as np

_STORAGES = {'float32': 'FloatStorage', 'float64': 'DoubleStorage', 'float16': 'HalfStorage', 'int64': 'LongStorage',
             'int32': 'IntStorage', 'int16': 'ShortStorage', 'int8': 'CharStorage', 'uint8': 'ByteStorage',
             'bool': 'BoolStorage', 'bfloat16': 'BFloat16Storage'}
_SAFETENSORS = {'float32': 'F32', 'float64': 'F64', 'float16': 'F16', 'int64': 'I64', 'int32': 'I32', 'int16': 'I16',
                'int8': 'I8', 'uint8': 'U8', 'bool': 'BOOL', 'bfloat16': 'BF16'}
_ALIGNMENT = 64  # bytes, of each storage in the file, as torch has them
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same arrays give the same file


def write_pth(path: str | pathlib.Path, state_dict: Mapping[str, np.ndarray]) -> None:
  """Writes a state dict as torch.save does (the zip format), so that torch.load reads it, `weights_only` too.

  Args:
    path: of the file; an existing one is replaced.
    state_dict: name -> array, of bool, integers of 8 to 64 bits, or floats of 16 to 64 bits.

  Raises:
    ValueError: an array of another dtype.
  """
  path = pathlib.Path(path)
  arrays = {name: _plain(name, array, _STORAGES) for name, array in state_dict.items()}
  unfinished = path.with_name(f'{path.name}.tmp')
  folder = 'archive'
  with zipfile.ZipFile(unfinished, 'w', zipfile.ZIP_STORED) as archive:
    _add(archive, f'{folder}/data.pkl', _pickle(arrays))
    _add(archive, f'{folder}/byteorder', b'little')
    for key, array in enumerate(arrays.values()):
      _add(archive, f'{folder}/data/{key}', array.tobytes())
    _add(archive, f'{folder}/version', b'3\n')
  unfinished.replace(path)


def write_safetensors(path: str | pathlib.Path, state_dict: Mapping[str, np.ndarray]) -> None:
  """Writes a state dict in the format of safetensors.

  Args:
    path: of the file; an existing one is replaced.
    state_dict: as in `write_pth`.

  Raises:
    ValueError: an array of another dtype.
  """
  path = pathlib.Path(path)
  arrays = {name: _plain(name, array, _SAFETENSORS) for name, array in state_dict.items()}
  header, place = {'__metadata__': {'format': 'pt'}}, 0
  for name, array in arrays.items():
    header[name] = {'dtype': _SAFETENSORS[array.dtype.name], 'shape': list(array.shape),
                    'data_offsets': [place, place + array.nbytes]}
    place += array.nbytes
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)  # so that the tensors are aligned
  unfinished = path.with_name(f'{path.name}.tmp')
  with open(unfinished, 'wb') as file:
    file.write(struct.pack('<Q', len(text)) + text)
    for array in arrays.values():
      file.write(array.tobytes())
  unfinished.replace(path)


def _plain(name: str, array: np.ndarray, known: Mapping[str, str]) -> np.ndarray:
  """The array in one piece, the least significant byte first."""
  array = np.asarray(array)
  if array.dtype.name not in known:
    raise ValueError(f'{name} is of dtype {array.dtype}, which is not written; known: {", ".join(known)}')
  return np.ascontiguousarray(array, array.dtype.newbyteorder('<')).reshape(array.shape)


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
  """One record, its content aligned."""
  info = zipfile.ZipInfo(name, _EPOCH)
  start = archive.fp.tell() + 30 + len(name.encode()) + 4
  # torch's own padding: an extra field 'FB' of as many bytes as are needed.
  padding = -start % _ALIGNMENT
  info.extra = b'FB' + struct.pack('<H', padding) + b'Z' * padding
  archive.writestr(info, content)


# The pickle, in protocol 2, as torch writes it.


def _pickle(arrays: Mapping[str, np.ndarray]) -> bytes:
  """An OrderedDict of name -> torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())."""
  parts = [b'\x80\x02', _ORDERED_DICT, b'(']
  for key, (name, array) in enumerate(arrays.items()):
    strides = [stride // array.itemsize for stride in array.strides]
    parts += [_text(name), _name('torch._utils', '_rebuild_tensor_v2'),
              b'((', _text('storage'), _name('torch', _STORAGES[array.dtype.name]), _text(str(key)), _text('cpu'),
              _integer(array.size), b'tQ', _integer(0), _tuple(array.shape), _tuple(strides), b'\x89', _ORDERED_DICT,
              b'tR']
  return b''.join([*parts, b'u', _METADATA, b'.'])


def _name(module: str, name: str) -> bytes:
  return b'c' + module.encode() + b'\n' + name.encode() + b'\n'


def _text(text: str) -> bytes:
  return b'X' + struct.pack('<I', len(text.encode())) + text.encode()


def _integer(number: int) -> bytes:
  if number < 1 << 31:
    return b'J' + struct.pack('<i', number)
  return b'\x8a\x08' + struct.pack('<q', number)


def _tuple(numbers: tuple[int, ...] | list[int]) -> bytes:
  return b'(' + b''.join(map(_integer, numbers)) + b't'


_ORDERED_DICT = _name('collections', 'OrderedDict') + b')R'
# The dict's attribute {'_metadata': {'': {'version': 2}}}: torchvision's MNASNet loads no state dict without it.
_METADATA = b'}' + _text('_metadata') + _ORDERED_DICT + _text('') + b'}' + _text('version') + _integer(2) + b'sssb'
