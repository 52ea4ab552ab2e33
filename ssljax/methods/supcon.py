"""SupCon: supervised contrastive learning.

Khosla et al. 2020, arXiv:2004.11362; the authors' code is
HobbitLong/SupContrast `losses.py`. SimCLR in which all views of all examples of
a class are positives of each other.
"""

import jax
import jax.numpy as jnp

from ssljax import core
from ssljax import errors
from ssljax import losses
from ssljax import ops
from ssljax.models import heads
from ssljax.models import linen


def make(
  encoder,
  *,
  temperature: float = 0.1,
  base_temperature: float = 0.07,
  hidden_dim: int | None = None,
  out_dim: int = 128,
) -> core.Method:
  """Returns SupCon around a Flax encoder.

  Batches carry `views` [b v h w c] and `label` int32 [b]; an example whose
  label is -1, unknown, has its own views as positives alone.

  Args:
    encoder: a module under the encoder contract.
    temperature: the cosines are divided by it.
    base_temperature: the loss is times temperature / base_temperature.
    hidden_dim: width of the head's hidden layer; None is the encoder's own.
    out_dim: width of the projections.
  """
  projector = heads.MLP(
    features=(hidden_dim, out_dim),
    hidden_norm=False,
    kernel_init=heads.TORCH,
    dtype=encoder.dtype,
  )

  def init(rng, batch):
    ops.require_views(batch, 1, more=True)
    if "label" not in batch:
      raise errors.UserError("supcon learns from labels: set data.labels=True")
    rngs = jax.random.split(rng)
    x = batch["views"][:, 0]
    params, stats = {}, {}
    params["encoder"], stats["encoder"] = linen.init(encoder, rngs[0], x)
    h, _ = linen.apply(
      encoder, params["encoder"], stats["encoder"], x, train=False
    )
    params["projector"], _ = linen.init(projector, rngs[1], h["pooled"])
    return params, {"batch_stats": stats}

  def forward(params, method_state, batch, *, step, train):
    del step
    views = batch["views"]
    b, v = views.shape[:2]
    # All views in one pass: batch norm sees them together, as the authors'.
    h, stats = linen.apply(
      encoder,
      params["encoder"],
      method_state["batch_stats"]["encoder"],
      views.reshape(b * v, *views.shape[2:]),
      train=train,
      key=ops.view_keys(batch["key"], v),
    )
    z, _ = linen.apply(
      projector, params["projector"], {}, h["pooled"], train=train
    )
    features = {"z": z.reshape(b, v, -1), "label": batch["label"]}
    return features, {"batch_stats": {"encoder": stats}}

  def objective(params, method_state, features, *, step):
    del params, step
    z, label = features["z"], features["label"]
    loss = losses.supcon(
      z, label, temperature=temperature, base_temperature=base_temperature
    )
    # The nearest other example has the label, where it is known.
    x = ops.l2_normalize(z[:, 0])
    others = jnp.where(jnp.eye(len(x), dtype=bool), -jnp.inf, x @ x.T)
    known = label >= 0
    found = known & (label[others.argmax(axis=1)] == label)
    accuracy = found.sum() / jnp.maximum(known.sum(), 1)
    return loss, (method_state, {"neighbour_accuracy": accuracy})

  return core.Method(init, forward, objective, linen.embed(encoder))
