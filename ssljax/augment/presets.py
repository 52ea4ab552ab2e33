"""The recipes of the papers. A config may override any key of its preset.

`blur_p` and `solarize_p` may be tuples, one probability a view.
"""

_NOTHING = dict(
  views=2,
  area=(0.08, 1.0),  # of the random resized crop
  ratio=(3 / 4, 4 / 3),
  interpolation="bilinear",
  flip_p=0.5,
  jitter=(0.0, 0.0, 0.0, 0.0),  # brightness, contrast, saturation, hue
  strength=1.0,  # multiplies jitter
  jitter_p=0.8,
  gray_p=0.0,
  blur_p=0.0,
  blur_sigma=(0.1, 2.0),
  blur_kernel=None,  # taps; None is a tenth of the image, as SimCLR's
  solarize_p=0.0,
  mean=None,
  std=None,
  local_views=0,
  local_size=(96, 96),
  local_area=(0.05, 0.4),
  local_blur_p=0.5,
)

# What each key may be.
KINDS = dict(
  views=int,
  area=tuple[float, float],
  ratio=tuple[float, float],
  interpolation=str,
  flip_p=float,
  jitter=tuple[float, float, float, float],
  strength=float,
  jitter_p=float,
  gray_p=float,
  blur_p=float | tuple[float, ...],
  blur_sigma=tuple[float, float],
  blur_kernel=int | None,
  solarize_p=float | tuple[float, ...],
  mean=tuple[float, ...] | None,
  std=tuple[float, ...] | None,
  local_views=int,
  local_size=tuple[int, int],
  local_area=tuple[float, float],
  local_blur_p=float,
  crop=float,
)

PRESETS = {
  # google-research/simclr `data_util.py`: no mean and std, inputs in [0, 1].
  # Contrast and saturation are torchvision's, where theirs are TensorFlow's.
  "simclr": dict(
    interpolation="bicubic",
    jitter=(0.8, 0.8, 0.8, 0.2),
    gray_p=0.2,
    blur_p=0.5,
  ),
  # facebookresearch/moco `main_moco.py`, --aug-plus.
  "moco_v2": dict(
    area=(0.2, 1.0),
    jitter=(0.4, 0.4, 0.4, 0.1),
    gray_p=0.2,
    blur_p=0.5,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
  ),
  # Grill et al. 2020, table 6.
  "byol": dict(
    interpolation="bicubic",
    jitter=(0.4, 0.4, 0.2, 0.1),
    gray_p=0.2,
    blur_p=(1.0, 0.1),
    solarize_p=(0.0, 0.2),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
  ),
  # facebookresearch/mae `main_pretrain.py`.
  "mae": dict(
    views=1,
    area=(0.2, 1.0),
    interpolation="bicubic",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
  ),
  # facebookresearch/swav `multicropdataset.py` and its scripts; the std is as
  # they have it.
  "swav": dict(
    area=(0.14, 1.0),
    jitter=(0.8, 0.8, 0.8, 0.2),
    gray_p=0.2,
    blur_p=0.5,
    mean=(0.485, 0.456, 0.406),
    std=(0.228, 0.224, 0.225),
    local_views=6,
    local_area=(0.05, 0.14),
  ),
  # facebookresearch/deepcluster `clustering.py`, cluster_assign.
  "deepcluster": dict(
    views=1,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
  ),
  # facebookresearch/dino `main_dino.py`, DataAugmentationDINO.
  "multi_crop": dict(
    area=(0.4, 1.0),
    interpolation="bicubic",
    jitter=(0.4, 0.4, 0.2, 0.1),
    gray_p=0.2,
    blur_p=(1.0, 0.1),
    solarize_p=(0.0, 0.2),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    local_views=8,
  ),
  # facebookresearch/dinov2 `data/augmentations.py`. Its `GaussianBlur(p)` blurs
  # with probability 1 - p, so that the first global crop never is.
  "dinov2": dict(
    area=(0.32, 1.0),
    interpolation="bicubic",
    jitter=(0.4, 0.4, 0.2, 0.1),
    gray_p=0.2,
    blur_p=(0.0, 0.9),
    blur_kernel=9,
    solarize_p=(0.0, 0.2),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    local_views=8,
    local_area=(0.05, 0.32),
  ),
}

PRESETS = {name: {**_NOTHING, **preset} for name, preset in PRESETS.items()}
# Evaluation: the centre, resized where it must be.
PRESETS["none"] = dict(crop=1.0, mean=None, std=None)
