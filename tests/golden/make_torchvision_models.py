"""Sizes and work of torchvision's 80 classifiers, from the metadata of their default weights.

Run where torchvision is installed (no weights are loaded): python tests/golden/make_torchvision_models.py
Made with torchvision 0.28.0. Writes torchvision_models.json beside this file: for each name the number of parameters,
the multiply-adds of convolutions and matrix products in thousands of millions, rounded to three decimals, and the size
of the image at which these are stated.
"""

import json
import pathlib


def main() -> None:
  import torch
  # Only metadata is read; these two operators are compiled in torchvision's full package alone.
  library = torch.library.Library('torchvision', 'FRAGMENT')
  for name in ('nms', 'qnms'):
    library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
  import torchvision

  path = pathlib.Path(__file__).with_name('torchvision_models.json')
  rows = {}
  for name in torchvision.models.list_models(module=torchvision.models):
    weights = torchvision.models.get_model_weights(name).DEFAULT
    (size,) = weights.transforms().crop_size
    rows[name] = {'params': weights.meta['num_params'], 'gmacs': weights.meta['_ops'], 'size': size}
  lines = [f'{json.dumps(name)}: {json.dumps(row)}' for name, row in sorted(rows.items())]
  path.write_text('{\n' + ',\n'.join(lines) + '\n}\n', encoding='utf-8')
  print(torchvision.__version__, len(rows), path)


if __name__ == '__main__':
  main()
