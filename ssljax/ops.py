"""Operations that methods share: pure, on arrays. Needs jax alone."""

import jax
import jax.numpy as jnp


def l2_normalize(x: jax.Array, axis: int = -1, eps: float = 1e-12) -> jax.Array:
  """x / |x| along `axis`; zero stays zero, and so does its gradient.

  `eps` bounds the squared norm from below, as TensorFlow's `l2_normalize` does.
  """
  squared = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(squared, eps))


def standardize(x: jax.Array, eps: float = 1e-5) -> jax.Array:
  """Layer norm over the last axis without scale and offset, in float32."""
  x = x.astype(jnp.float32)
  x = x - x.mean(axis=-1, keepdims=True)
  var = jnp.square(x).mean(axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(var + eps)


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


def overlapping_patches(images: jax.Array, patch: int, stride: int):
  """[b h w c] -> [b rows columns p p c], a patch every `stride` pixels."""

  def places(size):
    first = jnp.arange((size - patch) // stride + 1) * stride
    return first[:, None] + jnp.arange(patch)

  h, w = images.shape[1:3]
  x = images[:, places(h)]  # [b rows p w c]
  return x[:, :, :, places(w)].transpose(0, 1, 3, 2, 4, 5)


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


def unit_masking(key: jax.Array, grid, unit: int, count: int) -> jax.Array:
  """Masks `count` units of unit x unit places for each example.

  As `MaskGenerator` of microsoft/SimMIM `data/data_simmim.py`.

  Args:
    key: [b].
    grid: (rows, columns) of places, multiples of `unit`.
    unit: side of a unit, in places.
    count: how many units are masked.

  Returns:
    bool [b n], True where masked, places in raster order.
  """
  rows, columns = grid[0] // unit, grid[1] // unit
  _, _, others = random_masking(key, rows * columns, count)
  mask = ~others.reshape(-1, rows, columns)
  mask = jnp.repeat(jnp.repeat(mask, unit, axis=1), unit, axis=2)
  return mask.reshape(len(mask), -1)


def block_masking(
  key: jax.Array,
  grid,
  count: int | jax.Array,
  *,
  min_block: int = 4,
  max_block: int | None = None,
  min_aspect: float = 0.3,
  attempts: int = 60,
) -> jax.Array:
  """Masks `count` places of a grid by rectangles, for each example.

  `MaskingGenerator` of BEiT (microsoft/unilm `beit/masking_generator.py`), as
  iBOT and data2vec have it: rectangles of a uniform area and a log-uniform
  aspect, one after the other, each where it masks something new and not more
  than is left; after ten in a row that do not fit it gives up. What is then
  missing, which the authors leave so, is drawn at random from the rest, so
  that the count is exact.

  Args:
    key: [b].
    grid: (rows, columns) of places.
    count: how many are masked: a number, or int32 [b].
    min_block: the least area that is asked for.
    max_block: the largest; None is `count`.
    min_aspect: the least height over width; the largest is one over it.
    attempts: after so many rectangles the rest is drawn in any case.

  Returns:
    bool [b n], True where masked, places in raster order.
  """
  counts = jnp.broadcast_to(jnp.asarray(count, jnp.int32), key.shape)
  height, width = grid
  row, column = jnp.divmod(jnp.arange(height * width), width)

  def of_example(key, count):
    fill_key, key = jax.random.split(key)
    noise = jax.random.uniform(fill_key, row.shape)

    def attempt(i, carry):
      mask, failures = carry
      u = jax.random.uniform(jax.random.fold_in(key, i), (4,))
      most = count - mask.sum()
      if max_block is not None:
        most = jnp.minimum(most, max_block)
      area = min_block + u[0] * (most - min_block)
      aspect = jnp.exp((2 * u[1] - 1) * jnp.log(1 / min_aspect))
      h = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
      w = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
      top = jnp.floor(u[2] * (height - h + 1))
      left = jnp.floor(u[3] * (width - w + 1))
      block = (row >= top) & (row < top + h)
      block &= (column >= left) & (column < left + w)
      new = (block & ~mask).sum()
      fits = (h < height) & (w < width) & (new > 0) & (new <= most)
      fits &= failures < 10
      return mask | (block & fits), jnp.where(fits, 0, failures + 1)

    # Empty, but computed from the key, so that it is as local as the rest.
    mask = noise < 0
    mask, _ = jax.lax.fori_loop(0, attempts, attempt, (mask, mask.sum()))
    # The masked come first, then the others as the noise has them.
    order = jnp.argsort(jnp.where(mask, -1.0, noise))
    return jnp.argsort(order) < count

  return jax.vmap(of_example)(key, counts)


def multiblock_masking(
  key: jax.Array,
  size_key: jax.Array,
  grid,
  *,
  targets: int = 4,
  target_area: tuple[float, float] = (0.15, 0.2),
  target_aspect: tuple[float, float] = (0.75, 1.5),
  context_area: tuple[float, float] = (0.85, 1.0),
  min_keep: int = 10,
  tries: int = 20,
) -> tuple[jax.Array, jax.Array]:
  """I-JEPA's masks: blocks to predict, and a block without them to see.

  `MaskCollator` of facebookresearch/ijepa `src/masks/multiblock.py`: all blocks
  of a kind are of one size, which one number draws, area and aspect together;
  a block is always smaller than the grid, and its first row and column are
  never the last possible ones. A context that keeps too few places is drawn
  again; after each `tries` in vain one target fewer is taken out of it.

  Args:
    key: [b].
    size_key: of the two sizes, the same for all examples.
    grid: (rows, columns) of places.
    targets: number of blocks to predict.
    target_area: least and largest part of the grid.
    target_aspect: least and largest height over width.
    context_area: of the context before targets are taken out; it is square.
    min_keep: a context has more places than this.
    tries: see above.

  Returns:
    (context bool [b n], targets bool [b t n]), places in raster order.

  Raises:
    ValueError: a block may be too small for `min_keep`.
  """
  kinds = ((target_area, target_aspect), (context_area, (1.0, 1.0)))
  sizes = []
  for (area, aspect), one in zip(kinds, jax.random.split(size_key)):
    least, _ = block_areas(grid, area, aspect)
    if least <= min_keep:
      raise ValueError(f"min_keep={min_keep}: a block may have {least} places")
    sizes.append(_block_size(jax.random.uniform(one), grid, area, aspect))
  row, column = jnp.divmod(jnp.arange(grid[0] * grid[1]), grid[1])

  def blocks(key, count, size):
    """bool [count n]."""
    u = jax.random.uniform(key, (count, 2, 1))
    top = jnp.floor(u[:, 0] * (grid[0] - size[0]))
    left = jnp.floor(u[:, 1] * (grid[1] - size[1]))
    inside = (row >= top) & (row < top + size[0])
    return inside & (column >= left) & (column < left + size[1])

  def of_example(key):
    target_key, context_key = jax.random.split(key)
    wanted = blocks(target_key, targets, sizes[0])
    # The first `tries` avoid all targets, the next all but the last, ...
    avoided = jnp.stack(
      [wanted[: targets - i].any(axis=0) for i in range(targets + 1)]
    )
    context = blocks(context_key, (targets + 1) * tries, sizes[1])
    context &= ~jnp.repeat(avoided, tries, axis=0)
    first = jnp.argmax(context.sum(axis=1) > min_keep)
    return context[first], wanted

  return jax.vmap(of_example)(key)


def _block_size(u, grid, area, aspect):
  """(height, width) that a number in [0, 1) draws."""
  places = jnp.floor(grid[0] * grid[1] * (area[0] + u * (area[1] - area[0])))
  ratio = aspect[0] + u * (aspect[1] - aspect[0])
  height = jnp.round(jnp.sqrt(places * ratio)).astype(jnp.int32)
  width = jnp.round(jnp.sqrt(places / ratio)).astype(jnp.int32)
  return jnp.minimum(height, grid[0] - 1), jnp.minimum(width, grid[1] - 1)


def block_areas(grid, area, aspect) -> tuple[int, int]:
  """The fewest and the most places of such a block of `multiblock_masking`."""
  with jax.ensure_compile_time_eval():
    u = jnp.linspace(0, 1, 10001)
    height, width = _block_size(u, grid, area, aspect)
    return int((height * width).min()), int((height * width).max())


def places_of(mask: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
  """The first `most` places of a mask, in raster order.

  Args:
    mask: bool [... n].
    most: how many; where there are fewer, others follow.

  Returns:
    (int32 [... most], bool [... most], True where the place is in the mask).
  """
  places = jnp.argsort(~mask, axis=-1)[..., :most]
  return places, jnp.take_along_axis(mask, places, axis=-1)


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


def prefix_attention_mask(prefix: jax.Array, n: int) -> jax.Array:
  """Each place sees those before it, itself, and the first `prefix` [b].

  `PrefixCausalAttention` of apple/ml-aim `aim-v1/aim/v1/torch/layers.py`.

  Returns:
    bool [b 1 q k].
  """
  place = jnp.arange(n)
  causal = place <= place[:, None]
  return (causal | (place < prefix[:, None, None]))[:, None]


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
  present = jnp.ones(len(logits)) if mask is None else mask.astype(jnp.float32)
  high = logits.max()

  # Both divide for themselves: what they are given is not written twice.
  def scales(logits):
    scaled = jnp.exp((logits - high) / epsilon)
    u = present
    for _ in range(iterations):
      v = 1 / (u @ scaled)
      u = present / (scaled @ v)
    return u[:, None] * scaled * v

  def log_scales(logits):
    scaled = (logits - high) / epsilon
    u = jnp.log(present)
    for _ in range(iterations):
      v = -jax.nn.logsumexp(scaled + u[:, None], axis=0)
      u = jnp.log(present) - jax.nn.logsumexp(scaled + v, axis=1)
    return jnp.exp(scaled + u[:, None] + v)

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
  identity, times each row.
  """
  n, d = x.shape
  x = x - x.mean(axis=0)
  covariance = (1 - eps) * (x.T @ x) / (n - 1) + eps * jnp.eye(d)
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
