"""What a model is made of: layers, shapes, parameters, multiply-adds, receptive fields; no weight is allocated.

python experiments/summary.py --model resnet50 [--size 224] [--depth 2] [--set num_classes=10 --set norm=group]
python experiments/summary.py --table > docs/models.md

A multiply-add is what published tables often call a FLOP; it is two floating point operations, and both are printed.
"""

import launch  # first: it sets the environment that jax reads

from absl import flags

from vision_jax import models
from vision_jax.inspect import summary, zoo

FLAGS = flags.FLAGS
flags.DEFINE_string('model', None, f'One of {", ".join(models.names())}.')
flags.DEFINE_string('size', None, "The image: 224, or 480x640 (height and width); the model's usual one if left out.")
flags.DEFINE_integer('channels', None, 'Of the image.', 1)
flags.DEFINE_integer('depth', 1, 'How many levels of modules to show; -1 for all.', -1)
flags.DEFINE_multi_string('set', [], "An option of the model, as 'num_classes=10'; may be given repeatedly.")
flags.DEFINE_bool('table', False, 'Print docs/models.md: every model with its paper, size and work.')

PAGE = """# The models

What `python experiments/summary.py --table` prints. A GMAC is a thousand million multiply-adds of convolutions and
matrix products in one forward pass in test mode, on one image of the size that stands beside it; torchvision's tables,
and many papers, call that a GFLOP. Here it is two GFLOP: a multiplication and an addition each. Parameters are those
that training changes, for 1,000 classes where the model has no other number of its own, and with the auxiliary heads of
Inception v3. The maps are what `model.features(x)` gives; `--model NAME` shows a model layer by layer.

"""
DETECTORS = """
## The detectors

For as many classes as stand there, 91 or 90 where the published checkpoints know so many of COCO's file ids. Parameters
are all that training could change. torchvision and DETR's authors leave out the scales and biases of the body's
BatchNorm, which is frozen there: 53,120 numbers with ResNet-50, 105,344 with ResNet-101, 24,400 with MobileNetV3.
Statistics, means and variances, are no parameters; darknet's files hold both. Suppression is not counted as work;
Faster R-CNN's second stage is, for as many regions as it looks at.

"""


def main() -> None:
  if FLAGS.table:
    detectors = [name for name in models.names() if zoo.is_detector(name)]
    print(PAGE + zoo.table(name for name in models.names() if name not in detectors))
    print(DETECTORS + zoo.table(detectors))
    return
  if not FLAGS.model:
    raise ValueError(f'--model is missing; known: {", ".join(models.names())}')
  options = dict(map(launch.option, FLAGS.set))
  model = models.create(FLAGS.model, **options)
  height, width, channels = zoo.image(FLAGS.model)
  height, width = size(FLAGS.size) if FLAGS.size else (height, width)
  found = summary(model, (1, height, width, FLAGS.channels or channels))
  print(found.table(None if FLAGS.depth < 0 else FLAGS.depth))


def size(text: str) -> tuple[int, int]:
  parts = text.split('x')
  if len(parts) > 2 or not all(part.isdigit() and int(part) for part in parts):
    raise ValueError(f'--size {text!r} is neither a number of pixels nor two, as 480x640')
  return int(parts[0]), int(parts[-1])


if __name__ == '__main__':
  launch.run(main)
