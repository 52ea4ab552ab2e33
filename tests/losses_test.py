"""Losses against NumPy, and at their extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import errors
from ssljax import losses


def ntxent_numpy(z1, z2, temperature):
  """Algorithm 1 of the paper, pair by pair."""
  z = np.concatenate([z1, z2]).astype(np.float64)
  z /= np.linalg.norm(z, axis=1, keepdims=True)
  s = z @ z.T / temperature
  n, total = len(z1), 0.0
  for i in range(2 * n):
    partner = (i + n) % (2 * n)
    others = [s[i, k] for k in range(2 * n) if k != i]
    total += np.log(np.sum(np.exp(others))) - s[i, partner]
  return total / (2 * n)


def views(n, d=16, dtype=np.float32):
  rng = np.random.default_rng(0)
  z1 = rng.normal(size=(n, d))
  return z1.astype(dtype), (z1 + 0.5 * rng.normal(size=(n, d))).astype(dtype)


@pytest.mark.parametrize("n", [2, 5, 64])
@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0])
def test_ntxent_is_algorithm_1(n, temperature):
  z1, z2 = views(n)
  value = losses.ntxent(z1, z2, temperature=temperature)
  expected = ntxent_numpy(z1, z2, temperature)
  np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-5)


def test_ntxent_of_three_views_is_the_mean_over_partners():
  rng = np.random.default_rng(0)
  views = np.float32(rng.normal(size=(3, 5, 16)))
  z = np.concatenate(views).astype(np.float64)
  z /= np.linalg.norm(z, axis=1, keepdims=True)
  s = z @ z.T / 0.2
  missed = []
  for i, j in np.ndindex(s.shape):
    if i != j and i % 5 == j % 5:
      others = np.delete(s[i], i)
      missed.append(np.log(np.exp(others).sum()) - s[i, j])
  assert len(missed) == 15 * 2
  for blocks in (1, 5):
    value = losses.ntxent(*views, temperature=0.2, blocks=blocks)
    np.testing.assert_allclose(value, np.mean(missed), rtol=1e-6)


def test_ntxent_of_one_view_is_told():
  with pytest.raises(ValueError, match="two or more views"):
    losses.ntxent(jnp.ones((8, 4)), temperature=0.5)


def test_ntxent_without_information_is_log_of_the_candidates():
  z = jnp.ones((8, 4))
  np.testing.assert_allclose(
    losses.ntxent(z, z, temperature=0.5), np.log(15), rtol=1e-6
  )


def test_ntxent_has_no_gradient_from_the_self_pair():
  """At small temperatures a subtracted offset leaves one; a mask does not."""
  z1, z2 = views(4)
  loss = lambda z: losses.ntxent(z, z2, temperature=0.05)
  grad = jax.jit(jax.grad(loss))(z1)
  eps = 1e-4
  for i, j in ((0, 0), (3, 7)):
    up, down = np.float64(z1), np.float64(z1)
    up[i, j] += eps
    down[i, j] -= eps
    slope = ntxent_numpy(up, z2, 0.05) - ntxent_numpy(down, z2, 0.05)
    np.testing.assert_allclose(
      grad[i, j], slope / (2 * eps), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("blocks", [2, 8, 24])
def test_ntxent_in_blocks_is_the_same(blocks):
  z1, z2 = views(12)
  f = lambda blocks: jax.jit(
    jax.value_and_grad(
      lambda z1, z2: losses.ntxent(z1, z2, temperature=0.2, blocks=blocks),
      argnums=(0, 1),
    )
  )(z1, z2)
  (plain, grads), (value, blocked) = f(1), f(blocks)
  np.testing.assert_allclose(value, plain, rtol=1e-6)
  for a, b in zip(blocked, grads):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
  with pytest.raises(ValueError, match="5 parts do not divide 24 rows"):
    f(5)


def test_ntxent_at_extremes():
  for z1, z2 in (
    (jnp.zeros((4, 8)), jnp.zeros((4, 8))),
    (jnp.full((4, 8), 1e4), jnp.full((4, 8), -1e4)),
    tuple(map(jnp.bfloat16, views(4))),
  ):
    loss = lambda z, z2=z2: losses.ntxent(z, z2, temperature=0.01)
    value, grad = jax.jit(jax.value_and_grad(loss))(z1)
    assert value.dtype == jnp.float32
    assert np.isfinite(value) and np.isfinite(np.float32(grad)).all()


def normalized(n, d=16, seed=0):
  x = np.random.default_rng(seed).normal(size=(n, d))
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def cross_entropy(logits, labels):
  logits = logits.astype(np.float64)
  z = np.log(np.exp(logits).sum(axis=1))
  return np.mean(z - logits[np.arange(len(logits)), labels])


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_infonce_is_cross_entropy(temperature):
  q, k, queue = normalized(8), normalized(8, seed=1), normalized(32, seed=2)
  labels = np.arange(8)
  expected = cross_entropy(q @ k.T / temperature, labels)
  value = losses.infonce(3 * q, 5 * k, temperature=temperature)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  logits = np.concatenate([(q * k).sum(1, keepdims=True), q @ queue.T], axis=1)
  expected = cross_entropy(logits / temperature, 0 * labels)
  value = losses.infonce_queue(q, k, queue, temperature=temperature)
  np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_keys_and_queue_get_no_gradient():
  q, k, queue = normalized(4), normalized(4, seed=1), normalized(8, seed=2)
  grads = jax.grad(
    lambda q, k, queue: (
      losses.infonce(q, k, temperature=0.2)
      + losses.infonce_queue(q, k, queue, temperature=0.2)
    ),
    argnums=(0, 1, 2),
  )(q, k, queue)
  assert np.abs(grads[0]).max() > 0
  assert not np.any(grads[1]) and not np.any(grads[2])


def barlow_twins_numpy(z1, z2):
  """Equations 1 and 2, pair by pair of dimensions."""
  z1, z2 = (z.astype(np.float64) - z.mean(0, np.float64) for z in (z1, z2))
  d, on, off = z1.shape[1], 0.0, 0.0
  for i in range(d):
    for j in range(d):
      variances = (np.mean(z1[:, i] ** 2), np.mean(z2[:, j] ** 2))
      scale = np.sqrt(np.prod(np.add(variances, 1e-5)))
      c = np.mean(z1[:, i] * z2[:, j]) / scale
      on, off = (on + (1 - c) ** 2, off) if i == j else (on, off + c**2)
  return on, off


def vicreg_numpy(z1, z2):
  """Equations 1 to 6, the variance halved as in the authors' code."""
  z1, z2 = z1.astype(np.float64), z2.astype(np.float64)
  variance = covariance = 0.0
  for z in (z1, z2):
    c = np.cov(z, rowvar=False)
    hinge = np.maximum(0, 1 - np.sqrt(np.diag(c) + 1e-4))
    variance += hinge.mean() / 2
    covariance += (np.sum(c**2) - np.sum(np.diag(c) ** 2)) / z.shape[1]
  return np.mean((z1 - z2) ** 2), variance, covariance


REDUNDANCY = {
  "barlow_twins": (losses.barlow_twins, barlow_twins_numpy),
  "vicreg": (losses.vicreg, vicreg_numpy),
}


@pytest.mark.parametrize("n", [2, 5, 64])
@pytest.mark.parametrize("name", REDUNDANCY)
def test_redundancy_is_the_papers(name, n):
  ours, numpys = REDUNDANCY[name]
  z1, z2 = views(n)
  np.testing.assert_allclose(ours(z1, z2), numpys(z1, z2), rtol=2e-5, atol=1e-6)


def test_barlow_twins_of_a_hadamard_batch():
  # Columns of mean 0, of variance 1, not correlated.
  z = jnp.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
  np.testing.assert_allclose(losses.barlow_twins(z, z), (0, 0), atol=1e-9)
  # Opposite views: 1 - (-1), squared, three times.
  np.testing.assert_allclose(losses.barlow_twins(z, -z), (12, 0), rtol=1e-4)
  # The first two columns swapped in one view.
  swapped = losses.barlow_twins(z, z[:, [1, 0, 2]])
  np.testing.assert_allclose(swapped, (2, 2), rtol=1e-4)


def test_vicreg_of_a_hadamard_batch():
  z = jnp.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
  np.testing.assert_allclose(losses.vicreg(z, z), (0, 0, 0), atol=1e-9)
  # Half as large: the unbiased variance is 1/3.
  near, spread, crossed = losses.vicreg(0.5 * z, -0.5 * z)
  np.testing.assert_allclose(near, 1.0)
  np.testing.assert_allclose(spread, 1 - np.sqrt(1 / 3 + 1e-4), rtol=1e-6)
  np.testing.assert_allclose(crossed, 0.0, atol=1e-9)
  # One column three times: six covariances of 4/3 in each view, over 3.
  same = jnp.tile(z[:, :1], (1, 3))
  crossed = losses.vicreg(same, same)[2]
  np.testing.assert_allclose(crossed, 2 * 6 * (4 / 3) ** 2 / 3, rtol=1e-6)


def test_cosine_of_constants():
  x = jnp.array([[3.0, 4.0], [1.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
  y = jnp.array([[6.0, 8.0], [0.0, 5.0], [-1.0, 0.0], [1.0, 1.0]])
  np.testing.assert_allclose(losses.cosine(x, y), [1, 0, -1, 0], atol=1e-6)


@pytest.mark.parametrize("name", [*REDUNDANCY, "cosine"])
def test_losses_of_two_views_at_extremes(name):
  loss = losses.cosine if name == "cosine" else REDUNDANCY[name][0]

  @jax.jit
  def of_both(z1, z2):
    terms, grad_of = jax.vjp(loss, z1, z2)
    return terms, grad_of(jax.tree.map(jnp.ones_like, terms))

  for z1, z2 in (
    (jnp.zeros((4, 8)), jnp.zeros((4, 8))),
    (jnp.full((4, 8), 3.0), jnp.full((4, 8), -3.0)),
    (views(4)[0],) * 2,
    views(2),
    tuple(map(jnp.bfloat16, views(4))),
  ):
    terms, grads = of_both(z1, z2)
    terms = jax.tree.leaves(terms)
    assert all(t.dtype == jnp.float32 and np.isfinite(t).all() for t in terms)
    for z, grad in zip((z1, z2), grads):
      assert grad.dtype == z.dtype and np.isfinite(np.float32(grad)).all()


def test_masked_pixels_counts_removed_patches_alone():
  prediction = jnp.ones((2, 4, 3))
  target = jnp.zeros((2, 4, 3)).at[0, 0].set(9.0)
  mask = jnp.array([[0, 1, 1, 0], [1, 0, 0, 0]])
  sums, counts = losses.masked_pixels(prediction, target, mask)
  np.testing.assert_allclose(sums, [2.0, 1.0])
  np.testing.assert_allclose(counts, [2.0, 1.0])


def test_normalize_pixels_of_a_flat_patch_is_zero():
  patches = jnp.stack([jnp.full((12,), 0.7), jnp.arange(12.0)])
  out = losses.normalize_pixels(patches)
  np.testing.assert_allclose(out[0], 0.0, atol=1e-3)
  np.testing.assert_allclose(np.var(out[1], ddof=1), 1.0, rtol=1e-5)


def test_pixels_are_normalised_in_float32():
  patches = jnp.array([[200.0, 201.0, 202.0, 203.0], [5.0] * 4])
  patches = patches.astype(jnp.bfloat16)
  half = losses.normalize_pixels(patches)
  exact = losses.normalize_pixels(patches.astype(jnp.float32))
  np.testing.assert_array_equal(half, exact)
  assert not half[1].any()


def test_a_batch_of_one_has_no_negatives():
  z = jnp.ones((1, 4))
  with pytest.raises(errors.UserError, match="a batch of 2 or more"):
    losses.dcl(z, z, temperature=0.1)
