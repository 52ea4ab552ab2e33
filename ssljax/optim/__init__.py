"""Optimisers, as the papers have them. Needs jax and optax alone.

The step is counted once, outside; schedules of the rate and the decay are read
there and handed inwards, so that a part that was frozen begins with fresh
moments and goes on with the schedule. Paths of parameters are as in
"encoder/layer1_0_conv1/kernel"; patterns are regular expressions that may match
anywhere in them.
"""

import inspect
import math
import re
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import logging

from ssljax import errors
from ssljax import schedules

_SCANNED = "encoder/blocks/"  # of encoder.scan: arrays [depth ...]


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
      the same name for what else it takes.
    learning_rate: a number or `step -> number`.
    weight_decay: a number or `step -> number`.
    decay_exclude: patterns of parameters without decay (LARS and LAMB: and
      without adaptation); "1d" stands for arrays of less than two dimensions.
    clip_global_norm: the gradients' norm is cut to it, frozen ones counted.
    clip_by_param: the norm of each parameter's gradient is (DINO).
    clip_by_module: that of each part of the parameters, as "encoder", is
      (DINOv2).
    layer_decay: times the rate, to the power of the depth below the encoder's
      last norm, see `layer_depths`; `groups` go on top.
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
  excluded = lambda path, w: _matches(decay_exclude, path, w)

  def group_of(path):
    return next((g for g in groups if re.search(g["match"], path)), {})

  def in_group(path, key, otherwise):
    return group_of(path).get(key, otherwise)

  maker = _makers()[name]
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
  if clip_global_norm:
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

    depths = () if layer_decay is None else (layer_depths(params),)
    return _map_with_path(of, params, *depths)

  def decays(params, decay):
    of = lambda path, w: in_group(
      path, "weight_decay", 0.0 if excluded(path, w) else decay
    )
    return _map_with_path(of, params)

  read = lambda value, step: value(step) if callable(value) else value

  def init(params):
    if clip_by_param or name in ("lamb", "lars", "larc"):
      _refuse_scanned(params)
    if layer_decay is not None and not _blocks(params):
      raise errors.UserError(
        "optimizer.layer_decay is for encoders of blocks, and this one has "
        "none: leave it out"
      )
    _check_matches([part["match"] for part in (*groups, *freeze)], params)
    _warn_of_unmatched([p for p in decay_exclude if p != "1d"], params)
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


def _makers():
  return dict(sgd=sgd, adam=adam, adamw=adamw, lamb=lamb, lars=lars, larc=larc)


def options(name: str) -> dict[str, Any]:
  """The options of the optimiser `name` alone, {option: annotation}.

  Raises:
    UserError: there is none of that name.
  """
  makers = _makers()
  if name not in makers:
    raise errors.UserError(
      f"unknown optimizer {name!r}: choose among {', '.join(makers)}"
    )
  kinds = inspect.signature(makers[name]).parameters.values()
  return {k.name: k.annotation for k in kinds if k.name != "excluded"}


def sgd(
  *,
  excluded: Callable,
  momentum: float = 0.9,
  nesterov: bool = False,
  moment_dtype: str | None = None,
):
  """SGD as torch.optim has it: the decay joins the gradient before momentum."""
  del excluded
  return optax.chain(
    _add_decay(),
    _trace(momentum, nesterov, moment_dtype),
    _times_rate(),
  )


def adamw(
  *,
  excluded: Callable,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  bias_correction: bool = True,
  moment_dtype: str | None = None,
):
  """AdamW as torch.optim has it: the decay is decoupled, times the rate.

  Without `bias_correction`, and with eps 1e-6, it is BERT's:
  `AdamWeightDecayOptimizer` of google-research/bert `optimization.py`.
  """
  del excluded
  adam = _scale_by_adam(b1, b2, eps, bias_correction, moment_dtype)
  return optax.chain(adam, _add_decay(), _times_rate())


def adam(
  *,
  excluded: Callable,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  moment_dtype: str | None = None,
):
  """Adam as torch.optim has it: the decay joins the gradient (L2)."""
  del excluded
  return optax.chain(
    _add_decay(),
    _scale_by_adam(b1, b2, eps, moment_dtype=moment_dtype),
    _times_rate(),
  )


def lamb(
  *,
  excluded: Callable,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-6,
  moment_dtype: str | None = None,
):
  """LAMB: You et al. 2019, arXiv:1904.00962, algorithm 2.

  What is excluded from decay has no adaptation either, as in the authors'
  google-research/albert `lamb_optimizer.py`; which, unlike the paper and this,
  does not correct the moments' bias. Trust is of each parameter, and queries,
  keys and values are one here, also BERT's, whose authors have three.
  """
  return optax.chain(
    _scale_by_adam(b1, b2, eps, moment_dtype=moment_dtype),
    _add_decay(),
    _adapt(excluded, 1.0),
    _times_rate(),
  )


def lars(
  *,
  excluded: Callable,
  momentum: float = 0.9,
  eeta: float = 0.001,
  nesterov: bool = False,
  rate_first: bool = True,
  moment_dtype: str | None = None,
):
  """LARS as google-research/simclr `lars_optimizer.py` has it.

  v <- momentum v + rate trust (g + decay w), w <- w - v: the rate is inside the
  momentum. With `rate_first=False` it is outside, as the authors of BYOL,
  Barlow Twins and VICReg have it: v <- momentum v + trust (g + decay w), w <- w
  - rate v. Trust is eeta |w| / |g + decay w|; parameters that are excluded have
  neither decay nor trust.
  """
  trace = _trace(momentum, nesterov, moment_dtype)
  last = (_times_rate(), trace) if rate_first else (trace, _times_rate())
  return optax.chain(_add_decay(), _adapt(excluded, eeta), *last)


def larc(
  *,
  excluded: Callable,
  momentum: float = 0.9,
  nesterov: bool = False,
  trust_coefficient: float = 0.001,
  clip: bool = False,
  eps: float = 1e-8,
  exclude_from_adaptation: bool = False,
  moment_dtype: str | None = None,
):
  """LARC as NVIDIA/apex `parallel/LARC.py` has it around SGD; SwAV uses it.

  g <- (g + decay w) a, where a = trust_coefficient |w| / (|g| + decay |w| +
  eps); `clip` makes it min(a / rate, 1), so that the rate given is the most.
  vturrisi/solo-learn `lars.py` is this with clip, trust_coefficient 0.02 and
  exclude_from_adaptation, which leaves plain SGD to what `decay_exclude` finds.
  """

  def adapt(path, g, w, rate, decay):
    if exclude_from_adaptation and excluded(path, w):
      return g + decay * w
    w_norm, g_norm = jnp.linalg.norm(w), jnp.linalg.norm(g)
    a = trust_coefficient * w_norm / (g_norm + decay * w_norm + eps)
    if clip:
      a = jnp.minimum(a / rate, 1.0)
    # Where a norm is zero apex leaves the gradient alone, and adds no decay.
    return jnp.where((w_norm != 0) & (g_norm != 0), (g + decay * w) * a, g)

  return optax.chain(
    _by_param(adapt), _trace(momentum, nesterov, moment_dtype), _times_rate()
  )


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
  labels = lambda params: _map_with_path(
    lambda path, x: found if matches(path) else rest, params
  )
  return optax.partition(parts, labels, mask_compatible_extra_args=True)


def _trace(momentum, nesterov, moment_dtype):
  return optax.trace(momentum, nesterov, _moment_dtype(moment_dtype))


def _moment_dtype(name):
  if name not in (None, "bfloat16"):  # an integer would lose the moment
    raise errors.UserError(
      f"optimizer.moment_dtype={name!r}: give 'bfloat16', or none"
    )
  return name and jnp.bfloat16


def _scale_by_adam(b1, b2, eps, bias_correction=True, moment_dtype=None):
  """As `optax.scale_by_adam`, but 1 - b**count to float32's last digit.

  optax' own loses 1e-5 of the first steps' updates where b2 is 0.999. The
  second moment stays float32 whatever `moment_dtype` is: in bfloat16 steps of
  1 - b2 are lost to rounding, and it would stand still.
  """

  first = _moment_dtype(moment_dtype)

  def init(params):
    zeros = lambda dtype: jax.tree.map(
      lambda x: jnp.zeros_like(x, dtype), params
    )
    moments = zeros(first), zeros(jnp.float32)
    return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), *moments)

  def update(grads, state, params=None):
    del params
    count = state.count + 1
    correction = lambda b: -jnp.expm1(count * (math.log(b) if b else -math.inf))
    c1, c2 = (correction(b1), correction(b2)) if bias_correction else (1.0, 1.0)
    mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
    nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, grads)
    scaled = lambda m, v: (m / c1) / (jnp.sqrt(v / c2) + eps)
    updates = jax.tree.map(scaled, mu, nu)
    as_before = lambda new, old: new.astype(old.dtype)
    mu, nu = jax.tree.map(as_before, (mu, nu), (state.mu, state.nu))
    return updates, optax.ScaleByAdamState(count, mu, nu)

  return optax.GradientTransformation(init, update)


def _by_param(function):
  """`function(path, update, w, rate, decay)` for each parameter."""

  def update(updates, state, params, *, rates, decays):
    return _map_with_path(function, updates, params, rates, decays), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update
  )


def _add_decay():
  return _by_param(lambda path, g, w, rate, decay: g + decay * w)


def _times_rate():
  return _by_param(lambda path, u, w, rate, decay: -rate * u)


def _adapt(excluded, coefficient):
  """Times coefficient |w| / |u|, but for what is excluded."""
  return optax.masked(
    optax.scale_by_trust_ratio(trust_coefficient=coefficient),
    lambda tree: _map_with_path(lambda *a: not excluded(*a), tree),
  )


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


_BLOCK = re.compile(r"^encoder/block(\d+)/")


def _blocks(params):
  """How many the encoder has."""

  def number(path, w):
    if found := _BLOCK.search(path):
      return int(found[1]) + 1
    return w.shape[0] if path.startswith(_SCANNED) else 0

  return max(jax.tree.leaves(_map_with_path(number, params)), default=0)


def layer_depths(params):
  """How many layers below the encoder's last norm each parameter is.

  facebookresearch/dinov2 `utils/param_groups.py`, and BEiT: of a ViT of n
  blocks the last has 1, the first n, and n + 1 what comes before them: patch
  embedding, positions, class, mask and register tokens. The last norm, relative
  positions, which all blocks share, and all that is outside the encoder have 0.
  BERT's one norm of its own is of the embeddings: it has n + 1. Scanned blocks
  have an array.
  """
  blocks = _blocks(params)
  last = ("encoder/norm", "encoder/relative/")
  if "kind_embed" in params.get("encoder", {}):
    last = ()

  def depth(path, w):
    if found := _BLOCK.search(path):
      return blocks - int(found[1])
    if path.startswith(_SCANNED):
      depths = blocks - jnp.arange(blocks)
      return depths.reshape(-1, *(1,) * (w.ndim - 1))
    inside = path.startswith("encoder/") and not path.startswith(last)
    return blocks + 1 if inside else 0

  return _map_with_path(depth, params)


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


def _check_matches(patterns, params):
  paths = jax.tree.leaves(_map_with_path(lambda path, w: path, params))
  for pattern in patterns:
    if not any(re.search(pattern, path) for path in paths):
      raise errors.UserError(
        f"no parameter matches {pattern!r}: patterns are for paths like "
        f"{paths[-1]}"
      )


def _warn_of_unmatched(patterns, params):
  """Those of `decay_exclude` may be for encoders of several kinds."""
  for pattern in patterns:
    try:
      _check_matches([pattern], params)
    except errors.UserError as e:
      logging.warning("optimizer.decay_exclude: %s", e)


def _refuse_scanned(params):
  """What takes a norm of each parameter would take it of all blocks as one."""

  def see(path, w):
    if path.startswith(_SCANNED):
      raise errors.UserError(
        "lamb, lars, larc and clip_by_param take the norm of each parameter, "
        "and scanned blocks are one: set config.encoder.scan=False"
      )

  _map_with_path(see, params)


def _matches(patterns, path, x):
  ndim = x.ndim - path.startswith(_SCANNED)
  return any(
    ndim < 2 if pattern == "1d" else re.search(pattern, path)
    for pattern in patterns
  )


def _map_with_path(function, tree, *rest):
  """`function(path, leaf, ...)`, where paths are joined by slashes."""

  def call(path, *leaves):
    names = (str(getattr(k, "key", getattr(k, "idx", k))) for k in path)
    return function("/".join(names), *leaves)

  return jax.tree_util.tree_map_with_path(call, tree, *rest)
