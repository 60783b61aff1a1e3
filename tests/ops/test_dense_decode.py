"""Detections from the outputs of RetinaNet, FCOS and SSD, beside torchvision's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_files import golden
from vision_jax import ops

pytestmark = pytest.mark.medium  # many small compilations: together more than the fast tests can spare

SCRIPT, STORED = golden('dense_decode')
DECODES = {'retinanet': ops.retinanet_decode, 'fcos': ops.fcos_decode, 'ssd': ops.ssd_decode}
BY_LEVEL = ('retinanet', 'fcos')
SIZES = np.array(SCRIPT.SIZES)
every_decode = pytest.mark.parametrize('name', DECODES)


@functools.cache
def decoder(name, **options):
  """`(outputs, sizes) -> detections`, with the options of the golden arrays."""
  _, anchors, levels = SCRIPT.draw(name)
  levels = {'level_sizes': levels} if name in BY_LEVEL else {}
  options = {**levels, 'pre_nms': SCRIPT.PRE_NMS, **SCRIPT.OPTIONS[name], **options}
  decode = jax.jit(functools.partial(DECODES[name], anchors=anchors, **options))
  return lambda outputs, sizes: jax.device_get(decode(*outputs, image_size=sizes))


def theirs(name, i):
  """torchvision's detections of an image that have an area."""
  found = {key: STORED[f'{name}/{i}/{key}'] for key in ('boxes', 'scores', 'labels')}
  found['labels'] = found['labels'] - (name == 'ssd')  # theirs count the background
  sized = (found['boxes'][:, 2:] > found['boxes'][:, :2]).all(1)
  return {key: value[sized] for key, value in found.items()}, sized


@every_decode
@pytest.mark.parametrize('limit', [12, 60])
def test_detections_are_torchvision_s_in_its_order(name, limit):
  found = decoder(name, max_detections=limit)(SCRIPT.draw(name)[0], SIZES)
  assert found['boxes'].shape == (2, limit, 4) and found['labels'].dtype == jnp.int32
  for i in range(2):
    expected, sized = theirs(name, i)
    count = min(limit, len(expected['scores']))
    assert 12 < len(expected['scores']) < 60 and len(sized) > SCRIPT.PRE_NMS
    assert found['valid'][i].tolist() == [slot < count for slot in range(limit)]
    np.testing.assert_array_equal(found['labels'][i, :count], expected['labels'][:count])
    np.testing.assert_allclose(found['scores'][i, :count], expected['scores'][:count], rtol=1e-6)  # float32
    np.testing.assert_allclose(found['boxes'][i, :count], expected['boxes'][:count], rtol=1e-6, atol=1e-5)
    assert not any(found[key][i, count:].any() for key in ('boxes', 'scores', 'labels'))


def test_the_golden_images_have_boxes_without_area_that_are_dropped():
  assert not all(theirs(name, i)[1].all() for name in DECODES for i in range(2))


@pytest.mark.parametrize('name', BY_LEVEL)
def test_without_levels_all_pairs_compete_for_the_suppression(name):
  outputs = SCRIPT.draw(name)[0]
  found = decoder(name, level_sizes=None, max_detections=60)(outputs, SIZES)
  by_level = decoder(name, max_detections=60)(outputs, SIZES)
  assert (found['valid'].sum(1) < np.minimum(SCRIPT.PRE_NMS + 1, by_level['valid'].sum(1))).all()
  for i in range(2):  # the finest level has most of the best pairs, and the best of all stays
    assert set(found['scores'][i]) <= {*by_level['scores'][i], 0.0} and found['scores'][i, 0] > 0


@every_decode
def test_nan_outputs_and_low_scores_give_no_detections(name):
  outputs = [output.copy() for output in SCRIPT.draw(name)[0]]
  outputs[0][0], outputs[1][1] = np.nan, np.nan
  found = decoder(name, max_detections=60)(outputs, SIZES)
  assert not any(value.any() for value in found.values())
  low = [np.full_like(outputs[0], -9), *SCRIPT.draw(name)[0][1:]]
  found = decoder(name, max_detections=60)(low, SIZES)
  assert not any(value.any() for value in found.values())


@every_decode
def test_no_images_have_no_detections(name):
  found = decoder(name, max_detections=60)([output[:0] for output in SCRIPT.draw(name)[0]], np.array(SCRIPT.CANVAS))
  assert found['boxes'].shape == (0, 60, 4) and found['valid'].shape == (0, 60)


@every_decode
def test_what_does_not_fit_is_refused_in_one_line(name):
  outputs, anchors, levels = SCRIPT.draw(name)
  levelled = {'level_sizes': levels} if name in BY_LEVEL else {}
  for change, message in (({'anchors': anchors[1:]}, r'anchors \[\d+, 4\]; give \[B, A, K\], \[B, A, 4\] and \[A, 4\]'),
                          ({'level_sizes': levels[1:]} if levelled else {'logits': outputs[0][..., :1]},
                           r'level_sizes \(\d+, \d+\) for \d+ anchors; they must add up|give \[B, A, K \+ 1\], the'),
                          ({'image_size': np.ones((3, 2))}, r'image_size \[3, 2\] for 2 images')):
    with pytest.raises(ValueError, match=f'{name}_decode: .*{message}'):
      first = change.pop('logits', outputs[0])
      DECODES[name](first, *outputs[1:], **{'anchors': anchors, **levelled, 'image_size': SIZES, **change})
  if name == 'fcos':
    with pytest.raises(ValueError, match='fcos_decode: centerness_logits'):
      ops.fcos_decode(*outputs[:2], outputs[2][:, 1:], anchors=anchors, image_size=SIZES)
