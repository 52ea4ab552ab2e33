"""SGD, Adam, AdamW, LAMB, LARS and LARC, as the papers have them.

Their `update` is handed `rates` and `decays`, trees like the parameters;
`excluded(path, parameter)` is whether a parameter has no decay.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from ssljax import errors
from ssljax.optim import paths


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
    return paths.map_with_path(function, updates, params, rates, decays), state

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
    lambda tree: paths.map_with_path(lambda *a: not excluded(*a), tree),
  )
