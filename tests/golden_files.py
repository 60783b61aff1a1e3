"""The golden arrays, and the scripts that drew their inputs."""

import functools
import importlib.util
import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).resolve().parent / 'golden'


@functools.cache
def golden(topic):
  """The script `make_<topic>.py`, which draws the inputs, and the arrays of `<topic>.npz`, what the original made."""
  spec = importlib.util.spec_from_file_location(f'make_{topic}', FOLDER / f'make_{topic}.py')
  script = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(script)
  return script, np.load(FOLDER / f'{topic}.npz')
