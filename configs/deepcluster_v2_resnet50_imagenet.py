"""DeepCluster v2 on ImageNet with ResNet-50, as the authors' script trains it.

facebookresearch/swav `scripts/deepclusterv2_800ep_pretrain.sh`: batch 4096, 800
epochs, two crops of 224 and six of 96, LARC with the rate 4.8. Theirs reaches
75.2 by a linear probe. Not yet reproduced here.

Images are fitted to 256 x 256 on the host, where the authors crop from the
whole picture. Batch norm takes its statistics over the batch, where theirs
takes them over 512 images, those of eight devices. An example that an epoch has
left out, its last batch being incomplete, keeps the embedding of the epoch
before, where theirs is in no cluster.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `quick`."""
  config = config_lib.base()
  config.batch_size = 4096
  config.epochs = 800.0
  config.data.name = "imagenet2012"
  config.data.size = (256, 256)
  config.data.channels = 3
  config.augment = dict(
    name="swav",
    size=(224, 224),
    eval_crop=0.875,
    local_views=6,
    local_size=(96, 96),
    blur_kernel=13,  # theirs is not cut off
  )
  config.encoder = dict(name="resnet", variant="50")
  config.method = dict(name="deepcluster_v2", num_prototypes=3000, num_heads=3)
  config.optimizer = dict(
    name="larc",
    learning_rate=4.8,
    momentum=0.9,
    weight_decay=1e-6,
    trust_coefficient=0.001,
    clip=False,
  )
  config.schedule = dict(
    name="cosine", warmup_epochs=10.0, warmup_init=0.3, end=0.0048
  )
  config.eval.test_split = "validation"
  quick = dict(num_prototypes=24, hidden_dim=64, out_dim=32)
  return config_lib.finish(config, arg, quick=quick)
