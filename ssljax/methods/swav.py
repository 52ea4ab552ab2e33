"""SwAV: swapping assignments between views.

Caron et al. 2020, arXiv:2006.09882; the authors' code is facebookresearch/swav
`main_swav.py`. Each crop must predict to which prototypes the large crops of
its image are assigned, where a batch is assigned to all prototypes equally.
"""

import jax
import jax.numpy as jnp

from ssljax import core
from ssljax import losses
from ssljax import ops
from ssljax.methods import multi_crop
from ssljax.models import heads


def make(
  encoder,
  *,
  steps_per_epoch: int,
  num_prototypes: int = 3000,
  temperature: float = 0.1,
  epsilon: float = 0.05,
  iterations: int = 3,
  hidden_dim: int = 2048,
  out_dim: int = 128,
  crops_for_assign: int = 2,
  queue_size: int = 0,
  queue_start_epoch: int = 15,
) -> core.Method:
  """Returns SwAV around a Flax encoder.

  Batches carry `views` [b v h w c], and `local_views` where there are small
  crops. The prototypes are frozen at first by the optimiser: `freeze` with
  `match="prototypes"`.

  Args:
    encoder: a module under the encoder contract.
    steps_per_epoch: tells when the queue begins.
    num_prototypes: K.
    temperature: of the predictions.
    epsilon: of the assignments.
    iterations: of Sinkhorn-Knopp.
    hidden_dim: width of the projector's hidden layer.
    out_dim: width of embeddings and prototypes.
    crops_for_assign: the first so many views are assigned, and predicted.
    queue_size: embeddings of earlier batches, for each of these, that are
      assigned with the batch; a multiple of the batch. 0 is no queue.
    queue_start_epoch: the queue is filled from this epoch on, and used once it
      is full.
  """
  network = multi_crop.network(encoder, features=(hidden_dim, out_dim))
  queue_start = queue_start_epoch * steps_per_epoch

  def init(rng, batch):
    ops.require_views(batch, crops_for_assign, more=True, local=True)
    rng, prototype_rng = jax.random.split(rng)
    params, stats = network.init(rng, batch)
    prototypes = heads.TORCH(prototype_rng, (out_dim, num_prototypes)).T
    params["prototypes"] = ops.l2_normalize(prototypes)
    method_state = {"batch_stats": stats}
    if queue_size:
      shape = (crops_for_assign, queue_size, out_dim)
      method_state |= {"queue": jnp.zeros(shape), "queued": jnp.int32(0)}
    return params, method_state

  def forward(params, method_state, batch, *, step, train):
    del step
    z, stats = network.project(
      params,
      method_state["batch_stats"],
      multi_crop.crops(batch),
      batch["key"],
      train=train,
    )
    return {"z": ops.l2_normalize(z)}, method_state | {"batch_stats": stats}

  def assign(prototypes, z, i, method_state, step):
    """Equation 3: assignments [n K] of crop i, its embeddings being z [n d]."""
    mask = None
    rows = z = jax.lax.stop_gradient(z)
    if queue_size:
      rows = jnp.concatenate([method_state["queue"][i], z])
      # Another run's, which `init_from` brings, waits for its epoch as well.
      full = (method_state["queued"] >= queue_size) & (step >= queue_start)
      mask = full | (jnp.arange(len(rows)) >= queue_size)
    logits = rows @ jax.lax.stop_gradient(prototypes).T
    codes = ops.sinkhorn(
      logits, epsilon=epsilon, iterations=iterations, mask=mask
    )
    return codes[-len(z) :]

  def objective(params, method_state, features, *, step):
    z = jnp.moveaxis(features["z"], 1, 0)  # [v n d]
    prototypes = params["prototypes"]
    codes = [
      assign(prototypes, z[i], i, method_state, step)
      for i in range(crops_for_assign)
    ]
    loss = losses.swapped_prediction(
      z @ prototypes.T, jnp.stack(codes), temperature=temperature
    )
    used = jnp.zeros(num_prototypes).at[codes[0].argmax(axis=1)].set(1.0)
    metrics = {
      "prototypes_used": used.mean(),
      "assignment_confidence": codes[0].max(axis=1).mean(),
    }
    if queue_size:
      method_state = enqueued(method_state, z[:crops_for_assign], step)
    return loss, (method_state, metrics)

  def enqueued(method_state, z, step):
    """The queue after the batch [crops n d], from its epoch on."""
    queue, queued = method_state["queue"], method_state["queued"]
    put = lambda ring, rows: ops.enqueue(ring, rows, queued % queue_size)
    started = step >= queue_start
    filled = jax.vmap(put)(queue, jax.lax.stop_gradient(z))
    # Counted to full, then as a place in the ring: it never overflows.
    after = queued + z.shape[1]
    after = jnp.where(after >= 2 * queue_size, queue_size, after)
    return method_state | {
      "queue": jnp.where(started, filled, queue),
      "queued": jnp.where(started, after, queued),
    }

  def after_update(params, method_state, step):
    # The authors normalise before the next forward instead, which is the same.
    del step
    rows = params["prototypes"]
    norm = jnp.linalg.norm(rows, axis=1, keepdims=True)
    # Frozen ones have it, and stay as they are to the bit.
    rows = jnp.where(jnp.abs(norm - 1) < 1e-6, rows, ops.l2_normalize(rows))
    return params | {"prototypes": rows}, method_state

  return core.Method(init, forward, objective, network.embed, after_update)
