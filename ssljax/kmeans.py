"""K-means on device: a block of rows at a time, on any number of devices.

Needs jax alone. Under `jit` over a mesh with rows cut among devices, each
device assigns the rows that it has, and sums are of all.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssljax import ops

_EXACT = jax.lax.Precision.HIGHEST


class Clusters(NamedTuple):
  centroids: jax.Array  # float32 [k d], of length 1 where spherical
  assignments: jax.Array  # int32 [n], the nearest of `centroids`
  inertia: jax.Array  # float32 [], the sum of squared distances to them


@functools.partial(
  jax.jit, static_argnames=("k", "iterations", "spherical", "reseed", "block")
)
def fit(
  x: jax.Array,
  *,
  k: int,
  key: jax.Array,
  iterations: int = 10,
  spherical: bool = False,
  start: jax.Array | None = None,
  reseed: bool = True,
  block: int = 1024,
) -> Clusters:
  """Lloyd's iterations; memory grows with block x k, never with n x k.

  Args:
    x: [n d].
    k: number of clusters.
    key: for the start.
    iterations: of assigning all rows and moving all centroids.
    spherical: rows and centroids have length 1, so that the nearest centroid is
      that of the largest cosine.
    start: centroids [k d] to start from; None is `plus_plus`.
    reseed: a cluster without rows takes the row that is farthest from its
      centroid, the next the second farthest, and so on; otherwise its centroid
      stays.
    block: rows assigned at a time.
  """
  x = x.astype(jnp.float32)
  if spherical:
    x = ops.l2_normalize(x)
  # Far from the origin squares lose what tells rows apart.
  origin = 0.0 if spherical else x.mean(axis=0)
  if start is None:
    start = plus_plus(x, k=k, key=key)
  else:
    start = start.astype(jnp.float32)
    start = ops.l2_normalize(start) if spherical else start

  def iteration(_, centroids):
    _, distances, sums, counts = assign(x, centroids, block, origin)
    moved = sums / jnp.maximum(counts, 1)[:, None]
    empty = counts == 0
    instead = lambda: centroids
    if reseed:
      instead = lambda: _farthest(x, distances, empty)
    moved = jax.lax.cond(
      empty.any(),
      lambda: jnp.where(empty[:, None], instead(), moved),
      lambda: moved,
    )
    return ops.l2_normalize(moved) if spherical else moved

  centroids = jax.lax.fori_loop(0, iterations, iteration, start)
  assignments, distances, _, _ = assign(x, centroids, block, origin)
  return Clusters(centroids, assignments, distances.sum())


def assign(x: jax.Array, centroids: jax.Array, block: int = 1024, origin=0.0):
  """(nearest int32 [n], squared distances [n], sums [k d], counts int32 [k]).

  The nearest has the largest x c - |c|^2 / 2, in float32, both seen from
  `origin`, a point [d] near the rows.
  """
  x, centroids = x.astype(jnp.float32), centroids.astype(jnp.float32)
  n, k = len(x), len(centroids)
  blocks = -(-n // block)
  size = -(-n // blocks)
  # Row i is in block i mod blocks: where rows are cut among devices, each
  # device has a part of every block.
  padded = jnp.pad(x, ((0, size * blocks - n), (0, 0)))
  padded = padded.reshape(size, blocks, -1)
  present = (jnp.arange(size * blocks) < n).reshape(size, blocks)
  near = centroids - origin
  half = jnp.square(near).sum(axis=1) / 2

  def of_block(i, carry):
    nearest, highest, sums, counts = carry
    rows, there = padded[:, i], present[:, i]
    score = jnp.dot(rows - origin, near.T, precision=_EXACT) - half
    high = score.max(axis=1)
    # Twice as fast as `argmax` on a CPU.
    places = jnp.where(score == high[:, None], jnp.arange(k), k)
    # Where a row is NaN no score is the highest.
    place = jnp.minimum(places.min(axis=1), k - 1)
    place = jnp.where(there, place, k)  # k is dropped below
    return (
      nearest.at[:, i].set(place),
      highest.at[:, i].set(high),
      sums.at[place].add(rows, mode="drop"),
      counts.at[place].add(1, mode="drop"),
    )

  nearest, highest, sums, counts = jax.lax.fori_loop(
    0,
    blocks,
    of_block,
    (
      jnp.zeros((size, blocks), jnp.int32),
      jnp.zeros((size, blocks), x.dtype),
      jnp.zeros_like(centroids),
      jnp.zeros(k, jnp.int32),
    ),
  )
  distances = jnp.square(x - origin).sum(axis=1) - 2 * highest.reshape(-1)[:n]
  return nearest.reshape(-1)[:n], jnp.maximum(distances, 0.0), sums, counts


def _farthest(x, distances, empty):
  """[k d]: for the i-th empty cluster the i-th farthest row."""
  k = len(empty)
  _, rows = jax.lax.top_k(distances, min(k, len(x)))
  order = jnp.cumsum(empty) - 1
  return x[rows[jnp.clip(order, 0, len(rows) - 1)]]


def plus_plus(
  x: jax.Array, *, k: int, key: jax.Array, rows: int | None = None
) -> jax.Array:
  """The greedy k-means++ start [k d], on a random part of the rows.

  Arthur and Vassilvitskii 2007: each next centroid is a row drawn by its
  squared distance to the nearest so far; of 2 + log(k) that are drawn that one
  is taken which leaves the smallest sum, as scikit-learn has it.

  Args:
    x: [n d].
    k: number of centroids.
    key: what is drawn depends on it alone.
    rows: how many take part, 32 k (at most n) where it is not given.
  """
  n, x = len(x), jnp.asarray(x, jnp.float32)
  rows = min(n, 32 * k if rows is None else rows)
  trials = 2 + int(math.log(k))
  part_key, first_key, key = jax.random.split(key, 3)
  part = x[jax.random.choice(part_key, n, (rows,), replace=False)]
  near = part - part.mean(axis=0)
  norms = jnp.square(near).sum(axis=1)

  def to(places):
    """Squared distances [m rows] of all rows to those at `places` [m]."""
    cross = jnp.dot(near[places], near.T, precision=_EXACT)
    return jnp.maximum(norms - 2 * cross + norms[places][:, None], 0.0)

  def add(i, carry):
    chosen, nearest = carry
    total = jnp.cumsum(nearest)
    draws = jax.random.uniform(jax.random.fold_in(key, i), (trials,))
    places = jnp.searchsorted(total, draws * total[-1])
    left = jnp.minimum(nearest, to(jnp.clip(places, 0, rows - 1)))
    best = left.sum(axis=1).argmin()
    return chosen.at[i].set(places[best]), left[best]

  first = jax.random.randint(first_key, (), 0, rows)
  chosen = jnp.zeros(k, jnp.int32).at[0].set(first)
  chosen, _ = jax.lax.fori_loop(1, k, add, (chosen, to(first[None])[0]))
  return part[jnp.clip(chosen, 0, rows - 1)]
