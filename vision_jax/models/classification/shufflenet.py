"""ShuffleNet v2: blocks that pass half of the channels on, and shuffle the halves.

Ningning Ma, Xiangyu Zhang, Hai-Tao Zheng and Jian Sun, ShuffleNet V2: Practical Guidelines for Efficient CNN
Architecture Design, arXiv 1807.11164, Figure 3 (c, d) and Table 5. Maps on an image of 224 x 224, C for 0.5, 1, 1.5
and 2 times the width:

| part | what | size | C |
|---|---|---|---|
| conv1 | 3x3 / 2 | 112 x 112 | 24 |
| maxpool | 3x3 / 2 | 56 x 56 | 24 |
| stage2 | 4 blocks, the first / 2 | 28 x 28 | 48, 116, 176, 244 |
| stage3 | 8 blocks, / 2 | 14 x 14 | 96, 232, 352, 488 |
| stage4 | 4 blocks, / 2 | 7 x 7 | 192, 464, 704, 976 |
| conv5 | 1x1 | 7 x 7 | 1024, 1024, 1024, 2048 |
| fc | mean over the pixels, fully connected | | K |

Parameters at K = 1000: 1,366,792; 2,278,604; 3,503,624; 7,393,996. Submodules bear torchvision's names.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.layers import Conv, ConvNorm, global_avg_pool, linear_init, make_norm, max_pool

Array = jax.Array
STAGE_SIZES = (4, 8, 4)


class ShuffleNet(nn.Module):
  """ShuffleNet v2; `shufflenet_v2_x0_5` to `shufflenet_v2_x2_0` are its rows.

  Args:
    widths: channels of the three stages (even numbers) and of the last convolution.
    stage_sizes: the number of blocks of each stage.
    num_classes: K; 0 gives features and no `fc`.
    norm: see `layers.make_norm`.
    dtype: the compute dtype.

  Returns:
    Float32 logits `[B, K]`, or features `[B, C]`, from `[B, H, W, 3]` of any size.

  >>> model = shufflenet_v2_x0_5(num_classes=10)
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 32, 48, 3)))[0].shape
  (2, 10)
  """

  widths: tuple[int, ...]
  stage_sizes: tuple[int, ...] = STAGE_SIZES
  num_classes: int = 1000
  norm: str = 'batch'
  dtype: Any = jnp.float32

  def setup(self):
    if self.num_classes:
      self.fc = nn.Dense(self.num_classes, kernel_init=linear_init, dtype=jnp.dtype(self.dtype))

  def __call__(self, x: Array, *, train: bool = False) -> Array:
    x = self.features(x, train=train)['conv5']
    x = global_avg_pool(x)
    return self.fc(x).astype(jnp.float32) if self.num_classes else x

  @nn.compact
  def features(self, x: Array, *, train: bool = False) -> dict[str, Array]:
    """The last map of each stride in `dtype`: `conv1` (2), `maxpool` (4), `stage2` (8), `stage3` (16), `conv5` (32)."""
    conv = functools.partial(ConvNorm, norm=self.norm, dtype=self.dtype, kernel_init=linear_init, parts=('0', '1'))
    maps = {'conv1': conv(24, 3, 2, name='conv1')(x, train=train)}
    maps['maxpool'] = x = max_pool(maps['conv1'], 3, stride=2, padding=1)
    for stage, (blocks, width) in enumerate(zip(self.stage_sizes, self.widths, strict=False), start=2):
      for i in range(blocks):
        x = ShuffleBlock(width, 1 if i else 2, self.norm, self.dtype, name=f'stage{stage}_{i}')(x, train=train)
      maps[f'stage{stage}'] = x
    # The last stage has the stride of conv5, and gives way to it.
    del maps[f'stage{len(self.stage_sizes) + 1}']
    return maps | {'conv5': conv(self.widths[-1], 1, name='conv5')(x, train=train)}


class ShuffleBlock(nn.Module):
  """The unit of ShuffleNet v2: two branches with half of the channels each, side by side and shuffled.

  At stride 1 the first half of the channels passes as it is; at stride 2 both branches see all channels and convolve.

  Args:
    features: channels that come out, an even number; at stride 1 as many as come in.
    stride: 1 or 2.
    norm, dtype: as in `ShuffleNet`.

  Returns:
    `[B, h, w, features]` from `[B, H, W, C]`.

  Raises:
    ValueError: the features are odd, or at stride 1 not those that come in.

  >>> block = ShuffleBlock(12, stride=2)
  >>> jax.eval_shape(block.init_with_output, jax.random.key(0), jnp.zeros((1, 5, 6, 8)))[0].shape
  (1, 3, 3, 12)
  """

  features: int
  stride: int = 1
  norm: str = 'batch'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    if self.features % 2 or (self.stride == 1 and x.shape[-1] != self.features):
      raise ValueError(f'ShuffleBlock: {self.features} features at stride {self.stride} from {x.shape[-1]} channels; '
                       'give an even number, at stride 1 as many as come in')
    half = self.features // 2
    x = x.astype(self.dtype)
    first, second = (x[..., :half], x[..., half:]) if self.stride == 1 else (x, x)
    if self.stride != 1:
      first = Branch((('depthwise', first.shape[-1]), ('pointwise', half)), self.stride, self.norm, self.dtype,
                     name='branch1')(first, train=train)
    second = Branch((('pointwise', half), ('depthwise', half), ('pointwise', half)), self.stride, self.norm, self.dtype,
                    name='branch2')(second, train=train)
    return channel_shuffle(jnp.concatenate([first, second], -1), 2)


class Branch(nn.Module):
  """1x1 convolutions, each with a ReLU, and a 3x3 one of every channel alone, without; all are normalised.

  Args:
    plan: 'pointwise' or 'depthwise', and the channels that come out, in order.
    stride: of the depthwise convolution.
    norm, dtype: as in `ShuffleNet`.

  Returns:
    `[B, h, w, C]`. The parts are numbered as in torchvision, where a ReLU has a number too.
  """

  plan: tuple[tuple[str, int], ...]
  stride: int
  norm: str
  dtype: Any

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Array:
    number = 0
    for kind, features in self.plan:
      depthwise = kind == 'depthwise'
      x = Conv(features, 3 if depthwise else 1, self.stride if depthwise else 1, int(depthwise), groups=
               features if depthwise else 1, use_bias=self.norm == 'none', dtype=self.dtype, kernel_init=linear_init,
               name=str(number))(x)
      x = make_norm(self.norm, features, train=train, dtype=self.dtype, name=str(number + 1))(x)
      x = x if depthwise else nn.relu(x)
      number += 2 if depthwise else 3
    return x


def channel_shuffle(x: Array, groups: int) -> Array:
  """The channels of `groups` equal parts dealt in turn: one of each part, then the next one of each.

  Args:
    x: `[..., C]`.
    groups: a divisor of C.

  Returns:
    `[..., C]`.

  Raises:
    ValueError: the groups do not divide the channels.

  Xiangyu Zhang et al., ShuffleNet, arXiv 1707.01083, Figure 1.

  >>> channel_shuffle(jnp.arange(6), 2).tolist()
  [0, 3, 1, 4, 2, 5]
  """
  if x.shape[-1] % groups:
    raise ValueError(f'channel_shuffle: {groups} groups do not divide {x.shape[-1]} channels')
  parts = x.reshape(*x.shape[:-1], groups, -1)
  return parts.swapaxes(-1, -2).reshape(x.shape)


shufflenet_v2_x0_5 = functools.partial(ShuffleNet, (48, 96, 192, 1024), STAGE_SIZES)
shufflenet_v2_x1_0 = functools.partial(ShuffleNet, (116, 232, 464, 1024), STAGE_SIZES)
shufflenet_v2_x1_5 = functools.partial(ShuffleNet, (176, 352, 704, 1024), STAGE_SIZES)
shufflenet_v2_x2_0 = functools.partial(ShuffleNet, (244, 488, 976, 2048), STAGE_SIZES)
