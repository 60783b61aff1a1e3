"""Flax Linen modules, one paper a file: images in, logits or raw predictions out.

Every model takes `[B, H, W, 3]` and `train=`, has a compute `dtype`, float32 parameters and float32 results, and knows
no loss, target or configuration. Constructors take options by name only; the module they give is frozen and hashable.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any

import flax.linen as nn

from vision_jax.conventions import check_options, find, option_names
from vision_jax.models.classification import (
    alexnet,
    convnext,
    darknet,
    densenet,
    efficientnet,
    googlenet,
    inception,
    maxvit,
    mnasnet,
    mobilenetv1,
    mobilenetv2,
    mobilenetv3,
    regnet,
    resnet,
    shufflenet,
    squeezenet,
    swin,
    vgg,
    vit,
)
from vision_jax.models.classification.lenet import lenet5, lenet5_original
from vision_jax.models.detection import detr, faster_rcnn, fcos, retinanet, ssd, yolov1, yolov2, yolov3
from vision_jax.models.segmentation.unet import unet, unet_small

MODELS: dict[str, Callable[..., nn.Module]] = {
    'lenet5': lenet5,
    'lenet5_original': lenet5_original,
    'resnet18': resnet.resnet18,
    'resnet34': resnet.resnet34,
    'resnet50': resnet.resnet50,
    'resnet101': resnet.resnet101,
    'resnet152': resnet.resnet152,
    'resnext50_32x4d': resnet.resnext50_32x4d,
    'resnext101_32x8d': resnet.resnext101_32x8d,
    'resnext101_64x4d': resnet.resnext101_64x4d,
    'wide_resnet50_2': resnet.wide_resnet50_2,
    'wide_resnet101_2': resnet.wide_resnet101_2,
    'densenet121': densenet.densenet121,
    'densenet161': densenet.densenet161,
    'densenet169': densenet.densenet169,
    'densenet201': densenet.densenet201,
    'shufflenet_v2_x0_5': shufflenet.shufflenet_v2_x0_5,
    'shufflenet_v2_x1_0': shufflenet.shufflenet_v2_x1_0,
    'shufflenet_v2_x1_5': shufflenet.shufflenet_v2_x1_5,
    'shufflenet_v2_x2_0': shufflenet.shufflenet_v2_x2_0,
    'regnet_x_400mf': regnet.regnet_x_400mf,
    'regnet_x_800mf': regnet.regnet_x_800mf,
    'regnet_x_1_6gf': regnet.regnet_x_1_6gf,
    'regnet_x_3_2gf': regnet.regnet_x_3_2gf,
    'regnet_x_8gf': regnet.regnet_x_8gf,
    'regnet_x_16gf': regnet.regnet_x_16gf,
    'regnet_x_32gf': regnet.regnet_x_32gf,
    'regnet_y_400mf': regnet.regnet_y_400mf,
    'regnet_y_800mf': regnet.regnet_y_800mf,
    'regnet_y_1_6gf': regnet.regnet_y_1_6gf,
    'regnet_y_3_2gf': regnet.regnet_y_3_2gf,
    'regnet_y_8gf': regnet.regnet_y_8gf,
    'regnet_y_16gf': regnet.regnet_y_16gf,
    'regnet_y_32gf': regnet.regnet_y_32gf,
    'regnet_y_128gf': regnet.regnet_y_128gf,
    'alexnet': alexnet.alexnet,
    'alexnet_original': alexnet.alexnet_original,
    'vgg11': vgg.vgg11,
    'vgg13': vgg.vgg13,
    'vgg16': vgg.vgg16,
    'vgg19': vgg.vgg19,
    'vgg11_bn': vgg.vgg11_bn,
    'vgg13_bn': vgg.vgg13_bn,
    'vgg16_bn': vgg.vgg16_bn,
    'vgg19_bn': vgg.vgg19_bn,
    'squeezenet1_0': squeezenet.squeezenet1_0,
    'squeezenet1_1': squeezenet.squeezenet1_1,
    'googlenet': googlenet.googlenet,
    'inception_v3': inception.inception_v3,
    'mobilenet_v1': mobilenetv1.mobilenet_v1,
    'mobilenet_v2': mobilenetv2.mobilenet_v2,
    'mobilenet_v3_large': mobilenetv3.mobilenet_v3_large,
    'mobilenet_v3_small': mobilenetv3.mobilenet_v3_small,
    'mnasnet0_5': mnasnet.mnasnet0_5,
    'mnasnet0_75': mnasnet.mnasnet0_75,
    'mnasnet1_0': mnasnet.mnasnet1_0,
    'mnasnet1_3': mnasnet.mnasnet1_3,
    'efficientnet_b0': efficientnet.efficientnet_b0,
    'efficientnet_b1': efficientnet.efficientnet_b1,
    'efficientnet_b2': efficientnet.efficientnet_b2,
    'efficientnet_b3': efficientnet.efficientnet_b3,
    'efficientnet_b4': efficientnet.efficientnet_b4,
    'efficientnet_b5': efficientnet.efficientnet_b5,
    'efficientnet_b6': efficientnet.efficientnet_b6,
    'efficientnet_b7': efficientnet.efficientnet_b7,
    'efficientnet_v2_s': efficientnet.efficientnet_v2_s,
    'efficientnet_v2_m': efficientnet.efficientnet_v2_m,
    'efficientnet_v2_l': efficientnet.efficientnet_v2_l,
    'convnext_tiny': convnext.convnext_tiny,
    'convnext_small': convnext.convnext_small,
    'convnext_base': convnext.convnext_base,
    'convnext_large': convnext.convnext_large,
    'vit_b_16': vit.vit_b_16,
    'vit_b_32': vit.vit_b_32,
    'vit_l_16': vit.vit_l_16,
    'vit_l_32': vit.vit_l_32,
    'vit_h_14': vit.vit_h_14,
    'swin_t': swin.swin_t,
    'swin_s': swin.swin_s,
    'swin_b': swin.swin_b,
    'swin_v2_t': swin.swin_v2_t,
    'swin_v2_s': swin.swin_v2_s,
    'swin_v2_b': swin.swin_v2_b,
    'maxvit_t': maxvit.maxvit_t,
    'darknet19': darknet.darknet19,
    'darknet53': darknet.darknet53,
    'extraction': darknet.extraction,
    'darknet_small': darknet.darknet_small,
    'yolov1': yolov1.yolov1,
    'yolov1_darknet': yolov1.yolov1_darknet,
    'yolov1_tiny': yolov1.yolov1_tiny,
    'yolov1_small': yolov1.yolov1_small,
    'yolov2': yolov2.yolov2,
    'yolov2_tiny': yolov2.yolov2_tiny,
    'yolov2_small': yolov2.yolov2_small,
    'yolov3': yolov3.yolov3,
    'yolov3_spp': yolov3.yolov3_spp,
    'yolov3_tiny': yolov3.yolov3_tiny,
    'yolov3_small': yolov3.yolov3_small,
    'detr_resnet50': detr.detr_resnet50,
    'detr_resnet50_dc5': detr.detr_resnet50_dc5,
    'detr_resnet101': detr.detr_resnet101,
    'detr_resnet101_dc5': detr.detr_resnet101_dc5,
    'detr_small': detr.detr_small,
    'retinanet_resnet50_fpn': retinanet.retinanet_resnet50_fpn,
    'retinanet_small': retinanet.retinanet_small,
    'fcos_resnet50_fpn': fcos.fcos_resnet50_fpn,
    'fcos_small': fcos.fcos_small,
    'ssd300_vgg16': ssd.ssd300_vgg16,
    'ssd512_vgg16': ssd.ssd512_vgg16,
    'ssdlite320_mobilenet_v3_large': ssd.ssdlite320_mobilenet_v3_large,
    'ssd_small': ssd.ssd_small,
    'fasterrcnn_resnet50_fpn': faster_rcnn.fasterrcnn_resnet50_fpn,
    'fasterrcnn_mobilenet_v3_large_fpn': faster_rcnn.fasterrcnn_mobilenet_v3_large_fpn,
    'fasterrcnn_mobilenet_v3_large_320_fpn': faster_rcnn.fasterrcnn_mobilenet_v3_large_320_fpn,
    'fasterrcnn_vgg16': faster_rcnn.fasterrcnn_vgg16,
    'fasterrcnn_small': faster_rcnn.fasterrcnn_small,
    'unet': unet,
    'unet_small': unet_small,
}


DTYPES = ('float32', 'bfloat16', 'float16')


def create(name: str, **kwargs: Any) -> nn.Module:
  """The model called `name`, with the options that its constructor knows.

  Args:
    name: a key of `MODELS`.
    **kwargs: options of that constructor (`options(name)` lists them).

  Returns:
    A Linen module, without variables.

  Raises:
    ValueError: an unknown name, option or dtype, with what is close and what is known.

  >>> create('unet_small', num_classes=11).num_classes
  11
  >>> create('resnet19')  # doctest: +ELLIPSIS
  Traceback (most recent call last):
  ValueError: unknown model 'resnet19'; did you mean resnet18, resnet152, resnet101? known: ...
  """
  constructor = find(MODELS, 'model', name)
  check_options(f'model ({name})', options(name), kwargs)
  if isinstance(kwargs.get('dtype'), str) and kwargs['dtype'] not in DTYPES:
    raise ValueError(f'model ({name}) has no dtype {kwargs["dtype"]!r}; known: {", ".join(DTYPES)}')
  return constructor(**kwargs)


def names() -> tuple[str, ...]:
  """The names of all models, in the order of the table."""
  return tuple(MODELS)


def options(name: str) -> tuple[str, ...]:
  """The options of the model called `name`; what makes it that row of its family (its depth, say) is none of them.

  >>> options('lenet5')
  ('num_classes', 'grey', 'dtype')
  """
  constructor = find(MODELS, 'model', name)
  if isinstance(constructor, functools.partial):
    # Rows of a family: what is bound by position makes the row what it is, what is bound by keyword is a default.
    return option_names(constructor.func)[len(constructor.args):]
  return option_names(constructor)
