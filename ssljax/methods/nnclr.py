"""NNCLR: the nearest neighbour of one view as the positive of the other.

Dwibedi et al. 2021, arXiv:2104.14548. The authors published no code; this is
their pseudo-code (algorithm 1), as vturrisi/solo-learn `solo/methods/nnclr.py`
has it too. Neighbours are looked up in a queue of projections of earlier
batches, the support set.
"""

import jax
import jax.numpy as jnp

from ssljax import core
from ssljax import losses
from ssljax import ops
from ssljax.models import heads
from ssljax.models import linen


def make(
  encoder,
  *,
  temperature: float = 0.1,
  queue_size: int = 98304,
  hidden_dim: int = 2048,
  out_dim: int = 256,
  predictor_dim: int = 4096,
) -> core.Method:
  """Returns NNCLR around a Flax encoder; batches carry `views` [b 2 h w c].

  Args:
    encoder: a module under the encoder contract.
    temperature: of the contrast.
    queue_size: of the support set, a multiple of the batch.
    hidden_dim: width of the projector's two hidden layers.
    out_dim: width of projections and predictions.
    predictor_dim: width of the predictor's hidden layer.
  """
  ops.require_queue(queue_size)
  options = dict(
    kernel_init=heads.TORCH,
    dtype=encoder.dtype,
    axis_name=encoder.axis_name,
  )
  # All layers of the projector are followed by batch norm (section 4.1). The
  # last one's offset would stay zero: no gradient passes the predictor's norm.
  projector = heads.MLP(
    features=(hidden_dim, hidden_dim, out_dim),
    out_norm="batch_no_offset",
    **options,
  )
  predictor = heads.MLP(features=(predictor_dim, out_dim), **options)

  def init(rng, batch):
    ops.require_views(batch, 2)
    rngs = jax.random.split(rng, 4)
    x = batch["views"][:, 0]
    params, stats = {}, {}
    params["encoder"], stats["encoder"] = linen.init(encoder, rngs[0], x)
    h, _ = linen.apply(
      encoder, params["encoder"], stats["encoder"], x, train=False
    )
    params["projector"], stats["projector"] = linen.init(
      projector, rngs[1], h["pooled"]
    )
    params["predictor"], stats["predictor"] = linen.init(
      predictor, rngs[2], jnp.zeros((len(x), out_dim))
    )
    queue = jax.random.normal(rngs[3], (queue_size, out_dim))
    return params, {
      "batch_stats": stats,
      "queue": ops.l2_normalize(queue),
      "place": jnp.int32(0),
    }

  def forward(params, method_state, batch, *, step, train):
    del step
    stats = method_state["batch_stats"]
    keys = ops.view_keys(batch["key"], 2).reshape(-1, 2)
    features = {}
    # One view after the other: batch norm sees them apart.
    for i in range(2):
      x, new = batch["views"][:, i], {}
      h, new["encoder"] = linen.apply(
        encoder,
        params["encoder"],
        stats["encoder"],
        x,
        train=train,
        key=keys[:, i],
      )
      z, new["projector"] = linen.apply(
        projector,
        params["projector"],
        stats["projector"],
        h["pooled"],
        train=train,
      )
      features[f"prediction{i + 1}"], new["predictor"] = linen.apply(
        predictor, params["predictor"], stats["predictor"], z, train=train
      )
      # Projections only look up and fill the queue: no gradient.
      features[f"projection{i + 1}"] = jax.lax.stop_gradient(
        ops.l2_normalize(z)
      )
      stats = new
    return features, method_state | {"batch_stats": stats}

  def objective(params, method_state, features, *, step):
    del params, step
    queue, place = method_state["queue"], method_state["place"]
    z1, z2 = features["projection1"], features["projection2"]
    p1, p2 = features["prediction1"], features["prediction2"]
    near1, near2 = ops.nearest(z1, queue), ops.nearest(z2, queue)
    # Equation 3, made symmetric: the neighbour of a view must find the
    # prediction of the other view among those of the batch.
    loss = (
      losses.contrast(near1, p2, temperature=temperature)
      + losses.contrast(near2, p1, temperature=temperature)
    ) / 2
    found = (near1 @ ops.l2_normalize(p2).T).argmax(axis=1)
    metrics = {
      "contrast_accuracy": jnp.mean(found == jnp.arange(len(p2))),
      "neighbour_similarity": jnp.sum(near1 * z1, axis=1).mean(),
    }
    # The first view's alone, after the look-up.
    method_state = method_state | {
      "queue": ops.enqueue(queue, z1, place),
      "place": (place + len(z1)) % queue_size,
    }
    return loss, (method_state, metrics)

  return core.Method(init, forward, objective, linen.embed(encoder))
