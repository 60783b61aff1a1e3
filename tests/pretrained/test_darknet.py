"""The YOLOs and Darknets compute what darknet's cfg files say, with numbers from `.weights` files in their order."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from tests.models import darknet_cfg, drawn
from vision_jax import models
from vision_jax.models.classification import darknet
from vision_jax.models.detection.yolov1 import YOLOv1
from vision_jax.models.detection.yolov2 import YOLOv2
from vision_jax.models.detection.yolov3 import YOLOv3
from vision_jax.pretrained import body_of, load
from vision_jax.pretrained.darknet import darknet_layers, from_darknet, read_weights, to_darknet
from vision_jax.pretrained.variables import flat_variables, nested

pytestmark = pytest.mark.medium  # many small compilations: together more than the fast tests can spare

K, SHRINK = 3, 16


def narrow(rows, divisor=SHRINK):
  return darknet.PlainDarknet(tuple(row._replace(features=row.features // divisor) for row in rows), num_classes=0)


def narrow53(blocks, divisor=SHRINK):
  stages = tuple((64 * 2 ** i // divisor, count) for i, count in enumerate(blocks))
  return darknet.Darknet(32 // divisor, stages, num_classes=0)


def priors(*counts):
  return tuple(((8.0, 8.0),) * count for count in counts)


def narrow_yolov3(blocks, spp=False):
  return YOLOv3(narrow53(blocks), ('stage3', 'stage4', 'stage5'), K, priors(3, 3, 3), (8, 16, 32), (8, 16, 32), spp=spp)


# The authors' cfg with 16 times fewer channels (tiny ones: 8) beside our model, and an image's size.
FEW = (1, 1, 2, 1, 1)
CASES = {
    'yolov1': (darknet_cfg.scaled(darknet_cfg.YOLOV1, SHRINK), 3 * (K + 3 * 5) * 2, lambda: YOLOv1(
        narrow(darknet.EXTRACTION_ROWS), ('conv20',), K, (64, 128), (3, 2), 3, ((64, 1), (64, 2), (64, 1), (64, 1)),
        local=16, hidden=(), dropout=0.0, norm='batch'), (64, 128)),
    'yolov1_tiny': (darknet_cfg.scaled(darknet_cfg.YOLOV1_TINY, 8), 3 * (K + 2 * 5) * 2, lambda: YOLOv1(
        narrow(darknet.TINY_V1_ROWS, 8), ('conv7',), K, (64, 128), (3, 2), 2, ((32, 1),), hidden=(), norm='batch',
        dropout=0.0), (64, 128)),
    'yolov2': (darknet_cfg.scaled(darknet_cfg.YOLOV2, SHRINK), 2 * (5 + K), lambda: YOLOv2(
        narrow(darknet.DARKNET19_ROWS), ('conv13', 'conv18'), K, priors(2)[0], convs=(64, 64, 64), passthrough=4,
        fold='darknet'), (64, 96)),
    'yolov2_tiny': (darknet_cfg.scaled(darknet_cfg.YOLOV2_TINY, 8), 2 * (5 + K), lambda: YOLOv2(
        narrow(darknet.TINY_ROWS, 8), ('conv7',), K, priors(2)[0], convs=(64,), passthrough=0), (64, 96)),
    'yolov3': (darknet_cfg.scaled(darknet_cfg.yolov3(FEW, spp=True), SHRINK), 3 * (5 + K),
               lambda: narrow_yolov3(FEW, spp=True), (32, 448)),  # wide, so that windows of 5 to 13 cells differ
    'yolov3_tiny': (darknet_cfg.scaled(darknet_cfg.YOLOV3_TINY, 8), 3 * (5 + K), lambda: YOLOv3(
        narrow(darknet.TINY_ROWS, 8), ('conv5', 'conv7'), K, priors(3, 3), (16, 32), (16, 32), (0, 1)), (64, 96)),
    'all of yolov3': (darknet_cfg.scaled(darknet_cfg.yolov3(), SHRINK), 3 * (5 + K),
                      lambda: narrow_yolov3((1, 2, 8, 8, 4)), (32, 64)),
}


@functools.cache
def case(name, eps='inside'):
  """A model, an image, what darknet makes of it, and the numbers of its file."""
  cfg, outputs, make, size = CASES[name]
  image = np.random.default_rng(1).uniform(0, 1, (3, *size)).astype(np.float32)
  expected, numbers = darknet_cfg.run(cfg.format(outputs=outputs), image, eps=eps)
  return make(), image, expected, numbers


def expected_outputs(name, model, expected):
  """darknet's outputs in the shapes of ours: its detection layer has classes, confidences, boxes, one after another."""
  if 'yolov1' not in name:
    levels = [x.reshape(-1, 5 + K, *x.shape[1:]).transpose(2, 3, 0, 1) for x in expected]
    return levels[::-1] if len(levels) > 1 else levels[0]
  (h, w), each = model.grid, model.boxes_per_cell
  cells, result = h * w, np.zeros((h, w, 5 * each + K))
  for cell, p in np.ndindex(cells, each):
    flat = expected[0]
    row = result[cell // w, cell % w]
    place = cells * (K + each) + (cell * each + p) * 4
    row[5 * p:5 * p + 5] = [*flat[place:place + 4], flat[cells * K + cell * each + p]]
    row[5 * each:] = flat[cell * K:(cell + 1) * K]
  return result


@pytest.mark.parametrize('name', [*CASES][:-1] + [pytest.param('all of yolov3', marks=pytest.mark.slow)])
def test_a_model_with_a_file_s_numbers_computes_what_the_cfg_says(name, tmp_path):
  model, image, expected, numbers = case(name)
  path = tmp_path / 'a.weights'
  path.write_bytes(darknet_cfg.file_bytes(numbers, seen=64))
  variables, loaded = from_darknet(model, path)
  assert loaded.seen == 64 and not loaded.missing and not loaded.unused
  found = jax.jit(model.apply)(variables, image.transpose(1, 2, 0)[None])
  pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected_outputs(name, model, expected)), strict=True)
  for ours, truth in pairs:
    # float32 beside float64; the largest differences are about 2e-6 of the largest number.
    np.testing.assert_allclose(ours[0], truth, atol=2e-5 * np.abs(truth).max())


def test_eps_outside_the_root_is_taken_in_by_the_scales(tmp_path):
  model, image, expected, numbers = case('yolov2_tiny', 'outside')
  path = tmp_path / 'a.weights'
  path.write_bytes(darknet_cfg.file_bytes(numbers))
  apply, error = jax.jit(model.apply), {}
  truth = expected_outputs('yolov2_tiny', model, expected)
  for eps in ('inside', 'outside'):
    variables, _ = from_darknet(model, path, eps=eps)
    error[eps] = np.abs(apply(variables, image.transpose(1, 2, 0)[None])[0] - truth).max() / np.abs(truth).max()
  # Variances down to 0.001 make half a per cent of the other place.
  assert error['outside'] < 2e-5 and error['inside'] > 10 * error['outside']
  again = tmp_path / 'b.weights'
  to_darknet(again, model, variables, eps='outside')
  # Out of the scales again, with two roundings.
  np.testing.assert_allclose(read_weights(again)[2], numbers, rtol=3e-7)


@pytest.mark.parametrize('name', ['yolov1', 'yolov2', 'yolov3'])
def test_what_is_written_is_the_file_that_was_read_byte_by_byte(name, tmp_path):
  model, _, _, numbers = case(name)
  content = darknet_cfg.file_bytes(numbers, seen=2**40)
  (tmp_path / 'a.weights').write_bytes(content)
  variables, loaded = from_darknet(model, tmp_path / 'a.weights')
  to_darknet(tmp_path / 'b.weights', model, variables, seen=loaded.seen)
  assert (tmp_path / 'b.weights').read_bytes() == content


@pytest.mark.parametrize('version', [(0, 1, 0), (0, 2, 0), (0, 2, 5), (1, 0, 0), (2000, 0, 0), (0, 1001, 0)])
def test_headers_of_all_versions_are_read(version, tmp_path):
  path = tmp_path / 'a.weights'
  path.write_bytes(darknet_cfg.file_bytes(np.arange(5.0), version=version, seen=7))
  found = read_weights(path)
  assert found[:2] == (version, 7) and found[2].tolist() == [0, 1, 2, 3, 4]


def test_old_files_have_the_kernels_of_fully_connected_layers_transposed(tmp_path):
  model, _, _, numbers = case('yolov1_tiny')
  outputs, inputs = CASES['yolov1_tiny'][1], 32 * 1 * 2
  kernel = numbers[-outputs * inputs:].reshape(outputs, inputs)
  old = np.concatenate([numbers[:-outputs * inputs], kernel.T.ravel()])
  (tmp_path / 'new.weights').write_bytes(darknet_cfg.file_bytes(numbers))
  (tmp_path / 'old.weights').write_bytes(darknet_cfg.file_bytes(old, version=(1001, 0, 0)))
  new, _ = from_darknet(model, tmp_path / 'new.weights')
  found, _ = from_darknet(model, tmp_path / 'old.weights')
  jax.tree.map(np.testing.assert_array_equal, found, new)


def test_a_backbone_s_file_fills_the_backbone_of_a_detector(tmp_path):
  model, _, _, numbers = case('yolov3')
  body = sum(sum(p.size for p in layer) for layer in darknet_layers(model) if 'body' in layer[-1].path)
  path = tmp_path / 'body.weights'
  path.write_bytes(darknet_cfg.file_bytes(numbers[:body]))
  fresh = jax.tree.map(lambda leaf: np.full(leaf.shape, 5, np.float32), drawn.shapes(model, 1, 64, 96, 3)[1])
  with pytest.raises(ValueError, match=r'holds [\d,]+ numbers, and YOLOv3 .* takes .*; partial=True, or strict=False '):
    from_darknet(model, path)
  with pytest.raises(ValueError, match='has 18 of 42 layers; give variables='):
    from_darknet(model, path, partial=True)
  variables, loaded = from_darknet(model, path, partial=True, variables=fresh)
  assert all(name.startswith('params/body/') for name in loaded.layers) and len(loaded.layers) == 18
  assert all(name.startswith('params/head/') for name in loaded.missing) and len(loaded.missing) == 24
  assert all((leaf == 5).all() for leaf in jax.tree.leaves(variables['params']['head']))
  assert not any((leaf == 5).all() for leaf in jax.tree.leaves(variables['params']['body']))
  # And a whole detector's file fills a backbone alone.
  path.write_bytes(darknet_cfg.file_bytes(numbers))
  alone, loaded = from_darknet(model.body, path, partial=True)
  jax.tree.map(np.testing.assert_array_equal, alone['params'], variables['params']['body'])
  assert loaded.unused == len(numbers) - body


def written(path, name, **options):
  """A model with drawn variables, in a file of darknet's."""
  model = models.create(name, **options)
  variables = drawn.variables(model, np.zeros((1, 64, 64, 3), np.float32))
  to_darknet(path, model, variables)
  return model, variables


def test_a_file_of_other_classes_fills_all_but_the_layers_that_depend_on_their_number(tmp_path):
  theirs, variables = written(tmp_path / 'five.weights', 'yolov3_small', num_classes=5, width=4)
  like = drawn.variables(theirs.clone(num_classes=2), np.zeros((1, 64, 64, 3), np.float32), seed=1)
  found, report = load(tmp_path / 'five.weights', theirs.clone(num_classes=2), like=like)
  assert report.notes == ('the file knows 5 classes, and the model 2',) and not (report.fresh or report.unused)
  flat, before, initial = map(flat_variables, (found, variables, like))
  assert set(report.head) == {path for path in flat if flat[path].shape != before[path].shape} and len(report.head) == 4
  for path, array in flat.items():
    np.testing.assert_array_equal(array, (initial if path in report.head else before)[path])
  with pytest.raises(ValueError, match='does not fit YOLOv3; of another shape: params/head/level'):
    load(tmp_path / 'five.weights', theirs.clone(num_classes=2), like=like, head='load')


def test_a_longer_file_of_another_network_is_known_by_numbers_that_are_no_variances(tmp_path):
  _, variables = written(tmp_path / 'wide.weights', 'yolov3_small', num_classes=5, width=8)
  for width in (4, 8):
    body = body_of(models.create('ssd_small', width=width))
    if width == 4:
      with pytest.raises(ValueError, match=r'wide.weights does not fit Darknet: .*/var is no variance \(-.* \(width, '):
        load(tmp_path / 'wide.weights', body)
    else:
      found, report = load(tmp_path / 'wide.weights', body)
      jax.tree.map(np.testing.assert_array_equal, found['params'], variables['params']['body'])
      assert 'numbers of the file come after the last layer' in report.notes[0]
  plain, _ = written(tmp_path / 'plain.weights', 'yolov3_small', num_classes=5, width=4, norm='none')
  with pytest.raises(ValueError, match='Darknet takes .* and has no BatchNorm, whose variances would show'):
    load(tmp_path / 'plain.weights', body_of(plain))


def test_a_file_with_a_variance_that_is_not_finite_is_refused_whatever_its_length(tmp_path):
  model, variables = written(tmp_path / 'a.weights', 'yolov3_small', num_classes=2, width=4)
  path = next(path for path in flat_variables(variables) if path.endswith('/var'))
  broken = {name: np.full_like(array, np.inf) if name == path else array
            for name, array in flat_variables(variables).items()}
  to_darknet(tmp_path / 'a.weights', model, nested(broken))
  with pytest.raises(ValueError, match=f'where it has {path} is no variance .inf.'):
    from_darknet(model, tmp_path / 'a.weights')


def test_a_detector_that_names_no_canvas_has_its_layers_in_order_too():
  assert models.create('ssd_small').canvas is None
  layers = darknet_layers(models.create('ssd_small', width=4))
  assert 'trunk' in layers[0][-1].path and 'head' in layers[-1][-1].path


def test_files_and_models_that_do_not_fit_are_refused_in_one_line(tmp_path):
  model, _, _, numbers = case('yolov2_tiny')
  path = tmp_path / 'a.weights'
  path.write_bytes(darknet_cfg.file_bytes(np.append(numbers, 0)))
  with pytest.raises(ValueError, match='norm must be those of its cfg$'):
    from_darknet(model, path, partial=True)  # a head in the middle of a longer file shifts what comes after it
  for content, message in ((b'', 'has 0 bytes; a .weights file begins'),
                           (darknet_cfg.file_bytes(numbers) + b'x', 'no header of 20 and whole float32 numbers'),
                           (darknet_cfg.file_bytes(numbers[:-1]), 'num_classes, anchors and norm must be those'),
                           (darknet_cfg.file_bytes(np.append(numbers, 0)), 'norm must be those of its cfg$')):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
      from_darknet(model, path)
  with pytest.raises(ValueError, match="unknown eps 'in'; known: inside, outside"):
    from_darknet(model, path, eps='in')
  with pytest.raises(ValueError, match='darknet has no GroupNorm'):
    darknet_layers(models.create('yolov3_small', norm='group'))
  with pytest.raises(ValueError, match='has what no .weights file holds: params/'):
    darknet_layers(models.create('unet_small'))


@pytest.mark.parametrize(('name', 'options', 'trainable', 'statistics'), [
    ('yolov1_darknet', {}, 197_301_875, 26_368), ('yolov1_tiny', {}, 27_095_374, 4_576),
    ('yolov2', {}, 50_962_889, 20_672), ('yolov2', {'num_classes': 20}, 50_655_389, 20_672),
    ('yolov2_tiny', {}, 11_232_057, 5_088), ('yolov3', {}, 61_949_149, 52_608),
    ('yolov3', {'num_classes': 20}, 61_626_049, 52_608), ('yolov3_spp', {}, 62_998_749, 53_632),
    ('yolov3_tiny', {}, 8_852_366, 6_368), ('darknet19', {}, 20_842_376, 14_400), ('darknet53', {}, 41_609_928, 35_712),
    ('extraction', {}, 23_437_224, 18_176)])
def test_a_file_of_each_cfg_has_the_trainable_numbers_and_the_statistics_of_the_model(name, options, trainable,
                                                                                      statistics):
  pieces = [piece for layer in darknet_layers(models.create(name, **options)) for piece in layer]
  assert sum(piece.size for piece in pieces if piece.path[0] == 'params') == trainable
  assert sum(piece.size for piece in pieces if piece.path[0] == 'batch_stats') == statistics


def test_yolo9000_s_head_of_28269_channels_on_darknet19_has_its_cfg_s_numbers():
  model = YOLOv2(darknet.darknet19(num_classes=0), ('conv18',), 9418, priors(3)[0], convs=(), passthrough=0)
  outputs, variables = drawn.shapes(model, 1, 544, 544, 3)
  assert outputs.shape == (1, 17, 17, 3, 9423)
  assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == 48_793_101
