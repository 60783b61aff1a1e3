"""Loads state dicts that this project wrote into torchvision's models, and compares all that comes of it.

    python experiments/parity_logits.py --write weights --only resnet18,swin_v2_t
    python tests/golden/check_torch_loads.py weights/resnet18.pth weights/swin_v2_t.pth

The second needs torch and torchvision, and nothing of this project. Each file must load strictly and with
`weights_only`, bring the formula's values under every name and torchvision's own buffers, and give the stored logits.
"""

import pathlib
import sys

import numpy as np


def check(golden, path: pathlib.Path, stored) -> str:
  import torch
  name = path.stem
  module = golden.build(name)
  computed = {key: value.clone() for key, value in module.state_dict().items() if key.endswith(golden.COMPUTED)}
  state_dict = torch.load(path, weights_only=True)
  module.load_state_dict(state_dict, strict=True)
  for key, value in state_dict.items():
    truth = computed[key].numpy() if key in computed else golden.fill(key, tuple(value.shape), golden.gain(name))
    exact = truth.dtype.kind == 'i' or key not in computed  # a logarithm may differ in its last bit
    if not (value.dtype is torch.from_numpy(np.asarray(truth)).dtype and (
        np.array_equal(value.numpy(), truth) if exact else np.allclose(value.numpy(), truth, rtol=0, atol=1e-6))):
      raise SystemExit(f'{path}: {key} differs')
  with torch.no_grad():
    found = golden.kept(module(torch.from_numpy(golden.images(name))).numpy())
  error = np.abs(found - stored[name]).max() / stored[name][0, -1]
  if error > 1e-4:
    raise SystemExit(f'{path}: the logits differ by {error:.1e} of the largest')
  return (f'{name}: {len(state_dict)} tensors loaded strictly, {len(computed)} buffers equal, logits differ by '
          f'{error:.1e}')


def main() -> None:
  import make_classifier_logits as golden  # beside this file, when it is run as a program
  golden.prepare_torch()
  stored = np.load(golden.FOLDER / 'classifier_logits.npz')
  for path in sys.argv[1:]:
    print(check(golden, pathlib.Path(path), stored), flush=True)


if __name__ == '__main__':
  main()
