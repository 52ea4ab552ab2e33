"""What Barlow Twins and VICReg share: two views, a projector, their loss."""

from collections.abc import Callable

import jax

from ssljax import core
from ssljax import ops
from ssljax.models import heads
from ssljax.models import linen


def make(encoder, loss: Callable, **head) -> core.Method:
  """Returns the method whose objective is `loss` of two projections.

  Args:
    encoder: a module under the encoder contract; batches carry `views`
      [b 2 h w c].
    loss: `(z1, z2) -> (loss, metrics)`, of projections [n d] of the batch.
    **head: fields of `heads.MLP`.
  """
  projector = heads.MLP(
    kernel_init=heads.TORCH,
    dtype=encoder.dtype,
    axis_name=encoder.axis_name,
    **head,
  )

  def init(rng, batch):
    rngs = jax.random.split(rng)
    x = batch["views"][:, 0]
    params, stats = {}, {}
    params["encoder"], stats["encoder"] = linen.init(encoder, rngs[0], x)
    h, _ = linen.apply(
      encoder, params["encoder"], stats["encoder"], x, train=False
    )
    params["projector"], stats["projector"] = linen.init(
      projector, rngs[1], h["pooled"]
    )
    return params, {"batch_stats": stats}

  def forward(params, method_state, batch, *, step, train):
    del step
    stats = method_state["batch_stats"]
    keys = ops.view_keys(batch["key"], 2).reshape(-1, 2)
    features = {}
    # One view after the other, as the authors': batch norm sees them apart.
    for i in range(2):
      h, encoder_stats = linen.apply(
        encoder,
        params["encoder"],
        stats["encoder"],
        batch["views"][:, i],
        train=train,
        key=keys[:, i],
      )
      features[f"z{i + 1}"], projector_stats = linen.apply(
        projector,
        params["projector"],
        stats["projector"],
        h["pooled"],
        train=train,
      )
      stats = {"encoder": encoder_stats, "projector": projector_stats}
    return features, {"batch_stats": stats}

  def objective(params, method_state, features, *, step):
    del params, step
    value, metrics = loss(features["z1"], features["z2"])
    return value, (method_state, metrics)

  def embed(params, method_state, batch):
    stats = method_state["batch_stats"]["encoder"]
    x = batch["views"][:, 0]
    out, _ = linen.apply(encoder, params["encoder"], stats, x, train=False)
    return {"pooled": out["pooled"], "tokens": out["tokens"]}

  return core.Method(init, forward, objective, embed)
