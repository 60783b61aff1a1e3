"""State dicts out of files: what torch wrote is read to the bit, what is damaged is refused in one line."""

import functools
import json
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from tests.golden_files import FOLDER
from tests.pretrained.torch_files import (
  REBUILD,
  call,
  dictionary,
  integer,
  name,
  pickled,
  row,
  storage,
  tensor,
  text,
  write_legacy,
  write_zip,
)
from vision_jax.pretrained import read_state_dict, write_pth, write_safetensors

SIX = np.arange(6, dtype='<f4')
BF16 = (SIX.view('<u4') >> 16).astype('<u2')  # the same in bfloat16, which is the upper half of float32


@functools.cache
def truth():
  import importlib.util
  spec = importlib.util.spec_from_file_location('make_torch_files', FOLDER / 'make_torch_files.py')
  script = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(script)
  return script.arrays()


def check(found, expected):
  assert list(found) == list(expected)
  for key, array in expected.items():
    np.testing.assert_array_equal(found[key], array, err_msg=key)
    assert found[key].dtype == array.dtype and found[key].shape == np.shape(array), key


@pytest.mark.parametrize('file', ['torch_zip.pth', 'torch_legacy.pth'])
def test_what_torch_wrote_is_read_to_the_bit(file):
  found = read_state_dict(FOLDER / file)
  check(found, truth())
  assert found.source == str(FOLDER / file) and found.notes == ()


@pytest.mark.parametrize(('write', 'suffix'), [(write_pth, '.pth'), (write_safetensors, '.safetensors')])
def test_what_we_write_is_read_to_the_bit(write, suffix, tmp_path):
  path = tmp_path / f'model{suffix}'
  write(path, truth())
  check(read_state_dict(path), truth())
  first = path.read_bytes()
  write(path, truth())
  assert path.read_bytes() == first  # nothing of the clock
  assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_storages_are_aligned_as_torch_wants_them_for_its_own_mapping(tmp_path):
  write_pth(tmp_path / 'a.pth', {'weight': SIX, 'a name that is longer': SIX})
  with zipfile.ZipFile(tmp_path / 'a.pth') as archive:
    starts = [info.header_offset + len(info.FileHeader()) for info in archive.infolist() if '/data/' in info.filename]
  assert len(starts) == 2 and all(start % 64 == 0 for start in starts)


def test_a_big_endian_file_is_read_right_and_an_unknown_order_refused(tmp_path):
  pickle = pickled(dictionary(
      a=tensor((2, 3), (3, 1)), b=tensor((6,), (1,), kind='BFloat16Storage', key='1'),
      c=tensor((6,), (1,), kind='LongStorage', key='2'), d=tensor((6,), (1,), kind='BoolStorage', key='3')))
  storages = {'0': SIX.astype('>f4').tobytes(), '1': BF16.astype('>u2').tobytes(),
              '2': SIX.astype('>i8').tobytes(), '3': bytes([0, 1, 0, 1, 1, 0])}
  found = read_state_dict(write_zip(tmp_path / 'big.pth', pickle, storages, byteorder=b'big'))
  check(found, {'a': SIX.reshape(2, 3), 'b': SIX, 'c': SIX.astype(np.int64),
                'd': np.array([0, 1, 0, 1, 1, 0], bool)})
  with pytest.raises(ValueError, match=r"unknown byte order b'middle'; copy or download it again"):
    read_state_dict(write_zip(tmp_path / 'middle.pth', pickle, storages, byteorder=b'middle'))


def test_files_without_a_byte_order_and_old_files_of_any_machine_are_little_endian(tmp_path):
  pickle = pickled(dictionary(a=tensor((6,), (1,))))
  check(read_state_dict(write_zip(tmp_path / 'a.pth', pickle, {'0': SIX.tobytes()}, byteorder=None)), {'a': SIX})
  # torch has always written the old format least significant byte first, whatever the machine's record says.
  for little in (b'\x88', b'\x89'):
    check(read_state_dict(write_legacy(tmp_path / 'b.pth', pickle, [('0', 6, SIX.tobytes())], little=little)),
          {'a': SIX})


def test_views_of_one_storage_are_read_by_their_strides_and_offsets(tmp_path):
  pickle = pickled(dictionary(whole=tensor((2, 3), (3, 1)), transposed=tensor((3, 2), (1, 3)),
                              part=tensor((2, 2), (3, 2)), last=tensor((1,), (7,), 5),
                              none=tensor((0, 9), (9, 1)), repeated=tensor((4, 3), (0, 1), 3)))
  six = SIX.reshape(2, 3)
  check(read_state_dict(write_zip(tmp_path / 'a.pth', pickle, {'0': SIX.tobytes()})),
        {'whole': six, 'transposed': six.T, 'part': six[:, ::2], 'last': SIX[5:], 'none': np.zeros((0, 9), np.float32),
         'repeated': np.tile(SIX[3:], (4, 1))})


@pytest.mark.parametrize(('size', 'stride', 'offset'), [
    ((7,), (1,), 0),  # more than there is
    ((6,), (1,), 1),
    ((2, 3), (4, 1), 0),
    ((1,), (1,), 6),
    ((2,), (-1,), 1),  # backwards
    ((-2,), (1,), 0),
    ((6,), (1,), -1),
    ((2, 3), (1,), 0),  # an axis without a stride
    ((2 ** 62, 2 ** 62), (1, 1), 0),  # what overflows 64 bits
    ((2,), (2 ** 63,), 0),
    ((0,), (1,), 2 ** 70),
    ((2 ** 40,), (0,), 0),  # four terabytes out of four bytes
    ((1,) * 40, (1,) * 40, 0),
])
def test_a_tensor_outside_of_its_storage_is_refused(size, stride, offset, tmp_path):
  pickle = pickled(dictionary(a=tensor(size, stride, offset)))
  for path in (write_zip(tmp_path / 'a.pth', pickle, {'0': SIX.tobytes()}),
               write_legacy(tmp_path / 'b.pth', pickle, [('0', 6, SIX.tobytes())])):
    with pytest.raises(ValueError, match=r'it has a tensor of size .* which does not fit storage .* of 6 elements'):
      read_state_dict(path)


def test_sizes_that_are_no_numbers_are_refused(tmp_path):
  for wrong in (text('6'), b'\x88', b'N'):
    pickle = pickled(dictionary(a=call(REBUILD, storage(), integer(0), row(wrong), row(integer(1)), b'\x89')))
    with pytest.raises(ValueError, match=r'it has a tensor of size'):
      read_state_dict(write_zip(tmp_path / 'a.pth', pickle, {'0': SIX.tobytes()}))


def test_a_storage_that_is_cut_off_or_missing_is_refused(tmp_path):
  pickle = pickled(dictionary(a=tensor((6,), (1,))))
  with pytest.raises(ValueError, match='it has 20 bytes of storage 0, and says that it has 24'):
    read_state_dict(write_zip(tmp_path / 'a.pth', pickle, {'0': SIX.tobytes()[:20]}))
  for key in ('1', '../data.pkl', '/etc/passwd'):
    pickle = pickled(dictionary(a=tensor((6,), (1,), key=key)))
    with pytest.raises(ValueError, match=f"it names a storage '{key}' that it does not have"):
      read_state_dict(write_zip(tmp_path / 'a.pth', pickle, {'0': SIX.tobytes()}))
  pickle = pickled(dictionary(a=tensor((6,), (1,))))
  for storages in ([('0', 6, SIX.tobytes()[:20])], [('0', 5, SIX.tobytes())], [('0', -6, b'')]):
    with pytest.raises(ValueError, match="its storage '0' is cut off or damaged"):
      read_state_dict(write_legacy(tmp_path / 'b.pth', pickle, storages))
  with pytest.raises(ValueError, match='its list of storages is not that of its tensors'):
    read_state_dict(write_legacy(tmp_path / 'b.pth', pickle, [('1', 6, SIX.tobytes())]))


def test_compressed_records_are_refused_so_that_a_small_file_stays_small(tmp_path):
  pickle = pickled(dictionary(a=tensor((10 ** 6,), (1,), count=10 ** 6)))
  path = write_zip(tmp_path / 'bomb.pth', pickle, {'0': bytes(4 * 10 ** 6)}, compression=zipfile.ZIP_DEFLATED)
  assert path.stat().st_size < 10 ** 5
  with pytest.raises(ValueError, match='compressed or encrypted record'):
    read_state_dict(path)


def test_records_with_paths_are_never_written_anywhere(tmp_path):
  (tmp_path / 'inside').mkdir()
  path = write_zip(tmp_path / 'inside' / 'a.pth', pickled(dictionary(a=tensor((6,), (1,)))), {'0': SIX.tobytes()},
                   more=[('../escaped', b'x'), ('/escaped', b'x'), ('archive/data/../../../escaped', b'x')])
  check(read_state_dict(path), {'a': SIX})
  assert [each.name for each in tmp_path.iterdir()] == ['inside']
  assert [each.name for each in (tmp_path / 'inside').iterdir()] == ['a.pth']


def test_other_zip_files_are_refused(tmp_path):
  np.savez(tmp_path / 'a.npz', a=SIX)
  with pytest.raises(ValueError, match='is a zip file, but none of torch.save'):
    read_state_dict(tmp_path / 'a.npz')
  path = write_zip(tmp_path / 'a.pt', pickled(b'}'), more=[('archive/constants.pkl', b'')])
  with pytest.raises(ValueError, match='is a TorchScript program'):
    read_state_dict(path)
  path = write_zip(tmp_path / 'b.pt', pickled(b'}'), more=[('other/data.pkl', b'')])
  with pytest.raises(ValueError, match='none of torch.save'):
    read_state_dict(path)


def test_other_files_are_refused_by_their_first_bytes(tmp_path):
  path = tmp_path / 'a.pth'
  with pytest.raises(ValueError, match=r'a\.pth is no file'):
    read_state_dict(path)
  for content, said in ((b'', 'none'), (b'\x89HDF\r\n\x1a\n', '89 48 44 46'), (b'version https://git-lfs', '76 65 72')):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf'neither a file of torch .* nor safetensors; its first bytes are {said}'):
      read_state_dict(path)
  path.write_bytes(pickled(integer(5)))
  with pytest.raises(ValueError, match=r'is a pickle, but none of torch\.save'):
    read_state_dict(path)


@pytest.mark.parametrize('file', ['torch_zip.pth', 'torch_legacy.pth', 'safetensors'])
def test_a_file_cut_off_anywhere_is_refused(file, tmp_path):
  source = FOLDER / file
  if file == 'safetensors':
    source = tmp_path / 'whole.safetensors'
    write_safetensors(source, {'a': SIX, 'b': SIX})
  whole, path = source.read_bytes(), tmp_path / 'a.pth'
  for length in range(0, len(whole), max(1, len(whole) // 150)):
    path.write_bytes(whole[:length])
    with pytest.raises(ValueError):
      read_state_dict(path)


@pytest.mark.parametrize('file', ['torch_zip.pth', 'torch_legacy.pth', 'safetensors'])
def test_no_flipped_byte_raises_anything_but_one_line(file, tmp_path):
  source = FOLDER / file
  if file == 'safetensors':
    source = tmp_path / 'whole.safetensors'
    write_safetensors(source, {'a': SIX, 'b': SIX})
  whole, path = source.read_bytes(), tmp_path / 'a.pth'
  rng, refused = np.random.RandomState(0), 0
  for _ in range(250):
    damaged = bytearray(whole)
    for place in rng.randint(0, len(whole), rng.randint(1, 4)):
      damaged[place] = rng.randint(256)
    path.write_bytes(damaged)
    try:
      read_state_dict(path)
    except ValueError as error:
      assert '\n' not in str(error) and str(path) in str(error)
      refused += 1
  assert refused > 25


def test_a_changed_number_in_a_zip_file_is_noticed(tmp_path):
  path = write_zip(tmp_path / 'a.pth', pickled(dictionary(a=tensor((6,), (1,)))), {'0': SIX.tobytes()})
  content = path.read_bytes()
  path.write_bytes(content.replace(SIX.tobytes(), (SIX + 1).astype('<f4').tobytes()))
  with pytest.raises(ValueError, match="its record 'archive/data/0' is damaged: its checksum differs"):
    read_state_dict(path)


@pytest.mark.parametrize('write', [write_pth, write_safetensors])
def test_reading_takes_no_memory_until_an_array_is_used(write, tmp_path):
  path = tmp_path / 'large'
  write(path, {'a': np.ones((8, 2 ** 20), np.float32)})
  tracemalloc.start()
  found = read_state_dict(path)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 2 ** 20 < path.stat().st_size / 30
  assert found['a'].sum() == 8 * 2 ** 20 and not found['a'].flags.writeable


# safetensors.


def safetensors(path, header, body=b''):
  header = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(struct.pack('<Q', len(header)) + header + body)
  return path


def entry(dtype='F32', shape=(6,), offsets=(0, 24)):
  return {'dtype': dtype, 'shape': list(shape), 'data_offsets': list(offsets)}


def test_safetensors_are_read_with_metadata_and_bfloat16(tmp_path):
  body = SIX.tobytes() + BF16.tobytes()
  path = safetensors(tmp_path / 'a.safetensors', {
      '__metadata__': {'format': 'pt'}, 'b': entry('BF16', (3, 2), (24, 36)), 'a': entry()}, body)
  check(read_state_dict(path), {'b': SIX.reshape(3, 2), 'a': SIX})


@pytest.mark.parametrize(('header', 'fault'), [
    ({'a': entry(offsets=(0, 28))}, 'does not fit its place'),
    ({'a': entry(offsets=(4, 28))}, 'does not fit its place'),
    ({'a': entry(offsets=(24, 0))}, 'does not fit its place'),
    ({'a': entry(shape=(5,))}, 'does not fit its place'),
    ({'a': entry(shape=(2 ** 62, 4))}, 'does not fit its place'),
    ({'a': entry(offsets=(0, 24, 3))}, 'does not fit its place'),
    ({'a': entry(shape=(-6,))}, 'has no shape or place'),
    ({'a': entry(shape=(6.0,))}, 'has no shape or place'),
    ({'a': entry(dtype='F8_E4M3')}, 'has no dtype that is read here'),
    ({'a': 5}, 'has no dtype that is read here'),
    ({'a': {'dtype': 'F32'}}, 'has no shape or place'),
    (b'{"a": 1, "a": 2}', 'a name twice'),
    (b'{"a": ', 'is no JSON'),
    (b'{"a": ' + b'[' * 100_000, 'is no JSON'),
    (b'{"\xff": 1}', 'is no JSON'),
    (b'{"a": ' + b'9' * 5000 + b'}', 'is no JSON'),
])
def test_a_wrong_header_of_safetensors_is_refused(header, fault, tmp_path):
  with pytest.raises(ValueError, match=rf'a\.safetensors: .*{fault}.*; copy or download it again'):
    read_state_dict(safetensors(tmp_path / 'a.safetensors', header, SIX.tobytes()))


def test_a_header_longer_than_the_file_is_refused(tmp_path):
  path = tmp_path / 'a.safetensors'
  path.write_bytes(struct.pack('<Q', 2 ** 40) + b'{"a": 1}')
  with pytest.raises(ValueError, match='longer than the file'):
    read_state_dict(path)


# The state dict in a checkpoint.


def test_the_state_dict_of_a_trainers_checkpoint_is_found_and_said(tmp_path):
  model = b'}(' + text('module.a') + tensor((6,), (1,)) + text('module.b') + tensor((2, 3), (3, 1)) + b'u'
  optimiser = b'}(' + text('lr') + b'G' + struct.pack('>d', 0.1) + b'u'
  milestones = call(name('collections', 'Counter'), b'}(' + integer(30) + integer(1) + b'u')
  pickle = pickled(dictionary(epoch=integer(90), model=model, optimizer=optimiser, schedule=milestones))
  path = write_zip(tmp_path / 'a.pth', pickle, {'0': SIX.tobytes()})
  found = read_state_dict(path)
  check(found, {'a': SIX, 'b': SIX.reshape(2, 3)})
  assert found.notes == ("found under 'model'; beside it, and not used: epoch, optimizer, schedule",
                         'the prefix module. of all names was taken off')


def test_the_place_of_the_state_dict_can_be_named(tmp_path):
  both = dictionary(model=dictionary(a=tensor((6,), (1,))), model_ema=dictionary(a=tensor((3,), (2,))))
  path = write_zip(tmp_path / 'a.pth', pickled(both), {'0': SIX.tobytes()})
  check(read_state_dict(path), {'a': SIX})
  check(read_state_dict(path, key='model_ema'), {'a': SIX[::2]})
  with pytest.raises(ValueError, match="no state dict under 'ema'; it holds model, model_ema"):
    read_state_dict(path, key='ema')
  path = write_zip(tmp_path / 'b.pth', pickled(dictionary(teacher=dictionary(a=tensor((6,), (1,))))),
                   {'0': SIX.tobytes()})
  with pytest.raises(ValueError, match='has no state dict; it holds teacher; name its place'):
    read_state_dict(path)
  path = write_zip(tmp_path / 'c.pth', pickled(integer(7)))
  with pytest.raises(ValueError, match='has no state dict; it holds a int'):
    read_state_dict(path)


def test_a_dtype_that_no_file_has_is_not_written(tmp_path):
  for write in (write_pth, write_safetensors):
    with pytest.raises(ValueError, match='a is of dtype complex64, which is not written'):
      write(tmp_path / 'a', {'a': SIX.astype(np.complex64)})
