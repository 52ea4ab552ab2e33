"""Masks: which patches are hidden, and where attention may look.

Samplers take a key for each example and hide a fixed count, so that nothing is
compiled again. Needs jax alone.
"""

import jax
import jax.numpy as jnp

from ssljax import errors


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
  order = jnp.argsort(noise, axis=1).astype(jnp.int32)
  restore = jnp.argsort(order, axis=1).astype(jnp.int32)
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
  inclusive: bool = False,
  tries: int = 20,
) -> tuple[jax.Array, jax.Array]:
  """I-JEPA's masks: blocks to predict, and a block without them to see.

  `MaskCollator` of facebookresearch/ijepa `src/masks/multiblock.py`: all blocks
  of a kind are of one size, which one number draws, area and aspect together;
  a block is always smaller than the grid, and, but for `inclusive`, its first
  row and column are never the last possible ones, so that no block has the
  grid's last row or column: of 14 x 14 patches 14 percent, of 7 x 7 27. A
  context that keeps too few places is drawn again; after each `tries` in vain
  one target fewer is taken out of it.

  Args:
    key: [b].
    size_key: of the two sizes, the same for all examples.
    grid: (rows, columns) of places.
    targets: number of blocks to predict.
    target_area: least and largest part of the grid.
    target_aspect: least and largest height over width.
    context_area: of the context before targets are taken out; it is square.
    min_keep: a context has more places than this.
    inclusive: blocks reach the last row and column, which the authors' do not.
    tries: see above.

  Returns:
    (context bool [b n], targets bool [b t n]), places in raster order.

  Raises:
    UserError: a block may be too small for `min_keep`.
  """
  kinds = ((target_area, target_aspect), (context_area, (1.0, 1.0)))
  sizes = []
  for (area, aspect), one in zip(kinds, jax.random.split(size_key)):
    least, _ = block_areas(grid, area, aspect)
    if least <= min_keep:
      raise errors.UserError(
        f"method.min_keep={min_keep}: a block of {grid[0]} x {grid[1]} patches "
        f"may have {least}: lower it, or give larger images or smaller patches"
      )
    sizes.append(_block_size(jax.random.uniform(one), grid, area, aspect))
  row, column = jnp.divmod(jnp.arange(grid[0] * grid[1]), grid[1])

  def blocks(key, count, size):
    """bool [count n]."""
    u = jax.random.uniform(key, (count, 2, 1))
    top = jnp.floor(u[:, 0] * (grid[0] - size[0] + inclusive))
    left = jnp.floor(u[:, 1] * (grid[1] - size[1] + inclusive))
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


def require_hidden(batch: dict) -> None:
  """Raises UserError where a batch of tokens has none that are hidden."""
  if "places" not in batch:
    raise errors.UserError(
      "the method tells hidden tokens, and the augmentation hides none: give "
      "config.augment.name=mlm"
    )


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
