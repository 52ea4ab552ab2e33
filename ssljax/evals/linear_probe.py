"""Linear probe: multinomial logistic regression on frozen features.

A grid of rates and decays is trained at once, as columns of one product, and
chosen on a held-out tenth of the training set; the chosen pair is then trained
on all of it. The test set is looked at once.

Encoders differ in how correlated their features are by many orders, and plain
SGD then measures its own patience. So it takes its steps along the principal
axes of the standardised features, each divided by a bound of its curvature
(Boehning 1992: half of the variance, and the decay). What is minimised is
unchanged: mean cross-entropy + decay / 2 |w|^2, the bias without decay.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import errors
from ssljax.evals import knn

# Of the bound of the curvature: 1 is safe for a gradient without noise.
_RATES = (0.1, 0.3)
# From strong to weak: of equals on the held-out tenth the strongest is chosen.
_DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 0.0)
_EPOCHS = 15
_MIN_STEPS = 1000  # where epochs are short
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

  SGD with momentum and a cosine over 15 epochs of batches of 500, or as many as
  make 1,000 steps. Deterministic on one machine.

  Args:
    train_x: [n d] features.
    train_y: [n] int labels in [0, num_classes).
    test_x: [m d].
    test_y: [m].
    num_classes: number of labels.
    seed: of the held-out tenth and the order.

  Raises:
    UserError: fewer than 10 examples, or what `knn.check` finds.
  """
  n = len(train_x)
  if n < 10:
    raise errors.UserError(f"a linear probe needs 10 examples, not {n}")
  knn.check(train_x, train_y, test_x, test_y, num_classes)
  mean, scale = _standardization(train_x)
  x, variance, axes = _principal((train_x - mean) / scale)
  x, y = jnp.asarray(x), jnp.asarray(train_y)
  order = np.random.default_rng(seed).permutation(n).astype(np.int32)
  held, kept = order[: n // 10], order[n // 10 :]
  pairs = list(itertools.product(_DECAYS, _RATES))
  grid = np.array(pairs, np.float32)
  fit = functools.partial(
    _fit, jax.random.key(seed), x, y, variance, num_classes=num_classes
  )
  scores = _accuracies(fit(kept, grid), x[held], y[held])
  best = int(np.argmax(scores))
  weights = fit(order, grid[best : best + 1])
  test_x = ((test_x - mean) / scale) @ axes
  decay, rate = pairs[best]
  return {
    "accuracy": float(_accuracies(weights, test_x, test_y)[0]),
    "held_out_accuracy": float(scores[best]),
    "chosen": {"rate": rate, "decay": decay},
    "protocol": (
      f"linear/1 sgd on principal axes epochs={_EPOCHS} batch={_BATCH} "
      f"rates={_RATES} decays={_DECAYS} held_out=0.1"
    ),
  }


def _standardization(x):
  """The mean and the scale of each feature; of constant ones it is infinite.

  Summed in float64: in float32 the mean of 60,000 equal numbers is another.
  """
  mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
  std = np.sqrt(np.mean(np.square(x - mean), axis=0, dtype=np.float64))
  scale = np.where(std > 1e-6 * np.abs(mean), std, np.inf)
  return mean, scale.astype(np.float32)


def _principal(x):
  """x on its principal axes [n r], their variances [r], and the axes [d r].

  r is the smaller of n and d: with decay, weights stay in the examples' span.
  """
  n, d = x.shape
  gram = (x.T @ x if d <= n else x @ x.T) / np.float32(n)
  variance, axes = np.linalg.eigh(gram.astype(np.float64))
  known = variance > 1e-7 * variance[-1]  # the rest is rounding
  variance = np.where(known, variance, 0.0)
  if d > n:
    length = np.where(known, np.sqrt(n * variance), np.inf)
    axes = (x.T @ axes.astype(np.float32)) / length
  axes = axes.astype(np.float32)
  return x @ axes, variance.astype(np.float32), axes


@functools.partial(jax.jit, static_argnames="num_classes")
def _fit(key, x, y, variance, rows, grid, *, num_classes):
  """Weights [r+1 g classes], the last row the bias, for grid [g 2]; learns from
  the examples `rows`."""
  d, g, n = x.shape[1], len(grid), len(rows)
  batch = min(_BATCH, n)
  steps = n // batch
  epochs = max(_EPOCHS, -(-_MIN_STEPS // steps))
  rates = grid[:, 1:]
  decay = jnp.where(jnp.arange(d + 1)[:, None] < d, grid[:, 0], 0.0)[..., None]
  # 1e-5 bounds the step where there is neither variance nor decay.
  curvature = 0.5 * jnp.append(variance, 1.0)[:, None, None] + decay + 1e-5

  def step(carry, inputs):
    weights, velocity = carry
    places, t = inputs
    batch_x = jnp.pad(x[places], ((0, 0), (0, 1)), constant_values=1.0)
    logits = (batch_x @ weights.reshape(d + 1, -1)).reshape(batch, g, -1)
    label = jax.nn.one_hot(y[places], num_classes)[:, None]
    error = (jax.nn.softmax(logits) - label) / batch
    gradient = (batch_x.T @ error.reshape(batch, -1)).reshape(weights.shape)
    direction = (gradient + decay * weights) / curvature
    velocity = _MOMENTUM * velocity + direction
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * t / (steps * epochs)))
    return (weights - rates * cosine * velocity, velocity), None

  def epoch(carry, e):
    order = jax.random.permutation(jax.random.fold_in(key, e), rows)
    places = order[: steps * batch].reshape(steps, batch)
    return jax.lax.scan(step, carry, (places, e * steps + jnp.arange(steps)))

  zeros = jnp.zeros((d + 1, g, num_classes))
  with jax.default_matmul_precision("highest"):
    (weights, _), _ = jax.lax.scan(epoch, (zeros, zeros), jnp.arange(epochs))
  return weights


def _accuracies(weights, x, y):
  """[g] accuracies of weights [r+1 g classes]."""
  weights = np.asarray(weights)
  logits = np.asarray(x) @ weights[:-1].reshape(x.shape[1], -1)
  logits = logits.reshape(len(x), *weights.shape[1:]) + weights[-1]
  return (logits.argmax(-1) == np.asarray(y)[:, None]).mean(axis=0)
