"""Slow truth in plain NumPy loops, written from the papers' definitions and not from `vision_jax`."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np


def iou_family(a, b) -> dict[str, float]:
  """IoU, GIoU, DIoU and CIoU of two boxes in float64; an inverted or empty box encloses nothing, 0 / 0 is 0."""
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  wa, ha, wb, hb = (max(float(v), 0.0) for v in (a[2] - a[0], a[3] - a[1], b[2] - b[0], b[3] - b[1]))
  inter = (max(min(a[2], b[2]) - max(a[0], b[0]), 0.0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0.0))
  union = wa * ha + wb * hb - inter
  iou = inter / union if union > 0 else 0.0
  xs, ys = (a[0], a[2], b[0], b[2]), (a[1], a[3], b[1], b[3])
  hull_w, hull_h = max(xs) - min(xs), max(ys) - min(ys)
  giou = iou - ((hull_w * hull_h - union) / (hull_w * hull_h) if hull_w * hull_h > 0 else 0.0)
  between = ((a[0] + a[2] - b[0] - b[2]) / 2) ** 2 + ((a[1] + a[3] - b[1] - b[3]) / 2) ** 2
  diagonal = hull_w**2 + hull_h**2
  diou = iou - (between / diagonal if diagonal > 0 else 0.0)
  angle_a = math.atan2(wa, ha) if wa or ha else math.pi / 4
  angle_b = math.atan2(wb, hb) if wb or hb else math.pi / 4
  aspect = 4 / math.pi**2 * (angle_a - angle_b) ** 2
  alpha = aspect / (1 - iou + aspect) if aspect > 0 else 0.0
  return {'iou': iou, 'giou': giou, 'diou': diou, 'ciou': diou - alpha * aspect, 'alpha': alpha}


def nms(boxes, scores, iou_threshold, labels=None) -> list[int]:
  """Greedy NMS as torchvision's CPU kernel does it: IoU in float32, threshold in double; what stays, best first."""
  boxes, scores = np.asarray(boxes, np.float32), np.asarray(scores, np.float32)
  labels = np.zeros(len(boxes), int) if labels is None else np.asarray(labels)
  areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
  order, kept, gone = np.argsort(-scores, kind='stable'), [], np.zeros(len(boxes), bool)
  for place, i in enumerate(order):
    if gone[i]:
      continue
    kept.append(int(i))
    for j in order[place + 1:]:
      w = max(np.float32(0), min(boxes[i, 2], boxes[j, 2]) - max(boxes[i, 0], boxes[j, 0]))
      h = max(np.float32(0), min(boxes[i, 3], boxes[j, 3]) - max(boxes[i, 1], boxes[j, 1]))
      inter = w * h
      union = areas[i] + areas[j] - inter
      if labels[i] == labels[j] and union > 0 and float(inter / union) > float(iou_threshold):
        gone[j] = True
  return kept


def sigmoid(x: float) -> float:
  return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def binary_cross_entropy(logit: float, target: float) -> float:
  return max(logit, 0.0) - logit * target + math.log1p(math.exp(-abs(logit)))


def softmax_cross_entropy(logits, label: int, label_smoothing: float = 0.0) -> float:
  """Cross-entropy of one vector of logits with the smoothed truth."""
  logits = np.asarray(logits, np.float64)
  truth = np.full(len(logits), label_smoothing / len(logits))
  truth[label] += 1 - label_smoothing
  p = np.exp(logits - logits.max())
  return float(-(truth * np.log(p / p.sum())).sum())


def dice(probabilities, targets, smooth: float) -> float:
  """Soft Dice coefficient of one class of one image, over pixels in a row."""
  both = sum(float(p) * float(t) for p, t in zip(probabilities, targets))
  either = sum(float(p) + float(t) for p, t in zip(probabilities, targets))
  return (2 * both + smooth) / (either + smooth) if either + smooth > 0 else 1.0


def yolo_box(t, column: int, row: int, anchor, stride: float) -> list[float]:
  """The decoded box (xyxy) of one slot's t_x, t_y, t_w, t_h."""
  cx, cy = (column + sigmoid(t[0])) * stride, (row + sigmoid(t[1])) * stride
  w, h = anchor[0] * math.exp(t[2]), anchor[1] * math.exp(t[3])
  return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]


def shape_iou(size_a, size_b) -> float:
  inter = min(size_a[0], size_b[0]) * min(size_a[1], size_b[1])
  return inter / (size_a[0] * size_a[1] + size_b[0] * size_b[1] - inter)


def yolo_assign(boxes, anchors, strides, canvas, extra_match_iou=None, match='global') -> tuple[dict, int]:
  """`{(level, row, column, anchor): object}` of one image's real boxes, and the number of objects that lost their best.

  An object claims the slot of its best anchor (first of equals), or of that in each level; the better fit wins a slot,
  then the earlier object. Extra matches take what is left, by the same rule.
  """
  best_claims, extra_claims, dearest = [], [], []
  for n, box in enumerate(boxes):
    size = box[2] - box[0], box[3] - box[1]
    if size[0] <= 0 or size[1] <= 0:
      continue
    fits = [(shape_iou(size, prior), level, a)
            for level, priors in enumerate(anchors) for a, prior in enumerate(priors)]
    best = max(range(len(fits)), key=lambda k: (fits[k][0], -k))
    chosen = {best}
    if match == 'per_level':
      chosen = {max((k for k in range(len(fits)) if fits[k][1] == level), key=lambda k: (fits[k][0], -k))
                for level in range(len(anchors))}
    for k, (fit, level, a) in enumerate(fits):
      h, w = canvas[0] // strides[level], canvas[1] // strides[level]
      column = min(max(math.floor((box[0] + box[2]) / 2 / strides[level]), 0), w - 1)
      row = min(max(math.floor((box[1] + box[3]) / 2 / strides[level]), 0), h - 1)
      claim = -fit, n, (level, row, column, a)
      if k == best:
        dearest.append(claim)
      if k in chosen:
        best_claims.append(claim)
      elif extra_match_iou is not None and fit > extra_match_iou:
        extra_claims.append(claim)
  owners: dict = {}
  for _, n, slot in sorted(best_claims) + sorted(extra_claims):
    owners.setdefault(slot, n)
  return owners, sum(owners[slot] != n for _, n, slot in dearest)


def yolo_loss(outputs, boxes, labels, *, anchors, strides, box_loss='sse', ignore_threshold=0.7,
              objectness_target='binary', label_smoothing=0.0, extra_match_iou=None, match='global',
              ignore='predicted') -> dict[str, float]:
  """YOLOv3's sums for one image: outputs [h, w, A, 5 + K] for each level, and only real boxes."""
  canvas = outputs[0].shape[0] * strides[0], outputs[0].shape[1] * strides[0]
  owners, _ = yolo_assign(boxes, anchors, strides, canvas, extra_match_iou, match)
  sums = {'loss_box': 0.0, 'loss_objectness': 0.0, 'loss_class': 0.0, 'count': float(len(owners))}
  for level, output in enumerate(outputs):
    for row, column, a in np.ndindex(output.shape[:3]):
      raw, anchor, stride = [float(v) for v in output[row, column, a]], anchors[level][a], strides[level]
      box = yolo_box(raw, column, row, anchor, stride)
      owner = owners.get((level, row, column, a))
      if owner is None:
        rival = box if ignore == 'predicted' else yolo_box([0.0] * 4, column, row, anchor, stride)
        if all(iou_family(rival, other)['iou'] <= ignore_threshold for other in boxes):
          sums['loss_objectness'] += binary_cross_entropy(raw[4], 0.0)
        continue
      truth = [float(v) for v in boxes[owner]]
      w, h = truth[2] - truth[0], truth[3] - truth[1]
      goal = ((truth[0] + truth[2]) / 2 / stride - column, (truth[1] + truth[3]) / 2 / stride - row,
              math.log(w / anchor[0]), math.log(h / anchor[1]))
      said = sigmoid(raw[0]), sigmoid(raw[1]), raw[2], raw[3]
      alike = iou_family(box, truth)
      error = sum((s - g) ** 2 for s, g in zip(said, goal)) / 2 if box_loss == 'sse' else 1 - alike[box_loss]
      sums['loss_box'] += (2 - min(w * h / (canvas[0] * canvas[1]), 1.0)) * error
      sums['loss_objectness'] += binary_cross_entropy(raw[4], 1.0 if objectness_target == 'binary' else alike['iou'])
      for k, logit in enumerate(raw[5:]):
        one = float(k == labels[owner])
        sums['loss_class'] += binary_cross_entropy(logit, one * (1 - label_smoothing) + label_smoothing / 2)
  return sums


def yolov2_loss(output, boxes, labels, *, anchors, stride, box_loss='sse', small_box_weight=True, ignore_threshold=0.6,
                objectness_target='iou') -> dict[str, float]:
  """YOLOv2's sums for one image, `loss_prior` included: output [h, w, A, 5 + K], and only real boxes."""
  canvas = output.shape[0] * stride, output.shape[1] * stride
  owners, _ = yolo_assign(boxes, (anchors,), (stride,), canvas)
  sums = dict.fromkeys(('loss_box', 'loss_objectness', 'loss_no_object', 'loss_class', 'loss_prior'), 0.0)
  for row, column, a in np.ndindex(output.shape[:3]):
    raw, anchor = [float(v) for v in output[row, column, a]], anchors[a]
    box, said = yolo_box(raw, column, row, anchor, stride), (sigmoid(raw[0]), sigmoid(raw[1]), raw[2], raw[3])
    if (0, row, column, a) not in owners:
      if all(iou_family(box, other)['iou'] <= ignore_threshold for other in boxes):
        sums['loss_no_object'] += sigmoid(raw[4]) ** 2 / 2
      sums['loss_prior'] += sum((s - g) ** 2 for s, g in zip(said, (0.5, 0.5, 0, 0))) / 2
      continue
    owner = owners[0, row, column, a]
    truth = [float(v) for v in boxes[owner]]
    w, h = truth[2] - truth[0], truth[3] - truth[1]
    goal = ((truth[0] + truth[2]) / 2 / stride - column, (truth[1] + truth[3]) / 2 / stride - row,
            math.log(w / anchor[0]), math.log(h / anchor[1]))
    alike = iou_family(box, truth)
    error = sum((s - g) ** 2 for s, g in zip(said, goal)) / 2 if box_loss == 'sse' else 1 - alike[box_loss]
    sums['loss_box'] += error * (2 - min(w * h / (canvas[0] * canvas[1]), 1.0) if small_box_weight else 1)
    sums['loss_objectness'] += (sigmoid(raw[4]) - (alike['iou'] if objectness_target == 'iou' else 1)) ** 2 / 2
    sums['loss_class'] += softmax_cross_entropy(raw[5:], labels[owner])
  return sums


def yolov1_box(raw, column: int, row: int, grid, canvas) -> list[float]:
  """The decoded box (xyxy) of a cell's x, y, sqrt(w), sqrt(h)."""
  cx, cy = (column + raw[0]) / grid[1] * canvas[1], (row + raw[1]) / grid[0] * canvas[0]
  w, h = raw[2] ** 2 * canvas[1], raw[3] ** 2 * canvas[0]
  return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]


def yolov1_assign(predicted, boxes, canvas) -> tuple[dict, int]:
  """`{(row, column, box of the cell): object}` of one image's real boxes, and how many objects lost their cell.

  predicted [h, w, P, 4]. The largest object has a cell, then the earliest; among the cell's boxes the one with the
  largest IoU, or, if all are 0, the one nearest in (cx, cy, w, h) as shares of the canvas; the first of equals.
  """
  (h, w), claims, owners = predicted.shape[:2], [], {}
  share = lambda b: ((b[0] + b[2]) / 2 / canvas[1], (b[1] + b[3]) / 2 / canvas[0], (b[2] - b[0]) / canvas[1],
                     (b[3] - b[1]) / canvas[0])
  for n, box in enumerate(boxes):
    box = [float(v) for v in box]
    if box[2] > box[0] and box[3] > box[1]:
      row, column = math.floor(share(box)[1] * h), math.floor(share(box)[0] * w)
      cell = min(max(row, 0), h - 1), min(max(column, 0), w - 1)
      claims.append((-(box[2] - box[0]) * (box[3] - box[1]), n, cell))
  taken: dict = {}
  for _, n, cell in sorted(claims):
    taken.setdefault(cell, n)
  for cell, n in taken.items():
    rivals = [[float(v) for v in rival] for rival in predicted[cell]]
    ious = [iou_family(rival, boxes[n])['iou'] for rival in rivals]
    far = [sum((a - b) ** 2 for a, b in zip(share(rival), share([float(v) for v in boxes[n]]))) for rival in rivals]
    owners[(*cell, ious.index(max(ious)) if max(ious) > 0 else far.index(min(far)))] = n
  return owners, len(claims) - len(taken)


def yolov1_loss(output, boxes, labels, *, canvas, boxes_per_cell=2, objectness_target='iou') -> dict[str, float]:
  """YOLOv1's sums for one image: output [h, w, 5 P + K], and only real boxes."""
  h, w = output.shape[:2]
  raw = np.asarray(output[..., :5 * boxes_per_cell], np.float64).reshape(h, w, boxes_per_cell, 5)
  predicted = np.array([[[yolov1_box(t, column, row, (h, w), canvas) for t in raw[row, column]] for column in range(w)]
                        for row in range(h)])
  owners, _ = yolov1_assign(predicted, boxes, canvas)
  sums = dict.fromkeys(('loss_box', 'loss_objectness', 'loss_no_object', 'loss_class'), 0.0)
  for row, column, j in np.ndindex(raw.shape[:3]):
    x, y, root_w, root_h, confidence = raw[row, column, j]
    if (row, column, j) not in owners:
      sums['loss_no_object'] += confidence**2
      continue
    n = owners[row, column, j]
    x1, y1, x2, y2 = (float(v) for v in boxes[n])
    sums['loss_box'] += ((x - ((x1 + x2) / 2 / canvas[1] * w - column)) ** 2
                         + (y - ((y1 + y2) / 2 / canvas[0] * h - row)) ** 2
                         + (root_w - math.sqrt((x2 - x1) / canvas[1])) ** 2
                         + (root_h - math.sqrt((y2 - y1) / canvas[0])) ** 2)
    goal = iou_family(predicted[row, column, j], boxes[n])['iou'] if objectness_target == 'iou' else 1
    sums['loss_objectness'] += (confidence - goal) ** 2
    for k, p in enumerate(output[row, column, 5 * boxes_per_cell:]):
      sums['loss_class'] += (float(p) - (k == labels[n])) ** 2
  return sums


def slope(function, values, direction, step: float = 1e-6) -> float:
  """The central difference of a float64 function along a direction."""
  ahead, behind = (float(function(values + sign * step * direction)) for sign in (1, -1))
  return (ahead - behind) / (2 * step)


def focal_loss(logit: float, target: float, alpha: float | None, gamma: float) -> float:
  missing = target * sigmoid(-logit) + (1 - target) * sigmoid(logit)
  weight = 1.0 if alpha is None else alpha * target + (1 - alpha) * (1 - target)
  return weight * missing**gamma * binary_cross_entropy(logit, target)


def tversky(probabilities, targets, alpha: float, beta: float, smooth: float) -> float:
  """Tversky's coefficient of one class, over pixels in a row; half of `smooth` is added above and below."""
  above = below = smooth / 2
  for p, t in zip(probabilities, targets):
    p, t = float(p), float(t)
    above += p * t
    below += p * t + alpha * p * (1 - t) + beta * (1 - p) * t
  return above / below if below > 0 else 1.0


def distance(a, b, squared: bool = False) -> float:
  square = sum((float(x) - float(y)) ** 2 for x, y in zip(a, b))
  return square if squared else math.sqrt(square)


def contrastive_loss(a, b, same: bool, margin: float) -> float:
  return (distance(a, b) if same else max(margin - distance(a, b), 0.0)) ** 2 / 2


def batch_hard(embeddings, labels, margin, squared: bool = False) -> tuple[float, int]:
  """Sum and number of the anchors' losses; `margin` is a number or 'soft'."""
  total, count, everyone = 0.0, 0, range(len(labels))
  for a in everyone:
    far = [distance(embeddings[a], embeddings[p], squared) for p in everyone if p != a and labels[p] == labels[a]]
    near = [distance(embeddings[a], embeddings[n], squared) for n in everyone if labels[n] != labels[a]]
    if far and near:
      excess = max(far) - min(near)
      total += math.log1p(math.exp(excess)) if margin == 'soft' else max(excess + margin, 0.0)
      count += 1
  return total, count


def semi_hard(embeddings, labels, margin: float, squared: bool = True) -> tuple[float, int]:
  """Sum and number of the losses of ordered pairs."""
  total, count, everyone = 0.0, 0, range(len(labels))
  for a in everyone:
    negatives = [distance(embeddings[a], embeddings[n], squared) for n in everyone if labels[n] != labels[a]]
    for p in everyone:
      if p == a or labels[p] != labels[a] or not negatives:
        continue
      far = distance(embeddings[a], embeddings[p], squared)
      farther = [near for near in negatives if near > far]
      total += max(far - (min(farther) if farther else max(negatives)) + margin, 0.0)
      count += 1
  return total, count


def arcface(embedding, class_weights, label: int, scale: float, margin: float) -> float:
  cosines = []
  for k, weight in enumerate(class_weights):
    dot = sum(float(x) * float(w) for x, w in zip(embedding, weight))
    lengths = distance(embedding, 0 * embedding) * distance(weight, 0 * weight)
    angle = math.acos(max(-1.0, min(1.0, dot / lengths)))
    if k != label:
      cosines.append(math.cos(angle))
    elif angle + margin < math.pi:
      cosines.append(math.cos(angle + margin))
    else:
      cosines.append(math.cos(angle) - margin * math.sin(margin))
  return softmax_cross_entropy([scale * c for c in cosines], label)


def gram(features) -> np.ndarray:
  """G_ij = sum over places of F_i F_j, of one map [h, w, C]."""
  h, w, channels = features.shape
  return np.array([[sum(float(features[y, x, i]) * float(features[y, x, j]) for y in range(h) for x in range(w))
                    for j in range(channels)] for i in range(channels)])


def style(features, target) -> float:
  """Gatys's E_l of two maps, with each Gram matrix over its own number of places."""
  places = [math.prod(m.shape[:2]) for m in (features, target)]
  difference = gram(features) / places[0] - gram(target) / places[1]
  return float((difference**2).sum() / (4 * features.shape[-1] ** 2))


def total_variation(image, power: int) -> float:
  h, w, channels = image.shape
  total = 0.0
  for y, x, c in np.ndindex(h, w, channels):
    for below, right in ((y + 1, x), (y, x + 1)):
      if below < h and right < w:
        total += abs(float(image[below, right, c]) - float(image[y, x, c])) ** power
  return total


def anchor_fit(sizes, anchors, max_ratio: float) -> tuple[float, float]:
  """The average IoU of boxes (w, h) with their best anchors, and the share of boxes within `max_ratio` of them."""
  fits, reached = [], 0
  for w, h in sizes:
    alike = [shape_iou((w, h), anchor) for anchor in anchors]
    best = anchors[alike.index(max(alike))]
    fits.append(max(alike))
    reached += max(w / best[0], best[0] / w, h / best[1], best[1] / h) <= max_ratio
  return sum(fits) / len(fits), reached / len(fits)


def median_kmeans(sizes, anchors, iterations: int):
  """Anchors after so many moves to the medians of the boxes that they fit best; none may fit no box."""
  sizes, anchors = np.asarray(sizes, np.float64), np.asarray(anchors, np.float64)
  for _ in range(iterations):
    own = [max(range(len(anchors)), key=lambda k: (shape_iou(size, anchors[k]), -k)) for size in sizes]
    anchors = np.array([np.median([s for s, o in zip(sizes, own) if o == k], axis=0) for k in range(len(anchors))])
  return anchors


def window_starts(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> list[int]:
  """Where the windows of a convolution or pooling begin, with 0 at the first pixel of the input, as torch has it."""
  starts, start, end = [], -padding, size + padding
  while start + dilation * (kernel - 1) + 1 <= end:
    starts.append(start)
    start += stride
  covered = starts[-1] + dilation * (kernel - 1) + 1
  if ceil_mode and covered < end:
    starts.append(start)
  if ceil_mode and starts[-1] >= size:
    starts.pop()
  return starts


def fcos_assign(boxes, anchors) -> list[int]:
  """For each anchor the object that its centre learns, -1 for none; each size of anchor is a level."""
  sizes = [float(a[2] - a[0]) for a in anchors]
  owners = []
  for anchor, size in zip(anchors, sizes):
    x, y = (float(anchor[0]) + float(anchor[2])) / 2, (float(anchor[1]) + float(anchor[3])) / 2
    low = 0 if size == min(sizes) else 4 * size
    high = math.inf if size == max(sizes) else 8 * size
    best = -1, math.inf
    for n, (x1, y1, x2, y2) in enumerate(np.asarray(boxes, np.float64)):
      sides = x - x1, y - y1, x2 - x, y2 - y
      off = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2))
      if min(sides) > 0 and low < max(sides) < high and off < 1.5 * size and (x2 - x1) * (y2 - y1) < best[1]:
        best = n, (x2 - x1) * (y2 - y1)
    owners.append(best[0])
  return owners


def detr_loss(logits, predicted, boxes, labels, image_size, *, class_cost_kind='prob', no_object_weight=0.1
              ) -> dict[str, float]:
  """DETR's sums for one layer of one image, and the sum of the class weights: only real boxes, xyxy in pixels."""
  from scipy.optimize import linear_sum_assignment
  h, w = image_size
  shares = np.asarray(boxes, np.float64).reshape(-1, 4) / [w, h, w, h]
  corners = [[cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2] for cx, cy, bw, bh in np.asarray(predicted, float)]
  centres = [[(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1] for x1, y1, x2, y2 in shares]
  apart = [[float(np.abs(np.asarray(p, float) - c).sum()) for c in centres] for p in predicted]
  alike = [[iou_family(p, s)['giou'] for s in shares] for p in corners]
  nll = [[softmax_cross_entropy(row, label) for label in labels] for row in logits]
  cost = np.zeros((len(predicted), len(shares)))
  for q, n in np.ndindex(cost.shape):
    likeness = nll[q][n] if class_cost_kind == 'nll' else -math.exp(-nll[q][n])
    cost[q, n] = likeness + 5 * apart[q][n] - 2 * alike[q][n]
  owner = dict(zip(*linear_sum_assignment(cost)))
  sums = {'loss_class': 0.0, 'loss_box': 0.0, 'loss_giou': 0.0, 'weight': 0.0}
  for q, row in enumerate(logits):
    weight = 1.0 if q in owner else no_object_weight
    sums['loss_class'] += weight * softmax_cross_entropy(row, labels[owner[q]] if q in owner else len(row) - 1)
    sums['weight'] += weight
    if q in owner:
      sums['loss_box'] += apart[q][owner[q]]
      sums['loss_giou'] += 1 - alike[q][owner[q]]
  return sums


def soft_nms(boxes, scores, labels, limit, *, method, sigma=0.5, iou_threshold=0.3, score_threshold=0.001) -> list:
  """Soft-NMS as a loop: (index, lowered score) of what is picked, in order."""
  left, picked = dict(enumerate(float(score) for score in scores)), []
  while left and len(picked) < limit:
    best = max(left, key=lambda i: (left[i], -i))
    if left[best] < score_threshold:
      break
    picked.append((best, left.pop(best)))
    for i in left:
      if labels[i] == labels[best]:
        iou = iou_family(boxes[best], boxes[i])['iou']
        linear = 1 - iou if iou > iou_threshold else 1.0
        left[i] *= math.exp(-iou**2 / sigma) if method == 'gaussian' else linear
  return picked


def best_matching(cost) -> tuple[int, float]:
  """(NaN or infinite pairs, sum of the other costs) of the best one-to-one matching [Q, N], by trying every one."""
  cost = np.asarray(cost, np.float64)
  cost = cost if cost.shape[0] >= cost.shape[1] else cost.T
  tried = []
  for chosen in itertools.permutations(range(cost.shape[0]), cost.shape[1]):
    pairs = [cost[q, n] for n, q in enumerate(chosen)]
    tried.append((sum(not math.isfinite(c) for c in pairs), sum(c for c in pairs if math.isfinite(c))))
  return min(tried)


def batch_norm(x, variables, name: str, eps: float = 1e-5) -> np.ndarray:
  """BatchNorm in test mode with the variables of the layer `name`, a path such as 'f/a/1', in float64."""
  params, statistics = (functools.reduce(lambda tree, key: tree[key], name.split('/'), variables[kind])
                        for kind in ('params', 'batch_stats'))
  x = (np.asarray(x, np.float64) - statistics['mean']) / np.sqrt(np.asarray(statistics['var'], np.float64) + eps)
  return x * params['scale'] + params['bias']
