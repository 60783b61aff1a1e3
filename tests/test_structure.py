"""The house stands as designed: who imports whom, where things live, and how long a function may be.

A rule takes the texts of the tree, `{path: text}`, and gives back one line for each place that breaks it. Each is run
on the real tree, and on a small example that breaks it, so that no rule can pass by looking at nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
import functools
import io
import json
import os
import pathlib
import re
import tokenize

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
Tree = Mapping[str, str]

# Room -> what it may import of ours. A room may always import itself; one that does not exist yet has its row already.
MAY_IMPORT = {
  'conventions': (),
  'host': ('conventions',),
  'ops': ('conventions',),
  'losses': ('conventions', 'ops'),
  'models': ('conventions', 'ops'),
  'pretrained': ('conventions', 'models'),
  'metrics': ('conventions', 'host'),
  'data': ('conventions', 'host'),
  'tasks': ('conventions', 'ops', 'losses', 'models', 'metrics'),
  'train': ('conventions', 'tasks.base'),
  'viz': ('conventions', 'host'),
  'inspect': ('conventions', 'ops', 'models', 'tasks', 'viz'),
  'build': ('conventions', 'host', 'ops', 'losses', 'models', 'pretrained', 'metrics', 'data', 'tasks', 'train', 'viz',
            'inspect'),
}

# Library -> the only places in vision_jax that may import it; none at all for what the project does without.
ONLY_IN = {
  'tensorflow': (),
  'tf_keras': (),
  'keras': (),
  'torch': (),
  'torchvision': (),
  'clu': (),  # its writers need TensorFlow
  'chex': (),  # for tests alone
  'ml_collections': (),  # library code sees plain dicts
  'orbax': ('train/checkpoint.py',),
  'tensorflow_datasets': ('data/',),
  'sklearn': ('data/',),
  'tensorboardX': ('train/log.py',),
}
EVERYWHERE_OUT = ('tensorflow', 'tf_keras', 'keras', 'torch', 'torchvision', 'clu')  # of programs and tests too
# What runs by hand in a Python that has torch: the scripts that made the golden arrays, and the benchmarks' peer.
WITH_TORCH = ('tests/golden/', 'experiments/benches/torch_peer.py')
NUMPY_ROOMS = ('conventions', 'host', 'data', 'metrics')  # host code: it must run where jax is not loaded
JAX_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax', 'chex')

LONGEST_FUNCTION = 80
MEDIAN_FUNCTION = 20
COLLECTIVES = ('psum', 'pmean', 'pmax', 'pmin', 'all_gather', 'all_to_all', 'ppermute', 'psum_scatter', 'axis_index',
               'axis_size')
ATTICS = re.compile(r'(^|/)(utils?|misc|helpers?|common_lib|\w+_v\d+)(\.py$|/)')


# What the rules look at.


@functools.cache
def parsed(text: str) -> ast.Module:
  return ast.parse(text)


def modules(tree: Tree, *folders: str) -> Iterator[tuple[str, ast.Module]]:
  """The Python files in these folders, or all of them."""
  for path, text in sorted(tree.items()):
    if path.endswith('.py') and (not folders or path.startswith(tuple(f'{f}/' for f in folders))):
      yield path, parsed(text)


def imports(path: str, module: ast.Module) -> Iterator[tuple[int, str]]:
  """(line, dotted name) of all that a module imports: at the top, in functions, relatively, or by a string."""
  for node in ast.walk(module):
    if isinstance(node, ast.Import):
      yield from ((node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      package = path.removesuffix('.py').split('/')
      base = '.'.join(package[:len(package) - node.level]) if node.level else ''
      start = '.'.join(part for part in (base, node.module) if part)
      yield from ((node.lineno, f'{start}.{alias.name}') for alias in node.names)
    elif isinstance(node, ast.Call) and name_of(node.func) in ('import_module', '__import__', 'importorskip'):
      yield from ((node.lineno, str(a.value)) for a in node.args[:1] if isinstance(a, ast.Constant))


def name_of(node: ast.AST) -> str:
  """The last part of a name: `pmap` for `jax.pmap`."""
  return node.attr if isinstance(node, ast.Attribute) else getattr(node, 'id', '')


def room_of(path: str) -> str:
  """`ops` for vision_jax/ops/nms.py, `build` for vision_jax/build.py, '' for vision_jax/__init__.py."""
  first = path.split('/')[1].removesuffix('.py')
  return '' if first == '__init__' else first


def functions(module: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
  return (node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
  """The lines of a function without its docstring, which may well be longer than the body."""
  lines = function.end_lineno - function.lineno + 1
  if ast.get_docstring(function) is None:
    return lines
  return lines - (function.body[0].end_lineno - function.body[0].lineno + 1)


def is_library(name: str, library: str) -> bool:
  return name == library or name.startswith(f'{library}.')


# The rules.


def rooms_import_only_what_the_table_allows(tree: Tree) -> list[str]:
  bad = []
  for path, module in modules(tree, 'vision_jax'):
    room = room_of(path)
    allowed = (room, *MAY_IMPORT.get(room, ()))
    for line, name in imports(path, module):
      if not is_library(name, 'vision_jax') or name == 'vision_jax.__version__':
        continue
      inner = name.removeprefix('vision_jax').lstrip('.')
      if not any(is_library(inner, other) for other in allowed if other):
        bad.append(f'{path}:{line} imports {name}; {room or "it"} may import {", ".join(allowed[1:]) or "nothing"}')
  return bad


def modules_are_imported_under_their_own_name(tree: Tree) -> list[str]:
  # `import vision_jax.ops` binds vision_jax, and with it every room.
  return [f'{path}:{node.lineno} binds all of vision_jax; say from vision_jax.room import name'
          for path, module in modules(tree, 'vision_jax') for node in ast.walk(module) if isinstance(node, ast.Import)
          for alias in node.names if is_library(alias.name, 'vision_jax') and not alias.asname]


def every_room_is_in_the_table(tree: Tree) -> list[str]:
  rooms = {room_of(path) for path, _ in modules(tree, 'vision_jax')}
  return [f'vision_jax/{room} is a room that the table does not know' for room in sorted(rooms - {'', *MAY_IMPORT})]


def every_package_has_an_init(tree: Tree) -> list[str]:
  folders = {path.rpartition('/')[0] for path, _ in modules(tree, 'vision_jax')}
  return [f'{folder}/__init__.py is missing; an installed vision_jax would be without that folder'
          for folder in sorted(folders) if f'{folder}/__init__.py' not in tree]


def libraries_stay_where_they_belong(tree: Tree) -> list[str]:
  bad = []
  for path, module in modules(tree):
    inside = path.removeprefix('vision_jax/') if path.startswith('vision_jax/') else None
    for line, name in imports(path, module):
      library = next((known for known in ONLY_IN if is_library(name, known)), None)
      if library is None or (inside is None and library not in EVERYWHERE_OUT):
        continue
      if library in ('torch', 'torchvision') and path.startswith(WITH_TORCH):
        continue
      if inside is None or not inside.startswith(ONLY_IN[library] or ('nowhere',)):
        bad.append(f'{path}:{line} imports {library}, which only {", ".join(ONLY_IN[library]) or "nobody"} may')
  return bad


def host_rooms_do_without_jax(tree: Tree) -> list[str]:
  return [f'{path}:{line} imports {name}; {room_of(path)} is NumPy only'
          for path, module in modules(tree, 'vision_jax') if room_of(path) in NUMPY_ROOMS
          for line, name in imports(path, module) if any(is_library(name, library) for library in JAX_LIBRARIES)]


def pmap_stands_only_in_the_step(tree: Tree) -> list[str]:
  bad, uses = [], 0
  for path, module in modules(tree, 'vision_jax', 'experiments', 'configs'):
    for node in ast.walk(module):
      imported = isinstance(node, ast.ImportFrom) and any(alias.name == 'pmap' for alias in node.names)
      if imported or name_of(node) == 'pmap':
        uses += 1
        if path != 'vision_jax/train/step.py' or uses > 2:
          bad.append(f'{path}:{node.lineno} uses pmap; vision_jax/train/step.py holds the only two')
  return bad


def pure_rooms_know_no_axis_name(tree: Tree) -> list[str]:
  bad = []
  for path, module in modules(tree, 'vision_jax/ops', 'vision_jax/losses', 'vision_jax/models', 'vision_jax/tasks'):
    if path == 'vision_jax/models/layers.py':
      continue  # the factory of norms: `sync` is the one place where an axis name is given
    for node in ast.walk(module):
      names = {node.arg} if isinstance(node, ast.keyword | ast.arg) else {name_of(node)}
      if isinstance(node, ast.ImportFrom):
        names = {alias.name for alias in node.names}
      found = sorted(name for name in names if name in COLLECTIVES or (name and name.endswith('axis_name')))
      if found:
        bad.append(f'{path}:{node.lineno} uses {found[0]}; axis names belong to train and the sync norm')
  return bad


def nothing_is_an_attic(tree: Tree) -> list[str]:
  return [f'{path}: name a file for what it holds' for path in sorted(tree) if ATTICS.search(path)]


def functions_are_short(tree: Tree) -> list[str]:
  return [f'{path}:{function.lineno} {function.name} has {length(function)} lines; at most {LONGEST_FUNCTION}'
          for path, module in modules(tree) for function in functions(module) if length(function) > LONGEST_FUNCTION]


def the_median_function_is_short(tree: Tree) -> list[str]:
  lengths = sorted(length(f) for _, module in modules(tree, 'vision_jax') for f in functions(module))
  median = lengths[len(lengths) // 2] if lengths else 0
  return [f'the median function of vision_jax has {median} lines'] if median >= MEDIAN_FUNCTION else []


def comments_hold_no_code_and_no_plans(tree: Tree) -> list[str]:
  bad = []
  for path, _ in modules(tree):
    for token in tokenize.generate_tokens(io.StringIO(tree[path]).readline):
      if token.type == tokenize.COMMENT:
        kind = plan_or_code(token.string.lstrip('#').strip())
        if kind:
          bad.append(f'{path}:{token.start[0]} {kind}: {token.string}')
  return bad


def plan_or_code(comment: str) -> str | None:
  """What a comment should not be: an open plan, or a statement that somebody switched off."""
  if re.search(r'\b(TODO|FIXME|XXX|HACK)\b', comment):
    return 'an open plan'
  if re.match(r'(noqa|type:|pragma:|ruff:|fmt:|!)', comment):
    return None
  if re.match(r'(if|elif|else|for|while|with|def|class|try|except)\b[^.;]*:$', comment):
    return 'commented-out code'
  try:
    body = ast.parse(comment).body
  except (SyntaxError, ValueError):
    return None
  statements = ast.Assign | ast.AugAssign | ast.Import | ast.ImportFrom | ast.Assert | ast.Return | ast.Delete
  # A bare name is a word and `[B, H, W]` a shape; a formula in a comment is an assignment of an expression with `=`,
  # so only assignments of calls, literals and names count.
  for node in body:
    if isinstance(node, ast.Assign | ast.AugAssign) and isinstance(node.value, ast.BinOp | ast.Compare | ast.Tuple):
      continue
    if isinstance(node, statements) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
      return 'commented-out code'
  return None


def no_file_names_a_place_on_some_machine(tree: Tree) -> list[str]:
  folders = '|'.join(('root', 'work', r'home/\w+', r'Users/\w+', r'mnt/\w+'))  # in parts, so that this line passes
  place = re.compile(rf'(?<![\w.>}}/:-])(/({folders})/\w|[A-Z]:\\Users\b)')
  return [f'{path}:{number} names {match[0]}...; use a relative path' for path, text in sorted(tree.items())
          for number, line in enumerate(text.splitlines(), 1) for match in [place.search(line)] if match]


def no_folder_of_tests_is_a_package(tree: Tree) -> list[str]:
  return [f'{path}: the import mode of pytest wants no __init__.py in tests' for path in sorted(tree)
          if path.startswith('tests/') and path.endswith('/__init__.py')]


RULES = (
  rooms_import_only_what_the_table_allows,
  modules_are_imported_under_their_own_name,
  every_room_is_in_the_table,
  every_package_has_an_init,
  libraries_stay_where_they_belong,
  host_rooms_do_without_jax,
  pmap_stands_only_in_the_step,
  pure_rooms_know_no_axis_name,
  nothing_is_an_attic,
  functions_are_short,
  the_median_function_is_short,
  comments_hold_no_code_and_no_plans,
  no_file_names_a_place_on_some_machine,
  no_folder_of_tests_is_a_package,
)


# The rules on the real tree.


@pytest.fixture(scope='module')
def tree() -> Tree:
  """All text files of the project, whether committed or not; what tools leave behind stands in folders skipped here."""
  skipped = re.compile(r'^(\.git|\.venv.*|\.cache|\..*_cache|__pycache__|.*\.egg-info|runs|build|dist)$')
  texts = {}
  for folder, names, files in os.walk(ROOT):
    names[:] = [name for name in names if not skipped.match(name)]
    for file in files:
      path = pathlib.Path(folder, file)
      if path.suffix in ('.py', '.md', '.toml', '.txt', '.cfg', '.json', '.yml', '.yaml', '.sh', '') and file != '.git':
        texts[path.relative_to(ROOT).as_posix()] = path.read_text(encoding='utf-8')
  return texts


@pytest.mark.parametrize('rule', RULES, ids=lambda rule: rule.__name__)
def test_rule_holds_in_the_whole_tree(rule, tree):
  assert rule(tree) == []


def test_the_tree_that_the_rules_see_is_the_project(tree):
  assert {'Makefile', 'vision_jax/__init__.py', 'vision_jax/conventions.py', 'tests/test_structure.py'} <= tree.keys()
  assert len(list(modules(tree, 'vision_jax'))) > 10


# The rules on small trees that break them.

LONG = 'def f():\n' + '  x = 1\n' * 80
MANY = ''.join(f'def f{i}():\n' + '  x = 1\n' * 19 for i in range(3))
BROKEN = [
  (rooms_import_only_what_the_table_allows, 'vision_jax/ops/a.py', 'from vision_jax.host import boxes'),
  (rooms_import_only_what_the_table_allows, 'vision_jax/ops/a.py', 'from vision_jax import losses'),
  (rooms_import_only_what_the_table_allows, 'vision_jax/ops/a.py', 'from ..losses import boxes'),
  (rooms_import_only_what_the_table_allows, 'vision_jax/ops/a.py', 'from .. import losses'),
  (rooms_import_only_what_the_table_allows, 'vision_jax/losses/a.py', 'def f():\n  import vision_jax.models as m'),
  (rooms_import_only_what_the_table_allows, 'vision_jax/data/a.py', 'import_module("vision_jax.ops.nms")'),
  (rooms_import_only_what_the_table_allows, 'vision_jax/train/a.py', 'from vision_jax.tasks import detection'),
  (rooms_import_only_what_the_table_allows, 'vision_jax/train/a.py', 'from vision_jax.tasks.base_two import x'),
  (rooms_import_only_what_the_table_allows, 'vision_jax/train/a.py', 'from vision_jax import build'),
  (rooms_import_only_what_the_table_allows, 'vision_jax/conventions.py', 'from vision_jax import ops'),
  (rooms_import_only_what_the_table_allows, 'vision_jax/__init__.py', 'from vision_jax import ops'),
  (modules_are_imported_under_their_own_name, 'vision_jax/ops/a.py', 'import vision_jax'),
  (modules_are_imported_under_their_own_name, 'vision_jax/ops/a.py', 'import vision_jax.ops.boxes'),
  (every_room_is_in_the_table, 'vision_jax/attic/a.py', ''),
  (every_package_has_an_init, 'vision_jax/ops/a.py', ''),
  (libraries_stay_where_they_belong, 'vision_jax/train/loop.py', 'from orbax import checkpoint'),
  (libraries_stay_where_they_belong, 'vision_jax/data/a.py', 'def f():\n  import tensorflow as tf'),
  (libraries_stay_where_they_belong, 'tests/test_a.py', 'torch = pytest.importorskip("torch")'),
  (libraries_stay_where_they_belong, 'vision_jax/ops/a.py', 'import chex'),
  (libraries_stay_where_they_belong, 'vision_jax/build.py', 'import ml_collections'),
  (host_rooms_do_without_jax, 'vision_jax/data/a.py', 'import jax.numpy as jnp'),
  (host_rooms_do_without_jax, 'vision_jax/metrics/a.py', 'def f():\n  from flax import linen'),
  (pmap_stands_only_in_the_step, 'vision_jax/train/loop.py', 'step = jax.pmap(f)'),
  (pmap_stands_only_in_the_step, 'experiments/a.py', 'from jax import pmap as p'),
  (pmap_stands_only_in_the_step, 'vision_jax/train/step.py', 'a, b, c = jax.pmap(f), jax.pmap(g), jax.pmap(h)'),
  (pure_rooms_know_no_axis_name, 'vision_jax/losses/a.py', 'def f(x, *, axis_name=None):\n  return x'),
  (pure_rooms_know_no_axis_name, 'vision_jax/models/a.py', 'nn.BatchNorm(axis_name="batch")'),
  (pure_rooms_know_no_axis_name, 'vision_jax/models/a.py', 'class A:\n  bn_axis_name: str = "x"'),
  (pure_rooms_know_no_axis_name, 'vision_jax/losses/a.py', 'total = jax.lax.psum(total, "batch")'),
  (pure_rooms_know_no_axis_name, 'vision_jax/ops/a.py', 'from jax.lax import pmean'),
  (nothing_is_an_attic, 'vision_jax/ops/utils.py', ''),
  (nothing_is_an_attic, 'vision_jax/misc.py', ''),
  (nothing_is_an_attic, 'common_lib/a.py', ''),
  (nothing_is_an_attic, 'vision_jax/ops/nms_v2.py', ''),
  (functions_are_short, 'experiments/a.py', LONG),
  (the_median_function_is_short, 'vision_jax/ops/a.py', MANY),
  (comments_hold_no_code_and_no_plans, 'tests/test_a.py', 'x = 1  # ' + 'TO' + 'DO later'),
  (comments_hold_no_code_and_no_plans, 'vision_jax/ops/a.py', '# x = f(1)\n'),
  (comments_hold_no_code_and_no_plans, 'vision_jax/ops/a.py', '# return x\n'),
  (comments_hold_no_code_and_no_plans, 'vision_jax/ops/a.py', '# print(x)\n'),
  (comments_hold_no_code_and_no_plans, 'vision_jax/ops/a.py', '# if x > 1:\n'),
  (no_file_names_a_place_on_some_machine, 'README.md', 'cd /ro' + 'ot/vision'),
  (no_file_names_a_place_on_some_machine, 'Makefile', 'PY = "/ho' + 'me/ann/python"'),
  (no_folder_of_tests_is_a_package, 'tests/ops/__init__.py', ''),
]
SOUND = [
  (rooms_import_only_what_the_table_allows, 'vision_jax/train/loop.py', 'from vision_jax.tasks import base'),
  (rooms_import_only_what_the_table_allows, 'vision_jax/train/loop.py', 'from vision_jax.tasks.base import Task'),
  (rooms_import_only_what_the_table_allows, 'vision_jax/train/loop.py', 'from vision_jax import __version__'),
  (rooms_import_only_what_the_table_allows, 'vision_jax/inspect/a.py', 'from vision_jax.viz import sheets'),
  (rooms_import_only_what_the_table_allows, 'vision_jax/losses/a.py', 'from ..ops import boxes\nfrom . import b'),
  (modules_are_imported_under_their_own_name, 'vision_jax/losses/a.py', 'import vision_jax.ops.boxes as box_ops'),
  (libraries_stay_where_they_belong, 'vision_jax/train/checkpoint.py', 'import orbax.checkpoint as ocp'),
  (libraries_stay_where_they_belong, 'vision_jax/data/a.py', 'import tensorflow_datasets as tfds'),
  (libraries_stay_where_they_belong, 'tests/test_a.py', 'import chex'),
  (pmap_stands_only_in_the_step, 'vision_jax/train/step.py', 'a, b = jax.pmap(f), jax.pmap(g)'),
  (pure_rooms_know_no_axis_name, 'vision_jax/models/layers.py', 'nn.BatchNorm(axis_name=axis_name)'),
  (nothing_is_an_attic, 'configs/common.py', ''),
  (nothing_is_an_attic, 'vision_jax/models/detection/yolov3.py', ''),
  (functions_are_short, 'vision_jax/ops/a.py', 'def f():\n  """A.\n' + '\n' * 90 + '  """\n'),
  (comments_hold_no_code_and_no_plans, 'vision_jax/ops/a.py', '# [B, H, W]\n# why\n# y = a / b\nx = 1  # noqa: E402\n'),
  (comments_hold_no_code_and_no_plans, 'vision_jax/ops/a.py', '# for a reason: sums are cheap\n'),
  (no_file_names_a_place_on_some_machine, 'README.md', '../home/x and net/home/y, --workdir runs/home/a'),
]


def in_a_tree(path: str, text: str) -> Tree:
  return {'vision_jax/conventions.py': '', 'vision_jax/__init__.py': '', path: text}


@pytest.mark.parametrize(('rule', 'path', 'text'), BROKEN,
                         ids=[f'{rule.__name__}-{i}' for i, (rule, *_) in enumerate(BROKEN)])
def test_rule_reports_what_breaks_it(rule, path, text):
  found = rule(in_a_tree(path, text))
  assert len(found) == 1
  assert path.rpartition('/')[0] in found[0] or rule is the_median_function_is_short


@pytest.mark.parametrize(('rule', 'path', 'text'), SOUND,
                         ids=[f'{rule.__name__}-{i}' for i, (rule, *_) in enumerate(SOUND)])
def test_rule_lets_pass_what_is_sound(rule, path, text):
  assert rule(in_a_tree(path, text)) == []


def test_contributing_quotes_the_table(tree):
  rows = re.findall(r'^\| `(\w+)` \| [^|]* \| ([^|]*) \|$', tree['CONTRIBUTING.md'], re.MULTILINE)
  quoted = {room: () if allowed == 'nothing of ours' else tuple(allowed.replace('`', '').split(', '))
            for room, allowed in rows}
  everything = tuple(room for room in MAY_IMPORT if room != 'build')
  assert quoted == {**MAY_IMPORT, 'build': ('all of the above',)}
  assert set(MAY_IMPORT['build']) == set(everything)


def test_every_rule_is_shown_to_fail():
  assert {rule for rule, *_ in BROKEN} == set(RULES)


# What an import loads.

HEAVY = ('tensorflow', 'tensorflow_datasets', 'orbax', 'PIL', 'sklearn')
LOADED = 'import sys, json; {}; print(json.dumps([name for name in {!r} if name in sys.modules]))'


@pytest.mark.parametrize(('statement', 'unwanted'), [
  ('import vision_jax', (*HEAVY, 'jax', 'flax', 'optax', 'numpy')),
  ('from vision_jax import conventions', (*HEAVY, 'jax', 'numpy')),
  ('from vision_jax import data', ('tensorflow', 'tensorflow_datasets', 'orbax', 'sklearn', 'jax', 'flax')),
  ('from vision_jax import ops, losses, models', HEAVY),
], ids=lambda value: value if isinstance(value, str) else '')
def test_import_loads_nothing_that_it_does_not_need(run_python, statement, unwanted):
  assert json.loads(run_python(LOADED.format(statement, unwanted))) == []


def test_what_an_import_loads_is_seen(run_python):
  assert json.loads(run_python(LOADED.format('import PIL', HEAVY))) == ['PIL']


def test_rooms_are_reached_from_the_package_and_an_unknown_one_is_named(run_python):
  run_python("import vision_jax; assert vision_jax.host.boxes.__name__ == 'vision_jax.host.boxes'")
  import vision_jax
  with pytest.raises(AttributeError, match="no attribute 'oops'.*conventions, data"):
    _ = vision_jax.oops


def test_the_package_lists_the_rooms_that_exist(tree):
  import vision_jax
  rooms = {room_of(path) for path, _ in modules(tree, 'vision_jax')} - {''}
  assert rooms == set(vision_jax._ROOMS) <= set(dir(vision_jax))
