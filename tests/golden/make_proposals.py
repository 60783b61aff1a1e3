"""Makes `proposals.npz`: the proposals and the detections that torchvision makes of small outputs of a Faster R-CNN.

Made with Debian's python3-torchvision: torchvision 0.14.1, torch 1.13.0, NumPy 1.24.2. The outputs are drawn by
`numpy.random.RandomState`, whose streams never change, so only results are kept; the draws are what the tests call.

    /usr/bin/python3 tests/golden/make_proposals.py

Two images of different sizes on one canvas, three levels of which each proposes its best `PRE_NMS` anchors.
"""

import pathlib
import types

import numpy as np

CANVAS, SIZES = (48, 64), ((48, 64), (30, 41))
STRIDES, CLASSES, PRE_NMS, REGIONS = (8, 16, 32), 3, 20, 24
RPN = {'iou_threshold': 0.5, 'score_threshold': 0.3}
HEADS = {'score_threshold': 0.2, 'iou_threshold': 0.4}


def draw_rpn():
  """objectness [2, A], deltas [2, A, 4], anchors [A, 4] and how many of these each level has.

  Some objectness is so high that its sigmoid is 1 in float32: such anchors tie.
  """
  rng = np.random.RandomState(0)
  anchors = [grid(stride) for stride in STRIDES]
  levels = tuple(len(level) for level in anchors)
  objectness = (16 * rng.normal(size=(2, sum(levels)))).astype(np.float32)
  deltas = (0.7 * rng.normal(size=(2, sum(levels), 4))).astype(np.float32)
  return objectness, deltas, np.concatenate(anchors), levels


def draw_heads():
  """logits [2, P, K + 1], deltas [2, P, K + 1, 4] and proposals [2, P, 4]."""
  rng = np.random.RandomState(1)
  corner = rng.uniform(0, 40, (2, REGIONS, 2))
  proposals = np.concatenate([corner, corner + rng.uniform(4, 24, (2, REGIONS, 2))], -1).astype(np.float32)
  logits = (2 * rng.normal(size=(2, REGIONS, CLASSES + 1))).astype(np.float32)
  return logits, (3 * rng.normal(size=(2, REGIONS, CLASSES + 1, 4))).astype(np.float32), proposals


def grid(stride):
  """Squares of 1.5 strides around the corners of the cells: [h * w, 4]."""
  y, x = np.mgrid[0:CANVAS[0]:stride, 0:CANVAS[1]:stride]
  centre = np.stack([x, y, x, y], -1).reshape(-1, 4)
  return (centre + 0.75 * stride * np.array([-1, -1, 1, 1])).astype(np.float32)


def proposed():
  """Everything that torchvision proposes for each image: boxes and scores."""
  import torch
  from torchvision.models.detection._utils import BoxCoder
  from torchvision.models.detection.rpn import RegionProposalNetwork
  objectness, deltas, anchors, levels = draw_rpn()
  counts = {'training': PRE_NMS, 'testing': PRE_NMS}
  rpn = RegionProposalNetwork(None, None, 0.7, 0.3, 256, 0.5, counts, {'training': 10**6, 'testing': 10**6},
                              RPN['iou_threshold'], RPN['score_threshold'])
  boxes = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode(torch.as_tensor(deltas.reshape(-1, 4)), [torch.as_tensor(anchors)] * 2)
  boxes, scores = rpn.filter_proposals(boxes.reshape(2, -1, 4), torch.as_tensor(objectness), list(SIZES), list(levels))
  return [{'boxes': b, 'scores': s} for b, s in zip(boxes, scores)]


def detected():
  """Everything that torchvision detects in each image: boxes, scores and labels from 1 on."""
  import torch
  from torchvision.models.detection._utils import BoxCoder
  from torchvision.models.detection.roi_heads import RoIHeads
  logits, deltas, proposals = map(torch.as_tensor, draw_heads())
  heads = types.SimpleNamespace(box_coder=BoxCoder((10.0, 10.0, 5.0, 5.0)), score_thresh=HEADS['score_threshold'],
                                nms_thresh=HEADS['iou_threshold'], detections_per_img=10**6)
  found = RoIHeads.postprocess_detections(heads, logits.flatten(0, 1), deltas.reshape(2 * REGIONS, -1),
                                          list(proposals), list(SIZES))
  return [dict(zip(('boxes', 'scores', 'labels'), image)) for image in zip(*found)]


if __name__ == '__main__':
  arrays = {f'{what}/{i}/{key}': value.numpy() for what, images in (('rpn', proposed()), ('heads', detected()))
            for i, found in enumerate(images) for key, value in found.items()}
  np.savez_compressed(pathlib.Path(__file__).with_name('proposals.npz'), **arrays)
  for key, value in arrays.items():
    print(key, value.shape)
