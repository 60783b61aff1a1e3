"""Writes nms.npz: what torchvision's `nms` keeps, and its `nms` class by class, as one CRC-32 for each of 10,014 cases.

    /usr/bin/python3 tests/golden/make_nms.py

Made with Debian's python3-torchvision: torchvision 0.14.1, torch 1.13.0, NumPy 1.24.2. The inputs are drawn by
`numpy.random.RandomState`, whose streams never change, so only outputs are kept; `draw` and `draw_large` are what the
tests call, and `digests` is how they compare.
"""

import itertools
import pathlib
import zlib

import numpy as np

THRESHOLDS = 0.3, 0.5, 0.7
CASES, SLOTS = 1000, 40  # of each family


def uniform(random, *shape):
  corner, size = random.uniform(-100, 100, (*shape, 2)), random.uniform(5, 60, (*shape, 2))
  return np.concatenate([corner, corner + size], -1)


def clustered(random, cases, slots, *, objects=5):
  centres = uniform(random, cases, objects)
  own = np.take_along_axis(centres, random.randint(0, objects, (cases, slots, 1)), axis=1)
  return own + random.uniform(-6, 6, (cases, slots, 4))


def on_a_grid(random, *shape):
  """Sides of 0 to 40 in tens: many of the IoUs are fractions such as 1/2, many areas 0, many boxes the same."""
  corner, size = random.randint(-3, 4, (*shape, 2)) * 10.0, random.randint(0, 5, (*shape, 2)) * 10.0
  return np.concatenate([corner, corner + size], -1)


def nested(random, *shape):
  """One corner and one height in a case, widths of 1 to 10: the IoUs are fractions of these, from whole numbers."""
  return beside_a_corner(random.randint(-50, 50, (shape[0], 1, 2)), 1.0, random.randint(1, 11, shape))


def nested_and_rounded(random, *shape):
  """The same in odd units: the IoUs lie beside these fractions by a rounding or two."""
  corner, unit = random.uniform(-50, 50, (shape[0], 1, 2)), random.uniform(0.1, 7, (shape[0], 1))
  return beside_a_corner(corner, unit, random.randint(1, 11, shape))


def beside_a_corner(corner, unit, widths):
  size = np.stack([widths * unit, np.broadcast_to(7 * unit, widths.shape)], -1)
  return np.concatenate([corner + np.zeros_like(size), corner + size], -1)


def duplicated(random, cases, slots):
  """Every box several times."""
  return np.take_along_axis(uniform(random, cases, 8), random.randint(0, 8, (cases, slots, 1)), axis=1)


def flat_or_inverted(random, cases, slots):
  """Two of three sides are 0 or negative."""
  centres = clustered(random, cases, slots, objects=3)
  size = (centres[..., 2:] - centres[..., :2]) * random.randint(-1, 2, (cases, slots, 2))
  return np.concatenate([centres[..., :2], centres[..., :2] + size], -1)


def far_away(random, *shape):
  """Coordinates of -1e6, where float32 knows sixteenths of a pixel."""
  return clustered(random, *shape) - 1e6


def chained(random, *shape):
  """Each overlaps the next by very nearly a threshold t: steps of (1 - t) / (1 + t)."""
  step = np.array([7 / 13, 1 / 3, 3 / 17])[random.randint(0, 3, (shape[0], 1))]
  x1, width = random.uniform(-9, 9, (shape[0], 1)) + np.arange(shape[1]) * step, np.ones(shape)
  boxes = np.stack([x1, 0 * width, x1 + width, width], -1) * random.uniform(0.5, 90, (shape[0], 1, 1))
  return np.take_along_axis(boxes, random.uniform(size=(*shape, 1)).argsort(axis=1, kind='stable'), axis=1)


def normalised(random, *shape):
  """Small objects in shares of an image: areas down to 1e-13."""
  return clustered(random, *shape) * 10 ** random.uniform(-7, -3, (shape[0], 1, 1))


FAMILIES = (uniform, clustered, on_a_grid, nested, nested_and_rounded, duplicated, flat_or_inverted, far_away, chained,
            normalised)


def some_scores(random, cases, slots):
  """By turns all different, in quarters, of both zeros and 0.5, and in whole numbers from -3 to 3."""
  share = random.uniform(size=(cases, slots))
  kinds = share, np.round(share * 4) / 4, np.array([-0.0, 0.0, 0.5])[(share * 3).astype(int)], np.round(share * 6 - 3)
  return np.choose(np.arange(cases)[:, None] % 4, kinds)


def with_the_rest(random, boxes, least):
  """boxes [cases, slots, 4], scores, labels and valid [cases, slots]; the first `least` or more slots are valid."""
  cases, slots = boxes.shape[:2]
  valid = np.arange(slots) < random.randint(least, slots + 1, (cases, 1))
  return (boxes.astype(np.float32), some_scores(random, cases, slots).astype(np.float32),
          random.randint(0, 3, (cases, slots)).astype(np.int32), valid)


def draw():
  """The small cases, a thousand of each family, 20 to 40 boxes each."""
  random = np.random.RandomState(0)
  return with_the_rest(random, np.concatenate([family(random, CASES, SLOTS) for family in FAMILIES]), SLOTS // 2)


def draw_large():
  """Twelve cases of 300 to 1,000 boxes, and two of SSD300's 8,732: arrays as those of `draw`, in two sizes."""
  random = np.random.RandomState(1)
  several = [family(random, 3, 1000) for family in (uniform, clustered, on_a_grid, nested_and_rounded)]
  yield with_the_rest(random, np.concatenate(several), 300)
  yield with_the_rest(random, np.concatenate([uniform(random, 1, 8732) * 5, clustered(random, 1, 8732, objects=99)]),
                      8732)


def digests(kept):
  """uint32 [cases] of `kept` [cases, results, slots]: the indices of each result, best first, then -1."""
  return np.array([zlib.crc32(case.tobytes()) for case in np.ascontiguousarray(kept, '<i2')], np.uint32)


def main():
  import torch
  import torchvision

  def nms(boxes, scores, threshold):
    return torchvision.ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold).numpy()

  def nms_of_each_class(boxes, scores, labels, threshold):
    own = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    kept = np.sort(np.concatenate([one[nms(boxes[one], scores[one], threshold)] for one in own]))
    return kept[np.argsort(-scores[kept], kind='stable')]

  def all_digests(boxes, scores, labels, valid):
    kept = np.full((len(boxes), 2 * len(THRESHOLDS), boxes.shape[1]), -1)
    for i, (t, threshold) in itertools.product(range(len(boxes)), enumerate(THRESHOLDS)):
      n = valid[i].sum()
      for row, indices in ((t, nms(boxes[i, :n], scores[i, :n], threshold)),
                           (t + 3, nms_of_each_class(boxes[i, :n], scores[i, :n], labels[i, :n], threshold))):
        kept[i, row, :len(indices)] = indices
    print(len(boxes), 'cases; kept on average', (kept >= 0).sum(-1).mean(0).round(1))
    return digests(kept)

  arrays = {'small': all_digests(*draw())}
  arrays |= {f'large_{size}': all_digests(*case) for size, case in enumerate(draw_large())}
  np.savez_compressed(pathlib.Path(__file__).with_name('nms.npz'), **arrays)


if __name__ == '__main__':
  main()
