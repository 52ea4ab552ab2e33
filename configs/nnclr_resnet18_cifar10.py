"""NNCLR on CIFAR-10 with ResNet-18, as solo-learn trains it.

vturrisi/solo-learn `scripts/pretrain/cifar/nnclr.yaml`: 1000 epochs of batches
of 256, LARS. Theirs reaches 91.88 by an online linear probe. Not yet
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
    blur_p=0.0,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.247, 0.2435, 0.2616),
  )
  config.encoder = dict(name="resnet", variant="18", stem="cifar_pad2")
  config.method = dict(
    name="nnclr",
    temperature=0.2,
    queue_size=65536,
    hidden_dim=2048,
    out_dim=256,
    predictor_dim=4096,
  )
  config.optimizer = dict(
    name="larc",
    learning_rate=0.4,
    lr_scaling="linear",
    momentum=0.9,
    weight_decay=1e-5,
    decay_exclude=("1d",),
    trust_coefficient=0.02,
    clip=True,
    exclude_from_adaptation=True,
  )
  config.schedule = dict(name="cosine", warmup_epochs=10.0, warmup_init=3e-5)
  quick = dict(queue_size=512, hidden_dim=64, out_dim=32, predictor_dim=64)
  return config_lib.finish(config, arg, quick=quick)
