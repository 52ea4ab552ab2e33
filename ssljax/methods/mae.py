"""MAE: masked autoencoders are scalable vision learners.

He et al. 2021, arXiv:2111.06377; the authors' code is facebookresearch/mae
`models_mae.py`. Most patches of an image are removed, the others encoded, and a
small decoder predicts the pixels of those removed.
"""

import jax
import jax.numpy as jnp

from ssljax import core
from ssljax import errors
from ssljax import losses
from ssljax import masks
from ssljax import ops
from ssljax.methods import masked_images
from ssljax.models import decoder as decoder_lib
from ssljax.models import linen


def make(
  encoder,
  *,
  mask_ratio: float = 0.75,
  norm_pix: bool = True,
  decoder_dim: int = 512,
  decoder_depth: int = 8,
  decoder_heads: int = 16,
) -> core.Method:
  """Returns MAE around a ViT; batches carry `views` [b 1 h w c].

  Args:
    encoder: a ViT, as `models.vit` has it: it takes `keep`.
    mask_ratio: part of the patches that is removed.
    norm_pix: predict each patch normalised by its own mean and variance.
    decoder_dim: width of the decoder.
    decoder_depth: its number of blocks.
    decoder_heads: of its attention.

  Raises:
    UserError: a class token that the decoder would not be given.
  """
  patch, has_class = encoder.patch, encoder.pool == "cls"
  if encoder.class_token and not has_class:
    raise errors.UserError(
      "mae gives the decoder the class token of config.encoder.pool='cls' "
      "alone: give that, or no class token"
    )

  def decoder_for(x):
    _, h, w, c = x.shape
    return decoder_lib.Decoder(
      grid=(h // patch, w // patch),
      out_dim=patch * patch * c,
      dim=decoder_dim,
      depth=decoder_depth,
      heads=decoder_heads,
      dtype=encoder.dtype,
    )

  def init(rng, batch):
    ops.require_views(batch, 1)
    encoder_rng, decoder_rng = jax.random.split(rng)
    x = batch["views"][:, 0]
    params = {"encoder": linen.init(encoder, encoder_rng, x)[0]}
    out = encode(params, x, train=False)
    n = out["tokens"].shape[1]
    restore = jnp.broadcast_to(jnp.arange(n), (len(x), n))
    params["decoder"] = decoder_for(x).init(
      decoder_rng, out["tokens"], restore, _class_token(out)
    )["params"]
    return params, {}

  def encode(params, x, *, train, keep=None, key=None):
    return linen.apply(
      encoder, params["encoder"], {}, x, train=train, keep=keep, key=key
    )[0]

  def _class_token(out):
    # Of the last block, where those before are pooled, too.
    return out["pooled"][:, -encoder.dim :] if has_class else None

  def predict(params, x, key, *, train):
    """Predictions [b n p*p*c] and the mask [b n]."""
    n = (x.shape[1] // patch) * (x.shape[2] // patch)
    keep = int(n * (1 - mask_ratio))
    if not 0 < keep < n:
      raise errors.UserError(
        f"method.mask_ratio={mask_ratio} keeps {keep} of {n} patches: give one "
        "that keeps some and removes some"
      )
    mask_key, drop_key = ops.view_keys(key, 2).reshape(-1, 2).T
    kept, restore, mask = masks.random_masking(mask_key, n, keep)
    out = encode(params, x, train=train, keep=kept, key=drop_key)
    predicted = decoder_for(x).apply(
      {"params": params["decoder"]},
      out["tokens"],
      restore,
      _class_token(out),
    )
    return predicted, mask

  def forward(params, method_state, batch, *, step, train):
    del step
    x = batch["views"][:, 0]
    predicted, mask = predict(params, x, batch["key"], train=train)
    target = ops.patchify(x, patch)
    if norm_pix:
      target = losses.normalize_pixels(target)
    sums, counts = losses.masked_pixels(predicted, target, mask)
    return {"sum": sums, "count": counts}, method_state

  def embed(params, method_state, batch):
    del method_state
    out = encode(params, batch["views"][:, 0], train=False)
    return {"pooled": out["pooled"], "tokens": out["tokens"]}

  def reconstruction(params, method_state, batch):
    """As the authors' demo shows it, in the scale of the views."""
    del method_state
    x = batch["views"][:, 0]
    predicted, mask = predict(params, x, batch["key"], train=False)
    return masked_images.pictures(x, predicted, mask, patch, norm_pix=norm_pix)

  show = {"reconstruction": reconstruction}
  objective = masked_images.objective
  return core.Method(
    init, forward, objective, embed, show=show, is_mean=True
  )
