"""LeJEPA: views that agree, and embeddings that are an isotropic Gaussian.

Balestriero and LeCun 2025, arXiv:2511.08544; the authors' code is
rbalestr-lab/lejepa, `MINIMAL.md` and `lejepa/`. No teacher, no stopped
gradient, no predictor: what keeps embeddings apart is SIGReg, the sketched
isotropic Gaussian regularisation.
"""

import jax
import jax.numpy as jnp

from ssljax import core
from ssljax import losses
from ssljax import ops
from ssljax.models import heads
from ssljax.models import linen


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
  """
  projector = heads.MLP(
    features=features,
    kernel_init=heads.TORCH,
    dtype=encoder.dtype,
    axis_name=encoder.axis_name,
  )

  def init(rng, batch):
    rngs = jax.random.split(rng)
    x = batch["views"][:, 0]
    params, stats = {}, {}
    params["encoder"], stats["encoder"] = linen.init(encoder, rngs[0], x)
    h, _ = linen.apply(
      encoder, params["encoder"], stats["encoder"], x, train=False
    )
    params["projector"], stats["projector"] = linen.init(
      projector, rngs[1], h["pooled"]
    )
    return params, {"batch_stats": stats}

  def forward(params, method_state, batch, *, step, train):
    del step
    stats = method_state["batch_stats"]
    sizes = [batch[k] for k in ("views", "local_views") if k in batch]
    b, total = len(sizes[0]), sum(views.shape[1] for views in sizes)
    keys = ops.view_keys(batch["key"], total).reshape(b, total)
    # Views of a size in one pass, the projector over all: as the authors' do,
    # batch norm sees them together.
    hidden, encoder_stats = [], stats["encoder"]
    for views in sizes:
      v = views.shape[1]
      h, encoder_stats = linen.apply(
        encoder,
        params["encoder"],
        encoder_stats,
        views.reshape(b * v, *views.shape[2:]),
        train=train,
        key=keys[:, :v].reshape(-1),
      )
      hidden.append(h["pooled"].reshape(b, v, -1))
      keys = keys[:, v:]
    z, projector_stats = linen.apply(
      projector,
      params["projector"],
      stats["projector"],
      jnp.concatenate(hidden, axis=1).reshape(b * total, -1),
      train=train,
    )
    z = z.reshape(b, total, -1)
    first = sizes[0].shape[1]
    out = {
      "global": z[:, :first],
      "local": z[:, first:],
      "seed": jax.vmap(jax.random.bits)(batch["key"]),
    }
    stats = {"encoder": encoder_stats, "projector": projector_stats}
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

  def embed(params, method_state, batch):
    stats = method_state["batch_stats"]["encoder"]
    x = batch["views"][:, 0]
    out, _ = linen.apply(encoder, params["encoder"], stats, x, train=False)
    return {"pooled": out["pooled"], "tokens": out["tokens"]}

  return core.Method(init, forward, objective, embed)


def directions(seed, d: int, slices: int) -> jax.Array:
  """Unit vectors [d slices], uniform on the sphere, of a seed uint32 []."""
  a = jax.random.normal(jax.random.key(seed), (d, slices))
  return ops.l2_normalize(a, axis=0)
