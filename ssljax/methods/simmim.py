"""SimMIM: a simple framework for masked image modeling.

Xie et al. 2021, arXiv:2111.09886; the authors' code is microsoft/SimMIM
`models/simmim.py` and `data/data_simmim.py`. Some patches, in units larger than
one, are replaced by a token before the encoder, and a single layer tells their
pixels.
"""

import math

import jax.numpy as jnp

from ssljax import core
from ssljax import errors
from ssljax import masks
from ssljax import ops
from ssljax.methods import masked_images
from ssljax.models import heads
from ssljax.models import linen
from ssljax.models import vit


def make(
  encoder,
  *,
  mask_ratio: float = 0.6,
  unit: int = 32,
) -> core.Method:
  """Returns SimMIM around a ViT; batches carry `views` [b 1 h w c].

  Args:
    encoder: a ViT with `mask_token`, as `models.vit` has it; the authors' has
      relative positions and layer scale.
    mask_ratio: part of the units that is masked, rounded up.
    unit: side of what is masked as one, in pixels; a multiple of the patch.

  Raises:
    UserError: the encoder has no mask token, or patches do not make up a unit.
  """
  patch = encoder.patch
  if not encoder.mask_token:
    raise errors.UserError("simmim needs config.encoder.mask_token=True")
  if unit % patch:
    raise errors.UserError(
      f"method.unit={unit} is not a multiple of the patch of {patch}"
    )

  def init(rng, batch):
    ops.require_views(batch, 1)
    x = batch["views"][:, 0]
    params = {"encoder": linen.init(encoder, rng, x)[0]}
    tokens = encode(params, x, train=False)["tokens"]
    params["head"] = head(x).init(rng, tokens)["params"]
    return params, {}

  def head(x):
    width = patch * patch * x.shape[-1]
    return vit.dense(width, encoder.dtype, None, kernel_init=heads.TORCH)

  def encode(params, x, *, train, mask=None, key=None):
    return linen.apply(
      encoder, params["encoder"], {}, x, train=train, mask=mask, key=key
    )[0]

  def hide(x, key):
    """The mask bool [b n]."""
    units = (x.shape[1] // unit) * (x.shape[2] // unit)
    count = math.ceil(units * mask_ratio)
    if x.shape[1] % unit or x.shape[2] % unit or not 0 < count < units:
      raise errors.UserError(
        f"method.unit={unit} and mask_ratio={mask_ratio} mask {count} of "
        f"{units} units of images of {x.shape[1]} x {x.shape[2]}: give units "
        "that fill the image, and a ratio that masks some and keeps some"
      )
    grid = (x.shape[1] // patch, x.shape[2] // patch)
    return masks.unit_masking(key, grid, unit // patch, count)

  def predict(params, x, key, *, train):
    """Predictions [b n p*p*c] in float32 and the mask [b n]."""
    mask_key, drop_key = ops.view_keys(key, 2).reshape(-1, 2).T
    mask = hide(x, mask_key)
    out = encode(params, x, train=train, mask=mask, key=drop_key)
    tokens = out["tokens"].astype(encoder.dtype)
    predicted = head(x).apply({"params": params["head"]}, tokens)
    return predicted.astype(jnp.float32), mask

  def forward(params, method_state, batch, *, step, train):
    del step
    x = batch["views"][:, 0]
    predicted, mask = predict(params, x, batch["key"], train=train)
    # L1 over masked pixels and channels; the paper's equation 1.
    error = jnp.abs(predicted - ops.patchify(x, patch)).mean(axis=-1)
    sums = jnp.sum(error * mask, axis=1)
    counts = mask.sum(axis=1, dtype=jnp.int32)
    return {"sum": sums, "count": counts}, method_state

  def embed(params, method_state, batch):
    del method_state
    out = encode(params, batch["views"][:, 0], train=False)
    return {"pooled": out["pooled"], "tokens": out["tokens"]}

  def reconstruction(params, method_state, batch):
    del method_state
    x = batch["views"][:, 0]
    predicted, mask = predict(params, x, batch["key"], train=False)
    return masked_images.pictures(x, predicted, mask, patch, norm_pix=False)

  show = {"reconstruction": reconstruction}
  objective = masked_images.objective
  return core.Method(
    init, forward, objective, embed, show=show, is_mean=True
  )
