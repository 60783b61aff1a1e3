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
    meaning: what is found.
    action: what is done about it when training goes on.
    remedy: how to mend the data.

  >>> Kind('error', 'a box has no width', 'the box is left out', 'draw it again').severity
  'error'
  """

  severity: str
  meaning: str
  action: str
  remedy: str

  def __post_init__(self):
    if self.severity not in SEVERITIES:
      raise ValueError(f'severity {self.severity!r} of a kind of finding; known: {", ".join(SEVERITIES)}')


_LEFT_OUT = 'the object is left out'
_FLATTERS = 'both are used, which flatters the measured quality'

KINDS: dict[str, Kind] = {
    # Splits and classes.
    'split-unreadable': Kind('error', 'a split cannot be read at all', 'training stops', 'do what the line says'),
    'split-empty': Kind('error', 'a split has no image', 'training has nothing to learn from, or to measure on',
                        'give the split an image'),
    'split-overlap': Kind('warning', 'a file, or an identity, is in both splits', _FLATTERS,
                          'keep it in one split only'),
    'class-unknown': Kind('error', 'a label is none of the classes', 'the object or image is left out',
                          'add the class to the list of classes, or correct the label'),
    'class-absent': Kind('warning', 'a split has nothing of a class', 'the class keeps its number',
                         'add images of it, or take it off the classes'),
    'class-gap': Kind('note', 'the class ids have gaps',
                      'the ids are kept for predictions; inside classes count from 0', 'nothing to do'),
    # Image files.
    'image-missing': Kind('error', 'the labels name an image that is not there', 'the image is left out',
                          'add the file or take it out of the labels'),
    'image-corrupt': Kind('error', 'an image cannot be read',
                          'the image is left out where reading the labels shows it; else training stops at it',
                          'replace the file or take it out of the labels'),
    'image-truncated': Kind('error', 'an image file is cut short', 'training stops at it',
                            'copy the file again or take it out of the labels'),
    'image-size': Kind('error', 'an image has another size than its labels state', 'training stops at it',
                       'label the image that is there, or put back the one that was labelled'),
    'image-id-twice': Kind('error', 'an image stands twice in the labels, or two images have one name or id',
                           'the later entry is left out', 'give each image its own id'),
    'image-extra': Kind('warning', 'an image has no labels and lies where labelled ones do', 'the image is not used',
                        'label the image or move it away'),
    'image-unlabelled': Kind('warning', 'an image of the split has no label file',
                             'the image counts as one without objects', 'label the image, or add an empty label file'),
    'image-exif': Kind('warning', 'EXIF data turn or mirror an image',
                       'the image is turned upright; boxes and masks count on the upright image',
                       'save the image upright, and look whether its boxes fit'),
    'image-duplicate': Kind('warning', 'an image of val looks like one of train', _FLATTERS,
                            'keep it in one split only'),
    'image-grey': Kind('note', 'an image is grey, or black and white', 'three equal channels are made of it',
                       'nothing to do'),
    'image-palette': Kind('note', 'the pixels of an image are places in a palette', 'the colours are looked up',
                          'nothing to do'),
    'image-16bit': Kind('note', 'an image has more than 8 bits', 'the values are scaled to 8 bits, 65535 to 255',
                        'spread the values yourself where they use a small part of the range'),
    'image-alpha': Kind('note', 'a part of an image is transparent', 'transparency is laid over white',
                        'nothing to do'),
    'file-unknown': Kind('note', 'files among the images have a suffix that no image has', 'the file is not used',
                         'if it is an image, save it in a known format'),
    # Labels.
    'label-missing': Kind('error', 'an image that the split lists has no label file', 'the image is left out',
                          'add the label file or take the image out of the list'),
    'label-orphan': Kind('warning', 'labels have no image', 'the labels are not used',
                         'add the image or delete the label file'),
    'label-syntax': Kind('error', 'a line, element or entry cannot be read', 'the entry is left out',
                         'write the entry again'),
    'annotation-id-0': Kind('note', 'an annotation has the id 0', 'the object is used as any other',
                            "number annotations from 1: COCO's own evaluation takes an object with id 0 for not found"),
    'annotation-id-twice': Kind('warning', 'two annotations have the same id', 'both objects are used',
                                'give each annotation its own id'),
    # Boxes.
    'box-zero': Kind('error', 'a box has no width or no height', _LEFT_OUT, 'draw the box again or delete it'),
    'box-inverted': Kind('error', 'a box ends before it begins', _LEFT_OUT, 'swap the corners or draw the box again'),
    'box-outside': Kind('error', 'a box lies wholly outside its image', _LEFT_OUT, 'draw the box again or delete it'),
    'box-not-finite': Kind('error', 'a box has a coordinate that is not finite', _LEFT_OUT,
                           'draw the box again or delete it'),
    'box-not-normalised': Kind('error', 'a YOLO line has pixels in place of shares of the image', _LEFT_OUT,
                               'divide x and width by the image width, y and height by its height'),
    'box-format': Kind('error', 'boxes make sense only in another format than the one of the file',
                       'the boxes are read as the format defines them', 'write the boxes as x, y, width, height'),
    'box-clipped': Kind('warning', 'a box leaves its image by more than half a pixel',
                        'the box is clipped to the image', 'draw the box inside the image'),
    'box-tiny': Kind('warning', 'a box is at most one pixel wide or high', 'the object is used',
                     'delete the box, or draw it around the object'),
    'box-duplicate': Kind('warning', 'two boxes of a class in one image have an IoU above 0.9', 'both objects are used',
                          'delete one of the two'),
    # Masks.
    'mask-missing': Kind('error', 'masks are asked for and an object has none', _LEFT_OUT,
                         'draw the mask, or train on boxes alone'),
    'mask-corrupt': Kind('error', 'a mask image cannot be read', 'what it belongs to is left out',
                         'write the mask again'),
    'mask-size': Kind('error', 'a mask has another size than its image',
                      'the object is left out; at the mask of a whole image training stops',
                      'write the mask in the size of its image'),
    'mask-values': Kind('error', 'a mask image has a value that is no class',
                        'the image is left out where the values were looked at; else training stops at it',
                        'write the mask with values of classes, or name the class'),
    'mask-empty': Kind('error', "an object's mask has no pixel", _LEFT_OUT, 'draw the mask again or delete it'),
    'polygon-bad': Kind('error', 'a polygon has under three points, or no numbers', _LEFT_OUT,
                        'draw the polygon again with three points or more'),
    'polygon-empty': Kind('warning', 'a polygon is so thin that it covers no pixel',
                          'the object is used with an empty mask',
                          'draw the polygon around the centre of a pixel or more'),
    'rle-bad': Kind('error', 'run lengths are damaged', _LEFT_OUT, 'write the run lengths again'),
    'mask-void': Kind('warning', 'every pixel of a mask image is void', 'the image is used and teaches nothing',
                      'draw the mask, or take the image out'),
    'mask-reading': Kind('note', 'how the values of mask images were understood', 'the masks are read so',
                         'if they mean something else, say it with data.mask_values'),
}


def table() -> str:
  """`KINDS` as a table in Markdown, with a header.

  >>> print(table().splitlines()[0])
  | kind | severity | what it means | what is done | how to mend it |
  """
  rows = [('kind', 'severity', 'what it means', 'what is done', 'how to mend it'), ('---',) * 5,
          *((f'`{kind}`', rule.severity, rule.meaning, rule.action, rule.remedy) for kind, rule in KINDS.items())]
  return ''.join(f'| {" | ".join(row)} |\n' for row in rows)


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
