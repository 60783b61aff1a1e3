"""Explain-assignment on scenes whose roles are known by hand, and beside the gradients of the losses themselves."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from flax import linen as nn
from flax.core import FrozenDict
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax import inspect, losses, models, tasks, viz
from vision_jax.conventions import ClassMap
from vision_jax.inspect import Role
from vision_jax.tasks import detection, two_stage

pytestmark = pytest.mark.medium  # many small compilations: together more than the fast tests can spare

CLASSES = ClassMap(('a', 'b', 'c'))
QUICK = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
# A canvas of 32 x 32: 16 squares of 8 pixels, row by row, then 4 of 16.
SQUARES = np.float32([[8 * (i % 4), 8 * (i // 4), 8 * (i % 4) + 8, 8 * (i // 4) + 8] for i in range(16)]
                     + [[16 * (i % 2), 16 * (i // 2), 16 * (i % 2) + 16, 16 * (i // 2) + 16] for i in range(4)])
NOTHING = [np.nan] * 4
# In the middle, on four squares of each size; a slot that is empty; one that leans over two squares of 8 (IoU 0.571 and
# 0.375) and lies in one of 16 (0.4375); one beyond the canvas, which no anchor meets.
MIDDLE, LEANING, OUTSIDE = [8, 8, 24, 24], [0, 0, 14, 8], [40, 40, 50, 50]
SCENE = (MIDDLE, NOTHING, LEANING, OUTSIDE)


class Squares(nn.Module):
  """A model of no weights with these anchors, for the rows of the dense detectors."""

  outputs: tuple[str, ...]
  background: bool = False

  def anchors(self, canvas):
    assert tuple(canvas) == (32, 32)
    return SQUARES

  def level_sizes(self, canvas):
    return 16, 4


def batch_of(boxes) -> dict[str, np.ndarray]:
  """A first row that is no image, whose fields are worth nothing, and the scene in the second."""
  boxes = np.float32([boxes, np.full_like(boxes, 1e9)])[::-1]
  real = np.isfinite(boxes).all(-1)
  return {'image': np.zeros((2, 32, 32, 3), np.float32), 'image_size': np.full((2, 2), 32), 'boxes': boxes,
          'labels': np.where(real, 1, 10**9), 'boxes_valid': real, 'valid': np.array([False, True]),
          'position': np.arange(2)}


def row(name: str, outputs: Any):
  """The task's row, whose network gives these outputs."""
  anchors = ((8.0, 8.0),), ((16.0, 16.0),)
  module = {
      'retinanet': lambda: Squares(('logits', 'deltas')),
      'fcos': lambda: Squares(('logits', 'distances', 'centerness')),
      'ssd': lambda: Squares(('logits', 'deltas'), background=True),
      'yolov1': lambda: models.create('yolov1_small', canvas=(32, 32), num_classes=3),
      'yolov2': lambda: models.create('yolov2_small', num_classes=3).clone(anchors=anchors[0] + anchors[1], stride=8),
      'yolov3': lambda: models.create('yolov3_small', num_classes=3).clone(anchors=anchors, strides=(8, 16)),
      'detr': lambda: models.create('detr_small', num_classes=3),
  }[name]()
  task = tasks.create(name, module, CLASSES)
  return dataclasses.replace(task, forward=lambda module, batch, train, keys=None: outputs)


def numbers(*shape: int) -> np.ndarray:
  """Outputs with a gradient everywhere: nothing is quite 0."""
  return np.linspace(-0.6, 0.4, int(np.prod(shape))).reshape(shape).astype(np.float32)


def slots(levels, corner) -> tuple[np.ndarray, ...]:
  """Raw YOLO outputs whose boxes are a little more than their anchors around the middle of their cells."""
  flat = np.zeros((sum(h * w * a for h, w, a in levels), 8), np.float32)
  flat[:, 2:5] = 0.1, 0.1, 0.3
  flat[corner, :2] = 20  # the centre in the corner of its cell
  parts = np.split(flat, np.cumsum([h * w * a for h, w, a in levels])[:-1])
  return tuple(part.reshape(1, *level, 8) for part, level in zip(parts, levels, strict=True))


def rising_logits() -> np.ndarray:
  """Softmax logits [1, 20, 4] that are surer of an object the later the anchor."""
  logits = np.zeros((1, 20, 4), np.float32)
  logits[0, :, 2] = np.arange(20) / 5
  return logits


def v1_outputs() -> np.ndarray:
  """Two boxes in each of 4 x 4 cells; the second one of cell 10 is nearly the largest object there."""
  outputs = np.full((1, 4, 4, 13), 0.05, np.float32)
  outputs[0, 2, 2, 5:9] = (0.125, 0.125, *np.sqrt([9 / 32, 9 / 32]))
  return outputs


# name -> (outputs, boxes, roles by hand: {positive prediction: object}, ignored, levels, unanswered); objects are
# counted without the empty slot.
ON_SQUARES = {5: 0, 6: 0, 9: 0, 10: 0, 0: 1}
SCENES = {
    'retinanet': ({'logits': numbers(1, 20, 3), 'deltas': numbers(1, 20, 4)}, SCENE, ON_SQUARES, {16}, (16, 4), [2]),
    'fcos': ({'logits': numbers(1, 20, 3), 'distances': np.abs(numbers(1, 20, 4)), 'centerness': numbers(1, 20)},
             SCENE, {**ON_SQUARES, 1: 1}, set(), (16, 4), [2]),
    # Two positives, so that the six surest of an object of all others are negatives.
    'ssd': ({'logits': rising_logits(), 'deltas': numbers(1, 20, 4)}, SCENE, {5: 0, 0: 1},
            set(range(14)) - {0, 5}, (16, 4), [2]),
    # The second object's centre lies in the cell of the first, which is larger; the last one has no area.
    'yolov1': (v1_outputs(), ([12, 12, 22, 22], [14, 14, 22, 22], NOTHING, [0, 0, 8, 8], [9, 9, 9, 9]),
               {21: 0, 0: 2}, set(), (32,), [1, 3]),
    # Slot 11 predicts the object in the middle, which is learned by slot 21; two objects want slot 0.
    'yolov2': (slots([(4, 4, 2)], 11)[0], (MIDDLE, NOTHING, [0, 0, 7, 7], [0, 0, 8, 8], [9, 9, 9, 9]),
               {21: 0, 0: 2}, {11}, (32,), [1, 3]),
    'yolov3': (slots([(4, 4, 1), (2, 2, 1)], 16), (MIDDLE, NOTHING, [0, 0, 7, 7], [0, 0, 8, 8], [9, 9, 9, 9]),
               {19: 0, 0: 2}, {16}, (16, 4), [1, 3]),
}
COLLISIONS = {'yolov1': 1, 'yolov2': 1, 'yolov3': 1}


@functools.cache
def explained(name: str):
  outputs, boxes = SCENES[name][:2]
  found, = inspect.explain_assignment(row(name, outputs), {}, batch_of(boxes), row=1)
  return found


@pytest.mark.parametrize('name', SCENES)
def test_roles_are_those_that_are_known_by_hand(name):
  _, boxes, positive, ignored, levels, unanswered = SCENES[name]
  found = explained(name)
  assert {q: found.owners[q] for q in np.flatnonzero(found.roles == Role.POSITIVE)} == positive
  assert set(np.flatnonzero(found.roles == Role.IGNORED)) == ignored
  assert found.roles.dtype == np.int8 and found.levels == levels and len(found.roles) == sum(levels)
  assert found.unanswered.tolist() == unanswered and found.collisions == COLLISIONS.get(name)
  np.testing.assert_array_equal(found.objects, np.float32([box for box in boxes if box is not NOTHING]))
  assert found.labels.tolist() == [1] * len(found.objects)
  counts = {'positive': len(positive), 'negative': sum(levels) - len(positive) - len(ignored),
            'ignored': len(ignored), 'objects': len(found.objects), 'unanswered': len(unanswered)}
  assert found.counts == counts | ({'collisions': 1} if name in COLLISIONS else {})
  assert [sum(level.values()) for level in found.level_counts] == list(levels)
  assert found.answers.sum() == len(positive)


@pytest.mark.parametrize('name', SCENES)
def test_the_loss_has_a_gradient_for_exactly_what_is_not_ignored_and_of_boxes_for_what_is_positive(name):
  outputs, boxes = SCENES[name][:2]
  found, batch = explained(name), {k: v[1:] for k, v in batch_of(boxes).items()}
  task = row(name, outputs)

  def total(outputs, which):
    return sum(term.total for key, term in task.criterion(outputs, batch).items() if key.startswith(which))

  there, box = QUICK(lambda outputs: tuple(jax.grad(total)(outputs, which) for which in ('loss_', 'loss_box')))(outputs)
  assert set(np.flatnonzero(objectness(name, there))) == set(np.flatnonzero(found.roles != Role.IGNORED))
  learned = np.flatnonzero(of_boxes(name, box))
  assert set(learned) == set(np.flatnonzero(found.roles == Role.POSITIVE))


def objectness(name, gradient) -> np.ndarray:
  """Whether the loss pulls at what each prediction says of there being an object, bool [Q]."""
  if isinstance(gradient, dict):
    return np.any(gradient['logits'][0] != 0, axis=-1)
  return raw_slots(name, gradient)[:, 4] != 0


def of_boxes(name, gradient) -> np.ndarray:
  if isinstance(gradient, dict):
    return np.any(gradient['distances' if name == 'fcos' else 'deltas'][0] != 0, axis=-1)
  return np.any(raw_slots(name, gradient)[:, :4] != 0, axis=-1)


def raw_slots(name, gradient) -> np.ndarray:
  if name == 'yolov1':
    return np.asarray(gradient)[..., :10].reshape(-1, 5)
  return np.concatenate([np.reshape(level, (-1, 8)) for level in jax.tree.leaves(gradient)])


def test_detr_matches_one_query_of_each_layer_to_an_object_and_leaves_out_what_is_beyond_their_number():
  share = lambda x1, y1, x2, y2: [(x1 + x2) / 64, (y1 + y2) / 64, (x2 - x1) / 32, (y2 - y1) / 32]
  middle, corner = share(*MIDDLE), share(*LEANING)
  outputs = {'logits': np.zeros((2, 1, 2, 4), np.float32),
             'boxes': np.float32([[[corner, middle]], [[middle, corner]]])}
  scene = (MIDDLE, NOTHING, LEANING, [24, 24, 32, 32])
  first, last = inspect.explain_assignment(row('detr', outputs), {}, batch_of(scene), row=1)
  assert (first.stage, last.stage) == ('decoder layer 1', 'decoder layer 2')
  assert first.owners.tolist() == [1, 0] and last.owners.tolist() == [0, 1]
  for layer in (first, last):
    assert layer.counts == {'positive': 2, 'negative': 0, 'ignored': 0, 'objects': 3, 'unanswered': 1}
    # Shares of 32 pixels are exact in float32.
    np.testing.assert_array_equal(layer.boxes, layer.objects[layer.owners])
  spare = {'logits': np.zeros((1, 1, 4, 4), np.float32), 'boxes': np.float32([[[corner, middle, corner, corner]]])}
  found, = inspect.explain_assignment(row('detr', spare), {}, batch_of((MIDDLE, NOTHING)), row=1)
  assert np.flatnonzero(found.roles == Role.POSITIVE).tolist() == [1] and found.counts['negative'] == 3


KEYS = jax.random.split(jax.random.key(0), 1)


@functools.cache
def two_stages(size: int):
  """A network that proposes two regions, of which four are to be sampled, and so many anchors."""
  proposals = np.float32([[[8, 8, 24, 22], [0, 0, 4, 4]]])

  def forward(module, batch, train, keys):
    samples = losses.sample_proposals(keys, proposals, batch['boxes'], batch['labels'], size=4, add_ground_truth=False,
                                      positive_fraction=0.5, boxes_valid=batch['boxes_valid'], valid=batch['valid'])
    return {'rpn_keys': KEYS, 'samples': samples}
  module = Squares(())
  criterion = two_stage.TwoStageCriterion(module, FrozenDict(size=size), FrozenDict(), False)
  task = detection.Detection(module, CLASSES, criterion, None, (), forward=forward)
  return inspect.explain_assignment(task, {}, batch_of(SCENE), row=1)


@pytest.mark.medium
def test_region_proposals_learn_from_the_sampled_anchors_and_the_heads_from_the_sampled_proposals():
  rpn, roi = two_stages(256)
  # All are sampled that are positive (0.7, or the best of an object) or below 0.3: not 0.375 and 0.4375.
  assert {q: rpn.owners[q] for q in np.flatnonzero(rpn.roles == Role.POSITIVE)} == ON_SQUARES
  assert np.flatnonzero(rpn.roles == Role.IGNORED).tolist() == [1, 16] and rpn.levels == (16, 4)
  assert rpn.unanswered.tolist() == [2]
  # Two of four slots of the sample stay empty.
  assert (rpn.stage, roi.stage) == ('proposals', 'regions') and roi.roles.tolist() == [1, 0] and roi.owners[0] == 0
  assert roi.boxes.tolist() == [[8, 8, 24, 22], [0, 0, 4, 4]] and roi.unanswered.tolist() == [1, 2]
  few, _ = two_stages(8)
  assert few.counts == {'positive': 4, 'negative': 4, 'ignored': 12, 'objects': 3,
                        'unanswered': len(set(range(3)) - set(few.owners[few.roles == 1]))}
  assert set(np.flatnonzero(few.roles == Role.POSITIVE)) < set(ON_SQUARES)


def test_the_region_proposal_loss_has_a_gradient_for_exactly_the_sampled_anchors():
  batch = {k: v[1:] for k, v in batch_of(SCENE).items()}

  def total(objectness):
    return losses.rpn_loss(KEYS, objectness, jnp.zeros((1, 20, 4)), batch['boxes'], anchors=SQUARES, size=8,
                           boxes_valid=batch['boxes_valid'])['loss_rpn_objectness'].total

  pulled = np.flatnonzero(QUICK(jax.grad(total))(np.zeros((1, 20), np.float32))[0])
  assert set(pulled) == set(np.flatnonzero(two_stages(8)[0].roles != Role.IGNORED))


def test_the_table_names_levels_and_objects():
  lines = explained('retinanet').table(CLASSES).splitlines()
  assert lines == ['5 positive, 14 negative, 1 ignored, 3 objects, 1 unanswered',
                   '  level 0: 5 positive, 11 negative, 0 ignored', '  level 1: 0 positive, 3 negative, 1 ignored',
                   '  object b, 16 x 16 pixels at (8, 8): 4 predictions',
                   '  object b, 14 x 8 pixels at (0, 0): 1 prediction',
                   '  object b, 10 x 10 pixels at (40, 40): no predictions']


def test_the_picture_shows_each_object_and_what_learns_it_in_one_colour_and_the_unanswered_in_red():
  grey = np.full((60, 60, 3), 90, np.uint8)
  picture = explained('retinanet').draw(grey, scale=4)
  assert picture.shape == (240, 240, 3) and (grey == 90).all()
  first, second = viz.palette(4)[2:]
  at = lambda colour: {(y // 4, x // 4) for y, x in zip(*np.nonzero((picture == colour).all(-1)), strict=True)}
  # Their own squares (of 8 pixels, the middle one of four), and not beyond.
  assert {(8, 8), (23, 23)} <= at(first) and {(0, 7), (7, 7)} <= at(second)
  assert all(7 <= y <= 24 and 7 <= x <= 24 for y, x in at(first))
  assert {(40, 40), (45, 45)} <= at((255, 0, 0)) and min(min(at((255, 0, 0)))) >= 39
  assert (28, 28) in at((150, 160, 170)) and (8, 8) in at((255, 214, 70)) | at(first)


def test_a_negative_stays_in_sight_where_an_ignored_anchor_has_its_middle():
  boxes = np.float32([[4, 4, 16, 16], [6, 6, 14, 14], [20, 4, 28, 12]])
  for order in ([0, 1, 2], [1, 0, 2]):
    picture = viz.draw_assignment(np.zeros((32, 32, 3), np.uint8), boxes, np.array([0, -1, -1])[order],
                                  np.zeros(3, int), np.zeros((0, 4)))
    assert picture[10, 10].tolist() == [150, 160, 170] and picture[8, 24].tolist() == [255, 214, 70]


def test_arrays_that_do_not_fit_a_picture_are_refused():
  with pytest.raises(ValueError, match='draw_assignment: 1 boxes, 2 roles, 1 owners; give as many of each'):
    viz.draw_assignment(np.zeros((9, 9, 3), np.uint8), np.zeros((1, 4)), np.zeros(2), np.zeros(1, int), np.ones((1, 4)))


def test_what_assigns_nothing_and_what_does_not_say_how_is_refused():
  task, batch = row('retinanet', SCENES['retinanet'][0]), batch_of(SCENE)
  with pytest.raises(ValueError, match='row 0 of a batch of 2 is no valid image; choose another'):
    inspect.explain_assignment(task, {}, batch)
  with pytest.raises(ValueError, match='a task of the kind classification assigns nothing; give a detector'):
    inspect.explain_assignment(tasks.create('classification', models.create('lenet5'), CLASSES), {}, batch, row=1)
  silent = dataclasses.replace(task, criterion=dataclasses.replace(task.criterion, roles=None))
  with pytest.raises(ValueError, match='the row of retinanet_loss does not say how it assigns objects; give its crit'):
    inspect.explain_assignment(silent, {}, batch, row=1)
  with pytest.raises(ValueError, match='function does not say how it assigns objects; give it a method assignment'):
    inspect.explain_assignment(dataclasses.replace(task, criterion=lambda outputs, batch: {}), {}, batch, row=1)
