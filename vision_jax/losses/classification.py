"""Classification losses, un-reduced.

Units: logits before any activation, losses in nats. Computed in float32, also for half precision. None takes `valid`:
empty invalid slots before, and select after; a NaN that is only selected away at the end comes back in the gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vision_jax.conventions import Array
from vision_jax.ops.arrays import at_least_float32, check_broadcast


def check_smoothing(where: str, label_smoothing: float) -> None:
  """Refuses a label smoothing outside 0..1."""
  if not 0 <= label_smoothing < 1:
    raise ValueError(f'{where}: label_smoothing is {label_smoothing}; give a number from 0 to below 1')


def softmax_cross_entropy(logits: Array, labels: Array, *, label_smoothing: float = 0.0) -> Array:
  """Cross-entropy of softmax probabilities with one true class each.

  Args:
    logits: [..., K].
    labels: int [...], 0..K-1. One outside counts as the nearest class: what an invalid slot holds stays finite, and is
      the caller's to select away.
    label_smoothing: epsilon in 0..1; the truth becomes (1 - epsilon) * one-hot + epsilon / K.

  Returns:
    float32 [...], at least 0.

  Raises:
    ValueError: labels do not have the leading axes of logits, or the smoothing is out of range.

  Reference: Szegedy et al., Rethinking the Inception Architecture, arXiv 1512.00567, section 7 (smoothing).

  >>> losses = softmax_cross_entropy(jnp.array([[0.0, 0.0], [9.0, -9.0]]), jnp.array([1, 1]))
  >>> [f'{loss:.4f}' for loss in losses]
  ['0.6931', '18.0000']
  """
  check_smoothing('softmax_cross_entropy', label_smoothing)
  logits, labels = at_least_float32(logits), jnp.asarray(labels)
  if logits.shape[:-1] != labels.shape:
    raise ValueError(f'softmax_cross_entropy: logits {list(logits.shape)} and labels {list(labels.shape)}; '
                     'give [..., K] and class numbers [...]')
  labels = jnp.clip(labels, 0, logits.shape[-1] - 1)
  log_p = jax.nn.log_softmax(logits)
  loss = -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
  if label_smoothing:  # not always: a class ruled out by a logit of -inf would make 0 * inf
    loss = (1 - label_smoothing) * loss - label_smoothing * jnp.mean(log_p, axis=-1)
  return loss


def sigmoid_cross_entropy(logits: Array, targets: Array) -> Array:
  """Binary cross-entropy of sigmoid probabilities, each number for itself.

  Args:
    logits: [...].
    targets: [...], 0..1, or bool; broadcast against logits.

  Returns:
    float32 [...], at least 0; precise and finite also for logits of +-1e9.

  Raises:
    ValueError: the shapes do not broadcast.

  >>> losses = sigmoid_cross_entropy(jnp.array([0.0, 9.0]), jnp.array([1.0, 0.0]))
  >>> [f'{loss:.4f}' for loss in losses]
  ['0.6931', '9.0001']
  """
  check_broadcast('sigmoid_cross_entropy', logits=logits, targets=targets)
  logits, targets = at_least_float32(logits), at_least_float32(targets)
  return targets * jax.nn.softplus(-logits) + (1 - targets) * jax.nn.softplus(logits)


def focal_loss(logits: Array, targets: Array, *, alpha: float | None = 0.25, gamma: float = 2.0) -> Array:
  """Sigmoid focal loss: binary cross-entropy, scaled down by (1 - p_t)^gamma where the prediction is already right.

  p_t = p t + (1 - p)(1 - t) is the probability given to the truth.

  Args:
    logits: [...].
    targets: [...], 0..1, or bool; broadcast against logits.
    alpha: 0..1, the weight of positive targets, while negative ones weigh 1 - alpha; None weighs neither.
    gamma: at least 0; 0 gives the (weighted) cross-entropy.

  Returns:
    float32 [...], at least 0; finite with a finite gradient, also for logits of +-1e9 and for gamma below 1.

  Raises:
    ValueError: the shapes do not broadcast, or alpha or gamma is out of range.

  Reference: Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002, equation 5.

  >>> losses = focal_loss(jnp.array([0.0, 9.0, 9.0]), jnp.array([1.0, 0.0, 1.0]))
  >>> [f'{loss:.4f}' for loss in losses]
  ['0.0433', '6.7484', '0.0000']
  """
  if alpha is not None and not 0 <= alpha <= 1:
    raise ValueError(f'focal_loss: alpha is {alpha}; give a number from 0 to 1, or None for no weights')
  if not gamma >= 0:
    raise ValueError(f'focal_loss: gamma is {gamma}; give a number of at least 0')
  check_broadcast('focal_loss', logits=logits, targets=targets)
  logits, targets = at_least_float32(logits), at_least_float32(targets)
  missing = targets * jax.nn.sigmoid(-logits) + (1 - targets) * jax.nn.sigmoid(logits)  # 1 - p_t, exact near 0 too
  # Not below 1e-30: at 0 the derivative of a power below 1 is infinite. The cross-entropy is as small there.
  loss = sigmoid_cross_entropy(logits, targets) * jnp.maximum(missing, 1e-30) ** gamma
  if alpha is not None:
    loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
  return loss
