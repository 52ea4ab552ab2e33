"""Batch norm: Ioffe and Szegedy 2015, arXiv:1502.03167."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import errors


class BatchNorm(nn.Module):
  """Batch norm over all axes but the last, [b ... c] -> [b ... c] in `dtype`.

  As `flax.linen.BatchNorm`, with its names, and its numbers to rounding, and
  with groups. It sums over examples first and over places after that, forwards
  and backwards, so that XLA on a CPU reduces along rows.

  Attributes:
    train: take the statistics of the batch, and move the running ones.
    momentum: of the running statistics; torch's is one minus it.
    epsilon: added to the variance.
    use_bias: learn an offset.
    use_scale: learn a scale.
    scale_init: of the scale.
    groups: the global batch is cut into so many parts of one size, each
      normalised by its own statistics, as by so many devices that do not
      synchronise; the running statistics see the mean over parts.
    strided: whether a part is every n-th example, or consecutive ones.
    dtype: of the result; statistics and parameters are float32.
    axis_name: the mapped axis whose devices share their statistics.
  """

  train: bool
  momentum: float = 0.9
  epsilon: float = 1e-5
  use_bias: bool = True
  use_scale: bool = True
  scale_init: Callable = nn.initializers.ones_init()
  groups: int = 1
  strided: bool = False
  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x):
    """Raises UserError where the groups do not divide the global batch."""
    c = x.shape[-1]
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,))
    running_var = self.variable("batch_stats", "var", jnp.ones, (c,))
    trains = self.train and not self.is_initializing()
    groups = self.groups if trains else 1
    shared = self.axis_name if trains else None
    flat = x.reshape(x.shape[0], -1).astype(jnp.float32)  # [b places*c]
    member = self._member(len(flat), shared) if groups > 1 else None

    def average(v):  # [b places*c] -> [groups c]
      if member is None:
        v = v.mean(axis=0, keepdims=True)
      else:
        v = _product(member.T, v) / (len(flat) / groups)
      v = v.reshape(groups, -1, c).mean(axis=1)
      return jax.lax.pmean(v, shared) if shared else v

    def spread(v):  # [groups c] -> [b or 1, places*c]
      v = v if member is None else _product(member, v)
      return jnp.tile(v, flat.shape[1] // c)

    mean = average(flat) if self.train else running_mean.value[None]
    centred = flat - spread(mean)
    # Not as the mean square less the squared mean, which loses digits.
    var = (
      average(jnp.square(centred)) if self.train else running_var.value[None]
    )
    if trains:
      move = lambda old, new: (
        self.momentum * old + (1 - self.momentum) * new.mean(axis=0)
      )
      running_mean.value = move(running_mean.value, mean)
      running_var.value = move(running_var.value, var)
    scale = jax.lax.rsqrt(var + self.epsilon)
    if self.use_scale:
      scale = scale * self.param("scale", self.scale_init, (c,))
    y = centred * spread(scale)
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros_init(), (c,))
      y = y + jnp.tile(bias, flat.shape[1] // c)
    return y.reshape(x.shape).astype(self.dtype)

  def _member(self, b, axis_name):
    """[b groups] of 0 and 1, by the place in the global batch."""
    first, n = 0, b
    if axis_name:
      first = jax.lax.axis_index(axis_name) * b
      n = jax.lax.axis_size(axis_name) * b
    if n % self.groups:
      raise errors.UserError(
        f"bn_groups={self.groups} does not divide a batch of {n}: give another "
        "config.batch_size or bn_groups"
      )
    place = first + jnp.arange(b)
    group = place % self.groups if self.strided else place // (n // self.groups)
    return jax.nn.one_hot(group, self.groups, dtype=jnp.float32)


def _product(a, b):
  # Accelerators multiply in fewer digits unless told.
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
