"""The loss of a run's method on examples that it was not trained on."""

import functools
import operator

import jax
import numpy as np

from ssljax import errors
from ssljax import run as run_lib
from ssljax import sharding


def measure(run: run_lib.Run, state, data: str | None, split: str) -> dict:
  """The method's loss and metrics on a split, `test_` before their names.

  The features of all examples meet in one objective where each example has
  numbers of its own alone, sums and counts; else, as in contrastive methods,
  those of whole batches do, and the figures are the batches' mean. Batches are
  of examples in an order by chance, always the same, for a folder's are sorted
  by class; an example's views do not depend on its batch.

  Raises:
    UserError: the method keeps something of each training example, as clusters,
      or there are fewer examples than its loss needs.
  """
  if run.method.refresh is not None:
    raise errors.UserError(
      f"{run.config.method.name} learns from what it keeps of each training "
      "example, and has nothing of others: leave loss out of --protocols"
    )
  source = run_lib.open_like(run, data, split)
  devices, place = run.mesh.devices.size, sharding.by_example(run.mesh)
  size, found = min(run.config.batch_size, len(source)), []
  size = max(devices, size - size % devices)
  order = np.random.default_rng(0).permutation(len(source))

  @jax.jit
  def features(state, batch):
    of = functools.partial(jax.random.fold_in, jax.random.key(0))
    batch = run.augment(batch | {"key": jax.vmap(of)(batch["index"])})
    return run.method.forward(
      state.params, state.method_state, batch, step=state.step, train=False
    )[0]

  @jax.jit
  def objective(state, features):
    loss, (_, metrics) = run.method.objective(
      state.params, state.method_state, features, step=state.step
    )
    return {"loss": loss, **metrics}

  rows, most = [], -1
  for first in range(0, len(source), size):
    places = np.arange(first, first + size)
    batch = source.read(order[np.minimum(places, len(source) - 1)])
    if run.config.data.labels:
      most = max(most, int(np.max(batch["label"])))
    batch["epoch"] = np.zeros(size, np.int32)
    some = features(state, sharding.put(batch, place))
    some = jax.tree.map(sharding.gather, some)
    rest = len(source) - first  # what fills up the last batch is not counted
    if all(x.ndim == 1 for x in jax.tree.leaves(some)):
      found.append(jax.tree.map(operator.itemgetter(slice(rest)), some))
    elif rest >= size:
      rows.append(objective(state, some))
  if not found and not rows:
    raise errors.UserError(
      f"the loss on {split} needs {size} examples, one for each device, and "
      f"there are {len(source)}: name a larger split"
    )
  if run.config.data.labels and not 0 <= most < run.source.num_classes:
    raise errors.UserError(
      f"labels of {split} go up to {most} (-1 is unknown), and the training "
      f"has {run.source.num_classes} classes: leave loss out of --protocols"
    )
  if found:
    together = jax.tree.map(lambda *x: np.concatenate(x), *found)
    rows = [objective(state, together)]
  figures = {k: float(np.mean([r[k] for r in rows])) for k in rows[0]}
  if "masked_loss" in figures:  # of hidden tokens alone
    figures["perplexity"] = float(np.exp(figures["masked_loss"]))
  if "bits_per_token" in figures:
    bits = figures["bits_per_token"]
    figures["perplexity"] = float(np.exp2(bits))
    figures["bits_per_byte"] = bits * source.tokens_per_byte
  return {f"test_{name}": value for name, value in figures.items()}
