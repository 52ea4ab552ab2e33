"""Weighted nearest neighbours: Wu et al. 2018, arXiv:1805.01978.

As `knn_classifier` of facebookresearch/dino `eval_knn.py`: cosine similarity,
each of k neighbours votes for its label with weight exp(similarity /
temperature). The default temperature, 0.1, is that of Wu's script for CIFAR;
theirs for ImageNet has 0.07, as DINO's.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import errors
from ssljax import ops

K = 20  # neighbours

# Similarities or votes at a time, 240 MB: 1,000 test examples for 60,000 to
# learn from.
_BLOCK = 60_000_000


def knn(
  train_x: np.ndarray,
  train_y: np.ndarray,
  test_x: np.ndarray,
  test_y: np.ndarray,
  *,
  num_classes: int,
  k: int = K,
  temperature: float = 0.1,
) -> dict:
  """Returns `accuracy` in [0, 1] and `protocol`.

  Exact and deterministic: of equal similarities the lower index comes first, of
  equal votes the lower label.

  Args:
    train_x: [n d] features.
    train_y: [n] int labels in [0, num_classes).
    test_x: [m d].
    test_y: [m].
    num_classes: number of labels.
    k: number of neighbours.
    temperature: of the votes.

  Raises:
    UserError: fewer than k training examples, or what `check` finds.
  """
  if not 1 <= k <= len(train_x):
    raise errors.UserError(
      f"kNN with k={k}: give k in [1, {len(train_x)}], the training examples"
    )
  check(train_x, train_y, test_x, test_y, num_classes)
  block = max(1, _BLOCK // max(len(train_x), k * num_classes))
  block = min(block, len(test_x))
  train_x = _directions(jnp.asarray(train_x, jnp.float32))
  train_y = jnp.asarray(train_y)
  predicted = np.empty(len(test_x), np.int64)
  for start in range(0, len(test_x), block):
    # The last block begins earlier, so that one program serves all.
    start = min(start, len(test_x) - block)
    part = slice(start, start + block)
    predicted[part] = _predict(
      train_x,
      train_y,
      jnp.asarray(test_x[part], jnp.float32),
      num_classes=num_classes,
      k=k,
      temperature=temperature,
    )
  return {
    "accuracy": float(np.mean(predicted == np.asarray(test_y))),
    "protocol": f"knn/1 k={k} cosine temperature={temperature:g}",
  }


class NotFinite(errors.UserError):
  """Features that hold NaN or infinity."""


def check(train_x, train_y, test_x, test_y, num_classes: int) -> None:
  """Raises UserError where features or labels cannot be evaluated on."""
  for name, x, y in (
    ("training", train_x, train_y),
    ("test", test_x, test_y),
  ):
    dims = x.ndim, np.ndim(y)  # labels [n 1] would be compared with all
    fit = len(x) == len(y) > 0 and x.shape[1:] == train_x.shape[1:]
    if dims != (2, 1) or not fit:
      raise errors.UserError(
        f"{name} features {x.shape} do not fit labels {np.shape(y)} or "
        f"training features {train_x.shape}: give [n d] and [n]"
      )
    finite = np.isfinite(x).all(axis=1)
    if not finite.all():
      raise NotFinite(
        f"{name} features hold NaN or infinity in {(~finite).sum()} of "
        f"{len(x)} examples: the encoder has diverged (evaluate an earlier "
        "checkpoint by --step), or the data holds NaN"
      )
    check_labels(name, y, num_classes)


def check_labels(name: str, y: np.ndarray, num_classes: int) -> np.ndarray:
  """Returns labels [n]; raises UserError where some are not of the classes."""
  if np.min(y) < 0 or np.max(y) >= num_classes:
    raise errors.UserError(
      f"{name} labels are in [{np.min(y)}, {np.max(y)}], not in "
      f"[0, {num_classes}): give num_classes, and labelled examples alone"
    )
  return y


def _directions(x):
  """x / |x|, of tiny rows too: `l2_normalize` takes squares below 1e-12 for 0.

  By a power of two, which is exact.
  """
  _, exponent = jnp.frexp(jnp.abs(x).max(axis=1, keepdims=True))
  return ops.l2_normalize(jnp.ldexp(x, -exponent))


@functools.partial(jax.jit, static_argnames=("num_classes", "k", "temperature"))
def _predict(train_x, train_y, test_x, *, num_classes, k, temperature):
  # Accelerators multiply in fewer digits unless told; neighbours would change.
  with jax.default_matmul_precision("highest"):
    similarity = _directions(test_x) @ train_x.T
  nearest, places = jax.lax.top_k(similarity, k)
  # The largest is subtracted: exp(1 / temperature) may not be a float32. By a
  # maximum: XLA turns a top_k that is sliced into a full sort.
  largest = nearest.max(axis=1, keepdims=True)
  weights = jnp.exp((nearest - largest) / temperature)
  votes = jax.nn.one_hot(train_y[places], num_classes) * weights[..., None]
  return votes.sum(axis=1).argmax(axis=1)
