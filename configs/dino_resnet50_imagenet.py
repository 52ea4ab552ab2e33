"""DINO on ImageNet with ResNet-50, as the authors' README trains it.

facebookresearch/dino, `main_dino.py --arch resnet50`: eight GPUs of 64 images,
100 epochs, SGD with the rate 0.03 for each 256 images. Not yet reproduced here.

Images are fitted to 256 x 256 on the host, where the authors crop from the
whole picture.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `quick`."""
  config = config_lib.base()
  config.batch_size = 512
  config.epochs = 100.0
  config.data.name = "imagenet2012"
  config.data.size = (256, 256)
  config.data.channels = 3
  config.augment = dict(
    name="multi_crop",
    size=(224, 224),
    eval_crop=0.875,
    area=(0.14, 1.0),
    local_views=8,
    local_size=(96, 96),
    blur_kernel=13,  # theirs is not cut off
    local_area=(0.05, 0.14),
  )
  config.encoder = dict(name="resnet", variant="50")
  config.method = dict(name="dino", out_dim=65536, ema=0.996)
  config.optimizer = dict(
    name="sgd",
    learning_rate=0.03,
    lr_scaling="linear",
    momentum=0.9,
    weight_decay=1e-4,
    decay_exclude=("1d",),
    clip_by_param=3.0,
    freeze=(dict(match="prototypes", epochs=1.0),),
  )
  config.schedule = dict(name="cosine", warmup_epochs=10.0, end=1e-6)
  config.eval.test_split = "validation"
  quick = dict(out_dim=64, hidden_dim=64, bottleneck_dim=32)
  return config_lib.finish(config, arg, quick=quick)
