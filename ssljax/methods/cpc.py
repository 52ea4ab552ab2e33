"""CPC: contrastive predictive coding, on image patches.

van den Oord et al. 2018, arXiv:1807.03748, in the second version of Hénaff et
al. 2019, arXiv:1905.09272, whose listing in appendix A is the reference: no
code was published. An image is cut into overlapping patches, each encoded by
itself; what a network over the rows above knows must tell a patch some rows
below from all patches of the batch.

The authors augment every patch by itself as well; here images are.
"""

import jax
import jax.numpy as jnp

from ssljax import core
from ssljax import errors
from ssljax import ops
from ssljax.models import linen
from ssljax.models import predictors
from ssljax.models import vit


def make(
  encoder,
  *,
  patch: int = 80,
  stride: int = 36,
  rows: tuple[int, ...] = (3,),
  target_dim: int = 64,
  scale: float = 0.1,
  context_dim: int = 256,
  context_depth: int = 5,
) -> core.Method:
  """Returns CPC around a Flax encoder; batches carry `views` [b 1 h w c].

  Args:
    encoder: a module under the encoder contract, of one patch. The authors
      have layer norm: statistics over a batch tell patches from one another.
    patch: side of a patch in pixels.
    stride: from one patch to the next.
    rows: how many rows below are predicted, each by a product of its own.
    target_dim: width of predictions and targets.
    scale: of predictions.
    context_dim: width inside the context network.
    context_depth: its number of blocks.
  """
  context = predictors.Rows(
    dim=context_dim, depth=context_depth, dtype=encoder.dtype
  )
  to_target = vit.dense(target_dim, encoder.dtype, None)
  to_predictions = vit.dense(len(rows) * target_dim, encoder.dtype, None)

  def init(rng, batch):
    ops.require_views(batch, 1)
    rngs = jax.random.split(rng, 4)
    patches = cut(batch["views"][:, 0])
    params, stats = {}, {}
    params["encoder"], stats["encoder"] = linen.init(
      encoder, rngs[0], patches[:, 0, 0]
    )
    z, _ = encode(params, stats, patches, train=False)
    params["context"] = context.init(rngs[1], z)["params"]
    params["target"] = to_target.init(rngs[2], z)["params"]
    params["prediction"] = to_predictions.init(rngs[3], z)["params"]
    return params, {"batch_stats": stats}

  def cut(x):
    """[b h w c] -> [b rows columns p p c]."""
    patches = ops.overlapping_patches(x, patch, stride)
    if patches.shape[1] <= max(rows):
      raise errors.UserError(
        f"method.patch={patch}, stride={stride} cut {patches.shape[1]} rows, "
        f"and method.rows={rows} looks further below: give smaller ones"
      )
    return patches

  def encode(params, stats, patches, *, train, key=None):
    """[b rows columns d], and the new statistics."""
    grid = patches.shape[:3]
    if key is not None:
      key = ops.view_keys(key, grid[1] * grid[2])
    out, encoder_stats = linen.apply(
      encoder,
      params["encoder"],
      stats["encoder"],
      patches.reshape(-1, *patches.shape[3:]),
      train=train,
      key=key,
    )
    return out["pooled"].reshape(*grid, -1), {"encoder": encoder_stats}

  def forward(params, method_state, batch, *, step, train):
    del step
    z, stats = encode(
      params,
      method_state["batch_stats"],
      cut(batch["views"][:, 0]),
      train=train,
      key=batch["key"],
    )
    product = lambda layer, name, x: layer.apply({"params": params[name]}, x)
    c = product(context, "context", z)
    predictions = product(to_predictions, "prediction", c)
    predictions = predictions.reshape(*z.shape[:3], len(rows), target_dim)
    features = {
      "prediction": predictions.astype(jnp.float32) * scale,
      "target": product(to_target, "target", z).astype(jnp.float32),
    }
    return features, {"batch_stats": stats}

  def objective(params, method_state, features, *, step):
    del params, step
    loss, hits = 0.0, []
    for i, below in enumerate(rows):
      one, hit = infonce_below(
        features["prediction"][:, :, :, i], features["target"], below
      )
      loss += one
      hits.append(hit)
    return loss, (method_state, {"accuracy": sum(hits) / len(hits)})

  def embed(params, method_state, batch):
    """The mean of the patches' latents; the context network is not used."""
    patches = cut(batch["views"][:, 0])
    stats = method_state["batch_stats"]
    z, _ = encode(params, stats, patches, train=False)
    tokens = z.reshape(len(z), -1, z.shape[-1])
    return {"pooled": tokens.mean(axis=1), "tokens": tokens}

  return core.Method(init, forward, objective, embed)


def infonce_below(predictions, targets, below: int):
  """Each prediction must find the patch `below` rows further down among all.

  Equation 1 of the paper, with all patches of all images as candidates, as the
  listing has it.

  Args:
    predictions: [b rows columns d].
    targets: [b rows columns d].
    below: number of rows.

  Returns:
    (the mean loss, the part that found it), float32 scalars.
  """
  *grid, d = targets.shape
  predictions = predictions[:, :-below]
  logits = predictions.reshape(-1, d) @ targets.reshape(-1, d).T
  own = jnp.sum(predictions * targets[:, below:], axis=-1).reshape(-1)
  loss = jnp.mean(jax.nn.logsumexp(logits, axis=1) - own)
  place = jnp.arange(len(targets.reshape(-1, d))).reshape(grid)
  hit = logits.argmax(axis=1) == place[:, below:].reshape(-1)
  return loss, hit.mean()
