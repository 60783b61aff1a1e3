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
      run = globals()[request['prepare']](**arrays)
      print(json.dumps({'ready': True}), flush=True)
      continue
    seconds = []
    for _ in range(request['calls']):
      start = time.perf_counter()
      run()
      seconds.append(time.perf_counter() - start)
    print(json.dumps({'seconds': seconds}), flush=True)


if __name__ == '__main__':
  main()
