"""BYOL on ImageNet with ResNet-50, as the authors' configuration trains it.

google-deepmind/deepmind-research `byol/configs/byol.py`: batch 4096, 1000
epochs, LARS with the rate 0.2 for each 256 images, a target network that
begins at 0.996. Theirs reach 74.0 to 74.5 by a linear probe. Not yet reproduced
here: 512 TPU v3 cores for eight hours.

Images are fitted to 256 x 256 on the host, where the authors crop from the
whole picture; brightness, contrast and saturation are torchvision's, where
theirs add, take each channel by itself and go by way of HSV; blur sees the
image reflected at its border, where theirs sees black; strided convolutions are
padded as torchvision's.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `epochs300`, `epochs100`, as the authors set them, `quick`."""
  config = config_lib.base()
  config.batch_size = 4096
  config.epochs = 1000.0
  config.data.name = "imagenet2012"
  config.data.size = (256, 256)
  config.data.channels = 3
  config.augment = dict(name="byol", size=(224, 224), eval_crop=0.875)
  config.encoder = dict(name="resnet", variant="50", zero_init_residual=True)
  config.method = dict(name="byol", hidden_dim=4096, out_dim=256, ema=0.996)
  config.optimizer = dict(
    name="lars",
    learning_rate=0.2,
    lr_scaling="linear",
    momentum=0.9,
    weight_decay=1.5e-6,
    decay_exclude=("1d",),
    rate_first=False,
  )
  config.schedule = dict(name="cosine", warmup_epochs=10.0)
  config.eval.test_split = "validation"
  variants = {
    "epochs300": lambda c: _shorter(c, 300.0, 0.3),
    "epochs100": lambda c: _shorter(c, 100.0, 0.45),
  }
  quick = dict(hidden_dim=64, out_dim=32)
  return config_lib.finish(config, arg, variants, quick=quick)


def _shorter(config, epochs, rate):
  config.epochs = epochs
  config.optimizer.update(learning_rate=rate, weight_decay=1e-6)
  config.method.ema = 0.99
