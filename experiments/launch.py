"""What every program does before JAX starts, and how it speaks when it must give up."""

from __future__ import annotations

import ast
from importlib import metadata
import itertools
import json
import os
import pathlib
import platform
import re
import runpy
import sys
import time
import traceback

STARTED = time.perf_counter()
ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the programs run from a clone, whether or not vision_jax is installed


def prepare_environment() -> None:
  """Sets what jax reads when it is imported: room for several CPU devices, the compilation cache."""
  match = re.search(r'xla_force_host_platform_device_count=(\d+)', os.environ.get('XLA_FLAGS', ''))
  devices = int(match[1] if match else os.environ.get('JAX_NUM_CPU_DEVICES') or 1)
  if devices > 1:  # without threads to spare XLA's collectives hang on few cores
    os.environ['NPROC'] = os.environ.get('NPROC') or str(8 * devices)
  cache = pathlib.Path(os.environ.get('XDG_CACHE_HOME', pathlib.Path.home() / '.cache')) / 'vision_jax' / 'xla'
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(cache))
  os.environ.setdefault('JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS', '0.5')
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')


prepare_environment()

from absl import app, flags, logging  # noqa: E402  jax must not be imported before the environment is set
import jax  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from vision_jax import build  # noqa: E402
from vision_jax.conventions import check_options  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_string('workdir', None, 'The folder of the run.')
flags.DEFINE_bool('traceback', False, 'Show where in the code an error came from.')
config_flags.DEFINE_config_file('config', None, 'configs/x.py, or configs/x.py:smoke for seconds on a CPU.')


def run(main) -> None:
  """Runs a program; what a user can mend ends in one line and exit code 2."""
  logging.set_verbosity(logging.ERROR)
  for name in ('config', 'workdir', 'traceback'):
    FLAGS.register_key_flag_for_module(sys.argv[0], FLAGS[name])  # so that --help shows them first
  try:
    app.run(_answering(main), flags_parser=_parse)
  except KeyboardInterrupt:
    sys.exit('interrupted')


def config_of_run(*, weights: bool = False) -> dict:
  """The config given by --config, or else the one that the run in --workdir was made with.

  Args:
    weights: whether the latter still names the weights that the run began with, which its checkpoints do not need.
  """
  if FLAGS.config is not None:
    return plain(FLAGS.config)
  if not FLAGS.workdir:
    raise ValueError('neither --config nor --workdir is given; give --workdir, the folder of a run')
  path = pathlib.Path(FLAGS.workdir) / 'config.json'
  if not path.exists():
    raise ValueError(f'{path} does not exist; give the --workdir of a run, or --config')
  config = json.loads(path.read_text(encoding='utf-8'))
  return config if weights else {**config, 'model': {**config['model'], 'weights': None, 'body_weights': None}}


def claim_workdir(config: dict, *, seed: int, classes: tuple[str, ...] = (), primary: bool = True) -> pathlib.Path:
  """The run folder, with the config as used, the versions, seed and class names in it; refuses another config's."""
  if not FLAGS.workdir:
    raise ValueError('--workdir is missing; give the folder that the run should be written to')
  folder = pathlib.Path(FLAGS.workdir)
  path = folder / 'config.json'
  if not primary:
    return folder
  config = json.loads(json.dumps(config))  # as the file gives it back, without tuples
  if path.exists() and any((folder / 'checkpoints').glob('[0-9]*')):
    before, now = _leaves(json.loads(path.read_text(encoding='utf-8'))), _leaves(config)
    differ = [f'{key}: {before.get(key, "absent")} there, {now.get(key, "absent")} now'
              for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if differ:
      raise ValueError(f'{folder} holds the run of another config ({"; ".join(differ[:5])}'
                       f'{f"; and {len(differ) - 5} more" if len(differ) > 5 else ""}); choose another --workdir')
    return folder
  folder.mkdir(parents=True, exist_ok=True)
  for name, content in (('run.json', {**run_record(seed), 'classes': classes}), ('config.json', config)):
    unfinished = folder / f'{name}.tmp'  # a kill in the middle leaves no half file under the real name
    unfinished.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
    unfinished.replace(folder / name)
  return folder


def run_record(seed: int) -> dict:
  """What one needs to make a run again: command, versions, seed, devices."""
  import vision_jax
  packages = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
  versions = {'python': platform.python_version(), 'vision_jax': vision_jax.__version__}
  return {'command': sys.argv, 'seed': seed,
          'versions': {**versions, **{name: metadata.version(name) for name in packages}},
          'devices': [str(device) for device in jax.devices()], 'processes': jax.process_count(),
          'started': time.strftime('%Y-%m-%dT%H:%M:%S%z')}


def plain(config) -> dict:
  """A ConfigDict as what JSON gives back, so that a config compares equal to its file."""
  return json.loads(json.dumps(config.to_dict()))


def option(text: str) -> tuple[str, object]:
  """The name and the value of a --set 'name=value': a number, a truth value, a tuple, or else the text itself."""
  name, equals, value = text.partition('=')
  if not equals:
    raise ValueError(f"--set {text!r} has no value; write it as 'num_classes=10'")
  try:
    return name, ast.literal_eval(value)
  except (SyntaxError, ValueError):
    return name, {'true': True, 'false': False}.get(value, value)


def _parse(argv):
  try:
    before, overrides = _check_overrides(argv)
    positional = FLAGS(argv)
    if FLAGS.config is not None:  # a config that cannot be loaded says so only here
      _leave_out_what_another_source_takes(FLAGS.config, before, overrides)
    return positional
  except (AttributeError, KeyError, TypeError, ValueError, OSError, flags.Error) as error:
    # ml_collections and absl raise what they happen to raise, some of it with a traceback inside; its last line counts.
    lines = str(error).strip('"\'').splitlines() or [type(error).__name__]
    message = lines[-1].split('Error: ', 1)[-1] if 'Traceback' in str(error) else ' '.join(' '.join(lines).split())
    print(f'error: {message}', file=sys.stderr)
    sys.exit(2)


def _check_overrides(argv):
  """The config without the overrides, and their names 'a.b'.

  Refuses a --config that is no file, and a --config.a.b that the config does not have, with the names it has.
  """
  arguments = [part for word in argv[1:] for part in word.split('=', 1)]
  path = dict(itertools.pairwise(arguments)).get('--config', '')
  if not path:
    return None, ()
  path, _, variant = path.partition(':')
  if not pathlib.Path(path).is_file():
    known = ', '.join(f'configs/{p.name}' for p in sorted((ROOT / 'configs').glob('*.py')) if p.stem != 'common')
    raise ValueError(f'--config {path} does not exist; there are {known}')
  config = runpy.run_path(path)['get_config'](variant)
  overrides = tuple(word[len('--config.'):] for word in arguments if word.startswith('--config.'))
  for override in overrides:
    place, where = config, 'config'
    for key in override.split('.'):
      check_options(where, tuple(place), {key: None})
      place, where = place[key], f'{where}.{key}'
  return config, overrides


def _leave_out_what_another_source_takes(config, before, overrides) -> None:
  """Where the command line names another source, drops what the file gives to its own one, and says so."""
  if config.data.name == before.data.name:
    return
  theirs = [key for key in before.data if before.data[key] is not None and f'data.{key}' not in overrides
            and (key in ('train_size', 'val_size') or key not in build.data_options(config.data.name))]
  with config.unlocked():
    for key in theirs:
      del config.data[key]
  if theirs:
    print(f'left out, as it belongs to the data {before.data.name}: config.data.{", config.data.".join(theirs)}')


def _answering(main):
  def answer(argv):
    try:
      if len(argv) > 1:
        raise ValueError(f'unknown argument {argv[1]!r}; options start with --')
      main()
    except (ValueError, FloatingPointError) as error:
      if FLAGS.traceback or not _ours(error):
        raise
      print(f'error: {error}', file=sys.stderr)
      sys.exit(2)
  return answer


def _ours(error: BaseException) -> bool:
  """Whether an error was raised by a line of this project, and so is an answer to a user and not an accident."""
  frame = traceback.extract_tb(error.__traceback__)[-1]
  return pathlib.Path(frame.filename).resolve().is_relative_to(ROOT) and (frame.line or '').startswith('raise ')


def _leaves(tree, prefix: str = '') -> dict:
  if not isinstance(tree, dict):
    return {prefix: tree}
  return {k: v for key, value in tree.items() for k, v in _leaves(value, f'{prefix}.{key}' if prefix else key).items()}
