"""SwAV on CIFAR-10 with ResNet-18, as solo-learn trains it.

vturrisi/solo-learn `scripts/pretrain/cifar/swav.yaml`: 1000 epochs of batches
of 256, two crops, LARS. Theirs reaches 89.17 by an online linear probe. Not yet
reproduced.

Theirs forwards the views one by one, and fills its queue from the start; here
both views are one batch to batch norm, as SwAV's authors have it, and the queue
is used from 15 steps after epoch 50 on. Theirs keeps prototypes at length 1 by
weight norm, this scales them after each step, as the authors do.
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
  config.method = dict(
    name="swav",
    num_prototypes=3000,
    queue_size=3840,
    queue_start_epoch=50,
  )
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
    freeze=(dict(match="prototypes", steps=2 * 195),),
  )
  config.schedule = dict(name="cosine", warmup_epochs=10.0, warmup_init=3e-5)
  quick = dict(num_prototypes=24, hidden_dim=64, out_dim=32, queue_size=640)
  return config_lib.finish(config, arg, quick=quick)
