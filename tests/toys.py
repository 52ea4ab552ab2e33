"""What tests hold the core to: a tiny encoder, views, and a toy method, whose
loss is a sum over a count that differs between examples."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import core
from ssljax import masks
from ssljax import ops
from ssljax.models import linen
from ssljax.models import vit


def encoder(**kwargs):
  """A ViT without batch norm: dim 32, 2 layers, patches of 2 x 2."""
  return vit.make(variant="Mu/2", **kwargs)


class Layer(nn.Module):
  """One layer under the encoder contract, which compiles fast."""

  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x, *, train, keep=None, key=None):
    h = nn.relu(nn.Dense(32)(x.reshape(len(x), -1)))
    return {"pooled": h, "tokens": h[:, None]}


def init_state(method, tx, rng, batch, **options):
  """As one program; op by op would compile a hundred."""
  init = functools.partial(core.init_state, method, tx, **options)
  return jax.jit(init)(rng, batch)


def compiled(method):
  """Each of its functions as one program, for tests that call them alone."""
  return method._replace(
    init=jax.jit(method.init),
    forward=jax.jit(method.forward, static_argnames="train"),
    objective=jax.jit(method.objective),
    embed=jax.jit(method.embed),
  )


def trace(method, tx, rng, batch, **options):
  """A step's shapes alone: what is refused is refused while it is traced."""
  init = functools.partial(core.init_state, method, tx, **options)
  state = jax.eval_shape(init, rng, batch)
  step = core.make_train_step(method, tx, **options)
  return jax.eval_shape(step, state, batch, rng)


def augment(batch, count=2):
  """Noisy views of [b h w c] uint8, drawn from each example's key."""
  image = batch["image"].astype(jnp.float32) / 255

  def view(key, x):
    return x + 0.1 * jax.random.normal(key, x.shape)

  keys = ops.view_keys(batch["key"], count).reshape(-1, count)
  views = jax.vmap(jax.vmap(view, (0, None)), (0, 0))(keys, image)
  return {k: v for k, v in batch.items() if k != "image"} | {"views": views}


def one_view(batch):
  """The first of `augment`."""
  batch = augment(batch)
  return batch | {"views": batch["views"][:, :1]}


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
    kept, _, mask = masks.random_masking(batch["key"], n, keep)
    out, _ = linen.apply(
      encoder, params["encoder"], {}, x, train=train, keep=kept
    )
    predicted = jnp.einsum("bd,dnp->bnp", out["pooled"], params["decoder"])
    # Counts differ between examples, so that a mean of means would be wrong.
    hidden = mask * (jnp.arange(n) < 5 + batch["index"][:, None] % 7)
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

  return core.Method(init, forward, objective, embed, is_mean=True)
