"""Writes rle.npz: run lengths and filled polygons as pycocotools makes them.

    python tests/golden/make_rle.py

Made with pycocotools 2.0.11 and NumPy 2.4.6. The inputs are drawn by `numpy.random.RandomState`, whose streams never
change, so only outputs are kept, of the polygons' strings only the checksums; the tests call the functions that draw.
"""

import pathlib
import zlib

import numpy as np

# Triangles in which a pixel depends on the last bit of a product, and so on the end from which an edge is walked.
ROUNDED = [[38, 55, 8, 3, 44, 46], [27, 31, 35, 17, 1, 42], [5, 53, 50, 39, 16, 14], [13, 20, 48, 15, 4, 0],
           [38, 20, 21, 59, 13, 54]]


def draw_masks(seed=0, count=40):
  """Masks of many sizes from 1 x 1 on: noise, rectangles, nothing, everything; the first is large, for long runs."""
  random = np.random.RandomState(seed)
  masks = []
  for i in range(count):
    h, w = random.randint(1, 50, 2) if i else (900, 1300)
    mask = np.zeros((h, w), bool)
    for _ in range(random.randint(0, 5)):
      y, x = random.randint(0, h), random.randint(0, w)
      mask[y:y + random.randint(1, h + 1), x:x + random.randint(1, w + 1)] ^= True
    masks.append(mask ^ (random.uniform(size=(h, w)) < (random.choice([0, 0.01, 0.5, 1]) if i else 1e-4)))
  return masks


def draw_groups(seed=1, count=30):
  """Groups of one to five masks of one size, and which of them are crowds."""
  random = np.random.RandomState(seed)
  groups = []
  for _ in range(count):
    h, w, n = random.randint(1, 20), random.randint(1, 20), random.randint(1, 6)
    groups.append((random.uniform(size=(n, h, w)) < random.uniform(size=(n, 1, 1)), random.uniform(size=n) < 0.5))
  return groups


def draw_polygons(seed=2, count=400):
  """Lists of one to three polygons and the (h, w) of their image.

  Whole and fractional corners, some outside the image or far away, tiny ones, points in a line, points that stand
  twice; the corners follow in any order, so most boundaries cross themselves.
  """
  random = np.random.RandomState(seed)
  cases = [([triangle], (60, 60)) for triangle in ROUNDED]
  for _ in range(count):
    size, polygons = random.randint(1, 70, 2), []
    for _ in range(random.randint(1, 4)):
      kind, points = random.randint(0, 8), random.uniform(size=(random.randint(3, 11), 2))
      if kind < 3:  # within the image: as drawn, on whole pixels, on tenths
        points = points * size[::-1]
        points = (points, np.round(points), np.round(points * 10) / 10)[kind]
      elif kind < 5:  # beyond it
        points = (points * 3 - 1) * size[::-1] * (1 if kind == 3 else 100)
      elif kind == 5:  # tiny
        points = random.uniform(size=2) * size[::-1] + points * 1.5
      elif kind == 6:  # in a line
        points = (points[0] + (points[1] - points[0]) * points[:, :1]) * size[::-1]
      else:
        points = np.repeat(points * size[::-1], 2, axis=0)
      polygons.append(points.ravel().tolist())
    cases.append((polygons, (int(size[0]), int(size[1]))))
  return cases


def draw_boxes(seed=3, count=60):
  """xyxy boxes, inverted ones too, and the (h, w) of their image."""
  random = np.random.RandomState(seed)
  sizes = random.randint(1, 60, (count, 2))
  corners = np.round((random.uniform(size=(count, 2, 2)) * 1.6 - 0.3) * sizes[:, None, ::-1] * 4) / 4
  return corners.reshape(count, 4), sizes


def main():
  from pycocotools import mask as coco

  encode = lambda mask: coco.encode(np.asfortranarray(mask, dtype=np.uint8))
  checksum = lambda rle: zlib.crc32(rle['counts'])
  areas = lambda rles: [int(coco.area(rle)) for rle in rles]  # one by one: a list of more than 255 fails
  rles = [encode(mask) for mask in draw_masks()]
  found = {'strings': b' '.join(rle['counts'] for rle in rles), 'areas': areas(rles), 'boxes_xywh': coco.toBbox(rles)}
  groups = [([encode(mask) for mask in masks], crowd) for masks, crowd in draw_groups()]
  for name, intersect in (('unions', False), ('intersections', True)):
    found[name] = b' '.join(coco.merge(group, intersect)['counts'] for group, _ in groups)
  found['ious'] = np.concatenate([coco.iou(group, group, crowd.tolist()).ravel() for group, crowd in groups])
  merged = [coco.merge(coco.frPyObjects(polygons, *size)) for polygons, size in draw_polygons()]
  found['polygons'], found['polygon_areas'] = [checksum(rle) for rle in merged], areas(merged)
  boxes, sizes = draw_boxes()
  xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
  found['boxes'] = [checksum(coco.frPyObjects(box[None], *map(int, size))[0]) for box, size in zip(xywh, sizes)]
  np.savez_compressed(pathlib.Path(__file__).with_name('rle.npz'), **{k: np.asarray(v) for k, v in found.items()})


if __name__ == '__main__':
  main()
