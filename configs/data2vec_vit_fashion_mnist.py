"""data2vec on Fashion-MNIST with a small ViT: 30 of 49 patches hidden.

  ssljax train --config=configs/data2vec_vit_fashion_mnist.py --workdir=W
  ssljax evaluate --workdir=W

Not yet reproduced with this encoder. The league's smaller one has kNN 0.7765,
linear 0.7772 in 1,170 steps of 256; before training 0.6718 and 0.7665. That is
short: on held-out images it has 0.7561 and 0.7810 after 390 steps, 0.7941 and
0.8141 after 3,510. The authors' relative positions, with half of the blocks
(`method.top_k=2`) and a rate of 3e-3, are no better: 0.6416 and 0.7068 after
390 (`benchmarks/recipes.csv`).
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `quick`."""
  config = config_lib.base()
  config.epochs = 5.0
  config.data.name = "fashion_mnist"
  config.augment = dict(
    name="mae", area=(0.3, 1.0), mean=(0.286,), std=(0.353,)
  )
  config.encoder = dict(
    name="vit",
    variant="Ti/4",
    dim=128,
    depth=6,
    heads=4,
    pos="sincos2d",
    pool="mean",
    mask_token=True,
  )
  # A run this short needs a quicker teacher than the paper's.
  config.method = dict(
    name="data2vec", masked=30, min_block=4, top_k=3, ema=0.99
  )
  config.optimizer = dict(
    name="adamw",
    learning_rate=1e-3,
    weight_decay=0.05,
    decay_exclude=("1d",),
  )
  config.schedule = dict(name="cosine", warmup_epochs=0.5)
  quick = dict(masked=9, min_block=2, top_k=2)
  return config_lib.finish(config, arg, quick=quick)
