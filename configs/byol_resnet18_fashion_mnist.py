"""BYOL on Fashion-MNIST: ResNet-18 with the CIFAR stem and width 16.

  ssljax train --config=configs/byol_resnet18_fashion_mnist.py --workdir=W
  ssljax evaluate --workdir=W

The rate was tried on held-out images in the league's setting: kNN and a linear
probe have 0.7963 and 0.7951, and 0.7774 and 0.7954 with 0.6
(`benchmarks/recipes.csv`).

On one of two CPU cores, 92 minutes beside other work: kNN 0.8153,
linear 0.8352.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `quick`."""
  config = config_lib.base()
  config.epochs = 5.0
  config.data.name = "fashion_mnist"
  config.augment = dict(
    name="simclr",
    area=(0.3, 1.0),
    interpolation="bilinear",
    strength=1.0,
    mean=(0.286,),
    std=(0.353,),
  )
  config.encoder = dict(name="resnet", variant="18", width=16, stem="cifar")
  config.method = dict(name="byol", hidden_dim=512, out_dim=128, ema=0.99)
  config.optimizer = dict(
    name="sgd",
    learning_rate=0.2,
    lr_scaling="linear",
    momentum=0.9,
    weight_decay=5e-4,
  )
  config.schedule = dict(name="cosine", warmup_epochs=0.2)
  quick = dict(hidden_dim=64, out_dim=32)
  return config_lib.finish(config, arg, quick=quick)
