"""GPT-2's decoder: Radford et al. 2019, "Language models are unsupervised
multitask learners".

Pre-norm, tanh GELU, learned positions, a last norm, as openai/gpt-2 `model.py`
and Hugging Face's `GPT2Model` have it; the projection to the vocabulary is the
table of tokens. Weights start normal with deviation 0.02, positions with 0.01,
as the released code has them; the scaling of residual layers that the paper
mentions is not in it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import errors
from ssljax.models import remat
from ssljax.models import text
from ssljax.models import vit

# dim, depth, heads; Mu is for tests, mini for two cores.
_SIZES = {
  "Mu": (32, 2, 2),
  "mini": (256, 4, 4),
  "124M": (768, 12, 12),
  "355M": (1024, 24, 16),
  "774M": (1280, 36, 20),
  "1558M": (1600, 48, 25),
}


def make(*, variant: str, **options) -> "GPT":
  """Returns the decoder of the size `variant`.

  Options are the fields of `GPT`, those that the size gives included.

  Raises:
    UserError: a size that is not known, an option that is not a field, or heads
      that do not divide the width.
  """
  if variant not in _SIZES:
    raise errors.UserError(
      f"unknown gpt variant {variant!r}: choose among {', '.join(_SIZES)}"
    )
  errors.refuse_fields("gpt", options, GPT)
  dim, depth, heads = _SIZES[variant]
  decoder = GPT(**(dict(dim=dim, depth=depth, heads=heads) | options))
  if decoder.dim % decoder.heads:
    raise errors.UserError(
      f"encoder.heads={decoder.heads} does not divide encoder.dim={decoder.dim}"
    )
  return decoder


class GPT(nn.Module):
  """GPT-2 under the encoder contract; x is tokens int32 [b t].

  "tokens" is [b t d] after the last norm, "pooled" the last of them. No token
  looks ahead; `attention_mask` may forbid more. With `cache`, from `init_cache`
  or an earlier call, x follows the tokens that are in it, and the result has
  the longer "cache".

  Attributes:
    dim: width of the tokens.
    depth: number of blocks.
    heads: of the attention.
    vocab: rows of the table of tokens.
    positions: the longest sequence.
    mlp_ratio: width of the MLP over `dim`.
    dropout: of embeddings, branches and attention weights, in training.
    scan: one compiled block for all; its parameters get an axis [depth] first.
    remat: what blocks keep for the way back, a name of `remat.py`.
    dtype: of the products; norms, softmax and the stream that the branches are
      added to are float32.
    axis_name: that heads take for their batch norm; here there is none.
  """

  causal = True  # no token looks ahead

  dim: int
  depth: int
  heads: int
  vocab: int = 50257
  positions: int = 1024
  mlp_ratio: float = 4.0
  dropout: float = 0.1
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
    cache=None,
  ):
    """Raises ValueError for `keep` or `mask`, or tokens beyond `positions`."""
    text.check(self, x, layers=layers, keep=keep, mask=mask)
    key = text.dropout_key(self, key, train=train)
    place = 0 if cache is None else cache["place"]
    init = nn.initializers.normal(0.01)
    positions = text.embed(self.positions, self.dim, "pos_embed", init)
    y = text.embed(self.vocab, self.dim, "token_embed")(x)
    y = y + positions(place + jnp.arange(x.shape[1]))
    y = text.dropout(y, text.fold(key, self.depth), self.dropout)
    y, streams, past = self._blocks(y, attention_mask, key, cache, layers)
    y = _norm("norm")(y)
    out = {
      "pooled": y[:, -1],
      "tokens": y,
      "layers": tuple(streams),
    }
    if cache is not None:
      out["cache"] = dict(zip("kv", past), place=place + x.shape[1])
    return out

  def init_cache(self, b: int, length: int):
    """An empty cache for `b` sequences of at most `length` tokens."""
    shape = (self.depth, b, length, self.heads, self.dim // self.heads)
    empty = jnp.zeros(shape, self.dtype)
    return {"k": empty, "v": empty, "place": jnp.zeros([], jnp.int32)}

  def _blocks(self, x, attention_mask, key, cache, layers):
    """The stream after all blocks, after those asked for, and the cache's."""
    block = remat.wrap(Block, self.remat, scan=self.scan)
    fields = dict(
      heads=self.heads,
      mlp_ratio=self.mlp_ratio,
      dropout=self.dropout,
      dtype=self.dtype,
    )
    place, past = None, None
    if cache is not None:
      place, past = cache["place"], (cache["k"], cache["v"])
    if self.scan:

      def body(block, x, i, past, place, mask, key):
        x, past = block(x, mask, text.fold(key, i), past, place)
        return x, (x if layers else None, past)

      x, (streams, past) = nn.scan(
        body,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, 0, nn.broadcast, nn.broadcast, nn.broadcast),
        length=self.depth,
      )(
        block(**fields, name="blocks"),
        x,
        jnp.arange(self.depth),
        past,
        place,
        attention_mask,
        key,
      )
      return x, [streams[i] for i in layers], past
    streams, pasts = [], []
    for i in range(self.depth):
      mine = None if past is None else (past[0][i], past[1][i])
      x, mine = block(**fields, name=f"block{i}")(
        x, attention_mask, text.fold(key, i), mine, place
      )
      streams.append(x)
      pasts.append(mine)
    if past is not None:
      past = tuple(jnp.stack(p) for p in zip(*pasts))
    return x, [streams[i] for i in layers], past


class Block(nn.Module):
  """Attention and MLP, each on the normed stream [b t d] and added to it."""

  heads: int
  mlp_ratio: float
  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, attention_mask, key, past, place):
    """`key` [b] drops, None drops nothing; `past` (k, v) [b n h d] or None."""
    d = x.shape[-1]
    drop = lambda y, i: text.dropout(y, text.fold(key, i), self.dropout)
    dense = lambda width, name: vit.dense(
      width, self.dtype, name, kernel_init=text.normal
    )
    qkv = dense(3 * d, "qkv")(_norm("norm1")(x).astype(self.dtype))
    q, k, v = (
      text.split_heads(y, self.heads) for y in jnp.split(qkv, 3, axis=-1)
    )
    causal = past is None
    if past is not None:
      k, v = past = tuple(
        jax.lax.dynamic_update_slice_in_dim(old, new, place, axis=1)
        for old, new in zip(past, (k, v))
      )
      seen = jnp.arange(k.shape[1]) <= place + jnp.arange(q.shape[1])[:, None]
      attention_mask = seen if attention_mask is None else attention_mask & seen
    y = text.attention(
      q,
      k,
      v,
      mask=attention_mask,
      causal=causal,
      rate=0.0 if key is None else self.dropout,
      key=text.fold(key, 0),
    )
    x = x + drop(dense(d, "proj")(y), 1)
    y = _norm("norm2")(x).astype(self.dtype)
    y = vit.gelu(dense(int(d * self.mlp_ratio), "fc1")(y), "tanh")
    return x + drop(dense(d, "fc2")(y), 2), past


def _norm(name):
  return vit.norm(name, 1e-5)
