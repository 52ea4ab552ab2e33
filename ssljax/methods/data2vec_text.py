"""data2vec for text: predict a teacher's representations of hidden tokens.

Baevski et al. 2022, arXiv:2202.03555; the authors' code is
facebookresearch/fairseq `examples/data2vec/models/data2vec_text.py`, and the
defaults are those of its `config/text/pretraining/base.yaml`. A momentum
teacher reads the whole text, the student one with tokens hidden; what it must
tell of them is the mean of what the teacher's last blocks add to the stream.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ssljax import core
from ssljax import errors
from ssljax import losses
from ssljax import masks
from ssljax import ops
from ssljax import schedules
from ssljax.models import heads
from ssljax.models import linen


def make(
  encoder,
  *,
  top_k: int = 10,
  beta: float = 4.0,
  loss_scale: float = 1.0,
  head_layers: int = 2,
  ema: float | Callable = 0.999,
  ema_end: float = 0.9999,
  ema_steps: int = 300_000,
  pool: str = "mean",
) -> core.Method:
  """Returns data2vec around an encoder of tokens.

  Batches are BERT's: `tokens` int32 [b t] with what is hidden replaced,
  `places` int32 [b m] of the hidden ones, `targets` int32 [b m], what was
  there, and `weights` int32 [b m], 0 where a row has fewer; also, where there
  are such, `mask` bool [b t], False at padding, `segment` int32 [b t] of packed
  documents, and `kinds` int32 [b t]. The authors hide 35 percent, in spans of
  four, and replace all of them by the mask token. The loss is the mean over all
  hidden tokens of the batch, of the sum over channels.

  Args:
    encoder: as `models.bert` has it, the authors' is the variant
      "roberta-base": blocks "block0", ..., or "blocks" where they are scanned,
      in which "fc2" is the end of the MLP.
    top_k: how many of the teacher's last blocks are averaged.
    beta: where smooth L1 turns from squares to lines; 0 is the squared error.
    loss_scale: the loss is times it; fairseq has 1 / sqrt(d) where none is
      given.
    head_layers: of the head, all but the last of width 2 d.
    ema: decay of the teacher: its first value, which goes to `ema_end` by a
      line, or `step -> value`.
    ema_end: its last value.
    ema_steps: after how many steps it has that.
    pool: "mean" of the tokens that are not padding, or "cls", for `embed`.

  Raises:
    UserError: another `pool`, or more blocks than the encoder has; in
      `forward`, a batch without what is hidden.
  """
  if pool not in ("mean", "cls"):
    raise errors.UserError(f"method.pool={pool!r}: choose mean or cls")
  if not 0 < top_k <= encoder.depth:
    raise errors.UserError(
      f"method.top_k={top_k}: the encoder has {encoder.depth} blocks"
    )
  schedule = ema
  if not callable(ema):
    schedule = schedules.schedule(
      "linear", base=ema, end=ema_end, total_steps=ema_steps
    )
  head = heads.Regression(layers=head_layers, dtype=encoder.dtype)

  def init(rng, batch):
    encoder_rng, head_rng = jax.random.split(rng)
    if "tokens" not in batch:
      raise errors.UserError(
        f"the method takes tokens, and a batch has {', '.join(batch)}: give a "
        "method of images, or texts"
      )
    params = {"encoder": linen.init(encoder, encoder_rng, batch["tokens"])[0]}
    d = jnp.zeros((1, encoder.dim))
    params["head"] = head.init(head_rng, d)["params"]
    teacher = {"params": {"encoder": params["encoder"]}}
    return params, {"teacher": teacher}

  def inputs(batch):
    mask = masks.attention_mask(batch.get("mask"), batch.get("segment"))
    return dict(kinds=batch.get("kinds"), attention_mask=mask)

  def encode(params, batch, *, train):
    return linen.apply(
      encoder,
      params["encoder"],
      {},
      batch["tokens"],
      train=train,
      key=batch.get("key"),
      **inputs(batch),
    )[0]

  def targets(teacher, batch):
    """[b m d] from the text without anything hidden."""
    _, state = encoder.apply(
      {"params": teacher["params"]["encoder"]},
      _whole(batch),
      train=False,
      capture_intermediates=lambda module, _: module.name == "fc2",
      mutable=["intermediates"],
      **inputs(batch),
    )
    added = _by_block(state["intermediates"], encoder.depth)[-top_k:]
    added = (ops.standardize(_take(x, batch["places"])) for x in added)
    return sum(added) / top_k

  def forward(params, method_state, batch, *, step, train):
    del step
    masks.require_hidden(batch)
    weights = batch["weights"]
    out = encode(params, batch, train=train)
    predicted = head.apply(
      {"params": params["head"]}, _take(out["tokens"], batch["places"])
    )
    target = jax.lax.stop_gradient(targets(method_state["teacher"], batch))
    error = losses.smooth_l1(predicted, target, beta=beta).sum(axis=-1)
    features = {
      "sum": loss_scale * (error * weights).sum(axis=1),
      "count": weights.sum(axis=1),
    }
    return features, method_state

  def objective(params, method_state, features, *, step):
    del params, step
    count = jnp.maximum(features["count"].sum(), 1)
    return features["sum"].sum() / count, (method_state, {})

  def embed(params, method_state, batch):
    del method_state
    out = encode(params, batch, train=False)
    pooled = out["pooled"]
    if pool == "mean":
      pooled = ops.masked_mean(out["tokens"], batch.get("mask"))
    return {"pooled": pooled, "tokens": out["tokens"]}

  def after_update(params, method_state, step):
    # Before update n the authors' teacher moves by the decay of n, counted from
    # 0, and not before the first. Only blocks are averaged; embeddings are the
    # student's (`ema_transformer_layers_only`).
    old, new = method_state["teacher"]["params"]["encoder"], params["encoder"]
    decay = schedule(step + 1)
    moved = {
      name: ops.ema(old[name], x, decay) if name.startswith("block") else x
      for name, x in new.items()
    }
    return params, method_state | {"teacher": {"params": {"encoder": moved}}}

  return core.Method(
    init, forward, objective, embed, after_update, is_mean=True
  )


def _whole(batch):
  """The tokens [b t] before any was hidden."""
  t = batch["tokens"].shape[1]
  places = jnp.where(batch["weights"] > 0, batch["places"], t)
  put = lambda row, at, x: row.at[at].set(x, mode="drop")
  return jax.vmap(put)(batch["tokens"], places, batch["targets"])


def _take(x, places):
  """[b t d] at places [b m] -> [b m d]."""
  return jnp.take_along_axis(x, places[..., None], axis=1)


def _by_block(captured, depth):
  """What the MLPs gave, [b t d] each, before it joins the stream."""
  if "blocks" in captured:
    return list(captured["blocks"]["fc2"]["__call__"][0])
  return [captured[f"block{i}"]["fc2"]["__call__"][0] for i in range(depth)]
