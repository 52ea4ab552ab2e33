"""What encoders of token sequences share: attention, dropout, embeddings."""

import flax.linen as nn
import jax
import jax.numpy as jnp

normal = nn.initializers.normal(0.02)


def attend(qkv, heads, *, mask=None, causal=False, rate=0.0, key=None):
  """Attention of a joint projection [b t 3*d] -> [b t d].

  Args:
    qkv: queries, keys and values side by side.
    heads: their number divides d.
    mask: bool, broadcastable to [b heads q k], True where a query may look.
    causal: no query looks ahead.
    rate: part of the attention weights that is dropped.
    key: [b], for what is dropped.
  """
  q, k, v = (split_heads(x, heads) for x in jnp.split(qkv, 3, axis=-1))
  return attention(q, k, v, mask=mask, causal=causal, rate=rate, key=key)


def split_heads(x, heads):
  """[b t d] -> [b t heads d/heads]."""
  return x.reshape(*x.shape[:2], heads, -1)


def attention(q, k, v, *, mask=None, causal=False, rate=0.0, key=None):
  """[b q h d], [b k h d], [b k h d] -> [b q h*d]; see `attend`."""
  b, n, *_ = q.shape
  if not rate:
    out = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal)
    return out.reshape(b, n, -1)
  if causal:
    ahead = jnp.tril(jnp.ones((n, k.shape[1]), bool))
    mask = ahead if mask is None else mask & ahead
  logits = jnp.einsum("bqhd,bkhd->bhqk", q * q.shape[-1] ** -0.5, k)
  logits = logits.astype(jnp.float32)
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  weights = dropout(jax.nn.softmax(logits).astype(v.dtype), key, rate)
  return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(b, n, -1)


def dropout(x, key, rate):
  """Drops elements of x [b ...] by keys [b]; None or a rate of 0 drops none."""
  if key is None or not rate:
    return x
  stays = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - rate, x.shape[1:]))
  return jnp.where(stays(key), x / (1 - rate), 0)


def fold(key, i):
  """Keys [b] for purpose i; None stays None."""
  return (
    None if key is None else jax.vmap(jax.random.fold_in, (0, None))(key, i)
  )


def embed(vocab, dim, name, init=normal):
  """A table of `vocab` rows; `jnp.take`, whose gradient is summed by row."""
  return nn.Embed(vocab, dim, embedding_init=init, name=name)


def check(module, tokens, *, layers, keep, mask):
  """Raises ValueError for what an encoder of tokens [b t] cannot honour."""
  for name, value in (("keep", keep), ("mask", mask)):
    if value is not None:
      raise ValueError(f"an encoder of tokens has no {name}")
  if not all(0 <= i < module.depth for i in layers):
    raise ValueError(f"layers={layers}: there are {module.depth} blocks")
  if tokens.shape[1] > module.positions:
    raise ValueError(
      f"{tokens.shape[1]} tokens, but encoder.positions={module.positions}"
    )


def dropout_key(module, key, *, train):
  """The key [b] where the module drops, else None.

  Raises:
    ValueError: it would, and there is no key.
  """
  if not (train and module.dropout):
    return None
  if key is None:
    raise ValueError("dropout in training needs key [b]")
  return key
