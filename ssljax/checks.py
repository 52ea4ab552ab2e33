"""What the values of a config have to be."""

import math
import re

from ml_collections import config_dict

from ssljax import config as config_lib
from ssljax import errors

# Of `ssljax evaluate`; the last two are of the run's own method.
PROTOCOLS = ("knn", "linear", "loss", "finetune")
# Keys, what each number of theirs has to be, and how that is told.
_RANGES = (
  (
    r"batch_size|accumulate|log_every|checkpoint\.(every_steps|keep)|"
    r"data\.(channels|label_length)|eval\.batch_size|"
    r"augment\.(views|span|most)|"
    r"encoder\.(width|dim|depth|heads|kinds|vocab|positions|patch|img_size)|"
    r"(encoder|method)\.bn_groups|"
    r"method\.(\w+_)?(dim|depth|heads|layers|blocks?|groups|features|unit|"
    r"patch|stride|rows|targets|top_k|iterations|clusters|prototypes|slices|"
    r"knots|ema_steps|crops_for_assign)",
    lambda x: x >= 1,
    "1 or more",
  ),
  (
    r"method\.((\w+_)?temperature|epsilon|sigma)|encoder\.mlp_ratio|"
    r"optimizer\.(eps|clip_global_norm)",
    lambda x: 0 < x < math.inf,
    "more than 0",
  ),
  (
    r"method\.((\w+_)?ema(_end)?|mask_\w+|max_context|\w+_area)|"
    r"augment\.(\w+_p|(local_)?area|rate|\w+_part)",
    lambda x: 0 <= x <= 1,
    "from 0 to 1",
  ),
  (
    r"encoder\.(drop_path|dropout)|optimizer\.(b1|b2|momentum)",
    lambda x: 0 <= x < 1,
    "0 or more, below 1",
  ),
  (
    r"method\.(\w*(weight|queue_size|epochs?)|beta|z_loss)|"
    r"encoder\.(registers|layer_scale)|augment\.(strength|jitter)|"
    r"data\.max_corrupt|monitor\.every_steps|eval\.every_epochs|watchdog_s|"
    r"schedule\.(end|warmup_init|factor)|"
    r"optimizer\.(learning_rate|weight_decay_end|eeta|trust_coefficient)",
    lambda x: 0 <= x < math.inf,
    "0 or more",
  ),
)
# (height, width) or (least, most).
_PAIRS = (
  *("data.size", "augment.size", "augment.area", "augment.ratio"),
  *("augment.blur_sigma", "augment.local_size", "augment.local_area"),
)


def check(config: config_dict.ConfigDict) -> None:
  """Raises UserError for a value that would only fail somewhere inside."""
  if config.nonfinite not in ("stop", "skip"):
    raise errors.UserError(
      f"config.nonfinite={config.nonfinite!r}: choose stop or skip"
    )
  config_lib.to_dict(config)  # what JSON does not have
  for section in config_lib.NAMED:
    if not isinstance(config[section].get("name"), str):
      raise errors.UserError(f"config.{section}.name is missing: give it")
  if not 0 <= config.seed < 1 << 32:
    raise errors.UserError(f"config.seed={config.seed}: give 32 bits")
  protocols = config.eval.get("protocols", PROTOCOLS)  # older runs have none
  several = isinstance(protocols, list | tuple) and protocols
  if not several or set(protocols) - set(PROTOCOLS):
    raise errors.UserError(
      f"config.eval.protocols={protocols!r}: give a tuple of "
      f"{', '.join(PROTOCOLS)}"
    )

  def given(path):
    section, _, key = path.rpartition(".")
    return (config[section] if section else config).get(key)

  for path, value in config_lib.flatten(config.to_dict()).items():
    values = value if isinstance(value, tuple | list) else (value,)
    numbers = [x for x in values if isinstance(x, int | float)]
    for pattern, fits, words in _RANGES:
      fit = values and all(map(fits, numbers))
      if re.fullmatch(pattern, path) and not fit:
        raise errors.UserError(f"config.{path}={value}: give {words}")
  for path in _PAIRS:
    value = given(path)
    whole = path.endswith("size")
    if value is not None and not _is_pair(value, int if whole else float):
      one = value[0] if isinstance(value, tuple) and value else value
      one = one if isinstance(one, int | float) and one > 0 else 224
      example = f"({one}, {one})" if whole else "(A, B)"
      raise errors.UserError(
        f"config.{path}={value}: give two {'whole ' if whole else ''}numbers "
        f"above 0, as '{example}'"
      )


def _is_pair(value, kind):
  try:
    fits = len(value) == 2 and min(value) > 0
  except TypeError:
    return False
  return fits and (kind is float or all(isinstance(x, int) for x in value))
