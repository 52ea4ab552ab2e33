"""Weighted nearest neighbours: Wu et al. 2018, arXiv:1805.01978.

As facebookresearch/dino `eval_knn.py`: cosine similarity, each of k neighbours
votes for its label with weight exp(similarity / temperature).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import errors
from ssljax import ops

# Rows of the test set at a time: 1,000 x 60,000 similarities are 240 MB.
_BLOCK = 1000


def knn(
  train_x: np.ndarray,
  train_y: np.ndarray,
  test_x: np.ndarray,
  test_y: np.ndarray,
  *,
  num_classes: int,
  k: int = 20,
  temperature: float = 0.1,
) -> dict:
  """Returns `accuracy` in [0, 1] and `protocol`.

  Exact and deterministic; of equal similarities the lower index comes first.

  Args:
    train_x: [n d] features.
    train_y: [n] int labels in [0, num_classes).
    test_x: [m d].
    test_y: [m].
    num_classes: number of labels.
    k: number of neighbours.
    temperature: of the votes.

  Raises:
    UserError: fewer than k training examples, or features that are not finite.
  """
  if len(train_x) < k:
    raise errors.UserError(
      f"kNN with k={k} needs as many training examples, not {len(train_x)}"
    )
  require_finite(train_x, test_x)
  block = min(_BLOCK, len(test_x))
  train_x = ops.l2_normalize(jnp.asarray(train_x, jnp.float32))
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


def require_finite(*features) -> None:
  """Raises UserError where features are NaN or infinite."""
  if not all(np.isfinite(x).all() for x in features):
    raise errors.UserError(
      "the features are not finite: the encoder has diverged, or the data "
      "holds NaN; evaluate an earlier checkpoint by --step"
    )


@functools.partial(
  jax.jit, static_argnames=("num_classes", "k", "temperature")
)
def _predict(train_x, train_y, test_x, *, num_classes, k, temperature):
  similarity = ops.l2_normalize(test_x) @ train_x.T
  nearest, places = jax.lax.top_k(similarity, k)
  # The largest is subtracted: exp(1 / temperature) may not be a float32. By a
  # maximum: XLA turns a top_k that is sliced into a full sort.
  largest = nearest.max(axis=1, keepdims=True)
  weights = jnp.exp((nearest - largest) / temperature)
  votes = jax.nn.one_hot(train_y[places], num_classes) * weights[..., None]
  return votes.sum(axis=1).argmax(axis=1)
