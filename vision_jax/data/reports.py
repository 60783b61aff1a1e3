"""What the checker found, as text and as JSON: findings, counts, classes, sizes of boxes.

Units: boxes and sizes in pixels; areas small, medium and large as COCO has them, below 32 x 32, below 96 x 96, above.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
from typing import Any

import numpy as np

from vision_jax.data.check import BETWEEN, Checked, class_counts
from vision_jax.data.findings import KINDS, by_kind, summary
from vision_jax.data.image_checks import Seen
from vision_jax.data.records import Finding, Labelled


def line(finding: Finding) -> str:
  """A finding in one line: severity, kind, where, what is wrong, what will be done, how to mend it.

  >>> print(line(Finding('box-zero', 'a.txt:3', 'the box is 0 pixels wide')))
  error box-zero: a.txt:3: the box is 0 pixels wide; the object is left out. Mend: draw the box again or delete it
  """
  rule = finding.rule
  return f'{rule.severity} {finding.kind}: {finding}; {rule.action}. Mend: {rule.remedy}'


def statistics(labelled: Labelled, seen: Seen | None = None) -> dict[str, Any]:
  """What a split holds, ready for JSON.

  Args:
    labelled: a split.
    seen: what `check_images` saw of it, for the pixels of each class.

  Returns:
    `images`, `classes`, a dict from each name to how many objects, images or pixels it has; for detection also
    `objects`, `images_without_objects`, `crowds`, `difficult`, and, where there is an object, `objects_an_image`,
    `width`, `height` and `sqrt_area`, each the least, the median and the largest, and `areas`, the shares of small,
    medium and large boxes in percent.
  """
  counts = class_counts(labelled)
  if 'segmentation' in labelled.fields and seen is not None and seen.pixels is not None:
    counts = seen.pixels
  found = {'images': len(labelled.records),
           'classes': dict(zip(labelled.classes.names, counts.tolist(), strict=True))}
  if 'boxes' not in labelled.fields:
    return found
  objects = [each for record in labelled.records for each in record.objects]
  an_image = [len(record.objects) for record in labelled.records]
  found |= {'objects': len(objects), 'images_without_objects': an_image.count(0),
            'crowds': sum(each.crowd for each in objects), 'difficult': sum(each.difficult for each in objects)}
  if objects:
    boxes = np.array([each.box for each in objects], np.float64)
    w, h = (boxes[:, 2:] - boxes[:, :2]).T
    side = np.sqrt(np.maximum(w * h, 0.0))
    shares = np.histogram(side, (0.0, 32.0, 96.0, np.inf))[0] * 100 / len(side)
    found |= {name: _spread(values) for name, values in
              (('objects_an_image', an_image), ('width', w), ('height', h), ('sqrt_area', side))}
    found['areas'] = dict(zip(('small', 'medium', 'large'), shares.round(1).tolist(), strict=True))
  return found


def report(checked: Checked, *, most: int | None = None) -> str:
  """The whole report as text.

  Args:
    checked: what `check_data` gives.
    most: how many findings of a kind, 3 of a note, and how many classes to list for each split; all when left out.

  Returns:
    A line for each finding, errors first; how many there are of each kind; the classes and the sizes of boxes.
  """
  lines = []
  for name, found in checked.findings.items():
    lines += [f'{name}: {summary(found)}', *_listing(found, most), '']
  counts = by_kind(each for found in checked.findings.values() for each in found)
  lines += ['findings of each kind', *(f'  {count:>7,}  {kind} ({KINDS[kind].severity})'
                                       for kind, count in counts.items()), *(() if counts else ('  none',)), '']
  for name, labelled in checked.labelled.items():
    lines += [*_statistics_lines(name, labelled, statistics(labelled, checked.seen.get(name)), most), '']
  return '\n'.join(lines)


def to_json(checked: Checked) -> str:
  """The same as `report` for a program.

  Args:
    checked: what `check_data` gives.

  Returns:
    JSON with `findings`, each with split, severity, kind, where, what, action, remedy and the image it belongs to, or
    null; `counts` of each kind; `statistics` of each split.
  """
  entries = [_entry(name, checked.labelled.get('val' if name == BETWEEN else name), each)
             for name, found in checked.findings.items() for each in found]
  counts = by_kind(each for found in checked.findings.values() for each in found)
  numbers = {name: statistics(labelled, checked.seen.get(name)) for name, labelled in checked.labelled.items()}
  return json.dumps({'findings': entries, 'counts': counts, 'statistics': numbers}, indent=1, ensure_ascii=False) + '\n'


def _entry(name: str, labelled: Labelled | None, finding: Finding) -> dict[str, Any]:
  rule = finding.rule
  image = None if finding.item is None or labelled is None else labelled.records[finding.item].name
  return {'split': name, 'severity': rule.severity, 'kind': finding.kind, 'where': finding.where, 'what': finding.what,
          'action': rule.action, 'remedy': rule.remedy, 'image': image}


def _listing(findings: Sequence[Finding], most: int | None) -> list[str]:
  """The findings by kind, errors first."""
  lines = []
  for kind, count in by_kind(findings).items():
    own = [each for each in findings if each.kind == kind]
    shown = count if most is None else min(most, count) if KINDS[kind].severity != 'note' else min(most, 3, count)
    lines += [f'  {line(each)}' for each in own[:shown]]
    if shown < count:
      lines.append(f'  ... and {count - shown:,} more of {kind}')
  return lines


def _statistics_lines(name: str, labelled: Labelled, found: Mapping[str, Any], most: int | None) -> list[str]:
  unit = 'pixels' if 'segmentation' in labelled.fields else 'objects' if 'boxes' in labelled.fields else 'images'
  lines = [f'{name}: {found["images"]:,} images ({labelled.format}), {unit} of each class']
  classes = list(found['classes'].items())
  lines += [f'  {count:>11,}  {each}' for each, count in classes[:most]]
  if most is not None and len(classes) > most:
    least, median, largest = _spread([count for _, count in classes])
    lines.append(f'  ... and {len(classes) - most:,} more classes; of all, {least:g} to {largest:g}, median {median:g}')
  if 'objects' in found:
    lines.append(f'  {found["objects"]:>11,}  in all; {found["crowds"]:,} crowds, {found["difficult"]:,} difficult; '
                 f'{found["images_without_objects"]:,} images without an object')
  for key, words in (('objects_an_image', 'objects an image'), ('width', 'box width'), ('height', 'box height'),
                     ('sqrt_area', 'root of box area')):
    if key in found:
      least, median, largest = found[key]
      lines.append(f'  {words:<17} {least:g} to {largest:g}, median {median:g}')
  if 'areas' in found:
    lines.append('  boxes by area     ' + ', '.join(f'{each} {share:g} %' for each, share in found['areas'].items()))
  return lines


def _spread(values: Any) -> list[float]:
  """Least, median, largest."""
  return [round(float(of(values)), 1) for of in (np.min, np.median, np.max)]
