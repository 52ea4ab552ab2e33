"""Vision transformers: Dosovitskiy et al. 2020, arXiv:2010.11929.

Parameter counts are timm's. The patch embedding is a product over the pixels of
a patch, channels last, started as a Linear by Xavier's rule, as
facebookresearch/mae `models_mae.py` does.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax import errors
from ssljax import ops

# dim, depth, heads; Mu is for tests and `:quick`.
_SIZES = {
  "Mu": (32, 2, 2),
  "Ti": (192, 12, 3),
  "S": (384, 12, 6),
  "B": (768, 12, 12),
  "L": (1024, 24, 16),
  "H": (1280, 32, 16),
}


def make(*, variant: str, **options) -> "ViT":
  """Returns the ViT `variant`: size and patch, as in "S/16".

  Raises:
    UserError: a size that is not known, or no patch.
  """
  size, _, patch = variant.partition("/")
  if size not in _SIZES or not patch.isdigit():
    raise errors.UserError(
      f"unknown vit variant {variant!r}: give SIZE/PATCH, the size among "
      f"{', '.join(_SIZES)}"
    )
  dim, depth, heads = _SIZES[size]
  sizes = dict(dim=dim, depth=depth, heads=heads, patch=int(patch))
  return ViT(**{**sizes, **options})


class ViT(nn.Module):
  """A pre-norm ViT without classifier, under the encoder contract.

  "tokens" are the patches after the last norm; "layers" the patches in the
  residual stream after the blocks asked for, not normalised.

  Attributes:
    dim: width of the tokens.
    depth: number of blocks.
    heads: of the attention.
    patch: side of a patch, in pixels.
    mlp_ratio: width of the MLP over `dim`.
    pos: "learned" or "sincos2d" (fixed, MoCo v3 and MAE).
    class_token: prepend one.
    pool: "cls" or "mean" of the patches after the last norm.
    registers: extra tokens without meaning (Darcet et al. 2023).
    mask_token: learn a token that stands for the patches in `mask`.
    drop_path: rate of the last block; those before have less, linearly.
    gelu: "exact" or "tanh".
    scan: one compiled block for all; parameters get a leading axis [depth].
    remat: forget activations inside blocks.
    dtype: of the computation; norms and softmax are float32.
    axis_name: unused, there is no batch norm.
  """

  dim: int = 192
  depth: int = 12
  heads: int = 3
  patch: int = 16
  mlp_ratio: float = 4.0
  pos: str = "learned"
  class_token: bool = True
  pool: str = "cls"
  registers: int = 0
  mask_token: bool = False
  drop_path: float = 0.0
  gelu: str = "exact"
  scan: bool = False
  remat: bool = False
  img_size: tuple[int, int] | None = None
  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(
    self,
    x,
    *,
    train: bool,
    keep=None,
    mask=None,
    attention_mask=None,
    layers=(),
    key=None,
  ):
    b, h, w, _ = x.shape
    p = self.patch
    if h % p or w % p:
      raise errors.UserError(
        f"the patch of {p} x {p} does not divide images of {h} x {w}: give "
        f"another patch in encoder.variant, or a size that is a multiple"
      )
    x = nn.Dense(
      self.dim,
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
      name="patch_embed",
    )(ops.patchify(x.astype(self.dtype), p))
    if mask is not None:
      if not self.mask_token:
        raise ValueError("mask needs an encoder with mask_token=True")
      token = self.param("mask_token", _normal, (1, 1, self.dim))
      x = jnp.where(mask[..., None], token.astype(x.dtype), x)
    x = x + self._positions(h // p, w // p).astype(x.dtype)
    if keep is not None:
      x = jnp.take_along_axis(x, keep[..., None], axis=1)
    extra = []
    if self.class_token:
      extra.append(self.param("cls_token", _normal, (1, 1, self.dim)))
    if self.registers:
      shape = (1, self.registers, self.dim)
      extra.append(self.param("registers", _normal, shape))
    extra = [jnp.broadcast_to(t, (b, *t.shape[1:])) for t in extra]
    x = jnp.concatenate([t.astype(x.dtype) for t in extra] + [x], axis=1)
    first = sum(t.shape[1] for t in extra)

    x, streams = self._blocks(x, attention_mask, layers, key, train)
    x = _norm("norm")(x).astype(jnp.float32)
    tokens = x[:, first:]
    if self.pool == "cls" and not self.class_token:
      raise errors.UserError("encoder.pool='cls' needs encoder.class_token")
    return {
      "pooled": x[:, 0] if self.pool == "cls" else tokens.mean(axis=1),
      "tokens": tokens,
      "layers": tuple(s[:, first:].astype(jnp.float32) for s in streams),
    }

  def _positions(self, h, w):
    """[1 h*w dim], interpolated where they were learned for another grid."""
    if self.pos == "sincos2d":
      return jnp.asarray(sincos2d(self.dim, h, w))[None]
    if self.pos != "learned":
      raise errors.UserError(f"unknown pos {self.pos!r}: learned or sincos2d")
    gh, gw = (s // self.patch for s in self.img_size or (0, 0))
    gh, gw = gh or h, gw or w
    table = self.param("pos_embed", _normal, (1, gh * gw, self.dim))
    if (gh, gw) == (h, w):
      return table
    table = table.reshape(1, gh, gw, self.dim)
    table = jax.image.resize(table, (1, h, w, self.dim), "bicubic")
    return table.reshape(1, h * w, self.dim)

  def _blocks(self, x, attention_mask, layers, key, train):
    """The tokens after all blocks, and after those asked for."""
    rates = np.linspace(0, self.drop_path, self.depth, dtype=np.float32)
    drops = train and self.drop_path > 0
    if drops and key is None:
      raise ValueError("drop_path needs key [b]")
    block = nn.remat(Block, prevent_cse=not self.scan) if self.remat else Block
    options = dict(
      heads=self.heads,
      mlp_ratio=self.mlp_ratio,
      gelu=self.gelu,
      dtype=self.dtype,
    )
    if self.scan:
      stack = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, 0, nn.broadcast, nn.broadcast),
        length=self.depth,
      )
      inputs = (jnp.arange(self.depth), jnp.asarray(rates))
      key = key if drops else None
      x, streams = stack(**options, name="blocks")(
        x, *inputs, key, attention_mask
      )
      return x, [streams[i] for i in layers] if layers else []
    streams = []
    for i in range(self.depth):
      x, stream = block(**options, name=f"block{i}")(
        x, i, rates[i], key if drops else None, attention_mask
      )
      streams.append(stream)
    return x, [streams[i] for i in layers]


class Block(nn.Module):
  """Attention and MLP, each on the normed stream and added to it."""

  heads: int
  mlp_ratio: float
  gelu: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, index, drop_rate, key, attention_mask):
    """[b n d] -> ([b n d], the same again for a scan to stack)."""
    b, n, d = x.shape

    def dense(width, name):
      return nn.Dense(
        width,
        dtype=self.dtype,
        kernel_init=nn.initializers.xavier_uniform(),
        name=name,
      )

    def drop(y, branch):
      if key is None:
        return y
      draw = lambda k: jax.random.uniform(
        jax.random.fold_in(k, 2 * index + branch)
      )
      kept = jax.vmap(draw)(key) >= drop_rate
      scale = kept / jnp.maximum(1 - drop_rate, 1e-6)
      return y * scale[:, None, None].astype(y.dtype)

    y = _norm("norm1")(x).astype(self.dtype)
    qkv = dense(3 * d, "qkv")(y).reshape(b, n, 3, self.heads, d // self.heads)
    y = _attention(qkv, attention_mask).reshape(b, n, d)
    x = x + drop(dense(d, "proj")(y), 0)
    y = _norm("norm2")(x).astype(self.dtype)
    y = dense(int(d * self.mlp_ratio), "fc1")(y)
    y = nn.gelu(y, approximate=self.gelu == "tanh")
    x = x + drop(dense(d, "fc2")(y), 1)
    return x, x


def _attention(qkv, mask):
  """[b n 3 heads d] -> [b n heads d]; the softmax is float32."""
  q, k, v = (qkv[:, :, i] for i in range(3))
  scale = q.shape[-1] ** -0.5
  logits = jnp.einsum("bqhd,bkhd->bhqk", q * scale, k)
  logits = logits.astype(jnp.float32)
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(logits).astype(v.dtype)
  return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def _norm(name):
  return nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name=name)


_normal = nn.initializers.truncated_normal(0.02)


def sincos2d(dim: int, h: int, w: int) -> np.ndarray:
  """Fixed positions [h*w dim] of facebookresearch/mae `util/pos_embed.py`.

  The first half of the channels encodes the column, the second the row; each
  half is sines, then cosines, of frequencies 10000^(-i / (dim / 4)).
  """
  frequencies = 10000.0 ** (-np.arange(dim // 4) / (dim / 4))
  rows, columns = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")

  def encode(place):
    angles = place.reshape(-1, 1) * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

  table = np.concatenate([encode(columns), encode(rows)], axis=1)
  return table.astype(np.float32)
