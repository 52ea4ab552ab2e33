"""SimSiam on CIFAR-10 with ResNet-18, as solo-learn trains it.

vturrisi/solo-learn `scripts/pretrain/cifar/simsiam.yaml`: 1000 epochs of
batches of 256, SGD. Theirs reaches 90.51 by an online linear probe. Not yet
reproduced.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `quick`."""
  config = config_lib.base()
  config.epochs = 1000.0
  config.data.name = "cifar10"
  config.augment = dict(
    name="moco_v2",
    area=(0.08, 1.0),
    interpolation="bicubic",
    blur_kernel=13,  # theirs is not cut off
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.247, 0.2435, 0.2616),
  )
  config.encoder = dict(name="resnet", variant="18", stem="cifar_pad2")
  config.method = dict(
    name="simsiam", hidden_dim=2048, out_dim=2048, predictor_dim=512
  )
  config.optimizer = dict(
    name="sgd",
    learning_rate=0.5,
    lr_scaling="linear",
    momentum=0.9,
    weight_decay=1e-5,
    groups=(dict(match="^predictor", lr=0.5),),  # constant
  )
  config.schedule = dict(name="cosine", warmup_epochs=10.0, warmup_init=3e-5)
  quick = dict(hidden_dim=64, out_dim=64, predictor_dim=16)
  return config_lib.finish(config, arg, quick=quick)
