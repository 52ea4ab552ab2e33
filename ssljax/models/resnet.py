"""ResNets: He et al. 2015, arXiv:1512.03385, as torchvision has them (v1.5).

Parameter counts and padding are torchvision's, so that its weights give the
same numbers. `stem="cifar"` is the 3 x 3 stem without pooling that SimCLR and
the CIFAR literature use for small images.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from ssljax import errors

_STAGES = {
  "18": (2, 2, 2, 2),
  "34": (3, 4, 6, 3),
  "50": (3, 4, 6, 3),
  "101": (3, 4, 23, 3),
}
_BOTTLENECK = ("50", "101")


def make(*, variant: str, **options) -> "ResNet":
  """Returns the ResNet `variant`: 18, 34, 50 or 101.

  Raises:
    UserError: another variant.
  """
  if variant not in _STAGES:
    raise errors.UserError(
      f"unknown resnet variant {variant!r}: choose among {', '.join(_STAGES)}"
    )
  return ResNet(variant=variant, **options)


class ResNet(nn.Module):
  """A ResNet without classifier, under the encoder contract.

  Attributes:
    variant: 18, 34, 50 or 101.
    width: channels of the first stage; 64 is the paper's.
    stem: "imagenet" (7 x 7 of stride 2, max pool) or "cifar" (3 x 3).
    zero_init_residual: the last norm of each block starts at zero (Goyal et al.
      2017), as SimCLR's authors have it.
    dtype: of the computation; statistics are float32.
    axis_name: see the package.
  """

  variant: str = "50"
  width: int = 64
  stem: str = "imagenet"
  zero_init_residual: bool = False
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
    conv = functools.partial(
      nn.Conv,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    )
    norm = functools.partial(
      nn.BatchNorm,
      use_running_average=not train,
      momentum=0.9,
      epsilon=1e-5,
      dtype=self.dtype,
      axis_name=self.axis_name,
    )
    block = _bottleneck if self.variant in _BOTTLENECK else _basic
    last_scale = nn.initializers.constant(0.0 if self.zero_init_residual else 1.0)

    x = x.astype(self.dtype)
    if self.stem == "imagenet":
      x = conv(self.width, (7, 7), (2, 2), 3, name="conv1")(x)
      x = nn.relu(norm(name="bn1")(x))
      x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    elif self.stem == "cifar":
      x = conv(self.width, (3, 3), (1, 1), 1, name="conv1")(x)
      x = nn.relu(norm(name="bn1")(x))
    else:
      raise errors.UserError(f"unknown stem {self.stem!r}: imagenet or cifar")

    stages = []
    for i, count in enumerate(_STAGES[self.variant]):
      for j in range(count):
        x = block(
          x,
          self.width * 2**i,
          stride=2 if i and not j else 1,
          conv=conv,
          norm=norm,
          last_scale=last_scale,
          name=f"layer{i + 1}_{j}",
        )
      stages.append(x)
    tokens = _tokens(x)
    return {
      "pooled": tokens.mean(axis=1),
      "tokens": tokens,
      "layers": tuple(_tokens(stages[i]) for i in layers),
    }


def _tokens(x):
  """[b h w d] -> [b h*w d] in float32."""
  return x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.float32)


def _basic(x, width, *, stride, conv, norm, last_scale, name):
  """Two 3 x 3 convolutions."""
  y = conv(width, (3, 3), (stride, stride), 1, name=f"{name}_conv1")(x)
  y = nn.relu(norm(name=f"{name}_bn1")(y))
  y = conv(width, (3, 3), (1, 1), 1, name=f"{name}_conv2")(y)
  y = norm(name=f"{name}_bn2", scale_init=last_scale)(y)
  return nn.relu(_shortcut(x, y, stride, conv, norm, name) + y)


def _bottleneck(x, width, *, stride, conv, norm, last_scale, name):
  """1 x 1, 3 x 3 with the stride, 1 x 1 to four times the width."""
  y = conv(width, (1, 1), (1, 1), 0, name=f"{name}_conv1")(x)
  y = nn.relu(norm(name=f"{name}_bn1")(y))
  y = conv(width, (3, 3), (stride, stride), 1, name=f"{name}_conv2")(y)
  y = nn.relu(norm(name=f"{name}_bn2")(y))
  y = conv(4 * width, (1, 1), (1, 1), 0, name=f"{name}_conv3")(y)
  y = norm(name=f"{name}_bn3", scale_init=last_scale)(y)
  return nn.relu(_shortcut(x, y, stride, conv, norm, name) + y)


def _shortcut(x, y, stride, conv, norm, name):
  if x.shape == y.shape:
    return x
  # The pixels that the stride keeps, then a product: on the CPU twice as fast,
  # backward included, as a strided 1 x 1 convolution.
  x = x[:, ::stride, ::stride]
  x = conv(y.shape[-1], (1, 1), (1, 1), 0, name=f"{name}_downsample")(x)
  return norm(name=f"{name}_downsample_bn")(x)
