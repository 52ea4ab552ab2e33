"""Optimisers and schedules, as the papers have them. Needs jax and optax alone.

The step is counted once, outside; schedules of the rate and the decay are read
there and handed inwards, so that freezing a part resets its moments and not its
schedule. Paths of parameters are as in "encoder/layer1_0_conv1/kernel"; patterns
are regular expressions that may match anywhere in them.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ssljax import errors

Schedule = Callable[[jax.Array], jax.Array]

_DURATIONS = ("steps", "epochs", "examples", "percent")


def steps_of(
  durations: dict,
  prefix: str,
  *,
  batch_size: int,
  num_examples: int,
  total_steps: int,
) -> int:
  """Reads one of `<prefix>_steps`, `_epochs`, `_examples`, `_percent`.

  Percent is of all steps. None given is 0 steps.

  Raises:
    UserError: more than one is given.
  """
  given = {
    unit: durations[f"{prefix}_{unit}"]
    for unit in _DURATIONS
    if durations.get(f"{prefix}_{unit}") is not None
  }
  if len(given) > 1:
    names = " and ".join(f"{prefix}_{unit}" for unit in given)
    raise errors.UserError(f"the schedule has {names}: give one of them")
  for unit, value in given.items():
    scale = {
      "steps": 1,
      "epochs": num_examples / batch_size,
      "examples": 1 / batch_size,
      "percent": total_steps / 100,
    }
    return round(value * scale[unit])
  return 0


def scale_lr(
  rate: float, batch_size: int, rule: str | None = None, base: int = 256
) -> float:
  """The rate for a batch: "linear" is rate * batch / base (Goyal et al. 2017),
  "sqrt" is rate * sqrt(batch), as SimCLR's 0.075 is meant."""
  rules = {
    None: 1.0,
    "linear": batch_size / base,
    "sqrt": math.sqrt(batch_size),
  }
  if rule not in rules:
    raise errors.UserError(f"unknown lr_scaling {rule!r}: linear or sqrt")
  return rate * rules[rule]


def schedule(
  name: str,
  *,
  base: float,
  total_steps: int,
  warmup_steps: int = 0,
  end: float = 0.0,
  milestones: tuple[float, ...] = (),
  factor: float = 0.1,
) -> Schedule:
  """Returns `step -> value`: a linear warm-up from zero, then `name`.

  Args:
    name: "constant", "linear" or "cosine" to `end` at `total_steps`, or "step":
      times `factor` at each of `milestones`.
    base: the value after the warm-up.
    total_steps: of the run.
    warmup_steps: step 0 has value 0, step `warmup_steps` has `base`.
    end: the last value of "linear" and "cosine".
    milestones: as fractions of `total_steps`.
    factor: for "step".
  """
  if warmup_steps > total_steps:
    raise errors.UserError(
      f"the warm-up of {warmup_steps} steps is longer than the run of "
      f"{total_steps}: shorten it by config.schedule"
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
    "cosine": lambda step: (
      end + (base - end) * 0.5 * (1 + jnp.cos(jnp.pi * progress(step)))
    ),
    "step": drops,
  }
  if name not in shapes:
    raise errors.UserError(
      f"unknown schedule {name!r}: choose among {', '.join(shapes)}"
    )

  def value(step):
    step = jnp.asarray(step, jnp.float32)
    warm = base * step / max(warmup_steps, 1)
    return jnp.where(step < warmup_steps, warm, shapes[name](step))

  return value


def ema_schedule(decay: float, total_steps: int) -> Schedule:
  """The teacher's decay, from `decay` to 1 by a cosine (BYOL, section 3.3):
  1 - (1 - decay) (cos(pi step / total_steps) + 1) / 2."""

  def value(step):
    progress = jnp.asarray(step, jnp.float32) / total_steps
    return 1 - (1 - decay) * (jnp.cos(jnp.pi * progress) + 1) / 2

  return value


class State(NamedTuple):
  count: jax.Array  # int32 [], the step that schedules read
  inner: optax.OptState


def make(
  *,
  name: str,
  learning_rate: float | Schedule,
  weight_decay: float | Schedule = 0.0,
  decay_exclude: tuple[str, ...] = (),
  clip_global_norm: float | None = None,
  clip_by_param: float | None = None,
  groups: tuple[dict, ...] = (),
  freeze: tuple[dict, ...] = (),
  **hyper,
) -> optax.GradientTransformation:
  """Returns an optimiser.

  Args:
    name: "sgd", "adamw", "lamb", "lars" or "larc"; see the function of the same
      name for what else it takes.
    learning_rate: a number or `step -> number`.
    weight_decay: a number or `step -> number`.
    decay_exclude: patterns of parameters without decay (LARS: and without
      adaptation); "1d" stands for arrays of less than two dimensions.
    clip_global_norm: the gradients' norm is cut to it.
    clip_by_param: the norm of each parameter's gradient is (DINO).
    groups: dicts of `match` with `lr_mult` or `weight_decay` or both; the first
      that matches a parameter holds.
    freeze: dicts of `match` and `steps`, see `freeze_until`.
    **hyper: of the optimiser.

  Raises:
    UserError: an unknown optimiser, or an option that it does not have.
  """
  makers = {"sgd": sgd, "adamw": adamw, "lamb": lamb, "lars": lars, "larc": larc}
  if name not in makers:
    raise errors.UserError(
      f"unknown optimizer {name!r}: choose among {', '.join(makers)}"
    )
  excluded = lambda path, x: _matches(decay_exclude, path, x)

  def decay_of(path, x, current):
    for group in groups:
      if "weight_decay" in group and re.search(group["match"], path):
        return group["weight_decay"]
    return 0.0 if excluded(path, x) else current

  try:
    tx = makers[name](decay_of=decay_of, excluded=excluded, **hyper)
  except TypeError as e:
    raise errors.UserError(f"optimizer {name}: {e}") from e
  for part in freeze:
    tx = freeze_until(part["steps"], tx, part["match"])
  tx = optax.chain(
    *([_clip_each(clip_by_param)] if clip_by_param else []),
    *([optax.clip_by_global_norm(clip_global_norm)] if clip_global_norm else []),
    tx,
    *([_scale_groups(groups)] if groups else []),
  )
  return _scheduled(tx, learning_rate, weight_decay)


def _scheduled(tx, learning_rate, weight_decay):
  """Counts steps, and hands the rate and the decay of the step to `tx`."""
  read = lambda value, step: value(step) if callable(value) else value

  def init(params):
    return State(jnp.zeros([], jnp.int32), tx.init(params))

  def update(grads, state, params):
    updates, inner = tx.update(
      grads,
      state.inner,
      params,
      step=state.count,
      learning_rate=read(learning_rate, state.count),
      weight_decay=read(weight_decay, state.count),
    )
    return updates, State(state.count + 1, inner)

  return optax.GradientTransformation(init, update)


def sgd(*, decay_of, excluded, momentum=0.9, nesterov=False):
  """SGD as torch.optim has it: the decay joins the gradient before momentum."""
  del excluded
  return optax.chain(
    _add_decay(decay_of),
    optax.trace(momentum, nesterov=nesterov),
    _times_rate(),
  )


def adamw(*, decay_of, excluded, b1=0.9, b2=0.999, eps=1e-8):
  """AdamW as torch.optim has it: the decay is decoupled, times the rate."""
  del excluded
  return optax.chain(
    optax.scale_by_adam(b1, b2, eps), _add_decay(decay_of), _times_rate()
  )


def lamb(*, decay_of, excluded, b1=0.9, b2=0.999, eps=1e-6):
  """LAMB: You et al. 2019, arXiv:1904.00962, algorithm 2."""
  del excluded
  return optax.chain(
    optax.scale_by_adam(b1, b2, eps),
    _add_decay(decay_of),
    optax.scale_by_trust_ratio(),
    _times_rate(),
  )


def lars(*, decay_of, excluded, momentum=0.9, eeta=0.001, nesterov=False):
  """LARS as google-research/simclr `lars_optimizer.py` has it.

  v <- momentum v + rate trust (g + decay w), w <- w - v: the rate is inside the
  momentum. Trust is eeta |w| / |g + decay w|; parameters that are excluded have
  neither decay nor trust.
  """

  def init(params):
    return jax.tree.map(jnp.zeros_like, params)

  def update(grads, state, params, *, learning_rate, weight_decay, **unused):
    del unused

    def step_of(path, g, w):
      g = g + decay_of(path, w, weight_decay) * w
      trust = 1.0
      if not excluded(path, w):
        w_norm, g_norm = jnp.linalg.norm(w), jnp.linalg.norm(g)
        trust = eeta * w_norm / jnp.where(g_norm > 0, g_norm, 1.0)
        trust = jnp.where((w_norm > 0) & (g_norm > 0), trust, 1.0)
      return learning_rate * trust * g

    steps = _map_with_path(step_of, grads, params)
    state = jax.tree.map(lambda v, s: momentum * v + s, state, steps)
    updates = state
    if nesterov:
      updates = jax.tree.map(lambda v, s: momentum * v + s, state, steps)
    return jax.tree.map(jnp.negative, updates), state

  return optax.GradientTransformationExtraArgs(init, update)


def larc(
  *,
  decay_of,
  excluded,
  momentum=0.9,
  nesterov=False,
  trust_coefficient=0.001,
  clip=False,
  eps=1e-8,
  exclude_from_adaptation=False,
):
  """LARC as NVIDIA/apex `parallel/LARC.py` has it around SGD; SwAV uses it.

  g <- (g + decay w) a, where a = trust_coefficient |w| / (|g| + decay |w| +
  eps); `clip` cuts a / rate at 1, which bounds the whole rate by the rate given.
  """

  def update(grads, state, params, *, learning_rate, weight_decay, **unused):
    del unused

    def scaled(path, g, w):
      decay = decay_of(path, w, weight_decay)
      if exclude_from_adaptation and excluded(path, w):
        return g + decay * w
      w_norm, g_norm = jnp.linalg.norm(w), jnp.linalg.norm(g)
      a = trust_coefficient * w_norm / (g_norm + decay * w_norm + eps)
      if clip:
        a = jnp.minimum(a / learning_rate, 1.0)
      # Where a norm is zero apex leaves the gradient alone, decay included.
      return jnp.where((w_norm != 0) & (g_norm != 0), (g + decay * w) * a, g)

    return _map_with_path(scaled, grads, params), state

  adapt = optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )
  return optax.chain(
    adapt, optax.trace(momentum, nesterov=nesterov), _times_rate()
  )


def freeze_until(steps: int, tx, match: str):
  """No update, no decay and no moments for what `match` finds, for `steps`.

  Not the same as gradients of zero, which let decay and momentum go on. After
  `steps`, moments begin as at step 0, and schedules go on.
  """
  tx = optax.with_extra_args_support(tx)

  def update(grads, state, params, *, step, **extra):
    updates, new = tx.update(grads, state, params, step=step, **extra)
    thawed = step >= steps
    keep = lambda a, b: jnp.where(thawed, a, b)
    zeros = jax.tree.map(jnp.zeros_like, updates)
    return jax.tree.map(keep, updates, zeros), jax.tree.map(keep, new, state)

  late = optax.GradientTransformationExtraArgs(tx.init, update)
  labels = lambda params: _map_with_path(
    lambda path, x: "late" if re.search(match, path) else "now", params
  )
  return optax.partition({"late": late, "now": tx}, labels)


def _add_decay(decay_of):
  def update(grads, state, params, *, weight_decay, **unused):
    del unused
    add = lambda path, g, w: g + decay_of(path, w, weight_decay) * w
    return _map_with_path(add, grads, params), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )


def _times_rate():
  def update(updates, state, params=None, *, learning_rate, **unused):
    del params, unused
    return jax.tree.map(lambda u: -learning_rate * u, updates), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )


def _scale_groups(groups):
  def scale(path, u):
    for group in groups:
      if re.search(group["match"], path):
        return u * group.get("lr_mult", 1.0)
    return u

  return optax.stateless(lambda updates, _: _map_with_path(scale, updates))


def _clip_each(norm):
  """facebookresearch/dino `utils.clip_gradients`."""

  def clip(g):
    return g * jnp.minimum(1.0, norm / (jnp.linalg.norm(g) + 1e-6))

  return optax.stateless(lambda updates, _: jax.tree.map(clip, updates))


def _matches(patterns, path, x):
  return any(
    x.ndim < 2 if pattern == "1d" else re.search(pattern, path)
    for pattern in patterns
  )


def _map_with_path(function, tree, *rest):
  """`function(path, leaf, ...)`, where paths are joined by slashes."""

  def call(path, *leaves):
    names = (str(getattr(k, "key", getattr(k, "idx", k))) for k in path)
    return function("/".join(names), *leaves)

  return jax.tree_util.tree_map_with_path(call, tree, *rest)
