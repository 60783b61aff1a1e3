"""What several tests of the metrics share."""

import pickle

import numpy as np
import pytest


@pytest.fixture
def merged_equals_whole():
  """Checks that examples counted in three parts, sent through pickle and merged, give what one accumulator gives."""

  def check(create, examples):
    parts = [create() for _ in range(3)]
    whole = create()
    for i, (prediction, target) in enumerate(examples):
      whole.add(prediction, target)
      parts[i * i % 3].add(prediction, target)  # uneven: the third part stays empty
    first, *others = [pickle.loads(pickle.dumps(part)) for part in parts]
    for other in others:
      first.merge(other)
    merged, expected = first.result(), whole.result()
    assert list(merged) == list(expected) == list(create().result())  # the names never depend on the data
    np.testing.assert_array_equal(list(merged.values()), list(expected.values()))  # to the bit, and NaN equals NaN

  return check
