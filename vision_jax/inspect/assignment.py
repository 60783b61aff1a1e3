"""What a detector's loss takes each prediction for: positive, negative or ignored, and the objects it never learns.

Units: boxes are xyxy in canvas pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import enum
import functools
from typing import Any

import jax
import numpy as np

from vision_jax import viz
from vision_jax.conventions import Array, Batch, ClassMap, Variables


class Role(enum.IntEnum):
  """What a prediction learns: an object, that nothing is there, or nothing at all.

  >>> [role.name for role in Role]
  ['IGNORED', 'NEGATIVE', 'POSITIVE']
  """

  IGNORED = -1
  NEGATIVE = 0
  POSITIVE = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Assignment:
  """The roles of one image's predictions in one stage of a loss.

  Args:
    stage: its name, or '' where there is one only.
    boxes: [Q, 4] the anchors or proposals; the predicted boxes where the objects choose by them (the YOLOs, DETR).
    roles: int8 [Q], values of `Role`.
    owners: int [Q], the object that a positive prediction learns; unspecified for the others.
    levels: how many of the Q predictions each level has, fine to coarse.
    objects: [n, 4] the boxes of the image's objects.
    labels: int [n], their classes.
    collisions: how many objects lost their place to another one (YOLOv1: their cell, the others: their slot); None for
      detectors without such places.
  """

  stage: str
  boxes: np.ndarray
  roles: np.ndarray
  owners: np.ndarray
  levels: tuple[int, ...]
  objects: np.ndarray
  labels: np.ndarray
  collisions: int | None = None

  @property
  def answers(self) -> np.ndarray:
    """How many predictions learn each object, int [n]."""
    return np.bincount(self.owners[self.roles == Role.POSITIVE], minlength=len(self.objects))

  @property
  def unanswered(self) -> np.ndarray:
    """The objects that no prediction learns, as indices into `objects`."""
    return np.flatnonzero(self.answers == 0)

  @property
  def counts(self) -> dict[str, int]:
    """The predictions of each role, the objects, those that no prediction learns, and the collisions if it has any."""
    counts = {**_counts_of(self.roles), 'objects': len(self.objects), 'unanswered': len(self.unanswered)}
    return counts if self.collisions is None else {**counts, 'collisions': self.collisions}

  @property
  def level_counts(self) -> tuple[dict[str, int], ...]:
    """The predictions of each role in each level."""
    return tuple(_counts_of(part) for part in np.split(self.roles, np.cumsum(self.levels)[:-1]))

  def table(self, classes: ClassMap | None = None) -> str:
    """The counts in words, a line for each level where there are several, and one for each object.

    Args:
      classes: the names of the classes; their numbers stand there without them.
    """
    def words(counts):
      return ', '.join(f'{count:,} {name}' for name, count in counts.items())
    lines = [f'{self.stage}: {words(self.counts)}' if self.stage else words(self.counts)]
    if len(self.levels) > 1:
      lines += [f'  level {i}: {words(counts)}' for i, counts in enumerate(self.level_counts)]
    for box, label, count in zip(self.objects, self.labels, self.answers, strict=True):
      name = label if classes is None else classes.names[label]
      sides = f'{box[2] - box[0]:.0f} x {box[3] - box[1]:.0f} pixels at ({box[0]:.0f}, {box[1]:.0f})'
      lines.append(f'  object {name}, {sides}: {count or "no"} prediction{"" if count == 1 else "s"}')
    return '\n'.join(lines)

  def draw(self, image: np.ndarray, *, scale: int = 1) -> np.ndarray:
    """The image with the predictions and objects on it; see `viz.draw_assignment`.

    Args:
      image: uint8 [H, W, 3], the canvas or its content.
      scale: how many times larger the picture is than the image.
    """
    return viz.draw_assignment(image, self.boxes, self.roles, self.owners, self.objects, scale=scale)


def explain_assignment(task: Any, variables: Variables, batch: Batch, *, row: int = 0,
                       key: Array | None = None) -> tuple[Assignment, ...]:
  """What a detector's loss takes each of its predictions for in one image, by the loss's own assignment.

  The network runs in test mode: its predictions matter to losses that assign by them.

  Args:
    task: a detection task; its criterion says how it assigns (`assignment`).
    variables: of the task.
    batch: of a loader, with `position`.
    row: which image of it; a valid one.
    key: a random key for losses that learn from a sample; a fixed one when left out.

  Returns:
    An `Assignment` for each stage of the loss: one for most, the region proposals and the sampled proposals for Faster
    R-CNN, one for each decoder layer of DETR.

  Raises:
    ValueError: the task is no detector or does not say how it assigns, or the row is no valid one.
  """
  if not hasattr(task, 'assignment'):
    raise ValueError(f'explain_assignment: a task of the kind {task.kind} assigns nothing; give a detector')
  if not 0 <= row < len(batch['valid']) or not batch['valid'][row]:
    raise ValueError(f'explain_assignment: row {row} of a batch of {len(batch["valid"])} is no valid image; choose '
                     'another')
  key = jax.random.key(0) if key is None else key
  batch = {name: np.asarray(value)[row:row + 1] for name, value in batch.items()}
  stages = jax.device_get(jax.jit(functools.partial(_stages, task))(variables, batch, key))
  # A dict comes out of jit in the order of its names; the list has the stages' own.
  return tuple(_of_image(stage, roles, batch) for stage, roles in zip(_names(task, variables, batch, key), stages,
                                                                     strict=True))


def _stages(task: Any, variables: Variables, batch: Batch, key: Array) -> list[Any]:
  return list(task.assignment(variables, batch, key).values())


def _names(task: Any, variables: Variables, batch: Batch, key: Array) -> list[str]:
  """The names of the stages, in order."""
  names = []
  jax.eval_shape(lambda *given: names.extend(task.assignment(*given)), variables, batch, key)
  return names


def _of_image(stage: str, roles: Any, batch: Mapping[str, np.ndarray]) -> Assignment:
  """The roles of a batch of one image, without empty slots of predictions and of objects."""
  real, shown = batch['boxes_valid'][0], roles.valid[0]
  role = np.where(roles.positive[0], Role.POSITIVE, np.where(roles.negative[0], Role.NEGATIVE, Role.IGNORED))
  owners = (np.cumsum(real) - 1)[roles.owner[0]] if real.size else roles.owner[0]  # counted among the real ones
  return Assignment(
      stage, roles.boxes[0][shown], role[shown].astype(np.int8), owners[shown],
      tuple(int(n) for n in roles.levels) or (int(shown.sum()),), batch['boxes'][0][real], batch['labels'][0][real],
      None if roles.collisions is None else int(roles.collisions[0]))


def _counts_of(roles: np.ndarray) -> dict[str, int]:
  return {role.name.lower(): int((roles == role).sum()) for role in (Role.POSITIVE, Role.NEGATIVE, Role.IGNORED)}
