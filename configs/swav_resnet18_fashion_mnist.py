"""SwAV on Fashion-MNIST: ResNet-18 with the CIFAR stem and width 16.

  ssljax train --config=configs/swav_resnet18_fashion_mnist.py --workdir=W
  ssljax evaluate --workdir=W

Two crops of one size; `:multi_crop` has six more, of all sizes from 0.3 of the
image on, four times the work. Held out, trained on 50,000 of the images on an
NVIDIA H200, it has kNN 0.8717 and linear 0.8921, the best of all recipes tried
with this encoder and 1,170 steps of 256 (`benchmarks/recipes.csv`); without
solarisation 0.8657 and 0.8876. By `ssljax evaluate --train_split=train
--test_split=test` that encoder has kNN 0.8703 and linear 0.8909. Trained on all
images on two CPU cores, beside other work, 5.2 s a step without it: kNN 0.8711
and linear 0.8892 with seed 0, 0.8713 and 0.8848 with seed 1. The loss of seed 0
rose from 4.59 to 5.08 around step 285, at nearly the highest rate, and ended at
3.12; that of seed 1 did not rise, and ended at 2.94. All else is one seed.

The rate was chosen on held-out images in the league's setting: a linear probe
has 0.8571, against 0.8560 with 1.2, 0.8406 with 0.3 and 0.8106 with 0.1. On one
of two CPU cores, 77 minutes beside other work: kNN 0.8584, linear 0.8772. With
`--config.optimizer.learning_rate=0.1`: 0.8524 and 0.8590.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `multi_crop`, `quick`."""
  config = config_lib.base()
  config.epochs = 5.0
  config.data.name = "fashion_mnist"
  config.augment = dict(
    name="simclr",
    area=(0.3, 1.0),
    interpolation="bilinear",
    strength=1.0,
    mean=(0.286,),
    std=(0.353,),
  )
  config.encoder = dict(name="resnet", variant="18", width=16, stem="cifar")
  config.method = dict(
    name="swav", num_prototypes=300, hidden_dim=512, out_dim=128
  )
  config.optimizer = dict(
    name="sgd",
    learning_rate=0.6,
    lr_scaling="linear",
    momentum=0.9,
    weight_decay=5e-4,
    freeze=(dict(match="prototypes", steps=234),),
  )
  config.schedule = dict(name="cosine", warmup_epochs=0.2)
  quick = dict(num_prototypes=24, hidden_dim=64, out_dim=32)
  return config_lib.finish(config, arg, {"multi_crop": _multi_crop}, quick)


def _multi_crop(config):
  """Eight crops, the first two of them solarised at times; none is blurred."""
  config.augment.blur_p = 0.0
  config.augment.solarize_p = 0.2
  config.augment.local_views = 6
  config.augment.local_size = (28, 28)
  config.augment.local_area = (0.3, 1.0)
  config.augment.local_blur_p = 0.0
