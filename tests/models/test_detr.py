"""DETR: the transformer beside a slow one, positions and padding beside loops, the whole beside the authors' code."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_files import golden
from tests.models import drawn
from tests.models.test_attention import slow_attention
from tests.pretrained import formula
from vision_jax import losses, models, ops
from vision_jax.models.detection import detr

pytestmark = pytest.mark.medium  # many small compilations: together more than the fast tests can spare

B, T, Q, E = 2, 6, 3, 8
QUICK = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
TRANSFORMER = detr.Transformer(num_heads=2, encoder_layers=1, decoder_layers=2, mlp_dim=12)
VALID = np.array([[True] * T, [True, True, False, True, False, False]])


def count(tree) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def some_inputs():
  rng = np.random.default_rng(0)
  return [rng.standard_normal(shape).astype(np.float32) for shape in ((B, T, E), (B, T, E), (Q, E))]


@functools.cache
def params():
  rng, shapes = np.random.default_rng(1), jax.eval_shape(TRANSFORMER.init, jax.random.key(0), *some_inputs())
  return jax.tree.map(lambda leaf: (0.5 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes['params'])


# ---- the transformer ----


def slow_norm(x, params):
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
  return x * params['scale'] + params['bias']


def slow_mlp(x, params):
  hidden = np.maximum(x @ params['linear1']['kernel'] + params['linear1']['bias'], 0)
  return hidden @ params['linear2']['kernel'] + params['linear2']['bias']


def slow_transformer(params, tokens, positions, queries, valid, pre_norm=False):
  """Layer by layer in float64, as section A.3 of the paper has it; or with the norms before, as its program can."""
  def added(x, layer, number, branch):
    norm = layer[f'norm{number}']
    return x + branch(slow_norm(x, norm), layer) if pre_norm else slow_norm(x + branch(x, layer), norm)

  def encode(x, layer):
    return slow_attention(layer['self_attn'], x + positions, x + positions, x, valid)

  def compare(x, layer):
    return slow_attention(layer['self_attn'], x + queries, x + queries, x, np.ones((B, Q), bool))

  def look(x, layer):
    return slow_attention(layer['multihead_attn'], x + queries, tokens + positions, tokens, valid)

  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  encoder, decoder, found = dict(params['encoder']), dict(params['decoder']), []
  after, last, x = encoder.pop('norm', None), decoder.pop('norm'), np.zeros((B, Q, E))
  for layer in encoder.values():
    tokens = added(added(tokens, layer, 1, encode), layer, 2, slow_mlp)
  tokens = slow_norm(tokens, after) if pre_norm else tokens
  for layer in decoder.values():
    x = added(added(added(x, layer, 1, compare), layer, 2, look), layer, 3, slow_mlp)
    found.append(slow_norm(x, last))
  return np.stack(found)


@QUICK
def run_with_gradient(params, tokens, positions, queries):
  def total(*inputs):
    answers = TRANSFORMER.apply({'params': inputs[0]}, *inputs[1:], key_valid=VALID)
    return (answers ** 3).sum(), answers
  return jax.value_and_grad(total, (0, 1, 2, 3), has_aux=True)(params, tokens, positions, queries)


def test_with_norms_before_the_branches_the_transformer_equals_a_slow_one_too():
  model, inputs = TRANSFORMER.clone(pre_norm=True), some_inputs()
  rng, shapes = np.random.default_rng(2), jax.eval_shape(model.init, jax.random.key(0), *inputs)['params']
  drawn_params = jax.tree.map(lambda leaf: (0.5 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)
  found = QUICK(lambda *inputs: model.apply({'params': drawn_params}, *inputs, key_valid=VALID))(*inputs)
  expected = slow_transformer(drawn_params, *inputs, VALID, pre_norm=True)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)  # of as many sums as without, in float32
  assert 'norm' in shapes['encoder'] and 'norm' not in params()['encoder']


def test_the_transformer_equals_a_slow_one_with_padding():
  inputs = some_inputs()
  expected = slow_transformer(params(), *inputs, VALID)
  found = run_with_gradient(params(), *inputs)[0][1]
  # Nine normalised sums in a row, in float32.
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)
  assert np.abs(expected[0] - expected[1]).max() > 0.1


def test_hidden_tokens_change_neither_the_answers_nor_a_gradient_whatever_they_hold():
  tokens, positions, queries = some_inputs()
  (_, answers), gradients = run_with_gradient(params(), tokens, positions, queries)
  spoiled = tokens.copy()
  spoiled[1, 2], spoiled[1, 4], spoiled[1, 5] = 1e9, -1e9, 7.0
  (_, same), same_gradients = run_with_gradient(params(), spoiled, positions, queries)
  np.testing.assert_allclose(same, answers, rtol=1e-6, atol=1e-6)
  for a, b in zip(jax.tree.leaves((gradients[0], gradients[3])), jax.tree.leaves((same_gradients[0],
                                                                               same_gradients[3])), strict=True):
    np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)
  assert np.abs(run_with_gradient(params(), tokens[:, ::-1].copy(), positions, queries)[0][1] - answers).max() > 0.01


def test_every_parameter_learns_but_the_first_self_attention_s_whose_answers_are_still_alike():
  gradients = run_with_gradient(params(), *some_inputs())[1][0]
  first_self = gradients['decoder']['layers_0']['self_attn'].pop('in_proj')
  assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(gradients))
  # The answers begin as zeros, so their values are one bias, and whoever looks at whom sees the same.
  assert np.abs(first_self['kernel']).max() < 1e-3 < np.abs(first_self['bias']).max()


def test_answers_follow_their_queries_when_these_change_places():
  tokens, positions, queries = some_inputs()
  answers, turned = (run_with_gradient(params(), tokens, positions, q)[0][1] for q in (queries, queries[::-1].copy()))
  np.testing.assert_allclose(turned, answers[:, :, ::-1], rtol=1e-5, atol=1e-6)


def test_dropout_is_that_of_an_example_s_place_in_the_global_batch():
  noisy = TRANSFORMER.clone(dropout=0.5, decoder_layers=1)
  tokens, positions, queries = some_inputs()

  @QUICK
  def run(position, tokens, positions):
    return noisy.apply({'params': params(), 'example': {'position': position}}, tokens, positions, queries,
                       train=True, rngs={'dropout': jax.random.key(0)})

  both = run(jnp.array([4, 7]), tokens, positions)
  np.testing.assert_allclose(run(jnp.array([7, 4]), tokens[::-1], positions[::-1]), both[:, ::-1], atol=1e-5)
  assert np.abs(run(jnp.array([4, 8]), tokens, positions) - both)[:, 1].max() > 0.01
  quiet = run_with_gradient(params(), tokens, positions, queries)[0][1][0]
  assert np.abs(both[0] - quiet).max() > 0.01


# ---- positions and padding ----


def test_positions_are_sines_and_cosines_of_the_share_of_the_content():
  valid = np.zeros((3, 4, 5), bool)
  valid[0], valid[1, :3, :2] = True, True
  found = np.asarray(QUICK(lambda valid: detr.sine_positions(valid, 12))(valid))
  for i, (h, w) in enumerate([(4, 5), (3, 2)]):
    for row, column in np.ndindex(h, w):
      y, x = (2 * np.pi * (place + 1) / (length + 1e-6) for place, length in ((row, h), (column, w)))
      waves = [10_000 ** (2 * pair / 6) for pair in range(3)]
      expected = [f(v / t) for v in (y, x) for t in waves for f in (np.sin, np.cos)]
      np.testing.assert_allclose(found[i, row, column], expected, atol=1e-6)  # float32 of angles up to 2 pi
  assert np.isfinite(found).all()  # the third image has no content


@pytest.mark.parametrize(('canvas', 'size'), [((64, 96), (2, 3)), ((100, 75), (4, 3)), ((320, 416), (20, 26))])
def test_a_cell_is_content_where_its_first_pixel_is(canvas, size):
  sizes = np.array([canvas, (1, 1), (33, 32), (0, 0), (64, 65)])
  found = np.asarray(detr.content_cells(jnp.asarray(sizes), canvas, size))
  for i, (h, w) in enumerate(np.minimum(sizes, canvas)):
    pixels = np.zeros(canvas, bool)
    pixels[:h, :w] = True
    rows, columns = (np.arange(n) * side // n for n, side in zip(size, canvas, strict=True))
    np.testing.assert_array_equal(found[i], pixels[np.ix_(rows, columns)])


# ---- the detector ----


def test_the_size_of_the_content_matters_and_the_whole_canvas_is_the_default():
  model = models.create('detr_small', num_classes=3, width=4, hidden_dim=8, num_heads=2, encoder_layers=1,
                        decoder_layers=2, mlp_dim=8, num_queries=4)
  x = np.random.default_rng(0).standard_normal((1, 50, 70, 3)).astype(np.float32)
  variables = drawn.variables(model, x)
  apply = QUICK(lambda size: model.apply(variables, x, image_size=size))
  given, less = apply(np.array([[50, 70]])), apply(np.array([[50, 30]]))
  whole = apply(None)
  for name, features in (('logits', 4), ('boxes', 4)):
    assert whole[name].shape == (2, 1, 4, features) and whole[name].dtype == jnp.float32
    np.testing.assert_allclose(given[name], whole[name], atol=1e-6)
  assert np.abs(less['logits'] - whole['logits']).max() > 1e-4
  assert (whole['boxes'] > 0).all() and (whole['boxes'] < 1).all()


def test_without_auxiliary_outputs_there_is_one_layer():
  outputs = drawn.shapes(models.create('detr_small', aux_outputs=False), 2, 32, 48, 3)[0]
  assert outputs['logits'].shape == (1, 2, 20, 81) and outputs['boxes'].shape == (1, 2, 20, 4)


def test_a_dilated_last_stage_gives_four_times_the_tokens_and_the_same_parameters():
  plain, dilated = (models.create(name, num_classes=91) for name in ('detr_resnet50', 'detr_resnet50_dc5'))
  (_, one), (_, other) = (drawn.maps(model.body, 1, 330, 416, 3)[-1] for model in (plain, dilated))
  assert (one, other) == ((1, 11, 13, 2048), (1, 21, 26, 2048))
  assert count(drawn.shapes(dilated, 1, 64, 64, 3)[1]['params']) == 41_577_888


def test_the_authors_parameters_are_ours_without_the_frozen_norms():
  outputs, variables = drawn.shapes(models.create('detr_resnet50', num_classes=91), 2, 320, 416, 3)
  body = variables['params']['backbone_0']['body']
  norms = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(body) if path[-1].key != 'kernel']
  assert count(variables['params']) - count(norms) == 41_524_768
  assert outputs['logits'].shape == (6, 2, 100, 92) and outputs['boxes'].shape == (6, 2, 100, 4)


@pytest.mark.parametrize(('change', 'message'), [
    ({'levels': ('stage2', 'stage3')}, r"2 levels \('stage2', 'stage3'\); give the one"),
    ({'levels': ('layer9',)}, "no map 'layer9'; it has stage1, stage2, stage3"),
    ({'hidden_dim': 30}, 'hidden_dim 30 must be a multiple of 4')])
def test_what_does_not_fit_is_answered_in_one_line(change, message):
  with pytest.raises(ValueError, match=message):
    drawn.shapes(models.create('detr_small').clone(**change), 1, 32, 48, 3)


def test_an_unknown_backbone_or_stride_is_answered_with_the_known_ones():
  with pytest.raises(ValueError, match=r"unknown backbone 'vgg16'; known: resnet18, resnet34"):
    models.create('detr_resnet50', backbone='vgg16')
  with pytest.raises(ValueError, match='detr_small: stride 4; known: 8, 16'):
    models.create('detr_small', stride=4)


# ---- beside the authors' code ----


@pytest.mark.slow
def test_detr_resnet50_gives_the_authors_outputs_matches_and_losses_on_two_padded_images():
  script, stored = golden('detectors')
  stored = {name.partition('/')[2]: stored[name] for name in stored.files if name.startswith('detr_resnet50/')}
  model = models.create('detr_resnet50', num_classes=91)
  variables = formula.detector(model, 1.0, stored['names'])

  image, image_size, boxes, labels, real = script.detr_batch()
  outputs = jax.jit(model.apply)(variables, image, image_size=image_size)
  # The two images' outputs differ by 0.011 and 0.015 of the largest.
  np.testing.assert_allclose(outputs['logits'][-1, :, :, ::script.DETR_CLASSES], stored['logits'],
                             atol=1e-5 * stored['largest'])
  np.testing.assert_allclose(outputs['boxes'][-1], stored['boxes'], atol=1e-5)

  terms = jax.jit(losses.detr_loss)(outputs['logits'], outputs['boxes'], boxes, labels, image_size=image_size,
                                    boxes_valid=real)
  assert len(terms) == 18
  for name, term in terms.items():
    np.testing.assert_allclose(term.total / term.count, stored[name], rtol=1e-5, err_msg=name)
  # These queries are nearly alike, so which are matched hangs on the last digits; the authors' cost no more than ours.
  cost = matching_cost(outputs, boxes, labels, image_size)
  ours, matched = ops.hungarian_matching(cost, valid=real)
  for i in range(2):
    query, owner = stored[f'match_{i}']
    assert matched[i].sum() == len(query)
    least = sum(cost[i, ours[i, n], n] for n in owner)
    np.testing.assert_allclose(cost[i, query, owner].sum(), least, rtol=1e-5)


def matching_cost(outputs, boxes, labels, image_size):
  """[B, Q, N] of the last layer: equation 2's terms with the weights 1, 5 and 2."""
  h, w = image_size.T[:, :, None]
  target = boxes / np.stack([w, h, w, h], -1)
  likely, predicted = jax.nn.softmax(outputs['logits'][-1]), outputs['boxes'][-1][:, :, None]
  classes = np.take_along_axis(np.asarray(likely), labels[:, None].repeat(likely.shape[1], 1), 2)
  distance = jnp.abs(predicted - ops.xyxy_to_cxcywh(target)[:, None]).sum(-1)
  return np.asarray(-classes + 5 * distance - 2 * ops.giou(ops.cxcywh_to_xyxy(predicted), target[:, None]))
