"""Our classifiers' logits beside torchvision's, under weights that a formula draws, as a table.

python experiments/parity_logits.py [--only resnet18,vgg11]

torch is not needed: its logits are kept in tests/golden/classifier_logits.npz. All 78 need 8 GB of memory. With --write
FOLDER the weights are written there as torch reads them, for tests/golden/check_torch_loads.py.
"""

import launch  # first: it sets the environment that jax reads

import pathlib
import time

from absl import flags
import jax

from tests.pretrained import formula
from vision_jax import models, pretrained

FLAGS = flags.FLAGS
flags.DEFINE_list('only', [], 'The names of some models; all when left out.')
flags.DEFINE_string('write', None, 'A folder: write MODEL.pth there instead of computing logits.')


def main() -> None:
  known = formula.golden('classifier_logits')[1].files
  unknown = sorted(set(FLAGS.only) - set(known))
  if unknown:
    raise ValueError(f'--only: there are no logits of {", ".join(unknown)}; there are those of {", ".join(known)}')
  if FLAGS.write:
    write(pathlib.Path(FLAGS.write), FLAGS.only or known)
    return
  print('| model | largest logit | error / largest logit | seconds |\n|---|---|---|---|')
  worst, start = 0.0, time.perf_counter()
  for name in FLAGS.only or known:
    before = time.perf_counter()
    error, largest = formula.error(name)
    jax.clear_caches()
    worst = max(worst, error)
    print(f'| {name} | {largest:.3g} | {error:.1e} | {time.perf_counter() - before:.1f} |', flush=True)
  print(f'\nworst: {worst:.1e}; {time.perf_counter() - start:.0f} s')


def write(folder: pathlib.Path, names: list[str]) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  for name in names:
    model = models.create(name)
    variables, _ = pretrained.from_torch(model, formula.state_dict(name))
    pretrained.write_pth(folder / f'{name}.pth', pretrained.to_torch(model, variables))
    print(folder / f'{name}.pth', flush=True)


if __name__ == '__main__':
  launch.run(main)
