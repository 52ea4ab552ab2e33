"""SupCon on CIFAR-10 with ResNet-18, as solo-learn trains it.

vturrisi/solo-learn `scripts/pretrain/cifar/supcon.yaml`: 1000 epochs of batches
of 256, SGD. Theirs reaches 93.82 by an online linear probe. Not yet reproduced.

Their loss sums the positives inside the logarithm; this is the authors' of
SupCon, outside, and without its factor, temperature / 0.07. Theirs forwards the
views one by one, this both together.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `quick`."""
  config = config_lib.base()
  config.epochs = 1000.0
  config.data.name = "cifar10"
  config.data.labels = True
  config.augment = dict(
    name="simclr",
    blur_kernel=13,  # theirs is not cut off
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.247, 0.2435, 0.2616),
  )
  config.encoder = dict(name="resnet", variant="18", stem="cifar_pad2")
  config.method = dict(
    name="supcon",
    temperature=0.2,
    base_temperature=0.2,
    hidden_dim=2048,
    out_dim=256,
  )
  config.optimizer = dict(
    name="sgd",
    learning_rate=0.4,
    lr_scaling="linear",
    momentum=0.9,
    weight_decay=1e-5,
  )
  config.schedule = dict(name="cosine", warmup_epochs=10.0, warmup_init=3e-5)
  quick = dict(hidden_dim=64, out_dim=32)
  return config_lib.finish(config, arg, quick=quick)
