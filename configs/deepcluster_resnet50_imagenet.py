"""DeepCluster on ImageNet with the authors' recipe, around a ResNet-50.

facebookresearch/deepcluster `main.sh`: Sobel gradients, 10,000 clusters of 256
whitened components each epoch, batch 256, 200 epochs, SGD with the constant
rate 0.05. Theirs is an AlexNet or a VGG-16, with two layers of 4096 and dropout
before the classifier; the ResNet is ours. Not yet reproduced.

Images are fitted to 256 x 256 on the host, where the authors crop from the
whole picture. Examples are drawn by their clusters with replacement; theirs
draw without it from clusters that are large enough. An empty cluster takes a
far example, where faiss splits a large one.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `quick`."""
  config = config_lib.base()
  config.batch_size = 256
  config.epochs = 200.0
  config.data.name = "imagenet2012"
  config.data.size = (256, 256)
  config.data.channels = 3
  config.augment = dict(name="deepcluster", size=(224, 224), eval_crop=0.875)
  config.encoder = dict(name="resnet", variant="50")
  config.method = dict(
    name="deepcluster", num_clusters=10000, pca_dim=256, sobel=True
  )
  config.optimizer = dict(
    name="sgd",
    learning_rate=0.05,
    momentum=0.9,
    weight_decay=1e-5,
    groups=(dict(match="^head/", momentum=0.0),),
  )
  config.schedule = dict(name="constant")
  config.eval.test_split = "validation"
  return config_lib.finish(config, arg, quick=dict(num_clusters=24))
