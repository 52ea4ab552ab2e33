"""BERT: pre-training of deep bidirectional transformers.

Devlin et al. 2018, arXiv:1810.04805; the authors' code is google-research/bert
`run_pretraining.py`. Some tokens are hidden, and the others must tell them;
where the batch has pairs of segments, also whether the second follows the
first. Which tokens are hidden, and how, is the views' part: static or dynamic
masks, BERT's or RoBERTa's, are one objective.
"""

import jax
import jax.numpy as jnp

from ssljax import core
from ssljax import errors
from ssljax import losses
from ssljax import masks
from ssljax import ops
from ssljax.models import bert
from ssljax.models import linen


def make(
  encoder,
  *,
  next_sentence: bool = False,
  pool: str = "mean",
  block: int = 1024,
) -> core.Method:
  """Returns masked language modelling around an encoder of tokens.

  Batches carry `tokens` int32 [b t] with what is hidden replaced, `places`
  int32 [b m] of the hidden ones, `targets` int32 [b m], and `weights` int32
  [b m], 0 where a row has fewer; also, where there are such, `mask` bool [b t],
  False at padding, `segment` int32 [b t] of packed documents, `kinds` int32
  [b t], and `next` int32 [b], 1 where the second segment does not follow the
  first.
  The loss is the mean over all hidden tokens of the batch, and a row without
  one counts nothing.

  Args:
    encoder: as `models.bert` has it: fields `vocab`, `epsilon`, and a parameter
      `token_embed`.
    next_sentence: add the next-sentence loss, the mean over rows.
    pool: "mean" of the tokens that are not padding, or "cls", for `embed`.
    block: how many hidden tokens meet the vocabulary at a time.

  Raises:
    UserError: another `pool`; in `forward`, a batch without what is hidden, or
      without pairs where they are to be told.
  """
  if pool not in ("mean", "cls"):
    raise errors.UserError(f"method.pool={pool!r}: choose mean or cls")
  head = bert.Head(epsilon=encoder.epsilon, dtype=encoder.dtype)
  classify = bert.NextSentence(dtype=encoder.dtype)

  def init(rng, batch):
    encoder_rng, head_rng, next_rng = jax.random.split(rng, 3)
    params = {"encoder": linen.init(encoder, encoder_rng, batch["tokens"])[0]}
    d = jnp.zeros((1, encoder.dim))
    params["head"] = head.init(head_rng, d)["params"]
    params["bias"] = jnp.zeros(encoder.vocab)
    if next_sentence:
      params["next"] = classify.init(next_rng, d)["params"]
    return params, {}

  def encode(params, batch, *, train):
    out, _ = linen.apply(
      encoder,
      params["encoder"],
      {},
      batch["tokens"],
      train=train,
      key=batch.get("key"),
      kinds=batch.get("kinds"),
      attention_mask=masks.attention_mask(
        batch.get("mask"), batch.get("segment")
      ),
    )
    return out

  def forward(params, method_state, batch, *, step, train):
    del step
    masks.require_hidden(batch)
    if next_sentence and "next" not in batch:
      raise errors.UserError(
        "method.next_sentence needs pairs of sentences: give "
        "config.data.rows=pairs"
      )
    out = encode(params, batch, train=train)
    places, weights = batch["places"], batch["weights"]
    hidden = jnp.take_along_axis(out["tokens"], places[..., None], axis=1)
    hidden = head.apply({"params": params["head"]}, hidden)
    nats, right, _ = losses.token_cross_entropy(
      hidden.astype(encoder.dtype),
      params["encoder"]["token_embed"]["embedding"],
      batch["targets"],
      bias=params["bias"],
      block=block,
    )
    features = {
      "sum": (nats * weights).sum(axis=1),
      "count": weights.sum(axis=1),
      "right": (right & (weights > 0)).sum(axis=1),
    }
    if next_sentence:
      logits = classify.apply({"params": params["next"]}, out["pooled"])
      logs = jax.nn.log_softmax(logits)
      features["next"] = -jnp.take_along_axis(
        logs, batch["next"][:, None], axis=1
      )[:, 0]
    return features, method_state

  def objective(params, method_state, features, *, step):
    del params, step
    count = jnp.maximum(features["count"].sum(), 1)
    loss = features["sum"].sum() / count
    metrics = {
      "masked_accuracy": features["right"].sum() / count,
      "masked_loss": loss,
    }
    if next_sentence:
      metrics["next_loss"] = features["next"].mean()
      loss = loss + metrics["next_loss"]
    return loss, (method_state, metrics)

  def embed(params, method_state, batch):
    del method_state
    out = encode(params, batch, train=False)
    pooled = out["pooled"]
    if pool == "mean":
      pooled = ops.masked_mean(out["tokens"], batch.get("mask"))
    return {"pooled": pooled, "tokens": out["tokens"]}

  def logits(params, method_state, batch):
    """[b t vocab] of all places of `tokens` [b t]."""
    del method_state
    out = encode(params, batch, train=False)
    hidden = head.apply({"params": params["head"]}, out["tokens"])
    table = params["encoder"]["token_embed"]["embedding"]
    return hidden @ table.T + params["bias"]

  return core.Method(
    init,
    forward,
    objective,
    embed,
    show={"logits": logits},
    is_mean=not next_sentence,
  )
