"""MoCo: momentum contrast, v1 and v2.

He et al. 2019, arXiv:1911.05722 (v1) and Chen et al. 2020, arXiv:2003.04297
(v2); the authors' code is facebookresearch/moco `moco/builder.py`. A query must
find the key of the other view among the keys of earlier batches.
"""

import jax
import jax.numpy as jnp

from ssljax import core
from ssljax import errors
from ssljax import losses
from ssljax import monitors
from ssljax import ops
from ssljax.models import heads
from ssljax.models import linen


def make(
  encoder,
  *,
  temperature: float = 0.07,
  out_dim: int = 128,
  mlp: bool = False,
  queue_size: int = 65536,
  ema: float = 0.999,
  bn_groups: int = 8,
) -> core.Method:
  """Returns MoCo around a Flax encoder; batches carry `views` [b 2 h w c].

  The defaults are v1's; v2 has temperature=0.2 and mlp=True.

  Args:
    encoder: a module under the encoder contract.
    temperature: of InfoNCE.
    out_dim: width of queries and keys.
    mlp: v2's head of two layers, the hidden one as wide as the encoder.
    queue_size: number of keys kept, a multiple of the batch.
    ema: decay of the momentum encoder.
    bn_groups: batch norm takes its statistics over so many parts of the batch
      apart, as on the authors' eight devices, and over other parts for keys
      than for queries (section 3.3, shuffling). Were they the same, a query
      would know its key by the statistics that they share. Ignored by encoders
      without batch norm.
  """
  ops.require_queue(queue_size)
  query_encoder = key_encoder = encoder
  if hasattr(encoder, "bn_groups"):
    if encoder.bn_groups != 1:
      raise errors.UserError(
        f"encoder.bn_groups={encoder.bn_groups}: moco has method.bn_groups for "
        "that, of queries and keys: give it there"
      )
    # A strided part shares with a consecutive one what two random parts share;
    # so no example moves, and no device has to send one.
    query_encoder = encoder.clone(bn_groups=bn_groups)
    key_encoder = encoder.clone(bn_groups=bn_groups, bn_strided=True)
  head = heads.MLP(
    features=(None, out_dim) if mlp else (out_dim,),
    hidden_norm=False,
    kernel_init=heads.TORCH,
    dtype=encoder.dtype,
  )

  def init(rng, batch):
    ops.require_views(batch, 2)
    encoder_rng, head_rng, queue_rng = jax.random.split(rng, 3)
    x = batch["views"][:, 0]
    params, stats = {}, {}
    params["encoder"], stats["encoder"] = linen.init(encoder, encoder_rng, x)
    if stats["encoder"] and bn_groups > 1 and not hasattr(encoder, "bn_groups"):
      raise errors.UserError(
        f"{type(encoder).__name__} has batch norm, and no field bn_groups by "
        "which moco shuffles it: add one as models.resnet has it, or let a "
        "query know its key by method.bn_groups=1"
      )
    h, _ = linen.apply(
      encoder, params["encoder"], stats["encoder"], x, train=False
    )
    params["projector"], _ = linen.init(head, head_rng, h["pooled"])
    queue = jax.random.normal(queue_rng, (queue_size, out_dim))
    return params, {
      "batch_stats": stats,
      "teacher": {"params": params, "batch_stats": stats},
      "queue": ops.l2_normalize(queue),
      "place": jnp.int32(0),
    }

  def project(encoder, params, stats, x, *, train, key):
    """Normalised [b out_dim], and the new statistics."""
    h, encoder_stats = linen.apply(
      encoder,
      params["encoder"],
      stats["encoder"],
      x,
      train=train,
      key=key,
    )
    z, _ = linen.apply(head, params["projector"], {}, h["pooled"], train=train)
    return ops.l2_normalize(z), {"encoder": encoder_stats}

  def forward(params, method_state, batch, *, step, train):
    del step
    views, teacher = batch["views"], method_state["teacher"]
    keys = ops.view_keys(batch["key"], 2).reshape(-1, 2)
    query, stats = project(
      query_encoder,
      params,
      method_state["batch_stats"],
      views[:, 0],
      train=train,
      key=keys[:, 0],
    )
    key, teacher_stats = project(
      key_encoder,
      teacher["params"],
      teacher["batch_stats"],
      views[:, 1],
      train=train,
      key=keys[:, 1],
    )
    method_state = method_state | {
      "batch_stats": stats,
      "teacher": {"params": teacher["params"], "batch_stats": teacher_stats},
    }
    return {"query": query, "key": jax.lax.stop_gradient(key)}, method_state

  def objective(params, method_state, features, *, step):
    del params, step
    query, key = features["query"], features["key"]
    queue, place = method_state["queue"], method_state["place"]
    loss = losses.infonce_queue(query, key, queue, temperature=temperature)
    positive = jnp.sum(query * key, axis=1)
    negatives = query @ queue.T
    metrics = {
      "contrast_accuracy": jnp.mean(positive > negatives.max(axis=1)),
      "positive_similarity": positive.mean(),
      "queue_similarity": negatives.mean(),
      "spread/keys": monitors.std_by_dimension(key),
    }
    # After the logits: no key is its own negative.
    method_state = method_state | {
      "queue": ops.enqueue(queue, key, place),
      "place": (place + len(key)) % queue_size,
    }
    return loss, (method_state, metrics)

  def after_update(params, method_state, step):
    # The authors move the momentum encoder before the next forward instead,
    # which is the same.
    del step
    teacher = method_state["teacher"]
    moved = ops.ema(teacher["params"], params, ema)
    return params, method_state | {"teacher": teacher | {"params": moved}}

  return core.Method(
    init, forward, objective, linen.embed(encoder), after_update
  )
