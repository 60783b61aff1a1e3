"""SSD: default boxes of several sizes and shapes at every pixel of maps that become coarser and coarser.

Wei Liu, Dragomir Anguelov, Dumitru Erhan, Christian Szegedy, Scott Reed, Cheng-Yang Fu and Alexander C. Berg, SSD:
Single Shot MultiBox Detector, arXiv 1512.02325, section 2 and Figure 2. Maps of `ssd300_vgg16` on 300 x 300, and of
`ssd512_vgg16` on 512 x 512, with the default boxes at each pixel:

| part | what | SSD300 | boxes | SSD512 | boxes |
|---|---|---|---|---|---|
| trunk.features_22 | conv4_3 of VGG-16, each pixel of norm 1, and scaled | 38 x 38 x 512 | 4 | 64 x 64 | 4 |
| extra_0_7_1 | conv5_3; max pool 3x3 / 1; fc6: 3x3 with holes (dilation 6), 1024 | 19 x 19 | | 32 x 32 | |
| extra_0_7_3 | fc7: 1x1, 1024 | 19 x 19 x 1024 | 6 | 32 x 32 | 6 |
| extra_1 | 1x1, 256; 3x3 / 2, 512 | 10 x 10 x 512 | 6 | 16 x 16 | 6 |
| extra_2 | 1x1, 128; 3x3 / 2, 256 | 5 x 5 x 256 | 6 | 8 x 8 | 6 |
| extra_3 | 1x1, 128; 3x3, 256: without padding in SSD300, / 2 in SSD512 | 3 x 3 x 256 | 4 | 4 x 4 | 6 |
| extra_4 | the same | 1 x 1 x 256 | 4 | 2 x 2 | 4 |
| extra_5 | 1x1, 128; 4x4 with padding, 256 | | | 1 x 1 | 4 |
| head | two 3x3 of each map's own: K + 1 logits and 4 deltas a box | 8,732 boxes | | 24,564 | |

Mark Sandler et al., MobileNetV2, arXiv 1801.04381, section 6.2, and Andrew Howard et al., MobileNetV3, arXiv
1905.02244, section 6.3: SSDLite has depthwise and 1x1 convolutions in head and extra maps, with BatchNorm and ReLU6.

Classes compete in a softmax, the background first among them: torchvision's checkpoints of 91 classes are K = 90 here.
Parameters with K = 90: 35,641,826; 37,513,116; 3,440,060. Submodules bear torchvision's names, but for `trunk`: there
the body stands in one piece.

Differs from the paper: default boxes as in the authors' code and torchvision (`ops.ssd_default_boxes`); fc6 is not cut
out of VGG's. Differs from torchvision: all pools of VGG round sizes up and not the third alone, which is the same at
300 and at 512; SSD512 has the authors' last three maps.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from vision_jax import ops
from vision_jax.models.classification.mobilenetv3 import mobilenet_v3_large
from vision_jax.models.classification.vgg import vgg16
from vision_jax.models.detection import fpn
from vision_jax.models.detection.fpn import Maps
from vision_jax.models.layers import Conv, ConvNorm, max_pool

Array = jax.Array


class Extra(NamedTuple):
  """One map more: a 1x1 convolution to half the channels, and another to all of them.

  Args:
    features: channels that come out.
    size, stride, padding: of the second convolution.

  >>> Extra(256)
  Extra(features=256, size=3, stride=2, padding=1)
  """

  features: int
  size: int = 3
  stride: int = 2
  padding: int = 1


EXTRAS_300 = (Extra(512), Extra(256), Extra(256, 3, 1, 0), Extra(256, 3, 1, 0))
EXTRAS_512 = (Extra(512), Extra(256), Extra(256), Extra(256), Extra(256, 4, 1, 1))
EXTRAS_LITE = (Extra(512), Extra(256), Extra(256), Extra(128))
# From 0.2 to 0.95 of the canvas in equal steps, and the whole of it.
LITE_SCALES = (*(0.2 + 0.75 * k / 5 for k in range(6)), 1.0)
# Shares of 96 pixels, for digits of 12 to 48 pixels, higher than wide.
DIGIT_SCALES = (0.15, 0.25, 0.4, 0.5)
DIGIT_RATIOS = ((1.5,),) * 3


class SSD(nn.Module):
  """A backbone, more maps and SSD's head: class logits and box deltas for every default box.

  Args:
    body: the backbone, a module whose `features(x, train=)` gives maps `[B, h, w, C]` by name.
    levels: the names of the maps that it gives, fine to coarse.
    num_classes: K, without the background.
    extras: the maps after them.
    scales, ratios: of the default boxes of all maps, as `ops.ssd_default_boxes` takes them: one scale more than maps.
    strides: pixels of the canvas between their centres, for each map; when left out, canvas over map.
    canvas: (h, w), the only one that the strides hold for; any when left out.
    square: as in `ops.ssd_default_boxes`.
    fc: channels of fc6 and fc7, which take the place of the last of the levels; 0 for none.
    l2_scale: what the learned scale of the finest map, divided by its norm, begins with; 0 for none.
    lite: whether the convolutions of extras and head are depthwise and 1x1 ones.
    norm: of extras and fc6, and of SSDLite's head, as in `layers.make_norm`; 'none' gives them biases instead.
    dtype: the compute dtype of extras and head.

  Returns:
    From `[B, H, W, 3]`, float32 `logits [B, A, K + 1]`, the background first, and `deltas [B, A, 4]` (see
    `ops.decode_deltas`), for the A default boxes that `anchors((H, W))` gives.

  Raises:
    ValueError: as many scales and ratios as maps there are not; a canvas too small for the last of them.

  >>> model = ssd_small(num_classes=10)
  >>> outputs = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 96, 128, 3)))[0]
  >>> {name: leaf.shape for name, leaf in outputs.items()}, model.anchors((96, 128)).shape
  ({'deltas': (2, 1008, 4), 'logits': (2, 1008, 11)}, (1008, 4))
  """

  body: nn.Module
  levels: tuple[str, ...]
  num_classes: int
  extras: tuple[Extra, ...]
  scales: tuple[float, ...]
  ratios: tuple[tuple[float, ...], ...]
  strides: tuple[float, ...] | None = None
  canvas: tuple[int, int] | None = None
  square: bool = False
  fc: int = 0
  l2_scale: float = 0.0
  lite: bool = False
  norm: str = 'none'
  dtype: Any = jnp.float32
  outputs: ClassVar[tuple[str, ...]] = ('logits', 'deltas')
  background: ClassVar[bool] = True  # which is the first of the logits

  def setup(self):
    maps, strides = len(self.levels) + len(self.extras), self.strides
    if {len(self.ratios), len(self.scales) - 1, maps if strides is None else len(strides)} != {maps}:
      raise ValueError(f'SSD: {len(self.ratios)} ratios, {len(self.scales)} scales and '
                       f'{"no" if strides is None else len(strides)} strides for {maps} maps; give as many of each, '
                       'and one scale more')
    self.backbone = self._backbone()
    self.head = SSDHead(self.num_classes, self._per_pixel(), self.lite, self.norm, self.dtype)

  def __call__(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    return self.head(self.backbone(x, train=train), train=train)

  @nn.nowrap
  def anchors(self, canvas: tuple[int, int]) -> np.ndarray:
    """The default boxes of a canvas (h, w): float32 `[A, 4]` xyxy in its pixels, NumPy under `jit` too.

    A ValueError names the canvas that the strides hold for, where it is another one.
    """
    if self.canvas and tuple(self.canvas) != tuple(canvas):
      raise ValueError(f'anchors: the canvas is {canvas[0]} x {canvas[1]}, and the strides of these default boxes hold '
                       f'for {self.canvas[0]} x {self.canvas[1]} alone; give that canvas, or a model without strides')
    grids = fpn.map_sizes(self._backbone(), tuple(canvas))
    with jax.ensure_compile_time_eval():
      return np.array(ops.ssd_default_boxes(canvas=tuple(canvas), grids=grids, strides=self.strides, scales=self.scales,
                                            ratios=self.ratios, square=self.square))

  @nn.nowrap
  def level_sizes(self, canvas: tuple[int, int]) -> tuple[int, ...]:
    """How many of these boxes each map has, fine to coarse."""
    grids = fpn.map_sizes(self._backbone(), tuple(canvas))
    return tuple(h * w * boxes for (h, w), boxes in zip(grids, self._per_pixel(), strict=True))

  @nn.nowrap
  def _backbone(self) -> SSDBackbone:
    # A copy, which becomes a part of the backbone and not of this module, as in torchvision's names.
    body = self.body.clone(parent=None, name=None)
    return SSDBackbone(body, self.levels, tuple(map(Extra._make, self.extras)), self.fc, self.l2_scale, self.lite,
                       self.norm, self.dtype, parent=None)

  @nn.nowrap
  def _per_pixel(self) -> tuple[int, ...]:
    return tuple(2 + 2 * len(level) for level in self.ratios)


class SSDBackbone(nn.Module):
  """A classifier's maps, and more of them, each made of the one before.

  Args:
    trunk: the classifier; `SSD` calls it `body`.
    levels, extras, fc, l2_scale, lite, norm, dtype: as in `SSD`.

  Returns:
    From `[B, H, W, 3]` maps, fine to coarse.

  Raises:
    ValueError: an image too small for the last of them.

  >>> backbone = SSDBackbone(vgg16(num_classes=0, width=4), ('features_22', 'features_29'), (Extra(8),), fc=16)
  >>> maps = jax.eval_shape(backbone.init_with_output, jax.random.key(0), jnp.zeros((1, 64, 96, 3)))[0]
  >>> [m.shape for m in maps]
  [(1, 8, 12, 32), (1, 4, 6, 16), (1, 2, 3, 8)]
  """

  trunk: nn.Module
  levels: tuple[str, ...]
  extras: tuple[Extra, ...] = ()
  fc: int = 0
  l2_scale: float = 0.0
  lite: bool = False
  norm: str = 'none'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Maps:
    size, maps = x.shape[1:3], list(fpn.body_maps(self.trunk, x, self.levels, train=train))
    x = maps[-1]
    if self.fc:
      x = max_pool(x, 3, stride=1, padding=1)
      x = self._conv(x, self.fc, 3, '0_7_1', train, padding=6, dilation=6)
      x = maps[-1] = self._conv(x, self.fc, 1, '0_7_3', train)
    for i, extra in enumerate(self.extras, start=bool(self.fc)):
      if min(x.shape[1:3]) + 2 * extra.padding < extra.size:
        raise ValueError(f'SSD: an image of {size[0]} x {size[1]} leaves {x.shape[1]} x {x.shape[2]} pixels for a '
                         f'convolution of {extra.size} x {extra.size}; give a larger one, or fewer extras')
      x = self._extra(x, extra, f'{i}', train)
      maps.append(x)
    if self.l2_scale:
      scale = self.param('scale_weight', nn.initializers.constant(self.l2_scale), maps[0].shape[-1:], jnp.float32)
      maps[0] = (unit_pixels(maps[0]) * scale).astype(self.dtype)
    return tuple(maps)

  def _extra(self, x: Array, extra: Extra, name: str, train: bool) -> Array:
    half, options = extra.features // 2, {'stride': extra.stride, 'padding': extra.padding}
    x = self._conv(x, half, 1, f'{name}_0', train)
    if not self.lite:
      return self._conv(x, extra.features, extra.size, f'{name}_2', train, **options)
    x = self._conv(x, half, extra.size, f'{name}_1', train, groups=half, **options)
    return self._conv(x, extra.features, 1, f'{name}_2', train)

  def _conv(self, x: Array, features: int, size: int, name: str, train: bool, **options: int) -> Array:
    return conv_block(features, size, lite=self.lite, norm=self.norm, dtype=self.dtype, name=f'extra_{name}',
                      **options)(x, train=train)


class SSDHead(nn.Module):
  """SSD's two predictions for each map, with parameters of its own.

  Args:
    num_classes: K, without the background.
    per_pixel: for each map the default boxes at every pixel.
    lite, norm, dtype: as in `SSD`.

  Returns:
    What `SSD` does, from maps `[B, h, w, C]`.

  >>> head = SSDHead(num_classes=3, per_pixel=(4, 6))
  >>> maps = (jnp.zeros((1, 4, 6, 8)), jnp.zeros((1, 2, 3, 16)))
  >>> jax.eval_shape(head.init_with_output, jax.random.key(0), maps)[0]['logits'].shape
  (1, 132, 4)
  """

  num_classes: int
  per_pixel: tuple[int, ...]
  lite: bool = False
  norm: str = 'none'
  dtype: Any = jnp.float32

  def setup(self):
    common = {'per_pixel': self.per_pixel, 'lite': self.lite, 'norm': self.norm, 'dtype': self.dtype}
    self.classification_head = Predictions(self.num_classes + 1, **common)
    self.regression_head = Predictions(4, **common)

  def __call__(self, maps: Maps, *, train: bool = False) -> dict[str, Array]:
    return {'logits': self.classification_head(maps, train=train), 'deltas': self.regression_head(maps, train=train)}


class Predictions(nn.Module):
  """So many numbers for every default box.

  Args:
    width: numbers for each box.
    per_pixel, lite, norm, dtype: as in `SSDHead`.

  Returns:
    float32 `[B, A, width]`: map by map, row, column, box.

  >>> head = Predictions(4, per_pixel=(6,))
  >>> jax.eval_shape(head.init_with_output, jax.random.key(0), (jnp.zeros((1, 4, 6, 8)),))[0].shape
  (1, 144, 4)
  """

  width: int
  per_pixel: tuple[int, ...]
  lite: bool = False
  norm: str = 'none'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, maps: Maps, *, train: bool = False) -> Array:
    outputs = []
    for i, (x, boxes) in enumerate(zip(maps, self.per_pixel, strict=True)):
      name, size = f'module_list_{i}', 3
      if self.lite:
        channels = x.shape[-1]
        x = conv_block(channels, 3, lite=True, norm=self.norm, dtype=self.dtype, name=f'{name}_0',
                       groups=channels)(x, train=train)
        name, size = f'{name}_1', 1
      x = Conv(boxes * self.width, size, padding=size // 2, kernel_init=kernel_init(self.lite), dtype=self.dtype,
               name=name)(x)
      outputs.append(x.reshape(x.shape[0], -1, self.width))
    return jnp.concatenate(outputs, axis=1).astype(jnp.float32)


def conv_block(features: int, size: int, *, lite: bool, norm: str, dtype: Any, name: str, **options: int) -> ConvNorm:
  """Convolution, norm and activation of SSD's own layers, with torchvision's initialisation.

  Args:
    features, size: channels and pixels of the kernel.
    lite: SSDLite's: ReLU6, and the eps and momentum of its BatchNorm.
    norm, dtype: as in `layers.ConvNorm`.
    name: of the module; without `lite` the convolution within is `conv`, which torchvision's name lacks.
    **options: more of `layers.ConvNorm`.
  """
  kind = {'eps': 1e-3, 'momentum': 0.97, 'activation': nn.relu6, 'parts': ('0', '1')} if lite else {}
  return ConvNorm(features, size, norm=norm, kernel_init=kernel_init(lite), dtype=dtype, name=name, **kind, **options)


def kernel_init(lite: bool) -> nn.initializers.Initializer:
  """How torchvision draws the kernels of SSD's own layers, and those of SSDLite's."""
  return nn.initializers.normal(0.03) if lite else nn.initializers.xavier_uniform()


def unit_pixels(x: Array) -> Array:
  """Each pixel of a map `[B, h, w, C]` divided by its Euclidean norm, in float32; 0 stays 0.

  Wei Liu et al., ParseNet, arXiv 1506.04579, section 3.3.

  >>> unit_pixels(jnp.array([[[[3.0, 4.0], [0.0, 0.0]]]]))[0, 0].tolist()
  [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
  """
  x = x.astype(jnp.float32)
  return x * lax.rsqrt(jnp.maximum((x ** 2).sum(-1, keepdims=True), 1e-24))


def ssd300_vgg16(*, num_classes: int = 90, norm: str = 'none', dtype: Any = jnp.float32) -> SSD:
  """SSD300 on VGG-16, as in torchvision: images of 300 x 300 pixels.

  Args:
    num_classes: K, without the background; 90 for torchvision's checkpoints, whose class k + 1 is k here.
    norm: of VGG, fc6 and extras, as in `layers.make_norm`; the paper has none.
    dtype: as in `SSD`.

  >>> ssd300_vgg16().level_sizes((300, 300))
  (5776, 2166, 600, 150, 36, 4)
  """
  return _on_vgg16(num_classes, EXTRAS_300, ops.SSD300, norm, dtype)


def ssd512_vgg16(*, num_classes: int = 90, norm: str = 'none', dtype: Any = jnp.float32) -> SSD:
  """SSD512 on VGG-16, as in the authors' code: images of 512 x 512 pixels.

  Args:
    num_classes, norm, dtype: as in `ssd300_vgg16`.

  >>> ssd512_vgg16().level_sizes((512, 512))
  (16384, 6144, 1536, 384, 96, 16, 4)
  """
  return _on_vgg16(num_classes, EXTRAS_512, ops.SSD512, norm, dtype)


def _on_vgg16(num_classes: int, extras: tuple[Extra, ...], boxes: Any, norm: str, dtype: Any) -> SSD:
  body = vgg16(num_classes=0, norm=norm, ceil_mode=True, dtype=dtype)
  layout = {name: boxes[name] for name in ('scales', 'ratios', 'strides', 'canvas')}
  return SSD(body, ('features_22', 'features_29'), num_classes, extras, fc=1024, l2_scale=20.0, norm=norm, dtype=dtype,
             **layout)


def ssdlite320_mobilenet_v3_large(*, num_classes: int = 90, norm: str = 'batch', reduced_tail: bool = True,
                                  dtype: Any = jnp.float32) -> SSD:
  """SSDLite on MobileNetV3, as in torchvision: made for images of 320 x 320 pixels, takes others too.

  Args:
    num_classes: as in `ssd300_vgg16`.
    norm: of body, extras and head, as in `layers.make_norm`.
    reduced_tail: as in `MobileNetV3`; False where its body begins with a classifier's weights.
    dtype: as in `SSD`.

  >>> ssdlite320_mobilenet_v3_large().level_sizes((320, 320))
  (2400, 600, 150, 54, 24, 6)
  """
  body = mobilenet_v3_large(num_classes=0, reduced_tail=reduced_tail, norm=norm, momentum=0.97, dtype=dtype)
  return SSD(body, ('features_13_block_0', 'features_16'), num_classes, EXTRAS_LITE, LITE_SCALES, ((2, 3),) * 6,
             lite=True, norm=norm, dtype=dtype)


def ssd_small(*, num_classes: int = 90, width: int = 16, scales: tuple[float, ...] = DIGIT_SCALES,
              ratios: tuple[tuple[float, ...], ...] = DIGIT_RATIOS, norm: str = 'batch',
              dtype: Any = jnp.float32) -> SSD:
  """SSD with a small Darknet, for canvases of about 100 pixels on a CPU.

  Args:
    num_classes, scales, ratios, dtype: as in `SSD`; there are three maps, of stride 8, 16 and 32.
    width: channels of the body's first convolution; the coarser two maps have eight times as many.
    norm: of body and extras, as in `layers.make_norm`.

  >>> ssd_small(num_classes=10).level_sizes((96, 128))
  (768, 192, 48)
  """
  body, levels = fpn.small_body(width, norm, dtype)
  return SSD(body, levels, num_classes, (Extra(8 * width),), tuple(scales), tuple(map(tuple, ratios)), square=True,
             norm=norm, dtype=dtype)
