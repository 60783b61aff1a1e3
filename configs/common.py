"""What every config has, and how `:smoke` shrinks one."""

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
    sections['data'].update(train_size=32, val_size=10, batch_size=8)
    sections['train'].update(duration='4 steps', eval_every='4 steps', log_every=2)
    sections['optim'].update(warmup='1 steps')
    sections['model'].update(body_weights=placeholder(str))  # which would be downloaded
  result = config_dict.ConfigDict(sections)
  result.lock()
  return result
