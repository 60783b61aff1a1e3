"""Writes roi.npz: RoIAlign, RoI pooling, their gradients, and the pyramid's levels, as torchvision computes them.

    python3 tests/golden/make_roi.py

Made with Debian's python3-torchvision: torch 1.13.1, torchvision 0.14.1, NumPy 1.24.2. The inputs are drawn by
`numpy.random.RandomState`, whose streams never change, so only outputs are kept; the functions `*_inputs` are what the
tests call. Arrays are in our layout: features [B, h, w, C], boxes [B, M, 4], crops [B, M, oh, ow, C].
"""

import pathlib

import numpy as np

STRIDE, OUTPUT_SIZE = 8, (3, 2)
ALIGN = [(aligned, ratio) for aligned in (False, True) for ratio in (1, 2, 3)]
EDGES = [(True, 3), (False, -1)]  # -1: as many samples as cells
PYRAMID = {'strides': (4, 8, 16), 'canonical_size': 32, 'canonical_level': 3}
TALL = 57  # cells: 57 / 7 * 7 is 57.000004 in float32, and the last bin takes a cell more


def odd_boxes(rng, count, size):
  """Boxes [count, 4] around a canvas of (h, w): inside, across its border, outside, tiny, empty, inverted, huge."""
  h, w = size
  centre = rng.uniform(-0.2, 1.2, (count, 2)) * (w, h)
  half = np.exp(rng.uniform(np.log(2), np.log(60), (count, 2)))
  boxes = np.concatenate([centre - half, centre + half], -1)
  boxes[:6] = [[1, 2, 3, 4.5], [20, 20, 20, 40], [30, 30, 30, 30], [60, 50, 20, 10], [-4000, -3000, 5000, 6000],
               [w + 20, 0, w + 60, 30]]
  boxes[6] = [-16, -16, 16, 32]  # on stride 8, the first samples lie on -1 cell exactly: the last that counts
  boxes[7:10] = np.round(boxes[7:10] / 4) * 4  # corners halfway between cells, which pooling rounds away from zero
  return boxes.astype(np.float32)


def align_inputs():
  """Features [2, 9, 13, 2], boxes [2, 20, 4], the gradient that comes back [2, 20, 3, 2, 2]."""
  rng = np.random.RandomState(0)
  features, gradient = rng.standard_normal((2, 9, 13, 2)), rng.standard_normal((2, 20) + OUTPUT_SIZE + (2,))
  return (features.astype(np.float32), np.stack([odd_boxes(rng, 20, (72, 104)) for _ in range(2)]),
          gradient.astype(np.float32))


def pool_inputs():
  """As `align_inputs`, with features of few values, so that a bin often has several largest ones."""
  features, boxes, gradient = align_inputs()
  return np.round(features * 2), boxes, gradient


def tall_inputs():
  """Features [1, 60, 2, 1] that grow downwards, and boxes [1, 40, 4] from 21 to 60 cells tall."""
  boxes = [[0, 0, 8, 8 * (cells - 1)] for cells in range(21, 61)]
  return np.arange(120, dtype=np.float32).reshape(1, 60, 2, 1), np.array([boxes], np.float32)


def pyramid_inputs():
  """Three maps of two images of 64 x 96, boxes [2, 20, 4], the gradient that comes back."""
  rng = np.random.RandomState(1)
  levels = [rng.standard_normal((2, 64 // s, 96 // s, 2)).astype(np.float32) for s in PYRAMID['strides']]
  boxes = np.stack([odd_boxes(rng, 20, (64, 96)) for _ in range(2)])
  boxes[:, 3] = [20, 10, 60, 50]  # torchvision's area of a box inverted in both axes is positive, ours is 0
  return levels, boxes, rng.standard_normal((2, 20) + OUTPUT_SIZE + (2,)).astype(np.float32)


def level_inputs():
  """Boxes [300, 4] of all sizes; the first are exactly those where a level begins, and just below."""
  rng = np.random.RandomState(2)
  sides = np.exp(rng.uniform(np.log(4), np.log(2000), (300, 2)))
  sides[:15] = [[s * f] * 2 for s in (112, 224, 448, 896, 56) for f in (1, 1 - 3e-7, 1 - 1e-5)]
  return np.concatenate([np.zeros((300, 2)), sides], -1).astype(np.float32)


def mask_inputs():
  """Masks [24, 30, 41] of 0 and 1, a box [24, 4] for each."""
  rng = np.random.RandomState(3)
  return rng.randint(0, 2, (24, 30, 41)).astype(np.float32), odd_boxes(rng, 24, (30, 41))


def edge_inputs():
  """A map [8, 16] of ones, and boxes [2360, 4] with samples on the very edges, -1 and 16: rounding decides."""
  boxes = [[left, 0, left + width, 8] for left in range(-40, 0) for width in range(1, 60)]
  return np.ones((1, 8, 16, 1), np.float32), np.array([boxes], np.float32)


def main():
  import torch
  import torchvision
  from torchvision.ops import poolers

  def leaf(features):
    return torch.tensor(features).permute(0, 3, 1, 2).contiguous().requires_grad_()

  def ours(tensor):
    return np.moveaxis(tensor.detach().numpy(), -3, -1)

  def keep(name, function, leaves, gradient):
    crops = function(leaves)
    crops.backward(torch.tensor(gradient).permute(0, 1, 4, 2, 3).reshape(crops.shape))
    found[name] = ours(crops).reshape(gradient.shape)
    for i, tensor in enumerate(leaves):
      found[f'{name}_gradient_{i}'] = ours(tensor.grad)

  found = {}
  features, boxes, gradient = align_inputs()
  listed = list(torch.tensor(boxes))
  for aligned, ratio in ALIGN:
    keep(f'align_{aligned}_{ratio}', lambda x, aligned=aligned, ratio=ratio: torchvision.ops.roi_align(
        x[0], listed, OUTPUT_SIZE, 1 / STRIDE, ratio, aligned), [leaf(features)], gradient)
  features, boxes, gradient = pool_inputs()
  keep('pool', lambda x: torchvision.ops.roi_pool(x[0], listed, OUTPUT_SIZE, 1 / STRIDE), [leaf(features)], gradient)
  features, boxes = tall_inputs()
  found['pool_tall'] = ours(torchvision.ops.roi_pool(leaf(features), [torch.tensor(boxes[0])], (7, 2), 1 / STRIDE))

  levels, boxes, gradient = pyramid_inputs()
  names = [str(i) for i in range(len(levels))]
  pooler = poolers.MultiScaleRoIAlign(names, OUTPUT_SIZE, 2, canonical_scale=PYRAMID['canonical_size'],
                                      canonical_level=PYRAMID['canonical_level'])
  keep('pyramid', lambda x: pooler(dict(zip(names, x)), list(torch.tensor(boxes)), [(64, 96)] * 2),
       [leaf(level) for level in levels], gradient)
  found['levels'] = poolers.LevelMapper(2, 5)([torch.tensor(level_inputs())]).numpy().astype(np.int8)

  masks, boxes = mask_inputs()
  for aligned in (False, True):
    crops = torchvision.ops.roi_align(torch.tensor(masks)[:, None], list(torch.tensor(boxes)[:, None]), (7, 5), 1.0, -1,
                                      aligned)
    found[f'masks_{aligned}'] = crops[:, 0].numpy()
  features, boxes = edge_inputs()
  for aligned, ratio in EDGES:
    crops = torchvision.ops.roi_align(leaf(features), [torch.tensor(boxes[0])], (1, 7), 1.0, ratio, aligned)
    found[f'edge_{aligned}_{ratio}'] = crops.detach().numpy()[:, 0, 0].astype(np.float16)
  np.savez_compressed(pathlib.Path(__file__).with_name('roi.npz'), **found)


if __name__ == '__main__':
  main()
