"""MoCo v3 on Fashion-MNIST with a small ViT: 49 patches of 4 x 4, 4 layers.

  ssljax train --config=configs/mocov3_vit_fashion_mnist.py --workdir=W
  ssljax evaluate --workdir=W

Not yet reproduced with this encoder. The league's smaller one has kNN 0.8024,
linear 0.7964 in 1,170 steps of 256; before training 0.6949 and 0.7675.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `quick`."""
  config = config_lib.base()
  config.epochs = 5.0
  config.data.name = "fashion_mnist"
  config.augment = dict(
    name="moco_v2",
    blur_kernel=3,
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
    weight_init="mocov3",
  )
  config.method = dict(
    name="mocov3",
    temperature=0.2,
    out_dim=128,
    hidden_dim=512,
    num_layers=3,
    predictor_norm=True,
    ema=0.99,
  )
  config.optimizer = dict(
    name="adamw",
    learning_rate=1e-3,
    weight_decay=0.1,
    freeze=(dict(match="encoder/patch_embed/", steps=None),),
  )
  config.schedule = dict(name="cosine", warmup_epochs=0.5)
  quick = dict(hidden_dim=64, out_dim=32)
  return config_lib.finish(config, arg, quick=quick)
