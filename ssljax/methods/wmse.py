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
from ssljax.methods import multi_crop


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
  network = multi_crop.network(
    encoder, features=(hidden_dim, out_dim), out_bias=False
  )

  def init(rng, batch):
    ops.require_views(batch, 2, more=True)
    params, stats = network.init(rng, batch)
    return params, {"batch_stats": stats}

  def forward(params, method_state, batch, *, step, train):
    del step
    views = batch["views"]
    # The encoder sees one view after the other, the projector all at once, as
    # the authors': so does batch norm.
    z, stats = network.project(
      params,
      method_state["batch_stats"],
      jnp.split(views, views.shape[1], axis=1),
      batch["key"],
      train=train,
    )
    noise = lambda key: jax.random.bits(key, (iterations,))
    features = {"z": z, "noise": jax.vmap(noise)(batch["key"])}
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

  return core.Method(init, forward, objective, network.embed)
