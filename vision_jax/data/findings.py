"""What can be wrong with a data set: every kind of finding, how grave it is, what is done, and how to mend it."""

from __future__ import annotations

import collections
from collections.abc import Iterable
import dataclasses
from typing import Any

SEVERITIES = ('error', 'warning', 'note')


@dataclasses.dataclass(frozen=True)
class Kind:
  """One kind of finding.

  Args:
    severity: 'error' (stops training unless told otherwise), 'warning' or 'note'.
    action: what is done about it when training goes on.
    remedy: how to mend the data.

  >>> Kind('error', 'the box is left out', 'draw it again').severity
  'error'
  """

  severity: str
  action: str
  remedy: str

  def __post_init__(self):
    if self.severity not in SEVERITIES:
      raise ValueError(f'severity {self.severity!r} of a kind of finding; known: {", ".join(SEVERITIES)}')


_LEFT_OUT = 'the object is left out'

KINDS: dict[str, Kind] = {
    'image-corrupt': Kind('error', 'the image is left out where reading the labels shows it; else training stops at it',
                          'replace the file or take it out of the labels'),
    'image-truncated': Kind('error', 'training stops at it', 'copy the file again or take it out of the labels'),
    'image-missing': Kind('error', 'the image is left out', 'add the file or take it out of the labels'),
    'image-extra': Kind('warning', 'the image is not used', 'label the image or move it away'),
    'image-unlabelled': Kind('warning', 'the image counts as one without objects',
                             'label the image, or add an empty label file'),
    'image-size': Kind('error', 'training stops at it',
                       'label the image that is there, or put back the one that was labelled'),
    'image-exif': Kind('warning', 'the image is turned upright; boxes and masks count on the upright image',
                       'save the image upright, and look whether its boxes fit'),
    'image-grey': Kind('note', 'three equal channels are made of it', 'nothing to do'),
    'image-palette': Kind('note', 'the colours are looked up', 'nothing to do'),
    'image-16bit': Kind('note', 'the values are scaled to 8 bits, 65535 to 255',
                        'spread the values yourself where they use a small part of the range'),
    'image-alpha': Kind('note', 'transparency is laid over white', 'nothing to do'),
    'image-duplicate': Kind('warning', 'both are used, which flatters the measured quality',
                            'keep it in one split only'),
    'image-id-twice': Kind('error', 'the later entry is left out', 'give each image its own id'),
    'label-missing': Kind('error', 'the image is left out', 'add the label file or take the image out of the list'),
    'label-orphan': Kind('warning', 'the labels are not used', 'add the image or delete the label file'),
    'label-syntax': Kind('error', 'the entry is left out', 'write the entry again'),
    'class-unknown': Kind('error', 'the object or image is left out',
                          'add the class to the list of classes, or correct the label'),
    'class-gap': Kind('note', 'the ids are kept for predictions; inside classes count from 0', 'nothing to do'),
    'box-zero': Kind('error', _LEFT_OUT, 'draw the box again or delete it'),
    'box-inverted': Kind('error', _LEFT_OUT, 'swap the corners or draw the box again'),
    'box-outside': Kind('error', _LEFT_OUT, 'draw the box again or delete it'),
    'box-clipped': Kind('warning', 'the box is clipped to the image', 'draw the box inside the image'),
    'box-duplicate': Kind('warning', 'both objects are used', 'delete one of the two'),
    'box-not-finite': Kind('error', _LEFT_OUT, 'draw the box again or delete it'),
    'box-not-normalised': Kind('error', _LEFT_OUT, 'divide x and width by the image width, y and height by its height'),
    'box-format': Kind('error', 'the boxes are read as the format defines them',
                       'write the boxes as x, y, width, height'),
    'annotation-id-0': Kind('note', 'the object is used as any other',
                            "number annotations from 1: COCO's own evaluation takes an object with id 0 for not found"),
    'annotation-id-twice': Kind('warning', 'both objects are used', 'give each annotation its own id'),
    'mask-missing': Kind('error', _LEFT_OUT, 'draw the mask, or train on boxes alone'),
    'mask-empty': Kind('error', _LEFT_OUT, 'draw the mask again or delete it'),
    'mask-size': Kind('error', _LEFT_OUT, 'write the mask in the size of its image'),
    'polygon-bad': Kind('error', _LEFT_OUT, 'draw the polygon again with three points or more'),
    'polygon-empty': Kind('warning', 'the object is used with an empty mask',
                          'draw the polygon around the centre of a pixel or more'),
    'rle-bad': Kind('error', _LEFT_OUT, 'write the run lengths again'),
    'class-absent': Kind('warning', 'the class keeps its number', 'add images of it, or take it off the classes'),
    'split-overlap': Kind('warning', 'both are used, which flatters the measured quality', 'keep it in one split only'),
    'split-empty': Kind('error', 'training has nothing to learn from, or to measure on', 'give the split an image'),
    'split-unreadable': Kind('error', 'training stops', 'do what the line says'),
    'file-unknown': Kind('note', 'the file is not used', 'if it is an image, save it in a known format'),
    'mask-corrupt': Kind('error', 'what it belongs to is left out', 'write the mask again'),
    'mask-values': Kind('error', 'the image is left out', 'write the mask with values of classes, or name the class'),
    'mask-void': Kind('warning', 'the image is used and teaches nothing', 'draw the mask, or take the image out'),
    'mask-reading': Kind('note', 'the masks are read so', 'if they mean something else, say it with data.values'),
}


def by_kind(findings: Iterable[Any]) -> dict[str, int]:
  """How many findings there are of each kind, errors first, then in the order of `KINDS`.

  Args:
    findings: `records.Finding`s.

  Returns:
    Kind -> how many; kinds without any are left out.
  """
  counts = collections.Counter(finding.kind for finding in findings)
  return {kind: counts[kind] for severity in SEVERITIES for kind, rule in KINDS.items()
          if rule.severity == severity and counts[kind]}


def summary(findings: Iterable[Any]) -> str:
  """How many errors, warnings and notes there are, and of which kinds, in a line.

  Args:
    findings: `records.Finding`s.

  Returns:
    The line, without an end.

  >>> from vision_jax.data.records import Finding
  >>> summary([Finding('box-zero', 'a.txt:3', 'the box is 0 pixels wide')] * 2)
  '2 errors (box-zero 2)'
  >>> summary([])
  'nothing to report'
  """
  counts = by_kind(findings)
  parts = []
  for severity in SEVERITIES:
    own = {kind: count for kind, count in counts.items() if KINDS[kind].severity == severity}
    if own:
      total = sum(own.values())
      kinds = ', '.join(f'{kind} {count}' for kind, count in own.items())
      parts.append(f'{total} {severity}{"s" if total > 1 else ""} ({kinds})')
  return ', '.join(parts) or 'nothing to report'
