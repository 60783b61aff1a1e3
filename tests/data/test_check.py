"""The checker on data sets that are broken on purpose: what it says, what survives, and that it only reads."""

import contextlib
import dataclasses
import faulthandler
import hashlib
import itertools
import json
import pathlib
import re
import signal

import numpy as np
from PIL import Image
import pytest

from tests.data import builders, corpus
from vision_jax.conventions import ClassMap
from vision_jax.data import check, image_checks, mending, reports
from vision_jax.data.findings import KINDS, table
from vision_jax.data.formats import READERS
from vision_jax.data.image_checks import Seen, check_images, near_identical
from vision_jax.data.records import Finding, Labelled, Object, Record
from vision_jax.host.boxes import pairwise_iou

ROOT = pathlib.Path(__file__).resolve().parents[2]
each_case = pytest.mark.parametrize('case', corpus.CASES, ids=lambda case: case.name)


@contextlib.contextmanager
def time_limit(seconds=20):
  def stop(*_):
    pytest.fail(f'not done after {seconds} s')  # which no `except Exception` or os.walk swallows
  before = signal.signal(signal.SIGALRM, stop)
  signal.alarm(seconds)
  faulthandler.dump_traceback_later(3 * seconds, exit=True)  # a thread that waits for ever can only be ended so
  try:
    yield
  finally:
    faulthandler.cancel_dump_traceback_later()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def digest(folder):
  """Of the names, kinds, times and contents of all that lies in a folder."""
  found = hashlib.sha256()
  for path in sorted(folder.rglob('*')):
    status = path.lstat()
    found.update(f'{path.relative_to(folder)} {status.st_mode} {status.st_mtime_ns} {status.st_size}\n'.encode())
    if path.is_file():
      found.update(path.read_bytes())
  return found.hexdigest()


def built(case, tmp_path):
  folder = tmp_path / 'set'
  folder.mkdir()
  case.build(folder)
  return folder


def checked(case, folder, **more):
  with time_limit():
    return check.check_data(case.format, {'path': folder, **case.options}, splits=case.splits, **more)


def kept(found):
  """The names of all images, with the number of objects for detection."""
  return sorted((record.name, len(record.objects)) if 'boxes' in labelled.fields else record.name
                for labelled in found.labelled.values() for record in labelled.records)


def without_counts(text):
  return re.sub(r'\(\d+ bytes not processed\)', '(... bytes not processed)', text)  # as the decoder counts


@each_case
def test_a_broken_data_set_gets_its_exact_messages_loses_no_good_image_and_is_not_changed(case, tmp_path):
  folder = built(case, tmp_path)
  before = digest(folder)
  found = checked(case, folder)
  says = [f'{each.kind} {each}'.replace(str(folder), 'SET') for each in itertools.chain(*found.findings.values())]
  assert [*map(without_counts, says)] == [*map(without_counts, case.says)]
  assert kept(found) == sorted(case.keeps)
  assert digest(folder) == before
  assert found.sound == (not any(KINDS[line.split()[0]].severity == 'error' for line in case.says))
  for labelled in found.labelled.values():
    assert all(each.item is None or each.item < len(labelled.records) for each in found.findings[labelled.split])


def test_the_corpus_is_large_and_has_every_format_and_nearly_every_kind():
  assert len(corpus.CASES) >= 25
  assert {case.format for case in corpus.CASES} == {'coco', 'voc', 'yolo', 'image_folder', 'mask_folder',
                                                    'object_masks', 'idx'}
  shown = {line.split()[0] for case in corpus.CASES for line in case.says}
  assert set(KINDS) - shown == {'mask-missing'}  # which is wrong only where masks are asked for, in test_coco.py


MENDED = [case for case in corpus.CASES if case.format != 'idx' and case.keeps and case.name != 'coco_boxes_as_corners']


@pytest.mark.parametrize('case', MENDED, ids=lambda case: case.name)
def test_a_mended_copy_has_no_errors_and_all_that_is_sound(case, tmp_path):
  folder, copy = built(case, tmp_path), tmp_path / 'copy'
  before = digest(folder)
  found = checked(case, folder)
  lost = {(split, each.item) for split, all_of in found.findings.items() for each in all_of
          if each.kind in ('image-corrupt', 'image-missing', 'image-truncated', 'image-size', 'mask-values')
          or (each.kind == 'mask-size' and case.format == 'mask_folder')}
  sound = {split: [record for item, record in enumerate(labelled.records) if (split, item) not in lost]
           for split, labelled in found.labelled.items()}
  lines = []
  with time_limit():
    for split, labelled in found.labelled.items():
      lines += mending.mend(labelled, found.findings[split][len(labelled.findings):], copy)
  assert digest(folder) == before
  for finding in itertools.chain(*(found.findings[split] for split in found.labelled)):
    assert any(line.startswith(f'{finding}; ') for line in lines)
  written = [split for split, records in sound.items() if records or case.format in ('coco', 'voc', 'yolo')]
  options = {key: value for key, value in case.options.items() if key in ('masks', 'mask_values', 'names', 'classes')}
  again = check.check_data(case.format, {'path': copy, **options}, splits=written)
  errors = [str(each) for split in written for each in again.findings[split] if each.rule.severity == 'error']
  assert errors == (['copy (val): the split has no image'] if case.name == 'voc_val_empty' else [])
  for split in written:
    assert [len(record.objects) for record in again.labelled[split].records] == [
        len(record.objects) for record in sound[split]]
    for new, old in zip(again.labelled[split].records, sound[split]):
      assert new.path.read_bytes() == old.path.read_bytes()
      assert new.label == old.label


def test_a_mended_copy_clips_boxes_numbers_ids_anew_and_says_so(tmp_path):
  sound = builders.coco_annotation(0, 1, 3, [1, 2, 5, 4])
  builders.coco_set(tmp_path / 'set', [sound, builders.coco_annotation(4, 1, 3, [10, 2, 9, 5]),
                                       builders.coco_annotation(5, 1, 3, [1, 2, -5, 4])])
  lines = mending.mend(READERS['coco']('train', path=tmp_path / 'set'), (), tmp_path / 'copy')
  file = 'annotations/instances_train.json'
  assert lines == [
      f"{file}: annotation 0: COCO's own evaluation loses this object; the annotations are numbered from 1",
      f'{file}: annotation 4: the box (10, 2, 19, 7) leaves the image of 16 x 12 by 3 pixels; the box is clipped',
      f'{file}: annotation 5: the box (1, 2, -4, 6) ends before it begins; left out',
      'train: 2 images, 2 objects']
  written = json.loads((tmp_path / 'copy' / file).read_text())
  assert [(each['id'], each['bbox']) for each in written['annotations']] == [(1, [1, 2, 5, 4]), (2, [10, 2, 6, 5])]


def test_what_is_sound_survives_beside_an_error_of_the_same_name_and_is_not_rewritten(tmp_path):
  sound, over = [1, 2, 5, 4], [4, 4, 12.25, 4]  # which reaches out by a quarter of a pixel, and nobody minds
  builders.coco_set(tmp_path / 'set', [builders.coco_annotation(2, 1, 3, box) for box in (sound, [1, 2, -5, 4], over)])
  mending.mend(READERS['coco']('train', path=tmp_path / 'set'), (), tmp_path / 'copy')
  written = json.loads((tmp_path / 'copy' / 'annotations' / 'instances_train.json').read_text())
  assert [each['bbox'] for each in written['annotations']] == [sound, over]


def test_boxes_in_another_format_than_the_files_are_not_mended(tmp_path):
  case = next(case for case in corpus.CASES if case.name == 'coco_boxes_as_corners')
  labelled = READERS['coco']('train', path=built(case, tmp_path))
  with pytest.raises(ValueError, match='none as x1, y1, x2, y2; no copy can mend that: write the boxes as x, y, width'):
    mending.mend(labelled, (), tmp_path / 'copy')


def test_millions_of_class_ids_that_are_missing_are_counted_and_not_listed():
  labelled = dataclasses.replace(labelled_of(()), classes=ClassMap(('cat', 'dog'), (1, 10**12)))
  with time_limit():
    found = check.check_labels(labelled)
  assert found[0].what.endswith('run from 1 to 1000000000000 without 2, 3, 4, 5, 6, 7, 8, 9 and 999999999990 more')


def test_a_mended_copy_of_yolo_keeps_polygons_and_cuts_them_at_the_border(tmp_path):
  lines = '0 0.25 0.25 0.75 0.25 0.75 0.75\n1 0.5 0.5 0.25 0.5\n0 0.5 0.5 0 0.1\n1 0.5 0.5 1.0 0.25 0.75 -0.5\n'
  folder = builders.yolo_set(tmp_path / 'set', {'a': lines})
  told = mending.mend(READERS['yolo']('train', path=folder, masks=None), (), tmp_path / 'copy')
  assert told[-1] == 'train: 1 image, 3 objects'
  written = (tmp_path / 'copy' / 'labels' / 'train' / 'a.txt').read_text().splitlines()
  expected = ([0, 0.25, 0.25, 0.75, 0.25, 0.75, 0.75], [1, 0.5, 0.5, 0.25, 0.5], [1, 0.5, 0.5, 1.0, 0.25, 0.75, 0])
  assert [[*map(float, line.split())] for line in written] == [*expected]


@pytest.mark.parametrize('format, names', [('image_folder', ('1', '2')), ('object_masks', ())])
def test_a_mended_copy_keeps_each_image_in_its_split(tmp_path, format, names):
  folder = tmp_path / 'set'
  for k in range(6):
    place = folder / names[k % 2] / f'{k}.png' if names else folder / f'{k}' / 'images' / 'a.png'
    builders.write_image(place, k)
    if not names:
      corpus.write_mask(folder / f'{k}' / 'masks' / 'a.png', corpus.half(0, 255))
  first = folder / names[0] / '2.png' if names else folder / '3' / 'images' / 'a.png'
  first.write_bytes(b'nothing')
  splits = [READERS[format](split, path=folder, val_share=0.5) for split in ('train', 'val')]
  for labelled in splits:
    mending.mend(labelled, check_images(labelled)[0], tmp_path / 'copy')
  for labelled in splits:
    split, again = labelled.split, READERS[format](labelled.split, path=tmp_path / 'copy')
    assert [record.name for record in again.records] == [f'{split}/{record.name}' for record in labelled.records
                                                         if record.path != first]


def test_a_mended_copy_goes_neither_into_the_data_set_nor_where_the_format_cannot_be_written(tmp_path):
  labelled = READERS['yolo']('train', path=builders.yolo_set(tmp_path / 'set', {'a': ''}))
  with pytest.raises(ValueError, match='lies in the data set .*; choose a folder outside of it'):
    mending.mend(labelled, (), tmp_path / 'set' / 'copy')
  with pytest.raises(ValueError, match='idx cannot be written; a mended copy is made of coco, voc, yolo, image_folder'):
    mending.mend(dataclasses.replace(labelled, format='idx'), (), tmp_path / 'copy')
  assert not (tmp_path / 'copy').exists()


# Labels.


def labelled_of(objects, *, size=(100, 200), names=('cat', 'dog'), images=1, findings=(), **more):
  records = [Record(pathlib.Path(f'{k}.png'), f'{k}.png', size, objects=tuple(objects)) for k in range(images)]
  return Labelled(tuple(records), ClassMap(names), ('boxes', 'labels'), tuple(findings), pathlib.Path('pets'), 'yolo',
                  **more)


def test_probable_duplicates_are_all_pairs_of_a_class_with_an_iou_above_090():
  rng = np.random.default_rng(0)
  records, expected = [], []
  for k in range(30):
    corners = rng.integers(0, 3, (12, 2)) * 4.0
    boxes = np.concatenate([corners, corners + 50], 1) + rng.normal(0, 1, (12, 4))
    labels, crowd = rng.integers(0, 2, 12), rng.random(12) < 0.1
    objects = [Object(tuple(box), int(label), f'{k}:{i}', crowd=bool(c))
               for i, (box, label, c) in enumerate(zip(boxes.tolist(), labels, crowd))]
    records.append(Record(pathlib.Path('a'), f'{k}', (100, 100), objects=tuple(objects)))
    iou = pairwise_iou(boxes, boxes)
    expected += [(k, f'{k}:{j}', f'{k}:{i}') for j in range(12) for i in range(j)
                 if iou[i, j] > 0.9 and labels[i] == labels[j] and not crowd[i] and not crowd[j]]
  labelled = dataclasses.replace(labelled_of(()), records=tuple(records))
  found = [each for each in check.check_labels(labelled) if each.kind == 'box-duplicate']
  assert len(expected) > 20
  assert [(each.item, each.where, re.search(r' of (\S+) once', each.what)[1]) for each in found] == expected


def test_a_box_that_a_reader_let_pass_is_found_and_one_that_it_told_of_is_not_told_again():
  nan = float('nan')
  boxes = {'a': (5, 5, 5, 9), 'b': (9, 5, 5, 9), 'c': (300, 5, 310, 9), 'd': (-2, 5, 9, 9), 'e': (1, nan, 9, 9),
           'f': (-0.4, 5, 9, 100.4), 'g': (-3, 5, 90, 90)}
  told = Finding('box-clipped', 'g', 'told', 0)
  labelled = labelled_of([Object(box, 0, where) for where, box in boxes.items()], findings=[told])
  assert [(each.kind, each.where) for each in check.check_labels(labelled)] == [
      ('box-zero', 'a'), ('box-inverted', 'b'), ('box-outside', 'c'), ('box-clipped', 'd'), ('box-not-finite', 'e')]


def test_boxes_in_images_of_unknown_size_are_compared_with_the_real_one(tmp_path):
  path = builders.write_image(tmp_path / 'a.png')
  record = Record(path, 'a.png', objects=(Object((1, 1, 15, 11), 0, 'in'), Object((1, 1, 11, 15), 0, 'out'),
                                          Object((20, 1, 25, 5), 0, 'away')))
  labelled = dataclasses.replace(labelled_of(()), records=(record,))
  assert check.check_labels(labelled) == ()
  found, seen = check_images(labelled)
  assert [(each.kind, each.where) for each in found] == [('box-clipped', 'out'), ('box-outside', 'away')]
  assert seen.opened.tolist() == [True]


def test_what_the_reader_said_of_an_image_is_not_said_again(tmp_path):
  paths = [builders.write_image(tmp_path / name, orientation=3) for name in ('a.jpg', 'b.jpg')]
  told = Finding('image-exif', 'a.jpg', 'told', 0)
  labelled = dataclasses.replace(labelled_of((), findings=[told]), records=tuple(
      Record(path, path.name) for path in paths))
  assert [each.where for each in check_images(labelled)[0]] == ['b.jpg']


def test_classes_that_a_split_lacks_are_one_finding():
  cats = labelled_of([Object((1, 1, 5, 5), 0, 'a')], names=('cat', *(f'dog{k}' for k in range(12))))
  found = check.check_splits(cats, dataclasses.replace(cats, records=(), split='val'))
  assert [str(each) for each in found] == [
      'pets (train): no object of 12 of the 13 classes: dog0, dog1, dog2, dog3, dog4, dog5, dog6, dog7 and 4 more']


def test_training_stops_at_errors_in_labels_or_lists_what_it_skips():
  bad = Finding('box-zero', 'labels/a.txt:3', 'the box is 0 pixels wide')
  train = labelled_of([Object((1, 1, 5, 5), 0, 'a'), Object((1, 1, 1, 5), 1, 'b')], findings=[bad])
  val = dataclasses.replace(labelled_of([Object((1, 1, 5, 5), 0, 'c'), Object((1, 1, 5, 5), 1, 'd')]), split='val')
  with pytest.raises(ValueError) as caught:
    check.require_clean(train, val)
  assert str(caught.value) == (
      '2 errors in the labels of pets (train): labels/a.txt:3: the box is 0 pixels wide; b: the box (1, 1, 1, 5) is '
      '0 x 4 pixels; mend them (run experiments/check_data.py to see everything), or leave them out with '
      'data.on_error=skip, which lists each skip')
  assert check.require_clean(train, val, on_error='skip') == [
      'error: labels/a.txt:3: the box is 0 pixels wide; the object is left out',
      'error: b: the box (1, 1, 1, 5) is 0 x 4 pixels; the object is left out',
      'the labels have 1 warning (split-overlap 1); experiments/check_data.py shows each']
  assert check.require_clean(val, dataclasses.replace(val, records=(
      dataclasses.replace(val.records[0], path=pathlib.Path('other.png')),))) == []
  with pytest.raises(ValueError, match="data.on_error is 'go'; it is 'stop' or 'skip'"):
    check.require_clean(val, val, on_error='go')


# Images that look the same.


def seen_of(*images):
  hashes, thumbnails = zip(*map(image_checks._appearance, images))
  return Seen(np.ones(len(images), bool), np.array(hashes, np.uint64), np.array(thumbnails))


def test_the_difference_hash_says_where_the_brightness_rises():
  image = np.zeros((16, 18, 3), np.uint8)
  image[2:4, 4:] = 100  # one step up, in the second row of patches, from the second to the third
  value, _ = image_checks._appearance(image)
  rows = np.unpackbits(np.array([value], np.uint64).view(np.uint8)).reshape(8, 8)
  assert np.argwhere(rows).tolist() == [[1, 1]]


@pytest.mark.parametrize('change, same', [
    (lambda image: image, True),
    (lambda image: image.resize((200, 100), Image.Resampling.BICUBIC), True),
    (lambda image: image.convert('L').convert('RGB'), False),
    (lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), False),
    (lambda image: image.crop((0, 0, 40, 40)), False),
    (lambda image: image.point(lambda value: max(0, value - 30)), False),
], ids=['itself', 'resized', 'grey', 'mirrored', 'cropped', 'darker'])
def test_which_copies_look_the_same(change, same):
  pictures = [corpus.smooth(turn) for turn in (0.4, 0.0, 0.9)]
  copy = np.asarray(change(Image.fromarray(pictures[1])))
  found = list(near_identical(seen_of(*pictures), seen_of(corpus.smooth(2.0), copy)))
  assert [(item, other) for item, other, _ in found] == ([(1, 1)] if same else [])


@pytest.mark.parametrize('bits, levels, one_pixel, same', [
    (6, 0, 0, True), (7, 0, 0, False), (0, 3, 3, True), (0, 4, 4, False), (0, 0, 24, True), (0, 0, 25, False)])
def test_how_much_two_images_that_look_the_same_may_differ(bits, levels, one_pixel, same):
  train = Seen(np.ones(1, bool), np.array([5], np.uint64), np.full((1, 16, 16, 3), 100, np.uint8))
  thumbnails = train.thumbnails + np.uint8(levels)
  thumbnails[0, 3, 4, 1] = 100 + one_pixel
  val = Seen(np.ones(1, bool), np.array([5 ^ (2 ** bits - 1) << 40], np.uint64), thumbnails)
  assert len(list(near_identical(train, val))) == same


def test_an_image_that_cannot_be_opened_looks_like_none():
  seen = seen_of(corpus.smooth())
  shut = dataclasses.replace(seen, opened=np.zeros(1, bool))
  assert list(near_identical(seen, shut)) == list(near_identical(shut, seen)) == []
  assert len(list(near_identical(seen, seen))) == 1


def test_the_number_of_threads_changes_nothing(tmp_path):
  case = next(case for case in corpus.CASES if case.name == 'folder_of_odd_images')
  folder = built(case, tmp_path)
  one, many = (checked(case, folder, workers=workers) for workers in (1, 8))
  assert one.findings == many.findings
  np.testing.assert_array_equal(one.seen['train'].hashes, many.seen['train'].hashes)


def test_progress_sees_every_image(tmp_path):
  calls = []

  def progress(looks, split, total):
    calls.append((split, total, looks := list(looks)))
    return looks

  folder = builders.yolo_set(tmp_path, {'a': '', 'b': ''})
  check.check_data('yolo', {'path': folder}, splits=('train',), progress=progress)
  assert [(split, total, len(looks)) for split, total, looks in calls] == [('train', 2, 2)]


# The report.


def test_a_report_has_each_finding_in_one_line_counts_and_statistics(tmp_path):
  case = next(case for case in corpus.CASES if case.name == 'voc_boxes')
  found = checked(case, built(case, tmp_path))
  text = reports.report(found)
  lines = text.splitlines()
  assert lines[0] == ('train: 5 errors (label-syntax 2, box-inverted 1, box-outside 1, box-not-finite 1), 2 warnings '
                      '(box-clipped 1, box-tiny 1)')
  assert '  error box-inverted: Annotations/a.xml:5: the box is xmin 9, ymin 3, xmax 4, ymax 10: it ends before it ' \
         'begins; the object is left out. Mend: swap the corners or draw the box again' in lines
  for each in found.findings['train']:
    assert sum(f': {each}; {each.rule.action}. Mend: {each.rule.remedy}' in line for line in lines) == 1
  assert '        2  label-syntax (error)' in lines
  start = lines.index('train: 1 images (voc), objects of each class')
  assert lines[start + 1:] == [
      '            1  cat', '            2  dog',
      '            3  in all; 0 crowds, 0 difficult; 0 images without an object',
      '  objects an image  3 to 3, median 3', '  box width         1 to 10, median 8',
      '  box height        5 to 11, median 8', '  root of box area  2.2 to 10.5, median 8',
      '  boxes by area     small 100 %, medium 0 %, large 0 %']


def test_a_short_report_says_what_it_leaves_out():
  findings = [Finding('box-zero', f'a.txt:{k}', 'empty') for k in range(5)] + [
      Finding('image-grey', f'{k}.png', 'it is grey') for k in range(9)]
  labelled = labelled_of([Object((1, 1, 5, 5), 0, 'a')], names=tuple('abcdef'))
  lines = reports.report(check.Checked({'train': labelled}, {'train': tuple(findings)}), most=4).splitlines()
  assert sum('box-zero: a.txt' in line for line in lines) == 4
  assert sum('image-grey: ' in line for line in lines) == 3
  assert '  ... and 1 more of box-zero' in lines
  assert '...' not in reports.report(check.Checked({'train': labelled}, {'train': tuple(findings[:8])}), most=6)
  assert '  ... and 6 more of image-grey' in lines
  assert '  ... and 2 more classes; of all, 0 to 1, median 0' in lines


def test_the_json_has_what_the_report_has(tmp_path):
  case = next(case for case in corpus.CASES if case.name == 'voc_file_in_both_splits')
  found = checked(case, built(case, tmp_path))
  record = json.loads(reports.to_json(found))
  assert record['counts'] == {'split-overlap': 1, 'class-absent': 1, 'image-duplicate': 1}
  first = next(each for each in record['findings'] if each['kind'] == 'split-overlap')
  assert first == {'split': check.BETWEEN, 'severity': 'warning', 'kind': 'split-overlap', 'where': 'JPEGImages/a.png',
                   'what': 'the file is in train and in val', 'action': KINDS['split-overlap'].action,
                   'remedy': KINDS['split-overlap'].remedy, 'image': 'JPEGImages/a.png'}
  assert record['statistics']['val']['classes'] == {'cat': 1, 'dog': 1}


def test_pixels_of_classes_are_counted_in_masks(tmp_path):
  folder = corpus.mask_set(tmp_path, {'a': corpus.half(0, 1), 'b': corpus.half(1, 255)})
  options = {'path': folder, 'mask_values': 'ids', 'names': ('ground', 'cat', 'dog')}
  found = check.check_data('mask_folder', options, splits=('train',))
  assert reports.statistics(found.labelled['train'], found.seen['train'])['classes'] == {'ground': 96, 'cat': 192,
                                                                                         'dog': 0}


def test_idx_files_are_opened_and_compared_too(tmp_path):
  corpus.idx_set(tmp_path)
  for file in list(tmp_path.iterdir()):
    (tmp_path / file.name.replace('train', 't10k')).write_bytes(file.read_bytes())
  found = check.check_data('idx', {'path': tmp_path})
  assert [each.kind for each in found.findings[check.BETWEEN]] == ['image-duplicate'] * 3
  assert reports.statistics(found.labelled['train']) == {'images': 3, 'classes': {'0': 1, '1': 2}}


def test_the_page_on_data_checks_has_the_table_of_kinds():
  text = (ROOT / 'docs' / 'data_checks.md').read_text(encoding='utf-8')
  assert table() in text, 'the table of KINDS changed; put what vision_jax.data.findings.table() gives into the page'
