"""Batches: pure, resumable, sharded, complete, padded."""

import threading

import jax
import numpy as np
from PIL import Image
import pytest

from vision_jax.conventions import ClassMap
from vision_jax.data import Digits, DigitScenes, ImageFiles
from vision_jax.data.loader import Loader

AUGMENT = (('affine', {'degrees': 8, 'scale': (0.9, 1.1), 'translate': 0.05}), ('noise', {'deviation': 4.0}))


class Tiny:
  """A few images of random sizes; item i has i % 4 objects, and its pixels say i."""

  fields = ('label', 'boxes', 'labels', 'masks', 'segmentation', 'pixels_valid')
  classes = ClassMap(names=('a', 'b'))

  def __init__(self, size, broken=None):
    self.size, self.broken = size, broken

  def __len__(self):
    return self.size

  def name_of(self, index):
    return f'tiny_{index}'

  def target(self, index):
    h, w, n = 10 + index % 3, 16 - index % 5, index % 4
    masks = np.zeros((n, h, w), bool)
    for k in range(n):
      masks[k, 2:4 + k, 1:5 + k] = True
    boxes = np.array([[1, 2, 5 + k, 4 + k] for k in range(n)], np.float32).reshape(-1, 4)
    return {'label': index % 2, 'boxes': boxes, 'labels': np.arange(n, dtype=np.int32), 'masks': masks,
            'segmentation': np.full((h, w), index % 2, np.int32), 'pixels_valid': np.arange(h * w).reshape(h, w) > 2}

  def __getitem__(self, index):
    if index == self.broken:
      raise ValueError('the file is corrupt; replace it')
    target = self.target(index)
    return {'image': np.full((*target['segmentation'].shape, 3), index + 1, np.uint8), **target}


def scenes(**options):
  return Loader(DigitScenes('train', size=20), **{'batch_size': 4, 'canvas': (64, 80), 'max_objects': 8, 'seed': 3,
                                                  'augment': AUGMENT, 'workers': 2, **options})


def assert_equal(one, other):
  assert set(one) == set(other)
  for name in one:
    assert one[name].dtype == other[name].dtype
    np.testing.assert_array_equal(one[name], other[name], err_msg=name)


# --- training batches -----------------------------------------------------------------------------------------------


def test_a_batch_has_the_stated_fields_shapes_and_types():
  batch = Loader(Tiny(9), batch_size=4, canvas=(24, 20), max_objects=5, workers=0).batch(0)
  stated = {'image': ((4, 24, 20, 3), np.float32), 'image_size': ((4, 2), np.int32),
            'original_size': ((4, 2), np.int32), 'scale': ((4, 2), np.float32), 'offset': ((4, 2), np.float32),
            'valid': ((4,), bool), 'index': ((4,), np.int32), 'position': ((4,), np.int32), 'label': ((4,), np.int32),
            'boxes': ((4, 5, 4), np.float32), 'labels': ((4, 5), np.int32),
            'boxes_valid': ((4, 5), bool), 'masks': ((4, 5, 24, 20), bool),
            'segmentation': ((4, 24, 20), np.int32), 'pixels_valid': ((4, 24, 20), bool)}
  assert {name: (value.shape, value.dtype) for name, value in batch.items()} == stated


@pytest.mark.parametrize('workers', [0, 1, 4])
def test_batches_do_not_depend_on_the_number_of_workers(workers):
  expected = scenes(workers=0)
  batches = list(scenes(workers=workers).batches(0, 7))
  assert len(batches) == 7
  for step, batch in enumerate(batches):
    assert_equal(batch, expected.batch(step))


def test_a_resumed_run_sees_the_batches_that_it_would_have_seen():
  whole = list(scenes().batches(0, 10))
  for one, other in zip(scenes().batches(5, 10), whole[5:], strict=True):
    assert_equal(one, other)


def test_batches_without_a_stop_never_end():
  stream = scenes(augment=()).batches(3)
  taken = [next(stream) for _ in range(9)]
  stream.close()
  assert_equal(taken[-1], scenes(augment=()).batch(11))


@pytest.mark.parametrize('shards', [2, 4])
def test_shards_are_the_rows_of_the_one_global_batch(shards):
  for step in (0, 6):
    whole = scenes().batch(step)
    parts = [scenes(shard=(k, shards)).batch(step) for k in range(shards)]
    assert all(len(part['image']) == 4 // shards for part in parts)
    assert_equal({name: np.concatenate([part[name] for part in parts]) for name in whole}, whole)
    assert whole['position'].tolist() == [0, 1, 2, 3]


def test_an_epoch_shows_no_item_twice_and_another_epoch_another_order():
  loader = Loader(Tiny(11), batch_size=2, canvas=(16, 16), fields=('label',), workers=0)
  assert loader.steps_per_epoch == 5
  orders = [[int(i) for step in range(5 * epoch, 5 * epoch + 5) for i in loader.batch(step)['index']]
            for epoch in range(12)]
  assert all(len(set(order)) == 10 for order in orders)
  assert len({tuple(order) for order in orders}) == 12
  assert len({(set(range(11)) - set(order)).pop() for order in orders}) > 3  # the item left out changes
  assert [int(i) for step in range(5) for i in Loader(
      Tiny(11), batch_size=2, canvas=(16, 16), fields=('label',), seed=1, workers=0).batch(step)['index']] != orders[0]


def test_the_same_item_is_augmented_differently_in_each_epoch_and_under_each_seed():
  def image(seed, epoch):
    loader = Loader(Digits('val'), batch_size=360, canvas=(16, 16), augment=AUGMENT, seed=seed, workers=0)
    batch = loader.batch(epoch)
    return batch['image'][batch['index'] == 17].tobytes()
  assert len({image(0, 0), image(0, 1), image(1, 0)}) == 3 and image(1, 1) == image(1, 1)


def test_equal_images_of_one_batch_are_augmented_differently():
  class Same(Tiny):
    def __getitem__(self, index):
      return super().__getitem__(0)
  loader = Loader(Same(6), batch_size=6, canvas=(16, 16), fields=('label',), augment=AUGMENT, workers=0)
  assert len({image.tobytes() for image in loader.batch(0)['image']}) == 6


# --- geometry and padding -------------------------------------------------------------------------------------------


def test_boxes_are_original_pixels_times_scale_plus_offset():
  for resize in ('letterbox', 'warp', 'crop'):
    loader = Loader(Tiny(4), batch_size=4, canvas=(33, 29), max_objects=3, resize=resize, workers=0)
    (batch,) = loader.eval_batches()
    for row, index in enumerate(batch['index']):
      expected = Tiny(4).target(index)['boxes'] * np.tile(batch['scale'][row], 2) + np.tile(batch['offset'][row], 2)
      h, w = batch['image_size'][row]
      boxes = batch['boxes'][row][batch['boxes_valid'][row]]
      np.testing.assert_allclose(boxes, np.clip(expected, 0, [w, h, w, h])[:len(boxes)], atol=1e-4)
      assert len(boxes) == index % 4 and batch['masks'][row][:index % 4].any((1, 2)).all()


def test_images_are_normalised_on_the_content_and_zero_on_the_padding():
  loader = Loader(Tiny(8), batch_size=8, canvas=(40, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), workers=0)
  batch = loader.batch(0)
  for image, (h, w), index in zip(batch['image'], batch['image_size'], batch['index']):
    expected = ((index + 1) / 255 - np.array([0.5, 0.4, 0.3])) / [0.2, 0.3, 0.4]
    np.testing.assert_allclose(image[:h, :w], np.broadcast_to(expected, (h, w, 3)), atol=1e-5)
    assert not image[h:].any() and not image[:, w:].any() and h < 40


def test_pixels_are_invalid_on_the_padding_and_where_void():
  (batch,) = Loader(Tiny(2), batch_size=2, canvas=(40, 32), fields=('segmentation',), workers=0).eval_batches()
  for valid, (h, w) in zip(batch['pixels_valid'], batch['image_size']):
    assert not valid[h:].any() and not valid[:, w:].any()
    assert not valid[0, 0] and valid[:h, :w].mean() > 0.9


def test_pixels_are_valid_on_the_content_of_a_source_that_knows_no_void():
  class Bare(Tiny):
    fields = ('segmentation',)

    def __getitem__(self, index):
      sample = super().__getitem__(index)
      return {'image': sample['image'], 'segmentation': sample['segmentation']}
  (batch,) = Loader(Bare(1), batch_size=1, canvas=(40, 32), workers=0).eval_batches()
  h, w = batch['image_size'][0]
  assert batch['pixels_valid'].sum() == h * w


def test_more_objects_than_slots_keeps_the_largest_and_counts_the_rest():
  loader = Loader(Tiny(8), batch_size=4, canvas=(16, 16), max_objects=2, workers=2)
  batches = list(loader.eval_batches())
  assert loader.dropped_objects == 2  # items 3 and 7 have three objects
  assert batches[0]['labels'][3].tolist() == [1, 2] and batches[0]['boxes_valid'][3].all()
  list(loader.eval_batches())
  assert loader.dropped_objects == 4


def test_an_image_without_objects_has_no_valid_slot():
  source = DigitScenes('val', size=20)
  (batch,) = Loader(source, batch_size=20, canvas=(96, 128), max_objects=8, workers=0).eval_batches()
  counts = batch['boxes_valid'].sum(1)
  assert 0 in counts and counts.max() > 3
  assert not batch['masks'][~batch['boxes_valid']].any()
  empty = Loader(Tiny(5), batch_size=1, canvas=(16, 16), max_objects=3, augment=AUGMENT, workers=0)
  assert any(not empty.batch(step)['boxes_valid'].any() for step in range(5))


def test_batches_hold_finite_numbers_only():
  for batch in scenes(mean=(0.2,) * 3, std=(0.1,) * 3).batches(0, 5):
    for name, value in batch.items():
      assert np.isfinite(value).all(), name


# --- evaluation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('size, batch_size, shards',
                         [(10, 4, 1), (10, 4, 2), (8, 4, 4), (3, 8, 4), (1, 4, 2), (9, 8, 8)])
def test_an_evaluation_covers_every_item_once_with_equally_many_batches_a_shard(size, batch_size, shards):
  source = Tiny(size)
  runs = [list(Loader(source, batch_size=batch_size, canvas=(16, 16), shard=(k, shards), augment=AUGMENT, workers=2,
                      max_objects=4).eval_batches()) for k in range(shards)]
  steps = -(-size // batch_size)
  assert [len(run) for run in runs] == [steps] * shards
  seen = [int(i) for run in runs for batch in run for i in batch['index'][batch['valid']]]
  assert sorted(seen) == list(range(size))
  for batch in (batch for run in runs for batch in run):
    assert all(len(value) == batch_size // shards for value in batch.values())
    assert not batch['image'][~batch['valid']].any() and not batch['boxes_valid'][~batch['valid']].any()
    assert (batch['scale'] > 0).all() and (batch['original_size'] > 0).all()
    for image, index in zip(batch['image'][batch['valid']], batch['index'][batch['valid']]):
      np.testing.assert_allclose(image[0, 0], (index + 1) / 255, atol=1e-6)  # not augmented


def test_a_shard_can_be_chosen_for_one_evaluation():
  loader = Loader(Tiny(6), batch_size=4, canvas=(16, 16), workers=1)
  for k in range(2):
    own = Loader(Tiny(6), batch_size=4, canvas=(16, 16), shard=(k, 2), workers=0)
    for one, other in zip(loader.eval_batches((k, 2)), own.eval_batches(), strict=True):
      assert_equal(one, other)


def test_files_without_targets_make_batches_to_predict_on(tmp_path):
  for k in range(3):
    Image.fromarray(np.full((8, 12, 3), 50 * k, np.uint8)).save(tmp_path / f'{k}.png')
  (batch,) = Loader(ImageFiles(tmp_path), batch_size=4, canvas=(12, 12), fields=()).eval_batches()
  assert batch['valid'].tolist() == [True] * 3 + [False] and batch['image_size'][0].tolist() == [8, 12]
  assert 'boxes_valid' not in batch


# --- threads --------------------------------------------------------------------------------------------------------


def loader_threads():
  return [thread for thread in threading.enumerate() if thread.name.startswith('loader')]


@pytest.mark.parametrize('workers', [0, 2])
def test_an_error_reaches_the_consumer_with_the_items_name_after_the_batches_before_it(workers):
  loader = Loader(Tiny(12, broken=9), batch_size=4, canvas=(16, 16), workers=workers)
  stream = loader.eval_batches()
  assert [next(stream)['index'][0], next(stream)['index'][0]] == [0, 4]
  with pytest.raises(ValueError, match=r'^item 9 \(tiny_9\): the file is corrupt; replace it$'):
    next(stream)
  assert not loader_threads()


def test_a_mistake_in_a_source_is_not_taken_for_bad_data():
  source = Tiny(4)
  source.target = lambda index: {}
  with pytest.raises(RuntimeError, match=r"item \d \(tiny_\d\): KeyError: 'segmentation'"):
    Loader(source, batch_size=4, canvas=(16, 16), workers=0).batch(0)


def test_a_corrupt_file_is_named_in_one_line(tmp_path):
  (tmp_path / 'a.png').write_bytes(b'no image')
  with pytest.raises(ValueError, match=r'item 0 \(a.png\): cannot read image .*a.png: not an image') as caught:
    list(Loader(ImageFiles(tmp_path), batch_size=1, canvas=(12, 12)).eval_batches())
  assert '\n' not in str(caught.value)


def test_no_thread_outlives_an_iterator_that_is_closed_or_used_up():
  loader = scenes(workers=3)
  stream = loader.batches(0)
  next(stream)
  assert loader_threads()
  stream.close()
  assert not loader_threads()
  assert len(list(loader.eval_batches())) == 5 and not loader_threads()


def test_no_more_batches_are_made_ahead_than_there_are_workers_and_one():
  made = []

  class Counting(Tiny):
    def __getitem__(self, index):
      made.append(index)
      return super().__getitem__(index)
  stream = Loader(Counting(100), batch_size=1, canvas=(16, 16), workers=2).batches(0)
  next(stream)
  stream.close()
  assert 1 <= len(made) <= 4


def test_seconds_of_waiting_are_counted():
  loader = scenes(workers=0)
  assert loader.seconds_waited == 0
  list(loader.batches(0, 2))
  after_two = loader.seconds_waited
  assert after_two > 0
  list(loader.batches(2, 3))
  assert loader.seconds_waited > after_two


# --- memory ---------------------------------------------------------------------------------------------------------


def place_of(batch):
  return batch['image'].__array_interface__['data'][0]


@pytest.mark.parametrize('workers', [0, 2])
def test_a_batch_that_somebody_holds_is_never_written_to_again(workers):
  whole, part, on_device, copies = [], [], [], []
  loader = scenes(workers=workers, canvas=((64, 80), (32, 40), (48, 64)), canvas_every=1)
  for step, batch in enumerate(loader.batches(0, 18)):
    copies.append(batch['image'].copy())
    held = (batch['image'], batch['image'].reshape(2, 2, -1)[1:], jax.device_put(batch['image']))[step % 3]
    (whole, part, on_device)[step % 3].append(held)
  for held, copy in zip(whole, copies[::3], strict=True):
    np.testing.assert_array_equal(held, copy)
  for held, copy in zip(part, copies[1::3], strict=True):
    np.testing.assert_array_equal(held, copy.reshape(2, 2, -1)[1:])
  for held, copy in zip(on_device, copies[2::3], strict=True):
    np.testing.assert_array_equal(held, copy)


def test_memory_of_a_batch_that_nobody_holds_is_used_again_and_cleared():
  loader = Loader(Tiny(6), batch_size=4, canvas=(40, 32), fields=(), workers=0)
  batch = loader.batch(0)
  place = place_of(batch)
  assert place % 64 == 0
  batch['image'][...] = np.nan
  del batch
  first = next(loader.eval_batches())
  assert place_of(first) == place
  (h, w), image = first['image_size'][2], first['image'][2]
  assert image[:h, :w].all() and not image[h:].any() and not image[:, w:].any() and h < 40
  first['image'][...] = np.nan
  del first, image
  last = list(loader.eval_batches())[1]
  assert not last['image'][2:].any() and last['valid'].tolist() == [True, True, False, False]


def test_memory_is_not_kept_without_limit():
  loader = Loader(Tiny(64), batch_size=1, canvas=(16, 16), fields=(), workers=1)
  held = list(loader.eval_batches())
  places = {place_of(batch) for batch in held}
  assert len(places) == 64
  del held
  assert len(loader._memory._free) == 11


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('options, message', [
    ({'batch_size': 6, 'shard': (0, 4)}, '4 shards do not divide batch_size 6; give a positive multiple of 4'),
    ({'batch_size': 0}, '1 shards do not divide batch_size 0'),
    ({'shard': (2, 2)}, r'shard \(2, 2\) does not exist; give \(k, P\) with 0 <= k < P'),
    ({'resize': 'letter'}, r"unknown resize policy 'letter'; did you mean letterbox\?"),
    ({'augment': (('flop', {}),)}, r"unknown augmentation 'flop'; did you mean flip"),
    ({'fields': ('boxes', 'labels')}, 'fields boxes, labels are asked for, but source Digits gives label; choose'),
    ({'fields': ('lable',)}, "unknown field 'lable'; known: label, boxes"),
    ({'max_objects': 0}, 'max_objects 0'),
    ({'canvas': (16, 0)}, r'canvas is \(16, 0\); give \(h, w\) in whole pixels, at least 1, or several such pairs'),
    ({'canvas': 16}, r'canvas is 16; give \(h, w\)'),
    ({'canvas': ((16, 16), (16,))}, r'canvas is \(\(16, 16\), \(16,\)\); give \(h, w\)'),
    ({'canvas': ()}, r'canvas is \(\); give \(h, w\)'),
    ({'canvas_every': 0}, 'canvas_every 0, .* are out of range; the first two are at least 1'),
    ({'augment': (('mixup', {'alpha': 0.0}),)}, 'augmentation mixup: alpha'),
    ({'seed': -1}, 'seed -1'),
    ({'mean': (0.5,)}, r'mean \(0.5,\), std .* three numbers each'),
    ({'std': (0.1, 0.0, 0.1)}, 'std positive'),
])
def test_wrong_arguments_are_answered_in_one_line(options, message):
  with pytest.raises(ValueError, match=message) as caught:
    Loader(Digits('val'), **{'batch_size': 4, 'canvas': (16, 16), **options})
  assert '\n' not in str(caught.value)


def test_a_source_smaller_than_a_batch_cannot_be_trained_on_but_evaluated():
  loader = Loader(Tiny(3), batch_size=4, canvas=(16, 16))
  for use in (lambda: loader.batch(0), lambda: loader.steps_per_epoch, lambda: next(loader.batches(0, 1))):
    with pytest.raises(ValueError, match='has 3 items, too few for one training batch of 4; lower batch_size or'):
      use()
  (batch,) = loader.eval_batches()
  assert batch['valid'].sum() == 3


def test_an_image_of_another_type_is_refused_by_name():
  class Float(Tiny):
    def __getitem__(self, index):
      return {'image': np.zeros((4, 4, 3), np.float32), **self.target(index)}
  with pytest.raises(ValueError, match=r'item \d \(tiny_\d\): image is float32 \(4, 4, 3\); sources give uint8 RGB'):
    Loader(Float(4), batch_size=4, canvas=(16, 16)).batch(0)
