"""All models in two tables: where they come from, how large they are, how much they work, which maps they give.

Detectors stand apart, because their parameters are counted in different ways: torchvision and DETR's authors leave out
the scales and biases of a frozen BatchNorm, and darknet's files hold its statistics too.
"""

from __future__ import annotations

from collections.abc import Iterable
import functools
from typing import Any

from vision_jax import models
from vision_jax.conventions import find
from vision_jax.inspect.layers import Output, Summary, summary

# The image (height, width, channels) that a model's figures are stated for; (224, 224, 3) for those without a row.
IMAGES: dict[str, tuple[int, int, int]] = {
    'efficientnet_b1': (240, 240, 3),
    'efficientnet_b2': (288, 288, 3),
    'efficientnet_b3': (300, 300, 3),
    'efficientnet_b4': (380, 380, 3),
    'efficientnet_b5': (456, 456, 3),
    'efficientnet_b6': (528, 528, 3),
    'efficientnet_b7': (600, 600, 3),
    'efficientnet_v2_s': (384, 384, 3),
    'efficientnet_v2_m': (480, 480, 3),
    'efficientnet_v2_l': (480, 480, 3),
    'inception_v3': (299, 299, 3),
    'lenet5': (32, 32, 3),
    'lenet5_original': (32, 32, 3),
    'regnet_y_128gf': (384, 384, 3),
    'swin_v2_t': (256, 256, 3),
    'swin_v2_s': (256, 256, 3),
    'swin_v2_b': (256, 256, 3),
    'unet': (572, 572, 1),
    'unet_small': (96, 128, 3),
    'vit_h_14': (518, 518, 3),
    'yolov1': (448, 448, 3),
    'yolov1_darknet': (448, 448, 3),
    'yolov1_tiny': (448, 448, 3),
    'yolov2': (416, 416, 3),
    'yolov2_tiny': (416, 416, 3),
    'yolov3': (416, 416, 3),
    'yolov3_spp': (608, 608, 3),
    'yolov3_tiny': (416, 416, 3),
    **dict.fromkeys(('detr_resnet50', 'detr_resnet50_dc5', 'detr_resnet101', 'detr_resnet101_dc5',
                     'fcos_resnet50_fpn', 'retinanet_resnet50_fpn'), (800, 1066, 3)),
    # Anchors want sides that the strides divide.
    **dict.fromkeys(('fasterrcnn_resnet50_fpn', 'fasterrcnn_mobilenet_v3_large_fpn'), (800, 1056, 3)),
    'fasterrcnn_mobilenet_v3_large_320_fpn': (320, 416, 3),
    'fasterrcnn_vgg16': (608, 800, 3),
    'ssd300_vgg16': (300, 300, 3),
    'ssd512_vgg16': (512, 512, 3),
    'ssdlite320_mobilenet_v3_large': (320, 320, 3),
    **dict.fromkeys(('darknet_small', 'detr_small', 'fasterrcnn_small', 'fcos_small', 'retinanet_small', 'ssd_small',
                     'yolov1_small', 'yolov2_small', 'yolov3_small'), (96, 128, 3)),
}
# Options without which a model does not take that image, or is not the one of the paper.
OPTIONS: dict[str, dict[str, Any]] = {
    'unet': {'padding': 'valid'},
    'vit_h_14': {'image_size': 518},
}
# Where a model comes from; the longest beginning of its name counts.
PAPERS: dict[str, tuple[str, str]] = {
    'alexnet': ('One weird trick', '1404.5997'),
    'alexnet_original': ('AlexNet', 'NeurIPS 2012'),
    'convnext': ('ConvNeXt', '2201.03545'),
    'darknet19': ('YOLO9000', '1612.08242'),
    'darknet53': ('YOLOv3', '1804.02767'),
    'darknet_small': ('YOLOv3', '1804.02767'),
    'densenet': ('DenseNet', '1608.06993'),
    'detr': ('DETR', '2005.12872'),
    'efficientnet': ('EfficientNet', '1905.11946'),
    'efficientnet_v2': ('EfficientNetV2', '2104.00298'),
    'extraction': ('YOLO', '1506.02640'),
    'fasterrcnn': ('Faster R-CNN', '1506.01497'),
    'fcos': ('FCOS', '1904.01355'),
    'googlenet': ('GoogLeNet', '1409.4842'),
    'inception_v3': ('Inception v3', '1512.00567'),
    'lenet5': ('LeNet-5', 'Proc. IEEE 1998'),
    'maxvit': ('MaxViT', '2204.01697'),
    'mnasnet': ('MnasNet', '1807.11626'),
    'mobilenet_v1': ('MobileNet', '1704.04861'),
    'mobilenet_v2': ('MobileNetV2', '1801.04381'),
    'mobilenet_v3': ('MobileNetV3', '1905.02244'),
    'regnet': ('RegNet', '2003.13678'),
    'resnet': ('ResNet', '1512.03385'),
    'resnext': ('ResNeXt', '1611.05431'),
    'retinanet': ('RetinaNet', '1708.02002'),
    'shufflenet_v2': ('ShuffleNet V2', '1807.11164'),
    'squeezenet': ('SqueezeNet', '1602.07360'),
    'ssd': ('SSD', '1512.02325'),
    'ssdlite': ('MobileNetV2', '1801.04381'),
    'swin': ('Swin', '2103.14030'),
    'swin_v2': ('Swin V2', '2111.09883'),
    'unet': ('U-Net', '1505.04597'),
    'vgg': ('VGG', '1409.1556'),
    'vit': ('ViT', '2010.11929'),
    'wide_resnet': ('Wide ResNet', '1605.07146'),
    'yolov1': ('YOLO', '1506.02640'),
    'yolov2': ('YOLO9000', '1612.08242'),
    'yolov3': ('YOLOv3', '1804.02767'),
}
DETECTORS = ('model', 'paper', 'classes', 'parameters', "of them BatchNorm's", 'statistics', 'GMAC', 'GFLOP', 'image')
HEADER = ('model', 'paper', 'parameters', 'GMAC', 'GFLOP', 'image', 'maps: channels / stride')


def image(name: str) -> tuple[int, int, int]:
  """The (height, width, channels) that the figures of the model called `name` are stated for.

  >>> image('resnet18'), image('inception_v3')
  ((224, 224, 3), (299, 299, 3))
  """
  return IMAGES.get(name, (224, 224, 3))


def paper(name: str) -> str:
  """Where the model called `name` comes from, as markdown.

  Raises:
    ValueError: there is no such model, or none of its family in `PAPERS`.

  >>> paper('wide_resnet50_2')
  '[Wide ResNet](https://arxiv.org/abs/1605.07146)'
  """
  find(models.MODELS, 'model', name)
  family = max((start for start in PAPERS if name.startswith(start)), key=len, default=None)
  if family is None:
    raise ValueError(f'zoo: no paper for the model {name!r}; add its family to PAPERS')
  title, place = PAPERS[family]
  return f'[{title}](https://arxiv.org/abs/{place})' if place[:4].isdigit() else f'{title} ({place})'


def is_detector(name: str) -> bool:
  """Whether the model called `name` finds objects, and stands in the second table.

  >>> is_detector('ssd300_vgg16'), is_detector('vgg16')
  (True, False)
  """
  constructor = find(models.MODELS, 'model', name)
  return '.detection.' in getattr(constructor, 'func', constructor).__module__


@functools.cache
def sheet(name: str) -> Summary:
  """The summary of the model called `name`, on one image of its size.

  >>> sheet('resnet18').parameters
  11689512
  """
  return summary(models.create(name, **OPTIONS.get(name, {})), (1, *image(name)))


def row(name: str) -> str:
  """The line of the model called `name` in the table.

  >>> row('lenet5').split(' | ')[1:]
  ['LeNet-5 (Proc. IEEE 1998)', '61,706', '0.000417', '0.000833', '32 x 32', '`c1` 6 / 1, `c3` 16 / 2, `s4` 16 / 4 |']
  """
  found = sheet(name)
  height, width, _ = image(name)
  figures = (f'{found.parameters:,}', _thousand_millions(found.multiply_adds), _thousand_millions(found.flops))
  after = (', '.join(map(_map, found.maps)),)
  if is_detector(name):
    norms = sum(layer.parameters for layer in found.layers if layer.kind == 'BatchNorm')
    classes = models.create(name, **OPTIONS.get(name, {})).num_classes
    figures = (str(classes), figures[0], f'{norms:,}', f'{found.statistics:,}', *figures[1:])
    after = ()
  return f'| {" | ".join((f"`{name}`", paper(name), *figures, f"{height} x {width}", *after))} |'


def table(names: Iterable[str]) -> str:
  """The models of these names as a markdown table; all of them detectors, or none.

  >>> head, rule, line = table(['lenet5']).splitlines()
  >>> print(head)
  | model | paper | parameters | GMAC | GFLOP | image | maps: channels / stride |
  >>> line == row('lenet5')
  True
  """
  names = tuple(names)
  header, rule = (DETECTORS, '|---|---|--:|--:|--:|--:|--:|--:|---|') if any(map(is_detector, names)) else (
      HEADER, '|---|---|--:|--:|--:|---|---|')
  return '\n'.join([f'| {" | ".join(header)} |', rule, *map(row, names)])


def _map(output: Output) -> str:
  stride = 'x'.join(map(str, sorted(set(output.stride)))) if output.stride else '?'
  return f'`{output.name}` {output.shape[-1]} / {stride}'


def _thousand_millions(count: int) -> str:
  return f'{count / 1e9:,.3f}' if count >= 1e8 else f'{count / 1e9:.3g}'
