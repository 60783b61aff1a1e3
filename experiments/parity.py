"""COCO's twelve figures by `DetectionAP` beside pycocotools, on a COCO data set with simulated detections.

python experiments/parity.py --path data/coco_json [--split val] [--seed 0]

The detections are the objects themselves, moved, found twice, missed, or of a wrong class, and 500 false ones in the
first image; masks are the objects' own, shifted. pycocotools is needed (it is in the extra `dev`).
"""

import launch  # first: it sets the environment that jax reads

import contextlib
import io
from typing import Any

from absl import flags
import numpy as np

from vision_jax import data
from vision_jax.host import rle
from vision_jax.metrics import DetectionAP

FLAGS = flags.FLAGS
flags.DEFINE_string('path', None, 'A folder in the format of COCO.', required=True)
flags.DEFINE_string('split', 'val', "'train' or 'val'.")
flags.DEFINE_integer('seed', 0, 'Of the simulated detections.')


def main() -> None:
  source = data.create('coco', FLAGS.split, path=FLAGS.path, masks=True, on_error='skip')
  rng = np.random.default_rng(FLAGS.seed)
  examples = [(simulated(rng, source.target(i), len(source.classes), 500 if i == 0 else 20), source.target(i))
              for i in range(len(source))]
  print(f'{len(source)} images, {sum(len(t["labels"]) for _, t in examples)} objects '
        f'({sum(t["crowd"].sum() for _, t in examples)} crowds), '
        f'{sum(len(p["labels"]) for p, _ in examples)} detections')
  print('| over | figure | DetectionAP | pycocotools | difference |\n|---|---|---|---|---|')
  for over in ('boxes', 'masks'):
    metric = DetectionAP(source.classes, over=over)
    for index, (prediction, target) in enumerate(examples):
      metric.add(prediction, {**target, 'index': index})
    ours = [(name, np.nan_to_num(value, nan=-1.0)) for name, value in metric.result().items()][:12]  # COCO's -1
    for (name, value), other in zip(ours, pycocotools(examples, len(source.classes), over), strict=True):
      print(f'| {over} | {name} | {value:.12f} | {other:.12f} | {abs(value - other):.1e} |')


def simulated(rng: np.random.Generator, target: dict[str, Any], num_classes: int, strays: int) -> dict[str, Any]:
  """Detections of one image."""
  found = np.repeat(np.arange(len(target['labels'])), rng.choice([0, 1, 1, 2, 3], len(target['labels'])))
  boxes = target['boxes'][found].reshape(-1, 4)
  boxes = boxes + rng.normal(0, 0.06, boxes.shape) * np.tile(boxes[:, 2:] - boxes[:, :2], 2)
  corner = rng.uniform(0, 400, (strays, 2))
  boxes = np.concatenate([boxes, np.concatenate([corner, corner + rng.uniform(10, 200, (strays, 2))], axis=1)])
  boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
  labels = np.concatenate([target['labels'][found], rng.integers(0, num_classes, strays)])
  labels = np.where(rng.random(len(labels)) < 0.1, rng.integers(0, num_classes, len(labels)), labels)
  masks = [rle.encode(np.roll(rle.decode(target['masks'][k]), rng.integers(-6, 7, 2), axis=(0, 1))) for k in found]
  size = target['masks'][0]['size'] if target['masks'] else (100, 100)
  masks += [rle.encode(np.zeros(size, bool))] * strays
  return {'boxes': boxes, 'labels': labels, 'masks': masks, 'scores': rng.random(len(labels)).round(2)}


def pycocotools(examples: list, num_classes: int, over: str) -> np.ndarray:
  """The twelve figures of the same by COCO's own code."""
  from pycocotools.coco import COCO
  from pycocotools.cocoeval import COCOeval
  shape = {'boxes': lambda fields, k: {'bbox': xywh(fields['boxes'][k])},
           'masks': lambda fields, k: {'segmentation': fields['masks'][k]}}[over]
  annotations, results, images = [], [], []
  for image, (prediction, target) in enumerate(examples):
    size = target['masks'][0]['size'] if target['masks'] else (100, 100)
    images.append({'id': image, 'height': size[0], 'width': size[1]})
    annotations += [{'id': len(annotations) + k + 1, 'image_id': image, 'category_id': int(target['labels'][k]),
                     'iscrowd': int(target['crowd'][k]), 'area': float(target['area'][k]),
                     **shape(target, k), 'bbox': xywh(target['boxes'][k])} for k in range(len(target['labels']))]
    results += [{'image_id': image, 'category_id': int(prediction['labels'][k]),
                 'score': float(prediction['scores'][k]), **shape(prediction, k)}
                for k in range(len(prediction['labels']))]
  with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO()
    truth.dataset = {'info': {}, 'images': images, 'annotations': annotations,
                     'categories': [{'id': k} for k in range(num_classes)]}
    truth.createIndex()
    run = COCOeval(truth, truth.loadRes(results), {'boxes': 'bbox', 'masks': 'segm'}[over])
    run.evaluate()
    run.accumulate()
    run.summarize()
  return run.stats


def xywh(box: np.ndarray) -> list[float]:
  return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]


if __name__ == '__main__':
  launch.run(main)
