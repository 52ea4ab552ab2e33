"""Barlow Twins: self-supervised learning via redundancy reduction.

Zbontar et al. 2021, arXiv:2103.03230; the authors' code is
facebookresearch/barlowtwins `main.py`. The cross-correlation of the projections
of two views, over the batch, shall be the identity.
"""

from ssljax import core
from ssljax import losses
from ssljax.methods import joint_embedding


def make(
  encoder,
  *,
  features: tuple[int, ...] = (8192, 8192, 8192),
  off_diagonal: float = 0.0051,
  scale: float = 1.0,
) -> core.Method:
  """Returns Barlow Twins around a Flax encoder; batches carry `views`
  [b 2 h w c].

  Args:
    encoder: a module under the encoder contract.
    features: widths of the projector's layers.
    off_diagonal: weight of the redundancy, lambda.
    scale: of the loss; solo-learn takes 0.1, and the authors' gradients have
      one over the number of devices.
  """

  def loss(z1, z2):
    invariance, redundancy = losses.barlow_twins(z1, z2)
    metrics = {"invariance_loss": invariance, "redundancy_loss": redundancy}
    return scale * (invariance + off_diagonal * redundancy), metrics

  return joint_embedding.make(encoder, loss, features=features, out_bias=False)
