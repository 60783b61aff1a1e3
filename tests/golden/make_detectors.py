"""Writes detectors.npz: outputs and losses of published detectors under weights from a formula, cut to what tests need.

    python tests/golden/make_detectors.py --reference FOLDER

FOLDER holds `dense_outputs.npz`, all outputs, and `dense_shapes.json.gz`, the names and shapes of the state dicts, made
with torch 1.13.0, torchvision 0.14.1 and the original code of DETR (facebookresearch/detr) on a CPU. Weights, images
and objects come from `numpy.random.default_rng`, so the tests draw them anew: `fill`, `pixels`, `detr_batch`. The
canvas is 320 x 416; there is no resize.

For each detector: `names`, how many entries its state dict has and the crc32 of their names and shapes, and what its
row of `KEPT` makes of the outputs.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import json
import pathlib
import zlib

import numpy as np

FOLDER = pathlib.Path(__file__).resolve().parent
CANVAS = (320, 416)
BOXES = np.float32([[20, 30, 120, 200], [150, 60, 300, 180], [200, 200, 380, 310]])
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
DETR_CLASSES = 4  # every so many of DETR's logits are kept


def fill(name: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
  """The value of a state dict's entry."""
  rng, last = np.random.default_rng(zlib.crc32(name.encode())), name.rpartition('.')[2]
  if last == 'running_var':
    value = rng.uniform(0.5, 1.5, shape)
  elif last in ('bias', 'running_mean') or not shape:
    value = 0.1 * rng.standard_normal(shape)
  elif len(shape) == 1:
    value = rng.uniform(0.5, 1.5, shape)
  else:
    value = rng.standard_normal(shape) * gain / np.sqrt(np.prod(shape[1:]))
  return np.asarray(value, np.float32)


def pixels(seed: int = 0, size: tuple[int, int] = CANVAS) -> np.ndarray:
  """An image [h, w, 3] in 0..1."""
  return np.random.default_rng(seed).uniform(0, 1, (3, *size)).astype(np.float32).transpose(1, 2, 0)


def digest(shapes: dict[str, tuple[int, ...]]) -> list[int]:
  """How many names there are, and the crc32 of the lines 'name [d, d]' in order of the names."""
  text = '\n'.join(f'{name} {list(shape)}' for name, shape in sorted(shapes.items()))
  return [len(shapes), zlib.crc32(text.encode())]


# ---- DETR: two images of different sizes on one canvas ----


def detr_batch() -> tuple[np.ndarray, ...]:
  """image [2, H, W, 3], image_size [2, 2], boxes [2, 3, 4], labels [2, 3] (COCO's file ids), boxes_valid [2, 3]."""
  sizes = np.array([CANVAS, (256, 352)], np.int32)
  image = np.zeros((2, *CANVAS, 3), np.float32)
  for i, (h, w) in enumerate(sizes):
    image[i, :h, :w] = (pixels(i, (h, w)) - MEAN) / STD
  boxes, labels = np.zeros((2, 3, 4), np.float32), np.array([[1, 17, 5], [3, 0, 0]], np.int32)
  boxes[0], boxes[1, 0] = BOXES, [5, 8, 200, 240]
  return image, sizes, boxes, labels, np.array([[True] * 3, [True, False, False]])


def keep_detr(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  kept = {'logits': outputs['pred_logits'][..., ::DETR_CLASSES], 'largest': np.abs(outputs['pred_logits']).max(),
          'boxes': outputs['pred_boxes']}
  kept |= {f'match_{i}': outputs[f'match_{i}'].astype(np.int32) for i in range(2)}
  ours = (('loss_ce', 'loss_class'), ('loss_bbox', 'loss_box'), ('loss_giou', 'loss_giou'))
  for theirs, name in ours:
    kept |= {key.replace(theirs, name): value for key, value in outputs.items() if key.startswith(theirs)}
  return kept


# ---- RetinaNet and FCOS: one image, every 50th anchor ----

EVERY = 50  # of the anchors
LABELS = np.array([1, 17, 5], np.int32)  # COCO's file ids
DENSE_LOSSES = {'loss_classification': 'loss_class', 'loss_bbox_regression': 'loss_box',
                'loss_bbox_ctrness': 'loss_centerness'}


def dense_batch() -> tuple[np.ndarray, ...]:
  """image [1, H, W, 3], image_size [1, 2], boxes [1, 3, 4], labels [1, 3]."""
  return ((pixels() - MEAN) / STD)[None], np.array([CANVAS], np.int32), BOXES[None], LABELS[None]


def keep_dense(outputs: dict[str, np.ndarray], *, logits_every: int, offsets: str) -> dict[str, np.ndarray]:
  """`logits_every`: of the rows that there are."""
  kept = {'logits': outputs['cls_logits'][::logits_every], 'largest': np.abs(outputs['cls_logits']).max(),
          offsets: outputs['bbox_regression'], 'anchors': outputs['anchors']}
  if 'bbox_ctrness' in outputs:
    kept['centerness'] = outputs['bbox_ctrness'][:, 0]
  kept |= {f'detected_{name}': outputs[f'det_{name}'] for name in ('boxes', 'scores', 'labels')}
  return kept | {ours: outputs[theirs] for theirs, ours in DENSE_LOSSES.items() if theirs in outputs}


# ---- Faster R-CNN: one image; what both stages predict, and both losses, of which nothing is sampled away ----

TWO_STAGE_LOSSES = {'loss_classifier': 'loss_class', 'loss_box_reg': 'loss_box',
                    'loss_objectness': 'loss_rpn_objectness', 'loss_rpn_box_reg': 'loss_rpn_box'}
PIXELS = 4  # the network for proposals is kept at every so many pixels of a map
FINEST = 2  # and of these, on the finest map, the deltas at every so many


def keep_two_stage(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  kept = {key.removeprefix('rpn_'): value for key, value in outputs.items() if key.startswith('rpn_')}
  kept['deltas_0'] = kept['deltas_0'][:, ::FINEST, ::FINEST]
  kept |= {'proposals': outputs['given_proposals'], 'logits': outputs['roi_class_logits'],
           'box_deltas': outputs['roi_box_deltas']}
  kept |= {f'detected_{name}': outputs[f'det_{name}'] for name in ('boxes', 'scores', 'labels')}
  return kept | {ours: outputs[theirs] for theirs, ours in TWO_STAGE_LOSSES.items()}


KEPT = {
    'detr_resnet50': keep_detr,
    'retinanet_resnet50_fpn': functools.partial(keep_dense, logits_every=5, offsets='deltas'),
    'fcos_resnet50_fpn': functools.partial(keep_dense, logits_every=1, offsets='distances'),
    'fasterrcnn_resnet50_fpn': keep_two_stage,
}


def main(reference: pathlib.Path) -> None:
  outputs, arrays = np.load(reference / 'dense_outputs.npz'), {}
  shapes = json.loads(gzip.decompress((reference / 'dense_shapes.json.gz').read_bytes()))
  for name, keep in KEPT.items():
    own = {key.partition('/')[2]: outputs[key] for key in outputs.files if key.startswith(f'{name}/')}
    names = {key: tuple(shape) for key, shape in dict(shapes[name]).items() if not key.endswith('num_batches_tracked')}
    for key, value in {'names': np.array(digest(names)), **keep(own)}.items():
      arrays[f'{name}/{key}'] = value
      print(name, key, value.shape, value.nbytes)
  np.savez_compressed(FOLDER / 'detectors.npz', **arrays)


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--reference', type=pathlib.Path, required=True)
  main(parser.parse_args().reference)
