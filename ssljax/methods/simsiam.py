"""SimSiam: exploring simple siamese representation learning.

Chen and He 2020, arXiv:2011.10566; the authors' code is
facebookresearch/simsiam `simsiam/builder.py`. As BYOL, with the network itself,
without gradient, for the target.
"""

import jax
import jax.numpy as jnp

from ssljax import core
from ssljax import losses
from ssljax import monitors
from ssljax import ops
from ssljax.models import heads
from ssljax.models import linen


def make(
  encoder,
  *,
  out_dim: int = 2048,
  predictor_dim: int = 512,
  num_layers: int = 3,
  hidden_dim: int | None = None,
) -> core.Method:
  """Returns SimSiam around a Flax encoder; batches carry `views` [b 2 h w c].

  The authors give the predictor a constant rate, by a group of the optimiser.

  Args:
    encoder: a module under the encoder contract.
    out_dim: width of projections and predictions.
    predictor_dim: width of the predictor's hidden layer.
    num_layers: of the projector.
    hidden_dim: width of its hidden layers; None is the encoder's own.
  """
  options = dict(
    # Under SGD the size of a weight that norm follows is its rate.
    kernel_init=heads.TORCH,
    dtype=encoder.dtype,
    axis_name=encoder.axis_name,
  )
  projector = heads.MLP(
    features=(hidden_dim,) * (num_layers - 1) + (out_dim,),
    out_norm="batch_no_affine",
    **options,
  )
  predictor = heads.MLP(features=(predictor_dim, out_dim), **options)

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
    return params, {"batch_stats": stats}

  def forward(params, method_state, batch, *, step, train):
    del step
    stats = method_state["batch_stats"]
    keys = ops.view_keys(batch["key"], 2).reshape(-1, 2)
    features = {}
    # One view after the other: batch norm sees them apart.
    for i in range(2):
      x, new = batch["views"][:, i], {}
      h, new["encoder"] = linen.apply(
        encoder,
        params["encoder"],
        stats["encoder"],
        x,
        train=train,
        key=keys[:, i],
      )
      z, new["projector"] = linen.apply(
        projector,
        params["projector"],
        stats["projector"],
        h["pooled"],
        train=train,
      )
      features[f"prediction{i + 1}"], new["predictor"] = linen.apply(
        predictor, params["predictor"], stats["predictor"], z, train=train
      )
      features[f"target{i + 1}"] = jax.lax.stop_gradient(z)
      stats = new
    return features, {"batch_stats": stats}

  def objective(params, method_state, features, *, step):
    del params, step
    # Equation 2, algorithm 1.
    cosine = losses.cosine(features["prediction1"], features["target2"])
    other = losses.cosine(features["prediction2"], features["target1"])
    loss = -jnp.mean(cosine + other) / 2
    # Figure 2 of the paper shows it over sqrt(d).
    spread = monitors.std_by_dimension(features["target1"])
    return loss, (method_state, {"spread/projection": spread})

  return core.Method(init, forward, objective, linen.embed(encoder))
