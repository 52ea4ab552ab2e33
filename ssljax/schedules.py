"""Values over the steps of a run: rates, decays, durations."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ssljax import errors

Schedule = Callable[[jax.Array], jax.Array]


def steps_of(
  durations: dict,
  prefix: str,
  *,
  batch_size: int,
  steps_per_epoch: int,
  total_steps: int,
) -> int:
  """Reads one of `<prefix>_steps`, `_epochs`, `_examples`, `_percent`.

  As `steps` of google-research/big_vision `utils.py`: percent is a fraction of
  `total_steps`, and what is not zero is at least one step. None given is 0.

  Raises:
    UserError: more than one is given, one that is no number or below 0, or a
      percent above 1.
  """
  scale = {
    "steps": 1,
    "epochs": steps_per_epoch,
    "examples": 1 / batch_size,
    "percent": total_steps,
  }
  given = {unit: durations.get(f"{prefix}_{unit}") for unit in scale}
  given = {unit: value for unit, value in given.items() if value is not None}
  if len(given) > 1:
    names = " and ".join(f"{prefix}_{unit}" for unit in given)
    raise errors.UserError(f"there are {names}: give one of them")
  for unit, value in given.items():
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
      raise errors.UserError(f"{prefix}_{unit}={value!r}: give 0 or more")
  if not 0 <= given.get("percent", 0) <= 1:
    raise errors.UserError(
      f"{prefix}_percent={given['percent']}: give a fraction in [0, 1]"
    )
  for unit, value in given.items():
    return max(1, round(value * scale[unit])) if value else 0
  return 0


def scale_lr(
  rate: float, batch_size: int, rule: str | None = None, base: int = 256
) -> float:
  """The rate for a batch: "linear" is rate * batch / base (Goyal et al. 2017),
  "sqrt" is rate * sqrt(batch), as SimCLR's 0.075 is meant.

  Raises:
    UserError: another rule, or a rate below 0.
  """
  if rate < 0:
    raise errors.UserError(f"optimizer.learning_rate={rate}: give 0 or more")
  rules = {
    None: 1.0,
    "linear": batch_size / base,
    "sqrt": math.sqrt(batch_size),
  }
  if not isinstance(rule, str | None) or rule not in rules:
    raise errors.UserError(f"unknown lr_scaling {rule!r}: linear or sqrt")
  return rate * rules[rule]


def schedule(
  name: str,
  *,
  base: float,
  total_steps: int,
  warmup_steps: int = 0,
  warmup_init: float = 0.0,
  end: float = 0.0,
  milestones: tuple[float, ...] = (),
  factor: float = 0.1,
) -> Schedule:
  """Returns `step -> value`: a linear warm-up, then `name`.

  Args:
    name: "constant", "linear" or "cosine" to `end` at `total_steps`, or "step":
      times `factor` at each of `milestones`. "bert" is "linear" counted from
      step 0, as google-research/bert `optimization.py` has it: the value drops
      by warmup_steps / total_steps where the warm-up ends.
    base: the value after the warm-up.
    total_steps: of the run.
    warmup_steps: step 0 has `warmup_init`, step `warmup_steps` has `base`.
    warmup_init: the first value of the warm-up.
    end: the last value of "linear", "bert" and "cosine".
    milestones: as fractions of `total_steps`.
    factor: for "step".

  Raises:
    UserError: an unknown name, a warm-up longer than the run, "step" without
      milestones in (0, 1), or an option of another shape.
  """
  if warmup_steps > total_steps:
    raise errors.UserError(
      f"the warm-up of {warmup_steps} steps is longer than the run of "
      f"{total_steps}: shorten it by config.schedule"
    )
  if name == "step" and not _fractions(milestones):
    raise errors.UserError(
      f"schedule step has milestones={milestones}: give fractions of the run"
    )
  rest = max(total_steps - warmup_steps, 1)

  def progress(step):
    return jnp.clip((step - warmup_steps) / rest, 0.0, 1.0)

  def drops(step):
    passed = sum(step >= round(m * total_steps) for m in milestones)
    return base * factor**passed

  shapes = {
    "constant": lambda step: base + 0.0 * step,
    "linear": lambda step: base + (end - base) * progress(step),
    "bert": lambda step: (
      base + (end - base) * jnp.clip(step / total_steps, 0.0, 1.0)
    ),
    "cosine": lambda step: (
      end + (base - end) * 0.5 * (1 + jnp.cos(jnp.pi * progress(step)))
    ),
    "step": drops,
  }
  if name not in shapes:
    raise errors.UserError(
      f"unknown schedule {name!r}: choose among {', '.join(shapes)}"
    )
  unread = {
    "end": end and name in ("constant", "step"),
    "milestones": milestones and name != "step",
    "factor": factor != 0.1 and name != "step",
  }
  for option in filter(unread.get, unread):
    raise errors.UserError(
      f"schedule {name} has no {option}: leave it out (none)"
    )

  def value(step):
    step = jnp.asarray(step, jnp.float32)
    warm = warmup_init + (base - warmup_init) * step / max(warmup_steps, 1)
    return jnp.where(step < warmup_steps, warm, shapes[name](step))

  return value


def _fractions(values):
  try:
    return bool(values) and all(0 < value < 1 for value in values)
  except TypeError:
    return False


def ema_schedule(
  decay: float, total_steps: int, *, end: float = 1.0
) -> Schedule:
  """The teacher's decay, from `decay` to `end` by a cosine (BYOL, section 3.3):
  end - (end - decay) (cos(pi step / total_steps) + 1) / 2, and then `end`."""

  def value(step):
    progress = jnp.asarray(step, jnp.float32) / total_steps
    progress = jnp.minimum(progress, 1.0)
    return end - (end - decay) * (jnp.cos(jnp.pi * progress) + 1) / 2

  return value
