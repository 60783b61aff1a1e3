"""Metrics of embeddings: are two images of one identity (verification), and which are the nearest ones (retrieval)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vision_jax.metrics.base import check_same_settings, field, ratio


class _Embeddings:
  """What both metrics gather: the embedding and the identity of each image."""

  def __init__(self):
    self._rows: list[tuple[int, np.ndarray, int]] = []

  def add(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    kind = type(self).__name__
    embedding = field(f'{kind}: prediction', prediction, 'embedding').astype(np.float64)
    label = int(field(f'{kind}: target', target, 'label'))
    if embedding.ndim != 1 or not np.isfinite(embedding).all():
      raise ValueError(f'{kind}: an embedding has shape {embedding.shape} or a number that is not finite; '
                       'give one finite [E] for each image')
    self._rows.append((int(target.get('index', len(self._rows))), embedding, label))

  def _gathered(self) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors `[n, E]` and identities `[n]`, in the order of the source. A zero vector stays zero."""
    rows = sorted(self._rows, key=lambda row: row[0])
    vectors = np.stack([row[1] for row in rows]) if rows else np.zeros((0, 1))
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1.0), np.array([row[2] for row in rows], np.int64)


class Verification(_Embeddings):
  """How well the cosine similarity of two images tells whether they show one identity, over all pairs of images.

  Predictions need `embedding [E]`, targets `label`, the identity.

  Args:
    false_accept_rates: in 0..1, where the true accept rate is read.

  Raises:
    ValueError: a rate out of range; in `add`, a missing field or an embedding that is no finite vector.

  `result()` has `roc_auc`, the area under the curve of true accepts over false accepts (a tie counts half); `eer`, the
  rate at which as many pairs of different identities are accepted as pairs of one are refused; `eer_threshold`, the
  similarity there; and `tar@far=<rate>` for each rate, the largest share of pairs of one identity that is accepted
  while at most that share of the others is. All are NaN without both kinds of pairs. The n (n - 1) / 2 pairs are held
  in memory: 0.4 GB for 5,000 images.

  Reference: Schroff et al., FaceNet, arXiv 1503.03832, section 4 (true and false accepts).

  >>> metric = Verification(false_accept_rates=(0.1,))
  >>> for vector, who in (([1, 0], 0), ([0.9, 0.1], 0), ([0, 1], 1), ([0.1, 0.9], 1)):
  ...   metric.add({'embedding': np.array(vector, float)}, {'label': who})
  >>> {name: round(value, 2) for name, value in metric.result().items()}
  {'roc_auc': 1.0, 'eer': 0.0, 'eer_threshold': 0.99, 'tar@far=0.1': 1.0}
  """

  def __init__(self, *, false_accept_rates: Sequence[float] = (1e-1, 1e-2, 1e-3)):
    super().__init__()
    self.false_accept_rates = tuple(false_accept_rates)
    if not all(0 <= rate <= 1 for rate in self.false_accept_rates):
      raise ValueError(f'Verification: false_accept_rates is {self.false_accept_rates}; give numbers in 0..1')

  def merge(self, other: Verification) -> None:
    check_same_settings(self, other, 'false_accept_rates')
    self._rows.extend(other._rows)

  def result(self) -> dict[str, float]:
    vectors, labels = self._gathered()
    first, second = np.triu_indices(len(labels), k=1)
    similarity, same = (vectors @ vectors.T)[first, second], labels[first] == labels[second]
    names = ('roc_auc', 'eer', 'eer_threshold', *(f'tar@far={rate:g}' for rate in self.false_accept_rates))
    if not same.any() or same.all():
      return dict.fromkeys(names, float('nan'))
    order = np.argsort(-similarity, kind='stable')
    similarity, same = similarity[order], same[order]
    ends = np.flatnonzero(np.append(np.diff(similarity) != 0, True))  # equal similarities are accepted together
    true = np.append(0.0, same.cumsum()[ends] / same.sum())
    false = np.append(0.0, (~same).cumsum()[ends] / (~same).sum())
    area = float((np.diff(false) * (true[1:] + true[:-1]) / 2).sum())
    cross = int(np.argmax(false >= 1 - true))  # the first that accepts as many strangers as it refuses friends
    at_most = [true[np.searchsorted(false, rate, side='right') - 1] for rate in self.false_accept_rates]
    eer = float((false[cross] + 1 - true[cross]) / 2)
    threshold = float(similarity[ends[max(cross - 1, 0)]])
    return dict(zip(names, (area, eer, threshold, *(float(rate) for rate in at_most)), strict=True))


class Retrieval(_Embeddings):
  """Recall at k: the share of images that find another image of their identity among the k most similar ones.

  Predictions need `embedding [E]`, targets `label`, the identity. Similarity is the cosine; equal ones rank by index.

  Args:
    ks: how many neighbours count.

  Raises:
    ValueError: a k below 1; in `add`, a missing field or an embedding that is no finite vector.

  `result()` has `recall@<k>` for each k, over the images whose identity has another image; NaN when none has.

  Reference: Jegou et al., Product quantization for nearest neighbor search, PAMI 2011 (recall@k); Oh Song et al., Deep
  Metric Learning via Lifted Structured Feature Embedding, arXiv 1511.06452, section 5.

  >>> metric = Retrieval(ks=(1, 2))
  >>> for vector, who in (([1, 0], 0), ([0.9, 0.5], 0), ([0.9, 0.4], 1), ([0, 1], 1)):
  ...   metric.add({'embedding': np.array(vector, float)}, {'label': who})
  >>> metric.result()
  {'recall@1': 0.0, 'recall@2': 0.75}
  """

  def __init__(self, *, ks: Sequence[int] = (1, 5)):
    super().__init__()
    self.ks = tuple(ks)
    if not all(k >= 1 for k in self.ks):
      raise ValueError(f'Retrieval: ks is {self.ks}; give whole numbers from 1')

  def merge(self, other: Retrieval) -> None:
    check_same_settings(self, other, 'ks')
    self._rows.extend(other._rows)

  def result(self) -> dict[str, float]:
    vectors, labels = self._gathered()
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    ranked = np.argsort(-similarity, axis=1, kind='stable')[:, :-1]
    hits = labels[ranked] == labels[:, None]
    askable = hits.any(axis=1)
    first = np.where(askable, hits.argmax(axis=1), len(labels)) if hits.size else np.zeros(0, int)
    return {f'recall@{k}': float(ratio(np.count_nonzero(first < k), np.count_nonzero(askable))) for k in self.ks}
