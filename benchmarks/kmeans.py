"""K-means beside scikit-learn's `KMeans` and `MiniBatchKMeans`, in one run.

  python -m benchmarks.kmeans

60,000 Fashion-MNIST images in their 128 principal components, into 1,000
clusters in 10 iterations from each one's own k-means++ start; compiling is not
counted. As MiniBatchKMeans then ends at a higher inertia, also with batches of
4,096 and 100 iterations, all of which it makes. In turns, the median of the
times; the inertias are of the last round, all computed alike. Prints one JSON
object.
"""

import argparse
import json
import statistics
import time

from ssljax import cli

cli.set_up()

import jax  # noqa: E402
import numpy as np  # noqa: E402
from sklearn import cluster  # noqa: E402

from ssljax import kmeans  # noqa: E402
from ssljax.data import sources  # noqa: E402


def components(dim):
  """[60000 dim] float32."""
  source = sources.make("fashion_mnist", split="train")
  rows = range(0, len(source), 6000)
  x = np.concatenate(
    [source.read(np.arange(i, i + 6000))["image"] for i in rows]
  )
  x = x.reshape(len(x), -1).astype(np.float32) / 255
  x -= x.mean(axis=0)
  _, axes = np.linalg.eigh(x.T @ x)
  return np.ascontiguousarray(x @ axes[:, -dim:])


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--clusters", type=int, default=1000)
  parser.add_argument("--iterations", type=int, default=10)
  parser.add_argument("--dim", type=int, default=128)
  parser.add_argument("--rounds", type=int, default=3)
  args = parser.parse_args()
  x = components(args.dim)
  on_device = jax.device_put(x)
  options = dict(n_clusters=args.clusters, max_iter=args.iterations, n_init=1)

  def ours(seed):
    clusters = kmeans.fit(
      on_device,
      k=args.clusters,
      key=jax.random.key(seed),
      iterations=args.iterations,
    )
    return np.asarray(clusters.centroids)

  def peer(make, **more):
    return lambda seed: (
      make(random_state=seed, **(options | more)).fit(x).cluster_centers_
    )

  contestants = {
    "ours": ours,
    "KMeans": peer(cluster.KMeans),
    "MiniBatchKMeans": peer(cluster.MiniBatchKMeans),
    "MiniBatchKMeans, longer": peer(
      cluster.MiniBatchKMeans,
      batch_size=4096,
      max_iter=10 * args.iterations,
      max_no_improvement=None,
    ),
  }
  ours(0)
  times, centroids = {name: [] for name in contestants}, {}
  for seed in range(args.rounds):
    for name, fit in contestants.items():
      start = time.perf_counter()
      centroids[name] = fit(seed)
      times[name].append(time.perf_counter() - start)

  def inertia(centroids):
    _, distances, _, _ = kmeans.assign(on_device, centroids)
    return float(distances.sum())

  figures = {"shape": x.shape, "clusters": args.clusters}
  for name in contestants:
    figures[name] = {
      "seconds": statistics.median(times[name]),
      "inertia": inertia(centroids[name]),
    }
  print(json.dumps(figures))


if __name__ == "__main__":
  main()
