"""DeepCluster v2: clusters of the last epoch's embeddings as classes.

Caron et al. 2020, arXiv:2006.09882, section 4.1 and appendix; the authors' code
is facebookresearch/swav `main_deepclusterv2.py`. Before an epoch, spherical
k-means of the embeddings that the epoch before has left in a memory gives each
example a class and the heads their weights, which no gradient teaches.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import core
from ssljax import errors
from ssljax import kmeans
from ssljax import losses
from ssljax import ops
from ssljax.methods import multi_crop


def make(
  encoder,
  *,
  num_examples: int,
  num_prototypes: int = 3000,
  num_heads: int = 3,
  temperature: float = 0.1,
  hidden_dim: int = 2048,
  out_dim: int = 128,
  crops_for_assign: int = 2,
  kmeans_iterations: int = 10,
) -> core.Method:
  """Returns DeepCluster v2 around a Flax encoder.

  Batches carry `index` [b], `views` [b v h w c], and `local_views` where there
  are small crops. The memory has crops_for_assign x num_examples embeddings in
  float32, 61 MB for 60,000 examples and 1.3 GB for ImageNet.

  Args:
    encoder: a module under the encoder contract.
    num_examples: in the source.
    num_prototypes: clusters of each clustering.
    num_heads: clusterings, which differ by their start and their crop.
    temperature: of the predictions.
    hidden_dim: width of the projector's hidden layer.
    out_dim: width of the embeddings.
    crops_for_assign: the first so many views are kept in the memory.
    kmeans_iterations: of each clustering.

  Raises:
    UserError: there are more clusters than examples.
  """
  if num_prototypes > num_examples:
    raise errors.UserError(
      f"num_prototypes={num_prototypes} are more than the {num_examples} "
      "examples: lower config.method.num_prototypes"
    )
  network = multi_crop.network(encoder, features=(hidden_dim, out_dim))

  def init(rng, batch):
    ops.require_views(batch, crops_for_assign, more=True, local=True)
    params, stats = network.init(rng, batch)
    heads = (num_heads, num_prototypes, out_dim)
    return params, {
      "batch_stats": stats,
      "memory": jnp.zeros((crops_for_assign, num_examples, out_dim)),
      "prototypes": jnp.zeros(heads),
      "assignments": jnp.full((num_heads, num_examples), -1),  # none yet
    }

  def forward(params, method_state, batch, *, step, train):
    del step
    z, stats = network.project(
      params,
      method_state["batch_stats"],
      multi_crop.crops(batch),
      batch["key"],
      train=train,
    )
    features = {"z": ops.l2_normalize(z), "index": batch["index"]}
    return features, method_state | {"batch_stats": stats}

  def objective(params, method_state, features, *, step):
    del params, step
    z, index = features["z"], features["index"]  # [n v d], [n]
    labels = method_state["assignments"][:, index]  # [heads n]
    each = [
      losses.known_cross_entropy(
        z @ prototypes.T / temperature, labels[:, None]
      )
      for prototypes, labels in zip(method_state["prototypes"], labels)
    ]
    seen = jnp.moveaxis(z[:, :crops_for_assign], 1, 0)
    memory = (
      method_state["memory"].at[:, index].set(jax.lax.stop_gradient(seen))
    )
    return sum(each) / num_heads, (method_state | {"memory": memory}, {})

  @jax.jit
  def first_embeddings(params, stats, batch):
    """[b v d], each view by itself, and with its own batch's statistics."""
    views = batch["views"]
    z = [
      network.project(
        params, stats, [views[:, i : i + 1]], batch["key"], train=True
      )[0]
      for i in range(crops_for_assign)
    ]
    return ops.l2_normalize(jnp.concatenate(z, axis=1))

  def refresh(params, method_state, read, *, rng):
    memory = method_state["memory"]
    if not memory.any():  # before the first epoch: `init_memory`
      memory = np.zeros(memory.shape, np.float32)
      stats = method_state["batch_stats"]
      first = lambda batch: first_embeddings(params, stats, batch)
      for index, z in read(first, train=True):
        memory[:, index] = np.moveaxis(z, 1, 0)
    clusters = [
      cluster(memory[i % crops_for_assign], jax.random.fold_in(rng, i))
      for i in range(num_heads)
    ]
    return params, method_state | {
      "memory": jnp.asarray(memory),
      "prototypes": jnp.stack([c.centroids for c in clusters]),
      "assignments": jnp.stack([c.assignments for c in clusters]),
    }

  def cluster(x, key):
    """From random rows; a cluster without rows keeps its centroid."""
    rows = jax.random.choice(key, num_examples, (num_prototypes,), False)
    return kmeans.fit(
      x,
      k=num_prototypes,
      key=key,
      start=ops.l2_normalize(x[rows]),
      iterations=kmeans_iterations,
      spherical=True,
      reseed=False,
    )

  return core.Method(init, forward, objective, network.embed, refresh=refresh)
