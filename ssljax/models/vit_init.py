"""How the weights of a ViT start: by method, as its authors have it."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import numpy as np

from ssljax import errors

normal = nn.initializers.normal(0.02)
_almost_zero = nn.initializers.normal(1e-6)
_xavier = nn.initializers.xavier_uniform()
# As torch's `Linear` starts: uniform within 1 / sqrt(fan in).
TORCH = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# Normal with deviation 0.02, drawn again where it is beyond that.
_cut = nn.initializers.truncated_normal(0.02, lower=-1.0, upper=1.0)


class Init(NamedTuple):
  """Initialisers of a ViT's parts.

  Attributes:
    patch: of the patch embedding.
    qkv: of query, key and value, [d 3d].
    layer: of the blocks' other matrices.
    class_token: of it.
    registers: of them.
    mask_token: of it.
    positions: of learned ones.
    by_depth: the last matrix of each branch of block i, counted from 1, is
      divided by sqrt(2 i).
  """

  patch: Callable = _xavier
  qkv: Callable = _xavier
  layer: Callable = _xavier
  class_token: Callable = normal
  registers: Callable = normal
  mask_token: Callable = normal
  positions: Callable = normal
  by_depth: bool = False

  def last(self, block: int) -> Callable:
    """Of the last matrix of a branch of `block`, counted from 0."""
    if not self.by_depth:
      return self.layer
    scale = 1 / np.sqrt(2 * (block + 1))
    return lambda *args: scale * self.layer(*args)


_zeros = nn.initializers.zeros
_DINO = Init(patch=TORCH, qkv=normal, layer=normal, mask_token=_zeros)
_INITS = {
  "mae": Init(),
  # Xavier's rule for [d d] is LeCun's for what [d 3d] has as fan in.
  "mocov3": Init(qkv=nn.initializers.lecun_uniform(), class_token=_almost_zero),
  "dino": _DINO,
  "dinov2": _DINO._replace(class_token=_almost_zero, registers=_almost_zero),
  "ijepa": Init(patch=normal, qkv=normal, layer=normal),
  "beit": Init(*7 * (_cut,), by_depth=True),
}


def get(name: str) -> Init:
  """Returns the initialisers `name`.

  "mae": Xavier's rule (facebookresearch/mae `models_mae.py`); "mocov3": query,
  key and value by that rule each by itself, class token close to zero
  (facebookresearch/moco-v3 `vits.py`); "dino": blocks normal with deviation
  0.02, mask token zero (facebookresearch/dino `vision_transformer.py`);
  "dinov2": class token and registers close to zero as well; "ijepa": all normal
  with deviation 0.02 (facebookresearch/ijepa `src/helper.py`, which draws again
  what `src/models/vision_transformer.py` had scaled by depth); "beit": cut at
  one deviation and scaled by depth (BEiT, microsoft/SimMIM `models/simmim.py`
  and facebookresearch/data2vec_vision `beit/modeling_cyclical.py`).

  Raises:
    UserError: there is none of that name.
  """
  if name not in _INITS:
    raise errors.UserError(
      f"unknown weight_init {name!r}: {', '.join(_INITS)}"
    )
  return _INITS[name]
