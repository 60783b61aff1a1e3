"""A weight file that asks for anything but tensors is refused, and nothing that it names ever runs."""

import pytest

from tests.pretrained.torch_files import (
  ORDERED_DICT,
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
from vision_jax.pretrained import read_state_dict

TRACE = 'import pathlib; pathlib.Path({!r}).touch()'
GOOD = tensor((2, 3), (3, 1))


def stack_name(module: str, attribute: str) -> bytes:
  """Protocol 4's way to name something."""
  return text(module) + text(attribute) + b'\x93'


def doubled(depth: int) -> bytes:
  """A tuple of a tuple twice, and so on: 2 ** depth parts, written in two bytes each and of no size in memory."""
  return b')' + b'q\x06h\x06\x86' * depth


# What a pickle could do to run the command, or to make an object of a class it chooses.
ATTACKS = {
    'os.system': lambda command: call(name('os', 'system'), text(f'python3 -c "{command}"')),
    'posix.system': lambda command: call(name('posix', 'system'), text(f'python3 -c "{command}"')),
    'eval by protocol 4': lambda command: call(stack_name('builtins', 'eval'), text(f'exec({command!r})')),
    'exec': lambda command: call(name('builtins', 'exec'), text(command)),
    'Python 2 exec': lambda command: call(name('__builtin__', 'exec'), text(command)),
    'subprocess': lambda command: call(name('subprocess', 'Popen'), text('true')),
    'getattr': lambda command: call(name('builtins', 'getattr'), ORDERED_DICT, text('__class__')),
    'import': lambda command: call(name('importlib', 'import_module'), text('os')),
    'dotted name': lambda command: call(name('collections', 'OrderedDict.fromkeys'), row()),
    'a whole module of torch': lambda command: name('torch.nn.modules.linear', 'Linear') + b')\x81}b',
    'torch.load': lambda command: call(name('torch', 'load'), text('x')),
    'numpy': lambda command: call(name('numpy.core.multiarray', '_reconstruct'), integer(0)),
    'INST': lambda command: b'(' + text(command) + b'ibuiltins\nexec\n',
    'OBJ': lambda command: b'(' + name('builtins', 'exec') + text(command) + b'o',
    'NEWOBJ': lambda command: name('collections', 'OrderedDict') + b')\x81',
    'an extension code': lambda command: b'\x82\x01',
    'a parameter of what is no tensor': lambda command: call(name('torch._utils', '_rebuild_parameter'), text(command)),
    'a tensor made by another function': lambda command: call(
        name('torch._tensor', '_rebuild_from_type_v2'), name('builtins', 'exec'), name('torch', 'Tensor'),
        row(text(command)), b'N'),
    'a tensor made by a word': lambda command: call(
        name('torch._tensor', '_rebuild_from_type_v2'), name('torch', 'Tensor'), name('torch', 'Tensor'),
        row(text(command)), b'N'),
    'a call of what is no name': lambda command: call(text('os.system'), text(command)),
    'a call of a word': lambda command: call(name('torch', 'FloatStorage'), text(command)),
    'attributes of a tensor': lambda command: GOOD + b'}(' + text('__class__') + text(command) + b'ub',
    'a device of tuples in tuples': lambda command: call(name('torch', 'device'), doubled(40)),
    'a device with tuples as its number': lambda command: call(name('torch', 'device'), text('cpu'), doubled(40)),
    'a device of a long text': lambda command: call(name('torch', 'device'), text('x' * 1000)),
    'a size of tuples in tuples': lambda command: call(name('torch', 'Size'), doubled(40)),
    'a long size': lambda command: call(name('torch', 'Size'), row(*[integer(1)] * 65)),
    'a text that is given to calls again and again': lambda command: row(
        text('x' * 1_000_000) + b'q\x07' + b'0',
        *[call(name('_codecs', 'encode'), b'h\x07', text('latin1'))] * 20),
    'a codec': lambda command: call(name('_codecs', 'encode'), text(command), text('zlib')),
    'a set of state by a tuple': lambda command: row(text(command)) + b'}b',
    'a persistent id that is a text': lambda command: b'P' + b'0\n',
    'a persistent id that is no tuple': lambda command: text('storage') + b'Q',
    'a persistent id of a module': lambda command: row(text('module'), name('torch', 'Tensor'), text('a'), text('b'),
                                                       integer(1)) + b'Q',
    'a persistent id of no storage type': lambda command: row(text('storage'), name('torch', 'Tensor'), text('0'),
                                                              text('cpu'), integer(6)) + b'Q',
    'a persistent id with a number as its key': lambda command: row(
        text('storage'), name('torch', 'FloatStorage'), integer(0), text('cpu'), integer(6)) + b'Q',
    'a persistent id with a negative length': lambda command: storage(count=-1),
    'a persistent id that is too short': lambda command: row(text('storage'), name('torch', 'FloatStorage')) + b'Q',
    'a tensor of what is no storage': lambda command: call(REBUILD, text('x'), integer(0), row(), row(), b'\x89'),
}


@pytest.mark.parametrize('write', ['zip', 'legacy'])
@pytest.mark.parametrize('attack', ATTACKS)
def test_what_is_no_tensor_is_refused_and_never_run(attack, write, tmp_path):
  trace = tmp_path / 'it ran'
  harm = ATTACKS[attack](TRACE.format(str(trace)))
  pickle = pickled(dictionary(weight=GOOD, harm=harm))
  path = tmp_path / 'model.pth'
  if write == 'zip':
    write_zip(path, pickle, {'0': bytes(24)})
  else:
    write_legacy(path, pickle, [('0', 6, bytes(24))])
  with pytest.raises(ValueError, match=r'model\.pth.* nothing of it was run\. Save the tensors alone'):
    read_state_dict(path)
  assert not trace.exists()


def test_the_line_names_what_was_asked_for(tmp_path):
  path = write_zip(tmp_path / 'a.pth', pickled(ATTACKS['os.system']('')))
  with pytest.raises(ValueError, match=r"a\.pth asks for 'os\.system', which is no part of a state dict"):
    read_state_dict(path)


# Pickles that are no attack on the machine, but on the reader's stack, memory or patience.
BROKEN = {
    'nothing': b'',
    'no end': b'\x80\x02}',
    'an empty stack': b'\x80\x02.',
    'a mark that is missing': b'\x80\x02}u.',
    'a place of the memory that is empty': b'\x80\x02h\x05.',
    'an instruction that does not exist': b'\x80\x02\xff.',
    'a text that is longer than the file': b'\x80\x02X\xff\xff\xff\x7fabc.',
    'a number of two thousand million bytes': b'\x80\x02\x8b\xff\xff\xff\x7f\x01.',
    'a tuple as a key': b'\x80\x02}(' + row(integer(1)) + integer(2) + b'u.',
    'a deep tuple as a key': b'\x80\x02}()' + b'\x85' * 200_000 + integer(2) + b'u.',
    'an odd number of items': b'\x80\x02}(' + text('a') + b'u.',
    'items for a list': b'\x80\x02](' + text('a') + text('b') + b'u.',
    'an append to a dict': b'\x80\x02}' + integer(1) + b'a.',
    'arguments that are no tuple': b'\x80\x02' + name('collections', 'OrderedDict') + b']R.',
    'a tensor with too few arguments': pickled(call(REBUILD, storage())),
    'a name of numbers': b'\x80\x04' + integer(1) + integer(2) + b'\x93.',
    'a memory of four thousand million places': b'\x80\x02}r\xff\xff\xff\xff0h\x00.',
    'a number of ten thousand digits': b'\x80\x02I' + b'9' * 10_000 + b'\n.',
}


@pytest.mark.parametrize('pickle', BROKEN)
def test_a_broken_pickle_is_one_line(pickle, tmp_path):
  path = write_zip(tmp_path / 'model.pth', BROKEN[pickle], {'0': bytes(24)})
  with pytest.raises(ValueError, match=r'model\.pth: its pickle (is damaged|ends)[^\n]*; copy or download it again$'):
    read_state_dict(path)


def test_tuples_in_tuples_are_never_written_out(tmp_path):
  size = call(REBUILD, storage(), integer(0), doubled(40), doubled(40), b'\x89', ORDERED_DICT)
  path = write_zip(tmp_path / 'model.pth', pickled(size), {'0': bytes(24)})
  with pytest.raises(ValueError, match=r'it has a tensor of size \(a tuple, a tuple\), stride \(a tuple, a tuple\)'):
    read_state_dict(path)
  path = write_legacy(tmp_path / 'old.pth', pickled(dictionary(weight=GOOD)), [('0', 6, bytes(24))])
  keys = pickled(b'](' + text('0') + b'e')
  content = path.read_bytes()
  assert content.count(keys) == 1
  path.write_bytes(content.replace(keys, pickled(b'](' + doubled(40) + b'e')))
  with pytest.raises(ValueError, match=r'old\.pth: its list of storages is not that of its tensors'):
    read_state_dict(path)


def test_a_list_in_itself_and_a_memory_shared_by_all_are_no_harm(tmp_path):
  loop = b']q\x00h\x00a'
  path = write_zip(tmp_path / 'model.pth', pickled(dictionary(weight=GOOD, loop=loop)), {'0': bytes(24)})
  found = read_state_dict(path)
  assert list(found) == ['weight']
  assert found.notes == ('no tensors, and not used: loop',)
