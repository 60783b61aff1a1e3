"""What a user gets wrong in a config is answered in one line; what is right is put together."""

import copy

import jax
import pytest

from tests.data.builders import class_folders, voc_object, voc_set
from vision_jax import build
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
