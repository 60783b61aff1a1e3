"""COCO's evaluation of 5,000 images with 100 detections each: `DetectionAP` beside pycocotools, a process for each.

python experiments/benches/coco_eval.py ours|pycocotools   prints one JSON line: seconds, peak memory, AP
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import io
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
IMAGES, DETECTIONS, CLASSES = 5000, 100, 80


def _sizes(rng: np.random.Generator, count: int) -> np.ndarray:
  return np.exp(rng.normal(4, 0.9, (count, 2)))  # 55 pixels in the median, widely spread, as COCO's


def examples() -> Iterator[tuple[dict, dict]]:
  """(prediction, target) of each image: objects found up to seven times, wrongly placed boxes up to 100."""
  rng = np.random.default_rng(0)
  for index in range(IMAGES):
    count = rng.poisson(7.3)  # COCO's mean
    corner, size, labels = rng.uniform(0, 500, (count, 2)), _sizes(rng, count), rng.integers(0, CLASSES, count)
    boxes = np.concatenate([corner, corner + size], axis=1)
    found = np.repeat(np.arange(count), rng.integers(0, 8, count))[:DETECTIONS]
    near = boxes[found] + rng.normal(0, 0.1, (len(found), 4)) * np.tile(size[found], 2)
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    more = DETECTIONS - len(found)
    corner = rng.uniform(0, 500, (more, 2))
    detected = np.concatenate([near, np.concatenate([corner, corner + _sizes(rng, more)], axis=1)])
    classes = np.concatenate([labels[found], rng.integers(0, CLASSES, more)])
    yield ({'boxes': detected, 'scores': rng.random(DETECTIONS), 'labels': classes},
           {'boxes': boxes, 'labels': labels, 'index': index})


def _xywh(box: np.ndarray) -> list[float]:
  return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]


def ours() -> tuple[float, float]:
  """(AP, seconds) of counting all images and computing the figures."""
  sys.path.insert(0, str(ROOT))
  from vision_jax.conventions import ClassMap
  from vision_jax.metrics import DetectionAP
  everything = list(examples())
  start = time.perf_counter()
  metric = DetectionAP(ClassMap(names=tuple(map(str, range(CLASSES)))))
  for prediction, target in everything:
    metric.add(prediction, target)
  return metric.result()['AP'], time.perf_counter() - start


def pycocotools() -> tuple[float, float]:
  """(AP, seconds) of loading the same as COCO's dicts and evaluating them."""
  from pycocotools.coco import COCO
  from pycocotools.cocoeval import COCOeval
  annotations, results = [], []
  for image, (prediction, target) in enumerate(examples()):
    for box, label in zip(target['boxes'], target['labels'], strict=True):
      annotations.append({'id': len(annotations) + 1, 'image_id': image, 'category_id': int(label), 'iscrowd': 0,
                          'bbox': _xywh(box), 'area': float((box[2] - box[0]) * (box[3] - box[1]))})
    results.extend({'image_id': image, 'category_id': int(label), 'bbox': _xywh(box), 'score': float(score)}
                   for box, label, score in zip(*(prediction[k] for k in ('boxes', 'labels', 'scores')), strict=True))
  start = time.perf_counter()
  with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO()
    truth.dataset = {'info': {}, 'images': [{'id': i} for i in range(IMAGES)], 'annotations': annotations,
                     'categories': [{'id': k} for k in range(CLASSES)]}
    truth.createIndex()
    run = COCOeval(truth, truth.loadRes(results), 'bbox')
    run.evaluate()
    run.accumulate()
    run.summarize()
  return float(run.stats[0]), time.perf_counter() - start


def table() -> None:
  """Runs both, each in a process of its own, and prints a row for each."""
  print(f'\nCOCO evaluation, {IMAGES} images x {DETECTIONS} detections')
  print('| what        | seconds | peak memory |     AP |')
  found = {}
  for side in ('ours', 'pycocotools'):
    ran = subprocess.run([sys.executable, __file__, side], capture_output=True, text=True, check=False,
                         env={**os.environ, 'OMP_NUM_THREADS': '1'})
    if ran.returncode:
      print(f'| {side:<11} | {ran.stderr.strip().splitlines()[-1]} |')
      continue
    found[side] = json.loads(ran.stdout)
    print('| {:<11} | {seconds:>7.1f} | {gigabytes:>8.2f} GB | {AP:.4f} |'.format(side, **found[side]), flush=True)
  if len(found) == 2:
    print(f'ours is {found["pycocotools"]["seconds"] / found["ours"]["seconds"]:.1f} times as fast')


if __name__ == '__main__':
  average_precision, seconds = {'ours': ours, 'pycocotools': pycocotools}[sys.argv[1]]()
  gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  print(json.dumps({'seconds': seconds, 'gigabytes': gigabytes, 'AP': average_precision}))
