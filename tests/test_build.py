"""What a user gets wrong in a config is answered in one line; what is right is put together."""

import copy
import json
import shutil

import chex
import jax
import numpy as np
import pytest

from tests.data.builders import class_folders, voc_object, voc_set
from vision_jax import build
from vision_jax.train.checkpoint import save_variables
from vision_jax.train.state import state_shapes

CONFIG = {
    'task': {'name': 'classification'},
    'model': {'name': 'lenet5', 'dtype': None},
    'data': {'name': 'digits', 'batch_size': 8, 'canvas': (32, 32), 'train_size': 64, 'val_size': 20},
    'optim': {'name': 'sgd', 'lr': 0.1, 'warmup': '1 epochs', 'momentum': 0.9},
    'train': {'duration': '3 epochs', 'eval_every': '1 epochs'},
}

DETECTOR = {
    **CONFIG, 'task': {'name': 'yolov3'}, 'model': {'name': 'yolov3_small', 'width': 4},
    'data': {'name': 'digit_scenes', 'batch_size': 2, 'canvas': (96, 128), 'train_size': 8, 'val_size': 2},
}


def changed(path, value):
  config = copy.deepcopy(CONFIG)
  section, key = path.split('.')
  config.setdefault(section, {})[key] = value
  return config


def test_durations_in_epochs_become_steps_of_this_data():
  options = build.experiment(CONFIG).fit_options
  assert (options['steps'], options['eval_every']) == (24, 8)


def test_the_classes_of_the_data_size_the_model():
  experiment = build.experiment(CONFIG)
  shapes = state_shapes(experiment.task, experiment.optimiser, experiment.train_loader.batch(0))
  assert [leaf.shape for leaf in jax.tree.leaves(shapes.params)][-1][-1] == 10
  assert experiment.classes.names == tuple('0123456789')


def test_a_config_from_json_is_the_same_as_one_with_tuples():
  config = changed('optim.rules', [['kernel', {'decay': 0.5}]])
  config['data']['canvas'] = [32, 32]
  experiment = build.experiment(config)
  assert hash(experiment.task)
  assert experiment.train_loader.batch(0)['image'].shape == (8, 32, 32, 3)


@pytest.mark.parametrize('detector', [False, True])
def test_a_task_is_hashable_and_equal_to_itself_made_again(detector):
  config = DETECTOR if detector else CONFIG
  one, two = build.experiment(config).task, build.experiment(config).task
  assert one == two
  assert hash(one) == hash(two)


@pytest.mark.parametrize(('path', 'value', 'message'), [
    ('model.name', 'resnet19', "unknown model 'resnet19'; did you mean resnet18"),
    ('task.name', 'clasification', "unknown task 'clasification'; did you mean classification"),
    ('data.name', 'digit', "unknown data source 'digit'; did you mean digits"),
    ('optim.name', 'sdg', "unknown optimiser 'sdg'; did you mean sgd"),
    ('optim.schedule', 'cosinus', "unknown schedule 'cosinus'; did you mean cosine"),
    ('data.resize', 'leterbox', "unknown resize policy 'leterbox'; did you mean letterbox"),
    ('model.widht', 3, r"model \(lenet5\) has no option 'widht'.* known: .*dtype"),
    ('task.smoothing', 0.1, r"config.task \(classification\) has no option 'smoothing'; did you mean label_smoothing"),
    ('data.batchsize', 8, r"config.data \(digits\) has no option 'batchsize'; did you mean batch_size"),
    ('optim.weigth_decay', 0.1, r"optim \(sgd\) has no option 'weigth_decay'; did you mean weight_decay"),
    ('train.eval_evry', '1 epochs', "config.train has no option 'eval_evry'; did you mean eval_every"),
    ('optimiser.lr', 0.1, "config has no option 'optimiser'; did you mean optim"),
    ('train.duration', 100, "config.train.duration is 100; write it as '300 steps' or '12 epochs'"),
    ('train.accumulate', 3, 'data.batch_size 8 is not divisible by 1 devices x 3 micro-batches; .* 9'),
    ('data.batch_size', 65, 'the source has 64 items, too few for one training batch of 65'),
    ('task.weights', {'loss_clas': 1.0}, 'task.weights has no weight for loss_class; its keys are loss_clas'),
    ('model.dtype', 'bf16', r"model \(lenet5\) has no dtype 'bf16'; known: float32, bfloat16"),
    ('task.name', 'yolov3', 'task yolov3 needs a model with anchors, strides, such as .*; LeNet5 has no anchors'),
    ('train.stop_after', 3, "config.train has no option 'stop_after'"),
    ('train.best', 'AP', "config.train.best 'AP' is no metric of this task; there are loss_class, loss, top1, top5"),
    ('train.best_mode', 'higher', "config.train.best_mode is 'higher'; it is 'max' or 'min'"),
    ('train.patience', 3, 'config.train.patience needs config.train.best'),
    ('train.accumulate', 0, 'config.train.accumulate is 0; it is at least 1'),
    ('train.log_every', 0, 'config.train.log_every is 0; it is at least 1'),
    ('train.ema_decay', 2.0, 'config.train.ema_decay is 2.0; it lies between 0 and 1'),
    ('train.eval_every', '0 steps', "config.train.eval_every is '0 steps', which is no step of this data"),
    ('data.val_size', 0, 'the validation data is empty'),
    ('optim.rules', (('(', {'freeze': True}),), r"optim.rules '\(' is no regular expression"),
    ('optim.rules', (('nothing', {'freeze': True}),), "optim.rules 'nothing' matches no parameter; there are "),
    ('optim.rules', (('.', {'until': 3}),), r"config.optim.rules '.': until is 3; write it as '300 steps' or '12 epo"),
    ('optim.rules', (('conv', {'freeze': 'statistics'}),), "optim.rules 'conv' matches no BatchNorm; there are none"),
    ('model.weights', 'resnet50', "weights 'resnet50' are neither a file nor a name"),
    ('model.weights', 'resnet50:V9', "unknown weights of resnet50 'V9'; known: DEFAULT, IMAGENET1K_V1"),
    ('data.canvas', None, 'config.data has no canvas, and there are no weights that bring one'),
    ('optim.warmup', '4 epochs', 'optim.warmup is 32 steps, which is longer than the run of 24 steps'),
])
def test_a_mistake_is_answered_in_one_line_that_names_what_is_known(path, value, message):
  config = changed(path, value)
  with pytest.raises(ValueError, match=message) as caught:
    build.experiment(config)
  assert '\n' not in str(caught.value)


def test_data_without_the_tasks_targets_names_both():
  config = changed('task.name', 'segmentation')
  config['model'] = {'name': 'unet_small'}
  with pytest.raises(ValueError, match='segmentation.*label'):
    build.experiment(config)


def of_files(name, path, base=CONFIG, **options):
  data = {'name': name, 'path': str(path), 'batch_size': 2, 'canvas': (32, 32), **options}
  return {**base, 'data': data, 'optim': {'name': 'sgd', 'lr': 0.1}}


def test_a_folder_of_images_trains_with_nothing_but_the_data_section_changed(tmp_path):
  class_folders(tmp_path, {'cat': 5, 'dog': 5})
  experiment = build.experiment(of_files('image_folder', tmp_path))
  assert experiment.classes.names == ('cat', 'dog')
  assert experiment.train_loader.batch(0)['image'].shape == (2, 32, 32, 3)
  assert len(experiment.val_loader.source) == 2


def test_splits_of_different_classes_are_refused_with_both_lists(tmp_path):
  class_folders(tmp_path, {name: 3 for name in ('ann', 'bob', 'cy', 'dan', 'eve', 'flo')})
  with pytest.raises(ValueError, match='the classes of train are ann, bob.*, those of val .*flo; give both splits the'):
    build.experiment(of_files('identities', tmp_path))


def test_labels_with_errors_stop_an_experiment_unless_skipping_is_asked_for(tmp_path):
  good, flat = voc_object('cat', (2, 3, 9, 9)), voc_object('cat', (5, 5, 4, 9))
  voc_set(tmp_path, {'a': [good], 'b': [good, flat], 'c': [good]})
  voc_set(tmp_path, {'d': [good]}, split='val')
  with pytest.raises(ValueError, match=r'Annotations/b\.xml:5.*on_error=skip'):
    build.experiment(of_files('voc', tmp_path, DETECTOR))
  experiment = build.experiment(of_files('voc', tmp_path, DETECTOR, on_error='skip'))
  assert len(experiment.train_loader.source) == 3
  assert any('Annotations/b.xml:5' in note and 'left out' in note for note in experiment.notes)


def test_a_source_that_draws_its_images_takes_the_first_of_several_canvases():
  data = {**DETECTOR['data'], 'canvas': ((96, 128), (64, 96)), 'canvas_every': 1, 'train_size': 40}
  loader = build.experiment({**DETECTOR, 'data': data, 'optim': {'name': 'sgd', 'lr': 0.1}}).train_loader
  assert loader.source.canvas == (96, 128)
  assert {loader.batch(step)['image'].shape[1:3] for step in range(20)} == {(96, 128), (64, 96)}


def test_a_classifier_of_one_class_is_refused(tmp_path):
  class_folders(tmp_path, {'JPEGImages': 8})
  with pytest.raises(ValueError, match='the data has one class, JPEGImages'):
    build.experiment(of_files('image_folder', tmp_path))


RESNET = {**CONFIG, 'model': {'name': 'resnet18', 'stem': 'small', 'width': 2}}


def test_what_the_rules_freeze_is_said_and_thaws_in_a_phase_of_its_own():
  rules = [['^layer1_', {'freeze': True}], ['^layer2_', {'until': '1 epochs'}],
           ['^bn1/', {'freeze': 'statistics', 'until': '4 steps'}], ['^fc/', {'lr': 10.0}]]
  experiment = build.experiment({**RESNET, 'optim': {'name': 'sgd', 'lr': 0.1, 'rules': rules}})
  # layer1 has 4 x 36 + 4 x 4 numbers in 12 arrays; layer2 552 in 15, of which the projection's are 3.
  assert [line for line in experiment.notes if line.startswith('frozen')] == [
      'frozen from step 1 on: 27 of 62 parameters (712 of 11,420 numbers), 10 of 20 BatchNorms in test mode',
      'frozen from step 5 on: 27 of 62 parameters (712 of 11,420 numbers), 9 of 20 BatchNorms in test mode',
      'frozen from step 9 on: 12 of 62 parameters (160 of 11,420 numbers), 4 of 20 BatchNorms in test mode']
  assert [step for step, _ in experiment.phases] == [4, 8]
  assert experiment.task.module.norms[0] == 'bn1' and experiment.module.width == 2
  assert build.experiment(RESNET).notes == ()


@pytest.fixture(scope='module')
def run_folder(tmp_path_factory):
  """A run of two steps on the digits, its config beside it as the programs leave it."""
  folder = tmp_path_factory.mktemp('run')
  config = {**RESNET, 'data': {**RESNET['data'], 'canvas': (16, 16), 'mean': (0.5, 0.5, 0.5)},
            'optim': {'name': 'sgd', 'lr': 0.01},
            'train': {'duration': '2 steps', 'eval_every': '2 steps', 'best': 'top1', 'ema_decay': 0.9}}
  (folder / 'config.json').write_text(json.dumps(config))
  experiment = build.experiment(config)
  state, metrics = experiment.fit(folder)
  return folder, experiment, state, metrics


def of_weights(folder, path, **model):
  class_folders(path, {'cat': 5, 'dog': 5})
  return {**CONFIG, 'model': {'weights': str(folder), **model},
          'data': {'name': 'image_folder', 'path': str(path), 'batch_size': 2}, 'optim': {'name': 'sgd', 'lr': 0.1}}


@pytest.mark.slow
def test_a_run_gives_its_average_its_model_and_its_preprocessing_and_a_head_of_other_classes_stays_fresh(
    run_folder, tmp_path):
  folder, _, state, _ = run_folder
  experiment = build.experiment(of_weights(folder, tmp_path))
  assert (experiment.module.width, experiment.module.stem, experiment.module.num_classes) == (2, 'small', 2)
  assert experiment.train_loader.canvas == (16, 16) and experiment.val_loader.mean == (0.5, 0.5, 0.5)
  assert experiment.notes == (f"from the weights {folder}: model.name='resnet18', model.stem='small', model.width=2, "
                              'data.canvas=(16, 16), data.mean=(0.5, 0.5, 0.5)',)
  variables, said = experiment.initial()
  assert f'100 of 102 arrays (11,250 parameters) loaded from {folder}, step 2' in said
  assert 'head not loaded, left as initialised: params/fc/bias, params/fc/kernel' in said
  for name in ('params', 'batch_stats'):
    kept = {part: value for part, value in variables[name].items() if part != 'fc'}
    chex.assert_trees_all_equal(kept, {part: state.ema[name][part] for part in kept})
  fresh = jax.jit(experiment.task.init)(jax.random.key(0), experiment.train_loader.batch(0))['params']['fc']
  chex.assert_trees_all_close(variables['params']['fc'], fresh, rtol=1e-6)  # as part of another program
  with pytest.raises(ValueError, match=r'does not fit ResNet; of another shape: .*fc/'):
    experiment.untrained()


@pytest.mark.slow
def test_what_the_config_says_itself_goes_before_what_the_weights_bring(run_folder, tmp_path):
  config = of_weights(run_folder[0], tmp_path)
  config['data'] = {**config['data'], 'canvas': (32, 24), 'std': (0.3, 0.3, 0.3)}
  loader = build.experiment(config).train_loader
  assert (loader.canvas, loader.mean, loader.std) == ((32, 24), (0.5, 0.5, 0.5), (0.3, 0.3, 0.3))
  other = of_weights(run_folder[0], tmp_path / 'more', name='resnet18')
  assert build.experiment({**other, 'model': {**other['model'], 'width': 4}}).module.width == 4
  with pytest.raises(ValueError, match='does not fit LeNet5; missing: '):
    build.experiment({**of_weights(run_folder[0], tmp_path / 'third', name='lenet5'), 'data': {
        **of_weights(run_folder[0], tmp_path / 'fourth')['data'], 'canvas': (32, 32)}}).initial()


@pytest.mark.slow
def test_weights_measured_before_training_give_what_their_run_measured_and_its_head_can_be_left_out(run_folder):
  folder, _, _, metrics = run_folder
  config = {**CONFIG, 'model': {'weights': str(folder)}, 'data': {**experiment_data(), 'val_size': 20}}
  again = build.experiment(config)
  state, said = again.untrained()
  assert '102 of 102 arrays' in said and int(state.step) == 0
  assert again.evaluate(state)[0]['loss'] == pytest.approx(metrics['loss'], rel=1e-6)
  fresh = build.experiment({**config, 'model': {'weights': str(folder), 'weights_head': 'fresh'}})
  assert 'head not loaded' in fresh.initial()[1]
  features = again.features(*again.backbone(again.initial()[0]), again.val_loader.source)
  assert features.shape == (20, 16) and features.dtype == np.float32


def experiment_data():
  return {'name': 'digits', 'batch_size': 8, 'train_size': 64}


def test_published_weights_bring_their_model_and_preprocessing_without_being_downloaded(tmp_path):
  experiment = build.experiment(of_weights('vit_b_16:IMAGENET1K_SWAG_E2E_V1', tmp_path))
  assert experiment.module.image_size == 384
  assert experiment.val_loader.canvas == (384, 384)
  assert experiment.val_loader.resize == ('resize_crop', {'shorter_side': 384, 'interpolation': 'bicubic'})


def test_the_evaluation_canvas_of_a_run_comes_with_its_canvas(tmp_path):
  run = {**RESNET, 'data': {**RESNET['data'], 'canvas': (16, 16), 'eval_canvas': (24, 24)}}
  (tmp_path / 'config.json').write_text(json.dumps(run))
  config = of_weights(tmp_path, tmp_path / 'images')
  data = build.resolved(config)[0]['data']
  assert (data['canvas'], data['eval_canvas']) == ((16, 16), (24, 24))
  assert build.experiment(config).val_loader.canvas == (24, 24)
  config['data']['canvas'] = (32, 32)
  assert 'eval_canvas' not in build.resolved(config)[0]['data']


@pytest.mark.slow
@pytest.mark.parametrize('of', ['run', 'import'])
def test_a_head_for_as_many_classes_of_other_names_is_said(of, run_folder, tmp_path):
  names = [f'digit {i}' for i in range(10)]
  if of == 'run':
    folder = tmp_path / 'run'
    shutil.copytree(run_folder[0], folder)
    (folder / 'run.json').write_text(json.dumps({'classes': names}))
  else:
    folder = tmp_path / 'import'
    variables = build.experiment(RESNET).initial()[0]
    save_variables(folder, variables, {'model': RESNET['model'], 'categories': names})
  config = {**CONFIG, 'model': {'weights': str(folder)}, 'data': {**experiment_data(), 'canvas': (16, 16),
                                                                  'val_size': 20}}
  line = ('the head was made for the classes digit 0, digit 1, digit 2, digit 3, ..., and the data has 0, 1, 2, 3, '
          '...; where these are not the same, config.model.weights_head=fresh leaves it out')
  experiment = build.experiment(config)
  assert line in experiment.initial()[1].replace('\n  ', '\n').splitlines()
  assert 'the head was made' not in experiment.initial('fresh')[1]
  (folder / ('run.json' if of == 'run' else 'weights.json')).write_text(json.dumps(
      {'model': RESNET['model'], 'classes' if of == 'run' else 'categories': experiment.classes.names}))
  assert 'the head was made' not in experiment.initial()[1]


def test_a_weight_of_the_auxiliary_heads_alone_is_taken_where_there_are_such_heads():
  config = {**CONFIG, 'task': {'name': 'classification', 'weights': [['loss_class', 1.0], ['loss_auxiliary', 0.5]]},
            'model': {'name': 'googlenet', 'aux': True}}
  assert build.experiment(config).module.aux
  with pytest.raises(ValueError, match='task.weights names loss_auxiliary, which the loss does not have'):
    build.experiment({**config, 'model': {'name': 'googlenet', 'aux': False}})
