"""MoCo v3: contrast with a momentum encoder and no queue, for ResNets and ViTs.

Chen et al. 2021, arXiv:2104.02057; the authors' code is
facebookresearch/moco-v3 `moco/builder.py`. The query of each view must find the
key of the other view among the keys of the batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ssljax import core
from ssljax import losses
from ssljax import ops
from ssljax import schedules
from ssljax.models import heads
from ssljax.models import linen


def make(
  encoder,
  *,
  total_steps: int,
  temperature: float = 1.0,
  out_dim: int = 256,
  hidden_dim: int = 4096,
  num_layers: int = 2,
  predictor_norm: bool = False,
  ema: float | Callable = 0.99,
) -> core.Method:
  """Returns MoCo v3 around a Flax encoder; batches carry `views` [b 2 h w c].

  The defaults are the ResNet's; ViTs have temperature=0.2, num_layers=3 and
  predictor_norm=True, and their patch embedding is frozen by the optimiser.

  Args:
    encoder: a module under the encoder contract.
    total_steps: of the run, for the schedule of `ema`.
    temperature: of InfoNCE.
    out_dim: width of queries and keys.
    hidden_dim: width of the heads' hidden layers.
    num_layers: of the projector; the predictor has two.
    predictor_norm: batch norm at the predictor's end.
    ema: decay of the momentum encoder: its first value, which goes to 1 by a
      cosine, or `step -> value`.
  """
  schedule = ema if callable(ema) else schedules.ema_schedule(ema, total_steps)
  hidden = (hidden_dim,) * (num_layers - 1)
  options = dict(
    kernel_init=heads.TORCH,
    dtype=encoder.dtype,
    axis_name=encoder.axis_name,
  )
  projector = heads.MLP(
    features=(*hidden, out_dim),
    out_norm="batch_no_affine",
    out_bias=False,
    **options,
  )
  predictor = heads.MLP(
    features=(hidden_dim, out_dim),
    out_norm="batch_no_affine" if predictor_norm else None,
    out_bias=False,
    **options,
  )

  def init(rng, batch):
    ops.require_views(batch, 2)
    rngs = jax.random.split(rng, 3)
    x = batch["views"][:, 0]
    params, stats = {}, {}
    params["encoder"], stats["encoder"] = linen.init(encoder, rngs[0], x)
    h, _ = linen.apply(
      encoder, params["encoder"], stats["encoder"], x, train=False
    )
    params["projector"], stats["projector"] = linen.init(
      projector, rngs[1], h["pooled"]
    )
    params["predictor"], stats["predictor"] = linen.init(
      predictor, rngs[2], jnp.zeros((len(x), out_dim))
    )
    return params, {
      "batch_stats": stats,
      "teacher": {
        "params": _without_predictor(params),
        "batch_stats": _without_predictor(stats),
      },
    }

  def project(params, stats, x, *, train, key):
    """[b out_dim] before the predictor, and the new statistics."""
    h, encoder_stats = linen.apply(
      encoder, params["encoder"], stats["encoder"], x, train=train, key=key
    )
    z, projector_stats = linen.apply(
      projector,
      params["projector"],
      stats["projector"],
      h["pooled"],
      train=train,
    )
    return z, {"encoder": encoder_stats, "projector": projector_stats}

  def forward(params, method_state, batch, *, step, train):
    del step
    stats, teacher = method_state["batch_stats"], method_state["teacher"]
    teacher_stats = teacher["batch_stats"]
    keys = ops.view_keys(batch["key"], 2).reshape(-1, 2)
    features = {}
    # One view after the other, as the authors: batch norm sees them apart.
    for i in range(2):
      x, key = batch["views"][:, i], keys[:, i]
      z, new = project(params, stats, x, train=train, key=key)
      features[f"query{i + 1}"], head = linen.apply(
        predictor, params["predictor"], stats["predictor"], z, train=train
      )
      stats = new | {"predictor": head}
      z, teacher_stats = project(
        teacher["params"], teacher_stats, x, train=train, key=key
      )
      features[f"key{i + 1}"] = jax.lax.stop_gradient(z)
    teacher = {"params": teacher["params"], "batch_stats": teacher_stats}
    return features, {"batch_stats": stats, "teacher": teacher}

  def objective(params, method_state, features, *, step):
    del params, step
    # Algorithm 1: symmetric, each `ctr` times 2 T, which keeps gradients of a
    # size when the temperature is changed.
    loss = sum(
      2 * temperature * losses.infonce(q, k, temperature=temperature)
      for q, k in (
        (features["query1"], features["key2"]),
        (features["query2"], features["key1"]),
      )
    )
    query = ops.l2_normalize(features["query1"])
    key = ops.l2_normalize(features["key2"])
    found = (query @ key.T).argmax(axis=1) == jnp.arange(len(query))
    metrics = {
      "contrast_accuracy": found.mean(),
      "teacher_similarity": jnp.sum(query * key, axis=1).mean(),
    }
    return loss, (method_state, metrics)

  def after_update(params, method_state, step):
    # The authors move the momentum encoder in the next step, by its decay.
    teacher = method_state["teacher"]
    decay = schedule(step + 1)
    moved = ops.ema(teacher["params"], _without_predictor(params), decay)
    return params, method_state | {"teacher": teacher | {"params": moved}}

  return core.Method(
    init, forward, objective, linen.embed(encoder), after_update
  )


def _without_predictor(tree):
  return {name: tree[name] for name in ("encoder", "projector")}
