"""CPC v2 on ImageNet with ResNet-50: 6 x 6 patches of 80 x 80 pixels.

Hénaff et al. 2019, section 4 and appendix A, as remembered: no code was
published, and their own network is wider and deeper. Theirs reaches 63.8 with a
ResNet-50 in a linear probe. Not yet reproduced.

They augment every patch by itself, and average the weights over updates, which
this does not. Images are fitted to 300 x 300 on the host, where they crop from
the whole picture.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `quick`."""
  config = config_lib.base()
  config.batch_size = 512
  config.epochs = 200.0
  config.data.name = "imagenet2012"
  config.data.size = (300, 300)
  config.data.channels = 3
  config.augment = dict(
    name="simclr", views=1, size=(260, 260), eval_crop=260 / 300, blur_p=0.0
  )
  config.encoder = dict(name="resnet", variant="50", norm="layer")
  config.method = dict(name="cpc", patch=80, stride=36, rows=(3,))
  config.optimizer = dict(
    name="adamw", learning_rate=4e-4, b1=0.8, weight_decay=0.0
  )
  config.schedule = dict(name="constant")
  config.precision = "bfloat16"
  config.eval.test_split = "validation"
  quick = dict(patch=4, stride=2, rows=(1,), context_dim=16, context_depth=2)
  return config_lib.finish(config, arg, quick=quick)
