"""DCL on CIFAR-10, as its reference trains it.

raminnakhli/Decoupled-Contrastive-Learning `experiment/simclr/main.py`: 100
epochs of Adam with the rate 1e-3, temperature 0.1. Its README has 85.36 by a
linear probe with batches of 256, for ResNet-18, which it says and this is; its
code has ResNet-50. Not yet reproduced.

Its first convolution starts as torch's `Conv2d`, this as the other layers.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `dclw`, the positives weighed (82.7 there), and `quick`."""
  config = config_lib.base()
  config.epochs = 100.0
  config.data.name = "cifar10"
  config.augment = dict(
    name="moco_v2",
    area=(0.08, 1.0),
    blur_p=0.0,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),
  )
  config.encoder = dict(name="resnet", variant="18", stem="cifar")
  config.method = dict(name="dcl", temperature=0.1, features=(512, 128))
  config.optimizer = dict(name="adam", learning_rate=1e-3, weight_decay=1e-6)
  config.schedule = dict(name="constant")
  quick = dict(features=(64, 32))
  return config_lib.finish(config, arg, {"dclw": _dclw}, quick)


def _dclw(config):
  config.method.sigma = 0.5
