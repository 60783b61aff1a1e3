"""Makes the features of a folder of images once, and fits a logistic regression to them: transfer without training.

python experiments/linear_probe.py --config configs/finetune.py --workdir runs/probe --config.data.path=photos \\
    --config.model.weights=resnet18:DEFAULT

The features are what the model gives with num_classes=0 on images as an evaluation sees them. They are kept in WORKDIR
under a name made of the weights, the model, the preprocessing and the files, so that a second call takes them from
there. The strength C of the regression is chosen on the last fifth of each class's training images, never on the
validation data, and then all training images are fitted. It prints top-1 and top-5, and writes all metrics to
WORKDIR/linear_probe.json and the confusion matrix as a picture beside it.
"""

import launch  # first: it sets the environment that jax reads

import hashlib
import json
import pathlib

from absl import flags
import jax
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vision_jax import build, metrics, viz
from vision_jax.train.log import json_scalars

FLAGS = flags.FLAGS
STRENGTHS = tuple(10.0 ** k for k in range(-4, 2))  # what is tried for C


def main() -> None:
  if not FLAGS.workdir:
    raise ValueError('--workdir is missing; give the folder that features and results are written to')
  experiment = build.experiment(launch.config_of_run(weights=True))
  folder = pathlib.Path(FLAGS.workdir)
  folder.mkdir(parents=True, exist_ok=True)
  variables, said = experiment.initial()
  print('\n'.join((*experiment.notes, said)))
  train, val = experiment.train_loader.source, experiment.val_loader.source
  (x, y), (x_val, y_val) = (features_and_labels(folder, experiment, variables, source) for source in (train, val))
  if len(np.unique(y)) < 2:
    raise ValueError('all training images are of one class, and there is nothing to tell apart; check config.data')
  tried = scores(x, y)
  strength = max(tried, key=tried.get)
  print(f'C = {strength:g} is best on the last fifth of each class of {len(y)} training images: '
        + ', '.join(f'{c:g} {score:.3f}' for c, score in tried.items()))
  result, matrix = measured(fitted(x, y, strength), x_val, y_val, experiment.classes)
  print(f'{len(y_val)} validation images: top1 {result["top1"]:.4f}  top5 {result["top5"]:.4f}')
  record = {'weights': experiment.weights, 'C': strength,
            'held_out': json_scalars({f'{c:g}': score for c, score in tried.items()}), 'train_images': len(y),
            'val_images': len(y_val), **json_scalars(result)}
  path = folder / 'linear_probe.json'
  path.write_text(json.dumps(record, indent=2) + '\n', encoding='utf-8')
  viz.save_png(path.with_suffix('.png'), viz.draw_confusion(matrix, experiment.classes))
  print(f'{path}, {path.with_suffix(".png")}')


def features_and_labels(folder, experiment, variables, source):
  """The features [N, C] of a source, from their file where they were made before, and the labels [N]."""
  module, backbone = experiment.backbone(variables)
  path = folder / f'features_{digest(module, backbone, experiment.val_loader, source)}.npy'
  made = path.exists()
  if not made:
    features = experiment.features(module, backbone, source)
    unfinished = path.with_suffix('.tmp')  # a kill in the middle leaves no half file under the real name
    with open(unfinished, 'wb') as file:
      np.save(file, features)
    unfinished.replace(path)
  print(f'features of {len(source)} images: {path}{" (made before)" if made else ""}')
  return np.load(path), np.array([source.target(i)['label'] for i in range(len(source))])


def digest(module, variables, loader, source) -> str:
  """What tells features apart: the model and its variables, the preprocessing, the files."""
  code = hashlib.sha256(repr((module, loader.canvas, loader.resize, loader.mean, loader.std)).encode())
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    code.update(jax.tree_util.keystr(path).encode() + np.ascontiguousarray(leaf).tobytes())
  for i in range(len(source)):
    file = source.path_of(i).stat() if hasattr(source, 'path_of') else None
    code.update(repr((source.name_of(i), file and (file.st_size, file.st_mtime_ns))).encode())
  return code.hexdigest()[:16]


def scores(x, y) -> dict[float, float]:
  """The accuracy of each strength on the last fifth of each class, learned from the others."""
  held_out = np.zeros(len(y), bool)
  for label in np.unique(y):
    rows = np.flatnonzero(y == label)
    held_out[rows[len(rows) - max(1, round(len(rows) / 5)):]] = len(rows) > 1
  if not held_out.any():
    return {1.0: float('nan')}
  return {c: float(fitted(x[~held_out], y[~held_out], c).score(x[held_out], y[held_out])) for c in STRENGTHS}


def fitted(x, y, strength: float):
  """A logistic regression on features of mean 0 and deviation 1."""
  return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000)).fit(x, y)


def measured(regression, x, y, classes):
  """Top-1, top-5 and the recalls, and the confusion matrix."""
  probabilities = np.zeros((len(x), len(classes)))
  probabilities[:, regression.classes_] = regression.predict_proba(x)  # a class without an image to learn from keeps 0
  top, confusion = metrics.TopK(), metrics.Confusion(classes)
  for row, label in zip(probabilities, y.tolist(), strict=True):
    for accumulator in (top, confusion):
      accumulator.add({'probabilities': row}, {'label': label})
  return {**top.result(), **confusion.result()}, confusion.matrix


if __name__ == '__main__':
  launch.run(main)
