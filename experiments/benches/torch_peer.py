"""The other side of the benchmarks: torchvision's functions, timed in a Python that has it.

Reads one JSON request a line, answers each with one line: {'prepare': function, 'file': npz}, then {'calls': n}.
"""

import json
import os
import sys
import time

import numpy as np
import torch
import torchvision


def nms(boxes, scores, iou_threshold):
  return lambda: torchvision.ops.nms(boxes, scores, iou_threshold)


def nms_of_each(boxes, scores, iou_threshold):
  return lambda: [torchvision.ops.nms(b, s, iou_threshold) for b, s in zip(boxes, scores, strict=True)]


def box_iou(boxes_a, boxes_b):
  return lambda: torchvision.ops.box_iou(boxes_a, boxes_b)


def roi_align(features, boxes, stride):
  features = features.permute(2, 0, 1)[None].contiguous()
  return lambda: torchvision.ops.roi_align(features, [boxes], 7, 1 / stride, 2, False)


def roi_align_and_gradient(features, boxes, stride):
  features = features.permute(2, 0, 1)[None].contiguous().requires_grad_()

  def run():
    features.grad = None
    torchvision.ops.roi_align(features, [boxes], 7, 1 / stride, 2, False).sum().backward()

  return run


def main():
  torch.set_num_threads(os.cpu_count())
  about = f'torchvision {torchvision.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads'
  print(json.dumps({'about': about}), flush=True)
  run = None
  for line in sys.stdin:
    request = json.loads(line)
    if 'prepare' in request:
      arrays = {name: value.item() if value.ndim == 0 else torch.from_numpy(value)
                for name, value in np.load(request['file']).items()}
      run = globals()[request['prepare']](**arrays)
      print(json.dumps({'ready': True}), flush=True)
      continue
    seconds = []
    for _ in range(request['calls']):
      start = time.perf_counter()
      run()
      seconds.append(time.perf_counter() - start)
    print(json.dumps({'seconds': seconds}), flush=True)


if __name__ == '__main__':
  main()
