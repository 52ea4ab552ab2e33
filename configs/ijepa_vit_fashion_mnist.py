"""I-JEPA on Fashion-MNIST with a small ViT of 49 patches.

  ssljax train --config=configs/ijepa_vit_fashion_mnist.py --workdir=W
  ssljax evaluate --workdir=W

Not yet reproduced.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `quick`."""
  config = config_lib.base()
  config.epochs = 5.0
  config.data.name = "fashion_mnist"
  config.augment = dict(
    name="mae",
    area=(0.3, 1.0),
    interpolation="bilinear",
    flip_p=0.0,
    mean=(0.286,),
    std=(0.353,),
  )
  # The authors' deviation of 0.02 is for 588 pixels a patch; with 16 the
  # positions are much larger. Not decided which is better: after 390 updates
  # RankMe is 2.5 with it and 4.5 so, kNN on held-out images 0.6985 and 0.6897
  # (`python -m benchmarks.recipes`).
  config.encoder = dict(
    name="vit",
    variant="Ti/4",
    dim=128,
    depth=6,
    heads=4,
    pos="sincos2d",
    pool="mean",
    weight_init="mae",
  )
  config.method = dict(
    name="ijepa",
    min_keep=4,
    predictor_dim=32,
    predictor_depth=3,
    ema=0.99,
  )
  config.optimizer = dict(
    name="adamw",
    learning_rate=1e-3,
    weight_decay=0.05,
    decay_exclude=("1d",),
  )
  config.schedule = dict(name="cosine", warmup_epochs=0.5)
  quick = dict(min_keep=0, predictor_dim=16, predictor_depth=1)
  return config_lib.finish(config, arg, quick=quick)
