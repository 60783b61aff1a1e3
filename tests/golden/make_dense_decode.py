"""Makes `dense_decode.npz`: the detections that torchvision makes of small outputs of RetinaNet, FCOS and SSD.

Made with Debian's python3-torchvision: torchvision 0.14.1, torch 1.13.0, NumPy 1.24.2. The outputs are drawn by
`numpy.random.RandomState`, whose streams never change, so only detections are kept; `draw` is what the tests call.

    /usr/bin/python3 tests/golden/make_dense_decode.py

Two images of different sizes on one canvas, three levels of which each keeps its best `PRE_NMS` pairs; of SSD
each class does.
"""

import pathlib
import types
import zlib

import numpy as np

CANVAS, SIZES = (48, 64), ((48, 64), (30, 41))
STRIDES, CLASSES, PRE_NMS = (8, 16, 32), 3, 25
OPTIONS = {'retinanet': {'score_threshold': 0.3, 'iou_threshold': 0.4},
           'fcos': {'score_threshold': 0.45, 'iou_threshold': 0.5},
           'ssd': {'score_threshold': 0.25, 'iou_threshold': 0.45}}


def draw(name):
  """The outputs in the order of `ops.<name>_decode`, anchors [A, 4], and how many of these each level has."""
  rng = np.random.RandomState(zlib.crc32(name.encode()))
  anchors = [grid(stride) for stride in STRIDES]
  levels = tuple(len(level) for level in anchors)
  normal = lambda *shape: rng.normal(size=(2, sum(levels), *shape)).astype(np.float32)
  if name == 'retinanet':
    outputs = (2 * normal(CLASSES) - 1, 0.7 * normal(4))
  elif name == 'ssd':  # the background first
    outputs = (2 * normal(1 + CLASSES), 3 * normal(4))
  else:  # some distances are 0 on both sides, as after a ReLU
    outputs = (2 * normal(CLASSES), np.maximum(1.5 * normal(4) + 0.5, 0), normal())
  return outputs, np.concatenate(anchors), levels


def grid(stride):
  """Squares of 1.5 strides around the corners of the cells: [h * w, 4]."""
  y, x = np.mgrid[0:CANVAS[0]:stride, 0:CANVAS[1]:stride]
  centre = np.stack([x, y, x, y], -1).reshape(-1, 4)
  return (centre + 0.75 * stride * np.array([-1, -1, 1, 1])).astype(np.float32)


def detections(name):
  """Everything that torchvision keeps of each image."""
  import torch
  from torchvision.models.detection import _utils
  from torchvision.models.detection.fcos import FCOS
  from torchvision.models.detection.retinanet import RetinaNet
  from torchvision.models.detection.ssd import SSD
  outputs, anchors, levels = draw(name)
  per_level = [torch.split(torch.as_tensor(output), levels, dim=1) for output in outputs]
  model = types.SimpleNamespace(score_thresh=OPTIONS[name]['score_threshold'], topk_candidates=PRE_NMS,
                                nms_thresh=OPTIONS[name]['iou_threshold'], detections_per_img=10**6)
  if name == 'ssd':
    model.box_coder = _utils.BoxCoder((10.0, 10.0, 5.0, 5.0))
    head = {'cls_logits': torch.as_tensor(outputs[0]), 'bbox_regression': torch.as_tensor(outputs[1])}
    return SSD.postprocess_detections(model, head, [torch.as_tensor(anchors)] * 2, list(SIZES))
  head = {'cls_logits': per_level[0], 'bbox_regression': per_level[1]}
  if name == 'retinanet':
    model.box_coder, kind = _utils.BoxCoder((1.0, 1.0, 1.0, 1.0)), RetinaNet
  else:
    model.box_coder, kind = _utils.BoxLinearCoder(normalize_by_size=True), FCOS
    head['bbox_ctrness'] = [level[..., None] for level in per_level[2]]
  anchors = [list(torch.split(torch.as_tensor(anchors), levels))] * 2
  return kind.postprocess_detections(model, head, anchors, list(SIZES))


if __name__ == '__main__':
  arrays = {f'{name}/{i}/{key}': value.numpy() for name in OPTIONS for i, found in enumerate(detections(name))
            for key, value in found.items()}
  np.savez_compressed(pathlib.Path(__file__).with_name('dense_decode.npz'), **arrays)
  for key, value in arrays.items():
    print(key, value.shape)
