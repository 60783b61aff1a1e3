"""Predicts image files with a run's checkpoint, and writes pictures and JSON.

python experiments/predict.py --workdir runs/yolo --input photos/ [--output out] [--threshold 0.3] [--step best]
python experiments/predict.py --workdir runs/coco --input data/coco/val2017 --threshold 0.001 \\
    --coco data/coco/annotations/instances_val2017.json

Detection: `predictions.json` in COCO's shape (the box format stated in it), images numbered in their order or as in
`--coco`. Classification: `predictions.json` with the top five. Segmentation: a palette PNG for each image, class names
inside. All: an annotated PNG, the image in its own size (the text of a classification stands beneath it).
"""

import launch  # first: it sets the environment that jax reads

import pathlib

from absl import flags

from vision_jax import build, viz
from vision_jax.data import predictions as files
from vision_jax.data.images import ImageFiles
from vision_jax.host import masks

FLAGS = flags.FLAGS
flags.DEFINE_multi_string('input', [], 'An image file or a folder of them; may be given several times.')
flags.DEFINE_string('output', None, 'The folder to write to; WORKDIR/predictions by default.')
flags.DEFINE_string('coco', None, 'Detection: a COCO file with the ids that the images shall have, by file name.')
flags.DEFINE_string('step', 'best', "Which checkpoint: 'best', 'last' or a step.")
flags.DEFINE_float('threshold', None, 'Detection: the least score (default 0.3). Segmentation: the least confidence.',
                   0.0, 1.0)
flags.DEFINE_integer('min_area', 0, 'Segmentation: smaller components become background (pixels).', 0)
flags.DEFINE_integer('opening', 0, 'Segmentation: radius of a morphological opening (pixels).', 0)
flags.DEFINE_bool('fill_holes', False, 'Segmentation: fill the holes of each component.')


def main() -> None:
  if not FLAGS.input:
    raise ValueError('--input is missing; give an image file or a folder')
  experiment = build.experiment(launch.config_of_run())
  source = ImageFiles(FLAGS.input)
  names = [source.name_of(index) for index in range(len(source))]
  if FLAGS.coco and experiment.task.kind != 'detection':
    raise ValueError(f'--coco numbers the images of detections; this run is for {experiment.task.kind}')
  image_ids = files.coco_image_ids(FLAGS.coco, names) if FLAGS.coco else None
  state = experiment.restore(FLAGS.workdir, FLAGS.step)
  output = pathlib.Path(FLAGS.output or pathlib.Path(FLAGS.workdir) / 'predictions')
  output.mkdir(parents=True, exist_ok=True)
  write = {'detection': detection, 'classification': classification, 'segmentation': segmentation}[experiment.task.kind]
  records = []
  for index, prediction in experiment.predict(state, source):
    image, name = source[index]['image'], names[index]
    stem = output / f'{index:04d}_{pathlib.Path(name).stem}'
    write(image, prediction, experiment.classes, stem)
    if experiment.task.kind != 'segmentation':  # whose maps are large, and on the disk by now
      records.append((name, image.shape[:2], prediction))
  path = output / 'predictions.json'
  if experiment.task.kind == 'detection':
    files.write_detections(path, records, experiment.classes, threshold=score_threshold(), image_ids=image_ids)
  if experiment.task.kind == 'classification':
    files.write_classifications(path, records, experiment.classes)
  print(f'{len(source)} images, step {int(state.step)}; predictions are in {output}')


def score_threshold() -> float:
  return 0.3 if FLAGS.threshold is None else FLAGS.threshold


def detection(image, prediction, classes, stem) -> None:
  save(viz.draw_detections(image, prediction, classes, threshold=score_threshold()), stem)


def classification(image, prediction, classes, stem) -> None:
  save(viz.draw_classification(image, prediction['probabilities'], classes), stem)


def segmentation(image, prediction, classes, stem) -> None:
  segmentation = masks.clean(prediction['segmentation'], prediction['confidence'], threshold=FLAGS.threshold or 0.0,
                             min_area=FLAGS.min_area, opening=FLAGS.opening, fill_holes=FLAGS.fill_holes)
  viz.save_palette_png(stem.with_name(stem.name + '_classes.png'), segmentation, classes)
  save(viz.draw_segmentation(image, segmentation, classes, legend=False), stem)


def save(picture, stem) -> None:
  viz.save_png(stem.with_name(stem.name + '.png'), picture)


if __name__ == '__main__':
  launch.run(main)
