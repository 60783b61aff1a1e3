"""Detections from raw YOLO outputs, against loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from tests.ops.test_yolo import ANCHORS, CANVAS, STRIDES, some_outputs
from vision_jax import ops
from vision_jax.conventions import option_defaults

pytestmark = pytest.mark.medium  # many small compilations: together more than the fast tests can spare

# Score and suppression thresholds, the most that enter the suppression, and the most that come out. The YOLOs: with
# which darknet evaluates (`yolo.c`, `detector.c`), whose lists have no end; the other figures are torchvision's, where
# a Faster R-CNN lets all regions enter. DETR suppresses nothing and has 100 queries.
DEFAULTS = {
    ops.yolov1_decode: (0.001, 0.5, None, 100),
    ops.yolov2_decode: (0.005, 0.45, 1000, 100),
    ops.yolov3_decode: (0.005, 0.45, 1000, 100),
    ops.ssd_decode: (0.01, 0.45, 400, 200),
    functools.partial(ops.ssd_decode, **ops.SSDLITE_DECODE): (0.001, 0.55, 300, 300),
    ops.retinanet_decode: (0.05, 0.5, 1000, 300),
    ops.fcos_decode: (0.2, 0.6, 1000, 100),
    ops.rpn_proposals: (0.0, 0.7, 1000, 1000),
    ops.faster_rcnn_decode: (0.05, 0.5, None, 100),
    ops.detr_decode: (0.0, None, None, 100),
}


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


@pytest.mark.parametrize(('decode', 'expected'), DEFAULTS.items(), ids=lambda x: getattr(x, '__name__', ''))
def test_a_decoding_has_the_thresholds_and_numbers_of_its_original(decode, expected):
  defaults = option_defaults(decode)
  most = defaults.get('post_nms', defaults.get('max_detections'))
  assert (*(defaults.get(name) for name in ('score_threshold', 'iou_threshold', 'pre_nms')), most) == expected


def test_every_decoding_has_its_defaults_listed():
  public = {name for name in ops.__all__ if name.endswith('_decode') and 'iou_threshold' in option_defaults(
      getattr(ops, name))}
  assert public < {getattr(decode, '__name__', '') for decode in DEFAULTS}


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


# ---- DETR ----


DETR_SIZES = np.array([(40, 60), (32, 50)])


@functools.cache
def detr_decoder(**options):
  decode = jax.jit(functools.partial(ops.detr_decode, **options))
  return lambda logits, boxes, size: jax.device_get(decode(logits, boxes, image_size=size))


def some_queries(seed, queries=7, classes=4):
  rng = np.random.default_rng(seed)
  logits = 2 * rng.standard_normal((2, 2, queries, classes + 1)).astype(np.float32)
  return logits, rng.uniform(0.05, 0.95, (2, 2, queries, 4)).astype(np.float32)


def expected_of_queries(logits, boxes, size, threshold):
  """The loop over one image's queries of the last layer: (score, label, box), the best first."""
  found = []
  for row, (cx, cy, w, h) in zip(logits.astype(float), boxes.astype(float)):
    likely = np.exp(row) / np.exp(row).sum()
    label = max(range(len(row) - 1), key=lambda k: likely[k])
    box = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]) * np.tile(size[::-1], 2)
    found.append((likely[label], label, np.clip(box, 0, [size[1], size[0]] * 2)))
  return sorted((row for row in found if row[0] > threshold), key=lambda row: -row[0])


@pytest.mark.parametrize('limit', [3, 50])
def test_detections_of_detr_agree_with_the_loop_over_its_last_layer(limit):
  logits, boxes = some_queries(0)
  found = detr_decoder(score_threshold=0.3, max_detections=limit)(logits, boxes, DETR_SIZES)
  assert found['boxes'].shape == (2, min(limit, 7), 4) and found['labels'].dtype == jnp.int32
  for i, size in enumerate(DETR_SIZES):
    expected = expected_of_queries(logits[-1, i], boxes[-1, i], size, 0.3)
    assert 3 <= len(expected) < 7
    expected, valid = expected[:limit], found['valid'][i]
    assert len(expected) == valid.sum() and valid[:len(expected)].all()
    np.testing.assert_array_equal(found['labels'][i][valid], [label for _, label, _ in expected])
    np.testing.assert_allclose(found['scores'][i][valid], [score for score, _, _ in expected], rtol=1e-5)
    np.testing.assert_allclose(found['boxes'][i][valid], [box for _, _, box in expected], rtol=1e-5, atol=1e-4)
    assert not any(found[name][i][~valid].any() for name in ('boxes', 'scores', 'labels'))


def test_detr_s_equal_boxes_all_stay_and_its_nan_and_flat_ones_go():
  logits, boxes = some_queries(1)
  boxes[-1, 0], boxes[-1, 1, 0], boxes[-1, 1, 1, 2] = boxes[-1, 0, 0], np.nan, 0
  logits[-1, 1, 2] = np.nan
  found = detr_decoder()(logits, boxes, DETR_SIZES)
  assert found['valid'].sum(1).tolist() == [7, 4]
  assert all(np.isfinite(found[name]).all() for name in ('boxes', 'scores'))


def test_misfits_of_detr_are_refused_in_one_line():
  logits, boxes = some_queries(2)
  with pytest.raises(ValueError, match=r'logits \[2, 7, 5\] and boxes \[2, 2, 7, 4\]; give \[L, B, Q, K \+ 1\]'):
    ops.detr_decode(logits[-1], boxes, image_size=DETR_SIZES)
  with pytest.raises(ValueError, match=r'detr_decode: image_size \[3, 2\] for 2 images'):
    ops.detr_decode(logits, boxes, image_size=np.ones((3, 2)))


def expected_pairs(pairs, size, *, score_threshold, iou_threshold, limit):
  """(score, label, box) of one image's detections, from all its pairs."""
  cut = [(score, label, np.clip(box, 0, [size[1], size[0]] * 2)) for score, label, box in pairs]
  cut = [pair for pair in cut if pair[0] > score_threshold and (pair[2][2:] > pair[2][:2]).all()]
  scores, labels, boxes = ([pair[i] for pair in cut] for i in range(3))
  return [cut[i] for i in oracles.nms(np.array(boxes).reshape(-1, 4), scores, iou_threshold, labels)[:limit]]


def check_detections(found, expected):
  """One image's detections are the expected ones, in their order."""
  valid = found['valid']
  assert 2 < len(expected) == valid.sum() and valid[:len(expected)].all()
  np.testing.assert_array_equal(found['labels'][valid], [label for _, label, _ in expected])
  np.testing.assert_allclose(found['scores'][valid], [min(score, 1) for score, _, _ in expected], rtol=1e-5)
  np.testing.assert_allclose(found['boxes'][valid], [box for _, _, box in expected], rtol=1e-5, atol=1e-4)
  assert not any(found[name][~valid].any() for name in ('boxes', 'scores', 'labels'))


@pytest.mark.parametrize('best_class', [True, False])
def test_yolov1_s_detections_agree_with_the_loop(best_class):
  rng, (h, w, each, classes), sizes = np.random.default_rng(8), (3, 4, 2, 3), np.array([(48, 64), (20, 40)])
  outputs = rng.normal(0.5, 0.5, (2, h, w, 5 * each + classes)).astype(np.float32)
  options = {'score_threshold': 0.1, 'iou_threshold': 0.3, 'max_detections': 20}
  found = jax.jit(functools.partial(ops.yolov1_decode, canvas=(48, 64), boxes_per_cell=each, best_class=best_class,
                                    **options))(outputs, image_size=sizes)
  for i, size in enumerate(sizes):
    pairs = []
    for row, column, p in np.ndindex(h, w, each):
      cell = outputs[i, row, column].astype(float)
      x, y, root_w, root_h, said = cell[5 * p:5 * p + 5]
      centre, half = np.array([(column + x) * 16, (row + y) * 16]), np.array([root_w**2 * 32, root_h**2 * 24])
      scores = [max(said, 0) * max(c, 0) for c in cell[5 * each:]]
      wanted = [int(np.argmax(scores))] if best_class else range(classes)
      pairs += [(scores[k], k, np.array([*(centre - half), *(centre + half)])) for k in wanted]
    check_detections({name: np.asarray(value[i]) for name, value in found.items()},
                     expected_pairs(pairs, size, score_threshold=0.1, iou_threshold=0.3, limit=20))


def test_yolov2_s_detections_agree_with_the_loop():
  rng, priors, sizes = np.random.default_rng(9), ((9.0, 7.0), (14.0, 20.0)), np.array([(48, 64), (20, 40)])
  outputs = rng.standard_normal((2, 3, 4, 2, 8)).astype(np.float32)
  found = jax.jit(functools.partial(ops.yolov2_decode, anchors=priors, stride=16, score_threshold=0.1,
                                    iou_threshold=0.3, max_detections=20))(outputs, image_size=sizes)
  for i, size in enumerate(sizes):
    pairs = []
    for row, column, a in np.ndindex(3, 4, 2):
      raw = [float(v) for v in outputs[i, row, column, a]]
      box = np.array(oracles.yolo_box(raw, column, row, priors[a], 16))
      likely = np.exp(raw[5:]) / np.exp(raw[5:]).sum()
      pairs += [(oracles.sigmoid(raw[4]) * share, k, box) for k, share in enumerate(likely)]
    check_detections({name: np.asarray(value[i]) for name, value in found.items()},
                     expected_pairs(pairs, size, score_threshold=0.1, iou_threshold=0.3, limit=20))


def test_two_negative_numbers_of_yolov1_make_no_detection_and_none_scores_above_one():
  raw = np.array([0.5, 0.5, 0.7, 0.7, -3.0, -2.0, 0.1], np.float32).reshape(1, 1, 1, 7)
  decode = jax.jit(functools.partial(ops.yolov1_decode, canvas=(8, 8), boxes_per_cell=1, max_detections=2))
  assert not decode(raw, image_size=(8, 8))['valid'].any()
  raw[..., 4:6] = 2, 3
  found = decode(raw, image_size=(8, 8))
  assert found['scores'].tolist() == [[1.0, 0.0]] and found['labels'].tolist() == [[0, 0]]


def test_outputs_of_another_yolo_are_refused_in_one_line():
  with pytest.raises(ValueError, match=r'yolov1_decode: outputs \[1, 2, 2, 10\] with 2 boxes in a cell'):
    ops.yolov1_decode(np.zeros((1, 2, 2, 10)), canvas=(8, 8), image_size=(8, 8))
  with pytest.raises(ValueError, match=r'yolov1_decode: image_size \[3, 2\] for 1 images'):
    ops.yolov1_decode(np.zeros((1, 2, 2, 12)), canvas=(8, 8), image_size=np.zeros((3, 2)))
  with pytest.raises(ValueError, match=r'it must be \[B, h, w, 2, 5 \+ K\]'):
    ops.yolov2_decode(np.zeros((1, 2, 2, 3, 7)), anchors=((1.0, 1.0),) * 2, stride=4, image_size=(8, 8))
