"""Networks that predict: what is hidden, what follows, what is below."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.models import vit
from ssljax.models import vit_init


class Blocks(nn.Module):
  """I-JEPA's predictor: the tokens of a context to those of other places.

  `VisionTransformerPredictor` of facebookresearch/ijepa
  `src/models/vision_transformer.py`: a token for each place asked for, fixed
  positions, ViT blocks over both, a last norm, a product. Each target is
  predicted by itself.

  Attributes:
    grid: (rows, columns) of patches.
    dim: width.
    depth: number of blocks.
    heads: of the attention.
    weight_init: how weights start, a name of `vit_init.py`.
    dtype: of the products; norms, softmax and the stream are float32.
  """

  grid: tuple[int, int]
  dim: int = 384
  depth: int = 12
  heads: int = 12
  weight_init: str = "ijepa"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, tokens, places, seen, targets, asked):
    """[b k d] -> [b t m d] in float32.

    Args:
      tokens: [b k d] of the context.
      places: int32 [b k], where they are.
      seen: bool [b k], False where a token is only there for the shape.
      targets: int32 [b t m], the places to predict.
      asked: bool [b t m], False where a place is only there for the shape.
    """
    b, t, m = targets.shape
    init = vit_init.get(self.weight_init)
    layer = lambda width, name: vit.dense(
      width, self.dtype, name, kernel_init=init.layer
    )
    positions = jnp.asarray(vit.sincos2d(self.dim, *self.grid))
    x = layer(self.dim, "embed")(tokens.astype(self.dtype)) + positions[places]
    token = self.param("mask_token", init.mask_token, (1, self.dim))
    y = token + positions[targets]
    # Each target with the context, as an example of its own.
    join = lambda x, y: jnp.concatenate(
      [jnp.repeat(x, t, axis=0), y.reshape(b * t, m, *y.shape[3:])], axis=1
    )
    x, allowed = join(x, y), join(seen, asked)[:, None, None]
    for i in range(self.depth):
      x = vit.Block(
        heads=self.heads,
        mlp_ratio=4.0,
        gelu="exact",
        weight_init=self.weight_init,
        index=i,
        dtype=self.dtype,
        name=f"block{i}",
      )(x, None, allowed)
    x = vit.norm("norm")(x)[:, -m:].astype(self.dtype)
    x = layer(tokens.shape[-1], "predict")(x)
    return x.reshape(b, t, m, -1).astype(jnp.float32)


class MLPs(nn.Module):
  """AIM's head: blocks of an MLP alone, each token by itself.

  El-Nouby et al. 2024, arXiv:2401.08541, section 4: the trunk's blocks without
  attention, fixed positions before them, no biases. The authors have not
  published its code.

  Attributes:
    grid: (rows, columns) of patches.
    out_dim: width of the prediction, p*p*c.
    dim: width.
    depth: number of blocks.
    dtype: of the products; norms and the stream are float32.
  """

  grid: tuple[int, int]
  out_dim: int
  dim: int = 2048
  depth: int = 12
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, tokens):
    """[b n d] -> [b n out_dim] in float32."""
    layer = lambda width, name, **options: vit.dense(
      width, self.dtype, name, bias=False, **options
    )
    x = layer(self.dim, "embed")(tokens.astype(self.dtype))
    x = x + jnp.asarray(vit.sincos2d(self.dim, *self.grid))
    for i in range(self.depth):
      y = vit.norm(f"norm{i}")(x).astype(self.dtype)
      y = vit.gelu(layer(4 * self.dim, f"block{i}_fc1")(y), "exact")
      x = x + layer(self.dim, f"block{i}_fc2")(y)
    x = vit.norm("norm")(x).astype(self.dtype)
    return layer(self.out_dim, "predict")(x).astype(jnp.float32)


class Rows(nn.Module):
  """CPC's context: what each place knows of its row and those above.

  Hénaff et al. 2019, arXiv:1905.09272, `pixelCNN` in the listing of appendix A:
  residual blocks of 1 x 1, 1 x 3, 2 x 1, 1 x 1 convolutions, the third of which
  sees its place and the one above.

  Attributes:
    dim: width inside the blocks.
    depth: number of blocks.
    dtype: of the computation.
  """

  dim: int = 256
  depth: int = 5
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """[b h w d] -> [b h w d]."""
    x = x.astype(self.dtype)
    conv = lambda width, kernel, padding, name: nn.Conv(
      width, kernel, padding=padding, dtype=self.dtype, name=name
    )
    for i in range(self.depth):
      name = lambda j, i=i: f"block{i}_conv{j}"
      y = jax.nn.relu(conv(self.dim, (1, 1), "VALID", name(1))(x))
      y = conv(self.dim, (1, 3), "SAME", name(2))(y)
      above = ((1, 0), (0, 0))
      y = jax.nn.relu(conv(self.dim, (2, 1), above, name(3))(y))
      x = x + conv(x.shape[-1], (1, 1), "VALID", name(4))(y)
    return jax.nn.relu(x)
