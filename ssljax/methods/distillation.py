"""What DINO, iBOT and DINOv2 share: crops, heads with prototypes, masks.

Crops are `views` [b v h w c], the global ones, and where the augmentation has
them `local_views` [b l h w c], smaller. A head is {"mlp": ..., "prototypes":
...}: `forward` ends at the MLP's output, of length 1 and a few hundred wide,
and `objective` multiplies it with the prototypes, of which there may be 65,536.
"""

import jax
import jax.numpy as jnp

from ssljax import errors
from ssljax import masks
from ssljax import ops
from ssljax import schedules
from ssljax.models import heads
from ssljax.models import linen


def warm_up(first, last, epochs, steps_per_epoch, *, by_epoch):
  """A temperature that goes from `first` to `last`: `step -> float32`.

  Args:
    first: the value at step 0.
    last: the value at the end of the warm-up and after, or `step -> value`,
      which is then all.
    epochs: of the warm-up.
    steps_per_epoch: to count them.
    by_epoch: it changes between epochs only, as DINO's and iBOT's, or at each
      step, as DINOv2's; the last of them already has `last`.
  """
  if callable(last):
    return last
  unit = steps_per_epoch if by_epoch else 1
  length = epochs if by_epoch else round(epochs * steps_per_epoch)

  def value(step):
    # As linspace(first, last, length), and then `last`.
    done = jnp.clip((step // unit) / max(length - 1, 1), 0.0, 1.0)
    done = jnp.where(step // unit >= length, 1.0, done)
    return first + (last - first) * done

  return value


def ema_of(ema, total_steps):
  return ema if callable(ema) else schedules.ema_schedule(ema, total_steps)


def teacher_of(encoder):
  """The encoder without stochastic depth."""
  drops = getattr(encoder, "drop_path", 0.0)
  return encoder.clone(drop_path=0.0) if drops else encoder


def check_mask_token(encoder, name):
  if not getattr(encoder, "mask_token", False):
    raise errors.UserError(f"{name} needs a vit with encoder.mask_token=True")


def init_head(head, rng, dim, out_dim, *, norm_last_layer):
  """A head's parameters for inputs [b dim], and the statistics of its MLP.

  Without `norm_last_layer` the prototypes' lengths are learned.
  """
  mlp_rng, rng = jax.random.split(rng)
  mlp, stats = linen.init(head, mlp_rng, jnp.zeros((2, dim)))
  prototypes = {"direction": heads.TORCH(rng, (head.out_dim, out_dim))}
  if not norm_last_layer:
    # [1 k], for it has a weight decay as matrices have it.
    prototypes["length"] = jnp.ones((1, out_dim))
  return {"mlp": mlp, "prototypes": prototypes}, stats


def logits(head, z):
  """Bottlenecks [... d] times the prototypes of a head: float32 [... k]."""
  prototypes = head["prototypes"]
  w = ops.l2_normalize(prototypes["direction"], axis=0)
  return z.astype(jnp.float32) @ (w * prototypes.get("length", 1.0))


def apply_views(encoder, params, stats, x, *, train, key, mask=None):
  """An encoder on views [b v h w c] at once: outputs [b v ...], statistics.

  Batch norm sees all of them together, as the authors' concatenated crops.

  Args:
    encoder: under the encoder contract.
    params: its own.
    stats: its own.
    x: [b v h w c].
    train: see there.
    key: [b].
    mask: bool [b v n], patches that the mask token replaces, or None.
  """
  b, v = x.shape[:2]
  flat = lambda t: t.reshape(b * v, *t.shape[2:])
  masked = {} if mask is None else {"mask": flat(mask)}
  key = ops.view_keys(key, v)
  out, stats = linen.apply(
    encoder, params, stats, flat(x), train=train, key=key, **masked
  )
  back = lambda t: t.reshape(b, v, *t.shape[1:])
  return {k: back(out[k]) for k in ("pooled", "tokens")}, stats


def student_crops(encoder, params, stats, batch, *, train, mask=None):
  """The student's class tokens [b v+l d] of all crops, patches of the global.

  Returns:
    (pooled [b v+l d], tokens [b v n d], statistics).
  """
  key = jax.vmap(jax.random.split)(batch["key"])  # [b 2]
  out, stats = apply_views(
    encoder,
    params,
    stats,
    batch["views"],
    train=train,
    key=key[:, 0],
    mask=mask,
  )
  pooled = out["pooled"]
  if "local_views" in batch:
    local, stats = apply_views(
      encoder,
      params,
      stats,
      batch["local_views"],
      train=train,
      key=key[:, 1],
    )
    pooled = jnp.concatenate([pooled, local["pooled"]], axis=1)
  return pooled, out["tokens"], stats


def of_last_block(pooled, encoder):
  """Class tokens [... d] of the last block, where others are joined, too."""
  return pooled[..., -encoder.dim :]


def draw_masks(key, views, grid, *, probability, ratio, min_block):
  """Block masks bool [b views n] of global crops, each drawn by itself.

  Args:
    key: [b].
    views: how many an example has.
    grid: (rows, columns) of patches.
    probability: that a crop is masked at all.
    ratio: (least, most) part of its patches, uniform between.
    min_block: see `masks.block_masking`.
  """
  n = grid[0] * grid[1]
  keys = ops.view_keys(key, views)
  keys = jax.vmap(lambda k: jax.random.split(k, 3))(keys)  # [b*views 3]
  uniform = jax.vmap(jax.random.uniform)
  part = ratio[0] + (ratio[1] - ratio[0]) * uniform(keys[:, 0])
  chosen = uniform(keys[:, 1]) < probability
  count = jnp.where(chosen, jnp.floor(part * n), 0).astype(jnp.int32)
  mask = masks.block_masking(keys[:, 2], grid, count, min_block=min_block)
  return mask.reshape(-1, views, n)


def most_masked(ratio, grid):
  """The most patches that `draw_masks` masks of a crop."""
  most = int(ratio[1] * grid[0] * grid[1])
  if most < 1 or ratio[0] > ratio[1]:
    raise errors.UserError(
      f"method.mask_ratio={ratio} of {grid[0]} x {grid[1]} patches: give the "
      "least and the most, which is one patch or more"
    )
  return most


def take(tokens, places):
  """[b v n d] at places [b v m] -> [b v m d]."""
  return jnp.take_along_axis(tokens, places[..., None], axis=2)


def mean_of_masked(loss, present):
  """[b v m] where present [b v m]: the mean within crops, then over them.

  A crop without counts as 0, as the authors' does.
  """
  count = jnp.maximum(present.sum(axis=-1), 1)
  return (jnp.where(present, loss, 0.0).sum(axis=-1) / count).mean()


def entropies(targets):
  """For the log: the mean entropy of distributions [... k], and that of their
  mean, in nats.

  Their difference is what the targets tell of the examples. Both collapses of
  DINO's paper, section 5.3, make it 0: to one prototype (both entropies 0) and
  to all of them (both log k).
  """
  targets = targets.reshape(-1, targets.shape[-1])
  entropy = lambda p: -jax.scipy.special.xlogy(p, p).sum(axis=-1)
  mean, usage = entropy(targets).mean(), entropy(targets.mean(axis=0))
  return {
    "teacher_entropy": mean,
    "usage_entropy": usage,
    "spread/targets": usage - mean,
  }


def embed_by(encoder):
  """`Method.embed` by the teacher, which the authors evaluate."""

  def embed(params, method_state, batch):
    del params
    teacher = method_state["teacher"]
    x = batch["views"][:, 0]
    out, _ = linen.apply(
      encoder,
      teacher["params"]["encoder"],
      teacher["batch_stats"].get("encoder", {}),
      x,
      train=False,
    )
    return {"pooled": out["pooled"], "tokens": out["tokens"]}

  return embed


def after_update_by(schedule):
  """`Method.after_update`: the teacher is a moving average of the student."""

  def after_update(params, method_state, step):
    teacher = method_state["teacher"]
    moved = ops.ema(teacher["params"], params, schedule(step))
    return params, method_state | {"teacher": teacher | {"params": moved}}

  return after_update
