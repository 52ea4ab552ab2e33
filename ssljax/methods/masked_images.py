"""What methods that predict pixels share: their objective, and pictures."""

import jax.numpy as jnp

from ssljax import ops


def objective(params, method_state, features, *, step):
  """The mean over all hidden patches of the batch, of sums and counts [b]."""
  del params, step
  loss = features["sum"].sum() / features["count"].sum()
  return loss, (method_state, {})


def pictures(x, predicted, mask, patch: int, *, norm_pix: bool):
  """The input, what was seen of it, and what was made of that.

  Args:
    x: images [b h w c] in the scale of the views.
    predicted: pixels of each patch [b n p*p*c].
    mask: bool [b n], True where a patch was hidden.
    patch: its side p.
    norm_pix: predictions are of patches normalised by their own statistics,
      which are not predicted: the true ones put them back into the scale.

  Returns:
    {title: images [b h w c]}.
  """
  target = ops.patchify(x, patch)
  if norm_pix:
    mean = target.mean(axis=-1, keepdims=True)
    var = target.var(axis=-1, keepdims=True, ddof=1)
    predicted = predicted * jnp.sqrt(var + 1e-6) + mean
  mask = mask[..., None]
  image = lambda patches: ops.unpatchify(patches, patch, x.shape[1:3])
  return {
    "input": x,
    "masked": image(jnp.where(mask, 0.0, target)),
    "reconstruction": image(predicted),
    "reconstruction + visible": image(jnp.where(mask, predicted, target)),
  }
