"""AIM on Fashion-MNIST with a small ViT: 49 patches in raster order.

  ssljax train --config=configs/aim_vit_fashion_mnist.py --workdir=W
  ssljax evaluate --workdir=W

Not yet reproduced with this encoder. The league's smaller one has kNN 0.7596,
linear 0.7786 in 1,170 steps of 256; before training 0.6402 and 0.7577. After
390 steps, on held-out images, it has 0.7369 and 0.7791, and with the last block
alone for features (`method.top_k=1`) 0.7348 and 0.7776.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `quick`."""
  config = config_lib.base()
  config.epochs = 5.0
  config.data.name = "fashion_mnist"
  config.augment = dict(
    name="mae", area=(0.4, 1.0), mean=(0.286,), std=(0.353,)
  )
  config.encoder = dict(
    name="vit",
    variant="Ti/4",
    dim=128,
    depth=6,
    heads=4,
    pos="sincos2d",
    pool="mean",
    bias=False,
    embed_norm=True,
  )
  config.method = dict(name="aim", head_dim=128, head_depth=2, top_k=3)
  config.optimizer = dict(
    name="adamw",
    learning_rate=1e-3,
    b2=0.95,
    weight_decay=0.05,
    decay_exclude=("1d",),
  )
  config.schedule = dict(name="cosine", warmup_epochs=0.5)
  quick = dict(head_dim=32, head_depth=1, top_k=2)
  return config_lib.finish(config, arg, quick=quick)
