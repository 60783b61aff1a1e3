"""The cases of `vision_jax.ops`: suppression, matching, RoIAlign, pairwise IoU."""

from __future__ import annotations

from collections.abc import Iterator
import functools

from benches.timing import Case
import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from vision_jax import ops

IOU_THRESHOLD = 0.5
QUERIES, SLOTS, MOST_TARGETS, LAYERS, IMAGES = 100, 100, 25, 6, 8


def cases() -> Iterator[Case]:
  """All of them, in the order of the table."""
  yield from nms_cases()
  yield from matching_cases()
  yield from roi_cases()
  boxes = random_boxes(np.random.RandomState(0), 2000)
  yield Case('pairwise IoU, 1000 x 1000', ops.pairwise_iou, (boxes[:1000], boxes[1000:]), 'box_iou',
             {'boxes_a': boxes[:1000], 'boxes_b': boxes[1000:]})


def random_boxes(rng: np.random.RandomState, count: int) -> np.ndarray:
  corner, size = rng.uniform(0, 1000, (count, 2)), rng.uniform(10, 110, (count, 2))
  return np.concatenate([corner, corner + size], -1).astype(np.float32)


def clustered_boxes(rng: np.random.RandomState, count: int) -> np.ndarray:
  """As a detector gives them: many boxes around each of 50 objects."""
  objects = random_boxes(rng, 50)
  return (objects[rng.randint(0, 50, count)] + rng.normal(0, 8, (count, 4))).astype(np.float32)


def nms_cases() -> Iterator[Case]:
  # The largest ratios asked for: random and clustered boxes.
  goals = {1000: (1.0, 1.7), 8732: (0.5, 0.5)}
  for count, wanted in goals.items():
    for kind, make_boxes, goal in (('random', random_boxes, wanted[0]), ('clustered', clustered_boxes, wanted[1])):
      rng = np.random.RandomState(count)
      boxes = np.stack([make_boxes(rng, count) for _ in range(8)])
      scores = rng.uniform(size=(8, count)).astype(np.float32)
      full = functools.partial(ops.nms, iou_threshold=IOU_THRESHOLD, max_outputs=count)
      best = functools.partial(ops.nms, iou_threshold=IOU_THRESHOLD, max_outputs=100, candidates=1000)
      one = {'boxes': boxes[0], 'scores': scores[0], 'iou_threshold': IOU_THRESHOLD}
      all_8 = {'boxes': boxes, 'scores': scores, 'iou_threshold': IOU_THRESHOLD}
      for name, arrays, peer, peer_arrays in (('', (boxes[0], scores[0]), 'nms', one),
                                              (', 8 images', (boxes, scores), 'nms_of_each', all_8)):
        yield Case(f'NMS of {count} {kind}{name}', full, arrays, peer, peer_arrays, goal)
        if count > 1000:
          yield Case(f'NMS of {count} {kind}{name}: best 1000, 100 kept', best, arrays, peer, peer_arrays,
                     1 / 20)


def matching_problems(structured: bool) -> tuple[np.ndarray, np.ndarray]:
  """Costs [L, B, Q, N] and valid [B, N]: uniform, or those of boxes and classes as a DETR sees them."""
  rng = np.random.RandomState(int(structured))
  valid = np.arange(SLOTS) < rng.randint(1, MOST_TARGETS + 1, (IMAGES, 1))
  if not structured:
    return rng.uniform(size=(LAYERS, IMAGES, QUERIES, SLOTS)).astype(np.float32), valid
  targets, predicted = rng.uniform(0.1, 0.5, (IMAGES, SLOTS, 4)), rng.uniform(0.1, 0.5, (LAYERS, IMAGES, QUERIES, 4))
  share = rng.uniform(size=(LAYERS, IMAGES, QUERIES, 1))
  pulled = targets[:, rng.randint(0, MOST_TARGETS, QUERIES)]
  predicted = share * predicted + (1 - share) * pulled  # many queries near few objects, as early in training
  distance = np.abs(predicted[..., None, :] - targets[:, None]).sum(-1)
  giou = ops.giou(ops.cxcywh_to_xyxy(predicted)[..., None, :], ops.cxcywh_to_xyxy(targets)[:, None])
  probability = rng.dirichlet(np.ones(20), (LAYERS, IMAGES, QUERIES))
  labels = rng.randint(0, 20, (IMAGES, SLOTS))
  classes = np.stack([probability[:, i][..., labels[i]] for i in range(IMAGES)], axis=1)
  return np.asarray(5 * distance - 2 * giou - classes, np.float32), valid


def matching_cases() -> Iterator[Case]:
  for kind, structured, device_ms in (('uniform', False, 3.0), ('structured', True, 5.0)):
    cost, valid = matching_problems(structured)
    problems = [np.ascontiguousarray(cost[i, j, :, :valid[j].sum()]) for i in range(LAYERS) for j in range(IMAGES)]
    scipy = functools.partial(solve_each, problems)
    for solver, goals in (('host', {'goal': 1.5}), ('device', {'goal_ms': device_ms})):
      solve = functools.partial(match, solver=solver)
      yield Case(f'matching 6 x 8 x 100, {kind}, {solver} (SciPy)', solve, (cost, valid), scipy, **goals)


def match(cost: jax.Array, valid: jax.Array, *, solver: str) -> tuple[jax.Array, jax.Array]:
  return ops.hungarian_matching(cost, solver=solver, valid=valid)


def solve_each(problems: list[np.ndarray]) -> list:
  return [linear_sum_assignment(problem) for problem in problems]


def roi_cases() -> Iterator[Case]:
  for h, w, stride in ((25, 34, 32), (50, 68, 16), (200, 272, 4)):
    rng = np.random.RandomState(stride)
    features = rng.normal(size=(h, w, 256)).astype(np.float32)
    boxes = np.clip(random_boxes(rng, 1000) * np.float32(1.2), 0, [w * stride, h * stride] * 2).astype(np.float32)
    align = functools.partial(ops.roi_align, stride=stride, output_size=(7, 7), sampling_ratio=2)
    gradient = jax.value_and_grad(lambda features, boxes, align=align: jnp.sum(align(features, boxes)))
    arrays = {'features': features, 'boxes': boxes, 'stride': float(stride)}
    name = f'RoIAlign, 1000 boxes, {h} x {w} x 256'
    yield Case(name, align, (features, boxes), 'roi_align', arrays, 1 / 4)
    yield Case(f'{name}, with gradient', gradient, (features, boxes), 'roi_align_and_gradient', arrays, 1 / 4)
