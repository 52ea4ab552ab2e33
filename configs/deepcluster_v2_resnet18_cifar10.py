"""DeepCluster v2 on CIFAR-10 with ResNet-18, as solo-learn trains it.

vturrisi/solo-learn `scripts/pretrain/cifar/deepclusterv2.yaml`: 1000 epochs of
batches of 256, two crops, LARS. Theirs reaches 88.85 by an online linear probe.
Not yet reproduced.

Theirs forwards the views one by one, and learns nothing in the first epoch;
here both views are one batch to batch norm, and the first epoch's clusters are
of the network before training, as DeepCluster v2's authors have it.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `quick`."""
  config = config_lib.base()
  config.epochs = 1000.0
  config.data.name = "cifar10"
  config.augment = dict(
    name="simclr",
    blur_kernel=13,  # theirs is not cut off
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.247, 0.2435, 0.2616),
  )
  config.encoder = dict(name="resnet", variant="18", stem="cifar_pad2")
  config.method = dict(name="deepcluster_v2", num_prototypes=3000, num_heads=3)
  config.optimizer = dict(
    name="larc",
    learning_rate=0.6,
    lr_scaling="linear",
    momentum=0.9,
    weight_decay=1e-6,
    decay_exclude=("1d",),
    trust_coefficient=0.02,
    clip=True,
    exclude_from_adaptation=True,
  )
  config.schedule = dict(name="cosine", warmup_epochs=11.0, end=0.0006)
  quick = dict(num_prototypes=24, hidden_dim=64, out_dim=32)
  return config_lib.finish(config, arg, quick=quick)
