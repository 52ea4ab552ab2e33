"""BYOL on CIFAR-10 with ResNet-18, as solo-learn trains it.

vturrisi/solo-learn `scripts/pretrain/cifar/byol.yaml`: 1000 epochs of batches
of 256, LARS. Theirs reaches 92.58 by an online linear probe. Not yet
reproduced.

Their target starts as a copy of the online network, their heads' last layers
have a bias, and all layers of heads start smaller by the root of 3, as torch's.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `quick`."""
  config = config_lib.base()
  config.epochs = 1000.0
  config.data.name = "cifar10"
  config.augment = dict(
    name="byol",
    blur_p=0.0,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.247, 0.2435, 0.2616),
  )
  config.encoder = dict(name="resnet", variant="18", stem="cifar_pad2")
  config.method = dict(name="byol", hidden_dim=4096, out_dim=256, ema=0.99)
  config.optimizer = dict(
    name="larc",
    learning_rate=1.0,
    lr_scaling="linear",
    momentum=0.9,
    weight_decay=1e-5,
    decay_exclude=("1d",),
    trust_coefficient=0.02,
    clip=True,
    exclude_from_adaptation=True,
  )
  config.schedule = dict(name="cosine", warmup_epochs=10.0, warmup_init=3e-5)
  quick = dict(hidden_dim=64, out_dim=32)
  return config_lib.finish(config, arg, quick=quick)
