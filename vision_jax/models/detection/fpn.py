"""The feature pyramid: a backbone's maps of several strides, all with the same channels and all with what the coarsest
one knows.

Tsung-Yi Lin et al., Feature Pyramid Networks for Object Detection, arXiv 1612.03144, section 3 and Figure 3. On
ResNet-50 and a canvas of 800 x 1344, with the levels of RetinaNet and FCOS (Faster R-CNN has P2, at stride 4, too):

| part | what | map |
|---|---|---|
| body.layer2, 3, 4 | C3, C4, C5 of the backbone | 100 x 168 x 512, 50 x 84 x 1024, 25 x 42 x 2048 |
| fpn.inner_blocks_2 | 1x1, 256, of C5 | 25 x 42 x 256 |
| fpn.inner_blocks_1, 0 | 1x1 of C4 and of C3, and the map above them, each pixel repeated | 50 x 84, 100 x 168 |
| fpn.layer_blocks_0, 1, 2 | 3x3, 256, of each: P3, P4, P5 | 100 x 168, 50 x 84, 25 x 42 |
| fpn.extra_blocks.p6, p7 | 3x3 / 2 of P5; ReLU and 3x3 / 2 of P6 | 13 x 21, 7 x 11 |

`extra` says what follows the last level: nothing; 'pool', every second pixel of it (Faster R-CNN's P6); 'p6p7' (above),
as in torchvision; 'p6p7_c5', the same from C5, as in the paper of RetinaNet. Submodules bear torchvision's names.
"""

from __future__ import annotations

import functools
import inspect
import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vision_jax import ops
from vision_jax.models.classification.darknet import darknet_small
from vision_jax.models.classification.maps import choose_maps
from vision_jax.models.layers import Conv, ConvNorm, upsample

Array = jax.Array
Maps = tuple[Array, ...]
LevelSizes = tuple[tuple[float, ...], ...]
EXTRAS = {'none': 0, 'pool': 1, 'p6p7': 2, 'p6p7_c5': 2}  # and how many levels they add

# Uniform with the variance 1 / fan_in: of torchvision's pyramids, which no activation follows.
pyramid_init = nn.initializers.variance_scaling(1.0, 'fan_in', 'uniform')


class Backbone(nn.Module):
  """A classifier's feature maps, and a pyramid on them.

  Args:
    body: a module with `features(x, train=)`, such as any classifier made with `num_classes=0`.
    fpn: a `FeaturePyramid`; None gives the body's maps as they are.
    levels: the names of the maps that the pyramid takes, fine to coarse.

  Returns:
    From `[B, H, W, 3]` the pyramid's maps, fine to coarse.

  Raises:
    ValueError: a name that the body's maps do not have.

  >>> from vision_jax.models.classification.resnet import resnet18
  >>> backbone = Backbone(resnet18(num_classes=0, width=4), FeaturePyramid(8, 'pool'), ('layer3', 'layer4'))
  >>> maps = jax.eval_shape(backbone.init_with_output, jax.random.key(0), np.zeros((1, 64, 96, 3)))[0]
  >>> [m.shape for m in maps], map_sizes(backbone, (64, 96))
  ([(1, 4, 6, 8), (1, 2, 3, 8), (1, 1, 2, 8)], ((4, 6), (2, 3), (1, 2)))
  """

  body: nn.Module
  fpn: nn.Module | None
  levels: tuple[str, ...]

  def __call__(self, x: Array, *, train: bool = False) -> Maps:
    maps = body_maps(self.body, x, self.levels, train=train)
    return maps if self.fpn is None else self.fpn(maps, train=train)


def body_maps(body: nn.Module, x: Array, levels: tuple[str, ...], *, train: bool = False) -> Maps:
  """The maps of these names that a bound body gives of images.

  Args:
    body: with `features(x, train=)`.
    x: `[B, H, W, 3]`.
    levels: names of its maps.
    train: as of any module.
  """
  # The MobileNets and their kin give any block's map, but only when asked.
  named = 'names' in inspect.signature(body.features).parameters
  maps = body.features(x, train=train, **({'names': levels} if named else {}))
  return tuple(choose_maps({name: (None, value) for name, value in maps.items()}, levels).values())


class FeaturePyramid(nn.Module):
  """Maps of one number of channels out of a backbone's; each has what the coarser ones know.

  Args:
    features: channels of every map that comes out.
    extra: what follows the last level: 'none', 'pool', 'p6p7' or 'p6p7_c5'; see the module's text.
    norm: as in `layers.make_norm`, after every convolution but those of p6p7; 'none' gives them biases instead.
    dtype: the compute dtype.

  Returns:
    From maps `[B, h, w, C]`, fine to coarse, the same sizes with `features` channels, and the extra levels after them.

  Raises:
    ValueError: an unknown `extra`.

  >>> pyramid = FeaturePyramid(8, 'p6p7')
  >>> maps = (np.zeros((1, 10, 13, 4)), np.zeros((1, 5, 7, 6)))
  >>> [m.shape for m in jax.eval_shape(pyramid.init_with_output, jax.random.key(0), maps)[0]]
  [(1, 10, 13, 8), (1, 5, 7, 8), (1, 3, 4, 8), (1, 2, 2, 8)]
  """

  features: int = 256
  extra: str = 'none'
  norm: str = 'none'
  dtype: Any = np.float32

  @nn.compact
  def __call__(self, maps: Maps, *, train: bool = False) -> Maps:
    if self.extra not in EXTRAS:
      raise ValueError(f'FeaturePyramid: extra is {self.extra!r}; give one of {", ".join(EXTRAS)}')
    block = functools.partial(ConvNorm, self.features, norm=self.norm, activation=None, kernel_init=pyramid_init,
                              dtype=self.dtype, parts=('0', '1'))
    merged, levels = None, []
    for i in reversed(range(len(maps))):
      lateral = block(1, name=f'inner_blocks_{i}')(maps[i], train=train)
      merged = lateral if merged is None else lateral + enlarge(merged, lateral.shape[1:3])
      levels.insert(0, block(3, name=f'layer_blocks_{i}')(merged, train=train))
    if self.extra == 'pool':
      levels.append(levels[-1][:, ::2, ::2])
    elif self.extra != 'none':
      source = levels[-1] if self.extra == 'p6p7' else maps[-1]
      levels += P6P7(self.features, self.dtype, name='extra_blocks')(source)
    return tuple(levels)


class P6P7(nn.Module):
  """The two coarsest levels of RetinaNet: 3x3 / 2 of a map, and ReLU and 3x3 / 2 of that.

  Args:
    features: channels of both.
    dtype: the compute dtype.

  Returns:
    Two maps, from one `[B, h, w, C]`.

  >>> jax.eval_shape(P6P7(8).init_with_output, jax.random.key(0), np.zeros((1, 5, 7, 4)))[0][1].shape
  (1, 2, 2, 8)
  """

  features: int
  dtype: Any = np.float32

  @nn.compact
  def __call__(self, x: Array) -> Maps:
    conv = functools.partial(Conv, self.features, 3, 2, 1, kernel_init=pyramid_init, dtype=self.dtype)
    p6 = conv(name='p6')(x)
    return p6, conv(name='p7')(nn.relu(p6))


def enlarge(x: Array, size: tuple[int, int]) -> Array:
  """A map of another size, each pixel that of the nearest one before it, as torch's `interpolate(size=)` takes them.

  Args:
    x: `[B, h, w, C]`.
    size: (h, w) of the result.

  >>> enlarge(np.arange(3.0).reshape(1, 1, 3, 1), (1, 5))[0, 0, :, 0].tolist()
  [0.0, 0.0, 1.0, 1.0, 2.0]
  """
  if tuple(-(-side // 2) for side in size) == x.shape[1:3]:
    # Twice as large, up to a row that the stride has rounded up: no gather, whose gradient would be a scatter.
    return upsample(x, 2)[:, :size[0], :size[1]]
  # In float32, as torch does: in other ratios a whole number may come out just below itself.
  rows, columns = (np.minimum(np.arange(new, dtype=np.float32) * (np.float32(old) / np.float32(new)), old - 1)
                   for old, new in zip(x.shape[1:3], size, strict=True))
  return x[:, rows.astype(int)][:, :, columns.astype(int)]


@functools.lru_cache(maxsize=128)
def map_sizes(backbone: nn.Module, canvas: tuple[int, int]) -> tuple[tuple[int, int], ...]:
  """(h, w) of every map that a backbone gives for a canvas (h, w): by tracing it, so they are what they really are.

  Args:
    backbone: `[B, H, W, 3]` -> maps; not bound.
    canvas: (h, w) in pixels.
  """
  image = jax.ShapeDtypeStruct((1, *canvas, 3), np.float32)
  maps = jax.eval_shape(lambda x: backbone.init_with_output(jax.random.key(0), x)[0], image)
  return tuple(m.shape[1:3] for m in maps)


@functools.lru_cache(maxsize=32)
def anchor_grid(backbone: Backbone, canvas: tuple[int, int], sizes: LevelSizes,
                ratios: tuple[float, ...]) -> np.ndarray:
  """The anchors of all levels of a backbone for a canvas, as `ops.pyramid_anchors` lays and orders them.

  Args:
    backbone: not bound.
    canvas: (h, w) in pixels, which the strides of the body's levels divide; on the extra levels the anchors lie as far
      apart as fits the canvas, as in torchvision.
    sizes: for each level the square roots of its anchors' areas, in pixels.
    ratios: height over width.

  Returns:
    float32 [A, 4] xyxy in pixels of the canvas, not to be written to. It is NumPy under `jit` too.

  Raises:
    ValueError: other than one tuple of sizes for each level; a canvas that does not divide, with the nearest that does.
  """
  grids = map_sizes(backbone, canvas)
  _check_canvas(canvas, grids[:len(backbone.levels)])
  with jax.ensure_compile_time_eval():
    anchors = np.array(ops.pyramid_anchors(canvas=canvas, grids=grids, sizes=sizes, ratios=ratios))
  anchors.flags.writeable = False
  return anchors


def _check_canvas(canvas: tuple[int, int], maps: tuple[tuple[int, int], ...]) -> None:
  """Refuses a canvas of which a map of the body was rounded up: anchors would drift from its pixels.

  The strides of bodies are powers of two; 300 pixels on a map of 10 are 30 apart, so its stride is 32.
  """
  apart = [side / pixels for size in maps for side, pixels in zip(canvas, size, strict=True)]
  strides = [2 ** math.ceil(math.log2(distance)) for distance in apart]
  if apart != strides:
    near = ' x '.join(str(max(1, round(side / max(strides))) * max(strides)) for side in canvas)
    raise ValueError(f'anchors: the canvas is {canvas[0]} x {canvas[1]}, which a stride of {max(strides)} does not '
                     f'divide; the nearest that it does is {near}')


def check_strides(detector: str, maps: tuple[tuple[int, int], ...], canvas: tuple[int, int],
                  strides: tuple[float, ...]) -> None:
  """Refuses strides that are not those of the maps: what is meant for one place would be taken for another.

  Args:
    detector: who asks, for the message.
    maps: (h, w) of each, fine to coarse.
    canvas: (h, w) in pixels, which the maps divide.
    strides: of the maps, or of the first ones.

  >>> check_strides('FCOS', ((12, 16), (6, 8)), (96, 128), (8, 16))
  """
  real = tuple(canvas[0] // h for h, _ in maps[:len(strides)])
  if real != tuple(strides[:len(maps)]):
    raise ValueError(f'{detector}: strides {tuple(strides)} for maps of stride {", ".join(map(str, real))}; give these')


class PyramidDetector(nn.Module):
  """What detectors on a pyramid share: the backbone, and the anchors at its pixels, the same number at each.

  A subclass has the fields `body`, `levels`, `channels`, `extra`, `pyramid_norm`, `dtype`, `sizes` and `ratios`.
  """

  @nn.nowrap
  def anchors(self, canvas: tuple[int, int]) -> np.ndarray:
    """The anchors of a canvas (h, w), of FCOS squares around its points: float32 `[A, 4]` xyxy in its pixels.

    A ValueError names the nearest canvas where the strides do not divide this one.
    """
    return anchor_grid(self._backbone(), tuple(canvas), self.sizes, self.ratios)

  @nn.nowrap
  def level_sizes(self, canvas: tuple[int, int]) -> tuple[int, ...]:
    """How many of these anchors each level has, fine to coarse."""
    return tuple(self._per_pixel() * math.prod(size) for size in map_sizes(self._backbone(), tuple(canvas)))

  @nn.nowrap
  def _backbone(self) -> Backbone:
    """The pyramid on a copy of the body, which becomes a part of the backbone and not of the detector, as in
    torchvision's names; no pyramid where its channels are 0."""
    pyramid = FeaturePyramid(self.channels, self.extra, self.pyramid_norm, self.dtype, parent=None)
    return Backbone(self.body.clone(parent=None, name=None), pyramid if self.channels else None, self.levels,
                    parent=None)

  @nn.nowrap
  def _per_pixel(self) -> int:
    """How many anchors each pixel has, on all levels, since these share one head."""
    counts = [len(level) for level in self.sizes]
    if len(set(counts)) != 1:
      raise ValueError(f'{type(self).__name__}: {counts} sizes of anchors at the levels; give as many at each, since '
                       'all levels share one head')
    return counts[0] * len(self.ratios)


def small_body(width: int, norm: str, dtype: Any) -> tuple[nn.Module, tuple[str, ...]]:
  """A small Darknet and the names of its maps of stride 8 and 16, for canvases of about 100 pixels on a CPU.

  Args:
    width: channels of the first convolution.
    norm: as in `layers.make_norm`.
    dtype: the compute dtype.

  >>> small_body(16, 'batch', 'float32')[0].stages
  ((32, 1), (64, 2), (128, 2))
  """
  return darknet_small(num_classes=0, width=width, norm=norm, dtype=dtype), ('stage2', 'stage3')


def prior_logit(prior: float) -> float:
  """The bias with which an untrained prediction is this probability (arXiv 1708.02002, section 4.1).

  >>> round(prior_logit(0.01), 4)
  -4.5951
  """
  return math.log(prior / (1 - prior))
