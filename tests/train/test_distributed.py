"""Two processes of two devices each do what one process of four does."""

import os
import pathlib
import pickle
import socket
import subprocess
import sys

import chex
import numpy as np
import pytest

PROGRAM = """
import pathlib, pickle, sys
import jax
rank, processes, port, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], pathlib.Path(sys.argv[4])
if processes > 1:
    jax.distributed.initialize(f'localhost:{port}', processes, rank)
import optax
from tests.train import toy
from vision_jax.train import loop
shard = (jax.process_index(), jax.process_count())
train_loader = toy.loader(48, batch_size=16, shard=shard, augment=(('noise', {}),))
val_loader = toy.loader(21, batch_size=8, shard=shard)
state, metrics = loop.fit(toy.ToyTask(), optax.adam(1e-2), train_loader, val_loader, folder,
                          steps=5, eval_every=5, log_every=5, schedule=optax.constant_schedule(1e-2))
pickle.dump((state, metrics, jax.device_count()), open(folder / f'result{rank}', 'wb'))
"""


def launch(folder, processes):
  root = pathlib.Path(__file__).resolve().parents[2]
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  environment = {**os.environ, 'PYTHONPATH': str(root), 'JAX_PLATFORMS': 'cpu', 'NPROC': '32',
                 'XLA_FLAGS': f'--xla_force_host_platform_device_count={4 // processes}'}
  running = [subprocess.Popen([sys.executable, '-c', PROGRAM, str(rank), str(processes), str(port), str(folder)],
                              env=environment, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
             for rank in range(processes)]
  try:
    outputs = [process.communicate(timeout=150) for process in running]
  finally:
    for process in running:
      process.kill()  # where one has failed the other waits for it
  assert all(process.returncode == 0 for process in running), outputs
  return [pickle.loads((folder / f'result{rank}').read_bytes()) for rank in range(processes)], outputs


@pytest.mark.slow
def test_two_processes_of_two_devices_equal_one_process_of_four_and_write_one_checkpoint(tmp_path):
  (tmp_path / 'one').mkdir()
  (tmp_path / 'two').mkdir()
  [(one, one_metrics, devices)], _ = launch(tmp_path / 'one', 1)
  [(first, metrics, _), (second, second_metrics, _)], outputs = launch(tmp_path / 'two', 2)
  assert devices == 4
  chex.assert_trees_all_equal(first, second)
  # The same numbers summed by another collective: float32 rounding.
  chex.assert_trees_all_close(first.params, one.params, rtol=1e-5, atol=1e-6)
  assert metrics['images'] == one_metrics['images'] == 21
  assert metrics == second_metrics
  np.testing.assert_allclose(metrics['loss'], one_metrics['loss'], rtol=1e-5)
  checkpoints = [path.name for path in (tmp_path / 'two' / 'checkpoints').iterdir()]
  assert checkpoints == ['5']
  assert 'evaluation at step 5' in outputs[0][0]
  spoken = [line for line in outputs[1][0].splitlines() if not line.startswith('[Gloo]')]  # gloo's own, from C++
  assert not spoken, 'only the first process speaks'
