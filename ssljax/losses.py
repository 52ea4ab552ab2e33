"""Losses as pure functions of features of the global batch, in float32.

Needs jax alone.
"""

import math

import jax
import jax.numpy as jnp

from ssljax import errors
from ssljax import ops


def ntxent(
  *views: jax.Array, temperature: float, blocks: int = 1
) -> jax.Array:
  """NT-Xent: each view must find its partners among all views of the batch.

  Chen et al. 2020 (SimCLR), equation 1 and algorithm 1: the mean over all 2N
  views, where the authors' `objective.py` adds the mean over the first views
  to the mean over the second, which is twice as much. Of more than two views
  the others of the image are partners, and the loss is their mean: equation 2
  of Khosla et al. 2020 (SupCon) where every image is its own class.

  Args:
    *views: two or more [n d], the projections of each view, in the same order;
      normalised here.
    temperature: the cosines are divided by it.
    blocks: parts in which the views look at all others, one after the other,
      so that [v n / blocks, v n] is the largest matrix, itself cut over the
      devices that a view is cut over. More than one computes it twice.

  Returns:
    The mean loss, a float32 scalar. Its value for features without information
    is about log(v n - 1).

  Raises:
    ValueError: one view alone, or `blocks` does not divide v n.
  """
  if len(views) < 2:
    raise ValueError("NT-Xent needs two or more views")
  views = [ops.l2_normalize(z.astype(jnp.float32)) for z in views]
  # The mean of the cosines with the partners is the cosine with their mean.
  partners = [
    sum(views[:i] + views[i + 1 :]) / (len(views) - 1)
    for i in range(len(views))
  ]
  z = jnp.concatenate(views)
  place = jnp.arange(len(z))

  def missed(rows):
    own, partner, i = rows
    logits = own @ z.T / temperature
    # A view is no candidate for itself. Masked, not subtracted: a finite offset
    # leaves a gradient at small temperatures.
    logits = jnp.where(i[:, None] == place, -jnp.inf, logits)
    right = jnp.sum(own * partner, axis=1) / temperature
    return jax.nn.logsumexp(logits, axis=1) - right

  rows = (z, jnp.concatenate(partners), place)
  return jnp.mean(ops.in_blocks(missed, rows, blocks))


def cosine(x: jax.Array, y: jax.Array) -> jax.Array:
  """The cosine of each row of [n d] with the other's: float32 [n]."""
  x, y = (ops.l2_normalize(v.astype(jnp.float32)) for v in (x, y))
  return jnp.sum(x * y, axis=-1)


def barlow_twins(z1: jax.Array, z2: jax.Array) -> tuple[jax.Array, jax.Array]:
  """How far the views' cross-correlation is from the identity.

  Zbontar et al. 2021, equations 1 and 2; facebookresearch/barlowtwins
  `main.py`, which standardises as batch norm does, by the biased variance +
  1e-5.

  Args:
    z1: [n d] projections of the first views.
    z2: [n d] of the second.

  Returns:
    (invariance, redundancy), float32 scalars: the sums over the diagonal of
    (1 - c)^2 and over the rest of c^2.
  """

  def standard(z):
    z = z.astype(jnp.float32)
    z = z - z.mean(axis=0)
    return z / jnp.sqrt(jnp.square(z).mean(axis=0) + 1e-5)

  c = standard(z1).T @ standard(z2) / len(z1)  # [d d]
  on = jnp.diagonal(c)
  return jnp.square(on - 1).sum(), jnp.square(_off_diagonal(c)).sum()


def vicreg(
  z1: jax.Array, z2: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The three terms of VICReg, not weighted.

  Bardes et al. 2021, equations 1 to 6; facebookresearch/vicreg
  `main_vicreg.py`, which halves the variance term, but not the covariance's.

  Args:
    z1: [n d] projections of the first views.
    z2: [n d] of the second.

  Returns:
    (invariance, variance, covariance), float32 scalars: the mean squared
    difference over n and d; the mean hinge of the standard deviations at 1; the
    squared covariances of different dimensions, summed, over d.
  """
  z1, z2 = z1.astype(jnp.float32), z2.astype(jnp.float32)
  n, d = z1.shape

  def spread(z):
    return jax.nn.relu(1 - jnp.sqrt(z.var(axis=0, ddof=1) + 1e-4)).mean()

  def crossed(z):
    z = z - z.mean(axis=0)
    return jnp.square(_off_diagonal(z.T @ z / (n - 1))).sum() / d

  return (
    jnp.square(z1 - z2).mean(),
    (spread(z1) + spread(z2)) / 2,
    crossed(z1) + crossed(z2),
  )


def _off_diagonal(x):
  """[d d] with zeros on the diagonal."""
  return jnp.where(jnp.eye(len(x), dtype=bool), 0.0, x)


def swapped_prediction(
  scores: jax.Array, codes: jax.Array, *, temperature: float
) -> jax.Array:
  """Each crop predicts the assignments of the others (SwAV, equation 2).

  Caron et al. 2020; facebookresearch/swav `main_swav.py`.

  Args:
    scores: [v n k], of all crops with the prototypes.
    codes: [a n k], the assignments of the first a crops, each row with sum 1;
      no gradient goes to them.
    temperature: the scores are divided by it.

  Returns:
    The cross-entropy, a float32 scalar: the mean over examples, over the v - 1
    other crops and over the a assignments.
  """
  views, n, _ = scores.shape
  log_p = jax.nn.log_softmax(scores.astype(jnp.float32) / temperature, axis=2)
  codes = jax.lax.stop_gradient(codes.astype(jnp.float32))
  # Cross-entropies of all pairs [a v], less those of a crop with itself.
  pairs = -jnp.einsum("ank,vnk->av", codes, log_p) / n
  others = pairs.sum() - jnp.trace(pairs)
  return others / ((views - 1) * len(codes))


def known_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """The mean cross-entropy where labels are known.

  Args:
    logits: [... k].
    labels: int32, to be broadcast to [...]; -1 is unknown.

  Returns:
    A float32 scalar, 0 where no label is known.
  """
  labels = jnp.broadcast_to(labels, logits.shape[:-1])
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  places = jnp.maximum(labels, 0)[..., None]
  picked = jnp.take_along_axis(log_p, places, axis=-1)[..., 0]
  known = labels >= 0
  return -jnp.sum(picked * known) / jnp.maximum(known.sum(), 1)


def infonce(
  query: jax.Array, key: jax.Array, *, temperature: float
) -> jax.Array:
  """InfoNCE within the batch: each query must find its key among all keys.

  van den Oord et al. 2018, equation 4, as `ctr` of Chen et al. 2021 (MoCo v3),
  algorithm 1, has it, without its factor of 2 * temperature.

  Args:
    query: [n d]; normalised here.
    key: [n d], in the same order; normalised here, no gradient goes to it.
    temperature: the cosines are divided by it.

  Returns:
    The mean loss, a float32 scalar.
  """
  query = ops.l2_normalize(query.astype(jnp.float32))
  key = ops.l2_normalize(jax.lax.stop_gradient(key).astype(jnp.float32))
  logits = query @ key.T / temperature  # [n n]
  return jnp.mean(jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits))


def infonce_queue(
  query: jax.Array, key: jax.Array, queue: jax.Array, *, temperature: float
) -> jax.Array:
  """InfoNCE against a queue: a query's own key among the queue's rows.

  He et al. 2019 (MoCo), equation 1 and algorithm 1.

  Args:
    query: [n d], normalised, as all three.
    key: [n d], in the same order; no gradient goes to it.
    queue: [k d], keys of earlier batches; no gradient goes to it.
    temperature: the cosines are divided by it.

  Returns:
    The mean loss, a float32 scalar; without information about log(k + 1).
  """
  query, key, queue = (
    x.astype(jnp.float32)
    for x in (query, jax.lax.stop_gradient(key), jax.lax.stop_gradient(queue))
  )
  positive = jnp.sum(query * key, axis=1, keepdims=True)  # [n 1]
  logits = jnp.concatenate([positive, query @ queue.T], axis=1) / temperature
  return jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[:, 0])


def masked_pixels(
  prediction: jax.Array, target: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The squared error on masked patches, as sums and counts by example.

  `forward_loss` of facebookresearch/mae `models_mae.py`; the loss is the sum of
  all sums over the sum of all counts.

  Args:
    prediction: [b n p].
    target: [b n p], pixels of each patch.
    mask: [b n], 1 where the patch was removed.

  Returns:
    (sums [b] float32 of each patch's mean over pixels, counts [b] int32).
  """
  error = jnp.square(prediction.astype(jnp.float32) - target).mean(axis=-1)
  return jnp.sum(error * mask, axis=1), mask.sum(axis=1, dtype=jnp.int32)


def normalize_pixels(patches: jax.Array) -> jax.Array:
  """Each patch [... p] by its own mean and unbiased variance: `norm_pix_loss`
  of facebookresearch/mae `models_mae.py`."""
  patches = patches.astype(jnp.float32)
  mean = patches.mean(axis=-1, keepdims=True)
  var = patches.var(axis=-1, keepdims=True, ddof=1)
  return (patches - mean) / jnp.sqrt(var + 1e-6)


def smooth_l1(
  prediction: jax.Array, target: jax.Array, *, beta: float
) -> jax.Array:
  """Smooth L1, element by element, in float32.

  As torch's: error**2 / (2 beta) where |error| < beta, |error| - beta / 2
  beyond. A beta of 0 is the squared error, as facebookresearch/fairseq
  `examples/data2vec` has it.

  Args:
    prediction: [...].
    target: [...].
    beta: where it turns.
  """
  error = jnp.abs(prediction.astype(jnp.float32) - target)
  if beta == 0:
    return jnp.square(error)
  small = 0.5 * jnp.square(error) / beta
  return jnp.where(error < beta, small, error - 0.5 * beta)


def token_cross_entropy(
  hidden: jax.Array,
  table: jax.Array,
  targets: jax.Array,
  *,
  bias: jax.Array | None = None,
  block: int = 1024,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Cross-entropy of tokens over a vocabulary, a block of tokens at a time.

  The logits of a block are computed again for its gradient, so that memory
  grows with block x vocabulary, not with tokens x vocabulary. A block has some
  tokens of each row, so that devices keep the rows that they have.

  Args:
    hidden: [... n d], rows of n tokens, in the dtype of the computation.
    table: [v d], a row for each word; cast to the dtype of `hidden`.
    targets: int32 [... n], in [0, v).
    bias: [v], added to the logits, or None.
    block: how many tokens at a time, at most, but for one of each row.

  Returns:
    (losses float32 [... n] in nats, whether each target had the largest logit
    bool [... n], logarithms of the partition function float32 [... n]).
  """
  *rows, n = targets.shape

  def of_block(hidden, targets):
    # Cast here, so that the table's gradients are summed in its own dtype.
    logits = (hidden @ table.astype(hidden.dtype).T).astype(jnp.float32)
    if bias is not None:
      logits += bias
    total = jax.nn.logsumexp(logits, axis=-1)
    target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return total - target, target >= logits.max(axis=-1), total

  most = max(1, block // math.prod(rows))  # tokens of a row
  if n <= most:
    return of_block(hidden, targets)
  blocks = -(-n // most)
  size = -(-n // blocks)  # the same for all, so that little is padded
  axis = len(rows)

  def split(x):
    """[... n *] -> [blocks ... size *]."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, blocks * size - n)
    x = jnp.pad(x, padding).reshape(*rows, blocks, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)

  out = jax.lax.map(
    lambda x: jax.checkpoint(of_block)(*x), (split(hidden), split(targets))
  )
  join = lambda x: jnp.moveaxis(x, 0, axis).reshape(*rows, -1)[..., :n]
  return jax.tree.map(join, out)


def soft_cross_entropy(
  logits: jax.Array, targets: jax.Array, *, temperature: float
) -> jax.Array:
  """Cross-entropy of distributions: [... k] and [... k] -> float32 [...].

  Args:
    logits: [... k], divided by the temperature.
    targets: [... k], which sum to 1; no gradient goes to them.
    temperature: of the logits.
  """
  logits = logits.astype(jnp.float32) / temperature
  targets = jax.lax.stop_gradient(targets)
  total = jax.nn.logsumexp(logits, axis=-1)
  return total - jnp.einsum("...k,...k->...", logits, targets)


def dino(
  logits: jax.Array, targets: jax.Array, *, temperature: float
) -> jax.Array:
  """DINO: each view predicts the teacher's distribution of every other view.

  Caron et al. 2021, equation 3; `DINOLoss` of facebookresearch/dino
  `main_dino.py`: the mean over the pairs of different views, and over examples.

  Args:
    logits: [n v k], the student's of v views.
    targets: [n t k], the teacher's distributions of the first t of them, as
      `softmax((logits - centre) / temperature)`; no gradient goes to them.
    temperature: of the student.

  Returns:
    The mean loss, a float32 scalar; without information about log(k).
  """
  logits = logits.astype(jnp.float32) / temperature
  targets = jax.lax.stop_gradient(targets)
  n, v, _ = logits.shape
  t = targets.shape[1]
  total = jax.nn.logsumexp(logits, axis=-1)  # [n v]
  found = jnp.einsum("nvk,ntk->nvt", logits, targets)
  other = ~jnp.eye(v, t, dtype=bool)
  pairs = jnp.where(other, total[:, :, None] - found, 0.0)
  return pairs.sum() / (n * (v * t - min(v, t)))


def koleo(z: jax.Array, *, eps: float = 1e-8) -> jax.Array:
  """KoLeo: spreads a batch, by the distance of each to its nearest neighbour.

  Sablayrolles et al. 2018; `KoLeoLoss` of facebookresearch/dinov2
  `loss/koleo_loss.py`: -mean(log(distance)) on the sphere.

  Args:
    z: [n d]; normalised here.
    eps: as the authors add it: to each difference, and to the distance.

  Returns:
    The mean, a float32 scalar.
  """
  z = ops.l2_normalize(z.astype(jnp.float32))
  cosines = jax.lax.stop_gradient(z @ z.T)
  cosines = jnp.where(jnp.eye(len(z), dtype=bool), -1.0, cosines)
  nearest = z[cosines.argmax(axis=1)]
  distance = jnp.sqrt(jnp.square(z - nearest + eps).sum(axis=1))
  return -jnp.log(distance + eps).mean()


def contrast(
  anchor: jax.Array, candidates: jax.Array, *, temperature: float
) -> jax.Array:
  """Each anchor must find its own among all candidates, which learn.

  Dwibedi et al. 2021 (NNCLR), equation 3: `infonce` with the gradient on the
  other side.

  Args:
    anchor: [n d]; normalised here.
    candidates: [n d], in the same order; normalised here.
    temperature: the cosines are divided by it.

  Returns:
    The mean loss, a float32 scalar.
  """
  anchor = ops.l2_normalize(anchor.astype(jnp.float32))
  candidates = ops.l2_normalize(candidates.astype(jnp.float32))
  logits = anchor @ candidates.T / temperature  # [n n]
  return jnp.mean(jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits))


def dcl(
  z1: jax.Array,
  z2: jax.Array,
  *,
  temperature: float,
  sigma: float | None = None,
) -> jax.Array:
  """The decoupled contrastive loss, of the first views alone.

  Yeh et al. 2021, equations 5 to 7: NT-Xent without the positive in the
  denominator. Of z1's own view and of the other, all examples but its own are
  negatives.

  Args:
    z1: [n d] projections of the first views; normalised here.
    z2: [n d] of the second.
    temperature: the cosines are divided by it.
    sigma: None, or DCLW: the positives are weighed by 2 - n softmax(cos /
      sigma), whose mean is 1. The gradient goes through the weights.

  Returns:
    The mean loss, a float32 scalar; it can be negative.

  Raises:
    UserError: one example alone, which has no negatives.
  """
  n = len(z1)
  if n < 2:
    raise errors.UserError("the decoupled loss needs a batch of 2 or more")
  z1, z2 = (ops.l2_normalize(z.astype(jnp.float32)) for z in (z1, z2))
  cross = z1 @ z2.T
  positive = jnp.diagonal(cross)
  weight = 1.0
  if sigma is not None:
    weight = 2 - n * jax.nn.softmax(positive / sigma)
  logits = jnp.concatenate([z1 @ z1.T, cross], axis=1) / temperature
  own = jnp.tile(jnp.eye(n, dtype=bool), (1, 2))
  negative = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), axis=1)
  return jnp.mean(negative - weight * positive / temperature)


def supcon(
  z: jax.Array,
  labels: jax.Array,
  *,
  temperature: float,
  base_temperature: float = 0.07,
) -> jax.Array:
  """SupCon: views of the same class must find each other among all views.

  Khosla et al. 2020, equation 2 (the sum over positives outside the logarithm),
  times temperature / base_temperature, as HobbitLong/SupContrast `losses.py`.

  Args:
    z: [n v d] projections; normalised here.
    labels: int [n]; a negative one is unknown, and of a class of its own.
    temperature: the cosines are divided by it.
    base_temperature: for the scale.

  Returns:
    The mean loss, a float32 scalar. Views without a positive count as zero.
  """
  n, v, d = z.shape
  z = ops.l2_normalize(z.astype(jnp.float32)).reshape(n * v, d)
  classes = jnp.where(labels < 0, -1 - jnp.arange(n), labels)
  classes = jnp.repeat(classes, v)
  own = jnp.eye(n * v, dtype=bool)
  positives = (classes[:, None] == classes) & ~own
  logits = z @ z.T / temperature  # [n*v n*v]
  total = jax.nn.logsumexp(
    jnp.where(own, -jnp.inf, logits), axis=1, keepdims=True
  )
  log_prob = jnp.where(positives, logits - total, 0.0).sum(axis=1)
  mean = log_prob / jnp.maximum(positives.sum(axis=1), 1)
  return -temperature / base_temperature * mean.mean()


def sigreg(
  z: jax.Array, directions: jax.Array, *, knots: int = 17, t_max: float = 3.0
) -> jax.Array:
  """How far z is from a standard Gaussian along some directions.

  Balestriero and LeCun 2025 (LeJEPA), the sketched isotropic Gaussian
  regularisation: the statistic of Epps and Pulley (1983), n times the squared
  distance of the empirical characteristic function and the normal one,
  integrated with the normal one as weight; by trapezoids on [0, t_max], twice,
  for the integrand is even.

  Args:
    z: [n d].
    directions: [d k], unit columns.
    knots: of the integral.
    t_max: its end.

  Returns:
    The mean over directions, a float32 scalar; of the order of 1 for a
    Gaussian, and growing with n for anything else.
  """
  n = len(z)
  t = jnp.linspace(0.0, t_max, knots, dtype=jnp.float32)
  normal = jnp.exp(-jnp.square(t) / 2)
  width = jnp.full_like(t, 2 * t_max / (knots - 1)).at[jnp.array([0, -1])]
  weights = normal * width.multiply(0.5)
  angles = (z.astype(jnp.float32) @ directions)[..., None] * t  # [n k knots]
  real, imaginary = jnp.cos(angles).mean(axis=0), jnp.sin(angles).mean(axis=0)
  error = jnp.square(real - normal) + jnp.square(imaginary)  # [k knots]
  return n * (error @ weights).mean()
