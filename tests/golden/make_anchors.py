"""Writes anchors.npz: the anchors of RPN, RetinaNet, FCOS and SSD as torchvision's generators make them.

    /usr/bin/python3 tests/golden/make_anchors.py

Made with Debian's python3-torchvision: torchvision 0.14.1, torch 1.13.0, NumPy 1.24.2. torchvision has no SSD512: its
generator is given the numbers of the SSD authors' own program. Of SSD's boxes every 13th and every 37th are kept, which
meets each shape of each level that has that many.
"""

import pathlib

import numpy as np

# Maps of a pyramid from P2 to P7 on a canvas that no stride divides.
CANVAS, GRIDS = (90, 130), ((23, 33), (12, 17), (6, 9), (3, 5), (2, 3), (1, 2))
EVERY = {'ssd300': 13, 'ssd512': 37}
SSD = {
    'ssd300': (300, (38, 19, 10, 5, 3, 1), (8, 16, 32, 64, 100, 300), (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
               ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))),
    'ssd512': (512, (64, 32, 16, 8, 4, 2, 1), (8, 16, 32, 64, 128, 256, 512),
               (0.07, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05), ((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,))),
}


def main():
  import torch
  from torchvision.models.detection import anchor_utils, faster_rcnn, image_list, retinanet

  def boxes(generator, canvas, grids):
    images = image_list.ImageList(torch.zeros((1, 3, *canvas)), [canvas])
    return generator(images, [torch.zeros((1, 1, *grid)) for grid in grids])[0].numpy()

  fcos = anchor_utils.AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), ((1.0,),) * 5)
  found = {'rpn': boxes(faster_rcnn._default_anchorgen(), CANVAS, GRIDS[:5]),
           'retinanet': boxes(retinanet._default_anchorgen(), CANVAS, GRIDS[1:]),
           'fcos': boxes(fcos, CANVAS, GRIDS[1:])}
  for name, (side, maps, steps, scales, ratios) in SSD.items():
    generator = anchor_utils.DefaultBoxGenerator([list(r) for r in ratios], scales=list(scales), steps=list(steps))
    every = boxes(generator, (side, side), [(m, m) for m in maps])
    found[name], found[f'{name}_number'] = every[::EVERY[name]], len(every)
  np.savez_compressed(pathlib.Path(__file__).with_name('anchors.npz'), **found)


if __name__ == '__main__':
  main()
