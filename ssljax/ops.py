"""Operations that methods share: pure, on arrays. Needs jax alone."""

import jax
import jax.numpy as jnp


def l2_normalize(x: jax.Array, axis: int = -1, eps: float = 1e-12) -> jax.Array:
  """x / |x| along `axis`; zero stays zero, and so does its gradient.

  `eps` bounds the squared norm from below, as TensorFlow's `l2_normalize` does.
  """
  squared = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(squared, eps))


def ema(average, new, decay):
  """decay * average + (1 - decay) * new, leaf by leaf.

  Args:
    average: a pytree, e.g. the momentum teacher's parameters.
    new: a pytree of the same structure, e.g. the student's.
    decay: a scalar in [0, 1]; 1 keeps the average.
  """
  mix = lambda a, b: a * decay + b.astype(a.dtype) * (1 - decay)
  return jax.tree.map(mix, average, new)


def view_keys(key: jax.Array, views: int) -> jax.Array:
  """A key for each view: [b] -> [b * views], views of an example together."""
  fold = lambda k: jax.vmap(lambda v: jax.random.fold_in(k, v))(
    jnp.arange(views)
  )
  return jax.vmap(fold)(key).reshape(-1)


def enqueue(queue: jax.Array, rows: jax.Array, place: jax.Array) -> jax.Array:
  """Writes rows [n d] over the oldest of a ring [k d], at `place` int32 [].

  The next place is `(place + n) % k`.

  Raises:
    ValueError: n does not divide k (a ring that wraps would be cut).
  """
  if queue.shape[0] % rows.shape[0]:
    raise ValueError(
      f"a queue of {queue.shape[0]} is not a multiple of {rows.shape[0]} rows"
    )
  return jax.lax.dynamic_update_slice_in_dim(queue, rows, place, axis=0)


def patchify(images: jax.Array, patch: int) -> jax.Array:
  """[b h w c] -> [b n p*p*c], patches in raster order, channels last.

  As `patchify` of facebookresearch/mae `models_mae.py`.
  """
  b, h, w, c = images.shape
  x = images.reshape(b, h // patch, patch, w // patch, patch, c)
  x = x.transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(patches: jax.Array, patch: int, shape) -> jax.Array:
  """The inverse of `patchify`: [b n p*p*c] -> [b h w c] of `shape` (h, w)."""
  b = patches.shape[0]
  h, w = shape[0] // patch, shape[1] // patch
  x = patches.reshape(b, h, w, patch, patch, -1).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h * patch, w * patch, -1)


def random_masking(key: jax.Array, n: int, keep: int):
  """Keeps `keep` of n places for each example, drawn by noise.

  As `random_masking` of facebookresearch/mae `models_mae.py`: the places with
  the smallest noise, in the order of the noise.

  Args:
    key: [b].
    n: number of places.
    keep: how many stay.

  Returns:
    (kept int32 [b keep], restore int32 [b n], mask bool [b n]): the places
    kept; where each place is in the order of the noise, kept ones first; which
    are removed.
  """
  noise = jax.vmap(lambda k: jax.random.uniform(k, (n,)))(key)
  return masking_of_noise(noise, keep)


def masking_of_noise(noise: jax.Array, keep: int):
  """`random_masking` given its noise [b n]."""
  order = jnp.argsort(noise, axis=1)
  restore = jnp.argsort(order, axis=1)
  return order[:, :keep], restore, restore >= keep


def attention_mask(
  mask: jax.Array | None = None, segment: jax.Array | None = None
) -> jax.Array | None:
  """Where a query may look: bool, broadcastable to [b heads q k], or None.

  Args:
    mask: bool [b t], False at padding, or None where there is none.
    segment: int32 [b t], the document of each place where some are packed into
      a row, or None.
  """
  allowed = None if mask is None else mask[:, None, None, :].astype(bool)
  if segment is None:
    return allowed
  same = segment[:, None, :, None] == segment[:, None, None, :]
  return same if allowed is None else same & allowed


def masked_mean(x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
  """The mean over axis 1 of [b t d], of the places in `mask` [b t] alone.

  A row without one is zero.
  """
  if mask is None:
    return x.mean(axis=1)
  mask = mask.astype(x.dtype)[..., None]
  return (x * mask).sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)


def sinkhorn(
  logits: jax.Array,
  *,
  epsilon: float,
  iterations: int = 3,
  mask: jax.Array | None = None,
) -> jax.Array:
  """Assignments of examples to equally used prototypes (SwAV, eq. 3 and 5).

  `distributed_sinkhorn` of facebookresearch/swav `main_swav.py`: exp(logits /
  epsilon), then in turn each prototype to the sum n / k and each example to 1.
  The value for the whole batch, and no gradient.

  Only the scales u [n] and v [k] of the result u_i v_j exp(logits_ij / epsilon)
  are iterated: no pass but the last writes a matrix. That is exact while the
  exponents lie within 60 of each other, as cosines over 0.05 do; where they do
  not, the scales are iterated as logarithms instead.

  Args:
    logits: [n k], of n examples with k prototypes.
    epsilon: the temperature; smaller is closer to one prototype an example.
    iterations: of both sums.
    mask: bool [n], the rows that take part, or None for all.

  Returns:
    float32 [n k]; each row sums to 1, or to 0 where `mask` is False.
  """
  logits = jax.lax.stop_gradient(logits.astype(jnp.float32)) / epsilon
  n, k = logits.shape
  present = jnp.ones((n,)) if mask is None else mask.astype(jnp.float32)
  high = logits.max()

  def scales(logits):
    scaled = jnp.exp(logits - high)
    u = present
    for _ in range(iterations):
      v = 1 / (u @ scaled)
      u = present / (scaled @ v)
    return u[:, None] * scaled * v

  def log_scales(logits):
    u = jnp.log(present)
    for _ in range(iterations):
      v = -jax.nn.logsumexp(logits + u[:, None], axis=0)
      u = jnp.log(present) - jax.nn.logsumexp(logits + v, axis=1)
    return jnp.exp(logits + u[:, None] + v)

  narrow = high - logits.min() < 60
  return jax.lax.cond(narrow, scales, log_scales, logits)
