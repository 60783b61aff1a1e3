"""Losses of image style transfer: Gram matrices, content, style and total variation, and all of them together.

Units: feature maps `[..., h, w, C]` in whatever unit the network gives them. The published layer weights belong to
features of VGG-19 after its ReLUs. Everything is computed in float32, matrix products too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from vision_jax.conventions import Array, Term
from vision_jax.ops.arrays import absolute, as_valid, at_least_float32, check_choice, pick


def gram_matrix(features: Array, *, normalize: str = 'none') -> Array:
  """How strongly each two channels respond together, summed over the places of a feature map: F^T F.

  Args:
    features: [..., h, w, C].
    normalize: what the sums are divided by: 'none', as in the paper; 'size', h w; or 'elements', h w C.

  Returns:
    float32 [..., C, C], symmetric.

  Raises:
    ValueError: features have fewer than three axes, or `normalize` is unknown.

  Reference: Gatys et al., A Neural Algorithm of Artistic Style, arXiv 1508.06576, equation 3.

  >>> gram_matrix(jnp.array([[[1.0, 2.0], [0.0, 3.0]]])).tolist()
  [[1.0, 2.0], [2.0, 13.0]]
  """
  features = _maps('gram_matrix', features)
  h, w, channels = features.shape[-3:]
  divisors = {'none': 1, 'size': h * w, 'elements': h * w * channels}
  check_choice('gram_matrix', 'normalize', normalize, tuple(divisors))
  gram = jnp.einsum('...hwc,...hwd->...cd', features, features, precision='highest')
  return gram / divisors[normalize]


def content_loss(features: Array, target: Array) -> Array:
  """Half the squared distance of two feature maps.

  Args:
    features: [..., h, w, C] of the image at work.
    target: [..., h, w, C] of the content image; its leading axes broadcast against those of `features`.

  Returns:
    float32 [...], a sum over places and channels, at least 0.

  Raises:
    ValueError: a map has fewer than three axes, or the maps differ in h, w or C.

  Reference: Gatys et al., A Neural Algorithm of Artistic Style, arXiv 1508.06576, equation 1.

  >>> content_loss(jnp.zeros((2, 2, 3)), jnp.ones((2, 2, 3))).item()
  6.0
  """
  features, target = _maps('content_loss', features), _maps('content_loss', target)
  if features.shape[-3:] != target.shape[-3:]:
    raise ValueError(f'content_loss: features {list(features.shape)} and target {list(target.shape)}; '
                     'give two maps of one h, w and C')
  return jnp.sum((features - target) ** 2, axis=(-3, -2, -1)) / 2


def style_loss(features: Array, target: Array) -> Array:
  """The squared distance of two feature maps' Gram matrices, over 4 C^2.

  Args:
    features: [..., h, w, C] of the image at work.
    target: [..., h', w', C] of the style image, of any size; its leading axes broadcast against those of `features`.

  Returns:
    float32 [...], at least 0.

  Raises:
    ValueError: a map has fewer than three axes, or the maps differ in C.

  Reference: Gatys et al., A Neural Algorithm of Artistic Style, arXiv 1508.06576, equation 4.
  Differs from the paper: each Gram matrix is divided by its own number of places, M = h w; for maps of one size that is
  the paper's 1 / (4 C^2 M^2).

  >>> style_loss(jnp.ones((2, 2, 3)), jnp.zeros((4, 5, 3))).item()
  0.25
  """
  features, target = _maps('style_loss', features), _maps('style_loss', target)
  channels = features.shape[-1]
  if target.shape[-1] != channels:
    raise ValueError(f'style_loss: features {list(features.shape)} and target {list(target.shape)}; '
                     'give two maps with the same channels')
  difference = gram_matrix(features, normalize='size') - gram_matrix(target, normalize='size')
  return jnp.sum(difference**2, axis=(-2, -1)) / (4 * channels**2)


def total_variation(images: Array, *, kind: str = 'l1') -> Array:
  """How much neighbouring pixels differ, summed over both directions and all channels.

  Args:
    images: [..., H, W, C].
    kind: 'l1', absolute differences, or 'l2', their squares.

  Returns:
    float32 [...], at least 0; a sum that grows with the image. 'l1' has no gradient between equal pixels.

  Raises:
    ValueError: images have fewer than three axes, or `kind` is unknown.

  Reference: Mahendran and Vedaldi, Understanding Deep Image Representations by Inverting Them, arXiv 1412.0035, whose
  regulariser with beta = 2 is 'l2'.
  Differs from the paper: its beta = 1 takes the length of the gradient, 'l1' here the sum of its two parts.

  >>> image = jnp.array([[[0.0], [3.0]], [[1.0], [1.0]]])
  >>> total_variation(image).item(), total_variation(image, kind='l2').item()
  (6.0, 14.0)
  """
  check_choice('total_variation', 'kind', kind, ('l1', 'l2'))
  images = _maps('total_variation', images)
  size = absolute if kind == 'l1' else jnp.square
  return sum(jnp.sum(size(jnp.diff(images, axis=axis)), axis=(-3, -2, -1)) for axis in (-3, -2))


def style_transfer_loss(features: Mapping[str, Array], content: Mapping[str, Array], styles: Mapping[str, Array],
                        image: Array, *, content_weights: Mapping[str, float] | None = None,
                        style_weights: Mapping[str, float] | None = None, variation: str = 'l1',
                        valid: Array | None = None) -> dict[str, Term]:
  """The loss of image style transfer: content, style and total variation of images that are being painted.

  Content and style are weighted sums over layers. What they are compared with carries no gradient.

  Args:
    features: name of a layer -> [B, h, w, C] of the images at work; layers that nothing asks for are left alone.
    content: name of a layer -> [B, h, w, C] of the content images, or [h, w, C] of one for all.
    styles: name of a layer -> [B, h', w', C] of the style images, or [h', w', C] of one for all; of any size.
    image: [B, H, W, 3], the images at work.
    content_weights: the weight of each layer in `content`; 1 / number of layers when left out.
    style_weights: the weight of each layer in `styles`; 1 / number of layers when left out, as in the paper.
    variation: the `kind` of `total_variation`.
    valid: bool [B], False for padding of the batch; all True when left out.

  Returns:
    `loss_content`, `loss_style` and `loss_total_variation`: sums over the valid images. All three have the same count,
    the number of valid images.

  Raises:
    ValueError: a layer has no features, the weights are not those of the layers, an unknown `variation`, or maps that
      do not fit together.

  Reference: Gatys et al., A Neural Algorithm of Artistic Style, arXiv 1508.06576, equations 1 to 7: content from
  conv4_2, style from conv1_1, conv2_1, conv3_1, conv4_1 and conv5_1 with weights of a fifth.
  Differs from the paper: total variation is an addition, which many later works make; weight it 0 to leave it out.

  >>> feature, image = jnp.ones((1, 2, 2, 3)), jnp.zeros((1, 4, 4, 3))
  >>> terms = jax.jit(style_transfer_loss)({'conv': feature}, {'conv': feature[0]}, {'conv': 0 * feature}, image)
  >>> {name: (float(term.total), int(term.count)) for name, term in terms.items()}
  {'loss_content': (0.0, 1), 'loss_style': (0.25, 1), 'loss_total_variation': (0.0, 1)}
  """
  image = at_least_float32(image)
  if image.ndim != 4:
    raise ValueError(f'style_transfer_loss: image {list(image.shape)}; give images [B, H, W, 3]')
  real = as_valid('style_transfer_loss', 'valid', valid, image.shape[:1])
  # Emptied before any arithmetic: a NaN that is only selected away at the end comes back in the gradient.
  for name, feature in features.items():
    if jnp.asarray(feature).shape[:1] != image.shape[:1]:
      raise ValueError(f'style_transfer_loss: features {name} {list(jnp.asarray(feature).shape)} for image '
                       f'{list(image.shape)}; give as many of each')
  features = {name: pick(real, at_least_float32(feature), 0) for name, feature in features.items()}
  each = {
      'loss_content': _over_layers('content', content_loss, features, content, content_weights),
      'loss_style': _over_layers('styles', style_loss, features, styles, style_weights),
      'loss_total_variation': total_variation(pick(real, image, 0), kind=variation),
  }
  count = jnp.sum(real, dtype=image.dtype)
  return {name: Term(jnp.sum(jnp.where(real, values, 0), dtype=image.dtype), count) for name, values in each.items()}


def _over_layers(kind: str, loss: Callable[[Array, Array], Array], features: Mapping[str, Array],
                 targets: Mapping[str, Array], weights: Mapping[str, float] | None) -> Array | float:
  """The weighted sum of one loss over the layers that have a target: [B], or 0 where none has."""
  if missing := sorted(set(targets) - set(features)):
    raise ValueError(f'style_transfer_loss: {kind} has {", ".join(missing)}, which features has not; '
                     f'it has {", ".join(sorted(features))}')
  if weights is None:
    weights = dict.fromkeys(targets, 1 / max(len(targets), 1))
  if set(weights) != set(targets):
    raise ValueError(f'style_transfer_loss: {kind} has {", ".join(sorted(targets))}, its weights are for '
                     f'{", ".join(sorted(weights))}; give one weight to each layer')
  return sum((weights[name] * loss(features[name], jax.lax.stop_gradient(target))
              for name, target in targets.items()), 0.0)


def _maps(where: str, maps: Array) -> Array:
  maps = at_least_float32(maps)
  if maps.ndim < 3:
    raise ValueError(f'{where}: got {list(maps.shape)}; give maps [..., h, w, C]')
  return maps
