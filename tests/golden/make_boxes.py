"""Writes boxes.npz: the IoU family, the box coders and FCOS's centerness as torchvision computes them.

    /usr/bin/python3 tests/golden/make_boxes.py

Made with Debian's python3-torchvision: torchvision 0.14.1, torch 1.13.0, NumPy 1.24.2. The inputs are drawn by
`numpy.random.RandomState`, whose streams never change, so only outputs are kept; `draw` is what the tests call.
"""

import pathlib

import numpy as np

WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]


def draw():
  """Boxes, anchors beside them, deltas up to beyond the coder's limit, and distances from points inside a box."""
  random = np.random.RandomState(0)
  corner = random.uniform(-20, 300, (40, 2))
  boxes = np.concatenate([corner, corner + np.exp(random.uniform(0, 6, (40, 2)))], axis=1)
  size = boxes[:, 2:] - boxes[:, :2]
  anchors = boxes + random.uniform(-0.3, 0.3, (40, 4)) * np.tile(size, 2)
  deltas = random.standard_normal((40, 4)) * [1, 1, 4, 4]
  distances = random.uniform(0.01, 5, (40, 4))
  return tuple(array.astype(np.float32) for array in (boxes, anchors, deltas, distances))


def main():
  import torch
  from torchvision import ops
  from torchvision.models.detection import _utils

  arrays = draw()
  boxes, anchors, deltas, distances = map(torch.tensor, arrays)
  found = {'iou': ops.box_iou, 'giou': ops.generalized_box_iou, 'diou': ops.distance_box_iou,
           'ciou': ops.complete_box_iou}
  found = {name: function(boxes, anchors) for name, function in found.items()}
  coders = [_utils.BoxCoder(weights) for weights in WEIGHTS]
  found['encoded'] = torch.stack([coder.encode_single(boxes, anchors) for coder in coders])
  found['decoded'] = torch.stack([coder.decode_single(deltas, anchors) for coder in coders])
  linear = _utils.BoxLinearCoder(normalize_by_size=True)
  found['distances'] = linear.encode(anchors, boxes)
  found['from_distances'] = linear.decode(distances, anchors)
  # The formula of torchvision's FCOSHead.compute_loss, where it stands in the middle of a function.
  across, along = distances[:, [0, 2]], distances[:, [1, 3]]
  found['centerness'] = torch.sqrt(across.min(-1)[0] / across.max(-1)[0] * (along.min(-1)[0] / along.max(-1)[0]))
  assert all(value.isfinite().all() for value in found.values())
  np.savez_compressed(pathlib.Path(__file__).with_name('boxes.npz'), **{k: v.numpy() for k, v in found.items()})


if __name__ == '__main__':
  main()
