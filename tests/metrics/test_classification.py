"""Top-k and the confusion matrix."""

import numpy as np
import pytest

from vision_jax.conventions import ClassMap
from vision_jax.metrics import Confusion, TopK

ABC = ClassMap(names=('a', 'b', 'c'))


def _examples(rng, count, num_classes):
  # Few distinct values, so that ties are common.
  return [({'probabilities': rng.integers(0, 4, num_classes).astype(np.float32)},
           {'label': int(rng.integers(num_classes))}) for _ in range(count)]


def _counted(metric, examples):
  for prediction, target in examples:
    metric.add(prediction, target)
  return metric


def test_top_k_equals_a_sort_in_which_ties_go_to_the_lower_index():
  examples = _examples(np.random.default_rng(0), 200, 7)
  result = _counted(TopK(ks=(1, 3, 5)), examples).result()
  for k in (1, 3, 5):
    right = [target['label'] in sorted(range(7), key=lambda c: (-prediction['probabilities'][c], c))[:k]
             for prediction, target in examples]
    assert result[f'top{k}'] == np.mean(right)


def test_k_above_the_number_of_classes_counts_all_as_right():
  result = _counted(TopK(), [({'probabilities': np.array([0.9, 0.1])}, {'label': 1})]).result()
  assert result == {'top1': 0.0, 'top5': 1.0}


def test_the_prefix_stands_before_each_name():
  assert list(TopK(ks=(2,), prefix='few_shot/').result()) == ['few_shot/top2']


def test_top_k_of_no_image_is_nan():
  assert all(np.isnan(v) for v in TopK().result().values())


@pytest.mark.parametrize('metric', [TopK(), Confusion(ABC)])
def test_probabilities_that_are_nan_are_refused_and_not_counted_as_right(metric):
  with pytest.raises(ValueError, match='hold NaN; the model has diverged'):
    metric.add({'probabilities': np.full(3, np.nan)}, {'label': 0})


def test_a_label_that_is_no_class_is_refused():
  with pytest.raises(ValueError, match=r'label 3 is outside 0\.\.2'):
    TopK().add({'probabilities': np.ones(3)}, {'label': 3})


def test_a_model_with_another_number_of_classes_is_refused():
  with pytest.raises(ValueError, match='K = 3 classes'):
    Confusion(ABC).add({'probabilities': np.ones(4)}, {'label': 0})


def test_a_missing_field_is_named_with_what_there_is():
  with pytest.raises(ValueError, match=r"prediction has no 'probabilities'; it has boxes, scores"):
    TopK().add({'boxes': 0, 'scores': 0}, {'label': 0})


def test_k_below_one_is_refused():
  with pytest.raises(ValueError, match=r'ks is \(0, 5\)'):
    TopK(ks=(0, 5))


def test_the_confusion_matrix_has_the_truth_in_its_rows():
  matrix = _counted(Confusion(ABC), [({'probabilities': np.array([0.0, 0.0, 1.0])}, {'label': 1})]).matrix
  assert matrix[1, 2] == 1 and matrix.sum() == 1


def test_mean_recall_leaves_out_a_class_without_images():
  metric = Confusion(ABC)
  metric.matrix[:] = [[3, 1, 0], [0, 2, 2], [0, 0, 0]]
  result = metric.result()
  assert result['recall/a'] == 0.75 and result['recall/b'] == 0.5 and np.isnan(result['recall/c'])
  assert result['mean_recall'] == 0.625


def test_merging_three_parts_gives_what_one_accumulator_gives(merged_equals_whole):
  examples = _examples(np.random.default_rng(1), 50, 3)
  merged_equals_whole(lambda: TopK(ks=(1, 2)), examples)
  merged_equals_whole(lambda: Confusion(ABC), examples)


def test_merging_other_settings_or_another_metric_is_refused():
  with pytest.raises(ValueError, match=r'TopK with ks=\(1,\) into one with ks=\(1, 5\)'):
    TopK().merge(TopK(ks=(1,)))
  with pytest.raises(ValueError, match='cannot merge Confusion into TopK'):
    TopK().merge(Confusion(ABC))
