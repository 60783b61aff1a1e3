"""Semantic segmentation: one class for each pixel."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from vision_jax import losses, metrics
from vision_jax.conventions import Array, Batch, ClassMap, Variables
from vision_jax.tasks import base


@dataclasses.dataclass(frozen=True)
class Segmentation:
  """Pixel cross-entropy plus soft Dice over K classes; IoU, Dice and pixel accuracy.

  Args:
    module: maps images [B, H, W, 3] to logits [B, H, W, K].
    classes: the names and file ids of the K classes, background included.
    class_weights: of the cross-entropy, one for each class; None is 1 for all.
    label_smoothing: the share in [0, 1) of the cross-entropy's target that is spread evenly over all classes.
    dice_over, dice_alpha, dice_beta, dice_smooth, dice_absent: see `losses.segmentation_loss`.
    weights: the weights of `loss_pixel` and `loss_dice`.
  """

  module: nn.Module
  classes: ClassMap
  _: dataclasses.KW_ONLY
  class_weights: tuple[float, ...] | None = None
  label_smoothing: float = 0.0
  dice_over: str = 'image'
  dice_alpha: float = 0.5
  dice_beta: float = 0.5
  dice_smooth: float = 1.0
  dice_absent: str = 'ignore'
  weights: tuple[tuple[str, float], ...] = (('loss_pixel', 1.0), ('loss_dice', 1.0))
  kind: ClassVar[str] = 'segmentation'
  fields: ClassVar[tuple[str, ...]] = ('segmentation', 'pixels_valid')

  def init(self, key: Array, batch: Batch) -> Variables:
    return base.init_module(self.module, key, batch)

  def loss(self, params: Any, model_state: Any, batch: Batch, key: Array, step: Array, train: bool):
    logits, model_state = base.apply_module(self.module, params, model_state, batch, key=key, train=train)
    terms = losses.segmentation_loss(logits, batch['segmentation'], class_weights=self.class_weights,
                                     label_smoothing=self.label_smoothing, dice_over=self.dice_over,
                                     dice_alpha=self.dice_alpha, dice_beta=self.dice_beta,
                                     dice_smooth=self.dice_smooth, dice_absent=self.dice_absent,
                                     pixels_valid=batch['pixels_valid'], valid=batch['valid'])
    return terms, {}, model_state

  def predict(self, variables: Variables, batch: Batch) -> dict[str, Array]:
    logits = self.module.apply(variables, batch['image'], train=False)
    probabilities = jax.nn.softmax(logits.astype(jnp.float32))
    return {'segmentation': probabilities.argmax(-1).astype(jnp.int32), 'confidence': probabilities.max(-1)}

  def metrics(self) -> list[Any]:
    return [metrics.SegmentationScores(self.classes)]
