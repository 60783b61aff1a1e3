"""DETR's loss: every object is matched to one query in each decoder layer; the other queries say that nothing is there.

Units: the objects' boxes are xyxy in canvas pixels; predicted boxes are (cx, cy, w, h) as shares of the image.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vision_jax.conventions import Array, Term
from vision_jax.losses.boxes import giou_loss, l1_loss
from vision_jax.losses.classification import softmax_cross_entropy
from vision_jax.losses.targets import Roles, check_axes, real_targets, roles_of
from vision_jax.ops.arrays import at_least_float32, check_choice, pick
from vision_jax.ops.boxes import cxcywh_to_xyxy, giou, xyxy_to_cxcywh
from vision_jax.ops.matching import hungarian_matching


def detr_loss(logits: Array, predicted: Array, boxes: Array, labels: Array, *, image_size: Array,
              class_cost: float = 1.0, box_cost: float = 5.0, giou_cost: float = 2.0, class_cost_kind: str = 'prob',
              no_object_weight: float = 0.1, solver: str = 'auto', boxes_valid: Array | None = None,
              valid: Array | None = None) -> dict[str, Term]:
  """DETR's loss: class, box and GIoU, of each decoder layer.

  In each layer the objects of an image and its queries are matched one to one, so that the sum of the weighted costs is
  least; all layers and images in one call. A matched query learns its object's class and box, the others the class of
  no object.

  Args:
    logits: [L, B, Q, K + 1], softmax classes, those of no object last; the last of the L layers is the final one.
    predicted: [L, B, Q, 4] cx, cy, w, h in 0..1, shares of the image's width and height.
    boxes: [B, N, 4] xyxy, canvas pixels.
    labels: int [B, N], 0..K-1.
    image_size: (h, w) of the images' content, pixels: [2], or [B, 2] for each.
    class_cost: at least 0, the weight of the class in the matching.
    box_cost: at least 0, that of the L1 distance of the boxes.
    giou_cost: at least 0, that of the negative GIoU.
    class_cost_kind: 'prob', the negative probability of the object's class; or 'nll', its negative logarithm.
    no_object_weight: 0..1, the weight of a query without an object in the class loss.
    solver: of `vision_jax.ops.hungarian_matching`: 'auto', 'host' or 'device'.
    boxes_valid: bool [B, N], True for real boxes; all when left out.
    valid: bool [B], False for padding of the batch; all True when left out.

  Returns:
    `loss_class`, `loss_box` and `loss_giou` of the final layer, and `loss_class_0`, `loss_box_0`, ... of those before
    it: sums over the valid images. The class losses have one count, the sum of the queries' weights, with a floor that
    a single query reaches; all others have the number of objects. The matching and the targets carry no gradient.

  Raises:
    ValueError: shapes that do not fit, or an option that is unknown or out of range.

  Reference: Carion et al., End-to-End Object Detection with Transformers, arXiv 2005.12872, equations 1 and 2; the
  weights here are those of the authors' code, which weighs the losses 1, 5 and 2 as well.

  >>> logits, predicted = jnp.zeros((1, 1, 2, 3)), jnp.array([[[[0.5, 0.5, 1, 1], [0.1, 0.1, 0.2, 0.2]]]])
  >>> box, label = jnp.array([[[0, 0, 5, 10.0]]]), jnp.array([[1]])
  >>> terms = jax.jit(detr_loss)(logits, predicted, box, label, image_size=jnp.array([10, 10]))
  >>> {name: (round(float(term.total), 3), round(float(term.count), 1)) for name, term in terms.items()}
  {'loss_box': (0.75, 1.0), 'loss_class': (1.208, 1.1), 'loss_giou': (0.5, 1.0)}
  """
  _check_weight(no_object_weight)
  logits, predicted, target, labels, real, valid, _, query, matched = _matched(
      logits, predicted, boxes, labels, image_size, (class_cost, box_cost, giou_cost), class_cost_kind, solver,
      boxes_valid, valid)
  shown = jnp.broadcast_to(valid, logits.shape[:2])
  classes, distance, apart = _layer_sums(logits, predicted, target, labels, query, matched, shown, no_object_weight)

  # Objects beyond the number of queries find none, in every layer.
  objects, queries = jnp.sum(real, axis=1, dtype=predicted.dtype), logits.shape[2]
  found = jnp.minimum(objects, queries)
  weights = jnp.sum(jnp.where(valid, found + no_object_weight * (queries - found), 0))
  count, final, terms = jnp.sum(objects), len(logits) - 1, {}
  for layer in (final, *range(final)):
    suffix = '' if layer == final else f'_{layer}'
    terms[f'loss_class{suffix}'] = Term(classes[layer], weights, no_object_weight or 1.0)
    terms[f'loss_box{suffix}'] = Term(distance[layer], count)
    terms[f'loss_giou{suffix}'] = Term(apart[layer], count)
  return terms


def roles(logits: Array, predicted: Array, boxes: Array, labels: Array, *, image_size: Array, class_cost: float,
          box_cost: float, giou_cost: float, class_cost_kind: str, solver: str, boxes_valid: Array | None = None,
          valid: Array | None = None) -> tuple[Roles, ...]:
  """What each query is for in each decoder layer of `detr_loss`, whose arguments these are."""
  found = _matched(logits, predicted, boxes, labels, image_size, (class_cost, box_cost, giou_cost), class_cost_kind,
                   solver, boxes_valid, valid)
  pixels = jnp.tile(found.size[:, ::-1], 2)[:, None]

  def learned(query, matched):
    place = jnp.where(matched, query, logits.shape[2])
    return jnp.full(logits.shape[2], -1).at[place].set(jnp.arange(len(place)), mode='drop')
  owner = jax.vmap(jax.vmap(learned))(found.query, found.matched)
  return tuple(roles_of(cxcywh_to_xyxy(predicted) * pixels, owner >= 0, owner, found.valid)
               for predicted, owner in zip(found.predicted, owner, strict=True))


class _Matched(NamedTuple):
  """The arguments of the loss without what is not real, objects as shares of their image, and each one's query."""

  logits: Array
  predicted: Array
  target: Array
  labels: Array
  real: Array
  valid: Array
  size: Array
  query: Array
  matched: Array


def _matched(logits: Array, predicted: Array, boxes: Array, labels: Array, image_size: Array,
             weights: tuple[float, float, float], class_cost_kind: str, solver: str, boxes_valid: Array | None,
             valid: Array | None) -> _Matched:
  sizes = check_axes('detr_loss', logits=(logits, 'L B Q K+1'), predicted=(predicted, 'L B Q 4'),
                     boxes=(boxes, 'B N 4'), labels=(labels, 'B N'))
  _check_options(class_cost_kind, jnp.asarray(image_size).shape, sizes['B'])
  boxes, labels, real, valid = real_targets('detr_loss', boxes, labels, boxes_valid, valid)
  # Emptied before any arithmetic: a NaN that is only selected away at the end comes back in the gradient.
  shown = jnp.broadcast_to(valid, (sizes['L'], sizes['B']))
  logits, predicted = pick(shown, at_least_float32(logits), 0), pick(shown, at_least_float32(predicted), 0)
  size = pick(valid, jnp.broadcast_to(at_least_float32(image_size), (sizes['B'], 2)), 1)
  target = boxes / jnp.tile(size[:, ::-1], 2)[:, None].astype(boxes.dtype)

  kinds = _matching_costs(*jax.lax.stop_gradient((logits, predicted)), target, labels, class_cost_kind)
  cost = sum(weight * kind for weight, kind in zip(weights, kinds, strict=True))
  query, matched = hungarian_matching(cost, solver=solver, valid=real)
  return _Matched(logits, predicted, target, labels, real, valid, size, query, matched)


def _matching_costs(logits: Array, predicted: Array, target: Array, labels: Array, class_cost_kind: str
                    ) -> tuple[Array, Array, Array]:
  """What it costs by class, L1 and GIoU to give each object to each query: [L, B, Q, N] each."""
  likeness = jax.nn.softmax(logits) if class_cost_kind == 'prob' else jax.nn.log_softmax(logits)
  classes = -jnp.take_along_axis(likeness, jnp.clip(labels, 0, logits.shape[-1] - 2)[None, :, None], axis=-1)
  distance = jnp.sum(jnp.abs(predicted[..., None, :] - xyxy_to_cxcywh(target)[:, None]), axis=-1)
  return classes, distance, -giou(cxcywh_to_xyxy(predicted)[..., None, :], target[:, None])


def _layer_sums(logits: Array, predicted: Array, target: Array, labels: Array, query: Array, matched: Array,
                shown: Array, no_object_weight: float) -> tuple[Array, Array, Array]:
  """Weighted cross-entropy, L1 and 1 - GIoU of each layer, summed over its images: [L] each."""
  layers, images, queries, no_object = *logits.shape[:-1], logits.shape[-1] - 1
  place = jnp.arange(layers)[:, None, None], jnp.arange(images)[:, None], jnp.where(matched, query, queries)
  truth = jnp.full(logits.shape[:-1], no_object).at[place].set(jnp.clip(labels, 0, no_object - 1), mode='drop')
  weight = jnp.where(truth == no_object, no_object_weight, 1)
  classes = pick(shown, weight * softmax_cross_entropy(logits, truth), 0)

  own, target = jnp.take_along_axis(predicted, query[..., None], axis=2), jnp.broadcast_to(target, (*query.shape, 4))
  distance = pick(matched, l1_loss(own, xyxy_to_cxcywh(target)), 0)
  apart = jnp.where(matched, giou_loss(cxcywh_to_xyxy(own), target), 0)
  return jnp.sum(classes, axis=(1, 2)), jnp.sum(distance, axis=(1, 2, 3)), jnp.sum(apart, axis=(1, 2))


def _check_weight(no_object_weight: float) -> None:
  if not 0 <= no_object_weight <= 1:
    raise ValueError(f'detr_loss: no_object_weight is {no_object_weight}; give a number from 0 to 1')


def _check_options(class_cost_kind: str, size: tuple[int, ...], images: int) -> None:
  check_choice('detr_loss', 'class_cost_kind', class_cost_kind, ('prob', 'nll'))
  if size not in ((2,), (images, 2)):
    raise ValueError(f'detr_loss: image_size {list(size)} for {images} images; give (h, w) for all, or [B, 2]')
