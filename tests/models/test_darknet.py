"""Darknets as classifiers and as bodies; what they compute is compared with darknet's cfg files in pretrained."""

from __future__ import annotations

import pytest

from tests.models import drawn
from vision_jax import models
from vision_jax.models.classification import darknet


@pytest.mark.parametrize(('name', 'expected'), [
    ('darknet19', [('conv1', (1, 64, 96, 32)), ('conv2', (1, 32, 48, 64)), ('conv5', (1, 16, 24, 128)),
                   ('conv8', (1, 8, 12, 256)), ('conv13', (1, 4, 6, 512)), ('conv18', (1, 2, 3, 1024))]),
    ('extraction', [('conv1', (1, 32, 48, 64)), ('conv2', (1, 16, 24, 192)), ('conv6', (1, 8, 12, 512)),
                    ('conv16', (1, 4, 6, 1024)), ('conv20', (1, 2, 3, 1024))]),
    ('darknet53', [('stage1', (1, 32, 48, 64)), ('stage2', (1, 16, 24, 128)), ('stage3', (1, 8, 12, 256)),
                   ('stage4', (1, 4, 6, 512)), ('stage5', (1, 2, 3, 1024))])])
def test_the_maps_are_the_last_of_every_stride_fine_to_coarse(name, expected):
  assert drawn.maps(models.create(name, num_classes=0), 1, 64, 96, 3) == expected


@pytest.mark.parametrize('name', ['darknet19', 'darknet53', 'extraction'])
def test_without_classes_a_darknet_gives_features_of_images_of_any_size(name):
  assert drawn.shapes(models.create(name, num_classes=0), 2, 33, 50, 3)[0].shape == (2, 1024)
  assert drawn.shapes(models.create(name, num_classes=7), 2, 33, 50, 3)[0].shape == (2, 7)


def test_pools_of_darknet_round_odd_sizes_up():
  model = darknet.PlainDarknet((darknet.Row(2), darknet.Row(2, pool=2), darknet.Row(2, pool=1)), num_classes=0)
  assert drawn.maps(model, 1, 5, 8, 3) == [('conv1', (1, 5, 8, 2)), ('conv3', (1, 3, 4, 2))]
