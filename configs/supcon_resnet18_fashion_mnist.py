"""SupCon on Fashion-MNIST: ResNet-18 with the CIFAR stem and width 16.

  ssljax train --config=configs/supcon_resnet18_fashion_mnist.py --workdir=W
  ssljax evaluate --workdir=W

Not yet reproduced with this encoder. The league's smaller one has kNN 0.8867,
linear 0.8849 in 1,170 steps of 256; before training 0.7883 and 0.7753.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `quick`."""
  config = config_lib.base()
  config.epochs = 5.0
  config.data.name = "fashion_mnist"
  config.data.labels = True
  config.augment = dict(
    name="simclr",
    area=(0.3, 1.0),
    interpolation="bilinear",
    strength=1.0,
    mean=(0.286,),
    std=(0.353,),
  )
  config.encoder = dict(name="resnet", variant="18", width=16, stem="cifar")
  config.method = dict(name="supcon", temperature=0.1, hidden_dim=512)
  config.optimizer = dict(
    name="sgd",
    learning_rate=0.1,
    lr_scaling="linear",
    momentum=0.9,
    weight_decay=5e-4,
  )
  config.schedule = dict(name="cosine", warmup_epochs=0.2)
  quick = dict(hidden_dim=64, out_dim=32)
  return config_lib.finish(config, arg, quick=quick)
