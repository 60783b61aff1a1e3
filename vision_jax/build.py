"""The one place that wires: plain dicts in; source -> classes -> model -> task -> optimiser out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import optax

from vision_jax import data, models, tasks
from vision_jax.conventions import ClassMap, check_options, find, option_defaults, option_names
from vision_jax.data.check import require_clean
from vision_jax.data.files import LabelledSource
from vision_jax.data.loader import Loader
from vision_jax.tasks.base import Task, resolve_weights
from vision_jax.train import evaluate as evaluate_lib
from vision_jax.train import loop, optim
from vision_jax.train import step as step_lib
from vision_jax.train.checkpoint import Checkpoints
from vision_jax.train.state import TrainState, state_shapes

SECTIONS = ('task', 'model', 'data', 'optim', 'train')
_LOADER_OPTIONS = tuple(o for o in option_names(Loader) if o not in ('source', 'fields', 'seed', 'shard'))
PROGRAM_OPTIONS = ('stop_after', 'started')  # of `fit`, which a program gives and a config does not


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Everything that a config names, put together.

  Args:
    task: with its module inside.
    classes: of the data.
    optimiser: of the module's parameters.
    schedule: step -> learning rate.
    train_loader: shuffled, augmented batches.
    val_loader: the validation images, each once.
    loading: the keyword arguments of both loaders that the config decides.
    fit_options: the keyword arguments of `train.loop.fit` that the config decides.
    notes: what the labels' check has to say, a line each.
  """

  task: Task
  classes: ClassMap
  optimiser: optax.GradientTransformation
  schedule: optax.Schedule
  train_loader: Loader
  val_loader: Loader
  loading: Mapping[str, Any]
  fit_options: Mapping[str, Any]
  notes: tuple[str, ...] = ()

  def fit(self, folder: Any, **options: Any) -> tuple[TrainState, dict[str, float]]:
    """Trains in a run folder, or continues there; see `train.loop.fit`."""
    return loop.fit(self.task, self.optimiser, self.train_loader, self.val_loader, folder, schedule=self.schedule,
                    **self.fit_options, **options)

  def restore(self, folder: Any, step: str = 'best') -> TrainState:
    """The state of a run folder's checkpoint: 'best' (the last, where no metric is named), 'last' or a step."""
    best = self.fit_options['best']
    checkpoints = Checkpoints(f'{folder}/checkpoints', best=best, mode=self.fit_options['best_mode'], create=False)
    if step not in ('best', 'last') and not str(step).isdigit():
      raise ValueError(f"--step is {step!r}; it is 'best', 'last' or the number of a step")
    number = checkpoints.best_step() if step == 'best' and best else None if step in ('best', 'last') else int(step)
    shapes = state_shapes(self.task, self.optimiser, self.train_loader.batch(0),
                          ema=self.fit_options['ema_decay'] is not None)
    state, _ = checkpoints.restore(shapes, number)
    checkpoints.close()
    return state

  def evaluate(self, state: TrainState) -> tuple[dict[str, float], list[Any]]:
    """The task's metrics and loss terms over the validation images, and the accumulators they came from."""
    eval_step = step_lib.make_eval_step(self.task)
    return evaluate_lib.evaluate(self.task, eval_step, state.evaluation_variables(), self.val_loader)

  def predict(self, state: TrainState, source: Any) -> Any:
    """Yields (index, prediction in the image's own pixels) for each image of a source without targets."""
    loader = Loader(source, fields=(), **self.loading)
    eval_step = step_lib.make_eval_step(self.task)
    return evaluate_lib.predictions(eval_step, state.evaluation_variables(), loader.eval_batches())


def experiment(config: Mapping[str, Mapping[str, Any]]) -> Experiment:
  """Puts a config together.

  Args:
    config: the five sections `task`, `model`, `data`, `optim`, `train`, each a dict whose other keys go to the factory
      that its `name` picks. A value of None means the factory's own default.

  Raises:
    ValueError: an unknown name or option, a duration that cannot be read, data without the task's targets.
  """
  check_options('config', SECTIONS, config)
  for section in SECTIONS:
    if section not in config:
      raise ValueError(f'config has no section {section!r}; it needs {", ".join(SECTIONS)}')
  config = {section: _given(config[section]) for section in SECTIONS}
  train_source, val_source, loading = _sources(config['data'])
  classes = train_source.classes
  name, options = _named('model', config['model'])
  module = models.create(name, num_classes=len(classes), **options)
  name, options = _named('task', config['task'])
  task = tasks.create(name, module, classes, **options)
  if task.kind == 'classification' and len(classes) == 1:
    raise ValueError(f'the data has one class, {classes.names[0]}, and there is nothing to tell apart; check '
                     'config.data.name and config.data.path')
  shard = (jax.process_index(), jax.process_count())
  defaults = {key: value for key, value in option_defaults(loop.fit).items() if key not in PROGRAM_OPTIONS}
  train_options = {**defaults, **config['train']}
  _check_counts(train_options)
  step_lib.check_batch_size(loading['batch_size'], accumulate=train_options['accumulate'])
  train_loader = Loader(train_source, fields=task.fields, seed=train_options['seed'], shard=shard, **loading)
  val_loader = Loader(val_source, fields=task.fields, shard=shard, **loading)  # which augments nothing in evaluation
  if not len(val_source):
    raise ValueError('the validation data is empty; add images to the split val, or give config.data.val_size at '
                     'least 1')
  fit_options = _fit_options(train_options, train_loader.steps_per_epoch)
  name, options = _named('optim', config['optim'])
  schedule, options = _schedule(options, fit_options['steps'], train_loader.steps_per_epoch)
  optimiser = optim.create(name, schedule, _check_task(task, train_loader.batch(0), fit_options), **options)
  notes = _check_labels(train_source, val_source, config['data'])
  return Experiment(task, classes, optimiser, schedule, train_loader, val_loader, loading, fit_options, notes)


def _given(section: Any) -> Any:
  """A section without what is None, its lists and dicts in tuples (as JSON has no tuples, and tasks are hashable)."""
  if isinstance(section, Mapping):
    return {key: _given(value) for key, value in section.items() if value is not None}
  return tuple(_given(value) for value in section) if isinstance(section, Sequence) and not isinstance(
      section, str) else section


def _named(section: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
  """The name and the other options of a section."""
  if 'name' not in options:
    raise ValueError(f'config.{section} has no name; give config.{section}.name')
  return options['name'], {key: value for key, value in options.items() if key != 'name'}


def _sources(options: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
  """The training and validation sources, and what is left for the loader.

  An option goes to whichever of the two has it (`canvas` to both, where a source draws its images itself).
  """
  name, options = _named('data', options)
  sizes = {split: options.pop(f'{split}_size', None) for split in ('train', 'val')}
  check_options(f'config.data ({name})', (*data_options(name), 'train_size', 'val_size'), options)
  source_options = option_names(data.SOURCES[name])
  own = {key: value for key, value in options.items() if key in source_options}
  if isinstance(own.get('canvas', (0,))[0], Sequence):  # a source that draws its images does so in one size
    own['canvas'] = own['canvas'][0]
  train, val = (data.create(name, split, **own, **({} if size is None else {'size': size}))
                for split, size in sizes.items())
  if train.classes != val.classes:
    raise ValueError(f'data {name}: the classes of train are {", ".join(train.classes.names)}, those of val '
                     f'{", ".join(val.classes.names)}; give both splits the same ones in the same order')
  return train, val, {key: value for key, value in options.items() if key in _LOADER_OPTIONS}


def data_options(name: str) -> tuple[str, ...]:
  """What `config.data` may hold beside `name`, `train_size` and `val_size`: options of the loader and of the source."""
  own = option_names(find(data.SOURCES, 'data source', name))
  return (*_LOADER_OPTIONS, *(option for option in own if option not in ('size', *_LOADER_OPTIONS)))


def _check_labels(train: Any, val: Any, options: Mapping[str, Any]) -> tuple[str, ...]:
  """Refuses labels with errors, or says what is left out; nothing for data that is not read from label files."""
  if not all(isinstance(source, LabelledSource) for source in (train, val)):
    return ()
  given = {key: value for key, value in options.items() if key == 'on_error'}
  return tuple(require_clean(train.labelled, val.labelled, **given))


def _check_counts(options: Mapping[str, Any]) -> None:
  """Refuses numbers of the section `train` that no run can have."""
  for name in ('accumulate', 'log_every', 'patience'):
    if options[name] is not None and options[name] < 1:
      raise ValueError(f'config.train.{name} is {options[name]}; it is at least 1')
  if options['ema_decay'] is not None and not 0.0 < options['ema_decay'] < 1.0:
    raise ValueError(f'config.train.ema_decay is {options["ema_decay"]}; it lies between 0 and 1')
  if options['best_mode'] not in ('max', 'min'):
    raise ValueError(f"config.train.best_mode is {options['best_mode']!r}; it is 'max' or 'min'")
  if options['patience'] is not None and options['best'] is None:
    raise ValueError('config.train.patience needs config.train.best, the name of the metric to watch')


def _check_task(task: Task, batch: Mapping[str, Any], fit_options: Mapping[str, Any]) -> Any:
  """The shapes of the parameters; refuses weights and a `best` that do not fit the task, before anything is run."""
  variables = dict(jax.eval_shape(task.init, jax.random.key(0), batch))
  params = variables.pop('params')
  terms, _, _ = jax.eval_shape(lambda params, state, batch, key: task.loss(params, state, batch, key, 0, True),
                               params, variables, batch, jax.random.key(0))
  resolve_weights(task.weights, tuple(terms))
  known = [*terms, 'loss', *(name for accumulator in task.metrics() for name in accumulator.result())]
  if fit_options['best'] not in (None, *known):
    raise ValueError(f'config.train.best {fit_options["best"]!r} is no metric of this task; there are '
                     f'{", ".join(name for name in known if "/" not in name)}')
  return params


def _fit_options(options: Mapping[str, Any], steps_per_epoch: int) -> dict[str, Any]:
  """The section `train` as keyword arguments of `fit`, its durations in steps."""
  known = [o for o in option_names(loop.fit) if o not in ('steps', 'schedule', *PROGRAM_OPTIONS)]
  check_options('config.train', ('duration', *known), options)
  if 'duration' not in options:
    raise ValueError("config.train has no duration; write it as '300 steps' or '12 epochs'")
  durations = {key: optim.parse_duration(options[key], steps_per_epoch=steps_per_epoch, where=f'config.train.{key}')
               for key in ('duration', 'eval_every', 'checkpoint_every') if isinstance(options[key], str)
               or key == 'duration'}
  for key, steps in durations.items():
    if steps < 1:
      raise ValueError(f'config.train.{key} is {options[key]!r}, which is no step of this data; make it longer')
  steps = durations.pop('duration')
  return {**{key: value for key, value in options.items() if key != 'duration'}, **durations, 'steps': steps}


def _schedule(options: dict[str, Any], steps: int, steps_per_epoch: int) -> tuple[optax.Schedule, dict[str, Any]]:
  """The schedule of the section `optim`, and what is left for the optimiser."""
  if 'lr' not in options:
    raise ValueError('config.optim has no lr; give config.optim.lr')
  name = options['schedule'] if 'schedule' in options else option_defaults(optim.create_schedule)['schedule']
  warmup = optim.parse_duration(options['warmup'], steps_per_epoch=steps_per_epoch,
                                where='config.optim.warmup') if 'warmup' in options else 0
  own = {key: value for key, value in options.items() if key in optim.schedule_options(name)}
  left = {key: value for key, value in options.items() if key not in (*own, 'lr', 'schedule', 'warmup')}
  return optim.create_schedule(lr=options['lr'], steps=steps, schedule=name, warmup_steps=warmup, options=own), left
