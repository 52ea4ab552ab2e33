"""SupCon on ImageNet with ResNet-50.

google-research/google-research `supcon/scripts/supcon_imagenet_resnet50.sh`,
its first stage: batch 6144, 350 epochs, LARS with the rate 0.4 for each 256
images, 12 epochs of warm-up, temperature 0.1, by which the loss is multiplied,
decay 1e-3. Its views are AutoAugment's, which is not here: these are SimCLR's.
Its head is a layer of 128 on normalised features, with decay on its bias; this
is the paper's, of two layers, without. Not yet reproduced.

Images are fitted to 256 x 256 on the host, where the authors crop from the
whole picture.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `quick`."""
  config = config_lib.base()
  config.batch_size = 6144
  config.epochs = 350.0
  config.data.name = "imagenet2012"
  config.data.size = (256, 256)
  config.data.channels = 3
  config.data.labels = True
  config.augment = dict(name="simclr", size=(224, 224), eval_crop=0.875)
  config.encoder = dict(name="resnet", variant="50", zero_init_residual=True)
  config.method = dict(
    name="supcon", temperature=0.1, base_temperature=1.0, out_dim=128
  )
  config.optimizer = dict(
    name="lars",
    learning_rate=0.4,
    lr_scaling="linear",
    momentum=0.9,
    weight_decay=1e-3,
    decay_exclude=("1d",),
  )
  config.schedule = dict(name="cosine", warmup_epochs=12.0)
  config.precision = "bfloat16"
  config.eval.test_split = "validation"
  quick = dict(hidden_dim=64, out_dim=32)
  return config_lib.finish(config, arg, quick=quick)
