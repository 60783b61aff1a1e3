"""Writes ssd.npz: outputs and losses of SSD300 and SSDLite320 under weights from a formula, cut to what tests need.

    python tests/golden/make_ssd.py --reference FOLDER

FOLDER holds `dense_outputs.npz` and `dense_shapes.json.gz`, of which SSD300's outputs and names are taken: torch 1.13.0
and torchvision 0.14.1 on a CPU, for one image of 300 x 300. SSDLite320 is run here, on one of 320 x 320; made with
torch 2.13.0 and torchvision 0.28.0 on a CPU, whose `nms` is a loop in this file. Weights, image and objects are those
of `make_detectors.py`, the objects stretched to the canvas: the tests draw them anew. Labels are torch's, of 91 classes
with the background first.
"""

from __future__ import annotations

import argparse
import gzip
import json
import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).resolve().parent
CANVAS = {'ssd300_vgg16': 300, 'ssdlite320_mobilenet_v3_large': 320}
GAIN = {'ssd300_vgg16': 1.0, 'ssdlite320_mobilenet_v3_large': 1.3}
# Kept are every so many default boxes, of their logits every so many rows, and of these every so many classes.
EVERY, ROWS, CLASSES = 20, 4, 3


def keep(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  kept = {'logits': outputs['cls_logits'][::ROWS, ::CLASSES], 'largest': np.abs(outputs['cls_logits']).max(),
          'deltas': outputs['bbox_regression'], 'anchors': outputs['default_boxes'][::EVERY]}
  kept |= {f'detected_{name}': outputs[f'det_{name}'] for name in ('boxes', 'scores')}
  kept['detected_labels'] = outputs['det_labels'].astype(np.int32)
  return kept | {'loss_class': outputs['loss_classification'], 'loss_box': outputs['loss_bbox_regression']}


def greedy(boxes, scores, threshold):
  """torchvision's `nms`, of which this torchvision has no compiled form."""
  import torch
  boxes, order, kept = boxes.numpy(), np.argsort(-scores.numpy(), kind='stable'), []
  area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
  while len(order):
    first, order = order[0], order[1:]
    kept.append(first)
    corner = np.maximum(boxes[first, :2], boxes[order, :2]), np.minimum(boxes[first, 2:], boxes[order, 2:])
    shared = np.prod(np.maximum(corner[1] - corner[0], 0), axis=1)
    with np.errstate(invalid='ignore'):  # 0 / 0 strikes nothing
      order = order[~(shared / (area[first] + area[order] - shared) > threshold)]
  return torch.as_tensor(np.array(kept, np.int64))


def ssdlite() -> tuple[dict[str, tuple[int, ...]], dict[str, np.ndarray]]:
  """Shapes of its state dict, and its outputs."""
  import make_detectors
  import torch
  library = torch.library.Library('torchvision', 'FRAGMENT')
  for name in ('nms', 'qnms'):
    library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
  from torchvision.models.detection import ssdlite320_mobilenet_v3_large
  from torchvision.ops import boxes
  boxes.nms = greedy
  name = 'ssdlite320_mobilenet_v3_large'
  side = CANVAS[name]
  model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
  model.load_state_dict({key: torch.as_tensor(make_detectors.fill(key, tuple(value.shape), GAIN[name]))
                         if value.dtype.is_floating_point else value for key, value in model.state_dict().items()})
  image = torch.as_tensor(make_detectors.pixels(0, (side, side)).transpose(2, 0, 1))
  scale = np.array([side / 416, side / 320] * 2, np.float32)
  target = {'boxes': torch.as_tensor(make_detectors.BOXES * scale),
            'labels': torch.as_tensor(make_detectors.LABELS).long()}
  found = {}
  model.head.register_forward_hook(lambda _, given, out: found.update(out))
  model.anchor_generator.register_forward_hook(lambda _, given, out: found.update(default_boxes=out[0][None]))
  with torch.no_grad():
    detections = model.eval()([image])[0]
    outputs = {key: value[0].numpy() for key, value in found.items()}
    model.train()
    for module in model.modules():
      if isinstance(module, torch.nn.BatchNorm2d):
        module.eval()
    losses = model([image], [target])
  outputs |= {key: outputs[key][::EVERY] for key in ('cls_logits', 'bbox_regression')}
  outputs |= {f'det_{key}': value.numpy() for key, value in detections.items()}
  outputs |= {f'loss_{key}': value.numpy() for key, value in losses.items()}
  return {key: tuple(value.shape) for key, value in model.state_dict().items()}, outputs


def main(reference: pathlib.Path) -> None:
  import make_detectors
  stored, arrays = np.load(reference / 'dense_outputs.npz'), {}
  first = {key.partition('/')[2]: stored[key] for key in stored.files if key.startswith('ssd300_vgg16/')}
  listed = json.loads(gzip.decompress((reference / 'dense_shapes.json.gz').read_bytes()))['ssd300_vgg16']
  for name, (shapes, outputs) in zip(CANVAS, ((dict(listed), first), ssdlite()), strict=True):
    names = {key: tuple(shape) for key, shape in shapes.items() if not key.endswith('num_batches_tracked')}
    for key, value in {'names': make_detectors.digest(names), **keep(outputs)}.items():
      arrays[f'{name}/{key}'] = np.asarray(value)
      print(name, key, np.shape(value), np.asarray(value).nbytes)
  np.savez_compressed(FOLDER / 'ssd.npz', **arrays)


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--reference', type=pathlib.Path, required=True)
  main(parser.parse_args().reference)
