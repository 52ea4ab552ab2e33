"""DeepCluster: clusters of the features as classes, again each epoch.

Caron et al. 2018, arXiv:1807.05520; the authors' code is
facebookresearch/deepcluster `main.py`. Before an epoch the features of the
whole set are clustered; the network learns to tell the clusters apart, by a
classifier that starts anew, from examples drawn evenly over clusters.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import core
from ssljax import errors
from ssljax import kmeans
from ssljax import losses
from ssljax import ops
from ssljax.models import linen


def make(
  encoder,
  *,
  num_examples: int,
  num_clusters: int = 10000,
  pca_dim: int = 256,
  kmeans_iterations: int = 20,
  sobel: bool = False,
) -> core.Method:
  """Returns DeepCluster around a Flax encoder; batches carry `views` and
  `index`.

  The classifier stands on the encoder's pooled features, where the authors'
  AlexNet and VGG have two layers of 4096 with dropout between. Theirs has an
  optimiser of its own without momentum: a group of the optimiser with
  `match="^head/"` and `momentum=0.0`, so that nothing of it outlives a head.

  Args:
    encoder: a module under the encoder contract.
    num_examples: in the source.
    num_clusters: k.
    pca_dim: features are whitened to so many components, or to all.
    kmeans_iterations: of each clustering.
    sobel: the encoder sees the gradients of grey images in place of colour.

  Raises:
    UserError: there are more clusters than examples.
  """
  if num_clusters > num_examples:
    raise errors.UserError(
      f"num_clusters={num_clusters} are more than the {num_examples} examples: "
      "lower config.method.num_clusters"
    )

  def encode(params, stats, x, *, train, key=None):
    x = ops.sobel(x) if sobel else x
    return linen.apply(encoder, params, stats, x, train=train, key=key)

  def new_head(rng, dim):
    kernel = 0.01 * jax.random.normal(rng, (dim, num_clusters))
    return {"kernel": kernel, "bias": jnp.zeros(num_clusters)}

  def init(rng, batch):
    ops.require_views(batch, 1)
    rngs = jax.random.split(rng)
    x = batch["views"][:, 0]
    x = ops.sobel(x) if sobel else x
    params, stats = linen.init(encoder, rngs[0], x)
    h, _ = linen.apply(encoder, params, stats, x, train=False)
    head = new_head(rngs[1], h["pooled"].shape[1])
    return {"encoder": params, "head": head}, {
      "batch_stats": {"encoder": stats},
      "assignments": jnp.full(num_examples, -1),  # none yet
      "sampling_weights": jnp.ones(num_examples),
    }

  def forward(params, method_state, batch, *, step, train):
    del step
    h, stats = encode(
      params["encoder"],
      method_state["batch_stats"]["encoder"],
      batch["views"][:, 0],
      train=train,
      key=batch["key"],
    )
    method_state = method_state | {"batch_stats": {"encoder": stats}}
    return {"h": h["pooled"], "index": batch["index"]}, method_state

  def objective(params, method_state, features, *, step):
    del step
    labels = method_state["assignments"][features["index"]]
    head = params["head"]
    # Equation 1; `refresh` solves equation 2, by which these labels came.
    logits = features["h"] @ head["kernel"] + head["bias"]
    loss = losses.known_cross_entropy(logits, labels)
    right = jnp.mean(logits.argmax(axis=1) == labels)
    return loss, (method_state, {"cluster_accuracy": right})

  def embed(params, method_state, batch):
    stats = method_state["batch_stats"]["encoder"]
    x = batch["views"][:, 0]
    out, _ = encode(params["encoder"], stats, x, train=False)
    return {"pooled": out["pooled"], "tokens": out["tokens"]}

  embedded = jax.jit(lambda *args: embed(*args)["pooled"])

  def refresh(params, method_state, read, *, rng):
    start_rng, head_rng = jax.random.split(rng)
    dim = params["head"]["kernel"].shape[0]
    h = np.zeros((num_examples, dim), np.float32)
    for index, rows in read(lambda b: embedded(params, method_state, b)):
      h[index] = rows
    assignments = cluster(h, start_rng)
    counts = jnp.bincount(assignments, length=num_clusters)
    return params | {"head": new_head(head_rng, dim)}, method_state | {
      "assignments": assignments,
      # Each cluster that has examples is drawn as often as any other.
      "sampling_weights": 1.0 / counts[assignments],
    }

  @jax.jit
  def cluster(h, key):
    """int32 [n]: k-means of whitened features of length 1."""
    x = ops.pca_whiten(h, min(pca_dim, h.shape[1]))
    x = ops.l2_normalize(x)
    rows = jax.random.choice(key, len(x), (num_clusters,), False)
    return kmeans.fit(
      x,
      k=num_clusters,
      key=key,
      start=x[rows],
      iterations=kmeans_iterations,
    ).assignments

  return core.Method(init, forward, objective, embed, refresh=refresh)
