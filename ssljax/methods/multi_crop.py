"""What methods of several views share: an encoder and its projector."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssljax import ops
from ssljax.models import heads
from ssljax.models import linen


class Network(NamedTuple):
  """An encoder and its projector.

  Attributes:
    init: `(rng, batch) -> (params, batch_stats)`.
    project: `(params, batch_stats, crops, key, *, train) -> (z, batch_stats)`:
      of crops, a list of [b v h w c], the projections [b v d] in the list's
      order. Batch norm sees what is one array together, the projector's all.
    embed: as a method's.
  """

  init: Callable
  project: Callable
  embed: Callable


def network(encoder, **head) -> Network:
  """Returns the functions of an encoder and a projector.

  Args:
    encoder: a module under the encoder contract.
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
    return params, stats

  def project(params, stats, crops, key, *, train):
    b, counts = len(key), [x.shape[1] for x in crops]
    keys = ops.view_keys(key, sum(counts)).reshape(b, -1)
    pooled, encoder_stats, first = [], stats["encoder"], 0
    for x, count in zip(crops, counts):
      h, encoder_stats = linen.apply(
        encoder,
        params["encoder"],
        encoder_stats,
        x.reshape(-1, *x.shape[2:]),
        train=train,
        key=keys[:, first : first + count].reshape(-1),
      )
      pooled.append(h["pooled"].reshape(b, count, -1))
      first += count
    h = jnp.concatenate(pooled, axis=1)
    z, projector_stats = linen.apply(
      projector,
      params["projector"],
      stats["projector"],
      h.reshape(b * first, -1),
      train=train,
    )
    stats = {"encoder": encoder_stats, "projector": projector_stats}
    return z.reshape(b, first, -1), stats

  return Network(init, project, linen.embed(encoder))


def crops(batch):
  """The crops of a batch, large ones first, by size."""
  return [batch[name] for name in ("views", "local_views") if name in batch]
