"""Supervised learning by cross-entropy: the ceiling for what needs no labels.

As HobbitLong/SupContrast `main_ce.py` has it: the encoder and a linear
classifier.
"""

import jax
import jax.numpy as jnp

from ssljax import core
from ssljax import errors
from ssljax import ops
from ssljax.models import heads
from ssljax.models import linen


def make(encoder, *, num_classes: int | None = None) -> core.Method:
  """Returns a classifier around a Flax encoder.

  Batches carry `views` [b v h w c], one view or more, and `label` int32 [b];
  -1 is unknown, and adds nothing to the loss.

  Args:
    encoder: a module under the encoder contract.
    num_classes: of the labels; the trainer gives the source's.

  Raises:
    UserError: there are no classes.
  """
  if num_classes is None:
    raise errors.UserError(
      "supervised learns from labels: set data.labels=True"
    )
  classifier = heads.MLP(
    features=(num_classes,), kernel_init=heads.TORCH, dtype=encoder.dtype
  )

  def init(rng, batch):
    ops.require_views(batch, 1, more=True)
    rngs = jax.random.split(rng)
    x = batch["views"][:, 0]
    params, stats = {}, {}
    params["encoder"], stats["encoder"] = linen.init(encoder, rngs[0], x)
    h, _ = linen.apply(
      encoder, params["encoder"], stats["encoder"], x, train=False
    )
    params["classifier"], _ = linen.init(classifier, rngs[1], h["pooled"])
    return params, {"batch_stats": stats}

  def forward(params, method_state, batch, *, step, train):
    del step
    views, label = batch["views"], batch["label"]
    b, v = views.shape[:2]
    h, stats = linen.apply(
      encoder,
      params["encoder"],
      method_state["batch_stats"]["encoder"],
      views.reshape(b * v, *views.shape[2:]),
      train=train,
      key=ops.view_keys(batch["key"], v),
    )
    logits, _ = linen.apply(
      classifier, params["classifier"], {}, h["pooled"], train=train
    )
    log_prob = jax.nn.log_softmax(logits.reshape(b, v, -1))
    known = label >= 0
    place = jnp.where(known, label, 0)[:, None, None]
    loss = -jnp.take_along_axis(log_prob, place, axis=-1)[..., 0].mean(axis=1)
    found = log_prob[:, 0].argmax(axis=-1) == label
    features = {
      "sum": jnp.where(known, loss, 0.0),
      "count": known.astype(jnp.int32),
      "found": found.astype(jnp.int32),
    }
    return features, {"batch_stats": {"encoder": stats}}

  def objective(params, method_state, features, *, step):
    del params, step
    count = jnp.maximum(features["count"].sum(), 1)
    metrics = {"train_accuracy": features["found"].sum() / count}
    return features["sum"].sum() / count, (method_state, metrics)

  return core.Method(
    init, forward, objective, linen.embed(encoder), is_mean=True
  )
