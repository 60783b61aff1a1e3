"""FCOS: a feature pyramid and two small convolutional networks, which predict one box at every pixel, without anchors.

Zhi Tian, Chunhua Shen, Hao Chen and Tong He, FCOS: Fully Convolutional One-Stage Object Detection, arXiv 1904.01355,
section 3 and Figure 2; the later version, arXiv 2006.09214, predicts the centerness beside the box, as here. With
ResNet-50 and the pyramid of `fpn.py`, at every level P3 to P7 (h x w):

| part | what | map |
|---|---|---|
| head.classification_head.conv_0 to 11 | four times 3x3, 256, GroupNorm, ReLU | h x w x 256 |
| head.classification_head.cls_logits | 3x3, K | h x w x K |
| head.regression_head.conv_0 to 11 | the same, with parameters of its own | h x w x 256 |
| head.regression_head.bbox_reg | 3x3, 4, ReLU: left, top, right, bottom in strides of the level | h x w x 4 |
| head.regression_head.bbox_ctrness | 3x3, 1 | h x w x 1 |

All levels share these parameters. Each class has a sigmoid of its own, so there is no background class: what
torchvision's checkpoints call class 0 of 91 is one that no object has. Parameters with 91 classes: 32,322,720, of which
53,120 are scales and biases of BatchNorm, which torchvision counts only where they learn.

Differs from the paper: distances are a ReLU's, in strides, as in torchvision; the paper's are an exponential's, with a
scale that each level learns. Points lie on multiples of the stride, and P6 comes from P5.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.models.classification.resnet import resnet50
from vision_jax.models.detection import fpn
from vision_jax.models.detection.fpn import LevelSizes, Maps, PyramidDetector
from vision_jax.models.layers import Conv, make_norm
from vision_jax.ops.anchors import FCOS_SIZES

Array = jax.Array

head_init = nn.initializers.normal(0.01)


class FCOS(PyramidDetector):
  """A backbone and FCOS's head: class logits, distances to the sides of a box, and centerness, for every pixel.

  Args:
    body: the backbone, a module whose `features(x, train=)` gives maps `[B, h, w, C]` by name.
    levels: the names of the maps that the pyramid takes, fine to coarse.
    num_classes: K.
    sizes: for each level, in a tuple, the side of the square that stands for a point: the unit of its distances, and of
      the sizes of objects that the level learns; the level's stride.
    convs: of each of the two heads, before its predictions.
    head_norm: after each of them, as in `layers.make_norm`.
    prior: the probability of each class that the untrained head predicts everywhere.
    channels, extra, pyramid_norm: of the pyramid, as `fpn.FeaturePyramid` has them.
    dtype: the compute dtype of pyramid and head.

  Returns:
    From `[B, H, W, 3]` of any size, float32 `logits [B, A, K]`, `distances [B, A, 4]` (see `ops.decode_distances`) and
    `centerness [B, A]` (logits), for the A points that `anchors((H, W))` gives.

  >>> model = fcos_small(num_classes=10)
  >>> outputs = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 96, 128, 3)))[0]
  >>> {name: leaf.shape for name, leaf in outputs.items()}, model.anchors((96, 128)).shape
  ({'centerness': (2, 240), 'distances': (2, 240, 4), 'logits': (2, 240, 10)}, (240, 4))
  """

  body: nn.Module
  levels: tuple[str, ...]
  num_classes: int
  sizes: LevelSizes = FCOS_SIZES
  convs: int = 4
  head_norm: str = 'group'
  prior: float = 0.01
  channels: int = 256
  extra: str = 'p6p7'
  pyramid_norm: str = 'none'
  dtype: Any = jnp.float32
  outputs: ClassVar[tuple[str, ...]] = ('logits', 'distances', 'centerness')
  ratios: ClassVar[tuple[float, ...]] = (1.0,)

  def setup(self):
    self.backbone = self._backbone()
    self.head = FCOSHead(self.num_classes, self.convs, self.head_norm, self.prior, self.dtype)

  def __call__(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    return self.head(self.backbone(x, train=train), train=train)

  @nn.nowrap
  def anchors(self, canvas: tuple[int, int]) -> np.ndarray:
    """The squares around the points of a canvas (h, w), as `PyramidDetector` has anchors."""
    squares = super().anchors(canvas)
    maps = fpn.map_sizes(self._backbone(), tuple(canvas))[:len(self.levels)]
    fpn.check_strides('FCOS', maps, canvas, tuple(level[0] for level in self.sizes[:len(maps)]))
    return squares


class FCOSHead(nn.Module):
  """FCOS's two heads on the maps of a pyramid.

  Args:
    num_classes: K.
    convs, norm, prior, dtype: as in `FCOS`.

  Returns:
    What `FCOS` does, from maps `[B, h, w, C]` of one number of channels.

  >>> head = FCOSHead(num_classes=3)
  >>> maps = (jnp.zeros((1, 4, 6, 8)), jnp.zeros((1, 2, 3, 8)))
  >>> jax.eval_shape(head.init_with_output, jax.random.key(0), maps)[0]['distances'].shape
  (1, 30, 4)
  """

  num_classes: int
  convs: int = 4
  norm: str = 'group'
  prior: float = 0.01
  dtype: Any = jnp.float32

  def setup(self):
    common = {'convs': self.convs, 'norm': self.norm, 'dtype': self.dtype}
    self.classification_head = PointHead((('cls_logits', self.num_classes, fpn.prior_logit(self.prior)),), **common)
    self.regression_head = PointHead((('bbox_reg', 4, 0.0), ('bbox_ctrness', 1, 0.0)), **common)

  def __call__(self, maps: Maps, *, train: bool = False) -> dict[str, Array]:
    logits, = self.classification_head(maps, train=train)
    distances, centerness = self.regression_head(maps, train=train)
    return {'logits': logits, 'distances': nn.relu(distances), 'centerness': centerness[..., 0]}


class PointHead(nn.Module):
  """Convolutions, each with a normalisation, and predictions, the same for every level.

  Args:
    predictions: for each its name, its numbers for each pixel, and the bias that it begins with.
    convs, norm, dtype: as in `FCOS`.

  Returns:
    For each prediction float32 `[B, A, numbers]`: level by level, row, column.

  >>> head = PointHead((('a', 4, 0.0), ('b', 1, 0.0)), convs=1, norm='batch')
  >>> [y.shape for y in jax.eval_shape(head.init_with_output, jax.random.key(0), (jnp.zeros((1, 4, 6, 8)),))[0]]
  [(1, 24, 4), (1, 24, 1)]
  """

  predictions: tuple[tuple[str, int, float], ...]
  convs: int = 4
  norm: str = 'group'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, maps: Maps, *, train: bool = False) -> list[Array]:
    features = maps[0].shape[-1]
    layers = []
    for i in range(self.convs):  # numbered as in torchvision, where the ReLUs have numbers too
      layers += [Conv(features, padding=1, kernel_init=head_init, dtype=self.dtype, name=f'conv_{3 * i}'),
                 make_norm(self.norm, features, train=train, dtype=self.dtype, name=f'conv_{3 * i + 1}'), nn.relu]
    predict = [Conv(width, padding=1, kernel_init=head_init, bias_init=nn.initializers.constant(bias),
                    dtype=self.dtype, name=name) for name, width, bias in self.predictions]
    outputs = [[] for _ in predict]
    for x in maps:
      for layer in layers:
        x = layer(x)
      for level, conv in zip(outputs, predict, strict=True):
        level.append(conv(x).reshape(x.shape[0], -1, conv.features))
    return [jnp.concatenate(level, axis=1).astype(jnp.float32) for level in outputs]


def fcos_resnet50_fpn(*, num_classes: int = 91, norm: str = 'batch', head_norm: str = 'group', extra: str = 'p6p7',
                      dtype: Any = jnp.float32) -> FCOS:
  """FCOS with ResNet-50, as in torchvision.

  Args:
    num_classes: K; 91 for torchvision's checkpoints, whose class 0 no object has.
    norm: of the backbone, as in `layers.make_norm`; 'frozen' where it begins with weights that were trained before.
    head_norm, dtype: as in `FCOS`.
    extra: as in `fpn.FeaturePyramid`; 'p6p7_c5' is the paper's.

  >>> fcos_resnet50_fpn().level_sizes((320, 416))
  (2080, 520, 130, 35, 12)
  """
  body = resnet50(num_classes=0, norm=norm, dtype=dtype)
  return FCOS(body, ('layer2', 'layer3', 'layer4'), num_classes, head_norm=head_norm, extra=extra, dtype=dtype)


def fcos_small(*, num_classes: int = 91, width: int = 16, convs: int = 2, norm: str = 'batch',
               head_norm: str = 'group', prior: float = 0.01, dtype: Any = jnp.float32) -> FCOS:
  """FCOS with a small Darknet and levels of stride 8 and 16, for canvases of about 100 pixels on a CPU.

  Args:
    num_classes, convs, head_norm, prior, dtype: as in `FCOS`.
    width: channels of the body's first convolution; those of the pyramid are four times as many.
    norm: of the body and of the pyramid, as in `layers.make_norm`.

  >>> fcos_small(num_classes=10).level_sizes((96, 128))
  (192, 48)
  """
  body, levels = fpn.small_body(width, norm, dtype)
  return FCOS(body, levels, num_classes, FCOS_SIZES[:2], convs, head_norm, prior, 4 * width, 'none', norm, dtype)
