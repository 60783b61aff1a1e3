"""The small detectors, as their configs on digit scenes make them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import importlib
import pathlib
from typing import Any

from vision_jax import build

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / 'configs'


def detectors(**sections: Mapping[str, Any]) -> Iterator[tuple[str, build.Experiment]]:
  """(name of the model, what its config puts together) of each config of a detector on digit scenes.

  Args:
    **sections: options to change or to add, for each section of the config; an `optim` that has a name takes the place
      of the whole section.
  """
  for path in sorted(CONFIGS.glob('digits_scenes_*.py')):
    config = importlib.import_module(f'configs.{path.stem}').get_config().to_dict()
    if config['task']['name'] == 'segmentation':
      continue
    for section, options in sections.items():
      config[section] = dict(options) if 'name' in options else {**config[section], **options}
    yield config['model']['name'], build.experiment(config)
