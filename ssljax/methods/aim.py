"""AIM: scalable pre-training of large autoregressive image models.

El-Nouby et al. 2024, arXiv:2401.08541; the authors' code is apple/ml-aim
`aim-v1/aim/v1/torch`, which has the trunk and its prefix attention but neither
the head nor the loss: those are the paper's. Patches are told one after the
other in raster order, from those before; a prefix of random length is seen as a
whole, so that the trunk also learns to look both ways.
"""

import jax
import jax.numpy as jnp

from ssljax import core
from ssljax import errors
from ssljax import losses
from ssljax import masks
from ssljax import ops
from ssljax.methods import masked_images
from ssljax.models import linen
from ssljax.models import predictors


def make(
  encoder,
  *,
  norm_pix: bool = True,
  head_dim: int = 2048,
  head_depth: int = 12,
  top_k: int = 6,
) -> core.Method:
  """Returns AIM around a ViT; batches carry `views` [b 1 h w c].

  Args:
    encoder: a ViT of patches alone, as `models.vit` has it; the authors' has no
      biases, and a norm of the patch embedding.
    norm_pix: predict each patch normalised by its own mean and variance.
    head_dim: width of the head.
    head_depth: its number of blocks.
    top_k: how many of the last blocks are averaged for `embed`, before the last
      norm, as the authors' probe has it.

  Raises:
    UserError: the encoder has a class token or registers, or fewer blocks than
      `top_k`.
  """
  patch = encoder.patch
  if encoder.pool == "cls" or encoder.class_token or encoder.registers:
    raise errors.UserError(
      "aim needs config.encoder.pool='mean', without registers"
    )
  if not 0 < top_k <= encoder.depth:
    raise errors.UserError(
      f"method.top_k={top_k}: the encoder has {encoder.depth} blocks"
    )
  last = tuple(range(encoder.depth - top_k, encoder.depth))

  def head_for(x):
    _, h, w, c = x.shape
    return predictors.MLPs(
      grid=(h // patch, w // patch),
      out_dim=patch * patch * c,
      dim=head_dim,
      depth=head_depth,
      dtype=encoder.dtype,
    )

  def init(rng, batch):
    ops.require_views(batch, 1)
    encoder_rng, head_rng = jax.random.split(rng)
    x = batch["views"][:, 0]
    params = {"encoder": linen.init(encoder, encoder_rng, x)[0]}
    tokens = encode(params, x, train=False)["tokens"]
    params["head"] = head_for(x).init(head_rng, tokens)["params"]
    return params, {}

  def encode(params, x, *, train, **options):
    return linen.apply(
      encoder, params["encoder"], {}, x, train=train, **options
    )[0]

  def predict(params, x, key, *, train):
    """Predictions [b n p*p*c] of each patch, and which count, bool [b n].

    The first patch is predicted by none; its prediction is zeros.
    """
    n = (x.shape[1] // patch) * (x.shape[2] // patch)
    prefix_key, drop_key = ops.view_keys(key, 2).reshape(-1, 2).T
    # Section 4.2: the length of the prefix is uniform in 1, ..., n - 1.
    draw = lambda k: jax.random.randint(k, (), 1, n)
    prefix = jax.vmap(draw)(prefix_key)
    out = encode(
      params,
      x,
      train=train,
      attention_mask=masks.prefix_attention_mask(prefix, n),
      key=drop_key,
    )
    of_next = head_for(x).apply({"params": params["head"]}, out["tokens"])
    predicted = jnp.pad(of_next[:, :-1], ((0, 0), (1, 0), (0, 0)))
    return predicted, jnp.arange(n) >= prefix[:, None]

  def forward(params, method_state, batch, *, step, train):
    del step
    x = batch["views"][:, 0]
    predicted, mask = predict(params, x, batch["key"], train=train)
    target = ops.patchify(x, patch)
    if norm_pix:
      target = losses.normalize_pixels(target)
    # Equation 2, over patches that are not in the prefix.
    sums, counts = losses.masked_pixels(predicted, target, mask)
    return {"sum": sums, "count": counts}, method_state

  def embed(params, method_state, batch):
    """Looking both ways, as the authors do in evaluation."""
    del method_state
    out = encode(params, batch["views"][:, 0], train=False, layers=last)
    tokens = sum(out["layers"]) / top_k
    return {"pooled": tokens.mean(axis=1), "tokens": tokens}

  def reconstruction(params, method_state, batch):
    """Each patch from the true ones before it, behind a prefix."""
    del method_state
    x = batch["views"][:, 0]
    predicted, mask = predict(params, x, batch["key"], train=False)
    return masked_images.pictures(x, predicted, mask, patch, norm_pix=norm_pix)

  show = {"reconstruction": reconstruction}
  objective = masked_images.objective
  return core.Method(
    init, forward, objective, embed, show=show, is_mean=True
  )
