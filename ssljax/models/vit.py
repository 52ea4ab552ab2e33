"""Vision transformers: Dosovitskiy et al. 2020, arXiv:2010.11929.

Pre-norm; parameter counts are timm's. The patch embedding is a product over the
pixels of a patch, in raster order with channels last: torch's convolution
[d c p p] transposed to [p p c d] and reshaped to [p*p*c d].
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssljax import errors
from ssljax import ops
from ssljax.models import relative
from ssljax.models import remat
from ssljax.models import vit_init

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

  Options are the fields of `ViT`, those that the size gives included.

  Raises:
    UserError: a size that is not known, no patch, an option that is not a
      field, heads that do not divide the width, more blocks to pool than there
      are, or a patch that does not divide `img_size`.
  """
  size, _, patch = str(variant).partition("/")
  if size not in _SIZES or not patch.isdigit() or not int(patch):
    raise errors.UserError(
      f"unknown vit variant {variant!r}: give SIZE/PATCH, the size among "
      f"{', '.join(_SIZES)}"
    )
  errors.refuse_fields("vit", options, ViT)
  dim, depth, heads = _SIZES[size]
  sizes = dict(dim=dim, depth=depth, heads=heads, patch=int(patch))
  vit = ViT(**(sizes | options))
  if vit.dim % vit.heads:
    raise errors.UserError(
      f"encoder.heads={vit.heads} does not divide encoder.dim={vit.dim}"
    )
  if not 1 <= vit.pool_blocks <= vit.depth:
    raise errors.UserError(
      f"encoder.pool_blocks={vit.pool_blocks}: give 1 to {vit.depth}"
    )
  if np.any(np.mod(vit.img_size or 0, vit.patch)):
    raise errors.UserError(
      f"the patch of {vit.patch} does not divide encoder.img_size="
      f"{vit.img_size}: give a multiple"
    )
  return vit


class ViT(nn.Module):
  """A ViT without classifier, under the encoder contract.

  With `keep` only those patches go through the blocks, with the positions they
  had; "tokens" and "layers" are then [b k d], in the order of `keep`. Patches
  in `mask` are replaced by the mask token before positions are added.
  `attention_mask` is bool, broadcastable to [b heads q k], True where a query
  may look, over [class token, registers, patches]. "tokens" are the patches
  after the last norm; "layers" the patches in the residual stream as the blocks
  asked for leave it, not normalised.

  Attributes:
    dim: width of the tokens.
    depth: number of blocks.
    heads: of the attention.
    patch: side of a patch, in pixels.
    mlp_ratio: width of the MLP over `dim`.
    pos: "learned"; "sincos2d" (fixed, as MAE's; MoCo v3's has rows and columns
      the other way round, which is another order of channels); or "relative", a
      bias of the logits that all blocks share (BEiT, SimMIM, data2vec), which
      wants all patches and the size that it was learned for.
    img_size: side, or height and width, of the images that positions are for;
      None is the size at initialisation, and of fixed ones that of the images
      at hand. For other sizes they are interpolated (bicubic, antialiased).
    pool: "cls", or "mean" of the patches; both after the last norm.
    pool_blocks: "pooled" joins, from the first to the last, what so many of the
      last blocks give, each after that norm, as DINO's linear probe sees them.
    class_token: prepend one; None is where `pool` needs it.
    registers: extra tokens without meaning (Darcet et al. 2023).
    mask_token: learn the token that stands for the patches in `mask`.
    drop_path: rate of the last block; those before have less, linearly.
    drop_path_uniform: they have the same.
    layer_scale: where given, each branch of a block is times a learned vector
      that starts as this (Touvron et al. 2021, arXiv:2103.17239).
    bias: of the dense layers in blocks; AIM has none.
    embed_norm: a norm between the patch embedding and positions, as AIM has.
    gelu: "exact" or "tanh".
    weight_init: how weights start, a name of `vit_init.py`: "mae", "mocov3",
      "dino", "dinov2", "ijepa" or "beit".
    scan: one compiled block for all; its parameters get an axis [depth] first.
    remat: what blocks keep for the way back, a name of `remat.py`.
    dtype: of the products; norms, softmax and the stream that the branches are
      added to are float32, as under torch's autocast: a small branch would be
      lost beside it.
    axis_name: that heads take for their batch norm; here there is none.
  """

  dim: int
  depth: int
  heads: int
  patch: int
  mlp_ratio: float = 4.0
  pos: str = "learned"
  img_size: int | tuple[int, int] | None = None
  pool: str = "cls"
  pool_blocks: int = 1
  class_token: bool | None = None
  registers: int = 0
  mask_token: bool = False
  drop_path: float = 0.0
  drop_path_uniform: bool = False
  layer_scale: float | None = None
  bias: bool = True
  embed_norm: bool = False
  gelu: str = "exact"
  weight_init: str = "mae"
  scan: bool = False
  remat: str = "none"
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
    if not all(0 <= i < self.depth for i in layers):
      raise ValueError(f"layers={layers}: this ViT has {self.depth} blocks")
    if mask is not None and not self.mask_token:
      raise ValueError("mask needs an encoder with mask_token=True")
    scales = None
    if train and self.drop_path:
      if key is None:
        raise ValueError("drop_path in training needs key [b]")
      scales = _drop_scales(
        key, self.drop_path, self.depth, self.drop_path_uniform
      )
    extra = self._extra_tokens()
    first = extra.shape[0]
    if self.pos == "relative":
      if keep is not None:
        raise errors.UserError(
          "encoder.pos='relative' needs all patches, of which the method takes "
          "some away: give learned or sincos2d"
        )
      grid = (x.shape[1] // self.patch, x.shape[2] // self.patch)
      logits = relative.Bias(grid, self.heads, first, name="relative")()
      attention_mask = relative.masked(logits, attention_mask)
    x = self._patch_tokens(x, keep, mask)
    extra = jnp.broadcast_to(extra, (x.shape[0], *extra.shape))
    x = jnp.concatenate([extra, x], axis=1)
    pooled = tuple(range(self.depth - self.pool_blocks, self.depth - 1))
    x, streams = self._blocks(x, scales, attention_mask, (*layers, *pooled))
    last_norm = norm("norm")
    normed = [last_norm(s) for s in (*streams[len(layers) :], x)]
    pool = lambda x: x[:, 0] if self.pool == "cls" else x[:, first:].mean(1)
    return {
      "pooled": jnp.concatenate([pool(x) for x in normed], axis=-1),
      "tokens": normed[-1][:, first:],
      "layers": tuple(s[:, first:] for s in streams[: len(layers)]),
    }

  def _extra_tokens(self):
    """Class token and registers [n dim], where there are any."""
    if self.pool not in ("cls", "mean"):
      raise errors.UserError(f"unknown pool {self.pool!r}: cls or mean")
    wanted = self.class_token
    wanted = self.pool == "cls" if wanted is None else wanted
    if self.pool == "cls" and not wanted:
      raise errors.UserError("encoder.pool='cls' needs encoder.class_token")
    extra = [jnp.zeros((0, self.dim))]
    init = vit_init.get(self.weight_init)
    if wanted:
      token = self.param("cls_token", init.class_token, (1, self.dim))
      if self.pos == "learned":  # as timm and the authors have it
        token += self.param("cls_pos", init.positions, (1, self.dim))
      extra.append(token)
    if self.registers:
      shape = (self.registers, self.dim)
      extra.append(self.param("registers", init.registers, shape))
    return jnp.concatenate(extra)

  def _patch_tokens(self, x, keep, mask):
    """Images [b h w c] to patches [b n or k dim] with their positions."""
    h, w, p = *x.shape[1:3], self.patch
    if h % p or w % p:
      raise errors.UserError(
        f"the patch of {p} x {p} does not divide images of {h} x {w}: give "
        f"another patch in encoder.variant, or a size that is a multiple"
      )
    x = ops.patchify(x.astype(self.dtype), p)
    positions = self._positions(h // p, w // p)
    if keep is not None:
      # Before the embedding: what is not kept costs nothing, and no gradient
      # has to be scattered back to it.
      x = jnp.take_along_axis(x, keep[..., None], axis=1)
      positions = positions[keep]
      mask = mask if mask is None else jnp.take_along_axis(mask, keep, axis=1)
    init = vit_init.get(self.weight_init)
    x = dense(self.dim, self.dtype, "patch_embed", kernel_init=init.patch)(x)
    x = x.astype(jnp.float32)
    if self.embed_norm:
      x = norm("embed_norm")(x)
    if self.mask_token:
      token = self.param("mask_token", init.mask_token, (1, self.dim))
      x = x if mask is None else jnp.where(mask[..., None], token, x)
    return x + positions

  def _positions(self, h, w):
    """[h*w dim], interpolated where they were learned for another grid."""
    if self.pos == "relative":
      return jnp.zeros((h * w, self.dim))
    if self.pos not in ("learned", "sincos2d"):
      raise errors.UserError(
        f"unknown pos {self.pos!r}: relative, learned or sincos2d"
      )
    size = self.img_size or (h * self.patch, w * self.patch)
    gh, gw = (size, size) if isinstance(size, int) else size
    shape = (gh // self.patch, gw // self.patch, self.dim)
    if self.pos == "sincos2d":
      table = jnp.asarray(sincos2d(self.dim, *shape[:2])).reshape(shape)
    elif self.has_variable("params", "pos_embed"):
      # The grid is the stored one's, whatever the images are now.
      table = self.get_variable("params", "pos_embed")
    else:
      init = vit_init.get(self.weight_init).positions
      table = self.param("pos_embed", init, shape)
    if table.shape[:2] != (h, w):
      table = jax.image.resize(table, (h, w, self.dim), "bicubic")
    return table.reshape(h * w, self.dim)

  def _blocks(self, x, scales, attention_mask, layers):
    """The tokens [b n dim] after all blocks, and after those asked for."""
    block = remat.wrap(Block, self.remat, scan=self.scan)
    fields = dict(
      heads=self.heads,
      mlp_ratio=self.mlp_ratio,
      gelu=self.gelu,
      weight_init=self.weight_init,
      layer_scale=self.layer_scale,
      bias=self.bias,
      dtype=self.dtype,
    )
    if self.scan and vit_init.get(self.weight_init).by_depth:
      raise errors.UserError(
        f"weight_init={self.weight_init!r} differs between blocks: give "
        "encoder.scan=False"
      )
    if self.scan:
      body = lambda module, x, scale, mask: (
        (x := module(x, scale, mask)),
        x if layers else None,
      )
      x, streams = nn.scan(
        body,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
        length=self.depth,
      )(block(**fields, name="blocks"), x, scales, attention_mask)
      return x, [streams[i] for i in layers]
    streams = []
    for i in range(self.depth):
      scale = None if scales is None else scales[i]
      x = block(**fields, index=i, name=f"block{i}")(x, scale, attention_mask)
      streams.append(x)
    return x, [streams[i] for i in layers]


class Block(nn.Module):
  """Attention and MLP, each on the normed stream [b n d] and added to it."""

  heads: int
  mlp_ratio: float
  gelu: str
  dtype: jnp.dtype
  weight_init: str = "mae"
  index: int = 0  # of the block, for how it starts
  layer_scale: float | None = None
  bias: bool = True

  @nn.compact
  def __call__(self, x, scale, attention_mask):
    """`scale` [b 2] multiplies the two branches; None leaves them.

    `attention_mask` is bool, or float32 that is added to the logits.
    """
    d = x.shape[-1]
    if d % self.heads:  # of a predictor or decoder; `make` has told of a ViT's
      raise errors.UserError(
        f"{self.heads} heads do not divide a width of {d}: give others in "
        "config.method"
      )

    def branch(y, i):
      y = y.astype(x.dtype)
      if self.layer_scale is not None:
        init = nn.initializers.constant(self.layer_scale)
        y = y * self.param(f"scale{i + 1}", init, (d,))
      return y if scale is None else y * scale[:, i, None, None]

    layer = functools.partial(dense, dtype=self.dtype, bias=self.bias)

    y = norm("norm1")(x).astype(self.dtype)
    init = vit_init.get(self.weight_init)
    last = init.last(self.index)
    y = layer(3 * d, name="qkv", kernel_init=init.qkv)(y)
    y, weights = _attention(y, self.heads, attention_mask)
    # For pictures: without mutable=["intermediates"] this is nothing.
    self.sow("intermediates", "attention", weights)
    y = layer(d, name="proj", kernel_init=last)(y)
    x = x + branch(y, 0)
    y = norm("norm2")(x).astype(self.dtype)
    hidden = int(d * self.mlp_ratio)
    y = layer(hidden, name="fc1", kernel_init=init.layer)(y)
    y = layer(d, name="fc2", kernel_init=last)(gelu(y, self.gelu))
    return x + branch(y, 1)


def _attention(qkv, heads, mask):
  """[b n 3*heads*d] -> [b n heads*d], weights [b heads q k].

  The softmax is float32.
  """
  b, n, _ = qkv.shape
  # Split, not sliced: the gradients are joined, not padded and added.
  q, k, v = (t.reshape(b, n, heads, -1) for t in jnp.split(qkv, 3, axis=-1))
  q = q * q.shape[-1] ** -0.5
  logits = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32)
  if mask is not None and mask.dtype == bool:
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  elif mask is not None:
    logits = logits + mask
  weights = jax.nn.softmax(logits).astype(v.dtype)
  out = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(b, n, -1)
  return out, weights


def gelu(x, kind):
  if kind not in ("exact", "tanh"):
    raise errors.UserError(f"unknown gelu {kind!r}: exact or tanh")
  return _gelu(kind, x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _gelu(kind, x):
  return _value_and_slope(kind, x)[0]


@_gelu.defjvp
def _gelu_jvp(kind, primals, tangents):
  # Its own rule: nothing in float32 is kept for the backward pass.
  value, slope = _value_and_slope(kind, *primals)
  return value, slope * tangents[0]


@jax.custom_jvp
def _erf(x):
  return jax.lax.erf(x)


@_erf.defjvp
def _erf_jvp(primals, tangents):
  # Its own rule, since that of jax 0.12.0 fails in a `shard_map`.
  (x,), (t,) = primals, tangents
  return _erf(x), 2 / math.sqrt(math.pi) * jnp.exp(-jnp.square(x)) * t


def _value_and_slope(kind, x):
  """Of x Phi(x), or the same with a tanh that is near Phi.

  Not jax.nn.gelu, whose erfc costs more than erf on a CPU.
  """
  # 1 + erf cancels, and so does 1 + tanh.
  y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  if kind == "exact":
    cdf = 0.5 * (1 + _erf(y * math.sqrt(0.5)))
    pdf = jnp.exp(-0.5 * jnp.square(y)) / math.sqrt(2 * math.pi)
  else:
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    t = jnp.tanh(scale * (y + cubic * y**3))
    cdf = 0.5 * (1 + t)
    pdf = 0.5 * (1 - t * t) * scale * (1 + 3 * cubic * jnp.square(y))
  return (y * cdf).astype(x.dtype), (cdf + y * pdf).astype(x.dtype)


def _drop_scales(key, rate, depth, uniform=False):
  """Stochastic depth (Huang et al. 2016): keys [b] -> scales [depth b 2].

  Each of a block's two branches of each example is left out with the block's
  rate, and divided by one minus it where it stays.
  """
  rates = jnp.linspace(rate if uniform else 0, rate, depth)[:, None]
  drawn = jax.vmap(lambda k: jax.random.uniform(k, (depth, 2)))(key)
  return ((drawn >= rates) / (1 - rates)).swapaxes(0, 1)


def _product(x, w):
  """[b n k] by [k m], as one product of matrices.

  Its gradients are then such products, too, whose transposes XLA on a CPU takes
  as they are; those of more axes it first writes out, strided.
  """
  return (x.reshape(-1, x.shape[-1]) @ w).reshape(*x.shape[:-1], -1)


def dense(
  width,
  dtype,
  name,
  *,
  kernel_init=nn.initializers.xavier_uniform(),
  bias=True,
):
  """A Dense whose backward pass is quick on a CPU."""
  return nn.Dense(
    width,
    use_bias=bias,
    dtype=dtype,
    kernel_init=kernel_init,
    dot_general=lambda x, w, dims, **options: _product(x, w),
    name=name,
  )


def norm(name, epsilon=1e-6):
  """LayerNorm in float32; timm's ViTs have this epsilon."""
  return nn.LayerNorm(epsilon=epsilon, dtype=jnp.float32, name=name)


def sincos2d(dim: int, h: int, w: int) -> np.ndarray:
  """Fixed positions [h*w dim] of facebookresearch/mae `util/pos_embed.py`.

  The first half of the channels encodes the column, the second the row; each
  half is sines, then cosines, of frequencies 10000^(-i / (dim / 4)).

  Raises:
    UserError: `dim` is not a multiple of 4.
  """
  if dim % 4:
    raise errors.UserError(
      f"fixed positions need a width that is a multiple of 4, not {dim}: give "
      "another config.encoder.dim, or method.decoder_dim or predictor_dim"
    )
  frequencies = 10000.0 ** (-np.arange(dim // 4) / (dim / 4))
  rows, columns = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")

  def encode(place):
    angles = place.reshape(-1, 1) * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

  table = np.concatenate([encode(columns), encode(rows)], axis=1)
  return table.astype(np.float32)
