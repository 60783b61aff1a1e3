"""Our classifiers compute what torchvision's do, to 1e-4 of the largest logit, with every parameter in its place."""

import pytest

from tests.pretrained import formula

# The cheapest of three families; the others are slow.
CHEAP = ('squeezenet1_1', 'resnet18', 'mobilenet_v3_small')
ALL = tuple(sorted(set(formula.golden('classifier_logits')[1].files)))


@pytest.mark.parametrize('name', [pytest.param(name, marks=pytest.mark.medium if name in CHEAP else pytest.mark.slow)
                                  for name in ALL])
def test_logits_equal_torchvisions(name):
  assert formula.error(name)[0] < formula.TOLERANCE
