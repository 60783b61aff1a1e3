"""The losses of Faster and Mask R-CNN: region proposals, the sample of proposals that the heads learn from, the heads.

Units: boxes, anchors and proposals are xyxy in canvas pixels. No module sees a target: a task runs the proposal stage,
samples from its proposals (`sample_proposals`), runs the heads on the sampled boxes, and gives their outputs here.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vision_jax.conventions import Array, Term
from vision_jax.losses.boxes import smooth_l1_loss
from vision_jax.losses.classification import sigmoid_cross_entropy, softmax_cross_entropy
from vision_jax.losses.targets import Roles, assign_by_iou, check_axes, real_targets, roles_of, rows
from vision_jax.ops.arrays import as_valid, at_least_float32, pick
from vision_jax.ops.assignment import MaxIouAssignment, balanced_sample
from vision_jax.ops.boxes import box_area
from vision_jax.ops.deltas import encode_deltas
from vision_jax.ops.masks import crop_and_resize_masks


class ProposalSamples(NamedTuple):
  """The proposals of each image that the heads learn from; positives first, then negatives, then invalid slots.

  Args:
    boxes: [B, S, 4] xyxy, the sampled proposals; zeros in invalid slots.
    positive: bool [B, S], the proposal has an object; False in invalid slots.
    labels: int [B, S], the object's class in 0..K-1, of which the losses take one outside for the nearest; 0 where
      there is none.
    targets: [B, S, 4] xyxy, the object's box; zeros where there is none.
    owner: int [B, S], the object as an index into the image's boxes; 0 where there is none.
    valid: bool [B, S], the slot holds a proposal.

  >>> empty = jnp.zeros((1, 8), int)
  >>> ProposalSamples(jnp.zeros((1, 8, 4)), empty > 0, empty, jnp.zeros((1, 8, 4)), empty, empty > 0).valid.shape
  (1, 8)
  """

  boxes: Array
  positive: Array
  labels: Array
  targets: Array
  owner: Array
  valid: Array


def rpn_loss(key: Array, objectness: Array, deltas: Array, boxes: Array, *, anchors: Array, positive_iou: float = 0.7,
             negative_iou: float = 0.3, size: int = 256, positive_fraction: float = 0.5, beta: float = 1 / 9,
             boxes_valid: Array | None = None, valid: Array | None = None) -> dict[str, Term]:
  """The loss of a region proposal network, over a random sample of each image's anchors: objectness and box.

  An anchor is positive for the object that it overlaps most, if their IoU reaches `positive_iou` or is the best that
  this or another object has with any anchor; it is negative below `negative_iou`, and not sampled between.

  Args:
    key: a random key, split for the images; or [B], one for each image, as it takes for a sample that does not depend
      on how the batch is spread over devices.
    objectness: [B, A] logits.
    deltas: [B, A, 4], as in `vision_jax.ops.encode_deltas` without variances.
    boxes: [B, N, 4] xyxy, canvas pixels.
    anchors: [A, 4] xyxy, canvas pixels, such as `vision_jax.ops.rpn_anchors` gives.
    positive_iou: 0..1.
    negative_iou: 0..1, at most `positive_iou`.
    size: anchors to sample in each image.
    positive_fraction: 0..1, the largest share of positives in `size`; negatives fill the rest.
    beta: at least 0, of the smooth L1 loss.
    boxes_valid: bool [B, N], True for real boxes; all when left out.
    valid: bool [B], False for padding of the batch; all True when left out.

  Returns:
    `loss_rpn_objectness`, over the sampled anchors, and `loss_rpn_box`, over the positive ones of them: sums over the
    valid images. Both have the same count, the number of sampled anchors. Assignment and targets carry no gradient.

  Raises:
    ValueError: shapes that do not fit, or an option out of range.

  Reference: Ren et al., Faster R-CNN, arXiv 1506.01497, equation 1 and section 3.1.2.
  Differs from the paper: the box term is divided by the sampled anchors, not by the number of positions and times 10,
  and beta is 1/9, as in the authors' later code and in torchvision.

  >>> anchors, box = jnp.array([[0, 0, 8, 8], [8, 0, 16, 8.0]]), jnp.array([[[0, 0, 8, 10.0]]])
  >>> loss, key = jax.jit(rpn_loss, static_argnames='size'), jax.random.key(0)
  >>> terms = loss(key, jnp.zeros((1, 2)), jnp.zeros((1, 2, 4)), box, anchors=anchors, size=2)
  >>> {name: (round(float(term.total), 4), int(term.count)) for name, term in terms.items()}
  {'loss_rpn_box': (0.237, 2), 'loss_rpn_objectness': (1.3863, 2)}
  """
  check_axes('rpn_loss', objectness=(objectness, 'B A'), deltas=(deltas, 'B A 4'), boxes=(boxes, 'B N 4'),
             anchors=(anchors, 'A 4'))
  boxes, _, real, valid = real_targets('rpn_loss', boxes, None, boxes_valid, valid)
  # Emptied before any arithmetic: a NaN that is only selected away at the end comes back in the gradient.
  objectness, deltas = pick(valid, at_least_float32(objectness), 0), pick(valid, at_least_float32(deltas), 0)
  anchors = jax.lax.stop_gradient(at_least_float32(anchors))
  found, chosen, sampled = _sample_anchors(key, boxes, anchors, real, valid, positive_iou, negative_iou, size,
                                           positive_fraction)
  positive = rows(found.positive, chosen) & sampled
  own = rows(anchors[None], chosen.reshape(1, -1)).reshape(*chosen.shape, 4)
  goal = encode_deltas(rows(boxes, rows(found.owner, chosen)), own)
  box = pick(positive, smooth_l1_loss(rows(deltas, chosen), goal, beta=beta), 0)
  there = jnp.where(sampled, sigmoid_cross_entropy(rows(objectness, chosen), positive), 0)
  count = jnp.sum(sampled, dtype=box.dtype)
  return {'loss_rpn_objectness': Term(jnp.sum(there), count), 'loss_rpn_box': Term(jnp.sum(box), count)}


def sample_proposals(key: Array, proposals: Array, boxes: Array, labels: Array, *, size: int = 512,
                     positive_fraction: float = 0.25, iou_threshold: float = 0.5, add_ground_truth: bool = True,
                     proposals_valid: Array | None = None, boxes_valid: Array | None = None,
                     valid: Array | None = None) -> ProposalSamples:
  """A random sample of each image's proposals, and what each should become.

  A proposal is positive for the object that it overlaps most, from `iou_threshold` on; all others are negative.

  Args:
    key: a random key, split for the images; or [B], one for each image, as it takes for a sample that does not depend
      on how the batch is spread over devices.
    proposals: [B, M, 4] xyxy, canvas pixels.
    boxes: [B, N, 4] xyxy, canvas pixels.
    labels: int [B, N], 0..K-1.
    size: S, proposals to sample in each image.
    positive_fraction: 0..1, the largest share of positives in `size`; negatives fill the rest. Positives come first, so
      a mask head needs to see the first int(size * positive_fraction) slots only.
    iou_threshold: 0..1.
    add_ground_truth: whether real boxes that have an area are proposals too, so that early in the training there are
      some positives.
    proposals_valid: bool [B, M], True for real proposals; all when left out.
    boxes_valid: bool [B, N], True for real boxes; all when left out.
    valid: bool [B], False for padding of the batch; all True when left out.

  Returns:
    `ProposalSamples`. Gradients do not pass.

  Raises:
    ValueError: shapes that do not fit.

  Reference: Girshick, Fast R-CNN, arXiv 1504.08083, section 2.3.
  Differs from the paper: negatives need no least IoU, and the objects' own boxes are proposals, as in torchvision.

  >>> proposals, box = jnp.array([[[0, 0, 8, 8], [9, 0, 16, 8.0]]]), jnp.array([[[0, 0, 8, 10.0]]])
  >>> sample = jax.jit(sample_proposals, static_argnames=('size', 'positive_fraction'))
  >>> samples = sample(jax.random.key(0), proposals, box, jnp.array([[1]]), size=4, positive_fraction=0.5)
  >>> samples.labels.tolist(), samples.positive.tolist(), samples.valid.tolist()
  ([[1, 1, 0, 0]], [[True, True, False, False]], [[True, True, True, False]])
  """
  check_axes('sample_proposals', proposals=(proposals, 'B M 4'), boxes=(boxes, 'B N 4'), labels=(labels, 'B N'))
  boxes, labels, real, valid = real_targets('sample_proposals', boxes, labels, boxes_valid, valid)
  proposals = jax.lax.stop_gradient(at_least_float32(proposals))
  usable = as_valid('sample_proposals', 'proposals_valid', proposals_valid, proposals.shape[:2]) & valid[:, None]
  if add_ground_truth:
    proposals = jnp.concatenate([proposals, boxes.astype(proposals.dtype)], axis=1)
    usable = jnp.concatenate([usable, box_area(boxes) > 0], axis=1)  # invalid slots are zeros by now
  found = assign_by_iou(boxes, proposals, real, high=iou_threshold, low=iou_threshold)
  chosen, sampled = _sample(key, found.positive & usable, ~found.positive & usable, size, positive_fraction)

  positive = rows(found.positive, chosen) & sampled
  owner = jnp.where(positive, rows(found.owner, chosen), 0)
  return ProposalSamples(
      boxes=pick(sampled, rows(proposals, chosen), 0), positive=positive,
      labels=jnp.where(positive, rows(labels, owner), 0), targets=pick(positive, rows(boxes, owner), 0), owner=owner,
      valid=sampled)


def roi_loss(logits: Array, deltas: Array, samples: ProposalSamples, *, beta: float = 1 / 9,
             variances: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)) -> dict[str, Term]:
  """The loss of the box head of Fast, Faster and Mask R-CNN on sampled proposals: class and box.

  Args:
    logits: [B, S, K + 1], softmax classes; the first is the background, and class k stands at k + 1.
    deltas: [B, S, K + 1, 4], for each of these classes, as in `vision_jax.ops.encode_deltas` with these variances; only
      the true class's are learned.
    samples: of `sample_proposals`, on whose boxes the head was run.
    beta: at least 0, of the smooth L1 loss.
    variances: four positive numbers.

  Returns:
    `loss_class`, over the sampled proposals, and `loss_box`, over the positive ones. Both have the same count, the
    number of sampled proposals.

  Raises:
    ValueError: shapes that do not fit, or an option out of range.

  Reference: Girshick, Fast R-CNN, arXiv 1504.08083, equations 1 to 3.
  Differs from the paper: beta is 1/9 in place of 1, as in torchvision.

  >>> proposals, real = jnp.array([[[0, 0, 8, 8], [9, 0, 16, 8.0]]]), jnp.ones((1, 2), bool)
  >>> first, box = real & jnp.array([True, False]), jnp.array([[[0, 0, 8, 10.0], [0, 0, 0, 0]]])
  >>> samples = ProposalSamples(proposals, first, jnp.array([[1, 0]]), box, jnp.array([[0, 0]]), real)
  >>> terms = jax.jit(roi_loss)(jnp.zeros((1, 2, 3)), jnp.zeros((1, 2, 3, 4)), samples)
  >>> {name: (round(float(term.total), 4), int(term.count)) for name, term in terms.items()}
  {'loss_box': (2.2546, 2), 'loss_class': (2.1972, 2)}
  """
  check_axes('roi_loss', logits=(logits, 'B S K+1'), deltas=(deltas, 'B S K+1 4'), samples=(samples.boxes, 'B S 4'))
  logits = pick(samples.valid, at_least_float32(logits), 0)
  deltas = pick(samples.positive, at_least_float32(deltas), 0)
  label = jnp.where(samples.positive, jnp.clip(samples.labels + 1, 1, logits.shape[-1] - 1), 0)
  own = jnp.take_along_axis(deltas, label[..., None, None], axis=2)[:, :, 0]
  goal = encode_deltas(samples.targets, samples.boxes, variances=variances)
  box = pick(samples.positive, smooth_l1_loss(own, goal, beta=beta), 0)
  classes = jnp.where(samples.valid, softmax_cross_entropy(logits, label), 0)
  count = jnp.sum(samples.valid, dtype=box.dtype)
  return {'loss_class': Term(jnp.sum(classes), count), 'loss_box': Term(jnp.sum(box), count)}


def mask_loss(logits: Array, masks: Array, samples: ProposalSamples) -> dict[str, Term]:
  """The loss of Mask R-CNN's mask head: binary cross-entropy of the true class's mask, inside each positive proposal.

  Args:
    logits: [B, P, h, w, K], a sigmoid mask for each class, of the first P sampled proposals; int(S * positive_fraction)
      of them hold all positives. A head with a channel for the background (torchvision's first) gives `[..., 1:]`.
    masks: [B, N, H, W], 0..1 or bool, the objects' masks on the canvas.
    samples: of `sample_proposals`, on whose boxes the head was run.

  Returns:
    `loss_mask`: the sum over the h * w cells of positive proposals; count: these cells. Gradients pass to the logits
    only.

  Raises:
    ValueError: shapes that do not fit, or logits of more proposals than samples.

  Reference: He et al., Mask R-CNN, arXiv 1703.06870, section 3; targets as in
  `vision_jax.ops.crop_and_resize_masks`.

  >>> boxes, real = jnp.array([[[0, 0, 8, 8], [9, 0, 16, 8.0]]]), jnp.ones((1, 2), bool)
  >>> first, zeros = real & jnp.array([True, False]), jnp.zeros((1, 2), int)
  >>> samples = ProposalSamples(boxes, first, zeros, boxes, zeros, real)
  >>> terms = jax.jit(mask_loss)(jnp.zeros((1, 2, 4, 4, 3)), jnp.ones((1, 1, 16, 16)), samples)
  >>> {name: (round(float(term.total), 4), int(term.count)) for name, term in terms.items()}
  {'loss_mask': (11.0904, 16)}
  """
  sizes = check_axes('mask_loss', logits=(logits, 'B P h w K'), masks=(masks, 'B N H W'),
                     samples=(samples.boxes, 'B S 4'))
  if sizes['P'] > sizes['S']:
    raise ValueError(f'mask_loss: logits of {sizes["P"]} proposals for {sizes["S"]} samples; give those of the first P')
  seen, size = jax.tree.map(lambda x: x[:, :sizes['P']], samples), (sizes['h'], sizes['w'])
  # One long list of masks, not a map over images: few of them are copied at a time.
  masks = jax.lax.stop_gradient(jnp.asarray(masks)).reshape(-1, sizes['H'], sizes['W'])
  owner = seen.owner + sizes['N'] * jnp.arange(sizes['B'])[:, None]
  target = crop_and_resize_masks(masks, seen.boxes.reshape(-1, 4), owner.reshape(-1), output_size=size,
                                 valid=seen.positive.reshape(-1)).reshape(*seen.positive.shape, *size)
  logits = pick(seen.positive, at_least_float32(logits), 0)
  label = jnp.clip(seen.labels, 0, sizes['K'] - 1)
  own = jnp.take_along_axis(logits, label[..., None, None, None], axis=-1)[..., 0]
  cells = pick(seen.positive, sigmoid_cross_entropy(own, target), 0)
  return {'loss_mask': Term(jnp.sum(cells), jnp.sum(seen.positive, dtype=cells.dtype) * size[0] * size[1])}


def rpn_roles(key: Array, boxes: Array, *, anchors: Array, positive_iou: float, negative_iou: float, size: int,
              positive_fraction: float, boxes_valid: Array | None = None, valid: Array | None = None) -> Roles:
  """What each anchor is for in `rpn_loss`, whose arguments these are; anchors that were not sampled are ignored."""
  boxes, _, real, valid = real_targets('rpn_loss', boxes, None, boxes_valid, valid)
  anchors = jax.lax.stop_gradient(at_least_float32(anchors))
  found, chosen, sampled = _sample_anchors(key, boxes, anchors, real, valid, positive_iou, negative_iou, size,
                                           positive_fraction)
  place = jnp.where(sampled, chosen, len(anchors))
  learned = jax.vmap(lambda place: jnp.zeros(len(anchors), bool).at[place].set(True, mode='drop'))(place)
  return roles_of(anchors, found.positive & learned, found.owner, valid, ignored=~learned)


def roi_roles(samples: ProposalSamples) -> Roles:
  """What each sampled proposal is for in `roi_loss` and `mask_loss`."""
  return Roles(samples.boxes, samples.positive, samples.valid & ~samples.positive, samples.owner, samples.valid)


def _sample_anchors(key: Array, boxes: Array, anchors: Array, real: Array, valid: Array, positive_iou: float,
                    negative_iou: float, size: int, positive_fraction: float
                    ) -> tuple[MaxIouAssignment, Array, Array]:
  """What all anchors are for, and those that are sampled in each image: int and bool [B, size]."""
  found = assign_by_iou(boxes, anchors, real, high=positive_iou, low=negative_iou, low_quality='ties')
  negative = ~found.positive & ~found.ignored & valid[:, None]
  return found, *_sample(key, found.positive, negative, size, positive_fraction)


def _sample(key: Array, positive: Array, negative: Array, size: int, positive_fraction: float) -> tuple[Array, Array]:
  """`balanced_sample` of each image: int and bool [B, size]."""
  def sample(key, positive, negative):
    return balanced_sample(key, positive, negative, size=size, positive_fraction=positive_fraction)
  typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
  keys = jax.random.split(key, positive.shape[0]) if key.ndim == (0 if typed else 1) else key
  return jax.vmap(sample)(keys, positive, negative)
