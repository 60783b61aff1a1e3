"""One rule carries all names and layouts between torch and us."""

import jax
import numpy as np
import pytest

from tests.pretrained import formula
from tests.pretrained.test_logits import CHEAP
from vision_jax import models
from vision_jax.pretrained import names, to_torch
from vision_jax.pretrained.variables import flat_shapes


def digest_of(name):
  """The digest of the state dict that `to_torch` would write, from shapes alone."""
  script, _ = formula.golden('classifier_logits')
  model = models.create(name)
  # One number stands for each array, so that the largest model costs nothing.
  flat = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in flat_shapes(model)}
  found = {**formula.shapes(model), **{key: value.shape for key, value in names_of_buffers(model, flat).items()}}
  return script.digest(found)


def names_of_buffers(model, flat):
  from vision_jax.pretrained.buffers import buffers
  return buffers(model, flat)


@pytest.mark.medium
@pytest.mark.parametrize('name', CHEAP)
def test_names_and_shapes_are_torchvisions(name):
  assert digest_of(name) == formula.digests()[name]


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(set(formula.digests()) - set(CHEAP)))
def test_names_and_shapes_of_all_others_are_torchvisions(name):
  assert digest_of(name) == formula.digests()[name]


@pytest.mark.parametrize(('path', 'name'), [
    ('params/conv1/kernel', 'conv1.weight'),
    ('params/layer1_0/downsample_1/scale', 'layer1.0.downsample.1.weight'),
    ('batch_stats/layer1_0/downsample_1/mean', 'layer1.0.downsample.1.running_mean'),
    ('params/features_12_0/block_0_1/bias', 'features.12.0.block.0.1.bias'),
    ('params/classifier_6/flat_kernel', 'classifier.6.weight'),
    ('params/class_token', 'class_token'),
    ('params/encoder/pos_embedding', 'encoder.pos_embedding'),
    ('params/encoder/layers_encoder_layer_11/self_attention/in_proj/kernel',
     'encoder.layers.encoder_layer_11.self_attention.in_proj_weight'),
    ('params/encoder/layers_encoder_layer_1/ln_2/scale', 'encoder.layers.encoder_layer_1.ln_2.weight'),
    ('params/encoder/layers_encoder_layer_1/mlp/3/bias', 'encoder.layers.encoder_layer_1.mlp.3.bias'),
    ('params/heads_head/kernel', 'heads.head.weight'),
    ('params/Mixed_5b/branch3x3dbl_2/conv/kernel', 'Mixed_5b.branch3x3dbl_2.conv.weight'),
    ('params/Conv2d_1a_3x3/bn/scale', 'Conv2d_1a_3x3.bn.weight'),
    ('params/inception3a/branch2_1/conv/kernel', 'inception3a.branch2.1.conv.weight'),
    ('params/blocks_0_layers_1/layers_MBconv/layers_conv_a/0/kernel',
     'blocks.0.layers.1.layers.MBconv.layers.conv_a.0.weight'),
    ('params/stage2_0/branch1_0/kernel', 'stage2.0.branch1.0.weight'),
])
def test_names_follow_the_rule_and_its_exceptions(path, name):
  assert names.torch_name(path) == name


@pytest.mark.parametrize(('old', 'new'), [
    ('features.denseblock1.denselayer16.conv.2.weight', 'features.denseblock1.denselayer16.conv2.weight'),
    ('encoder.layers.encoder_layer_3.mlp.linear_2.bias', 'encoder.layers.encoder_layer_3.mlp.3.bias'),
    ('backbone.fpn.inner_blocks.2.weight', 'backbone.fpn.inner_blocks.2.0.weight'),
    ('backbone.fpn.layer_blocks.0.bias', 'backbone.fpn.layer_blocks.0.0.bias'),
    ('rpn.head.conv.weight', 'rpn.head.conv.0.0.weight'),
])
def test_names_of_older_checkpoints_are_modernised_and_todays_stay(old, new):
  assert names.modern_name(old) == new and names.modern_name(new) == new


@pytest.mark.parametrize(('path', 'ours', 'torch'), [
    ('params/a/kernel', (3, 5, 2, 7), (7, 2, 3, 5)),  # a convolution, HWIO
    ('params/a/kernel', (2, 7), (7, 2)),
    ('params/a/flat_kernel', (3, 5, 2, 7), (7, 30)),
    ('params/a/layer_scale', (4,), (4, 1, 1)),
    ('params/a/logit_scale', (4,), (4, 1, 1)),
    ('params/a/scale', (4,), (4,)),
    ('params/a/pos_embedding', (1, 5, 4), (1, 5, 4)),
])
def test_layouts_go_out_and_in_again(path, ours, torch):
  array = np.random.default_rng(0).standard_normal(ours)
  assert names.torch_shape(path, ours) == torch
  out = names.to_torch(path, array)
  assert out.shape == torch and out.flags.c_contiguous
  np.testing.assert_array_equal(names.to_flax(path, out, ours), array)


def test_a_flattened_map_is_ordered_by_channels_in_torch_and_by_pixels_here():
  # torch's input is flattened [C, h, w], ours is [h, w, C]: both layers must see the same pixel.
  weight = np.random.default_rng(0).standard_normal((4, 2 * 3 * 5))
  image = np.random.default_rng(1).standard_normal((2, 3, 5))
  kernel = names.to_flax('params/a/flat_kernel', weight, (3, 5, 2, 4))
  np.testing.assert_allclose(np.einsum('hwc,hwco->o', image.transpose(1, 2, 0), kernel), weight @ image.ravel())


def test_a_depthwise_kernel_keeps_its_channels():
  weight = np.random.default_rng(0).standard_normal((6, 1, 3, 3))
  assert names.to_flax('params/a/kernel', weight, (3, 3, 1, 6))[1, 2, 0, 4] == weight[4, 0, 1, 2]


@pytest.mark.parametrize('name', ['swin_t', 'swin_v2_t', 'maxvit_t'])
def test_position_indices_are_written_as_torch_computes_them(name):
  model = models.create(name)
  flat = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in flat_shapes(model)}
  found = names_of_buffers(model, flat)
  key, index = next((key, value) for key, value in found.items() if key.endswith('relative_position_index'))
  side = 8 if name == 'swin_v2_t' else 7
  index = index.reshape(side * side, side * side)
  # Slowly: pixel (y, x) looks at pixel (v, u).
  for (y, x), (v, u) in (((0, 0), (0, 0)), ((2, 5), (6, 1)), ((side - 1, 0), (0, side - 1))):
    assert index[y * side + x, v * side + u] == (y - v + side - 1) * (2 * side - 1) + (x - u + side - 1)
  assert index.dtype == np.int64 and names.is_buffer(key)


def test_counters_of_batches_stand_beside_every_batch_norm():
  model = models.create('resnet18', num_classes=3, width=2)
  variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), dict(
      jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))))
  found = to_torch(model, variables)
  counters = [key for key in found if key.endswith('num_batches_tracked')]
  assert len(counters) == 20 and all(found[key].dtype == np.int64 and found[key].shape == () for key in counters)
  assert len(found) == 122 and 'layer4.1.bn2.running_var' in found
