"""GPT: language models by the next token.

Radford et al. 2018 and 2019, "Improving language understanding by generative
pre-training" and "Language models are unsupervised multitask learners"; the
authors' code is openai/gpt-2 `model.py`.
"""

import jax.numpy as jnp

from ssljax import core
from ssljax import errors
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
    decoder: as `models.gpt` has it: `causal`, for no token of it looks ahead,
      and a parameter `token_embed`.
    z_loss: weight of the squared logarithm of the partition function (PaLM,
      Chowdhery et al. 2022, section 5), which is added to the loss alone.
    block: how many tokens meet the vocabulary at a time.

  Raises:
    UserError: the encoder is not causal, and would see its targets.
  """
  if not getattr(decoder, "causal", False):
    raise errors.UserError(
      f"method gpt: {type(decoder).__name__} looks ahead and would see its "
      "targets; give config.encoder.name=gpt, or a module with `causal = True`"
    )

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
    nats, right, log_z = losses.token_cross_entropy(
      hidden.astype(decoder.dtype),
      params["encoder"]["token_embed"]["embedding"],
      tokens[:, 1:],
      block=block,
    )
    trained = nats + z_loss * jnp.square(log_z) if z_loss else nats
    features = {
      "sum": (trained * weights).sum(axis=1),
      "nats": (nats * weights).sum(axis=1),
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
      "bits_per_token": features["nats"].sum() / count / jnp.log(2.0),
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
