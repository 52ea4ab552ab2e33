"""DCL and DCLW: decoupled contrastive learning.

Yeh et al. 2021, arXiv:2110.06848, whose authors published no code; the
reference is raminnakhli/Decoupled-Contrastive-Learning `loss/dcl.py`. SimCLR
without the positive in the denominator, which makes small batches learn.
"""

from ssljax import core
from ssljax import losses
from ssljax.methods import joint_embedding


def make(
  encoder,
  *,
  temperature: float = 0.1,
  sigma: float | None = None,
  scale: float = 1.0,
  features: tuple[int | None, ...] = (None, 128),
) -> core.Method:
  """Returns DCL around a Flax encoder; batches carry `views` [b 2 h w c].

  Args:
    encoder: a module under the encoder contract.
    temperature: the cosines are divided by it.
    sigma: DCLW weighs positives by the von Mises-Fisher distribution of this
      width, the reference's is 0.5; None is DCL.
    scale: of the loss; 0.5 makes the sum of both directions their mean.
    features: widths of the projector's layers; None is the encoder's.
  """

  def loss(z1, z2):
    options = dict(temperature=temperature, sigma=sigma)
    # The reference adds both directions.
    total = losses.dcl(z1, z2, **options) + losses.dcl(z2, z1, **options)
    return scale * total, {"positive_similarity": losses.cosine(z1, z2).mean()}

  return joint_embedding.make(encoder, loss, features=features)
