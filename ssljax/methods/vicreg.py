"""VICReg: variance-invariance-covariance regularization.

Bardes et al. 2021, arXiv:2105.04906; the authors' code is
facebookresearch/vicreg `main_vicreg.py`. The projections of two views shall be
near each other, spread in each dimension, and not correlated between
dimensions.
"""

from ssljax import core
from ssljax import losses
from ssljax.methods import joint_embedding


def make(
  encoder,
  *,
  features: tuple[int, ...] = (8192, 8192, 8192),
  invariance: float = 25.0,
  variance: float = 25.0,
  covariance: float = 1.0,
) -> core.Method:
  """Returns VICReg around a Flax encoder; batches carry `views` [b 2 h w c].

  Args:
    encoder: a module under the encoder contract.
    features: widths of the expander's layers.
    invariance: weight of the distance of the views, lambda.
    variance: weight of the spread, mu.
    covariance: weight of the covariances, nu.
  """

  def loss(z1, z2):
    near, spread, crossed = losses.vicreg(z1, z2)
    metrics = {
      "invariance_loss": near,
      "variance_loss": spread,
      "covariance_loss": crossed,
    }
    total = invariance * near + variance * spread + covariance * crossed
    return total, metrics

  return joint_embedding.make(encoder, loss, features=features, out_bias=False)
