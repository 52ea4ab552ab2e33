"""NNCLR on ImageNet with ResNet-50.

Dwibedi et al. 2021, section 4.1: batch 4096, 1000 epochs, LARS with the rate
0.3 for each 256 images and ten epochs of warm-up, temperature 0.1, a queue of
98,304. The authors published no code, and these numbers are from memory of the
paper, as are the decay, SimCLR's, and the views, BYOL's. Theirs reaches 75.6 by
a linear probe. Not yet reproduced.

Images are fitted to 256 x 256 on the host, where the authors crop from the
whole picture.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `quick`."""
  config = config_lib.base()
  config.batch_size = 4096
  config.epochs = 1000.0
  config.data.name = "imagenet2012"
  config.data.size = (256, 256)
  config.data.channels = 3
  config.augment = dict(name="byol", size=(224, 224), eval_crop=0.875)
  config.encoder = dict(name="resnet", variant="50", zero_init_residual=True)
  config.method = dict(
    name="nnclr",
    temperature=0.1,
    queue_size=98304,
    hidden_dim=2048,
    out_dim=256,
    predictor_dim=4096,
  )
  config.optimizer = dict(
    name="lars",
    learning_rate=0.3,
    lr_scaling="linear",
    momentum=0.9,
    weight_decay=1e-6,
    decay_exclude=("1d",),
  )
  config.schedule = dict(name="cosine", warmup_epochs=10.0)
  config.precision = "bfloat16"
  config.eval.test_split = "validation"
  quick = dict(queue_size=512, hidden_dim=64, out_dim=32, predictor_dim=64)
  return config_lib.finish(config, arg, quick=quick)
