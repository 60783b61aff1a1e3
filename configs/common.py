"""What every config has, how `:smoke` shrinks one, and variants that are rows of a table."""

from collections.abc import Iterable

from ml_collections import config_dict

# What the sources of files and of tfds take, so that any config can be turned to other data on the command line:
# --config.data.name=voc --config.data.path=data/bccd.
SOURCE_OPTIONS = {
    str: ('path', 'on_error', 'annotations', 'images', 'mask_images', 'lists', 'difficult', 'mask_values', 'names',
          'image_tail', 'mask_tail', 'class_name', 'dataset', 'data_dir', 'feature'),
    float: ('val_share',),
    int: ('void', 'depth'),
    bool: ('disjoint', 'masks'),
    tuple: ('classes',),
}


def config(variant: str, *, task: dict, model: dict, data: dict, optim: dict, train: dict) -> config_dict.ConfigDict:
  """Five sections, locked; a value of None (a placeholder for the command line) means the factory's own default.

  Args:
    variant: what follows the colon of `--config file.py:variant`: nothing, or 'smoke'.
    task: name and options of the task, and so on for the others.
  """
  if variant not in ('', 'smoke'):
    raise ValueError(f"unknown variant {variant!r} of this config; there is ':smoke', or none")
  placeholder = config_dict.placeholder
  sources = {name: placeholder(kind) for kind, names in SOURCE_OPTIONS.items() for name in names}
  sections = {
      'task': task,
      'model': {'dtype': placeholder(str), 'weights': placeholder(str), 'weights_head': placeholder(str),
                'body_weights': placeholder(str), 'aux': placeholder(bool), **model},  # aux: of GoogLeNet, Inception v3
      'data': {'train_size': placeholder(int), 'val_size': placeholder(int), 'workers': placeholder(int),
               'eval_canvas': placeholder(tuple), 'resize': placeholder(str), 'mean': placeholder(tuple),
               'std': placeholder(tuple), 'augment': (), **sources, **data},
      'optim': {'clip': placeholder(float), 'warmup': placeholder(str), 'weight_decay': placeholder(float),
                'rules': (), **optim},
      'train': {'seed': 0, 'accumulate': 1, 'ema_decay': placeholder(float), 'log_every': 20,
                'checkpoint_every': placeholder(str), 'best': placeholder(str), 'best_mode': placeholder(str),
                'patience': placeholder(int), 'min_delta': placeholder(float), **train},
  }
  if variant == 'smoke':
    sections['data'].update(_few_images(sections['data']))
    sections['train'].update(duration='4 steps', eval_every='4 steps', log_every=2)
    sections['optim'].update(warmup='1 steps')
    sections['model'].update(weights=placeholder(str), body_weights=placeholder(str))  # which would be downloaded
  result = config_dict.ConfigDict(sections)
  result.lock()
  return result


def split(variant: str, rows: Iterable[str], default: str = '') -> tuple[str, str]:
  """The row and what is left for `config`, out of nothing, 'smoke', 'row' or 'row:smoke'.

  Args:
    variant: what follows the colon of `--config file.py:variant`.
    rows: the names that there are.
    default: the row where none is named.
  """
  row, _, smoke = ('', '', variant) if variant == 'smoke' else variant.partition(':')
  if (row or default) not in rows:
    raise ValueError(f'unknown variant {row!r} of this config; there are {", ".join(filter(None, rows))}, or none, and '
                     "':smoke' after each")
  return row or default, smoke


def _few_images(data: dict) -> dict:
  """The options of `:smoke` for the section data: 4 batches, of small images where the network takes any size."""
  canvas = data.get('canvas')
  first = canvas[0] if isinstance(canvas, tuple) and isinstance(canvas[0], tuple) else canvas
  if not isinstance(first, tuple) or first[0] * first[1] <= 320 * 240:
    return dict(train_size=32, val_size=10, batch_size=8)
  few = dict(train_size=8, val_size=2, batch_size=2)
  # A network that takes warped images was made for this canvas alone.
  return few if data.get('resize') == 'warp' else dict(few, canvas=tuple(min(side, 256) for side in first))
