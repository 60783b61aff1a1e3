"""Writes detector_names.json: of each published detector the number of its state dict's names, and their crc32.

    python tests/golden/make_detector_names.py --reference FOLDER

Run with torch 2.13 and torchvision 0.28; nothing is downloaded. FOLDER holds `dense_shapes.json.gz`, the names and
shapes of the state dict of facebookresearch/detr's `detr_resnet50`, made with its code. torchvision's are built twice:
as without weights, with BatchNorm that learns, and as with them, where it is frozen (a key that ends in ':frozen').
"""

import argparse
import gzip
import json
import pathlib

FOLDER = pathlib.Path(__file__).resolve().parent
NAMES = ('retinanet_resnet50_fpn', 'fcos_resnet50_fpn', 'ssd300_vgg16', 'ssdlite320_mobilenet_v3_large',
         'fasterrcnn_resnet50_fpn', 'fasterrcnn_mobilenet_v3_large_fpn', 'fasterrcnn_mobilenet_v3_large_320_fpn')


def main():
  import make_detectors  # beside this file
  import torch
  from torchvision.models import get_model
  from torchvision.ops import FrozenBatchNorm2d
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--reference', type=pathlib.Path, required=True)
  reference = parser.parse_args().reference
  found = {}
  for name in NAMES:
    with torch.device('meta'):
      model = get_model(name, weights=None, weights_backbone=None)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found[name] = make_detectors.digest(shapes)
    if not name.startswith('ssd'):  # torchvision freezes the norms of bodies alone, and none of SSD's
      body = {key.rpartition('.')[0] for key in shapes if key.endswith('num_batches_tracked') and 'body.' in key}
      counters = {f'{module}.num_batches_tracked' for module in body}
      assert set(FrozenBatchNorm2d(1).state_dict()) == {'weight', 'bias', 'running_mean', 'running_var'}
      found[f'{name}:frozen'] = make_detectors.digest(
          {key: shape for key, shape in shapes.items() if key not in counters})
  with gzip.open(reference / 'dense_shapes.json.gz') as file:
    found['detr_resnet50'] = make_detectors.digest(
        {key: tuple(shape) for key, shape in json.load(file)['detr_resnet50'].items()})
  (FOLDER / 'detector_names.json').write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
  main()
