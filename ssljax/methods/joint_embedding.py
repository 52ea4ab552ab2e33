"""What Barlow Twins, VICReg and DCL share: two views, a projector, a loss."""

from collections.abc import Callable

from ssljax import core
from ssljax import ops
from ssljax.methods import multi_crop


def make(encoder, loss: Callable, **head) -> core.Method:
  """Returns the method whose objective is `loss` of two projections.

  Args:
    encoder: a module under the encoder contract; batches carry `views`
      [b 2 h w c].
    loss: `(z1, z2) -> (loss, metrics)`, of projections [n d] of the batch.
    **head: fields of `heads.MLP`.
  """
  network = multi_crop.network(encoder, **head)

  def init(rng, batch):
    ops.require_views(batch, 2)
    params, stats = network.init(rng, batch)
    return params, {"batch_stats": stats}

  def forward(params, method_state, batch, *, step, train):
    del step
    stats = method_state["batch_stats"]
    keys = ops.view_keys(batch["key"], 2).reshape(-1, 2)
    features = {}
    # One view after the other, as the authors': batch norm sees them apart.
    for i in range(2):
      view = batch["views"][:, i : i + 1]
      z, stats = network.project(params, stats, [view], keys[:, i], train=train)
      features[f"z{i + 1}"] = z[:, 0]
    return features, {"batch_stats": stats}

  def objective(params, method_state, features, *, step):
    del params, step
    value, metrics = loss(features["z1"], features["z2"])
    return value, (method_state, metrics)

  return core.Method(init, forward, objective, network.embed)
