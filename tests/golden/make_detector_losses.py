"""Makes `detector_losses.npz`, and compares whole detectors' training losses with those of torchvision.

The golden arrays are what torchvision's own loss functions, and their gradients, make of small predictions. Made with
Debian's python3-torchvision: torchvision 0.14.1, torch 1.13.0, NumPy 1.24.2. The inputs are drawn by
`numpy.random.RandomState`, whose streams never change, so only outputs are kept; `draw` is what the tests call.

    /usr/bin/python3 tests/golden/make_detector_losses.py

The comparison runs each detector once, with weights that a formula fills, keeps what its loss functions were given in
EXPORT.npz (up to 25,000 anchors: too many to commit), and prints how far its losses are from those in REFERENCE.npz.
META.json holds the gain of each model's weights. The second command needs jax in place of torch, and prints how far the
losses of `vision_jax` are from both; DETR's are compared on the predictions of the last layer in REFERENCE.npz.

    /usr/bin/python3 tests/golden/make_detector_losses.py --reference REFERENCE.npz --meta META.json --export EXPORT.npz
    python tests/golden/make_detector_losses.py --reference REFERENCE.npz --compare EXPORT.npz
"""

import argparse
import json
import pathlib
import types
import zlib

import numpy as np

DETECTORS = ('retinanet_resnet50_fpn', 'fcos_resnet50_fpn', 'ssd300_vgg16', 'fasterrcnn_resnet50_fpn',
             'maskrcnn_resnet50_fpn')
BOXES, LABELS = [[20, 30, 120, 200], [150, 60, 300, 180], [200, 200, 380, 310]], [1, 17, 5]
# Our names of the losses, and torchvision's.
NAMES = {'loss_class': ('classification', 'classifier'), 'loss_box': ('bbox_regression', 'box_reg'),
         'loss_centerness': ('bbox_ctrness',), 'loss_rpn_objectness': ('objectness',),
         'loss_rpn_box': ('rpn_box_reg',), 'loss_mask': ('mask',)}


# ---- small golden arrays ----

def draw(name):
  """What the loss `name` is given: predictions by name, and the rest. Labels count from 1, as torchvision's do."""
  rng = np.random.RandomState(zlib.crc32(name.encode()))
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  if name == 'fcos':
    boxes, labels = some_boxes(rng, canvas=(48, 64), count=4)
    boxes[:, 0] = [[4, -30, 70, 60], [-60, -20, 90, 70]]  # for the coarser levels
    anchors = grid_anchors((48, 64), (8, 16, 32), ((1, 1),))
    count = len(anchors)
    predictions = {'logits': normal(2, count, 4), 'distances': np.abs(3 * normal(2, count, 4) + 2),
                   'centerness_logits': normal(2, count)}
    return predictions, {'boxes': boxes, 'labels': labels, 'anchors': anchors}
  if name == 'roi':
    boxes, labels = some_boxes(rng, canvas=(40, 56), count=2)
    near = boxes[:, [1, 1, 1, 0, 0, 0]] + 3 * normal(2, 6, 4)
    proposals = np.concatenate([near, some_boxes(rng, canvas=(40, 56), count=4)[0]], axis=1)
    predictions = {'logits': normal(2, 12, 4), 'deltas': normal(2, 12, 16), 'mask_logits': normal(2, 12, 4, 5, 5)}
    masks = (rng.uniform(size=(2, 2, 40, 56)) < 0.5).astype(np.float32)
    return predictions, {'boxes': boxes, 'labels': labels, 'proposals': proposals, 'masks': masks}
  boxes, labels = some_boxes(rng, canvas=(64, 96), count=3)
  anchors = grid_anchors((64, 96), (16, 32), ((1, 2), (2, 1)))
  if name == 'rpn':  # a positive one first: what the empty slots of a sample point to
    anchors = np.roll(anchors, -21, axis=0)
  first = {'objectness': normal(2, len(anchors))} if name == 'rpn' else {'logits': normal(2, len(anchors), 4)}
  return (first | {'deltas': normal(2, len(anchors), 4)}), {'boxes': boxes, 'labels': labels, 'anchors': anchors}


def some_boxes(rng, *, canvas, count):
  """Boxes [2, count, 4] inside a canvas (h, w), and labels in 1..3."""
  size = np.array(canvas[::-1])
  centre, half = rng.uniform(0.2, 0.8, (2, count, 2)) * size, rng.uniform(0.1, 0.3, (2, count, 2)) * size
  return np.concatenate([centre - half, centre + half], -1).astype(np.float32), rng.randint(1, 4, (2, count))


def grid_anchors(canvas, strides, shapes):
  """Boxes of these (w, h) shapes, in strides, around the corner of each cell: [A, 4]."""
  anchors = []
  for stride in strides:
    y, x = np.mgrid[0:canvas[0]:stride, 0:canvas[1]:stride]
    for w, h in shapes:
      centre, half = np.stack([x, y, x, y], -1).reshape(-1, 4), np.array([-w, -h, w, h]) * stride / 2
      anchors.append(centre + half)
  return np.concatenate(anchors).astype(np.float32)


def retinanet(given, targets):
  from torchvision.models.detection import _utils
  from torchvision.models.detection.retinanet import RetinaNetHead
  head, matcher = RetinaNetHead(8, 1, 4), _utils.Matcher(0.5, 0.4, allow_low_quality_matches=True)
  return head.compute_loss(targets, {'cls_logits': given.logits, 'bbox_regression': given.deltas},
                           [given.anchors] * 2, matches(targets, given.anchors, matcher))


def ssd(given, targets):
  from torchvision.models.detection import _utils
  from torchvision.models.detection.ssd import SSD
  model = types.SimpleNamespace(box_coder=_utils.BoxCoder((10, 10, 5, 5)), neg_to_pos_ratio=3.0)
  return SSD.compute_loss(model, targets, {'cls_logits': given.logits, 'bbox_regression': given.deltas},
                          [given.anchors] * 2, matches(targets, given.anchors, _utils.SSDMatcher(0.5)))


def matches(targets, anchors, matcher):
  """torchvision's matches of each image, -1 everywhere in one without objects."""
  import torch
  from torchvision.ops import box_iou
  return [matcher(box_iou(t['boxes'], anchors)) if len(t['boxes']) else torch.full((len(anchors),), -1)
          for t in targets]


def fcos(given, targets):
  from torchvision.models.detection.fcos import FCOS, FCOSHead
  model = types.SimpleNamespace(center_sampling_radius=1.5, head=FCOSHead(32, 1, 4))
  head = {'cls_logits': given.logits, 'bbox_regression': given.distances,
          'bbox_ctrness': given.centerness_logits[..., None]}
  sizes = (given.anchors[:, 2] - given.anchors[:, 0]).tolist()
  return FCOS.compute_loss(model, targets, head, [given.anchors] * 2, [sizes.count(size) for size in (8, 16, 32)])


def rpn(given, targets):
  from torchvision.models.detection.rpn import RegionProposalNetwork
  # A sampler larger than the anchors takes all of them, so that chance has no part.
  model = RegionProposalNetwork(None, None, 0.7, 0.3, 10**6, 0.5, {}, {}, 0.7)
  found, owned = model.assign_targets_to_anchors([given.anchors] * 2, targets)
  goal = model.box_coder.encode(owned, [given.anchors] * 2)
  there, box = model.compute_loss(given.objectness.reshape(-1, 1), given.deltas.reshape(-1, 4), found, goal)
  return {'objectness': there, 'rpn_box_reg': box}


def roi(given, targets):
  """Head outputs stand in torchvision's order of the samples: the proposals, then the objects."""
  import torch
  from torchvision.models.detection import roi_heads
  model = roi_heads.RoIHeads(None, None, None, 0.5, 0.5, 10**6, 0.25, None, 0.05, 0.5, 100)
  sampled, owner, label, goal = model.select_training_samples(list(given.proposals), targets)
  given.found = {'sampled': sampled, 'owner': owner, 'sampled_labels': label}
  logits, deltas = (torch.cat([v[:len(s)] for v, s in zip(values, sampled)]) for values in (given.logits, given.deltas))
  classes, box = roi_heads.fastrcnn_loss(logits, deltas, label, goal)
  positive = [l > 0 for l in label]
  mask = roi_heads.maskrcnn_loss(
      torch.cat([m[:len(p)][p] for m, p in zip(given.mask_logits, positive)]),
      [s[p] for s, p in zip(sampled, positive)], [t['masks'] for t in targets], [t['labels'] for t in targets],
      [o[p] for o, p in zip(owner, positive)])
  return {'classifier': classes, 'box_reg': box, 'mask': mask}


THEIRS = {'retinanet': retinanet, 'ssd': ssd, 'fcos': fcos, 'rpn': rpn, 'roi': roi}


def small_goldens():
  """For each loss its values, of both images and of both with the second one empty ('_half'), and its gradients."""
  import torch
  arrays = {}
  for name, losses in THEIRS.items():
    predictions, rest = draw(name)
    given = types.SimpleNamespace(**{key: torch.as_tensor(value) for key, value in rest.items()})
    for key, value in predictions.items():
      setattr(given, key, torch.tensor(value, requires_grad=True))
    for suffix, objects in (('', (9, 9)), ('_half', (9, 0))):
      targets = [{key: torch.as_tensor(rest[key][i][:count]) for key in ('boxes', 'labels', 'masks') if key in rest}
                 for i, count in enumerate(objects)]
      found = losses(given, targets)
      arrays |= {f'{name}/{ours_of(key)}{suffix}': np.float64(value.detach()) for key, value in found.items()}
      if not suffix:
        gradients = torch.autograd.grad(sum(found.values()), [getattr(given, key) for key in predictions])
        arrays |= {f'{name}/gradient_{key}': g.numpy() for key, g in zip(predictions, gradients)}
        arrays |= {f'{name}/{key}': torch.stack(value).numpy() for key, value in getattr(given, 'found', {}).items()}
  return arrays


def ours_of(name):
  return next(ours for ours, theirs in NAMES.items() if name in theirs)


# ---- whole detectors ----

def fill(name, shape, gain):
  """The reference's formula for one tensor of weights."""
  rng, last = np.random.default_rng(zlib.crc32(name.encode())), name.split('.')[-1]
  if last == 'num_batches_tracked':
    return np.zeros(shape, np.int64)
  if last == 'running_var':
    return rng.uniform(0.5, 1.5, shape).astype(np.float32)
  if last in ('bias', 'running_mean') or not shape:
    return (0.1 * rng.standard_normal(shape)).astype(np.float32)
  if len(shape) == 1:
    return rng.uniform(0.5, 1.5, shape).astype(np.float32)
  return (rng.standard_normal(shape) * gain / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def build_detector(name, gain):
  """A torchvision detector that resizes and samples nothing, in train mode but for its BatchNorm."""
  import torch
  import torchvision
  options = {} if 'ssd' in name else {'min_size': 320, 'max_size': 416}
  if 'rcnn' in name:
    options |= {'rpn_batch_size_per_image': 10**6, 'box_batch_size_per_image': 10**6}
  model = getattr(torchvision.models.detection, name)(weights=None, weights_backbone=None, **options)
  model.load_state_dict({key: torch.as_tensor(fill(key, tuple(value.shape), gain))
                         for key, value in model.state_dict().items()})
  model.train()
  for module in model.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
      module.eval()
  return model


def run_detector(name, gain):
  """One training pass: the detector's losses, and the arguments of its inner functions by their names."""
  import torch
  from torchvision.models.detection import roi_heads
  model, kept = build_detector(name, gain), {}
  size, scale = ((300, 300), (300 / 416, 300 / 320) * 2) if 'ssd' in name else ((320, 416), (1, 1, 1, 1))
  image = torch.as_tensor(np.random.default_rng(0).uniform(0, 1, (3, *size)).astype(np.float32))
  masks = torch.zeros(len(BOXES), *size, dtype=torch.uint8)
  for mask, (x1, y1, x2, y2) in zip(masks, BOXES):
    mask[y1:y2, x1:x2] = 1
  target = {'boxes': torch.as_tensor(np.float32(BOXES) * np.float32(scale)), 'labels': torch.tensor(LABELS),
            'masks': masks}
  places = [(model, 'compute_loss')] if 'ssd' in name else [(getattr(model, 'head', None), 'compute_loss')]
  if 'rcnn' in name:
    places = [(model.rpn, 'compute_loss'), (model.rpn, 'assign_targets_to_anchors'), (roi_heads, 'fastrcnn_loss'),
              (roi_heads, 'maskrcnn_loss'), (model.roi_heads, 'select_training_samples')]
  before = [(place, attribute, getattr(place, attribute)) for place, attribute in places]
  for place, attribute, function in before:
    def call(*args, attribute=attribute, function=function):
      kept[attribute] = args
      return function(*args)
    setattr(place, attribute, call)
  with torch.no_grad():
    losses = model([image], [target])
  for place, attribute, function in before:
    setattr(place, attribute, function)
  return {key.removeprefix('loss_'): float(value) for key, value in losses.items()}, kept, target


def export_detector(name, gain):
  """What our losses need, with a batch axis, and torchvision's losses."""
  losses, kept, target = run_detector(name, gain)
  arrays = {f'torch_{key}': np.float64(value) for key, value in losses.items()}
  arrays |= {'boxes': target['boxes'][None], 'labels': target['labels'][None]}
  if 'rcnn' not in name:
    _, head, anchors, _ = kept['compute_loss']
    return arrays | head | {'anchors': anchors[0]}
  objectness, deltas, _, _ = kept['compute_loss']
  arrays |= {'objectness': objectness.reshape(1, -1), 'rpn_deltas': deltas[None],
             'anchors': kept['assign_targets_to_anchors'][0][0]}
  logits, box_deltas, _, _ = kept['fastrcnn_loss']
  arrays |= {'logits': logits[None], 'deltas': box_deltas[None],
             'proposals': kept['select_training_samples'][0][0][None]}
  if 'mask' in name:
    mask_logits, boxes, masks, _, owner = kept['maskrcnn_loss']
    arrays |= {'mask_logits': mask_logits[None], 'mask_boxes': boxes[0][None], 'mask_owner': owner[0][None],
               'masks': masks[0][None]}
  return arrays


def export(reference, meta, path):
  gains, stored = json.loads(pathlib.Path(meta).read_text()), np.load(reference)
  everything = {}
  for name in DETECTORS:
    arrays = {key: np.asarray(value) for key, value in export_detector(name, gains[name]['gain']).items()}
    everything |= {f'{name}/{key}': value for key, value in arrays.items()}
    for key in (key for key in arrays if key.startswith('torch_')):
      print_distance(name, key, arrays[key], stored[f'{name}/{key.replace("torch_", "loss_")}'])
  np.savez(path, **everything)


def print_distance(name, what, ours, theirs):
  print(f'{name:24} {what:24} {float(ours):14.8g} {float(theirs):14.8g}  {abs(ours / theirs - 1):.1e}')


def compare(reference, path):
  """Our losses beside those of this run of torchvision and of the reference."""
  stored, kept = np.load(reference), np.load(path)
  for name in DETECTORS:
    given = types.SimpleNamespace(**{key.split('/')[1]: kept[key] for key in kept.files if key.startswith(name + '/')})
    for ours, term in OURS[name.split('_')[0]](given).items():
      value = float(term.total) / max(float(term.count), term.floor)
      theirs = next(key for key in NAMES[ours] if f'{name}/loss_{key}' in stored)
      print_distance(name, ours + ', this run', value, kept[f'{name}/torch_{theirs}'])
      print_distance(name, ours + ', reference', value, stored[f'{name}/loss_{theirs}'])
  compare_detr({key.split('/')[1]: stored[key] for key in stored.files if key.startswith('detr_resnet50/')})


def our_retinanet(given):
  from vision_jax import losses
  return losses.retinanet_loss(given.cls_logits, given.bbox_regression, given.boxes, given.labels,
                               anchors=given.anchors)


def our_fcos(given):
  from vision_jax import losses
  return losses.fcos_loss(given.cls_logits, given.bbox_regression, given.bbox_ctrness[..., 0], given.boxes,
                          given.labels, anchors=given.anchors)


def our_ssd(given):
  from vision_jax import losses
  return losses.ssd_loss(given.cls_logits, given.bbox_regression, given.boxes, given.labels - 1, anchors=given.anchors)


def our_faster_rcnn(given):
  """Both samplers take everything; the order of the heads' outputs is found again by the boxes they stand for."""
  import jax

  from vision_jax import losses
  key, count = jax.random.key(0), given.logits.shape[1]
  terms = losses.rpn_loss(key, given.objectness, given.rpn_deltas, given.boxes, anchors=given.anchors,
                          size=2 * len(given.anchors))
  samples = losses.sample_proposals(key, given.proposals, given.boxes, given.labels - 1, size=count,
                                    positive_fraction=1.0)
  seen = np.concatenate([given.proposals, given.boxes], axis=1)[0]
  place = np.empty(count, int)
  place[np.lexsort(np.asarray(samples.boxes[0]).T)] = np.lexsort(seen.T)
  np.testing.assert_array_equal(seen[place], samples.boxes[0])
  terms |= losses.roi_loss(given.logits[:, place], given.deltas.reshape(1, count, -1, 4)[:, place], samples)
  return terms, samples


def our_mask_rcnn(given):
  from vision_jax import losses
  terms, samples = our_faster_rcnn(given)
  count = given.mask_logits.shape[1]
  place = np.empty(count, int)
  place[np.lexsort(np.asarray(samples.boxes[0, :count]).T)] = np.lexsort(given.mask_boxes[0].T)
  np.testing.assert_array_equal(given.mask_boxes[0][place], samples.boxes[0, :count])
  np.testing.assert_array_equal(given.mask_owner[0][place], samples.owner[0, :count])
  # Channels last, and without that of the background.
  mask_logits = np.moveaxis(given.mask_logits[:, place, 1:], 2, -1)
  return terms | losses.mask_loss(mask_logits, given.masks, samples)


OURS = {'retinanet': our_retinanet, 'fcos': our_fcos, 'ssd300': our_ssd,
        'fasterrcnn': lambda given: our_faster_rcnn(given)[0], 'maskrcnn': our_mask_rcnn}


def compare_detr(given):
  from vision_jax import losses
  boxes, labels = np.zeros((2, 3, 4), np.float32), np.zeros((2, 3), int)
  boxes[0], labels[0], boxes[1, 0], labels[1, 0] = BOXES, LABELS, [5, 8, 200, 240], 3
  terms = losses.detr_loss(given['pred_logits'][None], given['pred_boxes'][None], boxes, labels,
                           image_size=np.array([[320, 416], [256, 352]]),
                           boxes_valid=np.array([[True] * 3, [True, False, False]]))
  for ours, theirs in (('loss_class', 'loss_ce'), ('loss_box', 'loss_bbox'), ('loss_giou', 'loss_giou')):
    print_distance('detr_resnet50', ours + ', reference', float(terms[ours].total) / float(terms[ours].count),
                   given[theirs])


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  for option in ('reference', 'meta', 'export', 'compare'):
    parser.add_argument(f'--{option}')
  options = parser.parse_args()
  if options.export:
    export(options.reference, options.meta, options.export)
  elif options.compare:
    compare(options.reference, options.compare)
  else:
    arrays = small_goldens()
    np.savez_compressed(pathlib.Path(__file__).with_name('detector_losses.npz'), **arrays)
    for key, value in arrays.items():
      print(key, value.shape, value if value.size == 1 else '')
