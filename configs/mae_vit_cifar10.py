"""MAE on CIFAR-10 with ViT-S/4, as solo-learn trains it.

vturrisi/solo-learn `scripts/pretrain/cifar/mae.yaml`: 1000 epochs of batches of
256, AdamW. Not yet reproduced.

All parameters decay, as theirs. Their decoder's norms have an epsilon of 1e-5,
these the authors' 1e-6.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `quick`."""
  config = config_lib.base()
  config.epochs = 1000.0
  config.data.name = "cifar10"
  config.augment = dict(
    name="mae",
    area=(0.08, 1.0),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.247, 0.2435, 0.2616),
  )
  config.encoder = dict(name="vit", variant="S/4", heads=12, pos="sincos2d")
  config.method = dict(
    name="mae",
    mask_ratio=0.75,
    norm_pix=True,
    decoder_dim=512,
    decoder_depth=8,
    decoder_heads=16,
  )
  config.optimizer = dict(
    name="adamw",
    learning_rate=2e-4,
    lr_scaling="linear",
    b2=0.95,
    weight_decay=0.05,
  )
  config.schedule = dict(name="cosine", warmup_epochs=10.0, warmup_init=3e-5)
  quick = dict(decoder_dim=32, decoder_depth=1, decoder_heads=2)
  return config_lib.finish(config, arg, quick=quick)
