"""LeJEPA: views that agree, and embeddings that are an isotropic Gaussian.

Balestriero and LeCun 2025, arXiv:2511.08544; the authors' code is
rbalestr-lab/lejepa, `MINIMAL.md` and `lejepa/`. No teacher, no stopped
gradient, no predictor: what keeps embeddings apart is SIGReg, the sketched
isotropic Gaussian regularisation.
"""

import jax
import jax.numpy as jnp

from ssljax import core
from ssljax import errors
from ssljax import losses
from ssljax import ops
from ssljax.methods import multi_crop


def make(
  encoder,
  *,
  weight: float = 0.05,
  slices: int = 1024,
  knots: int = 17,
  t_max: float = 3.0,
  features: tuple[int, ...] = (2048, 2048, 512),
) -> core.Method:
  """Returns LeJEPA around a Flax encoder.

  Batches carry `views` [b v h w c] and, with multi-crop, `local_views` [b l h w
  c] of another size.

  Args:
    encoder: a module under the encoder contract.
    weight: of SIGReg, lambda; the agreement has 1 - lambda.
    slices: directions that a step draws.
    knots: of the integral over the characteristic function.
    t_max: its end.
    features: widths of the projector's layers.

  Raises:
    UserError: an integral of fewer than two knots.
  """
  if knots < 2:
    raise errors.UserError(f"method.knots={knots}: give 2 or more")
  network = multi_crop.network(encoder, features=features)

  def init(rng, batch):
    ops.require_views(batch, 2, more=True, local=True)
    params, stats = network.init(rng, batch)
    return params, {"batch_stats": stats}

  def forward(params, method_state, batch, *, step, train):
    del step
    z, stats = network.project(
      params,
      method_state["batch_stats"],
      multi_crop.crops(batch),
      batch["key"],
      train=train,
    )
    first = batch["views"].shape[1]
    out = {
      "global": z[:, :first],
      "local": z[:, first:],
      "seed": jax.vmap(jax.random.bits)(batch["key"]),
    }
    return out, {"batch_stats": stats}

  def objective(params, method_state, features, *, step):
    del params, step
    z = jnp.concatenate([features["global"], features["local"]], axis=1)
    z = z.astype(jnp.float32)
    # The prediction loss: all views near the mean of the global ones.
    centre = z[:, : features["global"].shape[1]].mean(axis=1, keepdims=True)
    agreement = jnp.square(centre - z).mean()
    # SIGReg, of each view over the batch; all views by the same directions,
    # which the first example of the batch draws for all.
    a = directions(features["seed"][0], z.shape[-1], slices)
    of_view = lambda z: losses.sigreg(z, a, knots=knots, t_max=t_max)
    gaussian = jax.vmap(of_view, in_axes=1)(z).mean()
    loss = weight * gaussian + (1 - weight) * agreement
    metrics = {"agreement_loss": agreement, "sigreg_loss": gaussian}
    return loss, (method_state, metrics)

  return core.Method(init, forward, objective, network.embed)


def directions(seed, d: int, slices: int) -> jax.Array:
  """Unit vectors [d slices], uniform on the sphere, of a seed uint32 []."""
  a = jax.random.normal(jax.random.key(seed), (d, slices))
  return ops.l2_normalize(a, axis=0)
