"""RotNet: which way up is the picture?

Gidaris et al. 2018, arXiv:1803.07728; the authors' code is
gidariss/FeatureLearningRotNet `dataloader.py`. The network sees each image in
four rotations and tells them apart: the pretext task that came before
contrast.
"""

import jax
import jax.numpy as jnp

from ssljax import core
from ssljax import errors
from ssljax import ops
from ssljax.models import heads
from ssljax.models import linen

ROTATIONS = 4  # by 0, 90, 180 and 270 degrees


def make(encoder) -> core.Method:
  """Returns RotNet around a Flax encoder; batches carry `views` [b 1 h h c].

  Args:
    encoder: a module under the encoder contract.
  """
  classifier = heads.MLP(
    features=(ROTATIONS,), kernel_init=heads.TORCH, dtype=encoder.dtype
  )

  def init(rng, batch):
    ops.require_views(batch, 1)
    rngs = jax.random.split(rng)
    x = batch["views"][:, 0]
    if x.shape[1] != x.shape[2]:
      raise errors.UserError(
        f"rotation needs square views, not {x.shape[1:3]}: set augment.size"
      )
    params, stats = {}, {}
    params["encoder"], stats["encoder"] = linen.init(encoder, rngs[0], x)
    h, _ = linen.apply(
      encoder, params["encoder"], stats["encoder"], x, train=False
    )
    params["classifier"], _ = linen.init(classifier, rngs[1], h["pooled"])
    return params, {"batch_stats": stats}

  def forward(params, method_state, batch, *, step, train):
    del step
    x = batch["views"][:, 0]
    b = len(x)
    # All four in one pass, as the authors': batch norm must not tell them
    # apart.
    h, stats = linen.apply(
      encoder,
      params["encoder"],
      method_state["batch_stats"]["encoder"],
      rotated(x).reshape(b * ROTATIONS, *x.shape[1:]),
      train=train,
      key=ops.view_keys(batch["key"], ROTATIONS),
    )
    logits, _ = linen.apply(
      classifier, params["classifier"], {}, h["pooled"], train=train
    )
    log_prob = jax.nn.log_softmax(logits.reshape(b, ROTATIONS, ROTATIONS))
    # Equations 2 and 3: each rotation is its own class.
    loss = -jnp.diagonal(log_prob, axis1=1, axis2=2).mean(axis=1)
    found = log_prob.argmax(axis=-1) == jnp.arange(ROTATIONS)
    found = found.sum(axis=1, dtype=jnp.int32)
    return {"sum": loss, "found": found}, {"batch_stats": {"encoder": stats}}

  def objective(params, method_state, features, *, step):
    del params, step
    accuracy = features["found"].mean() / ROTATIONS
    loss = features["sum"].sum() / len(features["sum"])
    return loss, (method_state, {"rotation_accuracy": accuracy})

  return core.Method(
    init, forward, objective, linen.embed(encoder), is_mean=True
  )


def rotated(x):
  """[b h h c] -> [b 4 h h c], counter-clockwise by quarter turns."""
  turns = [jnp.rot90(x, k, axes=(1, 2)) for k in range(ROTATIONS)]
  return jnp.stack(turns, axis=1)
