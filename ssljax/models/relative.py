"""Relative positions: a bias of the attention's logits.

BEiT, Bao et al. 2021, arXiv:2106.08254, which SimMIM's and data2vec's authors
have in their ViTs: `RelativePositionBias` of microsoft/unilm
`beit/modeling_finetune.py`, one table for all blocks.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from ssljax import errors


class Bias(nn.Module):
  """A number for each head and each difference of rows and of columns.

  Attributes:
    grid: (rows, columns) of patches.
    heads: of the attention.
    extra: tokens before the patches that have no place; three more numbers are
      theirs: from them to patches, from patches to them, and among them.
  """

  grid: tuple[int, int]
  heads: int
  extra: int = 1

  @nn.compact
  def __call__(self):
    """[heads q k] float32.

    Raises:
      UserError: the table was learned for a grid of other differences.
    """
    rows, columns = self.grid
    count = (2 * rows - 1) * (2 * columns - 1) + (3 if self.extra else 0)
    if self.has_variable("params", "table"):
      table = self.get_variable("params", "table")
      if len(table) != count:
        raise errors.UserError(
          f"pos='relative' was learned for other images than those of {rows} x "
          f"{columns} patches: give that size"
        )
    else:
      table = self.param("table", nn.initializers.zeros, (count, self.heads))
    return table[index(self.grid, self.extra)].transpose(2, 0, 1)


def index(grid, extra: int) -> np.ndarray:
  """Where in the table each pair of tokens is: int [q k]."""
  rows, columns = grid
  row, column = np.divmod(np.arange(rows * columns), columns)
  n = (2 * rows - 1) * (2 * columns - 1)
  places = (row[:, None] - row + rows - 1) * (2 * columns - 1)
  places += column[:, None] - column + columns - 1
  places = np.pad(places, ((extra, 0), (extra, 0)))
  places[:extra] = n
  places[:, :extra] = n + 1
  places[:extra, :extra] = n + 2
  return places


def masked(bias, attention_mask=None):
  """The bias [heads q k], where bool [b heads q k] allows to look."""
  if attention_mask is None:
    return bias[None]
  return jnp.where(attention_mask, bias[None], jnp.finfo(jnp.float32).min)
