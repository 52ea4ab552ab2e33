"""K-means: against NumPy, on one and on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ssljax import kmeans
from ssljax import sharding

KEY = jax.random.key(0)


def blobs(n=400, d=6, k=8, seed=0):
  """Rows around k far points, and which point."""
  rng = np.random.default_rng(seed)
  labels = np.arange(n) % k
  centres = 5 * rng.normal(size=(k, d))
  x = centres[labels] + 0.3 * rng.normal(size=(n, d))
  return x.astype(np.float32), labels


def lloyd(x, centroids, iterations, spherical):
  """In float64; a cluster without rows stays."""
  x, centroids = np.float64(x), np.float64(centroids)
  unit = lambda v: v / np.linalg.norm(v, axis=-1, keepdims=True)
  if spherical:
    x = unit(x)
  for i in range(iterations + 1):
    distances = np.square(x[:, None] - centroids).sum(-1)
    nearest = distances.argmin(1)
    if i == iterations:
      return centroids, nearest, distances.min(1).sum()
    for j in set(nearest):
      centroids[j] = x[nearest == j].mean(0)
    if spherical:
      centroids = unit(centroids)


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("block", [7, 64, 1024])  # 101 rows: blocks are padded
def test_iterations_are_lloyds(spherical, block):
  x = np.random.default_rng(0).normal(size=(101, 5)).astype(np.float32)
  start = x[:9]
  if spherical:
    start = start / np.linalg.norm(start, axis=1, keepdims=True)
  ours = kmeans.fit(
    x,
    k=9,
    key=KEY,
    iterations=4,
    start=start,
    spherical=spherical,
    reseed=False,
    block=block,
  )
  centroids, nearest, inertia = lloyd(x, start, 4, spherical)
  np.testing.assert_allclose(ours.centroids, centroids, atol=1e-5)
  np.testing.assert_array_equal(ours.assignments, nearest)
  np.testing.assert_allclose(ours.inertia, inertia, rtol=1e-5)


def test_a_start_may_be_of_any_length_and_type():
  x = np.random.default_rng(0).normal(size=(101, 5)).astype(np.float32)
  start = jnp.asarray(3 * x[:9], jnp.bfloat16)
  fit = lambda start, n: kmeans.fit(
    x, k=9, key=KEY, iterations=n, start=start, spherical=True
  )
  unit = start.astype(jnp.float32)
  unit /= jnp.linalg.norm(unit, axis=1, keepdims=True)
  for n in (0, 3):
    np.testing.assert_allclose(
      fit(start, n).centroids, fit(unit, n).centroids, atol=1e-6
    )
  np.testing.assert_allclose(fit(start, 0).centroids, unit, atol=1e-6)


def test_far_blobs_are_found():
  x, labels = blobs()
  found = kmeans.fit(x, k=8, key=KEY)
  pairs = set(zip(labels, np.asarray(found.assignments)))
  assert len(pairs) == 8
  assert found.inertia < 1.1 * 0.09 * x.size


def test_rows_far_from_the_origin_are_told_apart():
  x, _ = blobs(k=4)
  start = x[:4]
  near = kmeans.fit(x, k=4, key=KEY, start=start)
  far = kmeans.fit(x + 4096, k=4, key=KEY, start=start + 4096)
  np.testing.assert_array_equal(near.assignments, far.assignments)
  np.testing.assert_allclose(near.inertia, far.inertia, rtol=0.01)
  near, far = (kmeans.plus_plus(rows, k=4, key=KEY) for rows in (x, x + 4096))
  np.testing.assert_array_equal(near + 4096, far)


@pytest.mark.parametrize("dtype", [np.int32, jnp.bfloat16])
def test_rows_of_other_types_are_assigned_in_float32(dtype):
  x = (100 * np.random.default_rng(0).normal(size=(64, 5))).astype(dtype)
  centroids = np.asarray(x[:7], np.float32) + 0.3
  nearest, distances, _, _ = kmeans.assign(jnp.asarray(x), centroids)
  apart = np.square(np.asarray(x, np.float32)[:, None] - centroids).sum(-1)
  np.testing.assert_array_equal(nearest, apart.argmin(1))
  np.testing.assert_allclose(distances, apart.min(1), rtol=1e-3, atol=0.1)


def test_a_row_of_nan_is_in_one_of_the_clusters():
  x, _ = blobs(k=4)
  x[0] = np.nan
  found = kmeans.assign(jnp.asarray(x), jnp.asarray(x[1:5]))
  assert 0 <= found[0].min() <= found[0].max() < 4


def test_empty_clusters_take_the_farthest_rows():
  x, _ = blobs(k=4)
  start = np.full((6, 6), 1e3, np.float32)  # five of them see no row
  start[0] = 0
  kept = kmeans.fit(x, k=6, key=KEY, start=start, reseed=False)
  assert len(set(np.asarray(kept.assignments))) == 1
  np.testing.assert_array_equal(kept.centroids[1:], start[1:])
  filled = kmeans.fit(x, k=6, key=KEY, start=start)
  assert len(set(np.asarray(filled.assignments))) == 6
  one = kmeans.fit(x, k=6, key=KEY, start=start, iterations=1)
  far = np.argsort(-np.square(x).sum(1))[:5]
  np.testing.assert_allclose(one.centroids[1:], x[far])


@pytest.mark.parametrize("spherical", [False, True])
def test_eight_devices_find_the_same(spherical):
  x, _ = blobs(n=800, k=20)
  found = []
  for devices in (1, 8):
    mesh = sharding.make_mesh(devices)
    cut = NamedSharding(mesh, P("data"))
    fit = lambda x: kmeans.fit(x, k=16, key=KEY, spherical=spherical, block=64)
    fit = jax.jit(fit, in_shardings=cut, out_shardings=NamedSharding(mesh, P()))
    found.append(jax.tree.map(np.asarray, fit(x)))
  np.testing.assert_allclose(*(f.centroids for f in found), atol=1e-5)
  np.testing.assert_array_equal(*(f.assignments for f in found))


def test_memory_is_of_a_block_and_not_of_all_rows():
  n, k = 1 << 17, 512
  shape = jax.ShapeDtypeStruct((n, 8), jnp.float32)
  fit = jax.jit(lambda x: kmeans.fit(x, k=k, key=KEY))
  temporary = fit.lower(shape).compile().memory_analysis().temp_size_in_bytes
  assert temporary < 0.25 * 4 * n * k


def test_plus_plus_leaves_less_than_random_rows():
  x, _ = blobs(n=2000, k=64, d=12)
  start = jax.jit(lambda x: kmeans.plus_plus(x, k=64, key=KEY))(x)
  rows = {tuple(row) for row in np.asarray(start)}
  assert len(rows) == 64 and rows <= {tuple(row) for row in x}
  left = jax.jit(lambda centroids: kmeans.assign(x, centroids)[1].sum())
  draws = np.random.default_rng(0).permutation(2000).reshape(-1, 50)
  random = [float(left(x[np.r_[draw, :14]])) for draw in draws]
  assert left(start) < 0.5 * min(random)
