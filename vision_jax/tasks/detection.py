"""Object detection: a detector is three callables put together, and a row of a table rather than a class."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any, ClassVar

from flax import linen as nn
from flax.core import FrozenDict

from vision_jax import losses, metrics, ops
from vision_jax.conventions import Array, Batch, ClassMap, Term, Variables
from vision_jax.tasks import base


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
  """

  module: nn.Module
  classes: ClassMap
  criterion: Callable[[Any, Batch], dict[str, Term]]
  decode: Callable[[Any, Batch], dict[str, Array]]
  weights: tuple[tuple[str, float], ...]
  voc_ap: str | None = None
  kind: ClassVar[str] = 'detection'
  fields: ClassVar[tuple[str, ...]] = ('boxes', 'labels')

  def init(self, key: Array, batch: Batch) -> Variables:
    return base.init_module(self.module, key, batch)

  def loss(self, params: Any, model_state: Any, batch: Batch, key: Array, step: Array, train: bool):
    outputs, model_state = base.apply_module(self.module, params, model_state, batch, key=key, train=train)
    return self.criterion(outputs, batch), {}, model_state

  def predict(self, variables: Variables, batch: Batch) -> dict[str, Array]:
    return self.decode(self.module.apply(variables, batch['image'], train=False), batch)

  def metrics(self) -> list[Any]:
    voc = [metrics.VocAP(self.classes, points=self.voc_ap)] if self.voc_ap else []
    return [metrics.DetectionAP(self.classes), *voc]


@dataclasses.dataclass(frozen=True)
class Criterion:
  """A composite loss of (outputs, boxes, labels) with its options, as a function of (outputs, batch); hashable."""

  loss: Callable[..., dict[str, Term]]
  options: FrozenDict

  def __call__(self, outputs: Any, batch: Batch) -> dict[str, Term]:
    return self.loss(outputs, batch['boxes'], batch['labels'], boxes_valid=batch['boxes_valid'], valid=batch['valid'],
                     **self.options)


@dataclasses.dataclass(frozen=True)
class Decode:
  """A decoding of outputs with its options, as a function of (outputs, batch); hashable."""

  decode: Callable[..., dict[str, Array]]
  options: FrozenDict

  def __call__(self, outputs: Any, batch: Batch) -> dict[str, Array]:
    return self.decode(outputs, image_size=batch['image_size'], **self.options)


def yolov3(module: nn.Module, classes: ClassMap, *, box_loss: str = 'giou', ignore_threshold: float = 0.7,
           objectness_target: str = 'binary', extra_match_iou: float | None = None, label_smoothing: float = 0.0,
           match: str = 'global', ignore: str = 'predicted', score_threshold: float = 0.01,
           iou_threshold: float = 0.45, max_detections: int = 100, voc_ap: str | None = None,
           weights: tuple[tuple[str, float], ...] = (('loss_box', 1.0), ('loss_objectness', 1.0), ('loss_class', 1.0)),
           ) -> Detection:
  """YOLOv3 (Redmon and Farhadi, arXiv 1804.02767) on any module with its outputs, anchors and strides.

  Args:
    module: gives raw outputs [B, h, w, A, 5 + K] of each level, and has the fields `anchors` and `strides`.
    classes: the names and file ids of the K classes.
    box_loss, ignore_threshold, objectness_target, extra_match_iou, label_smoothing, match, ignore: see
      `losses.yolov3_loss`; the box loss of the paper is 'sse'.
    score_threshold, iou_threshold, max_detections: see `ops.yolov3_decode`. The low score threshold is for AP; a person
      wants about 0.3.
    voc_ap: as in `Detection`.
    weights: of `loss_box`, `loss_objectness` and `loss_class`.
  """
  if not hasattr(module, 'anchors'):
    raise ValueError(f'task yolov3 needs a model with anchors and strides, such as yolov3_small; '
                     f'{type(module).__name__} has none')
  layout = {'anchors': module.anchors, 'strides': module.strides}
  criterion = Criterion(losses.yolov3_loss, FrozenDict(
      layout, box_loss=box_loss, ignore_threshold=ignore_threshold, objectness_target=objectness_target,
      extra_match_iou=extra_match_iou, label_smoothing=label_smoothing, match=match, ignore=ignore))
  decode = Decode(ops.yolov3_decode, FrozenDict(
      layout, score_threshold=score_threshold, iou_threshold=iou_threshold, max_detections=max_detections))
  return Detection(module, classes, criterion, decode, weights, voc_ap)
