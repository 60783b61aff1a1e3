"""Published weights by name, downloaded from a server on this machine."""

import dataclasses
import functools
import hashlib
import http.server
import threading

import numpy as np
import pytest

from vision_jax import models
from vision_jax.data.loader import RESIZES
from vision_jax.data.resize import resize_policy
from vision_jax.models.classification.resnet import resnet18
from vision_jax.pretrained import catalogue, categories, create, download, find_published, load, published, write_pth
from vision_jax.pretrained.convert import to_torch
from vision_jax.pretrained.variables import flat_shapes, nested


class Server(http.server.BaseHTTPRequestHandler):
  """Serves one file; `rules` say how badly."""

  def __init__(self, rules, *args):
    self.rules = rules
    super().__init__(*args)

  def do_GET(self):
    content, start = self.rules['content'], 0
    asked = self.headers.get('Range')
    self.rules['asked'].append(asked)
    if self.rules.get('status'):
      self.send_error(self.rules['status'])
      return
    if asked and self.rules['resumes']:
      start = int(asked.removeprefix('bytes=').removesuffix('-'))
      if start >= len(content):
        self.send_error(416)
        return
    self.send_response(206 if start else 200)
    self.send_header('Content-Length', str(len(content) - start))
    self.end_headers()
    self.wfile.write(content[start:self.rules.get('until')])

  def log_message(self, *args):
    pass


@pytest.fixture
def server(monkeypatch, tmp_path):
  """(rules, row): a server, and a row of the catalogue whose file it has; the cache is empty."""
  monkeypatch.setenv('VISION_JAX_CACHE', str(tmp_path / 'cache'))
  content = np.random.default_rng(0).bytes(3_000_000)
  rules = {'content': content, 'resumes': True, 'asked': []}
  running = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Server, rules))
  thread = threading.Thread(target=running.serve_forever, daemon=True)
  thread.start()
  yield rules, row_of(content, running.server_port)
  running.shutdown()
  running.server_close()
  thread.join()


def row_of(content, port, row='resnet18:DEFAULT'):
  digest = hashlib.sha256(content).hexdigest()[:8]
  return dataclasses.replace(find_published(row), address=f'http://127.0.0.1:{port}/models/model-{digest}.pth')


def test_a_file_is_downloaded_once_with_a_bar_and_its_hash_checked(server, capsys):
  rules, row = server
  path = download(row)
  assert path.read_bytes() == rules['content'] and path.parent == catalogue.cache_folder()
  assert 'resnet18:IMAGENET1K_V1' in capsys.readouterr().err
  assert download(row) == path and rules['asked'] == [None]
  assert not list(path.parent.glob('*.part'))


def test_no_bar_is_shown_where_none_is_wanted(server, capsys):
  download(server[1], progress=False)
  assert capsys.readouterr() == ('', '')


@pytest.mark.parametrize('resumes', [True, False])
def test_what_broke_off_is_continued_where_the_server_can(resumes, server):
  rules, row = server
  rules.update(until=1_000_000, resumes=resumes)
  with pytest.raises(ValueError, match='the connection broke off after 1,000,000 of 3,000,000 bytes; run again'):
    download(row, progress=False)
  assert not (catalogue.cache_folder() / row.file).exists()
  rules.update(until=None)
  assert download(row, progress=False).read_bytes() == rules['content']
  assert rules['asked'] == [None, 'bytes=1000000-']


def test_a_part_that_is_no_beginning_of_the_file_is_thrown_away(server):
  rules, row = server
  part = catalogue.cache_folder() / f'{row.file}.part'
  part.parent.mkdir()
  part.write_bytes(bytes(4_000_000))
  assert download(row, progress=False).read_bytes() == rules['content']
  assert rules['asked'] == ['bytes=4000000-', None]


def test_another_file_under_the_name_is_refused_and_deleted(server):
  rules, row = server
  rules['content'] = b'<html>' + rules['content']
  with pytest.raises(ValueError, match=r'is damaged: its SHA-256 is \w{64}, that of resnet18:IMAGENET1K_V1 '
                     rf'begins with {row.hash_prefix}; it was deleted, so run again'):
    download(row, progress=False)
  assert not [path for path in catalogue.cache_folder().iterdir() if path.suffix in ('.pth', '.part')]


def test_another_file_that_lies_in_the_cache_is_refused_and_kept(server):
  rules, row = server
  path = catalogue.cache_folder() / row.file
  path.parent.mkdir()
  path.write_bytes(b'my own')
  found = hashlib.sha256(b'my own').hexdigest()
  with pytest.raises(ValueError, match=rf'{row.file} is not resnet18:IMAGENET1K_V1: its SHA-256 is {found}, and should '
                     rf'begin with {row.hash_prefix}; delete it, so that it is downloaded, or put the right file'):
    download(row, progress=False)
  assert path.read_bytes() == b'my own' and rules['asked'] == []


def test_an_error_of_the_server_and_no_network_are_one_line_with_the_remedy(server):
  rules, row = server
  rules['status'] = 404
  with pytest.raises(ValueError, match=r'resnet18:IMAGENET1K_V1: the server answers 404 \(Not Found\) for http'):
    download(row, progress=False)
  offline = dataclasses.replace(row, address=row.address.replace('http://127.0.0.1', 'http://nowhere.invalid'))
  with pytest.raises(ValueError, match=r'could not be downloaded from .*; run again where there is a network, or put '
                     r'the file at .*cache/model-\w{8}\.pth'):
    download(offline, progress=False)


def test_a_cache_folder_that_cannot_be_made_is_said(monkeypatch, tmp_path):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('VISION_JAX_CACHE', str(tmp_path / 'file' / 'cache'))
  with pytest.raises(ValueError, match='cannot be made .*; set VISION_JAX_CACHE'):
    download(find_published('resnet18:DEFAULT'))


def test_two_processes_do_not_write_one_file_at_once(server):
  rules, row = server
  threads = [threading.Thread(target=download, args=(row,), kwargs={'progress': False}) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert rules['asked'] == [None]
  assert (catalogue.cache_folder() / row.file).read_bytes() == rules['content']


def test_weights_are_loaded_by_their_name_with_what_belongs_to_them(server, monkeypatch, tmp_path):
  rules, _ = server
  model = resnet18(width=4)
  variables = nested({path: np.full(leaf.shape, i, np.float32) for i, (path, leaf) in enumerate(flat_shapes(model))})
  write_pth(tmp_path / 'file.pth', to_torch(model, variables))
  rules['content'] = (tmp_path / 'file.pth').read_bytes()
  row = row_of(rules['content'], int(server[1].address.split(':')[2].split('/')[0]))
  row = dataclasses.replace(row, licence='its own', options={'stem': 'small'})
  monkeypatch.setattr(catalogue, 'find_published', lambda name: row)
  found, report = load('resnet18:DEFAULT', model, progress=False)
  np.testing.assert_array_equal(found['params']['conv1']['kernel'], variables['params']['conv1']['kernel'])
  assert str(report).startswith('ResNet: 102 of 102 arrays')
  assert f'loaded from resnet18:IMAGENET1K_V1 ({catalogue.cache_folder() / row.file})' in str(report)
  assert report.notes == ("the weights were trained with stem='small' of the model",
                          'these weights have a licence of their own: its own')
  assert report.preprocessing == row.data_options() and report.categories[0] == 'tench'
  # The same file by its path is known too, as it has the name and the hash of a published one.
  row = dataclasses.replace(row, licence='', options={})
  monkeypatch.setattr(catalogue, 'published', lambda: (row,))
  _, report = load(catalogue.cache_folder() / row.file, model)
  assert report.published == row and len(report.categories) == 1000
  # And with the model that it belongs to, with options of its own.
  monkeypatch.setattr(catalogue, 'find_published', lambda name: row)
  model, _, report = create('resnet18:DEFAULT', progress=False, width=4, num_classes=3)
  assert model == resnet18(width=4, num_classes=3) and report.head == ('params/fc/bias', 'params/fc/kernel')


# The table of classifiers; test_detectors.py has that of detectors.

CLASSIFIERS = tuple(row for row in published() if row.box_ap is None)


def test_the_table_holds_115_weights_of_80_models_with_one_default_each():
  rows = CLASSIFIERS
  assert len(rows) == 115 and len({row.model for row in rows}) == 80
  assert len({row.address for row in rows}) == len({row.name for row in rows}) == 115
  assert sorted(row.model for row in rows if row.default) == sorted({row.model for row in rows})


def test_every_row_has_a_hash_an_address_and_a_preprocessing_that_the_loader_takes():
  for row in published():
    assert len(row.hash_prefix) >= 8 and row.address.startswith((
        'https://download.pytorch.org/models/', 'https://dl.fbaipublicfiles.com/detr/'))
    options = row.data_options()
    assert options['resize'][0] in RESIZES and options['canvas'] == (row.crop, row.crop)
    assert row.policy == 'letterbox' or row.resize >= row.crop
    sample = resize_policy(options['resize'])({'image': np.zeros((600, 700, 3), np.uint8)}, options['canvas'])
    assert sample['image'].shape == (row.crop, row.crop, 3)
    content = [round(600 * row.resize / 600), round(700 * row.resize / 600)] if row.policy == 'letterbox' else [
        row.crop] * 2
    assert sample['image_size'].tolist() == [min(side, row.crop) for side in content]
    assert all(0 < value <= 1 for value in (*row.mean, *row.std))


def test_rows_that_differ_from_the_usual_are_as_published():
  row = find_published('efficientnet_v2_l:DEFAULT')
  assert row.mean == row.std == (0.5, 0.5, 0.5) and row.interpolation == 'bicubic'
  row = find_published('vgg16:IMAGENET1K_FEATURES')
  assert row.std == (1 / 255,) * 3 and row.mean == (0.48235, 0.45882, 0.40784)
  assert row.top1 is None and row.categories() == () and not row.default
  row = find_published('vit_b_16:IMAGENET1K_SWAG_E2E_V1')
  assert row.options == {'image_size': 384} and row.parameters == 86_859_496 and 'SWAG' in row.licence
  row = find_published('inception_v3:DEFAULT')
  assert row.options == {'transform_input': True} and (row.resize, row.crop) == (342, 299)
  row = find_published('resnet50:DEFAULT')
  assert (row.weights, row.top1, row.top5, row.hash_prefix) == ('IMAGENET1K_V2', 80.858, 95.434, '11ad3fa6')


def test_every_row_names_a_model_and_options_that_exist():
  for row in published():
    assert set(row.options) <= set(models.options(row.model)), row.name


@pytest.mark.slow
def test_every_row_has_as_many_parameters_as_its_model_with_its_options():
  for row in CLASSIFIERS:
    shapes = flat_shapes(models.create(row.model, **row.options))
    assert sum(leaf.size for path, leaf in shapes if path.startswith('params/')) == row.parameters, row.name


def test_there_are_a_thousand_different_categories():
  names = categories('imagenet1k')
  assert len(set(names)) == 1000 and (names[0], names[281], names[999]) == ('tench', 'tabby', 'toilet tissue')


def test_an_unknown_name_lists_what_is_close():
  with pytest.raises(ValueError, match="unknown model with published weights 'resnet_50'; did you mean resnet50"):
    find_published('resnet_50:DEFAULT')
  with pytest.raises(ValueError, match="unknown weights of resnet50 'IMAGENET1K_V3'; did you mean IMAGENET1K_V2"):
    find_published('resnet50:IMAGENET1K_V3')
  with pytest.raises(ValueError, match="weights 'resnet50' are neither a file nor a name"):
    find_published('resnet50')
