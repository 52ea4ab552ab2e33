"""W-MSE on CIFAR-10 with ResNet-18, as solo-learn trains it.

vturrisi/solo-learn `scripts/pretrain/cifar/wmse.yaml`: 1000 epochs of batches
of 256, Adam. Not yet reproduced.

Their loss sends no gradient into the second view, which W-MSE's authors' does,
and this; their projector takes the views one by one, the authors' and this both
together. `authors` is htdt/self-supervised's own: batches of 512, the rate
3e-3, then a fifth in the last 50 and again in the last 25 epochs. They jitter
before they crop, and we after; their first convolution starts as torch's does,
ours as the others.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `authors`, `quick`."""
  config = config_lib.base()
  config.epochs = 1000.0
  config.data.name = "cifar10"
  config.augment = dict(
    name="simclr",
    area=(0.2, 1.0),
    blur_p=0.0,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.247, 0.2435, 0.2616),
  )
  config.encoder = dict(name="resnet", variant="18", stem="cifar_pad2")
  config.method = dict(
    name="wmse", hidden_dim=1024, out_dim=64, whitening_size=128
  )
  config.optimizer = dict(
    name="adam", learning_rate=2e-3, lr_scaling="linear", weight_decay=1e-6
  )
  config.schedule = dict(name="cosine", warmup_epochs=10.0, warmup_init=0.0)
  quick = dict(hidden_dim=64, out_dim=8, whitening_size=32)
  return config_lib.finish(config, arg, {"authors": _authors}, quick)


def _authors(config):
  """Their README's W-MSE 2, 1000 epochs."""
  config.batch_size = 512
  config.encoder.stem = "cifar"
  config.augment.update(
    jitter=(0.4, 0.4, 0.4, 0.1), gray_p=0.1, std=(0.2023, 0.1994, 0.2010)
  )
  config.optimizer = dict(name="adam", learning_rate=3e-3, weight_decay=1e-6)
  config.schedule = dict(
    name="step", milestones=(0.95, 0.975), factor=0.2, warmup_steps=500
  )
