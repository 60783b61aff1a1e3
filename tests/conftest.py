"""What all tests share: the CPU, the compilation cache, and programs in processes of their own."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# pytest reads this file before it imports any test, so jax finds these when it starts.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.cache' / 'xla'))
os.environ.setdefault('JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS', '0.5')


def environment_of_devices(devices: int) -> dict[str, str]:
  """The environment of a process that is to see so many CPU devices."""
  flags = [f for f in os.environ.get('XLA_FLAGS', '').split() if 'force_host_platform_device_count' not in f]
  flags.append(f'--xla_force_host_platform_device_count={devices}')
  # With too few threads XLA's collectives wait for each other for ever; 8 a device held in every try on two cores.
  return {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ' '.join(flags), 'NPROC': str(8 * devices),
          'PYTHONPATH': str(ROOT)}


@pytest.fixture(scope='session')
def run_python():
  """`run_python(code, *arguments, devices=1, timeout=120)`: a snippet in a fresh process; what it prints comes back.

  A process that fails, or that is not done after `timeout` seconds, fails the test with the end of what it printed.
  """

  def run(code: str, *arguments: object, devices: int = 1, timeout: float = 120) -> str:
    process = subprocess.Popen([sys.executable, '-c', code, *map(str, arguments)], cwd=ROOT, text=True,
                               env=environment_of_devices(devices), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               start_new_session=True)
    try:
      out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)  # its children too
      out, err = process.communicate()
      pytest.fail(f'not done after {timeout} s\n{out[-2000:]}\n{err[-2000:]}')
    if process.returncode:
      pytest.fail(f'exit code {process.returncode}\n{out[-2000:]}\n{err[-4000:]}')
    return out

  return run
