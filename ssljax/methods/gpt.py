"""GPT: language models by the next token.

Radford et al. 2018 and 2019, "Improving language understanding by generative
pre-training" and "Language models are unsupervised multitask learners"; the
authors' code is openai/gpt-2 `model.py`.
"""

import jax.numpy as jnp

from ssljax import core
from ssljax import losses
from ssljax import masks
from ssljax import ops
from ssljax.models import linen


def make(decoder, *, z_loss: float = 0.0, block: int = 1024) -> core.Method:
  """Returns causal language modelling around a decoder of tokens.

  Batches carry `tokens` int32 [b t]; also, where there are such, `mask` bool
  [b t], False at padding, and `segment` int32 [b t] of packed documents. Every
  token but the first of a row or of a document is a target; the loss is the
  mean over all targets of the batch, in nats.

  Args:
    decoder: as `models.gpt` has it: a parameter `token_embed`.
    z_loss: see `losses.token_cross_entropy`.
    block: how many tokens meet the vocabulary at a time.
  """

  def init(rng, batch):
    return {"encoder": linen.init(decoder, rng, batch["tokens"])[0]}, {}

  def decode(params, batch, *, train):
    out, _ = linen.apply(
      decoder,
      params["encoder"],
      {},
      batch["tokens"],
      train=train,
      key=batch.get("key"),
      attention_mask=masks.attention_mask(
        batch.get("mask"), batch.get("segment")
      ),
    )
    return out["tokens"]

  def forward(params, method_state, batch, *, step, train):
    del step
    tokens = batch["tokens"]
    hidden = decode(params, batch, train=train)[:, :-1]
    weights = jnp.ones(tokens[:, 1:].shape, bool)
    if "mask" in batch:
      weights &= batch["mask"][:, 1:].astype(bool)
    if "segment" in batch:
      weights &= batch["segment"][:, 1:] == batch["segment"][:, :-1]
    nats, right = losses.token_cross_entropy(
      hidden.astype(decoder.dtype),
      params["encoder"]["token_embed"]["embedding"],
      tokens[:, 1:],
      z_loss=z_loss,
      block=block,
    )
    features = {
      "sum": (nats * weights).sum(axis=1),
      "count": weights.sum(axis=1),
      "right": (right & weights).sum(axis=1),
    }
    return features, method_state

  def objective(params, method_state, features, *, step):
    del params, step
    count = jnp.maximum(features["count"].sum(), 1)
    loss = features["sum"].sum() / count
    metrics = {
      "next_accuracy": features["right"].sum() / count,
      "bits_per_token": loss / jnp.log(2.0),
    }
    return loss, (method_state, metrics)

  def embed(params, method_state, batch):
    del method_state
    tokens = decode(params, batch, train=False)
    return {
      "pooled": ops.masked_mean(tokens, batch.get("mask")),
      "tokens": tokens,
    }

  return core.Method(init, forward, objective, embed, is_mean=True)
