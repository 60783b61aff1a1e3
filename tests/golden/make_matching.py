"""Writes matching.npz: what torchvision's `Matcher` and `SSDMatcher` make of 300 matrices of IoUs.

    /usr/bin/python3 tests/golden/make_matching.py

Made with Debian's python3-torchvision: torchvision 0.14.1, torch 1.13.0, NumPy 1.24.2. The inputs are drawn by
`numpy.random.RandomState`, whose streams never change, so only outputs are kept: int8 [cases, anchors] for each row of
`MATCHERS`, the target of a positive anchor, -1 for a negative one, -2 for an ignored one.
"""

import pathlib

import numpy as np

CASES, TARGETS, ANCHORS = 300, 7, 40
MATCHERS = {
    'rpn': {'high': 0.7, 'low': 0.3, 'low_quality': 'ties'},
    'retinanet': {'high': 0.5, 'low': 0.4, 'low_quality': 'ties'},
    'roi_heads': {'high': 0.5, 'low': 0.5, 'low_quality': 'none'},
    'between': {'high': 0.7, 'low': 0.3, 'low_quality': 'none'},
    'ssd': {'high': 0.5, 'low': 0.5, 'low_quality': 'force'},
}
# A target that overlaps no anchor, which torchvision's matchers serve too.
WITHOUT_OVERLAP = np.array([[0.1, 0.8, 0.2], [0, 0, 0]], np.float32)


def draw():
  """IoUs [cases, targets, anchors] and valid [cases, targets]; every valid target overlaps some anchor.

  By turns any numbers, tenths (most are tied), mostly zeros, and every target twice.
  """
  random = np.random.RandomState(0)
  iou = random.uniform(size=(CASES, TARGETS, ANCHORS)) ** 2
  iou[1::4] = np.round(iou[1::4], 1)
  iou[2::4] = np.maximum(iou[2::4] - 0.6, 0)
  iou[3::4, 1::2] = iou[3::4, :-1:2]
  iou[..., 0] = np.maximum(iou[..., 0], 0.01)
  return iou.astype(np.float32), np.arange(TARGETS) < random.randint(1, TARGETS + 1, (CASES, 1))


def main():
  import torch
  from torchvision.models.detection import _utils

  def matcher(high, low, low_quality):
    return _utils.SSDMatcher(high) if low_quality == 'force' else _utils.Matcher(high, low, low_quality == 'ties')

  found = {}
  for name, options in MATCHERS.items():
    match = matcher(**options)
    found[name] = np.stack([match(torch.from_numpy(iou[real])) for iou, real in zip(*draw())]).astype(np.int8)
    found[f'{name}_without_overlap'] = match(torch.from_numpy(WITHOUT_OVERLAP)).numpy()
  np.savez_compressed(pathlib.Path(__file__).with_name('matching.npz'), **found)


if __name__ == '__main__':
  main()
