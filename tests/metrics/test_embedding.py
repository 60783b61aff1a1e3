"""Verification and retrieval, against slow loops over all pairs and scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from vision_jax.metrics import Retrieval, Verification


def people(seed, count=40, identities=6, spread=0.8, dimensions=5):
  rng = np.random.default_rng(seed)
  centres, labels = rng.normal(size=(identities, dimensions)), rng.integers(0, identities, count)
  vectors = centres[labels] + spread * rng.normal(size=(count, dimensions))
  return [({'embedding': vectors[i]}, {'label': int(labels[i]), 'index': i}) for i in range(count)]


def counted(metric, examples):
  for prediction, target in examples:
    metric.add(prediction, target)
  return metric.result()


def pairs_of(examples):
  vectors = [p['embedding'] / np.linalg.norm(p['embedding']) for p, _ in examples]
  found = [(float(vectors[i] @ vectors[j]), examples[i][1]['label'] == examples[j][1]['label'])
           for i in range(len(vectors)) for j in range(i)]
  return np.array([s for s, _ in found]), np.array([same for _, same in found])


@pytest.mark.parametrize('seed', [0, 1])
def test_the_area_and_the_true_accept_rates_are_those_of_all_pairs(seed):
  examples = people(seed)
  similarity, same = pairs_of(examples)
  result = counted(Verification(false_accept_rates=(0.3, 0.05)), examples)
  # The same pairs; a matrix product and single products differ in the last bits, which moves no rank here.
  assert result['roc_auc'] == pytest.approx(sklearn_metrics.roc_auc_score(same, similarity), abs=1e-12)
  for rate in (0.3, 0.05):
    best = max((same & (similarity >= t)).sum() / same.sum() for t in [*similarity, 2]
               if (~same & (similarity >= t)).sum() <= rate * (~same).sum())
    assert result[f'tar@far={rate}'] == pytest.approx(best, abs=1e-12)


def test_at_the_equal_error_rate_as_many_strangers_are_accepted_as_friends_refused():
  examples = people(2, count=120)
  similarity, same = pairs_of(examples)
  result = counted(Verification(), examples)
  accepted = similarity >= result['eer_threshold'] - 1e-12
  false_accepts, false_refusals = (accepted & ~same).sum() / (~same).sum(), (~accepted & same).sum() / same.sum()
  # One pair more or less, of about 1,200 of one identity and 6,000 of two.
  assert false_accepts == pytest.approx(result['eer'], abs=2e-3)
  assert false_refusals == pytest.approx(result['eer'], abs=2e-3)
  assert 0.05 < result['eer'] < 0.45


def test_equal_embeddings_of_all_images_are_worth_a_coin():
  examples = [({'embedding': np.ones(3)}, {'label': i % 2, 'index': i}) for i in range(8)]
  result = counted(Verification(), examples)
  assert result['roc_auc'] == 0.5 and result['tar@far=0.1'] == 0.0


def test_without_both_kinds_of_pairs_every_figure_is_nan():
  for labels in ([0, 0, 0], [0, 1, 2], []):
    examples = [({'embedding': np.arange(2.0) + k}, {'label': k}) for k in labels]
    assert all(np.isnan(v) for v in counted(Verification(), examples).values())


@pytest.mark.parametrize('seed', [3, 4])
def test_recall_at_k_counts_the_images_that_find_one_of_their_own(seed):
  examples = people(seed, count=25, identities=9)
  vectors = [p['embedding'] / np.linalg.norm(p['embedding']) for p, _ in examples]
  labels = [t['label'] for _, t in examples]
  result = counted(Retrieval(ks=(1, 3)), examples)
  for k in (1, 3):
    hits = []
    for i, vector in enumerate(vectors):
      others = sorted((j for j in range(len(vectors)) if j != i), key=lambda j, v=vector: -float(v @ vectors[j]))
      if any(labels[j] == labels[i] for j in others):
        hits.append(any(labels[j] == labels[i] for j in others[:k]))
    assert result[f'recall@{k}'] == pytest.approx(np.mean(hits))


def test_an_identity_with_one_image_is_not_asked_for():
  examples = [({'embedding': np.eye(3)[i]}, {'label': i}) for i in range(3)]
  assert np.isnan(counted(Retrieval(), examples)['recall@1'])
  assert np.isnan(counted(Retrieval(), [])['recall@1'])


@pytest.mark.parametrize('metric', [Verification, Retrieval])
def test_merging_three_parts_gives_what_one_accumulator_gives(metric, merged_equals_whole):
  merged_equals_whole(metric, people(5, count=15))


@pytest.mark.parametrize('metric', [Verification(), Retrieval()])
def test_an_embedding_that_is_not_finite_is_refused(metric):
  with pytest.raises(ValueError, match='not finite'):
    metric.add({'embedding': np.array([1.0, np.nan])}, {'label': 0})
