"""Object detection: a detector is three callables put together, and a row of a table rather than a class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any, ClassVar

from flax import linen as nn
from flax.core import FrozenDict
import jax

from vision_jax import losses, metrics, ops
from vision_jax.conventions import Array, Batch, ClassMap, Term, Variables, option_defaults, option_names
from vision_jax.tasks import base


def on_images(module: nn.Module, batch: Batch, train: bool, keys: Array | None = None) -> Any:
  """The outputs of a bound module that takes images alone."""
  return base.on_images(module, batch, train)


def on_contents(module: nn.Module, batch: Batch, train: bool, keys: Array | None = None) -> Any:
  """The outputs of a bound module that also takes the sizes of the images' contents."""
  return module(batch['image'], image_size=batch['image_size'], train=train)


def example_keys(key: Array, batch: Batch) -> Array:
  """A random key for each example [B], by its place in the global batch."""
  return jax.vmap(functools.partial(jax.random.fold_in, key))(batch['position'])


@dataclasses.dataclass(frozen=True)
class Detection:
  """A detector: forward (the module), criterion and decode.

  Args:
    module: maps images [B, H, W, 3] to whatever the two callables take.
    classes: the names and file ids of the K foreground classes.
    criterion: (outputs, batch) -> dict of Terms.
    decode: (outputs, batch) -> `boxes [B, M, 4]`, `scores [B, M]`, `labels [B, M]`, `valid [B, M]`.
    weights: the weight of each Term, by name or prefix.
    voc_ap: 'every' or 'eleven', to have VOC's average precision beside COCO's figures; see `metrics.VocAP`.
    forward: (bound module, batch, train, keys=[B]) -> outputs; a key depends on the place in the global batch, and
      there is none in prediction.
  """

  module: nn.Module
  classes: ClassMap
  criterion: Callable[[Any, Batch], dict[str, Term]]
  decode: Callable[[Any, Batch], dict[str, Array]]
  weights: tuple[tuple[str, float], ...]
  voc_ap: str | None = None
  forward: Callable[..., Any] = on_images
  kind: ClassVar[str] = 'detection'
  fields: ClassVar[tuple[str, ...]] = ('boxes', 'labels')

  def init(self, key: Array, batch: Batch) -> Variables:
    return base.init_module(self.module, key, batch)

  def loss(self, params: Any, model_state: Any, batch: Batch, key: Array, step: Array, train: bool):
    forward = functools.partial(self.forward, keys=example_keys(key, batch))
    outputs, model_state = base.apply_module(self.module, params, model_state, batch, key=key, train=train,
                                             forward=forward)
    return self.criterion(outputs, batch), {}, model_state

  def predict(self, variables: Variables, batch: Batch) -> dict[str, Array]:
    call = functools.partial(self.forward, batch=batch, train=False)
    return self.decode(self.module.apply(variables, method=call), batch)

  def assignment(self, variables: Variables, batch: Batch, key: Array) -> dict[str, losses.Roles]:
    """What the loss of an evaluation takes each prediction for, in each of its stages.

    Raises:
      ValueError: the criterion does not say.
    """
    if not hasattr(self.criterion, 'assignment'):
      raise ValueError(f'{type(self.criterion).__name__} does not say how it assigns objects; give it a method '
                       'assignment(outputs, batch) -> {stage: losses.Roles}')
    call = functools.partial(self.forward, batch=batch, train=False, keys=example_keys(key, batch))
    return self.criterion.assignment(self.module.apply(variables, method=call), batch)

  def metrics(self) -> list[Any]:
    voc = [metrics.VocAP(self.classes, points=self.voc_ap)] if self.voc_ap else []
    return [metrics.DetectionAP(self.classes), *voc]


def assign_options(loss: Callable[..., Any], roles: Callable[..., Any] | None, given: Mapping[str, Any]
                   ) -> dict[str, Any]:
  """The options of a loss, its defaults among them, that the function that gives its roles takes too."""
  if roles is None:
    raise ValueError(f'the row of {loss.__name__} does not say how it assigns objects; give its criterion `roles`')
  return {name: value for name, value in {**option_defaults(loss), **given}.items()
          if name in option_names(roles) and name not in ('boxes_valid', 'valid')}


@dataclasses.dataclass(frozen=True)
class Criterion:
  """A composite loss of (outputs, boxes, labels) with its options, as a function of (outputs, batch); hashable.

  `roles` has the arguments of the loss, and says what it takes each prediction for.
  """

  loss: Callable[..., dict[str, Term]]
  options: FrozenDict
  roles: Callable[..., losses.Roles] | None = None

  def __call__(self, outputs: Any, batch: Batch) -> dict[str, Term]:
    return self.loss(outputs, batch['boxes'], batch['labels'], boxes_valid=batch['boxes_valid'], valid=batch['valid'],
                     **self.options)

  def assignment(self, outputs: Any, batch: Batch) -> dict[str, losses.Roles]:
    return {'': self.roles(outputs, batch['boxes'], batch['labels'], boxes_valid=batch['boxes_valid'],
                           valid=batch['valid'], **assign_options(self.loss, self.roles, self.options))}


@dataclasses.dataclass(frozen=True)
class Decode:
  """A decoding of outputs with its options, as a function of (outputs, batch); hashable."""

  decode: Callable[..., dict[str, Array]]
  options: FrozenDict

  def __call__(self, outputs: Any, batch: Batch) -> dict[str, Array]:
    return self.decode(outputs, image_size=batch['image_size'], **self.options)


@dataclasses.dataclass(frozen=True)
class DenseCriterion:
  """A loss of predictions for the anchors of a module, as a function of (outputs, batch); hashable.

  Args:
    module: has `anchors(canvas)`.
    loss: of (some outputs, boxes, labels), with the option `anchors`.
    names: of these outputs, in order.
    options: of the loss.
    roles: has the arguments of the loss, and says what it takes each prediction for.
  """

  module: nn.Module
  loss: Callable[..., dict[str, Term]]
  names: tuple[str, ...]
  options: FrozenDict
  roles: Callable[..., losses.Roles] | None = None

  def __call__(self, outputs: dict[str, Array], batch: Batch) -> dict[str, Term]:
    return self.loss(*(outputs[name] for name in self.names), batch['boxes'], batch['labels'],
                     anchors=self.module.anchors(batch['image'].shape[1:3]), boxes_valid=batch['boxes_valid'],
                     valid=batch['valid'], **self.options)

  def assignment(self, outputs: dict[str, Array], batch: Batch) -> dict[str, losses.Roles]:
    canvas = batch['image'].shape[1:3]
    roles = self.roles(*(outputs[name] for name in self.names), batch['boxes'], batch['labels'],
                       anchors=self.module.anchors(canvas), boxes_valid=batch['boxes_valid'], valid=batch['valid'],
                       **assign_options(self.loss, self.roles, self.options))
    levels = self.module.level_sizes(canvas) if hasattr(self.module, 'level_sizes') else ()
    return {'': roles._replace(levels=tuple(levels))}


@dataclasses.dataclass(frozen=True)
class DenseDecode:
  """A decoding of predictions for the anchors of a module, as a function of (outputs, batch); hashable.

  Args:
    module: has `anchors(canvas)`, and `level_sizes(canvas)` where the decoding works level by level.
    decode: of some outputs, with the options `anchors` and `image_size`.
    names: of these outputs, in order.
    options: of the decoding.
  """

  module: nn.Module
  decode: Callable[..., dict[str, Array]]
  names: tuple[str, ...]
  options: FrozenDict

  def __call__(self, outputs: dict[str, Array], batch: Batch) -> dict[str, Array]:
    canvas, options = batch['image'].shape[1:3], dict(self.options)
    if 'level_sizes' in option_names(self.decode):
      options['level_sizes'] = self.module.level_sizes(canvas)
    return self.decode(*(outputs[name] for name in self.names), anchors=self.module.anchors(canvas),
                       image_size=batch['image_size'], **options)


def yolov1(module: nn.Module, classes: ClassMap, *, objectness_target: str | None = None,
           score_threshold: float | None = None, iou_threshold: float | None = None, max_detections: int | None = None,
           best_class: bool | None = None, voc_ap: str | None = None,
           weights: tuple[tuple[str, float], ...] = tuple(losses.YOLOV1_WEIGHTS.items())) -> Detection:
  """YOLOv1 (Redmon et al., arXiv 1506.02640) on any module with its outputs. None means the default.

  Args:
    module: gives outputs [B, h, w, 5 P + K], and has the fields `canvas` and `boxes_per_cell`.
    classes: the names and file ids of the K classes.
    objectness_target: see `losses.yolov1_loss`.
    score_threshold, iou_threshold, max_detections, best_class: see `ops.yolov1_decode`. Its low score threshold is for
      AP; a person wants about 0.2.
    voc_ap: as in `Detection`.
    weights: of `loss_box`, `loss_objectness`, `loss_no_object` and `loss_class`; the paper's when left out.
  """
  _require('yolov1', module, ('canvas', 'boxes_per_cell'), 'yolov1_small')
  at_least_one('yolov1', max_detections=max_detections)
  layout = {'canvas': module.canvas, 'boxes_per_cell': module.boxes_per_cell}
  criterion = Criterion(losses.yolov1_loss, FrozenDict(layout, **given(objectness_target=objectness_target)),
                        losses.yolov1.roles)
  decode = Decode(ops.yolov1_decode, FrozenDict(layout, **given(
      score_threshold=score_threshold, iou_threshold=iou_threshold, max_detections=max_detections,
      best_class=best_class)))
  return Detection(module, classes, criterion, decode, weights, voc_ap)


def yolov2(module: nn.Module, classes: ClassMap, *, box_loss: str | None = None, small_box_weight: bool | None = None,
           ignore_threshold: float | None = None, objectness_target: str | None = None, prior: bool = False,
           score_threshold: float | None = None, iou_threshold: float | None = None,
           max_detections: int | None = None, pre_nms: int | None = None, voc_ap: str | None = None,
           weights: tuple[tuple[str, float], ...] | None = None) -> Detection:
  """YOLOv2 (Redmon and Farhadi, arXiv 1612.08242) on any module with its outputs. None means the default.

  Args:
    module: gives raw outputs [B, h, w, A, 5 + K], and has the fields `anchors` and `stride`.
    classes: the names and file ids of the K classes.
    box_loss, small_box_weight, ignore_threshold, objectness_target, prior: see `losses.yolov2_loss`.
    score_threshold, iou_threshold, max_detections, pre_nms: see `ops.yolov2_decode`. Its low score threshold is for AP;
      a person wants about 0.5.
    voc_ap: as in `Detection`.
    weights: of `loss_box`, `loss_objectness`, `loss_no_object`, `loss_class`, and with `prior` `loss_prior`; darknet's
      when left out.
  """
  _require('yolov2', module, ('anchors', 'stride'), 'yolov2_small')
  at_least_one('yolov2', max_detections=max_detections, pre_nms=pre_nms)
  layout = {'anchors': module.anchors, 'stride': module.stride}
  criterion = Criterion(losses.yolov2_loss, FrozenDict(layout, prior=prior, **given(
      box_loss=box_loss, small_box_weight=small_box_weight, ignore_threshold=ignore_threshold,
      objectness_target=objectness_target)), losses.yolov2.roles)
  decode = Decode(ops.yolov2_decode, FrozenDict(layout, **given(
      score_threshold=score_threshold, iou_threshold=iou_threshold, max_detections=max_detections, pre_nms=pre_nms)))
  if weights is None:
    weights = (*losses.YOLOV2_WEIGHTS.items(), *((('loss_prior', 0.01),) if prior else ()))
  return Detection(module, classes, criterion, decode, weights, voc_ap)


@dataclasses.dataclass(frozen=True)
class SetCriterion:
  """A loss of sets of `logits` and `boxes` with its options, as a function of (outputs, batch); hashable.

  `roles` has the arguments of the loss, and says what it takes each prediction of each decoder layer for.
  """

  loss: Callable[..., dict[str, Term]]
  options: FrozenDict
  roles: Callable[..., tuple[losses.Roles, ...]] | None = None

  def __call__(self, outputs: dict[str, Array], batch: Batch) -> dict[str, Term]:
    return self.loss(outputs['logits'], outputs['boxes'], batch['boxes'], batch['labels'],
                     image_size=batch['image_size'], boxes_valid=batch['boxes_valid'], valid=batch['valid'],
                     **self.options)

  def assignment(self, outputs: dict[str, Array], batch: Batch) -> dict[str, losses.Roles]:
    layers = self.roles(outputs['logits'], outputs['boxes'], batch['boxes'], batch['labels'],
                        image_size=batch['image_size'], boxes_valid=batch['boxes_valid'], valid=batch['valid'],
                        **assign_options(self.loss, self.roles, self.options))
    return {f'decoder layer {i}': roles for i, roles in enumerate(layers, 1)}


@dataclasses.dataclass(frozen=True)
class SetDecode:
  """A decoding of sets of `logits` and `boxes` with its options, as a function of (outputs, batch); hashable."""

  decode: Callable[..., dict[str, Array]]
  options: FrozenDict

  def __call__(self, outputs: dict[str, Array], batch: Batch) -> dict[str, Array]:
    return self.decode(outputs['logits'], outputs['boxes'], image_size=batch['image_size'], **self.options)


def yolov3(module: nn.Module, classes: ClassMap, *, box_loss: str | None = None, ignore_threshold: float | None = None,
           objectness_target: str | None = None, extra_match_iou: float | None = None,
           label_smoothing: float | None = None, match: str | None = None, ignore: str | None = None,
           score_threshold: float | None = None, iou_threshold: float | None = None, max_detections: int | None = None,
           pre_nms: int | None = None, voc_ap: str | None = None,
           weights: tuple[tuple[str, float], ...] = (('loss_box', 1.0), ('loss_objectness', 1.0), ('loss_class', 1.0)),
           ) -> Detection:
  """YOLOv3 (Redmon and Farhadi, arXiv 1804.02767) on any module with its outputs. None means the default.

  Args:
    module: gives raw outputs [B, h, w, A, 5 + K] of each level, and has the fields `anchors` and `strides`.
    classes: the names and file ids of the K classes.
    box_loss, ignore_threshold, objectness_target, extra_match_iou, label_smoothing, match, ignore: see
      `losses.yolov3_loss`, whose default box loss is the paper's 'sse'; 'giou' and 'ciou' are of later versions.
    score_threshold, iou_threshold, max_detections, pre_nms: see `ops.yolov3_decode`. Its low score threshold is for AP;
      a person wants about 0.3.
    voc_ap: as in `Detection`.
    weights: of `loss_box`, `loss_objectness` and `loss_class`.
  """
  _require('yolov3', module, ('anchors', 'strides'), 'yolov3_small')
  at_least_one('yolov3', max_detections=max_detections, pre_nms=pre_nms)
  layout = {'anchors': module.anchors, 'strides': module.strides}
  criterion = Criterion(losses.yolov3_loss, FrozenDict(layout, **given(
      box_loss=box_loss, ignore_threshold=ignore_threshold, objectness_target=objectness_target,
      extra_match_iou=extra_match_iou, label_smoothing=label_smoothing, match=match, ignore=ignore)),
                        losses.yolov3.roles)
  decode = Decode(ops.yolov3_decode, FrozenDict(layout, **given(
      score_threshold=score_threshold, iou_threshold=iou_threshold, max_detections=max_detections, pre_nms=pre_nms)))
  return Detection(module, classes, criterion, decode, weights, voc_ap)


def retinanet(module: nn.Module, classes: ClassMap, *, positive_iou: float | None = None,
              negative_iou: float | None = None, alpha: float | None = None, gamma: float | None = None,
              score_threshold: float | None = None, iou_threshold: float | None = None,
              max_detections: int | None = None, pre_nms: int | None = None, voc_ap: str | None = None,
              weights: tuple[tuple[str, float], ...] = (('loss_class', 1.0), ('loss_box', 1.0))) -> Detection:
  """RetinaNet (Lin et al., arXiv 1708.02002) on any module with its outputs and anchors. None means the default.

  Args:
    module: gives `logits [B, A, K]` and `deltas [B, A, 4]`, and has `anchors(canvas)` and `level_sizes(canvas)`.
    classes: the names and file ids of the K classes.
    positive_iou, negative_iou, alpha, gamma: see `losses.retinanet_loss`.
    score_threshold, iou_threshold, max_detections, pre_nms: see `ops.retinanet_decode`.
    voc_ap: as in `Detection`.
    weights: of `loss_class` and `loss_box`.
  """
  names = ('logits', 'deltas')
  _require_outputs('retinanet', module, names, 'retinanet_small')
  at_least_one('retinanet', max_detections=max_detections, pre_nms=pre_nms)
  criterion = DenseCriterion(module, losses.retinanet_loss, names, given(
      positive_iou=positive_iou, negative_iou=negative_iou, alpha=alpha, gamma=gamma), losses.retinanet.roles)
  decode = DenseDecode(module, ops.retinanet_decode, names, given(
      score_threshold=score_threshold, iou_threshold=iou_threshold, max_detections=max_detections, pre_nms=pre_nms))
  return Detection(module, classes, criterion, decode, weights, voc_ap)


def fcos(module: nn.Module, classes: ClassMap, *, radius: float | None = None, alpha: float | None = None,
         gamma: float | None = None, score_threshold: float | None = None, iou_threshold: float | None = None,
         max_detections: int | None = None, pre_nms: int | None = None, voc_ap: str | None = None,
         weights: tuple[tuple[str, float], ...] = (('loss_class', 1.0), ('loss_box', 1.0), ('loss_centerness', 1.0))
         ) -> Detection:
  """FCOS (Tian et al., arXiv 1904.01355) on any module with its outputs and points. None means the default.

  Args:
    module: gives `logits [B, A, K]`, `distances [B, A, 4]` and `centerness [B, A]`, and has `anchors(canvas)`, squares
      as large as the strides, and `level_sizes(canvas)`.
    classes: the names and file ids of the K classes.
    radius, alpha, gamma: see `losses.fcos_loss`.
    score_threshold, iou_threshold, max_detections, pre_nms: see `ops.fcos_decode`. AP gains by a lower score threshold
      than its 0.2.
    voc_ap: as in `Detection`.
    weights: of `loss_class`, `loss_box` and `loss_centerness`.
  """
  names = ('logits', 'distances', 'centerness')
  _require_outputs('fcos', module, names, 'fcos_small')
  at_least_one('fcos', max_detections=max_detections, pre_nms=pre_nms)
  criterion = DenseCriterion(module, losses.fcos_loss, names, given(radius=radius, alpha=alpha, gamma=gamma),
                             losses.fcos.roles)
  decode = DenseDecode(module, ops.fcos_decode, names, given(
      score_threshold=score_threshold, iou_threshold=iou_threshold, max_detections=max_detections, pre_nms=pre_nms))
  return Detection(module, classes, criterion, decode, weights, voc_ap)


def ssd(module: nn.Module, classes: ClassMap, *, positive_iou: float | None = None,
        negatives_per_positive: float | None = None, min_negatives: int | None = None,
        score_threshold: float | None = None, iou_threshold: float | None = None, max_detections: int | None = None,
        pre_nms: int | None = None, voc_ap: str | None = None,
        weights: tuple[tuple[str, float], ...] = (('loss_class', 1.0), ('loss_box', 1.0))) -> Detection:
  """SSD (Liu et al., arXiv 1512.02325) on any module with its outputs and default boxes. None means the default.

  Args:
    module: gives `logits [B, A, K + 1]`, the background first, and `deltas [B, A, 4]`, and has `anchors(canvas)`.
    classes: the names and file ids of the K classes.
    positive_iou: `iou_threshold` of `losses.ssd_loss`.
    negatives_per_positive, min_negatives: see `losses.ssd_loss`; with `min_negatives` an image without objects teaches
      too.
    score_threshold, iou_threshold, max_detections, pre_nms: see `ops.ssd_decode`.
    voc_ap: as in `Detection`.
    weights: of `loss_class` and `loss_box`.
  """
  names = ('logits', 'deltas')
  _require_outputs('ssd', module, names, 'ssd_small', background=True)
  at_least_one('ssd', max_detections=max_detections, pre_nms=pre_nms)
  criterion = DenseCriterion(module, losses.ssd_loss, names, given(
      iou_threshold=positive_iou, negatives_per_positive=negatives_per_positive, min_negatives=min_negatives),
                             losses.ssd.roles)
  decode = DenseDecode(module, ops.ssd_decode, names, given(
      score_threshold=score_threshold, iou_threshold=iou_threshold, max_detections=max_detections, pre_nms=pre_nms))
  return Detection(module, classes, criterion, decode, weights, voc_ap)


def detr(module: nn.Module, classes: ClassMap, *, class_cost: float | None = None, box_cost: float | None = None,
         giou_cost: float | None = None, class_cost_kind: str | None = None, no_object_weight: float | None = None,
         solver: str | None = None, score_threshold: float | None = None, max_detections: int | None = None,
         voc_ap: str | None = None, weights: tuple[tuple[str, float], ...] = (
             ('loss_class', 1.0), ('loss_box', 5.0), ('loss_giou', 2.0))) -> Detection:
  """DETR (Carion et al., arXiv 2005.12872) on any module with its outputs. None means the default.

  Args:
    module: gives `logits [L, B, Q, K + 1]` and `boxes [L, B, Q, 4]`, and takes `image_size`.
    classes: the names and file ids of the K classes.
    class_cost, box_cost, giou_cost, class_cost_kind, no_object_weight, solver: see `losses.detr_loss`.
    score_threshold, max_detections: see `ops.detr_decode`.
    voc_ap: as in `Detection`.
    weights: of `loss_class`, `loss_box` and `loss_giou`, in all decoder layers.
  """
  if not hasattr(module, 'num_queries'):
    raise ValueError(f'task detr needs a model with queries, such as detr_small; {type(module).__name__} has none')
  at_least_one('detr', max_detections=max_detections)
  criterion = SetCriterion(losses.detr_loss, given(
      class_cost=class_cost, box_cost=box_cost, giou_cost=giou_cost, class_cost_kind=class_cost_kind,
      no_object_weight=no_object_weight, solver=solver), losses.detr.roles)
  decode = SetDecode(ops.detr_decode, given(score_threshold=score_threshold, max_detections=max_detections))
  return Detection(module, classes, criterion, decode, weights, voc_ap, forward=on_contents)


def at_least_one(task: str, **counts: int | None) -> None:
  """Refuses a number of a task with which it would find or learn nothing; None is the default.

  >>> at_least_one('ssd', pre_nms=0)
  Traceback (most recent call last):
  ValueError: task ssd: pre_nms is 0; give 1 or more
  """
  for name, count in counts.items():
    if count is not None and count < 1:
      raise ValueError(f'task {task}: {name} is {count}; give 1 or more')


def given(**options: Any) -> FrozenDict:
  """The options that are not left to the function's own default.

  >>> given(beta=None, size=64)
  FrozenDict({
      size: 64,
  })
  """
  return FrozenDict({name: value for name, value in options.items() if value is not None})


def _require(task: str, module: nn.Module, attributes: tuple[str, ...], example: str) -> None:
  """Refuses a module that is no such detector."""
  missing = [name for name in attributes if not hasattr(module, name)]
  if missing:
    raise ValueError(f'task {task} needs a model with {", ".join(attributes)}, such as {example}; '
                     f'{type(module).__name__} has no {", ".join(missing)}')


def _require_outputs(task: str, module: nn.Module, outputs: tuple[str, ...], example: str, *,
                     background: bool = False) -> None:
  """Refuses a module whose outputs bear other names, or whose logits begin with a background where they should not."""
  found, other = getattr(module, 'outputs', ()), getattr(module, 'background', False)
  if found != outputs or other != background:
    private = {True: 'with a background', False: 'without a background'}.get
    has = f'has {", ".join(found)}, {private(other)}' if found else 'names none'
    raise ValueError(f'task {task} needs a model with the outputs {", ".join(outputs)}, {private(background)}, such as '
                     f'{example}; {type(module).__name__} {has}')
