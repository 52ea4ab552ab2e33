"""iBOT on ImageNet with ViT-S/16, as the authors' README trains it.

bytedance/ibot: 16 GPUs of 64 images, 800 epochs, two crops of 224 and ten of
96, AdamW with the rate 5e-4 for each 256 images. Theirs reaches 75.2 by nearest
neighbours, 77.9 by a linear probe and 82.3 fine-tuned. Not yet reproduced here.

Images are fitted to 256 x 256 on the host, where the authors crop from the
whole picture; positions are interpolated with antialiasing, theirs without.
Their linear probe reads the class tokens of the last four blocks, as `ssljax
evaluate --protocols=linear --blocks=4` does; without `--blocks` it reads that
of the last. Their kNN has the temperature 0.07 for our 0.1, and they resize
test images bicubically.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `quick`."""
  config = config_lib.base()
  config.batch_size = 1024
  config.epochs = 800.0
  config.data.name = "imagenet2012"
  config.data.size = (256, 256)
  config.data.channels = 3
  config.augment = dict(
    name="multi_crop",
    size=(224, 224),
    eval_crop=0.875,
    area=(0.25, 1.0),
    local_views=10,
    local_size=(96, 96),
    blur_kernel=13,  # theirs is not cut off
    local_area=(0.05, 0.25),
  )
  config.encoder = dict(
    name="vit",
    variant="S/16",
    drop_path=0.1,
    mask_token=True,
    weight_init="dino",
  )
  config.method = dict(
    name="ibot",
    out_dim=8192,
    shared_head=True,
    norm_last_layer=False,
    mask_probability=0.5,
    mask_ratio=(0.1, 0.5),
    teacher_temperature=0.07,
    warmup_teacher_temperature=0.04,
    patch_temperature=0.07,
    warmup_patch_temperature=0.04,
    warmup_teacher_epochs=30,
    ema=0.996,
  )
  config.optimizer = dict(
    name="adamw",
    learning_rate=5e-4,
    lr_scaling="linear",
    weight_decay=0.04,
    weight_decay_end=0.4,
    decay_exclude=("1d",),
    clip_by_param=3.0,
    freeze=(dict(match="prototypes", epochs=1.0),),
  )
  config.schedule = dict(name="cosine", warmup_epochs=10.0, end=1e-6)
  config.eval.test_split = "validation"
  quick = dict(out_dim=64, hidden_dim=64, bottleneck_dim=32)
  return config_lib.finish(config, arg, quick=quick)
