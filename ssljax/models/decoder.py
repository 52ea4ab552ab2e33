"""The decoder of masked autoencoders: He et al. 2021, arXiv:2111.06377."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.models import vit
from ssljax.models import vit_init


class Decoder(nn.Module):
  """Visible tokens to a prediction for every patch.

  As `forward_decoder` of facebookresearch/mae `models_mae.py`: a mask token
  where there is none, fixed positions, ViT blocks, a last norm, a product.

  Attributes:
    grid: (rows, columns) of patches.
    out_dim: width of the prediction, p*p*c.
    dim: width of the tokens.
    depth: number of blocks.
    heads: of the attention.
    dtype: of the products; norms, softmax and the stream are float32.
  """

  grid: tuple[int, int]
  out_dim: int
  dim: int = 512
  depth: int = 8
  heads: int = 16
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, tokens, restore, class_token=None):
    """[b k d] -> [b n out_dim] in float32.

    Args:
      tokens: [b k d] of the visible patches.
      restore: int32 [b n], the place of each patch in the order whose first k
        are the visible ones; see `masks.random_masking`.
      class_token: [b d], or None where the encoder has none.
    """
    n = self.grid[0] * self.grid[1]
    embed = vit.dense(self.dim, self.dtype, "embed")
    mask_token = self.param("mask_token", vit_init.normal, (1, self.dim))
    # By a product with zeros and ones, whose gradient is one too, where that of
    # a gather scatters. What is masked meets no one.
    visible = jax.nn.one_hot(restore, tokens.shape[1], dtype=self.dtype)
    x = jnp.matmul(visible, embed(tokens), precision=jax.lax.Precision.HIGHEST)
    masked = (restore >= tokens.shape[1])[..., None]
    x = jnp.where(masked, mask_token, x)
    x = x + jnp.asarray(vit.sincos2d(self.dim, *self.grid))
    if class_token is not None:  # its position is zero
      x = jnp.concatenate([embed(class_token[:, None]), x], axis=1)
    for i in range(self.depth):
      x = vit.Block(
        heads=self.heads,
        mlp_ratio=4.0,
        gelu="exact",
        dtype=self.dtype,
        name=f"block{i}",
      )(x, None, None)
    x = vit.norm("norm")(x)[:, -n:].astype(self.dtype)
    return vit.dense(self.out_dim, self.dtype, "predict")(x).astype(jnp.float32)
