"""Which detections find an object, by COCO's rule, for all images, thresholds and area ranges at once."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np


class Matches(NamedTuple):
  """What became of D detections at T thresholds and A area ranges.

  Args:
    found: bool `[D, T, A]`, the detection took an object or a crowd.
    ignored: bool `[D, T, A]`, what it took does not count in that range: a crowd, or an object of another size.
    objects: int64 `[D, T, A]`, the object taken, -1 where none was.
  """

  found: np.ndarray
  ignored: np.ndarray
  objects: np.ndarray


def greedy_matches(detections: np.ndarray, objects: np.ndarray, ious: np.ndarray, groups: np.ndarray, *,
                   thresholds: np.ndarray, ignored: np.ndarray, crowd: np.ndarray) -> Matches:
  """Lets the detections of each group take objects, one after another.

  A detection takes, of the objects that are free and overlap it by the threshold or more, the one with the greatest
  IoU (of equals the last); objects that count go before ignored ones. A crowd can be taken any number of times.

  The loop runs over ranks, not over images: the first detections of all groups choose together, then the second ones.
  So its length is the largest number of detections in one group that overlap anything.

  Args:
    detections: int `[P]`, the detection of each pair that overlaps, rising.
    objects: int `[P]`, its object; rising within a detection.
    ious: `[P]`, above 0.
    groups: int `[D]`, the group (image and class) of each detection; within a group they stand by falling score.
    thresholds: `[T]`, above 0.
    ignored: bool `[N, A]`, the objects that do not count in each area range.
    crowd: bool `[N]`.

  Returns:
    `Matches` over the D detections.

  Reference: the evaluation code of COCO (`COCOeval.evaluateImg`).

  >>> matches = greedy_matches(np.array([0, 1]), np.array([0, 0]), np.array([0.6, 0.9]), np.zeros(2, int),
  ...                          thresholds=np.array([0.5, 0.8]), ignored=np.zeros((1, 1), bool), crowd=np.array([False]))
  >>> matches.found[..., 0].tolist()
  [[True, False], [False, True]]
  """
  shape = len(groups), len(thresholds), ignored.shape[1]
  taken = np.full(shape, -1, np.int64)
  needed = np.minimum(thresholds, 1 - 1e-10)  # COCO's: two equal boxes match at a threshold of 1
  free = np.ones((len(ignored), *shape[1:]), bool)
  rounds = _rank_within(groups, np.unique(detections))[detections] if len(detections) else detections
  order = np.argsort(rounds, kind='stable')
  detections, objects, ious, rounds = detections[order], objects[order], ious[order], rounds[order]
  bounds = np.flatnonzero(np.diff(rounds, prepend=-1, append=rounds[-1] + 1 if len(rounds) else 0))
  for start, stop in itertools.pairwise(bounds):
    here = slice(start, stop)
    chosen = _choose(detections[here], objects[here], ious[here], needed, free, ignored, crowd)
    rows = np.unique(detections[here])
    taken[rows] = chosen
    row, t, a = np.nonzero(chosen >= 0)
    free[chosen[row, t, a], t, a] = False
  found = taken >= 0
  areas = np.arange(shape[2])
  return Matches(found, found & ignored[taken, areas] if len(ignored) else found, taken)


def _choose(detections: np.ndarray, objects: np.ndarray, ious: np.ndarray, needed: np.ndarray, free: np.ndarray,
            ignored: np.ndarray, crowd: np.ndarray) -> np.ndarray:
  """The object that each of the distinct detections takes, -1 for none: `[S, T, A]`."""
  starts = np.flatnonzero(np.diff(detections, prepend=-1))
  segment = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(detections)))
  offered = (ious[:, None] >= needed)[:, :, None] & (free[objects] | crowd[objects][:, None, None])
  counts = ~ignored[objects][:, None, :]
  any_counts = np.logical_or.reduceat(offered & counts, starts)
  offered &= counts == any_counts[segment]
  value = np.where(offered, ious[:, None, None], 0.0)
  best = np.maximum.reduceat(value, starts)
  last = np.where(offered & (value == best[segment]), np.arange(len(ious))[:, None, None], -1)
  last = np.maximum.reduceat(last, starts)
  return np.where(last >= 0, objects[last], -1)


def _rank_within(groups: np.ndarray, members: np.ndarray) -> np.ndarray:
  """For each of `members` how many members before it share its group; `[D]`, 0 for the others."""
  rank = np.zeros(len(groups), np.int64)
  rank[members] = rank_within(groups[members])
  return rank


def rank_within(labels: np.ndarray) -> np.ndarray:
  """How many earlier entries have the same label.

  Args:
    labels: int `[n]`.

  Returns:
    int64 `[n]`.

  >>> rank_within(np.array([7, 7, 3, 7])).tolist()
  [0, 1, 0, 2]
  """
  by_label = np.argsort(labels, kind='stable')
  first = np.searchsorted(labels[by_label], labels[by_label])
  rank = np.empty(len(labels), np.int64)
  rank[by_label] = np.arange(len(labels)) - first
  return rank
