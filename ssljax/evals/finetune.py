"""Fine-tuning: the whole encoder and a linear classifier, on few labels."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssljax import errors

_BATCH = 32
_EPOCHS, _LEAST_STEPS, _MOST_STEPS = 10, 200, 600
_RATES = (3e-4, 1e-3)
# The classifier's rate over the encoder's: with equal ones it is still near
# zero when the steps are over, and an untrained encoder never learns.
_HEAD = 10.0
_DECAY, _WARMUP, _CLIP = 0.01, 0.1, 1.0
_EVAL_BATCH = 500
_TX = optax.chain(
  optax.clip_by_global_norm(_CLIP),
  optax.scale_by_adam(),
  optax.add_decayed_weights(_DECAY),
)


def subset(labels: np.ndarray, fraction: float, seed: int = 0) -> np.ndarray:
  """The places of a part of the labels, int [n * fraction], by chance.

  Raises:
    UserError: fewer than 10 examples, or all of one class.
  """
  n = round(len(labels) * fraction) if 0 < fraction <= 1 else 0
  if n < 10:
    raise errors.UserError(
      f"a fraction of {fraction:g} of {len(labels)} labels is {n} examples: "
      "give one in (0, 1] with 10 or more"
    )
  places = np.sort(np.random.default_rng(seed).permutation(len(labels))[:n])
  if len(np.unique(labels[places])) == 1:
    raise errors.UserError(
      f"the {n} examples of a fraction of {fraction:g} are all of one class: "
      "give a larger one"
    )
  return places


def finetune(
  embed: Callable,
  params,
  train,
  places: np.ndarray,
  test,
  *,
  num_classes: int,
  seeds: int = 1,
) -> dict:
  """Returns `accuracies`, one for each seed, `rate` and `protocol`.

  AdamW with warm-up and a linear decay, in batches of 32: 10 epochs, but 200 to
  600 steps, or one epoch where that is more, so that every label is used; the
  classifier from zero at ten times the encoder's rate. The rate is chosen on a
  held-out tenth of the places; then each seed, of the order, learns from all of
  them. As `embed` is that of evaluation, nothing is dropped and batch norm's
  statistics stay as they are.

  Args:
    embed: `(params, batch) -> {"pooled": [b d], ...}`, differentiable.
    params: where the encoder starts.
    train: a labelled source.
    places: int [n], the examples of it that may be used.
    test: a labelled source.
    num_classes: number of labels.
    seeds: how many.
  """
  step, predict = _compiled(embed, num_classes)
  epoch = max(1, len(places) // _BATCH)
  steps = min(max(_EPOCHS * epoch, _LEAST_STEPS), _MOST_STEPS)
  steps = max(epoch, steps)
  dim = jax.eval_shape(embed, params, train.read(places[:1]))["pooled"].shape[1]

  def fit(places, rate, seed):
    zeros = jnp.zeros((dim, num_classes)), jnp.zeros(num_classes)
    state = (params, *zeros)
    state = state, _TX.init(state)
    batches = _batches(np.random.default_rng(seed), places, steps)
    for i, batch in enumerate(batches):
      rows = train.cut(train.read(batch), batch)
      state = step(state, rows, jnp.float32(_rate(i, rate, steps)))
    return state[0]

  def accuracy(learned, source, places):
    right = 0
    for start in range(0, len(places), _EVAL_BATCH):
      # The last batch begins earlier, so that one program serves all.
      first = max(0, min(start, len(places) - _EVAL_BATCH))
      indices = places[first : first + _EVAL_BATCH]
      batch = source.cut(source.read(indices), indices)
      hits = predict(learned, batch) == batch["label"]
      right += int(hits[start - first :].sum())
    return right / len(places)

  shuffled = np.random.default_rng(0).permutation(places)
  held, kept = np.split(shuffled, [max(1, len(places) // 10)])
  scores = [accuracy(fit(kept, rate, 0), train, held) for rate in _RATES]
  rate = _RATES[int(np.argmax(scores))]
  everything = test.order()
  return {
    "accuracies": [
      accuracy(fit(places, rate, seed), test, everything)
      for seed in range(seeds)
    ],
    "rate": rate,
    "protocol": (
      f"finetune/4 adamw decay={_DECAY} clip={_CLIP} batch={_BATCH} "
      f"epochs={_EPOCHS} steps={_LEAST_STEPS}..{_MOST_STEPS} or 1 epoch "
      f"warmup={_WARMUP} linear "
      f"rates={_RATES} head={_HEAD:g}x held_out=0.1 statistics frozen"
    ),
  }


def _rate(step, rate, steps):
  warmup = max(1, round(_WARMUP * steps))
  return rate * min((step + 1) / warmup, (steps - step) / (steps - warmup))


def _batches(rng, places, steps):
  """`steps` batches of places, by epochs."""
  size = min(_BATCH, len(places))
  order = np.empty(0, int)
  for _ in range(steps):
    if len(order) < size:
      order = rng.permutation(places)
    yield order[:size]
    order = order[size:]


@functools.lru_cache(maxsize=8)
def _compiled(embed, num_classes):
  """`step(state, batch, rate) -> state` and `predict(learned, batch) -> [b]`;
  what is learned is (params, weights [d classes], bias [classes])."""

  def logits(learned, batch):
    params, weights, bias = learned
    return embed(params, batch)["pooled"] @ weights + bias

  def loss(learned, batch):
    label = jax.nn.one_hot(batch["label"], num_classes)
    return optax.softmax_cross_entropy(logits(learned, batch), label).mean()

  def step(state, batch, rate):
    learned, opt_state = state
    grads = jax.grad(loss)(learned, batch)
    updates, opt_state = _TX.update(grads, opt_state, learned)
    scaled = lambda rate, tree: jax.tree.map(lambda u: -rate * u, tree)
    params, *head = updates
    updates = scaled(rate, params), *scaled(_HEAD * rate, head)
    return (optax.apply_updates(learned, updates), opt_state)

  predict = lambda learned, batch: logits(learned, batch).argmax(axis=1)
  return jax.jit(step), jax.jit(predict)
