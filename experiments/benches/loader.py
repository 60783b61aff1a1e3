"""Images per second from JPEG files to normalised batches: `Loader` beside torch's DataLoader, turn by turn.

The same work on both sides: decode 500 x 375 pixels, resize with antialias, mirror, normalise, stack 32 to a batch.
torchvision resizes either with Pillow, as its training recipes do, or as tensors, with vector instructions.
"""

from __future__ import annotations

from collections.abc import Callable
import pathlib
import statistics
import tempfile

from benches import timing
import numpy as np
from PIL import Image

from vision_jax.data import ImageFiles, Loader, read_image

IMAGES, BATCH_SIZE, IMAGE_SIZE = 128, 32, (375, 500)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUGMENT = {'crop': (('random_resized_crop', {}), ('flip', {})), 'letterbox': ()}
ROWS = (('crop', 320, 0), ('crop', 320, 2), ('crop', 640, 0), ('crop', 640, 2), ('letterbox', 320, 0),
        ('letterbox', 640, 0))
Side = Callable[[int], list[float]]


def write_images(folder: pathlib.Path) -> float:
  """Writes JPEGs of smooth shapes under noise, which take the bytes of photographs; returns their mean kilobytes."""
  rng = np.random.default_rng(0)
  for index in range(IMAGES):
    shapes = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(IMAGE_SIZE[::-1])
    noisy = np.asarray(shapes) + rng.normal(0, 8, (*IMAGE_SIZE, 3))
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(folder / f'{index:04}.jpg', quality=90)
  return statistics.mean(path.stat().st_size for path in folder.iterdir()) / 1000


def ours(folder: pathlib.Path, work: str, size: int, workers: int) -> Side:
  """Times epochs of the loader, in seconds."""
  loader = Loader(ImageFiles(folder), batch_size=BATCH_SIZE, canvas=(size, size), augment=AUGMENT[work], fields=(),
                  mean=MEAN, std=STD, workers=workers)

  def epoch() -> None:
    for _ in loader.batches(0, loader.steps_per_epoch):
      pass

  return lambda calls: timing.seconds_of(epoch, calls)


def theirs(peers: list[timing.TorchPeer], folder: pathlib.Path, work: str, size: int, workers: int) -> list[Side]:
  """The same of torch's DataLoader, in one process through Pillow and in another as tensors; without peers, nothing."""
  options = {'folder': str(folder), 'work': work, 'size': size, 'workers': workers, 'batch_size': BATCH_SIZE,
             'mean': np.array(MEAN), 'std': np.array(STD)}
  return [side for peer, tensors in zip(peers, (False, True), strict=False)
          for side in peer.prepare('load_images', {**options, 'tensors': np.array(tensors)})]


def _alternate(sides: list[Side], rounds: int) -> list[list[float]]:
  """The seconds of each side's turns; the first turn of each, which starts workers and reads files, is not counted."""
  for side in sides:
    side(1)
  turns = [[side(1)[0] for side in sides] for _ in range(rounds)]
  return [list(column) for column in zip(*turns, strict=True)]


def _speed(times: list[float]) -> str:
  return f'{IMAGES / statistics.median(times):>8.0f}'


def table(peer_python: str, rounds: int) -> None:
  """Prints a row for each size and number of workers; the ratio is to the faster of torch's two ways.

  Args:
    peer_python: a Python that has torchvision with transforms v2, and Pillow.
    rounds: turns of each side.
  """
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    kilobytes = write_images(folder)
    paths = sorted(folder.iterdir())
    print(f'\nImages per second, {IMAGES} JPEGs of {IMAGE_SIZE[1]} x {IMAGE_SIZE[0]} pixels and {kilobytes:.0f} kB')
    print('| work      | pixels | workers |     ours | torch, Pillow | torch, tensors | ratio | goal | met |')
    peers = [timing.TorchPeer(peer_python) for _ in range(2)]
    for work, size, workers in ROWS:
      try:
        sides = theirs(peers, folder, work, size, workers)
      except ValueError:  # the first ended, for want of transforms v2 or Pillow
        sides = peers = []
      times, *their_times = _alternate([ours(folder, work, size, workers), *sides], rounds)
      start = f'| {work:<9} | {size:>6} | {workers:>7} | {_speed(times)} |'
      if not their_times:
        print(f'{start} {peer_python} has no torchvision with transforms v2 and Pillow: see --loader_peer_python |')
        continue
      # Of the turns that lay side by side: a machine that others use too is not equally fast in all rounds.
      ratio = min(statistics.median(b / a for a, b in zip(times, column, strict=True)) for column in their_times)
      print(f'{start} {_speed(their_times[0]):>13} | {_speed(their_times[1]):>14} | {ratio:>5.2f} | 1.50 | '
            f'{"yes" if ratio >= 1.5 else "NO":<3} |', flush=True)
    for peer in peers:
      peer.close()
    alone, = _alternate([lambda calls: timing.seconds_of(lambda: [read_image(path) for path in paths], calls)], rounds)
    print(f'reading and decoding alone, inline: {_speed(alone).strip()} images per second, the bound of one core')
