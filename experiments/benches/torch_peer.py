"""The other side of the benchmarks: torchvision's functions, timed in a Python that has it.

Reads one JSON request a line, answers each with one line: {'prepare': function, 'file': npz}, then {'calls': n}.
"""

import json
import os
import pathlib
import sys
import time

import numpy as np
import torch

try:
  import torchvision
except RuntimeError:  # its compiled operators are of another torch; it imports once two of them are declared
  library = torch.library.Library('torchvision', 'FRAGMENT')
  library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
  library.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
  import torchvision


def nms(boxes, scores, iou_threshold):
  return lambda: torchvision.ops.nms(boxes, scores, iou_threshold)


def nms_of_each(boxes, scores, iou_threshold):
  return lambda: [torchvision.ops.nms(b, s, iou_threshold) for b, s in zip(boxes, scores, strict=True)]


def box_iou(boxes_a, boxes_b):
  return lambda: torchvision.ops.box_iou(boxes_a, boxes_b)


def roi_align(features, boxes, stride):
  features = features.permute(2, 0, 1)[None].contiguous()
  return lambda: torchvision.ops.roi_align(features, [boxes], 7, 1 / stride, 2, False)


def roi_align_and_gradient(features, boxes, stride):
  features = features.permute(2, 0, 1)[None].contiguous().requires_grad_()

  def run():
    features.grad = None
    torchvision.ops.roi_align(features, [boxes], 7, 1 / stride, 2, False).sum().backward()

  return run


class ImageFolder:
  """The images of a folder, decoded by Pillow and transformed."""

  def __init__(self, folder, transform):
    self.paths, self.transform = sorted(pathlib.Path(folder).iterdir()), transform

  def __len__(self):
    return len(self.paths)

  def __getitem__(self, index):
    from PIL import Image
    with Image.open(self.paths[index]) as image:
      return self.transform(image.convert('RGB'))


def load_images(folder, work, size, workers, batch_size, mean, std, tensors):
  from torchvision.transforms import v2
  torch.set_num_threads(1)  # one core for each worker, and one without workers
  final = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean.tolist(), std.tolist())]
  if work == 'crop':
    moves = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
  else:
    moves, final = [v2.Resize((size * 3 // 4, size), antialias=True)], [*final, v2.Pad([0, 0, 0, size // 4])]
  steps = [v2.PILToTensor(), *moves] if tensors else [*moves, v2.ToImage()]
  loader = torch.utils.data.DataLoader(ImageFolder(folder, v2.Compose([*steps, *final])), batch_size=batch_size,
                                       shuffle=work == 'crop', num_workers=workers, persistent_workers=workers > 0)

  def run():
    for _ in loader:
      pass

  return run


def classifier(name, batch_size, size, train, channels_last):
  """A step of plain gradient descent, or a forward pass; on a GPU in bfloat16 and through torch.compile."""
  cuda = torch.cuda.is_available()
  device = torch.device('cuda' if cuda else 'cpu')
  layout = torch.channels_last if channels_last else torch.contiguous_format
  options = {'image_size': size} if name.startswith('vit') else {}
  model = getattr(torchvision.models, name)(**options).to(device, memory_format=layout).train(train)
  images = torch.randn(batch_size, 3, size, size).to(device, memory_format=layout)
  labels = torch.arange(batch_size, device=device)
  optimizer = torch.optim.SGD(model.parameters(), 0.01)
  forward = torch.compile(model) if cuda else model

  def run():
    with torch.autocast(device.type, torch.bfloat16, enabled=cuda), torch.set_grad_enabled(train):
      logits = forward(images)
    if train:
      optimizer.zero_grad()
      torch.nn.functional.cross_entropy(logits, labels).backward()
      optimizer.step()
    if cuda:
      torch.cuda.synchronize()

  return run


def detector(name, batch_size, height, width, num_classes, objects):
  """A step of gradient descent with momentum on images of one size; eager, since what it finds varies in number."""
  cuda = torch.cuda.is_available()
  device = torch.device('cuda' if cuda else 'cpu')
  # So that nothing is resized: SSD300 has no other size than its own.
  options = {} if name.startswith('ssd') else {'min_size': min(height, width), 'max_size': max(height, width)}
  make = getattr(torchvision.models.detection, name)
  model = make(weights=None, weights_backbone=None, num_classes=num_classes, **options)
  freeze_norms(model)
  model = model.to(device, memory_format=torch.channels_last).train()
  images = list(torch.rand(batch_size, 3, height, width, device=device))
  corners = torch.rand(batch_size, objects, 2, device=device) / 2
  sizes = torch.tensor([width, height], device=device)
  boxes = torch.cat([corners, corners + 0.1 + torch.rand(batch_size, objects, 2, device=device) * 0.4], 2)
  labels = torch.randint(1, num_classes, (batch_size, objects), device=device)
  targets = [{'boxes': b * sizes.repeat(2), 'labels': l} for b, l in zip(boxes, labels, strict=True)]
  optimizer = torch.optim.SGD(model.parameters(), 1e-9, momentum=0.9)  # next to nothing, as on our side
  # XLA does so too. Fresh weights behind frozen norms give gradients so small that a step of RetinaNet took 7.5 s
  # without it, and 0.9 s with it.
  torch.set_flush_denormal(True)

  def run():
    with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
      loss = sum(model(images, targets).values())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if cuda:
      torch.cuda.synchronize()

  return run


def freeze_norms(module):
  """Makes every BatchNorm a frozen one, as detectors have it; torchvision does so only where it loads weights."""
  for name, child in module.named_children():
    if isinstance(child, torch.nn.BatchNorm2d):
      setattr(module, name, torchvision.ops.FrozenBatchNorm2d(child.num_features, eps=child.eps))
    else:
      freeze_norms(child)


def gigabytes():
  return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None


def main():
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  about = f'torchvision {torchvision.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads'
  print(json.dumps({'about': about}), flush=True)
  run = None
  for line in sys.stdin:
    request = json.loads(line)
    if 'prepare' in request:
      arrays = {name: value.item() if value.ndim == 0 else torch.from_numpy(value)
                for name, value in np.load(request['file']).items()}
      run = None  # before the next takes memory
      if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
      run = globals()[request['prepare']](**arrays)
      print(json.dumps({'ready': True}), flush=True)
      continue
    seconds = []
    for _ in range(request['calls']):
      start = time.perf_counter()
      run()
      seconds.append(time.perf_counter() - start)
    print(json.dumps({'seconds': seconds, 'gigabytes': gigabytes()}), flush=True)


if __name__ == '__main__':
  main()
