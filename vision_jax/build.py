"""The one place that wires: plain dicts in; source -> classes -> model -> task -> optimiser out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
import pathlib
from typing import Any

from flax import linen as nn
import jax
import numpy as np
import optax

from vision_jax import data, models, pretrained, tasks
from vision_jax.conventions import ClassMap, Variables, check_options, find, option_defaults, option_names
from vision_jax.data.check import require_clean
from vision_jax.data.files import LabelledSource
from vision_jax.data.loader import Loader
from vision_jax.models.freezing import Frozen
from vision_jax.pretrained import catalogue
from vision_jax.tasks.base import Task, resolve_weights
from vision_jax.train import checkpoint, loop, optim
from vision_jax.train import evaluate as evaluate_lib
from vision_jax.train import step as step_lib
from vision_jax.train.checkpoint import Checkpoints
from vision_jax.train.state import TrainState, create_state, state_shapes, to_host

SECTIONS = ('task', 'model', 'data', 'optim', 'train')
_LOADER_OPTIONS = tuple(o for o in option_names(Loader) if o not in ('source', 'fields', 'seed', 'shard'))
PROGRAM_OPTIONS = ('stop_after', 'started', 'phases', 'initial')  # of `fit`, which a config does not give
PREPROCESSING = ('canvas', 'eval_canvas', 'resize', 'mean', 'std')  # of config.data, which weights bring along
NO_OPTIONS = ('dtype', 'weights', 'weights_head', 'body_weights')  # of config.model, which a run's weights keep back
COLOURS = ('mean', 'std')  # of these, what the weights of a body bring along


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Everything that a config names, put together.

  Args:
    task: with its module inside, of which parts are frozen where `optim.rules` say so.
    module: the model itself.
    classes: of the data.
    optimiser: of the module's parameters.
    schedule: step -> learning rate.
    train_loader: shuffled, augmented batches.
    val_loader: the validation images, each once.
    loading: the keyword arguments of both loaders that the config decides.
    fit_options: the keyword arguments of `train.loop.fit` that the config decides.
    weights: what `model.weights` names, or None.
    head: what becomes of the weights' classifier: 'fit' takes it where it has as many classes, 'load' insists on it,
      'fresh' leaves it out.
    body_weights: what `model.body_weights` names, a classifier's weights for the body of a detector, or None.
    phases: pairs (step, task): the task after steps in which less is frozen.
    notes: what a person should know before it starts, a line each: the labels' check, what is frozen.
  """

  task: Task
  module: nn.Module
  classes: ClassMap
  optimiser: optax.GradientTransformation
  schedule: optax.Schedule
  train_loader: Loader
  val_loader: Loader
  loading: Mapping[str, Any]
  fit_options: Mapping[str, Any]
  weights: str | None = None
  head: str = 'fit'
  body_weights: str | None = None
  phases: tuple[tuple[int, Task], ...] = ()
  notes: tuple[str, ...] = ()

  def fit(self, folder: Any, **options: Any) -> tuple[TrainState, dict[str, float]]:
    """Trains in a run folder, or continues there; see `train.loop.fit`."""
    return loop.fit(self.task, self.optimiser, self.train_loader, self.val_loader, folder, schedule=self.schedule,
                    phases=self.phases, initial=self.initial if self.weights or self.body_weights else None,
                    **self.fit_options, **options)

  def initial(self, head: str | None = None) -> tuple[Variables, str]:
    """The variables that training begins with, and lines that say what weights of the model, or of its body, gave.

    Args:
      head: in place of `model.weights_head`.
    """
    key, batch = jax.random.key(self.fit_options['seed']), self.train_loader.batch(0)
    if not self.weights:
      body = _load_weights(self.body_weights, pretrained.body_of(self.module)) if self.body_weights else None
      fresh = to_host(jax.jit(self.task.init)(key, batch))
      if body is None:
        return fresh, f'{type(self.module).__name__}: no weights were loaded, all variables are fresh'
      variables, report = pretrained.fill_body(self.module, fresh, *body)
      return variables, str(report)
    variables, report = _load_weights(self.weights, self.module, head=head or self.head, key=key,
                                      like=jax.eval_shape(self.task.init, key, batch), classes=self.classes.names)
    return variables, '\n'.join([str(report), *_other_classes(report, self.classes)])

  def untrained(self) -> tuple[TrainState, str]:
    """The state before training, the weights' own classifier in it, and lines that say where it is from.

    Raises:
      ValueError: the weights are for another number of classes.
    """
    variables, said = self.initial('load')
    return create_state(self.task, self.optimiser, self.train_loader.batch(0), initial=variables), said

  def backbone(self, variables: Variables) -> tuple[nn.Module, Variables]:
    """The model without its classifier (`num_classes=0`), and its part of the variables."""
    if self.task.kind != 'classification':
      raise ValueError(f'{type(self.module).__name__} has no classifier to take off; choose a classification model')
    module = self.module.clone(num_classes=0)
    like = jax.eval_shape(module.init, jax.random.key(0), self.train_loader.batch(0)['image'][:1])
    return module, pretrained.from_variables(module, variables, like=like)[0]

  def features(self, module: nn.Module, variables: Variables, source: Any) -> np.ndarray:
    """A backbone's pooled features [N, C] of a source's images, as an evaluation sees them."""
    loader = Loader(source, fields=(), **self.loading)
    found = evaluate_lib.predictions(step_lib.make_eval_step(tasks.Features(module)), variables, loader.eval_batches())
    rows = {index: prediction['features'] for index, prediction in found}
    return np.stack([rows[index] for index in range(len(source))])

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
  config, notes = resolved(config)
  config = {section: _given(config[section]) for section in SECTIONS}
  weights, head = config['model'].pop('weights', None), config['model'].pop('weights_head', 'fit')
  body_weights = config['model'].pop('body_weights', None)
  train_source, val_source, loading = _sources(config['data'])
  if 'canvas' not in loading:
    raise ValueError('config.data has no canvas, and there are no weights that bring one; give config.data.canvas, the '
                     '(height, width) that the network sees')
  classes = train_source.classes
  name, options = _named('model', config['model'])
  module = models.create(name, num_classes=len(classes), **options)
  if body_weights and not weights:
    pretrained.body_of(module)  # a model without is refused
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
  options['rules'] = _rules(options.get('rules', ()), train_loader.steps_per_epoch)
  shapes = _check_task(task, train_loader.batch(0), fit_options)
  optimiser = optim.create(name, schedule, shapes['params'], **options)
  phases, frozen = _phases(task, shapes, options['rules'])
  notes = (*_check_labels(train_source, val_source, config['data']), *notes, *frozen)
  return Experiment(phases[0][1], module, classes, optimiser, schedule, train_loader, val_loader, loading, fit_options,
                    weights, head, None if weights else body_weights, phases[1:], notes)


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


def resolved(config: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], tuple[str, ...]]:
  """The config with what its weights bring along where it says nothing itself, and lines about that.

  A run keeps its config so, and is evaluated without its weights. `model.weights` are those of the whole model and go
  before `model.body_weights`, which bring along only `COLOURS`.
  """
  model, own = config.get('model', {}), config.get('data', {})
  weights = model.get('weights') or model.get('body_weights')
  if not weights:
    return dict(config), ()
  theirs, preprocessing = _described(weights)
  left = [f"config.model.body_weights {model['body_weights']} are not used: config.model.weights are of the whole model"
          ] if model.get('weights') and model.get('body_weights') else []
  if model.get('weights') is None:
    theirs, preprocessing = {}, {key: value for key, value in preprocessing.items() if key in COLOURS}
  theirs = theirs if model.get('name') in (None, theirs.get('name')) else {}
  brought = {section: {key: value for key, value in values.items() if given.get(key) is None}
             for section, given, values in (('model', model, theirs), ('data', own, preprocessing))}
  if own.get('canvas') is not None:  # an evaluation is at the config's own canvas, not at that of the weights
    brought['data'].pop('eval_canvas', None)
  taken = ', '.join(f'{section}.{key}={value!r}' for section, values in brought.items()
                    for key, value in values.items())
  return ({**config, 'model': {**model, **brought['model']}, 'data': {**own, **brought['data']}},
          (*left, *([f'from the weights {weights}: {taken}'] if taken else [])))


def _described(weights: str) -> tuple[dict[str, Any], dict[str, Any]]:
  """What is known about weights: options of the section model, and of the section data (`PREPROCESSING`)."""
  folder = pathlib.Path(weights)
  if not folder.is_dir():
    named = '/' not in weights and not folder.suffix
    published = catalogue.find_file(folder) if folder.is_file() else (
        pretrained.find_published(weights) if named else None)
    if published is None:
      return {}, {}
    own = {key: value for key, value in published.options.items() if key != 'num_classes'}  # the data has its own
    return {'name': published.model, **own}, published.data_options()
  if (folder / 'config.json').is_file():
    config = _given(json.loads((folder / 'config.json').read_text(encoding='utf-8')))
    model = {key: value for key, value in config['model'].items() if key not in NO_OPTIONS}
    return model, {key: config['data'][key] for key in PREPROCESSING if key in config['data']}
  record = checkpoint.read_record(folder)
  return dict(record.get('model', {})), dict(_given(record.get('preprocessing', {})))


def _load_weights(weights: str, module: nn.Module, **options: Any) -> tuple[Variables, pretrained.Report]:
  """A module's variables out of weights, and the report of it; the options are those of `pretrained.load`."""
  folder = pathlib.Path(weights)
  if not folder.is_dir():
    return pretrained.load(weights, module, **options)
  if not (folder / 'config.json').is_file():
    names = tuple(checkpoint.read_record(folder).get('categories', ()))
    return pretrained.from_variables(module, checkpoint.load_variables(folder), source=weights, categories=names,
                                     **options)
  train = json.loads((folder / 'config.json').read_text(encoding='utf-8'))['train']
  best = train.get('best')
  checkpoints = Checkpoints(folder / 'checkpoints', best=best, mode=train.get('best_mode') or 'max', create=False)
  step = checkpoints.best_step() if best else None
  step = step if step is not None else max(checkpoints.steps(), default=None)
  if step is None:
    raise ValueError(f'model.weights: the run in {folder} has no checkpoint; train it first')
  variables = checkpoints.variables(step)
  checkpoints.close()
  record = folder / 'run.json'
  names = json.loads(record.read_text(encoding='utf-8')).get('classes', ()) if record.is_file() else ()
  return pretrained.from_variables(module, variables, source=f'{folder}, step {step}', categories=tuple(names),
                                   **options)


def _other_classes(report: pretrained.Report, classes: ClassMap) -> tuple[str, ...]:
  """A line where a head was loaded that was made for as many classes of other names, or in another order."""
  theirs, ours = report.categories, classes.names
  if report.head or len(theirs) != len(ours) or theirs == ours:
    return ()
  first, other = (', '.join(names[:4]) + (', ...' if len(names) > 4 else '') for names in (theirs, ours))
  return (f'  the head was made for the classes {first}, and the data has {other}; where these are not the same, '
          'config.model.weights_head=fresh leaves it out',)


def _rules(rules: Sequence[Any], steps_per_epoch: int) -> tuple[tuple[str, dict[str, Any]], ...]:
  """The rules of the section optim, their durations in steps."""
  parsed = []
  for pattern, values in rules:
    values = dict(values)
    if 'until' in values:
      values['until'] = optim.parse_duration(values['until'], steps_per_epoch=steps_per_epoch,
                                             where=f'config.optim.rules {pattern!r}: until')
    parsed.append((pattern, values))
  return tuple(parsed)


def _phases(task: Task, shapes: Variables, rules: Sequence[Any]) -> tuple[tuple[tuple[int, Task], ...], list[str]]:
  """Pairs (first step, task with what is frozen from there on), and a line about each."""
  params, statistics = shapes['params'], shapes.get('batch_stats', {})
  sizes = {jax.tree_util.keystr(path, simple=True, separator='/'): math.prod(leaf.shape)
           for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
  norms = {path[:-1] for path, _ in jax.tree_util.tree_leaves_with_path(statistics)}
  phases, notes = [], []
  for step in (0, *optim.thaws(rules)):
    frozen, still = optim.frozen_at(step, params, statistics, rules)
    phases.append((step, dataclasses.replace(task, module=Frozen(task.module, frozen, still))
                   if frozen or still else task))
    if len(phases) > 1 or frozen or still:
      notes.append(f'frozen from step {step + 1} on: {len(frozen)} of {len(sizes)} parameters '
                   f'({sum(sizes[name] for name in frozen):,} of {sum(sizes.values()):,} numbers), '
                   f'{len(still)} of {len(norms)} BatchNorms in test mode')
  return tuple(phases), notes


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


def _check_task(task: Task, batch: Mapping[str, Any], fit_options: Mapping[str, Any]) -> Variables:
  """The shapes of the variables; refuses weights and a `best` that do not fit the task, before anything is run."""
  shapes = jax.eval_shape(task.init, jax.random.key(0), batch)
  variables = dict(shapes)
  params = variables.pop('params')
  for train in (True, False):  # auxiliary heads have a Term in training only, and weights must fit both
    terms, _, _ = jax.eval_shape(lambda *args, train=train: task.loss(*args, 0, train), params, variables, batch,
                                 jax.random.key(0))
    resolve_weights(task.weights, tuple(terms), train=train)
  known = [*terms, 'loss', *(name for accumulator in task.metrics() for name in accumulator.result())]
  if fit_options['best'] not in (None, *known):
    raise ValueError(f'config.train.best {fit_options["best"]!r} is no metric of this task; there are '
                     f'{", ".join(name for name in known if "/" not in name)}')
  return shapes


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
