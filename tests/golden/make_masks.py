"""Writes masks.npz: masks cropped for boxes as torchvision does it, and pasted as detectron2 does it.

    /usr/bin/python3 tests/golden/make_masks.py

Made with Debian's python3-torchvision: torchvision 0.14.1, torch 1.13.0, NumPy 1.24.2. The inputs are drawn by
`numpy.random.RandomState`, whose streams never change, so only outputs are kept; `draw` is what the tests call. What
detectron2 does is one `grid_sample` of torch with the numbers of its `_do_paste_mask`, here in float64.
"""

import pathlib

import numpy as np

GRIDS = ((7, 7), (28, 28))
CANVAS = (40, 53)
# Of full size, with a whole number of pixels in a cell, beyond the canvas, beside it, a line, a point, inverted.
ODD = [[0, 0, 53, 40], [2, 3, 51, 38], [-9, -7, 70, 60], [60, 10, 80, 30], [5, 5, 5, 30], [9, 9, 9, 9], [30, 20, 10, 8]]


def draw():
  """Masks to crop, boxes, the mask of each box, and small masks to paste into the boxes."""
  random = np.random.RandomState(0)
  masks = np.kron(random.uniform(size=(3, 10, 11)), np.ones((4, 5))) > 0.6
  corner = random.uniform(-5, 35, (9, 2))
  boxes = np.concatenate([corner, corner + np.exp(random.uniform(0, 4, (9, 2)))], axis=1)
  boxes = np.concatenate([ODD, boxes]).astype(np.float32)
  return masks[:, :CANVAS[0], :CANVAS[1]], boxes, random.randint(0, 3, len(boxes)), random.uniform(
      size=(len(boxes), 6, 9)).astype(np.float32)


def main():
  import torch
  from torchvision.models.detection import roi_heads

  masks, boxes, owner, small = map(torch.tensor, draw())
  found = {f'crop_{h}': roi_heads.project_masks_on_boxes(masks, boxes, owner, h) for h, _ in GRIDS}

  def place(start, end, size):  # of pixel centres in the box, -1..1
    return (torch.arange(size) + 0.5 - start[:, None]) / (end - start)[:, None] * 2 - 1

  sized = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
  x1, y1, x2, y2 = boxes[sized].double().unbind(dim=1)
  y, x = place(y1, y2, CANVAS[0]), place(x1, x2, CANVAS[1])
  grid = torch.stack([x[:, None].expand(-1, *CANVAS), y[:, :, None].expand(-1, *CANVAS)], dim=-1)
  found['paste'] = torch.nn.functional.grid_sample(small[sized][:, None].double(), grid, align_corners=False)[:, 0]
  found = {name: array.numpy().astype(np.float32) for name, array in found.items()}
  np.savez_compressed(pathlib.Path(__file__).with_name('masks.npz'), **found)


if __name__ == '__main__':
  main()
