"""SimCLR on Fashion-MNIST with a small ViT: 49 patches of 4 x 4, 4 layers.

  ssljax train --config=configs/simclr_vit_fashion_mnist.py --workdir=W
  ssljax evaluate --workdir=W

Not yet reproduced.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `quick`."""
  config = config_lib.base()
  config.epochs = 10.0
  config.data.name = "fashion_mnist"
  config.augment = dict(
    name="simclr",
    area=(0.2, 1.0),
    interpolation="bilinear",
    strength=1.0,
    mean=(0.286,),
    std=(0.353,),
  )
  config.encoder = dict(
    name="vit",
    variant="Ti/4",
    dim=128,
    depth=4,
    heads=4,
    pos="sincos2d",
    pool="mean",
  )
  config.method = dict(name="simclr", temperature=0.2)
  config.optimizer = dict(
    name="adamw",
    learning_rate=1e-3,
    weight_decay=0.05,
    decay_exclude=("1d",),
  )
  config.schedule = dict(name="cosine", warmup_epochs=1.0)
  return config_lib.finish(config, arg)
