"""Detections from raw YOLO outputs, against loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from tests.ops.test_yolo import ANCHORS, CANVAS, STRIDES, some_outputs
from vision_jax import ops


@functools.cache
def decoder(*, anchors=ANCHORS, strides=STRIDES, **options):
  decode = jax.jit(lambda outputs, size: ops.yolov3_decode(outputs, anchors=anchors, strides=strides, image_size=size,
                                                           **options))
  return lambda outputs, size: jax.device_get(decode(outputs, size))


def expected_detections(outputs, size, *, score_threshold, iou_threshold, limit):
  """The loop: (score, label, box) of one image's detections."""
  pairs = []
  for output, priors, stride in zip(outputs, ANCHORS, STRIDES):
    for row, column, a in np.ndindex(output.shape[:3]):
      raw = [float(v) for v in output[row, column, a]]
      box = np.array(oracles.yolo_box(raw, column, row, priors[a], stride))
      box = np.clip(box, 0, [size[1], size[0]] * 2)
      if box[2] > box[0] and box[3] > box[1]:
        pairs += [(oracles.sigmoid(raw[4]) * oracles.sigmoid(logit), k, box) for k, logit in enumerate(raw[5:])]
  pairs = [pair for pair in pairs if pair[0] > score_threshold]
  scores, labels, boxes = ([pair[i] for pair in pairs] for i in range(3))
  return [pairs[i] for i in oracles.nms(np.array(boxes).reshape(-1, 4), scores, iou_threshold, labels)[:limit]]


@pytest.mark.parametrize('limit', [4, 40])
def test_detections_agree_with_the_loop(limit):
  outputs, sizes = some_outputs(np.random.default_rng(3), batch=3), np.array([CANVAS, (9, 20), (16, 5)])
  found = decoder(score_threshold=0.2, iou_threshold=0.4, max_detections=limit)(outputs, sizes)
  assert found['boxes'].shape == (3, limit, 4) and found['labels'].dtype == jnp.int32
  for i, size in enumerate(sizes):
    expected = expected_detections([o[i] for o in outputs], size, score_threshold=0.2, iou_threshold=0.4, limit=limit)
    valid = found['valid'][i]
    assert 2 < len(expected) == valid.sum() and valid[:len(expected)].all()
    np.testing.assert_array_equal(found['labels'][i][valid], [label for _, label, _ in expected])
    np.testing.assert_allclose(found['scores'][i][valid], [score for score, _, _ in expected], rtol=1e-5)
    np.testing.assert_allclose(found['boxes'][i][valid], [box for _, _, box in expected], rtol=1e-5, atol=1e-4)
    for name in ('boxes', 'scores', 'labels'):
      assert not found[name][i][~valid].any()


def test_a_box_may_be_detected_as_two_classes():
  raw = np.full((1, 1, 1, 1, 7), 5.0, np.float32)
  found = decoder(anchors=(((1.0, 1.0),),), strides=(8,), max_detections=3)((raw,), (8, 8))
  assert found['labels'].tolist() == [[0, 1, 0]] and found['valid'].tolist() == [[True, True, False]]


def test_boxes_in_the_padding_are_no_detections():
  raw = np.full((1, 1, 2, 1, 6), 5.0, np.float32)
  raw[..., :4] = 0
  found = decoder(anchors=(((4.0, 4.0),),), strides=(8,), max_detections=2)((raw,), (8, 8))
  assert found['valid'].tolist() == [[True, False]] and found['boxes'][0, 0].tolist() == [2, 2, 6, 6]


def test_only_the_best_pairs_enter_the_suppression():
  outputs, size = some_outputs(np.random.default_rng(4)), np.array([CANVAS])
  every = decoder(score_threshold=0.0, iou_threshold=1.0, max_detections=36)(outputs, size)
  best = decoder(score_threshold=0.0, iou_threshold=1.0, max_detections=36, pre_nms=5)(outputs, size)
  assert every['valid'].sum() > 5 == best['valid'].sum()
  np.testing.assert_array_equal(best['scores'][0, :5], every['scores'][0, :5])


def test_nothing_above_the_threshold_and_nan_outputs_give_no_detections():
  outputs = some_outputs(np.random.default_rng(5), batch=2)
  outputs[0][1], outputs[1][1] = np.nan, np.nan
  found = decoder(score_threshold=0.999, max_detections=4)(outputs, np.array([CANVAS] * 2))
  assert not any(value.any() for value in found.values())


def test_no_images_have_no_detections():
  outputs = [level[:0] for level in some_outputs(np.random.default_rng(6))]
  found = decoder(max_detections=4)(outputs, np.array(CANVAS))
  assert found['boxes'].shape == (0, 4, 4) and found['valid'].shape == (0, 4)


def test_levels_that_disagree_are_refused_in_one_line():
  with pytest.raises(ValueError, match=r'yolov3_decode: image_size \[3, 2\] for 1 images; give \(h, w\) for all'):
    ops.yolov3_decode(some_outputs(np.random.default_rng(6)), anchors=ANCHORS, strides=STRIDES, image_size=[CANVAS] * 3)
  with pytest.raises(ValueError, match='let all levels make the same'):
    ops.yolov3_decode(some_outputs(np.random.default_rng(6)), anchors=ANCHORS, strides=(8, 8), image_size=CANVAS)
