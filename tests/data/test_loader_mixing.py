"""Batches of several samples in one, and on several canvases: as pure, resumable and sharded as the others."""

import re

import numpy as np
import pytest

from tests.data.test_loader import AUGMENT, assert_equal, scenes
from vision_jax.conventions import ClassMap
from vision_jax.data import Digits, DigitScenes
from vision_jax.data.loader import Loader

# --- several samples in one -----------------------------------------------------------------------------------------


class Plain:
  """Images of one size and one grey level each, 10 * (i + 1); the label is the place."""

  fields = ('label',)
  classes = ClassMap(names=tuple('abcdefgh'))

  def __init__(self, broken=None):
    self.broken = broken

  def __len__(self):
    return 8

  def name_of(self, index):
    return f'plain_{index}'

  def __getitem__(self, index):
    if index == self.broken:
      raise ValueError('the file is corrupt; replace it')
    return {'image': np.full((9, 12, 3), 10 * (index + 1), np.uint8), 'label': index}


def plain(*augment, **options):
  return Loader(Plain(), **{'batch_size': 8, 'canvas': (9, 12), 'augment': augment, 'workers': 0, **options})


MIXED = [
  (Digits('val', size=40), (16, 20), (('shift', {'pixels': 1}), ('mixup', {'probability': 0.5}), ('cutmix', {}))),
  (DigitScenes('train', size=20), (64, 80), (('flip', {}), ('copy_paste', {}))),
  (DigitScenes('train', size=20), (64, 80), (('ssd_crop', {}), ('mosaic', {}), ('mixup', {}), *AUGMENT)),
]


@pytest.mark.parametrize('source, canvas, augment', MIXED, ids=['labels', 'masks', 'boxes'])
def test_mixed_batches_depend_on_neither_workers_nor_shards_nor_where_a_run_began(source, canvas, augment):
  def loader(**options):
    fields = tuple(name for name in source.fields if name in ('label', 'boxes', 'labels', 'masks'))
    return Loader(source, **{'batch_size': 4, 'canvas': canvas, 'max_objects': 12, 'augment': augment, 'seed': 5,
                             'fields': fields, 'workers': 0, **options})
  expected = [loader().batch(step) for step in range(6)]  # beyond one epoch of 5 steps, where there are 20 items
  for workers in (1, 4):
    for one, other in zip(loader(workers=workers).batches(2, 6), expected[2:], strict=True):
      assert_equal(one, other)
  parts = [loader(shard=(k, 2)).batch(3) for k in range(2)]
  assert_equal({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, expected[3])
  assert expected[0]['image'].tobytes() != loader(seed=6).batch(0)['image'].tobytes()


def test_a_mixed_batch_says_what_was_mixed_in_and_how_much_of_the_own_is_left():
  loader = plain(('mixup', {'alpha': 1.0, 'probability': 0.7}))
  batches = [loader.batch(step) for step in range(12)]
  label, other, mix, image = (np.concatenate([batch[name] for batch in batches])
                              for name in ('label', 'mixed_label', 'mix', 'image'))
  assert label.dtype == other.dtype == np.int32 and mix.dtype == np.float32
  expected = np.floor(mix * 10 * (label + 1) + (1 - mix) * 10 * (other + 1) + 0.5)
  np.testing.assert_allclose(255 * image, np.broadcast_to(expected[:, None, None, None], image.shape), atol=1e-3)
  untouched = mix == 1
  assert 0.1 < untouched.mean() < 0.5 and (other[untouched] == label[untouched]).all()
  assert len(set(zip(label.tolist(), other.tolist()))) > 30  # the partners change from epoch to epoch


def test_nothing_is_mixed_in_an_evaluation_and_its_batches_say_so():
  (batch,) = plain(('cutmix', {}), batch_size=10).eval_batches()
  assert batch['mixed_label'][:8].tolist() == batch['label'][:8].tolist() == list(range(8))
  assert batch['mix'].tolist() == [1.0] * 10
  np.testing.assert_allclose(batch['image'][:8, 0, 0, 0], np.arange(10, 90, 10) / 255, atol=1e-6)


@pytest.mark.parametrize('augment, fields', [((('flip', {}),), ('label',)), ((('mixup', {}),), ())])
def test_batches_without_mixed_labels_have_no_field_for_them(augment, fields):
  assert not {'mixed_label', 'mix'} & set(plain(*augment, fields=fields).batch(0))


def test_mixing_brings_the_objects_of_all_images_into_the_slots_and_counts_the_rest():
  mosaic = (('mosaic', {'scale': (0.5, 0.5)}),)
  loader = scenes(augment=mosaic, max_objects=3)
  alone, mixed = scenes(augment=(), max_objects=40), scenes(augment=mosaic, max_objects=40)
  count = [sum(int(run.batch(step)['boxes_valid'].sum()) for step in range(5)) for run in (alone, mixed)]
  assert count[1] > 1.5 * count[0]
  kept = sum(int(loader.batch(step)['boxes_valid'].sum()) for step in range(5))
  assert loader.dropped_objects == count[1] - kept > 0


def test_an_item_that_cannot_be_mixed_in_is_named_after_the_one_it_was_meant_for():
  loader = Loader(Plain(broken=2), batch_size=1, canvas=(9, 12), augment=(('mixup', {}),), workers=0)
  messages = set()
  for step in range(40):
    try:
      loader.batch(step)
    except ValueError as error:
      messages.add(str(error))
  cause = r'item 2 \(plain_2\): the file is corrupt; replace it'
  assert any(re.fullmatch(cause, message) for message in messages)
  assert any(re.fullmatch(rf'item [013-7] \(plain_[013-7]\): {cause}', message) for message in messages)


# --- several canvases -----------------------------------------------------------------------------------------------

CANVASES = ((32, 40), (48, 64), (64, 80))


def test_a_canvas_holds_for_so_many_batches_and_is_drawn_anew_from_the_set():
  loader = scenes(canvas=CANVASES, canvas_every=3)
  sizes = [batch['image'].shape[1:3] for batch in loader.batches(0, 30)]
  assert set(sizes) == set(CANVASES)
  assert all(len(set(sizes[first:first + 3])) == 1 for first in range(0, 30, 3))
  assert sizes == [loader.canvas_of(step) for step in range(30)]
  assert sizes != [scenes(canvas=CANVASES, canvas_every=3, seed=4).canvas_of(step) for step in range(30)]


def test_batches_on_several_canvases_depend_on_neither_workers_nor_shards_nor_where_a_run_began():
  options = {'canvas': CANVASES, 'canvas_every': 2, 'augment': (('mosaic', {}), *AUGMENT)}
  expected = [scenes(workers=0, **options).batch(step) for step in range(8)]
  assert len({batch['image'].shape for batch in expected}) > 1
  for workers in (1, 4):
    for one, other in zip(scenes(workers=workers, **options).batches(3, 8), expected[3:], strict=True):
      assert_equal(one, other)
  for step in (0, 5):
    parts = [scenes(shard=(k, 2), **options).batch(step) for k in range(2)]
    assert_equal({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, expected[step])


def test_an_evaluation_takes_the_first_canvas():
  loader = scenes(canvas=CANVASES[::-1], canvas_every=1)
  one = scenes(canvas=CANVASES[-1])
  assert loader.canvas == CANVASES[-1]
  for batch, expected in zip(loader.eval_batches(), one.eval_batches(), strict=True):
    assert_equal(batch, expected)


def test_one_canvas_in_a_list_is_that_canvas():
  assert_equal(scenes(canvas=[[64, 80]]).batch(4), scenes().batch(4))
