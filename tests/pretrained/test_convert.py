"""What is loaded is said, what does not fit is listed, and nothing is changed on the way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax import models
from vision_jax.models.classification.resnet import resnet18
from vision_jax.models.classification.vit import ViT
from vision_jax.pretrained import from_torch, from_variables, load, to_torch, write_pth
from vision_jax.pretrained.readers import StateDict
from vision_jax.pretrained.variables import flat_shapes, nested

pytestmark = pytest.mark.medium  # many small compilations

SMALL = resnet18(width=4, num_classes=5)
FAMILIES = ('alexnet', 'squeezenet1_1', 'googlenet', 'inception_v3', 'densenet121', 'shufflenet_v2_x0_5',
            'regnet_y_400mf', 'mobilenet_v1', 'mobilenet_v2', 'mobilenet_v3_small', 'mnasnet0_5', 'efficientnet_b0',
            'convnext_tiny', 'vit_b_32', 'swin_t', 'swin_v2_t', 'maxvit_t', 'lenet5', 'resnet18')
# The others are in the slow tests.
CHEAP = ('googlenet', 'shufflenet_v2_x0_5', 'mobilenet_v3_small', 'swin_v2_t')


def counted(model):
  """Variables that count upwards, no two arrays alike."""
  leaves = flat_shapes(model)
  return nested({path: np.arange(leaf.size, dtype=np.float32).reshape(leaf.shape) + i
                 for i, (path, leaf) in enumerate(leaves)})


@pytest.fixture(scope='module')
def small():
  """Variables and the state dict of a small ResNet."""
  variables = counted(SMALL)
  return variables, to_torch(SMALL, variables)


def equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.medium
@pytest.mark.parametrize('family', [pytest.param(name, marks=[pytest.mark.slow] * (name not in CHEAP))
                                    for name in FAMILIES])
def test_variables_out_and_in_again_are_equal(family):
  model = models.create(family)
  variables = counted(model)
  back, report = from_torch(model, to_torch(model, variables))
  equal(back, variables)
  assert not (report.head or report.fresh or report.unused or report.notes)
  assert {leaf.dtype for leaf in jax.tree.leaves(back)} == {np.dtype('float32')}


def test_what_was_loaded_is_said(small):
  _, report = from_torch(SMALL, small[1], source='small.pth')
  assert str(report) == 'ResNet: 102 of 102 arrays (44,937 parameters) loaded from small.pth'
  assert report.parameters == sum(leaf.size for leaf in jax.tree.leaves(small[0]['params']))


@pytest.mark.medium
def test_a_head_of_another_class_count_is_left_fresh_and_said(small):
  model = SMALL.clone(num_classes=3)
  variables, report = from_torch(model, small[1], source='small.pth', key=jax.random.key(3))
  head = variables['params'].pop('fc')
  assert report.head == ('params/fc/bias', 'params/fc/kernel') and report.fresh == ()
  assert 'head not loaded, left as initialised: params/fc/bias, params/fc/kernel' in str(report)
  equal(variables['params'], {name: part for name, part in small[0]['params'].items() if name != 'fc'})
  # As the model initialises it with this key, and no zeros or leftovers.
  fresh = jax.jit(lambda key: model.init(key, jnp.zeros((1, 32, 32, 3)))['params']['fc'])(jax.random.key(3))
  equal(head, fresh)


def test_a_head_is_never_loaded_or_insisted_on_where_that_is_asked_for(small):
  _, report = from_torch(SMALL, small[1], head='fresh')
  assert report.head == ('params/fc/bias', 'params/fc/kernel') and len(report.loaded) == 100
  with pytest.raises(ValueError, match=r'another shape: fc.bias \(5,\) for \(3,\), fc.weight \(5, 32\) for \(3, 32\)'):
    from_torch(SMALL.clone(num_classes=3), small[1], head='load')
  with pytest.raises(ValueError, match="head is 'best'; it is one of fit, load, fresh"):
    from_torch(SMALL, small[1], head='best')


def test_a_model_without_a_head_leaves_that_of_the_weights_and_says_so(small):
  variables, report = from_torch(SMALL.clone(num_classes=0), small[1])
  assert report.unused == ('fc.bias', 'fc.weight') and 'fc' not in variables['params']
  assert 'in the weights, and not used: fc.bias, fc.weight' in str(report)
  back, report = from_torch(SMALL, to_torch(SMALL.clone(num_classes=0), variables))
  assert report.head == ('params/fc/bias', 'params/fc/kernel') and set(back['params']) == set(small[0]['params'])


def test_what_is_missing_unexpected_or_misshapen_is_listed(small):
  given = dict(small[1])
  given['layer9.weight'] = given.pop('layer1.0.conv1.weight')
  given['layer2.0.bn1.weight'] = np.ones(9, np.float32)
  given['layer2.0.bn2.bias'] = np.ones(8, np.int64)
  with pytest.raises(ValueError) as error:
    from_torch(SMALL, given, source='bad.pth')
  assert str(error.value) == (
      'bad.pth does not fit ResNet; missing: layer1.0.conv1.weight; unexpected: layer9.weight; of another shape: '
      'layer2.0.bn1.weight (9,) for (8,), layer2.0.bn2.bias (8,) of int64 for (8,); choose the model and options that '
      'it was made with, or strict=False to load what fits')
  _, report = from_torch(SMALL, given, strict=False)
  assert report.fresh == ('params/layer1_0/conv1/kernel', 'params/layer2_0/bn1/scale', 'params/layer2_0/bn2/bias')
  assert report.unused == ('layer9.weight',) and len(report.loaded) == 99


def test_long_lists_are_cut(small):
  with pytest.raises(ValueError, match=r'missing: bn1\.running_mean, .* and 96 more; choose'):
    from_torch(SMALL, {'fc.weight': small[1]['fc.weight'], 'fc.bias': small[1]['fc.bias']})


def test_weights_of_another_model_are_refused_in_one_line(small):
  with pytest.raises(ValueError) as error:
    from_torch('resnet50', small[1])
  assert '\n' not in str(error.value) and 'does not fit resnet50' in str(error.value)


def test_what_like_holds_stands_in_for_what_is_left_fresh(small):
  model = SMALL.clone(num_classes=3)
  like = jax.tree.map(lambda leaf: leaf + 1, counted(model))
  variables, _ = from_torch(model, small[1], like=like)
  equal(variables['params']['fc'], like['params']['fc'])
  equal(variables['params']['conv1'], small[0]['params']['conv1'])


def test_halves_and_doubles_become_float32_and_arrays_are_copied(small):
  given = {name: array.astype(np.float16) if 'conv' in name else array for name, array in small[1].items()}
  variables, _ = from_torch(SMALL, given)
  kernel = variables['params']['conv1']['kernel']
  assert kernel.dtype == np.float32
  np.testing.assert_array_equal(kernel, small[0]['params']['conv1']['kernel'].astype(np.float16))
  given = {name: array.copy() for name, array in small[1].items()}
  variables, _ = from_torch(SMALL, given)
  given['bn1.weight'][:] = 0
  assert variables['params']['bn1']['scale'].all()


def test_numbers_that_are_not_finite_are_said(small):
  _, report = from_torch(SMALL, {**small[1], 'fc.bias': np.full(5, np.nan, np.float32)})
  assert report.notes == ('not finite: fc.bias',)


def test_old_names_and_the_readers_notes_are_said():
  model = models.create('densenet121', num_classes=2)
  given = {name: np.zeros(shape, np.float32) for name, shape in _old_densenet(model).items()}
  _, report = from_torch(model, StateDict(given, source='old.pth', notes=['found under model']))
  assert report.notes == ('found under model', '580 names of an older checkpoint were modernised')
  assert report.source == 'old.pth'


def _old_densenet(model):
  """DenseNet's names before 2018 (`norm.1`), without the counters of batches, which came later."""
  import re

  from tests.pretrained.formula import shapes
  return {re.sub(r'(denselayer\d+\.(?:norm|conv))(\d)', r'\1.\2', name): shape for name, shape in shapes(model).items()}


def test_position_embeddings_of_another_size_are_resized_and_said():
  small, large = (ViT(32, 1, 2, 8, 16, num_classes=2, image_size=size) for size in (64, (96, 128)))
  variables = counted(small)
  resized, report = from_torch(large, to_torch(small, variables))
  assert report.notes == ('the position embeddings were resized from 2 x 2 to 3 x 4 patches',)
  old, new = (v['params']['encoder']['pos_embedding'] for v in (variables, resized))
  assert new.shape == (1, 1 + 3 * 4, 8)
  np.testing.assert_array_equal(new[:, 0], old[:, 0])
  # The corners stay where they are.
  np.testing.assert_allclose(new[0, [1, 4, 9, 12]], old[0, [1, 2, 3, 4]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', ['googlenet', 'inception_v3'])
def test_auxiliary_heads_that_the_model_does_not_have_are_left_and_said(name):
  with_heads, without = (models.create(name, num_classes=2, aux=aux) for aux in (True, False))
  from tests.pretrained.formula import shapes
  given = {key: np.zeros(shape, np.float32) for key, shape in shapes(with_heads).items()}
  _, report = from_torch(without, given)
  assert report.unused and all(key.lower().startswith('aux') for key in report.unused)
  assert not report.fresh and not report.head


def test_variables_of_ours_are_fitted_to_another_head(small):
  variables, report = from_variables(SMALL.clone(num_classes=2), small[0], source='runs/a')
  assert report.head == ('params/fc/bias', 'params/fc/kernel')
  equal(variables['batch_stats'], small[0]['batch_stats'])
  with pytest.raises(ValueError, match=r'runs/a does not fit ResNet; missing: batch_stats/layer1_0/bn3/mean'):
    from_variables(models.create('resnet50', width=4), small[0], source='runs/a')


def test_a_file_is_loaded_by_its_path(small, tmp_path):
  write_pth(tmp_path / 'small.pth', small[1])
  variables, report = load(tmp_path / 'small.pth', SMALL)
  equal(variables, small[0])
  assert report.source == str(tmp_path / 'small.pth') and report.preprocessing == {} and report.published is None
  with pytest.raises(ValueError, match=r'missing\.pth is no file'):
    load(str(tmp_path / 'missing.pth'), SMALL)
  with pytest.raises(ValueError, match="weights 'resnet18' are neither a file nor a name"):
    load('resnet18', SMALL)


@pytest.mark.slow
def test_a_head_is_found_in_a_model_that_takes_other_sizes_than_224():
  model = models.create('maxvit_t', partition_size=8, num_classes=5)
  other = from_variables(model.clone(num_classes=3), counted(model))[1]
  assert other.head == ('params/classifier_5/kernel',) and not other.fresh
  with pytest.raises(ValueError, match='does not fit'):
    from_variables(model.clone(num_classes=3), counted(model), head='load')


def test_what_is_drawn_has_the_shapes_of_like():
  model = models.create('unet', width=2, depth=2, num_classes=3)
  grey = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
  flat = {jax.tree_util.keystr(path, simple=True, separator='/'): leaf
          for path, leaf in jax.tree_util.tree_leaves_with_path(grey)}
  for part in ('down0', 'head'):
    given = {path: np.ones(leaf.shape) for path, leaf in flat.items() if not path.startswith(f'params/{part}')}
    assert len(given) < len(flat)
    variables, _ = from_variables(model, nested(given), like=grey, strict=False)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, dict(grey))
  wider = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*leaf.shape[:-1], leaf.shape[-1] + 1), leaf.dtype), grey)
  with pytest.raises(ValueError, match='UNet cannot be drawn with the shapes of `like` for images of .*; give `like`'):
    from_variables(model, {'params': {}}, like=wider, strict=False)
