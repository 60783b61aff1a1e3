"""Files such as torch writes, put together instruction by instruction, right and wrong."""

import struct
import zipfile

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def name(module: str, attribute: str) -> bytes:
  return f'c{module}\n{attribute}\n'.encode()


def text(value: str) -> bytes:
  return b'X' + struct.pack('<I', len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
  if -2 ** 31 <= value < 2 ** 31:
    return b'J' + struct.pack('<i', value)
  size = value.bit_length() // 8 + 1
  return b'\x8a' + bytes([size]) + value.to_bytes(size, 'little', signed=True)


def row(*parts: bytes) -> bytes:
  return b'(' + b''.join(parts) + b't'


def call(function: bytes, *parts: bytes) -> bytes:
  return function + row(*parts) + b'R'


ORDERED_DICT = call(name('collections', 'OrderedDict'))
REBUILD = name('torch._utils', '_rebuild_tensor_v2')


def storage(kind='FloatStorage', key='0', count=6) -> bytes:
  return row(text('storage'), name('torch', kind), text(key), text('cpu'), integer(count)) + b'Q'


def tensor(size, stride, offset=0, *, kind='FloatStorage', key='0', count=6) -> bytes:
  return call(REBUILD, storage(kind, key, count), integer(offset), row(*map(integer, size)),
              row(*map(integer, stride)), b'\x89', ORDERED_DICT)


def dictionary(**values: bytes) -> bytes:
  """The instructions that leave an OrderedDict of these on the stack."""
  return ORDERED_DICT + b'(' + b''.join(text(key) + value for key, value in values.items()) + b'u'


def pickled(instructions: bytes) -> bytes:
  return b'\x80\x02' + instructions + b'.'


def write_zip(path, pickle: bytes, storages=None, *, byteorder=b'little', compression=zipfile.ZIP_STORED, more=()):
  """`storages`: key -> bytes; `more`: (name, bytes) of further records."""
  with zipfile.ZipFile(path, 'w', compression) as archive:
    archive.writestr('archive/data.pkl', pickle)
    if byteorder is not None:
      archive.writestr('archive/byteorder', byteorder)
    for key, content in (storages or {}).items():
      archive.writestr(f'archive/data/{key}', content)
    for title, content in more:
      archive.writestr(title, content)
    archive.writestr('archive/version', b'3\n')
  return path


def write_legacy(path, pickle: bytes, storages=(), *, magic=MAGIC, little=b'\x88'):
  """`storages`: (key, number of elements, bytes)."""
  machine = b'}(' + text('little_endian') + little + text('protocol_version') + integer(PROTOCOL) + b'u'
  keys = b'](' + b''.join(text(key) for key, _, _ in storages) + b'e'
  parts = [pickled(integer(magic)), pickled(integer(PROTOCOL)), pickled(machine), pickle, pickled(keys)]
  parts += [struct.pack('<q', count) + content for _, count, content in storages]
  path.write_bytes(b''.join(parts))
  return path
