"""Views on device: `make(preset) -> augment(batch) -> batch`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import errors
from ssljax.augment import image as ops
from ssljax.augment.presets import KINDS
from ssljax.augment.presets import PRESETS

_MOST = 1 << 14  # pixels of a side: one such view takes 1 GiB a channel


def pair(
  name: str, source, *, eval_crop: float = 1.0, **options
) -> tuple[Callable, Callable]:
  """Returns the training views and the evaluation view of a source of images.

  Args:
    name: of a preset in `presets.py`.
    source: a `data.sources.ImageSource`, of which this takes the shape.
    eval_crop: the part of each side that the evaluation's view keeps of the
      centre. The papers' is 224 of 256 pixels on ImageNet.
    **options: keys of the preset, and `size` (height, width), the source's
      where it is not given.

  Raises:
    UserError: as `make` does, or nothing or too much to keep.
  """
  if not 0 < eval_crop <= 1:
    raise errors.UserError(
      f"config.augment.eval_crop={eval_crop}: give a part, above 0 and up to 1"
    )
  if name in PRESETS:
    known = [*PRESETS[name], "size", "eval_crop"]
    errors.refuse_unknown(f"augment {name!r}", options, known)
  size = options.pop("size", source.shape[:2])
  views = make(name, size=size, **options)
  channels = source.shape[2]
  for key in ("mean", "std"):
    given = options.get(key)
    if given is not None and len(given) not in (1, channels):
      raise errors.UserError(
        f"config.augment.{key}={options[key]}: the images have {channels} "
        "channels; give a number for each, or one"
      )
  statistics = {k: options.get(k, PRESETS[name][k]) for k in ("mean", "std")}
  return views, make("none", size=size, crop=eval_crop, **statistics)


def make(name: str, *, size, **overrides) -> Callable:
  """Returns `augment(batch) -> batch`, to be called inside `jit`.

  It takes `image` [b h w c] uint8 away and gives `views` [b v h w c] float32,
  and `local_views` where the preset has them; other keys stay. What an example
  draws depends on its key in `batch["key"]` [b] and the view alone. What needs
  colour is left out where c is not 3.

  Args:
    name: of a preset in `presets.py`.
    size: (height, width) of the views, up to 16,384 pixels each.
    **overrides: keys of the preset.

  Raises:
    UserError: an unknown preset or key; one that is near is named.
  """
  if name not in PRESETS:
    raise errors.UserError(
      f"unknown augment {name!r}: choose among {', '.join(PRESETS)}"
    )
  preset = PRESETS[name]
  errors.refuse_unknown(f"augment {name!r}", overrides, preset)
  errors.refuse_kinds(f"augment {name!r}", overrides, KINDS)
  options = {
    k: tuple(v) if isinstance(v, list) else v
    for k, v in {**preset, **overrides}.items()
  }
  _check(options, size)
  view = _centre if name == "none" else _random

  def augment(batch):
    batch = dict(batch)
    if batch["image"].dtype != jnp.uint8:
      raise errors.UserError(
        f"views are made of uint8 images, 0 to 255, not {batch['image'].dtype}"
      )
    image = batch.pop("image").transpose(0, 3, 1, 2)
    x = image.astype(jnp.float32) / 255
    views = [
      view(_keys(batch, i), x, i, size, options)
      for i in range(options.get("views", 1))
    ]
    batch["views"] = _stack(views)
    if count := options.get("local_views", 0):
      local = {
        **options,
        "area": options["local_area"],
        "blur_p": options["local_blur_p"],
        "solarize_p": 0.0,
      }
      first = options["views"]
      batch["local_views"] = _stack(
        view(_keys(batch, first + i), x, 0, options["local_size"], local)
        for i in range(count)
      )
    return batch

  return augment


def _check(options, size):
  """Raises UserError for what would only fail inside."""
  if not isinstance(size, tuple | list) or len(size) != 2:
    raise errors.UserError(f"augment size={size}: give (height, width)")
  for key, sides in (("size", size), ("local_size", options.get("local_size"))):
    if sides and max(sides) > _MOST:
      raise errors.UserError(
        f"config.augment.{key}={sides}: give sides of at most {_MOST:,} pixels"
      )
  for key in ("blur_p", "solarize_p"):
    value, views = options.get(key, 0.0), options.get("views", 1)
    if isinstance(value, tuple) and len(value) != views:
      raise errors.UserError(
        f"config.augment.{key}={value} is not of {views} views: give as many "
        "numbers, or one for all"
      )
  if options.get("std") and not min(options["std"]) > 0:
    raise errors.UserError(
      f"config.augment.std={options['std']}: give numbers above 0"
    )
  if options.get("local_views", 0) < 0:
    raise errors.UserError(
      f"config.augment.local_views={options['local_views']}: give 0 or more"
    )
  if not 0 < options.get("crop", 1.0) <= 1:
    raise errors.UserError(
      f"config.augment.crop={options['crop']}: give a part of a side in (0, 1]"
    )
  kernel = options.get("blur_kernel")
  if kernel is not None and (kernel < 1 or kernel % 2 == 0):
    raise errors.UserError(
      f"config.augment.blur_kernel={kernel}: give an odd number of taps"
    )
  blurred = [size] if np.any(options.get("blur_p", 0)) else []
  if options.get("local_views") and options["local_blur_p"]:
    blurred.append(options["local_size"])
  for sides in blurred:
    if (taps := _taps(options, sides)) // 2 >= min(sides):
      raise errors.UserError(
        f"config.augment.blur_kernel={taps} is too wide for views of "
        f"{min(sides)} pixels: give a smaller one"
      )


def _taps(options, size):
  """Of the blur's kernel: a tenth of the height, made odd."""
  return options["blur_kernel"] or 2 * (size[0] // 20) + 1


def _stack(views):
  """v views [b c h w] -> [b v h w c]."""
  return jnp.stack([v.transpose(0, 2, 3, 1) for v in views], axis=1)


def _keys(batch, i):
  return jax.vmap(lambda key: jax.random.fold_in(key, i))(batch["key"])


def _centre(key, x, i, size, options):
  del key, i
  if x.shape[2:] != tuple(size) or options["crop"] != 1:
    x = ops.resize(x, size=size, crop=options["crop"])
  return ops.normalize(x, *_statistics(x, options))


def _random(key, x, i, size, options):
  """View `i` of each image, in the order of the papers."""
  at = lambda name: (
    options[name][i] if isinstance(options[name], tuple) else options[name]
  )
  colour = x.shape[1] == 3
  keys = jax.vmap(lambda k: jax.random.split(k, 6))(key)  # [b 6]
  x = ops.random_resized_crop(
    keys[:, 0],
    x,
    size=size,
    area=options["area"],
    ratio=options["ratio"],
    interpolation=options["interpolation"],
  )
  x = jnp.clip(x, 0.0, 1.0)  # bicubic overshoots
  x = ops.random_flip(keys[:, 1], x, p=options["flip_p"])
  jitter = [s * options["strength"] for s in options["jitter"]]
  if not colour:
    jitter[2:] = 0.0, 0.0
  if any(jitter):
    x = ops.color_jitter(keys[:, 2], x, strengths=jitter, p=options["jitter_p"])
  if colour and options["gray_p"]:
    x = ops.random_grayscale(keys[:, 3], x, p=options["gray_p"])
  kernel = _taps(options, size)
  if at("blur_p") and kernel > 1:
    x = ops.gaussian_blur(
      keys[:, 4],
      x,
      kernel=kernel,
      sigma=options["blur_sigma"],
      p=at("blur_p"),
    )
  if at("solarize_p"):
    x = ops.solarize(keys[:, 5], x, p=at("solarize_p"))
  return ops.normalize(x, *_statistics(x, options))


def _statistics(x, options):
  """Mean and std; those of the presets are for colour."""
  channels = x.shape[1]
  pick = lambda v: (
    v if v is None or len(v) in (1, channels) else (sum(v) / len(v),)
  )
  return pick(options["mean"]), pick(options["std"])
