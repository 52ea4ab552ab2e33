"""MoCo v2+: MoCo v2 made symmetric, with batch norm over the whole batch.

vturrisi/solo-learn `solo/methods/mocov2plus.py`, after Chen et al. 2020,
arXiv:2003.04297. Each view is the query once and the key once, each with a
queue of its own, and the momentum follows a schedule.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ssljax import core
from ssljax import losses
from ssljax import monitors
from ssljax import ops
from ssljax import schedules
from ssljax.models import heads
from ssljax.models import linen


def make(
  encoder,
  *,
  total_steps: int,
  temperature: float = 0.2,
  hidden_dim: int = 2048,
  out_dim: int = 256,
  queue_size: int = 32768,
  ema: float | Callable = 0.99,
  ema_end: float = 0.999,
) -> core.Method:
  """Returns MoCo v2+ around a Flax encoder; batches carry `views` [b 2 h w c].

  Args:
    encoder: a module under the encoder contract.
    total_steps: of the run, for the schedule of `ema`.
    temperature: of InfoNCE.
    hidden_dim: width of the projector's hidden layer.
    out_dim: width of queries and keys.
    queue_size: number of keys of each view that are kept, a multiple of the
      batch.
    ema: decay of the momentum encoder: its first value, which goes to `ema_end`
      by a cosine, or `step -> value`.
    ema_end: its last value.
  """
  ops.require_queue(queue_size)
  schedule = ema
  if not callable(ema):
    schedule = schedules.ema_schedule(ema, total_steps, end=ema_end)
  projector = heads.MLP(
    features=(hidden_dim, out_dim),
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
    h, _ = linen.apply(
      encoder, params["encoder"], stats["encoder"], x, train=False
    )
    params["projector"], _ = linen.init(projector, head_rng, h["pooled"])
    queues = jax.random.normal(queue_rng, (2, queue_size, out_dim))
    return params, {
      "batch_stats": stats,
      "teacher": {"params": params, "batch_stats": stats},
      "queues": ops.l2_normalize(queues),
      "place": jnp.int32(0),
    }

  def project(params, stats, x, *, train, key):
    """Normalised [b out_dim], and the new statistics."""
    h, new = linen.apply(
      encoder, params["encoder"], stats["encoder"], x, train=train, key=key
    )
    z, _ = linen.apply(
      projector, params["projector"], {}, h["pooled"], train=train
    )
    return ops.l2_normalize(z), {"encoder": new}

  def forward(params, method_state, batch, *, step, train):
    del step
    stats, teacher = method_state["batch_stats"], method_state["teacher"]
    teacher_stats = teacher["batch_stats"]
    keys = ops.view_keys(batch["key"], 2).reshape(-1, 2)
    features = {}
    for i in range(2):
      x, key = batch["views"][:, i], keys[:, i]
      features[f"query{i + 1}"], stats = project(
        params, stats, x, train=train, key=key
      )
      z, teacher_stats = project(
        teacher["params"], teacher_stats, x, train=train, key=key
      )
      features[f"key{i + 1}"] = jax.lax.stop_gradient(z)
    teacher = {"params": teacher["params"], "batch_stats": teacher_stats}
    return features, method_state | {"batch_stats": stats, "teacher": teacher}

  def objective(params, method_state, features, *, step):
    del params, step
    queues, place = method_state["queues"], method_state["place"]
    q1, q2 = features["query1"], features["query2"]
    k1, k2 = features["key1"], features["key2"]
    of = lambda q, k, queue: losses.infonce_queue(
      q, k, queue, temperature=temperature
    )
    # Equation 1 of MoCo (arXiv:1911.05722), in both directions; its equation 2
    # is in `after_update`.
    loss = (of(q1, k2, queues[1]) + of(q2, k1, queues[0])) / 2
    positive = jnp.sum(q1 * k2, axis=1)
    negatives = q1 @ queues[1].T
    metrics = {
      "contrast_accuracy": jnp.mean(positive > negatives.max(axis=1)),
      "positive_similarity": positive.mean(),
      "queue_similarity": negatives.mean(),
      "spread/keys": monitors.std_by_dimension(k1),
    }
    new = [ops.enqueue(q, k, place) for q, k in zip(queues, (k1, k2))]
    method_state = method_state | {
      "queues": jnp.stack(new),
      "place": (place + len(k1)) % queue_size,
    }
    return loss, (method_state, metrics)

  def after_update(params, method_state, step):
    teacher = method_state["teacher"]
    moved = ops.ema(teacher["params"], params, schedule(step))
    return params, method_state | {"teacher": teacher | {"params": moved}}

  return core.Method(
    init, forward, objective, linen.embed(encoder), after_update
  )
