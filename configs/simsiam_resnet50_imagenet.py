"""SimSiam on ImageNet with ResNet-50, as the authors' README trains it.

facebookresearch/simsiam: batch 512, 100 epochs, SGD with the rate 0.05 for
each 256 images, which stays constant for the predictor. Theirs reach 68.1 by a
linear probe. Not yet reproduced here: 8 V100.

Images are fitted to 256 x 256 on the host, where the authors crop from the
whole picture; the rate falls with each step, theirs with each epoch.
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
  config.augment = dict(name="moco_v2", size=(224, 224), eval_crop=0.875)
  config.encoder = dict(name="resnet", variant="50", zero_init_residual=True)
  config.method = dict(name="simsiam", out_dim=2048, predictor_dim=512)
  config.optimizer = dict(
    name="sgd",
    learning_rate=0.05,
    lr_scaling="linear",
    momentum=0.9,
    weight_decay=1e-4,
    # --fix-pred-lr, for the batch of 512.
    groups=(dict(match="^predictor/", lr=0.1),),
  )
  config.schedule = dict(name="cosine")
  config.eval.test_split = "validation"
  quick = dict(out_dim=32, predictor_dim=16)
  return config_lib.finish(config, arg, quick=quick)
