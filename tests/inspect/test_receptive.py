"""Receptive fields followed through the jaxpr, beside which rows of an image change which rows of a map."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import drawn
from vision_jax.inspect import summary
from vision_jax.models.layers import (
    Conv,
    ConvTranspose,
    SqueezeExcite,
    adaptive_avg_pool,
    avg_pool,
    make_norm,
    max_pool,
    upsample,
)

pytestmark = pytest.mark.medium


class Steps(nn.Module):
  """Functions and modules one after the other."""

  steps: tuple

  @nn.compact
  def __call__(self, x):
    for step in self.steps:
      x = step(x)
    return x


def conv(*args, **kwargs):
  return Conv(2, *args, **kwargs)


def pool(size, **kwargs):
  return lambda x: max_pool(x, size, **kwargs)


def windows(x):
  b, h, w, c = x.shape
  return x.reshape(b, h // 4, 4, w // 4, 4, c).mean((2, 4))


def both_ways(x):
  return jnp.concatenate([x[:, 2:], x[:, :-2]], -1)


# (what is done, by how much the field may be wrong: after an enlargement by less than a step of the smaller map)
LOCAL = {
    'convolution': ((conv(3, padding=1),), 0),
    'stride, then convolution': ((conv(3, stride=2, padding=1), nn.relu, conv(5)), 0),
    'dilation': ((conv(3, dilation=3), conv(3, stride=2, padding=1), conv(3, dilation=2)), 0),
    'depthwise': ((conv(3, padding=1, groups=2), conv(1, stride=2), conv(3)), 0),
    'pools': ((pool(3, stride=2, padding=1), lambda x: avg_pool(x, 2), conv(3), pool(2)), 0),
    'ceil mode': ((pool(3, stride=2, ceil_mode=True), conv(3)), 0),
    'slices': ((lambda x: x[:, 1::2, ::2], conv(3), lambda x: jnp.split(x, 2, 1)[1]), 0),
    'padding': ((lambda x: jnp.pad(x, ((0, 0), (3, 1), (2, 2), (0, 0))), conv(3, stride=2), conv(3)), 0),
    'shifted sum': ((conv(3), lambda x: x[:, 2:] + x[:, :-2] * 2, conv(3)), 0),
    'branches': ((both_ways, conv(3, stride=2)), 0),
    'parts put together': ((lambda x: jnp.concatenate([x[:, :9], x[:, 9:]], 1), conv(3)), 0),
    'windows': ((conv(3, padding=1), windows, conv(3)), 0),
    'batch norm': ((conv(3), make_norm('batch', 2), conv(3)), 0),
    'layer norm': ((conv(3), make_norm('layer', 2), conv(3)), 0),
    'residual': ((conv(3, padding=1), lambda x: x + max_pool(x, 3, stride=1, padding=1)), 0),
    'jit, remat and custom derivatives': ((jax.jit(lambda x: x * 2), conv(3), nn.silu, jax.checkpoint(jnp.sqrt)), 0),
    'up-convolution': ((pool(2), ConvTranspose(2, 2, 2), conv(3)), 0),
    'transposed convolution': ((pool(4), ConvTranspose(2, 4, 2, padding=1), conv(3)), 3),
    'enlarged': ((pool(2), conv(3), lambda x: upsample(x, 2)), 0),
    'enlarged by 3, then 2x2': ((pool(4), lambda x: upsample(x, 3), conv(2)), 3),
    'enlarged, then convolution': ((pool(2), conv(3), lambda x: upsample(x, 2), conv(3)), 0),
}
GLOBAL = {
    'squeeze excite': (SqueezeExcite(2), conv(3)),
    'group norm': (conv(3), make_norm('group', 2)),
    'mean': (conv(3), lambda x: x.mean((1, 2))),
    'fully connected': (lambda x: x.reshape(x.shape[0], -1), nn.Dense(3)),
    'attention': (lambda x: x.reshape(x.shape[0], -1, x.shape[-1]), lambda x: nn.softmax(x @ x.mT) @ x),
    'cumulated': (lambda x: jnp.cumsum(x, 1),),
    'average of all': (lambda x: adaptive_avg_pool(x, 1),),
}
HEIGHT = 48


def reached(model, x):
  """For each row of the result, which rows of the image it depends on: those that change it when they are changed."""
  rows = np.where(np.eye(HEIGHT, dtype=bool)[:, :, None, None], x + 1, x)
  # With positive kernels no change cancels another, and none falls below a ReLU.
  variables = jax.tree.map(np.abs, drawn.variables(model, x))
  results = np.asarray(jax.jit(model.apply)(variables, np.concatenate([x, rows])))
  return (results[1:] != results[:1]).reshape(HEIGHT, results.shape[1], -1).any(-1).T


def image():
  return np.random.default_rng(0).uniform(0.5, 1, (1, HEIGHT, 24, 2)).astype(np.float32)


@pytest.mark.parametrize('name', LOCAL)
def test_a_field_is_as_large_as_the_rows_that_change_a_place(name):
  steps, slack = LOCAL[name]
  rows = reached(Steps(steps), image())
  (output,) = summary(Steps(steps), (1, HEIGHT, 24, 2)).layers[0].outputs
  first, last = rows.argmax(1), rows.shape[1] - 1 - rows[:, ::-1].argmax(1)
  inner = (first > 0) & (last < HEIGHT - 1)  # where no border cuts the field off
  sizes = (last - first + 1)[inner]
  assert abs(output.receptive_field[0] - sizes.max()) <= slack
  # The stride is how far the fields of neighbours are apart.
  middle = np.flatnonzero(inner)
  assert (first[middle[-1]] - first[middle[0]]) / (middle[-1] - middle[0]) == pytest.approx(output.stride[0], rel=0.1)


@pytest.mark.parametrize('name', GLOBAL)
def test_what_mixes_all_places_depends_on_the_whole_image(name):
  assert reached(Steps(GLOBAL[name]), image()).all(1).any()
  (output,) = summary(Steps(GLOBAL[name]), (1, HEIGHT, 24, 2)).layers[0].outputs
  assert output.receptive_field is None


@pytest.mark.parametrize('step', [lambda x: x + x[:, ::-1], lambda x: x.reshape(1, -1, 3)], ids=['mirrored', 'tokens'])
def test_a_place_that_moves_in_no_fixed_step_is_said_to_depend_on_the_whole_image(step):
  (output,) = summary(Steps((step,)), (1, 8, 8, 3)).layers[0].outputs
  assert output.receptive_field is None


def test_height_and_width_have_fields_of_their_own():
  model = Steps((conv((1, 7), padding=(0, 3)), conv((3, 1), stride=(2, 1))))
  (output,) = summary(model, (1, 9, 20, 3)).layers[0].outputs
  assert (output.receptive_field, output.stride) == ((3, 7), (2, 1))


def test_a_field_may_exceed_the_image():
  # Two 3x3 convolutions / 2 and four more: 3 + 2 * 2 + 4 * 2 * 4 pixels.
  model = Steps((*(conv(3, stride=2, padding=1) for _ in range(2)), *(conv(3, padding=1) for _ in range(4))))
  (output,) = summary(model, (1, 16, 16, 3)).layers[0].outputs
  assert (output.receptive_field, output.stride) == ((39, 39), (4, 4))


def test_a_gate_of_all_pixels_keeps_the_stride_of_what_it_scales():
  (output,) = summary(Steps((conv(3, stride=2), SqueezeExcite(2))), (1, 15, 15, 3)).layers[0].outputs
  assert (output.receptive_field, output.stride) == (None, (2, 2))


def test_parameters_alone_depend_on_no_pixel():
  class Bias(nn.Module):

    @nn.compact
    def __call__(self, x):
      return self.param('bias', nn.initializers.zeros, (1, 4, 4, 2)) * 2

  (output,) = summary(Bias(), (1, 4, 4, 2)).layers[0].outputs
  assert (output.receptive_field, output.stride) == (None, None)
