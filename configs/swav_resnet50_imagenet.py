"""SwAV on ImageNet with ResNet-50, as the authors' scripts train it.

facebookresearch/swav `scripts/swav_800ep_pretrain.sh`: batch 4096, 800 epochs,
two crops of 224 and six of 96, LARC with the rate 4.8, prototypes frozen for
313 steps. Theirs reaches 75.3 by a linear probe. The variant `small` is
`swav_400ep_bs256_pretrain.sh`, of which they report 74.3. Not yet reproduced.

Images are fitted to 256 x 256 on the host, where the authors crop from the
whole picture. Batch norm takes its statistics over the batch, where theirs
takes them over 512 images, those of eight devices.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `small`, batches of 256 with a queue; `quick`."""
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
  config.method = dict(name="swav", num_prototypes=3000, queue_size=0)
  config.optimizer = dict(
    name="larc",
    learning_rate=4.8,
    momentum=0.9,
    weight_decay=1e-6,
    trust_coefficient=0.001,
    clip=False,
    freeze=(dict(match="prototypes", steps=313),),
  )
  config.schedule = dict(
    name="cosine", warmup_epochs=10.0, warmup_init=0.3, end=0.0048
  )
  config.eval.test_split = "validation"
  quick = dict(num_prototypes=24, hidden_dim=64, out_dim=32)
  return config_lib.finish(config, arg, {"small": _small}, quick=quick)


def _small(config):
  config.batch_size = 256
  config.epochs = 400.0
  config.method.update(queue_size=3840, queue_start_epoch=15)
  freeze = (dict(match="prototypes", steps=5005),)
  config.optimizer.update(learning_rate=0.6, freeze=freeze)
  config.schedule = dict(name="cosine", end=0.0006)
