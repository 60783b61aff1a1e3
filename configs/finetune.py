"""Any folder of images, from weights that learned on others: the recipes of transfer learning, one variant each.

  python experiments/train.py --config configs/finetune.py:head_then_all --workdir runs/photos \\
      --config.data.path=photos --config.model.weights=resnet18:DEFAULT
  python experiments/linear_probe.py --config configs/finetune.py --workdir runs/probe \\
      --config.data.path=photos --config.model.weights=resnet18:DEFAULT

| variant | what learns | for images that are |
|---|---|---|
| linear_probe.py | a logistic regression on features made once; minutes on a CPU | few, and like those of the weights |
| `:head` | the new classifier; the rest is frozen, BatchNorms in test mode | few and alike, with augmentation |
| `:head_then_all` | the classifier, then everything at a tenth of the learning rate | many, and alike |
| `:upper` | the last stage at a tenth, and the classifier; what is below stays frozen | few, and unlike |
| `:all`, or none | everything from the start at a tenth, the classifier at the whole rate | many, and unlike |

`data.path` holds `train/<class>/*` and `val/<class>/*`, or `<class>/*` alone. `model.weights` is a published name, a
`.pth` or `.safetensors` file, or the folder of a run or of import_weights.py; model, canvas, resize, mean and std are
those of the weights unless they are given here, and their classifier is left out. The first lines of a run say what was
loaded, and what is frozen. `:upper` means ResNet's last stage; for other models give --config.optim.rules. Any variant
may be followed by `:smoke`. Minutes on a GPU, and on 2 CPU cores for images of 64 x 64 pixels.
"""

from ml_collections import config_dict

from configs import common

# All but the classifier, whatever torchvision calls it, and GoogLeNet's and Inception v3's auxiliary ones.
BODY = r'^(?!(.*/)?fc/|(aux\d|AuxLogits|classifier(_\d+)?|heads_head|heads|head|output)/)'
RECIPES = {
    '': ((BODY, dict(lr=0.1)),),
    'all': ((BODY, dict(lr=0.1)),),
    'head': ((BODY, dict(freeze=True)),),
    'head_then_all': ((BODY, dict(until='6 epochs')),),
    'upper': ((BODY, dict(freeze=True)), ('^layer4_', dict(freeze=False, lr=0.1))),
}


def get_config(variant: str = ''):
  recipe, smoke = common.split(variant, RECIPES)
  placeholder = config_dict.placeholder
  # The tenth comes when the body thaws; so both stand in epochs of the same 20.
  schedule = dict(schedule='step', boundaries=(0.3,)) if recipe == 'head_then_all' else dict(schedule='cosine')
  return common.config(
      smoke,
      task=dict(name='classification', label_smoothing=0.1),
      model=dict(name=placeholder(str), weights_head='fresh'),
      data=dict(name='image_folder', batch_size=32, canvas=placeholder(tuple),
                augment=(('random_resized_crop', dict(scale=(0.5, 1.0))), ('flip', {}))),
      optim=dict(name='sgd', momentum=0.9, nesterov=True, lr=0.02, weight_decay=1e-4, rules=RECIPES[recipe],
                 **schedule),
      train=dict(duration='20 epochs', eval_every='2 epochs', best='top1'),
  )
