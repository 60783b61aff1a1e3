"""Slow truth in plain NumPy loops, written from the papers' definitions and not from `vision_jax`."""

from __future__ import annotations

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
  """Greedy NMS as torchvision's CPU kernel does it, in float32: indices that stay, best first."""
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
      if labels[i] == labels[j] and union > 0 and inter / union > np.float32(iou_threshold):
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


def yolo_assign(boxes, anchors, strides, canvas, extra_match_iou=None) -> tuple[dict, int]:
  """`{(level, row, column, anchor): object}` of one image's real boxes, and the number of objects that lost their best.

  An object claims the slot of its best anchor (first of equals); the better fit wins a slot, then the earlier object.
  Extra matches take what is left, by the same rule.
  """
  best_claims, extra_claims = [], []
  for n, box in enumerate(boxes):
    size = box[2] - box[0], box[3] - box[1]
    if size[0] <= 0 or size[1] <= 0:
      continue
    fits = [(shape_iou(size, prior), level, a)
            for level, priors in enumerate(anchors) for a, prior in enumerate(priors)]
    best = max(range(len(fits)), key=lambda k: (fits[k][0], -k))
    for k, (fit, level, a) in enumerate(fits):
      h, w = canvas[0] // strides[level], canvas[1] // strides[level]
      column = min(max(math.floor((box[0] + box[2]) / 2 / strides[level]), 0), w - 1)
      row = min(max(math.floor((box[1] + box[3]) / 2 / strides[level]), 0), h - 1)
      claim = -fit, n, (level, row, column, a)
      if k == best:
        best_claims.append(claim)
      elif extra_match_iou is not None and fit > extra_match_iou:
        extra_claims.append(claim)
  owners: dict = {}
  for _, n, slot in sorted(best_claims) + sorted(extra_claims):
    owners.setdefault(slot, n)
  return owners, sum(owners[slot] != n for _, n, slot in best_claims)


def yolo_loss(outputs, boxes, labels, *, anchors, strides, box_loss='sse', ignore_threshold=0.7,
              objectness_target='binary', label_smoothing=0.0, extra_match_iou=None) -> dict[str, float]:
  """YOLOv3's sums for one image: outputs [h, w, A, 5 + K] for each level, and only real boxes."""
  canvas = outputs[0].shape[0] * strides[0], outputs[0].shape[1] * strides[0]
  owners, _ = yolo_assign(boxes, anchors, strides, canvas, extra_match_iou)
  sums = {'loss_box': 0.0, 'loss_objectness': 0.0, 'loss_class': 0.0, 'count': float(len(owners))}
  for level, output in enumerate(outputs):
    for row, column, a in np.ndindex(output.shape[:3]):
      raw, anchor, stride = [float(v) for v in output[row, column, a]], anchors[level][a], strides[level]
      box = yolo_box(raw, column, row, anchor, stride)
      owner = owners.get((level, row, column, a))
      if owner is None:
        if all(iou_family(box, other)['iou'] <= ignore_threshold for other in boxes):
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
