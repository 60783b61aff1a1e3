"""Writes losses.npz: focal, smooth L1 and triplet losses, and their gradients, as torch and torchvision compute them.

    /usr/bin/python3 tests/golden/make_losses.py

Made with Debian's python3-torchvision: torchvision 0.14.1, torch 1.13.0, NumPy 1.24.2. The inputs are drawn by
`numpy.random.RandomState`, whose streams never change, so only outputs are kept; `draw` is what the tests call.
"""

import pathlib

import numpy as np

FOCAL = [(None, 0.0), (0.25, 2.0), (0.25, 0.5), (0.6, 1.5)]  # alpha, gamma
BETAS = [0.0, 1 / 9, 1.0, 2.5]
MARGINS = [0.2, 1.0]


def draw():
  """Logits with soft and hard targets; predicted and target deltas; anchors, positives and negatives."""
  random = np.random.RandomState(0)
  logits = (random.standard_normal(200) * 6).astype(np.float32)
  targets = np.where(np.arange(200) < 150, np.arange(200) % 2, random.uniform(size=200)).astype(np.float32)
  predicted, target = (random.standard_normal((2, 50, 4)) * 2).astype(np.float32)
  triplets = (random.standard_normal((3, 60, 5)) / 2).astype(np.float32)
  return logits, targets, predicted, target, triplets


def main():
  import torch
  import torchvision

  logits, targets, predicted, target, triplets = draw()
  found = {}

  def keep(name, loss, *arrays):
    leaves = [torch.tensor(array, requires_grad=True) for array in arrays]
    value = loss(*leaves)
    gradients = torch.autograd.grad(value.sum(), leaves)
    found.setdefault(name, []).append(value.detach().numpy())
    found.setdefault(f'{name}_gradient', []).append(np.stack([g.numpy() for g in gradients]).squeeze())

  for alpha, gamma in FOCAL:
    options = {'alpha': -1 if alpha is None else alpha, 'gamma': gamma}
    keep('focal', lambda x, o=options: torchvision.ops.sigmoid_focal_loss(x, torch.tensor(targets), **o), logits)
  for beta in BETAS:
    keep('smooth_l1', torch.nn.SmoothL1Loss(beta=beta, reduction='none').forward, predicted, target)
  for margin in MARGINS:  # eps is added to each difference before the root
    keep('triplet', torch.nn.TripletMarginLoss(margin=margin, eps=0, reduction='none'), *triplets)
  np.savez_compressed(pathlib.Path(__file__).with_name('losses.npz'), **{k: np.stack(v) for k, v in found.items()})


if __name__ == '__main__':
  main()
