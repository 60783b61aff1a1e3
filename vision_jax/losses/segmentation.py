"""Semantic segmentation losses: pixel cross-entropy, soft Dice and Tversky coefficients, and both together.

Units: logits before any activation; void pixels are those where `valid` is False.

A coefficient over the batch (`over='batch'`) is one ratio of sums over all images at hand. Where a step is split over
devices or micro-batches, each has its own; their mean is then what is trained, and not the coefficient of the whole.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vision_jax.conventions import Array, Term
from vision_jax.losses.classification import softmax_cross_entropy
from vision_jax.ops.arrays import as_valid, at_least_float32, check_choice, pick, safe_divide


def pixel_cross_entropy(logits: Array, labels: Array, *, class_weights: Array | None = None,
                        label_smoothing: float = 0.0, valid: Array | None = None) -> Array:
  """Softmax cross-entropy of each pixel.

  Args:
    logits: [..., H, W, K].
    labels: int [..., H, W], 0..K-1; one outside counts as the nearest class.
    class_weights: [K], a factor for the pixels of each true class; 1 when left out.
    label_smoothing: epsilon in 0..1, as in `softmax_cross_entropy`.
    valid: bool [..., H, W], False for void pixels; all True when left out.

  Returns:
    float32 [..., H, W]; 0, without gradient, at void pixels, whatever they hold.

  Raises:
    ValueError: labels or valid do not have the leading axes of logits, class_weights are not [K], or the smoothing is
      out of range.

  >>> losses = pixel_cross_entropy(jnp.zeros((1, 2, 2)), jnp.array([[0, 255]]), valid=jnp.array([[True, False]]))
  >>> [f'{loss:.4f}' for loss in losses[0]]
  ['0.6931', '0.0000']
  """
  labels = _check_pixels('pixel_cross_entropy', logits, labels, class_weights)
  if valid is not None:
    valid = as_valid('pixel_cross_entropy', 'valid', valid, labels.shape)
    logits, labels = pick(valid, logits, 0), pick(valid, labels, 0)
  loss = softmax_cross_entropy(logits, labels, label_smoothing=label_smoothing)
  if class_weights is not None:
    loss = loss * at_least_float32(class_weights)[labels]
  return loss if valid is None else pick(valid, loss, 0)


def soft_dice(probabilities: Array, targets: Array, *, over: str = 'image', smooth: float = 1.0,
              valid: Array | None = None) -> Array:
  """The soft Dice coefficient of each class of each image: (2 sum p y + smooth) / (sum p + sum y + smooth).

  A class absent from an image's truth is not special: its coefficient is smooth / (sum p + smooth), 1 where nothing is
  predicted either. Whether it counts is the caller's decision (`segmentation_loss`: `dice_absent`).

  Args:
    probabilities: [..., H, W, K], 0..1.
    targets: [..., H, W, K], 0..1 or bool: one-hot labels, or K masks that may overlap.
    over: what the sums run over: the pixels of each 'image', or those of all images of the 'batch' at hand.
    smooth: pixels added above and below; 0 gives the plain coefficient, 1 where both sums are 0.
    valid: bool [..., H, W], False for void pixels, which count in no sum; all True when left out.

  Returns:
    float32 in 0..1: [..., K], or [K] over the batch.

  Raises:
    ValueError: the shapes differ or have fewer than three axes, valid is not [..., H, W], or `over` is unknown.

  Reference: Milletari et al., V-Net, arXiv 1606.04797, section 3.
  Differs from the paper: sums in the denominator, not sums of squares (of which V-Net has its name); `smooth` is added.

  >>> probabilities = jnp.array([[[0.5, 0.5], [1.0, 0.0]]])
  >>> soft_dice(probabilities, jnp.array([[[1, 0], [0, 1]]]), smooth=0.5).tolist()
  [0.5, 0.25]
  """
  return _coefficient('soft_dice', probabilities, targets, 0.5, 0.5, over, smooth, valid)


def tversky(probabilities: Array, targets: Array, *, alpha: float = 0.5, beta: float = 0.5, over: str = 'image',
            smooth: float = 1.0, valid: Array | None = None) -> Array:
  """The Tversky coefficient of each class of each image: Dice that weighs false positives and negatives apart.

  (tp + smooth / 2) / (tp + alpha fp + beta fn + smooth / 2) with tp = sum p y, fp = sum p (1 - y), fn = sum (1 - p) y.
  At alpha = beta = 0.5 it is `soft_dice`, at 1 and 1 the IoU (Jaccard); alpha + beta = 1 gives the F-scores.

  Args:
    probabilities: [..., H, W, K], 0..1.
    targets: [..., H, W, K], 0..1 or bool: one-hot labels, or K masks that may overlap.
    alpha: at least 0, the weight of false positives.
    beta: at least 0, the weight of false negatives; above alpha it favours recall.
    over: what the sums run over: the pixels of each 'image', or those of all images of the 'batch' at hand.
    smooth: as in `soft_dice`; 0 gives the plain coefficient, 1 where it would be 0 / 0.
    valid: bool [..., H, W], False for void pixels, which count in no sum; all True when left out.

  Returns:
    float32 in 0..1: [..., K], or [K] over the batch.

  Raises:
    ValueError: the shapes differ or have fewer than three axes, valid is not [..., H, W], `over` is unknown, or a
      weight is negative.

  Reference: Salehi et al., Tversky loss function for image segmentation, arXiv 1706.05721, equation 3 (alpha 0.3, beta
  0.7 was their best).
  Differs from the paper: `smooth` is added; each class has its coefficient, where the paper has one for two classes.

  >>> probabilities = jnp.array([[[0.5, 0.5], [1.0, 0.0]]])
  >>> tversky(probabilities, jnp.array([[[1, 0], [0, 1]]]), alpha=0.25, beta=0.5, smooth=0.0).tolist()
  [0.5, 0.0]
  """
  return _coefficient('tversky', probabilities, targets, alpha, beta, over, smooth, valid)


def segmentation_loss(logits: Array, segmentation: Array, *, class_weights: Array | None = None,
                      label_smoothing: float = 0.0, dice_smooth: float = 1.0, dice_absent: str = 'ignore',
                      dice_over: str = 'image', dice_alpha: float = 0.5, dice_beta: float = 0.5,
                      pixels_valid: Array | None = None, valid: Array | None = None) -> dict[str, Term]:
  """Pixel cross-entropy and soft Dice (or Tversky) loss of softmax probabilities.

  Args:
    logits: [B, H, W, K].
    segmentation: int [B, H, W], 0..K-1, background included; one outside counts as the nearest class.
    class_weights: [K], a factor for the pixels of each true class in the cross-entropy; 1 when left out. The divisor
      stays the number of pixels.
    label_smoothing: epsilon in 0..1, in the cross-entropy.
    dice_smooth: pixels added above and below in the Dice coefficient.
    dice_absent: what a class counts that is absent from an image's truth: 'ignore' leaves it out of that image's mean
      (false positives cost in the other classes and in the cross-entropy), 'count' takes it in with
      1 - smooth / (sum p + smooth), which is close to 1 already when a few pixels are wrong.
    dice_over: 'image', or 'batch': one coefficient of each class over all valid pixels at hand, and `dice_absent`
      asks whether it is absent from all of them.
    dice_alpha: at least 0, the weight of false positives in the coefficient, as in `tversky`; 0.5 and 0.5 is Dice.
    dice_beta: at least 0, the weight of false negatives.
    pixels_valid: bool [B, H, W], False for void pixels; all True when left out.
    valid: bool [B], False for padding of the batch; all True when left out.

  Returns:
    `loss_pixel`: sum of the pixels' cross-entropy; count: valid pixels of valid images.
    `loss_dice`: sum over images of 1 - mean Dice over classes; count: valid images with a valid pixel. Dice is a ratio
    for each image, so images are what is averaged. Over the batch there is one such mean, and the count is 1, or 0
    without any valid pixel.

  Raises:
    ValueError: an unknown option, shapes that do not fit, or a smoothing or weight out of range.

  >>> terms = segmentation_loss(jnp.zeros((1, 2, 2, 2)), jnp.array([[[0, 1], [1, 1]]]), dice_smooth=0.0)
  >>> {name: (round(float(term.total), 3), float(term.count)) for name, term in terms.items()}
  {'loss_pixel': (2.773, 4.0), 'loss_dice': (0.533, 1.0)}
  """
  check_choice('segmentation_loss', 'dice_absent', dice_absent, ('ignore', 'count'))
  segmentation = _check_pixels('segmentation_loss', logits, segmentation, class_weights, axes=4)
  counted = as_valid('segmentation_loss', 'pixels_valid', pixels_valid, segmentation.shape)
  counted = counted & as_valid('segmentation_loss', 'valid', valid, segmentation.shape[:1])[:, None, None]
  # Void pixels are emptied before the softmax: a NaN there would come back in the gradient.
  logits, segmentation = pick(counted, at_least_float32(logits), 0), pick(counted, segmentation, 0)
  pixels = pixel_cross_entropy(logits, segmentation, class_weights=class_weights, label_smoothing=label_smoothing,
                               valid=counted)
  truth = jax.nn.one_hot(segmentation, logits.shape[-1], dtype=logits.dtype)
  dice = _coefficient('segmentation_loss', jax.nn.softmax(logits), truth, dice_alpha, dice_beta, dice_over, dice_smooth,
                      counted)
  together = (1, 2) if dice_over == 'image' else (0, 1, 2)  # the axes that one coefficient covers
  there = jnp.any(pick(counted, truth, 0) > 0, axis=together)
  classes = there if dice_absent == 'ignore' else jnp.ones(dice.shape, bool)
  ratios = jnp.any(counted, axis=together)
  mean = jnp.sum(jnp.where(classes, 1 - dice, 0), axis=-1) / jnp.maximum(jnp.sum(classes, axis=-1), 1)
  return {
      'loss_pixel': Term(jnp.sum(pixels), jnp.sum(counted, dtype=logits.dtype)),
      'loss_dice': Term(jnp.sum(jnp.where(ratios, mean, 0)), jnp.sum(ratios, dtype=logits.dtype)),
  }


def _check_pixels(where: str, logits: Array, labels: Array, class_weights: Array | None, *, axes: int | None = None
                  ) -> Array:
  """The labels cut to 0..K-1; refuses what does not fit the logits, or logits of any other number of axes."""
  shape, labels = jnp.asarray(logits).shape, jnp.asarray(labels)
  if len(shape) < 3 or axes not in (None, len(shape)) or labels.shape != shape[:-1]:
    lead = 'B' if axes else '...'
    raise ValueError(f'{where}: logits {list(shape)} and labels {list(labels.shape)}; give [{lead}, H, W, K] and class '
                     f'numbers [{lead}, H, W]')
  if class_weights is not None and jnp.asarray(class_weights).shape != shape[-1:]:
    raise ValueError(f'{where}: class_weights {list(jnp.asarray(class_weights).shape)}; give one for each of '
                     f'{shape[-1]} classes')
  return jnp.clip(labels, 0, shape[-1] - 1)


def _coefficient(where: str, probabilities: Array, targets: Array, alpha: float, beta: float, over: str, smooth: float,
                 valid: Array | None) -> Array:
  """Tversky's coefficient, of which Dice is the one with weights of a half."""
  if over not in ('image', 'batch'):
    raise ValueError(f"{where}: a coefficient over {over!r}; give 'image' or 'batch'")
  if not min(alpha, beta) >= 0:
    raise ValueError(f'{where}: alpha {alpha} and beta {beta}; give weights of at least 0')
  probabilities, targets = at_least_float32(probabilities), at_least_float32(targets)
  if probabilities.shape != targets.shape or probabilities.ndim < 3:
    raise ValueError(f'{where}: probabilities {list(probabilities.shape)} and targets {list(targets.shape)}; '
                     'give two arrays [..., H, W, K]')
  if valid is not None:
    valid = as_valid(where, 'valid', valid, targets.shape[:-1])
    probabilities, targets = pick(valid, probabilities, 0), pick(valid, targets, 0)
  axes = (-3, -2) if over == 'image' else tuple(range(probabilities.ndim - 1))
  right = 2 * jnp.sum(probabilities * targets, axis=axes) + smooth
  wrong = 2 * jnp.sum(alpha * probabilities * (1 - targets) + beta * (1 - probabilities) * targets, axis=axes)
  # 1e-12: less than any pixel's share, yet its square, by which the gradient divides, is a normal float32.
  nothing = right + wrong <= 1e-12
  return jnp.where(nothing, 1, safe_divide(right, right + wrong, floor=1e-12))
