"""Two-stage detection: a network proposes regions, a sample of them is drawn, and a second network learns from it.

All of it is one `apply`: the module's stages are methods, and what stands between them, which sees the objects, stands
here. A head for masks or keypoints is one more call in `TwoStageForward` and one more loss in `TwoStageCriterion`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from flax import linen as nn
from flax.core import FrozenDict
import jax
import jax.numpy as jnp

from vision_jax import losses, ops
from vision_jax.conventions import Array, Batch, ClassMap, Term
from vision_jax.losses.faster_rcnn import roi_roles, rpn_roles
from vision_jax.tasks.detection import Detection, assign_options, at_least_one, given

RPN_WEIGHTS = (('loss_rpn_objectness', 1.0), ('loss_rpn_box', 1.0))
HEAD_WEIGHTS = (('loss_class', 1.0), ('loss_box', 1.0))


@dataclasses.dataclass(frozen=True)
class TwoStageForward:
  """(bound module, batch, train, keys) -> the outputs of all stages.

  With keys, one for each image, regions are sampled for the loss: `samples` and `rpn_keys` are among the outputs, and
  the heads saw `samples.boxes`. Without, they saw `proposals`.

  Args:
    sampling: options of `losses.sample_proposals`.
    external: whether `batch['proposals']` are the proposals, and the module has no say in them.
  """

  sampling: FrozenDict
  external: bool

  def __call__(self, module: nn.Module, batch: Batch, train: bool, keys: Array | None = None) -> dict[str, Any]:
    maps = module.features(batch['image'], train=train)
    if self.external:
      outputs = _external(batch)
    else:
      outputs = module.propose(maps, batch['image'].shape[1:3], batch['image_size'], train=train)
    boxes, valid = outputs['proposals'], outputs['proposals_valid']
    if keys is not None:
      samples = losses.sample_proposals(
          _stream(keys, 1), boxes, batch['boxes'], batch['labels'], proposals_valid=valid,
          boxes_valid=batch['boxes_valid'], valid=batch['valid'], **self.sampling)
      outputs |= {'samples': samples, 'rpn_keys': _stream(keys, 0)}
      boxes, valid = samples.boxes, samples.valid
    return outputs | module.heads(maps, boxes, valid, train=train)


@dataclasses.dataclass(frozen=True)
class TwoStageCriterion:
  """The losses of both stages as a function of (outputs, batch); hashable.

  Args:
    module: has `anchors(canvas)` and `level_sizes(canvas)`.
    rpn: options of `losses.rpn_loss`.
    roi: options of `losses.roi_loss`.
    external: as in `TwoStageForward`; then there is no loss of proposals.
  """

  module: nn.Module
  rpn: FrozenDict
  roi: FrozenDict
  external: bool

  def __call__(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Term]:
    terms = losses.roi_loss(outputs['logits'], outputs['box_deltas'], outputs['samples'], **self.roi)
    if self.external:
      return terms
    anchors = self.module.anchors(batch['image'].shape[1:3])
    return losses.rpn_loss(outputs['rpn_keys'], outputs['objectness'], outputs['deltas'], batch['boxes'],
                           anchors=anchors, boxes_valid=batch['boxes_valid'], valid=batch['valid'],
                           **self.rpn) | terms

  def assignment(self, outputs: dict[str, Any], batch: Batch) -> dict[str, losses.Roles]:
    regions = {'regions': roi_roles(outputs['samples'])}
    if self.external:
      return regions
    canvas = batch['image'].shape[1:3]
    roles = rpn_roles(outputs['rpn_keys'], batch['boxes'], anchors=self.module.anchors(canvas),
                      boxes_valid=batch['boxes_valid'], valid=batch['valid'],
                      **assign_options(losses.rpn_loss, rpn_roles, self.rpn))
    return {'proposals': roles._replace(levels=self.module.level_sizes(canvas))} | regions


@dataclasses.dataclass(frozen=True)
class TwoStageDecode:
  """`ops.faster_rcnn_decode` with its options, as a function of (outputs, batch); hashable."""

  options: FrozenDict

  def __call__(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Array]:
    return ops.faster_rcnn_decode(outputs['logits'], outputs['box_deltas'], outputs['proposals'],
                                  image_size=batch['image_size'], proposals_valid=outputs['proposals_valid'],
                                  **self.options)


def faster_rcnn(module: nn.Module, classes: ClassMap, *, external_proposals: bool = False,
                rpn_positive_iou: float | None = None, rpn_negative_iou: float | None = None,
                rpn_samples: int | None = None, rpn_positive_fraction: float | None = None,
                roi_iou: float | None = None, roi_samples: int | None = None,
                roi_positive_fraction: float | None = None, add_ground_truth: bool | None = None,
                beta: float | None = None, score_threshold: float | None = None, iou_threshold: float | None = None,
                max_detections: int | None = None, voc_ap: str | None = None,
                weights: tuple[tuple[str, float], ...] | None = None) -> Detection:
  """Faster R-CNN (Ren et al., arXiv 1506.01497) on any module with its stages. None means the default.

  Args:
    module: has the stages `features`, `propose` and `heads`, and `anchors(canvas)`.
    classes: the names and file ids of the K classes.
    external_proposals: take the proposals from `batch['proposals']` [B, P, 4], xyxy in pixels of the canvas, and bool
      `batch['proposals_valid']` [B, P] (all, where the batch has none): Fast R-CNN (Girshick, arXiv 1504.08083). For
      batches of your own: no source of data gives proposals. The module's own network for them is not run and has no
      loss, but its parameters stay among the others, where weight decay shrinks them; the rule
      `('^rpn/', dict(freeze=True))` of the optimiser leaves them as they are.
    rpn_positive_iou, rpn_negative_iou, rpn_samples, rpn_positive_fraction: see `losses.rpn_loss` (`positive_iou`,
      `negative_iou`, `size`, `positive_fraction`).
    roi_iou, roi_samples, roi_positive_fraction, add_ground_truth: see `losses.sample_proposals` (`iou_threshold`,
      `size`, `positive_fraction`).
    beta: of the smooth L1 losses of both stages.
    score_threshold, iou_threshold, max_detections: see `ops.faster_rcnn_decode`. AP gains by a lower score threshold
      than its 0.05.
    voc_ap: as in `Detection`.
    weights: of `loss_rpn_objectness`, `loss_rpn_box`, `loss_class` and `loss_box`; the first two not with external
      proposals. All 1 when left out.

  Raises:
    ValueError: a module without these stages, a number of samples or detections below 1; on use, external proposals
      that the batch does not have.
  """
  missing = [name for name in ('features', 'propose', 'heads', 'anchors') if not hasattr(module, name)]
  if missing:
    raise ValueError(f'task faster_rcnn needs a model with the stages features, propose and heads, such as '
                     f'fasterrcnn_small; {type(module).__name__} has no {", ".join(missing)}')
  at_least_one('faster_rcnn', rpn_samples=rpn_samples, roi_samples=roi_samples, max_detections=max_detections)
  forward = TwoStageForward(given(size=roi_samples, positive_fraction=roi_positive_fraction, iou_threshold=roi_iou,
                                   add_ground_truth=add_ground_truth), external_proposals)
  rpn = given(positive_iou=rpn_positive_iou, negative_iou=rpn_negative_iou, size=rpn_samples,
               positive_fraction=rpn_positive_fraction, beta=beta)
  criterion = TwoStageCriterion(module, rpn, given(beta=beta), external_proposals)
  decode = TwoStageDecode(given(score_threshold=score_threshold, iou_threshold=iou_threshold,
                                 max_detections=max_detections))
  if weights is None:
    weights = HEAD_WEIGHTS if external_proposals else RPN_WEIGHTS + HEAD_WEIGHTS
  return Detection(module, classes, criterion, decode, weights, voc_ap, forward=forward)


def _external(batch: Batch) -> dict[str, Array]:
  """The proposals of a batch."""
  if 'proposals' not in batch:
    raise ValueError("task faster_rcnn with external_proposals needs batch['proposals'] [B, P, 4], and proposals_valid "
                     f'[B, P] where some slots are empty; the batch has {", ".join(sorted(batch))}, and no '
                     'source of data gives them; add them to batches of your own')
  boxes = jnp.asarray(batch['proposals'])
  valid = batch.get('proposals_valid')
  return {'proposals': boxes, 'proposals_valid': jnp.ones(boxes.shape[:2], bool) if valid is None else valid}


def _stream(keys: Array, number: int) -> Array:
  """Keys [B] for one of several draws."""
  return jax.vmap(functools.partial(jax.random.fold_in, data=number))(keys)
