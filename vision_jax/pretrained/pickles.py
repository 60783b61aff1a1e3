"""A reader of pickles that runs nothing: a file can name tensors, dicts, lists, numbers and strings, and no more.

A pickle is a program for a small machine whose instructions can call any function that the file names. Here each
instruction that a state dict needs is written out, a name is a pair of strings that is looked up in a table of ours,
and whatever is not in the table ends the reading. Python's own unpickler is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import pickletools
from typing import Any, BinaryIO, NamedTuple

_KEYS = (str, int, float, bool, type(None))
_MOST_ARGUMENTS = 1 << 24  # elements and characters in the arguments of all calls of a pickle


class Name(NamedTuple):
  """What a pickle names, as two strings; never the thing itself."""

  module: str
  name: str

  def __str__(self) -> str:
    return f'{self.module}.{self.name}'


class Refused(ValueError):
  """The file asks for what no state dict needs."""


class Damaged(ValueError):
  """The file contradicts itself."""


def read_pickle(file: BinaryIO, *, calls: Mapping[Name, Callable[..., Any]], words: frozenset[Name],
                persistent: Callable[[Any], Any]) -> Any:
  """The object that the pickle at a file's position describes; the position is then behind it.

  Args:
    file: of bytes.
    calls: what the pickle may call by name, each a function of ours.
    words: what it may name without calling it; stands in the result as a `Name`.
    persistent: gives what a persistent id stands for.

  Returns:
    Dicts, lists, tuples, strings, bytes, numbers, None, and what `calls` and `persistent` give.

  Raises:
    Refused: another name or instruction.
    Damaged: an instruction without what it needs.
  """
  machine = _Machine(calls, words, persistent)
  place = 0
  try:
    for opcode, argument, position in pickletools.genops(file):
      place = position or 0
      if opcode.name == 'STOP':
        return machine.pop()
      step = _STEPS.get(opcode.name)
      if step is None:
        raise Refused(f'has the instruction {opcode.name} at byte {place}, which no state dict needs')
      step(machine, argument)
  except (Refused, Damaged):
    raise
  except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, MemoryError,
          RecursionError) as error:
    raise Damaged(f'its pickle is damaged at byte {place} ({type(error).__name__})') from error
  raise Damaged(f'its pickle ends without an end mark at byte {place}')


class _Machine:
  """The stack, the marks on it, and the memory."""

  def __init__(self, calls: Mapping[Name, Callable[..., Any]], words: frozenset[Name],
               persistent: Callable[[Any], Any]):
    self.calls, self.words, self.persistent = calls, words, persistent
    self.stack: list[Any] = []
    self.below: list[list[Any]] = []  # the stacks under each mark
    self.memory: dict[int, Any] = {}
    self.spent = 0

  def push(self, value: Any) -> None:
    self.stack.append(value)

  def pop(self) -> Any:
    return self.stack.pop()

  def mark(self) -> None:
    self.below.append(self.stack)
    self.stack = []

  def pop_to_mark(self) -> list[Any]:
    found, self.stack = self.stack, self.below.pop()
    return found

  def pop_many(self, count: int) -> tuple[Any, ...]:
    if count > len(self.stack):
      raise IndexError
    found = tuple(self.stack[len(self.stack) - count:])
    del self.stack[len(self.stack) - count:]
    return found

  def name(self, module: Any, name: Any) -> None:
    if not (isinstance(module, str) and isinstance(name, str)):
      raise TypeError
    found = Name(module, name)
    if found not in self.calls and found not in self.words:
      raise Refused(f'asks for {str(found)[:80]!r}, which is no part of a state dict')
    self.push(found)

  def call(self) -> None:
    arguments, function = self.pop(), self.pop()
    if not isinstance(function, Name) or function not in self.calls:
      raise Refused(f'calls {function if isinstance(function, Name) else "what is no name"}')
    if not isinstance(arguments, tuple):
      raise TypeError
    # Calls may copy what they get, and a few bytes give them the same long list again; an honest file gives it once.
    self.spent += sum(len(value) for value in arguments if type(value) in (str, list, tuple, dict))
    if self.spent > _MOST_ARGUMENTS:
      raise Refused(f'calls {function} and others with more than {_MOST_ARGUMENTS:,} elements')
    self.push(self.calls[function](*arguments))

  def set_items(self, items: list[Any]) -> None:
    target = self.stack[-1]
    if not isinstance(target, dict) or len(items) % 2:
      raise TypeError
    for key, value in zip(items[::2], items[1::2], strict=True):
      if not isinstance(key, _KEYS):  # a nested tuple could take the stack down when it is hashed
        raise TypeError
      target[key] = value

  def append(self, items: list[Any]) -> None:
    if not isinstance(self.stack[-1], list):
      raise TypeError
    self.stack[-1].extend(items)

  def build(self) -> None:
    """Leaves out the attributes that a pickle sets: a state dict's are its modules' versions."""
    self.pop()
    if not isinstance(self.stack[-1], dict):
      raise Refused(f'sets attributes of a {type(self.stack[-1]).__name__}')

  def put(self, place: int) -> None:
    self.memory[place] = self.stack[-1]


def _value(machine: _Machine, argument: Any) -> None:
  machine.push(argument)


def _constant(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
  return lambda machine, argument: machine.push(make())


_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    'PROTO': lambda machine, argument: None,
    'FRAME': lambda machine, argument: None,
    'NONE': _constant(lambda: None),
    'NEWTRUE': _constant(lambda: True),
    'NEWFALSE': _constant(lambda: False),
    'EMPTY_DICT': _constant(dict),
    'EMPTY_LIST': _constant(list),
    'EMPTY_TUPLE': _constant(tuple),
    **dict.fromkeys(('INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'BINFLOAT', 'BINUNICODE',
                     'SHORT_BINUNICODE', 'BINUNICODE8', 'BINSTRING', 'SHORT_BINSTRING', 'BINBYTES', 'SHORT_BINBYTES',
                     'BINBYTES8'), _value),
    'MARK': lambda machine, argument: machine.mark(),
    'POP': lambda machine, argument: machine.pop(),
    'POP_MARK': lambda machine, argument: machine.pop_to_mark(),
    'DUP': lambda machine, argument: machine.push(machine.stack[-1]),
    'TUPLE': lambda machine, argument: machine.push(tuple(machine.pop_to_mark())),
    'TUPLE1': lambda machine, argument: machine.push(machine.pop_many(1)),
    'TUPLE2': lambda machine, argument: machine.push(machine.pop_many(2)),
    'TUPLE3': lambda machine, argument: machine.push(machine.pop_many(3)),
    'APPEND': lambda machine, argument: machine.append(list(machine.pop_many(1))),
    'APPENDS': lambda machine, argument: machine.append(machine.pop_to_mark()),
    'SETITEM': lambda machine, argument: machine.set_items(list(machine.pop_many(2))),
    'SETITEMS': lambda machine, argument: machine.set_items(machine.pop_to_mark()),
    'GLOBAL': lambda machine, argument: machine.name(*argument.split(' ', 1)),
    'STACK_GLOBAL': lambda machine, argument: machine.name(*machine.pop_many(2)),
    'REDUCE': lambda machine, argument: machine.call(),
    'BUILD': lambda machine, argument: machine.build(),
    'BINPERSID': lambda machine, argument: machine.push(machine.persistent(machine.pop())),
    'BINPUT': lambda machine, argument: machine.put(argument),
    'LONG_BINPUT': lambda machine, argument: machine.put(argument),
    'MEMOIZE': lambda machine, argument: machine.put(len(machine.memory)),
    'BINGET': lambda machine, argument: machine.push(machine.memory[argument]),
    'LONG_BINGET': lambda machine, argument: machine.push(machine.memory[argument]),
}
