"""Two small true methods beside SimCLR, to hold the core's interface to.

A momentum teacher with a queue, and a masked autoencoder whose loss is a sum
over a count.
"""

import jax
import jax.numpy as jnp

from ssljax import core
from ssljax import ops
from ssljax.models import linen
from ssljax.models import vit


def encoder(**kwargs):
  """A ViT without batch norm: dim 32, 2 layers, patches of 2 x 2."""
  return vit.make(variant="Mu/2", **kwargs)


def augment(batch):
  """Two noisy views of [b h w c] uint8, drawn from each example's key."""
  image = batch["image"].astype(jnp.float32) / 255

  def view(key, x):
    return x + 0.1 * jax.random.normal(key, x.shape)

  keys = ops.view_keys(batch["key"], 2).reshape(-1, 2)
  views = jax.vmap(jax.vmap(view, (0, None)), (0, 0))(keys, image)
  return {"views": views, "key": batch["key"], "index": batch["index"]}


def momentum_queue(encoder, *, queue=32, decay=0.9, temperature=0.2):
  """InfoNCE of a query against its key and a queue of earlier keys."""

  def init(rng, batch):
    params, _ = linen.init(encoder, rng, batch["views"][:, 0])
    params = {"encoder": params}
    dim = linen.apply(
      encoder, params["encoder"], {}, batch["views"][:, 0], train=False
    )[0]["pooled"].shape[1]
    rows = ops.l2_normalize(jax.random.normal(rng, (queue, dim)))
    return params, {
      "teacher": {"params": params},
      "queue": rows,
      "place": jnp.int32(0),
    }

  def forward(params, method_state, batch, *, step, train):
    del step
    encode = lambda p, x: linen.apply(
      encoder, p["encoder"], {}, x, train=train
    )[0]["pooled"]
    query = ops.l2_normalize(encode(params, batch["views"][:, 0]))
    teacher = method_state["teacher"]["params"]
    key = ops.l2_normalize(encode(teacher, batch["views"][:, 1]))
    return {"query": query, "key": key}, method_state

  def objective(params, method_state, features, *, step):
    del params, step
    query, key = features["query"], jax.lax.stop_gradient(features["key"])
    positive = jnp.sum(query * key, axis=1, keepdims=True)
    logits = jnp.concatenate([positive, query @ method_state["queue"].T], 1)
    loss = -jnp.mean(jax.nn.log_softmax(logits / temperature)[:, 0])
    rows, place = method_state["queue"], method_state["place"]
    method_state = method_state | {
      "queue": ops.enqueue(rows, key, place),
      "place": (place + len(key)) % queue,
    }
    return loss, (method_state, {"positive": positive.mean()})

  def embed(params, method_state, batch):
    return linen.apply(
      encoder, params["encoder"], {}, batch["views"][:, 0], train=False
    )[0]

  def after_update(params, method_state, step):
    del step
    teacher = ops.ema(method_state["teacher"]["params"], params, decay)
    return params, method_state | {"teacher": {"params": teacher}}

  return core.Method(init, forward, objective, embed, after_update)


def masked_autoencoder(encoder, *, patch=2, keep=4):
  """The mean of the visible tokens predicts the patches; sum over count."""

  def init(rng, batch):
    x = batch["views"][:, 0]
    params, _ = linen.init(encoder, rng, x)
    patches = ops.patchify(x, patch)
    n, p = patches.shape[1:]
    params = {"encoder": params}
    dim = linen.apply(encoder, params["encoder"], {}, x, train=False)[0]
    dim = dim["pooled"].shape[1]
    params["decoder"] = 0.1 * jax.random.normal(rng, (dim, n, p))
    return params, {}

  def forward(params, method_state, batch, *, step, train):
    del step
    x = batch["views"][:, 0]
    target = ops.patchify(x, patch)
    n = target.shape[1]
    kept = ops.random_keep(batch["key"], n, keep)
    out, _ = linen.apply(
      encoder, params["encoder"], {}, x, train=train, keep=kept
    )
    predicted = jnp.einsum("bd,dnp->bnp", out["pooled"], params["decoder"])
    hidden = (
      jnp.ones(target.shape[:2]).at[jnp.arange(len(x))[:, None], kept].set(0)
    )
    # Counts differ between examples, so that a mean of means would be wrong.
    hidden = hidden * (jnp.arange(n) < 5 + batch["index"][:, None] % 7)
    error = jnp.square(predicted - target).mean(-1)
    return {
      "sum": (error * hidden).sum(1),
      "count": hidden.sum(1).astype(jnp.int32),
    }, method_state

  def objective(params, method_state, features, *, step):
    del params, step
    count = jnp.maximum(features["count"].sum(), 1)
    return features["sum"].sum() / count, (method_state, {"count": count})

  def embed(params, method_state, batch):
    return linen.apply(
      encoder, params["encoder"], {}, batch["views"][:, 0], train=False
    )[0]

  return core.Method(init, forward, objective, embed)
