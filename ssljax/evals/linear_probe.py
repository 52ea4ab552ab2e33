"""Linear probe: multinomial logistic regression on frozen features.

A grid of rates and decays is trained at once, as columns of one product, and
chosen on a held-out tenth of the training set; the chosen pair is then trained
on all of it. The test set is looked at once.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import errors
from ssljax.evals import knn

# For features of mean square norm one, whatever their dimension.
_RATES = (1.0, 4.0, 16.0)
_DECAYS = (0.0, 1e-6, 1e-5, 1e-4)
_EPOCHS = 30
_BATCH = 500
_MOMENTUM = 0.9


def linear_probe(
  train_x: np.ndarray,
  train_y: np.ndarray,
  test_x: np.ndarray,
  test_y: np.ndarray,
  *,
  num_classes: int,
  seed: int = 0,
) -> dict:
  """Returns `accuracy` and `held_out_accuracy` in [0, 1], `chosen`, `protocol`.

  SGD with momentum and a cosine over 30 epochs of batches of 500, on features
  standardised by the training set. Deterministic.

  Args:
    train_x: [n d] features.
    train_y: [n] int labels in [0, num_classes).
    test_x: [m d].
    test_y: [m].
    num_classes: number of labels.
    seed: of the held-out tenth and the order.

  Raises:
    UserError: fewer than 10 examples, or features that are not finite.
  """
  n = len(train_x)
  if n < 10:
    raise errors.UserError(f"a linear probe needs 10 examples, not {n}")
  knn.require_finite(train_x, test_x)
  train_x, test_x = _standardize(train_x, test_x)
  train_y, test_y = jnp.asarray(train_y), jnp.asarray(test_y)
  order = np.random.default_rng(seed).permutation(n)
  held, kept = order[: n // 10], order[n // 10 :]
  grid = np.array(list(itertools.product(_RATES, _DECAYS)), np.float32)
  key = jax.random.key(seed)
  fit = functools.partial(_fit, key, num_classes=num_classes)
  weights = fit(train_x[kept], train_y[kept], grid)
  scores = _accuracy(weights, train_x[held], train_y[held])
  best = int(np.argmax(scores))
  weights = fit(train_x, train_y, grid[best : best + 1])
  rate, decay = map(float, grid[best])
  return {
    "accuracy": float(_accuracy(weights, test_x, test_y)[0]),
    "held_out_accuracy": float(scores[best]),
    "chosen": {"rate": rate, "decay": decay},
    "protocol": (
      f"linear/1 sgd epochs={_EPOCHS} batch={_BATCH} "
      f"rates={_RATES} decays={_DECAYS} held_out=0.1"
    ),
  }


def _standardize(train_x, test_x):
  """Mean 0 and variance 1 / d by feature; constant features become zero."""
  mean, std = train_x.mean(0), train_x.std(0)
  scale = np.where(std > 1e-6, std, np.inf) * np.sqrt(train_x.shape[1])
  return (
    jnp.asarray((train_x - mean) / scale, jnp.float32),
    jnp.asarray((test_x - mean) / scale, jnp.float32),
  )


@functools.partial(jax.jit, static_argnames="num_classes")
def _fit(key, x, y, grid, *, num_classes):
  """Weights [g d+1 classes], the last row the bias, for grid [g 2]."""
  (n, d), g = x.shape, len(grid)
  batch = min(_BATCH, n)
  steps = n // batch
  rates, decays = grid[:, 0], grid[:, 1]

  def loss(weights, x, y):
    logits = jnp.einsum("bd,gdc->gbc", x, weights[:, :-1]) + weights[:, -1:]
    picked = jax.nn.log_softmax(logits)[:, jnp.arange(len(y)), y]
    penalty = 0.5 * decays * jnp.sum(weights[:, :-1] ** 2, axis=(1, 2))
    return jnp.sum(penalty - picked.mean(axis=1))  # each its own problem

  def step(carry, inputs):
    weights, velocity = carry
    place, t = inputs
    grads = jax.grad(loss)(weights, x[place], y[place])
    velocity = _MOMENTUM * velocity + grads
    rate = rates * 0.5 * (1 + jnp.cos(jnp.pi * t / (steps * _EPOCHS)))
    return (weights - rate[:, None, None] * velocity, velocity), None

  def epoch(carry, e):
    order = jax.random.permutation(jax.random.fold_in(key, e), n)
    places = order[: steps * batch].reshape(steps, batch)
    return jax.lax.scan(step, carry, (places, e * steps + jnp.arange(steps)))

  zeros = jnp.zeros((g, d + 1, num_classes))
  (weights, _), _ = jax.lax.scan(epoch, (zeros, zeros), jnp.arange(_EPOCHS))
  return weights


@jax.jit
def _accuracy(weights, x, y):
  """[g] accuracies."""
  logits = jnp.einsum("bd,gdc->gbc", x, weights[:, :-1]) + weights[:, -1:]
  return (logits.argmax(-1) == y).mean(axis=1)
