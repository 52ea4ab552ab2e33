"""VICReg on CIFAR-10 with ResNet-18, as solo-learn trains it.

vturrisi/solo-learn `scripts/pretrain/cifar/vicreg.yaml`: 1000 epochs of batches
of 256, LARS. Theirs reaches 92.07 by an online linear probe. Not yet
reproduced.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `quick`."""
  config = config_lib.base()
  config.epochs = 1000.0
  config.data.name = "cifar10"
  config.augment = dict(
    name="byol",
    area=(0.2, 1.0),
    blur_p=0.0,
    solarize_p=0.1,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.247, 0.2435, 0.2616),
  )
  config.encoder = dict(name="resnet", variant="18", stem="cifar_pad2")
  # They do not halve the variance term, as VICReg's authors do: 50 is their 25.
  config.method = dict(
    name="vicreg",
    features=(2048, 2048, 2048),
    invariance=25.0,
    variance=50.0,
    covariance=1.0,
  )
  config.optimizer = dict(
    name="larc",
    learning_rate=0.3,
    lr_scaling="linear",
    momentum=0.9,
    weight_decay=1e-4,
    decay_exclude=("1d",),
    trust_coefficient=0.02,
    clip=True,
    exclude_from_adaptation=True,
  )
  config.schedule = dict(name="cosine", warmup_epochs=10.0, warmup_init=3e-5)
  quick = dict(features=(64, 64))
  return config_lib.finish(config, arg, quick=quick)
