"""Label-free figures of a representation, to be watched while it is learned.

Pure functions of embeddings, in float32 whatever the embeddings are in, finite
for constant ones and usable inside `jit`; `Watch` judges their values on the
host. Needs jax alone.
"""

import math

import jax
import jax.numpy as jnp

from ssljax import ops

PREFIX = "monitor/"  # before the names of `measure`'s figures in a log

# The ranks of the eigenvalues that alpha-ReQ fits, counted from 1.
_FIRST_RANK, _LAST_RANK = 11, 100

# Below this std all embeddings are told to be the same, and where they spread
# less than in so many even directions they are told to lie in few.
_CONSTANT, _DIRECTIONS = 0.01, 4

# The part of its peak below which a metric `spread/...` of a method is told to
# be lost. In 200 steps of `:quick` on digits, of `tests/collapse_test.py`, one
# seed on one CPU core, two for MoCo: projections that batch norm ends kept 0.92
# to 1.00 where SimSiam and BYOL are sound, and 0.16 to 0.43 without
# stop-gradient or predictor, 0.53 on another kind of CPU (sound ones in 1,500
# steps there, two seeds each: SimSiam 0.98 and 0.99, BYOL 0.76 and 0.86);
# MoCo's keys, which start around a common direction, 0.28 to 0.34, and 0.01 to
# 0.05 with a temperature of 0.001 or no momentum; DINO's targets 0.15, 0.01
# without centring, 0.04 without sharpening.
_LOST = {"spread/projection": 0.6, "spread/keys": 0.1, "spread/targets": 0.1}


def rankme(z: jax.Array, *, eps: float = 1e-7) -> jax.Array:
  """The effective rank of embeddings [n d], from 1 to min(n, d).

  Garrido et al. 2023 (RankMe), arXiv:2210.02885, equations 1 and 2: the
  exponential of the entropy of the singular values, not centred, divided by
  their sum, plus `eps`.
  """
  s = jnp.linalg.svd(z.astype(jnp.float32), compute_uv=False)
  p = s / jnp.maximum(s.sum(), jnp.finfo(s.dtype).tiny) + eps
  return jnp.exp(-jnp.sum(p * jnp.log(p)))


def alpha_req(z: jax.Array) -> jax.Array:
  """The decay of the covariance's eigenvalues of embeddings [n d].

  Agrawal et al. 2022 (alpha-ReQ, NeurIPS): alpha where the eigenvalue of rank i
  falls as i^-alpha; about 1 generalised best, 0 is white. As `alpha.py` of
  arnab39/reptrix, the authors' library, has it after Stringer et al. 2019, it
  is the least squares line through log eigenvalue against log rank, each rank
  weighted by 1 / rank, over the ranks 11 to 100, counted from 1. Where there
  are m = min(n - 1, d) < 100 eigenvalues the fit ends at m, and starts at
  m // 4 where that is less than 11.

  Eigenvalues below float32's resolution of the largest count as that: alpha is
  0 where all of the fit's are, as for constant embeddings or those of rank one,
  and says nothing there.
  """
  z = z.astype(jnp.float32)
  n, d = z.shape
  count = min(n - 1, d)
  if count < 2:
    return jnp.float32(0)
  s = jnp.linalg.svd(z - z.mean(axis=0), compute_uv=False)
  # As NumPy's `matrix_rank` has it; the other bound is for where all are 0.
  resolution = s[0] * max(n, d) * jnp.finfo(s.dtype).eps
  s = jnp.maximum(s, jnp.maximum(resolution, 1e-30))
  first = max(1, min(_FIRST_RANK, count // 4))
  last = min(_LAST_RANK, count)
  rank = jnp.arange(first, last + 1, dtype=jnp.float32)
  # Eigenvalues are s^2 / (n - 1), and a constant factor leaves the slope.
  x, y = jnp.log(rank), 2 * jnp.log(s[first - 1 : last])
  weight = (1 / rank) / jnp.sum(1 / rank)
  x, y = x - weight @ x, y - weight @ y
  return -(weight @ (x * y)) / (weight @ jnp.square(x))


def alignment(z1: jax.Array, z2: jax.Array) -> jax.Array:
  """How far apart the views are, [n d] each: 0 where they are the same.

  Wang and Isola 2020, arXiv:2005.10242, section 4.1 with alpha = 2: the mean
  squared distance of partners, normalised; 2 for unrelated isotropic ones.
  """
  z1, z2 = _normalized(z1), _normalized(z2)
  return jnp.mean(jnp.sum(jnp.square(z1 - z2), axis=1))


def uniformity(z: jax.Array) -> jax.Array:
  """How evenly embeddings [n d], n > 1, fill the sphere: less is evener.

  Wang and Isola 2020, arXiv:2005.10242, section 4.1 with t = 2: the log of the
  mean, over pairs of different examples, of exp(-2 |x - y|^2), normalised; 0
  for constant embeddings, at best about -4.
  """
  z = _normalized(z)
  n = z.shape[0]
  squared = jnp.square(z).sum(axis=1)
  distance = squared[:, None] + squared - 2 * z @ z.T  # [n n]
  kernel = jnp.exp(-2 * jnp.maximum(distance, 0.0))
  others = jnp.where(jnp.eye(n, dtype=bool), 0.0, kernel)
  return jnp.log(others.sum() / (n * (n - 1)))


def std_by_dimension(z: jax.Array) -> jax.Array:
  """The spread of embeddings [n d]: about 1 if isotropic, 0 if constant.

  Chen and He 2021 (SimSiam), arXiv:2011.10566, section 4.1 and figure 2: the
  standard deviation of each dimension of the normalised embeddings, averaged,
  here times sqrt(d).
  """
  z = _normalized(z)
  return jnp.mean(jnp.std(z, axis=0)) * jnp.sqrt(jnp.float32(z.shape[1]))


def measure(z1: jax.Array, z2: jax.Array) -> dict[str, jax.Array]:
  """All figures, float32 scalars, of the embeddings [n d] of two views.

  Those of one set of embeddings are of the first views.
  """
  return {
    "rankme": rankme(z1),
    "alpha_req": alpha_req(z1),
    "alignment": alignment(z1, z2),
    "uniformity": uniformity(z1),
    "std": std_by_dimension(z1),
  }


def _normalized(z):
  return ops.l2_normalize(z.astype(jnp.float32))


def collapse(figures: dict[str, float], dim: int) -> str | None:
  """Why embeddings [n d] have collapsed, in one sentence, or None.

  Complete collapse: all are nearly the same. Dimensional collapse (Jing et al.
  2022, arXiv:2110.09348): their rankme is less than that of embeddings spread
  as much, evenly in 4 directions around a common one. For a common direction is
  no collapse: every random encoder has a large one, and it alone makes the
  rankme small.

  Measured as rankme over that bound, 1 being the threshold: 1.8 to 9 for 20
  random ResNet-18s and ViTs of 32 to 192 dimensions on views of digits and
  Fashion-MNIST (rankme 4.5 to 41, std 0.10 to 0.76); never under 1.3 in 200
  steps of SimCLR and SimSiam with a ViT of 32 dimensions on digits; 0.92 to
  0.98 after 200 steps of SimSiam without stop-gradient or predictor. It sees
  what it is given, though: without stop-gradient a ResNet-18 of 64 dimensions
  still had 4 then (7.5 with it), and its projections 2.7 (6).

  Embeddings that are not finite count as collapsed, too.

  Args:
    figures: as `measure` gives them.
    dim: d, or n where that is less.
  """
  if not all(map(math.isfinite, figures.values())):
    return "divergence: embeddings are not finite, or too large to measure"
  if figures["std"] < _CONSTANT:
    return (
      "complete collapse: the embeddings of all examples are nearly the same "
      f"(std {figures['std']:.2g}, where isotropic ones have 1)"
    )
  few = min(_DIRECTIONS, dim // 2)
  least = _rank(few, _spread(figures))
  if figures["rankme"] < least:
    return (
      f"dimensional collapse: the embeddings lie in few of {dim} dimensions "
      f"(rankme {figures['rankme']:.2f}, where as much spread in {few} "
      f"directions has {least:.2f})"
    )
  return None


def lost_spread(name: str, value: float, peak: float) -> str | None:
  """Why what a method learns from has collapsed, in one sentence, or None.

  The pooled embeddings, which `collapse` judges, may stay apart for long after
  projections or targets have become the same; so a method that can collapse
  has a metric, 0 where all examples are alike.

  Args:
    name: of the metric: `spread/projection`, `spread/keys`, `spread/targets`.
    value: its mean over the steps of a row of the log.
    peak: the largest such value of the run.
  """
  if value < _LOST.get(name, 0.0) * peak:
    return (
      f"collapse: {name} fell to {value:.3g} from {peak:.3g}, so that all "
      "examples have nearly the same"
    )
  return None


class Watch:
  """Judges the rows of a run's log, one after the other.

  Args:
    dim: as `collapse` takes it; None where nothing is measured.

  Attributes:
    collapsed: why the run has collapsed, by the last of what is watched, or
      None.
  """

  def __init__(self, dim: int | None):
    self._dim = dim
    self._reasons = {}  # {what is watched: why it has collapsed, or None}
    self._peaks = {}  # of each spread

  @property
  def collapsed(self) -> str | None:
    return next(filter(None, self._reasons.values()), None)

  def judge(self, row: dict[str, float | None]) -> list[str]:
    """Takes a row, None being what is not finite; returns the reasons in it."""
    row = {k: math.nan if v is None else v for k, v in row.items()}
    figures = {
      k.removeprefix(PREFIX): v for k, v in row.items() if k.startswith(PREFIX)
    }
    found = {}
    if figures:
      found["embeddings"] = collapse(figures, self._dim)
    for name, value in row.items():
      if name.startswith("spread/") and math.isfinite(value):
        peak = self._peaks[name] = max(value, self._peaks.get(name, value))
        found[name] = lost_spread(name, value, peak)
    self._reasons |= found
    return list(filter(None, found.values()))


def _spread(figures):
  """The root mean square distance from the mean on the sphere, from below.

  Its square is at least the square of the mean over dimensions, and half of the
  mean squared distance of pairs, by Jensen's inequality.
  """
  squared = max(figures["std"] ** 2, -figures["uniformity"] / 4)
  return math.sqrt(min(squared, 1.0))


def _rank(directions, spread):
  """The rankme of a common direction and spread in others, evenly."""
  common = math.sqrt(1 - spread**2)
  others = spread * math.sqrt(directions)
  parts = [common] + directions * [others / max(directions, 1)]
  shares = [part / (common + others) for part in parts if part]
  return math.exp(-sum(p * math.log(p) for p in shares))
