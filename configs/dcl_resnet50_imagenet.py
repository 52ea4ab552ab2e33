"""DCL on ImageNet with ResNet-50, small batches.

Yeh et al. 2021, arXiv:2110.06848, train SimCLR's network and views with batches
of 256 for 200 epochs; they published no code. Encoder and views are SimCLR's,
the head that of their reference for CIFAR-10. The optimiser is the one that
lightly-ai/lightly `benchmarks/imagenet/resnet50/dcl.py` has for it: LARS, the
rate 0.075 times the square root of the batch, decay 1e-6, ten epochs of
warm-up; its loss is the mean of both directions. Not yet reproduced.

Images are fitted to 256 x 256 on the host, where the authors crop from the
whole picture.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `dclw`, the positives weighed, and `quick`."""
  config = config_lib.base()
  config.batch_size = 256
  config.epochs = 200.0
  config.data.name = "imagenet2012"
  config.data.size = (256, 256)
  config.data.channels = 3
  config.augment = dict(name="simclr", size=(224, 224), eval_crop=0.875)
  config.encoder = dict(name="resnet", variant="50", zero_init_residual=True)
  config.method = dict(
    name="dcl", temperature=0.1, scale=0.5, features=(2048, 128)
  )
  config.optimizer = dict(
    name="lars",
    learning_rate=0.075,
    lr_scaling="sqrt",
    momentum=0.9,
    weight_decay=1e-6,
    decay_exclude=("1d",),
  )
  config.schedule = dict(name="cosine", warmup_epochs=10.0)
  config.precision = "bfloat16"
  config.eval.test_split = "validation"
  quick = dict(features=(64, 32))
  return config_lib.finish(config, arg, {"dclw": _dclw}, quick)


def _dclw(config):
  config.method.sigma = 0.5
