"""BYOL: bootstrap your own latent.

Grill et al. 2020, arXiv:2006.07733; the authors' code is google-deepmind/
deepmind-research `byol/byol_experiment.py`. A predictor on the projection of
one view must give the projection of the other by a target network, a moving
average of the online one. Nothing is contrasted.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ssljax import core
from ssljax import losses
from ssljax import monitors
from ssljax import ops
from ssljax import schedules
from ssljax.models import heads
from ssljax.models import linen


def make(
  encoder,
  *,
  total_steps: int,
  hidden_dim: int = 4096,
  out_dim: int = 256,
  ema: float | Callable = 0.996,
) -> core.Method:
  """Returns BYOL around a Flax encoder; batches carry `views` [b 2 h w c].

  Args:
    encoder: a module under the encoder contract.
    total_steps: of the run, for the schedule of `ema`.
    hidden_dim: width of the hidden layers of projector and predictor.
    out_dim: width of projections and predictions.
    ema: decay of the target network: its first value, which goes to 1 by a
      cosine, or `step -> value`.
  """
  schedule = ema if callable(ema) else schedules.ema_schedule(ema, total_steps)
  head = heads.MLP(
    features=(hidden_dim, out_dim),
    out_bias=False,
    dtype=encoder.dtype,
    axis_name=encoder.axis_name,
  )

  def init_network(rng, x):
    """The encoder's and the projector's parameters and statistics."""
    rngs = jax.random.split(rng)
    params, stats = {}, {}
    params["encoder"], stats["encoder"] = linen.init(encoder, rngs[0], x)
    h, _ = linen.apply(
      encoder, params["encoder"], stats["encoder"], x, train=False
    )
    params["projector"], stats["projector"] = linen.init(
      head, rngs[1], h["pooled"]
    )
    return params, stats

  def init(rng, batch):
    ops.require_views(batch, 2)
    online_rng, target_rng, predictor_rng = jax.random.split(rng, 3)
    x = batch["views"][:, 0]
    params, stats = init_network(online_rng, x)
    # Of a rng of its own, not a copy.
    target_params, target_stats = init_network(target_rng, x)
    params["predictor"], stats["predictor"] = linen.init(
      head, predictor_rng, jnp.zeros((len(x), out_dim))
    )
    return params, {
      "batch_stats": stats,
      "teacher": {"params": target_params, "batch_stats": target_stats},
    }

  def project(params, stats, x, *, train, key):
    """[b out_dim], and the new statistics."""
    h, encoder_stats = linen.apply(
      encoder, params["encoder"], stats["encoder"], x, train=train, key=key
    )
    z, projector_stats = linen.apply(
      head, params["projector"], stats["projector"], h["pooled"], train=train
    )
    return z, {"encoder": encoder_stats, "projector": projector_stats}

  def forward(params, method_state, batch, *, step, train):
    del step
    stats, teacher = method_state["batch_stats"], method_state["teacher"]
    target_stats = teacher["batch_stats"]
    keys = ops.view_keys(batch["key"], 2).reshape(-1, 2)
    features = {}
    # One view after the other, and the target in training mode too, as the
    # authors: its statistics are its own, no moving average of the online's.
    for i in range(2):
      x, key = batch["views"][:, i], keys[:, i]
      z, new = project(params, stats, x, train=train, key=key)
      features[f"prediction{i + 1}"], predictor = linen.apply(
        head, params["predictor"], stats["predictor"], z, train=train
      )
      stats = new | {"predictor": predictor}
      z, target_stats = project(
        teacher["params"], target_stats, x, train=train, key=key
      )
      features[f"target{i + 1}"] = jax.lax.stop_gradient(z)
    teacher = {"params": teacher["params"], "batch_stats": target_stats}
    return features, {"batch_stats": stats, "teacher": teacher}

  def objective(params, method_state, features, *, step):
    del params, step
    # Equation 2, and its other direction, summed: 4 - 2 (cos + cos).
    cosine = losses.cosine(features["prediction1"], features["target2"])
    other = losses.cosine(features["prediction2"], features["target1"])
    loss = jnp.mean(4 - 2 * cosine - 2 * other)
    metrics = {
      "teacher_similarity": cosine.mean(),
      "spread/projection": monitors.std_by_dimension(features["target1"]),
    }
    return loss, (method_state, metrics)

  def after_update(params, method_state, step):
    teacher = method_state["teacher"]
    online = {name: params[name] for name in ("encoder", "projector")}
    moved = ops.ema(teacher["params"], online, schedule(step))
    return params, method_state | {"teacher": teacher | {"params": moved}}

  return core.Method(
    init, forward, objective, linen.embed(encoder), after_update
  )
