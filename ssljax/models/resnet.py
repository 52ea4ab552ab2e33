"""ResNets: He et al. 2015, arXiv:1512.03385, as torchvision has them (v1.5).

Parameter counts, padding and the place of the strides are torchvision's, so
that its weights give the same numbers. `stem="cifar"` is the 3 x 3 stem without
pooling that SimCLR and the CIFAR literature use for small images. Convolutions
start as He et al. (normal, fan out), as torchvision's do.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from ssljax import errors
from ssljax.models import norm as norms
from ssljax.models import remat
from ssljax.models import vit_init

_STAGES = {
  "6": (1, 1),
  "10": (1, 1, 1, 1),
  "18": (2, 2, 2, 2),
  "34": (3, 4, 6, 3),
  "50": (3, 4, 6, 3),
  "101": (3, 4, 23, 3),
}
_BOTTLENECK = ("50", "101")
# Side, stride and padding of the first convolution.
_STEMS = {
  "imagenet": (7, 2, 3),
  "cifar": (3, 1, 1),
  "cifar_pad2": (3, 1, 2),
  "small": (3, 2, 1),
}


def make(*, variant: str, **options) -> "ResNet":
  """Returns the ResNet `variant`: 6, 10, 18, 34, 50 or 101.

  Raises:
    UserError: another variant, or an option that is not a field.
  """
  variant = str(variant)
  if variant not in _STAGES:
    raise errors.UserError(
      f"unknown resnet variant {variant!r}: choose among {', '.join(_STAGES)}"
    )
  errors.refuse_fields("resnet", options, ResNet)
  return ResNet(variant=variant, **options)


class ResNet(nn.Module):
  """A ResNet without classifier, under the encoder contract.

  "tokens" is the last feature map [b h*w d], "pooled" its mean, "layers" the
  outputs of the stages asked for, 0 to 3, flattened alike. The running variance
  is a mean of biased variances, as Flax has it; torch's are unbiased.

  Attributes:
    variant: 18, 34, 50 or 101; 10 has one block a stage, 6 has two stages of
      one block, for tiny images.
    width: channels of the first stage; 64 is the paper's.
    stem: "imagenet" (7 x 7 of stride 2, max pool), "cifar" (3 x 3),
      "cifar_pad2" (solo-learn's: padded by 2, a map that is 2 wider, begun as
      torch's are) or "small" (3 x 3 of stride 2, a quarter of "cifar"'s work).
    zero_init_residual: the last norm of each block starts at zero (Goyal et al.
      2017, arXiv:1706.02677), as SimCLR's authors have it.
    norm: "batch", or "layer" over pixels and channels of an image, with a scale
      and an offset for each channel, where images must not meet (CPC).
    bn_groups: statistics of so many parts of the batch apart; see `norm.py`.
    bn_strided: whether these parts are strided.
    remat: what blocks keep for the way back, a name of `remat.py`.
    dtype: of the computation; statistics are float32.
    axis_name: see the package.
  """

  variant: str = "50"
  width: int = 64
  stem: str = "imagenet"
  zero_init_residual: bool = False
  norm: str = "batch"
  bn_groups: int = 1
  bn_strided: bool = False
  remat: str = "none"
  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(
    self,
    x,
    *,
    train: bool,
    keep=None,
    mask=None,
    attention_mask=None,
    layers=(),
    key=None,
  ):
    del key  # nothing here is random
    if not (keep is None and mask is None and attention_mask is None):
      raise ValueError("a ResNet takes no keep, mask or attention_mask")
    last = len(_STAGES[self.variant]) - 1
    if not all(0 <= i <= last for i in layers):
      raise ValueError(f"layers={layers}: a ResNet has the stages 0 to {last}")
    conv = functools.partial(
      nn.Conv,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    )
    norm = self._norm(train)
    kind = Bottleneck if self.variant in _BOTTLENECK else Basic
    block = functools.partial(
      remat.wrap(kind, self.remat),
      conv=conv,
      norm=norm,
      last_scale=0.0 if self.zero_init_residual else 1.0,
    )
    x = self._stem(x.astype(self.dtype), conv, norm)
    stages = []
    for i, count in enumerate(_STAGES[self.variant]):
      for j in range(count):
        stride = 2 if i and not j else 1
        name = f"layer{i + 1}_{j}"
        x = block(width=self.width * 2**i, stride=stride, name=name)(x)
      stages.append(x)
    tokens = _tokens(x)
    return {
      "pooled": tokens.mean(axis=1),
      "tokens": tokens,
      "layers": tuple(_tokens(stages[i]) for i in layers),
    }

  def _norm(self, train):
    if self.norm not in ("batch", "layer"):
      raise errors.UserError(f"unknown norm {self.norm!r}: batch or layer")
    if self.norm == "layer":
      return functools.partial(
        nn.GroupNorm, num_groups=1, epsilon=1e-5, dtype=self.dtype
      )
    return functools.partial(
      norms.BatchNorm,
      train=train,
      groups=self.bn_groups,
      strided=self.bn_strided,
      dtype=self.dtype,
      axis_name=self.axis_name,
    )

  def _stem(self, x, conv, norm):
    if self.stem not in _STEMS:
      raise errors.UserError(
        f"unknown stem {self.stem!r}: choose among {', '.join(_STEMS)}"
      )
    side, stride, padding = _STEMS[self.stem]
    # solo-learn makes it anew after torchvision has drawn the others.
    start = {"kernel_init": vit_init.TORCH} if self.stem == "cifar_pad2" else {}
    x = conv(
      self.width,
      (side, side),
      strides=stride,
      padding=padding,
      name="conv1",
      **start,
    )(x)
    x = nn.relu(norm(name="bn1")(x))
    if self.stem == "imagenet":
      x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    return x


def _tokens(x):
  """[b h w d] -> [b h*w d] in float32."""
  return x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.float32)


class Basic(nn.Module):
  """Two 3 x 3 convolutions, [b h w c] -> [b h/stride w/stride width]."""

  width: int
  stride: int
  conv: Callable
  norm: Callable
  last_scale: float

  @nn.compact
  def __call__(self, x):
    y = self.conv(
      self.width, (3, 3), strides=self.stride, padding=1, name="conv1"
    )(x)
    y = nn.relu(self.norm(name="bn1")(y))
    y = self.conv(self.width, (3, 3), padding=1, name="conv2")(y)
    y = self.norm(name="bn2", scale_init=_constant(self.last_scale))(y)
    return nn.relu(_shortcut(self, x, y) + y)


class Bottleneck(nn.Module):
  """1 x 1, 3 x 3 with the stride, 1 x 1 to four times the width."""

  width: int
  stride: int
  conv: Callable
  norm: Callable
  last_scale: float

  @nn.compact
  def __call__(self, x):
    y = self.conv(self.width, (1, 1), padding=0, name="conv1")(x)
    y = nn.relu(self.norm(name="bn1")(y))
    y = self.conv(
      self.width, (3, 3), strides=self.stride, padding=1, name="conv2"
    )(y)
    y = nn.relu(self.norm(name="bn2")(y))
    y = self.conv(4 * self.width, (1, 1), padding=0, name="conv3")(y)
    y = self.norm(name="bn3", scale_init=_constant(self.last_scale))(y)
    return nn.relu(_shortcut(self, x, y) + y)


def _shortcut(block, x, y):
  """The input, projected where its shape is not the output's."""
  if x.shape == y.shape:
    return x
  # The pixels that the stride keeps, then a product, which is the strided
  # 1 x 1 convolution and on a CPU faster.
  x = x[:, :: block.stride, :: block.stride]
  x = block.conv(y.shape[-1], (1, 1), padding=0, name="downsample")(x)
  return block.norm(name="downsample_bn")(x)


_constant = nn.initializers.constant
