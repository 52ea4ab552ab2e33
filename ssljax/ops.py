"""Operations that methods share: pure, on arrays. Needs jax alone."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ssljax import errors


def l2_normalize(x: jax.Array, axis: int = -1, eps: float = 1e-12) -> jax.Array:
  """x / |x| along `axis`; zero stays zero, with a finite gradient.

  `eps` bounds the squared norm from below, as TensorFlow's `l2_normalize` does.
  Halves are squared in float32, where `eps` is not zero.
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  squared = jnp.sum(jnp.square(wide), axis=axis, keepdims=True)
  return (wide * jax.lax.rsqrt(jnp.maximum(squared, eps))).astype(x.dtype)


def standardize(x: jax.Array, eps: float = 1e-5) -> jax.Array:
  """Layer norm over the last axis without scale and offset, in float32."""
  x = x.astype(jnp.float32)
  x = x - x.mean(axis=-1, keepdims=True)
  var = jnp.square(x).mean(axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(var + eps)


def ema(average, new, decay):
  """decay * average + (1 - decay) * new, leaf by leaf, each in its dtype.

  What is no float is taken from `new`. In bfloat16 an average stands still
  where 1 - decay is below 1 / 256: keep a teacher in float32.

  Args:
    average: a pytree, e.g. the momentum teacher's parameters.
    new: a pytree of the same structure, e.g. the student's.
    decay: a scalar in [0, 1]; 1 keeps the average.
  """

  def mix(a, b):
    if not jnp.issubdtype(a.dtype, jnp.inexact):
      return b
    return (a * decay + b.astype(a.dtype) * (1 - decay)).astype(a.dtype)

  return jax.tree.map(mix, average, new)


def view_keys(key: jax.Array, views: int) -> jax.Array:
  """A key for each view: [b] -> [b * views], views of an example together."""
  fold = lambda k: jax.vmap(lambda v: jax.random.fold_in(k, v))(
    jnp.arange(views)
  )
  return jax.vmap(fold)(key).reshape(-1)


def require_views(
  batch: dict, count: int, *, more: bool = False, local: bool = False
) -> None:
  """Raises UserError where a batch has other views than a method takes.

  An index too large would be the last view once again, without an error.

  Args:
    batch: with `views` [b v h w c], maybe `local_views`.
    count: how many views the method takes.
    more: it takes more as well.
    local: it takes small crops.
  """
  if "views" not in batch:
    raise errors.UserError(
      f"the method takes views of images, and a batch has {', '.join(batch)}: "
      "give a method of text, or images"
    )
  given = batch["views"].shape[1]
  if given < count or (given > count and not more):
    many = " or more views" if more else " view" if count == 1 else " views"
    raise errors.UserError(
      f"the method takes {count}{many}, and the augmentation gives {given}: "
      f"give config.augment.views={count}"
    )
  if "local_views" in batch and not local:
    raise errors.UserError(
      "the method takes no small crops: give config.augment.local_views=0"
    )


def require_queue(size: int) -> None:
  """Raises UserError where a method that compares with a queue has none."""
  if size < 1:
    raise errors.UserError(
      f"method.queue_size={size}: give a multiple of the batch"
    )


def enqueue(queue: jax.Array, rows: jax.Array, place: jax.Array) -> jax.Array:
  """Writes rows [n d] over the oldest of a ring [k d], at `place` int32 [].

  The next place is `(place + n) % k`. A place that batches of another size have
  left counts as the multiple of n before it, so that none wraps.

  Raises:
    UserError: n does not divide k (a ring that wraps would be cut), or k is 0.
  """
  if queue.shape[0] % rows.shape[0] or not len(queue):
    raise errors.UserError(
      f"a queue of {queue.shape[0]} is not a multiple of {rows.shape[0]} rows: "
      "change its size or the batch"
    )
  place = place - place % len(rows)
  rows = rows.astype(queue.dtype)
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


def overlapping_patches(images: jax.Array, patch: int, stride: int):
  """[b h w c] -> [b rows columns p p c], a patch every `stride` pixels."""

  def places(size):
    first = jnp.arange((size - patch) // stride + 1) * stride
    return first[:, None] + jnp.arange(patch)

  h, w = images.shape[1:3]
  x = images[:, places(h)]  # [b rows p w c]
  return x[:, :, :, places(w)].transpose(0, 1, 3, 2, 4, 5)


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
  logits = jax.lax.stop_gradient(logits.astype(jnp.float32))
  present = jnp.ones(len(logits)) if mask is None else mask
  present = present.astype(jnp.float32)
  there = present[:, None] > 0  # where no row is, v is infinite
  if mask is not None:  # what takes no part sets no scale
    logits = jnp.where(there, logits, logits.max(where=there, initial=-jnp.inf))
  high = logits.max()

  # Both divide for themselves: what they are given is not written twice.
  def scales(logits):
    scaled = jnp.exp((logits - high) / epsilon)
    u = present
    times = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    for _ in range(iterations):
      v = 1 / times(u, scaled)
      u = present / times(scaled, v)
    return jnp.where(there, u[:, None] * scaled * v, 0.0)

  def log_scales(logits):
    scaled = (logits - high) / epsilon
    u = jnp.log(present)
    for _ in range(iterations):
      v = -jax.nn.logsumexp(scaled + u[:, None], axis=0)
      u = jnp.log(present) - jax.nn.logsumexp(scaled + v, axis=1)
    return jnp.where(there, jnp.exp(scaled + u[:, None] + v), 0.0)

  narrow = high - logits.min() < 60 * epsilon
  return jax.lax.cond(narrow, scales, log_scales, logits)


def nearest(x: jax.Array, table: jax.Array) -> jax.Array:
  """The row of `table` [k d] with the largest cosine for each x: [n d].

  Both are normalised, and so is what comes back.
  """
  return table[jnp.argmax(x @ table.T, axis=1)]


def whiten(x: jax.Array, *, eps: float = 0.0) -> jax.Array:
  """[n d] with mean zero and the identity for its covariance, by Cholesky.

  As `Whitening2d` of htdt/self-supervised `methods/whitening.py`: the inverse
  of the lower factor of the unbiased covariance, drawn by `eps` towards the
  identity, times each row. NaN for fewer than two rows.
  """
  n, d = x.shape
  x = x - x.mean(axis=0)
  exact = jax.lax.Precision.HIGHEST  # the smallest directions count as all
  covariance = jnp.matmul(x.T, x, precision=exact) / (n - 1)
  covariance = (1 - eps) * covariance + eps * jnp.eye(d, dtype=x.dtype)
  factor = jnp.linalg.cholesky(covariance)
  return jax.scipy.linalg.solve_triangular(factor, x.T, lower=True).T


def pca_whiten(x: jax.Array, dim: int) -> jax.Array:
  """[n d] -> [n dim]: the largest principal components, each of variance 1.

  As faiss' `PCAMatrix` with eigen_power -0.5, which facebookresearch/
  deepcluster `clustering.py` uses, but that a component with less than 1e-6 of
  the largest variance counts as having that: it is noise.
  """
  x = x.astype(jnp.float32)
  x = x - x.mean(axis=0)
  exact = jax.lax.Precision.HIGHEST
  covariance = jnp.matmul(x.T, x, precision=exact) / len(x)
  variances, axes = jnp.linalg.eigh(covariance)  # ascending
  variances, axes = variances[::-1][:dim], axes[:, ::-1][:, :dim]
  variances = jnp.maximum(variances, 1e-6 * variances[0])
  variances = jnp.maximum(variances, jnp.finfo(x.dtype).tiny)  # of constants
  return jnp.matmul(x, axes / jnp.sqrt(variances), precision=exact)


def sobel(images: jax.Array) -> jax.Array:
  """[b h w c] -> [b h w 2]: the mean of the channels, then its differences
  along x and y, as facebookresearch/deepcluster `models/alexnet.py` has them.
  """
  grey = jnp.pad(images.mean(axis=-1), ((0, 0), (1, 1), (1, 1)))
  smooth_y = grey[:, :-2] + 2 * grey[:, 1:-1] + grey[:, 2:]
  smooth_x = grey[:, :, :-2] + 2 * grey[:, :, 1:-1] + grey[:, :, 2:]
  across = smooth_y[:, :, :-2] - smooth_y[:, :, 2:]
  down = smooth_x[:, :-2] - smooth_x[:, 2:]
  return jnp.stack([across, down], axis=-1)


def strided_split(tree, n: int):
  """Arrays [b ...] as [n b/n ...]; row i goes to part i mod n.

  Strided, so that under `jit` each device keeps the rows that it has.

  Raises:
    ValueError: n does not divide b.
  """

  def split(x):
    if x.shape[0] % n:
      raise ValueError(f"{n} parts do not divide {x.shape[0]} rows")
    return jnp.moveaxis(x.reshape(x.shape[0] // n, n, *x.shape[1:]), 1, 0)

  return jax.tree.map(split, tree)


def strided_join(tree):
  """The inverse of `strided_split`."""
  join = lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])
  return jax.tree.map(join, tree)


def in_blocks(f: Callable, rows, blocks: int):
  """`f(rows)` for an `f` that treats each row by itself, a block at a time.

  What `f` makes on the way is kept for one block alone, and computed again for
  the gradient.

  Args:
    f: from a pytree of arrays [k ...] to another.
    rows: a pytree of arrays [b ...].
    blocks: their number; one is `f(rows)` itself.

  Raises:
    ValueError: `blocks` does not divide b.
  """
  if blocks == 1:
    return f(rows)
  return strided_join(
    jax.lax.map(jax.checkpoint(f), strided_split(rows, blocks))
  )
