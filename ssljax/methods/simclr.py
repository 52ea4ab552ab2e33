"""SimCLR: a simple framework for contrastive learning.

Chen et al. 2020, arXiv:2002.05709 (v1) and arXiv:2006.10029 (v2); the authors'
code is google-research/simclr. Two views of each image, or more, are encoded
and projected; each must find its partners among all views of the batch.
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
  out_dim: int = 128,
  hidden_dim: int | None = None,
  num_layers: int = 2,
  head_norm: bool = True,
  scale: float = 1.0,
  blocks: int = 1,
) -> core.Method:
  """Returns SimCLR around a Flax encoder; batches carry `views` [b v h w c].

  The authors' views are two. More are each other's partners, and cost as much
  more.

  Args:
    encoder: a module under the encoder contract.
    temperature: of NT-Xent. The paper's 0.1 is for batches of 4096.
    out_dim: width of the projection.
    hidden_dim: width of the head's hidden layers; None is the encoder's own.
    num_layers: of the head, 2 in v1 and 3 in v2.
    head_norm: batch norm in the head, as the authors have it.
    scale: of the loss, which is twice the mean over views; 0.5 makes it that.
    blocks: of NT-Xent, for batches whose similarities fill the memory.
  """
  # `model_util.py`: batch norm after every layer, the last one without offset,
  # and weights that start at 0.01.
  projector = heads.MLP(
    features=(hidden_dim,) * (num_layers - 1) + (out_dim,),
    hidden_norm=head_norm,
    out_norm="batch_no_offset" if head_norm else None,
    kernel_init=jax.nn.initializers.normal(0.01)
    if head_norm
    else heads.TORCH,
    axis_name=encoder.axis_name,
    dtype=encoder.dtype,
  )

  def init(rng, batch):
    ops.require_views(batch, 2, more=True)
    encoder_rng, projector_rng = jax.random.split(rng)
    x = batch["views"][:, 0]
    params, stats = {}, {}
    params["encoder"], stats["encoder"] = linen.init(encoder, encoder_rng, x)
    h = encode(params, {"batch_stats": stats}, x, train=False)[0]["pooled"]
    params["projector"], stats["projector"] = linen.init(
      projector, projector_rng, h
    )
    return params, {"batch_stats": stats}

  def encode(params, method_state, x, *, train, key=None):
    return linen.apply(
      encoder,
      params["encoder"],
      method_state["batch_stats"]["encoder"],
      x,
      train=train,
      key=key,
    )

  def forward(params, method_state, batch, *, step, train):
    del step
    views = batch["views"]
    b, v = views.shape[:2]
    # All views in one pass: batch norm sees them together, as the authors'.
    x = views.reshape(b * v, *views.shape[2:])
    key = ops.view_keys(batch["key"], v)
    out, stats = encode(params, method_state, x, train=train, key=key)
    z, head_stats = linen.apply(
      projector,
      params["projector"],
      method_state["batch_stats"]["projector"],
      out["pooled"],
      train=train,
    )
    stats = {"encoder": stats, "projector": head_stats}
    return {"z": z.reshape(b, v, -1)}, {"batch_stats": stats}

  def objective(params, method_state, features, *, step):
    del params, step
    views = list(features["z"].swapaxes(0, 1))
    if len(views[0]) % blocks:
      raise errors.UserError(
        f"method.blocks={blocks} does not divide the batch of {len(views[0])}"
      )
    loss = losses.ntxent(*views, temperature=temperature, blocks=blocks)
    # Told of the first two views: whether the one finds the other.
    z1, z2 = (ops.l2_normalize(z) for z in views[:2])
    nearest = lambda z: (z @ z2.T).argmax(axis=1)
    found = ops.in_blocks(nearest, z1, blocks) == jnp.arange(len(z1))
    # The authors add the losses of both views: twice the paper's mean.
    return scale * 2 * loss, (method_state, {"contrast_accuracy": found.mean()})

  def embed(params, method_state, batch):
    x = batch["views"][:, 0]
    out, _ = encode(params, method_state, x, train=False)
    return {"pooled": out["pooled"], "tokens": out["tokens"]}

  return core.Method(init, forward, objective, embed)
