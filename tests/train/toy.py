"""A small task with terms of different divisors, and data with very uneven numbers of objects."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from flax import linen as nn
import jax.numpy as jnp
import numpy as np

from vision_jax.conventions import ClassMap, Term
from vision_jax.data.loader import Loader
from vision_jax.models.noise import Dropout
from vision_jax.tasks import base

CLASSES = ClassMap(('spot',))
COUNTS = (4, 1, 0, 9, 0, 0, 1, 0, 7, 2, 0, 3)  # objects of the images, in turn


class Uneven:
  """Random images of 8 x 12 pixels whose numbers of boxes follow `COUNTS`."""

  fields = ('boxes', 'labels')
  classes = CLASSES

  def __init__(self, size: int = 24, empty: bool = False):
    self.size, self.empty = size, empty

  def __len__(self):
    return self.size

  def name_of(self, i):
    return f'uneven {i}'

  def target(self, i):
    rng = np.random.default_rng((1, i))
    n = 0 if self.empty else COUNTS[i % len(COUNTS)]
    corner = rng.uniform(0, (6, 4), (n, 2))
    return {'boxes': np.concatenate([corner, corner + rng.uniform(1, 4, (n, 2))], 1).astype(np.float32),
            'labels': np.zeros(n, np.int32)}

  def __getitem__(self, i):
    image = np.random.default_rng((2, i)).integers(0, 256, (8, 12, 3), np.uint8)
    return {'image': image, **self.target(i)}


class Net(nn.Module):
  """Four numbers for an image, with a batch norm or dropout in between where asked for."""

  norm: bool = False
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x, *, train: bool = False):
    x = nn.Conv(4, (3, 3), strides=4)(x)
    if self.norm:
      x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
    x = Dropout(self.dropout)(jnp.tanh(x).reshape(x.shape[0], -1), train=train)
    return nn.Dense(4)(x)


class Mean(nn.Module):
  """Four numbers for an image of any size."""

  @nn.compact
  def __call__(self, x, *, train: bool = False):
    return nn.Dense(4)(jnp.tanh(nn.Conv(4, (3, 3))(x)).mean((1, 2)))


@dataclasses.dataclass(frozen=True)
class ToyTask:
  """Boxes pull at the image's four numbers (a mean over objects), and the numbers at zero (a mean over images)."""

  module: nn.Module = dataclasses.field(default_factory=Net)
  weights: tuple[tuple[str, float], ...] = (('loss_object', 1.0), ('loss_image', 0.5))
  poison: int = -1  # the step at which the object term becomes NaN
  kind: ClassVar[str] = 'detection'
  fields: ClassVar[tuple[str, ...]] = ('boxes', 'labels')

  def init(self, key, batch):
    return base.init_module(self.module, key, batch)

  def loss(self, params, model_state, batch, key, step, train):
    out, model_state = base.apply_module(self.module, params, model_state, batch, key=key, train=train)
    valid = batch['valid'][:, None] & batch['boxes_valid']
    boxes = jnp.where(valid[..., None], batch['boxes'] / 8.0, 0.0)
    distance = jnp.square(out[:, None] - boxes).sum(-1)
    total = jnp.where(valid, distance, 0.0).sum()
    total = jnp.where(step == self.poison, jnp.nan, total)
    terms = {'loss_object': Term(total, valid.sum().astype(jnp.float32)),
             'loss_image': Term(jnp.where(batch['valid'], jnp.square(out).sum(-1), 0.0).sum(),
                                batch['valid'].sum().astype(jnp.float32))}
    return terms, {'mean_output': out.mean()}, model_state

  def predict(self, variables, batch):
    out = self.module.apply(variables, batch['image'], train=False)
    boxes = jnp.stack([out[:, :2], out[:, :2] + 1.0], 1).reshape(-1, 1, 4)
    return {'boxes': boxes, 'scores': jnp.ones((len(out), 1)), 'labels': jnp.zeros((len(out), 1), jnp.int32),
            'valid': jnp.ones((len(out), 1), bool)}

  def metrics(self):
    return [Counter()]


class Counter:
  """Counts images and objects, and remembers each image seen."""

  seen_last = ()  # the indices that the last evaluation saw, in its order

  def __init__(self):
    self.seen, self.objects = [], 0

  def add(self, prediction, target):
    self.seen.append(target['index'])
    self.objects += len(target['boxes'])

  def merge(self, other):
    self.seen += other.seen
    self.objects += other.objects

  def result(self):
    Counter.seen_last = tuple(self.seen)
    return {'images': float(len(self.seen)), 'objects': float(self.objects)}


def loader(size: int = 24, *, batch_size: int = 8, empty: bool = False, canvas=(8, 12), **options) -> Loader:
  """Batches of `Uneven`, on a canvas of its own size unless told otherwise."""
  return Loader(Uneven(size, empty), batch_size=batch_size, canvas=canvas, max_objects=10, fields=('boxes', 'labels'),
                **options)
