"""Reading image files, and what is said about those that cannot be read."""

import numpy as np
from PIL import Image
import pytest

from vision_jax.data.images import ImageFiles, read_image

RAMP = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5


def saved(folder, image, name='a.png', **options):
  path = folder / name
  image.save(path, **options)
  return path


def test_rgb_comes_back_as_it_was_and_grey_as_three_equal_channels(tmp_path):
  np.testing.assert_array_equal(read_image(saved(tmp_path, Image.fromarray(RAMP))), RAMP)
  grey = read_image(saved(tmp_path, Image.fromarray(RAMP[..., 0])))
  np.testing.assert_array_equal(grey, np.repeat(RAMP[..., :1], 3, -1))
  assert grey.dtype == np.uint8


def test_16_bit_grey_is_scaled_and_rounded(tmp_path):
  values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
  expected = np.floor(values.astype(float) * 255 / 65535 + 0.5)
  for name in ('a.png', 'a.tif'):
    image = read_image(saved(tmp_path, Image.fromarray(values), name))
    np.testing.assert_array_equal(image, np.repeat(expected[..., None], 3, -1))


def test_a_palette_is_looked_up(tmp_path):
  image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), 'L').convert('P')
  image.putpalette([10, 20, 30, 200, 100, 50])
  assert read_image(saved(tmp_path, image)).tolist() == [[[10, 20, 30], [200, 100, 50]], [[200, 100, 50], [10, 20, 30]]]


def test_transparency_is_laid_over_white(tmp_path):
  pixels = np.array([[[0, 0, 0, 255], [0, 0, 0, 0], [255, 0, 0, 51]]], np.uint8)
  assert read_image(saved(tmp_path, Image.fromarray(pixels))).tolist() == [[[0, 0, 0], [255] * 3, [255, 204, 204]]]
  palette = Image.fromarray(np.array([[0, 1]], np.uint8), 'L').convert('P')
  palette.putpalette([10, 20, 30, 200, 100, 50])
  assert read_image(saved(tmp_path, palette, transparency=1)).tolist() == [[[10, 20, 30], [255] * 3]]


def test_other_colour_spaces_become_rgb(tmp_path):
  red = np.full((8, 8, 3), (255, 0, 0), np.uint8)
  image = read_image(saved(tmp_path, Image.fromarray(red).convert('CMYK'), 'a.tif'))
  np.testing.assert_array_equal(image, red)
  black_and_white = Image.fromarray(np.array([[0, 255]], np.uint8)).convert('1')
  assert read_image(saved(tmp_path, black_and_white)).tolist() == [[[0] * 3, [255] * 3]]


@pytest.mark.parametrize('orientation, turned', [
    (1, lambda a: a), (2, lambda a: a[:, ::-1]), (3, lambda a: a[::-1, ::-1]), (4, lambda a: a[::-1]),
    (5, lambda a: a.swapaxes(0, 1)), (6, lambda a: np.rot90(a, -1)), (7, lambda a: a.swapaxes(0, 1)[::-1, ::-1]),
    (8, np.rot90)])
def test_the_exif_turn_is_applied(tmp_path, orientation, turned):
  pixels = RAMP[:2]
  exif = Image.Exif()
  exif[0x0112] = orientation
  np.testing.assert_array_equal(read_image(saved(tmp_path, Image.fromarray(pixels), exif=exif)), turned(pixels))


@pytest.fixture
def broken(tmp_path):
  """Name -> path of a file that cannot be read."""
  noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
  files = {'empty': b'', 'text': b'this is no image, only a text that is called one'}
  for suffix in ('png', 'jpg', 'bmp', 'tif', 'gif'):
    data = saved(tmp_path, noise, f'whole.{suffix}').read_bytes()
    files[f'cut_{suffix}'] = data[:len(data) // 2]
  png = (tmp_path / 'whole.png').read_bytes()
  files['flipped'] = png[:200] + bytes(255 - b for b in png[200:400]) + png[400:]
  for name, data in files.items():
    (tmp_path / name).write_bytes(data)
  return {name: tmp_path / name for name in files}


def test_a_broken_file_is_named_with_cause_and_remedy_in_one_line(broken):
  for name, path in broken.items():
    with pytest.raises(ValueError, match='replace the file or take it out of the list') as caught:
      read_image(path)
    message = str(caught.value)
    assert message.startswith(f'cannot read image {path}: ') and '\n' not in message, (name, message)
  with pytest.raises(ValueError, match='the file is empty'):
    read_image(broken['empty'])


def test_floats_and_wide_integers_are_refused_since_they_have_no_common_range(tmp_path):
  with pytest.raises(ValueError, match='float pixels have no common range'):
    read_image(saved(tmp_path, Image.fromarray(np.ones((2, 2), np.float32)), 'a.tif'))
  with pytest.raises(ValueError, match=r'pixel values 0\.\.70000 are outside 0\.\.65535'):
    read_image(saved(tmp_path, Image.fromarray(np.array([[0, 70000]], np.int32)), 'a.tif'))


def test_a_missing_path_and_a_folder_are_told_apart(tmp_path):
  with pytest.raises(ValueError, match='no such file; check the path'):
    read_image(tmp_path / 'no.png')
  with pytest.raises(ValueError, match='it is a folder; give a file in it'):
    read_image(tmp_path)


def test_a_folder_gives_its_images_sorted_and_below_it_too_without_hidden_ones(tmp_path):
  (tmp_path / 'sub').mkdir()
  (tmp_path / '.cache').mkdir()
  for name in ('b.JPG', 'a.png', 'sub/c.png', '.hidden.png', '.cache/d.png'):
    saved(tmp_path, Image.fromarray(RAMP), name)
  (tmp_path / 'notes.txt').write_text('no image')
  source = ImageFiles(str(tmp_path))
  assert [source.name_of(i) for i in range(len(source))] == ['a.png', 'b.JPG', 'sub/c.png']
  np.testing.assert_array_equal(source[0]['image'], RAMP)
  assert source.target(0) == {} and source.fields == ()


def test_named_files_keep_their_order_and_need_no_suffix(tmp_path):
  paths = [saved(tmp_path, Image.fromarray(RAMP), name, format='PNG') for name in ('z.png', 'no_suffix')]
  source = ImageFiles(paths)
  assert [source.name_of(i) for i in range(2)] == [p.as_posix() for p in paths]
  assert len(ImageFiles(paths[0])) == 1 and source[1]['image'].shape == (4, 4, 3)


def test_folders_and_files_can_be_mixed(tmp_path):
  (tmp_path / 'sub').mkdir()
  inside = saved(tmp_path / 'sub', Image.fromarray(RAMP), 'a.png')
  beside = saved(tmp_path, Image.fromarray(RAMP), 'b.png')
  source = ImageFiles([beside, tmp_path / 'sub'])
  assert source.paths == (beside, inside)
  assert [source.name_of(i) for i in range(2)] == [beside.as_posix(), 'a.png']


def test_what_cannot_be_a_list_of_images_is_refused_in_one_line(tmp_path):
  for paths, message in ((tmp_path, 'no images in folder .*; known suffixes: .bmp'), ([], 'no image files given'),
                         ([tmp_path / 'no.png'], 'no such file or folder: .*no.png'),
                         (tmp_path / 'no', 'no such file')):
    with pytest.raises(ValueError, match=message) as caught:
      ImageFiles(paths)
    assert '\n' not in str(caught.value)
