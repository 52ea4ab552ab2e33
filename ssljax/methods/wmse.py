"""W-MSE: whitening for self-supervised representation learning.

Ermolov et al. 2020, arXiv:2007.06346; the authors' code is
htdt/self-supervised `methods/w_mse.py`. The views' projections are whitened,
which keeps them spread, and then have to agree: nothing is contrasted.
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
  hidden_dim: int = 1024,
  out_dim: int = 64,
  whitening_size: int = 128,
  iterations: int = 1,
  eps: float = 0.0,
) -> core.Method:
  """Returns W-MSE around a Flax encoder; batches carry `views` [b v h w c].

  Args:
    encoder: a module under the encoder contract.
    hidden_dim: width of the projector's hidden layer.
    out_dim: width of the projections.
    whitening_size: examples that are whitened together; it divides the batch
      and is more than `out_dim`, whose square it estimates.
    iterations: how often a step cuts the batch into such parts, anew.
    eps: how far a part's covariance is drawn towards the identity.

  Raises:
    UserError: a part has too few examples; in the step, parts do not divide
      the batch.
  """
  if whitening_size <= out_dim and not eps:
    raise errors.UserError(
      f"method.whitening_size={whitening_size} must be more than "
      f"method.out_dim={out_dim}: covariances of fewer are singular"
    )
  # Whitening takes the mean away, and with it what an offset would do.
  projector = heads.MLP(
    features=(hidden_dim, out_dim),
    out_bias=False,
    kernel_init=heads.TORCH,
    dtype=encoder.dtype,
    axis_name=encoder.axis_name,
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
    stats, views = method_state["batch_stats"], batch["views"]
    b, v = views.shape[:2]
    keys = ops.view_keys(batch["key"], v).reshape(b, v)
    # The encoder sees one view after the other, the projector all at once, as
    # the authors': so does batch norm.
    hidden, encoder_stats = [], stats["encoder"]
    for i in range(v):
      h, encoder_stats = linen.apply(
        encoder,
        params["encoder"],
        encoder_stats,
        views[:, i],
        train=train,
        key=keys[:, i],
      )
      hidden.append(h["pooled"])
    z, projector_stats = linen.apply(
      projector,
      params["projector"],
      stats["projector"],
      jnp.stack(hidden, axis=1).reshape(b * v, -1),
      train=train,
    )
    noise = lambda key: jax.random.bits(key, (iterations,))
    features = {
      "z": z.reshape(b, v, -1),
      "noise": jax.vmap(noise)(batch["key"]),
    }
    stats = {"encoder": encoder_stats, "projector": projector_stats}
    return features, {"batch_stats": stats}

  def whitened(z, noise):
    """[b v d], whitened in parts that `noise` [b] draws, alike in all views."""
    b, v, d = z.shape
    if b % whitening_size:
      raise errors.UserError(
        f"method.whitening_size={whitening_size} does not divide the batch of "
        f"{b}"
      )
    parts = z[jnp.argsort(noise)].reshape(-1, whitening_size, v, d)
    whiten = lambda x: ops.whiten(x, eps=eps)
    return jax.vmap(jax.vmap(whiten, 1, 1))(parts).reshape(b, v, d)

  def objective(params, method_state, features, *, step):
    del params, step
    z = features["z"].astype(jnp.float32)
    v = z.shape[1]
    pairs = [(i, j) for i in range(v) for j in range(i + 1, v)]
    total = 0.0
    for noise in features["noise"].T:
      w = whitened(z, noise)
      # Equation 5 with the distance of equation 4: 2 - 2 cos, over all pairs.
      for i, j in pairs:
        total += jnp.mean(2 - 2 * losses.cosine(w[:, i], w[:, j]))
    loss = total / (iterations * len(pairs))
    near = losses.cosine(z[:, 0], z[:, 1]).mean()
    return loss, (method_state, {"positive_similarity": near})

  def embed(params, method_state, batch):
    stats = method_state["batch_stats"]["encoder"]
    x = batch["views"][:, 0]
    out, _ = linen.apply(encoder, params["encoder"], stats, x, train=False)
    return {"pooled": out["pooled"], "tokens": out["tokens"]}

  return core.Method(init, forward, objective, embed)
