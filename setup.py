"""Installs the package vision_jax; configs and experiments run from a clone."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).resolve().parent


def version() -> str:
  """The version that vision_jax/__init__.py states, read without importing it."""
  text = (ROOT / 'vision_jax' / '__init__.py').read_text(encoding='utf-8')
  return re.search(r"^__version__ = '([^']+)'$", text, re.MULTILINE)[1]


def requirements() -> list[str]:
  """The lines of requirements.txt without their comments."""
  lines = (ROOT / 'requirements.txt').read_text(encoding='utf-8').splitlines()
  return [line for line in (line.partition('#')[0].strip() for line in lines) if line]


setuptools.setup(
  name='vision_jax',
  version=version(),
  description='Functional JAX and Flax research code for computer vision.',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=setuptools.find_packages(include=('vision_jax', 'vision_jax.*')),
  package_data={'vision_jax.pretrained': ['*.tsv', '*.txt']},
  install_requires=requirements(),
  extras_require={
    'cuda': ['jax[cuda13]>=0.10.2'],
    'tpu': ['jax[tpu]>=0.10.2'],
    'tensorboard': ['tensorboardX>=2.6.2.2'],
    'dev': [
      'chex>=0.1.92',
      'pycocotools>=2.0.8',  # the oracle of the detection metrics
      'pytest>=8.3',
      'pytest-xdist>=3.6.1',
      'ruff>=0.17.5,<0.18',  # the rules of another minor version differ
    ],
  },
)
