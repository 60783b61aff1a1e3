"""RetinaNet: a feature pyramid and two small convolutional networks, which predict for nine anchors at every pixel.

Tsung-Yi Lin, Priya Goyal, Ross Girshick, Kaiming He and Piotr Dollar, Focal Loss for Dense Object Detection, arXiv
1708.02002, section 4 and Figure 3. With ResNet-50 and the pyramid of `fpn.py`, at every level P3 to P7 (h x w):

| part | what | map |
|---|---|---|
| head.classification_head.conv_0 to 3 | 3x3, 256, ReLU | h x w x 256 |
| head.classification_head.cls_logits | 3x3, 9 K | h x w x 9 K |
| head.regression_head.conv_0 to 3 | 3x3, 256, ReLU; parameters of its own | h x w x 256 |
| head.regression_head.bbox_reg | 3x3, 36 | h x w x 36 |

All levels share these parameters. A classifier says for each class by itself whether it is there (a sigmoid), so there
is no background class: what torchvision's checkpoints call class 0 of 91 is one that no object has. Parameters with 91
classes: 34,068,119, of which 53,120 are scales and biases of BatchNorm, which torchvision counts only where they learn.

Differs from the paper: P6 comes from P5, not from C5; `extra='p6p7_c5'` of the pyramid is the paper's.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.classification.resnet import resnet50
from vision_jax.models.detection import fpn
from vision_jax.models.detection.fpn import LevelSizes, Maps, PyramidDetector
from vision_jax.models.layers import Conv, ConvNorm
from vision_jax.ops.anchors import RATIOS, RETINANET_SIZES

Array = jax.Array

head_init = nn.initializers.normal(0.01)

# For digits of 12 to 48 pixels, higher than wide, on levels of stride 8 and 16.
DIGIT_SIZES: LevelSizes = ((13.0, 18.0, 25.0), (32.0, 40.0, 50.0))
DIGIT_RATIOS = (1.0, 1.5)


class RetinaNet(PyramidDetector):
  """A backbone and RetinaNet's head: class logits and box deltas for every anchor.

  Args:
    body: the backbone, a module whose `features(x, train=)` gives maps `[B, h, w, C]` by name.
    levels: the names of the maps that the pyramid takes, fine to coarse.
    num_classes: K.
    sizes: for each level the square roots of its anchors' areas, in pixels; as many at each level.
    ratios: height over width of the anchors.
    convs: of each of the two heads, before its prediction.
    head_norm: after each of them, as in `layers.make_norm`; 'none' gives them biases.
    prior: the probability of each class that the untrained head predicts everywhere.
    channels, extra, pyramid_norm: of the pyramid, as `fpn.FeaturePyramid` has them.
    dtype: the compute dtype of pyramid and head.

  Returns:
    From `[B, H, W, 3]` of any size, float32 `logits [B, A, K]` and `deltas [B, A, 4]` (see `ops.decode_deltas`), for
    the A anchors that `anchors((H, W))` gives.

  Raises:
    ValueError: levels with different numbers of sizes.

  >>> model = retinanet_small(num_classes=10)
  >>> outputs = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 96, 128, 3)))[0]
  >>> {name: leaf.shape for name, leaf in outputs.items()}, model.anchors((96, 128)).shape
  ({'deltas': (2, 1440, 4), 'logits': (2, 1440, 10)}, (1440, 4))
  """

  body: nn.Module
  levels: tuple[str, ...]
  num_classes: int
  sizes: LevelSizes = RETINANET_SIZES
  ratios: tuple[float, ...] = RATIOS
  convs: int = 4
  head_norm: str = 'none'
  prior: float = 0.01
  channels: int = 256
  extra: str = 'p6p7'
  pyramid_norm: str = 'none'
  dtype: Any = jnp.float32
  outputs: ClassVar[tuple[str, ...]] = ('logits', 'deltas')

  def setup(self):
    self.backbone = self._backbone()
    self.head = RetinaNetHead(self.num_classes, self._per_pixel(), self.convs, self.head_norm, self.prior, self.dtype)

  def __call__(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    return self.head(self.backbone(x, train=train), train=train)


class RetinaNetHead(nn.Module):
  """RetinaNet's two heads on the maps of a pyramid.

  Args:
    num_classes: K.
    num_anchors: at every pixel.
    convs, norm, prior, dtype: as in `RetinaNet`.

  Returns:
    What `RetinaNet` does, from maps `[B, h, w, C]` of one number of channels.

  >>> head = RetinaNetHead(num_classes=3, num_anchors=2)
  >>> maps = (jnp.zeros((1, 4, 6, 8)), jnp.zeros((1, 2, 3, 8)))
  >>> jax.eval_shape(head.init_with_output, jax.random.key(0), maps)[0]['logits'].shape
  (1, 60, 3)
  """

  num_classes: int
  num_anchors: int
  convs: int = 4
  norm: str = 'none'
  prior: float = 0.01
  dtype: Any = jnp.float32

  def setup(self):
    common = {'num_anchors': self.num_anchors, 'convs': self.convs, 'norm': self.norm, 'dtype': self.dtype}
    self.classification_head = AnchorHead('cls_logits', self.num_classes, bias=fpn.prior_logit(self.prior), **common)
    self.regression_head = AnchorHead('bbox_reg', 4, **common)

  def __call__(self, maps: Maps, *, train: bool = False) -> dict[str, Array]:
    return {'logits': self.classification_head(maps, train=train), 'deltas': self.regression_head(maps, train=train)}


class AnchorHead(nn.Module):
  """Convolutions and a prediction, the same for every level.

  Args:
    prediction: the name of the last convolution.
    width: numbers for each anchor.
    num_anchors: at every pixel.
    convs, norm, dtype: as in `RetinaNet`.
    bias: that the prediction begins with.

  Returns:
    float32 `[B, A, width]`: level by level, row, column, anchor.

  >>> head = AnchorHead('bbox_reg', 4, num_anchors=9, convs=1)
  >>> jax.eval_shape(head.init_with_output, jax.random.key(0), (jnp.zeros((1, 4, 6, 8)),))[0].shape
  (1, 216, 4)
  """

  prediction: str
  width: int
  num_anchors: int
  convs: int = 4
  norm: str = 'none'
  bias: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, maps: Maps, *, train: bool = False) -> Array:
    features = maps[0].shape[-1]
    layers = [ConvNorm(features, norm=self.norm, kernel_init=head_init, dtype=self.dtype, parts=('0', '1'),
                       name=f'conv_{i}') for i in range(self.convs)]
    predict = Conv(self.num_anchors * self.width, padding=1, kernel_init=head_init, dtype=self.dtype,
                   bias_init=nn.initializers.constant(self.bias), name=self.prediction)
    outputs = []
    for x in maps:
      for layer in layers:
        x = layer(x, train=train)
      outputs.append(predict(x).reshape(x.shape[0], -1, self.width))
    return jnp.concatenate(outputs, axis=1).astype(jnp.float32)


def retinanet_resnet50_fpn(*, num_classes: int = 91, norm: str = 'batch', head_norm: str = 'none',
                           extra: str = 'p6p7', dtype: Any = jnp.float32) -> RetinaNet:
  """RetinaNet with ResNet-50, as in torchvision.

  Args:
    num_classes: K; 91 for torchvision's checkpoints, whose class 0 no object has.
    norm: of the backbone, as in `layers.make_norm`; 'frozen' where it begins with weights that were trained before.
    head_norm, dtype: as in `RetinaNet`.
    extra: as in `fpn.FeaturePyramid`; 'p6p7_c5' is the paper's.

  >>> retinanet_resnet50_fpn().level_sizes((320, 416))
  (18720, 4680, 1170, 315, 108)
  """
  body = resnet50(num_classes=0, norm=norm, dtype=dtype)
  return RetinaNet(body, ('layer2', 'layer3', 'layer4'), num_classes, head_norm=head_norm, extra=extra, dtype=dtype)


def retinanet_small(*, num_classes: int = 91, width: int = 16, sizes: LevelSizes = DIGIT_SIZES,
                    ratios: tuple[float, ...] = DIGIT_RATIOS, convs: int = 2, norm: str = 'batch',
                    head_norm: str = 'group', prior: float = 0.01, dtype: Any = jnp.float32) -> RetinaNet:
  """RetinaNet with a small Darknet, for canvases of about 100 pixels on a CPU.

  Args:
    num_classes, sizes, ratios, convs, head_norm, prior, dtype: as in `RetinaNet`; there are two levels, of stride 8 and
      16.
    width: channels of the body's first convolution; those of the pyramid are four times as many.
    norm: of the body and of the pyramid, as in `layers.make_norm`.

  >>> retinanet_small(num_classes=10).level_sizes((96, 128))
  (1152, 288)
  """
  sizes = tuple(tuple(level) for level in sizes)
  body, levels = fpn.small_body(width, norm, dtype)
  return RetinaNet(body, levels, num_classes, sizes, tuple(ratios), convs, head_norm, prior, 4 * width, 'none', norm,
                   dtype)
