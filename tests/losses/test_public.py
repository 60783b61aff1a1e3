"""What holds for every public name of `ops` and `losses`; both rooms are walked, so a new name cannot be forgotten."""

import functools
import inspect
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax import losses, ops

PUBLIC = {f'{room.__name__.split(".")[-1]}.{name}': getattr(room, name)
          for room in (ops, losses) for name in room.__all__}
FUNCTIONS = {name: thing for name, thing in PUBLIC.items() if inspect.isfunction(thing)}

BOXES = np.array([[1, 2, 9, 9], [2, 1, 12, 11], [20, 3, 29, 15]], np.float32)
OTHERS = np.array([[1, 1, 8, 9], [14, 2, 22, 8], [20, 3, 29, 15]], np.float32)
RAW = np.random.default_rng(0).normal(size=(2, 2, 4, 1, 7)).astype(np.float32)
HEAD = {'anchors': (((8.0, 8.0),), ((20.0, 12.0),)), 'strides': (8, 16)}
LEVELS = RAW, RAW[:, :1, :2] / 2
IMAGES, CLASSES = RAW[:, :, :, 0, :3], np.random.default_rng(1).integers(0, 3, (2, 2, 4)).astype(np.int32)
PAIR = (BOXES, OTHERS), {}

# One call of every public function: its arrays and its options.
CALLS = {
    'ops.box_area': ((BOXES,), {}),
    'ops.ciou': PAIR,
    'ops.class_aware_nms': ((BOXES, BOXES[:, 0], np.array([0, 0, 1])), {'iou_threshold': 0.3, 'max_outputs': 2}),
    'ops.clip_boxes': ((BOXES, np.array([10, 20])), {}),
    'ops.diou': PAIR,
    'ops.flatten_levels': ((LEVELS,), {}),
    'ops.giou': PAIR,
    'ops.iou': PAIR,
    'ops.nms': ((BOXES, BOXES[:, 0]), {'iou_threshold': 0.3, 'max_outputs': 4}),
    'ops.pairwise_iou': PAIR,
    'ops.yolo_decode': ((RAW, np.array([[8.0, 8.0]], np.float32)), {'stride': 8}),
    'ops.yolo_encode': ((BOXES, BOXES[:, :2] // 8, OTHERS[:, 2:]), {'stride': 8}),
    'ops.yolo_slots': ((), HEAD | {'canvas': (16, 32)}),
    'ops.yolov3_decode': ((LEVELS,), HEAD | {'image_size': (16, 30), 'max_detections': 3}),
    'losses.ciou_loss': PAIR,
    'losses.diou_loss': PAIR,
    'losses.giou_loss': PAIR,
    'losses.iou_loss': PAIR,
    'losses.pixel_cross_entropy': ((IMAGES, CLASSES), {'valid': CLASSES < 2}),
    'losses.segmentation_loss': ((IMAGES, CLASSES), {'pixels_valid': CLASSES < 2}),
    'losses.sigmoid_cross_entropy': ((IMAGES, np.abs(IMAGES) < 1), {}),
    'losses.soft_dice': ((np.abs(IMAGES) / 4, np.abs(IMAGES) < 1), {'valid': CLASSES < 2}),
    'losses.softmax_cross_entropy': ((IMAGES, CLASSES), {'label_smoothing': 0.1}),
    'losses.yolov3_assign': ((BOXES,), HEAD | {'canvas': (16, 32)}),
    'losses.yolov3_loss': ((LEVELS, np.stack([BOXES, OTHERS]), np.array([[0, 1, 1], [1, 0, 0]])),
                           HEAD | {'box_loss': 'ciou'}),
} | {f'ops.{name}': ((BOXES,), {}) for name in ops.__all__ if '_to_' in name}


def test_every_public_function_has_a_call_here():
  assert set(CALLS) == set(FUNCTIONS)


@pytest.mark.parametrize('name', sorted(CALLS))
def test_every_public_function_gives_the_same_under_jit_and_under_vmap(name):
  arrays, options = CALLS[name]
  call = lambda *arrays: FUNCTIONS[name](*arrays, **options)
  quick = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
  once = quick(call)(*arrays)

  def each(*batch):  # value and gradient at once: one compilation
    floats = [i for i, x in enumerate(batch) if all(jnp.issubdtype(v.dtype, jnp.floating) for v in jax.tree.leaves(x))]

    def total(*chosen):
      result = call(*[chosen[floats.index(i)] if i in floats else x for i, x in enumerate(batch)])
      parts = [jnp.sum(v) for v in jax.tree.leaves(result) if jnp.issubdtype(jnp.result_type(v), jnp.floating)]
      return sum(parts, jnp.float32(0)), result

    (_, result), gradients = jax.value_and_grad(total, argnums=tuple(range(len(floats))), has_aux=True)(
        *[batch[i] for i in floats])
    return result, gradients

  if arrays:
    twice = jax.tree.map(lambda x: np.stack([x, x]), arrays)
    batched, gradients = quick(jax.vmap(each))(*twice)
    for value, row in zip(jax.tree.leaves(once), jax.tree.leaves(batched)):
      assert row.shape == (2,) + jnp.shape(value)
      # The same arithmetic, perhaps fused otherwise.
      np.testing.assert_allclose(row, np.stack([value, value]), rtol=1e-5, atol=1e-6)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize('name', sorted(FUNCTIONS))
def test_every_option_of_a_public_function_is_keyword_only_and_valid_comes_last(name):
  parameters = inspect.signature(FUNCTIONS[name]).parameters.values()
  assert all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters)
  assert all(p.kind is p.KEYWORD_ONLY for p in parameters if p.default is not p.empty)
  names = [p.name for p in parameters]
  assert 'valid' not in names[:-1]
  assert all(p.annotation is not p.empty for p in parameters)


@pytest.mark.parametrize('name', sorted(name for name, thing in PUBLIC.items() if callable(thing)))
def test_every_public_docstring_has_its_parts(name):
  doc = inspect.getdoc(PUBLIC[name])
  assert doc.split('\n\n')[0].endswith('.')
  takes_something = name in FUNCTIONS and inspect.signature(FUNCTIONS[name]).parameters
  assert 'Args:' in doc or not takes_something
  assert 'Returns:' in doc or name not in FUNCTIONS
  assert '>>> ' in doc
  if 'raise ' in inspect.getsource(PUBLIC[name]):
    assert 'Raises:' in doc
  for parameter in (inspect.signature(FUNCTIONS[name]).parameters if name in FUNCTIONS else ()):
    assert f'  {parameter}: ' in doc, parameter


def test_ops_and_losses_need_nothing_but_jax():
  code = ('import sys; from vision_jax import ops, losses; '
          'print([m for m in ("flax", "optax", "orbax", "ml_collections", "PIL", "sklearn", "absl.flags", "grain") '
          'if m in sys.modules])')
  ran = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert ran.stdout.strip() == '[]'
