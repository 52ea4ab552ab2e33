"""Batch norm: Ioffe and Szegedy 2015, arXiv:1502.03167."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


class BatchNorm(nn.Module):
  """Batch norm over all axes but the last, [b ... c] -> [b ... c] in `dtype`.

  As `flax.linen.BatchNorm`, with its names and numbers, and with groups. It sums
  over examples first and over places after that, forwards and backwards, which
  on a CPU is the quicker way.

  Attributes:
    train: take the statistics of the batch, and move the running ones.
    momentum: of the running statistics; torch's is one minus it.
    epsilon: added to the variance.
    use_bias: learn an offset.
    use_scale: learn a scale.
    scale_init: of the scale.
    groups: the batch is cut into so many consecutive parts, each normalised by
      its own statistics, as by so many devices without synchronisation; the
      running statistics see the mean over parts.
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
  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x):
    c = x.shape[-1]
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,))
    running_var = self.variable("batch_stats", "var", jnp.ones, (c,))
    groups = self.groups if self.train else 1
    if x.shape[0] % groups:
      raise ValueError(f"{groups} groups do not divide {x.shape[0]} examples")
    flat = x.reshape(groups, x.shape[0] // groups, -1).astype(jnp.float32)
    places = flat.shape[2] // c
    spread = lambda v: jnp.tile(v, places)[..., None, :]  # [g c] or [c]

    def average(v):  # [g b/g places*c] -> [g c]
      return v.mean(axis=1).reshape(groups, places, c).mean(axis=1)

    if self.train:
      mean, square = average(flat), average(jnp.square(flat))
      if self.axis_name and not self.is_initializing():
        mean, square = jax.lax.pmean((mean, square), self.axis_name)
      var = jnp.maximum(square - jnp.square(mean), 0.0)
      if not self.is_initializing():
        move = lambda old, new: (
          self.momentum * old + (1 - self.momentum) * new.mean(axis=0)
        )
        running_mean.value = move(running_mean.value, mean)
        running_var.value = move(running_var.value, var)
    else:
      mean, var = running_mean.value, running_var.value
    scale = jax.lax.rsqrt(var + self.epsilon)
    if self.use_scale:
      scale = scale * self.param("scale", self.scale_init, (c,))
    y = (flat - spread(mean)) * spread(scale)
    if self.use_bias:
      y = y + spread(self.param("bias", nn.initializers.zeros_init(), (c,)))
    return y.reshape(x.shape).astype(self.dtype)
