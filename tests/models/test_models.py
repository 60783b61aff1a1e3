"""The table of models: every one of them counted, created by name, pure and exact about its precision."""

from __future__ import annotations

import functools
import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_files import FOLDER
from tests.models import drawn
from vision_jax import models
from vision_jax.models.classification.convnext import ConvNeXt
from vision_jax.models.classification.darknet import Darknet, PlainDarknet
from vision_jax.models.classification.darknet import Row as DarknetRow
from vision_jax.models.classification.densenet import DenseNet
from vision_jax.models.classification.efficientnet import EfficientNet, Stage
from vision_jax.models.classification.googlenet import GoogLeNet
from vision_jax.models.classification.inception import InceptionB, InceptionV3
from vision_jax.models.classification.lenet import SparseConv
from vision_jax.models.classification.maxvit import MaxViT
from vision_jax.models.classification.mnasnet import MNASNet
from vision_jax.models.classification.mobilenetv1 import MobileNetV1
from vision_jax.models.classification.mobilenetv2 import MobileNetV2
from vision_jax.models.classification.mobilenetv3 import MobileNetV3, Row
from vision_jax.models.classification.regnet import RegNet
from vision_jax.models.classification.resnet import ResNet
from vision_jax.models.classification.shufflenet import ShuffleNet
from vision_jax.models.classification.swin import Swin
from vision_jax.models.classification.vgg import VGG
from vision_jax.models.classification.vit import ViT
from vision_jax.models.detection.ssd import SSD, Extra
from vision_jax.models.layers import Conv, ConvTranspose
from vision_jax.models.segmentation.unet import UNet

pytestmark = pytest.mark.medium  # many small compilations: together more than the fast tests can spare

# Parameters, exact, with the options and channels in of the published count where there is one. What torchvision has is
# counted in test_published.py.
COUNTS = {
    'lenet5': ({}, 3, 61_706),
    'lenet5_original': ({}, 3, 60_000),
    'alexnet_original': ({}, 3, 60_965_224),  # the sum of section 3's layers
    'mobilenet_v1': ({}, 3, 4_231_976),  # timm's mobilenetv1_100
    # Of darknet's cfg files, BatchNorm's statistics aside; the paper's YOLOv1 is the sum of its 24 + 2 layers.
    'darknet19': ({}, 3, 20_842_376),
    'darknet53': ({}, 3, 41_609_928),
    'extraction': ({}, 3, 23_437_224),
    'darknet_small': ({'num_classes': 10}, 3, 310_138),  # the small detectors' body, and 128 * 10 + 10
    'yolov1': ({}, 3, 271_703_550),
    'yolov1_darknet': ({}, 3, 197_301_875),
    'yolov1_tiny': ({}, 3, 27_095_374),
    # A body of 200,656, convolutions of 147,712 and 36,928, and 6 * 8 * 32 numbers to 6 * 8 * 20: 1,475,520.
    'yolov1_small': ({'num_classes': 10}, 3, 1_860_816),
    'yolov2': ({}, 3, 50_962_889),
    'yolov2_tiny': ({}, 3, 11_232_057),
    # A body of 282,960, twice 147,712, a passthrough of 1,056, 221,440 where it joined, and 5 * 15 * (128 + 1).
    'yolov2_small': ({'num_classes': 10}, 3, 810_555),
    'yolov3': ({}, 3, 61_949_149),
    'yolov3_spp': ({}, 3, 62_998_749),
    'yolov3_tiny': ({}, 3, 8_852_366),
    'yolov3_small': ({'num_classes': 10}, 3, 526_666),
    # The authors' count without scales and biases of BatchNorm, 41,524,768, and these: 53,120. ResNet-101's body has
    # 18,992,128 more: 44,549,160 - 25,557,032 with torchvision's classifiers, which are alike.
    'detr_resnet50': ({'num_classes': 91}, 3, 41_577_888),
    'detr_resnet50_dc5': ({'num_classes': 91}, 3, 41_577_888),
    'detr_resnet101': ({'num_classes': 91}, 3, 60_570_016),
    'detr_resnet101_dc5': ({'num_classes': 91}, 3, 60_570_016),
    # The body of the other small ones, 308,848; 861,824 of the transformer, the encoder's last norm among them; heads.
    'detr_small': ({'num_classes': 10}, 3, 1_224_703),
    # torchvision's, built with BatchNorm that learns: 34,014,999 and 32,269,600 without its 53,120 scales and biases.
    'retinanet_resnet50_fpn': ({}, 3, 34_068_119),
    'fcos_resnet50_fpn': ({}, 3, 32_322_720),
    # A body of 308,848 (464, 9,888, 59,904 and 238,592), a pyramid of 86,016 and four norms of 128; each head has two
    # convolutions of 36,864 with a norm (FCOS's with a bias of 64 too); the predictions are 577 numbers for each of
    # 6 * (10 + 4), and 577 for each of 10 + 4 + 1.
    'retinanet_small': ({'num_classes': 10}, 3, 591_812),
    'fcos_small': ({'num_classes': 10}, 3, 552_255),
    # torchvision's, built with BatchNorm that learns: 41,755,286 and 19,386,354 without its scales and biases.
    'fasterrcnn_resnet50_fpn': ({}, 3, 41_808_406),
    'fasterrcnn_mobilenet_v3_large_fpn': ({}, 3, 19_410_754),
    'fasterrcnn_mobilenet_v3_large_320_fpn': ({}, 3, 19_410_754),
    # VGG16's convolutions, 14,714,688. Proposals: 512 * (9 * 512 + 1) = 2,359,808, and 513 for each of 5 * 9 numbers,
    # 23,085. 4096 * (49 * 512 + 1) = 102,764,544, 4096 * 4097 = 16,781,312, and 4097 for each of 5 * 21: 430,185.
    'fasterrcnn_vgg16': ({'num_classes': 20}, 3, 137_073_622),
    # A body of 308,848 and a pyramid of 64 * (64 + 128 + 2 * 9 * 64) + 4 norms of 128, 86,528; proposals: 64 * 577 and
    # 65 for each of 5 * 2 numbers, 37,578; 256 * (25 * 64 + 1), 256 * 257, and 257 for each of 5 * 11: 489,783.
    'fasterrcnn_small': ({'num_classes': 10}, 3, 922_737),
    # torchvision's 35,641,826 and 3,440,060, with 90 classes and the background.
    'ssd300_vgg16': ({}, 3, 35_641_826),
    # Up to fc7 20,484,416: VGG16's convolutions 14,714,688, a scale of 512, fc6 512 * 9 * 1024 + 1024, fc7 1024 * 1025.
    # Extras: 262,400 + 1,180,160, 65,664 + 295,168, twice 32,896 + 295,168, and 32,896 + 256 * (16 * 128 + 1). The head
    # has 91 + 4 numbers for each of 4, 6, 6, 6, 6, 4 and 4 boxes, each of 9 C + 1 with C = 512, 1024, 512 and 256:
    # 95 * 147,492.
    'ssd512_vgg16': ({}, 3, 37_513_116),
    'ssdlite320_mobilenet_v3_large': ({}, 3, 3_440_060),
    # A body of 308,848, extras of 128 * 64 + 9 * 64 * 128 and norms of 384, and 15 numbers for each of 4 boxes of 577,
    # 1,153 and 1,153.
    'ssd_small': ({'num_classes': 10}, 3, 564_132),
    'unet': ({}, 1, 31_030_658),
    'unet_small': ({'num_classes': 11}, 3, 485_243),
}
# Small members of every family, with an input that is not square where it need not be.
SMALL = {
    'lenet5': (models.MODELS['lenet5'], (32, 32)),
    'lenet5_original': (models.MODELS['lenet5_original'], (32, 32)),
    'resnet basic': (functools.partial(ResNet, 'basic', (1, 1), width=8, stem='small', num_classes=5), (8, 12)),
    'resnet bottleneck': (functools.partial(ResNet, 'bottleneck', (1, 1), width=8, num_classes=5), (16, 24)),
    'densenet': (functools.partial(DenseNet, 4, (1, 2), num_classes=5), (16, 24)),
    'shufflenet': (functools.partial(ShuffleNet, (8, 12, 16), (2, 1), num_classes=5), (16, 24)),
    'regnet': (functools.partial(RegNet, 2, 8, 8.0, 2.0, 4, 0.25, num_classes=5), (16, 24)),
    'alexnet': (functools.partial(models.MODELS['alexnet_original'], hidden=8, num_classes=5, dropout=0.0), (64, 75)),
    'vgg': (functools.partial(VGG, (1,) * 5, width=4, hidden=8, norm='batch', num_classes=5, dropout=0.0), (32, 64)),
    'squeezenet': (functools.partial(models.MODELS['squeezenet1_1'], num_classes=5, dropout=0.0), (24, 32)),
    'googlenet': (functools.partial(GoogLeNet, ((('3a', (4, 2, 4, 2, 4, 4)),),), num_classes=5, dropout=0.0), (16, 24)),
    'inception v3': (functools.partial(InceptionV3, ((('6a', InceptionB),),), num_classes=5, aux=False, dropout=0.0),
                     (75, 80)),
    'mobilenet v1': (functools.partial(MobileNetV1, ((8, 1), (16, 1)), num_classes=5, width_mult=0.5), (16, 24)),
    'mobilenet v2': (functools.partial(MobileNetV2, ((1, 8, 1, 1), (2, 8, 2, 2)), num_classes=5, width_mult=0.25,
                                       dropout=0.0), (16, 24)),
    'mobilenet v3': (functools.partial(MobileNetV3, (Row(3, 16, 8, True, False, 2), Row(5, 24, 8, False, True, 1)), 16,
                                       num_classes=5, width_mult=0.5, dropout=0.0), (16, 24)),
    'mnasnet': (functools.partial(MNASNet, 0.25, ((2, 3, 32, 2, 2),), num_classes=5, dropout=0.0), (16, 24)),
    'efficientnet': (functools.partial(EfficientNet, 8, (Stage(True, 2, 3, 2, 8, 2), Stage(False, 2, 3, 1, 8, 2)), 16,
                                       num_classes=5, dropout=0.0, stochastic_depth=0.0), (16, 24)),
    'convnext': (functools.partial(ConvNeXt, (4, 8), (1, 1), num_classes=5, stochastic_depth=0.0), (16, 24)),
    'vit': (functools.partial(ViT, 4, 2, 2, 8, 16, num_classes=5, image_size=(8, 12)), (8, 12)),
    'swin': (functools.partial(Swin, 1, 4, (1, 2), (1, 2), 2, num_classes=5, stochastic_depth=0.0), (16, 24)),
    'maxvit': (functools.partial(MaxViT, 4, (8,), (1,), 4, num_classes=5, partition_size=2, stochastic_depth=0.0),
               (8, 16)),
    'darknet': (functools.partial(Darknet, 4, ((8, 1), (16, 1)), num_classes=5), (16, 24)),
    'darknet plain': (functools.partial(PlainDarknet, (DarknetRow(4), DarknetRow(8, pool=2), DarknetRow(4, 1)),
                                        num_classes=5), (16, 24)),
    'yolov1': (functools.partial(models.MODELS['yolov1_small'], width=4, num_classes=2, canvas=(32, 48), grid=(2, 3)),
               (32, 48)),
    'yolov2': (functools.partial(models.MODELS['yolov2_small'], width=4, num_classes=2), (32, 48)),
    'yolov3': (functools.partial(models.MODELS['yolov3_small'], width=4, num_classes=2), (32, 48)),
    'detr': (functools.partial(models.MODELS['detr_small'], num_classes=2, num_queries=3, width=4, hidden_dim=8,
                               num_heads=2, encoder_layers=1, decoder_layers=2, mlp_dim=8), (24, 32)),
    'retinanet': (functools.partial(models.MODELS['retinanet_small'], width=4, num_classes=2, convs=1), (32, 48)),
    'fcos': (functools.partial(models.MODELS['fcos_small'], width=4, num_classes=2, convs=1), (32, 48)),
    'faster r-cnn': (functools.partial(models.MODELS['fasterrcnn_small'], width=4, num_classes=2, hidden=8, pool_size=2,
                                       post_nms=(8, 8)), (32, 48)),
    'ssd': (functools.partial(models.MODELS['ssd_small'], width=4, num_classes=2), (32, 48)),
    'ssd lite': (lambda **options: SSD(
        MobileNetV3((Row(3, 16, 8, True, False, 2), Row(5, 24, 8, False, True, 1)), 16, num_classes=0, **options),
        ('features_2_block_0', 'features_3'), 2, (Extra(8),), (0.2, 0.4, 0.6, 0.8), ((2,),) * 3, lite=True,
        l2_scale=20.0, **options), (16, 24)),
    'unet': (functools.partial(UNet, width=4, depth=1, norm='batch'), (16, 24)),
    'unet strided': (functools.partial(UNet, width=4, depth=1, norm='batch', stem_stride=2), (16, 24)),
}
NORMED = ('resnet basic', 'densenet', 'shufflenet', 'regnet', 'vgg', 'googlenet', 'inception v3',
          'mobilenet v1', 'mobilenet v2', 'mobilenet v3', 'mnasnet', 'efficientnet', 'maxvit', 'yolov1',
          'yolov2', 'yolov3', 'retinanet', 'ssd', 'faster r-cnn', 'unet strided')
# What is compiled for each of `NORMED` is slow but for these.
CHEAP = ('lenet5_original', 'resnet basic', 'shufflenet', 'mobilenet v2', 'retinanet')


def count(tree) -> int:
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@functools.cache
def small(name: str):
  """A model of `SMALL`, drawn variables and an input."""
  make, size = SMALL[name]
  x = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
  return make(), drawn.variables(make(), x), x


@pytest.mark.parametrize('name', COUNTS)
def test_every_model_has_exactly_the_parameters_of_its_row(name):
  options, channels, parameters = COUNTS[name]
  model = models.create(name, **options)
  variables = drawn.shapes(model, 1, *(getattr(model, 'canvas', None) or (64, 64)), channels)[1]
  assert count(variables['params']) == parameters


def test_every_model_has_its_count_here_or_in_the_table_of_the_published_ones():
  published = json.loads((FOLDER / 'torchvision_models.json').read_text(encoding='utf-8'))
  missing = set(models.names()) - set(COUNTS) - set(published)
  assert not missing, f'add the exact number of parameters of {", ".join(sorted(missing))} to COUNTS'
  assert set(COUNTS) | set(published) == set(models.names()) and not set(COUNTS) & set(published)


@pytest.mark.parametrize('name', SMALL)
def test_bfloat16_keeps_float32_parameters_statistics_and_results(name):
  make, size = SMALL[name]
  layers = (Conv, ConvTranspose, SparseConv, nn.Dense, nn.BatchNorm)

  def run(key, x):
    return make(dtype='bfloat16').init_with_output(
        key, x, train=True, capture_intermediates=lambda module, method: isinstance(module, layers))

  results, variables = jax.eval_shape(run, jax.random.key(0), jnp.zeros((2, *size, 3)))
  between = variables.pop('intermediates')
  # What says which slots of a result are real is bool.
  assert {leaf.dtype for leaf in jax.tree.leaves((results, variables))} - {jnp.dtype(bool)} == {jnp.dtype('float32')}
  # What the network computes in between has the compute dtype.
  assert len(jax.tree.leaves(between)) >= 4
  assert {leaf.dtype for leaf in jax.tree.leaves(between)} == {jnp.dtype('bfloat16')}


@pytest.mark.medium
@pytest.mark.parametrize('name', ['lenet5', 'resnet basic', 'unet strided'])
def test_bfloat16_results_are_near_float32_ones(name):
  model, variables, x = small(name)
  truth = jax.jit(model.apply)(variables, x)
  found = jax.jit(SMALL[name][0](dtype='bfloat16').apply)(variables, x)
  # About ten layers, each rounding to 8 bits (0.4 %), relative to the largest result.
  assert 0 < float(jnp.abs(found - truth).max()) < 0.05 * float(jnp.abs(truth).max())


@pytest.mark.parametrize('name', [name if name in CHEAP else pytest.param(name, marks=pytest.mark.slow)
                                  for name in NORMED])
def test_frozen_norm_changes_no_statistics_and_ignores_train(name):
  model, variables, x = small(name)
  frozen = SMALL[name][0](norm='frozen')
  run = jax.jit(lambda v, x, train: frozen.apply(v, x, train=train, mutable=['batch_stats']), static_argnums=2)
  _, state = run(variables, x, True)
  jax.tree.map(np.testing.assert_array_equal, state.get('batch_stats', variables['batch_stats']),
               variables['batch_stats'])
  # What it computes is the very program of `batch` in test mode.
  assert str(jax.make_jaxpr(lambda v, x: frozen.apply(v, x, train=True))(variables, x)) == str(
      jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, x))


@pytest.mark.medium
@pytest.mark.parametrize('name', [name if name in CHEAP else pytest.param(name, marks=pytest.mark.slow)
                                  for name in ('lenet5_original', *NORMED)])
def test_every_parameter_has_a_finite_gradient_in_training(name):
  model, variables, x = small(name)
  stats = variables.get('batch_stats', {})

  def loss(params):
    results, state = model.apply({'params': params, 'batch_stats': stats}, x, train=True, mutable=['batch_stats'])
    return sum((leaf ** 2).sum() for leaf in jax.tree.leaves(results)), state

  gradients, state = jax.jit(jax.grad(loss, has_aux=True))(variables['params'])
  assert all(np.isfinite(g).all() and np.any(g) for g in map(np.asarray, jax.tree.leaves(gradients)))
  changed = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), state.get('batch_stats', {}), stats)
  assert all(jax.tree.leaves(changed))


@pytest.mark.parametrize('norm', ['group', 'layer', 'none', 'sync'])
def test_every_norm_fits_every_model_that_has_the_option(norm):
  for name in NORMED:
    make, size = SMALL[name]
    variables = drawn.shapes(make(norm=norm), 1, *size, 3)[1]
    assert ('batch_stats' in variables) == (norm == 'sync')


def test_models_are_hashable_and_equal_by_their_options():
  for name in models.names():
    assert hash(models.create(name)) == hash(models.create(name)) and models.create(name) == models.create(name)
  assert models.create('resnet18', num_classes=3) != models.create('resnet18')


def test_an_unknown_model_or_option_is_answered_with_what_is_close():
  with pytest.raises(ValueError, match=r"unknown model 'resnet_18'; did you mean resnet18"):
    models.create('resnet_18')
  with pytest.raises(ValueError, match=r"model \(resnet18\) has no option 'num_clases'; did you mean num_classes\?"):
    models.create('resnet18', num_clases=10)
  with pytest.raises(ValueError, match=r"model \(yolov3_small\) has no option 'anchor'; did you mean anchors\?"):
    models.create('yolov3_small', anchor=())


def test_options_are_what_create_accepts_and_not_what_makes_a_row():
  assert models.options('resnet50') == ('num_classes', 'stem', 'width', 'norm', 'zero_init_last', 'stochastic_depth',
                                        'output_stride', 'dtype')
  assert models.options('yolov3_small')[:3] == ('num_classes', 'anchors', 'strides')
  assert models.options('unet_small') == models.options('unet')
  with pytest.raises(ValueError, match="has no option 'block'"):
    models.create('resnet50', block='basic')
