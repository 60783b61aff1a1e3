"""Image classification: one label for each image."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from vision_jax import losses, metrics
from vision_jax.conventions import Array, Batch, ClassMap, Term, Variables
from vision_jax.tasks import base


@dataclasses.dataclass(frozen=True)
class Classification:
  """Softmax cross-entropy over K classes, top-1, top-5 and the confusion matrix.

  Where a batch mixes two images in one (`mixed_label`, and `mix`, the share of the first), the loss is the sum of both
  classes' by their shares (MixUp, arXiv 1710.09412; CutMix, arXiv 1905.04899).

  In training, a module with auxiliary heads (GoogLeNet and Inception v3 with `aux=True`) trains them too: its method
  `with_auxiliaries` gives further logits, and its `auxiliary_weights` say how much the loss of each counts in the Term
  `loss_auxiliary`. An evaluation computes the logits alone.

  Args:
    module: maps images [B, H, W, 3] to logits [B, K].
    classes: the names and file ids of the K classes.
    label_smoothing: the share in [0, 1) of the target that is spread evenly over all classes.
    weights: of the Terms; `loss` covers `loss_class`, and `loss_auxiliary` where there is one.
  """

  module: nn.Module
  classes: ClassMap
  _: dataclasses.KW_ONLY
  label_smoothing: float = 0.0
  weights: tuple[tuple[str, float], ...] = (('loss', 1.0),)
  kind: ClassVar[str] = 'classification'
  fields: ClassVar[tuple[str, ...]] = ('label',)

  def init(self, key: Array, batch: Batch) -> Variables:
    return base.init_module(self.module, key, batch)

  def loss(self, params: Any, model_state: Any, batch: Batch, key: Array, step: Array, train: bool):
    auxiliary = getattr(self.module, 'auxiliary_weights', ()) if train else ()
    outputs, model_state = base.apply_module(self.module, params, model_state, batch, key=key, train=train,
                                             forward=_with_auxiliaries if auxiliary else base.on_images)
    logits, *others = outputs if auxiliary else (outputs,)
    valid = batch['valid']
    count = valid.sum().astype(jnp.float32)
    terms = {'loss_class': Term(self._cross_entropy(logits, batch), count)}
    if auxiliary:
      total = sum(weight * self._cross_entropy(x, batch) for weight, x in zip(auxiliary, others, strict=True))
      terms['loss_auxiliary'] = Term(total, count)
    correct = valid & (logits.argmax(-1) == batch['label'])
    return terms, {'accuracy': correct.sum() / jnp.maximum(count, 1.0)}, model_state

  def _cross_entropy(self, logits: Array, batch: Batch) -> Array:
    """The sum over the valid images."""
    valid = batch['valid']
    cross_entropy = losses.softmax_cross_entropy(logits, batch['label'], label_smoothing=self.label_smoothing)
    if 'mix' in batch:
      other = losses.softmax_cross_entropy(logits, batch['mixed_label'], label_smoothing=self.label_smoothing)
      mix = jnp.where(valid, batch['mix'], 1.0)
      cross_entropy = mix * cross_entropy + (1 - mix) * other
    return jnp.where(valid, cross_entropy, 0.0).sum()

  def predict(self, variables: Variables, batch: Batch) -> dict[str, Array]:
    logits = self.module.apply(variables, batch['image'], train=False)
    return {'probabilities': jax.nn.softmax(logits.astype(jnp.float32))}

  def metrics(self) -> list[Any]:
    return [metrics.TopK(), metrics.Confusion(self.classes)]


def _with_auxiliaries(module: nn.Module, batch: Batch, train: bool) -> Any:
  return module.with_auxiliaries(batch['image'], train=train)


@dataclasses.dataclass(frozen=True)
class Features:
  """What a classifier makes of an image before it classifies; it can predict, and is no task to train.

  Args:
    module: maps images [B, H, W, 3] to features [B, C], as a classifier does with `num_classes=0`.
  """

  module: nn.Module
  fields: ClassVar[tuple[str, ...]] = ('label',)

  def predict(self, variables: Variables, batch: Batch) -> dict[str, Array]:
    return {'features': self.module.apply(variables, batch['image'], train=False).astype(jnp.float32)}
