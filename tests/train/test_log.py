"""What a run says, on a terminal and in a file."""

import io
import json
import sys

import pytest

from vision_jax.train.log import Log


class Terminal(io.StringIO):

  def isatty(self):
    return True


def write(folder, **options):
  log = Log(folder, steps=10, batch_size=4, **options)
  log.first_step(1, 2.5)
  log.advance(4)
  log.training(4, {'loss': 0.5, 'learning_rate': 0.1, 'dropped_objects': 0}, 0.0)
  log.line('a word')
  log.close()


def test_without_a_terminal_there_are_plain_lines_with_speed_and_time_left(tmp_path, capsys):
  write(tmp_path)
  out = capsys.readouterr().out
  assert 'step 4/10  loss 0.5' in out
  for word in ('steps/s', 'images/s', 'waiting', 'left 0:0'):
    assert word in out
  assert '\r' not in out


def test_on_a_terminal_there_is_a_bar_with_steps_speed_and_time_left(tmp_path, monkeypatch, capsys):
  terminal = Terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)
  write(tmp_path)
  bar = terminal.getvalue().split('\r')[-1]
  assert '4/10' in bar
  for word in ('step/s', 'images/s', 'loss 0.5', '<'):  # tqdm writes elapsed<remaining
    assert word in bar
  assert 'step 4/10' not in capsys.readouterr().out


def test_every_scalar_is_in_the_file_and_in_tensorboard_where_installed(tmp_path):
  pytest.importorskip('tensorboardX')
  write(tmp_path)
  records = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert records[0] == {'step': 1, 'first_step_seconds': 2.5}
  assert {'train/loss', 'train/learning_rate', 'images_per_second', 'waiting_share'} <= set(records[1])
  events = b''.join(path.read_bytes() for path in (tmp_path / 'tensorboard').iterdir())
  assert b'train/loss' in events
  assert b'images_per_second' in events


@pytest.mark.parametrize('terminal', [False, True])
def test_objects_without_a_slot_are_said_once_and_counted_in_every_record(terminal, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sys, 'stderr', Terminal() if terminal else io.StringIO())
  log = Log(tmp_path, steps=10, batch_size=4)
  for step, dropped in ((1, 0), (2, 3), (3, 5)):
    log.training(step, {'loss': 0.5, 'learning_rate': 0.1, 'dropped_objects': dropped}, 0.0)
  log.close()
  # tqdm writes above its bar.
  said = capsys.readouterr().out + sys.stderr.getvalue()
  assert said.count('found no slot') == 1
  assert '3 objects found no slot in their images so far, where the largest are learned; data.max_objects' in said
  records = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert [record['train/dropped_objects'] for record in records] == [0, 3, 5]


def test_a_process_that_is_not_the_first_writes_nothing(tmp_path, capsys):
  write(tmp_path, primary=False)
  assert not list(tmp_path.iterdir())
  assert capsys.readouterr().out == ''
