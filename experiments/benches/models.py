"""Training and inference steps of classifiers beside torchvision's, turn by turn; compile times; share of the peak.

On a CPU both sides compute in float32, and torch once in its usual layout and once in channels-last. On a GPU both
compute in bfloat16 with parameters in float32, and torch runs channels-last through torch.compile.
"""

from __future__ import annotations

from collections.abc import Callable
import statistics
import tempfile
import time
from typing import Any

from benches import timing
import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import numpy as np
import optax

from vision_jax import models
from vision_jax.inspect import multiply_adds

NAMES = ('resnet50', 'mobilenet_v3_large', 'vit_b_16', 'convnext_tiny')
GOALS = {('resnet50', 'train'): 1.0}
LEARNING_RATE = 0.01


class Ours:
  """A model's step, compiled without and with what the persistent cache has; each call goes on from the last."""

  def __init__(self, name: str, work: str, batch_size: int, size: int, dtype: Any):
    options = {'image_size': size} if name.startswith('vit') else {}
    self.model = models.create(name, dtype=dtype, **options)
    images = jax.random.normal(jax.random.key(0), (batch_size, size, size, 3))
    self.batch = (images, jnp.arange(batch_size), jax.random.key(1))
    variables = jax.jit(self.model.init)(jax.random.key(2), images)
    self.params, self.state = variables['params'], {k: v for k, v in variables.items() if k != 'params'}
    forward = multiply_adds(self.model.apply, variables, images)
    self.flops = 2 * forward * (3 if work == 'train' else 1)  # backward: once to the input, once to the kernel
    self.step = self._compile(work)

  def _compile(self, work: str) -> Callable:
    """Compiles twice, the second time from the persistent cache, and keeps the seconds of both."""
    jitted = jax.jit(self._train, donate_argnums=(0, 1)) if work == 'train' else jax.jit(self._infer)
    seconds = []
    jax.config.update('jax_enable_compilation_cache', True)
    for _ in range(2):
      jax.clear_caches()
      compilation_cache.reset_cache()  # so that it is opened again, now that it is enabled
      start = time.perf_counter()
      compiled = jitted.lower(self.params, self.state, *self.batch).compile()
      seconds.append(time.perf_counter() - start)
    jax.config.update('jax_enable_compilation_cache', False)
    compilation_cache.reset_cache()
    self.cold, self.cached = seconds
    return compiled

  def _train(self, params: Any, state: Any, images: jax.Array, labels: jax.Array, key: jax.Array) -> tuple:
    def loss(params):
      logits, new = self.model.apply({'params': params, **state}, images, train=True, mutable=list(state),
                                     rngs={'dropout': key})
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new

    (value, state), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, gradients), state, value

  def _infer(self, params: Any, state: Any, images: jax.Array, *_: jax.Array) -> jax.Array:
    return self.model.apply({'params': params, **state}, images)

  def _turn(self) -> Any:
    result = self.step(self.params, self.state, *self.batch)
    if isinstance(result, tuple):  # training gave its arguments away
      self.params, self.state, _ = result
    return result

  def side(self, calls: int) -> list[float]:
    return timing.seconds_of(self._turn, calls)


def table(peer_python: str, rounds: int, batch_size: int, size: int) -> None:
  """Prints a row for each model and work; the ratio is to the faster of torch's ways, over turns side by side.

  Args:
    peer_python: a Python that has torch and torchvision.
    rounds: turns of each side.
    batch_size: images a step.
    size: of the images, pixels.
  """
  cpu = jax.default_backend() == 'cpu'
  dtype = jnp.float32 if cpu else jnp.bfloat16
  peers = [timing.TorchPeer(peer_python) for _ in range(2 if cpu else 1)]
  print(f'\nSteps of {batch_size} images of {size} x {size}, {jnp.dtype(dtype).name}; peer: {peers[0].about}')
  print('| model              | work  |  ours ms | torch ms | torch, channels-last | ratio | goal | met | of the peak '
        '| torch | compile s | from the cache |')
  with tempfile.TemporaryDirectory() as cache:
    jax.config.update('jax_compilation_cache_dir', cache)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    for name in NAMES:
      for work in ('train', 'infer'):
        ours = Ours(name, work, batch_size, size, dtype)
        options = {'name': name, 'batch_size': batch_size, 'size': size, 'train': np.array(work == 'train')}
        theirs = [side for peer, channels_last in zip(peers, (False, True) if cpu else (True,), strict=True)
                  for side in peer.prepare('classifier', {**options, 'channels_last': np.array(channels_last)})]
        times = timing.alternate([ours.side, timing.peak(dtype), *theirs], rounds)
        print(_row(name, work, ours, times, cpu), flush=True)
  for peer in peers:
    peer.close()


def _row(name: str, work: str, ours: Ours, times: list[list[float]], cpu: bool) -> str:
  mine, matmul, *theirs = times
  fastest = statistics.median(matmul) * ours.flops / timing.peak_flops()  # were all of it as fast as that product
  shown = [f'{1e3 * statistics.median(column):.0f}' for column in theirs]
  shown = (['-'] * (2 - len(shown)) if cpu or not shown else ['-']) + shown
  # Of the turns that lay side by side: a machine that others use too is not equally fast in all rounds.
  ratio = max((statistics.median(a / b for a, b in zip(mine, column, strict=True)) for column in theirs), default=None)
  goal = GOALS.get((name, work)) if cpu else None
  met = '' if goal is None or ratio is None else 'yes' if ratio <= goal else 'NO'
  share = [f'{100 * fastest / statistics.median(column):.0f} %' for column in (mine, min(theirs, default=mine,
                                                                                         key=statistics.median))]
  return (f'| {name:<18} | {work} | {1e3 * statistics.median(mine):>8.0f} | {shown[0]:>8} | {shown[1]:>20} | '
          f'{"-" if ratio is None else f"{ratio:.2f}":>5} | {goal or "":>4} | {met:<3} | {share[0]:>11} | '
          f'{share[1] if theirs else "-":>5} | {ours.cold:>9.1f} | {ours.cached:>14.1f} |')
