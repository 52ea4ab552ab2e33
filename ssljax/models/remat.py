"""What a block keeps for the way back, by name; the rest is computed again."""

import jax
from flax import linen as nn

from ssljax import errors


def _products(primitive, *args, **params):
  dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  convolution = primitive.name == "conv_general_dilated"
  return convolution or dots(primitive, *args, **params)


# "full" keeps a block's input alone, "dots" also what its dense layers and
# convolutions give, so that attention, norms and activations are done twice.
POLICIES = {"full": None, "dots": _products}


def wrap(block: type[nn.Module], name: str, *, scan: bool = False):
  """The block, rematerialised.

  Args:
    block: a Flax module.
    name: "none" or one of `POLICIES`.
    scan: whether it runs in a scan, which XLA cannot undo.

  Raises:
    UserError: another name.
  """
  if name == "none":
    return block
  if name not in POLICIES:
    known = ", ".join(["none", *POLICIES])
    raise errors.UserError(f"unknown encoder.remat={name!r}: choose {known}")
  return nn.remat(block, prevent_cse=not scan, policy=POLICIES[name])
