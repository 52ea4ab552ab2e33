"""Losses as pure functions of features of the global batch, in float32.

Needs jax alone.
"""

import jax
import jax.numpy as jnp

from ssljax import ops


def ntxent(z1: jax.Array, z2: jax.Array, *, temperature: float) -> jax.Array:
  """NT-Xent: each view must find its partner among all views of the batch.

  Chen et al. 2020 (SimCLR), equation 1 and algorithm 1: the mean over all 2N
  views, where the authors' `objective.py` adds the mean over the first views
  to the mean over the second, which is twice as much.

  Args:
    z1: [n d] projections of the first views; normalised here.
    z2: [n d] projections of the second views, in the same order.
    temperature: the cosines are divided by it.

  Returns:
    The mean loss, a float32 scalar. Its value for features without information
    is about log(2n - 1).
  """
  n = z1.shape[0]
  z = jnp.concatenate([z1, z2]).astype(jnp.float32)
  z = ops.l2_normalize(z)
  logits = z @ z.T / temperature  # [2n 2n]
  # A view is no candidate for itself. Masked, not subtracted: a finite offset
  # leaves a gradient at small temperatures.
  logits = jnp.where(jnp.eye(2 * n, dtype=bool), -jnp.inf, logits)
  partners = jnp.concatenate(
    [jnp.diagonal(logits, n), jnp.diagonal(logits, -n)]
  )
  return jnp.mean(jax.nn.logsumexp(logits, axis=1) - partners)
