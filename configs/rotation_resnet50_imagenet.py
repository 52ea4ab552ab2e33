"""RotNet on ImageNet with ResNet-50, by the authors' recipe for AlexNet.

gidariss/FeatureLearningRotNet `config/ImageNet_RotNet_AlexNet.py`: batches of
192 images, four rotations of each, 50 epochs of SGD with Nesterov's momentum,
the rate 0.01, a tenth of it after 15, 30 and 45. Their network is AlexNet,
which is not here. Not yet reproduced.

Images are fitted to 256 x 256 on the host, where the authors crop from the
whole picture.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `quick`."""
  config = config_lib.base()
  config.batch_size = 192
  config.epochs = 50.0
  config.data.name = "imagenet2012"
  config.data.size = (256, 256)
  config.data.channels = 3
  config.augment = dict(
    name="mae",
    size=(224, 224),
    eval_crop=0.875,
    area=(0.08, 1.0),
    interpolation="bilinear",
  )
  config.encoder = dict(name="resnet", variant="50")
  config.method = dict(name="rotation")
  config.optimizer = dict(
    name="sgd",
    learning_rate=0.01,
    momentum=0.9,
    nesterov=True,
    weight_decay=5e-4,
  )
  config.schedule = dict(name="step", milestones=(0.3, 0.6, 0.9))
  config.eval.test_split = "validation"
  return config_lib.finish(config, arg)
