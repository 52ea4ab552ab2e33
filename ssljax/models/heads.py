"""Projection and prediction heads."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from ssljax import ops
from ssljax.models import norm as norms
from ssljax.models import text
from ssljax.models import vit
from ssljax.models import vit_init

TORCH = vit_init.TORCH


class MLP(nn.Module):
  """Dense layers with ReLU between, each followed by batch norm if asked.

  A Dense that batch norm follows has no bias. So written, with the authors'
  code for a ResNet-50:
    SimCLR v1, v2: (None, 128), (None, None, 128); out_norm "batch_no_offset"
    MoCo v2: (None, 128); hidden_norm False
    MoCo v3: (4096, 256) or (4096, 4096, 256); out_norm "batch_no_affine"
    BYOL: (4096, 256); out_bias False
    SimSiam: (None, None, 2048), out_norm "batch_no_affine"; predictor (512,
      2048)
    Barlow Twins, VICReg: (8192, 8192, 8192); out_bias False

  Attributes:
    features: widths of the layers; None is the width of the input.
    hidden_norm: batch norm before each ReLU.
    out_norm: after the last layer: None, "batch", "batch_no_offset" (scale
      alone) or "batch_no_affine".
    out_bias: a bias on the last layer, where no norm follows.
    kernel_init: of all layers; SimCLR's authors have normal(0.01), those who
      use torch `TORCH`.
    dtype: of the computation.
    axis_name: the mapped axis of batch norm's statistics, as in encoders.
  """

  features: tuple[int | None, ...]
  hidden_norm: bool = True
  out_norm: str | None = None
  out_bias: bool = True
  kernel_init: Callable = nn.initializers.lecun_normal()
  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x, *, train: bool):
    """[b d] -> [b features[-1]] in float32."""
    known = (None, "batch", "batch_no_offset", "batch_no_affine")
    if self.out_norm not in known:
      raise ValueError(f"out_norm={self.out_norm!r} is none of {known}")
    widths = [x.shape[-1] if w is None else w for w in self.features]

    def norm(i, **options):
      return norms.BatchNorm(
        train=train,
        dtype=self.dtype,
        axis_name=self.axis_name,
        name=f"bn{i}",
        **options,
      )

    def dense(i, bias):
      return nn.Dense(
        widths[i],
        use_bias=bias,
        dtype=self.dtype,
        kernel_init=self.kernel_init,
        name=f"dense{i}",
      )

    for i in range(len(widths) - 1):
      x = dense(i, not self.hidden_norm)(x)
      x = nn.relu(norm(i)(x) if self.hidden_norm else x)
    last = len(widths) - 1
    x = dense(last, self.out_bias and self.out_norm is None)(x)
    if self.out_norm:
      x = norm(
        last,
        use_bias=self.out_norm == "batch",
        use_scale=self.out_norm != "batch_no_affine",
      )(x)
    return x.astype(jnp.float32)


class Regression(nn.Module):
  """data2vec's: [... d] -> [... d] in float32, GELU between dense layers.

  Attributes:
    layers: all but the last are of width 2 d.
    dtype: of the computation.
  """

  layers: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    d, x = x.shape[-1], x.astype(self.dtype)
    dense = lambda width, i: vit.dense(
      width, self.dtype, f"dense{i}", kernel_init=text.normal
    )
    last = self.layers - 1
    for i in range(last):
      x = vit.gelu(dense(2 * d, i)(x), "exact")
    return dense(d, last)(x).astype(jnp.float32)


class Bottleneck(nn.Module):
  """The head of DINO without its prototypes: [... d] -> [... out_dim].

  Dense layers with GELU between, then to length 1. `DINOHead` of
  facebookresearch/dino `vision_transformer.py`, which multiplies what comes out
  with prototypes of length 1.

  Attributes:
    layers: number of dense layers.
    hidden_dim: width of all but the last.
    out_dim: width of the last.
    norm: batch norm before each GELU.
    std: deviation of the kernels' start. The authors' is about
      1 / sqrt(hidden_dim), which keeps the scale from layer to layer; in heads
      much narrower than theirs it lets the biases rule.
    dtype: of the computation.
    axis_name: the mapped axis of batch norm's statistics, as in encoders.
  """

  layers: int = 3
  hidden_dim: int = 2048
  out_dim: int = 256
  norm: bool = False
  std: float = 0.02
  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x, *, train: bool):
    shape = x.shape
    x = x.reshape(-1, shape[-1]).astype(self.dtype)
    last = self.layers - 1
    init = nn.initializers.normal(self.std)
    dense = lambda width, i: vit.dense(
      width, self.dtype, f"dense{i}", kernel_init=init
    )
    for i in range(last):
      x = dense(self.hidden_dim, i)(x)
      if self.norm:
        x = norms.BatchNorm(
          train=train,
          dtype=self.dtype,
          axis_name=self.axis_name,
          name=f"bn{i}",
        )(x)
      x = vit.gelu(x, "exact")
    x = dense(self.out_dim, last)(x).astype(jnp.float32)
    return ops.l2_normalize(x, eps=1e-24).reshape(*shape[:-1], -1)
