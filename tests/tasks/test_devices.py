"""Detectors on one device and on eight: the same batch gives the same losses and the same update."""

from __future__ import annotations

import json

import pytest

PROGRAM = """
import json
import jax
from tests.tasks.steps import drawn_state
from vision_jax import build
from vision_jax.train import step as step_lib
from vision_jax.train.state import to_host
out = {'devices': jax.device_count()}
for task, model in (({'name': 'ssd'}, {'name': 'ssd_small', 'width': 4}),
                    ({'name': 'faster_rcnn', 'rpn_samples': 32, 'roi_samples': 12},
                     {'name': 'fasterrcnn_small', 'width': 4, 'hidden': 16, 'pool_size': 3, 'post_nms': (24, 16)})):
    experiment = build.experiment({
        'task': task, 'model': {**model, 'norm': 'frozen'},  # as BatchNorm's own statistics are a device's
        'data': {'name': 'digit_scenes', 'train_size': 8, 'val_size': 8, 'batch_size': 8, 'canvas': (64, 96)},
        'optim': {'name': 'sgd', 'lr': 0.1}, 'train': {'duration': '2 steps'}})
    batch = experiment.train_loader.batch(0)
    state = drawn_state(experiment, batch)
    step = step_lib.make_train_step(experiment.task, experiment.optimiser)
    logs = []
    for _ in range(2):  # the second says what the first one's update was worth
        state, log = step(state, step_lib.shard_batch(batch))
        logs.append({name: float(value) for name, value in to_host(log).items()})
    out[task['name']] = logs
print(json.dumps(out))
"""


@pytest.mark.slow
def test_one_device_and_eight_give_ssd_and_faster_rcnn_the_same_losses_and_the_same_update(run_python):
  one, eight = (json.loads(run_python(PROGRAM, devices=devices, timeout=900).splitlines()[-1]) for devices in (1, 8))
  assert (one.pop('devices'), eight.pop('devices')) == (1, 8)
  for name, steps in one.items():
    for ours, theirs in zip(steps, eight[name], strict=True):
      assert 'loss_class' in ours and ours == pytest.approx(theirs, rel=1e-5), name  # sums of float32 in another order
    assert steps[0]['loss'] != pytest.approx(steps[1]['loss'], rel=1e-3)
