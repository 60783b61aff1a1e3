"""Writes torch_zip.pth and torch_legacy.pth: a small state dict as torch itself saves it, in both formats.

    python tests/golden/make_torch_files.py

Made with torch 2.13.0. It holds what is hard about tensors: several in one storage, transposed, with steps and offsets,
empty, of no axes, expanded, and of every dtype. `arrays()` gives the same in NumPy.
"""

import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).resolve().parent


def arrays():
  """name -> array, in the order of the file."""
  base = np.arange(48, dtype=np.float32).reshape(6, 8) / 7
  return {
      'base': base,
      'transposed': base.T,
      'part': base[2:5, 1::2],
      'scalar': np.float32(3.5),
      'empty': np.zeros((0, 3), np.float32),
      'expanded': np.broadcast_to(np.arange(3, dtype=np.float32), (4, 3)),
      'parameter': -base[:2, :2],
      'channels_last': np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4),
      'half': (np.arange(6) / 4).astype(np.float16),
      'bfloat16': np.array([1.0, -2.5, 0.15625, 3e38], np.float32).view(np.uint32).__and__(0xFFFF0000).view(np.float32),
      'double': np.array([1 / 3, 1e300]),
      'int64': np.arange(-3, 5) * 10 ** 12,
      'int32': np.arange(4, dtype=np.int32),
      'int16': np.arange(-2, 2, dtype=np.int16),
      'int8': np.array([-128, 127], np.int8),
      'uint8': np.array([0, 255], np.uint8),
      'bool': np.array([True, False, True]),
  }


def main():
  import torch
  given = {name: torch.from_numpy(np.array(array)) for name, array in arrays().items()}
  base = given['base']
  given['transposed'], given['part'] = base.t(), base[2:5, 1::2]
  given['expanded'] = torch.arange(3.0).expand(4, 3)
  given['parameter'] = torch.nn.Parameter(given['parameter'])
  given['channels_last'] = given['channels_last'].to(memory_format=torch.channels_last)
  given['bfloat16'] = given['bfloat16'].bfloat16()
  torch.save(given, FOLDER / 'torch_zip.pth')
  torch.save(given, FOLDER / 'torch_legacy.pth', _use_new_zipfile_serialization=False)


if __name__ == '__main__':
  main()
