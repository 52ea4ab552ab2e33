"""Fine-tuning of a run's encoder, from its weights and from scratch."""

import jax
import numpy as np

from ssljax import core
from ssljax import run as run_lib
from ssljax import sharding
from ssljax.data import sources
from ssljax.evals import finetune
from ssljax.evals import floors

_WARM = 50  # batches of them, after which running statistics are of the data


def warmed(run: run_lib.Run, state, source):
  """The state with the running statistics, of batch norm, of a source's views.

  Before training they are of nothing; `finetune` holds them as they are.
  """
  if not jax.tree.leaves(state.method_state.get("batch_stats", {})):
    return state
  rng = np.random.default_rng(0)
  size, n = run.config.batch_size, len(source)
  place = sharding.by_example(run.mesh)

  @jax.jit
  def forward(method_state, batch):
    keys = jax.random.split(jax.random.key(0), size)
    batch = run.augment(batch | {"key": keys})
    return run.method.forward(
      state.params, method_state, batch, step=state.step, train=True
    )[1]

  method_state = state.method_state
  for _ in range(_WARM):
    batch = source.read(np.sort(rng.choice(n, size, replace=n < size)))
    batch["epoch"] = np.zeros(size, np.int32)
    batch = jax.device_put(batch, place)
    method_state = method_state | forward(method_state, batch)
  return state._replace(method_state=method_state)


def finetuned(
  run: run_lib.Run, state, start, sets, parts, seeds: int, raw: bool
):
  """Fine-tunes on parts of the labels; see `evaluate.evaluate`.

  Args:
    run: built.
    state: that was trained.
    start: before training, for "from scratch".
    sets: (train, test), labelled.
    parts: {fraction of the labels: places in the training set}.
    seeds: how many of each.
    raw: whether the raw input is measured as well.

  Yields:
    (fraction, figures, the protocol).
  """
  train, test = sets
  start = warmed(run, start, train)
  origins = [
    (name, *_tuned(run, origin, train.example))
    for name, origin in (("", state), ("scratch_", start))
  ]
  for fraction, places in parts.items():
    row = {"labels": len(places)}
    for name, apply, params in origins:
      result = finetune.finetune(
        apply,
        params,
        train,
        places,
        test,
        num_classes=train.num_classes,
        seeds=seeds,
      )
      values = result["accuracies"]
      row[name + "accuracy"] = float(np.mean(values))
      if seeds > 1:
        row[name + "spread"] = float(np.std(values, ddof=1))
      row[name + "all"], row[name + "rate"] = values, result["rate"]
    if raw:
      part = sources.Part(train, places)
      floor = floors.floor(part, test, ("linear",))["linear"]
      row["raw_linear"] = floor["accuracy"]
    yield fraction, row, result["protocol"]


def labels(source) -> np.ndarray:
  """[n], read a part at a time: with images, what is read may be large."""
  parts = np.array_split(np.arange(len(source)), -(-len(source) // 1000))
  return np.concatenate([source.read(places)["label"] for places in parts])


def _tuned(run, state, example):
  """`apply(learned, batch)` and what is learned: the parameters, and those of
  the teacher where there is one, for some methods are evaluated by it."""
  embed_fn = core.make_embed(run.method, run.view_for_eval)
  kept = state.method_state
  teacher = kept.get("teacher", {"params": ()})

  def apply(learned, batch):
    params, of_teacher = learned
    method_state = dict(kept)
    if "teacher" in kept:
      method_state["teacher"] = teacher | {"params": of_teacher}
    tuned = state._replace(params=params, method_state=method_state)
    return embed_fn(tuned, {k: batch[k] for k in example})

  return apply, (state.params, teacher["params"])
