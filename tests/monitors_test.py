"""Monitors against NumPy and the papers' values, and at their extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import augment
from ssljax import monitors
from ssljax.data import sources
from ssljax.methods import simclr
from ssljax.models import resnet
from ssljax.models import vit

SHAPES = [(64, 16), (16, 64), (48, 48)]


def normal(n, d, seed=0):
  z = np.random.default_rng(seed).normal(size=(n, d))
  return z.astype(np.float32)


def basis(d):
  """[2d d]: every axis in both directions."""
  return np.concatenate([np.eye(d), -np.eye(d)]).astype(np.float32)


def spectrum(values, n, d, seed=0):
  """Embeddings [n d] of mean 0 whose covariance has these eigenvalues."""
  k = len(values)
  left = normal(n, k, seed)
  left = np.linalg.qr(left - left.mean(axis=0))[0]  # [n k], columns of mean 0
  right = np.linalg.qr(normal(d, k, seed + 1))[0]
  return (left * np.sqrt(values)) @ right.T


def of_rank(rank, n=64, d=32):
  return normal(n, rank) @ normal(rank, d, seed=1)


# Collapsed embeddings, the kind that is told of each, and sound ones.
CONSTANT = np.tile(normal(1, 32), (64, 1))
COLLAPSED = {
  "zeros": (np.zeros((64, 32), np.float32), "complete"),
  "constant": (CONSTANT, "complete"),
  "large constant": (1e6 * CONSTANT, "complete"),
  "nearly constant": (CONSTANT + 1e-3 * normal(64, 32), "complete"),
  "one direction, other lengths": (
    CONSTANT * np.arange(1, 65)[:, None],
    "complete",
  ),
  "rank one": (of_rank(1), "dimensional"),
  "rank two": (of_rank(2), "dimensional"),
  "rank two of many": (of_rank(2, d=512), "dimensional"),
  "two units alive": (np.pad(normal(64, 2), ((0, 0), (0, 510))), "dimensional"),
  "one direction beside the common": (
    10 * CONSTANT + of_rank(1),
    "dimensional",
  ),
  "two directions beside the common": (
    10 * CONSTANT + of_rank(2),
    "dimensional",
  ),
}
SOUND = {
  "isotropic": normal(64, 32),
  "isotropic, few examples": normal(8, 64),
  "isotropic, very few examples": normal(3, 64),
  "two dimensions": normal(64, 2),
  "four dimensions": normal(64, 4),
  "with a common part": normal(64, 32) + 5,
  "nearly all common": normal(64, 32) + 30,  # of rankme 2.6
}


def rankme_numpy(z):
  """Equations 1 and 2 of the paper."""
  s = np.linalg.svd(z.astype(np.float64), compute_uv=False)
  p = s / np.abs(s).sum() + 1e-7
  return np.exp(-np.sum(p * np.log(p)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_rankme_is_the_papers(shape, offset):
  z = normal(*shape) + offset
  np.testing.assert_allclose(monitors.rankme(z), rankme_numpy(z), rtol=1e-4)


def test_rankme_counts_directions():
  np.testing.assert_allclose(monitors.rankme(basis(16)), 16, rtol=1e-4)
  np.testing.assert_allclose(monitors.rankme(of_rank(1)), 1, rtol=1e-3)
  np.testing.assert_allclose(monitors.rankme(CONSTANT), 1, rtol=1e-3)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("n, d", [(256, 128), (40, 200), (64, 8), (8, 3)])
def test_alpha_req_is_the_exponent(n, d, alpha):
  rank = np.arange(1, min(n - 1, d) + 1)
  z = 3 * spectrum(rank**-alpha, n, d) + normal(1, d)  # scale and mean: nothing
  np.testing.assert_allclose(monitors.alpha_req(z), alpha, rtol=5e-3)


def test_alpha_req_fits_ranks_11_to_100_weighted():
  values = np.arange(1, 151) ** -1.0
  values[:10] = 10
  values[100:] = 1e-4
  alpha = monitors.alpha_req(spectrum(values, 200, 150))
  np.testing.assert_allclose(alpha, 1, rtol=5e-3)
  # Off the line within the range: NumPy's weighted fit, weights by roots.
  values[10:100] *= np.exp(np.sin(np.arange(90) / 20))
  rank = np.arange(11, 101)
  slope, _ = np.polyfit(np.log(rank), np.log(values[10:100]), 1, w=rank**-0.5)
  alpha = monitors.alpha_req(spectrum(values, 200, 150))
  np.testing.assert_allclose(alpha, -slope, rtol=5e-3)
  assert abs(slope + 1) > 0.1


def test_alpha_req_is_0_where_there_is_no_decay():
  white = spectrum(np.ones(32), 64, 32)
  for z in (white, CONSTANT, np.zeros((64, 32)), of_rank(1), normal(2, 8)):
    np.testing.assert_allclose(monitors.alpha_req(z), 0, atol=1e-4)


def test_alignment():
  z = normal(32, 16)
  lengths = np.arange(1, 33, dtype=np.float32)[:, None]
  for other, expected in ((z, 0), (z * lengths, 0), (-z, 4)):
    np.testing.assert_allclose(
      monitors.alignment(z, other), expected, atol=1e-5
    )
  axes = np.eye(8, dtype=np.float32)
  rolled = np.roll(axes, 1, axis=0)
  np.testing.assert_allclose(monitors.alignment(axes, rolled), 2, rtol=1e-6)


def test_uniformity_is_the_papers():
  z = normal(24, 8)
  unit = np.float64(z) / np.linalg.norm(z, axis=1, keepdims=True)
  pairs = [
    np.exp(-2 * np.sum((unit[i] - unit[j]) ** 2))
    for i in range(24)
    for j in range(i)
  ]
  np.testing.assert_allclose(
    monitors.uniformity(z), np.log(np.mean(pairs)), rtol=1e-5
  )
  np.testing.assert_allclose(monitors.uniformity(CONSTANT), 0, atol=1e-5)
  opposite = np.stack([z[0], -2 * z[0]])
  np.testing.assert_allclose(monitors.uniformity(opposite), -8, rtol=1e-5)


def test_std_is_1_for_isotropic_and_0_for_constant_embeddings():
  np.testing.assert_allclose(monitors.std_by_dimension(basis(16)), 1, rtol=1e-5)
  z = normal(4096, 64)
  lengths = np.arange(1, 4097, dtype=np.float32)[:, None]
  for same in (z, z * lengths):
    np.testing.assert_allclose(monitors.std_by_dimension(same), 1, rtol=0.02)
  assert monitors.std_by_dimension(CONSTANT) < 1e-5


@pytest.mark.parametrize("name", [*COLLAPSED, *SOUND])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_measure_is_finite_inside_jit_and_tells_collapse(name, dtype):
  z = COLLAPSED[name][0] if name in COLLAPSED else SOUND[name]
  z = jnp.asarray(z, dtype)
  figures = jax.jit(monitors.measure)(z, z)
  names = {"rankme", "alpha_req", "alignment", "uniformity", "std"}
  assert set(figures) == names
  for value in figures.values():
    assert value.shape == () and value.dtype == jnp.float32
    assert np.isfinite(value)
  figures = {k: float(v) for k, v in figures.items()}
  reason = monitors.collapse(figures, min(z.shape))
  if name in COLLAPSED:
    assert reason.startswith(f"{COLLAPSED[name][1]} collapse:")
    assert "\n" not in reason
  else:
    assert reason is None


def test_measure_takes_the_views_apart():
  z1, z2 = normal(64, 32), of_rank(1)
  figures = monitors.measure(z1, z2)
  np.testing.assert_allclose(figures["rankme"], monitors.rankme(z1))
  np.testing.assert_allclose(figures["alignment"], 2, rtol=0.1)


@pytest.mark.parametrize(
  "make",
  [
    lambda: vit.make(variant="Mu/2"),
    lambda: vit.make(variant="Mu/2", pool="mean"),
    lambda: resnet.make(variant="18", width=8, stem="cifar"),
  ],
  ids=["vit", "vit of the mean", "resnet"],
)
def test_a_random_encoder_has_not_collapsed(make):
  """Its features share one large direction, and that is no collapse."""
  source = sources.make("digits", split="train")
  views = augment.make("simclr", size=(8, 8), area=(0.2, 1.0), strength=0.5)
  method = simclr.make(make())
  image = source.read(np.arange(128))["image"]

  @jax.jit
  def measure(rng):
    batch = views({"image": image, "key": jax.random.split(rng, 128)})
    params, method_state = jax.jit(method.init)(rng, batch)
    z = method.embed(params, method_state, batch)["pooled"]
    return monitors.measure(z, z), jnp.zeros(z.shape[1])

  figures, dims = measure(jax.random.key(0))
  assert figures["rankme"] < 20 and figures["std"] < 0.5  # far from isotropic
  assert monitors.collapse(figures, len(dims)) is None


@pytest.mark.parametrize(
  "name", ["spread/projection", "spread/keys", "spread/targets"]
)
def test_a_spread_that_is_lost_is_told(name):
  assert monitors.lost_spread(name, 0.9, 1.0) is None
  told = monitors.lost_spread(name, 0.0, 1.0)
  assert f"collapse: {name} fell to 0 from 1" in told
