"""W-MSE on ImageNet-100 with ResNet-18, as the authors' README trains it.

htdt/self-supervised: batch 512, 240 epochs of Adam with the rate 2e-3, a fifth
of it in the last 50 and again in the last 25; embeddings of 128 whitened 256 at
a time. ImageNet-100 is HobbitLong/CMC's list of classes: a folder `imagenet100`
with a subfolder for each split and class. Not yet reproduced.

Images are fitted to 256 x 256 on the host, where the authors crop from the
whole picture; they jitter before they crop, and we after.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `views4`, the authors' W-MSE 4, and `quick`."""
  config = config_lib.base()
  config.batch_size = 512
  config.epochs = 240.0
  config.data.name = "folder:imagenet100"
  config.data.size = (256, 256)
  config.data.channels = 3
  config.augment = dict(
    name="simclr",
    size=(224, 224),
    eval_crop=0.875,
    blur_p=0.5,  # `datasets/imagenet.py` alone of theirs has it
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
  )
  config.encoder = dict(name="resnet", variant="18")
  config.method = dict(
    name="wmse", hidden_dim=1024, out_dim=128, whitening_size=256
  )
  config.optimizer = dict(name="adam", learning_rate=2e-3, weight_decay=1e-6)
  config.schedule = dict(
    name="step",
    milestones=(190 / 240, 215 / 240),
    factor=0.2,
    warmup_steps=500,
  )
  quick = dict(hidden_dim=64, out_dim=8, whitening_size=32)
  return config_lib.finish(config, arg, {"views4": _views4}, quick)


def _views4(config):
  """Four views, half the images."""
  config.batch_size = 256
  config.augment.views = 4
