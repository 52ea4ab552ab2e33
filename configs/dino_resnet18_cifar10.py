"""DINO on CIFAR-10 with ResNet-18, as solo-learn trains it.

vturrisi/solo-learn `scripts/pretrain/cifar/dino.yaml`: 1000 epochs of batches
of 256, two crops, LARS. Theirs reaches 89.52 by an online linear probe. Not yet
reproduced.

Theirs forwards the views one by one, this both together. Its number is of the
student; `ssljax evaluate` looks at the teacher, as DINO's authors do.
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
  config.method = dict(
    name="dino", out_dim=4096, teacher_temperature=0.07, ema=0.9995
  )
  config.optimizer = dict(
    name="larc",
    learning_rate=0.3,
    lr_scaling="linear",
    momentum=0.9,
    weight_decay=1e-6,
    decay_exclude=("1d",),
    trust_coefficient=0.02,
    clip=True,
    exclude_from_adaptation=True,
    freeze=(dict(match="prototypes", epochs=1.0),),
  )
  config.schedule = dict(name="cosine", warmup_epochs=10.0, warmup_init=3e-5)
  quick = dict(out_dim=64, hidden_dim=64, bottleneck_dim=32)
  return config_lib.finish(config, arg, quick=quick)
