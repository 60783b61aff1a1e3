"""Faster R-CNN: a network proposes regions, and a second one says what each of them holds and where exactly.

Shaoqing Ren, Kaiming He, Ross Girshick and Jian Sun, Faster R-CNN: Towards Real-Time Object Detection with Region
Proposal Networks, arXiv 1506.01497, section 3 and Figure 2; with a pyramid as in Tsung-Yi Lin et al., Feature Pyramid
Networks for Object Detection, arXiv 1612.03144, section 4. A anchors at a pixel, S regions, K classes:

| part | ResNet-50 and pyramid | VGG16, as in the paper | on |
|---|---|---|---|
| backbone | P2 to P5 and P6 (`fpn.py`), 256 channels | conv5_3: stride 16, 512 channels | the image |
| rpn.head.conv_0_0 | 3x3, 256, ReLU | 3x3, 512, ReLU | each level |
| rpn.head.cls_logits, bbox_pred | 1x1, A = 3 and 4 A | 1x1, A = 9 and 4 A | each level |
| crops | RoIAlign 7 x 7 on P2 to P5, by the region's size | RoI pooling 7 x 7 | S regions |
| roi_heads.box_head.fc6, fc7 | fully connected, 1024, ReLU, twice | 4096 and dropout, twice | S crops |
| roi_heads.box_predictor.cls_score, bbox_pred | K + 1 and 4 (K + 1) | the same | S crops |

The stages are methods: `features`, `propose` and `heads`. In training a task samples regions between the last two, so
nothing here sees a target; a head for masks or keypoints is one more method on maps and regions. Class 0 of the second
network is the background, which `ops.faster_rcnn_decode` drops: torchvision's checkpoints of 91 classes have K = 90.

Differs from the paper: the objectness is one logit and not a softmax of two, and all is trained in one pass, as in its
authors' later code; anchors are torchvision's, around the corners of the cells and rounded to whole pixels.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax import ops
from vision_jax.models.classification.mobilenetv3 import mobilenet_v3_large
from vision_jax.models.classification.resnet import resnet50
from vision_jax.models.classification.vgg import vgg16
from vision_jax.models.detection import fpn
from vision_jax.models.detection.fpn import LevelSizes, Maps, PyramidDetector
from vision_jax.models.layers import Conv, ConvNorm, FlatDense, linear_init
from vision_jax.models.noise import Dropout
from vision_jax.ops.anchors import RATIOS, RPN_SIZES

Array = jax.Array

head_init = nn.initializers.normal(0.01)
box_init = nn.initializers.normal(0.001)

# Sizes and ratios of anchors on one level: of the paper, and of texts that aim at smaller objects.
ANCHORS: dict[str, tuple[LevelSizes, tuple[float, ...]]] = {
    'paper': (((128.0, 256.0, 512.0),), RATIOS),
    'smaller': (((64.0, 128.0, 256.0),), (0.5, 1.0, 1.5)),
}
# For digits of 12 to 48 pixels, higher than wide, on levels of stride 8 and 16.
DIGIT_SIZES: LevelSizes = ((14.0, 20.0), (28.0, 38.0))
DIGIT_RATIOS = (1.4,)
POWERS_OF_TWO = tuple(1 << i for i in range(10))


class FasterRCNN(PyramidDetector):
  """A backbone, a region proposal network and the heads of Fast R-CNN.

  Args:
    body: the backbone, a module whose `features(x, train=)` gives maps `[B, h, w, C]` by name.
    levels: the names of its maps, fine to coarse, for the pyramid or by themselves.
    num_classes: K, without the background.
    strides: of the first of these maps, from which regions are cropped, each from that which suits its size; powers of
      two, each twice the one before.
    sizes: for each map that comes out of the pyramid the square roots of its anchors' areas, in pixels; as many at
      each.
    ratios: height over width of the anchors.
    channels: of the pyramid; 0 for none, where anchors and regions lie on the body's maps themselves.
    extra, pyramid_norm: of the pyramid, as `fpn.FeaturePyramid` has them.
    pre_nms: the most anchors of a level that are proposed before suppression, in training and in prediction.
    post_nms: the most proposals of an image after it, P, in training and in prediction.
    rpn_iou_threshold, rpn_score_threshold: as in `ops.rpn_proposals`; None for its defaults.
    pooling: how regions are cropped: 'align' (RoIAlign, two samples a bin along each axis), or 'max' (the paper's RoI
      pooling, from one map).
    pool_size: bins of a crop along each axis.
    hidden: features of the two fully connected layers.
    dropout: after each of them, in training.
    dtype: the compute dtype of pyramid and heads.

  Returns:
    From `[B, H, W, 3]`, all float32 but the last: `objectness [B, A]` and `deltas [B, A, 4]` for the A anchors that
    `anchors((H, W))` gives; `logits [B, P, K + 1]` and `box_deltas [B, P, K + 1, 4]` for the regions `proposals
    [B, P, 4]` that hold where bool `proposals_valid [B, P]`.

  Raises:
    ValueError: levels with different numbers of sizes, other than one stride with 'max', an unknown `pooling`, strides
      that do not double or are not those of the maps, numbers of proposals that are not two of at least 1.

  >>> model = fasterrcnn_small(num_classes=10, post_nms=(50, 20))
  >>> outputs = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 96, 128, 3)))[0]
  >>> outputs['objectness'].shape, outputs['proposals'].shape, outputs['logits'].shape
  ((2, 480), (2, 20, 4), (2, 20, 11))
  """

  body: nn.Module
  levels: tuple[str, ...]
  num_classes: int
  strides: tuple[int, ...] = (4, 8, 16, 32)
  sizes: LevelSizes = RPN_SIZES
  ratios: tuple[float, ...] = RATIOS
  channels: int = 256
  extra: str = 'pool'
  pyramid_norm: str = 'none'
  pre_nms: tuple[int, int] = (2000, 1000)
  post_nms: tuple[int, int] = (2000, 1000)
  rpn_iou_threshold: float | None = None
  rpn_score_threshold: float | None = None
  pooling: str = 'align'
  pool_size: int = 7
  hidden: int = 1024
  dropout: float = 0.0
  dtype: Any = jnp.float32

  def setup(self):
    if self.pooling not in ('align', 'max') or (self.pooling == 'max' and len(self.strides) != 1):
      raise ValueError(f"FasterRCNN: pooling {self.pooling!r} with strides {self.strides}; give 'align', or 'max' with "
                       'one stride')
    finest = self.strides[0] if self.strides else 0
    if finest not in POWERS_OF_TWO or tuple(self.strides) != tuple(finest * 2 ** i for i in range(len(self.strides))):
      raise ValueError(f'FasterRCNN: strides {self.strides}; give powers of two, each twice the one before')
    two_counts(pre_nms=self.pre_nms, post_nms=self.post_nms)
    self.backbone = self._backbone()
    self.rpn = RegionProposals(self._per_pixel(), self.dtype)
    self.roi_heads = RegionHeads(self.num_classes, self.hidden, self.dropout, self.dtype)

  def __call__(self, x: Array, *, image_size: Array | None = None, train: bool = False) -> dict[str, Array]:
    """All stages, regions being what is proposed: prediction. `image_size [B, 2]`: of the contents; the canvas's when
    left out."""
    maps = self.features(x, train=train)
    outputs = self.propose(maps, x.shape[1:3], image_size, train=train)
    return outputs | self.heads(maps, outputs['proposals'], outputs['proposals_valid'], train=train)

  def features(self, x: Array, *, train: bool = False) -> Maps:
    """The maps of images `[B, H, W, 3]`, fine to coarse."""
    return self.backbone(x, train=train)

  def propose(self, maps: Maps, canvas: tuple[int, int], image_size: Array | None = None, *,
              train: bool = False) -> dict[str, Array]:
    """`objectness`, `deltas`, `proposals` and `proposals_valid` out of the maps of a canvas (h, w).

    Proposals lie inside the contents, `image_size [B, 2]` or the canvas, and pass no gradient.
    """
    anchors = self.anchors(canvas)
    fpn.check_strides('FasterRCNN', tuple(m.shape[1:3] for m in maps), canvas, self.strides)
    objectness, deltas = self.rpn(maps, train=train)
    options = {'iou_threshold': self.rpn_iou_threshold, 'score_threshold': self.rpn_score_threshold}
    found = ops.rpn_proposals(
        objectness, deltas, anchors=anchors, image_size=jnp.array(canvas) if image_size is None else
        image_size, level_sizes=tuple(m.shape[1] * m.shape[2] * self._per_pixel() for m in maps),
        pre_nms=self.pre_nms[0 if train else 1], post_nms=self.post_nms[0 if train else 1],
        **{name: value for name, value in options.items() if value is not None})
    return {'objectness': objectness, 'deltas': deltas, 'proposals': found['boxes'], 'proposals_valid': found['valid']}

  def heads(self, maps: Maps, boxes: Array, valid: Array, *, train: bool = False) -> dict[str, Array]:
    """`logits [B, S, K + 1]` and `box_deltas [B, S, K + 1, 4]` of regions `[B, S, 4]`, bool `[B, S]` of maps.

    Deltas are as in `ops.encode_deltas` with variances of (0.1, 0.1, 0.2, 0.2). Invalid slots hold those of a crop of
    zeros.
    """
    return self.roi_heads(self.crops(maps, boxes, valid, self.pool_size), train=train)

  def crops(self, maps: Maps, boxes: Array, valid: Array, size: int) -> Array:
    """float32 `[B, S, size, size, C]`: what the maps hold in regions; for a head beside `heads`, of a size of its
    own."""
    common = {'output_size': (size, size), 'valid': valid}
    if self.pooling == 'max':
      return ops.roi_pool(maps[0], boxes, stride=self.strides[0], **common)
    return ops.multilevel_roi_align(maps[:len(self.strides)], boxes, strides=self.strides, **common)


class RegionProposals(nn.Module):
  """The region proposal network: a score and an offset for every anchor.

  Args:
    num_anchors: at every pixel.
    dtype: the compute dtype.

  Returns:
    float32 `[B, A]` logits and `[B, A, 4]` deltas, from maps `[B, h, w, C]`: level by level, row, column, anchor.

  >>> rpn = RegionProposals(3)
  >>> [leaf.shape for leaf in jax.eval_shape(rpn.init_with_output, jax.random.key(0), (jnp.zeros((1, 4, 6, 8)),))[0]]
  [(1, 72), (1, 72, 4)]
  """

  num_anchors: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, maps: Maps, *, train: bool = False) -> tuple[Array, Array]:
    logits, deltas = RPNHead(self.num_anchors, self.dtype, name='head')(maps, train=train)
    logits = [x.reshape(x.shape[0], -1) for x in logits]
    deltas = [x.reshape(x.shape[0], -1, 4) for x in deltas]
    return jnp.concatenate(logits, axis=1).astype(jnp.float32), jnp.concatenate(deltas, axis=1).astype(jnp.float32)


class RPNHead(nn.Module):
  """A convolution and two predictions at every pixel, the same for every level.

  Args:
    num_anchors: at every pixel.
    dtype: the compute dtype.

  Returns:
    For each map `[B, h, w, A]` logits, and for each `[B, h, w, 4 A]` deltas.

  >>> found = jax.eval_shape(RPNHead(3).init_with_output, jax.random.key(0), (jnp.zeros((1, 4, 6, 8)),))[0]
  >>> found[0][0].shape, found[1][0].shape
  ((1, 4, 6, 3), (1, 4, 6, 12))
  """

  num_anchors: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, maps: Maps, *, train: bool = False) -> tuple[list[Array], list[Array]]:
    common = {'kernel_init': head_init, 'dtype': self.dtype}
    conv = ConvNorm(maps[0].shape[-1], norm='none', parts=('0', '1'), name='conv_0', **common)
    score = Conv(self.num_anchors, 1, name='cls_logits', **common)
    offset = Conv(4 * self.num_anchors, 1, name='bbox_pred', **common)
    hidden = [conv(x, train=train) for x in maps]
    return [score(x) for x in hidden], [offset(x) for x in hidden]


class RegionHeads(nn.Module):
  """What a region holds, and where in it: two fully connected layers, and one more for each question.

  Args:
    num_classes: K, without the background.
    hidden: features of the two layers.
    dropout: after each of them, in training.
    dtype: the compute dtype.

  Returns:
    float32 `logits [B, S, K + 1]` and `box_deltas [B, S, K + 1, 4]`, from crops `[B, S, h, w, C]`.

  >>> heads = RegionHeads(10, 16)
  >>> found = jax.eval_shape(heads.init_with_output, jax.random.key(0), jnp.zeros((2, 5, 7, 7, 4)))[0]
  >>> found['logits'].shape, found['box_deltas'].shape
  ((2, 5, 11), (2, 5, 11, 4))
  """

  num_classes: int
  hidden: int = 1024
  dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, crops: Array, *, train: bool = False) -> dict[str, Array]:
    x = BoxHead(self.hidden, self.dropout, self.dtype, name='box_head')(crops, train=train)
    logits, deltas = BoxPredictor(self.num_classes, self.dtype, name='box_predictor')(x)
    return {'logits': logits, 'box_deltas': deltas.reshape(*logits.shape, 4)}


class BoxHead(nn.Module):
  """Two fully connected layers on every crop.

  Args:
    hidden, dropout, dtype: as in `RegionHeads`.

  Returns:
    `[B, S, hidden]` in `dtype`, from `[B, S, h, w, C]`.

  >>> jax.eval_shape(BoxHead(16).init_with_output, jax.random.key(0), jnp.zeros((2, 5, 7, 7, 4)))[0].shape
  (2, 5, 16)
  """

  hidden: int
  dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, crops: Array, *, train: bool = False) -> Array:
    regions = crops.shape[0] * crops.shape[1]  # which may be none
    x = FlatDense(self.hidden, self.dtype, name='fc6')(crops.reshape(regions, *crops.shape[2:]))
    x = nn.relu(x).reshape(*crops.shape[:2], self.hidden)
    x = Dropout(self.dropout, name='drop6')(x, train=train)
    x = nn.relu(nn.Dense(self.hidden, kernel_init=linear_init, dtype=jnp.dtype(self.dtype), name='fc7')(x))
    return Dropout(self.dropout, name='drop7')(x, train=train)


class BoxPredictor(nn.Module):
  """Class logits, the background's first, and offsets for each of these classes.

  Args:
    num_classes, dtype: as in `RegionHeads`.

  Returns:
    float32 `[B, S, K + 1]` and `[B, S, 4 (K + 1)]`, from `[B, S, C]`.

  >>> found = jax.eval_shape(BoxPredictor(10).init_with_output, jax.random.key(0), jnp.zeros((2, 5, 16)))[0]
  >>> [leaf.shape for leaf in found]
  [(2, 5, 11), (2, 5, 44)]
  """

  num_classes: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, Array]:
    classes, dtype = self.num_classes + 1, jnp.dtype(self.dtype)
    logits = nn.Dense(classes, kernel_init=head_init, dtype=dtype, name='cls_score')(x)
    deltas = nn.Dense(4 * classes, kernel_init=box_init, dtype=dtype, name='bbox_pred')(x)
    return logits.astype(jnp.float32), deltas.astype(jnp.float32)


def two_counts(**counts: tuple[int, int]) -> dict[str, tuple[int, int]]:
  """Numbers of proposals in training and in prediction as they are; a ValueError names one that is not two of at
  least 1.

  >>> two_counts(post_nms=[64, 48])
  {'post_nms': (64, 48)}
  """
  for name, given in counts.items():
    if not isinstance(given, (tuple, list)) or len(given) != 2 or min(given) < 1:
      raise ValueError(f'FasterRCNN: {name} is {given}; give two numbers of at least 1, in training and in prediction')
  return {name: tuple(given) for name, given in counts.items()}


def fasterrcnn_resnet50_fpn(*, num_classes: int = 90, norm: str = 'batch', hidden: int = 1024,
                            pre_nms: tuple[int, int] = (2000, 1000), post_nms: tuple[int, int] = (2000, 1000),
                            dtype: Any = jnp.float32) -> FasterRCNN:
  """Faster R-CNN with ResNet-50 and a pyramid, as in torchvision.

  Args:
    num_classes: K; 90 for torchvision's checkpoints.
    norm: of the backbone, as in `layers.make_norm`; 'frozen' where it begins with weights that were trained before.
    hidden, pre_nms, post_nms, dtype: as in `FasterRCNN`.

  >>> fasterrcnn_resnet50_fpn().level_sizes((320, 416))
  (24960, 6240, 1560, 390, 105)
  """
  body = resnet50(num_classes=0, norm=norm, dtype=dtype)
  return FasterRCNN(body, ('layer1', 'layer2', 'layer3', 'layer4'), num_classes, hidden=hidden, dtype=dtype,
                    **two_counts(pre_nms=pre_nms, post_nms=post_nms))


def fasterrcnn_mobilenet_v3_large_fpn(*, num_classes: int = 90, norm: str = 'batch', hidden: int = 1024,
                                      pre_nms: tuple[int, int] = (2000, 1000),
                                      post_nms: tuple[int, int] = (2000, 1000),
                                      dtype: Any = jnp.float32) -> FasterRCNN:
  """Faster R-CNN with MobileNetV3-Large, as in torchvision: two maps of stride 32 and half of it, 15 anchors a pixel.

  Regions are all cropped from the first map, and what scores below 0.05 is not proposed.

  Args:
    num_classes, norm, hidden, pre_nms, post_nms, dtype: as in `fasterrcnn_resnet50_fpn`.

  >>> fasterrcnn_mobilenet_v3_large_fpn().level_sizes((320, 416))
  (1950, 1950, 525)
  """
  # Not the eps and momentum of the classifier: torchvision builds this body with its BatchNorm's defaults.
  body = mobilenet_v3_large(num_classes=0, norm=norm, eps=1e-5, momentum=0.9, dtype=dtype)
  every_size = tuple(size for level in RPN_SIZES for size in level)
  return FasterRCNN(body, ('features_13', 'features_16'), num_classes, (32,), (every_size,) * 3, hidden=hidden,
                    rpn_score_threshold=0.05, dtype=dtype, **two_counts(pre_nms=pre_nms, post_nms=post_nms))


def fasterrcnn_mobilenet_v3_large_320_fpn(*, num_classes: int = 90, norm: str = 'batch', hidden: int = 1024,
                                          pre_nms: tuple[int, int] = (2000, 150),
                                          post_nms: tuple[int, int] = (2000, 150),
                                          dtype: Any = jnp.float32) -> FasterRCNN:
  """`fasterrcnn_mobilenet_v3_large_fpn` for images whose shorter side has 320 pixels: 150 proposals in prediction.

  Args:
    num_classes, norm, hidden, pre_nms, post_nms, dtype: as in `fasterrcnn_resnet50_fpn`.

  >>> fasterrcnn_mobilenet_v3_large_320_fpn().post_nms
  (2000, 150)
  """
  return fasterrcnn_mobilenet_v3_large_fpn(num_classes=num_classes, norm=norm, hidden=hidden, pre_nms=pre_nms,
                                           post_nms=post_nms, dtype=dtype)


def fasterrcnn_vgg16(*, num_classes: int = 90, anchors: str = 'paper', hidden: int = 4096, dropout: float = 0.5,
                     pooling: str = 'max', pre_nms: tuple[int, int] = (12000, 6000),
                     post_nms: tuple[int, int] = (2000, 300), dtype: Any = jnp.float32) -> FasterRCNN:
  """Faster R-CNN with VGG16, as in its paper: nine anchors on conv5_3 of stride 16, RoI pooling, two layers of 4096.

  Args:
    num_classes, hidden, dropout, pooling, pre_nms, post_nms, dtype: as in `FasterRCNN`. The numbers before suppression
      are those of the authors' code.
    anchors: 'paper' (128, 256 and 512 pixels, height over width of 1/2, 1, 2) or 'smaller' (64, 128 and 256, of 1/2, 1,
      3/2).

  Raises:
    ValueError: other anchors.

  >>> fasterrcnn_vgg16().level_sizes((608, 1008))
  (21546,)
  """
  if anchors not in ANCHORS:
    raise ValueError(f'fasterrcnn_vgg16: anchors are {anchors!r}; give one of {", ".join(ANCHORS)}')
  sizes, ratios = ANCHORS[anchors]
  return FasterRCNN(vgg16(num_classes=0, dtype=dtype), ('features_29',), num_classes, (16,), sizes, ratios, 0,
                    pooling=pooling, hidden=hidden, dropout=dropout, dtype=dtype,
                    **two_counts(pre_nms=pre_nms, post_nms=post_nms))


def fasterrcnn_small(*, num_classes: int = 90, width: int = 16, sizes: LevelSizes = DIGIT_SIZES,
                     ratios: tuple[float, ...] = DIGIT_RATIOS, pool_size: int = 5, hidden: int = 256,
                     norm: str = 'batch', pre_nms: tuple[int, int] = (128, 128),
                     post_nms: tuple[int, int] = (64, 48), dtype: Any = jnp.float32) -> FasterRCNN:
  """Faster R-CNN with a small Darknet, for canvases of about 100 pixels on a CPU.

  Args:
    num_classes, sizes, ratios, pool_size, hidden, pre_nms, post_nms, dtype: as in `FasterRCNN`; there are two levels,
      of stride 8 and 16, and regions are cropped from the first.
    width: channels of the body's first convolution; those of the pyramid are four times as many.
    norm: of the body and of the pyramid, as in `layers.make_norm`.

  >>> fasterrcnn_small(num_classes=10).level_sizes((96, 128))
  (384, 96)
  """
  sizes = tuple(tuple(level) for level in sizes)
  body, levels = fpn.small_body(width, norm, dtype)
  return FasterRCNN(body, levels, num_classes, (8,), sizes, tuple(ratios), 4 * width, 'none', norm,
                    pool_size=pool_size, hidden=hidden, dtype=dtype, **two_counts(pre_nms=pre_nms, post_nms=post_nms))
