"""An optimiser by name, with groups, freezing, clipping and layer decay.

The step is counted once, outside; schedules of the rate and the decay are read
there and handed inwards, so that a part that was frozen begins with fresh
moments and goes on with the schedule. Patterns are regular expressions that may
match anywhere in a parameter's path.
"""

import inspect
import re
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ssljax import errors
from ssljax import schedules
from ssljax.optim import optimizers
from ssljax.optim import paths

_MAKERS = {
  "sgd": optimizers.sgd,
  "adam": optimizers.adam,
  "adamw": optimizers.adamw,
  "lamb": optimizers.lamb,
  "lars": optimizers.lars,
  "larc": optimizers.larc,
}


class State(NamedTuple):
  count: jax.Array  # int32 [], steps done
  inner: optax.OptState


def make(
  *,
  name: str,
  learning_rate: float | schedules.Schedule,
  weight_decay: float | schedules.Schedule = 0.0,
  decay_exclude: tuple[str, ...] = (),
  clip_global_norm: float | None = None,
  clip_by_param: float | None = None,
  clip_by_module: float | None = None,
  layer_decay: float | None = None,
  groups: tuple[dict, ...] = (),
  freeze: tuple[dict, ...] = (),
  **hyper,
) -> optax.GradientTransformation:
  """Returns an optimiser.

  Args:
    name: "sgd", "adam", "adamw", "lamb", "lars" or "larc"; see the function of
      the same name in `optimizers` for what else it takes.
    learning_rate: a number or `step -> number`.
    weight_decay: a number or `step -> number`.
    decay_exclude: patterns of parameters without decay (LARS and LAMB: and
      without adaptation); "1d" stands for arrays of less than two dimensions.
    clip_global_norm: the gradients' norm is cut to it, frozen ones counted.
    clip_by_param: the norm of each parameter's gradient is (DINO).
    clip_by_module: that of each part of the parameters, as "encoder", is
      (DINOv2).
    layer_decay: times the rate, to the power of the depth below the encoder's
      last norm, see `paths.layer_depths`; `groups` go on top.
    groups: dicts of `match` with some of `lr_mult`; `lr`, a constant rate that
      nothing scales or schedules; `weight_decay`; `momentum`, where the
      optimiser has it. The first that matches a parameter holds, also before
      `decay_exclude`.
    freeze: dicts of `match` and `steps`, maybe `moments`, see `freeze_until`.
    **hyper: of the optimiser; all have `moment_dtype`, "bfloat16" or None, in
      which the first moment is kept between steps.

  Raises:
    UserError: an unknown optimiser, an option that it does not have, a pattern
      that is not one, or a word for the tuple of them; in `init`, one of
      `groups` or `freeze` that no parameter matches.
  """
  kinds = options(name)
  if isinstance(decay_exclude, str):  # whose letters would be the patterns
    raise errors.UserError(
      f"optimizer.decay_exclude={decay_exclude!r}: give a tuple of patterns, "
      f"as {(decay_exclude,)}"
    )
  errors.refuse_options(f"optimizer {name}", hyper, kinds)
  _check_numbers(
    learning_rate=learning_rate,
    weight_decay=weight_decay,
    clip_global_norm=clip_global_norm,
    clip_by_param=clip_by_param,
    clip_by_module=clip_by_module,
    layer_decay=layer_decay,
  )
  _check(groups, freeze, decay_exclude)
  excluded = lambda path, w: paths.matches(decay_exclude, path, w)

  def group_of(path):
    return next((g for g in groups if re.search(g["match"], path)), {})

  def in_group(path, key, otherwise):
    return group_of(path).get(key, otherwise)

  maker = _MAKERS[name]
  tx = maker(excluded=excluded, **hyper)
  for group in groups:
    if "momentum" in group:
      other = {"momentum": group["momentum"]}
      errors.refuse_options(f"optimizer {name}", other, kinds)
      other = maker(excluded=excluded, **hyper | other)
      mine = lambda path, group=group: group_of(path) is group
      tx = _apart(mine, own=other, rest=tx)
  try:
    for part in freeze:
      tx = freeze_until(tx=tx, **part)
  except TypeError as e:
    raise errors.UserError(f"optimizer.freeze={freeze}: {e}") from e
  if clip_global_norm is not None:
    tx = optax.chain(optax.clip_by_global_norm(clip_global_norm), tx)
  if clip_by_param:
    tx = optax.chain(_clip_each(clip_by_param), tx)
  if clip_by_module:
    tx = optax.chain(_clip_modules(clip_by_module), tx)

  # Trees like the parameters, so that masks reach them too.
  def rates(params, rate):
    def of(path, w, depth=0):
      slower = 1.0 if layer_decay is None else layer_decay**depth
      own = rate * in_group(path, "lr_mult", 1.0) * slower
      return in_group(path, "lr", own)

    depths = () if layer_decay is None else (paths.layer_depths(params),)
    return paths.map_with_path(of, params, *depths)

  def decays(params, decay):
    of = lambda path, w: in_group(
      path, "weight_decay", 0.0 if excluded(path, w) else decay
    )
    return paths.map_with_path(of, params)

  read = lambda value, step: value(step) if callable(value) else value

  def init(params):
    if clip_by_param or name in ("lamb", "lars", "larc"):
      paths.refuse_scanned(params)
    if layer_decay is not None and not paths.blocks(params):
      raise errors.UserError(
        "optimizer.layer_decay is for encoders of blocks, and this one has "
        "none: leave it out"
      )
    paths.check_matches([part["match"] for part in (*groups, *freeze)], params)
    paths.warn_of_unmatched([p for p in decay_exclude if p != "1d"], params)
    return State(jnp.zeros([], jnp.int32), tx.init(params))

  def update(grads, state, params):
    updates, inner = tx.update(
      grads,
      state.inner,
      params,
      rates=rates(params, read(learning_rate, state.count)),
      decays=decays(params, read(weight_decay, state.count)),
    )
    return updates, State(state.count + 1, inner)

  return optax.GradientTransformation(init, update)


def options(name: str) -> dict[str, Any]:
  """The options of the optimiser `name` alone, {option: annotation}.

  Raises:
    UserError: there is none of that name.
  """
  if name not in _MAKERS:
    raise errors.UserError(
      f"unknown optimizer {name!r}: choose among {', '.join(_MAKERS)}"
    )
  kinds = inspect.signature(_MAKERS[name]).parameters.values()
  return {k.name: k.annotation for k in kinds if k.name != "excluded"}


def freeze_until(
  steps: int | None,
  tx: optax.GradientTransformation,
  match: str,
  moments: bool = False,
) -> optax.GradientTransformation:
  """No update, no decay and no moments for what `match` finds, for `steps`.

  None is for ever. With `moments` these are gathered nevertheless, as by a rate
  of zero, which DINOv2 has where DINO has no gradient.
  Not the same as gradients of zero, which let decay and momentum go on. After
  `steps`, `tx` begins for these parameters as at step 0; schedules of `make` go
  on, but those that `tx` itself counts begin too.
  """
  tx = optax.with_extra_args_support(tx)

  def init(params):
    return State(jnp.zeros([], jnp.int32), tx.init(params))

  def update(grads, state, params=None, **extra):
    updates, inner = tx.update(grads, state.inner, params, **extra)
    thawed = state.count >= steps
    keep = lambda a, b: jnp.where(thawed, a, b)
    zeros = jax.tree.map(jnp.zeros_like, updates)
    if not moments:
      inner = jax.tree.map(keep, inner, state.inner)
    return jax.tree.map(keep, updates, zeros), State(state.count + 1, inner)

  late = optax.GradientTransformationExtraArgs(init, update)
  if steps is None:
    late = optax.set_to_zero()
  matches = lambda path: re.search(match, path)
  return _apart(matches, late=late, now=tx)


def _apart(matches, **parts):
  """The first of two for paths that `matches`, the second for the rest."""
  found, rest = parts
  labels = lambda params: paths.map_with_path(
    lambda path, x: found if matches(path) else rest, params
  )
  return optax.partition(parts, labels, mask_compatible_extra_args=True)


def _clip_each(norm):
  """facebookresearch/dino `utils.clip_gradients`."""

  def clip(g):
    return g * jnp.minimum(1.0, norm / (jnp.linalg.norm(g) + 1e-6))

  return optax.stateless(lambda updates, _: jax.tree.map(clip, updates))


def _clip_modules(norm):
  """`clip_grad_norm_` of torch, for each part of the gradients."""

  def clip(tree):
    scale = jnp.minimum(1.0, norm / (optax.global_norm(tree) + 1e-6))
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), tree)

  return optax.stateless(
    lambda updates, _: {name: clip(tree) for name, tree in updates.items()}
  )


def _check_numbers(**given):
  for name, value in given.items():
    negative = isinstance(value, int | float) and value < 0
    if negative or isinstance(value, str):
      raise errors.UserError(f"optimizer.{name}={value}: give 0 or more")


def _check(groups, freeze, patterns):
  keys = {"match", "lr_mult", "lr", "weight_decay", "momentum"}
  for name, parts in (("groups", groups), ("freeze", freeze)):
    if not isinstance(parts, list | tuple) or not all(
      isinstance(part, Mapping) for part in parts
    ):
      raise errors.UserError(
        f"optimizer.{name}={parts!r}: give a tuple of dicts, each with match"
      )
  for group in groups:
    if "match" not in group or set(group) - keys:
      raise errors.UserError(
        f"group {group}: give match, and lr_mult, lr, weight_decay or momentum"
      )
    numbers = {k: v for k, v in group.items() if k != "match"}
    errors.refuse_kinds("optimizer.groups", numbers, dict.fromkeys(keys, float))
    _check_numbers(**numbers)
  for part in freeze:
    if not {"match", "steps"} <= set(part):
      raise errors.UserError(
        f"optimizer.freeze has {part}: give match and steps (None is for ever)"
      )
    kinds = {"steps": int | None, "moments": bool}
    errors.refuse_kinds("optimizer.freeze", part, kinds)
    _check_numbers(**{"freeze.steps": part.get("steps")})
  matches = [part.get("match") for part in (*groups, *freeze)]
  for pattern in [*patterns, *matches]:
    try:
      re.compile(pattern)
    except (re.error, TypeError) as e:
      raise errors.UserError(f"not a pattern: {pattern!r} ({e})") from e
